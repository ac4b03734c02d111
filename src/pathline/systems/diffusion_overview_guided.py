"""Guidance and search on exact Gaussian data on a subspace: what claims of the overview read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from pathline.core import noise
from pathline.fields import Field, Gaussian, Subspace
from pathline.paths import Tabulated
from pathline.solvers import grids, sample
from pathline.steer import LookAhead, Naive, Optimiser, Search, Targeted

PATH = Tabulated.linear(5e-4, 0.1, 200)
"""DDPM's table of β for 200 steps, in which data become noise: 5 times that for 1000."""
GRID = grids.uniform(200, last="denoise")
TARGETS = (0.1, 0.3, 1.0)
STD = 0.1


@dataclass(frozen=True)
class Shift:
    """Fine-tuning of an exact Gaussian: its mean moves by a share of the way to the batch's.

    Args:
        support: the subspace, along which it moves.
        rate: the share.
    """

    support: Subspace
    rate: float = 0.05

    def begin(self, model: Field) -> Mapping[str, Tensor]:
        """Return the mean."""
        assert isinstance(model, Gaussian)
        return {"mean": model.mean}

    def field(self, model: Field, memory: Mapping[str, Tensor]) -> Field:
        """Return the law with the mean in the memory."""
        assert isinstance(model, Gaussian)
        return replace(model, mean=memory["mean"])

    def learned(
        self, model: Field, memory: Mapping[str, Tensor], x: Tensor, step: int
    ) -> Mapping[str, Tensor]:
        """Return the mean after a batch."""
        center = self.support.projected(x.mean(0, keepdim=True))[0]
        return {"mean": memory["mean"].lerp(center, self.rate)}


@dataclass(frozen=True)
class Guided:
    """N(0, 1) on 16 of 64 dimensions, and a reward most of which points off it.

    Args:
        n: samples at each target.
        ratio: of the reward's direction off the subspace to that on it.
    """

    n: int = 2000
    ratio: float = 9.0

    @cached_property
    def support(self) -> Subspace:
        """The subspace."""
        return Subspace.drawn(64, 16)

    @cached_property
    def law(self) -> Gaussian:
        """The data."""
        return self.support.gaussian(PATH)

    @cached_property
    def theta(self) -> Tensor:
        """The direction of the reward, of length 1, (64,)."""
        z = noise.normal([1], (64,), stream="data", index=1, dtype=torch.float64)
        on = self.support.projected(z)
        off = z - on
        theta = on / on.norm() + self.ratio * off / off.norm()
        return (theta / theta.norm())[0]

    def linear(self, x: Tensor) -> Tensor:
        """θ · x."""
        return x @ self.theta

    def concave(self, x: Tensor) -> Tensor:
        """f1(x) = 10 − (θ · x − 3)²."""
        return 10 - (self.linear(x) - 3).square()

    def exact(self, y: float) -> tuple[float, float]:
        """Return mean and deviation of θ · x given that it was measured to be y."""
        law = self.law.given(self.theta, y, STD)
        variance = self.theta @ law.covariance @ self.theta
        return float(self.theta @ law.mean), float(variance.sqrt())

    @cached_property
    def samples(self) -> Mapping[tuple[str, float], Tensor]:
        """Samples by guide and target."""
        guides: Mapping[str, Targeted] = {"look-ahead": LookAhead(std=STD), "naive": Naive(std=STD)}
        return {
            (name, y): self._drawn(replace(guide, reward=self.linear, y=y))
            for name, guide in guides.items()
            for y in TARGETS
        }

    def _drawn(self, guide: Targeted) -> Tensor:
        with torch.no_grad():
            return sample(
                self.law, self.n, guide=guide, solver="ddpm", grid=GRID, dtype=torch.float64
            ).x

    def off(self, name: str, y: float) -> float:
        """Return the mean off-support ratio of a guide's samples."""
        return float(self.support.off(self.samples[name, y]).mean())

    def mean_off(self) -> float:
        """Return how far the mean reward is from the exact one, relative; the worst of targets."""
        found = {y: float(self.linear(self.samples["look-ahead", y]).mean()) for y in TARGETS}
        return max(abs(found[y] / self.exact(y)[0] - 1) for y in TARGETS)

    def spread_off(self) -> float:
        """Return how far its deviation is, relative; the worst of targets."""
        found = {y: float(self.linear(self.samples["look-ahead", y]).std()) for y in TARGETS}
        return max(abs(found[y] / self.exact(y)[1] - 1) for y in TARGETS)

    def leaves(self) -> float:
        """Return the largest off-support ratio of look-ahead guidance."""
        return max(self.off("look-ahead", y) for y in TARGETS)

    def naive_leaves(self) -> float:
        """Return the naive ratio over that of look-ahead guidance, the least of targets."""
        return min(self.off("naive", y) / self.off("look-ahead", y) for y in TARGETS)

    def optimiser(self, guide: Targeted, rise: float) -> Optimiser:
        """Return what maximises f1."""
        return Optimiser(
            self.law,
            self.concave,
            guide=guide,
            rise=rise,
            grid=GRID,
            support=self.support,
            patience=1000,
            dtype=torch.float64,
        )

    @cached_property
    def climb(self) -> Search:
        """Alg. 1, 150 rounds."""
        return self.optimiser(LookAhead(std=STD), 0.2).run(150)

    @cached_property
    def tuned(self) -> Search:
        """Alg. 2, as many."""
        climb = self.optimiser(LookAhead(std=STD), 0.2)
        return replace(climb, learner=Shift(self.support)).run(150)

    @cached_property
    def naive(self) -> Search:
        """Alg. 1 with naive guidance, 12 rounds."""
        return self.optimiser(Naive(std=STD), 0.9).run(12)

    def settled(self) -> float:
        """Return the mean reward of Alg. 1's last ten rounds."""
        return float(self.climb.means[-10:].mean())

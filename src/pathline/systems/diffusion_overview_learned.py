"""Rewards of few labels, and models of pseudo-labelled data: what claims of the overview read."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from pathline.core import noise
from pathline.data.fetch import cache_folder
from pathline.fields import Gaussian, Subspace
from pathline.learn import Directed, Labels, Ridge, fit_ridge, pseudo_labels, train_directed
from pathline.nets import SubspaceScore
from pathline.paths import VPLinear
from pathline.solvers import grids
from pathline.steer import LookAhead
from pathline.systems.diffusion_overview_rates import noisy_rows

WHOLE, DIM = 32, 4
STEPS = 9000
"""Of training: a direction that begins across the data is found late, after 3000."""
LABEL_NOISE = 0.1
NU = 0.1
COUNTS = (50, 200, 1000)
SPECIFIED = (0.054, 0.0135, 0.0062)
"""One draw each of the error of θ̂ on the subspace, for as many labels."""


@dataclass(frozen=True)
class Learned:
    """N(0, 1) on 4 of 32 dimensions, of which a linear reward is known for a few rows.

    Args:
        rows: without labels.
        labelled: rows with labels, for the models.
        draws: of labels, for the regression's error.
    """

    rows: int = 6400
    labelled: int = 1000
    draws: int = 64

    @cached_property
    def support(self) -> Subspace:
        """The subspace."""
        return Subspace.drawn(WHOLE, DIM)

    @cached_property
    def theta(self) -> Tensor:
        """The direction of the reward, on the subspace and of length 1, (32,)."""
        z = noise.normal([1], (DIM,), stream="data", index=1, dtype=torch.float64)
        return self.support.lifted(z / z.norm())[0]

    def reward(self, x: Tensor) -> Tensor:
        """The true reward, θ · x."""
        return x @ self.theta.to(x)

    def labels(self, m: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return m rows and their labels, with noise."""
        x = noisy_rows(self.support, m, 0.0, 1 + seed)
        xi = noise.normal([seed], (m,), stream="probe", dtype=torch.float64)[0]
        return x, self.reward(x) + LABEL_NOISE * xi

    @cached_property
    def errors(self) -> Tensor:
        """‖Aᵀ (θ̂ − θ)‖ for λ = 1, (counts, draws)."""
        found = [
            [self._error(fit_ridge(*self.labels(m, seed), 1.0)) for seed in range(self.draws)]
            for m in COUNTS
        ]
        return torch.tensor(found, dtype=torch.float64)

    def regression_off(self) -> float:
        """Return how far the root mean square error is from √(λ² + d s² m)/(m + λ), relative.

        It is that of data whose Xᵀ X on the subspace is m, their mean, and θ of length 1.
        """
        expected = [math.sqrt(1 + DIM * LABEL_NOISE**2 * m) / (m + 1) for m in COUNTS]
        found = self.errors.square().mean(1).sqrt()
        return float((found / torch.tensor(expected) - 1).abs().max())

    def specified_off(self) -> float:
        """Return how far the specification's errors are from the mean, in deviations of a draw."""
        off = (torch.tensor(SPECIFIED) - self.errors.mean(1)) / self.errors.std(1)
        return float(off.abs().max())

    def _error(self, ridge: Ridge) -> float:
        """Return ‖Aᵀ (θ̂ − θ)‖."""
        return float((self.support.basis.T @ (ridge.theta - self.theta)).norm())

    @cached_property
    def ridge(self) -> Ridge:
        """The regression on the labels at hand."""
        return fit_ridge(*self.labels(self.labelled, 0), 1.0)

    @cached_property
    def points(self) -> Tensor:
        """The rows without labels, (n, 32) float64."""
        return noisy_rows(self.support, self.rows, 0.0, 0)

    @cached_property
    def fitted(self) -> Gaussian:
        """The Gaussian with the mean and the covariance of the rows."""
        return Gaussian(VPLinear(), self.points.mean(0), self.points.T.cov())

    def conditional(self, a: float) -> Gaussian:
        """Return the law of x given its pseudo-label a, of the Gaussian fitted to both."""
        y = pseudo_labels(self.ridge, self.points, NU)
        both = torch.cat((self.points, y[:, None]), 1).T.cov()
        across, along = both[:-1, -1], both[-1, -1]
        mean = self.fitted.mean + across * ((a - y.mean()) / along)
        return Gaussian(VPLinear(), mean, both[:-1, :-1] - across[:, None] * across / along)

    def reached(self, a: float) -> float:
        """Return the true mean reward of that law."""
        return float(self.reward(self.conditional(a).mean))

    def linear_off(self) -> float:
        """Return how far the deviation from a is from a multiple of it, for a = 0.5 to 8."""
        asked = (0.5, 1.0, 2.0, 4.0, 8.0)
        zero = self.reached(0.0)
        shares = [(self.reached(a) - zero) / a for a in asked]
        return (max(shares) - min(shares)) / shares[0]

    def conditional_off(self) -> float:
        """Return the largest off-support ratio of draws of that law, a = 0.5 to 8."""
        return max(
            float(self.support.off(self.conditional(a).draw(range(1000))).max())
            for a in (0.5, 1.0, 2.0, 4.0, 8.0)
        )

    def guided(self) -> float:
        """Return the true mean reward of the fitted Gaussian's samples, guided to f̂ = 1."""
        known = Labels.of(*self.labels(self.labelled, 0))
        model = Directed(self.fitted, self.ridge, known, guide=LookAhead(std=NU))
        made = model.propose(
            1.0,
            500,
            truth=self.reward,
            solver="ddpm",
            grid=grids.uniform(200, last="denoise"),
            dtype=torch.float64,
        )
        return made.reward

    @cached_property
    def model(self) -> Directed:
        """The trained conditional model; one that was trained before is taken up."""
        told = repr((self.rows, self.labelled, self.ridge.theta.tolist(), STEPS))
        name = hashlib.sha256(told.encode()).hexdigest()[:16]
        folder: Path = cache_folder() / "diffusion-overview" / name
        known = Labels.of(*self.labels(self.labelled, 0))
        return train_directed(
            self.points, self.ridge, known, folder, noise=NU, dim=DIM, steps=STEPS
        )

    def gap(self) -> float:
        """Return ‖V Vᵀ − A Aᵀ‖ of the network's subspace."""
        network = getattr(self.model.model, "network", None)
        assert isinstance(network, SubspaceScore)
        return Subspace(network.basis.detach().double()).gap(self.support)

    def proposed(self, deviations: float) -> dict[str, float]:
        """Return what becomes of 1000 samples that are asked for mean + so many deviations."""
        known = self.model.labels
        a = known.mean + deviations * known.std
        made = self.model.propose(a, 1000, truth=self.reward, steps=20)
        off = float(self.support.off(made.x).mean())
        return {"target": a, "reward": made.reward, "estimate": made.estimate, "off": off}

    def proposed_off(self) -> float:
        """Return the largest mean off-support ratio of these, at 0, 1 and 2 deviations."""
        return max(self.proposed(k)["off"] for k in (0.0, 1.0, 2.0))

"""Regularisers: what is added to the regression's loss, and changes which network is learned.

    L = E ‖error‖² + w E R²,   R the residual of the Fokker-Planck equation at collocation points

A score that obeys the equation of its own path samples one law by the reverse SDE and by the
probability flow. The regression says which law that is, so it stays; the residual alone is zero for
every solution of the equation, right or wrong.

Points are drawn with the step's own generator, after all else, so a run with a regulariser sees
the very batches of one without, and resumes to the bit.

Paper: Deveney et al. 2023 (arXiv:2311.15996).
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pathline.core.errors import UsageError, unknown
from pathline.core.registry import Registry
from pathline.fields import Condition, Denoiser, FokkerPlanck
from pathline.fields.field import selected
from pathline.fields.fokker_planck import Clock, squared
from pathline.fields.residuals import Residuals, check_derivable, residuals
from pathline.fields.trace import Exact, Hutchinson, HutchPP, Trace
from pathline.learn.objectives import EarlyTimes, Matching, drawn_noise

__all__ = ["FokkerPlanckPenalty", "Collocation", "Regulariser", "regularisers"]

TRACES: Mapping[str, Callable[..., Trace]] = {
    "exact": Exact,
    "hutchinson": Hutchinson,
    "hutch++": HutchPP,
}
"""The traces that a training configuration can name."""

PROBE = 2000
"""Noised data on which a box is looked at."""
MISSED = 0.05
"""The share of noised data outside a box from which on it is warned of."""
SHOWN = 512
"""Data on which the residual is reported."""


@dataclass(frozen=True)
class Collocation:
    """Where a penalty is worked out, with all that is random about it.

    Args:
        x: (points, *state).
        t: (points,) float64.
        seeds: of the probes, (points,) int64.
        cond: what the network is told.
    """

    x: Tensor
    t: Tensor
    seeds: Tensor
    cond: Condition

    def part(self, i: int, n: int) -> Collocation:
        """Return the i-th of n parts of one size."""
        size = len(self.x) // n
        rows = torch.arange(i * size, (i + 1) * size)
        x, t, seeds = (v[rows] for v in (self.x, self.t, self.seeds))
        return Collocation(x, t, seeds, selected(self.cond, rows))

    def to(self, device: torch.device) -> Collocation:
        """Return the same on a device; the seeds are always read on the CPU."""
        cond = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.cond.items()}
        return Collocation(self.x.to(device), self.t.to(device), self.seeds, cond)


@dataclass(frozen=True)
class Regulariser(ABC):
    """What is added to the loss of a step.

    Args:
        weight: w, at least 0.
        points: at which it is worked out, every time.
        warmup: steps over which the weight rises from 0.
        every: steps from one time to the next; the weight is multiplied by it.
    """

    weight: float
    points: int = 250
    warmup: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise UsageError(
                f"the weight of a penalty is finite and at least 0, not {self.weight}."
            )
        if self.points < 1 or self.every < 1 or self.warmup < 0:
            raise UsageError(
                "a penalty needs points ≥ 1, every ≥ 1 and warmup ≥ 0; they are "
                f"{self.points}, {self.every}, {self.warmup}."
            )

    def weight_at(self, step: int) -> float:
        """Return the factor of the penalty in this step; 0 where it is left out."""
        if step % self.every:
            return 0.0
        risen = min(1.0, step / self.warmup) if self.warmup else 1.0
        return self.weight * risen * self.every

    @abstractmethod
    def check(self, matching: Matching, network: nn.Module, x0: Tensor, cond: Condition) -> None:
        """Refuse a network or a path that it cannot serve, before training."""

    @abstractmethod
    def draw(
        self, matching: Matching, x0: Tensor, cond: Condition, generator: torch.Generator
    ) -> Collocation:
        """Return the points of a step, a function of its batch and the generator."""

    @abstractmethod
    def loss(self, matching: Matching, network: nn.Module, at: Collocation) -> Tensor:
        """Return the penalty, (), without its weight."""

    def added(self, matching: Matching, network: nn.Module, at: Collocation, step: int) -> Tensor:
        """Return what is added to the loss of a step, ().

        It is worked out on the bare network: neither compiled code nor half precision has second
        derivatives that one would trust.
        """
        with torch.autocast(at.x.device.type, enabled=False):
            return self.weight_at(step) * self.loss(matching, network, at)


regularisers: Registry[Regulariser] = Registry("regulariser")
"""Every regulariser, by name."""


@regularisers.register("fokker_planck", aliases=("fp",), paper="arXiv:2311.15996")
@dataclass(frozen=True)
class FokkerPlanckPenalty(Regulariser):
    """E R², by how much the network misses the Fokker-Planck equation of its path.

    R where the network is a potential (`nets.Potential`), else ∇R of its score, for which the state
    has eight elements at most unless the trace estimates.

    Args:
        weight, points, warmup, every: as `Regulariser`. R is per unit of path time: of a path that
            runs T times as fast it is T times as large, and its weight T² times as small.
        box: half the side of the cube in which x is drawn evenly; None takes noised data.
        clip: the quantile of R² that larger ones are cut to: R grows without bound towards data on
            a manifold. With `accumulate` or several devices it is each part's own.
        trace: `{"kind": "hutchinson", "n": 4}`, "hutch++" or "exact"; by the dimension if None.
        per: "time", or "log_snr", which is bounded where α vanishes.
        time_power: of the law Beta(1, power) that its times are drawn from, 1 for even ones; None
            draws them as the objective's.

    Cost: three to four plain steps of as many samples.
    """

    box: float | None = None
    clip: float = 0.999
    trace: Mapping[str, Any] | None = None
    per: Clock = "time"
    time_power: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.time_power is not None:
            EarlyTimes(self.time_power)  # refuses what is no power
        if self.box is not None and not 0 < self.box < math.inf:
            raise UsageError(f"half the side of the box is finite and above 0, not {self.box}.")
        if not 0 < self.clip <= 1:
            raise UsageError(f"clip is a quantile in (0, 1], and is {self.clip}.")
        self.estimator()

    def estimator(self) -> Trace | None:
        """Return the trace that the table names.

        Raises:
            UsageError: nobody knows it, or it does not take the values.
        """
        if self.trace is None:
            return None
        table = dict(self.trace)
        kind = str(table.pop("kind", "none"))
        if kind not in TRACES:
            raise unknown("trace", kind, TRACES)
        try:
            return TRACES[kind](**table)
        except TypeError as error:
            raise UsageError(f"the trace {kind} does not take these values: {error}.") from error

    def equation(self, matching: Matching) -> FokkerPlanck:
        """Return what the network is held to."""
        return FokkerPlanck(matching.path, self.estimator(), self.per)

    def check(self, matching: Matching, network: nn.Module, x0: Tensor, cond: Condition) -> None:
        """Refuse what has no residual; warn of a box that misses where the data are.

        Raises:
            UsageError: as `check_derivable`; noise that is correlated with the data, or more than
                the path's own; α = 0 at the end, with a residual per unit of time.
        """
        path = matching.path
        equation = self.equation(matching)
        if matching.bridge:
            raise UsageError(
                f"bridge = {matching.bridge:g} adds noise that the path knows nothing of, and the "
                "Fokker-Planck equation holds for the path's alone: leave one of them out."
            )
        if self.per == "time" and float(path.alpha(path.t_max)) == 0:
            raise UsageError(
                f"the residual of {type(path).__name__} grows without bound at t = {path.t_max:g}, "
                'where α = 0: take per = "log_snr".'
            )
        few = min(4, len(x0))
        told = selected(cond, torch.arange(few))
        check_derivable(_denoiser(matching, network), equation, x0[:few], told)
        if self.box is not None:
            self._check_box(self.box, matching, x0)

    def _check_box(self, box: float, matching: Matching, x0: Tensor) -> None:
        generator = torch.Generator().manual_seed(0)
        rows = torch.arange(PROBE) % len(x0)
        t = matching.draw_times(PROBE, generator)
        x = matching.path.noised(x0.cpu()[rows], _noise(matching, x0, PROBE, generator), t)
        missed = float((x.flatten(1).abs().amax(1) > box).double().mean())
        if missed > MISSED:
            warnings.warn(
                f"the box [−{box:g}, {box:g}]^{x0[0].numel()} misses {missed:.1%} of the noised "
                "data: the equation is not held to where they are. Take a larger box, or leave it "
                "out to draw noised data.",
                stacklevel=3,
            )

    def draw(
        self, matching: Matching, x0: Tensor, cond: Condition, generator: torch.Generator
    ) -> Collocation:
        rows = torch.arange(self.points) % len(x0)
        own = self.time_power
        how = matching if own is None else replace(matching, times=EarlyTimes(own))
        t = how.draw_times(self.points, generator)
        shape = (self.points, *x0.shape[1:])
        if self.box is None:
            eps = _noise(matching, x0, self.points, generator)
            x = matching.path.noised(x0[rows], eps, t)
        else:
            x = self.box * (2 * torch.rand(shape, generator=generator, dtype=x0.dtype) - 1)
        seeds = torch.randint(2**63 - 1, (self.points,), generator=generator)
        return Collocation(x, t, seeds, selected(cond, rows))

    def loss(self, matching: Matching, network: nn.Module, at: Collocation) -> Tensor:
        model = _denoiser(matching, network)
        made = self.equation(matching).of(model, at.x, at.t, at.seeds.tolist(), at.cond)
        square = squared(made)
        most = square.detach().abs().quantile(self.clip)
        return square.clamp(-most, most).mean()

    def report(
        self, matching: Matching, network: nn.Module, x0: Tensor, cond: Condition
    ) -> Residuals:
        """Return the residual on noised data, by time."""
        rows = torch.arange(min(SHOWN, len(x0)))
        model, told = _denoiser(matching, network), selected(cond, rows)
        return residuals(model, x0[rows], equation=self.equation(matching), **told)


def _denoiser(matching: Matching, network: nn.Module) -> Denoiser:
    return Denoiser(network, matching.path, matching.view, matching.label)


def _noise(matching: Matching, x0: Tensor, n: int, generator: torch.Generator) -> Tensor:
    return drawn_noise(matching.path.kernel, (n, *x0.shape[1:]), generator)

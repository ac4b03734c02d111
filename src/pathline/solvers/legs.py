"""Adaptive steps on the clocks of a path: σ/α, α/σ or λ, where a level is more than its time.

`Leg` is one attempt of some samples; `OnPath` lets a rule that thinks in levels run in the loop of
all adaptive solvers (`adaptive`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.paths import GaussianPath, Time, bshape
from pathline.paths.path import LOWEST_LOG_SNR
from pathline.solvers.levels import Levels
from pathline.solvers.pace import Flags, Numbers, Reach
from pathline.solvers.slope import Slope
from pathline.solvers.stepped import Course, each
from pathline.solvers.trial import Rows, Stepper, Trial, rms

Evaluate = Callable[[Tensor, Tensor], Tensor]
"""From states (n, *state) and times (n,) to the field there."""


class Pairing(NamedTuple):
    """What one attempt has made of some samples.

    Args:
        high: the better result, which the solve goes on from.
        error: its distance from the other one.
        low: the other one, where `scale` asks for it; else anything of its shape.
        last: the field at the end of the step, where a stage has it.
    """

    high: Tensor
    error: Tensor
    low: Tensor
    last: Tensor | None


class Leg(NamedTuple):
    """One attempt of some samples: from where to where, and what is known there.

    Args:
        path: the path.
        s, t: the levels at both ends.
        x: the states at s.
        first: the field there.
    """

    path: GaussianPath | None
    s: Levels
    t: Levels
    x: Tensor
    first: Tensor


class Rule(Protocol):
    """What an adaptive solver on the clock of a path knows."""

    @property
    def rtol(self) -> float:
        """Relative tolerance."""
        ...

    @property
    def atol(self) -> float:
        """Absolute tolerance."""
        ...

    def clock(self, levels: Levels) -> Tensor:
        """Return what the steps are measured in: λ, σ/α …, (batch,)."""
        ...

    def time(self, path: GaussianPath | None, clock: Tensor) -> Tensor:
        """Return the time at which the clock shows this."""
        ...

    def attempt(self, leg: Leg, evaluate: Evaluate) -> Pairing:
        """Take the step of both orders."""
        ...

    def scale(self, trial: Pairing, x: Tensor, before: Tensor) -> Tensor:
        """Return δ, what an error is compared with, like the state.

        Args:
            trial: what was tried.
            x: the states it started from.
            before: the low result of the step that led there.
        """
        ...

    def opening(self, leg: Leg, evaluate: Evaluate) -> Tensor:
        """Estimate the size of the first step of some samples, on the clock.

        Args:
            leg: from where they stand to the next grid point.
            evaluate: the field.
        """
        ...


class OnPath(Stepper):
    """A rule on the clock of a path, bound to one solve."""

    narrows = True

    def __init__(self, rule: Rule, course: Course, slope: Slope, evaluations: int) -> None:
        super().__init__(slope, rule.rtol, rule.atol)
        self._rule, self._path, self.evaluations = rule, course.path, evaluations
        self._lowest = _lowest(course)
        self._at = self._goal = self._levels(course.start[0])
        self._rows = torch.arange(len(slope.way))
        self._low: Tensor | None = None
        self._tried: tuple[Levels, Tensor] | None = None
        self._seen: tuple[Tensor, Tensor, Tensor] | None = None

    def _levels(self, t: Time) -> Levels:
        times = each(t, len(self.slope.way)).contiguous()
        return Levels.at(self._path, times, self._lowest.expand(len(times)))

    def clocks(self, t: Time) -> Numbers:
        return self._rule.clock(self._levels(t)).numpy()

    def aim(self, t: Time) -> None:
        self._goal = self._levels(t)

    def narrow(self, rows: Tensor | None) -> None:
        self._rows = torch.arange(len(self._at.t)) if rows is None else rows

    def here(self, clocks: Numbers, x: Tensor) -> Tensor:
        del clocks
        return self._timed(self._at.of(self._rows).t, x)

    def time(self, clocks: Numbers, rows: Rows) -> Numbers:
        del clocks
        return self._at.t[torch.from_numpy(rows)].numpy()

    def _timed(self, t: Tensor, x: Tensor) -> Tensor:
        (made,) = self.slope.times((t.numpy() * self.slope.way)[None], x)
        return made

    def _evaluate(self, x: Tensor, t: Tensor) -> Tensor:
        return self.slope(x, self._timed(t, x))

    def attempt(self, x: Tensor, first: Tensor, reach: Reach) -> Trial:
        rows = self._rows
        s, goal, lands = self._at.of(rows), self._goal.of(rows), torch.from_numpy(reach.lands)
        clock = torch.from_numpy(reach.end * self.slope.way)
        lowest = self._lowest.expand(len(self._at.t))[rows]
        between = Levels.at(self._path, self._rule.time(self._path, clock), lowest)
        leg = Leg(self._path, s, goal.or_else(lands, between), x, first)
        made = self._rule.attempt(leg, self._evaluate)
        before = x if self._low is None else self._low[rows.to(x.device)]
        with torch.no_grad():
            error = rms(made.error / self._rule.scale(made, x, before))
        self._tried = leg.t, made.low
        return Trial(made.high, error, made.last, [])

    def took(self, taken: Flags, x: Tensor, first: Tensor) -> None:
        assert self._tried is not None
        (levels, low), here = self._tried, torch.from_numpy(taken.nonzero()[0])
        rows, device = self._rows[here], x.device
        at, kept = rows.to(device), here.to(device)
        s = self._at.t[rows].to(device)
        self._at = self._at.replaced(rows, levels.of(here))
        whole = (len(self._at.t), *x.shape[1:])
        if self._low is None:
            self._low = x.new_zeros(whole)
        self._low = self._low.index_put((at,), low[kept].detach())
        if self._seen is None:
            zero = x.new_zeros(whole)
            self._seen = zero, s.new_zeros(whole[0]), zero
        new = (x[kept], s, first[kept])
        self._seen = tuple(  # type: ignore[assignment]
            old.index_put((at,), part) for old, part in zip(self._seen, new, strict=True)
        )

    def moved(self, x: Tensor) -> None:
        self._low = x.detach()

    @property
    def seen(self) -> tuple[Tensor, Tensor, Tensor] | None:
        return self._seen

    def opening(self, x: Tensor, first: Tensor, reach: Reach) -> Numbers:
        leg = Leg(self._path, self._at.of(self._rows), self._goal.of(self._rows), x, first)
        return self._rule.opening(leg, self._evaluate).double().cpu().numpy()

    def between(
        self, theta: Tensor, x: Tensor, x1: Tensor, trial: Trial, rows: Tensor, reach: Reach
    ) -> Tensor:
        raise UsageError(
            "save, dense and events look inside steps, which solvers on the clock of a path do not "
            "interpolate: use view='velocity', or make the times grid points."
        )


def combined(linear: Tensor, x: Tensor, weights: Sequence[Tensor], f: Sequence[Tensor]) -> Tensor:
    """Return L x + Σ w_i F_i, coefficients for each sample, every operation rounded by itself."""
    total = bshape(linear, x) * x
    for w, value in zip(weights, f, strict=True):
        total = total + bshape(w, x) * value
    return total


def _lowest(course: Course) -> Tensor:
    """Return what stands for λ = −∞, () or (batch,): below every other level of the grid."""
    lowest = torch.tensor(LOWEST_LOG_SNR, dtype=torch.float64)
    if course.path is None:
        return lowest
    levels = course.tabulated(course.path.log_snr)
    known = torch.where(levels.isneginf(), math.inf, levels - 1)
    return torch.where(levels.isneginf().any(0), known.amin(0).clamp(max=lowest), lowest)

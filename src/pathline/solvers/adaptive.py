"""Adaptive solvers: the difference of two results decides how far the next step goes.

Each sample has its own step size. With E the root mean square of (high − low)/δ over its elements,
a step is taken if E ≤ 1, and the next one is

    h ← h · clip(θ E^−kI (E_before/E)^kP, least, most)

Between grid points a sample takes as many steps as it needs; the last one lands on the point
exactly. A sample that is done, or has failed, is not evaluated again.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.core.solution import Status
from pathline.fields import Prediction
from pathline.paths import GaussianPath, Time, bshape
from pathline.paths.path import LOWEST_LOG_SNR
from pathline.solvers.execute import Step
from pathline.solvers.levels import Levels, steady, totals
from pathline.solvers.stepped import Course, Evaluation, Problem, Stepped, closing, each


class Control(NamedTuple):
    """How an error becomes a step size.

    Args:
        safety: θ.
        integral: kI, times the order of the error.
        proportional: kP, times the order of the error.
        least, most: the bounds of a change.
    """

    safety: float = 0.9
    integral: float = 1.0
    proportional: float = 0.0
    least: float = 0.0
    most: float = math.inf

    def factor(self, error: Tensor, before: Tensor, order: int) -> Tensor:
        """Return what the step is multiplied with, (batch,)."""
        error = error.clamp(min=LEAST_ERROR)
        change = steady(lambda e: e.pow(-self.integral / order), error)
        if self.proportional:
            change = change * steady(lambda e: e.pow(self.proportional / order), before / error)
        change = (self.safety * change).nan_to_num(nan=SHRINK, posinf=math.inf)
        return change.clamp(self.least, self.most)


LEAST_ERROR = 1e-10
"""An error below this counts as this: nothing divides by zero."""

SHRINK = 0.1
"""What a step is multiplied with whose result is not finite."""

SMALLEST = 1e-14
"""The smallest step, relative to where the clock stands."""


class Trial(NamedTuple):
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
        rows: which samples.
        s, t: the levels at both ends.
        x: the states at s.
        first: the field there.
    """

    path: GaussianPath | None
    rows: Tensor
    s: Levels
    t: Levels
    x: Tensor
    first: Tensor


@dataclass(frozen=True)
class Adaptive(Stepped):
    """What adaptive solvers share.

    Args:
        rtol: relative tolerance of one step.
        atol: absolute tolerance of one step.
        first: the first step, on the solver's clock; None lets the solver choose it.
        max_steps: attempts after which a sample is given up.
    """

    control: ClassVar[Control] = Control()
    rtol: float = 1e-3
    atol: float = 1e-6
    first: float | None = None
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        if not (self.rtol >= 0 and self.atol >= 0 and 0 < self.rtol + self.atol < math.inf):
            raise UsageError(
                "rtol and atol must not be negative, and one of them above 0; they are "
                f"{self.rtol} and {self.atol}."
            )
        if self.first is not None and not 0 < self.first < math.inf:
            raise UsageError(f"the first step must be above 0, and is {self.first}.")
        if self.max_steps < 1:
            raise UsageError(f"at least 1 step is needed; max_steps={self.max_steps}.")

    @property
    def is_adaptive(self) -> bool:
        return True

    @property
    @abstractmethod
    def error_order(self) -> int:
        """The power of h with which the estimated error falls."""

    @abstractmethod
    def clock(self, levels: Levels) -> Tensor:
        """Return what the steps are measured in: t, λ, σ/α …, (batch,)."""

    @abstractmethod
    def time(self, path: GaussianPath | None, clock: Tensor) -> Tensor:
        """Return the time at which the clock shows this."""

    @abstractmethod
    def attempt(self, leg: Leg, evaluate: Evaluation) -> Trial:
        """Take the step of both orders."""

    @abstractmethod
    def scale(self, trial: Trial, x: Tensor, before: Tensor) -> Tensor:
        """Return δ, what an error is compared with, like the state.

        Args:
            trial: what was tried.
            x: the states it started from.
            before: the low result of the step that led there.
        """

    @abstractmethod
    def opening(self, leg: Leg, evaluate: Evaluation) -> Tensor:
        """Estimate the size of the first step of some samples, on the clock.

        Args:
            leg: from where they stand to the next grid point.
            evaluate: the field.
        """

    def march(self, problem: Problem) -> Iterator[Step]:
        course, walk = problem.course, _Walk(self, problem)
        ends = course.grid[1 : -1 if course.denoises else None]
        for index, end in enumerate(ends):
            walk.to(end)
            step = Step(index, end, walk.x, walk.seen)
            yield step
            walk.resume(step.x)
        if course.denoises:
            x = closing(problem, walk.x, (problem.tally.status == 0).nonzero()[:, 0])
            yield Step(len(ends), 0.0, x, walk.seen)


class _Walk:
    """A solve under way: where each sample is, and what it remembers."""

    def __init__(self, solver: Adaptive, problem: Problem) -> None:
        course, batch = problem.course, len(problem.x)
        self.solver, self.tally, self.path = solver, problem.tally, course.path
        self.evaluate = Evaluation(problem, solver.view)
        self.lowest = _lowest(course).expand(batch)
        self.x = self.low = problem.x  # where each sample stands, and the low result there
        self.at = self.levels(course.start[0])
        self.first = problem.x  # the field there, of the samples of which it is known
        self.known = torch.zeros(batch, dtype=torch.bool)
        self.size = torch.full((batch,), math.nan, dtype=torch.float64)
        self.error = torch.ones(batch, dtype=torch.float64)
        self.seen: Prediction | None = None  # the evaluation that each sample's last step is from

    def levels(self, t: Time) -> Levels:
        """Return the levels of a grid point."""
        return Levels.at(self.path, each(t, len(self.x)).contiguous(), self.lowest)

    def to(self, end: Time) -> None:
        """Walk to a grid point."""
        goal = self.levels(end)
        while True:
            away = (self.at.t != goal.t) & (self.tally.status == int(Status.OK))
            if not bool(away.any()):
                return
            rows = away.nonzero()[:, 0]
            self.step(rows, goal.of(rows))

    def resume(self, x: Tensor) -> None:
        """Go on from another state, if it is another."""
        if x is not self.x:
            self.x = self.low = x
            self.known.fill_(False)

    def step(self, rows: Tensor, goal: Levels) -> None:
        """Let some samples attempt one step towards their goal."""
        self.look(rows)
        leg = self.leg(rows, goal)
        unsized = self.size[rows].isnan()
        if bool(unsized.any()):
            which = unsized.nonzero()[:, 0]
            opened = leg if len(which) == len(rows) else self.leg(rows[which], goal.of(which))
            self.size[rows[which]] = self.opening(opened)
        leg, lands = self.shortened(leg)
        trial = self.solver.attempt(leg, self.evaluate)
        error = self.measured(leg, trial)
        self.choose(leg, error, lands)
        self.go(leg, trial, error <= 1)
        self.give_up(rows, error, lands)

    def opening(self, leg: Leg) -> Tensor:
        first = self.solver.first
        if first is None:
            return self.solver.opening(leg, self.evaluate)
        return torch.full_like(leg.s.t, first)

    def look(self, rows: Tensor) -> None:
        """Evaluate the field where samples stand, if that is not known."""
        fresh = rows[~self.known[rows]]
        if len(fresh):
            f = self.evaluate(fresh, taken(self.x, fresh), self.at.t[fresh])
            self.first = put(self.first, fresh, f)
            self.known[fresh] = True

    def leg(self, rows: Tensor, goal: Levels) -> Leg:
        x, first = taken(self.x, rows), taken(self.first, rows)
        return Leg(self.path, rows, self.at.of(rows), goal, x, first)

    def shortened(self, leg: Leg) -> tuple[Leg, Tensor]:
        """Return the leg as far as the step size reaches, and which samples it takes to the end."""
        clock, size = self.solver.clock, self.size[leg.rows]
        here, end = clock(leg.s), clock(leg.t)
        lands = size >= (end - here).abs() * (1 - 1e-12)
        reach = torch.where(lands, end, here + torch.copysign(size, end - here))
        between = Levels.at(self.path, self.solver.time(self.path, reach), self.lowest[leg.rows])
        return leg._replace(t=leg.t.or_else(lands, between)), lands

    @torch.no_grad()
    def measured(self, leg: Leg, trial: Trial) -> Tensor:
        """Return the error of each sample in units of the tolerance, on the CPU in float64."""
        scale = self.solver.scale(trial, leg.x, taken(self.low, leg.rows))
        return rms(trial.error / scale)

    def choose(self, leg: Leg, error: Tensor, lands: Tensor) -> None:
        """Choose the next step sizes, and count."""
        rows, tally, clock = leg.rows, self.tally, self.solver.clock
        used, accepted = (clock(leg.t) - clock(leg.s)).abs(), error <= 1
        factor = self.solver.control.factor(error, self.error[rows], self.solver.error_order)
        size = used * torch.where(accepted, factor, factor.clamp(max=1.0))
        cut_short = accepted & lands  # by the grid: what the step would have been still holds
        self.size[rows] = torch.where(cut_short, torch.maximum(size, self.size[rows]), size)
        before = torch.where(accepted & ~lands, error.clamp(min=LEAST_ERROR), self.error[rows])
        self.error[rows] = before
        tally.steps[rows] += accepted
        tally.rejected[rows] += ~accepted

    def go(self, leg: Leg, trial: Trial, accepted: Tensor) -> None:
        """Move the samples whose step was accepted."""
        if not bool(accepted.any()):
            return
        here = accepted.nonzero()[:, 0]
        rows = leg.rows[here]
        self.remember(leg, here)
        self.x, self.low = (
            put(old, rows, taken(new, here))
            for old, new in ((self.x, trial.high), (self.low, trial.low))
        )
        self.at = self.at.replaced(rows, leg.t.of(here))
        self.known[rows] = trial.last is not None
        if trial.last is not None:
            self.first = put(self.first, rows, taken(trial.last, here))

    def remember(self, leg: Leg, here: Tensor) -> None:
        """Keep the evaluation that a step came from."""
        device, seen = self.x.device, self.seen
        new = (taken(leg.x, here), leg.s.t[here].to(device), taken(leg.first, here))
        old = (self.x, self.at.t.to(device), self.first)
        old = old if seen is None else (seen.x, seen.t, seen.raw)
        x, t, f = (put(a, leg.rows[here], b) for a, b in zip(old, new, strict=True))
        self.seen = Prediction(x, t, f, self.solver.view, self.path)

    def give_up(self, rows: Tensor, error: Tensor, lands: Tensor) -> None:
        """Set down which samples have failed, and why."""
        tally, accepted = self.tally, error <= 1
        place = self.solver.clock(self.at.of(rows)).abs().clamp(min=1e-3)
        tiny = ~accepted & (self.size[rows] <= SMALLEST * place)
        tries = tally.steps[rows] + tally.rejected[rows]
        over = (tries >= self.solver.max_steps) & ~(accepted & lands)
        lost = ~error.isfinite()
        if bool(lost.any()):  # no step is small enough where the field itself is not finite
            lost = lost & (tiny | over | ~(totals(taken(self.first, rows).detach() * 0) == 0).cpu())
        for which, status in (
            (over, Status.MAX_STEPS),
            (tiny, Status.STEP_TOO_SMALL),
            (lost, Status.NON_FINITE),
        ):
            tally.fail(rows[which], status, self.at.t[rows][which])


def rms(x: Tensor) -> Tensor:
    """Return the root mean square of each sample, on the CPU in float64."""
    return (totals(x.double().square()) / max(x[0].numel(), 1)).sqrt().cpu()


def taken(x: Tensor, rows: Tensor) -> Tensor:
    """Return some samples."""
    return x if len(rows) == len(x) else x[rows.to(x.device)]


def put(x: Tensor, rows: Tensor, new: Tensor) -> Tensor:
    """Return x with some samples replaced."""
    return new if len(rows) == len(x) else x.index_put((rows.to(x.device),), new)


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

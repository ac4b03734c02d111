"""Repeats: every level of a grid is visited several times, forward noise in between.

    x_s → x_t   a step of any solver that has a plan
    x_s ← (α_s/α_t) x_t + √(σ_s² − (α_s/α_t)² σ_t²) z   and the step again, R − 1 times

A guide that puts data into x̂_0 leaves what is free no time to agree with it; at one level, step and
noise are a Markov chain that gives it time, and whose law is the posterior's at that level in the
limit. With `Known` it is RePaint, with `Projection` or `Inpaint` Steered Diffusion's multi-step
correction, and without a guide it is no more than a costlier solver.

A plan is rewritten, so it works with every solver that has one, multistep ones too: the evaluations
that they remember are those of the last visit to each level.

Papers: Nair et al. 2023 (arXiv:2310.00224); Lugmayr et al. 2022 (arXiv:2201.09865), Alg. 1.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from pathline.core.errors import UsageError
from pathline.fields import View
from pathline.solvers.plan import Row
from pathline.solvers.solver import Level, Solver, Writer, solvers
from pathline.solvers.stepped import Stepped


@solvers.register(
    "repeat", aliases=("time_travel", "resampling"), paper="arXiv:2310.00224; arXiv:2201.09865"
)
@dataclass(frozen=True)
class Repeat(Solver):
    """Any solver with a plan, with every step taken several times and forward noise in between.

    Choose it with guides that put data into the clean estimate; its visits are worth more than as
    many finer steps. The inner solver should draw noise: without it the visits mix poorly.

    Args:
        solver: the name of any solver with a plan that evaluates the field where a step begins.
        times: R, visits of each level; 1 is the solver alone.
        window: the times at which steps that are repeated begin, (low, high).

    Raises:
        UsageError: R below 1; a solver that has no plan, or does not evaluate where a step begins;
            a window in which no step begins.

    Cost: R times that of the solver; the closing step to data is taken once, as in every solver.
    """

    solver: str = "ddpm"
    times: int = 4
    window: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.times < 1:
            raise UsageError(f"times={self.times}: a level is visited once or more.")
        low, high = self.window
        if not low < high:
            raise UsageError(f"window={self.window}: two times, the lower one first.")
        if isinstance(self._inner, Stepped):
            raise UsageError(f"{self.solver!r} has no plan that could be repeated; use another.")
        if self.times > 1 and not self._inner.is_stochastic:
            warnings.warn(
                f"{self.solver} draws no noise of its own, and the visits of a level mix poorly "
                "without: take ddpm, or another stochastic solver.",
                stacklevel=3,
            )

    @property
    def _inner(self) -> Solver:
        return solvers.build(self.solver)

    @property
    def order(self) -> int:
        return self._inner.order

    @property
    def convergence(self) -> int:
        return self._inner.convergence

    @property
    def view(self) -> View:
        return self._inner.view

    @property
    def is_stochastic(self) -> bool:
        return self.times > 1 or self._inner.is_stochastic

    @property
    def is_exact_on_points(self) -> bool:
        return False

    @property
    def nfe_per_step(self) -> int:
        return self.times * self._inner.nfe_per_step

    def write(self, to: Writer) -> None:
        inner = Writer(to.path, to.times, to.denoises, to.alike)
        self._inner.write(inner)
        if inner.times != to.times:
            to.move(inner.times[:-1] if to.denoises else inner.times)
        steps, copy, repeated = list(to.intervals()), _Copy(to), 0
        for (s, t), rows in zip(steps, groups(inner.rows), strict=True):
            visits = self._visits(s)
            repeated += visits > 1
            copy.write(rows, s, t, visits)
        if self.times > 1 and steps and not repeated:
            raise UsageError(
                f"no step begins in window={self.window}; the grid goes from {to.times[0]:g} to "
                f"{to.times[-1]:g}."
            )

    def _visits(self, s: Level) -> int:
        return self.times if self.window[0] <= s.t <= self.window[1] else 1


def groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows of each step: up to one that lands."""
    made: list[list[Row]] = [[]]
    for row in rows:
        made[-1].append(row)
        if row.lands:
            made.append([])
    return made[:-1]


class _Copy:
    """Copies the rows of a plan into another, whose states have other numbers."""

    def __init__(self, to: Writer) -> None:
        self._to, self._at, self._draws = to, 0, 0
        self._new = {0: 0}
        """Old number of a state → its number in the copy, of the latest visit."""

    def write(self, rows: Sequence[Row], s: Level, t: Level, visits: int) -> None:
        """Write a step as often as it is visited."""
        start = self._at
        if visits > 1 and not any(start in row.f for row in rows):
            raise UsageError(
                "this solver does not evaluate the field where a step begins (it takes that of a "
                "prediction), so a repeated step would not see the new state; take ddpm, "
                "dpmpp_2m_sde or a Runge-Kutta method."
            )
        for visit in range(visits):
            self._at = start
            for row in rows:
                self._at += 1
                self._new[self._at] = self._row(row)
            if visit < visits - 1:
                self._new[start] = self._back(s, t)

    def _row(self, row: Row) -> int:
        x, f = ({self._new[k]: c for k, c in terms.items()} for terms in (row.x, row.f))
        drawn = dict(zip(row.z, range(self._draws, self._draws + len(row.z)), strict=True))
        self._draws += len(drawn)
        z = {drawn[d]: c for d, c in row.z.items()}
        return self._to.write(float(row.t), x, f, z, lands=row.lands, constant=row.constant)

    def _back(self, s: Level, t: Level) -> int:
        """Write the forward transition from level t to level s."""
        ratio = s.alpha / t.alpha
        added = math.sqrt(max(s.sigma**2 - (ratio * t.sigma) ** 2, 0.0))
        last, draw = len(self._to.rows), self._draws
        self._draws += 1
        return self._to.write(s.t, {last: ratio}, {}, {draw: added}, lands=False)

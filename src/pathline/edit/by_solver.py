"""Codes by a solver: exactly, where its plan can be run back; else by going up as it goes down."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.edit.inverter import (
    Inverted,
    Inverter,
    Regenerated,
    Watch,
    Way,
    check_unwatched,
    observing,
)
from pathline.paths import VPLinear
from pathline.solvers import BDIA, Solver, grids, solve, solvers
from pathline.solvers.plan import Plan
from pathline.solvers.reversal import after, joined, opening, remembered
from pathline.solvers.solve import as_solver
from pathline.solvers.stepped import Stepped

__all__ = ["BySolver"]


@dataclass(frozen=True)
class BySolver(Inverter):
    """The inverse plan of a solver, or an approximation if it has none.

    BDIA and Reversible are inverted exactly: the code is several states, and regenerating runs the
    rows of the sampler from all of them. Any other deterministic solver is run the other way, which
    comes back as close as its error allows, with one state as the code.

    Args:
        solver: a solver, or its name.
    """

    solver: Solver | str = field(default_factory=BDIA)

    def __post_init__(self) -> None:
        object.__setattr__(self, "solver", as_solver(self.solver))

    @property
    def rule(self) -> Solver:
        """The solver."""
        assert isinstance(self.solver, Solver)
        return self.solver

    @property
    def is_exact(self) -> bool:
        return _memory(self.rule) > 0

    @property
    def n_states(self) -> int:
        return max(_memory(self.rule), 1)

    def places(self, way: Way) -> tuple[int, ...]:
        return tuple(range(way.n, way.n - self.n_states, -1))

    def check(self, way: Way) -> None:
        if self.rule.is_stochastic:
            raise UsageError(
                f"{type(self.rule).__name__} draws noise: its field is not a function of z, and "
                "data have no code under it; take a deterministic solver."
            )
        least = _memory(self.rule)
        if way.n < least:
            raise UsageError(
                f"N = {way.n}: an exact code by {type(self.rule).__name__} needs {least} steps "
                "at least."
            )

    def plan(self, way: Way) -> Plan:
        """Return the plan from noise to data, in the field's view."""
        made = self.rule.tuned(way.field, way.field.shape or ())
        return made.plan(way.path, grids.times(way.times[::-1])).folded(way.field.view)

    def growth(self, way: Way) -> float:
        if not self.is_exact:
            return 1.0
        return _growth(after(self.plan(way), _memory(self.rule) - 1))

    def invert(self, way: Way, x: Tensor, watch: Watch | None = None) -> Inverted:
        if not self.is_exact:
            rising, seen_by = grids.times(way.times), observing(watch, 0, falls=False)
            solution = solve(
                way.field, x, solver=self.rule, grid=rising, observe=seen_by, **way.cond
            )
            return Inverted((solution.x,), solution.stats.nfe)
        check_unwatched(watch, type(self.rule).__name__)
        plan, n = self.plan(way), _memory(self.rule)
        made = self.rule.tuned(way.field, way.field.shape or ())
        rising = made.plan(way.path, grids.times(way.times)).folded(way.field.view)
        up = joined(opening(rising, n - 1), after(plan, n - 1).inverse())
        seen: list[Tensor] = [x]

        def keep(step: Any) -> None:
            seen.append(step.x)
            del seen[:-n]

        solution = solve(way.field, x, solver=up, observe=keep, **way.cond)
        return Inverted(tuple(reversed(seen)), solution.stats.nfe)

    def regenerate(
        self, way: Way, states: tuple[Tensor, ...], watch: Watch | None = None
    ) -> Regenerated:
        seen_by = observing(watch, way.n - len(states) + 1, falls=True)
        if self.is_exact:
            down = after(self.plan(way), len(states) - 1)
            solution = solve(way.field, states, solver=down, observe=seen_by, **way.cond)
        else:
            falling = grids.times(way.times[::-1])
            solution = solve(
                way.field, states[0], solver=self.rule, grid=falling, observe=seen_by, **way.cond
            )
        return Regenerated(solution.x, solution.stats.nfe)

    def describe(self) -> dict[str, Any]:
        told = self.rule.describe() if solvers.has(self.rule) else type(self.rule).__name__
        return {"method": "solver", "solver": told}


@lru_cache(maxsize=64)
def _memory(rule: Solver) -> int:
    """Return how many states the code of a rule has if it can be inverted exactly; else 0."""
    if isinstance(rule, Stepped) or rule.is_stochastic:
        return 0
    path = VPLinear()
    return remembered(rule.standard(path).plan(path, grids.log_snr(16)))


def _growth(plan: Plan) -> float:
    """Return how a perturbation of the states that are given grows when the plan is run back.

    Each row is divided by the coefficient of its oldest state; a rule that reaches over n states
    does so to each of them once in n − 1 rows.
    """
    points = [*range(len(plan.start))]
    total, index = 0.0, 0
    for number, row in enumerate(plan.rows, len(plan.start)):
        if row.lands:
            a = row.x[points[index]]
            total -= math.log(float(a.abs().min()) if isinstance(a, torch.Tensor) else abs(a))
            points.append(number)
            index += 1
    return math.exp(min(max(total, 0.0) / (len(plan.start) - 1), 700.0))

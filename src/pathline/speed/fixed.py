"""All fixed ways to spend a number of evaluations, and a race between them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

from pathline.core.errors import PathlineError, UsageError
from pathline.core.progress import track
from pathline.fields import Denoiser
from pathline.solvers.grids import Grid, Times, grids
from pathline.solvers.plan import Plan
from pathline.solvers.schedule import SolverSchedule
from pathline.solvers.solver import Solver, solvers
from pathline.speed.metrics import Endpoint
from pathline.speed.schedules import zoo

How = Plan | SolverSchedule

RACE = ((2, 5), (8, 2), (16, 1))
"""Rounds of the race: on so many noises, and one of so many goes on."""

WIDE_RACE = ((8, 5), (32, 3), (128, 1))
"""The same where many noises cost what one does."""

FINALISTS = 10
"""Fixed ways that the race leaves."""


def fixed_solvers(bench: Endpoint, nfe: int, model: Denoiser | None = None) -> dict[str, How]:
    """Return every fixed way to spend so many evaluations: all solvers and the zoo, on all grids.

    Ways that do the same are named once. One that is a list of exponential steps is a schedule,
    and can begin a search.
    """
    path = bench.field.path
    assert path is not None
    made = {entry.name: entry.make for entry in grids if entry.make is not Times}
    ways: dict[str, How] = dict(zoo(path, nfe, made))
    for entry, (grid, make) in product(solvers, made.items()):
        solver = entry.build()
        way = None if solver.is_stochastic else _way(solver, bench, make, nfe, model)
        if way is not None:
            ways[f"{entry.name} on {grid}"] = way
    once = {_told(way, bench): name for name, way in reversed(ways.items())}
    kept = set(once.values())
    return {name: way for name, way in ways.items() if name in kept}


def _told(way: How, bench: Endpoint) -> str:
    """Return what a way does, in words that are the same if it does the same."""
    plan = way.plan() if isinstance(way, SolverSchedule) else way
    rows = plan.folded(bench.field.view).to_dict()["rows"]

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: rounded(v) for k, v in value.items() if k != "lands" and v}
        if isinstance(value, list):
            return [rounded(v) for v in value]
        return float(f"{value:.9g}")

    return json.dumps(rounded(rows), sort_keys=True)


def _way(
    solver: Solver, bench: Endpoint, make: Callable[..., Grid], nfe: int, model: Denoiser | None
) -> How | None:
    """Return a solver on a grid as a schedule or a plan; None where it does not fit."""
    path = bench.field.path
    n, rest = divmod(nfe, solver.nfe_per_step)
    if rest or not n or path is None:
        return None
    try:
        if model is not None:
            solver = solver.tuned(model, tuple(bench.starts.shape[1:]))
        plan = solver.plan(path, make(n))
    except PathlineError:  # it cannot start where α = 0, or needs statistics that there are not
        return None
    try:
        return SolverSchedule.of(solver, path, make(n))
    except UsageError:
        return plan if plan.nfe == nfe else None


def race(bench: Endpoint, fixed: Mapping[str, How], nfe: int) -> list[str]:
    """Return the names of the best fixed ways, best first, by rounds on more and more noises."""
    left = list(fixed)
    for n, share in RACE if bench.starts.device.type == "cpu" else WIDE_RACE:
        few = bench.first(n).remembering()
        what = f"{nfe} evaluations: {len(left)} fixed solvers, {len(few.starts)} noises"
        errors = {name: few.typical(fixed[name]) for name in track(left, what)}
        left = sorted(left, key=lambda name: errors[name])
        keep = max(FINALISTS, len(left) // share)
        left = left[:keep]
    return left

"""All fixed ways to spend a number of evaluations, and a race between them."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import PathlineError, UsageError
from pathline.core.files import write_atomically
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

ROUNDING = 1e-9
"""Of a plan's numbers: so near a schedule must come to be the same."""

SMALL = 1e-12
"""What a number that should be 0 may come to."""

SAVE_EVERY = 5.0
"""Seconds between two writings of the file that a race goes on from."""


def fixed_solvers(bench: Endpoint, nfe: int, model: Denoiser | None = None) -> dict[str, How]:
    """Return every fixed way to spend so many evaluations: all solvers and the zoo, on all grids.

    Ways that do the same are named once. One that can be written as a schedule is one: it can
    begin a search, and be saved.
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
            told = {k: rounded(v) for k, v in value.items() if k != "lands"}
            return {k: v for k, v in told.items() if v}
        if isinstance(value, list):
            return [rounded(v) for v in value]
        return float(f"{value:.9g}") if abs(value) > SMALL else 0.0

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
        return (as_schedule(plan) or plan) if plan.nfe == nfe else None


def as_schedule(plan: Plan) -> SolverSchedule | None:
    """Return the schedule that does what a plan does, to rounding; None where there is none.

    There is one of a plan that evaluates once at a time and whose coefficients are numbers. What
    is evaluated, and the end, are x = A x_start + Σ B_k x̂_0(x_k), so with a = A_new/A_old

        x_new = a x_old + Σ (B_new,k − a B_old,k) x̂_0(x_k)
    """
    try:
        plan = plan.folded("x0")
        made, last = _unrolled(plan), len(plan.rows)
        stops = (*plan.evaluated, last)
        rows = list[list[float]]()
        for i, (old, new) in enumerate(pairwise(stops)):
            a = made[new][0] / made[old][0]
            rows.append([a, *(made[new][1 + k] - a * made[old][1 + k] for k in range(i, -1, -1))])
        if stops[0] != 0 or plan.path is None:
            return None
        found = SolverSchedule.linear(plan.path, [float(plan.times[k]) for k in stops], rows)
        again = _unrolled(found.plan().folded("x0"))
    except (PathlineError, ZeroDivisionError):
        return None
    wanted = torch.tensor([made[k] for k in stops], dtype=torch.float64)
    return found if _is_near(torch.tensor(again, dtype=torch.float64), wanted) else None


def _is_near(found: Tensor, wanted: Tensor) -> bool:
    """Whether all numbers are the same, to rounding beside the largest."""
    if found.shape != wanted.shape:
        return False
    return bool((found - wanted).abs().max() <= ROUNDING * wanted.abs().max())


def _unrolled(plan: Plan) -> list[list[float]]:
    """Return every state of a plan as (A, B_0, B_1, …) of its start and of all evaluations.

    Raises:
        UsageError: it has other starts, noise, constants, or numbers of each element.
    """
    place = {k: 1 + i for i, k in enumerate(plan.evaluated)}
    made = [[1.0, *[0.0] * len(place)]]
    for row in plan.rows:
        numbers = [*row.x.values(), *row.f.values()]
        is_plain = all(isinstance(c, float | int) for c in numbers)
        if len(plan.start) > 1 or row.z or row.g or row.has_constant or not is_plain:
            raise UsageError("this is no list of numbers that weigh one start and evaluations.")
        new = [float(sum(c * made[j][i] for j, c in row.x.items())) for i in range(len(made[0]))]
        for k, c in row.f.items():
            new[place[k]] += float(c)
        made.append(new)
    return made


def race(
    bench: Endpoint, fixed: Mapping[str, How], nfe: int, file: Path | None = None
) -> list[str]:
    """Return the names of the best fixed ways, best first, by rounds on more and more noises.

    Args:
        bench: what measures.
        fixed: the ways, by name.
        nfe: their evaluations, for the progress bar.
        file: what an interrupted race goes on from; None keeps nothing.
    """
    left, scores = list(fixed), _Scores(file)
    for n, share in RACE if bench.starts.device.type == "cpu" else WIDE_RACE:
        few = bench.first(n).remembering()
        what = f"{nfe} evaluations: {len(left)} fixed solvers, {len(few.starts)} noises"
        try:
            errors = {
                name: scores.of(f"{name}, {n}", few, fixed[name]) for name in track(left, what)
            }
        finally:
            scores.save()
        left = sorted(left, key=lambda name: errors[name])
        keep = max(FINALISTS, len(left) // share)
        left = left[:keep]
    return left


class _Scores:
    """What a race has measured, written down now and then, and at the end of each round."""

    def __init__(self, file: Path | None) -> None:
        self.file, self.last = file, time.monotonic()
        self.known: dict[str, float] = {}
        if file is not None and file.is_file():
            with contextlib.suppress(OSError, ValueError, TypeError):  # damaged: measured again
                self.known = dict(json.loads(file.read_text(encoding="utf-8")))

    def of(self, name: str, bench: Endpoint, way: How) -> float:
        """Return the error of a way, measured if it is not known."""
        if name not in self.known:
            self.known[name] = bench.typical(way)
            if time.monotonic() - self.last > SAVE_EVERY:
                self.save()
        return self.known[name]

    def save(self) -> None:
        """Write down what is known."""
        self.last = time.monotonic()
        if self.file is not None:
            write_atomically(self.file, json.dumps(self.known, ensure_ascii=False))

"""Ours: every registered deterministic solver, in each of its named options, on every grid.

There is no list here. A solver's options are those fields of its class whose type names the
choices, and its order where a step is one evaluation; a grid is one that needs nothing but a number
of steps. Two that compile to the same plan are measured once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from pathline.bench.precision.problems import Problem
from pathline.bench.precision.query import Contestant, Ended, Query
from pathline.core.errors import PathlineError, UsageError
from pathline.data.fetch import sha256_of
from pathline.fields import Denoiser
from pathline.solvers import Grid, Plan, Solver, Stepped, ems, null_start, solvers
from pathline.solvers.evaluate import Call, Evaluator
from pathline.solvers.execute import complete
from pathline.solvers.grids import Spaced
from pathline.solvers.grids import grids as every_grid
from pathline.solvers.saved import GUIDED, SAVED, saved_counts, saved_schedule, schedule_file
from pathline.solvers.thinned import ThinnedGuidance

NAME = "pathline"

TO_DATA = ", then data"
"""How the name of a grid ends whose last step goes to data itself."""

ORDERS = 2, 3, 4
"""Of multistep methods; the first is everybody's."""


def contestants(problem: Problem) -> tuple[list[Contestant], dict[str, str]]:
    """Return who takes part, and why the others do not."""
    absent: dict[str, str] = {}
    found: list[Contestant] = []
    for label, solver in _deterministic(absent):
        try:
            tuned = solver.tuned(problem.model, problem.x.shape[1:])
        except UsageError as reason:
            absent[label] = str(reason)
            continue
        found += [_contestant(problem, label, tuned, *grid) for grid in _grids()]
    return [*found, *_schedules(problem)], absent


def _deterministic(absent: dict[str, str]) -> Iterator[tuple[str, Solver]]:
    """Yield every solver that draws no noise, with its label; each value once, by its last name."""
    labels: dict[Solver, str] = {}
    for entry in solvers:
        try:
            solver = entry.build()
        except UsageError as reason:
            absent[entry.name] = str(reason)
            continue
        if solver.is_stochastic or isinstance(solver, Stepped):
            stochastic = "stochastic: it has no converged solution"
            absent[entry.name] = stochastic if solver.is_stochastic else "its cost is not chosen"
            continue
        labels[solver] = entry.name
        for changes, variant in _variants(solver):
            told = " ".join(f"{name}={value}" for name, value in changes.items())
            labels.setdefault(variant, f"{entry.name} {told}")
    yield from ((label, solver) for solver, label in labels.items())


def _variants(solver: Solver) -> Iterator[tuple[dict[str, Any], Solver]]:
    """Yield a solver as it is, and with each of its named options changed, one at a time."""
    yield {}, solver
    hints = get_type_hints(type(solver))
    for name in (f.name for f in fields(solver) if get_origin(hints[f.name]) is Literal):
        for value in get_args(hints[name]):
            if value != getattr(solver, name):
                with suppress(UsageError):
                    yield {name: value}, replace(solver, **{name: value})
    for name in (f.name for f in fields(solver) if f.name in ("order", "points")):
        for value in ORDERS if solver.nfe_per_step == 1 else ():
            if value != getattr(solver, name):
                with suppress(UsageError):
                    yield {name: value}, replace(solver, **{name: value})


def _grids() -> Iterator[tuple[str, Grid]]:
    """Yield every grid that needs a number of steps alone, with and without a step to data."""
    known: set[Grid] = set()
    for entry in every_grid:
        for last in ("stop", "denoise"):
            try:
                grid = entry.build(n=2, last=last)
            except UsageError:
                continue
            if grid not in known:
                known.add(grid)
                yield entry.name + (TO_DATA if last == "denoise" else ""), grid


def goes_to_data(contestant: Contestant) -> bool:
    """Whether its last step is from t_min to data: an evaluation that only many can spare."""
    return contestant.by == NAME and contestant.grid.endswith(TO_DATA)


def tuned(problem: Problem) -> list[str]:
    """Return a digest of the statistics and schedules beside the model, if there are any."""
    folder = problem.model.details.get("folder") if isinstance(problem.model, Denoiser) else None
    if not isinstance(folder, str):
        return []
    files = [schedule_file(folder, n, name) for name in SAVED for n in saved_counts(folder, name)]
    tables = (Path(folder) / ems.FILE, Path(folder) / null_start.FILE)
    files += [file for file in tables if file.is_file()]
    return [sha256_of(*files)[:12]] if files else []


def _schedules(problem: Problem) -> Iterator[Contestant]:
    """Yield the schedules that were found for the model: those of one kind are one sampler."""
    folder = problem.model.details.get("folder") if isinstance(problem.model, Denoiser) else None
    halves = problem.field.halves(torch.ones(1), problem.x, {})
    for name in SAVED:
        counts = saved_counts(folder, name) if isinstance(folder, str) else ()
        if counts and (name != GUIDED or halves is not None):
            yield _schedule(problem, name, counts)


def _schedule(problem: Problem, name: str, counts: Sequence[int]) -> Contestant:
    view = problem.field.view

    def run(query: Query, n: int) -> Ended:
        schedule = saved_schedule(problem.model, n, name)
        return _run(schedule.plan(problem.path).folded(view), query, schedule.speed)

    def calls(n: int) -> int:
        return max((count for count in counts if count <= n), default=0)

    return Contestant(NAME, name, "its own", run, calls, is_tuned=True)


def _run(plan: Plan, query: Query, speed: ThinnedGuidance | None = None) -> Ended:
    x = query.start(float(plan.start[-1]))
    call = Call(query.problem.field, plan, x, {})
    evaluate = Evaluator(call.field, plan, x, {}) if speed is None else speed.evaluator(call)
    end = complete(plan, evaluate, [x])
    query.calls += evaluate.n if speed is None else speed.evaluations
    return Ended(end, float(plan.times[-1]))


def _contestant(problem: Problem, label: str, solver: Solver, name: str, grid: Grid) -> Contestant:
    """Return a solver on a grid; one that cannot begin at α = 0 begins as late as the peers do."""
    path, view = problem.path, problem.field.view
    late = path.time_of_log_snr(torch.tensor(path.log_snr_range()[0], dtype=torch.float64))

    @cache
    def plan(n: int) -> Plan | None:
        resized = grid.resized(n)
        starts = [resized]
        if float(path.alpha(path.t_max)) == 0 and isinstance(resized, Spaced):
            starts.append(replace(resized, start=float(late)))
        for start in starts:
            with suppress(PathlineError):
                return solver.plan(path, start).folded(view)
        return None

    def run(query: Query, n: int) -> Ended:
        made = plan(n)
        assert made is not None
        return _run(made, query)

    def calls(n: int) -> int:
        made = plan(n)
        return 0 if made is None else made.nfe

    def same(n: int) -> str:
        made = plan(n)
        rows = [] if made is None else made.to_dict()["rows"]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    return Contestant(NAME, label, name, run, calls, same)

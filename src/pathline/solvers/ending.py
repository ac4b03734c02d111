"""How a solve ends: its solution, or the sentence that says what went wrong and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from pathline.core.errors import NonFiniteError, SolveError, UnfinishedError
from pathline.core.receipt import Receipt
from pathline.core.solution import (
    Solution,
    Stats,
    Status,
    finite_status,
    name_samples,
    status_names,
)
from pathline.solvers.evaluate import Evaluator, Watched
from pathline.solvers.job import Job
from pathline.solvers.plan import Plan, plain, told_time
from pathline.solvers.stepped import Tally


def solution_of(
    job: Job,
    x: Tensor,
    record: Evaluator | Tally,
    kept: Sequence[Tensor] = (),
    numbers: Sequence[int] = (),
) -> Solution:
    """Return what a solve came to.

    Args:
        job: the solve.
        x: the final state.
        record: of its evaluations.
        kept: the states of the trajectory.
        numbers: of the states in `kept`, where they are not all points of the grid.
    """
    status = finite_status(x.detach())
    if isinstance(record, Tally):
        status, stats, report = record.status_of(status), record.stats(job.field.calls), None
    else:
        nfe, each, report = record.n, record.per_sample, record.report()
        calls = None if job.speed is None else job.speed.calls(job.field)
        calls = _network_calls(job, record) if calls is None else calls
        stats = Stats(nfe, calls, job.plan.steps, per_sample=each)
    stats = replace(stats, vjps=stats.nfe * job.field.vjps)
    seeds, grid = job.seeds or (), tuple(plain(t) for t in job.plan.grid)
    dtype = str(x.dtype).removeprefix("torch.")
    told = status_names(status)
    receipt = Receipt(job.recipe, seeds, grid, stats.nfe, told, x.device.type, dtype)
    times = job.plan.instants[list(numbers or job.plan.landings)] if kept else None
    trajectory = torch.stack(list(kept)) if kept else None
    end = job.plan.times[-1]
    made = Solution(x, end, status, stats, receipt, times, trajectory, report, job.backward)
    return _with_found(made, record) if isinstance(record, Tally) and job.wanted else made


def _with_found(made: Solution, record: Tally) -> Solution:
    """Return the solution with what was wanted beside its end."""
    found = record.found
    t = made.t if found.ends is None else found.ends
    made = replace(made, t=t, dense=found.dense, events=tuple(found.happened))
    if found.saving is None:
        return made
    times = torch.from_numpy(found.times.T.copy())
    if bool((times == times[:, :1]).all()):
        times = times[:, 0]
    return replace(made, times=times, trajectory=found.saving.stack())


@runtime_checkable
class Counted(Protocol):
    """An evaluator that knows at which times it has called the network."""

    @property
    def network_calls(self) -> int:
        """Network calls of a sample; where samples differ, the most of any."""
        ...


def _network_calls(job: Job, record: Evaluator) -> int:
    """Return the network calls of the evaluations that were made, each at its own time if known."""
    plan, field, nfe = job.plan, job.field, record.n
    if isinstance(record, Counted):
        return record.network_calls
    if isinstance(plan, Plan) and nfe == plan.nfe:
        return field.calls_at(plan.instants[list(plan.evaluated)])
    return nfe * field.calls


def failure(solution: Solution, message: str) -> SolveError:
    """Return the error of a solve that did not end well."""
    lost = Status.NON_FINITE in solution.statuses
    return (NonFiniteError if lost else UnfinishedError)(message, solution)


def _worst(solution: Solution, seeds: Sequence[int] | None) -> tuple[Status, list[int], str]:
    """Return the first kind of failure, the numbers of its samples, and who they are."""
    worst = min(status for status in solution.statuses if status is not Status.OK)
    failed = [i for i, status in enumerate(solution.statuses) if status is worst]
    return worst, failed, name_samples(failed, seeds)


def failed_samples(solution: Solution, seeds: Sequence[int] | None) -> str:
    """Say whose state is not finite, or who was given up."""
    worst, _, who = _worst(solution, seeds)
    return f"{who}: {_SAID[worst]}"


_SAID = {
    Status.NON_FINITE: "the state is not finite",
    Status.MAX_STEPS: "given up after the most steps allowed",
    Status.STEP_TOO_SMALL: "no step is small enough",
}


def diagnosis(job: Job, record: Evaluator | Tally, solution: Solution) -> str:
    """Say what went wrong, where, and who did it."""
    worst, failed, who = _worst(solution, job.seeds)
    if isinstance(record, Tally) and worst is not Status.NON_FINITE:
        t = float(record.t[failed[0]])
        return f"{who}: {_SAID[worst]}, at t = {t:.6g}; {worst.advice}"
    trouble = _first_trouble(job)
    if trouble is None and isinstance(record, Tally):
        trouble = f"a step from t = {float(record.t[failed[0]]):.6g} is not finite"
    return f"{who}: {trouble or AGAIN}; {worst.advice}"


AGAIN = "not finite at the end, though not when run again"


def _first_trouble(job: Job) -> str | None:
    """Run once more, looking at everything, and say where it first went wrong, if it does."""
    watched = Watched(job.field)
    again = replace(job, field=watched)
    with torch.no_grad():
        for step in again.steps(again.record()):
            if watched.trouble is None and finite_status(step.x).any():
                watched.trouble = f"the state is not finite at t = {told_time(step.t)}"
            if watched.trouble is not None:
                return f"{watched.trouble}, step {step.index + 1} of {job.plan.steps}"
    return None

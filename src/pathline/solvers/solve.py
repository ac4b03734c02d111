"""The driver: from a field and a state to a `Solution`.

`solve` is for states that the user has; `sample` draws them from the path's noise; `steps` is the
same as a generator, to watch or change what happens. None of them decides the gradient mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.core.solution import Solution
from pathline.fields import Field
from pathline.solvers.adjoints import Adjoint
from pathline.solvers.adjoints.sources import transforms_are_active
from pathline.solvers.ending import diagnosis, failed_samples, failure, solution_of
from pathline.solvers.evaluate import Evaluator, Speed
from pathline.solvers.events import Event
from pathline.solvers.execute import Step
from pathline.solvers.executors import Executor
from pathline.solvers.how import (
    DEFAULT_GRID,
    DEFAULT_SOLVER,
    DEFAULT_STEPS,
    AnyField,
    AnyGrid,
    AnySolver,
    Guide,
    How,
    Levels,
    Observe,
    OnFailure,
    as_field,
    as_grid,
    as_solver,
    chosen,
    default_steps,
)
from pathline.solvers.job import (
    Job,
    Start,
    batch_of,
    drawn_seeds,
    job_of,
    sampling,
    shape_of,
    start,
)
from pathline.solvers.plan import Plan, told_time
from pathline.solvers.reversible_heun import warn_of_parting
from pathline.solvers.stepped import Keep, Tally
from pathline.solvers.wanted import Save, Wanted
from pathline.solvers.watching import OnStep, Watcher

__all__ = [
    "DEFAULT_GRID",
    "DEFAULT_SOLVER",
    "DEFAULT_STEPS",
    "AnyField",
    "AnyGrid",
    "AnySolver",
    "Guide",
    "Keep",
    "Levels",
    "Observe",
    "OnFailure",
    "as_field",
    "as_grid",
    "as_solver",
    "default_steps",
    "sample",
    "solve",
    "start",
    "steps",
]


def solve(  # noqa: PLR0913 - keyword-only: each is one idea of the house
    field: AnyField,
    x: Tensor | Sequence[Tensor],
    *,
    solver: AnySolver = DEFAULT_SOLVER,
    grid: AnyGrid = None,
    steps: int | None = None,
    start: Levels | None = None,
    guide: Guide | None = None,
    speed: Speed | None = None,
    keep: Keep | None = None,
    executor: Executor | str = "eager",
    adjoint: Adjoint | str | None = None,
    seed: int | None = None,
    seeds: Sequence[int] | None = None,
    trajectory: bool = False,
    observe: Observe | None = None,
    save: Save | None = None,
    dense: bool = False,
    events: Event | Sequence[Event] = (),
    on_step: OnStep | Watcher | None = None,
    on_failure: OnFailure = "raise",
    **cond: Any,
) -> Solution:
    """Integrate a field from the state x.

    Args:
        field: a `Field`, or f(x, t, **cond) → dx/dt. One with noise of its own is an `SDE`.
        x: (batch, *state) floating; a sequence of states for a plan that starts from several.
        solver: a solver, its name, a schedule, or a compiled plan; "s3" is the schedule that was
            found for the model and `steps` evaluations (`pathline tune`).
        grid: a grid, its name, or the times themselves; end > start integrates the other way. Or
            one grid a sample, all of one length.
        steps: the number of steps, when `grid` does not say it.
        start: where the grid begins, if not at its own start; (batch,) times let each sample begin
            at its own, in as many steps.
        guide: a function from field to field.
        speed: a policy that leaves evaluations out (`pathline.speed`).
        keep: what is put back after every update (`pathline.steer.Known`: inpainting).
        executor: how the loop is run: "eager", "compile" or "graph" (`solvers.executors`).
        adjoint: how gradients come back, where any are asked for: "direct", "checkpoint",
            "reversible" or "continuous" (`solvers.adjoints`). None is "checkpoint" where steps can
            be taken again unseen, and "direct" elsewhere: the same gradient, in less memory.
        seed: for stochastic solvers, the first seed: sample i has seed + i.
        seeds: all the seeds, one a sample, instead of `seed`.
        trajectory: keep the state at every grid point.
        observe: called with every `Step`, which it may change.
        save: times whose states `trajectory` keeps: of a plan, points of its grid, (n,); of an
            adaptive solve, which changes no step for them, (n,), (batch, n), or a sequence for each
            sample.
        dense: keep what `Solution.at` needs, the solution as a function of time.
        events: what may stop a sample or change its state (`solvers.events.Event`).
        on_step: called with the record of every attempt of an adaptive solver, whose error and
            stiffness estimates can be differentiated (`solvers.watching.StepRecord`); or a
            `Watcher` (the same place), which may look inside steps.
        on_failure: "raise" a `NonFiniteError`, or "return" and leave the status to the caller.
        cond: the condition, in the user's words.

    Raises:
        UsageError: what was asked for cannot work.
        NonFiniteError: a sample met a NaN or an infinity; names the step, the time and the part.

    Cost: the plan's evaluations; `stats` says how many.

    Example: the oscillator, once around.
        >>> import torch
        >>> from pathline.solvers import grids
        >>> turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
        >>> x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        >>> once = grids.uniform(100, 0.0, 2 * torch.pi)
        >>> sol = solve(lambda x, t: x @ turn, x, solver="rk4", grid=once)
        >>> bool((sol.x - x).abs().max() < 1e-6), sol.stats.nfe
        (True, 400)
    """
    made = as_field(field)
    happens = (events,) if isinstance(events, Event) else tuple(events)
    wanted = Wanted(save, dense, happens, on_step)
    if trajectory and save is not None:
        raise UsageError("trajectory keeps the grid's points and save others: give one of them.")
    asked = wanted if wanted.is_any else None
    how = How(solver, grid, steps, guide, speed, start, executor, keep, chosen(adjoint), asked)
    if seed is not None:
        seeds = drawn_seeds(batch_of(x), seed, seeds)
    job = job_of(made, how, lambda _: x, shape_of(x), seeds, cond)
    return _finish(job, trajectory, observe, on_failure)


def sample(  # noqa: PLR0913 - keyword-only: each is one idea of the house
    model: Field,
    n: int | None = None,
    *,
    solver: AnySolver = DEFAULT_SOLVER,
    grid: AnyGrid = None,
    steps: int | None = None,
    guide: Guide | None = None,
    speed: Speed | None = None,
    keep: Keep | None = None,
    executor: Executor | str = "eager",
    adjoint: Adjoint | str | None = None,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    trajectory: bool = False,
    observe: Observe | None = None,
    on_failure: OnFailure = "raise",
    **cond: Any,
) -> Solution:
    """Draw samples from a model: noise at t_max, integrated to data.

    Sample i has the seed seeds[i], or seed + i, and depends on nothing else: not on the batch, its
    order or its size.

    Args:
        model: a denoiser.
        n: how many samples (1, or as many as there are seeds).
        solver, grid, steps, guide, speed, keep, executor, adjoint: as `solve`.
        trajectory, observe, on_failure: as `solve`.
        seed: the first seed; sample i has seed + i.
        seeds: all the seeds, instead of `seed`.
        shape: the shape of one sample, if the model does not know it.
        dtype: of the state; the default dtype if None.
        device: where; the network's device if None.
        cond: the condition, in the user's words (text="a red apple").

    Raises:
        UsageError, NonFiniteError: as `solve`.

    Example:
        >>> import torch
        >>> from pathline.fields import Gaussian
        >>> from pathline.paths import VPLinear
        >>> law = Gaussian(VPLinear(), torch.tensor([3.0]), torch.tensor([0.25]))
        >>> x = sample(law, 1000, shape=(1,), steps=20).x
        >>> bool((x.mean() - 3).abs() < 0.1), bool((x.std() - 0.5).abs() < 0.05)
        (True, True)
    """
    how = How(solver, grid, steps, guide, speed, None, executor, keep, chosen(adjoint))
    noise_at = Start(shape, dtype, device)
    job = sampling(model, how, noise_at, drawn_seeds(n, seed, seeds), cond)
    return _finish(job, trajectory, observe, on_failure)


def steps(  # noqa: PLR0913 - keyword-only: each is one idea of the house
    model: Field,
    n: int | None = None,
    *,
    solver: AnySolver = DEFAULT_SOLVER,
    grid: AnyGrid = None,
    steps: int | None = None,
    guide: Guide | None = None,
    speed: Speed | None = None,
    keep: Keep | None = None,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    **cond: Any,
) -> Iterator[Step]:
    """Sample as a generator of steps: watch `step.t`, `step.x`, `step.x0`, or assign `step.x`.

    Args:
        model, n, solver, grid, steps, guide, speed, keep: as `sample`.
        seed, seeds, shape, dtype, device, cond: as `sample`.

    Raises:
        UsageError: as `sample`.
        NonFiniteError: at the step where it happens (each step waits for the device to check).
    """
    how = How(solver, grid, steps, guide, speed, keep=keep)
    noise_at = Start(shape, dtype, device)
    return _watched(sampling(model, how, noise_at, drawn_seeds(n, seed, seeds), cond))


def _watched(job: Job) -> Iterator[Step]:
    record = job.record()
    for step in job.steps(record):
        yield step
        solution = solution_of(job, step.x, record)
        if not solution.ok:
            where = f"at step {step.index + 1} of {job.plan.steps}, t = {told_time(step.t)}"
            raise failure(solution, f"{failed_samples(solution, job.seeds)} {where}.")


def _finish(job: Job, trajectory: bool, observe: Observe | None, on_failure: OnFailure) -> Solution:
    numbers = job.shows(trajectory) if observe is None else ()
    looks = job.wanted is not None and job.wanted.needs_graph
    watched = observe is not None or job.keep is not None or trajectory or looks
    job.check_watched(watched and not numbers)
    record, kept = job.record(), [job.given[-1]]
    if numbers:
        *kept, x = job.shown(record, numbers)
        return _ended(job, solution_of(job, x, record, kept, numbers), record, on_failure)
    if observe is None and not trajectory:
        kept.append(job.complete(record))
    else:
        for step in job.steps(record):
            if observe is not None:
                observe(step)
            if not trajectory:
                kept.clear()
            kept.append(step.x)
    solution = solution_of(job, kept[-1], record, kept if trajectory else ())
    return _ended(job, solution, record, on_failure)


def _ended(
    job: Job, solution: Solution, record: Evaluator | Tally, on_failure: OnFailure
) -> Solution:
    """Return a solution, or raise what went wrong with it."""
    if on_failure == "raise" and not solution.ok:
        raise failure(solution, diagnosis(job, record, solution))
    if isinstance(record, Evaluator) and isinstance(job.plan, Plan) and not transforms_are_active():
        warn_of_parting(job.plan, solution.x, record.last)
    return solution

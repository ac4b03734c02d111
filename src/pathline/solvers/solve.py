"""The driver: from a field and a state to a `Solution`.

`solve` is for states that the user has; `sample` draws them from the path's noise; `steps` is the
same as a generator, to watch or change what happens. None of them decides the gradient mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import NonFiniteError, SolveError, UnfinishedError, UsageError
from pathline.core.receipt import Receipt
from pathline.core.solution import (
    Solution,
    Stats,
    Status,
    finite_status,
    name_samples,
    status_names,
)
from pathline.fields import Condition, Denoiser, Field, Retimed, VectorField
from pathline.fields.denoiser import source_of
from pathline.paths import GaussianPath, Time, as_time, bshape, paths
from pathline.solvers.adjoints import Adjoint, Checkpoint, Direct, Loop, Record, Walk, as_adjoint
from pathline.solvers.adjoints.adjoint import is_usual
from pathline.solvers.evaluate import Call, Evaluator, Speed, Watched
from pathline.solvers.execute import Step, execute
from pathline.solvers.executors import Executor, as_executor
from pathline.solvers.grids import Grid, Times, grids
from pathline.solvers.plan import Plan, plain, told_time
from pathline.solvers.saved import FOUND, saved_schedule
from pathline.solvers.schedule import SolverSchedule
from pathline.solvers.solver import Solver, check_gaussian, solvers
from pathline.solvers.stepped import Course, Keep, Keeping, Problem, Stepped, Tally

Guide = Callable[[Field], Field]
AnyField = Field | Callable[..., Tensor]
AnySolver = Solver | SolverSchedule | Plan | str
AnyGrid = Grid | str | Sequence[float] | Sequence[Grid] | None
Levels = Tensor | Sequence[float] | float
Observe = Callable[[Step], None]
OnFailure = Literal["raise", "return"]

DEFAULT_SOLVER = "dpmpp_2m"
DEFAULT_GRID = "log_snr"
DEFAULT_STEPS = 20


def as_field(field: AnyField) -> Field:
    """Return a field: a plain function f(x, t, **condition) becomes the velocity of an ODE."""
    return field if isinstance(field, Field) else VectorField(field)


def as_solver(solver: Solver | str) -> Solver:
    """Return the solver of a name, or the solver itself."""
    return solvers.build(solver) if isinstance(solver, str) else solver


def default_steps(solver: Solver) -> int:
    """Return the steps of a grid where nobody says it; an adaptive solver chooses its own."""
    return 1 if solver.is_adaptive else DEFAULT_STEPS


def as_grid(
    grid: Grid | str | Sequence[float] | None, n: int | None, default: int = DEFAULT_STEPS
) -> Grid:
    """Return a grid from a grid, a name and a step count, or the user's own times.

    Raises:
        UsageError: the grid has another number of steps than was asked for.
    """
    if grid is None or isinstance(grid, str):
        return grids.build(grid or DEFAULT_GRID, n=default if n is None else n)
    made = grid if isinstance(grid, Grid) else Times(tuple(grid))
    if n is not None and n != made.n:
        raise UsageError(f"steps={n} and a grid of {made.n} steps were given; leave one out.")
    return made


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
    seeds: Sequence[int] | None = None,
    trajectory: bool = False,
    observe: Observe | None = None,
    on_failure: OnFailure = "raise",
    **cond: Any,
) -> Solution:
    """Integrate a field from the state x.

    Args:
        field: a `Field`, or f(x, t, **cond) → dx/dt.
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
        seeds: one a sample, for stochastic solvers.
        trajectory: keep the state at every grid point.
        observe: called with every `Step`, which it may change.
        on_failure: "raise" a `NonFiniteError`, or "return" and leave the status to the caller.
        cond: the condition, in the user's words.

    Raises:
        UsageError: what was asked for cannot work.
        NonFiniteError: a sample met a NaN or an infinity; names the step, the time and the part.

    Cost: the plan's evaluations; `stats` says how many.

    Example: the oscillator, once around.
        >>> import torch
        >>> turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
        >>> x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        >>> once = grids.build("uniform", n=100, start=0.0, end=2 * torch.pi)
        >>> sol = solve(lambda x, t: x @ turn, x, solver="rk4", grid=once)
        >>> bool((sol.x - x).abs().max() < 1e-6), sol.stats.nfe
        (True, 400)
    """
    made = as_field(field)
    how = _How(solver, grid, steps, guide, speed, start, executor, keep, _chosen(adjoint))
    job = _job(made, how, lambda _: x, _shape_of(x), seeds, cond)
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
    how = _How(solver, grid, steps, guide, speed, None, executor, keep, _chosen(adjoint))
    noise_at = _Start(shape, dtype, device)
    job = _sampling(model, how, noise_at, _seeds(n, seed, seeds), cond)
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
    how = _How(solver, grid, steps, guide, speed, keep=keep)
    noise_at = _Start(shape, dtype, device)
    return _watched(_sampling(model, how, noise_at, _seeds(n, seed, seeds), cond))


class _How(NamedTuple):
    """How to integrate: the part of a call that `solve`, `sample` and `steps` share."""

    solver: AnySolver
    grid: AnyGrid
    steps: int | None
    guide: Guide | None
    speed: Speed | None
    start: Levels | None = None
    executor: Executor | str = "eager"
    keep: Keep | None = None
    adjoint: Adjoint | None = None

    def compile(self, field: Field, guided: Field, shape: Sequence[int]) -> Plan | Course:
        plan = self._plan(field, guided, shape)
        if self.speed is None:
            return plan
        if isinstance(plan, Course):
            raise UsageError("speed leaves evaluations out of a plan, and this solver has none.")
        return self.speed.thinned(plan)

    def _plan(self, field: Field, guided: Field, shape: Sequence[int]) -> Plan | Course:
        made, steps = self.solver, self.steps
        if made == FOUND:
            made, steps = saved_schedule(field, steps), None
        if isinstance(made, SolverSchedule):
            made = made.plan(field.path)
        if isinstance(made, Plan) and made.is_stochastic and made.path != field.path:
            check_gaussian(field.path)
        if not isinstance(made, Plan):
            solver = as_solver(made).tuned(field, shape)
            grids = self.grids(guided.path, default_steps(solver))
            if isinstance(solver, Stepped):
                return solver.course(guided.path, grids)
            return solver.plan(guided.path, grids).folded(guided.view)
        given = (self.grid, self.start) != (None, None)
        if given or steps not in (None, made.steps):
            raise UsageError("a plan has its own grid; leave grid, steps and start out.")
        return made.folded(guided.view)

    def grids(self, path: GaussianPath | None, default: int) -> Grid | list[Grid]:
        """Return the grid of all samples, or each one's."""
        each = self.grid if isinstance(self.grid, list | tuple) else ()
        grids = [grid for grid in each if isinstance(grid, Grid)]
        if grids:
            if self.start is not None or len(grids) != len(each):
                raise UsageError("with one grid a sample, give grids alone, and leave start out.")
            return [as_grid(grid, self.steps, default) for grid in grids]
        whole = cast("Grid | str | Sequence[float] | None", self.grid)
        grid = as_grid(whole, self.steps, default)
        if self.start is None:
            return grid
        levels = torch.as_tensor(self.start, dtype=torch.float64)
        if levels.ndim > 1:
            raise UsageError(f"start levels are (batch,) times, not {tuple(levels.shape)}.")
        if not levels.ndim:
            return grid.starting(float(levels), path)
        made = {t: grid.starting(t, path) for t in set(levels.tolist())}
        return [made[t] for t in levels.tolist()]


class _Start(NamedTuple):
    """The noise that generation starts from."""

    shape: Sequence[int] | None
    dtype: torch.dtype | None
    device: torch.device | str | None


@dataclass(frozen=True)
class _Job:
    """A solve, ready to run."""

    field: Field
    plan: Plan | Course
    given: tuple[Tensor, ...]
    cond: Condition
    seeds: tuple[int, ...] | None
    recipe: Mapping[str, Any]
    speed: Speed | None
    executor: Executor
    keep: Keep | None
    adjoint: Adjoint | None
    backward: Record

    def _call(self, plan: Plan) -> Call:
        return Call(self.field, plan, self.given[0], self.cond, self.seeds)

    def record(self) -> Evaluator | Tally:
        """Return what evaluates a plan, or what keeps the count of a stepped solve."""
        if isinstance(self.plan, Course):
            return Tally(len(self.given[0]))
        if self.speed is None:
            return Evaluator(self.field, self.plan, self.given[0], self.cond)
        return self.speed.evaluator(self._call(self.plan))

    def steps(self, record: Evaluator | Tally) -> Iterator[Step]:
        """Run, yielding at every grid point."""
        keeping = None if self.keep is None else self._keeping(self.keep)
        if isinstance(self.plan, Plan):
            assert isinstance(record, Evaluator)
            run = execute(self.plan, record, self.given, self.seeds, self.executor.combined)
        else:
            assert isinstance(record, Tally)
            (x,) = self.given
            problem = Problem(self.plan, self.field, x, self.cond, self.seeds, record, keeping)
            run = self.plan.solver.march(problem)
        return run if keeping is None else _kept(run, keeping, self.plan.steps)

    def _keeping(self, keep: Keep) -> Keeping:
        """Return `keep` with all that it is told but the state and its time."""
        if self.field.path is None or self.seeds is None:
            raise UsageError("what is kept is noised as a path says: give a model, and seeds.")
        check_gaussian(self.field.path)
        return Keeping(keep, self.field.path, self.seeds)

    def _loop(self, record: Evaluator) -> Loop:
        assert isinstance(self.plan, Plan)
        return Loop(self._call(self.plan), self.given, record, self.executor, self.backward)

    def chosen(self, record: Evaluator | Tally) -> Adjoint:
        """Return how gradients come back: as was said, else steps are taken again if they can."""
        if self.adjoint is not None:
            return self.adjoint
        again = isinstance(record, Evaluator) and self.keep is None and is_usual(self._loop(record))
        return Checkpoint() if again else Direct()

    def complete(self, record: Evaluator | Tally) -> Tensor:
        """Run with nobody watching, and return the final state."""
        if isinstance(self.plan, Plan) and isinstance(record, Evaluator) and self.keep is None:
            return self.chosen(record).complete(self._loop(record))
        if isinstance(self.plan, Course) and self.adjoint is not None:
            assert isinstance(record, Tally)
            walk = Walk(self.field, self.plan, self.given[0], self.cond, self.backward,
                        lambda: self._last(record))  # fmt: skip
            return self.adjoint.walked(walk)
        return self._last(record)

    def _last(self, record: Evaluator | Tally) -> Tensor:
        x = self.given[-1]
        for step in self.steps(record):
            x = step.x
        return x

    def check_watched(self, is_watched: bool) -> None:
        """Refuse what would look into a loop that cannot be looked into."""
        if is_watched and self.adjoint is not None and not isinstance(self.adjoint, Direct):
            raise UsageError(
                "observe, trajectory and keep look at states inside the loop, which are "
                f"differentiated by adjoint='direct' alone, and not by {self.adjoint.name!r}."
            )
        if self.executor.is_watchable:
            return
        if isinstance(self.plan, Course):
            what = "a stepped solver looks"
        elif is_watched:
            what = "observe, trajectory and keep look"
        elif self.speed is not None and self.speed.looks_at_data:
            what = "this speed policy looks"
        else:
            return
        raise UsageError(
            f"{what} at states inside the loop, and executor={self.executor.name!r} runs it "
            "in one piece; use executor='compile' or 'eager'."
        )


def _job(
    field: Field,
    how: _How,
    begin: Callable[[Plan | Course], Tensor | Sequence[Tensor]],
    shape: Sequence[int],
    seeds: Sequence[int] | None,
    cond: Mapping[str, Any],
) -> _Job:
    guided = field if how.guide is None else how.guide(field)
    plan = how.compile(field, guided, shape)
    x = begin(plan)
    given = (x,) if isinstance(x, Tensor) else tuple(x)
    if len(given) != len(plan.start):
        raise UsageError(f"the plan starts from {len(plan.start)} states, not {len(given)}.")
    for state in given:
        _check_state(guided, state)
    batch = len(given[0])
    if plan.batch not in (None, batch):
        raise UsageError(f"the plan is for {plan.batch} samples, and the state has {batch}.")
    if seeds is not None and len(seeds) != batch:
        raise UsageError(f"{len(seeds)} seeds were given for {batch} samples.")
    recipe = {**_described(field, how), **plan.recipe, "cond": _told(cond)}
    prepared, drawn = guided.condition(cond, batch), None if seeds is None else tuple(seeds)
    executor = as_executor(how.executor)
    ready = executor.prepared(guided)
    more = (recipe, how.speed, executor, how.keep, how.adjoint, Record())
    return _Job(ready, plan, given, prepared, drawn, *more)


def _sampling(
    model: Field, how: _How, begin: _Start, seeds: tuple[int, ...], cond: Mapping[str, Any]
) -> _Job:
    path = model.path if isinstance(model, Field) else None
    if path is None:
        raise UsageError("sampling needs a model on a path; for an equation of your own use solve.")
    if (source := source_of(model)) is not None:
        raise UsageError(
            f"this model begins at other data ({source}), not at noise: draw those, and use "
            "solve(model, x, ...)."
        )
    shape = model.shape if begin.shape is None else begin.shape
    if shape is None:
        raise UsageError("the model does not know the shape of a sample; pass shape=(...).")
    device = begin.device or model.device or "cpu"

    def noise_at(plan: Plan | Course) -> Tensor:
        return start(path, plan.start[-1], seeds, shape, begin.dtype, device)

    return _job(model, how, noise_at, shape, seeds, cond)


def _chosen(adjoint: Adjoint | str | None) -> Adjoint | None:
    return None if adjoint is None else as_adjoint(adjoint)


def _told(cond: Mapping[str, Any]) -> dict[str, Any]:
    """Return the condition as a receipt tells it: plain values, and the type of others."""
    return {k: v if _is_plain(v) else {"type": type(v).__name__} for k, v in cond.items()}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, str | int | float)


def _shape_of(x: Tensor | Sequence[Tensor]) -> tuple[int, ...]:
    """Return the shape of one state; of what is none, whatever: it is refused afterwards."""
    first = x if isinstance(x, Tensor) else next(iter(x), None)
    return tuple(first.shape[1:]) if isinstance(first, Tensor) else ()


def _check_state(field: Field, x: Tensor) -> None:
    if not isinstance(x, Tensor) or x.ndim < 2 or not x.is_floating_point():
        what = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise UsageError(f"the state must be a floating tensor (batch, *state), and is {what}.")
    if field.shape is not None and tuple(x.shape[1:]) != tuple(field.shape):
        raise UsageError(f"the model takes samples of {field.shape}, not {tuple(x.shape[1:])}.")
    if field.device is not None and field.device != x.device:
        raise UsageError(f"the network is on {field.device} and the state on {x.device}; move one.")


def _kept(run: Iterator[Step], keeping: Keeping, steps: int) -> Iterator[Step]:
    """Put back what is known at every grid point, before anybody looks."""
    for step in run:
        step.x = keeping(step.x, step.t, step.index == steps - 1)
        yield step


def _watched(job: _Job) -> Iterator[Step]:
    record = job.record()
    for step in job.steps(record):
        yield step
        solution = _solution(job, step.x, record)
        if not solution.ok:
            where = f"at step {step.index + 1} of {job.plan.steps}, t = {told_time(step.t)}"
            raise _failure(solution, f"{_failed(solution, job.seeds)} {where}.")


def _seeds(n: int | None, seed: int, seeds: Sequence[int] | None) -> tuple[int, ...]:
    if n is not None and n < 1:
        raise UsageError(f"at least 1 sample is needed, and {n} were asked for.")
    if seeds is None:
        noise.check_seeds([seed])
        return tuple(range(seed, seed + (1 if n is None else n)))
    noise.check_seeds(seeds)
    if n is not None and len(seeds) != n:
        raise UsageError(f"{len(seeds)} seeds were given for {n} samples.")
    if not seeds:
        raise UsageError("the list of seeds is empty.")
    return tuple(seeds)


def start(
    path: GaussianPath,
    t: Time,
    seeds: Sequence[int],
    shape: Sequence[int],
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the noise that generation starts from at time t, σ_t ε, (batch, *shape)."""
    drawn = path.kernel.draw(seeds, shape, stream="initial", dtype=dtype, device=device)
    return drawn * bshape(path.sigma(as_time(t)), drawn)


def _described(field: Field, how: _How) -> dict[str, Any]:
    """Return what a receipt says of the model, the guide and the policy."""
    describe = getattr(how.guide, "describe", None)
    told = {"model": _model(field), "guide": describe() if describe is not None else None}
    if how.speed is not None:
        told["speed"] = how.speed.describe()
    if how.keep is not None:
        told["keep"] = how.keep.describe()
    name = as_executor(how.executor).name
    return told if name == "eager" else {**told, "executor": name}


def _model(field: Field) -> dict[str, Any]:
    """Return the name and checksum of a model; if it was moved to another path, that path too."""
    if isinstance(field, Retimed):
        path = field.path
        told = paths.describe(path) if paths.has(path) else {"type": type(path).__name__}
        return {**_model(field.inner), "path": told}
    if isinstance(field, Denoiser):
        return {"name": field.name, "weights": field.details.get("weights")}
    return {}


def _finish(
    job: _Job, trajectory: bool, observe: Observe | None, on_failure: OnFailure
) -> Solution:
    job.check_watched(observe is not None or trajectory or job.keep is not None)
    record, kept = job.record(), [job.given[-1]]
    if observe is None and not trajectory:
        kept.append(job.complete(record))
    else:
        for step in job.steps(record):
            if observe is not None:
                observe(step)
            if not trajectory:
                kept.clear()
            kept.append(step.x)
    solution = _solution(job, kept[-1], record, kept if trajectory else ())
    if on_failure == "raise" and not solution.ok:
        raise _failure(solution, _diagnosis(job, record, solution))
    return solution


def _solution(
    job: _Job, x: Tensor, record: Evaluator | Tally, kept: Sequence[Tensor] = ()
) -> Solution:
    status = finite_status(x.detach())
    if isinstance(record, Tally):
        status, stats, report = record.status_of(status), record.stats(job.field.calls), None
    else:
        nfe, each, report = record.n, record.per_sample, record.report()
        stats = Stats(nfe, _network_calls(job, nfe), job.plan.steps, per_sample=each)
    stats = replace(stats, vjps=stats.nfe * job.field.vjps)
    seeds, grid = job.seeds or (), tuple(plain(t) for t in job.plan.grid)
    dtype = str(x.dtype).removeprefix("torch.")
    told = status_names(status)
    receipt = Receipt(job.recipe, seeds, grid, stats.nfe, told, x.device.type, dtype)
    times = job.plan.instants[list(job.plan.landings)] if kept else None
    trajectory = torch.stack(list(kept)) if kept else None
    end = job.plan.times[-1]
    return Solution(x, end, status, stats, receipt, times, trajectory, report, job.backward)


def _network_calls(job: _Job, nfe: int) -> int:
    """Return the network calls of `nfe` evaluations; where all were made, each at its own time."""
    plan, field = job.plan, job.field
    if isinstance(plan, Plan) and nfe == plan.nfe:
        return field.calls_at(plan.instants[list(plan.evaluated)])
    return nfe * field.calls


def _failure(solution: Solution, message: str) -> SolveError:
    """Return the error of a solve that did not end well."""
    lost = Status.NON_FINITE in solution.statuses
    return (NonFiniteError if lost else UnfinishedError)(message, solution)


def _worst(solution: Solution, seeds: Sequence[int] | None) -> tuple[Status, list[int], str]:
    """Return the first kind of failure, the numbers of its samples, and who they are."""
    worst = min(status for status in solution.statuses if status is not Status.OK)
    failed = [i for i, status in enumerate(solution.statuses) if status is worst]
    return worst, failed, name_samples(failed, seeds)


def _failed(solution: Solution, seeds: Sequence[int] | None) -> str:
    """Say whose state is not finite, or who was given up."""
    worst, _, who = _worst(solution, seeds)
    return f"{who}: {_SAID[worst]}"


_SAID = {
    Status.NON_FINITE: "the state is not finite",
    Status.MAX_STEPS: "given up after the most steps allowed",
    Status.STEP_TOO_SMALL: "no step is small enough",
}


def _diagnosis(job: _Job, record: Evaluator | Tally, solution: Solution) -> str:
    """Say what went wrong, where, and who did it."""
    worst, failed, who = _worst(solution, job.seeds)
    if isinstance(record, Tally) and worst is not Status.NON_FINITE:
        t = float(record.t[failed[0]])
        return f"{who}: {_SAID[worst]}, at t = {t:.6g}; {worst.advice}"
    return f"{who}: {_first_trouble(job)}; {worst.advice}"


def _first_trouble(job: _Job) -> str:
    """Run once more, looking at everything, and say where it first went wrong."""
    watched = Watched(job.field)
    again = replace(job, field=watched)
    with torch.no_grad():
        for step in again.steps(again.record()):
            if watched.trouble is None and finite_status(step.x).any():
                watched.trouble = f"the state is not finite at t = {told_time(step.t)}"
            if watched.trouble is not None:
                return f"{watched.trouble}, step {step.index + 1} of {job.plan.steps}"
    return "not finite at the end, though not when run again"

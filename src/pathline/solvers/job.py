"""A solve that is ready to run: everything that was asked for, looked at and put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, SupportsIndex, cast

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.brownian import Brownian
from pathline.core.errors import UsageError
from pathline.fields import SDE, Condition, Denoiser, Field, Retimed
from pathline.fields.denoiser import source_of
from pathline.paths import GaussianPath, Time, as_time, bshape, paths
from pathline.solvers.adjoints import Adjoint, Checkpoint, Direct, Loop, Record, Walk
from pathline.solvers.adjoints.adjoint import is_usual
from pathline.solvers.evaluate import Call, Evaluator, Speed
from pathline.solvers.execute import Step, execute
from pathline.solvers.executors import Executor, as_executor
from pathline.solvers.how import How
from pathline.solvers.plan import Plan, told_time
from pathline.solvers.solver import check_gaussian
from pathline.solvers.stepped import Course, Keep, Keeping, Problem, Tally
from pathline.solvers.wanted import Found, Wanted, points_of


class Start(NamedTuple):
    """The noise that generation starts from."""

    shape: Sequence[int] | None
    dtype: torch.dtype | None
    device: torch.device | str | None


@dataclass(frozen=True)
class Job:
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
    wanted: Wanted | None = None

    @property
    def driver(self) -> tuple[int, ...] | Brownian | None:
        """What noise is a function of: the equation's own path, or the seeds."""
        own = self.field.brownian if isinstance(self.field, SDE) else None
        return self.seeds if own is None else own

    def _call(self, plan: Plan) -> Call:
        return Call(self.field, plan, self.given[0], self.cond, self.driver)

    def record(self) -> Evaluator | Tally:
        """Return what evaluates a plan, or what keeps the count of a stepped solve."""
        if isinstance(self.plan, Course):
            return Tally(len(self.given[0]), Found())
        if self.speed is None:
            return Evaluator(self.field, self.plan, self.given[0], self.cond)
        return self.speed.evaluator(self._call(self.plan))

    def steps(self, record: Evaluator | Tally) -> Iterator[Step]:
        """Run, yielding at every grid point."""
        keeping = None if self.keep is None else self._keeping(self.keep)
        if isinstance(self.plan, Plan):
            assert isinstance(record, Evaluator)
            run = execute(self.plan, record, self.given, self.driver, self.executor.combined)
        else:
            assert isinstance(record, Tally)
            (x,) = self.given
            more = (self.seeds, record, keeping, self.wanted, self.executor)
            problem = Problem(self.plan, self.field, x, self.cond, *more)
            run = self.plan.solver.march(problem)
        return run if keeping is None else _kept(run, keeping, self.plan.steps)

    def _keeping(self, keep: Keep) -> Keeping:
        """Return `keep` with all that it is told but the state and its time."""
        if self.field.path is None or self.seeds is None:
            raise UsageError("what is kept is noised as a path says: give a model, and seeds.")
        check_gaussian(self.field.path)
        return Keeping(keep, self.field.path, self.seeds)

    def _loop(self, record: Evaluator, shown: tuple[int, ...] = ()) -> Loop:
        assert isinstance(self.plan, Plan)
        call = self._call(self.plan)
        return Loop(call, self.given, record, self.executor, self.backward, shown)

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
                        lambda: self._last(record), record)  # fmt: skip
            return self.adjoint.walked(walk)
        return self._last(record)

    def shows(self, trajectory: bool) -> tuple[int, ...]:
        """Return the numbers of the states of a plan that are asked for, beside the last one.

        None where they are not handed out by the loop itself, but seen by those who watch it.
        """
        plan = self.plan
        if not isinstance(plan, Plan) or self.keep is not None:
            return ()
        if self.wanted is not None and self.wanted.save is not None:
            return points_of(plan, self.wanted.save)
        return plan.landings if trajectory and self.adjoint is not None else ()

    def shown(self, record: Evaluator | Tally, numbers: tuple[int, ...]) -> list[Tensor]:
        """Run with nobody watching, and return these states and the last one."""
        assert isinstance(record, Evaluator)
        assert isinstance(self.plan, Plan)
        last = len(self.plan.times) - 1
        adjoint = Direct() if self.adjoint is None else self.adjoint
        return list(adjoint.complete(self._loop(record, (*numbers, last))).unbind())

    def _last(self, record: Evaluator | Tally) -> Tensor:
        x = self.given[-1]
        for step in self.steps(record):
            x = step.x
        return x

    def check_watched(self, is_watched: bool) -> None:
        """Refuse what would look into a loop that cannot be looked into."""
        if is_watched and self.adjoint is not None and not isinstance(self.adjoint, Direct):
            raise UsageError(
                "what looks at states inside the loop (observe, trajectory, save, events …) is "
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


def job_of(
    field: Field,
    how: How,
    begin: Callable[[Plan | Course], Tensor | Sequence[Tensor]],
    shape: Sequence[int],
    seeds: Sequence[int] | None,
    cond: Mapping[str, Any],
) -> Job:
    """Return a solve of a field, ready to run.

    Raises:
        UsageError: what was asked for cannot work.
    """
    how = how.resolved(field)
    guided = field if how.guide is None else how.guide(field)
    if not isinstance(guided, Field):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"the guide returned a {type(guided).__name__}, and not a field.")
    plan = how.compile(field, guided, shape)
    x = begin(plan)
    given = tuple(x) if isinstance(x, list | tuple) else (cast("Tensor", x),)
    if len(given) != len(plan.start):
        raise UsageError(f"the plan starts from {len(plan.start)} states, not {len(given)}.")
    for state in given:
        _check_state(guided, state)
    _check_noise(guided, plan, how)
    batch = len(given[0])
    if plan.batch not in (None, batch):
        raise UsageError(f"the plan is for {plan.batch} samples, and the state has {batch}.")
    if seeds is not None and len(seeds) != batch:
        raise UsageError(f"{len(seeds)} seeds were given for {batch} samples.")
    recipe = {**described(field, how), **plan.recipe, "cond": told(cond)}
    prepared, drawn = guided.condition(cond, batch), None if seeds is None else tuple(seeds)
    executor = as_executor(how.executor)
    ready = executor.prepared(guided)
    more = (recipe, how.speed, executor, how.keep, how.adjoint, Record(), how.wanted)
    return Job(ready, plan, given, prepared, drawn, *more)


def sampling(
    model: Field, how: How, begin: Start, seeds: tuple[int, ...], cond: Mapping[str, Any]
) -> Job:
    """Return a solve from the noise of a model, ready to run.

    Raises:
        UsageError: what was asked for cannot work.
    """
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
    device, dtype = _device(begin.device or model.device or "cpu"), _dtype(begin.dtype)

    def noise_at(plan: Plan | Course) -> Tensor:
        _check_falls(plan)
        return start(path, plan.start[-1], seeds, shape, dtype, device)

    return job_of(model, how, noise_at, shape, seeds, cond)


def _device(device: torch.device | str) -> torch.device:
    """Return a device that is here, as far as that can be known beforehand."""
    has_cuda = torch.cuda.is_available()
    try:
        made = torch.device(device)
    except (RuntimeError, TypeError):
        made = None
    if made is None or (made.type == "cuda" and not has_cuda):
        here = "'cuda' or 'cpu'" if has_cuda else "'cpu'"
        raise UsageError(f"there is no device {device!r} here; give {here}.")
    return made


def _dtype(dtype: torch.dtype | None) -> torch.dtype | None:
    """Return a dtype of torch."""
    if dtype is None or isinstance(dtype, torch.dtype):  # pyright: ignore[reportUnnecessaryIsInstance]
        return dtype
    named = getattr(torch, str(dtype), None)
    hint = named if isinstance(named, torch.dtype) else torch.float64
    raise UsageError(f"dtype={dtype!r} is no dtype of torch: give one, dtype={hint}.")


def _check_falls(plan: Plan | Course) -> None:
    """Refuse to draw noise and to carry it to more noise."""
    first, last = plan.grid[0], plan.grid[-1]
    if bool(torch.as_tensor(last > first).any()):
        raise UsageError(
            f"the grid rises from t = {told_time(first)} to t = {told_time(last)}, and samples are "
            "drawn from noise to data, from a larger t to a smaller one. Turn the grid round; to "
            "carry data of your own to noise take encode(model, x), or solve(model, x, grid=...)."
        )


def told(cond: Mapping[str, Any]) -> dict[str, Any]:
    """Return the condition as a receipt tells it: plain values, and the type of others."""
    return {k: v if _is_plain(v) else {"type": type(v).__name__} for k, v in cond.items()}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, str | int | float)


def shape_of(x: Tensor | Sequence[Tensor]) -> tuple[int, ...]:
    """Return the shape of one state; of what is none, whatever: it is refused afterwards."""
    first = next(iter(x), None) if isinstance(x, list | tuple) else x
    return tuple(first.shape[1:]) if isinstance(first, Tensor) else ()


def batch_of(x: Tensor | Sequence[Tensor]) -> int:
    """Return how many samples a state has; of what is none, 1: it is refused afterwards."""
    first = next(iter(x), None) if isinstance(x, list | tuple) else x
    return len(first) if isinstance(first, Tensor) and first.ndim else 1


def _check_state(field: Field, x: Tensor) -> None:
    if not isinstance(x, Tensor) or x.ndim < 2 or not x.is_floating_point():
        what = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise UsageError(f"the state must be a floating tensor (batch, *state), and is {what}.")
    if field.shape is not None and tuple(x.shape[1:]) != tuple(field.shape):
        raise UsageError(f"the model takes samples of {field.shape}, not {tuple(x.shape[1:])}.")
    if field.device is not None and field.device != x.device:
        raise UsageError(f"the network is on {field.device} and the state on {x.device}; move one.")


def _check_noise(field: Field, plan: Plan | Course, how: How) -> None:
    """Refuse a plan with noise for a field without, and the other way round."""
    has_noise = isinstance(field, SDE)
    knows = plan.solver.takes_noise if isinstance(plan, Course) else bool(plan.legs)
    if has_noise != knows and (has_noise or isinstance(plan, Plan)):
        what = "the field has noise, and the plan" if has_noise else "the plan multiplies"
        raise UsageError(
            f"{what} {'knows of none' if has_noise else 'a diffusion, and the field has none'}: "
            "compile the solver for this field, solver.tuned(field, shape), or name the solver; a "
            "guide must return an SDE for an SDE."
        )
    if has_noise and as_executor(how.executor).name != "eager":
        raise UsageError("stochastic equations run with executor='eager'.")


def _kept(run: Iterator[Step], keeping: Keeping, steps: int) -> Iterator[Step]:
    """Put back what is known at every grid point, before anybody looks."""
    for step in run:
        step.x = keeping(step.x, step.t, step.index == steps - 1)
        yield step


def drawn_seeds(n: int | None, seed: int, seeds: Sequence[int] | None) -> tuple[int, ...]:
    """Return the seed of each sample.

    Raises:
        UsageError: none at all, or another number than was asked for.
    """
    if not (n is None or isinstance(n, SupportsIndex)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"n={n!r} is no whole number of samples: give one, n=4.")
    if n is not None and n < 1:
        raise UsageError(f"at least 1 sample is needed, and {n} were asked for.")
    if seeds is None:
        noise.check_seeds([seed])
        return tuple(range(seed, seed + (1 if n is None else n)))
    if not isinstance(seeds, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"seeds={seeds!r} is no list: give one a sample, or the first, seed=0.")
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


def described(field: Field, how: How) -> dict[str, Any]:
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

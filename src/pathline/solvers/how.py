"""How to integrate: what a user may say, and the plan or course that it comes to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields import Field, VectorField
from pathline.paths import GaussianPath
from pathline.solvers.adjoints import Adjoint, as_adjoint
from pathline.solvers.evaluate import Speed
from pathline.solvers.execute import Step
from pathline.solvers.executors import Executor
from pathline.solvers.grids import Grid, Times, grids
from pathline.solvers.plan import Plan
from pathline.solvers.saved import SAVED, saved_schedule, warn_of_weight
from pathline.solvers.schedule import SolverSchedule
from pathline.solvers.solver import Solver, check_gaussian, solvers
from pathline.solvers.stepped import Course, Keep, Stepped
from pathline.solvers.wanted import Wanted

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
    """Return the solver of a name, or the solver itself.

    Raises:
        UsageError: nobody knows the name, or it is no solver.
    """
    made = solvers.build(solver) if isinstance(solver, str) else solver
    if not isinstance(made, Solver):  # pyright: ignore[reportUnnecessaryIsInstance]
        name = getattr(made, "__name__", repr(made))
        hint = f"{name}()" if isinstance(made, type) else "DPMpp(order=3) or 'dpmpp_3m'"
        raise UsageError(f"{name} is no solver: give one, {hint}.")
    return made


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
    if not isinstance(grid, Grid | Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        name = getattr(grid, "__name__", repr(grid))
        raise UsageError(f"{name} is no grid: give its times, its name, or one, grids.log_snr(10).")
    made = grid if isinstance(grid, Grid) else Times(tuple(grid))
    if n is not None and n != made.n:
        raise UsageError(f"steps={n} and a grid of {made.n} steps were given; leave one out.")
    return made


class How(NamedTuple):
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
    wanted: Wanted | None = None

    def resolved(self, field: Field) -> How:
        """Return the same with a saved schedule in the place of its name, and its policy.

        Raises:
            UsageError: the model has none, a schedule with a policy of its own meets another, or
                the guide, policy or what is kept is none.
        """
        _check_parts(self)
        made = self
        if isinstance(self.solver, str) and self.solver in SAVED:
            found = saved_schedule(field, self.steps, self.solver)
            made = self._replace(solver=found, steps=None)
        own = made.solver.speed if isinstance(made.solver, SolverSchedule) else None
        if own is None:
            return made
        assert isinstance(made.solver, SolverSchedule)
        warn_of_weight(made.solver, made.guide)
        if made.speed not in (None, own):
            raise UsageError("this schedule leaves evaluations out by itself; leave speed out.")
        return made._replace(speed=own)

    def compile(self, field: Field, guided: Field, shape: Sequence[int]) -> Plan | Course:
        plan = self._plan(field, guided, shape)
        adapts = isinstance(plan, Course) and plan.solver.is_adaptive
        saves = isinstance(plan, Plan) and self.wanted is not None and self.wanted.is_save_alone
        if self.wanted is not None and not (adapts or saves):
            raise UsageError(
                "dense, events and on_step are for adaptive solvers (tsit5, dopri5 …), and save "
                "for them and for plans; with steps on a grid use trajectory and observe."
            )
        if self.speed is None:
            return plan
        if isinstance(plan, Course):
            raise UsageError("speed leaves evaluations out of a plan, and this solver has none.")
        return self.speed.thinned(plan)

    def _plan(self, field: Field, guided: Field, shape: Sequence[int]) -> Plan | Course:
        made, steps = self.solver, self.steps
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


def _check_parts(how: How) -> None:
    """Refuse a guide, a policy or what is kept that is none."""
    guide, speed, keep = how.guide, how.speed, how.keep
    if guide is not None and (not callable(guide) or _is_class(guide, Field)):
        hint = f"CFG({guide})" if type(guide) in (int, float) else "CFG(4.0)"
        raise _none(f"guide={_named(guide)} is no guide", f"guide={hint}", "steer", "CFG")
    if not (speed is None or isinstance(speed, Speed)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise _none(f"speed={_named(speed)} is no policy", "speed=SADA()", "speed", "SADA")
    if keep is not None and (not callable(keep) or isinstance(keep, type)):
        raise _none(f"keep={_named(keep)} keeps nothing", "keep=Known(y, mask)", "steer", "Known")


def _is_class(value: object, of: type) -> bool:
    """Return whether it is a class, and not one that makes such values."""
    return isinstance(value, type) and not issubclass(value, of)


def _named(given: object) -> str:
    return given.__name__ if isinstance(given, type) else repr(given)


def _none(said: str, instead: str, home: str, name: str) -> UsageError:
    return UsageError(f"{said}: give one, {instead} (from pathline.{home} import {name}).")


def chosen(adjoint: Adjoint | str | None) -> Adjoint | None:
    """Return the adjoint that was asked for, if one was."""
    return None if adjoint is None else as_adjoint(adjoint)

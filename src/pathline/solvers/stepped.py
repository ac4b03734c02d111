"""Stepped solvers: what a step is depends on the data while it runs.

A `Solver` that writes rows knows every coefficient before it starts. One whose step size follows an
error estimate, or whose corrector is scaled by a norm, does not: it is *stepped*. The driver is the
same (`solve`, `sample` and `steps` take it like any other), the grid says where everybody stops
over, and between two grid points each sample walks at its own pace: its time, step size, status and
evaluations are its own, and none of them depends on its neighbours.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.core.solution import Stats, Status, Walked
from pathline.fields import Condition, Field, View, change
from pathline.paths import GaussianPath, Time, bshape
from pathline.solvers.evaluate import check_output
from pathline.solvers.execute import Step
from pathline.solvers.folding import untold
from pathline.solvers.grids import Grid, grids
from pathline.solvers.levels import steady
from pathline.solvers.solver import Solver, Writer, check_path, solvers


@dataclass(frozen=True, eq=False)
class Course:
    """What a stepped solver has instead of a plan: a solver, a path, and where to stop over.

    Args:
        solver: the solver.
        path: the path; None for a plain differential equation.
        ends: the grid, or each sample's.
        grid: the times of the grid points, each () or (batch,).
        recipe: the solver and grid, as plain values.
    """

    solver: Stepped
    path: GaussianPath | None
    ends: Grid | tuple[Grid, ...]
    grid: tuple[Time, ...]
    recipe: Mapping[str, Any]

    @property
    def start(self) -> tuple[Time, ...]:
        """The time of the state that is given at the start."""
        return self.grid[:1]

    @property
    def times(self) -> tuple[Time, ...]:
        """The times of the states that a solve shows."""
        return self.grid

    @property
    def instants(self) -> Tensor:
        """The times as a tensor, float64: (n,), or (n, batch) where samples have their own."""
        if self.batch is None:
            return torch.tensor(self.grid, dtype=torch.float64)
        return torch.stack([each(t, self.batch) for t in self.grid])

    def tabulated(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return function(t) of the grid's times: (n,), or (n, batch) with each sample's alone."""
        if self.batch is None:
            return function(self.instants)
        columns = self.instants.unbind(1)
        return torch.stack([function(column.contiguous()) for column in columns], 1)

    @property
    def landings(self) -> range:
        """The numbers of the grid points."""
        return range(len(self.grid))

    @property
    def batch(self) -> int | None:
        """How many samples it is for, where each has its own grid; None serves any number."""
        return None if isinstance(self.ends, Grid) else len(self.ends)

    @property
    def steps(self) -> int:
        """The grid points that the solve stops over at."""
        return len(self.grid) - 1

    @property
    def denoises(self) -> bool:
        """Whether the last step lands on data."""
        first = self.ends if isinstance(self.ends, Grid) else self.ends[0]
        return first.last == "denoise"


def each(t: Time, batch: int) -> Tensor:
    """Return a time for each sample, (batch,) float64 on the CPU."""
    return torch.as_tensor(t, dtype=torch.float64).expand(batch)


class Tally:
    """What each sample of a solve has cost and how it stands, on the CPU; filled in as it runs."""

    def __init__(self, batch: int, found: Any = None) -> None:
        self.nfe, self.steps, self.rejected, self.status = (
            torch.zeros(batch, dtype=torch.int64) for _ in range(4)
        )
        self.t = torch.full((batch,), float("nan"), dtype=torch.float64)
        """How far each sample has come, where it failed."""
        self.found = found
        self.tape: list[Any] | None = None
        """What an adaptive solve has found of what was wanted (`wanted.Found`), and the steps that
        it took, where somebody will take them again (`replay.Took`)."""

    def fail(self, rows: Tensor, status: Status, t: Tensor) -> None:
        """Set down that some samples stop here."""
        self.status[rows], self.t[rows] = int(status), t

    def status_of(self, finite: Tensor) -> Tensor:
        """Return each sample's status: what was set down, else whether its state is finite."""
        found = self.status.to(finite)
        return torch.where(found == 0, finite, found)

    def stats(self, calls: int) -> Stats:
        """Return what it all cost; a field's evaluation makes so many calls of the network."""
        nfe, steps, rejected = (v.tolist() for v in (self.nfe, self.steps, self.rejected))
        walks = tuple(map(Walked, steps, rejected))
        most = max(nfe)
        return Stats(most, most * calls, max(steps), max(rejected), tuple(nfe), walks)


class Keep(Protocol):
    """What is put back into a state after every update, because it is known (`steer.Known`)."""

    def __call__(
        self,
        x: Tensor,
        path: GaussianPath,
        t: Time,
        seeds: Sequence[int],
        draw: int,
        is_last: bool,
    ) -> Tensor:
        """Return the state at time t with what is known put back.

        Args:
            x: (batch, *state).
            path: of the model.
            t: () or (batch,).
            seeds: one a sample.
            draw: how many updates were before.
            is_last: whether this is the result.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Return what a receipt says of it, as plain values."""
        ...


class Keeping:
    """A `Keep` in one solve: it counts the updates, so that each has noise of its own.

    Args:
        keep: what is put back.
        path: of the model.
        seeds: one a sample.
    """

    def __init__(self, keep: Keep, path: GaussianPath, seeds: Sequence[int]) -> None:
        self._keep, self._path, self._seeds, self._draw = keep, path, seeds, 0

    def __call__(self, x: Tensor, t: Time, is_last: bool = False) -> Tensor:
        """Return the state with what is known put back."""
        self._draw += 1
        return self._keep(x, self._path, t, self._seeds, self._draw - 1, is_last)


class Problem(NamedTuple):
    """A stepped solve, ready to run.

    Args:
        course: where it goes.
        field: what is integrated.
        x: (batch, *state), the state at the start.
        cond: as `field.condition` returned it.
        seeds: one a sample.
        tally: where costs and statuses are set down.
        keep: what is put back after every update inside a step; at grid points the driver does.
        wanted: what an adaptive solver shall tell beside the end (`wanted.Wanted`).
        executor: how it is run (`executors.Executor`); None is eagerly.
    """

    course: Course
    field: Field
    x: Tensor
    cond: Condition
    seeds: Sequence[int] | None
    tally: Tally
    keep: Keeping | None = None
    wanted: Any = None
    executor: Any = None


@dataclass(frozen=True)
class Stepped(Solver):
    """A solver without a plan: `march` takes the steps, and yields at every grid point."""

    @property
    def takes_noise(self) -> bool:
        """Whether it integrates the noise of a field that has some."""
        return False

    @abstractmethod
    def march(self, problem: Problem) -> Iterator[Step]:
        """Run a solve, yielding at every grid point; go on from the state that is there then."""

    def check(self, path: GaussianPath | None, grid: Grid) -> None:
        """Refuse a path or grid that does not suit the solver.

        Raises:
            UsageError: it does not.
        """

    def course(self, path: GaussianPath | None, grid: Grid | Sequence[Grid]) -> Course:
        """Return where a solve on this path and grid goes.

        Raises:
            UsageError: the solver needs a path and there is none, or the grid does not suit it.
        """
        if isinstance(grid, Grid):
            return Course(self, path, grid, self._times(path, grid), self._recipe(grid))
        made = {g: self._times(path, g) for g in dict.fromkeys(grid)}
        if len({(len(times), g.last) for g, times in made.items()}) != 1:
            raise UsageError("grids of one batch must have one number of steps and one last step.")
        points = zip(*(made[g] for g in grid), strict=True)
        ends, told = tuple(grid), self._recipe(grid[0])
        if told:
            told = {**told, "grid": [grids.describe(g) for g in ends]}
        return Course(self, path, ends, tuple(map(_common, points)), told)

    def _times(self, path: GaussianPath | None, grid: Grid) -> tuple[float, ...]:
        check_path(self, path, grid)
        self.check(path, grid)
        return grid.times(path)

    def _recipe(self, grid: Grid) -> Mapping[str, Any]:
        known = solvers.has(self) and grids.has(grid)
        return {"solver": solvers.describe(self), "grid": grids.describe(grid)} if known else {}

    def write(self, to: Writer) -> None:
        raise UsageError(
            f"{type(self).__name__} decides its steps while it runs, so it has no plan; "
            "give the solver itself to solve, sample or steps."
        )


def _common(times: Sequence[float]) -> Time:
    """Return the time of all samples, or each one's."""
    return times[0] if len(set(times)) == 1 else torch.tensor(times, dtype=torch.float64)


class Evaluation:
    """Evaluates the field at a time of each sample's own, in the view of the solver, and counts.

    Args:
        problem: the solve.
        view: what is asked for.
    """

    def __init__(self, problem: Problem, view: View) -> None:
        self._problem: Problem = problem
        self._view: View = view

    def __call__(self, rows: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return the field for some samples, (n, *state).

        Args:
            rows: which samples, (n,).
            x: their states.
            t: their times, float64 on the CPU.
        """
        field, tally = self._problem.field, self._problem.tally
        f = self._of(rows, x, t)
        check_output(f, x)
        tally.nfe[rows] += 1
        if field.view == self._view:
            return f
        path = self._problem.course.path
        if path is None:
            raise UsageError(f"a field without a path has no {self._view}, only its {field.view}.")
        p, q = self._change(path, t)
        return bshape(p, x) * x + bshape(q, x) * f

    def _of(self, rows: Tensor, x: Tensor, t: Tensor) -> Tensor:
        field, whole, cond = self._problem.field, self._problem.x, self._problem.cond
        if len(rows) == len(whole):
            return self._bound(x, t, cond)
        part = field.part(cond, rows)
        if part is not None:
            return self._bound(x, t, part)
        at = rows.to(x.device)  # only whole batches: the others are there, and not listened to
        filled = x[:1].expand_as(whole).index_put((at,), x)
        times = t[:1].expand(len(whole)).index_put((rows,), t)
        return self._bound(filled, times, cond)[at]

    def _bound(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self._problem.field.bind(t.to(x.device)[None], x, cond)(0, x)

    def _change(self, path: GaussianPath, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (p, q) with the solver's view = p x + q F, each (n,)."""
        source, goal = self._problem.field.view, self._view
        p = steady(lambda s: change(path, source, goal, s)[0], t)
        q = steady(lambda s: change(path, source, goal, s)[1], t)
        known = (p + q).isfinite()
        if not bool(known.all()):
            raise untold(path, source, goal, float(t[~known][0]))
        return p, q


def closing(problem: Problem, x: Tensor, rows: Tensor) -> Tensor:
    """Return the state after the step to data, x = x̂_0, of the samples that have come so far."""
    t = each(problem.course.grid[-2], len(x))[rows]
    at = rows.to(x.device)
    return x.index_put((at,), Evaluation(problem, "x0")(rows, x[at], t))

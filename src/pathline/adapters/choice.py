"""What a user chooses for a pipeline: solver, grid, labels; as plain values, for a config in JSON.

A request then brings a number of steps, or timesteps or noise levels of its own, and the choice
becomes a `Course`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from pathline.adapters import schedulers
from pathline.adapters.course import (
    Course,
    Paired,
    is_even,
    is_whole_ladder,
    time_of,
    unshifted,
)
from pathline.adapters.driven import with_plan
from pathline.adapters.schedulers import Training
from pathline.core.errors import UsageError
from pathline.paths import Tabulated
from pathline.solvers import Grid, Plan, Solver, SolverSchedule, grids, solvers
from pathline.solvers.dpm_v3 import DPMv3
from pathline.solvers.ems import FILE, EMSTable
from pathline.solvers.grids import Last, Times

Levels = Sequence[float] | None


def plain_solver(solver: Any) -> Any:
    """Return a solver, a schedule, a plan, a name or a description as JSON values.

    Raises:
        UsageError: it is none of these, or its name is not known.
    """
    if isinstance(solver, Solver):
        return solvers.describe(with_plan(solver))
    if isinstance(solver, SolverSchedule) and solver.ratios:
        raise UsageError(
            "a pipeline evaluates both halves of its guidance by itself, and this schedule leaves "
            "some out; take one of whole evaluations (schedules/nfe-05.json)."
        )
    if isinstance(solver, Plan | SolverSchedule):
        return solver.to_dict()
    as_solver(solver)
    return solver


def as_solver(told: Any) -> Solver | Plan:
    """Return the solver or plan that `plain_solver` told."""
    if isinstance(told, str):
        return with_plan(solvers.build(told))
    if isinstance(told, Mapping):
        if "plan" in told:
            return Plan.from_dict(told)
        if "schedule" in told:
            return SolverSchedule.from_dict(told).plan()
        return with_plan(solvers.rebuild(_named("solver", told)))
    raise UsageError(
        "a pipeline steps on a fixed grid: solver= takes a name of `pathline solvers`, a Solver "
        f"that compiles to a plan, a SolverSchedule or a Plan, and was given {_kind(told)}."
    )


def table_in(solver: Solver | Plan) -> EMSTable | None:
    """Return the statistics that a solver steps with, if it does."""
    table = getattr(solver, "table", None)
    return table if isinstance(table, EMSTable) else None


def save_table(solver: Solver | Plan, folder: Path) -> None:
    """Write a solver's statistics into a folder: a config holds their checksum alone."""
    table = table_in(solver)
    if table is not None:
        folder.mkdir(parents=True, exist_ok=True)
        table.save(folder / FILE)


def with_table(solver: Solver | Plan, folder: Path) -> Solver | Plan:
    """Return a solver with the statistics that `save_table` wrote, if they are those it names."""
    if not isinstance(solver, DPMv3) or isinstance(solver.table, EMSTable):
        return solver
    file = folder / FILE
    table = EMSTable.load(file) if file.is_file() else None
    is_it = table is not None and solver.table == table.checksum
    return replace(solver, table=table) if is_it else solver


def plain_grid(grid: Any) -> Any:
    """Return a grid, times, a name, a description or None as JSON values.

    Raises:
        UsageError: it is none of these, or its name is not known.
    """
    if isinstance(grid, Grid):
        return {k: list(v) if isinstance(v, tuple) else v for k, v in _described(grid).items()}
    if isinstance(grid, str):
        grids.grids.entry(grid)
    elif isinstance(grid, Mapping):
        grids.grids.entry(_named("grid", grid)["name"])
    elif isinstance(grid, Sequence):
        return plain_grid(Times(tuple(grid)))
    elif grid is not None:
        raise UsageError(
            "grid= takes a Grid, times, a name of `pathline grids` or None for the scheduler's "
            f"own, and was given {_kind(grid)}."
        )
    return grid


def _described(grid: Grid) -> dict[str, Any]:
    return grids.grids.describe(grid)


def _named(what: str, told: Mapping[str, Any]) -> Mapping[str, Any]:
    if "name" not in told:
        raise UsageError(f"a {what} in a config has a 'name', and this has {', '.join(told)}.")
    return told


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


@dataclass(frozen=True)
class Choice:
    """Solver and grid for the models of a scheduler.

    Args:
        scheduler: the config that the model came with.
        training: what it says of the training.
        solver: what steps, unless a plan does.
        grid: as `plain_grid` tells it; None for the one that the scheduler is configured for.
        is_whole: whether the grid's points move to whole labels.
    """

    scheduler: schedulers.Scheduler
    training: Training
    solver: Solver | Plan
    grid: Any
    is_whole: bool

    def course(
        self, n: int | None, timesteps: Levels, sigmas: Levels, mu: float | None
    ) -> tuple[Course, int]:
        """Return the course of a request, and its number of steps.

        Args:
            n: steps.
            timesteps: labels of the request's own, instead of n.
            sigmas: noise levels of its own: σ/α, closed by 0 for data; on a flow before the shift,
                and there with what the network is told at them as timesteps.
            mu: as for `schedulers.grid`; without meaning where nothing shifts by it.

        Raises:
            UsageError: none of the three was given, or they contradict each other or the plan.
        """
        timesteps, sigmas = _list(timesteps), _list(sigmas)
        mu = mu if self.scheduler.is_flow and self.scheduler.says("use_dynamic_shifting") else None
        training = self.training
        if timesteps is not None and sigmas is not None:
            training = self._paired(timesteps, sigmas, mu)
            if self.grid is not None and is_whole_ladder(timesteps):
                n, sigmas = len(timesteps), None
            timesteps = None
        if sigmas is not None and self.scheduler.is_flow and is_even(sigmas):
            n, sigmas = len(sigmas), None  # what pipelines pass when nobody chose
        if n is None and timesteps is None and sigmas is None:
            raise UsageError("set_timesteps needs num_inference_steps, timesteps or sigmas.")
        if isinstance(self.solver, Plan):
            made = self._planned(self.solver, n, timesteps or sigmas)
            return replace(made, training=training), self.solver.steps
        grid = self._grid(n, timesteps, sigmas, mu)
        if self.is_whole:
            grid = grids.whole(grid, self.training.path)
        course = Course.compiled(training, self.solver, grid)
        labels = course.labels
        if self.is_whole and labels.is_floating_point():
            raise UsageError(
                f"{type(self.solver).__name__} evaluates between the points of its grid, where "
                "labels are not whole; take labels='real', or a multistep solver."
            )
        return course, grid.n

    def _paired(self, timesteps: list[float], sigmas: list[float], mu: float | None) -> Training:
        """Return the training of a flow whose network is told these timesteps at these levels."""
        if not self.scheduler.is_flow:
            raise UsageError("give timesteps or sigmas, not both: each is the whole grid.")
        ladder = sigmas if sigmas[-1] else sigmas[:-1]
        if len(ladder) != len(timesteps):
            raise UsageError(
                f"{len(timesteps)} timesteps and {len(ladder)} sigmas: give one timestep for each."
            )
        times = schedulers.flow_times(self.scheduler, ladder, mu)
        shift = schedulers.flow_shift(self.scheduler, mu)
        levels = unshifted(torch.tensor(times, dtype=torch.float64), shift).tolist()
        rising = [0.0, *reversed(levels)], [0.0, *reversed(timesteps)]
        if any(b <= a for row in rising for a, b in pairwise(row)):
            raise UsageError(
                "timesteps and sigmas fall together at every step; these do not: "
                f"{timesteps} and {sigmas}."
            )
        return replace(self.training, label=Paired(shift, *map(tuple, rising)))

    def _planned(self, plan: Plan, n: int | None, own: Levels) -> Course:
        if own is not None or self.grid is not None or n not in (None, plan.steps):
            asked = "times of its own were asked for" if own or self.grid else f"{n} were asked for"
            raise UsageError(
                f"the plan has its own grid, of {plan.steps} steps, and {asked}; pass "
                f"num_inference_steps={plan.steps} and no grid."
            )
        return Course.of(self.training, plan)

    @property
    def _last(self) -> Last:
        return "denoise" if self.scheduler.ends_at_data else "stop"

    def _grid(self, n: int | None, timesteps: Levels, sigmas: Levels, mu: float | None) -> Grid:
        if timesteps is not None:
            return self._at_labels(timesteps)
        if sigmas is not None:
            return self._at_levels(sigmas, mu)
        assert n is not None
        if self.grid is None:
            return schedulers.grid(self.scheduler, n, mu=mu)
        told = {"name": self.grid} if isinstance(self.grid, str) else dict(self.grid)
        if grids.grids.entry(told["name"]).make is not Times:
            return grids.grids.rebuild({"last": self._last, **told, "n": n})
        made = grids.grids.rebuild(told)
        if made.n != n:
            raise UsageError(
                f"the grid has {made.n} steps of its own and {n} were asked for; pass "
                f"num_inference_steps={made.n}."
            )
        return made

    def _at_labels(self, labels: Sequence[float]) -> Grid:
        labels = list(labels)
        if self._last == "stop" and labels[-1]:
            labels.append(0.0)
        times = time_of(self.training, torch.tensor(labels, dtype=torch.float64))
        return grids.times(times.tolist(), last=self._last)

    def _at_levels(self, sigmas: Sequence[float], mu: float | None) -> Grid:
        path, ends = self.training.path, not sigmas[-1]
        if self.scheduler.is_flow:
            ladder = sigmas[:-1] if ends else sigmas
            times = schedulers.flow_times(self.scheduler, ladder, mu)
            return grids.times(times, last="denoise")
        if isinstance(path, Tabulated):  # published levels are rounded: 14.615 for 14.6146
            top = torch.tensor(1.0, dtype=torch.float64)
            highest = float((-path.log_snr(top)).exp())
            if highest < sigmas[0] < 1.001 * highest:
                sigmas = [highest, *sigmas[1:]]
        return grids.sigmas(sigmas, path)


def _list(values: Any) -> list[float] | None:
    if values is None:
        return None
    listed = torch.as_tensor(values, dtype=torch.float64).tolist()
    if not isinstance(listed, list) or not listed:
        raise UsageError(f"timesteps and sigmas are lists of one number or more, not {values!r}.")
    return listed

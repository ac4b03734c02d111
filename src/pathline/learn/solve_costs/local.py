"""The cost of one more step, from a random point of the solution: any adjoint, its own graph.

    cost = e(t_r; sg[x(t_r)], sg[h]),   e = E |h| or S / S* of one embedded step

"unbiased" draws t_r evenly in time, so that E cost = 1/T ∫ e dt; "biased" draws one of the points
that the solver has stepped from, which lie close where it works hard: E cost = Σ_j e_j / N, what
`Heuristics` makes of all steps. The gradient flows through the stages of the extra step alone,
never into the solve, which stays a black box.

Paper: Pal et al. 2023 (arXiv:2303.02262).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import NonFiniteError, UsageError, unknown
from pathline.core.solution import Solution
from pathline.fields import Field
from pathline.learn.solve_costs.cost import (
    WHOLE,
    AnyField,
    Asked,
    Costed,
    Estimate,
    SolveCost,
    check_estimate,
    combined,
    embedded,
)
from pathline.solvers import AdaptiveRK, grids, solve
from pathline.solvers.adaptive import Adaptive
from pathline.solvers.adaptive_sde import AdaptiveSDE
from pathline.solvers.how import as_grid, as_solver
from pathline.solvers.pace import Numbers
from pathline.solvers.solver import Solver
from pathline.solvers.trial import Rows
from pathline.solvers.watching import StepRecord, Taken, Watcher

Mode = Literal["unbiased", "biased"]
Size = Literal["grid", "auto"]

MOST = 1e3
"""A cost beyond this has no gradient: early in training a step may be a thousand tolerances off."""
NEAREST = 1e-8
"""How near to the end of the solve a point may be drawn, as a part of the whole."""
FRESH, STAGES = 2**31, 3
"""Which seeds are derived for the extra step, and the drift evaluations of one with noise."""
OWN = frozenset(inspect.signature(solve).parameters) - {"guide"}


@dataclass(frozen=True)
class Local(SolveCost):
    """The cost of a single step from a random point of the solution.

    Args:
        mode: "unbiased" or "biased", how the point is drawn.
        kind: "error", "stiffness" or "both".
        size: the length of the step: "grid" takes that of the solve there, "auto" what the solver
            would begin with (one evaluation more).
        per_sample: whether each sample has a point of its own, "unbiased"; "biased" always has one
            where samples step by themselves.
        detach_first: whether the first stage has no gradient, as in the authors' code.
        probe: the step, of a solve by another solver than an adaptive Runge-Kutta method.

    A weight three times that of `Heuristics` serves "unbiased", which is noisier.

    Raises:
        UsageError: a mode or an estimate that nobody knows; a solver without points of its own.

    Cost: one step, 7 evaluations of tsit5, with its graph.
    """

    mode: Mode = "biased"
    kind: Estimate = "error"
    size: Size = "grid"
    per_sample: bool = False
    detach_first: bool = False
    probe: AdaptiveRK = AdaptiveRK(method="tsit5")

    def __post_init__(self) -> None:
        check_estimate(self.kind)
        if self.mode not in get_args(Mode):
            raise unknown("way to draw the point", self.mode, get_args(Mode))
        if self.size not in get_args(Size):
            raise unknown("length of the step", self.size, get_args(Size))

    def costed(self, asked: Asked) -> Costed:
        field, x, grid, how = asked.field, asked.x, asked.grid, asked.how
        made = as_solver(asked.solver)
        random = np.random.Generator(np.random.Philox(asked.seed))
        if isinstance(made, Adaptive):
            prober = embedded(made, self.kind, x)
            pick = _Pick(self._part(len(x), random), random, prober.shares, _ends(grid))
            stops = grid if isinstance(prober, AdaptiveRK) else self._stops(grid, pick, how)
            sol, point = asked.solved(solver=prober, grid=stops, on_step=pick), pick.point
        else:
            prober = embedded(self.probe, self.kind, x)
            sol, point = self._planned(asked, made, random)
        cond = {k: v for k, v in how.items() if k not in OWN}
        if "seeds" in how:  # an increment of its own
            cond["seeds"] = noise.derived_seeds(how["seeds"], FRESH)
        costs = self.costs(field, point, prober, **cond)
        cost = costs.mean()
        if not bool(cost.isfinite()):
            i = int((~costs.isfinite()).nonzero()[0, 0])
            raise NonFiniteError(
                f"sample {i}: the cost of a step is {float(costs[i])} at t = {point.t[i]:.6g}, "
                f"h = {point.h[i]:.3g}; look at the field there.",
                sol,
            )
        stages = len(prober.tableau.c) if isinstance(prober, AdaptiveRK) else STAGES
        extra = stages + (self.size == "auto" and isinstance(prober, AdaptiveRK))
        return Costed(sol, cost.clamp(max=MOST), extra, torch.from_numpy(point.t))

    def _stops(self, grid: Sequence[float], pick: _Pick, how: Mapping[str, Any]) -> list[float]:
        """Return the times of a solve that cannot look inside its steps, with the point's."""
        times = [float(t) for t in as_grid(grid, None).times(None)]
        if pick.time is None or pick.time in times:
            return times
        if self.per_sample or how.get("trajectory"):
            raise UsageError(
                "inside a step with noise there is no state to be had, so all samples stop over at "
                "one point, which the trajectory would show: take mode='biased'."
            )
        way = 1.0 if times[-1] > times[0] else -1.0
        return sorted([*times, pick.time], key=lambda t: way * t)

    def point(
        self,
        field: AnyField,
        x: Tensor,
        *,
        solver: AdaptiveRK,
        grid: Sequence[float],
        part: Numbers | None = None,
        seed: int = 0,
        **how: Any,
    ) -> Point:
        """Solve, and return the points that are drawn: where a field is hard, to look at.

        Args:
            field, x, solver, grid, seed, how: as `solve`.
            part: how far along each sample's point is, (batch,) in [0, 1), instead of drawing.
        """
        random = np.random.Generator(np.random.Philox(seed))
        part = self._part(len(x), random) if part is None else part
        pick = _Pick(part, random, solver.shares, _ends(grid))
        solve(field, x, solver=solver, grid=grid, on_step=pick, **how)
        return pick.point

    def _part(self, batch: int, random: np.random.Generator) -> Numbers | None:
        """Return what part of the way each sample's point is at; None for a point of the grid."""
        if self.mode == "biased":
            return None
        part = random.random(batch if self.per_sample else 1) * (1 - NEAREST)
        return np.broadcast_to(part, (batch,)).copy()

    def _planned(
        self, asked: Asked, solver: Solver, random: np.random.Generator
    ) -> tuple[Solution, Point]:
        """Solve on a grid, that stops over at the point."""
        how, times = asked.how, [float(t) for t in as_grid(asked.grid, None).times(None)]
        if len(times) < 3 and self.mode == "biased":
            raise UsageError(
                f"mode='biased' draws one of the points that {type(solver).__name__} steps from, "
                "and a grid of one step has none but the start; give more steps, or an adaptive "
                "solver."
            )
        way = 1.0 if times[-1] > times[0] else -1.0
        if self.mode == "biased":
            i = int(random.integers(len(times) - 1))
            t, stops = times[i], times
        else:
            t = times[0] + float(random.random() * (1 - NEAREST)) * (times[-1] - times[0])
            i = int(np.searchsorted(way * np.array(times), way * t, side="right")) - 1
            stops = times if t in times else [*times[: i + 1], t, *times[i + 1 :]]
        h, end, n = times[i + 1] - times[i], times[-1], len(asked.x)
        kept = times if how.get("trajectory") else [float(v) for v in how.get("save", ())]
        told = {k: v for k, v in how.items() if k not in ("trajectory", "save")}
        save = sorted({t, end, *kept}, key=lambda v: way * v)
        sol = replace(asked, how=told).solved(solver=solver, grid=stops, save=save)
        assert sol.trajectory is not None
        states = dict(zip(save, sol.trajectory, strict=True))
        size = min(abs(h), abs(end - t)) * np.sign(h)
        point = Point(states[t].detach(), np.full(n, t), np.full(n, size), end)
        shown = torch.stack([states[v] for v in kept]) if kept else None
        at = torch.tensor(kept, dtype=torch.float64) if kept else None
        return replace(sol, trajectory=shown, times=at), point

    def costs(
        self, field: AnyField, at: Point, solver: AdaptiveRK | AdaptiveSDE, **cond: Any
    ) -> Tensor:
        """Return what a step from each point costs, (batch,), with a graph.

        Args:
            field: what is solved.
            at: the points.
            solver: makes the step; with norms="batch" all samples have the error of the batch.
            cond: the condition, and a guide.
        """
        records: list[StepRecord] = []
        to = at.t + at.h if self.size == "grid" else np.full_like(at.t, at.end)
        ends = [grids.times((float(s), float(t))) for s, t in zip(at.t, to, strict=True)]
        step = replace(solver, first=WHOLE if self.size == "grid" else None, max_steps=1)
        told = _without_first(field, at) if self.detach_first else field
        solve(told, at.x, solver=step, grid=ends, adjoint="direct", on_step=records.append,
              on_failure="return", **cond)  # fmt: skip
        record = records[0]
        error, h = record.error, record.h.to(record.error).abs()
        if solver.shares:
            error = error.square().mean().sqrt().expand_as(h)
        return combined(self.kind, error * h, record.stiffness)


@dataclass(frozen=True)
class Point:
    """Where the extra step of each sample begins.

    Args:
        x: (batch, *state), without a graph.
        t: times, (batch,).
        h: how long the step is, with its sign, (batch,).
        end: the end of the solve.
    """

    x: Tensor
    t: Numbers
    h: Numbers
    end: float


class _Pick(Watcher):
    """Takes a point of each sample from an adaptive solve as it passes, and keeps nothing else.

    Args:
        part: how far along the points are, (batch,); None draws among those that steps begin at.
        random: what draws.
        shares: whether the batch takes the same steps.
        ends: the times of the start and the end.
    """

    needs_graph = False

    def __init__(
        self,
        part: Numbers | None,
        random: np.random.Generator,
        shares: bool,
        ends: tuple[float, float],
    ) -> None:
        self.needs_inside = part is not None
        self._random, self._shares = random, shares
        start, end = ends
        self._way = 1.0 if end >= start else -1.0
        self._last = self._way * end
        self._clock = None if part is None else self._way * (start + part * (end - start))

    @property
    def time(self) -> float | None:
        """The time of all points, if they are not drawn among the steps."""
        return None if self._clock is None else float(self._clock[0] * self._way)

    def begin(self, rows: Rows, clocks: Numbers, x: Tensor) -> None:
        del rows
        self._x, self._at = x.detach().clone(), np.array(clocks)
        self._size, self._seen = np.zeros_like(self._at), np.zeros_like(self._at)

    @property
    def point(self) -> Point:
        """What was taken."""
        return Point(self._x, self._at * self._way, self._size * self._way, self._last * self._way)

    def see(self, step: Taken) -> Rows | None:
        if self._clock is None:
            self._draw(step)
            return None
        clock = self._clock[step.rows]
        inside = step.taken & (step.reach.start <= clock) & (clock < step.reach.end)
        which = np.flatnonzero(inside)
        if not len(which):
            return None
        at = torch.from_numpy(which).to(step.x.device)
        here = bool((step.reach.start[which] == clock[which]).all())
        x = step.x[at] if here else step.inside(which, clock[which])
        self._keep(step, which, clock[which], x)
        return None if here else which

    def _draw(self, step: Taken) -> None:
        """Keep the start of the j-th step with a chance of 1/j: in the end all have the same."""
        taken = step.taken
        self._seen[step.rows] += taken
        u = self._random.random(1 if self._shares else len(taken))
        which = np.flatnonzero(taken & (u * self._seen[step.rows] < 1))
        if len(which):
            at = torch.from_numpy(which).to(step.x.device)
            self._keep(step, which, step.reach.start[which], step.x[at])

    def _keep(self, step: Taken, which: Rows, clocks: Numbers, x: Tensor) -> None:
        rows = step.rows[which]
        self._at[rows], self._size[rows] = clocks, step.reach.size[which]
        self._x[torch.from_numpy(rows).to(self._x.device)] = x.detach()
        self._size[rows] = np.minimum(self._size[rows], self._last - clocks)


def _ends(grid: Sequence[float]) -> tuple[float, float]:
    times = as_grid(grid, None).times(None)
    return float(times[0]), float(times[-1])


def _without_first(field: AnyField, at: Point) -> Callable[..., Tensor]:
    """Return the field, without a gradient where the step begins."""
    if isinstance(field, Field):
        raise UsageError("detach_first is for a function f(x, t); give the function itself.")
    start = torch.from_numpy(at.t)

    def told(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        f = field(x, t, **cond)
        here = t == start.to(t).view(-1, *[1] * (t.ndim - 1))
        return torch.where(here, f.detach(), f)

    return told

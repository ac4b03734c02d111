"""What is wanted of an adaptive solve beside its end: save times, dense output, events, records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.solvers.events import Event
from pathline.solvers.pace import Numbers
from pathline.solvers.plan import Plan
from pathline.solvers.watching import OnStep, Watcher

Save = Tensor | Sequence[float] | Sequence[Sequence[float]] | Sequence[Tensor]


@dataclass(frozen=True)
class Wanted:
    """What is wanted beside the end of a solve.

    Args:
        save: times at which states are kept: (m,) for all samples, (batch, m), or a sequence for
            each sample, of any lengths.
        dense: whether the solution can be asked for at any time afterwards.
        events: what may happen to a sample.
        on_step: called with the record of every attempt; or a watcher.
    """

    save: Save | None = None
    dense: bool = False
    events: tuple[Event, ...] = ()
    on_step: OnStep | Watcher | None = None

    @property
    def is_any(self) -> bool:
        """Whether anything is."""
        return self.save is not None or self.dense or bool(self.events) or self.on_step is not None

    @property
    def needs_graph(self) -> bool:
        """Whether what is found shall be differentiated."""
        step = self.on_step
        unseen = step is None or (isinstance(step, Watcher) and not step.needs_graph)
        return self.save is not None or self.dense or bool(self.events) or not unseen

    @property
    def is_save_alone(self) -> bool:
        """Whether states at some times are all that is wanted."""
        return self.save is not None and not (self.dense or self.events or self.on_step)


@dataclass
class Found:
    """What a solve has found of what was wanted; filled in as it runs."""

    saving: Any = None
    times: Numbers | None = None
    dense: Any = None
    happened: Any = ()
    ends: Tensor | None = None


def points_of(plan: Plan, save: Save) -> tuple[int, ...]:
    """Return the numbers of a plan's states at save times, which are points of its grid.

    Raises:
        UsageError: a time that is none: names it.
    """
    if plan.batch is not None:
        raise UsageError("save takes one grid for all samples; with a grid each use trajectory.")
    wanted = torch.as_tensor(np.asarray(save, dtype=np.float64)).flatten()
    points = plan.instants[list(plan.landings)]
    off = (wanted[:, None] - points).abs()
    nearest = off.argmin(1)
    slack = 1e-9 * float((points[-1] - points[0]).abs())
    missed = (~(off.amin(1) <= slack)).nonzero()
    if len(missed):
        t = float(wanted[missed[0]])
        raise UsageError(
            f"save asks for t = {t:.6g}, which is no point of the grid; the nearest is "
            f"{float(points[nearest[missed[0]]]):.6g}. Put it on the grid, or take an adaptive "
            "solver."
        )
    for a, b in pairwise(nearest.tolist()):
        if a >= b:
            raise UsageError(_disordered(float(points[a]), float(points[b])))
    return tuple(plan.landings[i] for i in nearest.tolist())


def clocks_of(save: Save, batch: int, way: Numbers, start: Numbers, end: Numbers) -> Numbers:
    """Return save times on the clock, (batch, m), infinite where a sample has fewer than others.

    Raises:
        UsageError: times that are not numbers, do not follow each other or lie outside of the
            solve: names the sample and the time.
    """
    rows = _rows(save, batch)
    made = np.full((batch, max(map(len, rows), default=0)), np.inf)
    for i, row in enumerate(rows):
        clocks = row * way[i]
        _check(i, row, clocks, (start[i], end[i]), way[i])
        made[i, : len(row)] = clocks
    return made


def _rows(save: Save, batch: int) -> list[Numbers]:
    if isinstance(save, Tensor):
        table = save.detach().double().cpu().numpy()
        if table.ndim == 1:
            return [table] * batch
        if table.shape[0] != batch or table.ndim != 2:
            raise UsageError(
                f"save takes times (m,) or ({batch}, m), and was given {tuple(table.shape)}."
            )
        return [row[~np.isnan(row)] for row in table]
    each = list(save)
    if all(isinstance(t, int | float) or (isinstance(t, Tensor) and not t.ndim) for t in each):
        return [np.array([float(t) for t in each])] * batch  # type: ignore[arg-type]
    if len(each) != batch:
        raise UsageError(f"save has times for {len(each)} samples, and there are {batch}.")
    return [torch.as_tensor(row, dtype=torch.float64).detach().cpu().numpy() for row in each]


def _disordered(a: float, b: float) -> str:
    """Return what to say of a save time and the one after it."""
    what = "comes twice" if a == b else f"is followed by {b:.6g}"
    return f"the save time {a:.6g} {what}; give times in the order of the solve, each once."


def _check(
    sample: int, row: Numbers, clocks: Numbers, ends: tuple[float, float], way: float
) -> None:
    if np.isnan(row).any():
        raise UsageError(
            f"sample {sample}: time {np.flatnonzero(np.isnan(row))[0]} is not a number."
        )
    wrong = np.flatnonzero(np.diff(clocks) <= 0)
    if len(wrong):
        a, b = row[wrong[0]], row[wrong[0] + 1]
        raise UsageError(f"sample {sample}: {_disordered(float(a), float(b))}")
    out = (clocks < ends[0]) | (clocks > ends[1])
    if out.any():
        raise UsageError(
            f"sample {sample} is solved from t = {ends[0] * way:.6g} to {ends[1] * way:.6g}, and "
            f"is to be saved at t = {row[out][0]:.6g}."
        )

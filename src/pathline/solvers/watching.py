"""What may look at the steps of an adaptive solve while it runs: records, save times, dense output.

None of it changes a step. What a watcher keeps has a graph where the steps have one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathline.solvers.pace import Flags, Numbers, Reach
from pathline.solvers.trial import Rows, Stepper, Trial


class StepRecord(NamedTuple):
    """One attempt of the samples that are under way; `error` and `stiffness` can be differentiated.

    Args:
        rows: which samples of the batch, (n,) int64.
        t: where the step begins, (n,) float64, no graph.
        h: how far it goes, with its sign; 0 for a sample that waits; no graph.
        accepted: whether the step was taken, (n,); False for a sample that waits.
        error: the estimate in units of the tolerance, (n,).
        stiffness: an estimate of the largest |eigenvalue| of ∂f/∂x at its end, (n,); None where
            the method has none (it takes two stages at the end of a step).
        x: the states at its start, (n, *state).
        end: the states that it leads to.
    """

    rows: Tensor
    t: Tensor
    h: Tensor
    accepted: Tensor
    error: Tensor
    stiffness: Tensor | None
    x: Tensor
    end: Tensor


OnStep = Callable[[StepRecord], None]


@dataclass
class Taken:
    """What came of an attempt.

    Args:
        rows: which samples, (n,).
        reach: how far they went.
        taken: whose step was taken.
        x: the states at its start, (n, *state).
        trial: what was tried.
        stepper: what made it.
        way: the sign of dt/d(clock), (n,).
    """

    rows: Rows
    reach: Reach
    taken: Flags
    x: Tensor
    trial: Trial
    stepper: Stepper
    way: Numbers

    def inside(self, which: Rows, clocks: Numbers) -> Tensor:
        """Return the states of some samples (numbers within `rows`) at clocks inside the step."""
        size = self.reach.size[which]
        part = (clocks - self.reach.start[which]) / np.where(size == 0, 1.0, size)
        theta = torch.from_numpy(part).to(self.x.device)
        at = torch.from_numpy(which).to(self.x.device)
        trial = self.trial
        return self.stepper.between(theta, self.x, trial.x, trial, at, self.reach)


class Watcher(ABC):
    """Looks at every attempt."""

    needs_inside = False
    """Whether it asks for states inside steps."""
    needs_graph = True
    """Whether what it sees shall be differentiated: then steps are, by the direct adjoint."""

    def begin(self, rows: Rows, clocks: Numbers, x: Tensor) -> None:
        """See the states at the start."""
        del rows, clocks, x

    @abstractmethod
    def see(self, step: Taken) -> Rows | None:
        """See an attempt; return whose extra stages it had evaluated (numbers within the rows)."""


class Telling(Watcher):
    """Calls somebody with the record of every attempt."""

    def __init__(self, call: OnStep) -> None:
        self._call = call

    def see(self, step: Taken) -> Rows | None:
        x, trial, graph = step.x, step.trial, step.stepper.graph

        def told(values: NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(values.copy()).to(x.device)

        self._call(
            StepRecord(
                told(step.rows),
                told(step.reach.start * step.way),
                told(step.reach.size * step.way),
                told(step.taken),
                trial.error,
                trial.stiffness,
                x if graph else x.clone(),
                trial.x if graph else trial.x.clone(),
            )
        )
        return None


class Saving(Watcher):
    """Keeps the states at given times, each sample's own, without changing a step.

    Args:
        clocks: the times on a clock that runs forwards, (batch, m), each row rising, and infinite
            where a sample has fewer than the others.
    """

    needs_inside = True

    def __init__(self, clocks: Numbers) -> None:
        self._clocks = clocks
        self._next = np.zeros(len(clocks), dtype=np.int64)
        self._is_shared = bool((clocks == clocks[:1]).all())
        self._found: list[tuple[Rows, Rows, Tensor]] = []
        self._like: Tensor | None = None

    def begin(self, rows: Rows, clocks: Numbers, x: Tensor) -> None:
        self._like = x
        passed = (self._clocks[rows] <= clocks[:, None]).sum(1)
        self._keep(rows, passed, lambda which, _: x[torch.from_numpy(which).to(x.device)])

    def see(self, step: Taken) -> Rows | None:
        rows, end = step.rows, np.where(step.taken, step.reach.end, -np.inf)
        if self._is_shared:
            passed = np.searchsorted(self._clocks[0], end, side="right")
        else:
            passed = (self._clocks[rows] <= end[:, None]).sum(1)
        return self._keep(rows, passed, step.inside)

    def _keep(
        self, rows: Rows, passed: Rows, inside: Callable[[Rows, Numbers], Tensor]
    ) -> Rows | None:
        count = np.maximum(passed - self._next[rows], 0)
        if not count.any():
            return None
        which = np.repeat(np.arange(len(rows)), count)
        first = np.cumsum(count) - count
        column = np.arange(len(which)) - np.repeat(first - self._next[rows], count)
        x = inside(which, self._clocks[rows[which], column])
        self._found.append((rows[which], column, x))
        self._next[rows] += count
        return np.flatnonzero(count)

    def stack(self) -> Tensor:
        """Return what was kept, (m, batch, *state); NaN where a sample never came, or had none."""
        assert self._like is not None
        shape = (self._clocks.shape[1], len(self._clocks), *self._like.shape[1:])
        made = self._like.new_full(shape, float("nan"))
        if not self._found:
            return made
        rows, columns, states = zip(*self._found, strict=True)
        at = (np.concatenate(columns), np.concatenate(rows))
        index = tuple(torch.from_numpy(a).to(made.device) for a in at)
        return made.index_put(index, torch.cat(states))

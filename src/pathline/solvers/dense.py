"""Dense output: the solution of an adaptive solve as a function of time, from its own steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.solvers.pace import Numbers, Reach
from pathline.solvers.trial import Rows, Stepper, Trial
from pathline.solvers.watching import Taken, Watcher


class Dense(Watcher):
    """The solution between its start and its end, at any time of each sample's own.

    Each step is kept as the slopes of its stages, and interpolated as its method says (order 4 for
    dopri5 and tsit5, 7 for dop853, cubic for bosh3); gradients pass through. Where an event has
    moved a state, the earlier piece ends and another begins.

    Args:
        batch: how many samples.
        way: the sign of dt/d(clock) of each sample.
    """

    needs_inside = True

    def __init__(self, batch: int, way: Numbers) -> None:
        self._batch, self._way = batch, way
        self._stepper: Stepper | None = None
        self._parts: list[tuple[Rows, Numbers, Numbers, Numbers]] = []
        self._states: list[tuple[Tensor, list[Tensor]]] = []
        self._begun: tuple[Numbers, Tensor] | None = None
        self._table: tuple[Any, ...] | None = None

    def begin(self, rows: Rows, clocks: Numbers, x: Tensor) -> None:
        if self._begun is None:
            self._begun = clocks.copy(), x

    def see(self, step: Taken) -> Rows | None:
        which = np.flatnonzero(step.taken)
        if not len(which):
            return None
        reach, self._stepper, self._table = step.reach, step.stepper, None
        at = torch.from_numpy(which).to(step.x.device)
        stages = step.stepper.complete(step.x, step.trial, reach)
        ends = (reach.start[which], reach.end[which], reach.size[which])
        self._parts.append((step.rows[which], *ends))
        self._states.append((step.x[at], [*[k[at] for k in stages], step.trial.x[at]]))
        return which

    def times(self, sample: int) -> Tensor:
        """Return where the steps of a sample began and ended, (steps + 1,) float64."""
        rows, start, end, _, _ = self._joined()
        mine = np.flatnonzero(rows == sample)
        if not len(mine):
            assert self._begun is not None
            return torch.tensor([self._begun[0][sample] * self._way[sample]], dtype=torch.float64)
        return torch.from_numpy(np.append(start[mine[:1]], end[mine]) * self._way[sample])

    def at(self, t: float | Tensor) -> Tensor:
        """Return the states at these times.

        Args:
            t: () or (batch,), or (n, batch) or (n, 1) for several of each sample.

        Returns:
            (batch, *state), or (n, batch, *state).

        Raises:
            UsageError: a time that a sample has not passed; names both.
        """
        told = torch.as_tensor(t, dtype=torch.float64).detach().cpu()
        if told.ndim > 2 or (told.ndim and told.shape[-1] not in (1, self._batch)):
            raise UsageError(
                f"at takes times (), ({self._batch},), (n, 1) or (n, {self._batch}), not "
                f"{tuple(told.shape)}."
            )
        each = told.expand(*told.shape[:-1], self._batch) if told.ndim else told.expand(self._batch)
        clocks = (each.numpy() * self._way).reshape(-1)
        samples = np.tile(np.arange(self._batch), clocks.size // self._batch)
        states = self._looked_up(samples, clocks)
        return states.reshape(*each.shape, *states.shape[1:])

    def _joined(self) -> tuple[Any, ...]:
        """Return all steps in one table: rows, start, end, size, (states, stages and ends)."""
        if self._table is None:
            columns = [np.concatenate(c) for c in zip(*self._parts, strict=True)] or [
                np.zeros(0) for _ in range(4)
            ]
            order = np.argsort(columns[0], kind="stable")
            at = torch.from_numpy(order)
            states: tuple[Tensor, list[Tensor]] | None = None
            if self._states:
                x = torch.cat([s[0] for s in self._states])
                at = at.to(x.device)
                lists = zip(*[s[1] for s in self._states], strict=True)
                states = x[at], [torch.cat(each)[at] for each in lists]
                self._parts = [tuple(c[order] for c in columns)]  # type: ignore[list-item]
                self._states = [states]
            self._table = (*[c[order] for c in columns], states)
        return self._table

    def _looked_up(self, samples: Rows, clocks: Numbers) -> Tensor:
        assert self._begun is not None
        rows, start, end, size, states = self._joined()
        place = np.zeros(len(samples), dtype=np.int64)
        alone = np.zeros(len(samples), dtype=bool)
        for sample in np.unique(samples):
            asked = samples == sample
            lo, hi = np.searchsorted(rows, [sample, sample + 1])
            first = start[lo] if hi > lo else self._begun[0][sample]
            last = end[hi - 1] if hi > lo else first
            tiny = 1e-12 * max(abs(first), abs(last), 1e-300)
            out = (clocks[asked] < first - tiny) | (clocks[asked] > last + tiny)
            if out.any() or np.isnan(clocks[asked]).any():
                raise UsageError(
                    f"sample {sample} was solved from t = {first * self._way[sample]:.6g} to "
                    f"{last * self._way[sample]:.6g}, and is asked for at t = "
                    f"{clocks[asked][out | np.isnan(clocks[asked])][0] * self._way[sample]:.6g}."
                )
            alone[asked] = hi == lo
            found = lo + np.searchsorted(end[lo:hi], clocks[asked], side="left")
            place[asked] = np.minimum(found, max(hi - 1, 0))
        x0 = self._begun[1]
        if states is None:
            return x0[torch.from_numpy(samples).to(x0.device)]
        assert self._stepper is not None
        x, (*stages, x1) = states
        step = np.where(size == 0, 1.0, size)
        theta = torch.from_numpy((clocks - start[place]) / step[place]).to(x.device)
        at = torch.from_numpy(place).to(x.device)
        reach = Reach(start, size, end, np.zeros(len(start), dtype=bool))
        trial = Trial(x1, x1, None, list(stages))
        made = self._stepper.between(theta, x, x1, trial, at, reach)
        if not alone.any():
            return made
        bare = torch.from_numpy(alone).to(x.device).view(-1, *[1] * (x.ndim - 1))
        return torch.where(bare, x0[torch.from_numpy(samples).to(x0.device)], made)

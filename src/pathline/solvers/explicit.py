"""Explicit Runge-Kutta steps of many samples at once.

A stage's slope is added to every later stage's argument as soon as it is known, all of them in one
operation: acc_j += a_ji h k_i. So a step costs two kernels a stage beside the field, whatever the
number of stages. Without a graph the arguments live in buffers that are made once; with one, the
same operations make new tensors, and the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pathline.solvers.fused import Attempt, attempt_of
from pathline.solvers.pace import Numbers, Reach
from pathline.solvers.pairs import Pair
from pathline.solvers.slope import Slope, Times
from pathline.solvers.trial import Stepper, Trial, lifted, opening, rms

SMALL = 64
"""States smaller than this are multiplied faster by a step size for each element."""


class Explicit(Stepper):
    """An embedded pair, bound to one solve."""

    def __init__(self, pair: Pair, slope: Slope, rtol: float, atol: float) -> None:
        super().__init__(slope, rtol, atol)
        self.pair = pair
        self.evaluations = len(pair.c) - 1
        self.extra = len(pair.extra_c)
        self._nodes = np.array(pair.c[1:])[:, None]
        self._last = min(i for i, c in enumerate(pair.c[1:]) if c == 1)  # then all are at the end
        self._room: _Room | None = None
        self._columns: tuple[torch.dtype, torch.device, int, list[Tensor]] | None = None
        self._dense = torch.tensor(pair.dense, dtype=torch.float64)

    def attempt(self, x: Tensor, first: Tensor, reach: Reach) -> Trial:
        clocks = self._nodes * reach.size + reach.start
        clocks[self._last :] = reach.end
        times = self.slope.times(clocks, x)
        h = lifted(reach.size * self.slope.way, x)
        if 1 < x[0].numel() < SMALL:
            h = h.expand(x.shape).contiguous()
        run = None if self.wants_stiffness else self.slope.fused(self.pair, self._attempt_of)
        if run is not None:
            told = (torch.stack(times), self.rtol, self.atol, dict(self.slope.cond))
            end, error, f, stages = run(x, first, h, *told)
            return Trial(end, error, f if self.pair.ends_with_last else None, stages)
        trial, errors, before = self._stages(x, first, h, times)
        trial.error = self._measured(x, trial.x, errors)
        if self.wants_stiffness and self.pair.stiffness is not None:
            trial.stiffness = self._stiffness(before, trial, h)
        return trial

    def _attempt_of(self, field: Callable[..., Tensor]) -> Attempt:
        return attempt_of(self.pair, field)

    def _stages(
        self, x: Tensor, first: Tensor, h: Tensor, times: Times
    ) -> tuple[Trial, list[Tensor], Tensor]:
        """Return what a step makes, its errors, and the argument of the stage before the last."""
        if self.graph:
            return self._with_graph(x, first, h, times)
        room, columns = self._room, self._weights(x)
        if room is None or room.like != (x.shape, x.dtype, x.device):
            room = self._room = _Room.of(self.pair, x)
        if x is room.now.result:
            room.turn()
        slopes, sums, n = room.slopes, room.now, room.states
        torch.mul(first, h, out=slopes[0])
        torch.addcmul(x, columns[0][:n], slopes[0], out=sums.states)
        torch.mul(slopes[0], columns[0][n:], out=sums.errors)
        f = first
        for j, t in enumerate(times, 1):
            f = self.slope(sums.rows[j - 1], t)
            torch.mul(f, h, out=slopes[j])
            sums.tails[j].addcmul_(columns[j], slopes[j])
        last = f.detach() if self.pair.ends_with_last else None
        trial = Trial(sums.result, sums.result, last, room.whole)
        return trial, sums.rows[n:], sums.rows[len(times) - 2]

    def _with_graph(
        self, x: Tensor, first: Tensor, h: Tensor, times: Times
    ) -> tuple[Trial, list[Tensor], Tensor]:
        columns, n = self._weights(x), len(self.pair.c) - int(self.pair.ends_with_last)
        slopes = [first * h]
        sums = torch.addcmul(x, columns[0][:n], slopes[0])
        sums = torch.cat((sums, slopes[0] * columns[0][n:]))
        f, argument, before = first, x, x
        for j, t in enumerate(times, 1):
            before, argument = argument, sums[0]
            f = self.slope(argument, t)
            slopes.append(f * h)
            sums = torch.addcmul(sums[1:], columns[j], slopes[-1])
        if self.pair.ends_with_last:
            return Trial(argument, argument, f, slopes), list(sums), before
        return Trial(sums[0], sums[0], None, slopes), list(sums[1:]), before

    def _weights(self, x: Tensor) -> list[Tensor]:
        """Return the weights of each stage in the sums after it, as columns."""
        made = self._columns
        if made is None or made[:3] != (x.dtype, x.device, x.ndim):
            columns = [
                torch.tensor(c, dtype=torch.float64).to(x).view(-1, *[1] * x.ndim)
                for c in _columns(self.pair)
            ]
            made = self._columns = (x.dtype, x.device, x.ndim, columns)
        return made[3]

    def _measured(self, x: Tensor, x1: Tensor, errors: list[Tensor]) -> Tensor:
        unit = self.unit(x, x1)
        fine = rms(errors[0] / unit)
        if len(errors) == 1:
            return fine
        both = (fine.square() + 0.01 * rms(errors[1] / unit).square()).sqrt()
        known = both != 0
        return torch.where(known, fine.square() / torch.where(known, both, 1.0), fine)

    def _stiffness(self, before: Tensor, trial: Trial, h: Tensor) -> Tensor:
        """Return |k_s − k_(s−1)| / |x_s − x_(s−1)|, of the two stages at the end of the step."""
        i, j = self.pair.stiffness or (0, 0)
        bent = rms(trial.stages[j] - trial.stages[i])
        apart = rms((trial.x - before) * h)
        known = apart > 0
        return torch.where(known, bent / torch.where(known, apart, 1.0), 0.0)

    def opening(self, x: Tensor, first: Tensor, reach: Reach) -> Numbers:
        return opening(self, x, first, reach, self.pair.order)

    def between(
        self, theta: Tensor, x: Tensor, x1: Tensor, trial: Trial, rows: Tensor, reach: Reach
    ) -> Tensor:
        del x1
        stages = self.complete(x, trial, reach)
        return interpolated(self.weights(theta), x[rows], [k[rows] for k in stages])

    def complete(self, x: Tensor, trial: Trial, reach: Reach) -> list[Tensor]:
        """Return h k of all the stages that the interpolant needs; evaluates those left out."""
        stages = list(trial.stages)
        if self.extra and len(stages) == len(self.pair.c):
            clocks = np.stack([reach.start + c * reach.size for c in self.pair.extra_c])
            h = lifted(reach.size * self.slope.way, x)
            each = zip(self.pair.extra_a, self.slope.times(clocks, x), strict=True)
            for row, t in each:
                weights = [x.new_tensor(a) for a in row]
                stages.append(self.slope(interpolated(weights, x, stages), t) * h)
            trial.stages = stages
        return stages

    def weights(self, theta: Tensor) -> list[Tensor]:
        """Return b_i(θ) of each stage, (m,) float64."""
        table = self._dense.to(theta.device)
        total = table[:, -1:].expand(-1, len(theta))
        for p in range(table.shape[1] - 2, -1, -1):
            total = total * theta + table[:, p : p + 1]
        return list(total * theta)


def interpolated(weights: list[Tensor], x: Tensor, stages: list[Tensor]) -> Tensor:
    """Return x + Σ b_i(θ) h k_i, with weights () or (m,)."""
    for w, k in zip(weights, stages, strict=True):
        w = w.to(x).view(-1, *[1] * (x.ndim - 1)) if w.ndim else w
        x = torch.addcmul(x, w, k)
    return x


def _columns(pair: Pair) -> list[list[float]]:
    """Return a column for each stage: its weights in later arguments, the result, the errors."""
    rows = [list(row) for row in pair.a[1:]]
    rows += [] if pair.ends_with_last else [list(pair.b)]
    rows += [list(pair.error)] + ([list(pair.coarse)] if pair.coarse else [])
    full = [[*row, *[0.0] * (len(pair.c) - len(row))] for row in rows]
    return [[row[i] for row in full[i:]] for i in range(len(pair.c))]


@dataclass
class _Sums:
    """The arguments of the stages, the result and its errors, in one buffer.

    Args:
        whole: (rows, n, *state).
        states: the rows that are states.
        errors: the others.
        rows: each row.
        tails: the rows from each one on.
        result: the state that the step leads to.
    """

    whole: Tensor
    states: Tensor
    errors: Tensor
    rows: list[Tensor]
    tails: list[Tensor]
    result: Tensor


@dataclass
class _Room:
    """Buffers of a solve: slopes, and sums twice, for the state that is gone on from is in one."""

    like: tuple[torch.Size, torch.dtype, torch.device]
    whole: Tensor
    slopes: list[Tensor]
    now: _Sums
    other: _Sums
    states: int

    @classmethod
    def of(cls, pair: Pair, x: Tensor) -> _Room:
        n = len(pair.c) - int(pair.ends_with_last)  # arguments, and the result if it is another
        rows = n + 1 + bool(pair.coarse)

        def sums() -> _Sums:
            whole = torch.empty((rows, *x.shape), dtype=x.dtype, device=x.device)
            tails = [whole[i:] for i in range(rows)]
            each = list(whole.unbind())
            return _Sums(whole, whole[:n], whole[n:], each, tails, each[n - 1])

        whole = torch.empty((len(pair.c), *x.shape), dtype=x.dtype, device=x.device)
        like = (x.shape, x.dtype, x.device)
        return cls(like, whole, list(whole.unbind()), sums(), sums(), n)

    def turn(self) -> None:
        """Leave the sums alone whose result is the state that is gone on from."""
        self.now, self.other = self.other, self.now

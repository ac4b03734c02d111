"""What a solve returns: the state, each sample's status, what it cost, and how to make it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.core.receipt import Receipt


class Status(IntEnum):
    """How one sample's solve ended."""

    OK = 0
    NON_FINITE = 1
    MAX_STEPS = 2
    STEP_TOO_SMALL = 3

    @property
    def advice(self) -> str:
        """What to do about it, in one sentence."""
        return _ADVICE[self]


_ADVICE = {
    Status.OK: "nothing to mend.",
    Status.NON_FINITE: "look at the network's output there, its dtype, and the guidance weight.",
    Status.MAX_STEPS: "allow more steps, loosen the tolerance, or use a solver for stiff fields.",
    Status.STEP_TOO_SMALL: "the field may be stiff or discontinuous there; loosen the tolerance.",
}


class Walked(NamedTuple):
    """Steps that a sample of a stepped solve took, and tried in vain."""

    steps: int
    rejected: int


@dataclass(frozen=True)
class Stats:
    """What a solve cost.

    Args:
        nfe: evaluations of the field, for each sample; where samples differ, the most of any.
        network_calls: evaluations of the network, for each sample (guidance may need two an NFE).
        steps: steps taken.
        rejected: steps tried and thrown away (adaptive solvers).
        per_sample: evaluations of each sample, where they may differ; else None.
        walks: for a stepped solver, how many steps each sample took and threw away.
        vjps: vector-Jacobian products through the network, for each sample (gradient guides).
    """

    nfe: int
    network_calls: int
    steps: int
    rejected: int = 0
    per_sample: tuple[int, ...] | None = field(default=None, repr=False)
    walks: tuple[Walked, ...] | None = field(default=None, repr=False)
    vjps: int = 0


@dataclass(frozen=True)
class Solution:
    """The result of a solve.

    Args:
        x: the final state, (batch, *state).
        t: the time it belongs to; (batch,) where each sample has its own.
        status: a `Status` for each sample, (batch,) int8.
        stats: what it cost.
        receipt: what is needed to make it again, if the recipe is known.
        times: the times of `trajectory`, (n,) float64, or (n, batch).
        trajectory: the states at every grid point, (n, batch, *state), if it was asked for.
        skipped: what a speed policy left out and why, if one decided while the solve ran.
        backward: what the way back of a gradient has cost and found; filled in when it is taken
            (`solvers.adjoints.Record`).
        dense: the solution as a function of time, if it was asked for; `at` looks it up.
        events: what happened to samples on the way, in order (`solvers.events.Happened`).
    """

    x: Tensor
    t: float | Tensor
    status: Tensor
    stats: Stats
    receipt: Receipt | None = None
    times: Tensor | None = None
    trajectory: Tensor | None = field(default=None, repr=False)
    skipped: Any = field(default=None, repr=False)
    backward: Any = field(default=None, repr=False)
    dense: Any = field(default=None, repr=False)
    events: tuple[Any, ...] = ()

    def at(self, t: float | Tensor) -> Tensor:
        """Return the states at times between start and end, of a solve with dense=True.

        Args:
            t: () or (batch,); (n, 1) or (n, batch) for several of each sample.

        Returns:
            (batch, *state), or (n, batch, *state).

        Raises:
            UsageError: nothing was kept, or a time that a sample has not passed.
        """
        if self.dense is None:
            raise UsageError("the solution inside was not kept: solve(..., dense=True) does.")
        return self.dense.at(t)

    def saved(self, sample: int) -> tuple[Tensor, Tensor]:
        """Return the times and states of the trajectory that belong to a sample: (n,), (n, *state).

        Raises:
            UsageError: nothing was kept.
        """
        if self.trajectory is None or self.times is None:
            raise UsageError("nothing was kept on the way: solve(..., save=times) does.")
        times = self.times if self.times.ndim == 1 else self.times[:, sample]
        known = ~times.isnan()
        return times[known], self.trajectory[:, sample][known.to(self.trajectory.device)]

    @property
    def nfes(self) -> tuple[int, ...]:
        """Evaluations of each sample; their sum is what the batch cost."""
        each = self.stats.per_sample
        return (self.stats.nfe,) * len(self.x) if each is None else each

    @property
    def ok(self) -> bool:
        """Whether every sample ended well (waits for the device)."""
        return not bool(self.status.any())

    @property
    def statuses(self) -> list[Status]:
        """The status of each sample, by name."""
        return [Status(code) for code in self.status.tolist()]


def finite_status(x: Tensor) -> Tensor:
    """Return OK or NON_FINITE for each sample of `x`, (batch,) int8."""
    zero = (x * 0).flatten(1).sum(1)  # 0·NaN = 0·∞ = NaN; isfinite takes ten times as long
    return zero.isnan().to(torch.int8)  # True is 1, NON_FINITE


def status_names(status: Tensor) -> tuple[str, ...]:
    """Return how each sample ended as receipts write it ("ok", "non_finite")."""
    return tuple(map(_NAMES.__getitem__, status.tolist()))


_NAMES = {status.value: status.name.lower() for status in Status}


def name_samples(failed: Sequence[int], seeds: Sequence[int] | None) -> str:
    """Write which samples are meant: "sample 3 (seed 17)" or "samples 0, 4 and 5"."""
    if len(failed) == 1:
        seed = f" (seed {seeds[failed[0]]})" if seeds is not None else ""
        return f"sample {failed[0]}{seed}"
    shown = [str(i) for i in failed[:5]]
    if len(failed) > 5:
        return f"samples {', '.join(shown)} and {len(failed) - 5} others"
    return f"samples {', '.join(shown[:-1])} and {shown[-1]}"

"""The pace of each sample: where it is, how far its next step goes, and what its error makes of it.

With e the error in units of the tolerance and δ = 1/e, a step is taken if e ≤ 1, and the next is

    h ← h · clip(θ δ_n^((P+I+D)/k) δ_{n−1}^(−(P+2D)/k) δ_{n−2}^(D/k))

with k the power of h with which the error falls. Only accepted steps enter the history. All of it
is arithmetic on a few numbers a sample, so it is done in float64 on the host: a step waits for the
device once, for the errors. Everything is elementwise, so no sample sees its neighbours.

Source: Söderlind 2003, "Digital filters in adaptive time-stepping"; the bounds are those of Hairer,
Nørsett & Wanner, Solving Ordinary Differential Equations I, Sec. II.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pathline.core.errors import UsageError

Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]

LEAST_ERROR = 1e-10
"""An error below this counts as this: nothing divides by zero."""

SHRINK = 0.1
"""What a step is multiplied with whose result is not finite."""

SMALLEST = 1e-14
"""The smallest step, relative to where the clock stands."""

SLACK = 1 + 1e-12
"""A step that comes as near to its goal as this lands on it."""


class Control(NamedTuple):
    """How an error becomes a step size: proportional, integral and derivative.

    (0, 1, 0) suits most fields, (0.4, 0.3, 0) difficult ones: it rejects fewer steps where the
    size that suits changes quickly. (0.1, 0.3, 0) is for noise.

    Args:
        safety: θ.
        integral: I.
        proportional: P.
        least, most: the bounds of a change after a step that was rejected, and one that was taken.
        derivative: D.
        never_shorter: whether a step that was taken is never followed by a shorter one.
    """

    safety: float = 0.9
    integral: float = 1.0
    proportional: float = 0.0
    least: float = 0.2
    most: float = 10.0
    derivative: float = 0.0
    never_shorter: bool = True

    def check(self) -> None:
        """Refuse what would never let a step grow or shrink.

        Raises:
            UsageError: it would.
        """
        if not (0 < self.safety <= 1 and 0 <= self.least < 1 < self.most):
            raise UsageError(
                "a control needs 0 < safety ≤ 1 and least < 1 < most; they are "
                f"{self.safety:g}, {self.least:g} and {self.most:g}."
            )
        if not self.integral + self.proportional + self.derivative > 0:
            raise UsageError("a control whose gains add up to nothing never changes the step.")

    @property
    def remembers(self) -> bool:
        """Whether errors before the last one matter."""
        return bool(self.proportional or self.derivative)

    def factor(self, log_error: Numbers, before: Numbers, order: int, taken: Flags) -> Numbers:
        """Return what the step is multiplied with, (n,).

        Args:
            log_error: log e, of the step just tried; infinite where it is not finite.
            before: of the last steps taken but that one, newest first, (2, n).
            order: k.
            taken: whether the step was taken.
        """
        p, i, d = (g / order for g in (self.proportional, self.integral, self.derivative))
        change = log_error * -(p + i + d)
        if p or d:
            change += (p + 2 * d) * before[0]
        if d:
            change -= d * before[1]
        np.exp(change, out=change)
        change *= self.safety
        after, without = (1.0, 0.9) if self.never_shorter else (self.least, 1.0)
        grown = np.minimum(np.maximum(change, after), self.most)
        return np.where(taken, grown, np.minimum(np.maximum(change, self.least), without))


class Reach(NamedTuple):
    """How far the next step of each sample goes.

    Args:
        start: where it begins, (n,).
        size: its length, not negative; 0 where a sample waits.
        end: where it ends, the goal itself where it lands.
        lands: whether it ends where the sample stops over.
    """

    start: Numbers
    size: Numbers
    end: Numbers
    lands: Flags


class Pace:
    """Where the samples of a solve are, on clocks that run forwards; none sees another.

    Args:
        n: how many.
        control: how an error becomes a step size.
        order: the power of h with which the error falls.
        jumps: where all stop over, because the field jumps there.
    """

    def __init__(self, n: int, control: Control, order: int, jumps: Sequence[float] = ()) -> None:
        self._control, self._order = control, order
        self.jumps = np.array([*sorted(jumps), math.inf])
        self.at = np.zeros(n)
        self.goal = np.zeros(n)
        self.size = np.full(n, math.nan)
        self.before = np.zeros((2, n))
        self.error = np.zeros(n)
        self.tries = np.zeros(n, dtype=np.int64)
        self.taken = np.zeros(n, dtype=np.int64)
        self.floor = np.zeros(n)

    def aim(self, goal: Numbers) -> None:
        """Set where each sample goes next; one that stands there already waits."""
        self.goal = np.array(goal, dtype=np.float64)
        self.floor = SMALLEST * np.maximum(np.abs(self.at), 1e-3)

    @property
    def moving(self) -> Flags:
        """Who has not arrived."""
        return self.at < self.goal

    def reach(self) -> Reach:
        """Return how far the next steps go."""
        stop = self.goal
        if len(self.jumps) > 1:
            ahead = self.jumps[np.searchsorted(self.jumps, self.at, side="right")]
            stop = np.minimum(self.goal, ahead)
        left = stop - self.at
        lands = ~(self.size * SLACK < left)  # one that waits may have no size yet
        size = np.where(lands, left, self.size)
        return Reach(self.at, size, np.where(lands, stop, self.at + size), lands)

    def advance(self, reach: Reach, error: Numbers) -> Flags:
        """Take the steps whose error is small enough; return which.

        A sample whose next step would be too small to matter is stopped where it stands.
        """
        taken, moves = error <= 1.0, reach.size > 0
        lost = ~np.isfinite(error)
        log_error = np.log(np.maximum(error, LEAST_ERROR))
        factor = self._control.factor(log_error, self.before, self._order, taken)
        size = np.where(lost, SHRINK, factor) * reach.size
        cut_short = taken & reach.lands  # by the goal: what the step would have been still holds
        size = np.where(cut_short, np.maximum(size, self.size), size)
        self.size = np.where(moves, size, self.size)
        moved = taken & moves
        if self._control.remembers:
            remembers = moved & ~reach.lands
            self.before[1] = np.where(remembers, self.before[0], self.before[1])
            self.before[0] = np.where(remembers, log_error, self.before[0])
        self.at = np.where(taken, reach.end, self.at)
        self.error = error
        self.tries += moves
        self.taken += moved
        stuck = self.size < self.floor
        if stuck.any():
            self.goal = np.where(stuck & ~taken, self.at, self.goal)
        return moved

    def stop(self, rows: Flags) -> None:
        """Let some samples stop where they stand."""
        self.goal = np.where(rows, self.at, self.goal)

    def of(self, rows: NDArray[np.int64]) -> Pace:
        """Return the pace of some samples, to be put back by `put`."""
        part = Pace(0, self._control, self._order)
        part.jumps = self.jumps
        part._each(lambda name: getattr(self, name)[..., rows].copy())
        return part

    def put(self, rows: NDArray[np.int64], part: Pace) -> None:
        """Take over how some samples stand."""
        for name in _COLUMNS:
            getattr(self, name)[..., rows] = getattr(part, name)

    def _each(self, make: Callable[[str], Any]) -> None:
        for name in _COLUMNS:
            setattr(self, name, make(name))


_COLUMNS = ("at", "goal", "size", "before", "error", "tries", "taken", "floor")

__all__ = ["Control", "Flags", "Numbers", "Pace", "Reach"]

"""What a grid is: a recipe for the times of a solve, with an end that is assigned, not reached."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.core.registry import Registry
from pathline.paths import GaussianPath
from pathline.paths.path import LOWEST_LOG_SNR

Last = Literal["stop", "denoise"]

grids: Registry[Grid] = Registry("grid")
"""Every grid, by name."""


class Grid(ABC):
    """A recipe for the times of a solve."""

    n: int
    """The number of steps, the one to data included."""
    last: Last
    """The policy of the last step."""

    @abstractmethod
    def times(self, path: GaussianPath | None = None) -> tuple[float, ...]:
        """Return the n + 1 times on this path.

        Raises:
            UsageError: the times repeat, turn back or leave the path.
        """

    @abstractmethod
    def reverse(self, path: GaussianPath | None = None) -> Grid:
        """Return the grid that runs the same way back.

        Raises:
            UsageError: the last step lands on data, where the noise is gone and no way leads back.
        """

    @abstractmethod
    def resized(self, n: int) -> Grid:
        """Return the same kind of grid with n steps."""

    def starting(self, start: float, path: GaussianPath | None = None) -> Grid:
        """Return the same kind of grid from another time to the same end.

        Raises:
            UsageError: that would turn it round, or the grid cannot be moved.
        """
        del path
        raise UsageError(
            f"a {type(self).__name__} grid has its own start and cannot begin at t = {start:.6g}; "
            "give one grid a sample, grid=[...], or a kind of grid by its name."
        )


@dataclass(frozen=True)
class Spaced(Grid):
    """n steps that are equal in some coordinate.

    Args:
        n: steps, at least 1.
        start: the first time; the path's `t_max` if None.
        end: where the steps end; the path's `t_min` if None.
        last: the policy of the last step, "stop" or "denoise".
    """

    n: int
    start: float | None = None
    end: float | None = None
    last: Last = "stop"

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "n", operator.index(self.n))  # NumPy's and torch's too
        except TypeError as error:
            raise UsageError(
                f"a grid has a whole number of steps, and was asked for {self.n!r}."
            ) from error
        if self.n < 1:
            raise UsageError(f"a grid needs at least 1 step, and was asked for {self.n}.")
        check_last(self.last)

    @abstractmethod
    def _between(
        self, path: GaussianPath | None, start: float, end: float, n: int
    ) -> Sequence[float]:
        """Return n + 1 times from `start` to `end`; the ends are replaced by the exact ones."""

    def times(self, path: GaussianPath | None = None) -> tuple[float, ...]:
        start, end = self._span(path)
        n = self.n - (self.last == "denoise")
        inner = self._between(path, start, end, n)[1:-1] if n > 1 else ()
        times = (start, *inner, end) if n else (start,)
        times = (*times, 0.0) if self.last == "denoise" else times
        check_times(times, path)
        return times

    def reverse(self, path: GaussianPath | None = None) -> Grid:
        check_reversible(self)
        start, end = self._span(path)
        return replace(self, start=end, end=start)

    def resized(self, n: int) -> Grid:
        return replace(self, n=n)

    def starting(self, start: float, path: GaussianPath | None = None) -> Grid:
        first, end = self._span(path)
        if not (start - end) * (first - end) > 0:
            raise UsageError(
                f"the grid runs from t = {first:.6g} to t = {end:.6g}, and cannot begin at "
                f"t = {start:.6g}: a sample that is there already needs no solve."
            )
        return replace(self, start=start)

    def _span(self, path: GaussianPath | None) -> tuple[float, float]:
        start = self.start if path is None or self.start is not None else path.t_max
        end = self.end if path is None or self.end is not None else path.t_min
        if start is None or end is None:
            raise UsageError("a field without a path needs a grid with its own start and end.")
        return start, end


def check_last(last: str) -> None:
    """Refuse a policy of the last step that there is not."""
    if last not in ("stop", "denoise"):
        raise UsageError(f"last={last!r}: choose 'stop' or 'denoise'.")


def check_positive(name: str, value: float) -> None:
    """Refuse what is not a positive number."""
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UsageError(f"{name} must be a positive number, and is {value!r}.")


def check_reversible(grid: Grid) -> None:
    """Refuse to turn a grid round whose last step lands on data."""
    if grid.last != "stop":
        raise UsageError("a grid that ends in 'denoise' has no reverse; use last='stop'.")


def check_times(times: Sequence[float], path: GaussianPath | None) -> None:
    """Refuse times that are not finite, not strictly monotone, or outside the path."""
    if not all(math.isfinite(t) for t in times):
        raise UsageError(f"the grid has a time that is not finite: {list(times)}.")
    steps = [b - a for a, b in zip(times, times[1:], strict=False)]
    for i, step in enumerate(steps):
        if step * steps[0] <= 0:
            raise UsageError(
                f"the grid must move one way at every step; step {i + 1} goes from "
                f"t = {times[i]:.6g} to t = {times[i + 1]:.6g}."
            )
    if path is not None and not all(0 <= t <= 1 for t in times):
        raise UsageError(f"path time runs from 0 (data) to 1 (noise); the grid has {list(times)}.")


def linspace(ends: tuple[float, float], n: int) -> Tensor:
    """Return n + 1 even numbers between two ends, float64."""
    return torch.linspace(ends[0], ends[1], n + 1, dtype=torch.float64)


def log_snr_at(path: GaussianPath | None, t: float, kind: str) -> float:
    """λ at a grid's end: bounded where α = 0, refused where σ = 0."""
    if path is None:
        raise UsageError(f"a {kind} grid needs a path; use a uniform grid or your own times.")
    value = max(float(path.log_snr(t)), LOWEST_LOG_SNR)
    if not math.isfinite(value):
        raise UsageError(
            f"the log-SNR at t = {t:.6g} is infinite; end at t_min = {path.t_min:.6g}, "
            "with last='denoise' to go on to data."
        )
    return value

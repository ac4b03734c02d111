"""Inverters: methods that find the code of data, and regenerate data from it.

An inverter is a frozen value with two functions, from data up to the noise end and back. What it
works on is a `Way`: a field, a condition, and the times between data and noise. That the way back
leads back exactly is a property of some methods, and is measured for all of them (`encode`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields import Field, Prediction
from pathline.paths import GaussianPath
from pathline.solvers import DDIM, Step, grids, solve

__all__ = [
    "Inverted",
    "Inverter",
    "Levels",
    "Noise",
    "Regenerated",
    "Watch",
    "Way",
    "check_unwatched",
    "observing",
]

Watch = Callable[[int, tuple[Tensor, ...]], tuple[Tensor, ...]]
"""(grid point, the states there) → the states to go on from. Grid point 0 is data."""


class Levels(NamedTuple):
    """α and σ on every grid point, data first, as Python floats."""

    alpha: tuple[float, ...]
    sigma: tuple[float, ...]


@dataclass(frozen=True)
class Way:
    """What is inverted: a field with its condition, and the times from data to noise.

    Args:
        field: guided, if there is a guide.
        times: rising, at least two.
        cond: the condition, in the user's words.
    """

    field: Field
    times: tuple[float, ...]
    cond: Mapping[str, Any]

    @property
    def path(self) -> GaussianPath:
        """The path of the field."""
        if self.field.path is None:
            raise UsageError("data have codes under a model on a path only.")
        return self.field.path

    @cached_property
    def levels(self) -> Levels:
        """α and σ at the times."""
        t = torch.tensor(self.times, dtype=torch.float64)
        return Levels(tuple(self.path.alpha(t).tolist()), tuple(self.path.sigma(t).tolist()))

    @property
    def n(self) -> int:
        """The number of steps."""
        return len(self.times) - 1

    def noise(self, x: Tensor) -> Noise:
        """Return ε̂(k, x), the noise that the field sees in a state at times[k]."""
        return Noise(self, x)


class Noise:
    """ε̂ at the times of a way; counts its evaluations."""

    def __init__(self, way: Way, x: Tensor) -> None:
        self._at = torch.tensor(way.times, dtype=torch.float64, device=x.device)
        cond = way.field.condition(way.cond, len(x))
        self._bound, self._way, self.n = way.field.bind(self._at, x, cond), way, 0

    def __call__(self, k: int, x: Tensor) -> Tensor:
        """Return ε̂ of a state (batch, *state) at times[k]."""
        self.n += 1
        field = self._way.field
        return Prediction(x, self._at[k], self._bound(k, x), field.view, field.path).eps


class Inverted(NamedTuple):
    """What an inversion found.

    Args:
        states: the code, (batch, *state) each: at the noise end first, then towards data.
        nfe: evaluations of the field.
        report: what the method has to say of its steps; None if nothing.
    """

    states: tuple[Tensor, ...]
    nfe: int
    report: Any = None


class Regenerated(NamedTuple):
    """Data from a code, (batch, *state), and the evaluations of the field that it took."""

    x: Tensor
    nfe: int


class Inverter(ABC):
    """A method that finds codes and regenerates data from them; a frozen value."""

    @property
    @abstractmethod
    def is_exact(self) -> bool:
        """Whether regenerating under the same condition returns the data to rounding."""

    @property
    def n_states(self) -> int:
        """How many states a code has."""
        return 1

    def places(self, way: Way) -> tuple[int, ...]:
        """Return the grid points that the states of a code lie at, one a state."""
        return (way.n,) * self.n_states

    def check(self, way: Way) -> None:
        """Refuse a way that the method cannot go.

        Raises:
            UsageError: what is missing, and how to mend it.
        """
        del way

    def growth(self, way: Way) -> float:
        """Return by what factor rounding errors may grow on the way to the code."""
        del way
        return 1.0

    @abstractmethod
    def invert(self, way: Way, x: Tensor, watch: Watch | None = None) -> Inverted:
        """Return the code of data x, (batch, *state).

        Args:
            way: from data to noise.
            x: the data.
            watch: sees, and may change, the state at every grid point after data.

        Raises:
            UsageError: states are watched that an exact code is made of.
        """

    def regenerate(
        self, way: Way, states: tuple[Tensor, ...], watch: Watch | None = None
    ) -> Regenerated:
        """Return the data of a code; the steps of DDIM unless the method has its own.

        Args:
            way: from data to noise, gone back.
            states: the code.
            watch: sees, and may change, the states at every grid point behind those of the code.
        """
        (z,) = states
        grid, seen = grids.times(way.times[::-1]), observing(watch, way.n, falls=True)
        solution = solve(way.field, z, solver=DDIM(), grid=grid, observe=seen, **way.cond)
        return Regenerated(solution.x, solution.stats.nfe)

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what the method is, as plain values."""


def observing(watch: Watch | None, start: int, *, falls: bool) -> Callable[[Step], None] | None:
    """Return what shows the steps of a solve to a watch.

    Args:
        watch: it.
        start: the grid point that the solve begins at.
        falls: whether it goes to data.
    """
    if watch is None:
        return None

    def observe(step: Step) -> None:
        made = step.index + 1
        (step.x,) = watch(start - made if falls else start + made, (step.x,))

    return observe


def check_unwatched(watch: Watch | None, name: str) -> None:
    """Refuse to change states that an exact code is made of."""
    if watch is not None:
        raise UsageError(
            f"the way up is changed here (clipped, say), and the code of {name} is exact only if "
            "it is not: take solver='ddim', or another solver that goes up as it goes down."
        )

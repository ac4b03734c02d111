"""Inverters: methods that find the code of data, and regenerate data from it.

An inverter is a frozen value with two functions, from data up to the noise end and back. What it
works on is a `Way`: a field, a condition, and the times between data and noise. That the way back
leads back exactly is a property of some methods, and is measured for all of them (`encode`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields import Field, Prediction
from pathline.paths import GaussianPath
from pathline.solvers import DDIM, grids, solve

__all__ = ["Inverted", "Inverter", "Levels", "Noise", "Regenerated", "Way"]


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
    def invert(self, way: Way, x: Tensor) -> Inverted:
        """Return the code of data x, (batch, *state)."""

    def regenerate(self, way: Way, states: tuple[Tensor, ...]) -> Regenerated:
        """Return the data of a code; the steps of DDIM unless the method has its own."""
        (z,) = states
        grid = grids.times(way.times[::-1])
        solution = solve(way.field, z, solver=DDIM(), grid=grid, **way.cond)
        return Regenerated(solution.x, solution.stats.nfe)

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what the method is, as plain values."""

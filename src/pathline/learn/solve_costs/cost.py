"""What all costs of a solve share: how they are asked, what they return, and their weight."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError, unknown
from pathline.core.solution import Solution
from pathline.fields import SDE, Field
from pathline.solvers import AdaptiveRK, solve
from pathline.solvers.adaptive_sde import AdaptiveSDE
from pathline.solvers.how import as_solver
from pathline.solvers.pairs import PAIRS
from pathline.solvers.solver import Solver

AnyField = Field | Callable[..., Tensor]

Estimate = Literal["error", "stiffness", "both"]
"""E |h|, S / S*, or E |h| + 0.1 S / S*."""

STABLE = 3.5068
"""S*: how far the stability region of Tsitouras' method reaches along the negative axis."""

SHARE = 0.1
"""What share the stiffness has in both."""

ROUNDING = 10
"""A tolerance below so many units of rounding measures rounding."""


WHOLE = 1e300
"""A first step that reaches any goal."""


@dataclass(frozen=True)
class Costed:
    """A solve and its cost.

    Args:
        solution: as `solve` returns it.
        cost: (), with a graph.
        extra: evaluations of each sample that the cost took beside the solve's own.
        t: where the cost was taken, (batch,), if it was at one time of each sample.
    """

    solution: Solution
    cost: Tensor
    extra: int = 0
    t: Tensor | None = None

    @property
    def nfe(self) -> int:
        """Evaluations, the most of any sample."""
        return self.solution.stats.nfe + self.extra


@dataclass(frozen=True)
class Asked:
    """A solve that was asked for.

    Args:
        field, x, solver, grid, seed: as of `SolveCost.solve`.
        how: what `solve` takes besides; the seeds of an SDE's noise among it.
    """

    field: AnyField
    x: Tensor
    solver: Solver | str
    grid: Sequence[float]
    seed: int
    how: Mapping[str, Any]

    def solved(self, **other: Any) -> Solution:
        """Solve it, with other arguments where they are given."""
        told: dict[str, Any] = {"solver": self.solver, "grid": self.grid, **self.how, **other}
        return solve(self.field, self.x, **told)


class SolveCost(ABC):
    """Solves a field, and says what the solve costs."""

    @abstractmethod
    def costed(self, asked: Asked) -> Costed:
        """Solve what was asked, and return the solution with its cost."""

    def solve(
        self,
        field: AnyField,
        x: Tensor,
        *,
        solver: Solver | str,
        grid: Sequence[float],
        seed: int = 0,
        **how: Any,
    ) -> Costed:
        """Solve from x.

        Args:
            field: what is solved.
            x: (batch, *state).
            solver: a solver, or its name.
            grid: the times, at least the first and the last.
            seed: of what is drawn, the noise of an SDE too; another one each time in a training.
            how: what `solve` takes besides.

        Raises:
            UsageError: the solver has no such cost.
        """
        return self.costed(Asked(field, x, solver, grid, seed, with_noise(field, x, seed, how)))


@dataclass(frozen=True)
class Decay:
    """A weight that falls exponentially, λ_k = first · (last/first)^(k/steps).

    Args:
        first: λ_0, not negative.
        last: λ after `steps`; as `first` if None.
        steps: over which it falls; it stays there afterwards.
    """

    first: float
    last: float | None = None
    steps: int = 1

    def __post_init__(self) -> None:
        for weight in (self.first, self.first if self.last is None else self.last):
            if not 0 <= weight < math.inf:
                raise UsageError(
                    f"the weight of a cost is finite and at least 0, and was {weight}."
                )
        if self.last is not None and (self.first == 0) != (self.last == 0):
            raise UsageError(
                f"an exponential goes from {self.first:g} to {self.last:g} in no number of steps."
            )
        if self.steps < 1:
            raise UsageError(f"a weight falls over 1 step or more, not {self.steps}.")

    def __call__(self, step: int) -> float:
        """Return the weight of a step."""
        if self.last is None or not self.first:
            return self.first
        return self.first * (self.last / self.first) ** min(step / self.steps, 1.0)


def check_estimate(kind: str) -> None:
    """Refuse an estimate that nobody knows.

    Raises:
        UsageError: it is none.
    """
    if kind not in get_args(Estimate):
        raise unknown("estimate of a step's cost", kind, get_args(Estimate))


def embedded(solver: Solver | str, kind: str, x: Tensor) -> AdaptiveRK | AdaptiveSDE:
    """Return a solver whose steps have the estimate.

    Raises:
        UsageError: it has none: names those that do; a tolerance that measures rounding.
    """
    made = as_solver(solver)
    if not isinstance(made, AdaptiveRK | AdaptiveSDE):
        raise UsageError(
            f"{type(made).__name__} does not estimate the error of its steps; choose "
            f"AdaptiveRK(method=...) with {', '.join(PAIRS)}, or AdaptiveSDE()."
        )
    if kind != "error" and (isinstance(made, AdaptiveSDE) or made.tableau.stiffness is None):
        name = "adaptive_sde" if isinstance(made, AdaptiveSDE) else made.method
        known = ", ".join(name for name, pair in PAIRS.items() if pair.stiffness is not None)
        raise UsageError(
            f"the stiffness takes two stages at the end of a step, and {name} has not; choose "
            f"{known}, or kind='error'."
        )
    least = ROUNDING * torch.finfo(x.dtype).eps
    if max(made.rtol, made.atol) < least:
        raise UsageError(
            f"at tolerances of {max(made.rtol, made.atol):.1g} the error of a step in {x.dtype} is "
            f"rounding; take {least:.2g} or more, or float64."
        )
    return made


def with_noise(field: AnyField, x: Tensor, seed: int, how: dict[str, Any]) -> dict[str, Any]:
    """Return what `solve` takes, with seeds of the noise, others for another `seed`."""
    if not isinstance(field, SDE) or "seeds" in how:
        return how
    return {**how, "seeds": noise.derived_seeds(range(len(x)), seed)}


def combined(kind: str, error: Tensor, stiffness: Tensor | None) -> Tensor:
    """Return what a kind is made of: of E |h| and S, each of any shape."""
    if kind == "error":
        return error
    assert stiffness is not None
    stiff = stiffness / STABLE
    return stiff if kind == "stiffness" else error + SHARE * stiff

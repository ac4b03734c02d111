"""EDICT: two coupled chains that invert each other exactly, at two evaluations a step.

    x' = a x + b ε̂(y),   y' = a y + b ε̂(x')        a = α_{i−1}/α_i,  b = σ_{i−1} − a σ_i
    x ← p x' + (1 − p) y',   y ← p y' + (1 − p) x

Every step is a sequence of updates of one chain by the other, so each can be undone. Which chain
goes first alternates.

Paper: Wallace, Gokul & Naik 2023 (arXiv:2211.12446), Sec. 4.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from pathline.core.errors import UsageError
from pathline.edit.inverter import (
    Inverted,
    Inverter,
    Regenerated,
    Watch,
    Way,
    check_unwatched,
)

__all__ = ["EDICT"]


@dataclass(frozen=True)
class EDICT(Inverter):
    """EDICT, for comparison: exact, at twice the evaluations, and unstable at few steps.

    Args:
        mixing: p, in (0, 1]; rounding errors grow like p^−2 a step on the way up.
    """

    mixing: float = 0.93

    def __post_init__(self) -> None:
        if not 0 < self.mixing <= 1:
            raise UsageError(f"mixing must lie in (0, 1], and is {self.mixing}.")

    @property
    def is_exact(self) -> bool:
        return True

    @property
    def n_states(self) -> int:
        return 2

    def check(self, way: Way) -> None:
        if way.levels.alpha[-1] == 0:
            raise UsageError(
                f"α is 0 at t = {way.times[-1]:g}, where EDICT divides by it: end the grid at a "
                "smaller t, or take BDIA()."
            )

    def growth(self, way: Way) -> float:
        return self.mixing ** (-2 * way.n)

    def invert(self, way: Way, x: Tensor, watch: Watch | None = None) -> Inverted:
        check_unwatched(watch, "EDICT")
        noise, p = way.noise(x), self.mixing
        first, second = x, x
        for i in range(1, way.n + 1):
            a, b = _step(way, i)
            if i % 2:
                first, second = second, first
            second = (second - (1 - p) * first) / p
            first = (first - (1 - p) * second) / p
            second = (second - b * noise(i, first)) / a
            first = (first - b * noise(i, second)) / a
            if i % 2:
                first, second = second, first
        return Inverted((first, second), noise.n)

    def regenerate(
        self, way: Way, states: tuple[Tensor, ...], watch: Watch | None = None
    ) -> Regenerated:
        first, second = states
        noise, p = way.noise(first), self.mixing
        for i in range(way.n, 0, -1):
            a, b = _step(way, i)
            if i % 2:
                first, second = second, first
            first = a * first + b * noise(i, second)
            second = a * second + b * noise(i, first)
            first = p * first + (1 - p) * second
            second = p * second + (1 - p) * first
            if i % 2:
                first, second = second, first
            if watch is not None:
                first, second = watch(i - 1, (first, second))
        return Regenerated(first, noise.n)

    def describe(self) -> dict[str, Any]:
        return {"method": "edict", **asdict(self)}


def _step(way: Way, i: int) -> tuple[float, float]:
    """Return a and b of the DDIM step from grid point i to i − 1."""
    alpha, sigma = way.levels
    a = alpha[i - 1] / alpha[i]
    return a, sigma[i - 1] - a * sigma[i]

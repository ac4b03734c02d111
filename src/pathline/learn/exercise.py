"""What one step of training learns from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pathline.learn.regularise import Collocation

__all__ = ["Exercise"]


@dataclass(frozen=True)
class Exercise:
    """A batch with all that was drawn for it: a part of it teaches its share of the whole.

    Args:
        x0: data, (batch, *state).
        x1: where the paths begin, (batch, *state).
        t: times, (batch,).
        xi: bridge noise, (batch, *state); None for none.
        log_weight: of the pairs, (batch,) float64; None where all count alike.
        cond: what the network is told besides.
        points: where a regulariser is worked out; None where it is not.
    """

    x0: Tensor
    x1: Tensor
    t: Tensor
    xi: Tensor | None
    log_weight: Tensor | None
    cond: Mapping[str, Any]
    points: Collocation | None = None

    def part(self, i: int, n: int) -> Exercise:
        """Return the i-th of n parts of one size."""
        size = len(self.x0) // n
        rows = slice(i * size, (i + 1) * size)

        def cut(value: Any) -> Any:
            is_batch = isinstance(value, Tensor) and value.ndim and len(value) == len(self.x0)
            return value[rows] if is_batch else value

        cond = {name: cut(value) for name, value in self.cond.items()}
        drawn = cut(self.x0), cut(self.x1), cut(self.t), cut(self.xi), cut(self.log_weight)
        points = None if self.points is None else self.points.part(i, n)
        return Exercise(*drawn, cond, points)

    def pinned(self) -> Exercise:
        """Return the same in memory from which a GPU copies while it computes."""

        def pin(value: Any) -> Any:
            return value.pin_memory() if isinstance(value, Tensor) else value

        cond = {name: pin(value) for name, value in self.cond.items()}
        drawn = pin(self.x0), pin(self.x1), pin(self.t), pin(self.xi), self.log_weight
        return Exercise(*drawn, cond, self.points)

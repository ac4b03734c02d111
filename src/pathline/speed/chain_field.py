"""The field of a set of chains: each with its condition, already in the network's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from pathline.fields import Condition, Evaluate, Field, Unscaled
from pathline.paths import GaussianPath


@dataclass(frozen=True)
class Conditioned(Field):
    """A field with the condition of each chain, already in the network's words."""

    inner: Unscaled
    told: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> GaussianPath:  # type: ignore[override]
        return self.inner.path

    @property
    def view(self) -> Literal["x0"]:  # type: ignore[override]
        return "x0"

    @property
    def calls(self) -> int:
        return self.inner.calls

    def calls_at(self, times: Tensor) -> int:
        return self.inner.calls_at(times)

    def piece(self, times: Tensor) -> Tensor:
        return self.inner.piece(times)

    @property
    def vjps(self) -> int:
        return self.inner.vjps

    def of(self, chains: Tensor) -> Conditioned:
        """Return the field of these chains alone."""
        picked = {k: v[chains] if _is_batched(v) else v for k, v in self.told.items()}
        return Conditioned(self.inner, picked)

    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.inner.evaluate(x, t, self.told)

    def bind(self, times: Tensor, x: Tensor, cond: Condition) -> Evaluate:
        return self.inner.bind(times, x, self.told)


def _is_batched(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0

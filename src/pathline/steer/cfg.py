"""Classifier-free guidance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields import Condition, Denoiser, Evaluate, Field
from pathline.steer.guide import Guide, Guided, guides


@guides.register("cfg", aliases=("classifier_free", "guidance"), paper="arXiv:2207.12598, Eq. 6")
@dataclass(frozen=True)
class CFG(Guide):
    """Classifier-free guidance: F = F_∅ + w (F_c − F_∅), the same in every view.

    Both evaluations share one call of the network on a batch of twice the size.

    Args:
        weight: w; 1 means none, and costs nothing.
    """

    weight: float = 4.0

    def __call__(self, field: Field) -> Field:
        if self.weight == 1:
            return field
        null = field.null if isinstance(field, Denoiser) else None
        if null is None:
            raise UsageError(
                f"guidance {self.weight} needs a model that was also trained without a condition, "
                "and this one has no null condition (Denoiser(..., null=...))."
            )
        return _Guided(field, self.weight, null)


@dataclass(frozen=True)
class _Guided(Guided):
    """F_∅ + w (F_c − F_∅)."""

    weight: float
    null: Mapping[str, Any]

    @property
    def calls(self) -> int:
        return 2 * self.inner.calls

    def condition(self, cond: Condition, batch: int) -> Condition:
        if not cond:
            raise UsageError(
                f"guidance {self.weight} has nothing to guide to: give a condition (text=...)."
            )
        return self.inner.condition(cond, batch)

    def part(self, cond: Condition, rows: Tensor) -> Condition | None:
        return self.inner.part(cond, rows)

    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.bind(t.reshape(1, *t.shape), x, cond)(0, x)

    def bind(self, times: Tensor, x: Tensor, cond: Condition) -> Evaluate:
        batch, w = len(x), self.weight
        null = {k: _repeated(v, batch) for k, v in self.null.items()}
        both = _joined(null, cond, batch)
        if both is None:
            free, bound = self.inner.bind(times, x, null), self.inner.bind(times, x, cond)
            return lambda k, state: torch.lerp(free(k, state), bound(k, state), w)
        times = torch.cat((times, times), -1) if times.ndim > 1 else times
        inner = self.inner.bind(times, torch.cat((x, x)), both)

        def evaluate(k: int, state: Tensor) -> Tensor:
            free, bound = inner(k, torch.cat((state, state))).chunk(2)
            return torch.lerp(free, bound, w)

        return evaluate


def _repeated(value: Any, batch: int) -> Any:
    """Repeat a null condition of one sample for the whole batch."""
    if isinstance(value, Tensor) and value.ndim and len(value) == 1:
        return value.expand(batch, *value.shape[1:])
    return value


def _joined(null: Condition, cond: Condition, batch: int) -> Condition | None:
    """Return both conditions as one of twice the batch, or None where they do not fit together."""
    if null.keys() != cond.keys():
        return None
    joined: dict[str, Any] = {}
    for name, bound in cond.items():
        free = null[name]
        if not isinstance(bound, Tensor):
            if free is not bound and free != bound:
                return None
            joined[name] = bound
        elif isinstance(free, Tensor) and free.shape == bound.shape and len(bound) == batch:
            joined[name] = torch.cat((free.to(bound), bound))
        else:
            return None
    return joined

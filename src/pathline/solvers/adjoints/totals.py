"""What passes back share: sums of gradients, autocast, and a check of what is made anew."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pathline.core.errors import UsageError


@dataclass
class Totals:
    """Gradients of the sources, added up in float32 at least.

    Args:
        sources: who asks.
        total: what has come so far; None where nothing has.
    """

    sources: Sequence[Tensor]
    total: list[Tensor | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.total = [None] * len(self.sources)

    def add(self, gradients: Sequence[Tensor | None], weight: float = 1.0) -> None:
        """Add gradients, times a number."""
        for i, gradient in enumerate(gradients):
            if gradient is None:
                continue
            before = self.total[i]
            if before is None:
                dtype = torch.promote_types(gradient.dtype, torch.float32)
                self.total[i] = gradient.detach().to(dtype) * weight
            else:
                before.add_(gradient, alpha=weight)

    def cast(self) -> list[Tensor | None]:
        """Return the sums in the dtypes of the sources."""
        each = zip(self.total, self.sources, strict=True)
        return [None if total is None else total.to(source.dtype) for total, source in each]


UNLIKE = 1e-2
"""By how much of itself a state may differ when it is made again; rounding is far below."""


@torch.no_grad()
def check_same(again: Tensor, before: Tensor) -> None:
    """Refuse a state that is another when it is made again.

    Raises:
        UsageError: it is, by more than rounding.
    """
    off = (again - before).norm() / before.norm().clamp(min=1e-30)
    if bool(off > UNLIKE):
        raise UsageError(
            "the field's answers are not the same when it is evaluated again (the last state is "
            f"off by {float(off):.2g} of itself): it draws numbers of its own, or was changed. Use "
            "adjoint='direct'."
        )


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return the autocast mode of here and now, to be entered again where gradients are taken."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, torch.get_autocast_dtype(kind))


__all__ = ["Totals", "autocast", "check_same"]

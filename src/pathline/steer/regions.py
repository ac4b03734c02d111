"""Regional guidance: one condition here, another one there.

F = F_∅ + w (Σ_r m_r F(x; c_r) − F_∅),   Σ_r m_r = 1 everywhere
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields import Condition, Evaluate, Field
from pathline.fields.denoiser import null_of
from pathline.steer.contrast import joined, repeated, twice
from pathline.steer.guide import Guide, Guided, guides
from pathline.steer.operators import fits


@guides.register("regions", aliases=("regional",), paper="arXiv:2302.08113, Eq. 5")
@dataclass(frozen=True, eq=False)
class Regions(Guide):
    """Different conditions in different regions; all are evaluated in one batch.

    Each condition sees the whole state, and is listened to where its mask is. Where masks overlap
    their shares are weighed by their values; soft edges hide seams.

    Args:
        masks: (regions, *shape) not negative, of a shape that broadcasts to the state's.
        conditions: one for each region, in the user's words: ({"text": "sky"}, {"text": "sea"}).
        weight: w of classifier-free guidance; 1 is without it.

    Raises:
        UsageError: masks and conditions of different number; a place that no mask covers.

    Cost: a call of the network a region, and one more with a weight other than 1.
    """

    masks: Tensor | None = field(default=None, repr=False)
    conditions: Sequence[Mapping[str, Any]] = ()
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.masks is None:
            return
        if len(self.masks) != len(self.conditions):
            raise UsageError(f"{len(self.masks)} masks and {len(self.conditions)} conditions.")
        if bool((self.masks < 0).any()) or bool((self.masks.sum(0) <= 0).any()):
            raise UsageError("masks are not negative, and every place belongs to one at least.")

    @property
    def chooses_evaluations(self) -> bool:
        return True

    @cached_property
    def shares(self) -> Tensor:
        """The masks, divided by their sum."""
        if self.masks is None:
            raise UsageError("Regions(masks=..., conditions=...) needs both.")
        masks = self.masks.double()
        return masks / masks.sum(0)

    def __call__(self, field: Field) -> Field:
        null = null_of(field)
        if isinstance(field, Guided):
            raise UsageError("Regions chooses which conditions are evaluated, so it comes first.")
        if self.weight != 1 and null is None:
            raise UsageError(
                f"guidance {self.weight} needs a model that was also trained without a condition, "
                "and this one has no null condition; use weight=1."
            )
        return _Regional(field, self, {} if null is None else null)

    def describe(self) -> dict[str, Any]:
        """Return what a receipt says of it: how much each region has, not where."""
        shares = [] if self.masks is None else self.shares.flatten(1).mean(1).tolist()
        told = [{k: _plain(v) for k, v in each.items()} for each in self.conditions]
        return {"name": "regions", "shares": shares, "conditions": told, "weight": self.weight}


@dataclass(frozen=True)
class _Regional(Guided):
    """A field that hears another condition in each region."""

    guide: Regions
    null: Mapping[str, Any]

    @property
    def calls(self) -> int:
        return self._asked * self.inner.calls

    def calls_at(self, times: Tensor) -> int:
        return self._asked * self.inner.calls_at(times)

    @property
    def _asked(self) -> int:
        """How often an evaluation asks the model."""
        return len(self.guide.conditions) + (self.guide.weight != 1)

    def condition(self, cond: Condition, batch: int) -> Condition:
        if cond:
            raise UsageError(
                f"regions bring their own conditions, and {', '.join(cond)} was given besides."
            )
        told = [self.inner.condition(each, batch) for each in self.guide.conditions]
        if self.guide.weight != 1:
            told.append({k: repeated(v, batch) for k, v in self.null.items()})
        return {"each": tuple(told)}

    def part(self, cond: Condition, rows: Tensor) -> Condition | None:
        parts = [self.inner.part(each, rows) for each in cond["each"]]
        return None if any(part is None for part in parts) else {"each": tuple(parts)}

    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.bind(t.reshape(1, *t.shape), x, cond)(0, x)

    def bind(self, times: Tensor, x: Tensor, cond: Condition) -> Evaluate:
        told: tuple[Condition, ...] = cond["each"]
        w = self.guide.weight
        shares = [share.to(x) for share in self.guide.shares]
        if not fits(shares[0].shape, x.shape[1:]):
            raise UsageError(
                f"masks of shape {tuple(shares[0].shape)} do not fit a state {tuple(x.shape[1:])}."
            )
        together = _together(self.inner, times, x, told)

        def evaluate(k: int, state: Tensor) -> Tensor:
            said = together(k, state)
            made = sum(share * each for share, each in zip(shares, said, strict=False))
            assert isinstance(made, Tensor)
            return made if w == 1 else torch.lerp(said[-1], made, w)

        return evaluate


def _together(
    field: Field, times: Tensor, x: Tensor, told: tuple[Condition, ...]
) -> Callable[[int, Tensor], Sequence[Tensor]]:
    """Return f(k, x) under every condition, in one batch where they fit together."""
    n, whole = len(told), joined(told, len(x))
    if whole is None:
        bound = [field.bind(times, x, each) for each in told]
        return lambda k, state: [each(k, state) for each in bound]
    inner = field.bind(twice(times, n), torch.cat([x] * n), whole)
    return lambda k, state: inner(k, torch.cat([state] * n)).chunk(n)


def _plain(value: Any) -> Any:
    """Return what a receipt can hold of a condition."""
    return value if isinstance(value, str | int | float) else type(value).__name__

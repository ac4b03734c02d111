"""A field around another one: what it does not say itself, the inner field says."""

from __future__ import annotations

import torch
from torch import Tensor

from pathline.fields.field import Condition, Field
from pathline.fields.views import View
from pathline.paths import GaussianPath


class Around(Field):
    """A field with an `inner` one, whose path, view, costs and conditions it has.

    Subclasses evaluate, and say what they change. `part` is left at None: whether some of the
    samples can be evaluated alone is for each to say.
    """

    inner: Field

    @property
    def path(self) -> GaussianPath | None:  # type: ignore[override]
        """The path of the inner field."""
        return self.inner.path

    @property
    def view(self) -> View:  # type: ignore[override]
        """The view of the inner field."""
        return self.inner.view

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

    @property
    def shape(self) -> tuple[int, ...] | None:
        return self.inner.shape

    @property
    def device(self) -> torch.device | None:
        return self.inner.device

    def condition(self, cond: Condition, batch: int) -> Condition:
        return self.inner.condition(cond, batch)

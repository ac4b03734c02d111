"""Guides: functions from field to field.

A guide takes a field and returns another field, so it works under every solver, and guides compose
by composition. What a guide costs is the `calls` of the field it returns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch

from pathline.core.registry import Registry
from pathline.fields import Condition, Field, View
from pathline.paths import GaussianPath

guides: Registry[Guide] = Registry("guide")
"""Every guide, by name."""


class Guide(ABC):
    """A function from field to field, with a description for receipts."""

    @abstractmethod
    def __call__(self, field: Field) -> Field:
        """Return the guided field.

        Raises:
            UsageError: the field lacks what the guide needs.
        """

    def describe(self) -> dict[str, Any]:
        """Return what rebuilds the guide, as plain values."""
        return guides.describe(self)


@dataclass(frozen=True)
class Guided(Field):
    """A field made from another one, whose path, view and conditions it keeps."""

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
    def shape(self) -> tuple[int, ...] | None:
        return self.inner.shape

    @property
    def device(self) -> torch.device | None:
        return self.inner.device

    def condition(self, cond: Condition, batch: int) -> Condition:
        return self.inner.condition(cond, batch)

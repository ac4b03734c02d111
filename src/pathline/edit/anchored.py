"""Guidance away from what a picture shows, instead of from nothing.

    F = F_source + w (F_target − F_source)

Paper: Miyake et al. 2023 (arXiv:2305.16807), negative-prompt inversion; so does the code of DCI.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pathline.core.errors import UsageError
from pathline.fields import Denoiser, Field
from pathline.steer import CFG, Guide

__all__ = ["Anchored"]


class Anchored(Guide):
    """Classifier-free guidance whose unconditional branch is the source's condition.

    Args:
        weight: w; 1 is the target's condition alone.
        source: the condition of what is edited, in the user's words (text="a red apple").
    """

    def __init__(self, weight: float, **source: Any) -> None:
        if not source:
            raise UsageError("anchored guidance needs the source's condition (text=...).")
        self.weight, self.source = weight, source

    def __call__(self, field: Field) -> Field:
        if not isinstance(field, Denoiser):
            raise UsageError("anchored guidance takes the model itself, before other guides.")
        told = field.encode(**self.source) if field.encode is not None else self.source
        return CFG(self.weight)(replace(field, null=dict(told)))

    def describe(self) -> dict[str, Any]:
        return {"name": "anchored", "weight": self.weight, "source": dict(self.source)}

"""Warnings that point at the line of whoever called Pathline, however deep inside they arise."""

from __future__ import annotations

import inspect
import warnings


def warn(message: str) -> None:
    """Warn at the nearest caller that is not of this package."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] == "pathline":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)

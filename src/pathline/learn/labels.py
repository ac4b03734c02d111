"""Classes and values as people name them, and as networks are told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError, unknown

__all__ = ["encode_label", "encode_value"]


def encode_label(classes: Sequence[str], label: Any = None, **other: Any) -> dict[str, Tensor]:
    """Return the classes that a user names as {"label": (n,) int64}.

    Args:
        classes: the names, in the order of their numbers.
        label: a name or a number, or several; a tensor of numbers.
        other: refused: what such a network is not told.

    Raises:
        UsageError: no class has this name (the message has the nearest) or number.

    Example:
        >>> encode_label(("shirt", "bag"), ["bag", 0])["label"]
        tensor([1, 0])
    """
    if isinstance(label, Tensor):
        label = label.reshape(-1).tolist()
    given = list(label) if isinstance(label, Iterable) and not isinstance(label, str) else [label]
    if other or not given or label is None:
        got = ", ".join(sorted(other)) or "no label"
        raise UsageError(f"this model is told a class, as in label={classes[0]!r}, and got {got}.")
    return {"label": torch.tensor([_number(classes, one) for one in given])}


def encode_value(y: Any = None, **other: Any) -> dict[str, Tensor]:
    """Return a number that a user names as {"y": (n,)}.

    Args:
        y: a number, or one a sample.
        other: refused: what such a network is not told.

    Raises:
        UsageError: there is none, it is not finite, or no number.

    Example:
        >>> encode_value(0.5)["y"]
        tensor([0.5000])
    """
    if other or y is None:
        got = ", ".join(sorted(other)) or "no value"
        raise UsageError(f"this model is told a value, as in y=0.5, and got {got}.")
    try:
        told = torch.as_tensor(float(y) if isinstance(y, str) else y).reshape(-1)
    except (TypeError, ValueError) as error:
        raise UsageError(f"y={y!r} is no number; this model is told one, as in y=0.5.") from error
    told = told if told.is_floating_point() else told.to(torch.get_default_dtype())
    if not bool(told.isfinite().all()):
        raise UsageError(f"y={y!r} is not finite; this model is told a number, as in y=0.5.")
    return {"y": told}


def _number(classes: Sequence[str], label: Any) -> int:
    """Return the number of a class; as text too, since command lines have nothing else."""
    folded = [_fold(name) for name in classes]
    if isinstance(label, str) and _fold(label) in folded:
        return folded.index(_fold(label))
    if not isinstance(label, int) and not (isinstance(label, str) and label.isdigit()):
        raise unknown("class", str(label), classes)
    if not 0 <= int(label) < len(classes):
        raise UsageError(f"the classes are 0 to {len(classes) - 1}; there is no class {label}.")
    return int(label)


def _fold(name: str) -> str:
    return name.lower().replace("_", " ").replace("-", " ").strip()

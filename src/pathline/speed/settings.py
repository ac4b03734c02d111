"""What something was made with, as plain values that can be compared with what is asked for now."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from pathline.core.errors import UsageError
from pathline.core.tensors import digest_of


def plain(value: Any) -> Any:
    """Return a value as JSON: numbers and words as they are, data and weights by their hash.

    Two values are the same if this is; functions are told by their names.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return {"tensor": digest_of([("", value)])}
    if isinstance(value, nn.Module):
        tensors = [(name, w) for name, w in value.state_dict().items() if isinstance(w, Tensor)]
        return {"is": type(value).__qualname__, "weights": digest_of(tensors)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in sorted(value.items(), key=lambda item: str(item[0]))}
    if is_dataclass(value) and not isinstance(value, type):
        told = {f.name: plain(getattr(value, f.name)) for f in fields(value)}
        return {"is": type(value).__qualname__, **told}
    return _told(value)


def _told(value: Any) -> Any:
    """Return what is no value of torch or of this package."""
    if callable(getattr(value, "tobytes", None)):  # of numpy and PIL
        kind = [str(getattr(value, name, "")) for name in ("dtype", "shape", "mode", "size")]
        return {"data": hashlib.sha256(json.dumps(kind).encode() + value.tobytes()).hexdigest()}
    if isinstance(value, Iterable):
        return [plain(each) for each in value]
    said = getattr(value, "__qualname__", repr(value))
    return type(value).__qualname__ if " at 0x" in said else said


def check_same(
    begun: str, found: Mapping[str, Any], wanted: Mapping[str, Any], advice: str
) -> None:
    """Refuse to go on with what was begun otherwise.

    Args:
        begun: what was, "the chains were".
        found: what it was begun with, as `plain` values.
        wanted: what is asked for now.
        advice: what to do.

    Raises:
        UsageError: names what differs, and says both.
    """
    for name, value in wanted.items():
        if found.get(name) != value:
            was, now = (json.dumps(v, ensure_ascii=False) for v in (found.get(name), value))
            raise UsageError(
                f"{begun} begun with {name} {_short(was)}, and not with {_short(now)}: {advice}."
            )


def _short(text: str) -> str:
    return text if len(text) <= 160 else f"{text[:157]}…"

"""Tensors of a long run, kept in the cache, so that it may be cut short and begun again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from pathline.core.files import write_atomically
from pathline.data.fetch import cache_folder

__all__ = ["kept"]


def kept(bench: str, told: Any, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return tensors from the cache, made on first use.

    Args:
        bench: a folder of the cache.
        told: everything that decides them, as JSON values.
        make: makes them.
    """
    name = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    file = cache_folder() / bench / f"{name}.safetensors"
    if not file.is_file():
        write_atomically(file, save({k: v.contiguous() for k, v in make().items()}))
    return load_file(file)

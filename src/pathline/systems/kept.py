"""Outcomes of trainings: a small JSON each in the cache, made when it is first asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pathline.core.files import write_atomically
from pathline.data.fetch import cache_folder

__all__ = ["file_of", "kept"]


def file_of(name: str) -> Path:
    """Return where an outcome is, or will be: name is "FOLDER/NAME"."""
    return cache_folder() / f"{name}.json"


def kept(name: str, make: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return an outcome from the cache, made on first use.

    Args:
        name: "FOLDER/NAME"; all on which the outcome depends is in it.
        make: trains and measures.
    """
    file = file_of(name)
    if not file.is_file():
        write_atomically(file, json.dumps(dict(make())) + "\n")
    return json.loads(file.read_text("utf-8"))

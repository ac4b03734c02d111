"""Receipts: a result carries what is needed to make it again, as JSON."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from pathline.core.errors import ReceiptError

FORMAT = 1


def versions() -> dict[str, str]:
    """Return the versions of what decides the bits of a result."""
    return dict(_versions())


@cache  # looking a distribution up costs as much as ten steps of a solver
def _versions() -> tuple[tuple[str, str], ...]:
    try:
        ours = metadata.version("pathline")
    except metadata.PackageNotFoundError:
        ours = "unknown"
    return ("pathline", ours), ("torch", torch.__version__), ("python", platform.python_version())


@dataclass(frozen=True)
class Receipt:
    """The recipe of a result and what came of it.

    Args:
        recipe: the call: model, condition, solver, grid, steps, guide; plain JSON values.
        seeds: one a sample.
        grid: the times that the solve visited; a list of each sample's where they have their own.
        nfe: evaluations of the field, for each sample.
        status: how each sample ended.
        device: the type of device ("cpu", "cuda").
        dtype: of the state.
        threads: torch's threads on the CPU (sums may round differently with another number).
        versions: of pathline, torch and python.
    """

    recipe: Mapping[str, Any]
    seeds: tuple[int, ...]
    grid: tuple[float | list[float], ...]
    nfe: int
    status: tuple[str, ...]
    device: str
    dtype: str
    threads: int = field(default_factory=torch.get_num_threads)
    versions: Mapping[str, str] = field(default_factory=versions)

    def to_json(self) -> str:
        """Return the receipt as JSON text."""
        return json.dumps({"receipt": FORMAT, **asdict(self)}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Receipt:
        """Read a receipt.

        Raises:
            ReceiptError: the text is not a receipt, or one of a later format.
        """
        try:
            content = json.loads(text)
            version = content.pop("receipt")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ReceiptError("this is not a Pathline receipt.") from error
        if version != FORMAT:
            raise ReceiptError(
                f"the receipt has format {version}; this Pathline reads format {FORMAT}."
            )
        try:
            for name in ("seeds", "grid", "status"):
                content[name] = tuple(content[name])
            return cls(**content)
        except (KeyError, TypeError) as error:
            raise ReceiptError(f"the receipt is damaged: {error}.") from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

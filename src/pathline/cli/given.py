"""Pictures that go into an edit: in files, or in the receipt of what came of them."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pathline.cli.reading import Held, Source
from pathline.core.errors import ReceiptError, UsageError
from pathline.core.receipt import sha256

__all__ = ["Given"]


@dataclass(frozen=True)
class Given:
    """Pictures by name.

    Args:
        digests: the SHA-256 of each.
        held: the PNGs themselves, in base64, of those that are in no file.
    """

    digests: Mapping[str, str] = field(default_factory=dict)
    held: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of_files(cls, names: Iterable[str]) -> Given:
        """Return files with their checksums.

        Raises:
            UsageError: one cannot be read.
        """
        try:
            return cls({name: sha256(Path(name)) for name in names})
        except OSError as error:
            raise UsageError(f"cannot read a picture: {error}.") from error

    @classmethod
    def of_pngs(cls, pngs: Mapping[str, bytes]) -> Given:
        """Return pictures that a receipt shall hold."""
        digests = {name: hashlib.sha256(png).hexdigest() for name, png in pngs.items()}
        return cls(digests, {name: base64.b64encode(png).decode() for name, png in pngs.items()})

    @classmethod
    def taken(cls, told: dict[str, Any]) -> Given:
        """Return what `to_dict` told, taken out of a receipt's values.

        Raises:
            ReceiptError: it is damaged.
        """
        parts = told.pop("digests", None), told.pop("held", {})
        for part in parts:
            texts = [*part, *part.values()] if isinstance(part, Mapping) else [part]
            if not all(isinstance(text, str) for text in texts):
                raise ReceiptError("the receipt is damaged: it does not tell of its pictures.")
        return cls(*parts)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, dict[str, str]]:
        """Return them as plain values."""
        return {"digests": dict(self.digests), "held": dict(self.held)}

    def source(self, name: str) -> Source:
        """Return what a picture is read from: itself, if it is held, or its file.

        Raises:
            ReceiptError: it is held, and damaged.
        """
        if name not in self.held:
            return name
        try:
            content = base64.b64decode(self.held[name], validate=True)
        except (ValueError, binascii.Error):
            content = b""
        if hashlib.sha256(content).hexdigest() != self.digests.get(name):
            raise ReceiptError(f"the receipt is damaged: the picture {name} in it is another one.")
        return Held(name, content)

    def located(self, near: Path) -> tuple[Given, dict[str, str]]:
        """Return the pictures as they are found now, and where each is by its name then.

        Raises:
            ReceiptError: one is neither where it was nor in the folder `near`, or is another one.
        """
        places = {name: name if name in self.held else _place(name, digest, near)
                  for name, digest in self.digests.items()}  # fmt: skip
        return replace(self, digests={places[n]: d for n, d in self.digests.items()}), places


def _place(name: str, digest: str, near: Path) -> str:
    for path in (Path(name), near / Path(name).name):
        if path.is_file():
            if sha256(path) != digest:
                raise ReceiptError(f"{path} is another picture now than the one that was edited.")
            return str(path)
    raise ReceiptError(f"the picture {name} that was edited is not here; put it beside this file.")

"""Tables out of R packages, read without R: what `data(NAME)` would load.

A package keeps its data sets in one file of compressed pieces (`Rdata.rdb`) and an index of where
each begins (`Rdata.rdx`). Both are R's own binary format, of which tables of numbers and text take
a dozen kinds of objects; others are refused.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pathline.core.errors import UsageError, unknown

__all__ = ["read_table", "unserialize"]

MISSING = -(2**31)
"""R's missing whole number."""


def read_table(folder: str | Path, name: str) -> Mapping[str, np.ndarray]:
    """Return the columns of a table, in its order.

    Args:
        folder: of the package's data, with `Rdata.rdx` and `Rdata.rdb`.
        name: of the data set.

    Returns:
        Column → its values: numbers and truths float64 with NaN for missing, factors the numbers
        of their levels from 1, text as objects.

    Raises:
        UsageError: the files cannot be read, no data set has this name, or it is no table.
    """
    folder = Path(folder)
    try:
        index = unserialize(gzip.decompress((folder / "Rdata.rdx").read_bytes()))
        pieces = (folder / "Rdata.rdb").read_bytes()
    except OSError as error:
        raise UsageError(f"{folder} has no data of an R package: {error.strerror or error}.") from (
            error
        )
    variables = index["variables"]
    if name not in variables:
        raise unknown("data set", name, tuple(variables))
    start, length = (int(v) for v in variables[name])
    table = unserialize(_unpacked(pieces[start : start + length], int(index["compressed"][0])))
    if not isinstance(table, dict) or len({len(c) for c in table.values()}) != 1:
        raise UsageError(f"{name} is no table.")
    return {column: _floats(values) for column, values in table.items()}


def unserialize(data: bytes) -> Any:
    """Return an object of R's binary format: arrays, and dicts for lists with names.

    Raises:
        UsageError: another format, or a kind of object that no table has.
    """
    if data[:2] != b"X\n":
        raise UsageError("this is not R's binary format, which begins with 'X' and a new line.")
    reader = _Reader(data, 2)
    version, _, _ = (reader.integer() for _ in range(3))
    if version == 3:  # names the encoding of text
        reader.take(reader.integer())
    return reader.item()


def _unpacked(piece: bytes, compressed: int) -> bytes:
    """Return a piece's content: after its length, for 2 and 3, a letter says how it is packed."""
    if compressed == 1:
        return zlib.decompress(piece[4:])
    how, content = piece[4:5], piece[5:]
    if how == b"Z":
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 9}]
        return lzma.decompress(content, lzma.FORMAT_RAW, filters=filters)
    return bz2.decompress(content) if how == b"2" else content if how == b"0" else (
        zlib.decompress(content)
    )  # fmt: skip


def _floats(values: np.ndarray) -> np.ndarray:
    if values.dtype != np.int32:
        return values
    return np.where(values == MISSING, np.nan, values.astype(np.float64))


@dataclass
class _Reader:
    """Walks over the bytes of an object.

    Args:
        data: all of them.
        at: where the next begins.
        symbols: names that later ones refer to.
    """

    data: bytes
    at: int
    symbols: list[str] = field(default_factory=list)

    def take(self, n: int) -> bytes:
        self.at += n
        return self.data[self.at - n : self.at]

    def integer(self) -> int:
        return struct.unpack(">i", self.take(4))[0]

    def array(self, kind: str) -> np.ndarray:
        n = self.integer()
        made = np.frombuffer(self.data, f">{kind}", n, self.at)
        self.at += made.nbytes
        return made.astype(kind)

    def item(self) -> Any:
        flags = self.integer()
        kind, has_attributes = flags & 255, bool(flags & 512)
        if kind in (_PAIRS, _CALL):
            return self.pairs(flags)
        if kind == _REFERENCE:
            return self.symbols[(flags >> 8) - 1]
        if kind not in _KINDS:
            raise UsageError(f"an object of R's kind {kind} is in no table of numbers and text.")
        made = _KINDS[kind](self)
        return _named(made, self.item()) if has_attributes else made

    def pairs(self, flags: int) -> dict[str, Any]:
        """Return a chain of tagged values, as attributes are."""
        made = dict[str, Any]()
        while flags & 255 == _PAIRS:
            if flags & 512:
                self.item()
            tag = self.item() if flags & 1024 else str(len(made))
            made[tag] = self.item()
            flags = self.integer()
        return made

    def symbol(self) -> str:
        self.symbols.append(self.item())
        return self.symbols[-1]

    def text(self) -> str | None:
        n = self.integer()
        return None if n < 0 else self.take(n).decode("utf-8", errors="replace")

    def items(self) -> list[Any]:
        return [self.item() for _ in range(self.integer())]

    def strings(self) -> np.ndarray:
        return np.array(self.items(), object)

    def compact(self) -> np.ndarray:
        """Return a row of whole numbers that is kept as its length, first value and step."""
        what, state, _ = self.item(), self.item(), self.item()
        names = list(what.values())
        if names[0] != "compact_intseq":
            raise UsageError(f"R's compact form {names[0]!r} is not read here.")
        n, first, step = (int(v) for v in state)
        return (first + step * np.arange(n)).astype("i4")


_PAIRS, _CALL, _REFERENCE = 2, 6, 255
_KINDS: Mapping[int, Callable[[_Reader], Any]] = {
    1: _Reader.symbol,
    9: _Reader.text,
    10: lambda reader: reader.array("i4"),
    13: lambda reader: reader.array("i4"),
    14: lambda reader: reader.array("f8"),
    16: _Reader.strings,
    19: _Reader.items,
    238: _Reader.compact,
    254: lambda reader: None,
}


def _named(made: Any, attributes: Mapping[str, Any]) -> Any:
    """Return a list with names as a dict; nothing else keeps its attributes."""
    if isinstance(made, list) and "names" in attributes:
        return dict(zip(attributes["names"], made, strict=True))
    return made

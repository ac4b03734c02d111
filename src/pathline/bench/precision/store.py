"""What has been measured, kept in one file a problem: a run that is cut off goes on where it was.

What a library's numbers depend on is its stamp: versions, and the code that drives it (ours: all
that compiles and runs a plan). Another stamp, and its numbers are measured anew; other settings,
and everybody's are.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from time import monotonic
from typing import Any

import pathline
from pathline.core.files import write_atomically

PATIENCE = 2.0
"""Seconds that a measurement may wait before it is written down."""

FORMAT = 1

Key = tuple[str, str, str]
"""By whom, which sampler, which grid."""


@dataclass
class Store:
    """Errors by contestant and evaluations.

    Args:
        file: where they are kept; None for nowhere.
        settings: what decides everybody's numbers.
        stamps: what decides a library's numbers, by its name.
        errors: contestant → evaluations → error; NaN where the sampler failed.
        screened: the same, on few noises.
        medians: of the noises' own errors, which those that fork weigh less in.
        absent: contestant's words → why it has none.
        about: what else the file says.
        measure: what an error is called in the file.
    """

    file: Path | None
    settings: Mapping[str, Any]
    stamps: Mapping[str, str]
    errors: dict[Key, dict[int, float]] = field(default_factory=dict)
    screened: dict[Key, dict[int, float]] = field(default_factory=dict)
    medians: dict[Key, dict[int, float]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    measure: str = "rms"
    written: float = field(default_factory=monotonic)

    def __post_init__(self) -> None:
        if self.file is None or not self.file.is_file():
            return
        kept = json.loads(self.file.read_text("utf-8"))
        if kept.get("format") != FORMAT or kept["settings"] != dict(self.settings):
            return
        for line in kept["errors"]:
            by = line["by"]
            if kept["stamps"].get(by) == self.stamps.get(by):
                for table, name in self._tables:
                    told = line.get(name, {}).items()
                    errors = {int(n): math.nan if e is None else e for n, e in told}
                    if errors:
                        table[by, line["sampler"], line["grid"]] = errors

    @property
    def _tables(self) -> tuple[tuple[dict[Key, dict[int, float]], str], ...]:
        return (self.errors, self.measure), (self.screened, "screened"), (self.medians, "median")

    def get(self, key: Key, nfe: int, *, few: bool = False) -> float | None:
        """Return an error that is known; NaN for a sampler that failed."""
        return (self.screened if few else self.errors).get(key, {}).get(nfe)

    def put(
        self, key: Key, nfe: int, error: float, *, few: bool = False, median: float | None = None
    ) -> None:
        """Note an error, and write it down if the last time is a while ago."""
        (self.screened if few else self.errors).setdefault(key, {})[nfe] = error
        if median is not None:
            self.medians.setdefault(key, {})[nfe] = median
        if monotonic() - self.written > PATIENCE:
            self.save()

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain JSON values."""
        names = ("by", "sampler", "grid")
        lines = [
            dict(zip(names, key, strict=True))
            | {name: _told(table[key]) for table, name in self._tables if key in table}
            for key in dict.fromkeys([*self.errors, *self.screened])
        ]
        return {
            "format": FORMAT,
            **self.about,
            "settings": dict(self.settings),
            "stamps": dict(self.stamps),
            "absent": self.absent,
            "errors": lines,
        }

    def save(self) -> None:
        """Write the file, whole."""
        self.written = monotonic()
        if self.file is None:
            return
        content = self.to_dict()
        lines = ",\n".join(json.dumps(line, ensure_ascii=False) for line in content.pop("errors"))
        head = json.dumps(content, indent=1, ensure_ascii=False).removesuffix("\n}")
        write_atomically(self.file, f'{head},\n "errors": [\n{lines}\n ]\n}}\n')


def _told(errors: Mapping[int, float]) -> dict[str, float | None]:
    """Return errors to four digits: nobody reads more, and files stay small."""
    return {
        str(n): float(f"{e:.4g}") if math.isfinite(e) else None for n, e in sorted(errors.items())
    }


def code_stamp(*parts: str) -> str:
    """Return a digest of our own source in these folders or files of the package."""
    home, digest = Path(str(pathline.__file__)).parent, hashlib.sha256()
    for part in parts:
        place = home / part
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def version_stamp(distribution: str, parts: Iterable[str]) -> str:
    """Return a library's version, with a digest of the code that drives it."""
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        version = "absent"
    return f"{version} {code_stamp(*parts)}"

"""How much a contestant needs: the least of a ladder from which on the error is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pathline.bench.adjoint.contestants import Contestant
from pathline.bench.adjoint.problems import Found
from pathline.core.errors import PathlineError
from pathline.core.files import write_atomically


class Fit(NamedTuple):
    """How much a contestant needs, and what comes of it."""

    who: Contestant
    how: Any
    error: float
    nfe: int


def fitted(who: Contestant, exact: Found, error: float) -> Fit | None:
    """Return the least of the ladder from which on the error is kept; None if none does.

    Args:
        who: takes part.
        exact: the flow's own gradient.
        error: relative, that has to be kept.
    """
    sought = who.gradients if who.sought is None else who.sought

    def keeps(i: int) -> bool:
        try:
            return sought(who.ladder[i]).off(exact) <= error
        except AssertionError:  # torchdiffeq's, where no step is small enough
            return False

    i = least(keeps, len(who.ladder))
    if i is None:
        return None
    found = who.gradients(who.ladder[i])
    off = found.off(exact)
    if not off <= 1.01 * error:  # what was sought by is the same gradient, to rounding
        raise PathlineError(
            f"{who.name} is off by {off:.1g}, and is not the gradient it should be."
        )
    return Fit(who, who.ladder[i], off, found.nfe)


def least(keeps: Callable[[int], bool], n: int) -> int | None:
    """Return the first of n from which on something is kept, found by halving.

    Errors are nearly monotone: one that is kept by luck, and not by the next, is passed over.

    >>> least(lambda i: i >= 5, 9), least(lambda i: i in (3, 5, 6, 7, 8), 9), least(lambda i: 0, 9)
    (5, 5, None)
    """
    known = cache(keeps)
    low, high = 0, n
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if known(middle) else (middle + 1, high)
    there = (i for i in range(low, n) if known(i) and (i == n - 1 or known(i + 1)))
    return next(there, None)


@dataclass
class Kept:
    """What a run has found so far; one that is cut off goes on from it.

    Args:
        folder: where; None for nowhere.
        settings: what decides the fits: other ones, and everything is sought anew.
        found: problem and contestant → (how much, error, evaluations); None for whom nothing did.
    """

    folder: Path | None
    settings: Mapping[str, Any]
    found: dict[str, list[Any] | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.file is not None and self.file.is_file():
            self.found = json.loads(self.file.read_text("utf-8"))

    @property
    def file(self) -> Path | None:
        """Where it is written; named after the settings."""
        if self.folder is None:
            return None
        told = json.dumps(self.settings, sort_keys=True)
        return self.folder / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}.json"

    def fit(self, problem: str, who: Contestant, seek: Callable[[], Fit | None]) -> Fit | None:
        """Return a fit that is known, or seek it and write it down."""
        key = f"{problem}: {who.name}"
        if key not in self.found:
            made = seek()
            self.found[key] = None if made is None else list(made[1:])
            if self.file is not None:
                write_atomically(self.file, json.dumps(self.found, indent=1) + "\n")
        known = self.found[key]
        return None if known is None else Fit(who, *known)

"""Errors: each message says what was given, what is needed and how to mend it.

Everything a user can get wrong raises a `PathlineError`; the command line prints its one
sentence and exits with code 2, without a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathline.core.solution import Solution


class PathlineError(Exception):
    """Anything Pathline refuses or cannot finish."""


class UsageError(PathlineError, ValueError):
    """A value that cannot work: refused at the door."""


class CheckpointError(PathlineError):
    """A model folder or weights file that cannot be read, or is not ours."""


class ReceiptError(PathlineError):
    """A file without a receipt, or a receipt that cannot be replayed here."""


class MissingExtra(PathlineError, ImportError):
    """An optional package is not installed.

    Args:
        package: the import name that failed.
        extra: the extra of Pathline that brings it.
        purpose: what it is needed for, as the end of "needed ...".
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f'{package} is needed {purpose}, and is not installed: pip install "pathline[{extra}]"'
        )


class SolveError(PathlineError):
    """Not every sample of a solve ended well; `solution` holds them and each one's status."""

    def __init__(self, message: str, solution: Solution) -> None:
        super().__init__(message)
        self.solution = solution


class NonFiniteError(SolveError, FloatingPointError):
    """A solve met a NaN or an infinity."""


class UnfinishedError(SolveError):
    """A stepped solve gave up on a sample: too many steps, or too small ones."""


class GradientError(PathlineError, FloatingPointError):
    """A gradient on its way back met a NaN or an infinity."""


def unknown(kind: str, given: str, known: Iterable[str]) -> UsageError:
    """Return the error for a name that nobody registered, with the nearest names first.

    Args:
        kind: what was looked up, in the singular ("solver").
        given: the name as the user wrote it.
        known: every name that would have worked.
    """
    names = sorted(set(known))
    spelled = {name.lower(): name for name in names}
    near = get_close_matches(given.lower(), spelled, n=3, cutoff=0.5)
    close = [spelled[name] for name in near]
    hint = f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(names)}."
    return UsageError(f"unknown {kind} {given!r}: {hint}")

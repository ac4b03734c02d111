"""Progress on anything over a second; silent when nobody watches a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")


def progress() -> Progress:
    """Return a progress display (a context manager) on stderr, disabled off a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` under a progress bar named `what`."""
    with progress() as bar:
        yield from bar.track(items, total=total, description=what)

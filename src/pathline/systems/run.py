"""Running a system: its claims are measured, and reported as they come out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from pathline.core.errors import UsageError
from pathline.core.progress import track
from pathline.systems.report import Report, write_page
from pathline.systems.system import Measured, systems


def run(
    slug: str,
    *,
    out: str | Path | None = None,
    only: Sequence[str] | None = None,
    train: bool = False,
) -> Report:
    """Measure the claims of a system.

    Args:
        slug: which system.
        out: the folder for the report, made if it is missing; None writes nothing.
        only: ids of the claims to measure; all that can be measured here if None or empty.
        train: whether claims that train a model are measured too.

    Returns:
        The report. A claim that fails, or breaks, is in it as failing; one that was not run is not.

    Raises:
        UsageError: an unknown system or claim, one that cannot be measured here, or an `out` that
            cannot be written to; all before anything is measured.
    """
    system = systems.build(slug)
    claims = system.chosen(only, train)
    folder = None if out is None else _folder(Path(out))
    began = perf_counter()
    experiment = system.experiment()
    measured = tuple(Measured.of(claim, experiment) for claim in track(claims, system.title))
    report = Report(system, measured, perf_counter() - began)
    if folder is None:
        return report
    page = write_page(report, experiment, folder / f"{system.slug}.html")
    return replace(report, artifacts=(page,))


def listing() -> list[dict[str, str]]:
    """Return every system as JSON values: slug, title, paper and summary."""
    built = (systems.build(entry.name) for entry in systems)
    return [
        {"slug": s.slug, "title": s.title, "paper": s.paper, "summary": s.summary} for s in built
    ]


def _folder(path: Path) -> Path:
    """Make the folder for the report; refuse, before the work and not after, what cannot be one."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"cannot write to {path}: {reason}; choose another folder.") from error
    if not os.access(path, os.W_OK):
        raise UsageError(f"cannot write to {path}: permission denied; choose another folder.")
    return path

"""Running a system: its claims are measured, and reported as they come out."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from pathline.core.errors import UsageError
from pathline.core.files import write_atomically
from pathline.core.progress import track
from pathline.systems.report import Report, write_page
from pathline.systems.system import Measured, System, systems

MEASURED = Path(__file__).parent / "measured"


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
        out: the folder for the report, <slug>.html and <slug>.json, and for the system's tables if
            all was trained, made if it is missing; None writes nothing.
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
    page, numbers = (folder / f"{system.slug}.{ending}" for ending in ("html", "json"))
    write_page(report, experiment, page)
    tables = system.tables(folder) if train and not only and system.tables is not None else ()
    report = replace(report, artifacts=(page, numbers, *tables))
    write_atomically(numbers, json.dumps(report.to_dict(), ensure_ascii=False, indent=1) + "\n")
    return report


def listing() -> list[dict[str, str]]:
    """Return every system as JSON values, with how many claims held when they were last run."""
    built = (systems.build(entry.name) for entry in systems)
    return [
        {"slug": s.slug, "title": s.title, "paper": s.paper, "summary": s.summary, "held": held(s)}
        for s in built
    ]


def claims_of(slug: str) -> list[dict[str, str]]:
    """Return the claims of a system as rows of text, with the values last measured.

    Raises:
        UsageError: an unknown system.
    """
    system = systems.build(slug)
    values = last_measured(slug)
    return [
        {
            "claim": claim.id,
            "text": claim.text,
            "bound": claim.bound,
            "last measured": "–" if claim.id not in values else f"{values[claim.id]:.4g}",
            "needs": claim.needs or "",
        }
        for claim in system.claims
    ]


def held(system: System) -> str:
    """Return how many of a system's claims held when they were last run: "9 of 10"."""
    values = last_measured(system.slug)
    ran = [claim for claim in system.claims if claim.id in values]
    return f"{sum(claim.holds(values[claim.id]) for claim in ran)} of {len(ran)}"


def last_measured(slug: str) -> dict[str, float]:
    """Return claim id → value of the last runs that were committed (`make systems`)."""
    files = [MEASURED / f"{slug}{what}.json" for what in ("", "-training")]
    claims = [c for f in files if f.is_file() for c in json.loads(f.read_text("utf-8"))["claims"]]
    return {c["id"]: math.nan if c["measured"] is None else c["measured"] for c in claims}


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

"""Schedules that are saved beside a model, one for each number of evaluations.

What solver="s3" means for a model is in its folder: schedules/nfe-05.json, nfe-08.json and so on.
Beside them are those for guided sampling alone, solver="s3_guided": schedules/guided-05.json, which
leave unconditional halves out, and spend what that saves on more steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pathline.core.errors import UsageError
from pathline.core.warned import warn
from pathline.fields import Denoiser, Field
from pathline.solvers.heads import FOLDER
from pathline.solvers.schedule import SolverSchedule

FOUND = "s3"
"""The solver's name that stands for a model's own schedules."""

GUIDED = "s3_guided"
"""The same of those for guided sampling."""

SAVED: Mapping[str, str] = {FOUND: "nfe", GUIDED: "guided"}
"""What the files are called."""


def schedule_file(model: str | Path, nfe: int, solver: str = FOUND) -> Path:
    """Return where a model folder keeps its schedule of so many evaluations."""
    return Path(model) / FOLDER / f"{SAVED[solver]}-{nfe:02d}.json"


def saved_counts(model: str | Path, solver: str = FOUND) -> tuple[int, ...]:
    """Return the numbers of evaluations that a model folder has schedules for, rising."""
    kind = SAVED[solver]
    names = (file.name for file in (Path(model) / FOLDER).glob(f"{kind}-*.json"))
    found = (re.fullmatch(rf"{kind}-(\d+)\.json", name) for name in names)
    return tuple(sorted(int(match[1]) for match in found if match))


def saved_schedule(field: Field, nfe: int | None = None, solver: str = FOUND) -> SolverSchedule:
    """Return the schedule that was found for a model.

    Args:
        field: a denoiser that was loaded from a folder.
        nfe: evaluations; None for the most that there is a schedule for.
        solver: "s3", or "s3_guided" for guided sampling alone.

    Raises:
        UsageError: the model is not from a folder, has no schedules, or none of so many
            evaluations; the message has the nearest numbers.
    """
    folder = field.details.get("folder") if isinstance(field, Denoiser) else None
    if not isinstance(folder, str):
        raise UsageError(
            f"solver={solver!r} takes the schedule saved beside a model, and this one is not from "
            "a folder; pass a SolverSchedule."
        )
    counts = saved_counts(folder, solver)
    kind, more = ("", "") if solver == FOUND else (f" for {solver}", " --guidance W --thin")
    if not counts:
        raise UsageError(
            f"{folder} has no schedules{kind}; find some with: pathline tune {folder}{more}"
        )
    nfe = counts[-1] if nfe is None else nfe
    if nfe not in counts:
        near = sorted(sorted(counts, key=lambda n: abs(n - nfe))[:2])
        raise UsageError(
            f"there is no schedule of {nfe} evaluations for this model, the nearest have "
            f"{' and '.join(map(str, near))}; or find one: pathline tune {folder}{more} --nfe {nfe}"
        )
    schedule = SolverSchedule.load(schedule_file(folder, nfe, solver))
    if schedule.nfe != nfe:
        raise UsageError(
            f"{schedule_file(folder, nfe, solver)} has {schedule.nfe} evaluations, and not {nfe}."
        )
    return schedule


def fitted_weight(schedule: SolverSchedule) -> float | None:
    """Return the weight of the guidance that a thinned schedule was fitted to, if it is known."""
    guide = schedule.about.get("guide") if schedule.ratios else None
    return next(_weights(guide), None)


def warn_of_weight(schedule: SolverSchedule, guide: Any) -> None:
    """Warn, at the caller's line, if a thinned schedule was fitted to guidance of another weight.

    Args:
        schedule: what is run.
        guide: what it is run with; one that does not describe itself is not looked at.
    """
    fitted, describe = fitted_weight(schedule), getattr(guide, "describe", None)
    given = None if describe is None else next(_weights(describe()), None)
    if fitted is None or given in (None, 1, fitted):
        return
    warn(
        f"this schedule was fitted to guidance of weight {fitted:g}, and is run with {given:g}, "
        f"where a plain solver may be better: take {fitted:g}, or a solver such as unipc."
    )


def _weights(guide: object) -> Iterator[float]:
    """Yield the weights of classifier-free guidance in the description of a guide."""
    if not isinstance(guide, Mapping):
        return
    if guide.get("name") == "cfg" and isinstance(guide.get("weight"), int | float):
        yield guide["weight"]
    for each in guide.get("guides", ()):
        yield from _weights(each)

"""DiffEditor: what is painted and drawn becomes an edit of an object."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathline.cli.diff_request import DiffRequest, receipt_of
from pathline.cli.given import Given
from pathline.core.errors import UsageError, unknown
from pathline.core.images import encode_png, to_pixels
from pathline.edit.diff_editor import DiffEdited
from pathline.edit.diff_tasks import TASKS
from pathline.studio import jobs
from pathline.studio.uploads import Drawn
from pathline.studio.work.edit import (
    MASK,
    PICTURE,
    Curves,
    Shown,
    Subject,
    Task,
    as_json,
    bounded,
    png_of,
    png_of_mask,
)
from pathline.studio.work.recipe import number, text

__all__ = ["Wanted", "moved"]

REFERENCE, REFERENCE_MASK = "reference.png", "reference-mask.png"
ONE, TWO = 14, 22
"""Evaluations a step, about, of an edit with one picture and with two."""


class Wanted(NamedTuple):
    """What the page has of DiffEditor, as it came; what is empty is the task's own.

    Args:
        task: move, resize, drag, appearance or paste.
        scale: of the object.
        fill: noise of the place that it leaves: own, or swap.
        strength, guidance, noise: numbers.
        bank: whether keys and values of the picture are used.
    """

    task: Any
    scale: Any = 1
    fill: Any = "own"
    strength: Any = ""
    guidance: Any = ""
    noise: Any = ""
    bank: Any = True


def moved(of: Subject, wanted: Wanted, prompt: Any, steps: Any, seed: Any) -> Task:
    """Move, resize, drag or restyle what a picture shows, or paste what another one shows."""
    if wanted.task not in TASKS:
        raise unknown("task", str(wanted.task)[:40], TASKS)
    n = of.steps(steps)
    files, pngs = _files(of.drawn, wanted.task)
    request = DiffRequest(
        wanted.task, files, _numbers(of.drawn, wanted), text(prompt, of.limits), n,
        _maybe("guidance", wanted.guidance, -20, 50),
        _maybe("strength", wanted.strength, 0, 1e5), _maybe("noise", wanted.noise, 0, 1),
        bool(wanted.bank), of.seed(seed), Given.of_pngs(pngs),
    )  # fmt: skip
    of.told(prompt)
    request.made()  # refuses a task that cannot be, before anybody waits for it

    def work() -> Shown:
        made = request.run(of.model, lambda _: jobs.tick(0))
        return _shown(of, request, made)

    return Task(work, of.limits.count("this", (TWO if "reference" in files else ONE) * n))


def _shown(of: Subject, request: DiffRequest, made: DiffEdited) -> Shown:
    receipt = receipt_of(request, made, of.source)
    other = of.drawn.reference if "reference" in request.files else None
    shown = [
        ("given", of.x),
        *([] if other is None else [("the other picture", other.x)]),
        ("inverted and back", made.reconstruction),
        ("edited", made.x),
        (f"regions: {', '.join(made.regions)}", _regions(made)),
    ]
    told = {"task": request.task, "steps": request.steps, "evaluations": made.nfe,
            "backward passes": made.vjps}  # fmt: skip
    png = encode_png(to_pixels(made.x)[0], receipt)
    return Shown(shown, [told], as_json(receipt), png, _curves(made))


def _regions(made: DiffEdited) -> Tensor:
    return 2 * torch.stack([*made.regions.values()])[:, None].float() - 1


def _curves(made: DiffEdited) -> Curves:
    """Return energies, pull and noise of every step."""
    guided = [step for step in made.steps if step.guided]

    def of(name: str, steps: Any) -> tuple[list[float], list[float]]:
        return [step.t for step in steps], [asdict(step)[name] for step in steps]

    return {
        "energies": {"inside the region": of("edit", guided), "outside": of("content", guided)},
        "rms of the pull g": {"inside the region": of("pull", made.steps)},
        "rms of the noise inside": {"inside the region": of("noise", made.steps)},
    }


def _files(drawn: Drawn, task: str) -> tuple[dict[str, str], dict[str, bytes]]:
    """Return the pictures of a task by their roles, and their PNGs by name."""
    files, pngs = {"image": PICTURE}, {PICTURE: png_of(drawn.x)}
    if task in ("appearance", "paste"):
        other = drawn.reference
        if other is None or other.mask is None:
            raise UsageError(
                f"{task} takes from another picture: choose one under “Other picture”, and paint "
                "the object there."
            )
        files |= {"reference": REFERENCE}
        files |= {"mask" if task == "paste" else "reference_mask": REFERENCE_MASK}
        pngs |= {REFERENCE: png_of(other.x), REFERENCE_MASK: png_of_mask(other.mask)}
    if task in ("move", "resize", "appearance") and drawn.mask is None:
        raise UsageError(f"paint the object of {task} on the picture, with the brush.")
    if task != "paste" and drawn.mask is not None:
        files |= {"mask": MASK}
        pngs |= {MASK: png_of_mask(drawn.mask)}
    return files, pngs


def _numbers(drawn: Drawn, wanted: Wanted) -> dict[str, Any]:
    """Return the numbers of a task."""
    task, scale = wanted.task, {"scale": number("scale", wanted.scale)}
    points = drawn.points
    if task == "paste" and not points and drawn.reference is not None:
        points = drawn.reference.points
    if task in ("drag", "move") and not points:
        raise UsageError("draw an arrow: from where to where.")
    if task == "drag":
        return {"points": points}
    if task == "appearance":
        return {}
    filled = {} if task == "paste" else {"fill": wanted.fill}
    if task == "resize":
        return {**scale, **filled}
    (x0, y0), (x1, y1) = points[0] if points else ((0.0, 0.0), (0.0, 0.0))
    return {"dx": x1 - x0, "dy": y1 - y0, **scale, **filled}


def _maybe(what: str, value: Any, least: float, most: float) -> float | None:
    return None if value in (None, "") else bounded(what, value, least, most)

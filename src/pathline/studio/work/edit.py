"""Edit: a picture to its code and back, and what is done to it on the way.

Each function checks what was asked for and returns a task; the task's `run` calls one function of
`pathline.edit`, whose evaluations tick the job.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pathline.cli.inverting import grid_of, method_named
from pathline.cli.options import chosen_condition
from pathline.core.errors import UsageError, unknown
from pathline.core.receipt import Receipt
from pathline.edit import Inverter, code, decode, encode, sdedit, text_edit
from pathline.fields import Denoiser
from pathline.steer import CFG, Guide
from pathline.studio import jobs
from pathline.studio.limits import Limits
from pathline.studio.shelf import Shelf, device_of
from pathline.studio.uploads import Drawn, drawn
from pathline.studio.work.recipe import number, text

INVERTERS = ("bdia", "ddim-inversion", "fixed-point", "dci", "edict")
PASSES = {"bdia": 1, "ddim-inversion": 1, "fixed-point": 10, "dci": 10, "edict": 2}
"""Evaluations a step, at most."""
TASKS = ("drag", "move", "resize")
SAMPLES = 4
CODE_STEPS = 200


@dataclass(frozen=True)
class Shown:
    """What an edit comes to.

    Args:
        pictures: (caption, (n, *state)) each.
        told: what is said of it, one line a row.
        receipt: as JSON values, if there is one.
    """

    pictures: list[tuple[str, Tensor]]
    told: list[dict[str, Any]]
    receipt: dict[str, Any] | None = field(default=None)


@dataclass(frozen=True)
class Task:
    """Work to be done in a job.

    Args:
        work: what to do.
        calls: evaluations that it comes to, about.
    """

    work: Callable[[], Shown]
    calls: int

    def run(self) -> Shown:
        """Do it; to be called in a job."""
        jobs.expect(self.calls)
        return self.work()


@dataclass(frozen=True)
class Subject:
    """A picture and the model that edits it."""

    model: Denoiser
    drawn: Drawn
    limits: Limits

    @property
    def x(self) -> Tensor:
        """The picture, (1, *state), where the model is."""
        return self.drawn.x.to(device_of(self.model))

    def told(self, prompt: Any) -> dict[str, Any]:
        """Return a prompt as what the model is told."""
        return {**chosen_condition(text(prompt, self.limits), self.model)}

    def steps(self, value: Any) -> int:
        """Return a number of steps, having made sure of it."""
        return self.limits.whole("steps", number("steps", value), 2, self.limits.steps)


def subject(shelf: Shelf, model: Any, sent: Any, limits: Limits) -> Subject:
    """Return the picture that was sent, on the grid of the model.

    Raises:
        UsageError: it is none, or too large; the model is unknown.
    """
    return Subject(shelf.model(model), drawn(sent, shelf.shape(model), limits), limits)


def inverted(of: Subject, prompt: Any, inverter: Any, steps: Any) -> Task:
    """Find the code of a picture, and tell how exactly it comes back."""
    method, n, cond = _method(inverter), of.steps(steps), of.told(prompt)

    def work() -> Shown:
        with torch.no_grad():
            found = encode(of.model, of.x, solver=method, grid=grid_of(of.model, n), **cond)
            back = decode(of.model, found, **cond)
        assert found.error is not None and found.rms is not None  # it was measured
        told = {
            "inverter": inverter, "steps": n, "evaluations": found.nfe,
            "largest error": float(found.error.max()), "rms error": float(found.rms.max()),
            "deviation of the code": float(found.z.std()),
        }  # fmt: skip
        seen = found.z.float() / 2  # two deviations are black and white
        shown = [("given", of.x), ("its code (the noise)", seen), ("regenerated", back.x)]
        return Shown(shown, [told], _receipt(found.receipt))

    return Task(work, of.limits.count("this", n * (2 * PASSES[inverter] + 1)))


def by_text(  # noqa: PLR0913 - what the page has
    of: Subject, source: Any, target: Any, inverter: Any, steps: Any, strength: Any, guidance: Any
) -> Task:
    """Invert under one prompt, regenerate under another; what is painted alone is edited."""
    method, n, share = _method(inverter), of.steps(steps), _share("strength", strength)
    before, after = of.told(source), of.told(target)
    if not after:
        raise UsageError("a target prompt is needed: what the picture shall show.")
    guide = _guide(of.model, guidance)

    def work() -> Shown:
        with torch.no_grad():
            made = text_edit(
                of.model, of.x, before, after, solver=method, grid=grid_of(of.model, n),
                strength=share, guide=guide, mask=_mask(of),
            )  # fmt: skip
        return _edited(of, made, {"inverter": inverter, "steps": n, "strength": share})

    return Task(work, of.limits.count("this", n * (PASSES[inverter] + 3)))


def by_noise(  # noqa: PLR0913 - what the page has
    of: Subject, prompt: Any, strength: Any, steps: Any, guidance: Any, samples: Any, seed: Any
) -> Task:
    """SDEdit: some noise on it, and back; what is not painted is kept to the bit."""
    n, share, cond = of.steps(steps), _share("strength", strength), of.told(prompt)
    count = of.limits.whole("samples", number("samples", samples), 1, SAMPLES)
    first = of.limits.whole("seed", number("seed", seed), 0, 2**31 - 1)
    guide = _guide(of.model, guidance) if cond else None

    def work() -> Shown:
        with torch.no_grad():
            made = sdedit(
                of.model, of.x, strength=share, mask=_mask(of), steps=n, guide=guide,
                samples=count, seed=first, **cond,
            )  # fmt: skip
        return _edited(of, made, {"strength": share, "steps": n})

    return Task(work, of.limits.count("this", n * count * 2))


def restored(
    of: Subject, prompt: Any, depth: Any, updates: Any, samples: Any, seed: Any
) -> Task:  # fmt: skip
    """CODE: a damaged picture, as near as the model knows to what it was; nothing said of how."""
    whole, limits = of.limits.whole, of.limits
    deep = whole("depth", number("depth", depth), 2, CODE_STEPS - 1)
    n = whole("updates", number("updates", updates), 1, 1000)
    count = whole("samples", number("samples", samples), 1, SAMPLES)
    first, cond = whole("seed", number("seed", seed), 0, 2**31 - 1), of.told(prompt)

    def work() -> Shown:
        with torch.no_grad():
            made = code(
                of.model, of.x, depth=deep, n=n, steps=CODE_STEPS, samples=count, seed=first, **cond
            )
        return _edited(of, made, {"depth": deep, "updates": n})

    return Task(work, limits.count("this", (2 * deep + n) * count))


def moved(of: Subject, task: Any, prompt: Any, steps: Any, scale: Any, seed: Any) -> Task:
    """DiffEditor: content is dragged along the arrows, or what is painted is moved or resized."""
    from pathline.edit.diff_editor import DiffEditor, diff_edit
    from pathline.edit.diff_tasks import task_of

    if task not in TASKS:
        raise unknown("task", str(task)[:40], TASKS)
    asked = task_of(task, **_arguments(of, task, number("scale", scale)))
    n, cond = of.steps(steps), of.told(prompt)
    first = of.limits.whole("seed", number("seed", seed), 0, 2**31 - 1)

    def work() -> Shown:
        made = diff_edit(
            of.model, of.x, asked, editor=DiffEditor(steps=n), seed=first,
            observe=lambda _: jobs.tick(0), **cond,
        )  # fmt: skip
        shown = [("given", of.x), ("inverted and back", made.reconstruction), ("edited", made.x)]
        told = {"task": task, "steps": n, "evaluations": made.nfe}
        return Shown(shown, [told], _receipt(made.receipt))

    return Task(work, of.limits.count("this", 14 * n))


def _arguments(of: Subject, task: str, scale: float) -> dict[str, Any]:
    """Return what a task of DiffEditor takes, from what was painted and drawn."""
    mask, points = of.drawn.mask, of.drawn.points
    if task != "drag" and mask is None:
        raise UsageError(f"paint what to {task}, with the brush.")
    if task != "resize" and not points:
        raise UsageError("draw an arrow: from where to where.")
    if task == "resize":
        return {"mask": mask, "scale": scale}
    if task == "drag":
        return {"points": points, **({} if mask is None else {"mask": mask})}
    (x0, y0), (x1, y1) = points[0]
    return {"mask": mask, "dx": x1 - x0, "dy": y1 - y0, "scale": scale}


def _edited(of: Subject, made: Any, told: dict[str, Any]) -> Shown:
    rows = [told | {"evaluations": made.nfe}]
    if made.error is not None:
        rows[0] |= {"round trip, largest": float(made.error.max())}
    shown = [("given", of.x), ("edited", made.flat.float())]
    return Shown(shown, rows, _receipt(made.receipt))


def _method(inverter: Any) -> Inverter:
    if inverter not in INVERTERS:
        raise unknown("inverter", str(inverter)[:40], INVERTERS)
    return method_named(inverter, 1.0, 0.02)


def _mask(of: Subject) -> Tensor | None:
    """Return what was painted, (1, 1, height, width)."""
    mask = of.drawn.mask
    return None if mask is None else mask[None, None].to(of.x)


def _share(what: str, value: Any) -> float:
    share = number(what, value)
    if not 0 < share <= 1:
        raise UsageError(f"{what} {share:g}: choose from 0 to 1, and not 0.")
    return float(share)


def _guide(model: Denoiser, guidance: Any) -> Guide | None:
    weight = number("guidance", 1 if guidance in (None, "") else guidance)
    if not -20 <= weight <= 50:
        raise UsageError(f"guidance {weight:g}: choose from -20 to 50; 1 adds nothing.")
    return None if weight == 1 or not model.is_conditional else CFG(float(weight))


def _receipt(receipt: Receipt | None) -> dict[str, Any] | None:
    return None if receipt is None else json.loads(receipt.to_json())

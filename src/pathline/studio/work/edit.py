"""Edit: a picture to its code and back, and what is done to it on the way.

Each function checks what was asked for and returns a task; the task's `run` has a request of the
command line's edit the picture, and its evaluations tick the job. So what comes of it is a file
that `pathline replay` remakes: it holds the picture that was edited.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pathline.cli.edit_request import EditRequest, receipt_of
from pathline.cli.given import Given
from pathline.cli.inverting import grid_of, method_named
from pathline.cli.options import chosen_condition
from pathline.core.errors import UsageError, unknown
from pathline.core.images import encode_png, to_pixels
from pathline.core.receipt import Receipt
from pathline.edit import Inverter, decode, encode
from pathline.edit.text_edit import DAMPED
from pathline.fields import Denoiser
from pathline.studio import jobs
from pathline.studio.limits import Limits
from pathline.studio.shelf import Shelf, device_of
from pathline.studio.uploads import Drawn, drawn
from pathline.studio.work.recipe import number, text

INVERTERS = ("bdia", "ddim-inversion", "fixed-point", "dci", "edict")
PASSES = {"bdia": 1, "ddim-inversion": 1, "fixed-point": 10, "dci": 10, "edict": 2}
"""Evaluations a step, at most."""
SAMPLES = 4
CODE_STEPS = 200
PICTURE, MASK = "picture.png", "mask.png"
"""What receipts call that which was drawn."""

Curves = Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]


@dataclass(frozen=True)
class Shown:
    """What an edit comes to.

    Args:
        pictures: (caption, (n, *state)) each.
        told: what is said of it, one line a row.
        receipt: as JSON values, if there is one.
        png: the edited picture, with the receipt inside: `pathline replay` remakes it.
        plots: curves over time, as `views.curves` takes them.
    """

    pictures: list[tuple[str, Tensor]]
    told: list[dict[str, Any]]
    receipt: dict[str, Any] | None = field(default=None)
    png: bytes | None = field(default=None, repr=False)
    plots: Curves = field(default_factory=dict, repr=False)


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
    """A picture and the model that edits it.

    Args:
        model: on the shelf.
        source: what receipts call it.
        drawn: the picture, and what is marked on it.
        limits: of the studio.
    """

    model: Denoiser
    source: str
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

    def seed(self, value: Any) -> int:
        """Return a seed, having made sure of it."""
        return self.limits.whole("seed", number("seed", value), 0, 2**31 - 1)

    def samples(self, value: Any) -> int:
        """Return a number of answers, having made sure of it."""
        return self.limits.whole("samples", number("samples", value), 1, SAMPLES)


def subject(shelf: Shelf, model: Any, sent: Any, limits: Limits) -> Subject:
    """Return the picture that was sent, on the grid of the model.

    Raises:
        UsageError: it is none, or too large; the model is unknown.
    """
    found = drawn(sent, shelf.shape(model), limits)
    return Subject(shelf.model(model), shelf.source(model), found, limits)


def png_of(x: Tensor) -> bytes:
    """Return a picture (1, *state) as it is held by a receipt."""
    return encode_png(to_pixels(x)[0])


def png_of_mask(mask: Tensor) -> bytes:
    """Return what is marked, (height, width), in white on black."""
    return png_of(2 * mask[None, None] - 1)


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
        return Shown(shown, [told], as_json(found.receipt))

    return Task(work, of.limits.count("this", n * (2 * PASSES[inverter] + 1)))


def by_text(  # noqa: PLR0913 - what the page has
    of: Subject, source: Any, target: Any, inverter: Any, steps: Any, strength: Any, guidance: Any
) -> Task:
    """Invert under one prompt, regenerate under another; what is painted alone is edited."""
    _method(inverter)
    n, share = of.steps(steps), _share("strength", strength)
    if not of.told(target):
        raise UsageError("a target prompt is needed: what the picture shall show.")
    request = EditRequest(
        "text", (PICTURE,), text(target, of.limits), text(source, of.limits) or "",
        solver=inverter, steps=n, guidance=_guidance(of.model, guidance), strength=share,
        knobs={"gamma": DAMPED}, **_files(of),
    )  # fmt: skip
    told = {"inverter": inverter, "steps": n, "strength": share}
    calls = of.limits.count("this", n * (PASSES[inverter] + 3))
    return Task(lambda: _edited(of, request, told), calls)


def by_noise(  # noqa: PLR0913 - what the page has
    of: Subject, prompt: Any, strength: Any, steps: Any, guidance: Any, samples: Any, seed: Any
) -> Task:
    """SDEdit: some noise on it, and back; what is not painted is kept to the bit."""
    n, share, count = of.steps(steps), _share("strength", strength), of.samples(samples)
    request = EditRequest(
        "sdedit", (PICTURE,), text(prompt, of.limits), steps=n,
        guidance=_guidance(of.model, guidance), strength=share, samples=count,
        seed=of.seed(seed), **_files(of),
    )  # fmt: skip
    calls = of.limits.count("this", n * count * 2)
    return Task(lambda: _edited(of, request, {"strength": share, "steps": n}), calls)


def restored(  # noqa: PLR0913 - what the page has
    of: Subject, prompt: Any, depth: Any, updates: Any, eps: Any, eta: Any, samples: Any, seed: Any
) -> Task:
    """CODE: a damaged picture, as near as the model knows to what it was; nothing said of how."""
    whole = of.limits.whole
    deep = whole("depth", number("depth", depth), 2, CODE_STEPS - 1)
    n = whole("updates", number("updates", updates), 0, 1000)
    e, width = number("step", eps), number("η", eta)
    if not 0 < e <= 0.05:
        raise UsageError(f"step {e:g} σ²: choose from 0 to 0.05, and not 0.")
    if not 0 <= width <= 20:
        raise UsageError(f"η {width:g}: choose from 0 (no clipping) to 20.")
    count = of.samples(samples)
    knobs = {"depth": deep, "n": n, "eps_rel": e, "eta": width or None}
    request = EditRequest(
        "code", (PICTURE,), text(prompt, of.limits), steps=CODE_STEPS, samples=count,
        seed=of.seed(seed), knobs=knobs, **_files(of),
    )  # fmt: skip
    calls = of.limits.count("this", (2 * deep + n) * count)
    return Task(lambda: _edited(of, request, {"depth": deep, "updates": n}), calls)


def _files(of: Subject) -> dict[str, Any]:
    """Return what a request is told of the picture and of what is painted."""
    pngs, mask = {PICTURE: png_of(of.drawn.x)}, of.drawn.mask
    if mask is not None:
        pngs[MASK] = png_of_mask(mask)
    return {"mask": None if mask is None else MASK, "given": Given.of_pngs(pngs)}


def _edited(of: Subject, request: EditRequest, told: dict[str, Any]) -> Shown:
    made = request.run(of.model)
    receipt = receipt_of(request, made, of.model, of.source)
    row = told | {"evaluations": made.nfe}
    if made.error is not None:
        row |= {"round trip, largest": float(made.error.max())}
    shown = [("given", of.x), ("edited", made.flat.float())]
    return Shown(shown, [row], as_json(receipt), encode_png(request.arranged(made), receipt))


def _method(inverter: Any) -> Inverter:
    if inverter not in INVERTERS:
        raise unknown("inverter", str(inverter)[:40], INVERTERS)
    return method_named(inverter, 1.0, 0.02)


def _share(what: str, value: Any) -> float:
    share = number(what, value)
    if not 0 < share <= 1:
        raise UsageError(f"{what} {share:g}: choose from 0 to 1, and not 0.")
    return float(share)


def _guidance(model: Denoiser, guidance: Any) -> float:
    """Return a weight, having made sure of it; 1 where a model cannot be guided."""
    weight = bounded("guidance", 1 if guidance in (None, "") else guidance, -20, 50)
    return weight if model.is_conditional else 1.0


def bounded(what: str, value: Any, least: float, most: float) -> float:
    """Return a number that a visitor typed.

    Raises:
        UsageError: it is none, or out of bounds.
    """
    found = number(what, value)
    if not least <= found <= most:
        raise UsageError(f"{what} {found:g}: choose from {least:g} to {most:g}.")
    return float(found)


def as_json(receipt: Receipt | None) -> dict[str, Any] | None:
    """Return a receipt as JSON values."""
    return None if receipt is None else json.loads(receipt.to_json())

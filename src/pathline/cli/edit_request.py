"""An edit that was asked for: everything that decides its picture, as it is run and written down.

`pathline edit` makes one from options, `pathline replay` from a receipt; both run it here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pathline import edit
from pathline.cli.given import Given
from pathline.cli.inverting import grid_of, method_named
from pathline.cli.options import chosen_condition
from pathline.cli.reading import as_data, change_map, pictures
from pathline.core.errors import ReceiptError, UsageError
from pathline.core.images import Layout, Pixels, to_pixels
from pathline.core.receipt import Receipt
from pathline.edit import Edited
from pathline.fields import Denoiser
from pathline.solvers import solvers
from pathline.steer import CFG

By = Literal["text", "sdedit", "code"]
WAYS: tuple[By, ...] = ("text", "sdedit", "code")


@dataclass(frozen=True)
class EditRequest:
    """What is to be edited, and how.

    Args:
        by: the method.
        files: names of the pictures.
        prompt: what they shall show.
        source: what they show, of text edits; "" says nothing.
        mask: the name of the picture that says where.
        solver: a name; None for the method's own.
        steps: of the grid.
        guidance: w.
        strength: how far they go towards noise.
        samples: answers to each.
        seed: of the first answer.
        knobs: of CODE: depth, at, eps_rel, n, eta, jitter; of inverters: gamma, rho.
        given: the pictures behind the names.
    """

    by: By
    files: tuple[str, ...]
    prompt: str | None = None
    source: str | None = None
    mask: str | None = None
    solver: str | None = None
    steps: int = 50
    guidance: float = 1.0
    strength: float = 0.5
    samples: int = 1
    seed: int = 0
    knobs: Mapping[str, Any] = field(default_factory=dict)
    given: Given = field(default_factory=Given)

    def signed(self) -> EditRequest:
        """Return it with the checksums of its files.

        Raises:
            UsageError: a file cannot be read.
        """
        names = [*self.files, *([] if self.mask is None else [self.mask])]
        return replace(self, given=Given.of_files(names))

    def run(self, model: Denoiser) -> Edited:
        """Edit the pictures, without gradients.

        Raises:
            UsageError: what was asked for cannot work.
        """
        pixels, _ = pictures(model, [self.given.source(name) for name in self.files])
        x = as_data(pixels).to(model.device or "cpu")
        mask = None
        if self.mask is not None:
            mask = change_map(model, self.given.source(self.mask)).to(x)
        with torch.no_grad():
            return _WAYS[self.by](self, model, x, mask)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        told = {**asdict(self), "files": list(self.files), **self.given.to_dict()}
        del told["given"]
        return told

    @classmethod
    def of(cls, receipt: Receipt, near: Path) -> EditRequest:
        """Return the request of a receipt, its files found again.

        Args:
            receipt: of a picture that `pathline edit` made.
            near: a folder in which files are looked for that are not where they were.

        Raises:
            ReceiptError: a file is missing, or another one now.
        """
        try:
            told: dict[str, Any] = dict(receipt.recipe["edit"])
            given, places = Given.taken(told).located(near)
            told["files"] = tuple(places[name] for name in told["files"])
            told["mask"] = None if told["mask"] is None else places[told["mask"]]
            return cls(**told, given=given)
        except (KeyError, TypeError) as error:
            raise ReceiptError(f"the receipt is damaged: {error}.") from error

    def layout(self, width: int) -> Layout:
        """Return how answers stand: a picture's in a row."""
        n = len(self.files) * self.samples
        return Layout.of(n, width, None if len(self.files) == 1 else self.samples)

    def arranged(self, made: Edited) -> Pixels:
        """Return all answers as one picture."""
        return self.layout(made.x.shape[-1]).arrange(to_pixels(made.flat))


def _text(request: EditRequest, model: Denoiser, x: Tensor, mask: Tensor | None) -> Edited:
    if request.prompt is None or request.source is None:
        raise UsageError(
            'a text edit needs what the pictures shall show and what they show: "green apple" '
            '--source "red apple"; with noise instead of a source take --by sdedit.'
        )
    if request.samples != 1:
        raise UsageError("a text edit has one answer: leave --samples out, or take --by sdedit.")
    knobs = {"gamma": 1.0, "rho": 0.02, **request.knobs}
    method = method_named(request.solver or "bdia", knobs["gamma"], knobs["rho"])
    before = chosen_condition(request.source or None, model)
    return edit.text_edit(
        model, x, before, chosen_condition(request.prompt, model), solver=method,
        grid=grid_of(model, request.steps), strength=request.strength,
        guide=None if request.guidance == 1 else CFG(request.guidance), mask=mask,
    )  # fmt: skip


def _sdedit(request: EditRequest, model: Denoiser, x: Tensor, mask: Tensor | None) -> Edited:
    cond: dict[str, Any] = {**chosen_condition(request.prompt, model)}
    guided = request.guidance != 1 and cond
    return edit.sdedit(
        model, x, strength=request.strength, mask=mask,
        solver=solvers.build(request.solver or "ddpm"), steps=request.steps,
        guide=CFG(request.guidance) if guided else None, samples=request.samples,
        seed=request.seed, **cond,
    )  # fmt: skip


def _code(request: EditRequest, model: Denoiser, x: Tensor, mask: Tensor | None) -> Edited:
    cond: dict[str, Any] = {**chosen_condition(request.prompt, model)}
    guided = request.guidance != 1 and cond
    made = edit.code(
        model, x, solver=solvers.build(request.solver or "ddim"), steps=request.steps,
        guide=CFG(request.guidance) if guided else None, samples=request.samples,
        seed=request.seed, **request.knobs, **cond,
    )  # fmt: skip
    if mask is None:
        return made
    return replace(made, x=torch.lerp(x[:, None], made.x, mask[:, None].expand_as(made.x)))


_WAYS: dict[By, Callable[[EditRequest, Denoiser, Tensor, Tensor | None], Edited]] = {
    "text": _text,
    "sdedit": _sdedit,
    "code": _code,
}


def receipt_of(request: EditRequest, made: Edited, model: Denoiser, source: str) -> Receipt:
    """Return the receipt of an edit: what remakes it, and what came of it."""
    told = {"name": model.name, "source": source, "weights": model.details.get("weights", {})}
    layout = request.layout(made.x.shape[-1]).to_dict()
    picture = {"layout": layout, "sample": None, "n": len(made.flat)}
    recipe = {**made.receipt.recipe, "model": told, "edit": request.to_dict(), "picture": picture}
    if made.error is not None:
        recipe["round_trip_error"] = float(made.error.max())
    return replace(made.receipt, recipe=recipe, seeds=_seeds(made.receipt.seeds))


def _seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    return tuple(seeds)

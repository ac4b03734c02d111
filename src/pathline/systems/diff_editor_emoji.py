"""Emoji on photographs: moved and pasted by the shipped model, which never saw a photograph."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import MissingExtra
from pathline.core.files import write_atomically
from pathline.core.progress import track
from pathline.data import emoji
from pathline.data.fetch import cache_folder, fetch
from pathline.edit import ddim_inversion
from pathline.edit.diff_editor import DiffEdited, DiffEditor, diff_edit
from pathline.edit.diff_task import Task
from pathline.edit.diff_tasks import Move, Paste
from pathline.fields import Denoiser
from pathline.learn import load_model
from pathline.steer.features import Layers

SIDE = 32
OBJECT = 12
"""Side of an emoji on its photograph, in pixels."""
STRENGTH = 150.0
"""η κ."""
VERSION = 2
"""Of the edits that are kept."""
NEAR = 1.5
"""How far an object may be off, in pixels."""


def photographs() -> list[Tensor]:
    """Return scikit-learn's two photographs, (3, 427, 640) in [−1, 1] each.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise MissingExtra("scikit-learn", "data", "for the photographs") from error
    images = load_sample_images().images
    return [torch.from_numpy(np.array(i)).permute(2, 0, 1).float() / 127.5 - 1 for i in images]


def background(seed: int) -> Tensor:
    """Return a piece of a photograph, (3, 32, 32): a square of 64 to 256 pixels, made small."""
    u = noise.uniform([seed], (4,), stream="data", index=1).tolist()[0]
    pictures = photographs()
    picture = pictures[int(u[0] * len(pictures))]
    side = int(64 * 4 ** u[1])
    top, left = (int(v * (n - side)) for v, n in zip(u[2:], picture.shape[1:], strict=True))
    piece = picture[None, :, top : top + side, left : left + side]
    return F.interpolate(piece, (SIDE, SIDE), mode="area")[0]


@cache
def _drawings() -> list[tuple[str, str]]:
    """Return held-out Noto emoji that are things and animals: what they show, and their files."""
    data = emoji.load()
    folder = fetch(emoji.VENDORS[0].package)
    files = {emoji.key_of(f.stem): str(f) for f in folder.glob(emoji.VENDORS[0].images)}
    groups = {"animals-nature", "food-drink", "objects", "activities", "travel-places"}
    chosen = [data.entries[i] for i in data.where("held_out").tolist()]
    return [
        (entry.label, files[entry.key])
        for entry in chosen
        if entry.vendor == "noto" and entry.group in groups and entry.key in files
    ]


def drawing(number: int, side: int = OBJECT) -> tuple[str, Tensor, Tensor]:
    """Return what an emoji shows, its colours (3, side, side) and its alpha (1, side, side)."""
    label, file = _drawings()[number % len(_drawings())]
    with Image.open(file) as opened:
        rgba = torch.from_numpy(np.array(opened.convert("RGBA"))).permute(2, 0, 1).float() / 255
    alpha = F.interpolate(rgba[None, 3:], (side, side), mode="area")[0]
    colours = F.interpolate(rgba[None, :3] * rgba[None, 3:], (side, side), mode="area")[0]
    return label, colours / alpha.clamp(min=1e-3) * 2 - 1, alpha


def composed(ground: Tensor, number: int, at: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return a photograph with an emoji at (row, column), and the emoji's mask, (32, 32) bool."""
    _, colours, alpha = drawing(number)
    made, mask = ground.clone(), torch.zeros(SIDE, SIDE, dtype=torch.bool)
    row, column = at
    place = (slice(row, row + OBJECT), slice(column, column + OBJECT))
    made[:, *place] = torch.lerp(made[:, *place], colours, alpha)
    mask[place] = alpha[0] > 0.5
    return made, mask


def centroid(x: Tensor, ground: Tensor) -> Tensor:
    """Return where a picture differs from its background, as a mean (row, column).

    Differences below a quarter of the largest are taken for what an inversion loses everywhere.
    """
    off = (x - ground).square().sum(0).sqrt()
    off = torch.where(off > off.max() / 4, off, torch.zeros_like(off))
    rows, columns = torch.meshgrid(*[torch.arange(SIDE).float()] * 2, indexing="ij")
    return torch.stack(((off * rows).sum(), (off * columns).sum())) / off.sum()


def place(x: Tensor, number: int) -> Tensor:
    """Return where a picture shows an emoji, the (row, column) of its corner.

    Of all places it is that where the colours differ least, Σ α ‖x − c‖².
    """
    _, colours, alpha = drawing(number)
    squares = F.conv2d(x.square().sum(0)[None, None], alpha[None])
    off = (squares - 2 * F.conv2d(x[None], (alpha * colours)[None]))[0, 0]
    best = int(off.argmin())
    return torch.tensor([best // off.shape[1], best % off.shape[1]], dtype=torch.float32)


@dataclass(frozen=True)
class Case:
    """One edit: what is given, what is asked for, and what a perfect one would look like."""

    text: str
    number: int
    at: tuple[int, int]
    picture: Tensor
    ground: Tensor
    task: Task
    wanted: Tensor
    kept: Tensor
    reference: Tensor | None = None


class Outcome(NamedTuple):
    """What came of an edit.

    Args:
        off: how far the centroid of what differs from the background is off that of the perfect
            edit, in pixels.
        misplaced: how far the object is from where it was asked to go, in pixels.
        kept: PSNR of what is to stay, in dB.
        alone: the same of the inversion without an edit.
    """

    off: float
    misplaced: float
    kept: float
    alone: float


@dataclass(frozen=True)
class OnPhotos:
    """What comes of the edits; each is kept in the cache, so a run that was cut short goes on.

    Args:
        n: edits, moves and pastes by turns.
    """

    n: int = 50

    @cached_property
    def model(self) -> Denoiser:
        """The shipped model."""
        return load_model("emoji")

    @cached_property
    def editor(self) -> DiffEditor:
        """How edits are made: by the inversion of the public code, and without guidance.

        Codes were found without it, and this model, which knows no photographs, would leave them.
        """
        return DiffEditor(
            features=Layers(("blocks.2", "blocks.3", "blocks.4")), inverter=ddim_inversion(),
            guidance=1.0, strength=STRENGTH, kappa=1.0, bank=None,
        )  # fmt: skip

    def edited(self, case: Case, how: str, seed: int) -> DiffEdited:
        """Return what comes of an edit: "guided", or "copied" without energies and noise."""
        editor = self.editor
        if how == "copied":
            editor = replace(editor, strength=0.0, eta_sde=0.0)
        reference = None if case.reference is None else case.reference[None]
        return diff_edit(
            self.model, case.picture[None], case.task, reference=reference, editor=editor,
            seed=seed, text=case.text,
        )  # fmt: skip

    @cache  # noqa: B019 - lives as long as the run
    def outcome(self, i: int, how: str) -> Outcome:
        """Return what came of an edit, from the cache if it has been made before."""
        told = json.dumps([how, repr(self.editor), self.model.details.get("weights"), VERSION])
        name = f"{hashlib.sha256(told.encode()).hexdigest()[:16]}/{how}-{i:02}.json"
        file = cache_folder() / "diff-editor" / name
        if file.is_file():
            return Outcome(*json.loads(file.read_text()))
        case = case_of(i)
        made = self.edited(case, how, i)
        found = centroid(made.x[0], case.ground) - centroid(case.wanted, case.ground)
        misplaced = place(made.x[0], case.number) - torch.tensor(case.at)
        both = (psnr(x[0], case.picture, case.kept) for x in (made.x, made.reconstruction))
        outcome = Outcome(float(found.norm()), float(misplaced.norm()), *both)
        write_atomically(file, json.dumps(outcome))
        return outcome

    def placed(self, how: str) -> float:
        """Return the share of edits whose object is within 1.5 pixels of its place."""
        return sum(self.outcome(i, how).misplaced <= NEAR for i in self._numbers(how)) / self.n

    def centred(self, how: str) -> float:
        """Return the share of edits whose centroid is off by 1.5 pixels at most."""
        return sum(self.outcome(i, how).off <= NEAR for i in self._numbers(how)) / self.n

    def background(self, how: str) -> float:
        """Return the mean PSNR of what is to stay, over that of the inversion alone, in dB."""
        found = [self.outcome(i, how) for i in self._numbers(how)]
        return sum(each.kept - each.alone for each in found) / self.n

    def _numbers(self, how: str) -> Iterable[int]:
        return track(range(self.n), f"edits, {how}")


def psnr(x: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Return the peak signal-to-noise ratio inside a mask, in dB; the range is 2."""
    error = (x.clamp(-1, 1) - truth)[:, mask].square().mean().clamp(min=1e-12)
    return float(10 * (4 / error).log10())


def case_of(i: int) -> Case:
    """Return an edit: by turns a move from left to right or back, and a paste."""
    u = noise.uniform([i], (4,), stream="data").tolist()[0]
    room = SIDE - OBJECT
    first = (int(u[0] * (room + 1)), int(u[1] * 5))
    second = (int(u[2] * (room + 1)), room - int(u[3] * 5))
    if u[0] + u[3] > 1:
        first, second = second, first
    ground = background(2 * i)
    label = drawing(i)[0]
    shift = (second[1] - first[1], second[0] - first[0])
    wanted, target = composed(ground, i, second)
    if i % 2 == 0:
        picture, mask = composed(ground, i, first)
        move = Move(mask, *shift, fill="swap")
        return Case(label, i, second, picture, ground, move, wanted, ~(mask | target))
    other, mask = composed(background(2 * i + 1), i, first)
    return Case(label, i, second, ground, ground, Paste(mask, *shift), wanted, ~target, other)

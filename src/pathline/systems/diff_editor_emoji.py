"""Emoji on photographs: moved and pasted by the shipped model, which never saw a photograph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import MissingExtra
from pathline.data import emoji
from pathline.data.fetch import fetch
from pathline.edit.diff_editor import DiffEditor, Edited, diff_edit, invert
from pathline.edit.diff_task import Task
from pathline.edit.diff_tasks import Move, Paste
from pathline.edit.trajectory import Trajectory
from pathline.fields import Denoiser
from pathline.learn import load_model
from pathline.steer.features import Layers

SIDE = 32
OBJECT = 12
"""Side of an emoji on its photograph, in pixels."""
NEAR = 1.5
"""How far a centroid may be off, in pixels."""


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


@dataclass(frozen=True)
class Case:
    """One edit: what is given, what is asked for, and what a perfect one would look like."""

    text: str
    picture: Tensor
    ground: Tensor
    task: Task
    wanted: Tensor
    kept: Tensor
    reference: Tensor | None = None


@dataclass(frozen=True)
class OnPhotos:
    """What comes of the edits; computed when first asked for, and once.

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
        """How edits are made."""
        return DiffEditor(features=Layers(("blocks.2", "blocks.3", "blocks.4")))

    @cached_property
    def cases(self) -> Sequence[Case]:
        """The edits."""
        return [_case(i) for i in range(self.n)]

    @cache  # noqa: B019 - lives as long as the run
    def inverted(self, i: int) -> tuple[Trajectory, ...]:
        """Return where the pictures of an edit were at every level."""
        case = self.cases[i]
        pictures = [case.picture] if case.reference is None else [case.picture, case.reference]
        return tuple(
            invert(self.model, p[None], editor=self.editor, text=case.text) for p in pictures
        )

    @cache  # noqa: B019 - lives as long as the run
    def edited(self, i: int, how: str) -> Edited:
        """Return what comes of an edit: "guided", or "copied" without energies, bank and noise."""
        case, editor = self.cases[i], self.editor
        if how == "copied":
            editor = replace(editor, strength=0.0, eta_sde=0.0, bank=None, guidance=1.0)
        reference = None if case.reference is None else case.reference[None]
        return diff_edit(
            self.model, case.picture[None], case.task, reference=reference, editor=editor,
            inverted=self.inverted(i), seed=i, text=case.text,
        )  # fmt: skip

    def off(self, i: int, how: str) -> float:
        """Return how far the centroid of an edit is off that of the perfect one, in pixels."""
        case = self.cases[i]
        found = centroid(self.edited(i, how).x[0], case.ground)
        return float((found - centroid(case.wanted, case.ground)).norm())

    def placed(self, how: str) -> float:
        """Return the share of edits whose centroid is off by 1.5 pixels at most."""
        return sum(self.off(i, how) <= NEAR for i in range(self.n)) / self.n

    def background(self, how: str) -> float:
        """Return the mean PSNR of what is to stay, over that of the inversion alone, in dB."""
        gains = list[float]()
        for i, case in enumerate(self.cases):
            made = self.edited(i, how)
            pair = (made.x[0], made.reconstruction[0])
            edit, alone = (psnr(x, case.picture, case.kept) for x in pair)
            gains.append(edit - alone)
        return sum(gains) / len(gains)


def psnr(x: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Return the peak signal-to-noise ratio inside a mask, in dB; the range is 2."""
    error = (x.clamp(-1, 1) - truth)[:, mask].square().mean().clamp(min=1e-12)
    return float(10 * (4 / error).log10())


def _case(i: int) -> Case:
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
        return Case(label, picture, ground, Move(mask, *shift), wanted, ~(mask | target))
    other, mask = composed(background(2 * i + 1), i, first)
    return Case(label, ground, ground, Paste(mask, *shift), wanted, ~target, other)

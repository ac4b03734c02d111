"""Held-out emoji, and what is done to them: strokes, holes, noise, JPEG."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pathline.core import noise
from pathline.data import emoji
from pathline.learn.quality.reference import to_uint8

BLOCK = 10
"""The side of a hole."""
COLOURS = 6
QUALITY = 8
"""Of JPEG, from 1 to 95."""


def clean(n: int) -> tuple[Tensor, list[str]]:
    """Return n held-out pictures in [−1, 1], one of each subject, and what they show."""
    data = emoji.load()
    seen: dict[str, int] = {}
    for i in data.where("held_out").tolist():
        entry = data.entries[i]
        if not (entry.is_flag or entry.is_skin_variant) and entry.vendor == "noto":
            seen.setdefault(entry.label, i)
    labels = sorted(seen)[:: max(1, len(seen) // n)][:n]
    pixels = torch.from_numpy(data.images[[seen[label] for label in labels]])
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1, labels


def strokes(x: Tensor) -> Tensor:
    """Return pictures in a few flat colours without detail, as somebody would sketch them."""
    small = F.interpolate(x, scale_factor=0.25, mode="area")
    levels = ((small + 1) / 2 * (COLOURS - 1)).round() / (COLOURS - 1) * 2 - 1
    return F.interpolate(levels, scale_factor=4.0, mode="nearest")


def hole(x: Tensor) -> Tensor:
    """Return pictures with a square of one random colour in them."""
    u = noise.uniform(range(len(x)), (5,), stream="choice", index=2)
    made, side = x.clone(), x.shape[-1] - BLOCK
    for picture, (a, b, *colour) in zip(made, u.tolist(), strict=True):
        i, j = int(a * side), int(b * side)
        value = 2 * torch.tensor(colour).to(x) - 1
        picture[:, i : i + BLOCK, j : j + BLOCK] = value[:, None, None]
    return made


def noisy(x: Tensor) -> Tensor:
    """Return pictures under Gaussian noise of deviation 0.4, within ±1.5."""
    z = noise.normal(range(len(x)), x.shape[1:], stream="data", index=3, dtype=x.dtype)
    return (x + 0.4 * z).clamp(-1.5, 1.5)


def jpeg(x: Tensor) -> Tensor:
    """Return pictures after the coarsest quantisation that JPEG has to offer."""
    made: list[Tensor] = []
    for pixels in to_uint8(x).permute(0, 2, 3, 1).numpy():
        file = BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
        with Image.open(file) as image:
            made.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    return torch.stack(made).float() / 127.5 - 1


DAMAGE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "strokes": strokes,
    "hole": hole,
    "noise": noisy,
    "jpeg": jpeg,
}

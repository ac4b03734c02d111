"""Pictures from outside: bytes in, a tensor out, with nothing believed that is not checked.

A picture comes as a data URL in a request's body: it has no name, is never a file here, and is
decoded by Pillow's readers of three formats alone, after its size has been read.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.studio.limits import Limits

FORMATS = ("PNG", "JPEG", "WEBP")
POINTS = 16
"""How many arrows a picture may have."""
_HEADS = tuple(f"data:image/{name}" for name in ("png", "jpeg", "webp"))


class Drawn(NamedTuple):
    """What a visitor sent: a picture, what is marked on it, and arrows.

    Args:
        x: (1, channels, height, width) in [−1, 1].
        mask: (height, width), 1 where it was painted; None if nothing was.
        points: ((x0, y0), (x1, y1)) each, in pixels of x; whole numbers are their middles.
        reference: the other picture, and what is marked on that; None if there is none.
    """

    x: Tensor
    mask: Tensor | None
    points: tuple[tuple[tuple[float, float], tuple[float, float]], ...]
    reference: Drawn | None = None


def drawn(sent: Any, shape: Sequence[int], limits: Limits) -> Drawn:
    """Return what was drawn, on the grid of a model.

    Args:
        sent: {"picture": data URL, "mask": data URL or None, "points": [[x0, y0, x1, y1], …]}, the
            points as shares of width and height; and, of the other picture, the same again under
            "reference", or None.
        shape: (channels, height, width) of the model.
        limits: of its size.

    Raises:
        UsageError: it is not that; says what is wrong.
    """
    if not isinstance(sent, Mapping) or not sent.get("picture"):
        raise UsageError("there is no picture yet: choose a file, or draw one.")
    other = sent.get("reference")
    alone = _alone(sent, shape, limits)
    return alone if not other else alone._replace(reference=_other(other, shape, limits))


def _other(sent: Any, shape: Sequence[int], limits: Limits) -> Drawn:
    if not isinstance(sent, Mapping):
        raise UsageError("the other picture could not be read: choose it again.")
    return _alone(sent, shape, limits)


def _alone(sent: Mapping[str, Any], shape: Sequence[int], limits: Limits) -> Drawn:
    channels, height, width = shape
    image = _fitted(_opened(sent.get("picture"), limits), (width, height))
    pixels = torch.from_numpy(np.array(image.convert("L" if channels == 1 else "RGB")))
    x = pixels.reshape(height, width, channels).permute(2, 0, 1)[None].float() / 127.5 - 1
    return Drawn(x, _mask(sent.get("mask"), (width, height), limits), _points(sent, width, height))


def _opened(url: Any, limits: Limits) -> Image.Image:
    """Return the picture of a data URL, its size checked before it is decoded."""
    if not isinstance(url, str) or not url.startswith(_HEADS):
        raise UsageError("a picture is a PNG, JPEG or WebP file.")
    if len(url) > limits.upload * 4 // 3 + 100:
        raise UsageError(f"the picture has more than {limits.upload / 2**20:g} MiB: scale it down.")
    try:
        content = base64.b64decode(url.partition(",")[2], validate=True)
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            if max(image.size) > limits.side:
                raise UsageError(
                    f"the picture has {image.width} × {image.height} pixels, and {limits.side} on "
                    "a side are allowed: scale it down."
                )
            image.load()
            return _on_white(image)
    except (OSError, SyntaxError, ValueError, binascii.Error, MemoryError,
            Image.DecompressionBombError) as error:  # fmt: skip
        if isinstance(error, UsageError):
            raise
        raise UsageError("the picture is damaged, or no PNG, JPEG or WebP.") from None


def _on_white(image: Image.Image) -> Image.Image:
    """Return the picture in colour; what is transparent is on white."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    whole = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")


def _fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the picture at a model's size: the largest part in the middle of its proportions."""
    if image.size == size:
        return image
    scale = min(image.width / size[0], image.height / size[1])
    width, height = size[0] * scale, size[1] * scale
    left, top = (image.width - width) / 2, (image.height - height) / 2
    box = (left, top, left + width, top + height)
    return image.resize(size, Image.Resampling.BOX if scale > 1 else Image.Resampling.BICUBIC, box)


def _mask(url: Any, size: tuple[int, int], limits: Limits) -> Tensor | None:
    """Return what is painted, in black on white: what is so to a quarter and more."""
    if not url:
        return None
    grey = _opened(url, limits).convert("L").resize(size, Image.Resampling.BOX)
    marked = torch.from_numpy(np.array(grey)) < 192
    return marked.float() if bool(marked.any()) else None


def _points(
    sent: Mapping[str, Any], width: int, height: int
) -> tuple[tuple[tuple[float, float], tuple[float, float]], ...]:
    found: list[tuple[tuple[float, float], tuple[float, float]]] = []
    points = sent.get("points") or ()
    if not isinstance(points, list | tuple) or len(points) > POINTS:
        raise UsageError(f"a picture takes at most {POINTS} arrows.")
    for arrow in points:
        is_arrow = isinstance(arrow, list | tuple) and len(arrow) == 4
        if not is_arrow or not all(_is_share(value) for value in arrow):
            raise UsageError("an arrow is four numbers from 0 to 1: where from, and where to.")
        (x0, x1), (y0, y1) = (_pixels(arrow[0::2], width), _pixels(arrow[1::2], height))
        found.append(((x0, y0), (x1, y1)))
    return tuple(found)


def _is_share(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and 0 <= value <= 1


def _pixels(shares: Sequence[float], size: int) -> tuple[float, float]:
    """Return shares of a side in pixels, the middle of the first one being 0."""
    a, b = (min(max(share * size - 0.5, 0.0), size - 1.0) for share in shares)
    return a, b

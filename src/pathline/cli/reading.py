"""Pictures that the user gives, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pathline.core.errors import ReceiptError, UsageError
from pathline.core.images import place_of, read_receipt
from pathline.fields import Denoiser


@dataclass(frozen=True)
class Held:
    """A picture that lies in no file.

    Args:
        name: what it is called in sentences.
        content: of a PNG.
    """

    name: str
    content: bytes = field(repr=False)

    def __str__(self) -> str:
        return self.name


Source = str | Held
"""A file, or a picture itself."""


def pictures(model: Denoiser, files: Sequence[Source]) -> tuple[Tensor, list[str]]:
    """Return pictures as (n, channels, height, width) uint8, and their names.

    Raises:
        UsageError: the model makes no pictures; a file that is none, or of another size.
    """
    shape = model.shape
    if shape is None or len(shape) != 3:
        raise UsageError(f"{model.name} is not a model of pictures.")
    made = [read_picture(name, shape[0]) for name in files]
    for name, picture in zip(files, made, strict=True):
        check_size(name, picture, shape)
    return torch.stack(made), [Path(str(name)).name for name in files]


def read_picture(name: Source, channels: int) -> Tensor:
    """Return a picture as (channels, height, width) uint8; what is transparent is on white.

    Raises:
        UsageError: it cannot be read.
    """
    return torch.from_numpy(_opened(name, "L" if channels == 1 else "RGB"))


def read_alpha(name: str) -> Tensor | None:
    """Return how opaque each pixel is, (1, height, width) uint8; None if nothing says it."""
    made = torch.from_numpy(_opened(name, "RGBA"))[3:]
    return None if bool((made == 255).all()) else made


def check_size(name: Source, picture: Tensor, shape: Sequence[int]) -> None:
    """Refuse a picture that is not as large as those of the model."""
    height, width = picture.shape[1:]
    if (height, width) != tuple(shape[1:]):
        raise UsageError(
            f"{name} has {width} × {height} pixels, and the model takes {shape[2]} × "
            f"{shape[1]}: scale it first (of a sheet of samples, take one: pathline sample --each)."
        )


def as_data(pixels: Tensor) -> Tensor:
    """Return pixels from 0 to 255 as data in [−1, 1]."""
    return pixels.float() / 127.5 - 1


def mask_of(model: Denoiser, file: str) -> Tensor:
    """Return what a black and white picture marks: 1 where it is white, (1, 1, height, width).

    Raises:
        UsageError: the model makes no pictures; a picture of another size, or with greys.
    """
    pixels = pictures(model, [file])[0][:, :1]
    if not bool(((pixels == 0) | (pixels == 255)).all()):
        raise UsageError(
            f"the mask {file} has greys: white is what is known, black what is not; save it "
            "as PNG, without anti-aliasing."
        )
    return (pixels == 255).float()


def change_map(model: Denoiser, file: Source) -> Tensor:
    """Return a mask of what is edited: 1 where a picture is white, 0 where it is black.

    Greys lie between. (1, 1, height, width).

    Raises:
        UsageError: the model makes no pictures; a picture of another size.
    """
    shape = model.shape
    if shape is None or len(shape) != 3:
        raise UsageError(f"{model.name} is not a model of pictures.")
    pixels = read_picture(file, 1)
    check_size(file, pixels, shape)
    return pixels[None].float() / 255


def _opened(name: Source, mode: str) -> np.ndarray:
    try:
        with Image.open(BytesIO(name.content) if isinstance(name, Held) else name) as image:
            whole = image.convert("RGBA") if _is_transparent(image) or mode == "RGBA" else image
            if mode != "RGBA" and whole.mode == "RGBA":
                white = Image.new("RGBA", whole.size, "white")
                whole = Image.alpha_composite(white, whole)
            pixels = _alone(name, np.array(whole.convert(mode)))
    except (OSError, SyntaxError, ValueError) as reason:
        raise UsageError(f"cannot read a picture from {name}: {reason}.") from reason
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy()


def _alone(name: Source, pixels: np.ndarray) -> np.ndarray:
    """Return the sample of a sheet of one that pathline wrote, as it was; else the pixels."""
    if isinstance(name, Held):
        return pixels
    try:
        receipt = read_receipt(name)
        layout, index = place_of(receipt)
    except ReceiptError:
        return pixels
    n = receipt.recipe["picture"].get("n", len(receipt.seeds)) if index is None else 1
    sample = layout.alone(pixels)
    is_sheet = n == 1 and np.array_equal(layout.arrange(sample[None]), pixels)
    return sample if is_sheet else pixels


def _is_transparent(image: Image.Image) -> bool:
    return "A" in image.getbands() or "transparency" in image.info

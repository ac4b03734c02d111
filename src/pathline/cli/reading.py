"""Pictures that the user gives, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields import Denoiser


def pictures(model: Denoiser, files: Sequence[str]) -> tuple[Tensor, list[str]]:
    """Return pictures as (n, channels, height, width) uint8, and their names.

    Raises:
        UsageError: the model makes no pictures; a file that is none, or of another size.
    """
    shape = model.shape
    if shape is None or len(shape) != 3:
        raise UsageError(f"{model.name} is not a model of pictures.")
    made: list[Tensor] = []
    for name in files:
        try:
            with Image.open(name) as image:
                pixels = np.asarray(image.convert("L" if shape[0] == 1 else "RGB"))
        except OSError as reason:
            raise UsageError(f"cannot read a picture from {name}: {reason}.") from reason
        picture = torch.from_numpy(pixels.copy())
        picture = picture[None] if picture.ndim == 2 else picture.permute(2, 0, 1)
        if tuple(picture.shape) != tuple(shape):
            height, width = picture.shape[1:]
            raise UsageError(
                f"{name} has {width} × {height} pixels, and the model takes {shape[2]} × "
                f"{shape[1]}: scale it first."
            )
        made.append(picture)
    return torch.stack(made), [Path(name).name for name in files]


def as_data(pixels: Tensor) -> Tensor:
    """Return pixels from 0 to 255 as data in [−1, 1]."""
    return pixels.float() / 127.5 - 1


def mask_of(model: Denoiser, file: str) -> Tensor:
    """Return what a black and white picture marks: 1 where it is white, (1, 1, height, width).

    Raises:
        UsageError: as `pictures`; it has greys.
    """
    pixels = pictures(model, [file])[0][:, :1]
    if not bool(((pixels == 0) | (pixels == 255)).all()):
        raise UsageError(f"the mask {file} has greys: white is what is known, black what is not.")
    return (pixels == 255).float()

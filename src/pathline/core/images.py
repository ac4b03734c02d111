"""Pictures: samples as PNG files, each with the receipt that remakes it.

A sample in [−1, 1] becomes 8-bit pixels, p = round(127.5 (x + 1)). The receipt is JSON in the
PNG's text chunk named "pathline": every viewer ignores it, and it survives copying and renaming,
though not programs that save the picture again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from torch import Tensor

from pathline.core.errors import ReceiptError, UsageError
from pathline.core.files import write_atomically
from pathline.core.receipt import Receipt

Pixels = NDArray[np.uint8]
"""(height, width) grey or (height, width, 3) colour; a batch has one axis more in front."""

CHUNK = "pathline"
LEGIBLE = 96
"""How wide a sample should be on a sheet that a person looks at."""


def to_pixels(x: Tensor) -> Pixels:
    """Return samples (n, 1 or 3, h, w) in [−1, 1] as pixels, (n, h, w) or (n, h, w, 3).

    Raises:
        UsageError: the samples are not pictures.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise UsageError(
            f"a picture has 1 or 3 channels, a height and a width, and these samples have the "
            f"shape {tuple(x.shape[1:])}; sample them in Python with pathline.sample."
        )
    pixels = ((x.detach().clamp(-1, 1) + 1) * 127.5).round().cpu().numpy().astype(np.uint8)
    return pixels[:, 0] if x.shape[1] == 1 else pixels.transpose(0, 2, 3, 1)


@dataclass(frozen=True)
class Layout:
    """How samples stand on a sheet.

    Args:
        columns: samples in a row.
        scale: each pixel becomes scale × scale pixels; the samples are sheet[::scale] again.
        gap: white pixels around each sample.
    """

    columns: int = 1
    scale: int = 1
    gap: int = 0

    def __post_init__(self) -> None:
        if self.columns < 1 or self.scale < 1 or self.gap < 0:
            raise UsageError(
                f"a sheet needs columns ≥ 1, scale ≥ 1 and gap ≥ 0; they are {self.columns}, "
                f"{self.scale} and {self.gap}."
            )

    def to_dict(self) -> dict[str, int]:
        """Return the layout as plain values."""
        return asdict(self)

    @classmethod
    def of(cls, n: int, width: int, columns: int | None = None, scale: int | None = None) -> Layout:
        """Return a near-square sheet of `n` samples, each enlarged until a person can see it."""
        enlarged = max(1, round(LEGIBLE / width)) if scale is None else scale
        return cls(min(n, 8, int(np.ceil(np.sqrt(n)))) if columns is None else columns, enlarged, 4)

    def arrange(self, pixels: Pixels) -> Pixels:
        """Return a batch of pixels as one picture, row by row."""
        large = pixels.repeat(self.scale, axis=1).repeat(self.scale, axis=2)
        n, height, width, *colour = large.shape
        cell, rows = (height + self.gap, width + self.gap), -(-n // self.columns)
        size = (rows * cell[0] + self.gap, self.columns * cell[1] + self.gap, *colour)
        sheet = np.full(size, 255, dtype=np.uint8)
        for i, sample in enumerate(large):
            row, column = divmod(i, self.columns)
            y, x = row * cell[0] + self.gap, column * cell[1] + self.gap
            sheet[y : y + height, x : x + width] = sample
        return sheet

    def alone(self, sheet: Pixels) -> Pixels:
        """Return the sample of a sheet of one, as it was before it was enlarged.

        Args:
            sheet: (height, width), with colours after them or without.
        """
        height, width = sheet.shape[:2]
        return sheet[self.gap : height - self.gap : self.scale,
                     self.gap : width - self.gap : self.scale]  # fmt: skip


def place_of(receipt: Receipt) -> tuple[Layout, int | None]:
    """Return the layout of a picture, and which sample of the batch it is (None: all).

    Raises:
        ReceiptError: the receipt does not say it, or is damaged.
    """
    told: Mapping[str, Any] = receipt.recipe.get("picture", {})
    try:
        layout, index = Layout(**told["layout"]), told["sample"]
    except (KeyError, TypeError) as error:
        raise ReceiptError("the receipt does not say how its samples stand.") from error
    n = min(len(receipt.seeds), receipt.recipe.get("batch", len(receipt.seeds)))
    if index is not None and index not in range(n):
        raise ReceiptError(f"the receipt is damaged: it has no sample {index}.")
    return layout, index


def encode_png(pixels: Pixels, receipt: Receipt | None = None) -> bytes:
    """Return one picture as the bytes of a PNG file, with its receipt inside."""
    chunks = PngImagePlugin.PngInfo()
    if receipt is not None:
        chunks.add_itxt(CHUNK, receipt.to_json())
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", pnginfo=chunks)
    return buffer.getvalue()


def write_picture(path: str | Path, pixels: Pixels, receipt: Receipt | None = None) -> Path:
    """Write one picture as PNG with its receipt; it appears whole or not at all.

    Raises:
        UsageError: the place cannot be written to.
    """
    return write_atomically(path, encode_png(pixels, receipt))


def read_receipt(path: str | Path) -> Receipt:
    """Return the receipt that a picture carries.

    Raises:
        ReceiptError: there is no such picture, it carries no receipt, or a damaged one.
    """
    with _opened(path) as image:
        text = _texts(image).get(CHUNK)
    if text is None:
        raise ReceiptError(
            f"{path} carries no receipt: Pathline did not make it, or a program that saved it "
            "again dropped what it did not know."
        )
    return Receipt.from_json(text)


def read_pixels(path: str | Path) -> Pixels:
    """Return a picture's pixels as they are stored.

    Raises:
        ReceiptError: there is no such picture, or it is damaged.
    """
    with _opened(path) as image:
        try:
            return np.asarray(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise ReceiptError(f"the picture in {path} is damaged: {error}.") from error


def _opened(path: str | Path) -> Image.Image:
    try:
        return Image.open(path, formats=("PNG",))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "it is no PNG picture, or a damaged one"
        raise ReceiptError(f"cannot read {path}: {reason}.") from error


def _texts(image: Image.Image) -> Mapping[str, Any]:
    return {k: v for k, v in image.info.items() if isinstance(k, str) and isinstance(v, str)}

"""Pictures for pages and cards: sheets with their captions, and curves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pathline.core.errors import MissingExtra
from pathline.learn.quality.report import Memory, Report

__all__ = ["as_png", "curve", "memory_curve", "memory_sheet", "rows_sheet", "sheet"]

GAP = 4
TEXT = 13
INK, PAPER = (40, 40, 40), (255, 255, 255)


def rows_sheet(rows: Sequence[tuple[str, Tensor]], scale: int = 2) -> Image.Image:
    """Return labelled rows of pictures as one picture.

    Args:
        rows: a label and (n, channels, height, width) uint8 for each.
        scale: each pixel becomes scale × scale pixels.
    """
    font = ImageFont.load_default(TEXT)
    margin = int(max(font.getlength(label) for label, _ in rows)) + 3 * GAP
    height, width = (side * scale for side in rows[0][1].shape[2:])
    columns = max(len(pixels) for _, pixels in rows)
    size = (margin + columns * (width + GAP), len(rows) * (height + GAP) + GAP)
    page = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(page)
    for i, (label, pixels) in enumerate(rows):
        top = GAP + i * (height + GAP)
        pen.text((GAP, top + height / 2), label, INK, font, anchor="lm")
        for j, image in enumerate(pixels):
            page.paste(_enlarged(image, scale), (margin + j * (width + GAP), top))
    return page


def sheet(pixels: Tensor, titles: Sequence[str], columns: int = 8, scale: int = 3) -> Image.Image:
    """Return pictures in a grid, each with its title below.

    Args:
        pixels: (n, channels, height, width) uint8.
        titles: one a picture; what is too long is cut.
        columns: pictures in a row.
        scale: each pixel becomes scale × scale pixels.
    """
    font = ImageFont.load_default(TEXT)
    height, width = (side * scale for side in pixels.shape[2:])
    cell = (width + 2 * GAP, height + TEXT + 3 * GAP)
    rows = -(-len(pixels) // columns)
    page = Image.new("RGB", (columns * cell[0], rows * cell[1]), PAPER)
    pen = ImageDraw.Draw(page)
    for i, (image, title) in enumerate(zip(pixels, titles, strict=True)):
        x, y = (i % columns) * cell[0] + GAP, (i // columns) * cell[1] + GAP
        page.paste(_enlarged(image, scale), (x, y))
        pen.text((x, y + height + 2), _cut(title, font, width), INK, font)
    return page


def memory_sheet(report: Report, n: int = 16, scale: int = 2) -> Image.Image | None:
    """Return the samples nearest to training pictures, above those pictures; None without any."""
    if report.drawn is None or not report.memory:
        return None
    ratios = [m.samples / m.held_out.median().clamp_min(1e-12) for m in report.memory]
    chosen = sum(ratios[1:], ratios[0]).argsort()[:n]
    rows = [("samples", report.drawn.pixels[chosen])]
    rows += [(f"nearest by {m.by}", report.nearest[m.by][chosen]) for m in report.memory]
    return rows_sheet(rows, scale)


def memory_curve(memory: Sequence[Memory]) -> Image.Image:
    """Return the distributions of distances to the nearest training picture.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    figure, axes = _figure(len(memory), (4.5 * len(memory), 3))
    for axis, each in zip(axes, memory, strict=True):
        for name, distances in (("samples", each.samples), ("held-out", each.held_out)):
            ordered = distances.sort().values.numpy()
            axis.step(ordered, np.linspace(0, 1, len(ordered)), label=f"{name} pictures")
        axis.set(xlabel=f"distance to the nearest training picture, by {each.by}", ylabel="share")
        axis.legend()
    return _rendered(figure)


def curve(points: Sequence[Sequence[float]], x: str, y: str) -> Image.Image:
    """Return a falling curve on logarithmic axes.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    figure, axes = _figure(1, (6, 3))
    axes[0].loglog([p[0] for p in points], [p[1] for p in points])
    axes[0].set(xlabel=x, ylabel=y)
    return _rendered(figure)


def as_png(image: Image.Image, limit: int | None = None) -> bytes:
    """Return a picture as PNG; in fewer colours if it would otherwise be larger than `limit`."""
    for colours in (None, 256, 128, 64, 32):
        reduced = image if colours is None else image.quantize(colours)
        buffer = io.BytesIO()
        reduced.save(buffer, format="PNG", optimize=True)
        if limit is None or len(buffer.getvalue()) <= limit:
            break
    return buffer.getvalue()  # pyright: ignore[reportPossiblyUnboundVariable]


def _enlarged(pixels: Tensor, scale: int) -> Image.Image:
    array = pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(array.repeat(scale, 0).repeat(scale, 1)))


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip(" ,") + "…"


def _figure(columns: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plot", "to draw curves") from error
    figure = Figure(figsize=size, layout="constrained", dpi=100)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.grid(True, which="major", alpha=0.3)
    return figure, list(axes)


def _rendered(figure: Any) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")

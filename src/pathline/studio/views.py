"""Views: tensors and numbers as pictures, plots and HTML. Nothing of it is ever a file."""

from __future__ import annotations

import base64
import math
import threading
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from pathline.core.errors import MissingExtra
from pathline.core.images import Layout, Pixels, encode_png, to_pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4b5563")
_drawing = threading.Lock()  # matplotlib's caches are shared by all threads


def data_url(content: bytes, kind: str) -> str:
    """Return bytes as a URL that holds them."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def png_url(pixels: Pixels) -> str:
    """Return pixels as a URL of a PNG."""
    return data_url(encode_png(pixels), "image/png")


def image(url: str, alt: str, caption: str = "") -> str:
    """Return a picture in HTML."""
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="{url}" alt="{escape(alt, quote=True)}">{text}</figure>'


def row(*parts: str) -> str:
    """Return pieces of HTML beside each other."""
    return f'<div class="row">{"".join(parts)}</div>'


def download(content: bytes, name: str, kind: str = "image/png") -> str:
    """Return a link that saves bytes under a name of ours."""
    url = data_url(content, kind)
    shown = escape(name, quote=True)
    return f'<a class="save" download="{shown}" href="{url}">Save {shown}</a>'


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as an HTML table; numbers with four digits."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(_written(v))}</td>' for v in each.values())}</tr>"
        for each in rows
    )
    return f'<table class="told"><tr>{head}</tr>{body}</table>'


def _written(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "–" if value is None else str(value)


def sheet(x: Tensor, columns: int | None = None, width: int = 96) -> Pixels:
    """Return samples (n, channels, height, width) in [−1, 1] on one sheet."""
    pixels = to_pixels(x)
    scale = max(1, round(width / pixels.shape[2]))
    return Layout.of(len(pixels), pixels.shape[2], columns, scale).arrange(pixels)


def animation(frames: Sequence[Pixels], seconds: float = 3.0) -> str:
    """Return frames as the URL of a WebP that plays for about so long, and again."""
    buffer = BytesIO()
    first, *others = [Image.fromarray(frame).convert("RGB") for frame in frames]
    each = max(40, int(1000 * seconds / len(frames)))
    pauses = [each] * len(others) + [1200]
    first.save(
        buffer, format="WEBP", save_all=True, append_images=others, duration=pauses, loop=0,
        lossless=True, method=2,
    )  # fmt: skip
    return data_url(buffer.getvalue(), "image/webp")


def curves(
    series: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
) -> str:
    """Return plots over time beside each other, as the URL of an SVG.

    Args:
        series: title of a plot → name of a curve → (times, values); where all values are positive
            the axis is logarithmic. Time runs from noise, on the left, to data.
    """
    with _drawing:
        figure, axes = _figure(len(series))
        for axis, (title, named) in zip(axes, series.items(), strict=True):
            for colour, (name, (times, values)) in zip(cycle(COLOURS), named.items(), strict=False):
                axis.plot(times, values, color=colour, label=name, lw=1.4, marker=".", ms=4)
            numbers = [v for _, values in named.values() for v in values]
            if numbers and min(numbers) > 0:
                axis.set_yscale("log")
            axis.set(title=title, xlabel="t")
            axis.invert_xaxis()
        if axes[0].get_legend_handles_labels()[1]:
            figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center",
                          ncols=3, frameon=False)  # fmt: skip
        return _svg(figure)


def pathlines(ways: Mapping[str, tuple[Tensor, Tensor]]) -> str:
    """Return ways in the plane beside each other, as the URL of an SVG.

    Args:
        ways: title → (states (steps, n, 2), data (m, 2) that lies underneath).
    """
    with _drawing:
        figure, axes = _figure(len(ways), 4.2)
        points = np.concatenate([np.asarray(states.reshape(-1, 2)) for states, _ in ways.values()])
        reach = 1.05 * float(np.abs(points[np.isfinite(points).all(1)]).max())
        for axis, (title, (states, data)) in zip(axes, ways.items(), strict=True):
            lines = states.cpu().numpy()
            axis.scatter(*data.cpu().numpy().T, s=2, color="#cbd5e1", linewidths=0)
            axis.plot(lines[:, :, 0], lines[:, :, 1], color=COLOURS[0], lw=0.6, alpha=0.7)
            axis.scatter(*lines[0].T, s=6, color="#94a3b8", linewidths=0, label="noise")
            axis.scatter(*lines[-1].T, s=9, color=COLOURS[1], linewidths=0, label="end", zorder=3)
            axis.set(title=title, aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach))
        return _svg(figure)


def _figure(n: int, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "studio", "to draw curves") from error
    figure = Figure(figsize=(max(4.2 * n, 4.2), height), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(1, max(n, 1))))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.title.set_fontsize(10)
    return figure, axes


def _svg(figure: Figure) -> str:
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    figure.clear()  # the figure and its axes know each other: do not wait for the collector
    return data_url(buffer.getvalue(), "image/svg+xml")


def spread(frames: int, most: int) -> list[int]:
    """Return which of so many frames to show: at most `most`, evenly, the first and last included.

    >>> spread(21, 5)
    [0, 5, 10, 15, 20]
    """
    n = min(frames, most)
    return [math.floor(i * (frames - 1) / max(n - 1, 1) + 0.5) for i in range(n)]

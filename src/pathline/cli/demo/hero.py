"""The picture for the README: paths from noise to data under three solvers, with their errors."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch

from pathline.cli.demo.measure import CONVERGED, FEW, SOLVERS, Flow, Made, Study
from pathline.core.errors import MissingExtra
from pathline.core.images import to_pixels
from pathline.core.solution import Solution

WIDTH, HEIGHT = 1200, 500
MARGIN, GAP, COLUMN = 26, 20, 272
PATHS, STRIP, TILE = (88, 252), 354, 64
REACH = 2.45

NIGHT, PAPER, SOFT = "#0b1021", "#ffffff", "#aab4d4"
GLOW = ("#0b1021", "#131d45", "#23397a", "#3a66b0")
COLOURS = ("#ff7a66", "#ffc857", "#5fe3b2", "#e8ecff")


def hero(study: Study, flow: Flow) -> bytes:
    """Return the picture as PNG.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    figure = _figure()
    density = _density(flow)
    for i, (name, title) in enumerate(SOLVERS.items()):
        _title(figure, i, title, f"error {flow.error(name):.2f}")
        axes = _panel(figure, i, density)
        _draw(axes, flow.exact, PAPER, 1.0, 0.42)
        _draw(axes, flow.paths[name], COLOURS[i], 1.6, 0.95, marker="o")
        _strip(figure, i, study.runs[name, FEW], f"error {study.error(name, FEW):.2f}")
    last = len(SOLVERS)
    _title(figure, last, "converged", "the exact paths")
    _draw(_panel(figure, last, density), flow.exact, COLOURS[-1], 1.6, 0.95)
    _strip(figure, last, study.converged, f"{CONVERGED[1]} evaluations")
    said = (
        f"The same noise, {FEW} evaluations.  Above: a known mixture, its exact paths in white.  "
    )
    _write(figure, MARGIN, 482, f"{said}Below: the {study.name} model.", SOFT, 13.5)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plot", "to draw hero.png") from error
    return Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, facecolor=NIGHT)


def _density(flow: Flow) -> np.ndarray[Any, Any]:
    """Return the density over (position, time), each time scaled to its own peak."""
    x = torch.linspace(-REACH, REACH, 360, dtype=torch.float64)[:, None]
    times = torch.linspace(1, flow.law.path.t_min, 320, dtype=torch.float64).tolist()
    columns = [flow.law.log_prob(x, t).exp() for t in times]
    return torch.stack([column / column.max() for column in columns], 1).numpy()


def _left(i: int) -> int:
    return MARGIN + i * (COLUMN + GAP)


def _axes(figure: Any, left: float, top: float, width: float, height: float) -> Any:
    place = (left / WIDTH, 1 - (top + height) / HEIGHT, width / WIDTH, height / HEIGHT)
    axes = figure.add_axes(place)
    axes.set_axis_off()
    return axes


def _write(figure: Any, left: float, baseline: float, text: str, colour: str, size: float) -> None:
    figure.text(left / WIDTH, 1 - baseline / HEIGHT, text, color=colour, fontsize=size)


def _title(figure: Any, i: int, title: str, error: str) -> None:
    place = (_left(i) / WIDTH, 1 - 42 / HEIGHT)
    figure.text(*place, title, color=PAPER, fontsize=18.5, fontweight="bold")
    _write(figure, _left(i), 74, error, COLOURS[i], 15.5)


def _panel(figure: Any, i: int, density: np.ndarray[Any, Any]) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    axes = _axes(figure, _left(i), PATHS[0], COLUMN, PATHS[1])
    glow = LinearSegmentedColormap.from_list("glow", GLOW)
    axes.imshow(
        density, extent=(0, 1, -REACH, REACH), origin="lower", aspect="auto", cmap=glow, vmax=1.05
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(-REACH, REACH)
    return axes


def _draw(
    axes: Any, paths: Solution, colour: str, width: float, alpha: float, marker: str = ""
) -> None:
    """Draw every path from noise on the left to data on the right."""
    assert paths.times is not None and paths.trajectory is not None  # asked for by `measured_flow`
    across, up = 1 - paths.times.numpy(), paths.trajectory[:, :, 0].numpy()
    style = {"color": colour, "lw": width, "alpha": alpha, "marker": marker, "ms": 3.4}
    axes.plot(across, up, mec="none", solid_joinstyle="round", clip_on=False, **style)


def _strip(figure: Any, i: int, made: Made, error: str) -> None:
    """Set four samples side by side, and their error below."""
    pitch = (COLUMN - TILE) / 3
    for k, pixels in enumerate(to_pixels(made.x[:4])):
        axes = _axes(figure, _left(i) + round(k * pitch), STRIP, TILE, TILE)
        axes.imshow(pixels, interpolation="nearest", aspect="auto")
    _write(figure, _left(i), STRIP + TILE + 26, error, COLOURS[i], 15.5)

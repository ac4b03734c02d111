"""Error against evaluations: a picture, and the same for a page, where points tell who they are."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

COLOURS = {
    "pathline": "#c62828",
    "diffusers": "#1565c0",
    "k-diffusion": "#2e7d32",
    "azula": "#8e24aa",
}
OTHER = "#616161"


class Curve(NamedTuple):
    """Error against evaluations.

    Args:
        by: whose.
        name: of the sampler.
        points: evaluations → (error, what a point is called).
        is_best: whether it is the best of a library and not one sampler.
    """

    by: str
    name: str
    points: Mapping[int, tuple[float, str]]
    is_best: bool


def draw_png(curves: Sequence[Curve], title: str) -> bytes | None:
    """Return the picture as PNG; None where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for curve in (c for c in curves if c.points):
        style: dict[str, Any] = {"lw": 0.6, "alpha": 0.3}
        if curve.is_best:
            style = {"lw": 2.4, "marker": "o", "ms": 5, "zorder": 3, "label": f"best of {curve.by}"}
        errors = [error for error, _ in curve.points.values()]
        axes.plot(list(curve.points), errors, color=COLOURS.get(curve.by, OTHER), **style)
    shown = sorted({n for curve in curves for n in curve.points})
    axes.set(xscale="log", yscale="log", title=title)
    axes.set(xlabel="evaluations of the guided network", ylabel="RMS error")
    axes.set_xticks(shown, [str(n) for n in shown], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_ylim(*_range(curves))
    axes.grid(True, alpha=0.3)
    axes.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    return image.getvalue()


WIDTH, HEIGHT, EDGE = 960, 560, 60


def svg(curves: Sequence[Curve]) -> str:
    """Return the picture as SVG; a point that is pointed at shows its sampler, grid and error."""
    return "\n".join(_svg([curve for curve in curves if curve.points]))


def _range(curves: Sequence[Curve]) -> tuple[float, float]:
    """Return the errors that are shown: a little around the best curves, less what blew up."""
    best = [error for c in curves if c.is_best for error, _ in c.points.values()]
    every = [error for c in curves for error, _ in c.points.values()]
    if not best:
        return 0.1, 1.0
    return min(best) / 1.5, max(max(best), min(max(every), 1.0)) * 1.5


def _svg(curves: Sequence[Curve]) -> Iterator[str]:
    yield f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">'
    if curves:
        counts = sorted({n for curve in curves for n in curve.points})
        low, high = _range(curves)
        place = _Place((counts[0], counts[-1]), (low, high))
        yield from _axes(place, counts)
        for curve in sorted(curves, key=lambda c: c.is_best):
            yield from _curve(place, curve)
        yield from _legend([curve.by for curve in curves if curve.is_best])
    yield "</svg>"


class _Place(NamedTuple):
    """Where a point is drawn, on logarithmic axes."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, n: float, error: float) -> tuple[float, float]:
        across = math.log(n / self.x[0]) / (math.log(self.x[1] / self.x[0]) or 1.0)
        error = min(max(error, self.y[0]), self.y[1])
        up = math.log(error / self.y[0]) / (math.log(self.y[1] / self.y[0]) or 1.0)
        return EDGE + across * (WIDTH - 2 * EDGE), HEIGHT - EDGE - up * (HEIGHT - 2 * EDGE)


def _axes(place: _Place, counts: Sequence[int]) -> Iterator[str]:
    for n in counts:
        x, bottom = place.at(n, place.y[0])
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{EDGE}" y2="{bottom:.1f}" stroke="#ddd"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 20:.1f}" text-anchor="middle">{n}</text>'
    for power in range(math.ceil(math.log10(place.y[0])), math.floor(math.log10(place.y[1])) + 1):
        left, y = place.at(place.x[0], 10.0**power)
        yield f'<line x1="{left}" x2="{WIDTH - EDGE}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        yield f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">1e{power}</text>'
    yield f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">evaluations</text>'
    yield f'<text x="12" y="{EDGE - 24}">RMS error to the converged solution</text>'


def _curve(place: _Place, curve: Curve) -> Iterator[str]:
    colour = COLOURS.get(curve.by, OTHER)
    points = [(place.at(n, error), n, error, who) for n, (error, who) in curve.points.items()]
    line = " ".join(f"{x:.1f},{y:.1f}" for (x, y), *_ in points)
    weight = 'stroke-width="2.5"' if curve.is_best else 'stroke-width="1" stroke-opacity=".2"'
    yield f'<polyline points="{line}" fill="none" stroke="{colour}" {weight}/>'
    for (x, y), n, error, who in points:
        radius, clear = (5, 1) if curve.is_best else (3, 0.25)
        told = escape(f"{curve.by}: {who}, {n} evaluations: {error:.3g}")
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}"'
        yield f' fill="{colour}" fill-opacity="{clear}">'
        yield f"<title>{told}</title></circle>"


def _legend(libraries: Sequence[str]) -> Iterator[str]:
    for i, by in enumerate(libraries):
        x, y = WIDTH - EDGE - 160, EDGE + 10 + 20 * i
        yield f'<circle cx="{x}" cy="{y}" r="5" fill="{COLOURS.get(by, OTHER)}"/>'
        yield f'<text x="{x + 12}" y="{y + 4}">best of {escape(by)}</text>'

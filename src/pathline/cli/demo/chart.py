"""A chart on logarithmic axes as SVG, coloured by the page's own style, light or dark."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 156, 16, 52

Curves = Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True)
class Chart:
    """Curves over evaluations.

    Args:
        curves: title → points (evaluations, error), both positive.
        floor: what the errors cannot be told apart from, drawn as a dashed line; None for none.
    """

    curves: Curves
    floor: float | None = None

    @property
    def spans(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The ends of both axes; the vertical one on whole halves of a decade."""
        points = [point for curve in self.curves.values() for point in curve]
        xs, ys = [x for x, _ in points], [y for _, y in points]
        ys += [] if self.floor is None else [self.floor]
        low, high = math.log10(min(ys)), math.log10(max(ys))
        return (min(xs), max(xs)), (
            10 ** (math.floor(low * 2) / 2),
            10 ** (math.ceil(high * 2) / 2),
        )

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return where a point lies in the picture."""
        (left, right), (low, high) = self.spans
        across = math.log(x / left) / math.log(right / left)
        up = math.log(y / low) / math.log(high / low)
        across, up = across * (WIDTH - LEFT - RIGHT), up * (HEIGHT - TOP - BOTTOM)
        return round(LEFT + across, 1), round(HEIGHT - BOTTOM - up, 1)

    def svg(self, title: str) -> str:
        """Return the chart."""
        head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>'
        parts = [head, *self._axes(), *self._floor(), *self._lines(), "</svg>"]
        return "\n".join(parts)

    def _axes(self) -> Iterator[str]:
        (left, _), (low, high) = self.spans
        for exponent in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1):
            x, y = self.place(left, 10.0**exponent)
            yield f'<line class="rule" x1="{x}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
            yield f'<text x="{x - 10}" y="{y + 5}" text-anchor="end">{10.0**exponent:g}</text>'
        for n in sorted({x for curve in self.curves.values() for x, _ in curve if x >= 5}):
            x, y = self.place(n, low)
            yield f'<line class="rule" x1="{x}" x2="{x}" y1="{TOP}" y2="{y}"/>'
            yield f'<text x="{x}" y="{y + 20}" text-anchor="middle">{n:g}</text>'
        x = (LEFT + WIDTH - RIGHT) / 2
        yield f'<text x="{x}" y="{HEIGHT - 10}" text-anchor="middle">evaluations</text>'

    def _floor(self) -> Iterator[str]:
        if self.floor is None:
            return
        (left, _), _ = self.spans
        x, y = self.place(left, self.floor)
        yield f'<line class="floor" x1="{x}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        yield f'<text x="{x + 6}" y="{y - 7}">the converged solution is this sure</text>'

    def _lines(self) -> Iterator[str]:
        ends = {name: self.place(*curve[-1]) for name, curve in self.curves.items()}
        labels = apart({name: y for name, (_, y) in ends.items()})
        for i, (name, curve) in enumerate(self.curves.items()):
            places = [self.place(*point) for point in curve]
            path = " ".join(f"{x},{y}" for x, y in places)
            yield f'<polyline class="line c{i}" points="{path}"/>'
            for (n, error), (x, y) in zip(curve, places, strict=True):
                tip = f"<title>{escape(name)}, {n:g} evaluations: error {error:.3g}</title>"
                yield f'<circle class="dot c{i}" cx="{x}" cy="{y}" r="4">{tip}</circle>'
            x = ends[name][0] + 12
            yield f'<text class="name c{i}" x="{x}" y="{labels[name] + 5}">{escape(name)}</text>'


def apart(heights: Mapping[str, float], gap: float = 19) -> dict[str, float]:
    """Move labels down until none covers another.

    Example:
        >>> apart({"a": 10, "b": 12}, gap=5)
        {'a': 10, 'b': 15}
    """
    placed: dict[str, float] = {}
    last = -math.inf
    for name in sorted(heights, key=lambda name: heights[name]):
        last = max(heights[name], last + gap)
        placed[name] = last
    return placed

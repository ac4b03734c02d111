"""Monotone cubics: a smooth curve through a table that never overshoots, and its inverse.

    y(x) = y_0 h_00(u) + y_1 h_01(u) + h (m_0 h_10(u) + m_1 h_11(u)),   u = (x − x_0)/h

Between two knots y is the cubic with the given values and slopes. Where the slopes are those of
`pchip`, or `limited` to three times the chords beside them, y rises and falls as the table does.

Paper: Fritsch & Carlson 1980 for the limit; Fritsch & Butland 1984 for the slopes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

_ROUNDS = 60
"""Rounds of safeguarded Newton steps: bisection alone would be exact to 2⁻⁶⁰ of a cell."""


@dataclass(frozen=True, eq=False)
class Cubic:
    """A piecewise cubic through knots, with a derivative that is continuous.

    Args:
        x: knots, (n,) float64, strictly rising, n ≥ 2.
        y: values there, (n,).
        slopes: derivatives there, (n,).
    """

    x: Tensor
    y: Tensor
    slopes: Tensor
    _kept: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = field(
        default_factory=dict[torch.device, tuple[Tensor, Tensor, Tensor]], init=False, repr=False
    )

    @classmethod
    def pchip(cls, x: Tensor, y: Tensor) -> Cubic:
        """Return the cubic that keeps the table's monotony, where no slopes are known."""
        return cls(x, y, pchip(x, y))

    def __call__(self, x: Tensor) -> Tensor:
        """Return y(x) in float64, in the shape of x; beyond the ends the last cubic goes on."""
        cell, u = self._cell(x)
        return self._value(cell, u)

    def slope(self, x: Tensor) -> Tensor:
        """Return dy/dx, the derivative of just what `__call__` returns."""
        cell, u = self._cell(x)
        return self._slope(cell, u) / self._width(cell)

    def inverse(self, y: Tensor) -> Tensor:
        """Return x with y(x) = y, for a table that rises; exact to rounding."""
        y = y.double()
        knots, values, _ = self._on(y.device)
        cell = torch.searchsorted(values, y.contiguous(), right=True)
        cell = cell.sub(1).clamp(0, len(values) - 2)
        below, above = torch.zeros_like(y), torch.ones_like(y)
        u = ((y - values[cell]) / (values[cell + 1] - values[cell])).clamp(0, 1)
        for _ in range(_ROUNDS):
            off = self._value(cell, u) - y
            below, above = torch.where(off <= 0, u, below), torch.where(off >= 0, u, above)
            newton = u - off / self._slope(cell, u)
            inside = (newton >= below) & (newton <= above)
            u = torch.where(inside, newton, (below + above) / 2)
        return knots[cell] + u * self._width(cell)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return the table on a device; copied once, for a CUDA graph may not copy."""
        if device not in self._kept:
            self._kept[device] = self.x.to(device), self.y.to(device), self.slopes.to(device)
        return self._kept[device]

    def _cell(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the number of x's cell, and where in it x lies, from 0 to 1."""
        x = x.double()
        knots = self._on(x.device)[0]
        cell = torch.searchsorted(knots, x.contiguous(), right=True)
        cell = cell.sub(1).clamp(0, len(knots) - 2)
        return cell, (x - knots[cell]) / self._width(cell)

    def _width(self, cell: Tensor) -> Tensor:
        knots = self._on(cell.device)[0]
        return knots[cell + 1] - knots[cell]

    def _ends(self, cell: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the values and the slopes (per cell) at both ends of the cells."""
        _, y, m = self._on(cell.device)
        h = self._width(cell)
        return y[cell], y[cell + 1], m[cell] * h, m[cell + 1] * h

    def _value(self, cell: Tensor, u: Tensor) -> Tensor:
        y0, y1, m0, m1 = self._ends(cell)
        back = 1 - u
        bend = u * back * (m0 * back - m1 * u)
        return y0 * (1 + 2 * u) * back**2 + y1 * (3 - 2 * u) * u**2 + bend

    def _slope(self, cell: Tensor, u: Tensor) -> Tensor:
        """dy/du."""
        y0, y1, m0, m1 = self._ends(cell)
        back = 1 - u
        return 6 * u * back * (y1 - y0) + m0 * back * (1 - 3 * u) + m1 * u * (3 * u - 2)


def pchip(x: Tensor, y: Tensor) -> Tensor:
    """Return slopes at the knots: a harmonic mean of the chords beside each, 0 where they turn."""
    h, chords = x.diff(), y.diff() / x.diff()
    if len(chords) == 1:
        return chords.expand(2).clone()
    left, right = chords[:-1], chords[1:]
    w_left, w_right = h[:-1] + 2 * h[1:], 2 * h[:-1] + h[1:]
    turns = left * right <= 0
    left, right = torch.where(turns, 1.0, left), torch.where(turns, 1.0, right)
    mean = (w_left + w_right) / (w_left / left + w_right / right)
    first = _end(h[0], h[1], chords[0], chords[1])
    last = _end(h[-1], h[-2], chords[-1], chords[-2])
    return torch.cat((first[None], torch.where(turns, 0.0, mean), last[None]))


def _end(h0: Tensor, h1: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """Return the slope at an end, of the parabola through three knots, as far as it is monotone."""
    slope = ((2 * h0 + h1) * near - h0 * far) / (h0 + h1)
    if float(slope * near) <= 0:
        return torch.zeros_like(slope)
    steep = float(near * far) <= 0 and float(slope.abs()) > 3 * float(near.abs())
    return 3 * near if steep else slope


def limited(x: Tensor, y: Tensor, slopes: Tensor) -> Tensor:
    """Return the slopes of a rising table, none more than three times a chord beside it."""
    chords = y.diff() / x.diff()
    most = torch.full_like(slopes, torch.inf)
    most[:-1] = chords
    most[1:] = torch.minimum(most[1:], chords)
    return torch.minimum(slopes, 3 * most)

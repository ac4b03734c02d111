"""Geometry of edits: where an object is, where it goes, and the same done to noise.

An object moves by (dx, dy), x to the right and y down, and grows by a scale about the centre of its
own bounding box: what is at p after the move was at

    s(p) = c + (p − c − d)/scale

Masks and noise are read at the nearest pixel, which keeps masks 0 and 1 and noise of unit variance;
features are read bilinearly. Shifts by whole pixels are exact in both. Because the target's mask is
read by the same map as what it is compared with, the two have one pixel count by construction, and
pairs are pairs whatever the scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from pathline.core.errors import UsageError

__all__ = ["Point", "Warp", "as_mask", "box", "moved", "on_grid", "patch", "placed"]

MOST_COVERED = 0.8

Point = tuple[float, float]
"""x to the right, y down, in pixels of a mask."""


def as_mask(mask: Tensor, name: str = "mask") -> Tensor:
    """Return a mask as (height, width) bool.

    Raises:
        UsageError: it is no mask, empty, or nearly everything.
    """
    made = mask.squeeze() if mask.ndim > 2 else mask
    if made.ndim != 2:
        raise UsageError(f"the {name} is (height, width), not {tuple(mask.shape)}.")
    if made.dtype != torch.bool:
        if not bool(((made == 0) | (made == 1)).all()):
            raise UsageError(f"the {name} has values other than 0 and 1; 1 is the object.")
        made = made == 1
    covered = float(made.double().mean())
    if covered == 0:
        raise UsageError(f"the {name} is empty: mark the pixels that are meant with 1.")
    if covered > MOST_COVERED:
        raise UsageError(
            f"the {name} covers {covered:.0%} of the picture, and nothing is left to keep: mark "
            f"{MOST_COVERED:.0%} at most."
        )
    return made


def on_grid(mask: Tensor, size: tuple[int, int], name: str = "mask") -> Tensor:
    """Return a mask on another grid: the pixels of which it covers more than a half.

    Raises:
        UsageError: nothing is left of it there.
    """
    if tuple(mask.shape) == size:
        return mask
    share = F.interpolate(mask[None, None].double(), size, mode="area")[0, 0]
    if size[0] > mask.shape[0]:
        share = F.interpolate(mask[None, None].double(), size, mode="nearest-exact")[0, 0]
    made = share > 0.5
    if not bool(made.any()):
        raise UsageError(
            f"the {name} is too small to be seen on a grid of {size[0]} × {size[1]}: mark more."
        )
    return made


def box(mask: Tensor) -> tuple[int, int, int, int]:
    """Return the bounding box of a mask: first row, last row, first column, last column."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


@dataclass(frozen=True)
class Warp:
    """Where each row and column comes from.

    Args:
        size: (height, width) of the grid.
        centre: (y, x) that stays when nothing moves, in pixels.
        shift: (dy, dx), in pixels.
        scale: above 0.

    Example:
        >>> warp = Warp((1, 4), (0.0, 0.0), (0.0, 1.0))
        >>> warp.nearest(torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]]))
        tensor([[[[1., 1., 2., 3.]]]])
    """

    size: tuple[int, int]
    centre: tuple[float, float]
    shift: tuple[float, float]
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise UsageError(f"scale={self.scale}: an object's size is multiplied by it; above 0.")

    def _sources(self, axis: int, margin: int = 0) -> Tensor:
        """Return s(p) along an axis, for the pixels of the frame and a margin around it."""
        p = torch.arange(-margin, self.size[axis] + margin, dtype=torch.float64)
        c = self.centre[axis]
        return c + (p - c - self.shift[axis]) / self.scale

    @property
    def back(self) -> Warp:
        """The way back: where each pixel went."""
        centre = self.centre[0] + self.shift[0], self.centre[1] + self.shift[1]
        return Warp(self.size, centre, (-self.shift[0], -self.shift[1]), 1 / self.scale)

    @cached_property
    def _weights(self) -> tuple[Tensor, Tensor]:
        """Bilinear weights of rows and of columns, (n, n) each; the border goes on outside."""
        made: list[Tensor] = []
        for axis, n in enumerate(self.size):
            at = self._sources(axis).clamp(0, n - 1)
            low = at.floor().clamp(max=max(n - 2, 0))
            share = at - low
            weights = torch.zeros(n, n, dtype=torch.float64)
            rows = torch.arange(n)
            weights[rows, low.long()] = 1 - share
            weights[rows, (low.long() + 1).clamp(max=n - 1)] += share
            made.append(weights)
        return made[0], made[1]

    def bilinear(self, features: Tensor) -> Tensor:
        """Return maps, (batch, features, height, width), as they look after the move."""
        rows, columns = (each.to(features) for each in self._weights)
        return rows @ features @ columns.T

    def nearest(self, x: Tensor) -> Tensor:
        """Return states, (batch, channels, height, width), after the move; no value is new."""
        rows, columns = (
            _rounded(self._sources(axis)).clamp(0, n - 1) for axis, n in enumerate(self.size)
        )
        return x[..., rows.to(x.device), :][..., columns.to(x.device)]

    def mask(self, mask: Tensor, margin: int = 0) -> Tensor:
        """Return a mask after the move, with a margin around the frame; outside is nothing."""
        picked = mask
        for axis, n in enumerate(self.size):
            at = _rounded(self._sources(axis, margin))
            inside = (at >= 0) & (at < n)
            shape = (-1, 1) if axis == 0 else (1, -1)
            picked = picked.index_select(axis, at.clamp(0, n - 1)) & inside.reshape(shape)
        return picked


def _rounded(at: Tensor) -> Tensor:
    return (at + 0.5).floor().long()


def placed(
    mask: Tensor, dx: float, dy: float, scale: float, size: tuple[int, int] | None = None
) -> Warp:
    """Return the move of a mask's object.

    Args:
        mask: (height, width) bool, of the object.
        dx, dy: in pixels of the mask.
        scale: about the centre of its bounding box.
        size: of the grid to move on; lengths are scaled to it. The mask's own if None.
    """
    height, width = mask.shape
    size = (height, width) if size is None else size
    top, bottom, left, right = box(on_grid(mask, size))
    ratio = size[0] / height, size[1] / width
    centre = (top + bottom) / 2, (left + right) / 2
    return Warp(size, centre, (dy * ratio[0], dx * ratio[1]), scale)


def moved(mask: Tensor, warp: Warp, name: str = "object") -> Tensor:
    """Return the mask of an object after its move, with all of its pixels inside the frame.

    Raises:
        UsageError: it leaves the frame, or nothing is left of it.
    """
    made = warp.mask(mask)
    reach = max(abs(warp.shift[0]), abs(warp.shift[1])) + max(warp.size) * max(warp.scale, 1.0)
    whole = int(warp.mask(mask, int(reach) + 1).sum())
    inside = int(made.sum())
    if inside != whole:
        raise UsageError(
            f"the {name} leaves the picture: {inside} of its {whole} pixels are inside after the "
            f"move by (dx, dy) = ({warp.shift[1]:g}, {warp.shift[0]:g}) and scale {warp.scale:g}; "
            "pixel counts must match, so move it less, or make it smaller."
        )
    if not inside:
        raise UsageError(
            f"nothing is left of the {name} at scale {warp.scale:g}: take a larger one."
        )
    return made


def patch(point: Point, size: tuple[int, int], reach: int = 1) -> Tensor:
    """Return the mask of a square around a point, wholly inside the frame.

    Args:
        point: (x, y) in pixels of the frame; near the border the square is pushed inside: columns
            by the frame's width and rows by its height.
        size: (height, width).
        reach: pixels to each side; 1 is 3 × 3.
    """
    mask = torch.zeros(size, dtype=torch.bool)
    y, x = _inside(point, size, reach)
    mask[y - reach : y + reach + 1, x - reach : x + reach + 1] = True
    return mask


def _inside(point: Point, size: tuple[int, int], reach: int) -> tuple[int, int]:
    x, y = point
    column = min(max(int(x + 0.5), reach), size[1] - 1 - reach)
    row = min(max(int(y + 0.5), reach), size[0] - 1 - reach)
    return row, column


def pasted(z: Tensor, source: Tensor, where: Tensor) -> Tensor:
    """Return z, (batch, channels, height, width), with what the source has inside a mask."""
    return torch.where(where.to(z.device), source, z)


def rescaled(points: Sequence[Point], mask: tuple[int, int], size: tuple[int, int]) -> list[Point]:
    """Return points of a mask's grid on another one; centres of pixels stay centres."""
    ratio = size[1] / mask[1], size[0] / mask[0]
    return [((x + 0.5) * ratio[0] - 0.5, (y + 0.5) * ratio[1] - 0.5) for x, y in points]

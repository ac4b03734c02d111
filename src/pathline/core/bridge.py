"""Brownian bridges: what is known of a motion over an interval, and how it is cut and joined.

Where W over an interval of length ℓ = l + r is known, its halves follow from one fresh normal X,
and together with the space-time Lévy area

    H_{s,t} = 1/(t−s) ∫_s^t (W_u − W_s − (u−s)/(t−s) W_{s,t}) du  ~  N(0, (t−s)/12)

(independent of W_{s,t}) from two.

Paper: Kidger 2022 (arXiv:2202.02435), Sec. 5.5; Foster, Lyons & Oberhauser 2020
(arXiv:1905.01720) for H.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

STREAM = "brownian"
"""Of the draws of all motions."""


class Piece(NamedTuple):
    """A Brownian motion over intervals.

    Args:
        w: W_{s,t}, (..., batch, *shape).
        h: its space-time Lévy area, alike; None where nobody asked for it.
    """

    w: Tensor
    h: Tensor | None = None


Length = float | Tensor


def fresh(x: Tensor, length: Length, has_area: bool) -> Piece:
    """Return a Brownian motion over an interval about which nothing is known.

    Args:
        x: standard normals, (..., 2, *shape) where there is an area, else (..., 1, *shape); the
            second axis from `length`'s shape on.
        length: of the interval; a tensor broadcasts against w.
        has_area: whether H is wanted.
    """
    w = x[0] * _root(length)
    return Piece(w, x[1] * _root(length / 12) if has_area else None)


def halves(whole: Piece, left: Length, right: Length, x: Tensor) -> tuple[Piece, Piece]:
    """Return both parts of an interval that is cut in two, given what is known of it all.

    Args:
        whole: over the interval.
        left, right: the lengths of the parts.
        x: standard normals, (1, *w.shape), or (2, *w.shape) where there is an area.
    """
    ell = left + right
    if whole.h is None:
        w = whole.w * (left / ell) + x[0] * _root(left * right / ell)
        return Piece(w), Piece(whole.w - w)
    v = 0.5 * _root(left * right / (left**3 + right**3))
    a, b, c = v * left**2 / ell, v * right**2 / ell, v / math.sqrt(3)
    bend = whole.h * (6 * left * right / ell**2) + x[0] * (2 * (a * left + b * right) / ell)
    first = Piece(
        whole.w * (left / ell) + bend,
        whole.h * (left / ell) ** 2 - x[0] * a + x[1] * (c * right),
    )
    second = Piece(
        whole.w * (right / ell) - bend,
        whole.h * (right / ell) ** 2 - x[0] * b - x[1] * (c * left),
    )
    return first, second


def joined(first: Piece, second: Piece, left: Length, right: Length) -> Piece:
    """Return the motion over an interval from its parts, ℓH = l H_l + r H_r + ½(r W_l − l W_r)."""
    w = first.w + second.w
    if first.h is None or second.h is None:
        return Piece(w)
    area = first.h * left + second.h * right + (first.w * right - second.w * left) * 0.5
    return Piece(w, area / (left + right))


def _root(x: Length) -> Length:
    """Square root, correctly rounded: torch's is not on a CPU, see `core.noise`."""
    if not isinstance(x, Tensor):
        return math.sqrt(x)
    return torch.from_numpy(np.sqrt(x.numpy())) if x.device.type == "cpu" else x.sqrt()


def beyond(before: Piece, piece: Piece, length: Length) -> Piece:
    """Return W and ∫ W du at the end of an interval, given both at its start."""
    if piece.h is None or before.h is None:
        return Piece(before.w + piece.w)
    return Piece(before.w + piece.w, before.h + (before.w + piece.w * 0.5 + piece.h) * length)


def picked(piece: Piece, index: np.ndarray) -> Piece:
    """Return some of the intervals."""
    at = torch.from_numpy(index).to(piece.w.device)
    return Piece(*(None if v is None else v[at] for v in piece))  # type: ignore


def woven(first: Piece, second: Piece) -> Piece:
    """Return both of each pair, one after the other."""
    pairs = zip(first, second, strict=True)
    return Piece(*(None if a is None else torch.stack((a, b), 1).flatten(0, 1) for a, b in pairs))  # type: ignore


def sliced(pieces: Piece, a: int, b: int) -> Piece:
    """Return the intervals from a up to b."""
    return Piece(*(None if v is None else v[a:b] for v in pieces))  # type: ignore


def chen(pieces: Piece) -> Tensor:
    """Return the Lévy area of consecutive pieces, (n, batch, m) each: (batch, m, m)."""
    w, h = pieces
    assert h is not None
    before = w.cumsum(0) - w
    mixed = (h + before * 0.5).unsqueeze(-1) * w.unsqueeze(-2)
    mixed = mixed.sum(0)
    return mixed - mixed.mT

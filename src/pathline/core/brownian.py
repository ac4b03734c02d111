"""Brownian motion that can be asked again: a pure function of (seed, interval, coordinate).

A path is refined, never redrawn (`core.bridge`). Each draw belongs to a node of a binary tree and
is a function of the sample's seed and the node alone, so answers depend neither on the batch nor on
what was asked before, and nothing has to be kept.

Paper: Kidger 2022 (arXiv:2202.02435), Sec. 5.5; Jelinčič, Tao, Wood & Foster 2024
(arXiv:2405.06464), virtual tree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.bridge import STREAM, Piece, beyond, chen, fresh, halves, picked, sliced, woven
from pathline.core.errors import UsageError

DEEPEST = 30
"""Most levels of a tree: the number of a node has 32 bits."""

_SNAP = 1e-9
"""Times that are this near to a node's end, in leaves, are that end."""


@dataclass(frozen=True)
class Brownian:
    """A Brownian path for each of some seeds, on a span of time: a virtual tree.

    The span is halved `depth` times; a time inside a leaf is reached by one more bridge, keyed by
    the leaf. Use it to drive solves of different steps, solvers or tolerances by one path
    (`SDE.driven`), or to look at the path that a solve has seen.

    Args:
        start, end: the span, start < end.
        seeds: one a sample.
        shape: of one sample's motion: the state's for diagonal noise, (m,) for m common ones.
        depth: how often the span is halved, 1 to 30. The path is exact in law at multiples of the
            leaf, (end − start)/2^depth, and at one time more in each leaf.
        has_area: whether H is there. The paths with and without are not the same.
        device: where.

    Raises:
        UsageError: an empty span, or a depth out of range.

    Cost: of k times, at most k·depth draws; none of the tree is kept.

    Example:
        >>> import torch
        >>> path = Brownian(0.0, 1.0, (7, 8), (3,))
        >>> w = path(0.0, 0.7)
        >>> torch.allclose(w, path(0.0, 0.2) + path(0.2, 0.7))
        True
    """

    start: float
    end: float
    seeds: tuple[int, ...]
    shape: tuple[int, ...] = ()
    depth: int = 14
    has_area: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and math.isfinite(self.end) and self.start < self.end):
            raise UsageError(
                f"a Brownian path has a span with start < end, not [{self.start}, {self.end}]."
            )
        if not 1 <= self.depth <= DEEPEST:
            raise UsageError(f"depth={self.depth}: the span is halved 1 to {DEEPEST} times.")
        noise.check_seeds(self.seeds)
        if not self.seeds:
            raise UsageError("a Brownian path needs seeds, one a sample, and was given none.")

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def leaf(self) -> float:
        """The length of the smallest intervals."""
        return (self.end - self.start) / 2**self.depth

    @cached_property
    def _keys(self) -> noise.Keys:
        return noise.keys(self.seeds, self.device)

    def __call__(self, s: float, t: float) -> Tensor:
        """Return W_t − W_s, (batch, *shape) float64; t < s gives its negative.

        Raises:
            UsageError: a time outside of the span.
        """
        return self.over((s, t)).w[0]

    def over(self, times: Sequence[float]) -> Piece:
        """Return the motion over each interval between consecutive times, (n, batch, *shape).

        Over an interval that runs back both are of the path run backwards: W has the other sign,
        H the same.

        Raises:
            UsageError: a time outside of the span.
        """
        w, area = self._at(times)
        rise = w[1:] - w[:-1]
        if area is None:
            return Piece(rise)
        shape = (-1,) + (1,) * (w.ndim - 1)
        h = torch.tensor(times, dtype=torch.float64, device=self.device).diff().reshape(shape)
        return Piece(rise, (area[1:] - area[:-1]) / h - w[:-1] - rise * 0.5)

    def at(self, times: Sequence[float]) -> Tensor:
        """Return W_t − W_start at each of these times, (n, batch, *shape) float64."""
        return self._at(times)[0]

    def each(self, times: np.ndarray, rows: np.ndarray | None = None) -> Piece:
        """Return the motion between times of each sample's own, (n − 1, samples, *shape).

        Args:
            times: (n, samples), in the order in which they are asked for.
            rows: which samples; all of them, in order, if None.

        Raises:
            UsageError: a time outside of the span.

        Cost: n · samples · (depth + 2) draws at most: they share no nodes.
        """
        w, area = _descended_each(times, np.arange(len(self)) if rows is None else rows, self)
        rise = w[1:] - w[:-1]
        if area is None:
            return Piece(rise)
        h = np.diff(times, axis=0).reshape(*rise.shape[:2], *[1] * (rise.ndim - 2))
        length = torch.from_numpy(np.where(h == 0, 1.0, h)).to(w.device)
        return Piece(rise, (area[1:] - area[:-1]) / length - w[:-1] - rise * 0.5)

    def levy_area(self, s: float, t: float) -> Tensor:
        """Return A_{jk} = ½ ∫ (W_j − W_j(s)) dW_k − (W_k − W_k(s)) dW_j, (batch, m, m).

        Summed over the leaves in between by Chen's identity, each leaf's being H W' − W H', its
        mean given what is known. So areas over adjoining intervals of whole leaves fit together.

        Raises:
            UsageError: a motion without H, or not of shape (m,).
        """
        return self.levy_areas((s, t))[0]

    def levy_areas(self, times: Sequence[float]) -> Tensor:
        """Return the Lévy area of each interval between consecutive times, (n, batch, m, m)."""
        if not self.has_area or len(self.shape) != 1:
            raise UsageError("a Lévy area needs has_area=True and a motion of shape (m,).")
        inside, cuts = [times[0]], [0]
        for s, t in zip(times, times[1:], strict=False):
            leaves = self._leaves(min(s, t), max(s, t))
            inside += leaves[1:] if s <= t else leaves[-2::-1]
            cuts.append(len(inside) - 1)
        pieces = self.over(inside)
        each = [chen(sliced(pieces, a, b)) for a, b in zip(cuts, cuts[1:], strict=False)]
        return torch.stack(each)

    def _leaves(self, s: float, t: float) -> list[float]:
        first, last = (self._position(u) for u in (s, t))
        edges = range(math.floor(first) + 1, math.ceil(last))
        return [s, *(self.start + (self.end - self.start) * k / 2**self.depth for k in edges), t]

    def _position(self, t: float) -> float:
        """Return a time in leaves."""
        p = (t - self.start) / (self.end - self.start) * 2**self.depth
        if not math.isfinite(p):
            raise UsageError(f"a Brownian path is asked at finite times, and not at {t}.")
        nearest = round(p)
        if abs(p - nearest) <= _SNAP * max(1.0, nearest):
            p = float(nearest)
        if not 0 <= p <= 2**self.depth:
            raise UsageError(
                f"t = {t:.6g} is outside of the Brownian path's span [{self.start:g}, "
                f"{self.end:g}]; make one that covers the times of the solve."
            )
        return p

    def _at(self, times: Sequence[float]) -> Piece:
        """Return W and ∫ W du from the start to each time."""
        places = np.array([self._position(float(t)) for t in times])
        distinct, index = np.unique(places, return_inverse=True)
        return picked(_descended(distinct, self), index)

    def draws(self, nodes: Sequence[int], counts: Sequence[int]) -> Sequence[Tensor]:
        """Return the normals of nodes, in groups of so many, (1 or 2, nodes, batch, *shape)."""
        shape = (1 + self.has_area, *self.shape)
        made = noise.normals(self._keys, shape, nodes, stream=STREAM, dtype=torch.float64)
        return made.movedim(2, 0).split(list(counts), 1)


class _Level(NamedTuple):
    """What is done on one level of a tree.

    Args:
        settled: which places begin a node of this level, and which of its nodes.
        split: the nodes that are halved, as places among this level's.
        numbers: of the draws that halve them.
        children: which of the halves (2 i, 2 i + 1) are the next level's nodes.
    """

    settled: tuple[np.ndarray, np.ndarray]
    split: np.ndarray
    numbers: list[int]
    children: np.ndarray


def _levels(places: np.ndarray, depth: int) -> tuple[list[_Level], np.ndarray, np.ndarray]:
    """Return what is done on each level, which places are inside of leaves, and in which ones.

    Node k of level j covers the leaves from k 2^(depth − j) on; the draw that halves it has number
    2^j + k, and number 0 is the whole span's.
    """
    levels, nodes = list[_Level](), np.zeros(1, dtype=np.int64)
    left = np.arange(len(places))
    for j in range(depth):
        width = 2.0 ** (depth - j)
        at = np.floor(places[left] / width).astype(np.int64)
        begins = places[left] == at * width
        settled = left[begins], np.searchsorted(nodes, at[begins])
        left, at = left[~begins], at[~begins]
        split = np.unique(at)
        below = np.unique(np.floor(places[left] / (width / 2)).astype(np.int64))
        parents = np.searchsorted(split, below // 2)
        where = np.searchsorted(nodes, split)
        levels.append(_Level(settled, where, (2**j + split).tolist(), 2 * parents + below % 2))
        nodes = below
    at = np.floor(places[left]).astype(np.int64)
    begins = places[left] == at
    settled = left[begins], np.searchsorted(nodes, at[begins])
    inside, leaves = left[~begins], at[~begins]
    where = np.searchsorted(nodes, leaves)
    levels.append(_Level(settled, where, (2**depth + leaves).tolist(), where[:0]))
    return levels, inside, places[inside] - leaves


def _descended(places: np.ndarray, path: Brownian) -> Piece:
    """Return W and ∫ W du from the start of a path to some places (in leaves), each once."""
    depth, size = path.depth, path.end - path.start
    ends = places == 2.0**depth
    levels, inside, fractions = _levels(np.where(ends, 0.0, places), depth)
    draws = iter(path.draws([0, *(k for level in levels for k in level.numbers)],
                            [1, *(len(level.numbers) for level in levels)]))  # fmt: skip
    piece = fresh(next(draws), size, path.has_area)
    before = Piece(*(None if v is None else torch.zeros_like(v) for v in piece))  # type: ignore
    found = Piece(*(None if v is None else v.new_zeros(len(places), *v.shape[1:]) for v in piece))  # type: ignore
    total = beyond(before, piece, size)
    for level in levels[:-1]:
        _put(found, level.settled[0], before, level.settled[1])
        size /= 2
        before, piece = picked(before, level.split), picked(piece, level.split)
        first, second = halves(piece, size, size, next(draws))
        before = picked(woven(before, beyond(before, first, size)), level.children)
        piece = picked(woven(first, second), level.children)
    _put(found, levels[-1].settled[0], before, levels[-1].settled[1])
    if len(inside):
        before, piece = picked(before, levels[-1].split), picked(piece, levels[-1].split)
        left = torch.from_numpy(fractions).to(piece.w).reshape(-1, *[1] * (piece.w.ndim - 1)) * size
        first, _ = halves(piece, left, size - left, next(draws))
        _put(found, inside, beyond(before, first, left), np.arange(len(inside)))
    _put(found, ends.nonzero()[0], total, np.zeros(int(ends.sum()), np.int64))
    return found


def _put(found: Piece, where: np.ndarray, piece: Piece, index: np.ndarray) -> None:
    if len(where):
        at = torch.from_numpy(where).to(found.w.device)
        for into, value in zip(found, picked(piece, index), strict=True):
            if into is not None and value is not None:
                into[at] = value


def _descended_each(times: np.ndarray, rows: np.ndarray, path: Brownian) -> Piece:
    """Return W and ∫ W du from the start to times of each sample's own, (n, samples, *shape)."""
    depth, size, n = path.depth, path.end - path.start, times.size
    places = np.vectorize(path._position, otypes=[float])(times).ravel()  # pyright: ignore
    leaves = np.minimum(np.floor(places), 2.0**depth - 1).astype(np.int64)
    numbers = [np.zeros(n, np.int64)]
    numbers += [2**j + (leaves >> (depth - j)) for j in range(depth + 1)]
    index = torch.from_numpy(np.stack(numbers)).to(path.device).reshape(-1, 1)
    at = torch.from_numpy(np.tile(rows, len(times) * (depth + 2))).to(path.device)
    keys = noise.Keys(*(key[at] for key in path._keys))  # pyright: ignore
    shape = (1 + path.has_area, *path.shape)
    drawn = noise.normal(keys, shape, stream=STREAM, index=index, dtype=torch.float64,
                         device=path.device).unflatten(0, (depth + 2, n)).movedim(2, 1)  # fmt: skip
    spread = (n, *[1] * len(path.shape))
    piece = fresh(drawn[0], size, path.has_area)
    before = Piece(*(None if v is None else torch.zeros_like(v) for v in piece))  # type: ignore
    for j in range(depth):
        size /= 2
        first, second = halves(piece, size, size, drawn[j + 1])
        right = torch.from_numpy((leaves >> (depth - j - 1)) % 2 == 1).to(path.device)
        middle, right = beyond(before, first, size), right.reshape(spread)
        before = _chosen(right, middle, before)
        piece = _chosen(right, second, first)
    left = torch.from_numpy((places - leaves) * size).reshape(spread).to(path.device)
    inside, _ = halves(piece, left, size - left, drawn[depth + 1])
    found = beyond(before, inside, left)
    return Piece(*(None if v is None else v.unflatten(0, times.shape) for v in found))  # type: ignore


def _chosen(where: Tensor, a: Piece, b: Piece) -> Piece:
    pairs = zip(a, b, strict=True)
    return Piece(*(None if u is None else torch.where(where, u, v) for u, v in pairs))  # type: ignore

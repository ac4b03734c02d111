"""Brownian motion that can be asked again: a pure function of (seed, interval, coordinate).

A path is refined, never redrawn. Where W over an interval of length ℓ = l + r is known, its halves
follow from one fresh normal X, and together with the space-time Lévy area

    H_{s,t} = 1/(t−s) ∫_s^t (W_u − W_s − (u−s)/(t−s) W_{s,t}) du  ~  N(0, (t−s)/12)

(independent of W_{s,t}) from two. Each draw belongs to a node of a binary tree and is a function of
the sample's seed and the node alone, so answers depend neither on the batch nor on what was asked
before, and nothing has to be kept.

Paper: Kidger 2022 (arXiv:2202.02435), Sec. 5.5; Foster, Lyons & Oberhauser 2020
(arXiv:1905.01720) for H; Jelinčič, Tao, Wood & Foster 2024 (arXiv:2405.06464), virtual tree.
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
from pathline.core.errors import UsageError

STREAM = "brownian"
DEEPEST = 30
"""Most levels of a tree: the number of a node has 32 bits."""

_SNAP = 1e-9
"""Times that are this near to a node's end, in leaves, are that end."""


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

        Over an interval that runs back, W has the other sign, and H too: it belongs to the path
        run backwards.

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
        each = [chen(_sliced(pieces, a, b)) for a, b in zip(cuts, cuts[1:], strict=False)]
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
        return _picked(_descended(distinct, self), index)

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
    total = _beyond(before, piece, size)
    for level in levels[:-1]:
        _put(found, level.settled[0], before, level.settled[1])
        size /= 2
        before, piece = _picked(before, level.split), _picked(piece, level.split)
        first, second = halves(piece, size, size, next(draws))
        before = _picked(_woven(before, _beyond(before, first, size)), level.children)
        piece = _picked(_woven(first, second), level.children)
    _put(found, levels[-1].settled[0], before, levels[-1].settled[1])
    if len(inside):
        before, piece = _picked(before, levels[-1].split), _picked(piece, levels[-1].split)
        left = torch.from_numpy(fractions).to(piece.w).reshape(-1, *[1] * (piece.w.ndim - 1)) * size
        first, _ = halves(piece, left, size - left, next(draws))
        _put(found, inside, _beyond(before, first, left), np.arange(len(inside)))
    _put(found, ends.nonzero()[0], total, np.zeros(int(ends.sum()), np.int64))
    return found


def _beyond(before: Piece, piece: Piece, length: Length) -> Piece:
    """Return W and ∫ W du at the end of an interval, given both at its start."""
    if piece.h is None or before.h is None:
        return Piece(before.w + piece.w)
    return Piece(before.w + piece.w, before.h + (before.w + piece.w * 0.5 + piece.h) * length)


def _picked(piece: Piece, index: np.ndarray) -> Piece:
    at = torch.from_numpy(index).to(piece.w.device)
    return Piece(*(None if v is None else v[at] for v in piece))  # type: ignore


def _woven(first: Piece, second: Piece) -> Piece:
    """Return both of each pair, one after the other."""
    pairs = zip(first, second, strict=True)
    return Piece(*(None if a is None else torch.stack((a, b), 1).flatten(0, 1) for a, b in pairs))  # type: ignore


def _put(found: Piece, where: np.ndarray, piece: Piece, index: np.ndarray) -> None:
    if len(where):
        at = torch.from_numpy(where).to(found.w.device)
        for into, value in zip(found, _picked(piece, index), strict=True):
            if into is not None and value is not None:
                into[at] = value


def _sliced(pieces: Piece, a: int, b: int) -> Piece:
    return Piece(*(None if v is None else v[a:b] for v in pieces))  # type: ignore


def chen(pieces: Piece) -> Tensor:
    """Return the Lévy area of consecutive pieces, (n, batch, m) each: (batch, m, m)."""
    w, h = pieces
    assert h is not None
    before = w.cumsum(0) - w
    mixed = (h + before * 0.5).unsqueeze(-1) * w.unsqueeze(-2)
    mixed = mixed.sum(0)
    return mixed - mixed.mT


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
        middle, right = _beyond(before, first, size), right.reshape(spread)
        before = _chosen(right, middle, before)
        piece = _chosen(right, second, first)
    left = torch.from_numpy((places - leaves) * size).reshape(spread).to(path.device)
    inside, _ = halves(piece, left, size - left, drawn[depth + 1])
    found = _beyond(before, inside, left)
    return Piece(*(None if v is None else v.unflatten(0, times.shape) for v in found))  # type: ignore


def _chosen(where: Tensor, a: Piece, b: Piece) -> Piece:
    pairs = zip(a, b, strict=True)
    return Piece(*(None if u is None else torch.where(where, u, v) for u, v in pairs))  # type: ignore


class Refined:
    """A Brownian motion on the steps of a grid, refined from longer ones; nothing is drawn twice.

    n = q 2^k steps are halved k times from q, so a grid of twice as many steps that has all the
    points of this one refines the same path, for one draw a step. (For grids that do not contain
    each other take a `Brownian`, which costs more.) Steps are made in blocks, as they are asked
    for, in whatever order.

    Args:
        keys: one a sample.
        shape: of one sample's motion.
        edges: the times of the grid.
        has_area: whether H is wanted.
        ahead: how many numbers are made at once, about.
    """

    def __init__(
        self,
        keys: noise.Keys,
        shape: tuple[int, ...],
        edges: Sequence[float],
        has_area: bool,
        ahead: int,
    ) -> None:
        self._keys, self._shape, self._has_area = keys, shape, has_area
        self._edges = np.asarray(edges, dtype=np.float64)
        n = len(edges) - 1
        self._depth = (n & -n).bit_length() - 1
        self._roots = n >> self._depth
        size = max(1, ahead // max(len(keys.low) * math.prod(shape), 1))
        self._level = max(0, self._depth - (size.bit_length() - 1))
        self._group = max(1, size >> self._depth)
        self._above: dict[int, tuple[int, tuple[Piece, Piece]]] = {}
        self._block: tuple[int, int, Piece] | None = None

    def block(self, i: int) -> tuple[int, Piece]:
        """Return steps around step i, (n, batch, *shape), and the number of the first of them."""
        if self._block is None or not self._block[0] <= i < self._block[1]:
            self._block = self._made(i)
        return self._block[0], self._block[2]

    def _made(self, i: int) -> tuple[int, int, Piece]:
        if self._level:
            top = i >> (self._depth - self._level)
            nodes, piece = range(top, top + 1), self._node(self._level, top)
        else:
            first = (i >> self._depth) // self._group * self._group
            nodes = range(first, min(first + self._group, self._roots))
            piece = self._root(nodes)
        for level in range(self._level, self._depth):
            piece = _woven(*self._halved(level, nodes, piece))
            nodes = range(2 * nodes.start, 2 * nodes.stop)
        return nodes.start, nodes.stop, piece

    def _node(self, level: int, k: int) -> Piece:
        """Return one node; the last halving of every level is remembered, for its other half."""
        if not level:
            return self._root(range(k, k + 1))
        known = self._above.get(level)
        if known is None or known[0] != k // 2:
            parent = range(k // 2, k // 2 + 1)
            whole = self._node(level - 1, k // 2)
            known = self._above[level] = (k // 2, self._halved(level - 1, parent, whole))
        return known[1][k % 2]

    def _root(self, nodes: range) -> Piece:
        lengths = self._lengths(np.arange(nodes.start, nodes.stop + 1) << self._depth)
        return fresh(self._draws(nodes), lengths, self._has_area)

    def _halved(self, level: int, nodes: range, piece: Piece) -> tuple[Piece, Piece]:
        at = np.arange(2 * nodes.start, 2 * nodes.stop + 1) << (self._depth - level - 1)
        left, right = self._lengths(at).unflatten(0, (-1, 2)).unbind(1)
        first = (
            self._roots << level
        )  # what came before: the roots' draws, and those of coarser levels
        numbers = range(first + nodes.start, first + nodes.stop)
        return halves(piece, left, right, self._draws(numbers))

    def _lengths(self, at: np.ndarray) -> Tensor:
        lengths = torch.from_numpy(np.abs(np.diff(self._edges[at])))
        return lengths.to(self._keys.low.device).reshape(-1, *[1] * (1 + len(self._shape)))

    def _draws(self, numbers: range) -> Tensor:
        shape = (1 + self._has_area, *self._shape)
        made = noise.normals(self._keys, shape, numbers, stream=STREAM, dtype=torch.float64)
        return made.movedim(2, 0)

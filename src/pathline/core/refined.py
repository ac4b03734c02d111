"""The Brownian motion that a solve draws for itself, on the steps of its grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.bridge import STREAM, Piece, fresh, halves, woven


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
        levels, given = range(self._level, self._depth), None
        if self._level:
            top = i >> (self._depth - self._level)
            nodes = range(top, top + 1)
            given = self._node(self._level, top)
        else:
            first = (i >> self._depth) // self._group * self._group
            nodes = range(first, min(first + self._group, self._roots))
        numbers = [] if self._level else [nodes]
        numbers += [self._numbers(j, _below(nodes, j - self._level)) for j in levels]
        draws = iter(self._draws(numbers))
        piece = self._root(nodes, next(draws)) if given is None else given
        for level in levels:
            piece = woven(*self._halved(level, nodes, piece, next(draws)))
            nodes = _below(nodes, 1)
        return nodes.start, nodes.stop, piece

    def _node(self, level: int, k: int) -> Piece:
        """Return one node; the last halving of every level is remembered, for its other half."""
        if not level:
            one = range(k, k + 1)
            return self._root(one, self._draws([one])[0])
        known = self._above.get(level)
        if known is None or known[0] != k // 2:
            parent = range(k // 2, k // 2 + 1)
            whole = self._node(level - 1, k // 2)
            (x,) = self._draws([self._numbers(level - 1, parent)])
            known = self._above[level] = (k // 2, self._halved(level - 1, parent, whole, x))
        return known[1][k % 2]

    def _root(self, nodes: range, x: Tensor) -> Piece:
        lengths = self._lengths(np.arange(nodes.start, nodes.stop + 1) << self._depth)
        return fresh(x, lengths, self._has_area)

    def _halved(self, level: int, nodes: range, piece: Piece, x: Tensor) -> tuple[Piece, Piece]:
        at = np.arange(2 * nodes.start, 2 * nodes.stop + 1) << (self._depth - level - 1)
        left, right = self._lengths(at).unflatten(0, (-1, 2)).unbind(1)
        return halves(piece, left, right, x)

    def _lengths(self, at: np.ndarray) -> Tensor:
        lengths = torch.from_numpy(np.abs(np.diff(self._edges[at])))
        return lengths.to(self._keys.low.device).reshape(-1, *[1] * (1 + len(self._shape)))

    def _numbers(self, level: int, nodes: range) -> range:
        """Return the numbers of the draws that halve nodes; the roots' come before them all."""
        first = self._roots << level
        return range(first + nodes.start, first + nodes.stop)

    def _draws(self, groups: Sequence[range]) -> Sequence[Tensor]:
        """Return the normals of groups of numbers, each (1 or 2, numbers, batch, *shape)."""
        shape = (1 + self._has_area, *self._shape)
        numbers = [k for group in groups for k in group]
        made = noise.normals(self._keys, shape, numbers, stream=STREAM, dtype=torch.float64)
        return made.movedim(2, 0).split([len(group) for group in groups], 1)


def _below(nodes: range, levels: int) -> range:
    """Return the nodes of a finer level that halve these."""
    return range(nodes.start << levels, nodes.stop << levels)

"""The way back through single rows: they are linear, so only the field is differentiated.

A row x_n = Σ a x_j + Σ b F_k + Σ c g_k·w + … hands its cotangent v on by its own coefficients,

    x̄_j += a v,   F̄_k += b v,   ḡ_k += (Σ c w) v,

and F_k and g_k, which several rows may use, are evaluated once, with a graph, and differentiated
once, when the first row that uses them has been taken back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.solvers.adjoints.segments import Stretcher, Totals
from pathline.solvers.driving import Source, product_pulled
from pathline.solvers.execute import Instruction


class Slopes(NamedTuple):
    """The field and the diffusion at a state, with a graph; None where no row uses it."""

    leaf: Tensor
    f: Tensor | None
    g: Tensor | None


class Rows:
    """Takes single rows back, the last one first.

    Args:
        stretcher: of the loop.
        rows: in the order in which they are taken back.
    """

    def __init__(self, stretcher: Stretcher, rows: Sequence[Instruction]) -> None:
        self._stretcher, self._loop = stretcher, stretcher.loop
        self._last = {k: i for i, row in enumerate(rows) for k in evaluated(row)}
        self._f = {k for row in rows for k in slopes_of(row)}
        self._g = {k for row in rows for k, _ in row.products}
        self._slopes = dict[int, Slopes]()
        self._cotangents = {"f": dict[int, Tensor](), "g": dict[int, Tensor]()}
        self._zero = torch.zeros_like(self._loop.given[0])
        self._execution = self._loop.execution(_never, self._loop.given, stretcher.draw)

    def taken(
        self,
        i: int,
        row: Instruction,
        solved: int | None,
        states: Mapping[int, Tensor],
        ends: dict[int, Tensor],
        totals: Totals,
    ) -> Tensor:
        """Hand the cotangent of a row on, and return what the row is without its solved state.

        Args:
            i: which row on the way back.
            row: the row.
            solved: the state that is left out.
            states: all others that it uses, by number.
            ends: cotangents of states, by number.
            totals: gradients of the sources are added to it.
        """
        for k in evaluated(row):
            if k not in self._slopes:
                self._slopes[k] = self._evaluated(k, states[k])
        rest = self._rest(row, solved, states)
        cotangent = ends.pop(row.number, None)
        if cotangent is not None:
            self._hand_on(row, cotangent, ends)
        for k in evaluated(row):
            if self._last[k] == i:
                self._differentiate(k, ends, totals, row.number)
        return rest

    def _evaluated(self, k: int, x: Tensor) -> Slopes:
        leaf = x.detach().requires_grad_()
        with torch.enable_grad(), self._stretcher.mode:
            evaluate = self._loop.bound([k])
            f = evaluate(k, leaf) if k in self._f else None
            g = evaluate(~k, leaf) if k in self._g else None
        self._loop.record.nfe += f is not None
        self._loop.record.vjps += f is not None
        return Slopes(leaf, f, g)

    @torch.no_grad()
    def _rest(self, row: Instruction, solved: int | None, states: Mapping[int, Tensor]) -> Tensor:
        """Return the row's sum, with a zero for the state that is left out."""
        left_out = {} if solved is None else {solved: self._zero}
        slopes = {k: self._slopes[k] for k in evaluated(row)}
        self._execution.known = {
            "x": {**states, **left_out},
            "f": {k: each.f.detach() for k, each in slopes.items() if each.f is not None},
            "g": {k: each.g.detach() for k, each in slopes.items() if each.g is not None},
        }
        return self._execution.advance(row._replace(evaluations=(), diffusions=(), spent=()))

    def _hand_on(self, row: Instruction, v: Tensor, ends: dict[int, Tensor]) -> None:
        into = {"x": ends, **self._cotangents}
        for letter, k, c in (row.terms.first, *row.terms.others):
            if letter in into:
                add(into[letter], k, v if not isinstance(c, Tensor) and c == 1 else v * c)
        for k, by in row.products:
            g, source = self._slopes[k].g, self._stretcher.draw
            assert g is not None
            assert isinstance(source, Source)
            add(self._cotangents["g"], k, product_pulled(v, g, by, source))

    def _differentiate(self, k: int, ends: dict[int, Tensor], totals: Totals, number: int) -> None:
        """Hand the cotangents of field and diffusion at a state on, through their graph."""
        leaf, f, g = self._slopes.pop(k)
        pairs = [(f, self._cotangents["f"].pop(k, None)), (g, self._cotangents["g"].pop(k, None))]
        known = [(y, v.to(y.dtype)) for y, v in pairs
                 if y is not None and v is not None and y.requires_grad]  # fmt: skip
        if not known:
            return
        outputs, cotangents = zip(*known, strict=True)
        inputs = [leaf, *self._stretcher.sources]
        found = self._stretcher.gradients(outputs, inputs, cotangents, number)
        totals.add(found[1:])
        add(ends, k, found[0])


def slopes_of(row: Instruction) -> list[int]:
    """Return the numbers of the states whose field enters a row."""
    return [k for letter, k, _ in (row.terms.first, *row.terms.others) if letter == "f"]


def evaluated(row: Instruction) -> list[int]:
    """Return the numbers of the states at which field or diffusion is evaluated for a row."""
    return sorted({*slopes_of(row), *(k for k, _ in row.products)})


def add(ends: dict[int, Tensor], k: int, gradient: Tensor | None) -> None:
    """Add a gradient to those of a number."""
    if gradient is not None:
        ends[k] = ends[k] + gradient if k in ends else gradient


def _never(k: int, x: Tensor) -> Tensor:
    del x
    raise UsageError(f"the way back asked for the field at state {k} a second time.")

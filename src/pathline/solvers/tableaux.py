"""Butcher tableaux of explicit Runge-Kutta methods: data, checked when they are made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Tableau:
    """A Butcher tableau: nodes c, lower-triangular rows a, weights b, and those of a second result.

    Args:
        c: (stages,).
        a: a row for each stage, row i of length i.
        b: (stages,), the weights of the result.
        order: of the result.
        low: (stages,), the weights of a second result of another order; empty if there is none.
        low_order: its order.
    """

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    low: tuple[float, ...] = ()
    low_order: int = 0

    def __post_init__(self) -> None:
        """Check Σ_j a_ij = c_i, Σ b_i = 1, and the shapes."""
        rows = [*zip(self.c, self.a, strict=True), (1.0, self.b)]
        rows += [(1.0, self.low)] if self.low else []
        if any(abs(math.fsum(row) - node) > 1e-14 for node, row in rows):
            raise ValueError(f"inconsistent tableau {self}")
        if any(len(row) != i for i, row in enumerate(self.a)):
            raise ValueError(f"an explicit tableau has i entries in row i: {self.a}")

    @property
    def ends_with_last(self) -> bool:
        """Whether the last stage is the result, so that its slope is the first of the next step."""
        return self.c[-1] == 1 and self.a[-1] == self.b[:-1]


EULER = Tableau((0.0,), ((),), (1.0,), 1)
HEUN = Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5), 2)
CLASSICAL = Tableau(
    (0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4
)

TABLEAUX: Mapping[str, Tableau] = {
    "euler": EULER,
    "heun": HEUN,
    "midpoint": Tableau((0.0, 0.5), ((), (0.5,)), (0.0, 1.0), 2),
    "ralston": Tableau((0.0, 2 / 3), ((), (2 / 3,)), (1 / 4, 3 / 4), 2),
    "kutta3": Tableau((0.0, 0.5, 1.0), ((), (0.5,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6), 3),
    "heun3": Tableau((0.0, 1 / 3, 2 / 3), ((), (1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4), 3),
    "ralston3": Tableau((0.0, 0.5, 0.75), ((), (0.5,), (0.0, 0.75)), (2 / 9, 1 / 3, 4 / 9), 3),
    "houwen3": Tableau(
        (0.0, 8 / 15, 2 / 3), ((), (8 / 15,), (1 / 4, 5 / 12)), (1 / 4, 0.0, 3 / 4), 3
    ),
    "ssprk3": Tableau((0.0, 1.0, 0.5), ((), (1.0,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3), 3),
    "rk4": CLASSICAL,
    "three_eighths": Tableau(
        (0.0, 1 / 3, 2 / 3, 1.0),
        ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
        (1 / 8, 3 / 8, 3 / 8, 1 / 8),
        4,
    ),
}
"""Methods for fixed steps, by name."""

ALIASES: Mapping[str, str] = {
    "1euler": "euler",
    "2heun": "heun",
    "2mid": "midpoint",
    "3kutta": "kutta3",
    "3heun": "heun3",
    "3ral": "ralston3",
    "3vdh": "houwen3",
    "3ssprk": "ssprk3",
    "4rk": "rk4",
}
"""The names that the code of arXiv:2204.13902 has for them."""

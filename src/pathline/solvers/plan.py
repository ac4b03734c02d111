"""Plans: a solver, given a path and a grid, is compiled into rows of coefficients.

Every fixed-grid solver is a general linear method: each new state is a linear combination of
earlier states, earlier evaluations of the field, and noise, with coefficients that depend on the
path, the grid and the solver alone, never on the data:

    x_new = Σ_j a_j x_j + Σ_k b_k F_k + Σ_d c_d z_d + constant

What a stochastic differential equation dx = f dt + g dW needs besides is bilinear: the product of
the diffusion at an earlier state with a functional of the Brownian motion over a step (its
increment, an area, an iterated integral), whose coefficient again knows nothing of the data:

    x_new = … + Σ c_{k,w} g(x_k, t_k) · w

So a solver is a rule that writes rows, a `Plan` is the list of rows, and one executor runs them
all. States are numbered in the order in which they are made; F_k is the field at state k, so what
no row mentions is never evaluated, and the number of evaluations can be read off the plan.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pathline.core.errors import PathlineError, UsageError
from pathline.core.files import write_atomically
from pathline.fields.views import View, as_view
from pathline.paths import GaussianPath, Time, paths

Coefficient = float | Tensor
"""A number, or a tensor that broadcasts against the state (one value an element, or a sample).

In a stacked plan the first axis of every tensor is the sample, and the others broadcast.
"""

Terms = Mapping[int, Coefficient]

FORMAT = 1

Kind = Literal["one", "w", "h", "ww", "ww_ito", "www_ito", "unit", "ij", "ij_ito"]
"""Functionals of a Brownian motion W over a step of length ℓ, one value a channel: 1; the increment
W; its space-time Lévy area H; ½W², ½(W² − ℓ) and (W³ − 3ℓW)/6; and, for channel j, the unit vector,
and the iterated integrals ∫∫ ∘dW_j ∘dW_k or ∫∫ dW_j dW_k for every k."""


class Product(NamedTuple):
    """The diffusion at a state, times a functional of the Brownian motion over a leg.

    Args:
        state: number of the state at which the diffusion is evaluated.
        kind: which functional.
        leg: over which of the plan's `legs`.
        channel: j, where the functional has one; else 0.
    """

    state: int
    kind: Kind
    leg: int = 0
    channel: int = 0

    @property
    def functional(self) -> Functional:
        """What is multiplied."""
        return Functional(self.kind, self.leg, self.channel)


class Functional(NamedTuple):
    """A functional of a Brownian motion: kind, leg, and channel where it has one.

    `channels` says of which motion: one with so many for the whole state, or, if 0, one for each
    of the state's elements.
    """

    kind: Kind
    leg: int = 0
    channel: int = 0
    channels: int = 0


Products = Mapping[Product, Coefficient]


@dataclass(frozen=True)
class Row:
    """One new state: x_new = Σ a_j x_j + Σ b_k F_k + Σ c_d z_d + Σ c g_k·w + constant.

    Args:
        t: the time of the new state; (batch,) in a stacked plan whose samples have their own.
        x: state number → coefficient.
        f: number of the state at which the field is evaluated → coefficient.
        z: number of the noise draw → coefficient; rows that name the same draw share it.
        lands: whether the new state is a grid point (and not a stage or a prediction).
        constant: what is added, the same for all samples (a known mean, a bias of statistics).
        g: products of the diffusion with functionals of the Brownian motion → coefficient.
    """

    t: Time
    x: Terms
    f: Terms
    z: Terms = field(default_factory=dict)
    lands: bool = True
    constant: Coefficient = 0.0
    g: Products = field(default_factory=dict)

    @property
    def states(self) -> set[int]:
        """The numbers of the states that are added, or at which field or diffusion is evaluated."""
        return {*self.x, *self.f, *(product.state for product in self.g)}

    @property
    def has_constant(self) -> bool:
        """Whether anything is added."""
        return isinstance(self.constant, Tensor) or self.constant != 0


@dataclass(frozen=True, eq=False)
class Plan:
    """A compiled solver. Compared by identity; compare `to_dict()` for content.

    Args:
        start: the times of the states that are given at the start (one; two for two-state rules).
        rows: what is computed, in order.
        view: what the F of the rows is.
        path: the path it was compiled for; None for a plain differential equation.
        recipe: the solver and grid it was compiled from, as plain values.
        batch: how many samples a stacked plan is for; None serves any number of them.
        legs: the intervals of time over which products ask for the Brownian motion.
    """

    start: tuple[Time, ...]
    rows: tuple[Row, ...]
    view: View = "velocity"
    path: GaussianPath | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    batch: int | None = None
    legs: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows, len(self.start)):
            _check_row(row, number, self.times[number - 1])

    @cached_property
    def times(self) -> tuple[Time, ...]:
        """The time of every state, in the order of their numbers."""
        return (*self.start, *(row.t for row in self.rows))

    @cached_property
    def instants(self) -> Tensor:
        """The times as one float64 tensor: (n,), or (n, batch) in a stacked plan."""
        with torch.inference_mode(False):  # what is kept must also serve a solve with gradients
            if self.batch is None:
                return torch.tensor(self.times, dtype=torch.float64)
            times = [torch.as_tensor(t, dtype=torch.float64) for t in self.times]
            return torch.stack([t.expand(self.batch) for t in times])

    @cached_property
    def evaluated(self) -> tuple[int, ...]:
        """The numbers of the states at which the field is evaluated, in order."""
        return tuple(sorted({k for row in self.rows for k in row.f}))

    @property
    def nfe(self) -> int:
        """Evaluations of the field."""
        return len(self.evaluated)

    @cached_property
    def diffused(self) -> tuple[int, ...]:
        """The numbers of the states at which the diffusion is evaluated, in order."""
        return tuple(sorted({product.state for row in self.rows for product in row.g}))

    @cached_property
    def steps(self) -> int:
        """Rows that land on a grid point."""
        return sum(row.lands for row in self.rows)

    @cached_property
    def landings(self) -> tuple[int, ...]:
        """The numbers of the states on grid points, the one at the start first."""
        given = len(self.start)
        return (given - 1, *(given + i for i, row in enumerate(self.rows) if row.lands))

    @property
    def grid(self) -> tuple[Time, ...]:
        """The times of the grid points."""
        return tuple(self.times[k] for k in self.landings)

    @property
    def is_stochastic(self) -> bool:
        """Whether any row draws noise."""
        return any(row.z or row.g for row in self.rows)

    @classmethod
    def stacked(cls, plans: Sequence[Plan]) -> Plan:
        """Return one plan for a batch whose sample i is carried as plans[i] carries it.

        The plans have the same rows and differ in their times and coefficients: one solver on grids
        of one number of steps, which `Solver.plan(path, grids)` compiles to fit.

        Raises:
            UsageError: there are none, or they differ in view, path or rows.
        """
        from pathline.solvers.stack import stack

        return stack(plans)

    def folded(self, view: View) -> Plan:
        """Return the plan in terms of another view of the same field, at no cost at run time.

        F = p x + q G at the same state and time, so b F becomes (b p) x + (b q) G.

        Raises:
            UsageError: `view` does not determine the plan's view where it is needed.
        """
        from pathline.solvers.folding import folded

        return self if view == self.view else folded(self, view)

    def inverse(self) -> Plan:
        """Return the plan that runs the same way back, by solving every row for its oldest state.

        Possible, and exact to rounding, when the oldest state that a step may still use enters its
        last row through a coefficient, and no evaluation or stage (leapfrog, BDIA, Reversible).

        Raises:
            UsageError: a row cannot be solved for its oldest state.
        """
        from pathline.solvers.reversal import inverse

        return inverse(self)

    def table(self) -> str:
        """Return the plan as text, one row a line."""
        from pathline.solvers.table import table

        return table(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON values."""
        rows = [_row_to_dict(row) for row in self.rows]
        path = None if self.path is None else paths.describe(self.path)
        batch: dict[str, Any] = {} if self.batch is None else {"batch": self.batch}
        if self.legs:
            batch["legs"] = [list(leg) for leg in self.legs]
        return {
            "plan": FORMAT,
            "start": [plain(t) for t in self.start],
            "view": self.view,
            "path": path,
            "recipe": dict(self.recipe),
            "rows": rows,
            **batch,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Plan:
        """Read what `to_dict` wrote.

        Raises:
            UsageError: it is not a plan of this format.
        """
        if content.get("plan") != FORMAT:
            raise UsageError(f"this is not a plan of format {FORMAT}.")
        try:
            rows = [
                Row(
                    _time(r["t"]),
                    *(_coefficients(r[n]) for n in "xfz"),
                    lands=r["lands"],
                    constant=_coefficient(r.get("constant", 0.0)),
                    g={Product(*key): _coefficient(c) for key, c in r.get("g", ())},
                )
                for r in content["rows"]
            ]
            path = None if content["path"] is None else paths.rebuild(content["path"])
            start, view = tuple(map(_time, content["start"])), as_view(content["view"])
            legs = tuple((float(s), float(t)) for s, t in content.get("legs", ()))
            batch, recipe = content.get("batch"), content["recipe"]
            return cls(start, tuple(rows), view, path, recipe, batch, legs)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"the plan is damaged: {error}.") from error

    def save(self, path: str | Path) -> Path:
        """Write the plan as JSON."""
        return write_atomically(path, json.dumps(self.to_dict(), indent=1, ensure_ascii=False))

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan that `save` wrote.

        Raises:
            UsageError: the file cannot be read, or is not a plan.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read a plan from {path}: {error}.") from error
        if not isinstance(content, dict):
            raise UsageError(f"{path} is not a plan.")
        return cls.from_dict(content)

    def order(self) -> float:
        """Measure the order of convergence, on a problem with a known solution, in float64.

        The solver that made the plan is compiled again on ever finer grids of the same kind; the
        slope of log error against log step count is fitted, over 80 to 320 steps. Takes a second.

        Raises:
            UsageError: the plan is stochastic, or was not made by a registered solver.
        """
        from pathline.solvers.order import measured_order

        return measured_order(self)


def _check_row(row: Row, number: int, before: Time) -> None:
    named = [(letter, k, c) for letter, terms in (("x", row.x), ("F", row.f), ("z", row.z))
             for k, c in terms.items()]  # fmt: skip
    named += [("g", product.state, c) for product, c in row.g.items()]
    for letter, k, c in [*named, ("constant ", 0, row.constant)]:
        if not _is_finite(c):
            raise PathlineError(
                f"the step from t = {told_time(before)} to t = {told_time(row.t)} has the "
                f"coefficient {c} of {letter}{k}: α or σ vanishes there; use another "
                "prediction or grid."
            )
        if letter in "xFg" and not 0 <= k < number:
            raise UsageError(f"row {number} uses {letter}{k}, which is not made before it.")


def _is_finite(c: Coefficient) -> bool:
    return bool(torch.isfinite(c).all()) if isinstance(c, Tensor) else math.isfinite(c)


def sample_first(c: Tensor, ndim: int) -> Tensor:
    """Give a coefficient of a stacked plan `ndim` axes: the sample first, the others at the end."""
    return c.reshape(len(c), *[1] * (ndim - c.ndim), *c.shape[1:])


def _plain(terms: Terms) -> dict[str, Any]:
    return {str(k): plain(c) for k, c in terms.items()}


def told_time(t: Time) -> str:
    """Write a time, or the range of the samples' times: "0.35", "0.1 … 0.8"."""
    if not isinstance(t, Tensor):
        return f"{t:.6g}"
    low, high = float(t.min()), float(t.max())
    return f"{low:.6g}" if low == high else f"{low:.6g} … {high:.6g}"


def _time(t: Any) -> Time:
    return torch.tensor(t, dtype=torch.float64) if isinstance(t, list) else t


def _row_to_dict(row: Row) -> dict[str, Any]:
    constant = {"constant": plain(row.constant)} if row.has_constant else {}
    terms = {letter: _plain(getattr(row, letter)) for letter in "xfz"}
    products = {"g": [[list(key), plain(c)] for key, c in row.g.items()]} if row.g else {}
    return {"t": plain(row.t), **terms, "lands": row.lands, **constant, **products}


def plain(c: Coefficient) -> Any:
    """Return a number, or the list of them, as JSON has it."""
    return c.tolist() if isinstance(c, Tensor) else c


def _coefficients(terms: Mapping[str, Any]) -> dict[int, Coefficient]:
    return {int(k): _coefficient(c) for k, c in terms.items()}


def _coefficient(c: Any) -> Coefficient:
    return torch.tensor(c, dtype=torch.float64) if isinstance(c, list) else float(c)

"""Explicit Runge-Kutta methods, from their tableaux, in three coordinates.

On a path the flow is a plain integral in three ways, x/s as a function of a clock u:

    velocity   d x      / d t      = v         s = 1,  u = t
    eps        d (x/α)  / d (σ/α)  = ε̂         s = α,  u = σ/α    (arXiv:2204.13902, Prop. 3)
    x0         d (x/σ)  / d (α/σ)  = x̂_0       s = σ,  u = α/σ

One step of any tableau is the same row in each: x_t = s_t (x_s/s_s + Δu Σ b_i F_i).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from pathline.core.errors import UsageError, unknown
from pathline.fields import SDE, Field
from pathline.fields.views import View
from pathline.solvers.exponential import check_start
from pathline.solvers.solver import Level, Solver, Writer, solvers
from pathline.solvers.stochastic import ItoEuler, StratonovichRK
from pathline.solvers.tableaux import ALIASES, CLASSICAL, EULER, HEUN, TABLEAUX, Tableau


class Coordinates(NamedTuple):
    """The scale s and the clock u of a view, at a `Level` or at `Levels`."""

    scale: Callable[[Any], Any]
    clock: Callable[[Any], Any]


COORDINATES: dict[View, Coordinates] = {
    "velocity": Coordinates(lambda p: 1.0, lambda p: p.t),
    "eps": Coordinates(lambda p: p.alpha, lambda p: p.sigma / p.alpha),
    "x0": Coordinates(lambda p: p.sigma, lambda p: p.alpha / p.sigma),
}


@dataclass(frozen=True)
class RungeKutta(Solver):
    """What the explicit one-step methods share.

    Args:
        view: the coordinates to step in, "velocity" (path time), "eps" or "x0".
    """

    view: View = "velocity"  # pyright: ignore[reportIncompatibleMethodOverride]

    def __post_init__(self) -> None:
        if self.view not in COORDINATES:
            raise UsageError(f"view={self.view!r}: choose from {', '.join(COORDINATES)}.")

    @property
    @abstractmethod
    def tableau(self) -> Tableau:
        """The method."""

    @property
    def order(self) -> int:
        return self.tableau.order

    @property
    def nfe_per_step(self) -> int:
        return len(self.tableau.b)

    def tuned(self, field: Field, shape: Sequence[int]) -> Solver:
        """Return the same tableau for f h + g ΔW, if the field has noise (Stratonovich)."""
        if not isinstance(field, SDE):
            return self
        if self.tableau == EULER:
            return ItoEuler().tuned(field, shape)
        name = next(name for name, tableau in TABLEAUX.items() if tableau == self.tableau)
        return StratonovichRK(method=name).tuned(field, shape)

    def write(self, to: Writer) -> None:
        if self.view != "velocity":
            check_start(self.view, list(to.intervals()))
        stages = self._stage_levels(to)
        for (s, t), levels in zip(to.intervals(), stages, strict=True):
            self._write_step(to, s, t, levels)

    def _stage_levels(self, to: Writer) -> list[list[Level]]:
        """Return the level of each stage of each step, all looked up at once."""
        clock = COORDINATES[self.view].clock
        edges = [
            [clock(s) + c * (clock(t) - clock(s)) for c in self.tableau.c]
            for s, t in to.intervals()
        ]
        u = torch.tensor(edges, dtype=torch.float64)
        if self.view != "velocity":
            assert to.path is not None
            u = to.path.time_of_log_snr(u.log() if self.view == "x0" else -u.log())
        flat = to.at(u.flatten().tolist())
        n = len(self.tableau.c)
        levels = [flat[i : i + n] for i in range(0, len(flat), n)]
        ends = to.intervals()
        return [
            [_snapped(p, s, t) for p in step] for (s, t), step in zip(ends, levels, strict=True)
        ]

    def _write_step(self, to: Writer, s: Level, t: Level, levels: list[Level]) -> None:
        scale, clock = COORDINATES[self.view]
        first, du = len(to.rows), clock(t) - clock(s)
        numbers = [first]
        for level, weights in zip(levels[1:], self.tableau.a[1:], strict=True):
            f = {n: scale(level) * du * w for n, w in zip(numbers, weights, strict=True) if w}
            x = {first: scale(level) / scale(s)}
            numbers.append(to.write(level.t, x, f, lands=False))
        f = {n: scale(t) * du * w for n, w in zip(numbers, self.tableau.b, strict=True) if w}
        to.write(t.t, {first: scale(t) / scale(s)}, f)


def _snapped(level: Level, s: Level, t: Level) -> Level:
    """Return the end of the step that a stage sits on to rounding, else the stage itself."""
    for end in (s, t):
        if abs(level.t - end.t) <= 1e-12 * abs(t.t - s.t):
            return end
    return level


@solvers.register("euler", paper="arXiv:2210.02747", aliases=("flow_euler",))
@dataclass(frozen=True)
class Euler(RungeKutta):
    """Euler's method, one evaluation a step."""

    @property
    def tableau(self) -> Tableau:
        return EULER


@solvers.register("heun", paper="arXiv:2206.00364, Alg. 1", aliases=("trapezoid",))
@dataclass(frozen=True)
class Heun(RungeKutta):
    """Heun's method: an Euler step, then the mean of both slopes."""

    @property
    def tableau(self) -> Tableau:
        return HEUN


@solvers.register("rk4", aliases=("runge_kutta",), paper="Kutta 1901")
@dataclass(frozen=True)
class RK4(RungeKutta):
    """The classical Runge-Kutta method of order four."""

    @property
    def tableau(self) -> Tableau:
        return CLASSICAL


@solvers.register(
    "rk",
    paper="arXiv:2204.13902, App. H",
    variants={
        "midpoint": ({"method": "midpoint"}, ("rk2",)),
        "kutta3": ({"method": "kutta3"}, ("rk3",)),
        "heun3": ({"method": "heun3"}, ()),
        "ralston3": ({"method": "ralston3"}, ()),
        "houwen3": ({"method": "houwen3"}, ("van der Houwen",)),
        "ssprk3": ({"method": "ssprk3"}, ()),
        "rho_rk": ({"method": "kutta3", "view": "eps"}, ("deis_rk", "rho_3kutta")),
    },
)
@dataclass(frozen=True)
class RK(RungeKutta):
    """Any explicit Runge-Kutta method; in ε̂ it is ρRK-DEIS.

    Args:
        method: euler, heun, midpoint, ralston, kutta3, heun3, ralston3, houwen3, ssprk3, rk4 or
            three_eighths; or the name that DEIS has for it (2heun, 2mid, 3kutta, …).
        view: as for the others.
    """

    method: str = "kutta3"

    def __post_init__(self) -> None:
        super().__post_init__()
        name = ALIASES.get(self.method, self.method)
        if name not in TABLEAUX:
            raise unknown("Runge-Kutta method", self.method, [*TABLEAUX, *ALIASES])
        object.__setattr__(self, "method", name)

    @property
    def tableau(self) -> Tableau:
        return TABLEAUX[self.method]

"""Adams methods: a polynomial through the last slopes, where the flow is a plain integral.

Scaled to x/(α + σ), every Gaussian path is the straight one of flow matching, on the clock
u = σ/(α + σ) from 0 (data) to 1 (noise), and the probability flow is a plain integral of the
straight velocity:

    d (x/(α + σ)) / du = w,    w = ε̂ − x̂_0

A step integrates the polynomial through the last `order` values of w exactly, whatever the grid.
With the corrector, w at the new state is one point more, and the state is made anew with it: the
evaluation serves the next step as well, so nothing is evaluated twice.

Paper: Bashforth & Adams 1883; Zhao et al. 2023 (arXiv:2302.04867) for a corrector at no cost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch

from pathline.core.errors import UsageError
from pathline.fields.views import View
from pathline.paths import GaussianPath
from pathline.solvers.solver import Level, Solver, Writer, check_order, solvers

Corrector = Literal["none", "free"]

MOST_ORDER = 4


def adams_weights(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """Return ∫ ℓ_j(u) du over [start, end], ℓ_j the Lagrange basis of these nodes.

    >>> [round(w, 12) for w in adams_weights([0.0, -1.0], 0.0, 1.0)]
    [1.5, -0.5]
    """
    half = (end - start) / 2
    points, weights = np.polynomial.legendre.leggauss(1 + len(nodes) // 2)
    u = start + half * (points + 1)
    found: list[float] = []
    for j, a in enumerate(nodes):
        basis = np.ones_like(u)
        for k, b in enumerate(nodes):
            if k != j:
                basis *= (u - b) / (a - b)
        found.append(float(half * (basis * weights).sum()))
    return found


class Slope(NamedTuple):
    """Where w is known: w = p x + q F at a state, F the velocity."""

    number: int
    clock: float
    p: float
    q: float


@solvers.register(
    "adams",
    aliases=("adams_bashforth", "AB3", "vAB"),
    paper="Bashforth & Adams 1883",
    variants={
        "adams_2": ({"order": 2}, ("AB2",)),
        "adams_pc": ({"corrector": "free"}, ("adams_moulton", "ABM")),
    },
)
@dataclass(frozen=True)
class Adams(Solver):
    """Adams' multistep method in the velocity of the straight path, whatever the model's own is.

    Choose it, on the grid `straight` or `power`, for five to fifteen evaluations. It starts with
    Euler's method, so it is for paths, whose first step is from noise and hardly bent; a plain
    differential equation is better served by `rk4` or `dopri5`.

    Args:
        order: 1 to 4, the slopes that the polynomial goes through.
        corrector: "free" repeats each step with the slope at its end, at no further evaluation.
    """

    order: int = 3  # pyright: ignore[reportIncompatibleMethodOverride]
    corrector: Corrector = "none"

    def __post_init__(self) -> None:
        check_order("Adams", self.order, range(1, MOST_ORDER + 1))
        if self.corrector not in ("none", "free"):
            raise UsageError(f"corrector={self.corrector!r}: choose 'none' or 'free'.")

    @property
    def view(self) -> View:
        return "velocity"

    @property
    def convergence(self) -> int:
        return self.order + (self.corrector == "free")

    @property
    def needs_path(self) -> bool:
        return True

    def write(self, to: Writer) -> None:
        assert to.path is not None
        steps = list(to.intervals())
        last, state = len(steps) - 1, 0
        known = [_slope(to.path, 0, to.levels[0])]
        for i, step in enumerate(steps):
            corrects = self.corrector == "free" and i < last  # at the end it would cost one more
            used = known[: self.order]
            number = _write(to, state, step, used, lands=not corrects)
            reached = _slope(to.path, number, step[1])
            state = _write(to, state, step, [reached, *used], lands=True) if corrects else number
            known = [reached, *known]


def _write(
    to: Writer, state: int, step: tuple[Level, Level], used: Sequence[Slope], *, lands: bool
) -> int:
    """Write the step from a state with these slopes, and return the number of the new state."""
    s, t = step
    scale = _scale(t)
    x, f = {state: scale / _scale(s)}, dict[int, float]()
    weights = adams_weights([k.clock for k in used], _clock(s), _clock(t))
    for slope, weight in zip(used, weights, strict=True):
        if not math.isfinite(slope.p):
            raise UsageError(
                f"the path has no finite slope at t = {s.t:.6g}, where Adams' method would start: "
                "start at the path's t_min."
            )
        if slope.p:
            x[slope.number] = x.get(slope.number, 0.0) + scale * weight * slope.p
        f[slope.number] = scale * weight * slope.q
    return to.write(t.t, x, f, lands=lands)


def _clock(level: Level) -> float:
    return level.sigma / (level.alpha + level.sigma)


def _scale(level: Level) -> float:
    return level.alpha + level.sigma


def _slope(path: GaussianPath, number: int, level: Level) -> Slope:
    """Return w at a state: with v = α' x̂_0 + σ' ε̂ and Δ = α σ' − σ α', by solving the two."""
    t = torch.tensor(level.t, dtype=torch.float64)
    d_alpha, d_sigma = float(path.d_alpha(t)), float(path.d_sigma(t))
    determinant = level.alpha * d_sigma - level.sigma * d_alpha
    p = -(d_sigma + d_alpha) / determinant
    return Slope(number, _clock(level), p, _scale(level) / determinant)

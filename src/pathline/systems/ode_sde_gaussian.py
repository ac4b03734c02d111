"""Gaussian data under a linear score that is off by a known factor: gap and bound in closed form.

On the Ornstein-Uhlenbeck path in its own clock t, τ = T − t, with s = −a(t) x, every law is normal:

    SDE   dV/dτ = 2 (1 − a) V + 1        ODE   dV/dτ = (2 − a) V
    W2 = √d |√V_SDE − √V_ODE|,   (E ‖s − ∇log p‖²)^½ = √d |1/V − a| √V,   L = 1 − a/2

The exact score has a* = 1/v, v = ½ + (s_0² − ½) e^(−2t).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pathline.fields import FokkerPlanck
from pathline.paths import OrnsteinUhlenbeck
from pathline.solvers import grids, solve
from pathline.solvers.gap import gap_bound

Error = Callable[[Tensor], Tensor]

PATH = OrnsteinUhlenbeck(horizon=10.0)
DIM, VARIANCE = 2, 0.04
GRID = grids.quadratic(2000, 1.0, 0.0)  # dense where laws change fast
TRUTH = math.sqrt(VARIANCE)


def constant(size: float) -> Error:
    """Return δ(t) = size · e^−t."""
    return lambda t: size * (-t).exp()


def swinging(t: Tensor) -> Tensor:
    """Return δ(t) = 0.2 sin(3t) e^−t."""
    return 0.2 * (3 * t).sin() * (-t).exp()


@dataclass(frozen=True)
class Linear:
    """Data N(0, s_0² I) and the score −a*(1 + δ(t)) x; T times as fast in path time.

    Args:
        error: δ, of the path's own clock.
    """

    error: Error

    def factor(self, t: Tensor) -> Tensor:
        """Return a at path times."""
        clock = PATH.horizon * t
        variance = 0.5 + (VARIANCE - 0.5) * (-2 * clock).exp()
        return (1 + self.error(clock)) / variance

    @cached_property
    def variances(self) -> Tensor:
        """V of the SDE and of the ODE at each time, (times, 2), from what the path begins at."""

        def slope(v: Tensor, t: Tensor) -> Tensor:
            a = self.factor(t)
            sde, ode = 2 * (1 - a) * v[:, :1] + 1, (2 - a) * v[:, 1:]
            return -PATH.horizon * torch.cat((sde, ode), 1)

        begin = torch.full((1, 2), float(PATH.sigma(1.0)) ** 2, dtype=torch.float64)
        made = solve(slope, begin, solver="rk4", grid=GRID, trajectory=True).trajectory
        assert made is not None
        return made[:, 0]

    @property
    def deviations(self) -> tuple[float, float]:
        """The standard deviations that the SDE and the ODE end in."""
        sde, ode = self.variances[-1].sqrt().tolist()
        return sde, ode

    @property
    def w2(self) -> float:
        """The distance between the two laws."""
        sde, ode = self.deviations
        return math.sqrt(DIM) * abs(sde - ode)

    @cached_property
    def bound(self) -> float:
        """What it is at most."""
        times = torch.tensor(GRID.times(PATH), dtype=torch.float64)
        a, v = self.factor(times), self.variances[:, 0]
        mismatch = math.sqrt(DIM) * (1 / v - a).abs() * v.sqrt()
        return gap_bound(PATH, times, PATH.horizon * (1 - a / 2), mismatch)

    @property
    def farther(self) -> float:
        """How much farther from the truth the ODE ends than the SDE."""
        sde, ode = (abs(v - TRUTH) for v in self.deviations)
        return ode - sde

    def residual(self) -> float:
        """Return the largest R − E[R | t] of its potential, per unit of the path's clock."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(200, DIM, generator=generator, dtype=torch.float64)
        equation = FokkerPlanck(PATH)

        def phi(x: Tensor, t: Tensor) -> Tensor:
            return -self.factor(t) * x.square().sum(1) / 2

        worst = 0.0
        for clock in (0.01, 0.1, 0.5, 2.0, 8.0):
            off = equation.of_potential(phi, x, clock / PATH.horizon)[:, 0] / PATH.horizon
            worst = max(worst, float((off - off.mean()).detach().abs().max()))
        return worst

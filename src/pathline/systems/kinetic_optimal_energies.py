"""Energies of Gaussian paths where λ is known: what claims of kinetic-optimal-paths read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pathline.core import noise
from pathline.fields import Dataset, VectorField, estimate_separation
from pathline.paths import CondOT, KineticOptimal, Separation, energy
from pathline.paths.energy import power
from pathline.paths.kinetic import EXACT
from pathline.paths.separation import gaussian_mmse
from pathline.solvers import RK4, grids, solve


def two_points(s: Tensor) -> Tensor:
    """Return 1 − λ of ±1 in one dimension, E sech²(s² + s ε), by the trapezoid rule."""
    eps = torch.linspace(-12, 12, 2401, dtype=torch.float64)
    weights = (-eps.square() / 2).exp()
    parts = [
        torch.cosh((c[:, None] ** 2 + c[:, None] * eps).clamp(-300, 300)) ** -2 @ weights
        for c in s.double().flatten().split(500)
    ]
    return (torch.cat(parts) / weights.sum()).reshape(s.shape)


def far_apart(s: Tensor) -> Tensor:
    """Return 1 − λ of points that are infinitely far apart."""
    return torch.zeros_like(s)


@dataclass(frozen=True)
class Energies:
    """The optimum for two points ±1 and for other data, computed when first asked for."""

    @cached_property
    def optimum(self) -> KineticOptimal:
        """The optimum for the two points."""
        return KineticOptimal(Separation.of(two_points), EXACT)

    def chord_off(self) -> float:
        """Return how far the energy of α and σ is from 2 − 2 cos Φ, relative."""
        return abs(energy(self.optimum, two_points) / (2 - 2 * math.cos(self.optimum.turn)) - 1)

    def unevenness(self) -> float:
        """Return the deviation of the power along the optimum, over its mean."""
        t = torch.linspace(0.001, 0.999, 1999, dtype=torch.float64)
        along = power(self.optimum, two_points, t)
        return float(along.std() / along.mean())

    def monte_carlo_off(self) -> float:
        """Return how far E‖u‖² of two million draws is from the formula, CondOT at t = 0.4."""
        path, t = CondOT(), torch.tensor(0.4, dtype=torch.float64)
        law = Dataset(path, torch.tensor([[-1.0], [1.0]], dtype=torch.float64))
        signs = noise.rademacher([0], (2_000_000,), dtype=torch.float64)[0]
        eps = noise.normal([0], (2_000_000,), stream="data", dtype=torch.float64)[0]
        x = path.noised(signs[:, None], eps[:, None], t)
        drawn = sum(float(law(part, t).velocity.square().sum()) for part in x.split(100_000))
        return abs(drawn / len(x) / float(power(path, two_points, t)) - 1)

    def ode_off(self) -> float:
        """Return max |ψ_ODE − ψ_chord| for t in [0.02, 0.98]: dψ/dt = sin Φ/(ρ² κ), ψ_0 = 0."""
        path = self.optimum
        cosine, sine = math.cos(path.turn), math.sin(path.turn)

        def slope(psi: Tensor, t: Tensor) -> Tensor:
            squared = (1 - t + t * cosine) ** 2 + (t * sine) ** 2
            return sine / (squared * path.kappa(psi))

        grid = grids.uniform(4900, start=0.0, end=0.98)
        x = torch.zeros(1, 1, dtype=torch.float64)
        way = solve(VectorField(slope), x, solver=RK4(), grid=grid, trajectory=True).trajectory
        assert way is not None
        t = torch.tensor(grid.times(), dtype=torch.float64)
        psi = torch.stack([step.flatten()[0] for step in way])
        return float((psi - path.angle(t)).abs()[t >= 0.02].max())

    def limit_off(self) -> float:
        """Return how far α and σ for λ ≡ 1 are from the straight path."""
        path = KineticOptimal(Separation.of(far_apart), EXACT)
        t = torch.linspace(0, 1, 1001, dtype=torch.float64)
        return float(max((path.alpha(t) - 1 + t).abs().max(), (path.sigma(t) - t).abs().max()))

    def still(self) -> float:
        """Return the energy of the optimum for isotropic Gaussian data."""
        isotropic = gaussian_mmse([1.0])
        return energy(KineticOptimal(Separation.of(isotropic), EXACT), isotropic)

    @cached_property
    def dimensions(self) -> tuple[tuple[float, float], ...]:
        """λ(0.2) and Φ/(π/2) of 64 independent points in 16, 64, 256 and 1024 dimensions."""
        found: list[tuple[float, float]] = []
        for d in (16, 64, 256, 1024):
            points = noise.normal(range(64), (d,), stream="data", dtype=torch.float64)
            estimate = estimate_separation(points, draws=1024)
            separation = float(estimate.separation(torch.tensor(0.2)))
            found.append((separation, estimate.path(EXACT).turn / (math.pi / 2)))
        return tuple(found)

    def least_rise(self) -> float:
        """Return the least increase of Φ/(π/2) from one dimension to the next."""
        turns = [turn for _, turn in self.dimensions]
        return min(b - a for a, b in zip(turns, turns[1:], strict=False))

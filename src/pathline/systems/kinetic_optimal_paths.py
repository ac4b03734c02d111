"""Kinetic optimal paths: the schedule follows from how well the data can be told from noise.

Energies are measured where λ is known exactly (two points ±1 in one dimension, Gaussian data) and
on drawn points; samples on M9 (`fields.problems.m9`) with its exact denoiser, 3000 starts, Euler
steps even in path time, by the exact Wasserstein-2 distance to where the flow leads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from pathline.core import noise
from pathline.fields import Dataset, Denoiser, VectorField, estimate_separation, retimed
from pathline.fields.problems import m9
from pathline.learn.couplings.transport import wasserstein
from pathline.paths import (
    CondOT,
    GaussianPath,
    KineticOptimal,
    Separation,
    Trigonometric,
    VPLinear,
    energy,
)
from pathline.paths.energy import power
from pathline.paths.kinetic import EXACT
from pathline.paths.separation import gaussian_mmse
from pathline.solvers import DDIM, RK4, DPMpp, Euler, Heun, Solver, grids, sample, solve
from pathline.systems.system import Claim, Plot, System, register

OTHERS: Mapping[str, GaussianPath] = {
    "VP-cosine": Trigonometric(),
    "VP-linear": VPLinear(),
    "straight": CondOT(),
}
STEPS = (4, 8, 16)
STARTS = range(3000)


def two_points(s: Tensor) -> Tensor:
    """Return 1 − λ of ±1 in one dimension, E sech²(s² + s ε), by the trapezoid rule."""
    eps = torch.linspace(-12, 12, 2401, dtype=torch.float64)
    weights = (-eps.square() / 2).exp()
    parts = [
        torch.cosh((c[:, None] ** 2 + c[:, None] * eps).clamp(-300, 300)) ** -2 @ weights
        for c in s.double().flatten().split(500)
    ]
    return (torch.cat(parts) / weights.sum()).reshape(s.shape)


def constant(s: Tensor) -> Tensor:
    """Return 1 − λ of points that are infinitely far apart."""
    return torch.zeros_like(s)


@dataclass(frozen=True)
class Experiment:
    """What the claims read; everything is computed when first asked for."""

    kept: dict[tuple[str, int], float] = field(default_factory=dict)

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
        path, t = (
            KineticOptimal(Separation.of(constant), EXACT),
            torch.linspace(0, 1, 1001).double(),
        )
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

    @cached_property
    def separation(self) -> Separation:
        """λ of M9, with its exact denoiser."""
        return estimate_separation(m9(CondOT()), draws=20_480).separation

    @cached_property
    def paths(self) -> Mapping[str, GaussianPath]:
        """The paths that are compared on M9."""
        return {
            "kinetic optimal": KineticOptimal(self.separation),
            "no floor": KineticOptimal(self.separation, EXACT),
            **OTHERS,
        }

    @cached_property
    def exact(self) -> Tensor:
        """Where the flow takes the starts."""
        grid = grids.log_snr(200, last="denoise")
        return self._end("straight", DPMpp(3), grid)

    def _end(self, name: str, solver: Solver, grid: grids.Grid) -> Tensor:
        law = m9(self.paths[name])
        return sample(law, seeds=STARTS, solver=solver, grid=grid, dtype=torch.float64).x

    def error(self, name: str, n: int, solver: Solver = Euler()) -> float:  # noqa: B008
        """Return the W2 distance of n steps, even in path time, to where the flow leads."""
        key = f"{name} {type(solver).__name__}", n
        if key not in self.kept:
            ends = (self.paths[name].t_max, 1 / n if isinstance(solver, DDIM) else 0.0)
            last = "denoise" if isinstance(solver, DDIM) else "stop"
            end = self._end(name, solver, grids.uniform(n, *ends, last))
            self.kept[key] = wasserstein(end, self.exact)
        return self.kept[key]

    def ratio(self, n: int, name: str = "kinetic optimal", solver: Solver = Euler()) -> float:  # noqa: B008
        """Return the error on one path over that of the best other one."""
        return self.error(name, n, solver) / min(self.error(k, n, solver) for k in OTHERS)

    def without_floor(self, n: int = 8) -> float:
        """Return the error on the optimum itself, its first slope σ' a difference over 1e-5.

        At t = 1 the denoiser says 0, the mean, and the other half of the slope is lost.
        """
        path = self.paths["no floor"]
        ends = path.sigma(torch.tensor([1.0, 1 - 1e-5], dtype=torch.float64))
        x = noise.normal(STARTS, (2,), dtype=torch.float64) * ends[0]
        x = x * (1 + float(ends.diff()) / 1e-5 / n)
        grid = grids.uniform(n - 1, 1 - 1 / n, 0.0)
        return wasserstein(solve(m9(path), x, solver=Euler(), grid=grid).x, self.exact)

    def transfer_off(self) -> float:
        """Return how far modes' masses are from the law's, for a VP model on the optimal path."""
        law, path = m9(VPLinear()), replace(self.paths["kinetic optimal"])
        model = Denoiser(lambda x, t: law(x, t).eps, VPLinear(), shape=(2,))
        moved = retimed(model, path, beyond="trim")
        x = sample(moved, 10_000, solver=Heun(), grid=grids.uniform(64), dtype=torch.float64).x
        nearest = torch.cdist(x, law.means).argmin(1)
        return float((nearest.bincount(minlength=9) / len(x) - 1 / 9).abs().max())

    def plots(self) -> tuple[Plot, ...]:
        """Return W2 against steps for the paths."""
        names = ("kinetic optimal", *OTHERS)
        curves = {k: tuple((float(n), self.error(k, n)) for n in STEPS) for k in names}
        return (Plot("Euler on M9, even in path time", "steps", "Wasserstein-2", curves),)


CLAIMS = (
    Claim("chord", "two points ±1: the energy of α and σ is 2 − 2 cos Φ, relative",
          Experiment.chord_off, 1e-4, headline=True),
    Claim("even", "and is spent evenly (deviation over mean)", Experiment.unevenness, 1e-3,
          headline=True),
    Claim("energy-optimal", "it is 0.45912 ± 0.0001, where the best of the others has 0.869",
          lambda e: energy(e.optimum, two_points), 0.45912, "equal", 1e-4, headline=True),
    Claim("energy-straight", "that of the straight path is 0.98240 ± 0.0001",
          lambda e: energy(CondOT(), two_points), 0.98240, "equal", 1e-4),
    Claim("energy-cosine", "and that of VP-cosine 0.86895 ± 0.0001",
          lambda e: energy(Trigonometric(), two_points), 0.86895, "equal", 1e-4),
    Claim("monte-carlo", "the formula is E‖u‖² of two million draws, within 0.5 %",
          Experiment.monte_carlo_off, 0.005),
    Claim("ode", "the chord solves the ODE of the angle (largest difference, t in [0.02, 0.98])",
          Experiment.ode_off, 1e-7),
    Claim("limit-far", "for λ ≡ 1 it is the straight path", Experiment.limit_off, 1e-6),
    Claim("limit-still", "for isotropic Gaussian data it costs nothing", Experiment.still, 1e-8),
    Claim("limit-straight", "where the straight path costs 2 − π/2",
          lambda e: energy(CondOT(), gaussian_mmse([1.0])), 2 - math.pi / 2, "equal", 1e-4),
    Claim("few-points", "64 points in 1024 dimensions are told apart at s = 0.2: λ ≥ 0.98",
          lambda e: e.dimensions[-1][0], 0.98, "higher"),
    Claim("few-points-turn", "and their path is nearly the straight one: Φ ≥ 0.93 π/2",
          lambda e: e.dimensions[-1][1], 0.93, "higher"),
    Claim("dimensions", "Φ rises with the dimension, 16 to 1024 (least increase of Φ/(π/2))",
          lambda e: min(b[1] - a[1] for a, b in zip(e.dimensions, e.dimensions[1:], strict=False)),
          0.0, "higher"),
    *(Claim(f"euler-{n}", f"{n} Euler steps on it err by at most 0.8 of the best other path's (W2)",
            lambda e, n=n: e.ratio(n), 0.8) for n in (8, 16)),
    Claim("limit-floor", "honest limit: without the floor it errs more than every other path, at 8",
          lambda e: e.without_floor(8) / max(e.error(k, 8) for k in OTHERS), 1.0, "higher"),
    Claim("limit-ddim", "honest limit: with DDIM, which sees only the log-SNR, it does not win",
          lambda e: e.ratio(8, solver=DDIM()), 1.0, "higher"),
    Claim("energy-floor", "on M9 the floor costs at most 5 % of energy",
          lambda e: energy(e.paths["kinetic optimal"], e.separation)
          / energy(e.paths["no floor"], e.separation) - 1, 0.05),
    Claim("transfer", "a VP model sampled on it has each mode's mass within 0.02",
          Experiment.transfer_off, 0.02),
)  # fmt: skip

register(System(
    slug="kinetic-optimal-paths",
    title="Kinetic optimal paths",
    paper="Shaul et al. 2023, arXiv:2306.06626",
    summary="The noise schedule of least kinetic energy, from one measured function of the data.",
    experiment=Experiment,
    claims=CLAIMS,
    plots=Experiment.plots,
))  # fmt: skip

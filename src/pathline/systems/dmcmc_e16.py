"""Denoising MCMC on E16, where score, density and q(σ | x) are exact: what its claims read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pathline.core import noise
from pathline.fields import Dataset
from pathline.fields.problems import e16
from pathline.paths import EDM
from pathline.solvers import (
    DDIM,
    DEIS,
    AdaptiveRK,
    EDMSampler,
    EulerMaruyama,
    Grid,
    Heun,
    PredictorCorrector,
    Solver,
    grids,
    sample,
    solve,
)
from pathline.speed import DMCMC, MALA, Chains, ExactLevels, Kernel, Langevin, Walk
from pathline.speed.dmcmc import Choice
from pathline.speed.kernels import Target
from pathline.systems.distances import sliced

PATH = EDM(0.01, 50.0)
WIDTH = 0.08
ETAS = (0.02, 0.05, 0.1, 0.3)
CHAINS, OUTPUTS = 400, 10
KAR1 = Heun(view="eps")
INTEGRATORS: Mapping[str, tuple[Solver, int, int]] = {  # grid steps with the chain, and from noise
    "Heun (KAR1)": (KAR1, 3, 5),
    "EDM (KAR2)": (EDMSampler(churn=80, low=0.05, high=1, scale=1.007), 3, 5),
    "Euler-Maruyama": (EulerMaruyama(), 6, 9),
    "ancestral": (DDIM(eta=1.0), 6, 9),
    "corrected": (PredictorCorrector(snr=0.16), 3, 5),
    "RK45": (AdaptiveRK(rtol=0.1, atol=0.1), 0, 0),
}
"""The paper's six, at 9 or 10 evaluations and at 10 or 11. RK45 takes as many as it needs (no steps
of a grid), at a tolerance where that is few: 12.5 on average, and 33.4 from pure noise."""


E16 = e16(PATH)
LEVELS = ExactLevels(E16, PATH.sigma_min, PATH.sigma_max, 250)


def draws(n: int, dim: int, index: int = 0) -> Tensor:
    """Return standard normals for making problems, (n, dim) float64."""
    return noise.normal(range(n), (dim,), stream="probe", index=index, dtype=torch.float64)


def component(x: Tensor) -> Tensor:
    """Return the number of the nearest centre."""
    return torch.cdist(x, E16.means).argmin(1)


def spread(x: Tensor) -> float:
    """Return the root mean square of the distance to the nearest centre, a coordinate."""
    return float((x - E16.means[component(x)]).square().mean().sqrt())


@dataclass(frozen=True)
class Experiment:
    """What the claims read; everything is computed when first asked for, and once."""

    @cached_property
    def truth(self) -> Tensor:
        """True samples."""
        return E16.draw(range(8000))

    @cached_property
    def chains(self) -> Mapping[float, Chains]:
        """Samples by η, with KAR1."""
        return {eta: self._chains(eta, KAR1, 3) for eta in ETAS}

    @cached_property
    def plain(self) -> Mapping[int, Tensor]:
        """Samples of KAR1 from pure noise, by evaluations."""
        return {2 * n: self._plain(KAR1, n) for n in (5, 6, 7, 8, 10)}

    def _chains(self, eta: float, solver: Solver, steps: int) -> Chains:
        sampler = DMCMC(E16, LEVELS, Langevin(eta), CHAINS, solver=solver, grid=_grid(steps))
        return sampler.sample(CHAINS * OUTPUTS, dtype=torch.float64)

    def _plain(self, solver: Solver, steps: int) -> Tensor:
        n = CHAINS * OUTPUTS
        x = sample(E16, n, solver=solver, grid=_grid(steps), dtype=torch.float64).x
        return E16(x, PATH.t_min).x0

    def sw(self, x: Tensor) -> float:
        """Return the sliced distance to the data."""
        return sliced(x, self.truth)

    def worst(self, measure: str, nfe: int, chains: float = 1.0) -> float:
        """Return DLG's SW or RMS, the worse of η = 0.02 and 0.05, over that of KAR1."""
        of = self.sw if measure == "SW" else spread
        return max(of(self.chains[eta].x) for eta in ETAS[:2]) / of(self.plain[nfe]) * chains

    @cached_property
    def changed(self) -> list[float]:
        """The share of chains that changed component, by η."""
        tracks = [component(self.chains[eta].x).reshape(OUTPUTS, CHAINS) for eta in ETAS]
        return [float((track != track[0]).any(0).double().mean()) for track in tracks]

    @cached_property
    def medians(self) -> list[float]:
        """The median noise level that outputs were denoised from, by η."""
        return [float(self.chains[eta].sigma.median()) for eta in ETAS]

    @cached_property
    def exact_start(self) -> tuple[Tensor, Tensor]:
        """Draws (x, σ) from π itself."""
        u = noise.uniform(range(4000), (1,), stream="probe", dtype=torch.float64)[:, 0]
        sigma = LEVELS.sigmas[(u * len(LEVELS.sigmas)).long()]
        return E16.draw(range(4000)) + sigma[:, None] * draws(4000, 16, index=5), sigma

    def moments_off(self) -> float:
        """Return the largest error of a moment up to order two, in standard errors of the draws.

        (x, σ) from π, denoised by ++3M in 200 steps; all of them, and those with σ < 0.5 alone.
        """
        x, sigma = self.exact_start
        start = sigma / PATH.sigma_max
        end = solve(E16, x, solver="dpmpp_3m", grid="log_snr", steps=200, start=start).x
        mean = E16.weights @ E16.means
        centred = E16.means - mean
        second = (E16.weights[:, None] * centred).T @ centred + WIDTH**2 * torch.eye(16)
        worst = 0.0
        for chosen in (end, end[sigma < 0.5]):
            error = chosen - mean
            products = torch.cat((error, (error[:, :, None] * error[:, None]).flatten(1)), 1)
            exact = torch.cat((torch.zeros(16), second.flatten()))
            off = (products.mean(0) - exact).abs() / products.std(0) * len(chosen) ** 0.5
            worst = max(worst, float(off.max()))
        return worst

    def walk(self, kernel: Kernel, choice: Choice, sweeps: int) -> Walk:
        """Walk 128 chains that begin with draws from π."""
        sampler = DMCMC(E16, LEVELS, kernel, n_chains=128, choice=choice)
        return sampler.walk(sampler.begin_at(self.exact_start[0][:128]), sweeps)

    @cached_property
    def adjusted(self) -> Walk:
        """4000 sweeps of MALA with steps 0.4 (σ² + 0.08²)."""
        return self.walk(MALA(0.4, WIDTH), "drawn", 4000)

    def drift_error(self) -> float:
        """Return the relative error of σ² + η²/4σ² after one step around one datum in R⁴⁰⁹⁶."""
        sigma, worst = 0.7, 0.0
        law = Dataset(PATH, draws(1, 4096, index=6))
        x, z = (draws(32, 4096, index=i) for i in (7, 8))
        for ratio in (0.5, 1.0, 4.0):
            eta, level = sigma**2 / ratio, torch.full((32,), sigma, dtype=torch.float64)
            at = Target(level, lambda x: law(x, sigma / PATH.sigma_max).score, None)
            moved = Langevin(eta).move(at, law.points + sigma * x, z, x[:, 0]).x
            formula = sigma**2 + eta**2 / (4 * sigma**2)
            squared = float((moved - law.points).square().mean())
            worst = max(worst, abs(squared / formula - 1))
        return worst

    def map_error(self) -> float:
        """Return the largest RMS of log σ̂/σ over σ, in units of 1/√(2d)."""
        errors = []
        for sigma in (0.2, 0.5, 1.0, 2.0, 5.0):
            x = E16.draw(range(2000)) + sigma * draws(2000, 16, index=9)
            found = LEVELS.sigmas[LEVELS.most_likely(x)]
            errors.append(float((found / sigma).log().square().mean().sqrt()))
        return max(errors) * 32**0.5

    def integrators(self) -> float:
        """Return the largest SW with chains over SW from pure noise, over the integrators."""
        return max(
            self.sw(self._chains(0.02, solver, short).x) / self.sw(self._plain(solver, long))
            for solver, short, long in INTEGRATORS.values()
        )

    def multistep(self) -> float:
        """Return SW of DEIS from pure noise at ten evaluations over SW of DLG at nine."""
        return self.sw(self._plain(DEIS(3, "rho"), 9)) / self.sw(self.chains[0.02].x)


def _grid(steps: int) -> Grid:
    """Return EDM's grid; of no steps, one leg for a solver that takes its own."""
    return grids.karras(steps, last="denoise") if steps else grids.karras(1)


def level_spread(walk: Walk) -> float:
    """Return the total variation between the visited levels and the prior, on ten bins of log σ."""
    place = torch.searchsorted(-LEVELS.sigmas, -walk.trace.flatten().contiguous())
    share = torch.bincount(place * 10 // len(LEVELS.sigmas), minlength=10) / place.numel()
    return float((share - 0.1).abs().sum() / 2)

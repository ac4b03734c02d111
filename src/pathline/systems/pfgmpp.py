"""PFGM++: noise with D degrees of freedom between the Poisson flow (1) and diffusion (∞).

Robustness is measured without training: 200 points on a random 8-dimensional subspace of R^64
(standard normal in it), exact denoisers, EDM's 18 Heun steps, and noise of half a σ injected before
each step. What comes out are data points; TV is the total variation between how often each is the
nearest one of 1500 samples, and the uniform law. 1500 fair draws have a TV of about 0.145.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from pathline.core import noise
from pathline.fields import Dataset, Denoiser
from pathline.learn.objectives import drawn_noise
from pathline.paths import EDM, PFGMpp, StudentT
from pathline.solvers import Heun, NoiseInjection, grids, sample, solve
from pathline.solvers.solve import start
from pathline.systems.pfgmpp_fashion import distances
from pathline.systems.system import Claim, Plot, System, register

HEUN = Heun(view="eps")
GRID = grids.karras(18, last="denoise")
DOFS = (8.0, 64.0, 512.0, 4096.0, math.inf)
N_SAMPLES, N_POINTS, BATCH = 1500, 200, 50


def normal(n: int, dim: int, index: int) -> Tensor:
    """Return normal numbers in float64, always the same ones."""
    return noise.normal(range(n), (dim,), stream="probe", index=index, dtype=torch.float64)


def denoised(dof: float, points: Tensor, x: Tensor, sigma: float) -> Tensor:
    """Return the exact x̂_0 of a data set."""
    return Dataset(PFGMpp(dof=dof), points)(x, sigma / 80).x0


def radius_statistic(dof: float, n: int = 400_000, dim: int = 8) -> float:
    """Return the Kolmogorov-Smirnov statistic between ‖ε‖ here and the published Beta recipe's."""
    found = StudentT(dof).draw(range(n), (dim,), dtype=torch.float64).norm(dim=1).sort().values
    beta = np.random.default_rng(0).beta(dim / 2, dof / 2, n)
    other = torch.from_numpy(np.sqrt(dof * beta / (1 - beta))).sort().values
    both = torch.cat((found, other))
    shares = [torch.searchsorted(each, both, right=True) / n for each in (found, other)]
    return float((shares[0] - shares[1]).abs().max())


def variance_error(dof: float = 64.0, n: int = 100_000, dim: int = 16) -> float:
    """Return how far the variance of the noise is from D/(D − 2), relatively."""
    squares = StudentT(dof).draw(range(n), (dim,), dtype=torch.float64).square()
    return abs(float(squares.mean()) * (dof - 2) / dof - 1)


def from_gauss(dof: float, sigma: float = 1.0) -> float:
    """Return the largest distance of x̂_0 from that of Gaussian noise, at 200 places."""
    points, x = normal(50, 3, 1), 2 * normal(200, 3, 2)
    gauss = denoised(math.inf, points, x, sigma)
    return float((denoised(dof, points, x, sigma) - gauss).abs().max())


def limit_ratio() -> float:
    """Return how far from 4 that distance falls when D is quadrupled, from 1024 on."""
    off = [from_gauss(4.0**k) for k in (5, 6, 7, 8)]
    return max(abs(a / b - 4) for a, b in zip(off, off[1:], strict=False))


def field_error(dof: float, sigma: float = 1.3) -> float:
    """Return how far (x − x̂_0)/σ is from √D E_x/E_r of the charges themselves, relatively."""
    points, x, r = normal(50, 3, 1), 2 * normal(200, 3, 2), sigma * math.sqrt(dof)
    away = x[:, None] - points
    charge = (away.square().sum(-1) + r**2) ** (-(3 + dof) / 2)
    exact = (charge[..., None] * away).sum(1) / charge.sum(1, keepdim=True) / sigma
    found = (x - denoised(dof, points, x, sigma)) / sigma
    return float(((found - exact).norm(dim=1) / exact.norm(dim=1)).max())


def sampler_difference() -> float:
    """Return the largest difference between PFGM++ and EDM, from one start with one denoiser."""
    law, path = Dataset(PFGMpp(dof=8.0), normal(50, 3, 1)), PFGMpp(dof=8.0)
    x = start(path, 1.0, range(64), (3,), torch.float64)
    models = (Denoiser(lambda x, t: law(x, t[0]).x0, p, "x0") for p in (path, EDM()))
    ends = [solve(model, x, solver=HEUN, grid=GRID).x for model in models]
    return float((ends[0] - ends[1]).abs().max())


def regression_error(dof: float = 4.0, sigma: float = 0.7, n: int = 1_000_000) -> float:
    """Return the largest error of E[y | x in a bin], in standard errors, for two points y = ±1."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (n, 1), generator=generator).double() * 2 - 1
    x = y + sigma * drawn_noise(StudentT(dof), (n, 1), generator).double()
    points = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    wrong = (y - denoised(dof, points, x, sigma))[:, 0]
    which = torch.bucketize(x[:, 0], torch.linspace(-4, 4, 41, dtype=torch.float64))
    bins = [wrong[which == k] for k in range(42)]
    return max(float(b.mean().abs() / b.std() * math.sqrt(len(b))) for b in bins)


class Experiment:
    """What the claims read: TV for every D, with and without injected noise."""

    @cached_property
    def points(self) -> Tensor:
        """The data."""
        basis, _ = torch.linalg.qr(normal(64, 8, 3))
        return normal(N_POINTS, 8, 4) @ basis.T

    @cached_property
    def floor(self) -> float:
        """The TV of as many fair draws."""
        u = noise.uniform(range(N_SAMPLES), (1,), stream="probe", dtype=torch.float64)
        return self._variation((u[:, 0] * N_POINTS).long())

    @cached_property
    def pushed(self) -> list[float]:
        """TV with injected noise, for each of `DOFS`."""
        return [self._sampled(dof, 0.5) for dof in DOFS]

    @cached_property
    def undisturbed(self) -> list[float]:
        """TV without."""
        return [self._sampled(dof, 0.0) for dof in DOFS]

    def excess(self) -> float:
        """Return what TV is above the floor for D = 8, over what it is for EDM."""
        return (self.pushed[0] - self.floor) / (self.pushed[-1] - self.floor)

    def _sampled(self, dof: float, amount: float) -> float:
        law, solver = Dataset(PFGMpp(dof=dof), self.points), NoiseInjection(HEUN, amount)
        seeds = [range(i, i + BATCH) for i in range(0, N_SAMPLES, BATCH)]  # small ones are faster
        ends = [
            sample(law, seeds=s, solver=solver, grid=GRID, dtype=torch.float64).x for s in seeds
        ]
        return self._variation(torch.cdist(torch.cat(ends), self.points).argmin(1))

    def _variation(self, nearest: Tensor) -> float:
        shares = torch.bincount(nearest, minlength=N_POINTS) / len(nearest)
        return float((shares - 1 / N_POINTS).abs().sum() / 2)


@lru_cache(maxsize=1)
def trained() -> dict[tuple[float, float], float]:
    """Return the Fréchet distances of two trained models, (D, injected noise) → distance."""
    return distances(HEUN, GRID, dofs=(64.0, math.inf), amounts=(0.0, 0.2))


def degraded(dof: float) -> float:
    """Return by how much the distance grows with injected noise."""
    return trained()[dof, 0.2] - trained()[dof, 0.0]


def largest(measure: Callable[[float], float], *values: float) -> float:
    """Return the largest of a measure over some values of D or σ."""
    return max(measure(value) for value in values)


CLAIMS = (
    Claim("radius", "the radius has the law of the Beta recipe (Kolmogorov-Smirnov, 4e5 draws, "
          "D = 1, 4, 64)", lambda e: largest(radius_statistic, 1.0, 4.0, 64.0), 0.006),
    Claim("variance", "the variance of the noise is D/(D − 2), to 1 %, for D = 64",
          lambda e: variance_error(), 0.01),
    Claim("limit-rate", "x̂_0 goes to that of diffusion as 1/D: D times 4 divides the distance by "
          "4 ± 0.1, from 1024 on", lambda e: limit_ratio(), 0.1),
    Claim("limit", "and at D = 2³⁰ it is there, for σ = 0.2, 1, 5",
          lambda e: largest(lambda s: from_gauss(2.0**30, s), 0.2, 1.0, 5.0), 1e-6),
    Claim("field", "(x − x̂_0)/σ is the Poisson field's √D E_x/E_r (largest relative error, D = 1, "
          "4, 64)", lambda e: largest(field_error, 1.0, 4.0, 64.0), 1e-12),
    Claim("sampler", "from one start with one denoiser, PFGM++ and EDM end at the same bits",
          lambda e: sampler_difference(), 0.0, "equal"),
    Claim("robust", "with noise of σ/2 injected at each step, the TV of D = 8 above the floor is "
          "at most a quarter of EDM's", Experiment.excess, 0.25, headline=True),
    Claim("monotone", "and TV rises with D (its largest fall from one to the next)",
          lambda e: max(a - b for a, b in zip(e.pushed, e.pushed[1:], strict=False)), 0.03),
    Claim("undisturbed", "without injected noise every D is at the floor",
          lambda e: max(abs(v - e.floor) for v in e.undisturbed), 0.03),
    Claim("unbiased", "data regressed on noised data are x̂_0 in every one of 42 bins (largest "
          "error in standard errors, 1e6 draws)", lambda e: regression_error(), 3.0),
    Claim("trained", "trained alike, D = 64 has 1 ± 0.1 of EDM's Fréchet distance",
          lambda e: trained()[64.0, 0.0] / trained()[math.inf, 0.0], 1.0, "equal", 0.1,
          needs="training"),
    Claim("trained-robust", "and grows less with noise of σ/5 injected at each step (ratio of the "
          "growths)", lambda e: degraded(64.0) / degraded(math.inf), 1.0, needs="training"),
)  # fmt: skip


def plots(e: Experiment) -> tuple[Plot, ...]:
    """Return TV against D; the last D stands for ∞."""
    places = [*DOFS[:-1], 8 * DOFS[-2]]
    named = (("σ/2 injected", e.pushed), ("nothing injected", e.undisturbed))
    curves = {name: tuple(zip(places, values, strict=True)) for name, values in named}
    return (Plot("Robustness of PFGM++", "D (last: ∞)", "total variation", curves),)


register(System(
    slug="pfgmpp",
    title="PFGM++",
    paper="Xu et al. 2023, arXiv:2302.04265",
    summary="Diffusion with Student-t noise: a knob between robustness and sharpness, at no cost.",
    experiment=Experiment,
    claims=CLAIMS,
    plots=plots,
))  # fmt: skip

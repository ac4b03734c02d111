"""DPM-Solver++: a polynomial in log-SNR time through the last predictions of the data.

Measured on M4 (`fields.problems`), VP-linear, 16 starts, log-SNR grid, float64. Singlestep,
noise-view, adaptive and second-order stochastic variants are not in the library yet, and so their
claims are not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pathline.fields import Dataset, Denoiser, Gaussian
from pathline.fields.problems import m4
from pathline.paths import VPLinear
from pathline.solvers import DDIM, DPMpp, Euler, Grid, Plan, Row, grids, solve
from pathline.solvers.order import fitted_slope
from pathline.solvers.phi import derivative_weights, phi
from pathline.solvers.reference import moments
from pathline.systems.convergence import Convergence, Method
from pathline.systems.system import Claim, System, register

PATH = VPLinear()


def legacy_3m(grid: Grid) -> Plan:
    """Return ++3M as public code has it, with half of the second derivative: a method of order 2.

    Half of α_t h φ₃(−h) D₂ is taken off the weights of every row that has it.
    """
    plan = DPMpp(order=3).plan(PATH, grid)
    times = torch.tensor(plan.times, dtype=torch.float64)
    alpha, log_snr = PATH.alpha(times).tolist(), PATH.log_snr(times).tolist()

    def halved(i: int, row: Row) -> Row:
        now, *earlier = row.f
        if len(earlier) < 2:
            return row
        h = log_snr[i + 1] - log_snr[i]
        second = derivative_weights([(log_snr[k] - log_snr[i]) / h for k in earlier], 2)
        half = [alpha[i + 1] * h * phi(3, -h) * a / 2 for a in second]
        off = {now: -sum(half), **dict(zip(earlier, half, strict=True))}
        return replace(row, f={k: b - off[k] for k, b in row.f.items()})

    return replace(plan, rows=tuple(halved(i, row) for i, row in enumerate(plan.rows)))


METHODS: Mapping[str, Method] = {
    "DDIM": DDIM(),
    "++2M": DPMpp(order=2),
    "++3M": DPMpp(order=3),
    "++3M legacy": legacy_3m,
}


@dataclass(frozen=True)
class Experiment:
    """What the claims read."""

    on_m4: Convergence = field(default_factory=lambda: Convergence(m4(PATH), METHODS))

    def first_order_spread(self) -> float:
        """Return how far DDIM, ++1 and DPM-Solver-1 (Euler in ε) are apart, on five grids."""
        own = grids.times([1.0, 0.83, 0.8, 0.31, 0.3, 0.05, 0.002])
        made = (grids.log_snr(7), grids.uniform(9), grids.quadratic(5), grids.karras(12), own)
        rules = (DDIM(), DPMpp(order=1), Euler(view="eps"))
        ends = (
            torch.stack([solve(self.on_m4.field, self.on_m4.x, solver=r, grid=g).x for r in rules])
            for g in made
        )
        return max(float((x - x[0]).abs().max()) for x in ends)

    def point_mass_error(self) -> float:
        """Return the relative error of one step of ++1 where all data are one point."""
        point = torch.tensor([1.5, -0.7, 0.2], dtype=torch.float64)
        x = self.on_m4.x
        end = solve(Dataset(PATH, point[None]), x, solver=DPMpp(order=1), steps=1).x
        eps = (x - PATH.alpha(PATH.t_max) * point) / PATH.sigma(PATH.t_max)
        exact = PATH.noised(point, eps, torch.tensor(PATH.t_min, dtype=torch.float64))
        return float((end / exact - 1).abs().max())

    def ancestral_error(self, std: float, n: int) -> float:
        """Return the relative error of mean and variance after n ancestral steps, on N(1, std²)."""
        centre, spread = torch.tensor([[1.0], [std**2]], dtype=torch.float64)
        law = Gaussian(PATH, centre, spread)
        (mean, variance), exact = (
            (float(PATH.alpha(t)), float((PATH.alpha(t) * std) ** 2 + PATH.sigma(t) ** 2))
            for t in (PATH.t_max, PATH.t_min)
        )
        made = moments(DDIM(eta=1.0).plan(PATH, grids.log_snr(n)), law, mean, variance)
        return max(abs(a / b - 1) for a, b in zip(made, exact, strict=True))

    def weak_order(self) -> float:
        """Return the order at which the ancestral sampler's mean and variance converge."""
        steps = (80, 160, 320)
        return fitted_slope(steps, [self.ancestral_error(0.5, n) for n in steps])

    def miscounted(self) -> int:
        """Return for how many n = 1…60 and orders the network is not called exactly n times."""
        calls: list[Tensor] = []

        def network(x: Tensor, label: Tensor) -> Tensor:
            calls.append(label)
            return torch.zeros_like(x)

        def spent(order: int, n: int) -> int:
            calls.clear()
            solve(Denoiser(network, PATH), self.on_m4.x, solver=DPMpp(order), steps=n)
            return len(calls)

        return sum(spent(order, n) != n for order in (1, 2, 3) for n in range(1, 61))


CLAIMS = (
    Claim("order-ddim", "DDIM converges with order 1 ± 0.2",
          lambda e: e.on_m4.order("DDIM"), 1.0, "equal", 0.2, headline=True),
    Claim("order-2m", "DPM-Solver++ 2M converges with order 2 ± 0.2",
          lambda e: e.on_m4.order("++2M"), 2.0, "equal", 0.2, headline=True),
    Claim("order-3m", "DPM-Solver++ 3M converges with order 3 ± 0.35",
          lambda e: e.on_m4.order("++3M"), 3.0, "equal", 0.35, headline=True),
    Claim("order-3m-legacy", "with half of the second derivative, as in public code, 3M has order "
          "2 only: this measurement tells the two apart",
          lambda e: e.on_m4.order("++3M legacy"), 2.3, headline=True),
    Claim("first-order", "DDIM, DPM-Solver-1 and DPM-Solver++ 1 agree on any grid",
          Experiment.first_order_spread, 1e-12),
    Claim("point-mass", "++1 is exact in one step where all data are one point",
          Experiment.point_mass_error, 1e-12),
    Claim("point-mass-sde", "SDE-DPM-Solver++ 1 gives exactly N(α x0, σ²) there, 10 to 640 steps",
          lambda e: max(e.ancestral_error(0.0, n) for n in (10, 40, 160, 640)), 1e-12),
    Claim("weak-order-sde", "SDE-DPM-Solver++ 1 has weak order 1 ± 0.2 on Gaussian data",
          Experiment.weak_order, 1.0, "equal", 0.2),
    Claim("efficiency-2m", "at 20 evaluations ++2M makes at most a quarter of DDIM's error",
          lambda e: e.on_m4.ratio("++2M", "DDIM", 20), 0.25),
    Claim("evaluations", "multistep calls the network exactly n times, n = 1…60, every order",
          Experiment.miscounted, 0.0, "equal"),
)  # fmt: skip

register(System(
    slug="dpm-solver",
    title="DPM-Solver++",
    paper="Lu et al. 2022, arXiv:2206.00927 and arXiv:2211.01095",
    summary="Good samples from a trained diffusion model in 10 to 25 network calls.",
    experiment=Experiment,
    claims=CLAIMS,
    plots=lambda e: (e.on_m4.plot("DPM-Solver++ on M4, VP-linear, uniform in log-SNR"),),
))  # fmt: skip

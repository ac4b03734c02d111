"""DEIS: the linear part of a step exactly, the rest by a polynomial through past predictions of ε.

Measured on M4 (`fields.problems`), VP-linear, 16 starts, float64, on a grid quadratic in t but for
the Adams-Bashforth methods in ρ, whose grid is even in λ. The paper's tABr is order r + 1 here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import get_args

import numpy as np
import torch

from pathline.core import noise
from pathline.fields import Field
from pathline.fields.problems import m4
from pathline.learn.checkpoint import load_model
from pathline.paths import EDM, VPLinear
from pathline.solvers import DDIM, DEIS, IPNDM, RK, EDMSampler, Grid, Plan, grids, solve
from pathline.solvers.deis import Variable, step_weights
from pathline.solvers.exponential import linear_part, polynomial_weights
from pathline.solvers.solver import Level, Writer
from pathline.systems.convergence import Convergence, Method
from pathline.systems.endpoint import Endpoint
from pathline.systems.system import Claim, System, register

PATH = VPLinear()
M4 = m4(PATH)
GRIDS = (grids.quadratic(11), grids.log_snr(9), grids.uniform(7), grids.karras(12))
UNEVEN = grids.times([1.0, 0.83, 0.8, 0.55, 0.31, 0.3, 0.12, 0.05, 0.002])
RUNGE_KUTTA = {"2heun": 2, "2mid": 2, "3kutta": 3, "3heun": 3, "3ral": 3, "3vdh": 3, "3ssprk": 3,
               "4rk": 4}  # fmt: skip
"""ρRK methods as the paper names them, and their orders."""

_CLOCK: Mapping[Variable, Callable[[Level], float]] = {
    "t": lambda p: p.t,
    "rho": lambda p: p.sigma / p.alpha,
    "lambda": lambda p: p.log_snr,
}


def dpm_multistep(order: int, grid: Grid) -> Plan:
    """Return multistep DPM-Solver in ε̂, from its own formulas: φ-functions and divided differences.

    What diffusers has as DEIS.
    """
    to = Writer(PATH, grid.times(PATH), denoises=False)
    for i, (s, t) in enumerate(to.intervals()):
        known = range(i - 1, max(i - order, -1), -1)
        linear, weights = polynomial_weights("eps", s, t, [to.levels[k] for k in known], "taylor")
        to.write(t.t, {i: linear}, dict(zip((i, *known), weights, strict=True)))
    return Plan((to.times[0],), tuple(to.rows), "eps", PATH)


@dataclass(frozen=True)
class Experiment:
    """What the claims read."""

    on_m4: Convergence = field(default_factory=lambda: Convergence(M4, {
        "DDIM": DDIM(),
        **{f"tAB{order - 1}": DEIS(order) for order in (1, 2, 3, 4)},
        **{f"ρAB{order - 1} (quadratic)": DEIS(order, "rho") for order in (2, 3, 4)},
        **{name: RK(view="eps", method=name) for name in RUNGE_KUTTA},
    }, grid=grids.quadratic(320)))  # fmt: skip
    on_log_snr: Convergence = field(default_factory=lambda: Convergence(M4, {
        **{f"ρAB{order - 1}": DEIS(order, "rho") for order in (2, 3, 4)},
        "iPNDM": IPNDM(),
    }))  # fmt: skip

    def off_order(self, orders: Mapping[str, float]) -> float:
        """Return how far the measured orders of Runge-Kutta methods are from these, at most."""
        return max(abs(self.on_m4.order(name) - order) for name, order in orders.items())

    def sum_error(self) -> float:
        """Return |Σ_j C_ij − DDIM's coefficient| over it, at most, before anything is mended."""
        errors: list[float] = []
        for grid, variable, order in product(GRIDS, get_args(Variable), (1, 2, 3, 4)):
            to = Writer(PATH, grid.times(PATH), denoises=False)
            for i, (s, t) in enumerate(to.intervals()):
                known = to.levels[max(i - order + 1, 0) : i + 1][::-1]
                made = step_weights(PATH, s, t, known, variable)
                total = linear_part("eps", s, t)[1]
                errors.append(abs(sum(made) - total) / max(abs(total), *map(abs, made)))
        return max(errors)

    def first_order_spread(self) -> float:
        """Return how far order 1 in any variable is from DDIM, on all the grids."""
        return max(
            self._apart(M4, DDIM(), DEIS(1, variable), grid)
            for grid, variable in product((*GRIDS, UNEVEN), get_args(Variable))
        )

    def lambda_spread(self) -> float:
        """Return how far λAB1 and λAB2 are from multistep DPM-Solver in ε̂."""
        return max(
            self._apart(M4, DEIS(order, "lambda"), partial(dpm_multistep, order), grid)
            for order, grid in product((2, 3), (*GRIDS, UNEVEN))
        )

    def heun_spread(self) -> float:
        """Return how far 2heun is from EDM's deterministic sampler on EDM's path, relative."""
        law = m4(EDM())
        return max(
            self._apart(law, RK(view="eps", method="2heun"), EDMSampler(churn=0), grids.karras(n))
            for n in (1, 4, 18)
        )

    def _apart(self, law: Field, a: Method, b: Method, grid: Grid) -> float:
        x = noise.normal(range(16), (3,), dtype=torch.float64)
        plans = (m(grid) if callable(m) else m.plan(law.path, grid) for m in (a, b))
        one, other = (solve(law, x, solver=plan, seeds=range(16)).x for plan in plans)
        return float((one - other).abs().max() / one.abs().max())

    def polynomial_error(self) -> float:
        """Return the relative error of a step where ε̂ is a polynomial of degree < order in u.

        Of the polynomials (u/u_0)^k, with u_0 the largest of the history.
        """
        return max(
            _row_error(DEIS(order, variable).plan(PATH, UNEVEN), variable, order)
            for order, variable in product((1, 2, 3, 4), get_args(Variable))
        )

    def ipndm_error(self) -> float:
        """Return the same for iPNDM and ε̂ linear in ρ."""
        return _row_error(IPNDM(2).plan(PATH, UNEVEN), "rho", 2)

    def network_ratio(self) -> float:
        """Return tAB3's squared error over DDIM's at ten evaluations of the fashion model."""
        end, grid = Endpoint(load_model("fashion")), grids.quadratic(10)
        return end.error(DEIS(4), grid) / end.error(DDIM(), grid)


def _row_error(plan: Plan, variable: Variable, order: int) -> float:
    """Return the largest relative error of ∫ (u/u_0)^k dρ by the rows with a whole history."""
    levels, clock = Writer(PATH, UNEVEN.times(PATH), denoises=False).levels, _CLOCK[variable]
    errors: list[float] = []
    for i, row in enumerate(plan.rows[order - 1 :], order - 1):
        unit = max(abs(clock(levels[k])) for k in row.f)
        weights = {k: float(c) / levels[i + 1].alpha for k, c in row.f.items()}
        exact = _integrals(levels[i], levels[i + 1], variable, unit, order)
        for degree, integral in enumerate(exact):
            made = sum(c * (clock(levels[k]) / unit) ** degree for k, c in weights.items())
            errors.append(abs(made - integral) / sum(map(abs, weights.values())))
    return max(errors)


def _integrals(s: Level, t: Level, variable: Variable, unit: float, n: int) -> list[float]:
    """Return ∫ w^k dρ over s → t for k < n, with w = u/unit: not by the solver's quadrature.

    By parts [w^k ρ] − k ∫ w^(k−1) ρ dw: in ρ closed; in λ, where ρ dλ = −dρ, a recursion; in t by
    400 Gauss nodes in twenty parts.
    """
    w_s, w_t = (_CLOCK[variable](p) / unit for p in (s, t))
    rho_s, rho_t = s.sigma / s.alpha, t.sigma / t.alpha
    made: list[float] = []
    for k in range(n):
        edge = w_t**k * rho_t - w_s**k * rho_s
        if variable == "rho":
            made.append(edge / (k + 1))
        elif variable == "lambda":
            made.append(edge + (k * made[-1] / unit if k else 0.0))
        else:
            made.append(edge - (k * _gauss(s.t, t.t, unit, k - 1) / unit if k else 0.0))
    return made


def _gauss(s: float, t: float, unit: float, degree: int) -> float:
    """Return ∫ (t/unit)^degree ρ dt."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    edges = np.linspace(s, t, 21)
    half, middle = np.diff(edges) / 2, (edges[1:] + edges[:-1]) / 2
    at = torch.from_numpy(middle[:, None] + half[:, None] * nodes)
    rho = (PATH.sigma(at) / PATH.alpha(at)).numpy()
    return float(((at.numpy() / unit) ** degree * rho * weights * half[:, None]).sum())


CLAIMS = (
    Claim("tab3-10", "tAB3 makes at most 0.15 of DDIM's error at ten evaluations",
          lambda e: e.on_m4.ratio("tAB3", "DDIM", 10), 0.15, headline=True),
    Claim("order-tab0", "tAB0 converges with order 0.9 or more",
          lambda e: e.on_m4.order("tAB0"), 0.9, "higher", headline=True),
    Claim("order-tab1", "tAB1 with 1.8 or more",
          lambda e: e.on_m4.order("tAB1"), 1.8, "higher", headline=True),
    Claim("order-tab2", "tAB2 with 2.7 or more",
          lambda e: e.on_m4.order("tAB2"), 2.7, "higher", headline=True),
    Claim("order-tab3", "tAB3 with 3.0 or more: its first step, of order 1, begins to show",
          lambda e: e.on_m4.order("tAB3"), 3.0, "higher", headline=True),
    Claim("sum", "Σ_j C_ij is DDIM's coefficient: every order, variable and grid",
          Experiment.sum_error, 1e-14),
    Claim("first-order", "order 1 in any variable is DDIM", Experiment.first_order_spread, 1e-13),
    Claim("lambda", "λAB1 and λAB2 are multistep DPM-Solver in ε̂, of orders 2 and 3",
          Experiment.lambda_spread, 1e-12),
    Claim("polynomials", "a step is exact where ε̂ is a polynomial in u of degree below the order",
          Experiment.polynomial_error, 1e-12),
    Claim("polynomials-ipndm", "iPNDM is not: it takes uneven steps for even ones",
          Experiment.ipndm_error, 1e-4, "higher"),
    Claim("order-rk", "ρRK methods converge with their orders, 2 to 4, to 0.1",
          lambda e: e.off_order(RUNGE_KUTTA), 0.1),
    Claim("heun-edm", "2heun is EDM's deterministic sampler", Experiment.heun_spread, 1e-12),
    *(Claim(f"order-rhoab{r}", f"ρAB{r} has order {r + 1} ± {off:g}, on a grid even in λ",
            lambda e, r=r: e.on_log_snr.order(f"ρAB{r}"), r + 1.0, "equal", off)
      for r, off in ((1, 0.15), (2, 0.25), (3, 0.35))),
    Claim("order-ipndm", "iPNDM converges with order 2 ± 0.1",
          lambda e: e.on_log_snr.order("iPNDM"), 2.0, "equal", 0.1),
    Claim("t-or-rho", "tABr makes less error than ρABr at ten evaluations, r = 1, 2, 3",
          lambda e: max(e.on_m4.ratio(f"tAB{r}", f"ρAB{r} (quadratic)", 10) for r in (1, 2, 3)),
          1.0),
    Claim("network", "on the fashion model tAB3 makes at most 0.35 of DDIM's squared error, at ten "
          "evaluations", Experiment.network_ratio, 0.35, needs="training"),
)  # fmt: skip

register(System(
    slug="deis",
    title="DEIS",
    paper="Zhang & Chen 2022, arXiv:2204.13902",
    summary="Ten network calls without guidance, by what a step's integral really is.",
    experiment=Experiment,
    claims=CLAIMS,
    plots=lambda e: (e.on_m4.plot("DEIS on M4, VP-linear, quadratic in t"),),
))  # fmt: skip

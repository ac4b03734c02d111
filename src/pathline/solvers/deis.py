"""DEIS: the integral of ε̂ along the path, with a polynomial through its last values.

On every Gaussian path the probability flow is dx/α = ε̂ dρ with ρ = σ/α, so a step is

    x_t = α_t/α_s x_s + α_t ∫ ε̂ dρ        over [ρ_s, ρ_t]

and ε̂ is replaced by the polynomial through its last values in a variable u: u = t is tAB-DEIS, u =
ρ is Adams-Bashforth in ρ, u = λ is multistep DPM-Solver in ε.

Paper: Zhang & Chen 2022 (arXiv:2204.13902, Eq. 15); Liu et al. 2022 (arXiv:2202.09778) for iPNDM.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields.views import View
from pathline.paths import GaussianPath
from pathline.solvers.exponential import (
    Final,
    check_distances,
    check_start,
    linear_part,
    lowered,
    span,
)
from pathline.solvers.grid import Grid
from pathline.solvers.solver import Level, Solver, Writer, check_order, solvers

Variable = Literal["t", "rho", "lambda"]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)
"""Gauss-Legendre on [−1, 1]: to rounding on any smooth path, also where dρ/dt blows up."""

_ADAMS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def step_weights(
    path: GaussianPath, s: Level, t: Level, known: Sequence[Level], variable: Variable
) -> list[float]:
    """Return C_j = α_t ∫ ℓ_j(u) dρ for the step s → t, newest first.

    Args:
        path: the path.
        s: where the step starts.
        t: where it ends.
        known: the levels at which ε̂ is known, s first.
        variable: u, in which the Lagrange basis ℓ_j is a polynomial.

    Raises:
        UsageError: one end is data itself.
    """
    half = span(s, t) / 2
    middle = s.log_snr + half
    log_snr = middle + half * _NODES
    d_rho = -np.exp(-log_snr) * half * _WEIGHTS  # dρ = −e^−λ dλ
    u, at = _values(path, log_snr, variable), [_value(p, variable) for p in known]
    basis = [
        np.prod([(u - b) / (a - b) for k, b in enumerate(at) if k != j], axis=0)
        for j, a in enumerate(at)
    ]
    return [t.alpha * float((ell * d_rho).sum()) for ell in basis]


def _values(path: GaussianPath, log_snr: np.ndarray, variable: Variable) -> np.ndarray:
    if variable == "t":
        return path.time_of_log_snr(torch.from_numpy(log_snr)).numpy()
    return np.exp(-log_snr) if variable == "rho" else log_snr


def _value(level: Level, variable: Variable) -> float:
    if variable == "t":
        return level.t
    return level.sigma / level.alpha if variable == "rho" else level.log_snr


def coefficients(
    path: GaussianPath, grid: Grid, order: int = 4, variable: Variable = "t"
) -> tuple[Tensor, Tensor]:
    """Return DEIS' table: x_{i+1} = Ψ_i x_i + Σ_j C_ij ε̂_{i−j}.

    Args:
        path: the path.
        grid: of n steps, a closing one to data not among them.
        order: the predictions that are combined, 1 to 5.
        variable: in which ε̂ is a polynomial.

    Returns:
        Ψ (n,) and C (n, order), newest prediction first, both in float64; C is 0 where there is no
        prediction yet.

    Raises:
        UsageError: an order or a variable that there is not, or a grid that ends at data itself.
    """
    rows = DEIS(order, variable).plan(path, grid).rows[: grid.n - (grid.last == "denoise")]
    psi = torch.tensor([row.x[i] for i, row in enumerate(rows)], dtype=torch.float64)
    c = torch.zeros(len(rows), order, dtype=torch.float64)
    for i, row in enumerate(rows):
        for k, weight in row.f.items():
            c[i, i - k] = weight
    return psi, c


@solvers.register(
    "deis",
    aliases=("tab_deis",),
    paper="arXiv:2204.13902, Eq. 15",
    variants={
        "deis_rho": ({"variable": "rho"}, ("rho_ab",)),
        "deis_lambda": ({"variable": "lambda"}, ("DEIS (diffusers)", "dpm_3m")),
    },
)
@dataclass(frozen=True)
class DEIS(Solver):
    """DEIS, multistep in ε̂, with a polynomial in t, ρ or λ.

    Choose it, with a quadratic grid, for unconditional sampling in about ten evaluations; under
    strong guidance predict x̂_0 (DPMpp).

    Args:
        order: 1 to 5, the predictions that the polynomial goes through; order 1 is DDIM. (The
            paper's tAB3, its choice, is order 4.) Weights of order 5 alternate and grow: it warns.
        variable: "t" (tAB-DEIS), "rho" or "lambda".
        final: "lower" ends with lower orders, "full" does not; "auto" lowers below ten steps.
    """

    order: int = 3  # pyright: ignore[reportIncompatibleMethodOverride]
    variable: Variable = "t"
    final: Final = "full"

    def __post_init__(self) -> None:
        check_order("DEIS", self.order, range(1, 6))
        if self.order == 5:
            warnings.warn(
                "DEIS of order 5 extrapolates with weights that alternate and grow; order 4 is the "
                "paper's.",
                stacklevel=3,
            )
        if self.final not in get_args(Final):
            raise UsageError(f"final={self.final!r}: choose 'auto', 'full' or 'lower'.")
        if self.variable not in get_args(Variable):
            raise UsageError(f"variable={self.variable!r}: choose 't', 'rho' or 'lambda'.")

    @property
    def view(self) -> View:
        return "eps"

    def write(self, to: Writer) -> None:
        steps = list(to.intervals())
        check_start(self.view, steps)
        check_distances(steps)
        for i, (s, t) in enumerate(steps):
            numbers = range(i, i - lowered(self.order, i, len(steps), self.final), -1)
            known = [to.levels[k] for k in numbers]
            assert to.path is not None
            weights = step_weights(to.path, s, t, known, self.variable)
            linear, total = linear_part(self.view, s, t)
            weights[0] += total - sum(weights)  # the basis sums to one: keep that to rounding
            to.write(t.t, {i: linear}, dict(zip(numbers, weights, strict=True)))


@solvers.register("ipndm", aliases=("plms",), paper="arXiv:2202.09778; arXiv:2204.13902, App. H")
@dataclass(frozen=True)
class IPNDM(Solver):
    """iPNDM: DDIM with Adams-Bashforth weights of equal steps; of order two on other grids.

    For comparison: DEIS has the right coefficients at the same price.

    Args:
        points: 1 to 4, evaluations that are combined.
    """

    points: int = 4

    def __post_init__(self) -> None:
        if not isinstance(self.points, int) or self.points not in (1, 2, 3, 4):
            raise UsageError(f"iPNDM combines 1 to 4 evaluations; {self.points} were asked for.")

    @property
    def order(self) -> int:
        return min(self.points, 2)

    @property
    def view(self) -> View:
        return "eps"

    def write(self, to: Writer) -> None:
        steps = list(to.intervals())
        check_start(self.view, steps)
        for i, (s, t) in enumerate(steps):
            adams = _ADAMS[min(self.points, i + 1) - 1]
            linear, total = linear_part(self.view, s, t)
            to.write(t.t, {i: linear}, {i - k: total * weight for k, weight in enumerate(adams)})

"""Exponential multistep solvers: DDIM and DPM-Solver++.

In half log-SNR time the probability flow is linear but for one smooth term, F = x̂_0 or ε̂. The
linear part is integrated exactly; F is replaced by the polynomial in λ through its last values:

    x_t = L x_s + c Σ_k h^{k+1} φ_{k+1}(z) F^(k),   h = λ_t − λ_s

    x0    L = σ_t/σ_s,  c = α_t,   z = −h
    eps   L = α_t/α_s,  c = −σ_t,  z = h

The reverse SDE, with η of its noise, is the same in x̂_0 with H = (1 + η) h:

    x_t = e^−ηh σ_t/σ_s x_s + α_t Σ_k H h^k φ_{k+1}(−H) F^(k) + σ_t √(1 − e^−2ηh) z

Paper: Lu et al. 2022 (arXiv:2206.00927, arXiv:2211.01095). The second derivative of the third-order
rule is the exact one of the interpolating polynomial; public code has half of it, which is a
method of order two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args, overload

from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields.views import View
from pathline.solvers.levels import Levels
from pathline.solvers.phi import derivative_weights, phi
from pathline.solvers.solver import Level, Solver, Writer, check_order, solvers

Final = Literal["auto", "full", "lower"]
Spread = Literal["posterior", "forward"]
Expansion = Literal["midpoint", "taylor"]
Polynomial = Literal["midpoint", "taylor", "legacy"]

FEW_STEPS = 10
"""Below this many steps, "auto" lowers the order of the last ones (Lu et al. 2022b, App.)."""

NEAREST = 1e-6
"""In λ. Nearer levels are one, to rounding, and quotients of differences between them noise."""


@overload
def linear_part(view: View, s: Level, t: Level, eta: float = 0.0) -> tuple[float, float]: ...


@overload
def linear_part(view: View, s: Levels, t: Levels) -> tuple[Tensor, Tensor]: ...


def linear_part(
    view: View, s: Level | Levels, t: Level | Levels, eta: float = 0.0
) -> tuple[float | Tensor, float | Tensor]:
    """Return (L, c h φ_1(z)) of the step s → t: the exact integral for constant F.

    Written without λ, so it holds where σ_t = 0 (the step to data) and where α_s = 0 (from noise).
    With `eta` (in x̂_0) L has the factor e^−ηh by which fresh noise replaces old.
    """
    if view == "x0":
        ratio = t.sigma / s.sigma
        if isinstance(s, Level) and isinstance(t, Level):
            ratio = ratio * decay(s, t) ** eta
        return ratio, t.alpha - ratio * s.alpha
    ratio = t.alpha / s.alpha
    return ratio, t.sigma - ratio * s.sigma


def decay(s: Level, t: Level) -> float:
    """e^−h of the step s → t, by α and σ, so that α may vanish at either end."""
    return t.sigma * s.alpha / (t.alpha * s.sigma) if t.alpha else math.inf


def ancestral(to: Writer, s: Level, t: Level, eta: float) -> tuple[Level, float]:
    """Return where the flow of an ancestral step s → t ends, and the noise that lifts it to t.

    With ρ = σ/α, fresh noise of ρ_up = η ρ_t √(1 − ρ_t²/ρ_s²) is added to a state at ρ_down² = ρ_t²
    − ρ_up² (k-diffusion's step): if the flow is exact, so is the law at t.

    Raises:
        UsageError: the step ends on data, where no noise is left.
    """
    if not eta:
        return t, 0.0
    assert to.path is not None
    up = eta * math.sqrt(-math.expm1(-2 * span(s, t)))  # over ρ_t
    (down,) = to.at([float(to.path.time_of_log_snr(t.log_snr - 0.5 * math.log1p(-(up**2))))])
    return down, t.sigma * up


def span(s: Level, t: Level) -> float:
    """Return h = λ_t − λ_s.

    Raises:
        UsageError: one end is data itself, where λ is infinite and nothing can be taken over it.
    """
    h = t.log_snr - s.log_snr
    if not math.isfinite(h):
        end = s if math.isinf(s.log_snr) else t
        raise UsageError(
            f"the step from t = {s.t:.6g} to t = {t.t:.6g} is infinite in log-SNR: σ is 0 at "
            f"t = {end.t:.6g}. Let the grid stop short of data, at the path's t_min, and give it "
            "last='denoise' to go on to data."
        )
    return h


def check_eta(eta: float, most: float = math.inf) -> None:
    """Refuse an amount of noise that is none, or more than there can be."""
    if not isinstance(eta, int | float) or not 0 <= eta <= most or math.isinf(eta):
        allowed = "be a number, 0 or more" if math.isinf(most) else f"lie in [0, {most:g}]"
        raise UsageError(f"eta must {allowed}, and is {eta!r}.")


def check_distances(steps: Sequence[tuple[Level, Level]]) -> None:
    """Refuse two levels that are next to the same, where a polynomial is to go through both.

    Raises:
        UsageError: a step that moves by less than `NEAREST` in λ.
    """
    for i, (s, t) in enumerate(steps, 1):
        if abs(t.log_snr - s.log_snr) < NEAREST:
            raise UsageError(
                f"step {i} moves by {abs(t.log_snr - s.log_snr):.2g} in λ, from t = {s.t:.6g} to "
                f"t = {t.t:.6g}; leave one of the two times out."
            )


def check_start(view: View, steps: Sequence[tuple[Level, Level]], eta: float = 0.0) -> None:
    """Refuse to start where the linear part of a view divides by zero, or to un-draw noise.

    Raises:
        UsageError: α = 0 in ε, σ = 0 in x̂_0, or steps towards noise with eta > 0.
    """
    if not steps:
        return
    start, after = steps[0]
    if eta and after.t > start.t:
        raise UsageError("noise is added towards data only; use eta=0 (or churn=0) to invert.")
    if view == "x0" and start.sigma == 0:
        raise UsageError("this solver cannot start from data itself: start at t_min, not t = 0.")
    if view == "eps" and start.alpha == 0:
        raise UsageError(
            f"α is 0 at t = {start.t:g}, where a solver in ε cannot start: use one in x0 "
            "(DPMpp), or start the grid at a smaller t."
        )


def polynomial_weights(
    view: View,
    s: Level,
    t: Level,
    earlier: Sequence[Level],
    expansion: Polynomial = "taylor",
    eta: float = 0.0,
) -> tuple[float, list[float]]:
    """Return L and the weights of F at s and at each earlier level, for the step s → t.

    Args:
        view: "x0" or "eps".
        s: where the step starts.
        t: where it ends.
        earlier: other levels at which F is known, any order, distinct from s.
        expansion: "taylor" integrates the polynomial exactly; "midpoint" (one earlier level)
            takes its value at the middle of the step; "legacy" (two) half of its second derivative.
        eta: in x̂_0, how much of the reverse SDE's noise the step will add: 1 is the SDE.
    """
    n = len(earlier)
    slope = linear_part(view, s, t, eta)[1] / 2 if expansion == "midpoint" else None
    bend = 0.5 if expansion == "legacy" else 1.0
    return expansion_weights(view, s, t, earlier, counts=(n,) * n, slope=slope, bend=bend, eta=eta)


def expansion_weights(  # noqa: PLR0913 - keyword-only from `counts` on
    view: View,
    s: Level,
    t: Level,
    others: Sequence[Level],
    *,
    counts: Sequence[int],
    slope: float | None = None,
    bend: float = 1.0,
    eta: float = 0.0,
) -> tuple[float, list[float]]:
    """Return L and the weights of F at s and at each other level, for the step s → t.

    Args:
        view: "x0" or "eps".
        s: where the step starts.
        t: where it ends.
        others: further levels at which F is known, distinct from s.
        counts: from how many of the others, first ones first, each derivative is estimated; the
            k-th needs k at least.
        slope: the factor of h F', instead of that of the expansion, c h φ_2(z).
        bend: what the factor of h² F'' is multiplied with; 1 is right.
        eta: as for `polynomial_weights`.
    """
    linear, first = linear_part(view, s, t, eta)
    weights = [first, *[0.0] * len(others)]
    if not others:
        return linear, weights
    h, (c, z) = span(s, t), scale_and_argument(view, s, t, eta)
    offsets = [(level.log_snr - s.log_snr) / h for level in others]
    for k, count in enumerate(counts, 1):
        factor = slope if k == 1 and slope is not None else c * h * phi(k + 1, z)
        factor *= bend if k == 2 else 1.0
        for i, a in enumerate(derivative_weights(offsets[:count], k), 1):
            weights[i] += factor * a
            weights[0] -= factor * a
    return linear, weights


@overload
def scale_and_argument(view: View, s: Level, t: Level, eta: float = 0.0) -> tuple[float, float]: ...


@overload
def scale_and_argument(view: View, s: Levels, t: Levels) -> tuple[Tensor, Tensor]: ...


def scale_and_argument(
    view: View, s: Level | Levels, t: Level | Levels, eta: float = 0.0
) -> tuple[float | Tensor, float | Tensor]:
    """Return c and z of the step s → t."""
    h = t.log_snr - s.log_snr
    return (t.alpha * (1 + eta), -(1 + eta) * h) if view == "x0" else (-t.sigma, h)


def lowered(order: int, i: int, n: int, final: Final) -> int:
    """Return the order of step i of n: what the evaluations so far allow, less at the end."""
    lowers = final == "lower" or (final == "auto" and n < FEW_STEPS)
    return min(order, i + 1, n - i if lowers else order)


@solvers.register(
    "ddim",
    paper="arXiv:2010.02502, Eq. 12",
    variants={
        "ddpm": ({"eta": 1.0}, ("ancestral", "euler_ancestral", "Euler a")),
        "ddpm_large": ({"eta": 1.0, "spread": "forward"}, ("ancestral_vp",)),
    },
)
@dataclass(frozen=True)
class DDIM(Solver):
    """DDIM: the noise is held constant over a step; `eta` adds fresh noise (1: ancestral, DDPM).

        x_t = α_t x̂_0 + √(σ_t² − s²) ε̂ + s z,   s = η σ_t √(1 − e^−2h)

    Args:
        eta: 0 is the probability flow, 1 the ancestral sampler of DDPM.
        spread: of the noise that is added: "posterior", s above, that of q(x_t | x_s, x_0); or
            "forward", η σ_s √(1 − e^−2h), that of q(x_s | x_t) ("large" in DDPM, √β in score SDE).
    """

    eta: float = 0.0
    spread: Spread = "posterior"

    def __post_init__(self) -> None:
        check_eta(self.eta, most=1.0)  # of the step's own variance it can replace all, not more
        if self.spread not in ("posterior", "forward"):
            raise UsageError(f"spread={self.spread!r}: choose 'posterior' or 'forward'.")

    @property
    def is_exact_on_points(self) -> bool:
        return not self.eta or self.spread == "posterior"

    @property
    def order(self) -> int:
        return 1

    @property
    def view(self) -> View:
        return "x0"

    @property
    def is_stochastic(self) -> bool:
        return self.eta > 0

    def write(self, to: Writer) -> None:
        steps = list(to.intervals())
        check_start("x0", steps, self.eta)
        for i, (s, t) in enumerate(steps):
            noise = self.eta * t.sigma * math.sqrt(1 - decay(s, t) ** 2) if self.eta else 0.0
            ratio = math.sqrt(t.sigma**2 - noise**2) / s.sigma
            larger = s.sigma / t.sigma if noise and self.spread == "forward" else 1.0
            z = {i: noise * larger} if noise else {}
            to.write(t.t, {i: ratio}, {i: t.alpha - ratio * s.alpha}, z)


@solvers.register(
    "dpmpp",
    aliases=("DPM-Solver++", "dpm_solver_pp"),
    paper="arXiv:2211.01095",
    variants={
        "dpmpp_2m": ({"order": 2}, ("DPM++ 2M", "dpmpp_multistep")),
        "dpmpp_3m": ({"order": 3}, ("DPM++ 3M",)),
        "dpmpp_2m_sde": ({"order": 2, "eta": 1.0}, ("DPM++ 2M SDE", "sde_dpmpp_2m")),
        "dpmpp_3m_sde": ({"order": 3, "eta": 1.0}, ("DPM++ 3M SDE", "sde_dpmpp_3m")),
    },
)
@dataclass(frozen=True)
class DPMpp(Solver):
    """DPM-Solver++, multistep: a polynomial through the last `order` predictions of x̂_0.

    Choose order 2 under strong guidance or below ten steps, order 3 otherwise. With noise
    (eta > 0) its weak order is at most 2, whatever the polynomial.

    Args:
        order: 1, 2 or 3, the predictions that the polynomial goes through; order 1 is DDIM.
        expansion: how order 2 treats the slope: "midpoint" (the usual ++2M) or "taylor". "legacy"
            takes half of the second derivative at order 3, as public code does: a method of order
            two, for pictures that were made with it.
        final: "lower" ends with lower orders, "full" does not; "auto" lowers below ten steps.
        eta: 0 is the probability flow, 1 the reverse SDE (SDE-DPM-Solver++); more is more noise.
    """

    order: int = 2  # pyright: ignore[reportIncompatibleMethodOverride]
    expansion: Polynomial = "midpoint"
    final: Final = "auto"
    eta: float = 0.0

    def __post_init__(self) -> None:
        check_order("DPMpp", self.order, (1, 2, 3))
        if self.expansion not in get_args(Polynomial):
            raise UsageError(
                f"expansion={self.expansion!r}: choose 'midpoint', 'taylor' or 'legacy'."
            )
        if self.final not in ("auto", "full", "lower"):
            raise UsageError(f"final={self.final!r}: choose 'auto', 'full' or 'lower'.")
        check_eta(self.eta)

    @property
    def view(self) -> View:
        return "x0"

    @property
    def convergence(self) -> int:
        return min(self.order, 2) if self.eta or self.expansion == "legacy" else self.order

    @property
    def is_stochastic(self) -> bool:
        return self.eta > 0

    def write(self, to: Writer) -> None:
        levels, steps = to.levels, list(to.intervals())
        check_start("x0", steps, self.eta)
        check_distances(steps)
        for i, (s, t) in enumerate(steps):
            known = range(i - 1, i - lowered(self.order, i, len(steps), self.final), -1)
            earlier, expansion = [levels[k] for k in known], self._expansion(len(known))
            linear, weights = polynomial_weights("x0", s, t, earlier, expansion, self.eta)
            noise = t.sigma * math.sqrt(1 - decay(s, t) ** (2 * self.eta))
            z = {i: noise} if noise else {}
            to.write(t.t, {i: linear}, dict(zip((i, *known), weights, strict=True)), z)

    def _expansion(self, earlier: int) -> Polynomial:
        """Return how a polynomial through so many earlier predictions is integrated."""
        if earlier == 2:
            return "legacy" if self.expansion == "legacy" else "taylor"
        return "taylor" if self.expansion == "taylor" else "midpoint"

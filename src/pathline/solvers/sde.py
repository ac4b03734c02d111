"""Stochastic solvers: Euler-Maruyama on the reverse SDE, DPM-Solver's with noise, EDM's churn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from pathline.core.errors import UsageError
from pathline.fields import SDE, Field
from pathline.fields.views import View
from pathline.solvers.exponential import (
    ancestral,
    check_distances,
    check_eta,
    check_start,
    decay,
    linear_part,
    polynomial_weights,
    span,
)
from pathline.solvers.plan import Terms
from pathline.solvers.solver import Level, Solver, Writer, check_order, solvers
from pathline.solvers.stochastic import ItoEuler


class ReverseSDE(Solver):
    """What rules in ε̂ share that add η of the reverse SDE's noise."""

    eta: float

    @property
    def view(self) -> View:
        return "eps"

    @property
    def is_stochastic(self) -> bool:
        return self.eta > 0

    @property
    def is_exact_on_points(self) -> bool:
        return False


@solvers.register("euler_maruyama", aliases=("em",), paper="arXiv:2011.13456, Eq. 6 and App. D")
@dataclass(frozen=True)
class EulerMaruyama(ReverseSDE):
    """Euler-Maruyama on the reverse SDE, or with less of its noise.

        dx = (f x − ½(1 + η²) g² ∇log p) dt + η g dW̄

    The plain discretisation, for comparison; DPMpp(eta=1) integrates the linear part exactly. On an
    `SDE`, which says its noise itself, it is x + h f + g ΔW (`ItoEuler`).

    Args:
        eta: 1 is the reverse SDE; 0 the probability flow, that is Euler's method in t.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        check_eta(self.eta)

    @property
    def order(self) -> int:
        return 1

    def tuned(self, field: Field, shape: Sequence[int]) -> Solver:
        """Return the rule for an equation that says its noise itself, if the field is one."""
        return ItoEuler().tuned(field, shape) if isinstance(field, SDE) else self

    def write(self, to: Writer) -> None:
        steps = list(to.intervals())
        check_start(self.view, steps, self.eta)
        if not steps:
            return
        assert to.path is not None
        times = torch.tensor([s.t for s, _ in steps], dtype=torch.float64)
        drift, squared = (c(times).tolist() for c in (to.path.drift, to.path.diffusion_squared))
        for i, (s, t) in enumerate(steps):
            h = t.t - s.t
            score = (1 + self.eta**2) / 2 * squared[i] / s.sigma * h  # ∇log p = −ε̂/σ
            z = {i: self.eta * math.sqrt(-squared[i] * h)} if self.eta else {}
            to.write(t.t, {i: 1 + drift[i] * h}, {i: score}, z)


@solvers.register("reverse_diffusion", paper="arXiv:2011.13456, App. E")
@dataclass(frozen=True)
class ReverseDiffusion(ReverseSDE):
    """Reverse diffusion: the forward step of the same grid, x_s = a x_t + G z, taken backwards.

        x_t = (2 − a) x_s + ½(1 + η²) G² ∇log p + η G z,   a = α_s/α_t,  G² = σ_s² − a² σ_t²

    The predictor of the predictor-corrector samplers. On VE it is (σ_s² − σ_t²) of score and noise,
    on VP that of the paper with 1 − β = a².

    Args:
        eta: 1 is the reverse SDE, 0 the probability flow.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        check_eta(self.eta)

    @property
    def order(self) -> int:
        return 1

    def write(self, to: Writer) -> None:
        steps = list(to.intervals())
        check_start(self.view, steps, self.eta)
        for i, (s, t) in enumerate(steps):
            squared = s.sigma**2 * (1 - decay(s, t) ** 2)
            score = -(1 + self.eta**2) / 2 * squared / s.sigma  # ∇log p = −ε̂/σ
            z = {i: self.eta * math.sqrt(squared)} if self.eta else {}
            to.write(t.t, {i: 2 - s.alpha / t.alpha}, {i: score}, z)


@solvers.register("sde_dpm", aliases=("sde_dpmsolver", "SDE-DPM-Solver"), paper="arXiv:2211.01095")
@dataclass(frozen=True)
class SDEDPM(ReverseSDE):
    """SDE-DPM-Solver, multistep in ε̂: a polynomial through the last ε̂, and the reverse SDE's noise.

        x_t = α_t/α_s x_s − (1 + η²) σ_t Σ_k h^{k+1} φ_{k+1}(h) ε̂^(k) + η σ_t √(e^2h − 1) z

    For comparison: DPMpp(eta=1) is the same in x̂_0, and adds far less noise where steps are long.

    Args:
        order: 1 or 2, the predictions that the polynomial goes through.
        eta: 1 is the reverse SDE, 0 the probability flow.
    """

    order: int = 2  # pyright: ignore[reportIncompatibleMethodOverride]
    eta: float = 1.0

    def __post_init__(self) -> None:
        check_order("SDEDPM", self.order, (1, 2))
        check_eta(self.eta)

    def write(self, to: Writer) -> None:
        steps = list(to.intervals())
        check_start(self.view, steps, self.eta)
        check_distances(steps)
        for i, (s, t) in enumerate(steps):
            known = range(i - 1, max(i - self.order, -1), -1)
            linear, weights = polynomial_weights("eps", s, t, [to.levels[k] for k in known])
            weights = [(1 + self.eta**2) * weight for weight in weights]
            z = {i: self.eta * t.sigma * math.sqrt(math.expm1(2 * span(s, t)))} if self.eta else {}
            to.write(t.t, {i: linear}, dict(zip((i, *known), weights, strict=True)), z)


@solvers.register("dpmpp_sde", aliases=("DPM++ SDE",), paper="arXiv:2211.01095")
@dataclass(frozen=True)
class DPMppSDE(Solver):
    """DPM-Solver++ with noise, singlestep: an ancestral step to the middle, and one from the start.

    k-diffusion's "DPM++ SDE" (r = ½). Both noises are of one Brownian motion in σ/α: what the
    middle is given is part of what the end is given.

    Args:
        eta: 1 is the reverse SDE's noise, 0 is DPM(order=2, view="x0").
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        check_eta(self.eta, most=1.0)

    @property
    def order(self) -> int:
        return 2

    @property
    def view(self) -> View:
        return "x0"

    @property
    def nfe_per_step(self) -> int:
        return 2

    @property
    def is_stochastic(self) -> bool:
        return self.eta > 0

    def write(self, to: Writer) -> None:
        steps = list(to.intervals())
        check_start(self.view, steps, self.eta)
        check_distances(steps)
        for i, (s, t) in enumerate(steps):
            assert to.path is not None
            halfway = float(to.path.time_of_log_snr(s.log_snr + span(s, t) / 2))
            (middle,) = to.at([halfway])
            first, rho = len(to.rows), [math.exp(-level.log_snr) for level in (s, middle, t)]
            shares = [math.sqrt((a - b) / (rho[0] - rho[2])) for a, b in pairwise(rho)]
            inside = self._row(to, s, middle, first, first, {2 * i: 1.0}, lands=False)
            self._row(to, s, t, first, inside, {2 * i: shares[0], 2 * i + 1: shares[1]})

    def _row(  # noqa: PLR0913 - a row: from where, to where, with which x̂_0 and noise
        self, to: Writer, s: Level, t: Level, at: int, f: int, z: Terms, *, lands: bool = True
    ) -> int:
        """Write the ancestral step s → t with x̂_0 of state f, and return the new state's number."""
        down, up = ancestral(to, s, t, self.eta)
        linear, weight = linear_part(self.view, s, down)
        lift = t.alpha / down.alpha if up else 1.0
        noise = {draw: up * share for draw, share in z.items()} if up else {}
        return to.write(t.t, {at: linear * lift}, {f: weight * lift}, noise, lands=lands)


@solvers.register("edm", aliases=("edm_heun", "heun_churn"), paper="arXiv:2206.00364, Alg. 2")
@dataclass(frozen=True)
class EDMSampler(Solver):
    """EDM's stochastic sampler: raise the noise a little, then one Heun step in σ/α.

    With churn = 0 it is Heun(view="eps"), and EDM's deterministic sampler on its own path.

    Args:
        churn: S_churn, how much noise is added in all; γ = min(churn/n, √2 − 1) a step, a closing
            one to data counted. Above 0.4 n the cap holds, and the order with it. Nothing is added
            at the path's highest level, nor before a closing step to data.
        low: S_tmin, the smallest σ/α at which noise is added.
        high: S_tmax, the largest; None for no limit.
        scale: S_noise, the standard deviation of what is added, 1 for the exact law.
    """

    churn: float = 10.0
    low: float = 0.0
    high: float | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.churn < 0 or self.scale < 0 or not 0 <= self.low <= self._highest:
            raise UsageError(
                "churn and scale must not be negative, and 0 ≤ low ≤ high; they are "
                f"{self.churn}, {self.scale}, {self.low}, {self.high}."
            )

    @property
    def _highest(self) -> float:
        return math.inf if self.high is None else self.high

    @property
    def order(self) -> int:
        return 2

    @property
    def view(self) -> View:
        return "eps"

    @property
    def is_stochastic(self) -> bool:
        return self.churn > 0

    @property
    def nfe_per_step(self) -> int:
        return 2

    def write(self, to: Writer) -> None:
        steps = list(to.intervals())
        check_start(self.view, steps, eta=self.churn)
        n = len(steps) + to.denoises
        gamma = min(self.churn / max(n, 1), math.sqrt(2) - 1)
        for draw, (s, t) in enumerate(steps):
            at, s = self._churn(to, s, gamma, draw)
            du = t.sigma / t.alpha - s.sigma / s.alpha
            ratio = t.alpha / s.alpha
            predicted = to.write(t.t, {at: ratio}, {at: t.alpha * du}, lands=False)
            to.write(t.t, {at: ratio}, {at: t.alpha * du / 2, predicted: t.alpha * du / 2})

    def _churn(self, to: Writer, s: Level, gamma: float, draw: int) -> tuple[int, Level]:
        """Write the row that adds noise, where it does, and return the state to go on from."""
        at, rho = len(to.rows), s.sigma / s.alpha
        assert to.path is not None
        ceiling = float(to.path.log_snr(1.0))
        raised = -math.log(rho * (1 + gamma))
        if not gamma or not self.low <= rho <= self._highest or raised < ceiling:
            wanted = gamma > 0 and to.alike  # other samples are churned here
            return (to.write(s.t, {at: 1.0}, {}, lands=False) if wanted else at), s
        (hat,) = to.at([float(to.path.time_of_log_snr(raised))])
        added = hat.alpha * math.sqrt((hat.sigma / hat.alpha) ** 2 - rho**2) * self.scale
        return to.write(hat.t, {at: hat.alpha / s.alpha}, {}, {draw: added}, lands=False), hat

"""Variance-preserving paths and their relative: VP-linear, VP-cosine, sub-VP."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.paths.path import GaussianPath, Time, as_time, log_snr_of, paths


@dataclass(frozen=True)
class LinearBeta(GaussianPath):
    """What VP-linear and sub-VP share: log α_t = −t²(β₁ − β₀)/4 − tβ₀/2."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min < self.beta_max:
            raise UsageError(
                f"0 < beta_min < beta_max is needed; they are {self.beta_min}, {self.beta_max}."
            )

    def beta(self, t: Time) -> Tensor:
        """β_t = β₀ + t(β₁ − β₀)."""
        return self.beta_min + as_time(t) * (self.beta_max - self.beta_min)

    def log_alpha(self, t: Time) -> Tensor:
        """log α_t, exact near t = 0."""
        t = as_time(t)
        return -t * (t * (self.beta_max - self.beta_min) / 4 + self.beta_min / 2)

    def alpha(self, t: Time) -> Tensor:
        return self.log_alpha(t).exp()

    def d_alpha(self, t: Time) -> Tensor:
        return -self.beta(t) / 2 * self.alpha(t)

    def time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        """Solve the quadratic for t in the form that does not cancel."""
        slope = self.beta_max - self.beta_min
        q = -4 * log_alpha * slope
        return q / (((self.beta_min**2 + q).sqrt() + self.beta_min) * slope)


@paths.register("vp_linear", aliases=("vp", "ddpm"), paper="arXiv:2011.13456, Eq. 29")
@dataclass(frozen=True)
class VPLinear(LinearBeta):
    """Variance-preserving path with linear β: σ_t = √(1 − α_t²)."""

    def sigma(self, t: Time) -> Tensor:
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def d_sigma(self, t: Time) -> Tensor:
        return self.beta(t) / 2 * self.alpha(t) ** 2 / self.sigma(t)

    def log_snr(self, t: Time) -> Tensor:
        return log_snr_of(self.log_alpha(t))

    def time_of_log_snr(self, log_snr: Time) -> Tensor:
        return self.time_of_log_alpha(-0.5 * _softplus(-2 * as_time(log_snr)))


@paths.register("sub_vp", aliases=("subvp",), paper="arXiv:2011.13456, Eq. 29")
@dataclass(frozen=True)
class SubVP(LinearBeta):
    """Sub-variance-preserving path: σ_t = 1 − α_t² (a standard deviation, not a variance)."""

    def sigma(self, t: Time) -> Tensor:
        return -torch.expm1(2 * self.log_alpha(t))

    def d_sigma(self, t: Time) -> Tensor:
        return self.beta(t) * self.alpha(t) ** 2

    def log_snr(self, t: Time) -> Tensor:
        log_alpha = self.log_alpha(t)
        return log_alpha - (-torch.expm1(2 * log_alpha)).log()

    def time_of_log_snr(self, log_snr: Time) -> Tensor:
        # α/(1 − α²) = e^λ, that is 1/α − α = 2 sinh(−log α) = e^−λ
        return self.time_of_log_alpha(-torch.asinh((-as_time(log_snr)).exp() / 2))


@paths.register("vp_cosine", aliases=("cosine",), paper="arXiv:2102.09672, Eq. 17")
@dataclass(frozen=True)
class VPCosine(GaussianPath):
    """Variance-preserving path with α_t = cos θ_t / cos θ_0, θ_t = (π/2)(t + s)/(1 + s)."""

    s: float = 0.008

    def __post_init__(self) -> None:
        if not 0 < self.s < 1:
            raise UsageError(f"the offset s must lie in (0, 1), and is {self.s}.")

    @property
    def t_max(self) -> float:
        """Where generation starts: α = 0 at t = 1 leaves an ε network nothing to invert."""
        return 0.9946

    def angle(self, t: Time) -> Tensor:
        """θ_t."""
        return math.pi / 2 * (as_time(t) + self.s) / (1 + self.s)

    @property
    def _angle0(self) -> float:
        return math.pi / 2 * self.s / (1 + self.s)

    @property
    def _rate(self) -> float:
        return math.pi / 2 / (1 + self.s)

    def alpha(self, t: Time) -> Tensor:
        return self.angle(t).cos() / math.cos(self._angle0)

    def sigma(self, t: Time) -> Tensor:
        # cos²θ₀ − cos²θ = sin(θ − θ₀) sin(θ + θ₀), which does not cancel
        turned = self._rate * as_time(t)
        squared = turned.sin() * (turned + 2 * self._angle0).sin()
        return squared.sqrt() / math.cos(self._angle0)

    def d_alpha(self, t: Time) -> Tensor:
        return -self._rate * self.angle(t).sin() / math.cos(self._angle0)

    def d_sigma(self, t: Time) -> Tensor:
        return -self.alpha(t) * self.d_alpha(t) / self.sigma(t)

    def time_of_log_snr(self, log_snr: Time) -> Tensor:
        # tan²θ = (1 − α²cos²θ₀)/(α²cos²θ₀) with 1/α² = 1 + e^−2λ
        inverse_square = (1 + (-2 * as_time(log_snr)).exp()) / math.cos(self._angle0) ** 2
        return torch.atan((inverse_square - 1).sqrt()) / self._rate - self.s


def _softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), exact at both ends (torch's own switches to x beyond a threshold)."""
    return torch.logaddexp(x, torch.zeros_like(x))

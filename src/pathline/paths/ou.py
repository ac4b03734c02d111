"""The Ornstein-Uhlenbeck path: constant drift and diffusion, towards N(0, s²)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.paths.path import GaussianPath, Time, as_time, paths


@paths.register("ou", aliases=("ornstein_uhlenbeck",), paper="arXiv:2311.15996, Sec. 5")
@dataclass(frozen=True)
class OrnsteinUhlenbeck(GaussianPath):
    """Ornstein-Uhlenbeck path: α_t = e^(−T t), σ_t² = s² (1 − e^(−2 T t)).

    In its own clock τ = T t it is dx = −x dτ + √2 s dw; with s² = ½, the default, g = 1. With
    s = 1 it is the variance-preserving path of constant β = 2 T.

    Args:
        horizon: T, how long the process runs.
        std: s, the standard deviation that it tends to.

    Example:
        >>> path = OrnsteinUhlenbeck(horizon=10.0)
        >>> path.drift(0.3).item() / 10, round(path.diffusion_squared(0.3).item() / 10, 12)
        (-1.0, 1.0)
    """

    horizon: float = 10.0
    std: float = math.sqrt(0.5)

    def __post_init__(self) -> None:
        if not (0 < self.horizon < math.inf and 0 < self.std < math.inf):
            raise UsageError(
                f"horizon and std are finite and above 0; they are {self.horizon}, {self.std}."
            )

    @property
    def t_min(self) -> float:
        """The smallest time at which networks are evaluated: a thousandth in the path's clock."""
        return min(1e-3, 1e-3 / self.horizon)

    def alpha(self, t: Time) -> Tensor:
        return (-self.horizon * as_time(t)).exp()

    def sigma(self, t: Time) -> Tensor:
        return self.std * (-torch.expm1(-2 * self.horizon * as_time(t))).sqrt()

    def d_alpha(self, t: Time) -> Tensor:
        return -self.horizon * self.alpha(t)

    def d_sigma(self, t: Time) -> Tensor:
        return self.std**2 * self.horizon * self.alpha(t) ** 2 / self.sigma(t)

    def drift(self, t: Time) -> Tensor:
        return torch.full_like(as_time(t), -self.horizon)

    def diffusion_squared(self, t: Time) -> Tensor:
        return torch.full_like(as_time(t), 2 * self.std**2 * self.horizon)

    def log_snr(self, t: Time) -> Tensor:
        return -math.log(self.std) - torch.expm1(2 * self.horizon * as_time(t)).log() / 2

    def time_of_log_snr(self, log_snr: Time) -> Tensor:
        ratio = -2 * (as_time(log_snr) + math.log(self.std))  # log of e^(2 T t) − 1
        return torch.logaddexp(ratio, torch.zeros_like(ratio)) / (2 * self.horizon)

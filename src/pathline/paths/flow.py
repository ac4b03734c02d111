"""Variance-exploding paths (VE, EDM) and the straight path of flow matching (CondOT)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.paths.path import GaussianPath, Time, as_time, paths


@dataclass(frozen=True)
class Exploding(GaussianPath):
    """What VE and EDM share: α = 1, noise from σ_min to σ_max."""

    sigma_min: float
    sigma_max: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise UsageError(
                f"0 < sigma_min < sigma_max is needed; they are {self.sigma_min}, {self.sigma_max}."
            )

    def alpha(self, t: Time) -> Tensor:
        return torch.ones_like(as_time(t))

    def d_alpha(self, t: Time) -> Tensor:
        return torch.zeros_like(as_time(t))

    def log_snr(self, t: Time) -> Tensor:
        return -self.sigma(t).log()


@paths.register("ve", aliases=("variance_exploding",), paper="arXiv:2011.13456, Eq. 30")
@dataclass(frozen=True)
class VE(Exploding):
    """Variance-exploding path: σ_t = σ_min (σ_max/σ_min)^t."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    @property
    def t_min(self) -> float:
        """The smallest time at which networks are evaluated: σ is σ_min there, to 1e-4."""
        return 1e-5

    @property
    def _growth(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def sigma(self, t: Time) -> Tensor:
        return self.sigma_min * (as_time(t) * self._growth).exp()

    def d_sigma(self, t: Time) -> Tensor:
        return self._growth * self.sigma(t)

    def time_of_log_snr(self, log_snr: Time) -> Tensor:
        return (-as_time(log_snr) - math.log(self.sigma_min)) / self._growth


@paths.register("edm", aliases=("karras_path",), paper="arXiv:2206.00364, Tab. 1")
@dataclass(frozen=True)
class EDM(Exploding):
    """The path of EDM, σ_t = σ_max t: its own time σ, scaled so that noise is at t = 1."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    @property
    def t_min(self) -> float:
        """The time at which σ = σ_min."""
        return self.sigma_min / self.sigma_max

    def sigma(self, t: Time) -> Tensor:
        return self.sigma_max * as_time(t)

    def d_sigma(self, t: Time) -> Tensor:
        return torch.full_like(as_time(t), self.sigma_max)

    def time_of_log_snr(self, log_snr: Time) -> Tensor:
        return (-as_time(log_snr)).exp() / self.sigma_max


@paths.register("cond_ot", aliases=("flow", "rectified_flow"), paper="arXiv:2210.02747, Eq. 20")
@dataclass(frozen=True)
class CondOT(GaussianPath):
    """The straight path of flow matching: x_t = (1 − t) x_0 + t ε."""

    def alpha(self, t: Time) -> Tensor:
        return 1 - as_time(t)

    def sigma(self, t: Time) -> Tensor:
        return as_time(t) * 1

    def d_alpha(self, t: Time) -> Tensor:
        return -torch.ones_like(as_time(t))

    def d_sigma(self, t: Time) -> Tensor:
        return torch.ones_like(as_time(t))

    def time_of_log_snr(self, log_snr: Time) -> Tensor:
        return torch.sigmoid(-as_time(log_snr))

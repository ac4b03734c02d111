"""Gaussian paths: how data becomes noise.

    x_t = α_t x_0 + σ_t ε,   ε ~ N(0, I),   t = 0 data, t = 1 noise

A path is four functions of time and nothing else; everything that solvers, fields and objectives
need follows from them:

    λ_t = log(α_t/σ_t)                     half log-SNR, falls as t grows
    f_t = α'_t/α_t                         drift of dx = f x dt + g dW, whose marginals are x_t
    g²_t = (σ²_t)' − 2 f_t σ²_t            its squared diffusion
    dx/dt = α'_t x̂_0 + σ'_t ε̂              the probability flow

Paper: Song et al. 2021 (arXiv:2011.13456); Kingma et al. 2021 for λ.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from pathline.core.registry import Registry
from pathline.paths.student import NORMAL, StudentT

Time = Tensor | float

LOWEST_LOG_SNR = -7.0
"""Where log-SNR grids begin on a path whose λ is −∞ at the start (α_1 = 0)."""


def as_time(t: Time) -> Tensor:
    """Return `t` as a tensor: numbers become float64, tensors keep their dtype."""
    return t if isinstance(t, Tensor) else torch.as_tensor(t, dtype=torch.float64)


def log_snr_of(log_alpha: Tensor) -> Tensor:
    """λ of a variance-preserving path, log(α/√(1 − α²)), free of cancellation and overflow."""
    return log_alpha - 0.5 * (-torch.expm1(2 * log_alpha)).log()


@dataclass(frozen=True)
class GaussianPath(ABC):
    """A path x_t = α_t x_0 + σ_t ε with scalar, differentiable α and σ.

    Subclasses define `alpha`, `sigma`, their derivatives and the inverse of λ, each in closed form
    and free of cancellation. Times may have any shape; results have the same shape and dtype.
    """

    @property
    def kernel(self) -> StudentT:
        """The law of ε: N(0, I), unless the path says otherwise."""
        return NORMAL

    @property
    def gaussian(self) -> GaussianPath:
        """The path with the same α and σ whose ε is N(0, I)."""
        return self

    @property
    def t_min(self) -> float:
        """The smallest time at which networks are evaluated; σ > 0 there."""
        return 1e-3

    @property
    def t_max(self) -> float:
        """The time at which generation starts."""
        return 1.0

    @abstractmethod
    def alpha(self, t: Time) -> Tensor:
        """The scale of the data, α_t."""

    @abstractmethod
    def sigma(self, t: Time) -> Tensor:
        """The scale of the noise, σ_t (a standard deviation)."""

    @abstractmethod
    def d_alpha(self, t: Time) -> Tensor:
        """dα/dt."""

    @abstractmethod
    def d_sigma(self, t: Time) -> Tensor:
        """dσ/dt."""

    @abstractmethod
    def time_of_log_snr(self, log_snr: Time) -> Tensor:
        """The time at which λ_t has this value (the inverse of `log_snr`)."""

    def log_snr(self, t: Time) -> Tensor:
        """The half log-SNR, λ_t = log(α_t/σ_t); +∞ at data, −∞ where α = 0."""
        return self.alpha(t).log() - self.sigma(t).log()

    def drift(self, t: Time) -> Tensor:
        """The linear drift f_t = α'_t/α_t of the forward SDE."""
        return self.d_alpha(t) / self.alpha(t)

    def diffusion_squared(self, t: Time) -> Tensor:
        """The squared diffusion g²_t = 2σ_t(σ'_t − f_t σ_t) of the forward SDE."""
        sigma = self.sigma(t)
        return 2 * sigma * (self.d_sigma(t) - self.drift(t) * sigma)

    def log_snr_range(self) -> tuple[float, float]:
        """λ at the start and at the end of generation, the start bounded to be finite."""
        start = max(float(self.log_snr(self.t_max)), LOWEST_LOG_SNR)
        return start, float(self.log_snr(self.t_min))

    def noised(self, x0: Tensor, eps: Tensor, t: Time) -> Tensor:
        """Return x_t = α_t x_0 + σ_t ε.

        Args:
            x0: (batch, *state).
            eps: (batch, *state).
            t: () or (batch,).
        """
        return bshape(self.alpha(t), x0) * x0 + bshape(self.sigma(t), x0) * eps

    def describe(self) -> dict[str, Any]:
        """Return what `paths.rebuild` makes the path from, as plain values."""
        return paths.describe(self)


def bshape(coefficient: Tensor, like: Tensor) -> Tensor:
    """Cast a () or (batch,) coefficient to the dtype and device of `like`, ready to multiply it."""
    coefficient = coefficient.to(device=like.device, dtype=like.dtype)
    return coefficient.reshape(-1, *[1] * (like.ndim - 1)) if coefficient.ndim else coefficient


def hash_once(self: Any) -> int:
    """Hash a frozen dataclass by its fields, once: plans are looked up by their path.

    For values that hold a long table: `__hash__ = hash_once` in the class.
    """
    kept = self.__dict__
    if "_hashed" not in kept:
        kept["_hashed"] = hash(tuple(getattr(self, f.name) for f in fields(self)))
    return kept["_hashed"]


paths: Registry[GaussianPath] = Registry("path")
"""Every path, by name."""

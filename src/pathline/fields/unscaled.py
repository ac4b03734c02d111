"""Unscaled coordinates: every Gaussian path seen as one that only adds noise.

    y = x/α,   y_t = x_0 + ρ_t ε,   ρ_t = σ_t/α_t

The same times, the same log-SNR, another state. What is formulated for variance-exploding models
(noise-level estimation, Langevin steps at a level, EDM's rules) serves every model this way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pathline.fields.retimed import Carried
from pathline.fields.views import View
from pathline.paths import GaussianPath, StudentT, Time, as_time


@dataclass(frozen=True)
class UnscaledPath(GaussianPath):
    """The path of y = x/α: α = 1 and σ = ρ, at the times of another path.

    Where that path has α = 0, ρ is infinite: states there have no unscaled coordinates.
    """

    inner: GaussianPath

    @property
    def kernel(self) -> StudentT:
        """The inner path's."""
        return self.inner.kernel

    @property
    def gaussian(self) -> GaussianPath:
        """The same of the inner path."""
        return UnscaledPath(self.inner.gaussian)

    @property
    def t_min(self) -> float:
        """The inner path's."""
        return self.inner.t_min

    @property
    def t_max(self) -> float:
        """The inner path's."""
        return self.inner.t_max

    def alpha(self, t: Time) -> Tensor:
        return torch.ones_like(as_time(t))

    def d_alpha(self, t: Time) -> Tensor:
        return torch.zeros_like(as_time(t))

    def sigma(self, t: Time) -> Tensor:
        return self.inner.sigma(t) / self.inner.alpha(t)

    def d_sigma(self, t: Time) -> Tensor:
        alpha, sigma = self.inner.alpha(t), self.inner.sigma(t)
        return (self.inner.d_sigma(t) - sigma * self.inner.d_alpha(t) / alpha) / alpha

    def log_snr(self, t: Time) -> Tensor:
        return self.inner.log_snr(t)

    def time_of_log_snr(self, log_snr: Time) -> Tensor:
        return self.inner.time_of_log_snr(log_snr)


@dataclass(frozen=True)
class Unscaled(Carried):
    """A denoiser in unscaled coordinates: x̂_0 as a function of y = x/α.

    Args:
        inner: any field on a path, a guided one too.

    Raises:
        UsageError: the field has no path.

    Example:
        >>> from pathline.fields import Gaussian
        >>> from pathline.paths import VPLinear
        >>> law = Gaussian(VPLinear(), torch.zeros(2), torch.ones(2))
        >>> y, rho = torch.ones(1, 2), Unscaled(law).path.sigma(0.5)
        >>> bool((Unscaled(law)(y, 0.5).x0 - y / (1 + rho**2)).abs().max() < 1e-6)
        True
    """

    @property
    def path(self) -> GaussianPath:  # type: ignore[override]
        """The inner path, unscaled."""
        return UnscaledPath(self.known)

    @property
    def view(self) -> View:  # type: ignore[override]
        """Always x̂_0, which the coordinates do not change."""
        return "x0"

    def there(self, times: Tensor) -> tuple[Tensor, Tensor]:
        return times, self.known.alpha(times)

"""Confidence-based clipping: states that no data could have been carried to are brought back.

    |x_0| ≤ b entry by entry,  x_t ~ N(α_t x_0, σ_t²)   ⇒   P(|x_t| ≤ b α_t + η σ_t) ≥ Φ(η) − Φ(−η)

whatever x_0 is: the interval needs neither a prediction nor a reference. It is a hook of the way
from data to noise on any Gaussian path. At the data itself nothing is clipped: entries there lie
at ±b themselves, and rounding would decide.

Paper: van Delft et al. 2024 (arXiv:2408.12418). The published code looks σ up by the number of the
grid point instead of the training step; here α and σ are the path's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.paths import GaussianPath, Time, as_time, bshape

__all__ = ["Confidence"]

ROUNDING = 1e-5
"""By how much of the bound an entry must be outside to be counted."""


@dataclass(frozen=True)
class Confidence:
    """An interval that states lie in.

    Args:
        eta: η, its half-width in standard deviations of the noise.
        data_range: the least and the most that an entry of data can be.

    Example:
        >>> from pathline.paths import VPLinear
        >>> Confidence(2.0).bound(VPLinear(), 1.0).item() > 2
        True
    """

    eta: float = 1.7
    data_range: tuple[float, float] = (-1.0, 1.0)

    def __post_init__(self) -> None:
        if not 0 < self.eta < math.inf:
            raise UsageError(
                f"η = {self.eta}: the interval reaches η standard deviations beyond the data, "
                "η > 0; None switches clipping off."
            )
        low, high = self.data_range
        if not -math.inf < low < high < math.inf:
            raise UsageError(
                f"data_range={self.data_range}: clipping needs what data can be at all, "
                "(least, most), both finite."
            )

    @property
    def coverage(self) -> float:
        """Φ(η) − Φ(−η), the share of states that is inside at least."""
        return math.erf(self.eta / math.sqrt(2))

    def bound(self, path: GaussianPath, t: Time) -> Tensor:
        """Return b α_t + η σ_t, b the largest size of an entry.

        Raises:
            UsageError: the noise of the path is not Gaussian.
        """
        if not path.kernel.is_gaussian:
            raise UsageError(
                f"Φ(η) is of Gaussian noise, and the noise of this path has D={path.kernel.dof:g}: "
                "leave the clipping out (eta=None)."
            )
        largest = max(map(abs, self.data_range))
        return largest * path.alpha(as_time(t)) + self.eta * path.sigma(as_time(t))

    def __call__(self, x: Tensor, path: GaussianPath, t: Time) -> tuple[Tensor, Tensor]:
        """Return the state, clipped, and the share of its entries that were outside, (batch,).

        Args:
            x: (batch, *state).
            path: of the model.
            t: () or (batch,).
        """
        bound = bshape(self.bound(path, t), x)
        least = bound * (1 + ROUNDING)  # what was clipped before may stay on the bound
        outside = (x.abs() > least).flatten(1).to(torch.float64).mean(1)
        return torch.minimum(torch.maximum(x, -bound), bound), outside

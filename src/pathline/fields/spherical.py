"""A mixture of round Gaussians on states of any shape, whose denoiser costs two matrix products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.fields.field import Condition
from pathline.fields.oracles import Oracle, check_gaussian
from pathline.fields.views import View
from pathline.paths import GaussianPath, Time, as_time


@dataclass(frozen=True)
class Spherical(Oracle):
    """A mixture Σ w_k N(m_k, s_k² I), of pictures or any other states.

        x̂_0 = Σ_k r_k (m_k + α s_k²/v_k (x − α m_k)),   v_k = α² s_k² + σ²,   r = p(k | x)

    Choose it over `Mixture` where there are many components or elements: distances are taken as
    |x|² − 2α x·m + α²|m|², which is right to rounding as long as v_k is not tiny beside |x|².

    Args:
        path: any Gaussian path.
        means: (components, *state).
        stds: (components,).
        weights: (components,), summing to one.

    Raises:
        UsageError: shapes that are not those of one mixture; a path whose noise is not Gaussian.
    """

    path: GaussianPath  # pyright: ignore[reportIncompatibleVariableOverride]
    means: Tensor
    stds: Tensor
    weights: Tensor
    view: View = "x0"

    def __post_init__(self) -> None:
        check_gaussian(self.path)
        if self.stds.shape != self.weights.shape or self.stds.shape != self.means.shape[:1]:
            raise UsageError(
                f"means {tuple(self.means.shape)}, stds {tuple(self.stds.shape)} and weights "
                f"{tuple(self.weights.shape)} do not describe one mixture."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.means.shape[1:])

    def _parts(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return flat x, flat means, α and each component's variance at time t, (…, k)."""
        flat, means = x.flatten(1), self.means.to(x).flatten(1)
        alpha, sigma = (c(t).to(x).reshape(-1, 1) for c in (self.path.alpha, self.path.sigma))
        return flat, means, alpha, (alpha * self.stds.to(x)) ** 2 + sigma**2

    def log_joint(self, x: Tensor, t: Time) -> Tensor:
        """Return log w_k + log N(x; α m_k, v_k I), (batch, components)."""
        flat, means, alpha, variance = self._parts(x, as_time(t))
        products, squares = flat @ means.T, means.square().sum(1)
        distance = flat.square().sum(1, keepdim=True) - 2 * alpha * products + alpha**2 * squares
        size = flat.shape[1] / 2 * (variance.log() + math.log(2 * math.pi))
        return self.weights.to(x).log() - size - distance / (2 * variance)

    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        flat, means, alpha, variance = self._parts(x, t)
        share = self.log_joint(x, t).softmax(1)
        gain = alpha * self.stds.to(x) ** 2 / variance
        kept = (share * gain).sum(1, keepdim=True)
        return ((share * (1 - alpha * gain)) @ means + kept * flat).view_as(x)

    def log_prob(self, x: Tensor, t: Time) -> Tensor:
        """log p_t(x), (batch,)."""
        return self.log_joint(x, t).logsumexp(1)

    def draw(self, seeds: Sequence[int]) -> Tensor:
        """Return data, (batch, *state) float64; each is a function of its seed."""
        z = noise.normal(seeds, self.shape, stream="data", dtype=torch.float64)
        u = noise.uniform(seeds, (1,), stream="data", index=1, dtype=torch.float64)
        which = (u > self.weights.to(z).cumsum(0)[:-1]).sum(1)
        stds = self.stds.to(z)[which].reshape(-1, *[1] * (z.ndim - 1))
        return self.means.to(z)[which] + stds * z

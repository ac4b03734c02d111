"""The noise that a path adds: standard normal, or Student-t with D degrees of freedom.

    x_t = α_t x_0 + σ_t ε,   ε = ζ √(D/χ²_D),   ζ ~ N(0, I_N),   one χ² a sample

    p(ε) ∝ (1 + ‖ε‖²/D)^−(N+D)/2

It is the kernel of PFGM++, whose data are charges in N + D dimensions: with r = σ √D, the distance
from the data in the D others, p_r(x | y) ∝ (‖x − y‖² + r²)^−(N+D)/2. D = 1 is the Poisson flow, and
for D → ∞ the kernel is the normal law of diffusion. The flow is that of diffusion for every D,

    dx/dσ = (x − x̂_0)/σ,   x̂_0 = E[x_0 | x],   along the field lines of the charges,

so solvers, grids and preconditioning are the same; what differs is the noise to start from and to
train with. But the gradient of log p_t(x) is no longer −ε̂/σ, which SDEs, and all that climbs a
density, are made of.

Paper: Xu et al. 2023 (arXiv:2302.04265), whose radius r √(B/(1 − B)), B ~ Beta(N/2, D/2), is ‖ε‖.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError

FARTHEST = 1e6
"""Noise beyond this many radii r is drawn anew: for D = 1 it is one sample in a million, and for
D ≥ 3 none that anybody will see."""


@dataclass(frozen=True)
class StudentT:
    """A spherical Student-t law of unit scale; its limit for D = ∞ is N(0, I).

    Its covariance is D/(D − 2) I for D > 2; for D ≤ 2 there is none, and for D ≤ 1 no mean.

    Args:
        dof: D, the degrees of freedom.

    Example:
        >>> law = StudentT(4.0)
        >>> eps = law.draw([7, 8], (3,))
        >>> torch.equal(eps[1:], law.draw([8], (3,)))
        True
    """

    dof: float = math.inf

    def __post_init__(self) -> None:
        is_number = isinstance(self.dof, int | float) and not isinstance(self.dof, bool)
        if not (is_number and self.dof > 0):
            raise UsageError(f"D must be a positive number or inf, and is {self.dof!r}.")

    @property
    def is_gaussian(self) -> bool:
        """Whether it is the standard normal law."""
        return math.isinf(self.dof)

    def draw(
        self,
        seeds: Sequence[int],
        shape: Sequence[int],
        *,
        stream: str = "initial",
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return ε, (batch, *shape); both its direction and its radius follow from each seed.

        Args:
            seeds: one a sample.
            shape: of one sample.
            stream: what the draw is for, as for `noise.normal`.
            dtype: of the result (the default dtype if None); drawn in float64, rounded once.
            device: where.
        """
        if self.is_gaussian:
            return noise.normal(seeds, shape, stream=stream, dtype=dtype, device=device)
        z = noise.normal(seeds, shape, stream=stream, dtype=torch.float64, device=device)
        index = noise.STREAMS[stream]
        return self.spread(z, seeds, index=index).to(dtype or torch.get_default_dtype())

    def spread(self, z: Tensor, seeds: Sequence[int], *, index: int = 0) -> Tensor:
        """Return ζ √(D/χ²_D) in float64 for normal noise ζ; ζ itself if D = ∞.

        Args:
            z: (batch, *state), standard normal.
            seeds: of the radii, one a sample.
            index: which radius of a seed.
        """
        if self.is_gaussian:
            return z
        least = z[0].numel() / FARTHEST**2
        squared = noise.chi_square(seeds, self.dof, least=least, index=index, device=z.device)
        factor = (self.dof / squared).sqrt()
        return z.double() * factor.reshape(-1, *[1] * (z.ndim - 1))

    def log_shape(self, squared: Tensor, n: int) -> Tensor:
        """Return log p(ε)/p(0) at ‖ε‖² = `squared` in n dimensions: what posterior weights need."""
        if self.is_gaussian:
            return -squared / 2
        return -(n + self.dof) / 2 * torch.log1p(squared / self.dof)

    def log_peak(self, n: int) -> float:
        """Return log p(0) in n dimensions."""
        if self.is_gaussian:
            return -n / 2 * math.log(2 * math.pi)
        half = self.dof / 2
        gammas = math.lgamma(half + n / 2) - math.lgamma(half)
        return gammas - n / 2 * math.log(math.pi * self.dof)

    def log_prob(self, eps: Tensor) -> Tensor:
        """Return the log density of ε, (batch,), of the state's dimensions together."""
        flat = eps.flatten(1)
        return self.log_shape(flat.square().sum(1), flat.shape[1]) + self.log_peak(flat.shape[1])


NORMAL = StudentT()
"""N(0, I)."""

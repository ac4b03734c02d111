"""The data separation function: how well data can be told from their noised selves.

    λ(s) = E ‖E[x_0 | x_0 + ε/s]‖² / d = 1 − mmse(s)/d,   s = α/σ

for data of mean 0 and E ‖x_0‖² = d. It belongs to the data alone, and all that a Gaussian path
costs follows from it (`paths.energy`). With s = cot ψ, what turning by dψ costs is κ dψ,

    κ² = 1 − (1 − λ(s)) (1 + s²)   in [0, 1],

0 for isotropic Gaussian data, which need not move at all, and 1 for points that are far apart.

Paper: Shaul et al. 2023 (arXiv:2306.06626); polar form and bounds are derived in docs/paths.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.paths.cubic import Cubic
from pathline.paths.path import hash_once

Mmse = Callable[[Tensor], Tensor]
"""The mean squared error of the best denoiser, per dimension, as a function of s = α/σ."""

_STEEPEST = 4.0
"""The largest power of s with which κ² is continued: that of isotropic data at large noise."""


@dataclass(frozen=True)
class Separation:
    """The separation function from a table of 1 − λ = mmse/d.

    What is interpolated is κ² over the angle atan s, by a monotone cubic, and beyond the table by
    the power of s of its last two nodes: so λ stays in its bounds s²/(1 + s²) ≤ λ ≤ 1 everywhere,
    and κ keeps its digits at large s, where it is a difference of numbers near 1.

    Args:
        scales: s, strictly rising and positive, at least 2.
        mmse: 1 − λ(s) at each, from 0 to 1/(1 + s²), and never rising.

    Raises:
        UsageError: scales that do not rise; an mmse that does, or that is out of its bounds.
    """

    scales: tuple[float, ...] = field(repr=False)
    mmse: tuple[float, ...] = field(repr=False)

    def __post_init__(self) -> None:
        check_scales(self.scales)
        if len(self.scales) != len(self.mmse):
            raise UsageError(
                f"there are {len(self.scales)} scales and {len(self.mmse)} values of the mmse."
            )
        for s, value in zip(self.scales, self.mmse, strict=True):
            if not 0 <= value * (1 + s * s) <= 1 + 1e-9:
                raise UsageError(
                    f"at s = {s:.4g} the mmse per dimension lies in [0, {1 / (1 + s * s):.4g}] for "
                    f"data of mean 0 and E‖x‖² = d, and is {value:.4g}: normalise the data, "
                    "and see that both sums are divided by d."
                )
        for k, (low, high) in enumerate(pairwise(self.mmse)):
            if high > low * (1 + 1e-9):
                raise UsageError(
                    f"λ falls from {1 - low:.4g} to {1 - high:.4g} between s = "
                    f"{self.scales[k]:.4g} and {self.scales[k + 1]:.4g}, where less noise tells "
                    "data better: increase the draws of an estimate."
                )

    __hash__ = hash_once

    @classmethod
    def of(cls, mmse: Mmse, n: int = 256) -> Separation:
        """Return the table of a function, at n scales whose angles are evenly spread."""
        angles = torch.arange(1, n + 1, dtype=torch.float64) * (math.pi / 2 / (n + 1))
        scales = angles.tan()
        values = torch.minimum(mmse(scales).double().clamp(min=0), 1 / (1 + scales**2))
        return cls(tuple(scales.tolist()), tuple(values.tolist()))

    @classmethod
    def gaussian(cls, variances: Sequence[float], n: int = 256) -> Separation:
        """Return that of Gaussian data with these variances, scaled to a mean of 1, exactly."""
        return cls.of(gaussian_mmse(variances), n)

    def __call__(self, s: Tensor) -> Tensor:
        """λ(s), in float64."""
        return 1 - self.error(s)

    def error(self, s: Tensor) -> Tensor:
        """1 − λ(s) = mmse(s)/d, without cancellation at large s."""
        s = s.double()
        return (1 - self.kappa_squared(torch.atan2(torch.ones_like(s), s))) / (1 + s**2)

    def kappa_squared(self, psi: Tensor) -> Tensor:
        """κ² at the angle ψ = arccot s, from 0 (data) to π/2 (noise)."""
        return self._table(psi).clamp(0, 1)

    @cached_property
    def _table(self) -> Cubic:
        """κ² over ψ, from the last scale to the first, and both ends continued."""
        s = torch.tensor(self.scales, dtype=torch.float64).flip(0)
        mmse = torch.tensor(self.mmse, dtype=torch.float64).flip(0)
        psi, squared = torch.atan(1 / s), (1 - mmse * (1 + s**2)).clamp(0, 1)
        halves = psi[0] / 2, (psi[-1] + math.pi / 2) / 2
        low = _continued(s[:2], squared[:2], (math.inf, 1 / float(halves[0].tan())))
        high = _continued(s[-2:].flip(0), squared[-2:].flip(0), (1 / float(halves[1].tan()), 0.0))
        psi = torch.cat((psi.new_tensor([0.0, halves[0]]), psi))
        psi = torch.cat((psi, psi.new_tensor([halves[1], math.pi / 2])))
        return Cubic.pchip(psi, torch.cat((low, squared, high)))

    def describe(self) -> dict[str, Any]:
        """Return what rebuilds it, as plain values."""
        return {"scales": list(self.scales), "mmse": list(self.mmse)}

    @classmethod
    def rebuilt(cls, description: Mapping[str, Sequence[float]]) -> Separation:
        """Return what `describe` described."""
        return cls(**{name: tuple(values) for name, values in description.items()})


def check_scales(scales: Sequence[float]) -> None:
    """Refuse scales s that are not finite, positive and strictly rising."""
    finite = all(math.isfinite(s) and s > 0 for s in scales)
    rising = all(a < b for a, b in zip(scales, scales[1:], strict=False))
    if len(scales) < 2 or not finite or not rising:
        raise UsageError(
            "the scales s = α/σ must be positive and strictly rising, at least two; they are "
            f"{', '.join(f'{s:.4g}' for s in scales[:6])}{' …' if len(scales) > 6 else ''}."
        )


def gaussian_mmse(variances: Sequence[float]) -> Mmse:
    """Return the mmse of Gaussian data, mean of v/(1 + s² v), its variances scaled to a mean of 1.

    Raises:
        UsageError: a negative variance, or none that is positive.
    """
    v = torch.tensor(list(variances), dtype=torch.float64)
    if not len(v) or bool((v < 0).any()) or not float(v.mean()) > 0:
        raise UsageError(f"variances must be ≥ 0, one at least positive; they are {v.tolist()}.")
    v = v / v.mean()

    def mmse(s: Tensor) -> Tensor:
        return (v / (1 + s.double()[..., None] ** 2 * v)).mean(-1)

    return mmse


def _continued(s: Tensor, squared: Tensor, to: tuple[float, float]) -> Tensor:
    """Return κ² beyond the end of the table, s[0], as a power of s that does not grow outwards."""
    (s0, s1), (k0, k1) = s.tolist(), squared.tolist()
    if k0 <= 0 or k1 <= 0:
        return squared.new_full((2,), k0)
    power = math.log(k1 / k0) / abs(math.log(s1 / s0))
    power = min(max(power, 0.0), _STEEPEST)
    return squared.new_tensor([k0 * _ratio(s0, end) ** power for end in to])


def _ratio(a: float, b: float) -> float:
    """Return the smaller over the larger of two scales, which may be 0 or infinite."""
    low, high = min(a, b), max(a, b)
    return 0.0 if math.isinf(high) else low / high

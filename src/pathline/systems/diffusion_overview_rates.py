"""Rates: how many data a subspace takes, and a law on it. What claims of the overview read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pathline.core import noise
from pathline.fields import Dataset, Subspace
from pathline.learn import Rate, measure_rate
from pathline.paths import VPLinear
from pathline.solvers import grids, sample

SUBSPACE_SIZES = (100, 400, 1600, 6400, 25_600)
LAW_SIZES = (200, 800, 3200, 12_800)
DIMS = (2, 4, 8)
_SEEDS = 1 << 20
"""Seeds of one draw of data do not meet those of the next."""


def noisy_rows(support: Subspace, n: int, std: float, seed: int) -> Tensor:
    """Return n rows A z + s ε with z ~ N(0, 1), (n, D) float64."""
    seeds = range(seed * _SEEDS, seed * _SEEDS + n)
    z = noise.normal(seeds, (support.dim,), stream="data", dtype=torch.float64)
    shape = (len(support.basis),)
    return support.lifted(z) + std * noise.normal(
        seeds, shape, stream="forward", dtype=torch.float64
    )


def uniform_rows(support: Subspace, n: int, seed: int) -> Tensor:
    """Return n rows A z with z uniform in a cube, (n, D) float64."""
    seeds = range(seed * _SEEDS, seed * _SEEDS + n)
    u = noise.uniform(seeds, (support.dim,), stream="data", dtype=torch.float64)
    return support.lifted(2 * u - 1)


def nearest(fresh: Tensor, x: Tensor) -> float:
    """Return the mean distance from fresh points to the nearest of x."""
    parts = [torch.cdist(part, x).min(1).values for part in fresh.split(250)]
    return float(torch.cat(parts).mean())


@dataclass(frozen=True)
class Rates:
    """Tables of errors, each measured when first asked for.

    Args:
        seeds: at every number of data.
        fresh: points that distances are measured from.
    """

    seeds: int = 8
    fresh: int = 500

    @cached_property
    def subspace(self) -> Rate:
        """‖V Vᵀ − A Aᵀ‖ of principal components, D = 32, d = 4, s = 0.5."""
        return self._subspace(32)

    @cached_property
    def subspace_wide(self) -> Rate:
        """The same for D = 128."""
        return self._subspace(128)

    @cached_property
    def laws(self) -> dict[tuple[int, int], Rate]:
        """Distances of fresh points to data, by D and d."""
        return {(whole, d): self._law(whole, d) for whole in (64, 128) for d in DIMS}

    def law_off(self, d: int) -> float:
        """Return the slope of the distance over −1/d, for D = 64."""
        return self.laws[64, d].slope * -d

    def ambient(self) -> float:
        """Return the largest change of a slope from D = 64 to 128."""
        return max(abs(self.laws[64, d].slope - self.laws[128, d].slope) for d in DIMS)

    @cached_property
    def sampled(self) -> Rate:
        """Distances to samples of the finite-data denoiser, D = 64, d = 2, n to 3200."""
        support = Subspace.drawn(64, 2)

        def measure(n: int, seed: int) -> float:
            law = Dataset(VPLinear(), uniform_rows(support, n, 1 + seed))
            grid = grids.log_snr(10, last="denoise")
            seeds = range(seed * _SEEDS, seed * _SEEDS + n)
            with torch.no_grad():
                x = sample(law, seeds=seeds, grid=grid, dtype=torch.float64).x
            return nearest(uniform_rows(support, self.fresh, 0), x)

        return measure_rate(measure, LAW_SIZES[:3], 2, dim=2)

    def _subspace(self, whole: int) -> Rate:
        def measure(n: int, seed: int) -> float:
            support = Subspace.drawn(whole, 4, seed)
            return Subspace.of(noisy_rows(support, n, 0.5, seed), 4).gap(support)

        return measure_rate(measure, SUBSPACE_SIZES, self.seeds, dim=4)

    def _law(self, whole: int, d: int) -> Rate:
        support, first = Subspace.drawn(whole, d), 1 + whole

        def measure(n: int, seed: int) -> float:
            fresh = uniform_rows(support, self.fresh, 2 * (first + seed))
            return nearest(fresh, uniform_rows(support, n, 2 * (first + seed) + 1))

        return measure_rate(measure, LAW_SIZES, max(self.seeds // 2, 1), dim=d)

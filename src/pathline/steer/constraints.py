"""Constraints of the clean estimate: what data can be at all.

Guidance with large weights leads x̂_0 out of the range of data, and its colours saturate. Both
constraints act on x̂_0 and leave the noise consistent with it, under every solver.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.steer.estimate import Correction, Estimate
from pathline.steer.guide import guides


@guides.register("clip", aliases=("clip_denoised",), paper="arXiv:2006.11239, App. D")
@dataclass(frozen=True)
class Clip(Correction):
    """Clips x̂_0 to [low, high], element by element; a range of ±∞ is none.

    Args:
        low: the least an element of data can be.
        high: the most.
    """

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise UsageError(f"Clip({self.low}, {self.high}): the lower end comes first.")

    @property
    def is_none(self) -> bool:
        return (self.low, self.high) == (-math.inf, math.inf)

    def corrected(self, now: Estimate) -> Tensor:
        return now.x0.clamp(self.low, self.high)


@guides.register("dynamic_threshold", paper="arXiv:2205.11487, Sec. 2.3")
@dataclass(frozen=True)
class DynamicThreshold(Correction):
    """Clips x̂_0 to a quantile s of its |elements|, and divides by s where that is above 1.

        x̃_0 = clip(x̂_0, −s, s) · limit/s,   s = max(limit, quantile of |x̂_0|)

    or `most`, if that is less.

    Saturated pixels move inwards and detail returns, which clipping alone does not do. Each sample
    has an s of its own.

    Args:
        quantile: 1 takes the largest element.
        limit: the range of data is [−limit, limit]; ∞ is none.
        most: the most that s may be; ∞ for no bound.
    """

    quantile: float = 0.995
    limit: float = 1.0
    most: float = math.inf

    def __post_init__(self) -> None:
        if not 0 < self.quantile <= 1 or not self.limit > 0:
            raise UsageError(
                f"DynamicThreshold({self.quantile}, {self.limit}): a quantile is from 0 to 1, and "
                "the limit above 0."
            )
        if not self.most >= self.limit:
            raise UsageError(f"most={self.most}: s is at least the limit, {self.limit}.")

    @property
    def is_none(self) -> bool:
        return self.limit == math.inf

    def corrected(self, now: Estimate) -> Tensor:
        size = now.x0.abs().flatten(1)
        found = torch.quantile(size.float(), self.quantile, 1).to(size).clamp(self.limit, self.most)
        bound = found.reshape(-1, *[1] * (now.x0.ndim - 1))
        return torch.clamp(now.x0, -bound, bound) * (self.limit / bound)

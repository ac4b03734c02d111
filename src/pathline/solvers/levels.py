"""Levels of a path at a time of each sample's own, for solvers whose samples do not walk in step.

A sample's result must not depend on its neighbours, to the last bit. Vectorised logarithms may
round a tensor's tail differently from its body, so transcendental functions are taken of tensors
that are filled up to whole vectors, and sums are folded in halves; everything else is +, −, ×, ÷
and √.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pathline.paths import GaussianPath
from pathline.paths.path import LOWEST_LOG_SNR

_LANES = 16


class Levels(NamedTuple):
    """Points of a path, one a sample: time, α, σ and λ, each (batch,) float64 on the CPU.

    Without a path all but the time are NaN.
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    log_snr: Tensor

    @classmethod
    def at(
        cls, path: GaussianPath | None, t: Tensor, lowest: Tensor | float = LOWEST_LOG_SNR
    ) -> Levels:
        """Return the levels at these times; `lowest`, () or (batch,), stands for λ = −∞."""
        if path is None:
            nan = torch.full_like(t, float("nan"))
            return cls(t, nan, nan, nan)
        log_snr = steady(path.log_snr, t)
        log_snr = torch.where(log_snr.isneginf(), lowest, log_snr)
        return cls(t, steady(path.alpha, t), steady(path.sigma, t), log_snr)

    def of(self, rows: Tensor) -> Levels:
        """Return the levels of some samples."""
        return Levels(*(column[rows] for column in self))

    def replaced(self, rows: Tensor, new: Levels) -> Levels:
        """Return the levels with those of some samples replaced."""
        return Levels(*(a.index_put((rows,), b) for a, b in zip(self, new, strict=True)))

    def or_else(self, here: Tensor, other: Levels) -> Levels:
        """Return these levels where `here` is true, and the other ones elsewhere."""
        return Levels(*(torch.where(here, a, b) for a, b in zip(self, other, strict=True)))


def steady(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """Return function(t) for (batch,) t, the same bits wherever in the batch a number stands."""
    n = len(t)
    filled = torch.cat((t, t[:1].expand(-n % _LANES)))
    return function(filled)[:n]


def totals(x: Tensor) -> Tensor:
    """Return the sum of each sample, (batch,), added in halves: the same bits in any batch."""
    x = x.flatten(1)
    while (n := x.shape[1]) > 1:
        half = n // 2
        folded = x[:, :half] + x[:, half : 2 * half]
        x = torch.cat((folded, x[:, -1:]), 1) if n % 2 else folded
    return x[:, 0] if x.shape[1] else x.new_zeros(len(x))


def norms(x: Tensor) -> Tensor:
    """Return the Euclidean norm of each sample, (batch,)."""
    return totals(x.square()).sqrt()

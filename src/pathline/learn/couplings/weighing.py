"""Weights of mean one: what a weighted coupling's batches are multiplied with.

    w̃ = exp(log w − log Z),   Z an average of the batches' mean weights

A batch that is divided by its own mean biases the gradient by O(1/B); a running mean leaves it
unbiased up to a constant that varies slowly. It is kept as a logarithm: weights of exp(−1000) are
as good as any.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Weighing", "effective"]

KEEP = 0.99
FEWEST = 2.0
"""The effective size below which a batch teaches nothing but noise."""


def effective(log_weight: Tensor) -> float:
    """Return the effective size of a weighted batch, (Σ w)²/Σ w²."""
    w = (log_weight - log_weight.max()).exp()
    return float(w.sum().square() / w.square().sum())


@dataclass(frozen=True)
class Weighing:
    """The mean weight so far, handed on from step to step.

    Args:
        log_mean: logarithm of the running mean; None before the first batch.
        batches: that it is the mean of.
        skipped: batches of less than two effective pairs, which were left out.
    """

    log_mean: float | None = None
    batches: int = 0
    skipped: int = 0

    def after(self, log_weight: Tensor) -> Weighing:
        """Return the weighing after another batch; one that teaches nothing is only counted."""
        if effective(log_weight) < FEWEST:
            return replace(self, skipped=self.skipped + 1)
        mean = _log_mean(log_weight)
        if self.log_mean is not None:
            keep = min(KEEP, self.batches / (self.batches + 1))  # the plain mean at first
            kept, new = math.log(keep) + self.log_mean, math.log1p(-keep) + mean
            mean = max(kept, new) + math.log1p(math.exp(-abs(kept - new)))
        return Weighing(mean, self.batches + 1, self.skipped)

    def weights(self, log_weight: Tensor) -> Tensor:
        """Return the weights of a batch, (n,) float64; the first batch is its own mean."""
        mean = _log_mean(log_weight) if self.log_mean is None else self.log_mean
        return (log_weight - mean).exp()


def _log_mean(log_weight: Tensor) -> float:
    return float(torch.logsumexp(log_weight, 0)) - math.log(len(log_weight))

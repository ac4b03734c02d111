"""Is y independent of c given x? A score test on what a classifier of pairs leaves over.

    S = Σ_i c̃_i ⊗ (1{y_i} − p̂(·|x_i)),   V = Σ_i c̃_i c̃_iᵀ ⊗ (diag p̂_i − p̂_i p̂_iᵀ),   S'V⁻¹S ~ χ²

with c̃ the centred features of c. If y knows of c only through x, and p̂ is right, what is left over
has mean zero whatever c. A large value says that pairs will not do, or that p̂ is wrong where the
data of some c lie.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pathline.core.errors import UsageError

__all__ = ["Residual", "residual_test"]

LEAST_CHANCE = 1e-3


@dataclass(frozen=True)
class Residual:
    """What a classifier of pairs leaves over.

    Args:
        statistic: χ² under independence.
        freedom: its degrees of freedom.
        chance: of a statistic as large, if y is independent of c given x and p̂ is right.
        largest: the mean residual that is largest, over conditions and classes.
    """

    statistic: float
    freedom: int
    chance: float
    largest: float

    @property
    def is_dependent(self) -> bool:
        """Whether chance alone does this less than once in a thousand."""
        return self.chance < LEAST_CHANCE


def residual_test(logits: Tensor, y: Tensor, c: Tensor) -> Residual:
    """Test whether what p̂(y | x) leaves over depends on c; warns if it does.

    Args:
        logits: (n, K) of the classifier of pairs, calibrated, on data it was not fitted to.
        y: (n,) int64.
        c: (n,) int64 classes, or (n, features) floating.

    Raises:
        UsageError: too few data, or a condition that never changes.
    """
    features = one_hot(c.long()).double() if c.ndim == 1 else c.double()
    features = features[:, features.std(0) > 0]
    if features.shape[1] == 0 or len(y) <= features.shape[1] * logits.shape[1]:
        raise UsageError(
            f"{len(y)} data with {features.shape[1]} features of c that vary cannot test {c.shape}."
        )
    if c.ndim == 1:
        features = features[:, 1:]  # the first class is what the others leave
    centred = features - features.mean(0)
    chances = logits.double().softmax(1)
    left = one_hot(y, logits.shape[1]).double() - chances
    free = left[:, 1:]
    score = torch.einsum("nf,nk->fk", centred, free).flatten()
    spread = torch.diag_embed(chances) - chances[:, :, None] * chances[:, None]
    variance = torch.einsum("nf,ng,nkl->fkgl", centred, centred, spread[:, 1:, 1:])
    size = len(score)
    statistic = float(score @ torch.linalg.pinv(variance.reshape(size, size), rtol=1e-10) @ score)
    half = torch.tensor([size / 2, statistic / 2], dtype=torch.float64)
    chance = float(torch.special.gammaincc(half[0], half[1]))
    found = Residual(statistic, size, chance, _largest(left, c))
    if found.is_dependent:
        warnings.warn(
            f"y depends on c given x: residuals of p̂(y|x) of up to {found.largest:.2g} are left "
            f"(χ² = {statistic:.1f} with {size} degrees of freedom, p = {chance:.1g}). Pass "
            "triples (c, x, y), or pairs of one c alone.",
            stacklevel=2,
        )
    return found


def _largest(left: Tensor, c: Tensor) -> float:
    """Return the largest mean residual: of a class of c, or against a feature of unit spread."""
    if c.ndim == 1:
        means = [left[c == each].mean(0) for each in c.unique()]
        return float(torch.stack(means).abs().max())
    features = (c - c.mean(0)) / c.std(0).clamp(min=1e-12)
    return float((features.double().T @ left / len(left)).abs().max())

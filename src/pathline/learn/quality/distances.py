"""How far apart two sets of features are, through torchmetrics, in float64.

The Fréchet distance compares two Gaussians fitted to the sets,

    d² = ‖μ − ν‖² + tr(A + B − 2 (A B)^½)

and is biased upwards by small sets: compare it only with one of sets of the same sizes. The kernel
distance is the squared maximum mean discrepancy under k(x, y) = (x·y/d + 1)³,

    d² = mean_{i≠j} k(x_i, x_j) + mean_{i≠j} k(y_i, y_j) − 2 mean_{ij} k(x_i, y_j)

whose mean does not depend on the sizes; between two samples of one distribution it is zero.

Paper: Heusel et al. 2017 (arXiv:1706.08500); Bińkowski et al. 2018 (arXiv:1801.01401).
"""

from __future__ import annotations

import warnings
from statistics import fmean, stdev

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.learn.quality.features import Precomputed, optional

__all__ = ["frechet", "halves", "kernel", "on_scale"]

SUBSETS = 20
"""Draws from the larger set, where two sets of different sizes are compared by the kernel."""


def frechet(x: Tensor, y: Tensor) -> float:
    """Return the squared Fréchet distance of two sets of features, (n, d) and (m, d).

    Cost: the eigenvalues of a d × d matrix, five seconds for d = 1280.
    """
    _check(x, y)
    metrics = optional("torchmetrics.image.fid", "to compare sets of pictures")
    metric = metrics.FrechetInceptionDistance(feature=Precomputed(x.shape[1]))
    metric.set_dtype(torch.float64)
    metric.update(x.double(), real=True)
    metric.update(y.double(), real=False)
    return metric.compute().item()


def kernel(x: Tensor, y: Tensor, subsets: int = SUBSETS) -> float:
    """Return the unbiased kernel distance of two sets of features, (n, d) and (m, d).

    torchmetrics compares sets of one size: of the larger one it sees `subsets` draws.
    """
    _check(x, y)
    metrics = optional("torchmetrics.image.kid", "to compare sets of pictures")
    size = min(len(x), len(y))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # that it keeps the features, which is meant
        torch.manual_seed(0)
        metric = metrics.KernelInceptionDistance(
            feature=Precomputed(x.shape[1]),
            subsets=1 if len(x) == len(y) else subsets,
            subset_size=size,
        )
        metric.update(x.double(), real=True)
        metric.update(y.double(), real=False)
        mean, _ = metric.compute()
    return mean.item()


def halves(x: Tensor, splits: int = 50) -> tuple[float, float]:
    """Return mean and standard deviation of the kernel distance between random halves of a set.

    Over all ways to halve a set the mean is exactly zero: each pair is as often in one half as
    between them. The deviation says what half of the set can tell apart.
    """
    generator = torch.Generator().manual_seed(0)
    size, found = len(x) // 2, list[float]()
    for _ in range(splits):
        order = torch.randperm(len(x), generator=generator)
        found.append(kernel(x[order[:size]], x[order[size : 2 * size]]))
    return fmean(found), stdev(found)


def on_scale(value: float, zero: float, one: float) -> float:
    """Return where a value lies between what counts as zero and what counts as one.

    >>> on_scale(2.0, zero=2.0, one=6.0), on_scale(6.0, zero=2.0, one=6.0)
    (0.0, 1.0)
    """
    return (value - zero) / (one - zero)


def _check(x: Tensor, y: Tensor) -> None:
    if min(len(x), len(y)) < 2:
        raise UsageError(
            f"sets of at least 2 pictures can be compared, and these have {len(x)} and {len(y)}."
        )

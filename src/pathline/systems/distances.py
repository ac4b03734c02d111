"""Distances between sets of points, for claims about samples."""

from __future__ import annotations

import torch
from torch import Tensor

from pathline.core import noise


def sliced(x: Tensor, y: Tensor, directions: int = 64, quantiles: int = 2000) -> float:
    """Return the sliced 2-Wasserstein distance of two sets of points.

    √ mean over directions and quantiles of (Q_x − Q_y)², the projections' quantile functions.

    Args:
        x: (n, dim).
        y: (m, dim); n and m may differ.
        directions: random ones, always the same.
        quantiles: at which the functions are compared.
    """
    seeds = range(directions)
    ways = noise.normal(seeds, (x.shape[1],), stream="probe", index=3, dtype=torch.float64)
    ways = ways / ways.norm(dim=1, keepdim=True)
    q = (torch.arange(quantiles, dtype=torch.float64) + 0.5) / quantiles
    a, b = (torch.quantile(v.double() @ ways.T, q, dim=0) for v in (x, y))
    return float((a - b).square().mean().sqrt())

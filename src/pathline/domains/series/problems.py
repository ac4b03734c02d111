"""Sets of series whose classes cannot be told from where the series begin."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pathline.core import noise
from pathline.data.irregular import unit_times

__all__ = ["FREQUENCIES", "frequencies", "spirals"]

FREQUENCIES = (1.0, 1.6, 2.4)


def frequencies(seeds: Sequence[int], length: int = 40) -> tuple[Tensor, Tensor]:
    """Return sines of three frequencies with noise of 0.1, and a channel of noise of 0.3.

    The phase is random, so a first value says nothing.

    Args:
        seeds: one a series.
        length: values on [0, 1].

    Returns:
        Values (n, length, 2) float64, and labels (n,), a third of each class in turn.
    """
    labels = torch.arange(len(seeds)) % len(FREQUENCIES)
    f = torch.tensor(FREQUENCIES, dtype=torch.float64)[labels, None]
    phase = noise.uniform(seeds, (1,), stream="data", index=1, dtype=torch.float64)
    eps = noise.normal(seeds, (length, 2), stream="data", dtype=torch.float64)
    wave = (2 * math.pi * (f * unit_times(length) + phase)).sin()
    return torch.stack((wave + 0.1 * eps[..., 0], 0.3 * eps[..., 1]), 2), labels


def spirals(seeds: Sequence[int], length: int = 50) -> tuple[Tensor, Tensor]:
    """Return spirals that turn left or right from a point anywhere on a circle.

    x = (cos θ, sin θ)/(1 + t/2), θ = θ_0 ± t, t from 0 to 4π

    Args:
        seeds: one a series.
        length: values on each.

    Returns:
        Values (n, length, 2) float64, and labels (n,), 1 where it turns left.
    """
    labels = torch.arange(len(seeds)) % 2
    start = 2 * math.pi * noise.uniform(seeds, (1,), stream="data", dtype=torch.float64)
    t = 4 * math.pi * unit_times(length)
    angle = start + (2 * labels[:, None] - 1) * t
    radius = 1 / (1 + t / 2)
    return torch.stack((radius * angle.cos(), radius * angle.sin()), 2), labels

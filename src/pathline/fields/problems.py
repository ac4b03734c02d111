"""Standard problems: data with an exact denoiser, on which solvers are measured and compared."""

from __future__ import annotations

import torch
from torch import Tensor

from pathline.fields.oracles import Mixture
from pathline.paths import GaussianPath


def m4(path: GaussianPath) -> Mixture:
    """Return M4, four overlapping axis-aligned Gaussians in three dimensions, in float64.

    Nothing about it is symmetric and its posterior is smooth at every noise level, so errors of a
    solver show their order at few steps.
    """
    means = [[1.2, 0.3, -0.5], [-0.8, 0.9, 0.4], [0.1, -1.1, 0.8], [-0.4, -0.3, -1.0]]
    stds = [[0.5, 0.4, 0.6], [0.45, 0.6, 0.5], [0.6, 0.5, 0.4], [0.5, 0.5, 0.5]]
    return Mixture(path, _float64(means), _float64(stds), _float64([0.3, 0.3, 0.2, 0.2]))


def _float64(values: list[float] | list[list[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)

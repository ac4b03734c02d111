"""Standard problems: data with an exact denoiser, on which solvers are measured and compared."""

from __future__ import annotations

import torch
from torch import Tensor

from pathline.core import noise
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


def e16(path: GaussianPath, std: float = 0.08) -> Mixture:
    """Return E16, six narrow isotropic Gaussians in sixteen dimensions, in float64.

    The centres are 0.6 N(0, I) less their mean. The components are far apart at little noise and
    one at much: what is hard is to pass from one to another.
    """
    centres = 0.6 * noise.normal(range(6), (16,), stream="probe", index=16, dtype=torch.float64)
    weights = _float64([0.3, 0.2, 0.2, 0.1, 0.1, 0.1])
    stds = torch.full((6, 16), std, dtype=torch.float64)
    return Mixture(path, centres - centres.mean(0), stds, weights)


def _float64(values: list[float] | list[list[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)

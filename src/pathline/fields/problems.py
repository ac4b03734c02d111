"""Standard problems: data with an exact denoiser, on which solvers are measured and compared."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def eight_gaussians(path: GaussianPath, radius: float = 4.0, std: float = 0.3) -> Mixture:
    """Return eight round Gaussians, evenly on a circle, in float64."""
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    means = radius * torch.stack((angle.cos(), angle.sin()), 1)
    weights = torch.full((8,), 1 / 8, dtype=torch.float64)
    return Mixture(path, means, torch.full_like(means, std), weights)


def moons(seeds: Sequence[int], scale: float = 3.0, std: float = 0.2) -> Tensor:
    """Draw two interlocked half circles with noise on them, (batch, 2) float64.

    The circles have radius 1 before they are scaled, and so has the noise its `std`; the whole is
    shifted by −1, as in the usual benchmark (Tong et al. 2023, arXiv:2302.00482).
    """
    u = noise.uniform(seeds, (2,), stream="data", index=1, dtype=torch.float64)
    angle, upper = math.pi * u[:, 0], u[:, 1] < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    z = noise.normal(seeds, (2,), stream="data", dtype=torch.float64)
    return scale * (torch.stack((x, y), 1) + std * z) - 1


def rings(seeds: Sequence[int], radii: Sequence[float] = (1.3, 2.8), std: float = 0.2) -> Tensor:
    """Draw from circles about the origin, all as likely, with noise on them, (batch, 2) float64."""
    u = noise.uniform(seeds, (2,), stream="data", index=1, dtype=torch.float64)
    angle = 2 * math.pi * u[:, 0]
    radius = _float64(list(radii))[(len(radii) * u[:, 1]).long()]
    z = noise.normal(seeds, (2,), stream="data", dtype=torch.float64)
    return radius[:, None] * torch.stack((angle.cos(), angle.sin()), 1) + std * z


def checkerboard(seeds: Sequence[int], side: float = 6.0) -> Tensor:
    """Draw from the eight dark squares of a 4 × 4 board about the origin, (batch, 2) float64."""
    u = noise.uniform(seeds, (3,), stream="data", index=1, dtype=torch.float64)
    square = (8 * u[:, 2]).long()
    row = square // 2
    corner = torch.stack((2 * (square % 2) + row % 2, row), 1)
    return side * ((corner + u[:, :2]) / 4 - 0.5)


def m9(path: GaussianPath) -> Mixture:
    """Return M9, nine equal round Gaussians in the plane, of mean 0 and E ‖x‖² = 2, in float64.

    The centres are the origin, the corners (±2, ±2) and the tips (±4, 0), (0, ±4) of a grid, the
    variance 0.2, all divided by √(16/3 + 0.2).
    """
    corners = [[2.0 * i, 2.0 * j] for i in (-1, 1) for j in (-1, 1)]
    tips = [[4.0, 0.0], [-4.0, 0.0], [0.0, 4.0], [0.0, -4.0]]
    rms = math.sqrt(16 / 3 + 0.2)
    means, stds = _float64([[0.0, 0.0], *corners, *tips]) / rms, 0.2**0.5 / rms
    return Mixture(path, means, torch.full((9, 2), stds).double(), _float64([1 / 9] * 9))


def _float64(values: list[float] | list[list[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)

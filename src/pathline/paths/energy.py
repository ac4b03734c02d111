"""The kinetic energy of a Gaussian path: how far its particles move, squared, for given data.

    KE = ∫ E‖u_t‖²/d dt = ∫ c²α'² + σ'² − c² mmse(s) (α' − α σ'/σ)² dt,   s = c α/σ

with c² the variance of the data per dimension and mmse(s) that of the data scaled to variance 1. An
ODE of little energy is easy to integrate with Runge-Kutta methods; data of n points in d dimensions
with n ≪ √d leave nothing to gain over the straight path.

Paper: Shaul et al. 2023 (arXiv:2306.06626).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.paths.path import GaussianPath, Time, as_time
from pathline.paths.separation import Mmse, Separation

_LEVELS = 40
_PARTS = 8


def power(
    path: GaussianPath, separation: Separation | Mmse, t: Time, *, scale: float = 1.0
) -> Tensor:
    """Return E‖u_t‖²/d, the integrand of the kinetic energy, in the shape of t.

    In polar form, ρ'² + κ² ρ² ψ'², where nothing cancels.

    Args:
        path: any path of Gaussian noise.
        separation: of the data, or their mmse(s) per dimension, at variance 1.
        t: times inside (0, 1).
        scale: c, the standard deviation of the data.

    Raises:
        UsageError: the path's noise is not Gaussian.
    """
    if not path.kernel.is_gaussian:
        raise UsageError(
            f"this is the energy of a path with Gaussian noise, and this one's has "
            f"D={path.kernel.dof:g}; take path.gaussian."
        )
    mmse = separation.error if isinstance(separation, Separation) else separation
    t = as_time(t).double()
    alpha, d_alpha = scale * path.alpha(t), scale * path.d_alpha(t)
    sigma, d_sigma = path.sigma(t), path.d_sigma(t)
    s, squared = alpha / sigma, alpha**2 + sigma**2
    kappa_squared = (1 - mmse(s) * (1 + s**2)).clamp(0, 1)
    outwards = (alpha * d_alpha + sigma * d_sigma) ** 2
    around = (alpha * d_sigma - sigma * d_alpha) ** 2
    return (outwards + kappa_squared * around) / squared


def energy(path: GaussianPath, separation: Separation | Mmse, *, scale: float = 1.0) -> float:
    """Return the kinetic energy per dimension over the whole way, t from 0 to 1.

    It is infinite where noise grows as √t (VP-linear, VP-cosine with its offset) and the data are
    single points.

    Args:
        path: any path of Gaussian noise.
        separation: of the data, or their mmse(s) per dimension, at variance 1.
        scale: c, the standard deviation of the data.

    Raises:
        UsageError: the scale is not positive, or the path's noise not Gaussian.

    Example: the straight path on isotropic Gaussian data, 2 − π/2.
        >>> from pathline.paths import CondOT
        >>> round(energy(CondOT(), lambda s: 1 / (1 + s**2)), 6)
        0.429204
    """
    if not 0 < scale < math.inf:
        raise UsageError(f"the scale of the data must be positive, and is {scale}.")
    t, weights = _quadrature()
    parts = (power(path, separation, t, scale=scale) * weights).sum(1).reshape(-1, _PARTS).sum(1)
    total = float(parts.sum())
    for last, before in ((0, 1), (-1, -2)):
        if parts[last] > 0.98 * parts[before] and parts[last] > 1e-9 * total:
            return math.inf  # every halving of the way to the end adds as much as the one before
    return total


def _quadrature() -> tuple[Tensor, Tensor]:
    """Return nodes and weights on [0, 1], (intervals, nodes), halved again and again to both ends.

    The outermost pieces, of 2⁻⁴⁰, are left out.
    """
    half = 0.5 ** torch.arange(_LEVELS, 0, -1, dtype=torch.float64)
    edges = torch.cat((half, 1 - half[:-1].flip(0)))
    fine = torch.arange(_PARTS, dtype=torch.float64) / _PARTS
    inner = (edges[:-1, None] + edges.diff()[:, None] * fine).flatten()
    edges = torch.cat((inner, edges[-1:]))
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(8))
    half_width = edges.diff()[:, None] / 2
    return edges[:-1, None] + half_width * (1 + nodes), half_width * weights

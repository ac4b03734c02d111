"""The φ-functions of exponential integrators, and weights that estimate derivatives.

    φ_0(z) = e^z,   φ_{k+1}(z) = (φ_k(z) − 1/k!)/z,   φ_k(0) = 1/k!

The recursion cancels for small |z|, so there the series is used. All in Python floats (float64).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

import numpy as np
import torch
from torch import Tensor

from pathline.solvers.levels import steady

_SERIES_BELOW = 1.0
_TERMS = 24


@overload
def phi(k: int, z: float) -> float: ...


@overload
def phi(k: int, z: Tensor) -> Tensor: ...


def phi(k: int, z: float | Tensor) -> float | Tensor:
    """Return φ_k(z), to about 1e-15 relative, of a number or of one a sample, (batch,).

    >>> abs(phi(1, 1e-9) - 1) < 1e-8
    True
    """
    if isinstance(z, Tensor):
        near, far = z.abs() < _SERIES_BELOW, _recursion(k, torch.where(z == 0, 1.0, z))
        return torch.where(near, _series(k, z), far)
    if k == 0:
        return math.exp(z)
    if abs(z) < _SERIES_BELOW:
        return sum(z**j / math.factorial(j + k) for j in range(_TERMS))
    if k == 1:
        return math.expm1(z) / z
    return (phi(k - 1, z) - 1 / math.factorial(k - 1)) / z


def _series(k: int, z: Tensor) -> Tensor:
    total = torch.zeros_like(z)
    for j in reversed(range(_TERMS)):
        total = total * z + 1 / math.factorial(j + k)
    return total


def _recursion(k: int, z: Tensor) -> Tensor:
    if k == 0:
        return steady(torch.exp, z)
    if k == 1:
        return steady(torch.expm1, z) / z
    return (_recursion(k - 1, z) - 1 / math.factorial(k - 1)) / z


def derivative_weights(offsets: Sequence[float], k: int) -> list[float]:
    """Return a with F^(k)(0) ≈ Σ a_i (F(δ_i) − F(0)), exact for polynomials up to the count of δ.

    Args:
        offsets: δ_1 … δ_m, distinct and not zero, m ≥ k.
        k: which derivative, at least 1.
    """
    powers = range(1, len(offsets) + 1)
    system = np.array([[delta**q / math.factorial(q) for delta in offsets] for q in powers])
    wanted = np.array([float(q == k) for q in powers])
    return np.linalg.solve(system, wanted).tolist()

"""Extrapolation in time: of evaluations by Lagrange's polynomial, of states by their slopes.

    G(t) = Σ_a G(t_a) Π_{b≠a} (t − t_b)/(t_a − t_b)                      error O(h^m) with m nodes

    x̂_{i+1} = x_i + A (x_i − x_{i−1}) + B (x_{i−1} − x_{i−2}),   A = ℓ_0 − 1,  B = −ℓ_2

where ℓ are Lagrange's weights of three states at t_{i+1} (A = 2, B = −1 on even steps), the first
difference is Adams-Moulton's rule of order three and the second one the trapezoid: slopes alone
make x̂. On even steps x̂ = x_i − Δ (5/6 y_i + 5/6 y_{i−1} − 2/3 y_{i−2}); written for any steps, both
rules stay exact where y is linear, so that x − x̂ is of third order.

Paper: Jiang et al. 2025 (SADA, arXiv:2507.17135); the weights of uneven steps are ours. Its public
code has A = 3/2, B = −1/2, the mean of the above and of a plain secant: an x̂ of second order.
"""

from __future__ import annotations

import torch
from torch import Tensor

Weights = tuple[float, float, float]


def lagrange_weights(nodes: Tensor, t: float) -> Tensor:
    """Return the weights of values at `nodes` in the polynomial through them, at time t.

    Args:
        nodes: (m, ...) float64, distinct along the first axis.
        t: where the polynomial is wanted.

    Returns:
        (m, ...) float64; they sum to one, and are 0 and 1 where t is a node.
    """
    weights: list[Tensor] = []
    for a, node in enumerate(nodes):
        weight = torch.ones_like(node)
        for b, other in enumerate(nodes):
            if b != a:
                weight = weight * (t - other) / (node - other)
        weights.append(weight)
    return torch.stack(weights)


def slope_weights(times: tuple[float, float, float, float], damped: bool = False) -> Weights:
    """Return (w_0, w_1, w_2) of x̂_{i+1} = x_i − Σ w_j y_{i−j}, steps included.

    Args:
        times: t_{i+1}, t_i, t_{i−1}, t_{i−2}; the last three distinct.
        damped: the public code's A and B.
    """
    h0, h1, h2 = (later - earlier for earlier, later in zip(times, times[1:], strict=False))
    both = h1 + h2
    a = (h0 + h1) * (h0 + both) / (h1 * both) - 1
    b = -h0 * (h0 + h1) / (both * h2)
    if damped:
        a, b = (a + h0 / h1) / 2, b / 2
    now, oldest = h1 * (3 * both - h1) / (6 * both), -(h1**3) / (6 * both * h2)
    return a * now, a * (h1 - now - oldest) + b * h2 / 2, a * oldest + b * h2 / 2


def curvature_weights(times: tuple[float, float, float]) -> Weights:
    """Return the weights of Δ²y, the second difference at t_i, t_{i−1}, t_{i−2}.

    It is y_i − 2 y_{i−1} + y_{i−2} on even steps, and on others h_1 h_2 times the second derivative
    of the parabola.
    """
    h1, h2 = times[1] - times[0], times[2] - times[1]
    both = h1 + h2
    return 2 * h2 / both, -2.0, 2 * h1 / both

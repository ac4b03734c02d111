"""Steadier targets: what a reference batch says of the data behind a noised state.

    x̂_0 = Σ_j w_j y_j,   w_j ∝ p_ε((x_t − α_t y_j)/σ_t),   y_0 the datum itself, y_j others

A regression learns E[x_0 | x_t] from draws of x_0, which vary most where many data could be behind
a state. The weighted mean over n data varies less, has the same mean as n → ∞, and moves neither
the states nor what any view's target is: x_0 and ε are replaced by x̂_0 and (x_t − α_t x̂_0)/σ_t.

Paper: Xu et al. 2023 (arXiv:2302.00670), for the noise of any D as in PFGM++ (arXiv:2302.04265).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.learn.exercise import Exercise
from pathline.paths import GaussianPath, bshape

__all__ = ["check_reference", "steadied"]


def check_reference(objective: Mapping[str, Any], is_plain: bool) -> int:
    """Return how many data an objective's targets are means of; 0 for its own datum alone.

    Args:
        objective: a recipe's table.
        is_plain: whether the flow goes from noise, with independent pairs and no bridge noise.

    Raises:
        UsageError: it is no count, or the targets cannot be had so.
    """
    n = objective.get("reference", 0)
    if not isinstance(n, int) or n < 0:
        raise UsageError(f"reference = {n!r}: targets are means of a whole number of data.")
    if n and not is_plain:
        raise UsageError(
            "reference needs noise at the start, independent pairs and no bridge noise: of other "
            "pairs nobody knows how likely they are."
        )
    return n


def steadied(drawn: Exercise, path: GaussianPath, others: Tensor) -> Exercise:
    """Return an exercise with the same states and steadier targets.

    Args:
        drawn: what was drawn for a batch.
        path: how its data became noise.
        others: more data, (n, *state).

    Raises:
        UsageError: the network is told a condition, under which other data are others.

    Cost: a softmax over n + 1 data a sample.
    """
    if drawn.cond:
        raise UsageError(
            f"reference needs data without a condition, and these are told "
            f"{', '.join(sorted(drawn.cond))}."
        )
    x0, eps, t = drawn.x0.double(), drawn.x1.double(), drawn.t.double()
    alpha, sigma = bshape(path.alpha(t), x0), bshape(path.sigma(t), x0)
    x, flat = alpha * x0 + sigma * eps, others.double().flatten(1)
    a, s = alpha.view(-1, 1), sigma.view(-1, 1)
    cross = x.flatten(1) @ flat.T
    away = x.flatten(1).square().sum(1, keepdim=True) - 2 * a * cross
    away = ((away + a**2 * flat.square().sum(1)) / s**2).clamp(min=0)
    own = eps.flatten(1).square().sum(1, keepdim=True)
    weights = path.kernel.log_shape(torch.cat((own, away), 1), flat.shape[1]).softmax(1)
    mean = (weights[:, :1] * x0.flatten(1) + weights[:, 1:] @ flat).view_as(x0)
    noise = (x - alpha * mean) / sigma
    return replace(drawn, x0=mean.to(drawn.x0), x1=noise.to(drawn.x1))

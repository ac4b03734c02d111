"""Between two data: along the great circle between their codes.

    z(s) = (sin (1 − s)θ · z_x + sin sθ · z_y)/sin θ,   θ the angle between the codes

A code is where the probability flow carries data at the noise end. Noise of many dimensions lies
near a sphere, which a straight line would leave: halfway it is shorter by √2.

Papers: Song et al. 2021 (arXiv:2011.13456), Sec. 4.3 and App. D.2; Shoemake 1985 (the formula).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields import Field
from pathline.paths import bshape
from pathline.solvers import Grid, Solver, solve
from pathline.solvers.adaptive_rk import AdaptiveRK
from pathline.solvers.solve import as_grid, as_solver

__all__ = ["interpolate", "slerp"]

PARALLEL = 1e-6
"""Below this sine of the angle the circle is a line, or not unique."""


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Return the point at a share of the way from a to b along the great circle of each sample.

    Args:
        a, b: (batch, *state); their lengths, where they differ, are passed from one to the other.
        share: 0 is a, 1 is b.

    Raises:
        UsageError: the shapes differ, or a sample and its partner are opposite to each other.
    """
    if a.shape != b.shape:
        raise UsageError(f"the shapes {tuple(a.shape)} and {tuple(b.shape)} differ.")
    u, v = (z.flatten(1).double() for z in (a, b))
    cosine = torch.cosine_similarity(u, v, dim=1).clamp(-1, 1)
    sine = (1 - cosine.square()).sqrt()
    is_line = sine < PARALLEL
    if bool((is_line & (cosine < 0)).any()):
        raise UsageError("two opposite states have no shortest way between them.")
    angle, sine = cosine.acos(), sine.masked_fill(is_line, 1.0)
    w_a = torch.where(is_line, 1 - share, torch.sin((1 - share) * angle) / sine)
    w_b = torch.where(is_line, share, torch.sin(share * angle) / sine)
    return (bshape(w_a, a) * a.double() + bshape(w_b, b) * b.double()).to(a.dtype)


def interpolate(  # noqa: PLR0913 - keyword-only: each is one idea of the house
    model: Field,
    x: Tensor,
    y: Tensor,
    n: int = 8,
    *,
    solver: Solver | str | None = None,
    grid: Grid | str | Sequence[float] | None = None,
    steps: int | None = None,
    temperature: float = 1.0,
    **how: Any,
) -> Tensor:
    """Return data between x and y: both ends as the flow returns them, and what lies between.

    Args:
        model: a denoiser.
        x, y: data, (batch, *state).
        n: how many, both ends included; at least 2.
        solver: deterministic; Dormand-Prince at its tolerance if None.
        grid, steps: as for `solve`, of generation; an adaptive solver goes from t_max to t_min.
        temperature: what codes are multiplied with; below 1 they move to the middle of the noise,
            and what becomes of them is more typical and less varied.
        how: what else `solve` takes: guide, and the condition.

    Returns:
        (n, batch, *state).

    Raises:
        UsageError: n below 2, shapes that differ, a solver that draws noise, a temperature that is
            not finite and above 0.

    Cost: n + 2 solves.
    """
    if n < 2:
        raise UsageError(f"n={n}: at least both ends are needed, 2.")
    if not 0 < temperature < math.inf:
        raise UsageError(f"a temperature is finite and above 0, and is {temperature}.")
    if x.shape != y.shape:
        raise UsageError(f"the shapes {tuple(x.shape)} and {tuple(y.shape)} differ.")
    if model.path is None:
        raise UsageError("data have codes under a model on a path only.")
    rule = AdaptiveRK() if solver is None else as_solver(solver)
    if rule.is_stochastic:
        raise UsageError("codes need a deterministic solver, and this one draws noise.")
    ends = (model.path.t_max, model.path.t_min) if rule.is_adaptive and grid is None else grid
    out = as_grid(ends, steps)
    back = out.reverse(model.path)
    a, b = (solve(model, each, solver=rule, grid=back, **how).x for each in (x, y))
    between = (temperature * slerp(a, b, k / (n - 1)) for k in range(n))
    return torch.stack([solve(model, z, solver=rule, grid=out, **how).x for z in between])

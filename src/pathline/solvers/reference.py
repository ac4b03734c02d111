"""References: what a solver is measured against where no closed form is at hand.

`reference` converges the probability flow; `moments` carries a Gaussian law through a plan, noise
included, without drawing anything.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import PathlineError, UsageError
from pathline.fields import Field
from pathline.solvers.grids import Grid, LogSNR
from pathline.solvers.plan import Plan, Terms
from pathline.solvers.runge_kutta import RK4
from pathline.solvers.solve import solve

DOUBLINGS = 7
"""How often `reference` doubles its steps before it gives up: from 320 to 40 960."""


def reference(
    field: Field,
    x: Tensor,
    *,
    grid: Grid = LogSNR(320),  # noqa: B008 - a frozen value
    tolerance: float = 1e-11,
    **cond: Any,
) -> Tensor:
    """Return where the field carries x, in float64: RK4, its steps doubled until it has converged.

    Converged means that the largest error, as Richardson estimates it from the last two results,
    |x_2n − x_n|/15, is at most `tolerance`.

    Args:
        field: smooth in x and t along the way; a guided one is as good as any.
        x: (batch, *state).
        grid: the way, and the number of steps to begin with.
        tolerance: of the estimated error, absolute, over all samples and coordinates.
        cond: the condition, in the user's words.

    Raises:
        PathlineError: not converged after `DOUBLINGS` doublings; the field is rough or stiff.

    Cost: about eight evaluations for each of the final steps.
    """
    x, estimate = x.double(), float("inf")
    before = solve(field, x, solver=RK4(), grid=grid, **cond).x
    for doubling in range(1, DOUBLINGS + 1):
        finer = grid.resized(grid.n * 2**doubling)
        after = solve(field, x, solver=RK4(), grid=finer, **cond).x
        estimate = float((after - before).abs().max()) / 15
        if estimate <= tolerance:
            return after
        before = after
    raise PathlineError(
        f"the reference has not converged: its error is still about {estimate:.2g} after "
        f"{grid.n * 2**DOUBLINGS} steps; raise tolerance={tolerance:g}, or start from a finer grid."
    )


def moments(plan: Plan, field: Field, mean: float, variance: float) -> tuple[float, float]:
    """Return mean and variance of what a plan makes of N(mean, variance), noise included, exactly.

    The field must be affine in its one-dimensional state, as that of Gaussian data is. Then every
    state is a constant plus independent standard normals (the start's and each draw's); a row
    combines their coefficients, and nothing needs to be drawn.

    Args:
        plan: any plan from one state, deterministic or not.
        field: F(x, t) = offset_t + gain_t x.
        mean: of the state at the start.
        variance: of it.

    Raises:
        UsageError: the plan starts from several states, or has coefficients for each element.

    Example:
        >>> from pathline.fields import Gaussian
        >>> from pathline.paths import CondOT
        >>> law = Gaussian(CondOT(), torch.tensor([2.0]), torch.tensor([0.25]))
        >>> m, v = moments(RK4().plan(law.path, LogSNR(40)), law, 0.0, 1.0)
        >>> abs(m - 2) < 0.01, abs(v - 0.25) < 0.01
        (True, True)
    """
    if len(plan.start) != 1:
        raise UsageError(f"moments needs a plan from one state; this has {len(plan.start)}.")
    if plan.batch is not None:
        raise UsageError("moments needs a plan for any sample; this one is for a batch.")
    plan = plan.folded(field.view)
    affine = _affine(plan, field)
    n_draws = 1 + max((d for row in plan.rows for d in row.z), default=-1)
    basis = torch.eye(2 + n_draws, dtype=torch.float64)  # 1, the start's normal, each draw's
    states = [mean * basis[0] + variance**0.5 * basis[1]]
    for row in plan.rows:
        new = basis[0] * dict(_scalars({0: row.constant}))[0]
        for j, a in _scalars(row.x):
            new += a * states[j]
        for k, b in _scalars(row.f):
            offset, gain = affine[k]
            new += b * (offset * basis[0] + gain * states[k])
        for d, c in _scalars(row.z):
            new += c * basis[2 + d]
        states.append(new)
    return float(states[-1][0]), float(states[-1][1:].square().sum())


def _affine(plan: Plan, field: Field) -> dict[int, tuple[float, float]]:
    """Return offset and gain of the field at every state that is evaluated."""
    zero_one = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    times = plan.instants
    found = {k: field(zero_one, times[k]).raw.flatten().tolist() for k in plan.evaluated}
    return {k: (at_zero, at_one - at_zero) for k, (at_zero, at_one) in found.items()}


def _scalars(terms: Terms) -> list[tuple[int, float]]:
    if any(isinstance(c, Tensor) for c in terms.values()):
        raise UsageError("moments needs a plan with scalar coefficients, and this has tensors.")
    return [(k, float(c)) for k, c in terms.items()]

"""Measuring the order of convergence of a plan against a known solution."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.fields import Field, Gaussian, VectorField
from pathline.solvers.execute import run
from pathline.solvers.grids import Grid, grids
from pathline.solvers.solver import solvers

if TYPE_CHECKING:
    from pathline.solvers.plan import Plan

STEPS = (40, 80, 160)
"""The step counts between which the slope is fitted."""


def fitted_slope(steps: tuple[int, ...], errors: list[float]) -> float:
    """Return minus the slope of log error against log steps, by least squares."""
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def measured_order(plan: Plan) -> float:
    """Return the fitted order of the solver of `plan`; see `Plan.order`."""
    if plan.is_stochastic:
        raise UsageError("a stochastic plan has a weak order, which needs many samples to measure.")
    if "solver" not in plan.recipe:
        raise UsageError("the plan was not compiled by a solver, so it cannot be refined.")
    solver = solvers.rebuild(plan.recipe["solver"])
    grid = grids.rebuild({**plan.recipe["grid"], "last": "stop"})
    errors = []
    for n in STEPS:
        fine = grid.resized(n)
        field, x, exact = _problem(plan, fine)
        error = run(solver.plan(plan.path, fine).folded(field.view), field, x) - exact
        errors.append(float(error.square().mean().sqrt()))
    return fitted_slope(STEPS, errors)


def _problem(plan: Plan, grid: Grid) -> tuple[Field, Tensor, Tensor]:
    """Return a field, start states and exact end states: Gaussian data, or dx/dt = −x² cos t."""
    times = grid.times(plan.path)
    x = noise.normal(range(16), (3,), dtype=torch.float64)
    if plan.path is None:
        x = 2 + 0.1 * x
        field = VectorField(lambda x, t: -(x**2) * torch.cos(t))
        return field, x, 1 / (1 / x + np.sin(times[-1]) - np.sin(times[0]))
    mean = torch.tensor([0.7, -0.4, 1.5], dtype=torch.float64)
    variances = torch.tensor([0.09, 1.0, 4.0], dtype=torch.float64)
    gaussian = Gaussian(plan.path, mean, variances)
    x = x * plan.path.sigma(times[0])
    return gaussian, x, gaussian.flow(x, times[0], times[-1])

"""Measuring the order of convergence of a plan against a known solution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.fields import Field, VectorField
from pathline.fields.problems import m4
from pathline.paths import GaussianPath
from pathline.solvers.execute import run
from pathline.solvers.grids import LogSNR, grids
from pathline.solvers.reference import reference
from pathline.solvers.solver import solvers

if TYPE_CHECKING:
    from pathline.solvers.plan import Plan

STEPS = (80, 160, 320)
"""The step counts between which the slope is fitted."""


def fitted_slope(steps: Sequence[float], errors: Sequence[float]) -> float:
    """Return minus the slope of log error against log steps, by least squares."""
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def measured_order(plan: Plan) -> float:
    """Return the fitted order of the solver of `plan`; see `Plan.order`."""
    if plan.is_stochastic:
        raise UsageError("a stochastic plan has a weak order, which needs many samples to measure.")
    if plan.batch is not None:
        raise UsageError(
            "the plan was not compiled on one grid but on one for each sample; refine one of them."
        )
    if "solver" not in plan.recipe:
        raise UsageError(
            "the plan does not say what compiled it, so it cannot be refined: its solver or its "
            'grid is not registered (@solvers.register("name")), or its rows were changed since.'
        )
    solver = solvers.rebuild(plan.recipe["solver"]).standard(plan.path)
    grid = grids.rebuild({**plan.recipe["grid"], "last": "stop"})
    errors = []
    for n in STEPS:
        fine = grid.resized(n)
        finer = solver.plan(plan.path, fine)
        field, x, exact = _problem(finer)
        error = run(finer.folded(field.view), field, x) - exact
        errors.append(float(error.square().mean().sqrt()))
    return fitted_slope(STEPS, errors)


def _problem(plan: Plan) -> tuple[Field, Tensor, Tensor]:
    """Return a field, start states and where they end: M4 on a path, or dx/dt = −x² cos t."""
    times = plan.grid
    if plan.path is not None:  # the law of the noise is nothing to a plan of the flow
        path = plan.path.gaussian
        x, end = _mixture(path, times[0], times[-1])
        return m4(path), x, end
    x = 2 + 0.1 * noise.normal(range(16), (3,), dtype=torch.float64)
    field = VectorField(lambda x, t: -(x**2) * torch.cos(t))
    return field, x, 1 / (1 / x + math.sin(times[-1]) - math.sin(times[0]))


@lru_cache(maxsize=16)
def _mixture(path: GaussianPath, start: float, end: float) -> tuple[Tensor, Tensor]:
    """Return start states and their converged ends (Gaussian data would flatter some methods)."""
    x = noise.normal(range(16), (3,), dtype=torch.float64) * path.sigma(start)
    return x, reference(m4(path), x, grid=LogSNR(320, start, end), tolerance=1e-10)

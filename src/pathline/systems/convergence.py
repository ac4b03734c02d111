"""Convergence: the errors of several methods on one field, at ever more steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields import Field
from pathline.solvers import Grid, Plan, Solver, grids, solve
from pathline.solvers.order import fitted_slope
from pathline.solvers.reference import reference
from pathline.solvers.solve import start
from pathline.systems.system import Plot

Method = Solver | Callable[[Grid], Plan]
"""A solver, or what compiles a plan for a grid."""


@dataclass(frozen=True)
class Convergence:
    """Errors at the end of the flow, from the same starts, against the converged flow, in float64.

    Computed when first asked for, and once.

    Args:
        field: a denoiser that is exact, or a model taken for one.
        methods: by the name under which they are drawn.
        shape: of one sample.
        n: starts, with seeds 0 … n − 1.
        steps: rising; orders are fitted to the last three.
        grid: its kind and its ends; the number of steps is replaced.
    """

    field: Field
    methods: Mapping[str, Method]
    shape: tuple[int, ...] = (3,)
    n: int = 16
    steps: tuple[int, ...] = (10, 20, 40, 80, 160, 320)
    grid: Grid = grids.log_snr(320)

    @cached_property
    def x(self) -> Tensor:
        """The starts."""
        path = self.field.path
        if path is None:
            raise UsageError("convergence is measured on a path; this field has none.")
        first = self.grid.times(path)[0]
        return start(path, first, range(self.n), self.shape, torch.float64)

    @cached_property
    def exact(self) -> Tensor:
        """Where the flow takes the starts."""
        return reference(self.field, self.x, grid=self.grid)

    @cached_property
    def errors(self) -> Mapping[str, Mapping[int, float]]:
        """Method → evaluations → root mean square error."""
        return {
            name: dict(self._error(method, n) for n in self.steps)
            for name, method in self.methods.items()
        }

    def _error(self, method: Method, n: int) -> tuple[int, float]:
        """Return what n steps cost, and their error."""
        grid = self.grid.resized(n)
        plan = method.plan(self.field.path, grid) if isinstance(method, Solver) else method(grid)
        solution = solve(self.field, self.x, solver=plan)
        return solution.stats.nfe, float((solution.x - self.exact).square().mean().sqrt())

    def order(self, method: str) -> float:
        """Return the order of convergence: minus the slope of log error against log steps."""
        return fitted_slope(self.steps[-3:], list(self.errors[method].values())[-3:])

    def ratio(self, method: str, other: str, nfe: int) -> float:
        """Return the method's error over the other's, at the same evaluations."""
        return self.errors[method][nfe] / self.errors[other][nfe]

    def plot(self, title: str) -> Plot:
        """Return error against evaluations."""
        curves = {name: tuple(errors.items()) for name, errors in self.errors.items()}
        return Plot(title, "evaluations", "root mean square error", curves)

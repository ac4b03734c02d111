"""Rosenbrock methods: for stiff fields, one linear system a stage and no iteration.

The Jacobian of each sample is taken by differentiation, all samples at once (they do not depend on
each other), or asked of the field where it has one of its own (`VectorField.jacobian`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pathline.core.errors import UsageError, unknown
from pathline.fields.views import View
from pathline.solvers.adaptive import Adaptive, Control
from pathline.solvers.pace import Numbers, Reach
from pathline.solvers.rosenbrock_tables import METHODS, Rosenbrock
from pathline.solvers.slope import Slope
from pathline.solvers.solver import solvers
from pathline.solvers.stepped import Course
from pathline.solvers.trial import Stepper, Trial, lifted, opening, rms

WIDEST = 4096
"""States with more numbers than this have no Jacobian that anybody wants to store."""


@solvers.register(
    "rodas5p",
    aliases=("rosenbrock", "stiff"),
    paper="Steinebach 2023",
    variants={"rodas4": ({"method": "rodas4"}, ())},
)
@dataclass(frozen=True)
class Rodas(Adaptive):
    """Rodas5P 5(4), or Rodas4 4(3): stiff differential equations, to a tolerance.

    Choose it where dopri5 takes many more steps than the solution has features; its step is as long
    as the solution is smooth, whatever the eigenvalues of the Jacobian.

    Args:
        method: "rodas5p" or "rodas4".
        rtol, atol, first, max_steps, control, jumps: as for every adaptive solver.

    Cost: a step is 9 (7) evaluations, and for a state of d numbers d + 1 forward derivatives and a
    factorisation of a (d, d) matrix.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    control: Control = Control()
    method: str = "rodas5p"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise unknown("Rosenbrock method", self.method, METHODS)

    @property
    def table(self) -> Rosenbrock:
        """The coefficients."""
        return METHODS[self.method]

    @property
    def order(self) -> int:
        return self.table.order

    @property
    def view(self) -> View:
        return "velocity"

    @property
    def nfe_per_step(self) -> int:
        return len(self.table.c) + 1  # the Jacobian takes one

    @property
    def error_order(self) -> int:
        return self.table.low_order + 1

    def stepper(self, course: Course, slope: Slope) -> Stepper:
        return Stiff(self.table, slope, self.rtol, self.atol)


class Stiff(Stepper):
    """A Rosenbrock method, bound to one solve."""

    def __init__(self, table: Rosenbrock, slope: Slope, rtol: float, atol: float) -> None:
        super().__init__(slope, rtol, atol)
        self._table = table
        self.evaluations = len(table.c)  # the first stage's is known, and the Jacobian takes one

    def attempt(self, x: Tensor, first: Tensor, reach: Reach) -> Trial:
        table = self._table
        clocks = [reach.start + c * reach.size for c in table.c]
        size = np.where(reach.size == 0, 1.0, reach.size)
        h, waits = lifted(size * self.slope.way, x), lifted(reach.size == 0, x).bool()
        (t,) = self.slope.times(reach.start[None], x)
        jacobian, drift = derivatives(self.slope, x, t, self.graph)
        for part, value in (("Jacobian", jacobian), ("derivative in time", drift)):
            self.slope.look(f"the field's {part}", value, t)
        solve = _Solved(jacobian, h, table.gamma)
        parts: list[Tensor] = []
        argument = x
        for i, row in enumerate(table.a):
            argument = _sum(x, row, parts)
            f = first
            if i:
                (t,) = self.slope.times(clocks[i][None], x)
                f = self.slope(argument, t)
            right = _sum(f + h * table.d[i] * drift, [w / h for w in table.stiff[i]], parts)
            parts.append(torch.where(waits, 0.0, solve(right)))
        end = argument + parts[-1]
        error = rms(parts[-1] / self.unit(x, end))
        return Trial(end, error, None, parts)

    def opening(self, x: Tensor, first: Tensor, reach: Reach) -> Numbers:
        return opening(self, x, first, reach, self._table.order)

    def between(
        self, theta: Tensor, x: Tensor, x1: Tensor, trial: Trial, rows: Tensor, reach: Reach
    ) -> Tensor:
        del reach
        start, end = x[rows], x1[rows]
        theta = theta.to(x).view(-1, *[1] * (x.ndim - 1))
        bent = torch.zeros_like(start)
        for weights in reversed(self._table.inside):
            inner = _sum(torch.zeros_like(start), weights, [u[rows] for u in trial.stages])
            bent = inner + theta * bent
        return (1 - theta) * start + theta * (end + (1 - theta) * bent)


class _Solved:
    """Solutions of (1/(hγ) − J) U = r, one factorisation a step."""

    def __init__(self, jacobian: Tensor, h: Tensor, gamma: float) -> None:
        d = jacobian.shape[-1]
        unit = torch.eye(d, dtype=jacobian.dtype, device=jacobian.device)
        matrix = unit / (gamma * h.view(-1, 1, 1)) - jacobian
        self._lu, self._pivots, _ = torch.linalg.lu_factor_ex(matrix)

    def __call__(self, right: Tensor) -> Tensor:
        flat = right.flatten(1)[..., None]
        return torch.linalg.lu_solve(self._lu, self._pivots, flat).view(right.shape)


def _sum(x: Tensor, weights: list[Tensor] | tuple[float, ...], parts: list[Tensor]) -> Tensor:
    for w, part in zip(weights, parts, strict=False):
        if not isinstance(w, float) or w:
            x = x + w * part
    return x


def derivatives(slope: Slope, x: Tensor, t: Tensor, graph: bool) -> tuple[Tensor, Tensor]:
    """Return ∂f/∂x of each sample, (n, d, d), and ∂f/∂t, like x.

    A row of all samples' matrices is one backward pass, for they do not depend on each other.

    Args:
        slope: f.
        x: (n, *state).
        t: as the slope takes it.
        graph: whether the derivatives shall have one.

    Raises:
        UsageError: the state is too wide for a matrix.
    """
    n, d = len(x), x[0].numel()
    if d > WIDEST:
        raise UsageError(
            f"a state of {d} numbers has a Jacobian of {d} × {d}: stiff solvers take {WIDEST} at "
            "most; use dopri5 or tsit5."
        )
    own = slope.jacobian(x, t)
    if own is not None:
        drift = torch.func.jvp(lambda s: slope(x, s), (t,), (torch.ones_like(t),))[1]
        return own.reshape(n, d, d), drift
    with torch.enable_grad():
        point = x if graph and x.requires_grad else x.detach().requires_grad_()
        time = t.detach().requires_grad_()
        f = slope(point, time).flatten(1)
        found = [_row(f, i, (point, time), graph) for i in range(d)]
    rows = [x.new_zeros(n, d) if row is None else row.reshape(n, d) for row, _ in found]
    drifts = [x.new_zeros(n) if late is None else late.reshape(n).to(x) for _, late in found]
    return torch.stack(rows, 1), torch.stack(drifts, 1).reshape(x.shape)


def _row(
    f: Tensor, i: int, point: tuple[Tensor, Tensor], graph: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the derivatives of one number of each sample."""
    if not f.requires_grad:
        return None, None
    made = torch.autograd.grad(
        f[:, i].sum(), point, retain_graph=True, create_graph=graph, allow_unused=True
    )
    return made[0], made[1]

"""The solver's own estimates in the loss, of all steps: ERNODE and SRNODE.

    R_E = mean_j E_j |h_j|,   R_S = max_j S_j / S*

over the steps that were taken, where E_j is the error in units of the tolerance and S_j the
stiffness, and everything is differentiated but the lengths h_j. This is no function of the
solution, but of the steps: no continuous adjoint has it.

Paper: Pal et al. 2021 (arXiv:2105.03918).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pathline.core.errors import UsageError, unknown
from pathline.learn.solve_costs.cost import (
    AnyField,
    Costed,
    Estimate,
    SolveCost,
    check_estimate,
    combined,
    embedded,
)
from pathline.solvers import solve
from pathline.solvers.solver import Solver
from pathline.solvers.watching import StepRecord

Over = Literal["mean", "sum", "max"]


@dataclass(frozen=True)
class Heuristics(SolveCost):
    """The cost of all steps of a solve.

    Args:
        kind: "error", "stiffness", or "both".
        over: what is made of the steps of a sample, "mean", "sum" or "max"; None is the mean, and
            the largest stiffness where it stands alone.

    With `AdaptiveRK(norms="batch")` the batch takes one step and has one error, as in the paper;
    else each sample has its own, and the cost is their mean.

    Raises:
        UsageError: an estimate that nobody knows; an adjoint that cannot tell it.

    Cost: none beside the memory of a direct adjoint: all stages of all steps.
    """

    kind: Estimate = "error"
    over: Over | None = None

    def __post_init__(self) -> None:
        check_estimate(self.kind)
        if self.over is not None and self.over not in get_args(Over):
            raise unknown("way to put steps together", self.over, get_args(Over))

    def solve(
        self,
        field: AnyField,
        x: Tensor,
        *,
        solver: Solver | str,
        grid: Sequence[float],
        seed: int = 0,
        **how: Any,
    ) -> Costed:
        del seed
        adjoint = how.pop("adjoint", None)
        if adjoint not in (None, "direct"):
            raise UsageError(
                f"the estimates of all steps are differentiated through the steps: adjoint="
                f"'direct', and not {adjoint!r}. `Local` takes one step, and any adjoint."
            )
        made = embedded(solver, self.kind, x)
        steps = _Steps(self.kind, made.shares, len(x))
        sol = solve(field, x, solver=made, grid=grid, adjoint="direct", on_step=steps, **how)
        over = self.over or ("max" if self.kind == "stiffness" else "mean")
        return Costed(sol, steps.total(over, x))


class _Steps:
    """What the steps of a solve cost, as they are taken."""

    def __init__(self, kind: str, shares: bool, batch: int) -> None:
        self._kind, self._shares, self._batch = kind, shares, batch
        self._rows: list[Tensor] = []
        self._costs: list[Tensor] = []

    def __call__(self, record: StepRecord) -> None:
        taken = record.accepted.nonzero()[:, 0]
        if not len(taken):
            return
        error, stiff, h = record.error[taken], record.stiffness, record.h[taken].to(record.error)
        stiff = None if stiff is None else stiff[taken]
        if self._shares:
            error = error.square().mean().sqrt().expand_as(h)
        self._rows.append(record.rows[taken])
        self._costs.append(combined(self._kind, error * h.abs(), stiff))

    def total(self, over: str, x: Tensor) -> Tensor:
        """Return the mean over the samples of what their steps come to, ()."""
        if not self._costs:
            return x.new_zeros(())
        rows, costs = torch.cat(self._rows), torch.cat(self._costs)
        each = _PUT[over](costs.new_zeros(self._batch), rows, costs)
        return each.mean()


def _mean(zero: Tensor, rows: Tensor, costs: Tensor) -> Tensor:
    counts = zero.index_add(0, rows, torch.ones_like(costs)).clamp(min=1)
    return zero.index_add(0, rows, costs) / counts


_PUT: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "sum": lambda zero, rows, costs: zero.index_add(0, rows, costs),
    "mean": _mean,
    "max": lambda zero, rows, costs: zero.scatter_reduce(0, rows, costs, "amax"),
}

"""The solver's own estimates in the loss, of all steps: ERNODE and SRNODE.

    R_E = mean_j E_j |h_j|,   R_S = max_j S_j / S*

over the steps that were taken, where E_j is the error in units of the tolerance and S_j the
stiffness, and everything is differentiated but the lengths h_j. This is no function of the
solution, but of the steps: no continuous adjoint has it.

Paper: Pal et al. 2021 (arXiv:2105.03918).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pathline.core.errors import UsageError, unknown
from pathline.learn.solve_costs.cost import (
    WHOLE,
    Asked,
    Costed,
    Estimate,
    SolveCost,
    check_estimate,
    combined,
    embedded,
)
from pathline.solvers import AdaptiveRK
from pathline.solvers.adaptive_sde import AdaptiveSDE
from pathline.solvers.how import as_grid
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

    Cost: none beside the memory of a direct adjoint, all stages of all steps; adjoint="checkpoint"
    keeps one state a step instead, and takes each step three times.
    """

    kind: Estimate = "error"
    over: Over | None = None

    def __post_init__(self) -> None:
        check_estimate(self.kind)
        if self.over is not None and self.over not in get_args(Over):
            raise unknown("way to put steps together", self.over, get_args(Over))

    def costed(self, asked: Asked) -> Costed:
        x, how = asked.x, dict(asked.how)
        adjoint = how.pop("adjoint", None)
        if adjoint not in (None, "direct", "checkpoint"):
            raise UsageError(
                f"the estimates of all steps are differentiated through the steps, by adjoint="
                f"'direct' or 'checkpoint', and not {adjoint!r}. `Local` takes one step, and any "
                "adjoint."
            )
        made = embedded(asked.solver, self.kind, x)
        steps = _Steps(self.kind, made.shares, len(x))
        over = self.over or ("max" if self.kind == "stiffness" else "mean")
        if adjoint == "checkpoint":
            return self._again(replace(asked, how=how), made, over)
        sol = asked.solved(solver=made, adjoint="direct", on_step=steps)
        return Costed(sol, steps.total(over, x))

    def _again(self, asked: Asked, solver: AdaptiveRK | AdaptiveSDE, over: str) -> Costed:
        """Solve without a graph, then take the same steps again, each with a graph when asked."""
        x = asked.x
        if isinstance(solver, AdaptiveSDE) or (not solver.shares and len(x) > 1):
            raise UsageError(
                "steps are taken again for the whole batch: give AdaptiveRK(norms='batch'), or "
                "adjoint='direct'."
            )
        ends: list[float] = []

        def note(record: StepRecord) -> None:
            if bool(record.accepted[0]):
                ends.append(float(record.t[0] + record.h[0]))

        with torch.no_grad():
            sol = asked.solved(solver=solver, on_step=note)
        steps = _Steps(self.kind, solver.shares, len(x))
        whole = replace(solver, first=WHOLE)

        def taken(state: Tensor, s: float, t: float) -> tuple[Tensor, Tensor, Tensor]:
            one = _Steps(self.kind, solver.shares, len(x))
            leg = replace(asked, x=state, grid=(s, t))
            made = leg.solved(solver=whole, adjoint="direct", on_step=one)
            return made.x, *one.parts

        state, times = x, [float(as_grid(asked.grid, None).times(None)[0]), *ends]
        for s, t in pairwise(times):
            state, rows, costs = checkpoint(taken, state, s, t, use_reentrant=False)
            steps.add(rows, costs)
        return Costed(replace(sol, x=state), steps.total(over, x))


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
        self.add(record.rows[taken], combined(self._kind, error * h.abs(), stiff))

    def add(self, rows: Tensor, costs: Tensor) -> None:
        """Add what a step of some samples costs."""
        self._rows.append(rows)
        self._costs.append(costs)

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        """The samples, and what each of their steps costs."""
        return torch.cat(self._rows), torch.cat(self._costs)

    def total(self, over: str, x: Tensor) -> Tensor:
        """Return the mean over the samples of what their steps come to, ()."""
        if not self._costs:
            return x.new_zeros(())
        rows, costs = self.parts
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

"""What a solve and its gradient will cost, said before they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields import Field
from pathline.solvers.adjoints import Adjoint, Cost, as_adjoint
from pathline.solvers.adjoints.meter import saved
from pathline.solvers.evaluate import Speed
from pathline.solvers.executors import Executor
from pathline.solvers.how import (
    DEFAULT_SOLVER,
    AnyField,
    AnyGrid,
    AnySolver,
    Guide,
    How,
    Levels,
    as_field,
)
from pathline.solvers.job import Start, drawn_seeds, job_of, sampling
from pathline.solvers.plan import Plan
from pathline.solvers.stepped import Keep


@dataclass(frozen=True)
class Explanation:
    """What a solve costs, and its gradient if one is asked for.

    Args:
        solver: in the words of a receipt.
        steps: of the grid.
        nfe: evaluations of the field on the way out.
        network_calls: calls of the network that they make.
        vjps: vector-Jacobian products through the network on the way out (of guides).
        adjoint: how a gradient would come back.
        back: evaluations and products of the way back, and what is kept for it.
        state_bytes: of one state, all samples.
        activation_bytes: what autograd keeps of one evaluation, measured on one.
    """

    solver: str
    steps: int
    nfe: int
    network_calls: int
    vjps: int
    adjoint: str
    back: Cost
    state_bytes: int
    activation_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Bytes that are kept at one time for a gradient: states and activations."""
        kept = self.back.states * self.state_bytes
        return kept + self.back.evaluations * self.activation_bytes

    def __str__(self) -> str:
        back = self.back
        return "\n".join(
            (
                f"{self.solver}, {self.steps} steps",
                f"  out   {self.nfe} evaluations, {self.network_calls} network calls, "
                f"{self.vjps} products",
                f"  back  {back.nfe} evaluations, {back.vjps} products ({self.adjoint})",
                f"  kept  {_told(self.peak_bytes)}: {back.states} states of "
                f"{_told(self.state_bytes)}, activations of {back.evaluations} "
                f"evaluation{'s' * (back.evaluations != 1)} of {_told(self.activation_bytes)}",
            )
        )


def explain(  # noqa: PLR0913 - what `solve` and `sample` take
    model: AnyField,
    x: Tensor | int | None = None,
    *,
    solver: AnySolver = DEFAULT_SOLVER,
    grid: AnyGrid = None,
    steps: int | None = None,
    start: Levels | None = None,
    guide: Guide | None = None,
    speed: Speed | None = None,
    keep: Keep | None = None,
    executor: Executor | str = "eager",
    adjoint: Adjoint | str | None = None,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    **cond: Any,
) -> Explanation:
    """Say what `solve` (x a state) or `sample` (x a number of samples) would cost, and run neither.

    Args:
        model, solver, grid, steps, guide, speed, keep, executor, adjoint, cond: as `solve`.
        x: the state, (batch, *state); or how many samples, 1 if None.
        start: as `solve`.
        seed, seeds, shape, dtype, device: as `sample`.

    Raises:
        UsageError: as `solve`; a stepped solver, whose evaluations nobody knows beforehand.

    Cost: one evaluation, with a graph, to see what autograd keeps of it.

    Example:
        >>> from pathline.fields import Gaussian
        >>> from pathline.paths import VPLinear
        >>> law = Gaussian(VPLinear(), torch.zeros(2), torch.ones(2))
        >>> told = explain(law, 8, solver="rk4", steps=10, adjoint="checkpoint")
        >>> told.nfe, told.back.nfe, told.back.vjps, told.back.states
        (40, 40, 40, 10)
    """
    made = None if adjoint is None else as_adjoint(adjoint)
    how = How(solver, grid, steps, guide, speed, start, executor, keep, made)
    if isinstance(x, Tensor):
        job = job_of(as_field(model), how, lambda _: x, x.shape[1:], seeds, cond)
    elif isinstance(model, Field):
        begin = Start(shape, dtype, device)
        job = sampling(model, how, begin, drawn_seeds(x, seed, seeds), cond)
    else:
        raise UsageError("a function has no noise to start from; give the state, explain(f, x).")
    plan, field = job.plan, job.field
    if not isinstance(plan, Plan):
        raise UsageError(
            f"{type(plan.solver).__name__} decides its steps while it runs: what it costs is known "
            "afterwards (Solution.stats)."
        )
    chosen = job.chosen(job.record())
    calls = None if job.speed is None else job.speed.calls(field)
    calls = field.calls_at(plan.instants[list(plan.evaluated)]) if calls is None else calls
    solver_told = str(plan.recipe.get("solver", {}).get("name", "a plan"))
    state = job.given[0]
    return Explanation(
        solver_told, plan.steps, plan.nfe, calls, plan.nfe * field.vjps, chosen.name,
        chosen.cost(plan), state.numel() * state.element_size(), _activations(job, plan),
    )  # fmt: skip


def _activations(job: Any, plan: Plan) -> int:
    """Return what autograd keeps of one evaluation, in bytes."""
    if not plan.evaluated:
        return 0
    with torch.inference_mode(False), torch.enable_grad():
        x = job.given[0].detach().clone().requires_grad_()
        times = plan.instants[[plan.evaluated[0]]].to(x.device)
        with saved(job.field, job.cond) as gauge:
            made = job.field.bind(times, x, job.cond)(0, x)
            kept = gauge.now
            del made
    return kept


def _told(n: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} GB"


__all__ = ["Explanation", "explain"]

"""Stacking: plans of one structure, one a sample, become one plan for the batch.

A plan's coefficients depend on its grid, and samples may start from different noise levels. Rows of
the same shape are joined entry by entry: row i of the stack has, for sample s, the coefficients
that row i of plan s has. So each sample is carried exactly as it would be alone, whatever the
solver, and one evaluation of the field, at one time a sample, serves them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.paths import Time
from pathline.solvers.plan import Coefficient, Plan, Row, Terms

Gather = Callable[[Sequence[Coefficient]], Tensor]
"""Values of the distinct plans → (batch, ...), the one of each sample's plan."""


@torch.inference_mode(False)  # what is made here must also serve a solve with gradients
def stack(plans: Sequence[Plan]) -> Plan:
    """Return the plan that carries sample i as plans[i] does; see `Plan.stacked`."""
    if not plans:
        raise UsageError("there are no plans to stack; give one a sample.")
    distinct = list({id(plan): plan for plan in plans}.values())
    place = {id(plan): i for i, plan in enumerate(distinct)}
    first = distinct[0]
    for plan in distinct:
        _check_structure(first, plan)
    index = torch.tensor([place[id(plan)] for plan in plans])

    def gather(values: Sequence[Coefficient]) -> Tensor:
        if not any(isinstance(v, Tensor) for v in values):
            return torch.tensor(values, dtype=torch.float64)[index]
        tensors = [torch.as_tensor(v, dtype=torch.float64) for v in values]
        return torch.stack(torch.broadcast_tensors(*tensors))[index]

    starts = zip(*(plan.start for plan in distinct), strict=True)
    rows = zip(*(plan.rows for plan in distinct), strict=True)
    return Plan(
        tuple(_time(times, gather) for times in starts),
        tuple(_row(same, gather) for same in rows),
        first.view,
        first.path,
        _recipe(plans),
        len(plans),
    )


def _check_structure(first: Plan, plan: Plan) -> None:
    if plan.batch is not None:
        raise UsageError("a plan that is stacked already cannot be stacked again.")
    if plan.legs:
        raise UsageError("a stochastic equation is solved on one grid for all samples; give one.")
    if (plan.view, plan.path) != (first.view, first.path):
        raise UsageError(
            f"plans to stack must be of one view and path; they are of {first.view} on "
            f"{first.path} and {plan.view} on {plan.path}."
        )
    if _structure(plan) != _structure(first):
        raise UsageError(
            f"plans to stack must have the same rows: {len(first.rows)} rows and {first.nfe} "
            f"evaluations do not go with {len(plan.rows)} rows and {plan.nfe}; compile them "
            "together, solver.plan(path, [grid, ...]), with one number of steps."
        )


def _structure(plan: Plan) -> tuple[Any, ...]:
    """What must agree: how many states are given, which rows land, where the field is evaluated."""
    return len(plan.start), [row.lands for row in plan.rows], plan.evaluated


def _row(rows: Sequence[Row], gather: Gather) -> Row:
    constants = [row.constant for row in rows]
    constant = gather(constants) if any(row.has_constant for row in rows) else 0.0
    x, f, z = (_terms([getattr(row, letter) for row in rows], gather) for letter in "xfz")
    return Row(_time([row.t for row in rows], gather), x, f, z, rows[0].lands, constant)


def _terms(terms: Sequence[Terms], gather: Gather) -> dict[int, Coefficient]:
    """Join the terms of one row; what a plan does not name has the coefficient 0."""
    names = dict.fromkeys(k for named in terms for k in named)
    return {k: gather([named.get(k, 0.0) for named in terms]) for k in names}


def _time(times: Sequence[Time], gather: Gather) -> Time:
    """Return the time that all share, or each sample's."""
    return times[0] if len(set(times)) == 1 else gather(times)


def _recipe(plans: Sequence[Plan]) -> Mapping[str, Any]:
    recipes = [plan.recipe for plan in plans]
    if not all(recipes):
        return {}
    solver = recipes[0]["solver"]
    if all(recipe["solver"] == solver for recipe in recipes):
        return {"solver": solver, "grid": [recipe["grid"] for recipe in recipes]}
    return {"plans": recipes}

"""A plan in terms of another view of its field: a change of coefficients, and of nothing else.

F = p x + q G    at the same state and time, so    b F = (b p) x + (b q) G
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields.views import View, change
from pathline.paths import GaussianPath, Time
from pathline.solvers.plan import Coefficient, Plan, Row, sample_first, told_time


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # what is kept must also serve a solve with gradients
def folded(plan: Plan, view: View) -> Plan:
    """Return a plan in terms of another view; see `Plan.folded`."""
    if plan.path is None:
        raise UsageError(f"a plan without a path needs a {plan.view}, and the field is a {view}.")
    at = plan.instants[list(plan.evaluated)]
    columns = [at] if plan.batch is None else at.unbind(1)
    changed = [_change(plan.path, view, plan.view, tuple(c.tolist())) for c in columns]
    changes: dict[int, tuple[Coefficient, Coefficient]] = {}
    for i, k in enumerate(plan.evaluated):
        pairs = [pairs[i] for pairs in changed]
        if not all(math.isfinite(c) for pair in pairs for c in pair):
            raise untold(plan.path, view, plan.view, plan.times[k])
        p, q = torch.tensor(pairs, dtype=torch.float64).unbind(1)
        changes[k] = pairs[0] if plan.batch is None else (p, q)
    return replace(plan, view=view, rows=tuple(_fold(row, changes) for row in plan.rows))


def untold(path: GaussianPath, source: View, goal: View, t: Time) -> UsageError:
    """Return what to say where α or σ vanishes, so that one view does not tell another."""
    return UsageError(
        f"a network that predicts {source} does not tell {goal} at t = {told_time(t)}; "
        f"{_instead(path, t)}."
    )


def _instead(path: GaussianPath, t: Time) -> str:
    """Say where a grid should be that stands there."""
    if (torch.as_tensor(t) < path.t_min).any():
        return (
            f"let the grid stop short of data, at t_min = {path.t_min:.6g}, and give it "
            "last='denoise' to go on to data"
        )
    return "start the grid at a smaller t"


@lru_cache(maxsize=1024)
def _change(
    path: GaussianPath, source: View, goal: View, times: tuple[float, ...]
) -> list[tuple[float, float]]:
    """Return `change` at these times; asked for one sample at a time, it knows no batch mates."""
    p, q = change(path, source, goal, torch.tensor(times, dtype=torch.float64))
    return list(zip(p.tolist(), q.tolist(), strict=True))


def _fold(row: Row, changes: Mapping[int, tuple[Coefficient, Coefficient]]) -> Row:
    x, f = dict(row.x), dict(row.f)
    for k, b in row.f.items():
        p, q = changes[k]
        if isinstance(p, Tensor) and isinstance(q, Tensor):  # a stacked plan
            f[k] = b * sample_first(q, torch.as_tensor(b).ndim)
            x[k] = _sum(x.get(k, 0.0), b * sample_first(p, torch.as_tensor(b).ndim))
        else:
            f[k] = b * q
            if p != 0:
                x[k] = x.get(k, 0.0) + b * p
    return replace(row, x=x, f=f)


def _sum(a: Coefficient, b: Tensor) -> Coefficient:
    """Add coefficients of a stacked plan, whose first axis is the sample whatever the others."""
    if not isinstance(a, Tensor):
        return a + b
    ndim = max(a.ndim, b.ndim)
    return sample_first(a, ndim) + sample_first(b, ndim)

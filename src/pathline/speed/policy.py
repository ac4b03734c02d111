"""Policies: which evaluations of a plan are made, and what stands for the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from pathline.core.errors import UsageError
from pathline.core.registry import Registry
from pathline.fields import View
from pathline.fields.views import as_view, change
from pathline.solvers import Plan, Row, ThinnedGuidance
from pathline.solvers.evaluate import Speed
from pathline.solvers.plan import Coefficient
from pathline.solvers.thinned import NAME
from pathline.speed.extrapolate import lagrange_weights

speeds: Registry[Speed] = Registry("speed policy")
"""Every policy, by name."""

speeds.register(NAME, aliases=("linear_ag",), paper="arXiv:2312.12487")(ThinnedGuidance)


@speeds.register("cadence", aliases=("fixed", "every"))
@dataclass(frozen=True)
class Cadence(Speed):
    """Evaluate every k-th time, and extrapolate between: what cleverer policies have to beat.

        G(t) = Σ_a ℓ_a(t) G(t_a),   t_a the last `nodes` evaluations that were made

    Needs no data, and is linear: so it is a plan with fewer evaluations, and costs nothing at run
    time. One node is reuse.

    Args:
        every: 2 makes half of the evaluations; 2.5 makes two of five.
        nodes: how many evaluations the polynomial goes through.
        carry: the view that is held or extrapolated.
        span: where it may skip, as fractions of the evaluations or as their numbers.
    """

    every: float = 2
    nodes: int = 1
    carry: View = "eps"
    span: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not (1 <= self.every < math.inf and isinstance(self.nodes, int) and self.nodes >= 1):
            raise UsageError(
                f"a cadence has every ≥ 1 and at least 1 node; they are {self.every}, {self.nodes}."
            )
        check_span("span", self.span)
        object.__setattr__(self, "carry", as_view(self.carry))

    def thinned(self, plan: Plan) -> Plan:
        return _thinned(plan, self)

    def describe(self) -> dict[str, Any]:
        return speeds.describe(self)

    def made(self, n: int) -> list[bool]:
        """Return for each of n evaluations whether it is made."""
        first, end = span_of(self.span, n)
        first = max(first, self.nodes)

        def is_made(i: int) -> bool:
            since = i - first + 1  # since the last one that is made in any case
            return not first <= i < end or int(since / self.every) > int((since - 1) / self.every)

        return [is_made(i) for i in range(n)]


def check_span(name: str, span: Any) -> None:
    """Refuse what is no range of evaluations.

    Raises:
        UsageError: it is not two numbers, one of them is NaN, or it is (0, 1) in whole numbers.
    """
    is_pair = isinstance(span, Sequence) and len(span) == 2
    if not is_pair or not all(isinstance(at, int | float) and math.isfinite(at) for at in span):
        raise UsageError(
            f"{name}={span!r}: give two fractions of the evaluations, (0.2, 0.94), or the numbers "
            "of two, (10, 47)."
        )
    if tuple(span) == (0, 1) and all(isinstance(at, int) for at in span):
        raise UsageError(
            f"{name}=(0, 1) in whole numbers is the first evaluation alone; all of them are "
            "(0.0, 1.0)."
        )


def span_of(span: tuple[float, float], n: int) -> tuple[int, int]:
    """Return the first and the end of a span of n evaluations.

    Args:
        span: two whole numbers, or two fractions of n.
        n: how many evaluations there are.

    Raises:
        UsageError: it lies outside of 0 … n, or is upside down.
    """
    first, end = (at if isinstance(at, int) else round(at * n) for at in span)
    if not 0 <= first <= end <= n:
        raise UsageError(
            f"the range {span} is {first} … {end} of {n} evaluations; it must lie within 0 … {n}."
        )
    return first, end


def calls_of(plan: Plan) -> list[int]:
    """Return the numbers of the evaluated states, in the order in which a solve calls them."""
    return list(dict.fromkeys(k for row in plan.rows for k in sorted(row.f)))


def times_of(plan: Plan) -> list[float]:
    """Return the times of the evaluations, in the order of `calls_of`.

    Raises:
        UsageError: samples have times of their own, or they go back and forth.
    """
    if plan.batch is not None:
        raise UsageError(
            "samples that start from levels of their own have times of their own, which speed "
            "policies do not know; leave speed out, or solve them one by one."
        )
    times = [float(plan.times[k]) for k in calls_of(plan)]
    steps = [b - a for a, b in zip(times, times[1:], strict=False)]
    if any(h > 0 for h in steps) and any(h < 0 for h in steps):
        raise UsageError(
            "this solver's evaluations go back and forth in time, where nothing can be "
            "extrapolated; use one whose stages do not (DPMpp, DDIM, Euler, DEIS, UniPC, Heun)."
        )
    return times


@lru_cache(maxsize=64)
def _thinned(plan: Plan, policy: Cadence) -> Plan:
    calls, times = calls_of(plan), times_of(plan)
    if plan.path is None and policy.carry != plan.view:
        raise UsageError(f"a field without a path has no {policy.carry}; use carry={plan.view!r}.")
    stands = _stand_ins(plan, policy, dict(zip(calls, times, strict=True)))
    return replace(plan, rows=tuple(_without(row, stands) for row in plan.rows))


_Terms = tuple[dict[int, float], dict[int, float]]


def _stand_ins(plan: Plan, policy: Cadence, times: dict[int, float]) -> dict[int, _Terms]:
    """Return state number → what its evaluation is replaced by, in states and evaluations."""
    to = _changes(plan, times, plan.view, policy.carry)
    back = _changes(plan, times, policy.carry, plan.view)
    known: list[int] = []
    stands: dict[int, _Terms] = {}
    for k, made in zip(times, policy.made(len(times)), strict=True):
        if made:
            known = [*(a for a in known if times[a] != times[k]), k][-policy.nodes :]
            continue
        nodes = torch.tensor([times[a] for a in known], dtype=torch.float64)
        weights = lagrange_weights(nodes, times[k]).tolist()
        p, q = back[k]
        x = {a: q * w * to[a][0] for a, w in zip(known, weights, strict=True) if to[a][0]}
        x |= {k: p} if p else {}
        stands[k] = x, {a: q * w * to[a][1] for a, w in zip(known, weights, strict=True) if w}
    return stands


def _changes(
    plan: Plan, times: dict[int, float], source: View, goal: View
) -> dict[int, tuple[float, ...]]:
    """Return state number → (p, q) with goal = p x + q source there."""
    if plan.path is None:
        return dict.fromkeys(times, (0.0, 1.0))
    at = torch.tensor(list(times.values()), dtype=torch.float64)
    pairs = zip(*(c.tolist() for c in change(plan.path, source, goal, at)), strict=True)
    return dict(zip(times, pairs, strict=True))


def _without(row: Row, stands: dict[int, _Terms]) -> Row:
    x: dict[int, Coefficient] = dict(row.x)
    f = {k: b for k, b in row.f.items() if k not in stands}
    for k, b in row.f.items():
        for total, terms in zip((x, f), stands.get(k, ({}, {})), strict=True):
            for a, c in terms.items():
                total[a] = total.get(a, 0.0) + b * c
    return replace(row, x=x, f=f)

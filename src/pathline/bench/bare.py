"""The bare arithmetic: the leanest loops that a good engineer writes in plain torch.

Coefficients are Python numbers, worked out beforehand (here: read off our plan); no checks, no
record, no choice of method; one kernel a term, and one new tensor an update:

    DDIM      x ← a x + b ε                                     2 kernels
    ++2M      x ← a x + b ε + a' x' + b' ε'                     4
    ++3M      x ← a x + b ε + a' x' + b' ε' + a" x" + b" ε"     6
    Euler     x ← x + h v                                       1
    Heun      y ← x + h v,   x ← x + h/2 v + h/2 v(y)           3, for two evaluations

Guidance adds a concatenation and a blend. (Keeping d = x − σ ε in place of x' and ε' saves a kernel
at order 3, costs a tensor, and is slower at order 2 and no faster at order 3.)
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from pathline.bench.peers import Case
from pathline.solvers import Plan

Loop = Callable[[], Tensor]


def predicts(case: Case) -> Callable[[Tensor], Tensor]:
    """Return the network, or the blend of its answers with and without a condition."""
    if case.weight is None:
        return case.network
    network, weight = case.network, case.weight

    def guided(x: Tensor) -> Tensor:
        free, bound = network(torch.cat((x, x))).chunk(2)
        return torch.lerp(free, bound, weight)

    return guided


def ddim(plan: Plan, case: Case) -> Loop:
    """The state and ε̂."""
    predict = predicts(case)
    rows = [(float(row.x[i]), float(row.f[i])) for i, row in enumerate(plan.folded("eps").rows)]

    def loop() -> Tensor:
        x = case.x
        for a, b in rows:
            x = torch.mul(x, a).add_(predict(x), alpha=b)
        return x

    return loop


def multistep(plan: Plan, case: Case) -> Loop:
    """The last two or three states and ε̂."""
    predict = predicts(case)
    rows = [
        [float(c.get(k, 0)) for k in (i, i - 1, i - 2) for c in (row.x, row.f)]
        for i, row in enumerate(plan.folded("eps").rows)
    ]

    def loop() -> Tensor:
        x = x1 = x2 = e1 = e2 = case.x
        for a, b, a1, b1, a2, b2 in rows:
            e = predict(x)
            new = torch.mul(x, a).add_(e, alpha=b)
            if b1:
                new.add_(x1, alpha=a1).add_(e1, alpha=b1)
            if b2:
                new.add_(x2, alpha=a2).add_(e2, alpha=b2)
            x, x1, x2, e1, e2 = new, x, x1, e, e1
        return x

    return loop


def euler(plan: Plan, case: Case) -> Loop:
    """The state and the velocity."""
    predict, steps = predicts(case), [t - s for s, t in pairwise(map(float, plan.grid))]

    def loop() -> Tensor:
        x = case.x
        for h in steps:
            x = torch.add(x, predict(x), alpha=h)
        return x

    return loop


def heun(plan: Plan, case: Case) -> Loop:
    """The state and two velocities."""
    predict, steps = predicts(case), [t - s for s, t in pairwise(map(float, plan.grid))]

    def loop() -> Tensor:
        x = case.x
        for h in steps:
            v = predict(x)
            w = predict(torch.add(x, v, alpha=h))
            x = torch.add(x, v, alpha=h / 2).add_(w, alpha=h / 2)
        return x

    return loop

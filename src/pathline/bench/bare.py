"""The bare arithmetic: the leanest loops that a good engineer writes in plain torch.

Coefficients are Python numbers, worked out beforehand (here: read off our plan); no checks, no
record, no choice of method; and no more kernels than the update has terms:

    DDIM      x ← a x + b ε                                     2 kernels
    ++2M      d ← x − σ ε,   x ← a x + b d + c d'               4
    ++3M      d ← x − σ ε,   x ← a x + b d + c d' + e d''       5
    Euler     x ← x + h v                                       1
    Heun      y ← x + h v,   x ← x + h/2 v + h/2 v(y)           3, for two evaluations

Guidance adds a concatenation and a blend.
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
    """The state and the last two or three d = x − σ ε̂ = α x̂_0, whose 1/α is in the coefficients."""
    assert plan.path is not None
    predict, times = predicts(case), torch.tensor(plan.times, dtype=torch.float64)
    alpha, sigma = plan.path.alpha(times).tolist(), plan.path.sigma(times).tolist()
    *inner, end = plan.rows  # the last step is x = x̂_0
    rows = [
        (sigma[i], float(row.x[i]), *(float(row.f.get(k, 0)) / alpha[k] for k in (i, i - 1, i - 2)))
        for i, row in enumerate(inner)
    ]
    last, scale = sigma[len(inner)], float(end.f[len(inner)]) / alpha[len(inner)]

    def loop() -> Tensor:
        x = d1 = d2 = case.x
        for s, a, b, c, e in rows:
            d = torch.sub(x, predict(x), alpha=s)
            x = torch.mul(x, a).add_(d, alpha=b)
            if c:
                x.add_(d1, alpha=c)
            if e:
                x.add_(d2, alpha=e)
            d1, d2 = d, d1
        return torch.sub(x, predict(x), alpha=last).mul_(scale)

    return loop


def euler(plan: Plan, case: Case) -> Loop:
    """The state and the velocity."""
    predict, steps = predicts(case), [t - s for s, t in pairwise(plan.grid)]

    def loop() -> Tensor:
        x = case.x
        for h in steps:
            x = torch.add(x, predict(x), alpha=h)
        return x

    return loop


def heun(plan: Plan, case: Case) -> Loop:
    """The state and two velocities."""
    predict, steps = predicts(case), [t - s for s, t in pairwise(plan.grid)]

    def loop() -> Tensor:
        x = case.x
        for h in steps:
            v = predict(x)
            w = predict(torch.add(x, v, alpha=h))
            x = torch.add(x, v, alpha=h / 2).add_(w, alpha=h / 2)
        return x

    return loop

"""DPM-Solver: exponential solvers that take their derivatives inside each step.

A step s → t of order p evaluates F at p points spaced evenly in λ and integrates the polynomial
through them exactly, against the exponential weight of its view (see `exponential`).

Paper: Lu et al. 2022 (arXiv:2206.00927, Alg. 1 and 2); in x̂_0 the "S" variants of arXiv:2211.01095.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal, get_args

import torch

from pathline.core.errors import UsageError
from pathline.fields.views import View
from pathline.solvers.exponential import (
    Expansion,
    ancestral,
    check_distances,
    check_eta,
    check_start,
    polynomial_weights,
    span,
)
from pathline.solvers.solver import Level, Solver, Writer, check_order, solvers

Schedule = Literal["fixed", "fast"]
Weights = dict[int, float]


@solvers.register(
    "dpm",
    aliases=("DPM-Solver", "dpm_solver", "dpm_3s"),
    paper="arXiv:2206.00927",
    variants={
        "dpm_2s": ({"order": 2}, ("DPM-Solver-2", "DPM2", "dpm_2")),
        "dpm_fast": ({"schedule": "fast"}, ("DPM fast",)),
        "dpmpp_2s": ({"order": 2, "view": "x0"}, ("DPM++ 2S",)),
        "dpmpp_3s": ({"order": 3, "view": "x0"}, ("DPM++ 3S",)),
        "dpm_2s_ancestral": ({"order": 2, "eta": 1.0}, ("DPM2 a", "dpm_2_ancestral")),
        "dpmpp_2s_ancestral": ({"order": 2, "view": "x0", "eta": 1.0}, ("DPM++ 2S a",)),
    },
)
@dataclass(frozen=True)
class DPM(Solver):
    """DPM-Solver, singlestep: fresh evaluations inside each step, in ε̂ or x̂_0.

    Choose the fixed schedule where order counts; "fast" to spend exactly n evaluations on a grid
    of n steps. Below about ten evaluations DPMpp is better.

    Args:
        order: 1, 2 or 3.
        view: "eps" (DPM-Solver) or "x0" (DPM-Solver++).
        schedule: "fixed" takes every step of the grid with `order` evaluations; "fast" takes
            steps of order 3, closed by lower ones, with one evaluation for each grid step; even in
            λ as the grid is, or over as many grid steps as evaluations where it is not.
        expansion: "midpoint" or "taylor", how the last stage weighs the derivatives.
        eta: how much fresh noise: each step goes farther down the flow, and noise lifts it to its
            end (ancestral sampling; 1 is all of it). 0 is the flow.
    """

    order: int = 3  # pyright: ignore[reportIncompatibleMethodOverride]
    view: View = "eps"  # pyright: ignore[reportIncompatibleMethodOverride]
    schedule: Schedule = "fixed"
    expansion: Expansion = "midpoint"
    eta: float = 0.0

    def __post_init__(self) -> None:
        check_order("DPM", self.order, (1, 2, 3))
        if self.view not in ("eps", "x0"):
            raise UsageError(f"view={self.view!r}: DPM-Solver predicts 'eps' or 'x0'.")
        if self.schedule not in ("fixed", "fast"):
            raise UsageError(f"schedule={self.schedule!r}: choose 'fixed' or 'fast'.")
        if self.expansion not in get_args(Expansion):
            raise UsageError(f"expansion={self.expansion!r}: choose 'midpoint' or 'taylor'.")
        check_eta(self.eta, most=1.0)

    @property
    def is_stochastic(self) -> bool:
        return self.eta > 0

    @property
    def nfe_per_step(self) -> int:
        return self.order if self.schedule == "fixed" else 1

    def orders(self, n: int) -> list[int]:
        """Return the orders of the steps that are taken on a grid of n."""
        return [self.order] * n if self.schedule == "fixed" else fast_orders(self.order, n)

    def write(self, to: Writer) -> None:
        steps = list(to.intervals())
        check_start(self.view, steps, self.eta)
        check_distances(steps)
        points = to.levels[: len(steps) + 1]
        orders = self.orders(len(steps))
        if self.schedule == "fast":
            points = _joined(to, points, orders)
        for i, ((s, t), order) in enumerate(zip(pairwise(points), orders, strict=True)):
            down, up = ancestral(to, s, t, self.eta)
            lift, z = (t.alpha / down.alpha, {i: up}) if up else (1.0, {})
            x, f = self._step(to, s, down, order)
            x, f = ({k: weight * lift for k, weight in weights.items()} for weights in (x, f))
            to.write(t.t, x, f, z)

    def _step(self, to: Writer, s: Level, t: Level, order: int) -> tuple[Weights, Weights]:
        """Write the stages of s → t; return the weights of states and evaluations at its end."""
        first = len(to.rows)
        stages, numbers = list(_stages(to, s, t, order)), [first]
        for i, stage in enumerate(stages):
            linear, weights = polynomial_weights(self.view, s, stage, stages[:i])
            f = dict(zip(numbers, weights, strict=True))
            numbers.append(to.write(stage.t, {first: linear}, f, lands=False))
        known = list(zip(numbers[1:], stages, strict=True))
        if order == 3 and self.expansion == "midpoint":
            known = known[-1:]
        expansion = self.expansion if order == 2 else "taylor"
        linear, weights = polynomial_weights(self.view, s, t, [p for _, p in known], expansion)
        return {first: linear}, dict(zip((first, *(n for n, _ in known)), weights, strict=True))


def _joined(to: Writer, points: Sequence[Level], orders: Sequence[int]) -> list[Level]:
    """Return the ends of the steps of a fast schedule.

    On a grid even in λ they are even in λ again; on another one they are those of its points that
    have spent as many evaluations.
    """
    span(points[0], points[-1])  # which refuses an end on data
    log_snr = torch.tensor([p.log_snr for p in points], dtype=torch.float64)
    even = torch.linspace(float(log_snr[0]), float(log_snr[-1]), len(points), dtype=torch.float64)
    spread = abs(float(even[-1] - even[0]))
    if not orders or not torch.allclose(log_snr, even, rtol=0, atol=1e-6 * spread):
        return [points[i] for i in (0, *accumulate(orders))]
    assert to.path is not None
    ends = torch.linspace(float(even[0]), float(even[-1]), len(orders) + 1, dtype=torch.float64)
    inner = to.path.time_of_log_snr(ends[1:-1]).tolist()
    return [points[0], *(to.at(inner) if inner else ()), points[-1]]


def _stages(to: Writer, s: Level, t: Level, order: int) -> Iterator[Level]:
    """Yield the levels that divide s → t into `order` equal parts in λ."""
    if order == 1:
        return
    assert to.path is not None
    h = span(s, t)
    inside = [s.log_snr + h * k / order for k in range(1, order)]
    yield from to.at([float(to.path.time_of_log_snr(level)) for level in inside])


def fast_orders(order: int, n: int) -> list[int]:
    """Return the orders of steps that spend exactly n evaluations.

    >>> fast_orders(3, 9), fast_orders(3, 10), fast_orders(3, 11), fast_orders(2, 5)
    ([3, 3, 2, 1], [3, 3, 3, 1], [3, 3, 3, 2], [2, 2, 1])
    """
    full, rest = divmod(n, order)
    if order < 3:
        return [order] * full + [1] * rest
    if rest or not n:
        return [3] * full + [rest] * bool(rest)
    return [3] * (full - 1) + [2, 1]

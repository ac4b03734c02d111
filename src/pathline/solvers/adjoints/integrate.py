"""The adjoint equation integrated back: on the grid of a solve, or by steps of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pathline.fields import VectorField
from pathline.solvers.adaptive_rk import AdaptiveRK
from pathline.solvers.adjoints.flow import Clocked, Products
from pathline.solvers.adjoints.segments import Totals
from pathline.solvers.execute import Execution, combined, drawing
from pathline.solvers.grids import Times
from pathline.solvers.plan import Plan
from pathline.solvers.runge_kutta import RungeKutta


class Goal(NamedTuple):
    """What is integrated back, and along which nodes.

    Args:
        clocked: the field in its form.
        products: evaluates it with its products.
        clocks: at the grid points, from the start of the solve to its end.
        times: the path's times there.
        stored: the states there, to be put back; None carries the state back.
    """

    clocked: Clocked
    products: Products
    clocks: Sequence[float]
    times: Sequence[float]
    stored: Sequence[Tensor] | None


def slope_weights(plan: Plan) -> dict[int, float]:
    """Return the weight that each evaluation has in the last state, where slopes feed nothing back.

    >>> from pathline.solvers.runge_kutta import RK4
    >>> [round(6 * w, 12) for w in slope_weights(RK4().plan(None, Times((0.0, 1.0)))).values()]
    [1.0, 2.0, 2.0, 1.0]
    """
    given = len(plan.start)
    share = {len(plan.times) - 1: 1.0}
    weights = dict.fromkeys(plan.evaluated, 0.0)
    for i in reversed(range(len(plan.rows))):
        mine, row = share.pop(given + i, 0.0), plan.rows[i]
        for j, a in row.x.items():
            share[j] = share.get(j, 0.0) + mine * float(a)
        for k, b in row.f.items():
            weights[k] += mine * float(b)
    return weights


class _Way:
    """The way back on the grid of a solve: one step of a rule between two grid points.

    Args:
        rule: the method.
        goal: what, and where.
        dtype: of the state.
        totals: the sources' gradients are added to it.
    """

    def __init__(self, rule: RungeKutta, goal: Goal, dtype: torch.dtype, totals: Totals) -> None:
        clocks, times = goal.clocks[::-1], goal.times[::-1]
        self.plan = rule.plan(None, Times(tuple(clocks)))
        known = dict(zip(clocks, times, strict=True))
        points = goal.clocked.points([float(t) for t in self.plan.times], known)
        weights = slope_weights(self.plan)
        self.scales = [points[k].scale for k in self.plan.landings]
        self.goal, self.wide = goal, torch.promote_types(dtype, torch.float32)

        def slope(k: int, z: Tensor) -> Tensor:
            w, b = z.chunk(2)
            f, pulled, found = goal.products(points[k], w, b, dtype)
            totals.add(found, -weights[k])
            return torch.cat((f.to(self.wide), -pulled))

        self.slope = slope

    def landings(self, end: Tensor, cotangent: Tensor) -> Iterator[Tensor]:
        """Yield w and b, one above the other, at every grid point after the end of the solve."""
        scale, stored = self.scales[0], self.goal.stored
        z = torch.cat((end.to(self.wide) / scale, cotangent.to(self.wide) * scale))
        execution = Execution(self.plan, self.slope, [z], combined, drawing(self.plan, None, z))
        left = list(self.scales[:0:-1])
        for row in execution.program:
            z = execution.advance(row)
            if not row.lands:
                continue
            scale = left.pop()
            if stored is not None:
                z = torch.cat((stored[len(left)].to(self.wide) / scale, z.chunk(2)[1]))
                execution.replace(row, z)
            yield z


def on_grid(
    rule: RungeKutta, goal: Goal, end: Tensor, cotangent: Tensor, totals: Totals
) -> tuple[Tensor, Tensor]:
    """Return the state and the gradient at the start of the solve.

    Args:
        rule: the method, one step of it between two grid points.
        goal: what, and where.
        end: the state at the end of the solve.
        cotangent: the gradient there.
        totals: the sources' gradients are added to it.

    Cost: a stage of the method is one evaluation and one product.
    """
    way, z = _Way(rule, goal, end.dtype, totals), end
    for z in way.landings(end, cotangent):  # noqa: B007 - the last one is wanted
        pass
    w, b = z.chunk(2)
    return w * way.scales[-1], b / way.scales[-1]


def first_trouble(rule: RungeKutta, goal: Goal, end: Tensor, cotangent: Tensor) -> int | None:
    """Return the number of the first step whose result is not finite; None if there is none."""
    way = _Way(rule, goal, end.dtype, Totals(goal.products.sources))
    for number, z in enumerate(way.landings(end, cotangent), 1):
        if not bool(z.isfinite().all()):
            return number
    return None


def adaptively(
    rule: AdaptiveRK, goal: Goal, end: Tensor, cotangent: Tensor, totals: Totals
) -> tuple[Tensor, Tensor]:
    """Return the state and the gradient at the start, by steps that follow an error estimate.

    State, gradient and the sources' gradients are one vector, whose error is watched as a whole.
    """
    from pathline.solvers.solve import solve  # which needs this module

    dtype = torch.promote_types(end.dtype, torch.float32)
    sources, shape, n = goal.products.sources, end.shape, end.numel()

    def slope(v: Tensor, t: Tensor) -> Tensor:
        (point,) = goal.clocked.points([float(t)], {})
        w, b = (part.reshape(shape) for part in (v[0, :n], v[0, n : 2 * n]))
        f, pulled, found = goal.products(point, w, b, end.dtype)
        each = zip(found, sources, strict=True)
        flat = [(torch.zeros_like(s) if g is None else -g).flatten() for g, s in each]
        return torch.cat((f.flatten(), -pulled.flatten(), *flat))[None].to(dtype)

    ends = goal.clocked.points(goal.clocks, dict(zip(goal.clocks, goal.times, strict=True)))
    last = ends[-1].scale
    zeros = [torch.zeros(s.numel(), dtype=dtype, device=end.device) for s in sources]
    both = (end.to(dtype) / last).flatten(), (cotangent.to(dtype) * last).flatten()
    v = torch.cat((*both, *zeros))[None]
    nodes = list(range(len(ends)))[::-1]
    hops = zip(nodes, nodes[1:], strict=False) if goal.stored is not None else [(nodes[0], 0)]
    with torch.no_grad():
        for a, to in hops:
            way = Times((goal.clocks[a], goal.clocks[to]))
            v = solve(VectorField(slope), v, solver=rule, grid=way, on_failure="return").x
            if goal.stored is not None:
                kept = (goal.stored[to].to(dtype) / ends[to].scale).flatten()
                v = torch.cat((kept, v[0, n:]))[None]
    sizes = [n, n, *(s.numel() for s in sources)]
    w, b, *found = v[0].split(sizes)
    totals.add([g.reshape(s.shape) for g, s in zip(found, sources, strict=True)])
    return w.reshape(shape) * ends[0].scale, b.reshape(shape) / ends[0].scale


def told(goal: Goal, step: int) -> str:
    """Say where a step of the way back ends: its number, its time and, on a path, its log-SNR."""
    t = goal.times[::-1][step]
    path = goal.clocked.field.path
    level = "" if path is None else f", λ = {float(path.log_snr(t)):.4g}"
    return f"after step {step} of {len(goal.times) - 1}, t = {t:.6g}{level}"


__all__ = ["Goal", "adaptively", "first_trouble", "on_grid", "slope_weights", "told"]

"""What a policy remembers of a solve: slopes, the last real noise, and the last real evaluations.

All samples share the times of slopes, replaced ones included; the nodes are real evaluations
alone, and each sample has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from pathline.fields.views import View, change
from pathline.paths import bshape
from pathline.solvers import Plan
from pathline.speed.criteria import Moment, Rule
from pathline.speed.extrapolate import lagrange_weights
from pathline.speed.policy import times_of

Carried = Literal["x0", "velocity"]


class Memory:
    """Slopes, noise and nodes, and what can be predicted from them.

    Args:
        plan: in the field's own view.
        carry: the view that is predicted.
        nodes: how many real evaluations Lagrange's polynomial goes through.
    """

    __slots__ = (
        "_carry", "_changes", "_eps", "_levels", "_n", "_node_times", "_nodes", "_plan",
        "_slope_times", "_slopes", "_times", "_view", "_x",
    )  # fmt: skip

    def __init__(self, plan: Plan, carry: Carried, nodes: int) -> None:
        assert plan.path is not None
        self._plan, self._n = plan, nodes
        self._view: View = plan.view
        self._carry: View = carry
        self._times = times_of(plan)
        at = torch.tensor(self._times, dtype=torch.float64)
        alpha, sigma = plan.path.alpha(at).tolist(), plan.path.sigma(at).tolist()
        self._levels = list(zip(alpha, sigma, strict=True))
        view = self._view
        views: list[tuple[View, View]] = [
            (view, carry), (carry, view), (view, "velocity"), (view, "eps")
        ]  # fmt: skip
        self._changes = {
            (source, goal): torch.stack(change(plan.path, source, goal, at), 1).tolist()
            for source, goal in views
        }
        self._slopes: list[Tensor] = []
        self._slope_times: list[float] = []
        self._nodes: list[Tensor] = []
        self._node_times = torch.zeros(0, dtype=torch.float64)
        self._x = self._eps = torch.zeros(0)

    @property
    def carry(self) -> View:
        """The view that is predicted."""
        return self._carry

    @property
    def has_slopes(self) -> bool:
        """Whether three slopes are known."""
        return len(self._slopes) == 3

    def has_nodes(self) -> list[bool]:
        """Return for each sample whether Lagrange's polynomial has all of its nodes."""
        return (~self._node_times[self._n - 1].isnan()).tolist()

    def moment(self, i: int, x: Tensor, rule: Rule, limit: float) -> Moment:
        """Return what a criterion looks at before evaluation i."""
        assert self._plan.path is not None
        y0, y1, y2 = self._slopes
        t0, t1, t2 = self._slope_times
        times = (self._times[i], t0, t1, t2)
        return Moment(
            x, self._x, (y0, y1, y2), times, self._plan.path, len(self._times), rule, limit
        )

    def predicted(self, i: int, x: Tensor, far: Sequence[bool], moment: Moment | None) -> Tensor:
        """Return what stands for evaluation i, in the field's view, (batch, *state).

        Args:
            i: which evaluation.
            x: the state there.
            far: for each sample, whether Lagrange's polynomial is used, or else the step-wise rule.
            moment: what the step-wise rule needs; None if it is not used.
        """
        if moment is None:
            carried = self._polynomial(i, x, self._n)
        else:
            carried = self._step_wise(i, x, moment)
            if any(far):
                which = _rows(torch.tensor(far), x)
                carried = torch.where(which, self._polynomial(i, x, self._n), carried)
        return self._changed(i, self._carry, self._view, x, carried)

    def push(self, i: int, x: Tensor, f: Tensor, real: Sequence[bool]) -> None:
        """Remember evaluation i, which is real for some samples."""
        t, view = self._times[i], self._view
        again = self._slope_times[:1] == [t]  # Heun evaluates twice at one time: the last counts
        y = self._changed(i, view, "velocity", x, f)
        self._slopes = [y, *self._slopes[again:]][:3]
        self._slope_times = [t, *self._slope_times[again:]][:3]
        self._x = x
        node = self._changed(i, view, self._carry, x, f)
        eps = self._changed(i, view, "eps", x, f)
        if not self._nodes:
            self._nodes, self._eps = [node] * max(self._n, 2), eps
            unknown = torch.full((len(self._nodes), len(x)), torch.nan, dtype=torch.float64)
            self._node_times = unknown
        fresh = torch.tensor(real)
        moves = fresh & (self._node_times[0] != t)
        is_fresh, is_moved = (_rows(m, x) for m in (fresh, moves))
        self._eps = torch.where(is_fresh, eps, self._eps)
        pairs = list(zip(self._nodes[1:], self._nodes, strict=False))
        shifted = [torch.where(is_moved, newer, older) for older, newer in pairs]
        self._nodes = [torch.where(is_fresh, node, self._nodes[0]), *shifted]
        ahead = torch.cat((torch.full_like(self._node_times[:1], t), self._node_times[:-1]))
        self._node_times = torch.where(moves, ahead, self._node_times)

    def _step_wise(self, i: int, x: Tensor, moment: Moment) -> Tensor:
        """Return x̂_0 = (x̂ − σ ε̂)/α; or the velocity, on a line through the last two real ones."""
        if self._carry == "velocity":
            return self._polynomial(i, x, 2)
        alpha, sigma = self._levels[i]
        return (moment.x_hat - sigma * self._eps) / alpha

    def _polynomial(self, i: int, x: Tensor, n: int) -> Tensor:
        """Return Lagrange's polynomial through each sample's last n real evaluations; 0 without.

        A sample without so many has other use of its nodes, whose gradients a NaN would spoil.
        """
        weights = lagrange_weights(self._node_times[:n], self._times[i]).nan_to_num(0.0).to(x)
        total = torch.zeros_like(x)
        for weight, node in zip(weights, self._nodes, strict=False):
            total = total + bshape(weight, x) * node
        return total

    def _changed(self, i: int, source: View, goal: View, x: Tensor, f: Tensor) -> Tensor:
        """Return f of view `source` at evaluation i in another view."""
        if source == goal:
            return f
        p, q = self._changes[source, goal][i]
        return p * x + q * f


def _rows(mask: Tensor, like: Tensor) -> Tensor:
    """Return a mask of samples that broadcasts against a state."""
    return mask.to(like.device).reshape(-1, *[1] * (like.ndim - 1))

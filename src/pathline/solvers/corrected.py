"""Exponential predictor-correctors: what UniPC and SA-Solver write.

A predictor through the last values of F reaches t, with the noise of the step; F is evaluated
there, as the next step needs anyway; the corrector repeats the step from s with F_t among the
points of its polynomial and the same noise, and the next step goes on from the corrected state
with the value that is already known. The last step is not corrected: that would cost an evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from pathline.fields.views import View
from pathline.solvers.exponential import (
    Expansion,
    Final,
    check_distances,
    check_start,
    decay,
    lowered,
    polynomial_weights,
)
from pathline.solvers.solver import Level, Writer

__all__ = ["Corrected", "write_corrected"]

Point = tuple[int, Level]
"""A state at which F is known, and where it is."""


def _no_noise(s: Level) -> float:
    del s
    return 0.0


class Corrected(NamedTuple):
    """A predictor and a corrector.

    Args:
        view: what F is.
        order: points of the predictor's polynomial.
        points: those of the corrector's, the start and the end of the step among them; 0 for none.
        final: whether the last steps have lower orders.
        expansion: of polynomials through two points.
        eta: of the step from a level, how much of the reverse SDE's noise it adds.
    """

    view: View
    order: int
    points: int
    final: Final
    expansion: Expansion = "midpoint"
    eta: Callable[[Level], float] = _no_noise


def write_corrected(to: Writer, rule: Corrected) -> None:
    """Write a predictor-corrector's rows.

    Raises:
        UsageError: it cannot start, or adds noise on a way towards noise.
    """
    steps = list(to.intervals())
    check_start(rule.view, steps, max((rule.eta(s) for s, _ in steps), default=0.0))
    check_distances(steps)
    at, n, known = 0, len(steps), [(0, to.levels[0])]  # where F is known, newest first
    for i, (s, t) in enumerate(steps):
        first, *earlier = known
        kept = lowered(rule.order, i, n, rule.final) - 1
        corrects = rule.points > 0 and i < n - 1
        step = _Step(to, rule, at, i, s, t)
        reached = step.row([first, *earlier[:kept]], lands=not corrects)
        at = reached
        if corrects:
            kept = lowered(rule.points - 1, i, n, rule.final) - 1
            at = step.row([first, (reached, t), *earlier[:kept]], lands=True)
        known = [(reached, t), *known]


class _Step(NamedTuple):
    """A step from state `at`, whose rows share a draw."""

    to: Writer
    rule: Corrected
    at: int
    draw: int
    s: Level
    t: Level

    def row(self, points: list[Point], *, lands: bool) -> int:
        """Write the step with F at these points, its start first; return the new state's number."""
        rule, s, t = self.rule, self.s, self.t
        others, eta = [level for _, level in points[1:]], rule.eta(s)
        expansion = rule.expansion if len(others) == 1 else "taylor"
        linear, weights = polynomial_weights(rule.view, s, t, others, expansion, eta)
        noise = t.sigma * math.sqrt(1 - decay(s, t) ** (2 * eta)) if eta else 0.0
        f = dict(zip((number for number, _ in points), weights, strict=True))
        return self.to.write(
            t.t, {self.at: linear}, f, {self.draw: noise} if noise else {}, lands=lands
        )

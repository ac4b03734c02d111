"""Adaptive DPM-Solver: steps in λ between two orders that share their evaluations.

Paper: Lu et al. 2022 (arXiv:2206.00927, App. C): DPM-Solver-12 and -23.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields.views import View
from pathline.paths import GaussianPath
from pathline.solvers.adaptive import Adaptive, Control
from pathline.solvers.exponential import (
    Expansion,
    check_start,
    linear_part,
    scale_and_argument,
    span,
)
from pathline.solvers.grids import Grid
from pathline.solvers.legs import Evaluate, Leg, OnPath, Pairing, combined
from pathline.solvers.levels import Levels, steady
from pathline.solvers.phi import derivative_weights, phi
from pathline.solvers.slope import Slope
from pathline.solvers.solver import Writer, check_order, solvers
from pathline.solvers.stepped import Course
from pathline.solvers.trial import Stepper

FIRST = 0.05
"""The first step in λ."""


@solvers.register(
    "dpm_adaptive",
    aliases=("DPM adaptive", "DPM-Solver-23", "dpm_23"),
    paper="arXiv:2206.00927, App. C",
    variants={
        "dpm_12": ({"order": 2}, ("DPM-Solver-12",)),
        "dpmpp_adaptive": ({"view": "x0"}, ("dpmpp_23",)),
    },
)
@dataclass(frozen=True)
class AdaptiveDPM(Adaptive):
    """DPM-Solver-12 and -23: steps in λ as long as the tolerance allows, for each sample.

    Choose it where one accuracy is wanted for fields of unknown difficulty; a fixed grid of ++2M or
    UniPC makes less error for the same evaluations if you can afford to choose the grid.

    Args:
        order: 2 (DPM-Solver-12) or 3 (-23), of the result that is kept.
        view: "eps" (DPM-Solver) or "x0" (DPM-Solver++).
        rtol, atol, max_steps: as for every adaptive solver; 0.0078 is 2/256, for data in [−1, 1].
        first: the first step in λ; 0.05 as in public code, and so is None.
    """

    rtol: float = 0.05
    atol: float = 0.0078
    first: float | None = FIRST
    control: Control = Control(0.9, 1.0, 0.0, 0.0, math.inf, 0.0, False)
    order: int = 3  # pyright: ignore[reportIncompatibleMethodOverride]
    view: View = "eps"  # pyright: ignore[reportIncompatibleMethodOverride]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order("adaptive DPM", self.order, (2, 3))
        if self.view not in ("eps", "x0"):
            raise UsageError(f"view={self.view!r}: DPM-Solver predicts 'eps' or 'x0'.")

    @property
    def nfe_per_step(self) -> int:
        return self.order

    @property
    def error_order(self) -> int:
        return self.order

    def check(self, path: GaussianPath | None, grid: Grid) -> None:
        to = Writer(path, grid.times(path), grid.last == "denoise")
        steps = list(to.intervals())
        check_start(self.view, steps)
        for s, t in steps:
            span(s, t)

    def stepper(self, course: Course, slope: Slope) -> Stepper:
        made = OnPath(self, course, slope, self.order - 1)
        made.opens = 0
        return made

    def clock(self, levels: Levels) -> Tensor:
        return levels.log_snr

    def time(self, path: GaussianPath | None, clock: Tensor) -> Tensor:
        assert path is not None
        return steady(path.time_of_log_snr, clock)

    def opening(self, leg: Leg, evaluate: Evaluate) -> Tensor:
        del evaluate
        return torch.full_like(leg.s.t, FIRST)

    def scale(self, trial: Pairing, x: Tensor, before: Tensor) -> Tensor:
        del x
        return (self.rtol * torch.maximum(trial.low.abs(), before.abs())).clamp(min=self.atol)

    def attempt(self, leg: Leg, evaluate: Evaluate) -> Pairing:
        nodes = [k / self.order for k in range(1, self.order)]
        values = [leg.first]
        for i, node in enumerate(nodes):
            stage = leg._replace(t=self._between(leg, node))
            x = self._made(stage, [a / node for a in nodes[:i]], values)
            values.append(evaluate(x, stage.t.t))
        low = self._made(leg, nodes[:-1], values[:-1], "midpoint")
        if self.order == 2:
            high = self._made(leg, nodes, values, "midpoint")
        else:
            high = self._made(leg, nodes[1:], [values[0], values[2]])
        return Pairing(high, high - low, low, None)

    def _between(self, leg: Leg, node: float) -> Levels:
        """Return the level at this part of the step."""
        clock = leg.s.log_snr + node * (leg.t.log_snr - leg.s.log_snr)
        return Levels.at(leg.path, self.time(leg.path, clock))

    def _made(
        self,
        leg: Leg,
        nodes: Sequence[float],
        values: Sequence[Tensor],
        expansion: Expansion = "taylor",
    ) -> Tensor:
        """Return the state at the end of the leg, from F at its start and at these parts of it."""
        linear, first = linear_part(self.view, leg.s, leg.t)
        weights = [first, *(torch.zeros_like(first) for _ in nodes)]
        c, z = scale_and_argument(self.view, leg.s, leg.t)
        h = leg.t.log_snr - leg.s.log_snr
        for k in range(1, len(nodes) + 1):
            factor = first / 2 if expansion == "midpoint" else c * h * phi(k + 1, z)
            for i, a in enumerate(derivative_weights(nodes, k), 1):
                weights[i] = weights[i] + factor * a
                weights[0] = weights[0] - factor * a
        return combined(linear, leg.x, weights, values)

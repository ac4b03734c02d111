"""Adaptive Runge-Kutta: embedded pairs, in the three coordinates of `runge_kutta`.

The pairs are those of `pairs`; the step control is proportional-integral, with the exponents of
Hairer, Nørsett & Wanner, Solving Ordinary Differential Equations I, Sec. II.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from pathline.core.errors import UsageError, unknown
from pathline.fields.views import View
from pathline.paths import GaussianPath, bshape
from pathline.solvers.adaptive import Adaptive, Control
from pathline.solvers.explicit import Explicit
from pathline.solvers.exponential import check_start
from pathline.solvers.grids import Grid
from pathline.solvers.legs import Evaluate, Leg, OnPath, Pairing, combined
from pathline.solvers.levels import Levels, steady
from pathline.solvers.pairs import PAIRS, Pair
from pathline.solvers.runge_kutta import COORDINATES
from pathline.solvers.slope import Slope
from pathline.solvers.solver import Writer, solvers
from pathline.solvers.stepped import Course
from pathline.solvers.trial import Stepper, rms

PI = Control(0.9, 0.3, 0.4)
Norms = Literal["sample", "batch"]


@solvers.register(
    "dopri5",
    aliases=("rk45", "dormand_prince"),
    paper="Hairer et al. 1993, II.4-5",
    variants={
        "bosh3": ({"method": "bosh3"}, ("rk23", "bogacki_shampine")),
        "tsit5": ({"method": "tsit5"}, ("tsitouras",)),
        "dop853": ({"method": "dop853"}, ("dopri8",)),
    },
)
@dataclass(frozen=True)
class AdaptiveRK(Adaptive):
    """Dormand-Prince 5(4) and other embedded pairs: any differential equation, to a tolerance.

    Args:
        method: "dopri5" (5(4)), "bosh3" (3(2)), "tsit5" (5(4), the fewest evaluations as a rule) or
            "dop853" (8(5,3), for tolerances below 1e-8).
        view: the coordinates to step in, "velocity" (path time), "eps" or "x0".
        rtol, atol, first, max_steps, control, jumps: as for every adaptive solver.
        norms: "sample": each has steps of its own; "batch": one step for all, as long as the root
            mean square over the whole batch allows, as torchdiffeq does it. Then a sample's result
            depends on its neighbours.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    control: Control = PI
    method: str = "dopri5"
    view: View = "velocity"  # pyright: ignore[reportIncompatibleMethodOverride]
    norms: Norms = "sample"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in PAIRS:
            raise unknown("pair of Runge-Kutta methods", self.method, PAIRS)
        if self.view not in COORDINATES:
            raise UsageError(f"view={self.view!r}: choose from {', '.join(COORDINATES)}.")
        if self.norms not in get_args(Norms):
            raise unknown("choice", str(self.norms), get_args(Norms))

    @property
    def tableau(self) -> Pair:
        """The pair."""
        return PAIRS[self.method]

    @property
    def order(self) -> int:
        return self.tableau.order

    @property
    def nfe_per_step(self) -> int:
        return len(self.tableau.c) - 1  # the last stage is the first of the next step

    @property
    def error_order(self) -> int:
        return self.tableau.error_order

    def check(self, path: GaussianPath | None, grid: Grid) -> None:
        if self.view != "velocity":
            to = Writer(path, grid.times(path), grid.last == "denoise")
            check_start(self.view, list(to.intervals()))

    @property
    def shares(self) -> bool:
        return self.norms == "batch"

    def stepper(self, course: Course, slope: Slope) -> Stepper:
        if self.view == "velocity":
            return Explicit(self.tableau, slope, self.rtol, self.atol)
        return OnPath(self, course, slope, self.nfe_per_step)

    def clock(self, levels: Levels) -> Tensor:
        return COORDINATES[self.view].clock(levels)

    def time(self, path: GaussianPath | None, clock: Tensor) -> Tensor:
        if self.view == "velocity":
            return clock
        assert path is not None
        log_snr = steady(torch.log, clock)
        return steady(path.time_of_log_snr, log_snr if self.view == "x0" else -log_snr)

    def scale(self, trial: Pairing, x: Tensor, before: Tensor) -> Tensor:
        del before
        return self.atol + self.rtol * torch.maximum(x.abs(), trial.high.abs())

    def attempt(self, leg: Leg, evaluate: Evaluate) -> Pairing:
        values = [leg.first]
        for c, row in zip(self.tableau.c[1:], self.tableau.a[1:], strict=True):
            stage = self._at(leg, c)
            values.append(evaluate(self._made(leg, stage, row, values), stage.t))
        off = tuple(b - low for b, low in zip(self.tableau.b, self.tableau.low, strict=True))
        high = self._made(leg, leg.t, self.tableau.b, values)
        error = self._made(leg._replace(x=torch.zeros_like(leg.x)), leg.t, off, values)
        return Pairing(high, error, high, values[-1] if self.tableau.ends_with_last else None)

    @torch.no_grad()
    def opening(self, leg: Leg, evaluate: Evaluate) -> Tensor:
        """Take a step of 1 % of the state's size, and see how much the slope has changed."""
        x, f, unit = leg.x, leg.first, self.atol + self.rtol * leg.x.abs()
        per_clock = bshape(self._scale(leg.s), x) / unit
        size, slope = rms(x / unit), rms(f * per_clock)
        guess = torch.where((size < 1e-5) | (slope < 1e-5), 1e-6, 0.01 * size / slope)
        here, end = self.clock(leg.s), self.clock(leg.t)
        probe = torch.minimum(guess, (end - here).abs())
        to = Levels.at(leg.path, self.time(leg.path, here + torch.copysign(probe, end - here)))
        ahead = evaluate(self._made(leg._replace(t=to), to, (1.0,), [f]), to.t)
        steepest = torch.maximum(slope, rms((ahead - f) * per_clock) / probe)
        power = 1 / (self.tableau.order + 1)
        bent = steady(lambda v: v.pow(power), 0.01 / steepest.clamp(min=1e-15))
        sized = torch.where(steepest <= 1e-15, (guess * 1e-3).clamp(min=1e-6), bent)
        return torch.minimum(100 * guess, sized).nan_to_num(nan=1e-6)

    def _scale(self, levels: Levels) -> Tensor:
        return COORDINATES[self.view].scale(levels) * torch.ones_like(levels.t)

    def _at(self, leg: Leg, c: float) -> Levels:
        """Return the level of a stage."""
        if c in (0.0, 1.0):
            return leg.t if c else leg.s
        here = self.clock(leg.s)
        t = self.time(leg.path, here + c * (self.clock(leg.t) - here))
        return Levels.at(leg.path, t)

    def _made(
        self, leg: Leg, to: Levels, weights: Sequence[float], values: Sequence[Tensor]
    ) -> Tensor:
        """Return s_to (x/s + Δu Σ w F), with Δu that of the whole leg."""
        scale = self._scale(to)
        step = scale * (self.clock(leg.t) - self.clock(leg.s))
        used = [(w, f) for w, f in zip(weights, values, strict=False) if w]
        ratio = scale / self._scale(leg.s)
        return combined(ratio, leg.x, [step * w for w, _ in used], [f for _, f in used])

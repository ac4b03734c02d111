"""Adaptive steps for stochastic equations: Euler-Heun, and what its two parts are off.

    K = u + h f(u),  û = K + g(u) ΔW
    u' = u + ½ h (f(u) + f(û)) + ½ (g(u) + g(û)) ΔW
    E_d = ½ h (f(K) − f(u)),   E_n = ½ (g(u + g ΔW) − g(u)) ΔW ≈ ½ g' g ΔW²

A step is taken if the root mean square of (δ E_d + E_n)/(atol + rtol max|u|) is at most 1. One that
is rejected is tried again on the same path: W is asked of a virtual tree, not drawn. So the law is
that of the equation whatever the steps, and each sample has its own.

Paper: Pal et al. 2021 (arXiv:2105.03918), Sec. 3.3, whose pair this is where SOSRI is not;
Kidger 2022 (arXiv:2202.02435), Sec. 5.1.3 and 5.5 for rejection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np
from torch import Tensor

from pathline.core.brownian import Brownian
from pathline.core.errors import UsageError
from pathline.fields import SDE, Field, View
from pathline.fields.around import Around
from pathline.solvers.adaptive import Adaptive, Control
from pathline.solvers.pace import Numbers, Reach
from pathline.solvers.slope import Slope
from pathline.solvers.solver import Solver, solvers
from pathline.solvers.stepped import Course
from pathline.solvers.stochastic import check_integral
from pathline.solvers.trial import Stepper, Trial, lifted, rms

NOISY = Control(integral=0.3, proportional=0.1)
"""The gains for noise, which a quick control would follow."""

DEPTH = 24
"""How often the span is halved: steps down to 6e-8 of it see an exact path."""


@solvers.register(
    "adaptive_sde", aliases=("euler_heun_adaptive",), paper="arXiv:2105.03918, Sec. 3.3"
)
@dataclass(frozen=True)
class AdaptiveSDE(Adaptive):
    """Euler-Heun to a tolerance, for Stratonovich equations and additive noise; Heun without noise.

    States are had at the points of the grid, where all stop over.

    Args:
        rtol, atol, first, max_steps, control, jumps: as for every adaptive solver.
        drift_weight: δ, what the drift's error counts beside the noise's.
    """

    rtol: float = 1e-3
    atol: float = 1e-3
    control: Control = NOISY
    drift_weight: float = 1 / 6
    noise: str | None = None

    @property
    def order(self) -> int:
        return 2

    @property
    def view(self) -> View:
        return "velocity"

    @property
    def error_order(self) -> int:
        return 1 if self.noise is not None else 2

    @property
    def takes_noise(self) -> bool:
        return self.noise is not None

    @property
    def is_stochastic(self) -> bool:
        return self.noise is not None

    def tuned(self, field: Field, shape: Sequence[int]) -> Solver:
        if not isinstance(field, SDE):
            return super().tuned(field, shape)
        check_integral(field, type(self).__name__, ("stratonovich",))
        return replace(self, noise=field.noise)

    def stepper(self, course: Course, slope: Slope) -> Stepper:
        return EulerHeunStep(self, course, slope)


class EulerHeunStep(Stepper):
    """The pair, bound to one solve."""

    evaluations = 2
    opens = 0

    def __init__(self, solver: AdaptiveSDE, course: Course, slope: Slope) -> None:
        super().__init__(slope, solver.rtol, solver.atol)
        self._weight, self._rows = solver.drift_weight, None
        self._ends = (
            float(np.min(course.instants.numpy())),
            float(np.max(course.instants.numpy())),
        )
        self._is_noisy = solver.noise is not None
        self.evaluations = 2 if self._is_noisy else 1
        self._path = _brownian(slope.problem.field)

    def narrow(self, rows: Tensor | None) -> None:
        self._rows = None if rows is None else rows.numpy()

    def opening(self, x: Tensor, first: Tensor, reach: Reach) -> Numbers:
        return reach.size * 0.01

    def attempt(self, x: Tensor, first: Tensor, reach: Reach) -> Trial:
        h = lifted(reach.size * self.slope.way, x)
        s, t = self.slope.times(np.stack((reach.start, reach.end)), x)
        ahead = x + h * first
        drift_error = 0.5 * h * (self.slope(ahead, t) - first)
        if not self._is_noisy:
            f = drift_error + 0.5 * h * first
            return self._tried(x, x + 0.5 * h * first + f, drift_error)
        g = self._diffusion(x, s)
        w = self._increments(g, x, reach)
        gw = product(g, w, x)
        hat = ahead + gw
        noise_error = 0.5 * (product(self._diffusion(x + gw, s), w, x) - gw)
        new = x + 0.5 * h * (first + self.slope(hat, t))
        new = new + 0.5 * (gw + product(self._diffusion(hat, t), w, x))
        return self._tried(x, new, self._weight * drift_error + noise_error)

    def _tried(self, x: Tensor, new: Tensor, error: Tensor) -> Trial:
        return Trial(new, rms(error / self.unit(x, new)), None, [])

    def _diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        return self.slope.problem.field.bind(t[None], x, self.slope.cond)(~0, x)

    def _increments(self, g: Tensor, x: Tensor, reach: Reach) -> Tensor:
        """Return W over the step of each sample, (n, m) or (n, *state)."""
        shape = tuple(x.shape[1:]) if g.ndim == x.ndim else (g.shape[-1],)
        path = self._path
        if path is None:
            seeds = self.slope.problem.seeds
            if seeds is None:
                raise UsageError("a stochastic solver needs seeds, one a sample.")
            path = self._path = Brownian(
                *self._ends, tuple(seeds), shape, DEPTH, False, str(x.device)
            )
        if path.shape != shape:
            raise UsageError(
                f"the Brownian path has shape {path.shape}, the diffusion needs {shape}."
            )
        times = np.stack((reach.start, reach.end)) * self.slope.way
        return path.each(times, self._rows).w[0].to(x)

    def between(
        self, theta: Tensor, x: Tensor, x1: Tensor, trial: Trial, rows: Tensor, reach: Reach
    ) -> NoReturn:
        raise UsageError(
            "inside a step of a stochastic solve there is no state to be had; put save times on "
            "the grid, and take trajectory=True."
        )


def _brownian(field: Field) -> Brownian | None:
    """Return the motion that a field is driven by, if it has one of its own."""
    while isinstance(field, Around):
        field = field.inner
    return field.brownian if isinstance(field, SDE) else None


def product(g: Tensor, w: Tensor, x: Tensor) -> Tensor:
    """Return g W, (n, *state)."""
    if g.ndim == x.ndim:
        return g * w
    return (g * w.reshape(len(w), *[1] * (x.ndim - 1), -1)).sum(-1)

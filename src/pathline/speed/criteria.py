"""When a trajectory is stable: four tests of what the slopes say about the next step.

    κ = (x_ref − x̂_{i+1}) · Δ²y_i,   stable where the mean of κ is negative

with y = dx/dt along the path, Δ²y its second difference and x̂ the extrapolant of `extrapolate`.

    ddim       x_ref is one DDIM step from x_i (no evaluation): κ ≈ −½ Δ⁴ y'·y''
    paper      x_ref is the solver's own x_{i+1}
    released   the same with what the public code does: a damped x̂ that moves N/1000 of the way
    magnitude  κ = |Δ²y|² − τ² |y|²: small curvature, whatever its sign

Beware of `paper` with a solver of order two: x_{i+1} − x̂ is then −⅔ Δ·Δ²y *identically* for
Adams-Bashforth, so κ is a negative square and every step is "stable". The report says how many
were, and there is a warning where the test does not tell steps apart.

Paper: Jiang et al. 2025 (SADA, arXiv:2507.17135); `ddim` and `magnitude` are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from torch import Tensor

from pathline.paths import GaussianPath
from pathline.speed.extrapolate import Weights, curvature_weights, slope_weights

Criterion = Literal["ddim", "paper", "released", "magnitude"]
Rule = Literal["paper", "released"]

TRAINING_STEPS = 1000
"""The time steps of the models that the public code was written for."""


class Moment(NamedTuple):
    """What is known when step i + 1 is reached.

    Args:
        x_next: the solver's x_{i+1}.
        x: x_i.
        slopes: y_i, y_{i−1}, y_{i−2}.
        times: t_{i+1}, t_i, t_{i−1}, t_{i−2}.
        path: of the model.
        n: evaluations of the plan.
        rule: the weights of x̂.
        limit: τ of "magnitude".
    """

    x_next: Tensor
    x: Tensor
    slopes: tuple[Tensor, Tensor, Tensor]
    times: tuple[float, float, float, float]
    path: GaussianPath
    n: int
    rule: Rule
    limit: float

    def extrapolated(self, damped: bool, fraction: float = 1.0) -> Tensor:
        """Return x̂_{i+1}, or that fraction of the way to it."""
        move = combined(slope_weights(self.times, damped), self.slopes)
        return self.x - fraction * move

    @property
    def x_hat(self) -> Tensor:
        """x̂_{i+1} with the weights that were chosen."""
        return self.extrapolated(self.rule == "released")

    @property
    def curvature(self) -> Tensor:
        """Δ²y_i."""
        return combined(curvature_weights(self.times[1:]), self.slopes)


def combined(weights: Weights, slopes: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return Σ w_j y_{i−j}."""
    total = slopes[0] * weights[0]
    for w, y in zip(weights[1:], slopes[1:], strict=True):
        total = total + w * y
    return total


def ddim_step(path: GaussianPath, x: Tensor, y: Tensor, t: float, to: float) -> Tensor:
    """Return x carried from t to `to` with x̂_0 and ε̂ of the velocity y = α' x̂_0 + σ' ε̂ held."""
    alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
    d_alpha, d_sigma = float(path.d_alpha(t)), float(path.d_sigma(t))
    determinant = alpha * d_sigma - sigma * d_alpha
    a, s = float(path.alpha(to)), float(path.sigma(to))
    of_x, of_y = a * d_sigma - s * d_alpha, s * alpha - a * sigma
    return x * (of_x / determinant) + y * (of_y / determinant)


def _ddim(m: Moment) -> Tensor:
    reference = ddim_step(m.path, m.x, m.slopes[0], m.times[1], m.times[0])
    return (reference - m.x_hat) * m.curvature


def _paper(m: Moment) -> Tensor:
    return (m.x_next - m.x_hat) * m.curvature


def _released(m: Moment) -> Tensor:
    return (m.x_next - m.extrapolated(True, m.n / TRAINING_STEPS)) * m.curvature


def _magnitude(m: Moment) -> Tensor:
    return m.curvature.square() - (m.limit * m.slopes[0]).square()


CRITERIA: Mapping[Criterion, Callable[[Moment], Tensor]] = {
    "ddim": _ddim,
    "paper": _paper,
    "released": _released,
    "magnitude": _magnitude,
}
"""Name → κ of every element, (batch, *state)."""

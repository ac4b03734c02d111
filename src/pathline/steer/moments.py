"""Guides by the likelihood of linear measurements, y = A x_0 + s n, through the model's Jacobian.

            what x̂_0 becomes                                  through the model
    DPS     x̂_0 + C Aᵀ (y − A x̂_0)/s²                          1 VJP
    PiGDM   x̂_0 + C Aᵀ (r² A Aᵀ + s²)⁻¹ (y − A x̂_0)            1 VJP
    MMPS    x̂_0 + C Aᵀ (A C Aᵀ + s²)⁻¹ (y − A x̂_0)             1 + iterations

C = (σ²/α) Jᵀ is the covariance of x_0 given x_t. MMPS is exact where that law is Gaussian, so on
any Gaussian data; PiGDM where it is besides r² I; DPS where it is 0. None is exact on a mixture;
each says with what likelihood it works (`log_twist`), so particles can make it exact.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.paths import GaussianPath, bshape
from pathline.steer.estimate import Estimate
from pathline.steer.guide import guides
from pathline.steer.linear import Linear


@dataclass(frozen=True, eq=False)
class Gradient(Linear):
    """A pull by linear measurements."""

    std: float = 0.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        self.check_std(self.std)

    @property
    def is_none(self) -> bool:
        return self.weight == 0

    @property
    def is_score(self) -> bool:
        return True

    @property
    def vjps(self) -> int:
        return 1

    @abstractmethod
    def log_twist(self, now: Estimate) -> Tensor:
        """Return log p(y | x_t) as the guide takes it, (batch,), but for what depends on t alone.

        It is what particles are weighed by on their way (`steer.Particles`).
        """

    def log_likelihood(self, x0: Tensor, path: GaussianPath) -> Tensor:
        """Return log N(y; A x0, s² I) to the power of the weight, (batch,).

        Args:
            x0: data, (batch, *state).
            path: not looked at.

        Raises:
            UsageError: s = 0; what holds exactly has no density.
        """
        del path
        if self.std == 0:
            raise UsageError(
                f"{self._name}(std=0) has no likelihood to weigh particles by; give the noise of "
                "the measurements, which may be small (std=0.05)."
            )
        operator, _ = self._given
        residual = self.residual(x0)
        seen = operator.forward(operator.pinv(residual))  # what A cannot see was not measured
        size = operator.measurements(residual) * math.log(2 * math.pi * self.std**2)
        return -self.weight / 2 * (_squares(seen, seen) / self.std**2 + size)


def _squares(u: Tensor, v: Tensor) -> Tensor:
    """Return u·v of each sample, (batch,)."""
    return (u * v).flatten(1).sum(1)


@guides.register("dps", paper="arXiv:2209.14687, Eq. 10 and 16")
@dataclass(frozen=True, eq=False)
class DPS(Gradient):
    """Diffusion posterior sampling: the likelihood of y at x̂_0 itself, N(y; A x̂_0, s² I).

    It takes x̂_0 for certain, so it pulls too hard at much noise: s must be so large that a step of
    the solver bears the slope 1/s². The paper's steps ζ/|y − A x̂_0| belong to its thousand
    ancestral steps and to no field; choose MMPS or PiGDM instead, unless A is not linear: then it
    is `Loss(scale="score")`.

    Args:
        operator, y: what was measured.
        std: s above 0.
        weight: of the term; 0 is none.

    Cost: one vector-Jacobian product through the model.
    """

    std: float = 0.1

    def __post_init__(self) -> None:
        self.check_std(self.std, "above 0 here; without noise use PiGDM, MMPS or Projection")

    def cotangent(self, now: Estimate) -> Tensor:
        operator, _ = self._given
        pull = operator.adjoint(self.residual(now.x0)) / self.std**2
        return self.weight * now.gain * pull

    def log_twist(self, now: Estimate) -> Tensor:
        residual = self.residual(now.x0)
        return -self.weight / 2 * _squares(residual, residual) / self.std**2

    def describe(self) -> dict[str, Any]:
        return self.told("dps", std=self.std, weight=self.weight)


@guides.register("pigdm", aliases=("pi_gdm",), paper="Song et al., ICLR 2023, Eq. 7 and 8")
@dataclass(frozen=True, eq=False)
class PiGDM(Gradient):
    """Pseudo-inverse guidance: y ~ N(A x̂_0, r_t² A Aᵀ + s² I), r_t² = c σ²/(c α² + σ²).

    r_t² is the variance of x_0 given x_t if data are N(·, c I): exact then, and otherwise the
    cheapest guide that knows that x̂_0 is not certain.

    Args:
        operator, y: what was measured.
        std: s, of the noise of a measurement.
        weight: of the term; 0 is none.
        variance: c, of the data.

    Cost: one vector-Jacobian product through the model.
    """

    variance: float = 1.0

    def cotangent(self, now: Estimate) -> Tensor:
        operator, _ = self._given
        return self.weight * now.gain * operator.adjoint(self._wrong(now, self.residual(now.x0)))

    def _wrong(self, now: Estimate, residual: Tensor) -> Tensor:
        """Return (r² A Aᵀ + s²)⁻¹ (y − A x̂_0)."""
        operator, _ = self._given
        alpha, sigma = now.path.alpha(now.t), now.path.sigma(now.t)
        spread = self.variance * sigma**2 / (self.variance * alpha**2 + sigma**2)
        return operator.solved(residual, bshape(spread, residual), self.std**2)

    def log_twist(self, now: Estimate) -> Tensor:
        residual = self.residual(now.x0)
        return -self.weight / 2 * _squares(residual, self._wrong(now, residual))

    def describe(self) -> dict[str, Any]:
        rest = {"std": self.std, "weight": self.weight, "variance": self.variance}
        return self.told("pigdm", **rest)


@guides.register("mmps", aliases=("tmpd",), paper="arXiv:2405.13712, Alg. 3; arXiv:2310.06721")
@dataclass(frozen=True, eq=False)
class MMPS(Gradient):
    """Moment matching: y ~ N(A x̂_0, A C Aᵀ + s² I), C = (σ²/α) Jᵀ the model's own covariance.

    Exact on Gaussian data of any covariance. The system is solved by conjugate gradients, each
    iteration of which is a product with the Jacobian; where their number is that of the
    measurements, it is solved exactly.

    Args:
        operator, y: what was measured.
        std: s, of the noise of a measurement.
        weight: of the term; 0 is none.
        iterations: of conjugate gradients.

    Cost: 1 + iterations vector-Jacobian products through the model.
    """

    iterations: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < 1:
            raise UsageError(f"iterations={self.iterations}: 1 or more.")

    @property
    def vjps(self) -> int:
        return 1 + self.iterations

    def cotangent(self, now: Estimate) -> Tensor:
        operator, _ = self._given
        wrong = self._wrong(now, self.residual(now.x0))
        return self.weight * now.gain * operator.adjoint(wrong)

    def _wrong(self, now: Estimate, residual: Tensor) -> Tensor:
        """Return (A C Aᵀ + s²)⁻¹ (y − A x̂_0), nearly."""
        operator, _ = self._given

        def product(v: Tensor) -> Tensor:
            seen = operator.forward(now.gain * now.pulled(operator.adjoint(v), again=True))
            return seen + self.std**2 * v

        return conjugate_gradients(product, residual, self.iterations)

    def log_twist(self, now: Estimate) -> Tensor:
        """Return the log-likelihood without its determinant; costs as many products again."""
        residual = self.residual(now.x0)
        return -self.weight / 2 * _squares(residual, self._wrong(now, residual))

    def describe(self) -> dict[str, Any]:
        rest = {"std": self.std, "weight": self.weight, "iterations": self.iterations}
        return self.told("mmps", **rest)


def conjugate_gradients(product: Any, b: Tensor, iterations: int) -> Tensor:
    """Return x with M x ≈ b for each sample, for M symmetric and positive; nothing is looked at.

    Args:
        product: v → M v, of (batch, *shape).
        b: (batch, *shape).
        iterations: a sample whose residual is 0 stands still for the rest of them.
    """

    def dot(u: Tensor, v: Tensor) -> Tensor:
        return (u * v).flatten(1).sum(1).reshape(-1, *[1] * (b.ndim - 1))

    def ratio(u: Tensor, v: Tensor) -> Tensor:
        stands = v <= torch.finfo(v.dtype).tiny
        return torch.where(stands, 0.0, u / torch.where(stands, 1.0, v))

    x, r, p = torch.zeros_like(b), b, b
    square = dot(r, r)
    for _ in range(iterations):
        image = product(p)
        step = ratio(square, dot(p, image))
        x, r = x + step * p, r - step * image
        before, square = square, dot(r, r)
        p = r + ratio(square, before) * p
    return x

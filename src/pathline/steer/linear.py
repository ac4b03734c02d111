"""Guides by linear measurements of the data, y = A x_0 + s n.

                what x̂_0 becomes                                            through the model
    Projection  x̂_0 + k A⁺(y − A x̂_0)                                        no
    Inpaint     m ⊙ y + (1 − m) ⊙ x̂_0                                        no
    DiffPIR     argmin_z |y − A z|²/s² + λ (α/σ)² |z − x̂_0|²                 no
    DPS         x̂_0 + C Aᵀ (y − A x̂_0)/s²                                    1 VJP
    PiGDM       x̂_0 + C Aᵀ (r² A Aᵀ + s²)⁻¹ (y − A x̂_0)                      1 VJP
    MMPS        x̂_0 + C Aᵀ (A C Aᵀ + s²)⁻¹ (y − A x̂_0)                       1 + iterations

C = (σ²/α) Jᵀ is the covariance of x_0 given x_t. MMPS is exact where that law is Gaussian, so on
any Gaussian data; PiGDM where it is besides r² I; DPS where it is 0. None is exact on a mixture:
the repeats of a level (`Repeat`) and particles (`particles`) are what removes the bias.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.paths import bshape
from pathline.steer.estimate import OFF, Correction, Estimate, Exact, Steering
from pathline.steer.guide import guides
from pathline.steer.operators import Mask, Operator


@dataclass(frozen=True, eq=False)
class Linear(Steering):
    """What guides by linear measurements share.

    Args:
        operator: A.
        y: (batch, *measured), or one sample's, (1, *measured).
    """

    operator: Operator | None = None
    y: Tensor | None = field(default=None, repr=False)

    def residual(self, x0: Tensor) -> Tensor:
        """Return y − A x0, (batch, *measured).

        Raises:
            UsageError: there are no measurements, or their shape is another.
        """
        operator, y = self._given
        seen = operator.forward(x0)
        if y.shape[1:] != seen.shape[1:] or len(y) not in (1, len(seen)):
            raise UsageError(
                f"{self._name} was given y {tuple(y.shape)}, and of samples {tuple(x0.shape)} "
                f"{tuple(seen.shape)} is measured."
            )
        return y.to(x0) - seen

    @property
    def _given(self) -> tuple[Operator, Tensor]:
        if self.operator is None or self.y is None:
            raise UsageError(f"{self._name}(operator=..., y=...) needs the measurements.")
        return self.operator, self.y

    @property
    def _name(self) -> str:
        return type(self).__name__

    def check_std(self, std: float, least: str = "0 or more") -> None:
        """Refuse a deviation that is none."""
        if std < 0 or (least != "0 or more" and std == 0):
            raise UsageError(f"{self._name}(std={std}): the noise of a measurement is {least}.")

    def told(self, name: str, **rest: Any) -> dict[str, Any]:
        """Return what a receipt says of it: what is measured and how, not the data."""
        operator = None if self.operator is None else self.operator.describe()
        return {"name": name, "operator": operator, **rest}


@guides.register("projection", aliases=("ddnm",), paper="arXiv:2310.00224; arXiv:2212.00490")
@dataclass(frozen=True, eq=False)
class Projection(Linear, Exact):
    """Projects x̂_0 onto the data: x̃_0 = x̂_0 + k A⁺(y − A x̂_0).

    The data hold exactly at a grid's closing step (last="denoise"). One pass is a poor sample of
    the posterior all the same: what is free has no time to agree with what is known. `Repeat`
    gives it time.

    Args:
        operator, y: what was measured, without noise.
        strength: k, from 0 (none) to 1.

    Raises:
        UsageError: A⁺ does not reproduce y: A A⁺ y ≠ y.

    Cost: A and A⁺ once an evaluation.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise UsageError(f"strength={self.strength}: from 0 (none) to 1 (exact).")
        if self.operator is None or self.y is None or self.strength < 1:
            return
        off = self.off(self.data())
        if off > OFF:
            raise UsageError(
                f"A⁺ is no right inverse on these data: |A A⁺ y − y| = {off:.3g} |y|. Take an "
                "operator of steer.operators, data that A can make, or strength below 1."
            )

    @property
    def is_none(self) -> bool:
        return self.strength == 0

    @property
    def is_exact(self) -> bool:
        return self.strength == 1

    def data(self) -> Tensor:
        operator, y = self._given
        return operator.lifted(y)

    def off(self, x0: Tensor) -> float:
        _, y = self._given
        return float((self.residual(x0).norm() / y.norm().clamp(min=1e-30)).detach())

    def projected(self, x0: Tensor) -> Tensor:
        operator, _ = self._given
        return x0 + self.strength * operator.lifted(self.residual(x0))

    def describe(self) -> dict[str, Any]:
        return self.told("projection", strength=self.strength)


@guides.register("inpaint", aliases=("replacement",), paper="arXiv:2310.00224, Sec. 4")
@dataclass(frozen=True, eq=False)
class Inpaint(Exact):
    """Puts what is known into x̂_0: m ⊙ y + (1 − m) ⊙ x̂_0, exact to the bit.

    Args:
        mask: 1 where y is known and 0 elsewhere, of a shape that broadcasts to the state's.
        y: (batch, *state), or one sample's; what is not known is not looked at.
        strength: 1; 0 is none.

    Raises:
        UsageError: a mask with other values, all known or nothing; shapes that do not fit.
    """

    mask: Tensor | None = field(default=None, repr=False)
    y: Tensor | None = field(default=None, repr=False)
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise UsageError(f"strength={self.strength}: from 0 (none) to 1 (exact).")
        if self.mask is not None:
            Mask(self.mask)  # refuses what is none

    @property
    def is_none(self) -> bool:
        return self.strength == 0

    @property
    def is_exact(self) -> bool:
        return self.strength == 1

    @property
    def _given(self) -> tuple[Mask, Tensor]:
        if self.mask is None or self.y is None:
            raise UsageError("Inpaint(mask=..., y=...) needs both.")
        return Mask(self.mask), self.y

    def data(self) -> Tensor:
        operator, y = self._given
        return operator.forward(y)

    def off(self, x0: Tensor) -> float:
        operator, y = self._given
        known = operator.forward(y)
        wrong = operator.forward(x0) - known.to(x0)
        return float((wrong.norm() / known.norm().clamp(min=1e-30)).detach())

    def projected(self, x0: Tensor) -> Tensor:
        operator, y = self._given
        if y.shape[1:] != x0.shape[1:] or len(y) not in (1, len(x0)):
            raise UsageError(
                f"the known data have the shape {tuple(y.shape)}, and the samples "
                f"{tuple(x0.shape)}."
            )
        mask = self.strength * operator.forward(torch.ones_like(x0))
        y = y.to(x0)
        return torch.where(mask == 1, y, torch.where(mask == 0, x0, x0.lerp(y, mask)))

    def describe(self) -> dict[str, Any]:
        """Return what a receipt says of it: how much is known, not the data."""
        share = None if self.mask is None else float(self.mask.double().mean())
        return {"name": "inpaint", "share": share, "strength": self.strength}


@guides.register("diffpir", aliases=("proximal",), paper="arXiv:2305.08995, Eq. 13")
@dataclass(frozen=True, eq=False)
class DiffPIR(Linear, Correction):
    """A proximal step towards noisy data: x̂_0 + Aᵀ(A Aᵀ + λ (s α/σ)²)⁻¹ (y − A x̂_0).

    What MMPS does with the covariance of x_0 taken as σ²/(λ α²), and without the model's
    Jacobian. With s = 0 it is the projection.

    Args:
        operator, y: what was measured.
        std: s, of the noise of a measurement.
        balance: λ, how much x̂_0 is trusted; ∞ is none.

    Cost: A, Aᵀ and a division by its spectrum once an evaluation.
    """

    std: float = 0.0
    balance: float = 1.0

    def __post_init__(self) -> None:
        self.check_std(self.std)
        if not self.balance > 0:
            raise UsageError(f"balance={self.balance}: above 0; ∞ leaves x̂_0 as it is.")

    @property
    def is_none(self) -> bool:
        return self.balance == math.inf

    def corrected(self, now: Estimate) -> Tensor:
        operator, _ = self._given
        residual = self.residual(now.x0)
        a = bshape(now.path.sigma(now.t) ** 2, residual)
        b = bshape(now.path.alpha(now.t) ** 2, residual) * self.balance * self.std**2
        return now.x0 + operator.adjoint(a * operator.solved(residual, a, b))

    def describe(self) -> dict[str, Any]:
        return self.told("diffpir", std=self.std, balance=self.balance)


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


@guides.register("dps", paper="arXiv:2209.14687, Eq. 10 and 16")
@dataclass(frozen=True, eq=False)
class DPS(Gradient):
    """Diffusion posterior sampling: the likelihood of y at x̂_0 itself, N(y; A x̂_0, s² I).

    It takes x̂_0 for certain, so it pulls too hard at much noise: s must be so large that a step of
    the solver bears the slope 1/s². The paper's steps ζ/|y − A x̂_0| belong to its thousand
    ancestral steps and to no field; choose MMPS or PiGDM instead, unless A is not linear: then it
    is `Loss`.

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
        residual = self.residual(now.x0)
        alpha, sigma = now.path.alpha(now.t), now.path.sigma(now.t)
        spread = self.variance * sigma**2 / (self.variance * alpha**2 + sigma**2)
        wrong = operator.solved(residual, bshape(spread, residual), self.std**2)
        return self.weight * now.gain * operator.adjoint(wrong)

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

        def product(v: Tensor) -> Tensor:
            seen = operator.forward(now.gain * now.pulled(operator.adjoint(v), again=True))
            return seen + self.std**2 * v

        wrong = conjugate_gradients(product, self.residual(now.x0), self.iterations)
        return self.weight * now.gain * operator.adjoint(wrong)

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

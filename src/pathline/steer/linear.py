"""Guides that put linear measurements of the data, y = A x_0 + s n, into the clean estimate.

                what x̂_0 becomes                                            through the model
    Projection  x̂_0 + k A⁺(y − A x̂_0)                                        no
    Inpaint     m ⊙ y + (1 − m) ⊙ x̂_0                                        no
    DiffPIR     argmin_z |y − A z|²/s² + λ (α/σ)² |z − x̂_0|²                 no
    DPS, PiGDM, MMPS                                                         `steer.moments`

None is exact on a mixture: the repeats of a level (`Repeat`) and particles (`Particles`) are what
removes the bias.
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

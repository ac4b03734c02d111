"""Linear inverse problems: a sample of which some linear measurements are known.

    y = A x_0 + s n:   ŷ_t ~ N(A x_t, σ_t² A Aᵀ + α_t² s² I),   ŷ_t = α_t y
    ∇ log p_t(y | x) ≈ Aᵀ (σ_t² A Aᵀ + α_t² s² I)⁻¹ (α_t y − A x)

The measurement of the state is held against the noised measurement, which needs no derivative of
the network. Its error is largest in the middle of the path; Langevin corrections (`pc`) mend some
of it. Coordinates that are known outright are better put back, with `Known`.

Paper: Song et al. 2021 (arXiv:2011.13456), Sec. 5 and App. I.4.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.paths import bshape
from pathline.steer.estimate import Estimate
from pathline.steer.guide import guides
from pathline.steer.likelihood import Likelihood


@guides.register("measured", aliases=("linear_inverse",), paper="arXiv:2011.13456, App. I.4")
@dataclass(frozen=True, eq=False)
class Measured(Likelihood):
    """Guidance by linear measurements.

    Args:
        matrix: A, (measurements, d) for states of d elements.
        y: (batch, measurements), or one sample's, (1, measurements).
        std: s, of the noise of a measurement.
        weight: of the term; 0 is none.

    Raises:
        UsageError: shapes that do not fit; a negative s.

    Cost: one singular value decomposition of A, then two products with its factors a call.
    """

    matrix: Tensor | None = field(default=None, repr=False)
    y: Tensor | None = field(default=None, repr=False)
    std: float = 0.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.std < 0:
            raise UsageError(f"std={self.std}: the noise of a measurement is 0 or more.")
        if self.matrix is None or self.y is None:
            return
        if self.matrix.ndim != 2 or self.y.ndim != 2 or self.y.shape[1] != len(self.matrix):
            raise UsageError(
                f"a matrix {tuple(self.matrix.shape)} and measurements {tuple(self.y.shape)} do "
                "not fit: give (m, d) and (batch, m)."
            )

    def describe(self) -> dict[str, Any]:
        """Return what a receipt says of it: how much is measured, not the data."""
        n = 0 if self.matrix is None else len(self.matrix)
        return {"name": "measured", "measurements": n, "std": self.std, "weight": self.weight}

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """U, the singular values and Vᵀ of A, and Uᵀ y, of the directions that A sees."""
        if self.matrix is None or self.y is None:
            raise UsageError("Measured(matrix=..., y=...) needs the measurements.")
        u, values, v = torch.linalg.svd(self.matrix.double(), full_matrices=False)
        seen = values > 1e-10 * values[0]
        return u[:, seen], values[seen], v[seen], self.y.double() @ u[:, seen]

    @property
    def is_none(self) -> bool:
        return self.weight == 0

    def term(self, now: Estimate) -> Tensor:
        x = now.x
        _, values, v, y = (each.to(x) for each in self._factors)
        if v.shape[1] != x[0].numel() or len(y) not in (1, len(x)):
            raise UsageError(
                f"a matrix for states of {v.shape[1]} elements and measurements of {len(y)} "
                f"samples were given for samples {tuple(x.shape)}."
            )
        flat = x.flatten(1)
        alpha, sigma = (bshape(c(now.t), flat) for c in (now.path.alpha, now.path.sigma))
        wrong = alpha * y - flat @ v.T * values
        variance = (sigma * values) ** 2 + (alpha * self.std) ** 2
        return self.weight * ((wrong / variance * values) @ v).view_as(x)

"""Subspaces: data that vary in d of D directions, x = m + A z, and how far samples are off them.

The score of such data splits exactly, with s_z that of z:

    ∇ log p_t(x) = A s_z(Aᵀ x, t) − (1/σ_t²)(I − A Aᵀ) x          for m = 0

What points along A is learned from data; what points off it is known, and brings every sample back
as t → 0. How many data are needed is a matter of d, not of D.

Paper: Chen et al. 2024 (arXiv:2404.07771), after Chen et al. 2023 (arXiv:2302.07194), Lemma 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.fields.oracles import Gaussian
from pathline.paths import GaussianPath

SHARE = 0.99
"""How much of the variance a subspace has to hold, where nobody says its dimension."""


@dataclass(frozen=True, eq=False)
class Subspace:
    """An affine subspace m + span A of R^D.

    Args:
        basis: A, (D, d) with orthonormal columns.
        center: m, (D,); None is 0.

    Raises:
        UsageError: columns that are not orthonormal, or as many as there are dimensions.

    Example: points of a plane in space, and one that is off it by half its own length.
        >>> import torch
        >>> plane = Subspace(torch.eye(3)[:, :2])
        >>> plane.off(torch.tensor([[3.0, 4.0, 0.0], [3.0, 4.0, 2.5]]))
        tensor([0.0000, 0.5000])
    """

    basis: Tensor
    center: Tensor | None = None

    def __post_init__(self) -> None:
        if self.basis.ndim != 2 or not 0 < self.dim < len(self.basis):
            raise UsageError(
                f"a basis is (D, d) with 0 < d < D, and was given {tuple(self.basis.shape)}: no "
                "low-dimensional structure."
            )
        square = self.basis.T @ self.basis
        if float((square - torch.eye(self.dim).to(square)).abs().max()) > 1e-4:
            raise UsageError(
                "the columns of a basis are orthonormal, and these are not; torch.linalg.qr(basis)."
                "Q makes them so."
            )

    @property
    def dim(self) -> int:
        """The dimension d of the subspace."""
        return self.basis.shape[1]

    @classmethod
    def of(cls, points: Tensor, dim: int | None = None, share: float = SHARE) -> Subspace:
        """Return the subspace of the principal components of points.

        Args:
            points: (n, *state).
            dim: d; None for as many as hold `share` of the variance.
            share: of the variance.

        Raises:
            UsageError: d ≥ D, or no d below D/2 holds so much: the spectrum is flat.
        """
        flat = points.flatten(1).double()
        center = flat.mean(0)
        triangle = torch.linalg.qr(flat - center, mode="r").R  # as exact, and much smaller
        _, values, vectors = torch.linalg.svd(triangle, full_matrices=False)
        held = values.square().cumsum(0) / values.square().sum().clamp(min=1e-300)
        whole = flat.shape[1]
        found = 1 + int((held < share).sum()) if dim is None else dim
        if dim is None and (found > whole / 2 or not float(values[0]) > 0):
            raise UsageError(
                f"no low-dimensional structure found: {share:.0%} of the variance takes {found} of "
                f"{whole} directions. Say dim=, if you know it, or take a smaller share."
            )
        if not 0 < found < min(whole, len(values) + 1):
            raise UsageError(
                f"no low-dimensional structure found: dim={found} of {whole} directions and "
                f"{len(flat)} points; a subspace has fewer than both."
            )
        return cls(vectors[:found].T.contiguous(), center)

    @classmethod
    def drawn(cls, whole: int, dim: int, seed: int = 0) -> Subspace:
        """Return a subspace through 0 that is uniform among those of `dim` of `whole` dimensions.

        Each is a function of its seed, in float64.
        """
        z = noise.normal([seed], (whole, dim), stream="data", dtype=torch.float64)[0]
        return cls(torch.linalg.qr(z).Q)

    def latent(self, x: Tensor) -> Tensor:
        """Return z = Aᵀ (x − m), (batch, d)."""
        return self._moved(x) @ self.basis.to(x)

    def lifted(self, z: Tensor) -> Tensor:
        """Return m + A z, (batch, D)."""
        x = z @ self.basis.T.to(z)
        return x if self.center is None else x + self.center.to(x)

    def projected(self, x: Tensor) -> Tensor:
        """Return the nearest points of the subspace, (batch, *state)."""
        return self.lifted(self.latent(x)).reshape(x.shape)

    def off(self, x: Tensor) -> Tensor:
        """Return ‖x − P x‖/‖P x − m‖ of every sample, (batch,): 0 on the subspace.

        It is a sample's own ratio. The mean of samples first would hide what they do: what is off
        in opposite directions cancels.
        """
        moved, basis = self._moved(x), self.basis.to(x)
        inside = moved @ basis
        outside = moved - inside @ basis.T
        return outside.norm(dim=1) / inside.norm(dim=1)

    def gap(self, other: Subspace) -> float:
        """Return ‖V Vᵀ − A Aᵀ‖_F, from 0 to √(2d): how far two subspaces' directions differ.

        Computed as √(‖(1 − A Aᵀ) V‖² + ‖(1 − V Vᵀ) A‖²), which does not cancel.
        """
        a, v = self.basis.double(), other.basis.double()
        if len(a) != len(v):
            raise UsageError(f"subspaces of R^{len(a)} and of R^{len(v)} cannot be compared.")
        parts = (v - a @ (a.T @ v)).square().sum() + (a - v @ (v.T @ a)).square().sum()
        return float(parts.sqrt())

    def gaussian(self, path: GaussianPath, covariance: Tensor | None = None) -> Gaussian:
        """Return Gaussian data on the subspace, x = m + A z, with its exact denoiser.

        Args:
            path: any Gaussian path.
            covariance: of z, (d, d) or (d,) variances; None is 1.
        """
        basis = self.basis.double()
        if covariance is None:
            covariance = torch.ones(self.dim)
        inner = covariance.to(basis)
        spread = basis * inner @ basis.T if inner.ndim == 1 else basis @ inner @ basis.T
        center = basis.new_zeros(len(basis)) if self.center is None else self.center.to(basis)
        return Gaussian(path, center, (spread + spread.T) / 2)

    def _moved(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        if flat.shape[1] != len(self.basis):
            raise UsageError(
                f"the subspace is one of R^{len(self.basis)}, and the samples are {tuple(x.shape)}."
            )
        return flat if self.center is None else flat - self.center.to(flat)

"""Exact posteriors of Gaussian mixtures under linear measurements, y = A x_0 + s n.

    p(x_0 | y) = Σ_k w_k(y) N(m_k + G_k (y − A m_k), C_k − G_k A C_k)
    G_k = C_k Aᵀ (A C_k Aᵀ + s² I)⁻¹
    w_k(y) ∝ w_k N(y; A m_k, A C_k Aᵀ + s² I)

They are what guides are held against: for each y a mixture again, that can be drawn from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.fields import Field, Gaussian, Mixture, Spherical
from pathline.steer.operators import SEEN, Dense, Operator


@dataclass(frozen=True, eq=False)
class Posterior:
    """p(x_0 | y) for every y, in float64. Directions that A does not see tell nothing.

    Args:
        means: of the prior's components, (components, elements).
        covariances: of these, (components, elements, elements).
        weights: of these, (components,).
        operator: A, of states of `shape`.
        y: (batch, *measured).
        std: s.
        shape: of a state.
    """

    means: Tensor = field(repr=False)
    covariances: Tensor = field(repr=False)
    weights: Tensor
    operator: Operator
    y: Tensor = field(repr=False)
    std: float
    shape: tuple[int, ...]

    @cached_property
    def _rows(self) -> tuple[Tensor, Tensor]:
        """A and y in the directions that A sees, (seen, elements) and (batch, seen)."""
        matrix = Dense.stacked([self.operator], self.shape).matrix
        u, values, _ = torch.linalg.svd(matrix, full_matrices=False)
        u = u[:, values > SEEN * values[0]]
        y = self.y.double().flatten(1)
        if y.shape[1] != len(matrix):
            raise UsageError(
                f"of a state {self.shape} {len(matrix)} numbers are measured, and y has "
                f"{y.shape[1]} a sample."
            )
        return u.T @ matrix, y @ u

    @cached_property
    def _gains(self) -> tuple[Tensor, Tensor]:
        """G_k, (components, elements, seen), and A C_k Aᵀ + s² I."""
        rows, _ = self._rows
        crossed = self.covariances @ rows.T
        inner = rows @ crossed + self.std**2 * torch.eye(len(rows), dtype=torch.float64)
        return torch.linalg.solve(inner, crossed.mT).mT, inner

    @cached_property
    def _log_joint(self) -> Tensor:
        """log w_k + log N(y; …), (batch, components)."""
        rows, y = self._rows
        root = torch.linalg.cholesky(self._gains[1])
        off = (y[:, None] - self.means @ rows.T).unsqueeze(-1)
        whitened = torch.linalg.solve_triangular(root, off, upper=False)[..., 0]
        size = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = len(rows) / 2 * math.log(2 * math.pi)
        return self.weights.log() - whitened.square().sum(-1) / 2 - size - constant

    @property
    def log_evidence(self) -> Tensor:
        """log p(y), (batch,)."""
        return self._log_joint.logsumexp(1)

    @property
    def shares(self) -> Tensor:
        """w_k(y), (batch, components)."""
        return self._log_joint.softmax(1)

    @cached_property
    def centres(self) -> Tensor:
        """The means of the components given y, (batch, components, elements)."""
        rows, y = self._rows
        off = y[:, None] - self.means @ rows.T
        return self.means + torch.einsum("kds,bks->bkd", self._gains[0], off)

    @property
    def mean(self) -> Tensor:
        """E[x_0 | y], (batch, *state)."""
        made = (self.shares[..., None] * self.centres).sum(1)
        return made.reshape(-1, *self.shape)

    @property
    def covariance(self) -> Tensor:
        """Cov[x_0 | y], (batch, elements, elements)."""
        rows, _ = self._rows
        within = self.covariances - self._gains[0] @ rows @ self.covariances
        off = self.centres - self.mean.flatten(1)[:, None]
        spread = torch.einsum("bk,bki,bkj->bij", self.shares, off, off)
        return torch.einsum("bk,kij->bij", self.shares, within) + spread

    def draw(self, seeds: Sequence[int]) -> Tensor:
        """Return a draw for every seed, (batch, *state): under its own y, or the only one."""
        if len(self.y) not in (1, len(seeds)):
            raise UsageError(f"{len(seeds)} seeds were given for {len(self.y)} measurements.")
        rows, y = self._rows
        n = len(seeds)

        def normal(size: int, index: int) -> Tensor:
            return noise.normal(seeds, (size,), stream="data", index=index, dtype=torch.float64)

        u = noise.uniform(seeds, (1,), stream="data", index=2, dtype=torch.float64)
        edges = self.shares.cumsum(1).expand(n, -1).contiguous()
        which = torch.searchsorted(edges, u.contiguous())[:, 0].clamp(max=len(self.means) - 1)
        values, vectors = torch.linalg.eigh(self.covariances)
        roots = vectors * values.clamp(min=0).sqrt()[:, None]
        z = normal(self.means.shape[1], 0)
        x = self.means[which] + torch.einsum("bij,bj->bi", roots[which], z)
        off = y - x @ rows.T - self.std * normal(len(rows), 1)
        made = x + torch.einsum("bds,bs->bd", self._gains[0][which], off)
        return made.reshape(-1, *self.shape)


def posterior(law: Field, operator: Operator, y: Tensor, std: float) -> Posterior:
    """Return the exact posterior of an oracle's data given linear measurements of them.

    Args:
        law: a `Gaussian`, `Mixture` or `Spherical`.
        operator: A.
        y: (batch, *measured).
        std: s; 0 where they hold exactly.

    Raises:
        UsageError: the data have no closed posterior; s below 0; y of another shape.

    Cost: a factorisation of (measurements, measurements) a component.
    """
    if std < 0:
        raise UsageError(f"std={std}: the noise of a measurement is 0 or more.")
    parts = _components(law)
    assert law.shape is not None
    made = Posterior(*parts, operator, y, std, law.shape)
    _ = made._rows  # refuses y of another shape
    return made


def _components(law: Field) -> tuple[Tensor, Tensor, Tensor]:
    """Return means, covariances and weights of a law's components, in float64."""
    if isinstance(law, Gaussian):
        covariance = law.covariance.double()
        covariance = covariance.diag() if covariance.ndim == 1 else covariance
        return law.mean.double()[None], covariance[None], torch.ones(1, dtype=torch.float64)
    if isinstance(law, Mixture):
        return law.means.double(), torch.diag_embed(law.stds.double() ** 2), law.weights.double()
    if isinstance(law, Spherical):
        means = law.means.double().flatten(1)
        eye = torch.eye(means.shape[1], dtype=torch.float64)
        return means, law.stds.double()[:, None, None] ** 2 * eye, law.weights.double()
    raise UsageError(
        f"{type(law).__name__} has no posterior in closed form; Gaussian, Mixture and Spherical do."
    )

"""Entropic optimal transport between samples, in the logarithmic domain.

    π_ij = a_i b_j exp((φ_i + ψ_j − c_ij)/ε),   Σ_j π_ij = a_i,   Σ_i π_ij = b_j

The potentials extend to new points by the half-step that makes them (a soft minimum):

    φ(x) = −ε log Σ_j b_j exp((ψ_j − c(x, y_j))/ε),   and ψ(y) alike

Paper: Cuturi 2013; the iterations are POT's (Flamary et al. 2021).
"""

from __future__ import annotations

import importlib
import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import MissingExtra
from pathline.learn.couplings.coupling import Cost, check_cost, check_eps, costs

__all__ = ["Potentials", "Transport", "pot", "sinkhorn"]


@dataclass(frozen=True, eq=False)
class Transport:
    """An entropic plan between two finite laws.

    Args:
        log_plan: (n, m) float64.
        phi: (n,), the source's potential.
        psi: (m,), the data's.
        error: how far the data's marginal is from what it should be, Euclidean.
    """

    log_plan: Tensor
    phi: Tensor
    psi: Tensor
    error: float

    @cached_property
    def plan(self) -> Tensor:
        """The joint law, (n, m) float64."""
        return self.log_plan.exp()


def sinkhorn(  # noqa: PLR0913 - the two laws and the two ends of the iteration, by keyword
    cost: Tensor,
    eps: float,
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
    start: Tensor | None = None,
    tolerance: float = 1e-9,
    iterations: int = 2000,
) -> Transport:
    """Return the entropic plan of a cost matrix.

    Args:
        cost: (n, m).
        eps: the temperature, in the units of the cost.
        a: (n,), masses of the source; uniform if None.
        b: (m,), of the data.
        start: (n,), the source's potential to begin with; zero if None.
        tolerance: of the marginal, Euclidean.
        iterations: at most; more are needed the smaller `eps` is beside the cost. Warns when they
            do not suffice.

    Raises:
        UsageError: eps is no temperature.
        MissingExtra: POT is not installed.

    Cost: O(n m) an iteration.
    """
    check_eps(eps)
    n, m = cost.shape
    a = torch.full((n,), 1 / n, dtype=torch.float64) if a is None else a.double()
    b = torch.full((m,), 1 / m, dtype=torch.float64) if b is None else b.double()
    cost = cost.double()
    warm = None if start is None else ((start / eps + a.log()).numpy(), torch.zeros(m).numpy())
    _, log = pot().bregman.sinkhorn_log(
        a.numpy(),
        b.numpy(),
        cost.numpy(),
        eps,
        numItermax=iterations,
        stopThr=tolerance,
        log=True,
        warn=False,
        warmstart=warm,
    )
    u, v = torch.from_numpy(log["log_u"]), torch.from_numpy(log["log_v"])
    error = float(log["err"][-1])
    if error > tolerance:
        warnings.warn(
            f"Sinkhorn's iteration was cut off after {iterations} with a marginal that is off by "
            f"{error:.2g}; raise eps = {eps:g} or the number of iterations.",
            stacklevel=2,
        )
    log_plan = u[:, None] + v - cost / eps
    return Transport(log_plan, eps * (u - a.log()), eps * (v - b.log()), error)


@dataclass(frozen=True, eq=False)
class Potentials:
    """Sinkhorn potentials of two laws, known on samples and extended to every point.

    Args:
        x: (n, *state), of the source.
        y: (m, *state), of the data.
        phi: (n,) float64.
        psi: (m,) float64.
        eps: the temperature.
        cost: "distance" or "squared".
    """

    x: Tensor
    y: Tensor
    phi: Tensor
    psi: Tensor
    eps: float
    cost: Cost

    @classmethod
    def between(cls, x: Tensor, y: Tensor, eps: float, cost: Cost) -> Potentials:
        """Return the potentials of two samples, each point of a sample alike."""
        check_cost(cost)
        found = sinkhorn(costs(x, y, cost), eps)
        return cls(x, y, found.phi, found.psi, eps, cost)

    def at(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return φ(x), (k,), and ψ(y), (l,), in float64."""
        phi = self._soft_minimum(costs(x, self.y, self.cost), self.psi)
        psi = self._soft_minimum(costs(y, self.x, self.cost), self.phi)
        return phi, psi

    def _soft_minimum(self, cost: Tensor, other: Tensor) -> Tensor:
        mean = ((other - cost) / self.eps).logsumexp(1) - math.log(len(other))
        return -self.eps * mean


def pot() -> Any:
    """Return POT.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module("ot")
    except ImportError as error:
        raise MissingExtra("ot", "ot", "for optimal transport") from error

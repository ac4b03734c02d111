"""Weighted flow matching: pairs stay random, and each counts by how close its ends are.

    w(x, y) = exp(−c(x, y)/ε)

The minimiser is that of plain flow matching under π_w ∝ w μ ⊗ ν, which is the entropic plan between
*its own* marginals: μ and ν tilted by h(x) = ∫ w dν and g(y) = ∫ w dμ. The general plan has factors
exp((φ(x) + ψ(y))/ε) too, Sinkhorn's potentials; where symmetry makes them constant nothing is lost,
elsewhere straightness is bought with bias: `diagnose` says how much.

Paper: Calvo-Ordoñez et al. 2025 (arXiv:2507.22270).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.learn.couplings.coupling import (
    Cost,
    Coupling,
    check_cost,
    check_eps,
    costs,
    couplings,
    pair_costs,
)
from pathline.learn.couplings.diagnose import choose_eps, diagnose
from pathline.learn.couplings.sinkhorn import Potentials
from pathline.learn.couplings.weighing import FEWEST, effective

__all__ = ["BalancedGibbs", "Gibbs"]

UNDERFLOW = -745.0
"""Where exp is zero in float64."""
FAR = 100.0
"""Standard deviations of log w with which hardly any batch has two pairs that count."""


@couplings.register("gibbs", aliases=("w_cfm", "weighted"), paper="arXiv:2507.22270 (W-CFM)")
@dataclass(frozen=True, eq=False)
class Gibbs(Coupling):
    """Random pairs, weighted by exp(−c/ε).

    Choose it for straighter flows at the price of plain flow matching, where `diagnose` finds
    little tilt; not for data of many dimensions, where a few central ones take all the weight.

    Args:
        eps: the temperature, in the units of the cost; None is chosen by `fitted` (`choose_eps`).
        cost: "distance" or "squared"; the square is the one whose entropic plans approximate the
            Wasserstein-2 coupling.
    """

    eps: float | None = None
    cost: Cost = "distance"
    is_weighted = True

    def __post_init__(self) -> None:
        check_cost(self.cost)
        if self.eps is not None:
            check_eps(self.eps)

    @property
    def temperature(self) -> float:
        """The temperature, which must be known by now."""
        if self.eps is None:
            raise UsageError("this coupling has no temperature yet: give eps, or use fitted(x, y).")
        return self.eps

    def plan(self, x: Tensor, y: Tensor) -> Tensor:
        return _normalised(-costs(x, y, self.cost) / self.temperature)

    def log_weight(self, x: Tensor, y: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return −c/ε, (n,).

        Raises:
            UsageError: all weights but one are nothing beside it.
        """
        cost = pair_costs(x, y, self.cost)
        return _checked(-cost / self.temperature, cost, self.temperature)

    def fitted(self, x: Tensor, y: Tensor, labels: Tensor | None = None) -> Self:
        """Return the coupling with a temperature, and warn of the bias that it brings."""
        made = self if self.eps is not None else replace(self, eps=choose_eps(x, y, self.cost))
        found = diagnose(made, x, y)
        if not found.is_faithful:
            warnings.warn(
                f"at eps = {made.eps:g} the weights tilt the source by {found.tilt_x:.2g} and the "
                f"data by {found.tilt_y:.2g} in total variation: the sampled law is biased. Raise "
                "eps, or use the coupling 'balanced_gibbs'.",
                stacklevel=2,
            )
        return made


@couplings.register("balanced_gibbs", aliases=("balanced",))
@dataclass(frozen=True, eq=False)
class BalancedGibbs(Gibbs):
    """Random pairs, weighted by exp((φ(x) + ψ(y) − c)/ε): the entropic plan, without tilt.

    The potentials are found once, by Sinkhorn on a sample (`fitted`), for each class apart. Not of
    the paper.

    Args:
        eps: the temperature; None is chosen by `fitted`.
        cost: "distance" or "squared".
        potentials: by class; under None those of unconditional data.

    Cost: two sums over the sample a pair.
    """

    potentials: Mapping[int | None, Potentials] = field(default_factory=lambda: {}, repr=False)
    needs_classes = True

    def plan(self, x: Tensor, y: Tensor) -> Tensor:
        phi, psi = self._known(None).at(x, y)
        return _normalised((phi[:, None] + psi - costs(x, y, self.cost)) / self.temperature)

    def log_weight(self, x: Tensor, y: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return (φ(x) + ψ(y) − c)/ε, (n,)."""
        cost = pair_costs(x, y, self.cost)
        log_weight = torch.empty_like(cost)
        for label, rows in _classes(labels, len(y)):
            phi, psi = self._known(label).at(x[rows], y[rows])
            log_weight[rows] = (phi + psi - cost[rows]) / self.temperature
        return _checked(log_weight, cost, self.temperature)

    def fitted(self, x: Tensor, y: Tensor, labels: Tensor | None = None) -> Self:
        """Return the coupling with its potentials on a sample, and on each class of it."""
        eps = choose_eps(x, y, self.cost) if self.eps is None else self.eps
        known = {
            label: Potentials.between(x[rows], y[rows], eps, self.cost)
            for label, rows in _classes(labels, len(y))
        }
        return replace(self, eps=eps, potentials=known)

    def _known(self, label: int | None) -> Potentials:
        if label not in self.potentials:
            of = "" if label is None else f" of class {label}"
            raise UsageError(
                f"the potentials{of} are not known: use fitted(x, y) on a sample that has them."
            )
        return self.potentials[label]


def _classes(labels: Tensor | None, n: int) -> list[tuple[int | None, Tensor]]:
    """Return each class with its rows; one class without a name where there are no labels."""
    if labels is None:
        return [(None, torch.arange(n))]
    return [(int(label), (labels == label).nonzero()[:, 0]) for label in labels.unique()]


def _normalised(log_weight: Tensor) -> Tensor:
    return (log_weight - log_weight.logsumexp((0, 1))).exp()


def _checked(log_weight: Tensor, cost: Tensor, eps: float) -> Tensor:
    """Return the weights of a batch, or refuse those of which one alone is left, not by chance."""
    if not math.isfinite(float(cost.sum())):
        raise UsageError("a cost is not finite: the source or the data hold a NaN or an infinity.")
    left = int((log_weight - log_weight.max() > UNDERFLOW).sum())
    if len(log_weight) == 1:
        return log_weight
    is_far = float(log_weight.std()) > FAR and effective(log_weight) < FEWEST
    if left == 1 or is_far:
        std = float(cost.std())
        raise UsageError(
            f"eps = {eps:g} is far below the cost scale (std c = {std:.3g}): beside one weight of "
            f"the batch all others are nothing; try eps = {std:.2g}, or leave it to be chosen."
        )
    return log_weight

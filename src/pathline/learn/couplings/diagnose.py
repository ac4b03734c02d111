"""What a coupling does to the two laws, and the smallest temperature that does little harm.

On a sample of n sources and n data, with the plan W_ij (sum one, rows a, columns b):

    ESS = 1/(n² Σ W_ij²)        share of the pairs that carry weight
    tilt = ½ Σ |a_i − 1/n|      total variation between the law trained on and the law meant
    cost = Σ W_ij c_ij          mean cost of a pair
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from torch import Tensor

from pathline.core.errors import UsageError
from pathline.learn.couplings.coupling import Cost, Coupling, check_cost, costs

__all__ = ["Diagnosis", "choose_eps", "diagnose"]

MULTIPLES = (0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0)
"""Temperatures that are tried, in standard deviations of the cost."""
ESS, TILT_X, TILT_Y = 0.3, 0.15, 0.1
"""The limits: the effective share of pairs, and the tilt of the source and of the data."""


@dataclass(frozen=True)
class Diagnosis:
    """What a coupling does on a sample.

    Args:
        ess: the effective share of the pairs; 1 for couplings without weights.
        tilt_x: total variation of the source's marginal.
        tilt_y: of the data's.
        cost: mean cost of a pair.
    """

    ess: float
    tilt_x: float
    tilt_y: float
    cost: float

    @property
    def is_faithful(self) -> bool:
        """Whether both marginals are nearly what they were."""
        return self.tilt_x <= TILT_X and self.tilt_y <= TILT_Y

    @property
    def is_useful(self) -> bool:
        """Whether enough pairs count, too."""
        return self.is_faithful and self.ess >= ESS


def diagnose(coupling: Coupling, x: Tensor, y: Tensor, cost: Cost | None = None) -> Diagnosis:
    """Return what a coupling does on a sample.

    Args:
        coupling: any.
        x: (n, *state), of the source.
        y: (m, *state), of the data.
        cost: in which pairs are priced; the coupling's own if None, else the distance.
    """
    priced: Cost = cost or getattr(coupling, "cost", "distance")
    return _of_plan(coupling.plan(x, y), costs(x, y, priced), coupling.is_weighted)


def choose_eps(x: Tensor, y: Tensor, cost: Cost = "distance") -> float:
    """Return the smallest temperature at which enough pairs count and little is tilted.

    Those tried are 0.3 to 10 standard deviations of the cost. If none will do the largest is
    returned, with a warning.

    Args:
        x: (n, *state), a sample of the source; a thousand are enough.
        y: (m, *state), of the data.
        cost: "distance" or "squared".

    Raises:
        UsageError: all costs are the same, or not finite.
    """
    check_cost(cost)
    c = costs(x, y, cost)
    scale = float(c.std())
    if not 0 < scale < float("inf"):
        raise UsageError(
            f"the costs have a standard deviation of {scale:g}: no temperature can be chosen."
        )
    for multiple in MULTIPLES:
        eps = multiple * scale
        if _of_plan(_gibbs(c, eps), c, is_weighted=True).is_useful:
            return eps
    eps = MULTIPLES[-1] * scale
    warnings.warn(
        f"weighting pairs buys nothing here: even at eps = {eps:.3g}, ten standard deviations of "
        "the cost, too few pairs count or the laws are tilted.",
        stacklevel=2,
    )
    return eps


def _gibbs(cost: Tensor, eps: float) -> Tensor:
    return (-cost / eps - (-cost / eps).logsumexp((0, 1))).exp()


def _of_plan(plan: Tensor, cost: Tensor, is_weighted: bool) -> Diagnosis:
    ess = float(1 / (plan.numel() * plan.square().sum())) if is_weighted else 1.0
    return Diagnosis(ess, _tilt(plan.sum(1)), _tilt(plan.sum(0)), float((plan * cost).sum()))


def _tilt(marginal: Tensor) -> float:
    return float((marginal - 1 / len(marginal)).abs().sum() / 2)

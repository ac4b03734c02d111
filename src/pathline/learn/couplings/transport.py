"""Minibatch optimal transport: data are paired with the nearest noise that is left in the batch.

The straighter flow costs a solve a step, and its quality depends on the batch: a small batch has
nothing near to offer.

Paper: Tong et al. 2023 (arXiv:2302.00482), OT-CFM and SB-CFM; Pooladian et al. 2023
(arXiv:2304.14772).
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import torch
from torch import Tensor

from pathline.core.errors import MissingExtra, UsageError
from pathline.learn.couplings.coupling import (
    Cost,
    Coupling,
    check_cost,
    check_eps,
    costs,
    couplings,
)
from pathline.learn.couplings.sinkhorn import pot, sinkhorn

__all__ = ["ExactOT", "Sinkhorn", "assignment", "wasserstein"]

LARGEST = 4096
"""The largest batch of an exact assignment: its time grows as the cube, half a minute there."""


@couplings.register("exact_ot", aliases=("ot", "ot_cfm"), paper="arXiv:2302.00482 (OT-CFM)")
@dataclass(frozen=True)
class ExactOT(Coupling):
    """The assignment within the batch with the smallest total cost.

    Args:
        cost: "squared" for the Wasserstein-2 coupling, or "distance".

    Cost: O(B³) a step on the CPU.
    """

    cost: Cost = "squared"
    needs_classes = True

    def __post_init__(self) -> None:
        check_cost(self.cost)

    def plan(self, x: Tensor, y: Tensor) -> Tensor:
        _check_size(len(x), len(y))
        cost = costs(x, y, self.cost)
        if len(x) != len(y):
            return torch.from_numpy(pot().emd([], [], cost.numpy()))
        plan = torch.zeros_like(cost)
        plan[assignment(cost), torch.arange(len(y))] = 1 / len(y)
        return plan

    def partners(self, x: Tensor, y: Tensor, generator: torch.Generator | None) -> Tensor:
        _check_size(len(x), len(y))
        if len(x) == len(y):
            return assignment(costs(x, y, self.cost))
        return _drawn(self.plan(x, y), generator)


@couplings.register("sinkhorn", aliases=("entropic_ot",), paper="arXiv:2302.00482 (SB-CFM)")
@dataclass(frozen=True)
class Sinkhorn(Coupling):
    """The entropic plan within the batch: each datum draws its partner from the plan.

    Args:
        eps: the temperature, in the units of the cost.
        cost: "distance" or "squared".

    Cost: O(B²) an iteration, hundreds of iterations a step.
    """

    eps: float
    cost: Cost = "squared"
    needs_classes = True

    def __post_init__(self) -> None:
        check_eps(self.eps)
        check_cost(self.cost)

    def plan(self, x: Tensor, y: Tensor) -> Tensor:
        return sinkhorn(costs(x, y, self.cost), self.eps).plan

    def partners(self, x: Tensor, y: Tensor, generator: torch.Generator | None) -> Tensor:
        return _drawn(self.plan(x, y), generator)


def assignment(cost: Tensor) -> Tensor:
    """Return for each column the row that the cheapest one-to-one assignment gives it, (n,) int64.

    Args:
        cost: (n, n).

    Raises:
        MissingExtra: scipy is not installed.
    """
    try:
        optimize = importlib.import_module("scipy.optimize")
    except ImportError as error:
        raise MissingExtra("scipy", "ot", "for optimal transport") from error
    _, rows = optimize.linear_sum_assignment(cost.double().T.numpy())
    return torch.from_numpy(rows).long()


def wasserstein(x: Tensor, y: Tensor) -> float:
    """Return the exact Wasserstein-2 distance of two samples of one size.

    Two samples of one law are not at distance zero: say what those get beside it.

    Args:
        x: (n, *state).
        y: (n, *state); another size would make another bias, and is refused.

    Cost: O(n³).
    """
    if len(x) != len(y):
        raise UsageError(
            f"samples of {len(x)} and {len(y)} are biased differently; compare equally many."
        )
    cost = ExactOT().plan(x, y) * costs(x, y, "squared")
    return float(cost.sum().sqrt())


def _drawn(plan: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw a row for every column of a plan, (m,) int64."""
    return torch.multinomial(plan.T, 1, generator=generator)[:, 0]


def _check_size(n: int, m: int) -> None:
    if max(n, m) > LARGEST:
        raise UsageError(
            f"exact optimal transport of {max(n, m)} samples is refused: its time grows as the "
            f"cube of the batch. Use at most {LARGEST}, or the coupling 'sinkhorn' or 'gibbs'."
        )

"""Couplings: which noise a datum is paired with in training, and how much a pair counts.

    L = E_(x,y)~π w(x, y) ‖v(z_t, t) − (x − y)‖²,   z_t = (1 − t) y + t x

x is the source (noise, or other data), y the data. Any joint law with the right marginals leads to
a flow from one to the other; the closer the ends of its pairs are, the straighter is the flow. A
coupling changes the partners, the weights, or neither, and data keep their order: whatever else is
known of a datum (its class, its caption) stays with it.

Under a condition the flow of each class must end at that class's data and begin at *all* of the
source, so partners are exchanged within a class and never across.

Paper: Tong et al. 2023 (arXiv:2302.00482); Calvo-Ordoñez et al. 2025 (arXiv:2507.22270).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor

from pathline.core.errors import UsageError, unknown
from pathline.core.registry import Registry

Cost = Literal["distance", "squared"]

couplings: Registry[Coupling] = Registry("coupling")
"""Every coupling, by name."""


class Pairs(NamedTuple):
    """Pairs, and the logarithms of their weights.

    x: (n, *state), the source; x[i] goes with y[i].
    y: (n, *state), the data, in the order in which they were given.
    log_weight: (n,) float64; zeros where all pairs count alike.
    """

    x: Tensor
    y: Tensor
    log_weight: Tensor


class Coupling(ABC):
    """A rule that pairs a batch of the source with a batch of data.

    Subclasses give `plan`, and `partners` or `log_weight` where they change those.
    """

    is_weighted: ClassVar[bool] = False
    """Whether some pairs count more than others."""
    needs_classes: ClassVar[bool] = False
    """Whether conditional data must say which of them may exchange partners."""

    @abstractmethod
    def plan(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the joint law over all pairs of two samples, (n, m) float64 with sum one.

        Args:
            x: (n, *state).
            y: (m, *state).
        """

    def partners(self, x: Tensor, y: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return which x each y is paired with, (m,) int64; here those at the same place."""
        if len(x) == len(y):
            return torch.arange(len(y))
        return torch.randint(len(x), (len(y),), generator=generator)

    def log_weight(self, x: Tensor, y: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the logarithm of each pair's weight, (n,) float64; here 0."""
        del x, labels
        return torch.zeros(len(y), dtype=torch.float64)

    def fitted(self, x: Tensor, y: Tensor, labels: Tensor | None = None) -> Self:
        """Return the coupling with what it must know of the two laws, learned from samples.

        Args:
            x: (n, *state), a sample of the source.
            y: (n, *state), of the data.
            labels: (n,), the classes of the data.
        """
        del x, y, labels
        return self

    def pair(
        self,
        x: Tensor,
        y: Tensor,
        generator: torch.Generator | None = None,
        *,
        labels: Tensor | None = None,
        source_labels: Tensor | None = None,
    ) -> Pairs:
        """Return pairs, as many as there are data.

        Args:
            x: (n, *state), of the source; fewer or more than data are drawn from with replacement.
            y: (m, *state), the data.
            generator: of what is drawn; torch's own if None.
            labels: (m,) int64, the classes of the data: partners are exchanged within a class.
            source_labels: (n,) int64, the classes of the source, if it has the same classes. None
                is a source without classes: those drawn beside the data of a class stay with it.

        Raises:
            UsageError: shapes differ, or a pair would have two classes.
        """
        check_shapes(x, y)
        index = self._partners_in_classes(x, y, generator, labels, source_labels)
        chosen = x[index]
        return Pairs(chosen, y, self.log_weight(chosen, y, labels))

    def _partners_in_classes(
        self,
        x: Tensor,
        y: Tensor,
        generator: torch.Generator | None,
        labels: Tensor | None,
        source_labels: Tensor | None,
    ) -> Tensor:
        if labels is None:
            return self.partners(x, y, generator)
        of_x = _source_classes(len(x), labels, source_labels)
        index = torch.empty(len(y), dtype=torch.int64)
        for label in labels.unique():
            rows, columns = (labels == label).nonzero()[:, 0], (of_x == label).nonzero()[:, 0]
            if not len(columns):
                raise UsageError(
                    f"the batch has data of class {int(label)} and no source sample of that class: "
                    "pairs would be mixed across classes. Draw the source by the data's classes."
                )
            index[rows] = columns[self.partners(x[columns], y[rows], generator)]
        return index


@couplings.register("independent", aliases=("random",), paper="arXiv:2302.00482 (I-CFM)")
@dataclass(frozen=True)
class Independent(Coupling):
    """Every datum with whatever was drawn beside it."""

    def plan(self, x: Tensor, y: Tensor) -> Tensor:
        check_shapes(x, y)
        return torch.full((len(x), len(y)), 1 / (len(x) * len(y)), dtype=torch.float64)


def check_shapes(x: Tensor, y: Tensor) -> None:
    """Refuse samples of which no pair has a cost."""
    if x.shape[1:] != y.shape[1:]:
        raise UsageError(
            f"a cost needs equal shapes; the source's samples are {tuple(x.shape[1:])} and the "
            f"data's {tuple(y.shape[1:])}: supply a feature map, or resize one of them."
        )
    if not len(x) or not len(y):
        raise UsageError(f"{len(x)} source samples and {len(y)} data make no pair.")


def check_cost(cost: str) -> None:
    """Refuse a cost that nobody knows."""
    if cost not in get_args(Cost):
        raise unknown("cost", str(cost), get_args(Cost))


def check_eps(eps: float) -> None:
    """Refuse a temperature that is none."""
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < math.inf:
        raise UsageError(f"a temperature eps is a finite number above 0; it is {eps!r}.")


def pair_costs(x: Tensor, y: Tensor, cost: Cost) -> Tensor:
    """Return c(x_i, y_i), (n,) float64: ‖x − y‖ or its square."""
    check_shapes(x, y)
    if len(x) != len(y):
        raise UsageError(f"{len(x)} source samples and {len(y)} data do not pair.")
    squared = (x.double() - y.double()).flatten(1).square().sum(1)
    return squared if cost == "squared" else squared.sqrt()


def costs(x: Tensor, y: Tensor, cost: Cost) -> Tensor:
    """Return c(x_i, y_j), (n, m) float64, free of cancellation."""
    check_shapes(x, y)
    a, b = x.double().flatten(1), y.double().flatten(1)
    distance = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.square() if cost == "squared" else distance


def _source_classes(n: int, labels: Tensor, source_labels: Tensor | None) -> Tensor:
    """Return the class that each source sample may serve."""
    of_x = labels if source_labels is None else source_labels
    if len(of_x) != n:
        raise UsageError(
            f"{n} source samples and {len(of_x)} classes were given; say each one's class."
        )
    return of_x

"""Wasserstein-2 distance of histograms: for more samples than exact transport can pair.

Samples are counted in the cells of a grid, and the exact transport between the counts moves mass
between centres of cells. It errs by at most a cell's diagonal, and, like every distance of samples,
does not vanish between two samples of one law: their distance is the *floor*, and stands beside it.

Paper: as Deveney et al. 2023 (arXiv:2311.15996) compare samples of an ODE, of an SDE, and data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any, NamedTuple

from torch import Tensor

from pathline.core.errors import UsageError
from pathline.core.solution import Solution
from pathline.learn.couplings.sinkhorn import pot
from pathline.solvers.gap import check_same_way

__all__ = ["Gap", "HistogramDistance", "Histograms", "compare_ways"]

MOST_DIMENSIONS = 3
_ITERATIONS = 10_000_000


class HistogramDistance(NamedTuple):
    """A distance, and how many samples it knows nothing of.

    Args:
        w2: between the histograms of what lies in the box.
        outside: samples of either set outside the box.
    """

    w2: float
    outside: tuple[int, int]


@dataclass(frozen=True)
class Histograms:
    """The grid on which samples are counted.

    Args:
        bins: cells along each side.
        box: half the side of the cube that they fill, about the origin.

    Example: one cell to the right.
        >>> import torch
        >>> x = torch.tensor([[0.05, 0.05]])
        >>> grid = Histograms(bins=80)
        >>> f"{grid.distance(x, x + torch.tensor([0.1, 0.0])).w2:.6f}"
        '0.100000'
    """

    bins: int = 64
    box: float = 4.0

    def __post_init__(self) -> None:
        if self.bins < 1 or not self.box > 0:
            raise UsageError(
                f"a histogram needs bins ≥ 1 and a box above 0; they are {self.bins}, {self.box}."
            )

    def distance(self, x: Tensor, y: Tensor) -> HistogramDistance:
        """Return the Wasserstein-2 distance of two sets of points; the same both ways, to the bit.

        Args:
            x: (n, dim), dim at most three.
            y: (m, dim); another size would make another bias: say the floor of both.

        Raises:
            UsageError: more dimensions than a histogram can have; no point inside the box.
            MissingExtra: POT is not installed.

        Cost: that of exact transport between the occupied cells, seconds for two thousand.
        """
        if x.ndim != 2 or x.shape[1:] != y.shape[1:] or x.shape[1] > MOST_DIMENSIONS:
            raise UsageError(
                f"histograms are of points (n, dim) with dim ≤ {MOST_DIMENSIONS}, and these are "
                f"{tuple(x.shape)} and {tuple(y.shape)}."
            )
        counted = [self._counted(v.detach().double().cpu()) for v in (x, y)]
        outside = counted[0][2], counted[1][2]
        one, other = sorted((c[:2] for c in counted), key=_order)  # a sum has one order
        if one[0].equal(other[0]) and one[1].equal(other[1]):
            return HistogramDistance(0.0, outside)
        (centres, mass), (centres2, mass2) = one, other
        cost = (centres[:, None] - centres2).square().sum(-1)
        squared = pot().emd2(mass.numpy(), mass2.numpy(), cost.numpy(), numItermax=_ITERATIONS)
        return HistogramDistance(max(float(squared), 0.0) ** 0.5, outside)

    def _counted(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        """Return the centres of the occupied cells, their shares, and how many points are out."""
        cell = 2 * self.box / self.bins
        index = ((x + self.box) / cell).floor().long()
        inside = ((index >= 0) & (index < self.bins)).all(1) & x.isfinite().all(1)
        if not bool(inside.any()):
            raise UsageError(
                f"none of the {len(x)} points lies in the box [−{self.box:g}, {self.box:g}]; take "
                "a larger one."
            )
        cells, counts = index[inside].unique(dim=0, return_counts=True)
        centres = (cells.double() + 0.5) * cell - self.box
        return centres, counts.double() / counts.sum(), int((~inside).sum())


def _order(counted: tuple[Tensor, Tensor]) -> tuple[list[float], list[float]]:
    centres, mass = counted
    return centres.flatten().tolist(), mass.tolist()


@dataclass(frozen=True)
class Gap:
    """How far apart one model's two laws and the data are; Wasserstein-2 distances of histograms.

    Args:
        ode_sde: the gap.
        ode_data: of the probability flow's samples.
        sde_data: of the reverse SDE's.
        floor: the mean between two samples of the data: what any of these is at best.
        outside: samples outside the box, of the ODE, of the SDE, of the data.
        n: samples in each set.
    """

    ode_sde: float
    ode_data: float
    sde_data: float
    floor: float
    outside: tuple[int, int, int]
    n: int

    @property
    def excess(self) -> float:
        """What of the gap is not the floor."""
        return self.ode_sde - self.floor

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def compare_ways(
    ode: Solution,
    sde: Solution,
    data: Tensor,
    more: Sequence[Tensor],
    histograms: Histograms | None = None,
) -> Gap:
    """Return the distances between the ODE's samples, the SDE's, and data.

    Args:
        ode, sde: of one model on one grid (`solvers.gap.ode_and_sde`).
        data: (n, dim).
        more: other draws of the same law, (n, dim) each, for the floor: the mean distance from each
            to the next, beginning at `data`. One is little where modes' shares fluctuate.
        histograms: the grid; 64 × 64 on [−4, 4]² if None.

    Raises:
        UsageError: the grids or their ends differ; sets of different sizes, which are biased
            differently.
    """
    check_same_way(ode, sde)
    sets = {"ODE": ode.x, "SDE": sde.x, "data": data}
    sets |= {f"further data {k}": x for k, x in enumerate(more, 1)}
    if len({len(x) for x in sets.values()}) > 1 or not more:
        sizes = ", ".join(f"{len(x)} of {name}" for name, x in sets.items())
        raise UsageError(
            f"samples are compared in equal numbers, with further data for the floor: {sizes}."
        )
    how = histograms or Histograms()
    gap, of_ode, of_sde = (
        how.distance(a, b) for a, b in ((ode.x, sde.x), (ode.x, data), (sde.x, data))
    )
    outside = *gap.outside, of_ode.outside[1]
    floor = fmean(how.distance(a, b).w2 for a, b in pairwise((data, *more)))
    return Gap(gap.w2, of_ode.w2, of_sde.w2, floor, outside, len(data))

"""Plans of couplings between finite samples, beside Sinkhorn's: what claims of W-CFM read.

300 standard normals and 300 draws of eight Gaussians (radius 4, σ 0.3), cost ‖x − y‖.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from pathline.core import noise
from pathline.fields.problems import eight_gaussians
from pathline.learn import BalancedGibbs, Coupling, ExactOT, Gibbs, Independent, Sinkhorn
from pathline.learn.couplings import Diagnosis, Weighing, diagnose, sinkhorn
from pathline.learn.couplings.coupling import Cost, costs
from pathline.paths import CondOT

COST: Cost = "distance"
EPS = (0.5, 1.0, 2.0, 5.0, 20.0)
BATCHES = (4, 16, 64)
LAW = eight_gaussians(CondOT())


def normals(n: int, dim: int = 2, index: int = 0) -> Tensor:
    """Return standard normals, (n, dim) float64."""
    return noise.normal(range(n), (dim,), stream="probe", index=index, dtype=torch.float64)


def entropic_plan(plan: Tensor, cost: Tensor, eps: float) -> Tensor:
    """Return Sinkhorn's plan between the marginals of a plan, from a random potential."""
    start = eps * normals(len(plan), 1, index=1)[:, 0]
    marginals = {"a": plan.sum(1), "b": plan.sum(0)}
    return sinkhorn(cost, eps, **marginals, start=start, tolerance=1e-14, iterations=20_000).plan


@dataclass(frozen=True)
class Plans:
    """Couplings of the two samples; everything is computed when first asked for, and once."""

    x: Tensor = field(default_factory=lambda: normals(300))
    y: Tensor = field(default_factory=lambda: LAW.draw(range(300)))

    @cached_property
    def costs(self) -> Tensor:
        """All pairs' distances, (300, 300)."""
        return costs(self.x, self.y, COST)

    def own_plan_error(self) -> float:
        """Return how far the weights are from the entropic plan between their own marginals."""
        plans = {eps: Gibbs(eps).plan(self.x, self.y) for eps in EPS}
        return max(
            float((plan - entropic_plan(plan, self.costs, eps)).abs().max())
            for eps, plan in plans.items()
        )

    @cached_property
    def biases(self) -> list[float]:
        """Total variation to the entropic plan with uniform marginals, by ε."""
        pairs = ((Gibbs(eps), Sinkhorn(eps, COST)) for eps in EPS)
        plans = ([c.plan(self.x, self.y) for c in pair] for pair in pairs)
        return [float((a - b).abs().sum() / 2) for a, b in plans]

    def bias_falls(self) -> float:
        """Return the largest ratio of a bias to that at the next smaller ε."""
        return max(b / a for a, b in zip(self.biases, self.biases[1:], strict=False))

    @cached_property
    def diagnoses(self) -> Mapping[str, Diagnosis]:
        """What couplings do at ε = 1, priced by the distance."""
        made: dict[str, Coupling] = {"none": Independent(), "W": Gibbs(1.0)}
        made |= {"OT": ExactOT(COST), "entropic": Sinkhorn(1.0, COST)}
        return {name: diagnose(c, self.x, self.y, COST) for name, c in made.items()}

    def cost_gap(self) -> float:
        """Return the smaller fall of the pairs' cost: random to entropic, entropic to exact."""
        cost = {name: found.cost for name, found in self.diagnoses.items()}
        return min(cost["none"] - cost["entropic"], cost["entropic"] - cost["OT"])

    def tilt_told(self) -> float:
        """Return the source's tilt if weighted pairs are cheaper than entropic ones; else 1."""
        weighted, entropic = self.diagnoses["W"], self.diagnoses["entropic"]
        return weighted.tilt_x if weighted.cost < entropic.cost else 1.0


def ring_errors() -> tuple[float, float]:
    """Return for 360 even points on circles of radius 1 and 3 the errors of marginals and plan."""
    angle = torch.arange(360, dtype=torch.float64) * (math.pi / 180)
    ring = torch.stack((angle.cos(), angle.sin()), 1)
    marginal = plan_error = 0.0
    for eps in EPS:
        plan = Gibbs(eps).plan(ring, 3 * ring)
        sums = torch.cat((plan.sum(0), plan.sum(1)))
        exact = sinkhorn(costs(ring, 3 * ring, COST), eps, tolerance=1e-14).plan
        marginal = max(marginal, float((sums * 360 - 1).abs().max()))
        plan_error = max(plan_error, float((plan - exact).abs().max()))
    return marginal, plan_error


def field_difference(n: int = 60, bridge: float = 0.05, eps: float = 1.0) -> float:
    """Return the relative difference of two fields on all n² pairs, at 64 points, three times.

    That of the weighted loss, and that of the plain loss under the entropic plan between the tilted
    marginals: v(z, t) = Σ p_k N(z; z_k, σ²)(x_k − y_k)/Σ p_k N(z; z_k, σ²), p the weights or plan.
    """
    x, y = normals(n), LAW.draw(range(n))
    i, j = torch.cartesian_prod(torch.arange(n), torch.arange(n)).unbind(1)
    log_weight = Weighing().weights(Gibbs(eps).pair(x[i], y[j]).log_weight).log()
    plan = entropic_plan(Gibbs(eps).plan(x, y), costs(x, y, COST), eps)
    worst = 0.0
    for t in (0.1, 0.5, 0.9):
        z = (1 - t) * LAW.draw(range(1000, 1064)) + t * normals(64, index=2)
        squared = torch.cdist(z, (1 - t) * y[j] + t * x[i]).square() / bridge**2
        logs = (log_weight, plan.flatten().log())
        a, b = ((log - squared / 2).softmax(1) @ (x[i] - y[j]) for log in logs)
        worst = max(worst, float((a - b).norm() / b.norm()))
    return worst


@dataclass(frozen=True)
class Coarse:
    """Which quadrant goes to which mode: plans of batches, averaged, beside the whole sample's.

    Args:
        n: samples, which are shuffled and cut into batches.
    """

    n: int = 512

    @cached_property
    def samples(self) -> tuple[Tensor, Tensor]:
        """The source and the data, (n, 2) each."""
        return normals(self.n), LAW.draw(range(self.n))

    @cached_property
    def cells(self) -> Tensor:
        """The number of each pair's quadrant and mode, (n, n) int64."""
        x, y = self.samples
        quadrant = (x > 0).long() @ torch.tensor([2, 1])
        return 8 * quadrant[:, None] + torch.cdist(y, LAW.means).argmin(1)

    @cached_property
    def exact(self) -> Tensor:
        """The entropic plan of the whole sample, by cell."""
        return self._by_cell(Sinkhorn(1.0, COST).plan(*self.samples), self.cells)

    @cached_property
    def minibatch(self) -> list[float]:
        """Total variation of the mean of all batches' entropic plans, by batch size."""

        def plans(i: Tensor, j: Tensor) -> Tensor:
            cost = costs(*self.samples, COST)
            parts = (cost[a][:, b] for a, b in zip(i, j, strict=True))
            return torch.stack([sinkhorn(part, 1.0, tolerance=1e-6).plan for part in parts])

        return [self._error(plans, size, 4) for size in BATCHES]

    @cached_property
    def weighted(self) -> list[float]:
        """That of weighted random pairs."""
        return self._weighted(Gibbs(1.0))

    @cached_property
    def balanced(self) -> list[float]:
        """That of balanced ones, whose potentials are the sample's."""
        return self._weighted(BalancedGibbs(1.0).fitted(*self.samples))

    def least_fall(self) -> float:
        """Return the least fall of the minibatch plan's error with four times the batch."""
        return min(a / b for a, b in zip(self.minibatch, self.minibatch[1:], strict=False))

    def dependence(self) -> float:
        """Return how much the weighted plan's error depends on the batch."""
        return max(self.weighted) - min(self.weighted)

    def _weighted(self, coupling: Gibbs) -> list[float]:
        weights = coupling.plan(*self.samples)  # of all pairs, up to one factor

        def plans(i: Tensor, j: Tensor) -> Tensor:
            return weights[i[:, :, None], j[:, None]]

        return [self._error(plans, size, 2400 // size) for size in BATCHES]

    def _error(self, plans: Callable[[Tensor, Tensor], Tensor], size: int, shuffles: int) -> float:
        """Return the error of batches' plans, (batches, size, size) for rows (batches, size)."""
        total = torch.zeros_like(self.exact)
        for shuffle in range(shuffles):
            u = noise.uniform([0, 1], (self.n,), stream="choice", index=shuffle)
            i, j = u.argsort(1).reshape(2, -1, size)
            total += self._by_cell(plans(i, j), self.cells[i[:, :, None], j[:, None]])
        return float((total / total.sum() - self.exact).abs().sum() / 2)

    def _by_cell(self, plan: Tensor, cells: Tensor) -> Tensor:
        return cells.flatten().bincount(plan.flatten(), minlength=32)

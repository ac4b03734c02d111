"""What theory asks of a drift, looked for in a trained one: how steep it is, and how it pulls back.

    Lipschitz        |γ(x) − γ(y)| ≤ K |x − y|                 one strong solution
    dissipative      ⟨γ(x) − γ(y), x − y⟩ ≤ −m |x − y|²        two states under one noise approach
                                                               each other like e^(−m t)

Both are decided by Jacobians: K is the largest singular value anywhere, m is minus the largest
eigenvalue of the symmetric part. A probe looks at some points: K is at least what it finds, and m
at most. A bound from the layers' norms holds everywhere, and is coarse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pathline.core.errors import UsageError
from pathline.nets.vector_fields import LipSwish

__all__ = ["Steepness", "layer_bound", "probe"]

SLOPES: dict[type[nn.Module], float] = {
    nn.ReLU: 1.0, nn.Tanh: 1.0, LipSwish: 1.0, nn.SiLU: 1.1, nn.Sigmoid: 0.25, nn.Softplus: 1.0,
    nn.Identity: 1.0,
}  # fmt: skip
"""The largest slope of each activation (of x sigmoid(x): 1.0998)."""


@dataclass(frozen=True)
class Steepness:
    """What a probe found.

    Args:
        lipschitz: the largest singular value of the Jacobians.
        dissipativity: minus the largest eigenvalue of their symmetric parts; above 0 where all
            differences shrink.
        points: how many were looked at.
    """

    lipschitz: float
    dissipativity: float
    points: int

    def contraction(self, duration: float) -> float:
        """Return e^(−m T), the most by which a difference is multiplied if m holds everywhere."""
        return float(torch.exp(torch.tensor(-self.dissipativity * duration, dtype=torch.float64)))


def probe(drift: Callable[[Tensor], Tensor], points: Tensor) -> Steepness:
    """Return how steep a drift is at these points.

    Args:
        drift: of a batch of states, (batch, dim) → (batch, dim), each sample by itself.
        points: (batch, dim).

    Cost: dim vector-Jacobian products of the batch.

    Example:
        >>> found = probe(lambda x: -2 * x, torch.randn(8, 3))
        >>> found.lipschitz, found.dissipativity
        (2.0, 2.0)
    """
    if points.ndim != 2:
        raise UsageError(f"points are (batch, dim), and {tuple(points.shape)} was given.")
    x = points.detach().clone().requires_grad_()
    with torch.enable_grad():
        f = drift(x)
        rows = [torch.autograd.grad(f[:, i].sum(), x, retain_graph=True)[0]
                for i in range(f.shape[1])]  # fmt: skip
    jacobian = torch.stack(rows, 1).detach().double()
    top = torch.linalg.matrix_norm(jacobian, 2).max()
    pull = torch.linalg.eigvalsh((jacobian + jacobian.mT) / 2).max()
    return Steepness(float(top), -float(pull), len(points))


def layer_bound(network: nn.Module) -> float:
    """Return the product of the layers' norms: no smaller than K, whatever the points.

    Raises:
        UsageError: a layer whose slope is not known.
    """
    bound = 1.0
    for module in network.modules():
        if isinstance(module, nn.Linear):
            bound *= float(torch.linalg.matrix_norm(module.weight.detach().double(), 2))
        elif type(module) in SLOPES:
            bound *= SLOPES[type(module)]
        elif not list(module.children()):
            raise UsageError(f"the slope of a {type(module).__name__} is not known here.")
    return bound

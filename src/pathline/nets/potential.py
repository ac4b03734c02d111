"""A potential: a network that says one number, whose gradient is the score.

    φ(x, t) = −‖x‖²/2v(t) + F(x, t),   s = ∇φ,   v(t) = far + (near − far) e^(−rate t) + growth t²

φ is log p_t up to a constant of each time. The first term is the log-density of data that are
Gaussian, so the network F has only the rest to say. A score that is a gradient can be held to the
Fokker-Planck equation of log p (`fields.FokkerPlanck`) with second derivatives alone.

Paper: Deveney et al. 2023 (arXiv:2311.15996).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pathline.core.errors import UsageError
from pathline.nets.mlp import MLP

__all__ = ["Baseline", "Potential"]


@dataclass(frozen=True)
class Baseline:
    """The variance of Gaussian data at each label, v.

    Exact on the Ornstein-Uhlenbeck path told its own clock (far = s², rate = 2); on paths that only
    add noise, told σ, with near = far and growth = 1. Elsewhere F makes up for what is missing.

    Args:
        near: the variance at data.
        far: what it tends to.
        rate: how fast, in the label.
        growth: of the variance with the square of the label.

    Example:
        >>> Baseline(near=1.1, far=0.5, rate=2.0)(torch.tensor([0.0, 50.0]))
        tensor([1.1000, 0.5000])
    """

    near: float = 1.0
    far: float = 1.0
    rate: float = 2.0
    growth: float = 0.0

    def __post_init__(self) -> None:
        if not (self.near > 0 and self.far > 0 and self.rate >= 0 and self.growth >= 0):
            raise UsageError(
                "variances are above 0, rate and growth are not below; near, far, rate and growth "
                f"are {self.near}, {self.far}, {self.rate}, {self.growth}."
            )

    def __call__(self, label: Tensor) -> Tensor:
        """Return v, in the shape of the label."""
        relaxed = self.far + (self.near - self.far) * (-self.rate * label).exp()
        return relaxed + self.growth * label**2


class Potential(nn.Module):
    """A score network that is the gradient of a potential, for the view "score".

    Args:
        dim: numbers in a state, (batch, dim).
        width: of the hidden layers.
        depth: how many of them.
        sharpness: β of the softplus between them; a kink of large β is not met by few samples.
        baseline: the arguments of `Baseline`.

    Cost: a backward sweep for every evaluation (`vjps`); its graph is kept where gradients are
    enabled.

    Example:
        >>> net = Potential(2, baseline={"near": 4.0, "far": 1.0})
        >>> _ = nn.init.zeros_(net.rest.layers[-1].weight)  # F says nothing: Gaussian data
        >>> net(torch.ones(1, 2), torch.zeros(1)).tolist()
        [[-0.25, -0.25]]
    """

    vjps = 1

    def __init__(
        self,
        dim: int,
        width: int = 80,
        depth: int = 3,
        sharpness: float = 5.0,
        baseline: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.baseline = Baseline(**(baseline or {}))
        self.rest = MLP(dim, width, depth, outputs=1, sharpness=sharpness)
        # φ + c has the same score and residual: nothing teaches c, and processes that share the
        # work would wait for its gradient
        self.rest.layers[-1].bias.requires_grad_(False)

    def potential(self, x: Tensor, t: Tensor) -> Tensor:
        """Return φ, (batch,).

        Args:
            x: (batch, dim).
            t: (batch,) or (), the time label.
        """
        t = t.to(x)
        return self.rest(x, t)[:, 0] - x.square().sum(1) / (2 * self.baseline(t))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the score ∇φ, (batch, dim)."""
        further = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            at = x if further and x.requires_grad else x.detach().clone().requires_grad_()
            label = t if further else t.detach().clone()
            phi = self.potential(at, label)
            return torch.autograd.grad(phi.sum(), at, create_graph=further)[0]

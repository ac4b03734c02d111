"""EDM's preconditioning: what a network is shown and has to say is of size one at any noise level.

    D(x, σ) = c_skip x + c_out F(c_in x, ln σ/4),
    c_skip = σ_d²/(σ² + σ_d²),   c_out = σ σ_d/√(σ² + σ_d²),   c_in = 1/√(σ² + σ_d²)

Where there is little noise D says x less a little, and where there is much it says the mean; what F
has to say is of size one everywhere.

Paper: Karras et al. 2022 (arXiv:2206.00364), Tab. 1; PFGM++ takes it over for every D.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pathline.core.errors import UsageError

__all__ = ["Preconditioned"]


class Preconditioned(nn.Module):
    """A network F(c_in x, ln σ/4, …) as a denoiser D(x, σ, …) → x̂_0 of x = x_0 + σ ε.

    Args:
        network: F; its time embedding should suit labels from about −1.6 to 1.1.
        sigma_data: σ_d, the standard deviation of the data.

    Example:
        >>> import torch
        >>> net = Preconditioned(nn.Identity(), 0.5)
        >>> net.network.forward = lambda x, t: 0 * x  # says nothing: D is the posterior mean of
        >>> net(torch.ones(1, 1, 1, 1), torch.tensor([0.5]))  # data N(0, σ_d²)
        tensor([[[[0.5000]]]])
    """

    def __init__(self, network: nn.Module, sigma_data: float = 0.5) -> None:
        super().__init__()
        if not sigma_data > 0:
            raise UsageError(f"sigma_data must be above 0, and is {sigma_data}.")
        self.network, self.sigma_data = network, sigma_data

    def forward(self, x: Tensor, sigma: Tensor, *args: Any, **cond: Any) -> Tensor:
        """Return x̂_0, (batch, *state).

        Args:
            x: (batch, *state).
            sigma: (batch,) or (), above 0.
            args, cond: whatever else the network takes.
        """
        sigma = sigma.expand(len(x))
        level = sigma.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)
        norm = (level**2 + self.sigma_data**2).sqrt()
        said = self.network(x / norm, sigma.log() / 4, *args, **cond).to(x.dtype)
        return (self.sigma_data / norm) ** 2 * x + level * self.sigma_data / norm * said

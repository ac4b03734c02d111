"""Laws of paths: their divergence, and a distance that a discriminator measures.

    KL(posterior ‖ prior) = E ∫ ½ ‖u‖² dt,   u = σ⁻¹ (f − h)

of two SDEs of one diffusion σ and drifts f, h (Girsanov). It is carried along as one more number
of the state, without noise, so that any SDE solver integrates it.

Paper: Li, Wong, Chen & Duvenaud 2020 (arXiv:2001.01328), Sec. 5; Kidger et al. 2021
(arXiv:2102.03657) for the generator and the discriminator.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields import SDE

__all__ = ["critic_loss", "generator_loss", "with_path_kl"]

Function = Callable[[Tensor, Tensor], Tensor]


def with_path_kl(
    posterior: Function, prior: Function, diffusion: Function, *, is_diagonal: bool = True
) -> SDE:
    """Return the posterior's Itô equation with its divergence from the prior's as one more number.

    Args:
        posterior, prior: drifts f(x (batch, dim), t) → (batch, dim).
        diffusion: σ of both, (batch, dim), an element a motion, nowhere 0.
        is_diagonal: False for σ (batch, dim, m), whose pseudo-inverse is taken.

    Returns:
        An SDE of states (batch, dim + 1); start the last number at 0.

    Raises:
        UsageError: when it is solved: a diffusion that is 0 somewhere.

    Example:
        >>> sde = with_path_kl(lambda x, t: -x, lambda x, t: 0 * x, lambda x, t: 0.5 + 0 * x)
        >>> sde.drift(torch.tensor([[1.0, 0.0]]), torch.tensor(0.0)).tolist()  # ½ (1/0.5)²
        [[-1.0, 2.0]]
    """

    def drift(x: Tensor, t: Tensor) -> Tensor:
        z = x[:, :-1]
        f, sigma = posterior(z, t), diffusion(z, t)
        u = _solved(sigma, f - prior(z, t))
        return torch.cat((f, u.square().sum(1, keepdim=True) / 2), 1)

    def noise(x: Tensor, t: Tensor) -> Tensor:
        sigma = diffusion(x[:, :-1], t)
        return torch.cat((sigma, torch.zeros_like(sigma[:, :1])), 1)

    return SDE(drift, noise, noise="diagonal" if is_diagonal else "general", sde_type="ito")


def _solved(sigma: Tensor, off: Tensor) -> Tensor:
    """Return u with σ u = off; the least one where σ is a matrix."""
    if sigma.ndim == off.ndim:
        if bool((sigma == 0).any()):
            raise UsageError(
                "a diffusion of 0 has no divergence of path laws: give it a floor, "
                "NoiseNet(..., floor=0.1)."
            )
        return off / sigma
    return (torch.linalg.pinv(sigma) @ off[..., None])[..., 0]


def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return what a discriminator minimises: the mean score of fakes above that of the real."""
    return fake.mean() - real.mean()


def generator_loss(fake: Tensor) -> Tensor:
    """Return what a generator minimises: −E D(fake), as the discriminator wants fakes low."""
    return -fake.mean()

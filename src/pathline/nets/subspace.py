"""A denoiser of data on a subspace: encoder, a network of few dimensions, decoder.

    x̂_0 = V f(Vᵀ x, t, y),   V (D, d) with orthonormal columns
    ∇ log p_t(x) = (α V f(Vᵀ x, t, y) − x)/σ²

So the score splits as that of data on a subspace does: off span V it is −x/σ², which nobody has to
learn, and f has d dimensions whatever D is. V is the Q of a free matrix: it stays orthonormal under
any optimiser and any average of weights, and training turns it towards the data.

Paper: Chen et al. 2023 (arXiv:2302.07194), Eq. 7; Chen et al. 2024 (arXiv:2404.07771), Sec. 4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pathline.core.errors import UsageError
from pathline.nets.dit import sinusoids

__all__ = ["SubspaceScore"]


class SubspaceScore(nn.Module):
    """An encoder-decoder that says x̂_0 (view "x0"), told the time and, if it is to be, a value.

    Choose it for data that vary in few directions of many; it can say nothing off its subspace.

    Args:
        dim: D, numbers in a state, (batch, dim).
        latent: d, below D.
        width: of the hidden layers of f.
        depth: how many of them.
        label_width: features of the value y, an even number; 0 builds a network that is told none.
        label_mean, label_std: what y is taken relative to.

    Raises:
        UsageError: d that is not from 1 to D − 1, other sizes below 1.

    Example:
        >>> net = SubspaceScore(8, 2)
        >>> x = net(torch.randn(5, 8), torch.tensor(0.5))
        >>> x.shape, bool((x - x @ net.basis @ net.basis.T).abs().max() < 1e-5)
        (torch.Size([5, 8]), True)
    """

    def __init__(  # noqa: PLR0913 - what a configuration's table names
        self,
        dim: int,
        latent: int,
        *,
        width: int = 64,
        depth: int = 3,
        label_width: int = 0,
        label_mean: float = 0.0,
        label_std: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 < latent < dim or width < 1 or depth < 1:
            raise UsageError(
                f"a subspace of {latent} in {dim} dimensions, width {width} and depth {depth}: "
                "0 < latent < dim is needed, and the others above 0."
            )
        if label_width < 0 or label_width % 2 or not label_std > 0:
            raise UsageError(
                f"label_width={label_width} is even, and label_std={label_std} above 0."
            )
        self.dim, self.latent, self.label_width = dim, latent, label_width
        self.label_mean, self.label_std = label_mean, label_std
        self.frame = nn.Parameter(torch.linalg.qr(torch.randn(dim, latent)).Q.contiguous())
        widths = (latent + 1 + _TIMES + label_width, *[width] * depth)
        hidden = [
            nn.Sequential(nn.Linear(a, b), nn.SELU())
            for a, b in zip(widths, widths[1:], strict=False)
        ]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, latent))
        self.nothing = nn.Parameter(torch.zeros(label_width)) if label_width else None

    @property
    def basis(self) -> Tensor:
        """V, (dim, latent): the Q of the free matrix whose R has a positive diagonal."""
        dtype = torch.promote_types(self.frame.dtype, torch.float32)  # QR knows no smaller one
        q, r = torch.linalg.qr(self.frame.to(dtype))
        return (q * torch.sign(torch.diagonal(r))).to(self.frame.dtype)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Return x̂_0, (batch, dim).

        Args:
            x: (batch, dim).
            t: (batch,) or (), the time label, from 0 to 1.
            y: (batch,) or (), the value; NaN, and None, are no value.
        """
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise UsageError(
                f"the network reads states (batch, {self.dim}), and was given {tuple(x.shape)}."
            )
        t, basis = t.to(x).expand(len(x)), self.basis.to(x.dtype)
        waves = sinusoids(10 * t, _TIMES, max_period=10.0).to(x.dtype)
        seen = [x @ basis, t[:, None], waves]
        if self.nothing is not None:
            seen.append(self._told(x, y, self.nothing))
        elif y is not None:
            raise UsageError("this network is told no value; label_width=16 builds one that is.")
        return self.layers(torch.cat(seen, 1)) @ basis.T

    def _told(self, x: Tensor, y: Tensor | None, nothing: Tensor) -> Tensor:
        """Return the features of the value, (batch, label_width)."""
        if y is None:
            return nothing.to(x).expand(len(x), -1)
        relative = (y.to(x).expand(len(x)) - self.label_mean) / self.label_std
        known = ~relative.isnan()
        waves = sinusoids(relative.nan_to_num(0.0), self.label_width, max_period=10.0).to(x.dtype)
        return torch.where(known[:, None], waves, nothing.to(x.dtype))


_TIMES = 16
"""Features of the time."""

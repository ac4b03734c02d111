"""A fully connected network of a state and a time, for data of a few dimensions.

h_0 = (x, t),   h_k = s(W_k h_(k−1) + b_k),   F = W h_K + b,   s SELU or a softplus
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pathline.core.errors import UsageError

__all__ = ["MLP"]


class MLP(nn.Module):
    """Layers of one width with SELU between them, or a softplus that can be derived twice.

    Args:
        dim: numbers in a state, (batch, dim).
        width: of the hidden layers.
        depth: how many of them.
        outputs: numbers that it says; as many as it reads if None.
        sharpness: β of log(1 + e^(βx))/β between the layers; SELU if None.

    Example:
        >>> MLP(2)(torch.zeros(5, 2), torch.tensor(0.5)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        dim: int,
        width: int = 64,
        depth: int = 3,
        outputs: int | None = None,
        sharpness: float | None = None,
    ) -> None:
        super().__init__()
        if dim < 1 or width < 1 or depth < 1:
            raise UsageError(f"dim, width and depth are at least 1; got {dim}, {width}, {depth}.")
        if sharpness is not None and not sharpness > 0:
            raise UsageError(f"the sharpness of the softplus must be above 0, and is {sharpness}.")
        self.dim = dim
        widths = (dim + 1, *[width] * depth)
        hidden = [
            nn.Sequential(
                nn.Linear(a, b), nn.SELU() if sharpness is None else nn.Softplus(sharpness)
            )
            for a, b in zip(widths, widths[1:], strict=False)
        ]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, outputs or dim))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the network's output, (batch, outputs).

        Args:
            x: (batch, dim).
            t: (batch,) or (), the time label.
        """
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise UsageError(
                f"the network reads states (batch, {self.dim}), and was given {tuple(x.shape)}."
            )
        return self.layers(torch.cat((x, t.to(x).expand(len(x))[:, None]), 1))

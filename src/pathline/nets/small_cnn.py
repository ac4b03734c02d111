"""A small convolutional network that reads a noise level off an image of any size of noise.

    h = x/√(1 + ĉ²),   ĉ = RMS(x);   four times conv 3×3 – ReLU – average pool;   W [h̄, log ĉ] + b

The noise may be a hundred times as large as the data or a hundred times smaller. Divided by its own
size the input stays of size one at most; the size itself, which alone tells large levels, is handed
to the last layer.

Paper: Kim & Ye 2022 (arXiv:2209.14593), whose network sees x as it is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathline.core.errors import UsageError

__all__ = ["SmallCNN"]


class SmallCNN(nn.Module):
    """Convolutions and average pools, then one linear layer over what is left and log RMS(x).

    Args:
        channels: of the images, (batch, channels, height, width).
        classes: how many logits.
        widths: features of each level; each level halves the image.
        centre: where the last layer begins to look: the log RMS that each class is likely at,
            (classes,); None begins at random.

    Example:
        >>> SmallCNN(classes=5, widths=(4, 8))(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        channels: int = 1,
        classes: int = 250,
        widths: tuple[int, ...] = (32, 64, 128, 256),
        centre: Tensor | None = None,
    ) -> None:
        super().__init__()
        if not widths:
            raise UsageError("a small CNN needs at least one level of widths.")
        self.channels = channels
        pairs = zip((channels, *widths), widths, strict=False)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairs)
        self.head = nn.Linear(widths[-1] + 1, classes)
        if centre is not None:
            self._begin_at(centre)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def _begin_at(self, centre: Tensor, spread: float = 0.5) -> None:
        """Let the logits begin as −(log ĉ − centre)²/2 spread², the square of log ĉ left out."""
        centre = centre.to(self.head.weight)
        with torch.no_grad():
            self.head.weight[:, -1] = centre / spread**2
            self.head.bias.copy_(-(centre**2) / (2 * spread**2))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (batch, classes).

        Args:
            x: (batch, channels, height, width), of any size.
        """
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise UsageError(
                f"the network reads images (batch, {self.channels}, height, width), and was given "
                f"{tuple(x.shape)}."
            )
        size = x.square().mean((1, 2, 3), keepdim=True)
        h = (x / (1 + size).sqrt()).contiguous(memory_format=torch.channels_last)
        for conv in self.convs:
            h = F.relu(conv(h))
            h = F.avg_pool2d(h, 2) if min(h.shape[2:]) > 1 else h
        seen = torch.cat((h.mean((2, 3)), size.clamp_min(1e-12).log().flatten(1) / 2), 1)
        return self.head(seen)

"""A small convolutional network that reads a noise level off an image, whatever its size.

    h = x/√(1 + ĉ²),   ĉ = RMS(x);   four times conv 3×3 – ReLU – average pool
    ℓ_k = W_k h̄ + b_k − e^a (m − log σ_k)²/2,   (m, a) = V [h̄, log ĉ] + (log ĉ, a_0)

The noise may be a thousand times as large as the data or a hundred times smaller. Divided by its
own size the input stays of size one at most; the size itself, which alone tells large levels, goes
to the last layer. That layer says a mean and a precision of log σ, which is what the posterior of a
level comes to in many dimensions, and corrects it level by level.

Paper: Kim & Ye 2022 (arXiv:2209.14593), whose network sees x as it is and says ℓ = W h alone: a
linear layer learns slowly to be as sharp as the posterior is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathline.core.errors import UsageError

__all__ = ["SmallCNN"]


class SmallCNN(nn.Module):
    """Convolutions and average pools, then logits of noise levels.

    It begins as a normal law of log σ around log RMS(x), of standard deviation one half.

    Args:
        log_sigmas: the levels, (levels,); not part of the weights.
        channels: of the images, (batch, channels, height, width).
        widths: features after each convolution; each pool halves the image.

    Example:
        >>> SmallCNN(torch.linspace(3, -4, 5), widths=(4, 8))(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 5])
    """

    log_sigmas: Tensor

    def __init__(
        self,
        log_sigmas: Tensor,
        channels: int = 1,
        widths: tuple[int, ...] = (32, 64, 128, 256),
    ) -> None:
        super().__init__()
        if not widths:
            raise UsageError("a small CNN needs at least one width.")
        self.channels = channels
        self.register_buffer("log_sigmas", log_sigmas.float(), persistent=False)
        pairs = zip((channels, *widths), widths, strict=False)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairs)
        self.levels = nn.Linear(widths[-1], len(log_sigmas))
        self.normal = nn.Linear(widths[-1] + 1, 2)
        for layer in (self.levels, self.normal):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (batch, levels).

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
        h, log_size = h.mean((2, 3)), size.clamp_min(1e-12).log().flatten(1) / 2
        shift, sharpness = self.normal(torch.cat((h, log_size), 1)).split(1, 1)
        off = log_size + shift - self.log_sigmas
        return self.levels(h) - 2 * sharpness.exp() * off**2  # 2 = 1/(2 · 0.5²)

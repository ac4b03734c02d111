"""A classifier of noisy images that is told how noisy they are.

    x/√(α² + σ²) → (conv 3×3 – norm – (1 + s) · + b – silu) twice a level, halved between levels
    (s, b) = W silu(MLP(tanh(λ/4), λ/4)),   λ = log α/σ

Scaled to a state of size one and told λ, it knows nothing of a path, so it serves every path with
Gaussian noise. It is smooth, for its gradient is what guides; and its norms are of a sample, not of
a batch, whose noise levels differ.

Paper: Song et al. 2021 (arXiv:2011.13456), App. I.1; Dhariwal & Nichol 2021 (arXiv:2105.05233).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathline.core.errors import UsageError

__all__ = ["NoisyClassifier"]


class NoisyClassifier(nn.Module):
    """Convolutions modulated by the noise level, then one linear layer over pooled features.

    Args:
        channels: of the images, (batch, channels, height, width).
        classes: how many.
        widths: features of each level, multiples of 8; each level after the first halves the image.
        dropout: share of the features hidden from the last layer in training.

    Example:
        >>> net = NoisyClassifier(widths=(8, 16)).eval()
        >>> net(torch.zeros(2, 1, 8, 8), torch.zeros(2)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        channels: int = 1,
        classes: int = 10,
        widths: tuple[int, ...] = (32, 64),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if not widths or any(width % 8 for width in widths):
            raise UsageError(f"widths are one or more multiples of 8, and they are {widths}.")
        self.channels, self.dropout = channels, dropout
        told = 2 * widths[-1]
        self.told = nn.Sequential(nn.Linear(2, told), nn.SiLU(), nn.Linear(told, told), nn.SiLU())
        pairs = zip((channels, *widths), widths, strict=False)
        self.levels = nn.ModuleList(_Level(a, b, told) for a, b in pairs)
        self.head = nn.Linear(widths[-1], classes)

    def features(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """Return what the last layer sees, (batch, widths[-1]).

        Args:
            x: (batch, channels, height, width), noisy images over √(α² + σ²).
            log_snr: λ, (batch,).

        Raises:
            UsageError: images of other channels.
        """
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise UsageError(
                f"the classifier reads images (batch, {self.channels}, height, width), and was "
                f"given {tuple(x.shape)}."
            )
        scaled = log_snr.to(x)[:, None] / 4
        told, h = self.told(torch.cat((scaled.tanh(), scaled), 1)), x
        for i, level in enumerate(self.levels):
            h = level(F.avg_pool2d(h, 2) if i else h, told)
        return h.mean((2, 3))

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """Return logits, (batch, classes)."""
        h = F.dropout(self.features(x, log_snr), self.dropout, self.training)
        return self.head(h)


class _Level(nn.Module):
    """A convolution to the level's width, then a residual one."""

    def __init__(self, width: int, out: int, told: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(a, out, 3, padding=1) for a in (width, out))
        self.norms = nn.ModuleList(nn.GroupNorm(8, out) for _ in range(2))
        self.shifts = nn.ModuleList(nn.Linear(told, 2 * out) for _ in range(2))

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        h = x
        for i, (conv, norm, shift) in enumerate(
            zip(self.convs, self.norms, self.shifts, strict=True)
        ):
            s, b = shift(told)[:, :, None, None].chunk(2, 1)
            made = F.silu(norm(conv(h)) * (1 + s) + b)
            h = h + made if i else made
        return h

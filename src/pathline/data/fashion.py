"""Fashion-MNIST: 28 × 28 grey images of ten kinds of clothes, from Debian's package."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from pathline.core.files import write_atomically
from pathline.data.fetch import Package, cache_folder, fetch

__all__ = ["CLASSES", "FILES", "FashionData", "build", "describe", "load"]

CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
FILES = ("arrays.safetensors", "index.json")
LICENCES = {"images": "MIT (Fashion-MNIST, Zalando SE)"}

PACKAGE = Package(
    "apt",
    "dataset-fashion-mnist",
    "0.0~git20200523.55506a9-1",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
)
_PARTS = {"train": "train", "test": "t10k"}


@dataclass(frozen=True)
class FashionData:
    """The data set in memory.

    Args:
        train_images: (60000, 28, 28) uint8.
        train_labels: (60000,) uint8, numbers in `CLASSES`.
        test_images: (10000, 28, 28) uint8.
        test_labels: (10000,) uint8.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load() -> FashionData:
    """Return the data set from the cache, built on first use.

    Raises:
        FetchError: the package cannot be fetched.
    """
    return FashionData(**load_file(build() / FILES[0]))


def build() -> Path:
    """Return the folder with the arrays and the index, made from the package on first use."""
    folder = cache_folder() / "fashion-28"
    if not (folder / FILES[1]).is_file():
        source = fetch(PACKAGE) / "usr/share/datasets/fashion-mnist"
        arrays = {}
        for split, stem in _PARTS.items():
            images = _read(source / f"{stem}-images-idx3-ubyte.gz", header=16)
            arrays[f"{split}_images"] = images.reshape(-1, 28, 28)
            arrays[f"{split}_labels"] = _read(source / f"{stem}-labels-idx1-ubyte.gz", header=8)
        index = {"classes": CLASSES, "licences": LICENCES, "packages": [asdict(PACKAGE)]}
        write_atomically(folder / FILES[0], save(arrays))
        write_atomically(folder / FILES[1], json.dumps(index, indent=1) + "\n")
    return folder


def describe() -> tuple[Mapping[str, int], Mapping[str, str]]:
    """Return how many images each split has, and the licences."""
    data = load()
    return {"train": len(data.train_images), "test": len(data.test_images)}, LICENCES


def _read(path: Path, header: int) -> np.ndarray[Any, Any]:
    """Return the bytes of an idx file after its header."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)

"""Reference statistics: what real pictures look like to a feature network, and to each other.

A file holds the features of some real pictures of each split in float16, and how far apart real,
corrupted and noise pictures are: all that samples are compared with, and no picture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pathline.core.errors import CheckpointError
from pathline.core.files import write_atomically
from pathline.core.noise import normal
from pathline.data.fetch import cache_folder
from pathline.learn.quality.distances import frechet, halves, kernel
from pathline.learn.quality.features import embed
from pathline.learn.quality.subjects import Subject

__all__ = ["FRECHET_SIZE", "Landmarks", "Reference", "load_reference", "make_reference"]

FILE = "reference.safetensors"
FRECHET_SIZE = 500
"""Pictures in each set of a Fréchet distance: it is biased, so sizes have to be the same."""

CORRUPTION = 0.5
"""The standard deviation of the noise on corrupted pictures, which lie in [−1, 1]."""

_NOISE_SEED = 10**6


@dataclass(frozen=True)
class Landmarks:
    """Distances to real pictures from what they should and should not look like.

    Args:
        halves: from one half of them to the other; for the kernel, the mean over random halves.
        spread: the standard deviation of that over random halves.
        real: from the other split's real pictures; None where there are none.
        corrupted: from real pictures with noise on them.
        noise: from Gaussian noise.
    """

    halves: float
    spread: float | None
    real: float | None
    corrupted: float
    noise: float


@dataclass(frozen=True)
class Reference:
    """Real pictures, as far as samples are compared with them.

    Args:
        features: by "network/split", (n, d) float16.
        landmarks: by "measure/network/split".
        data: the name of the data.
    """

    features: Mapping[str, Tensor]
    landmarks: Mapping[str, Landmarks]
    data: str

    def save(self, path: Path) -> Path:
        """Write it as one safetensors file."""
        table = {name: asdict(marks) for name, marks in self.landmarks.items()}
        about = {"data": self.data, "landmarks": json.dumps(table)}
        return write_atomically(path, lambda p: save_file(dict(self.features), p, about))

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read what `save` wrote.

        Raises:
            CheckpointError: the file is damaged.
        """
        try:
            with safe_open(path, "pt") as file:
                about: Mapping[str, str] = file.metadata()
                features = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            table = json.loads(about["landmarks"])
            landmarks = {name: Landmarks(**marks) for name, marks in table.items()}
            return cls(features, landmarks, about["data"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is no reference, or a damaged one: {error}.") from error


def load_reference(subject: Subject) -> Reference:
    """Return the shipped reference of a subject; make it in the cache if there is none."""
    path = Path(str(resources.files("pathline"))) / "models" / subject.name / FILE
    if not path.is_file():
        path = cache_folder() / "reference" / f"{subject.name}.safetensors"
    if not path.is_file():
        make_reference(subject).save(path)
    return Reference.load(path)


def make_reference(subject: Subject) -> Reference:
    """Look at a subject's real pictures and measure their landmarks (a minute or two)."""
    features: dict[str, Tensor] = {}
    landmarks: dict[str, Landmarks] = {}
    for name, limits in subject.limits.items():
        network = subject.network(name)
        pictures = {split: subject.reference(split, limit) for split, limit in limits.items()}
        seen = {s: embed(network, p, f"{s} pictures") for s, p in pictures.items()}
        features |= {f"{name}/{split}": f for split, f in seen.items()}
        bad = _bad(network, next(iter(pictures.values())))
        for split in seen:
            real = next((f for other, f in seen.items() if other != split), None)
            landmarks[f"kernel/{name}/{split}"] = _kernel_landmarks(seen[split], real, *bad)
            if len(seen[split]) >= 2 * FRECHET_SIZE:
                landmarks[f"frechet/{name}/{split}"] = _frechet_landmarks(seen[split], real, *bad)
    return Reference(features, landmarks, subject.name)


def corrupted(pictures: Tensor, seed: int = 0) -> Tensor:
    """Return pictures with Gaussian noise on them."""
    seeds = range(seed, seed + len(pictures))
    noise = normal(seeds, pictures.shape[1:], stream="forward", dtype=torch.float32, device="cpu")
    return to_uint8(pictures.float() / 127.5 - 1 + CORRUPTION * noise)


def gaussian(n: int, shape: tuple[int, ...]) -> Tensor:
    """Return n pictures of Gaussian noise: what a model starts from."""
    seeds = range(_NOISE_SEED, _NOISE_SEED + n)
    return to_uint8(normal(seeds, shape, stream="initial", dtype=torch.float32, device="cpu"))


def to_uint8(x: Tensor) -> Tensor:
    """Return data in [−1, 1] as pixels of the same layout."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _bad(network: nn.Module, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return the features of corrupted pictures and of noise.

    The corrupted ones are the last of the set, for Fréchet distances to its first half.
    """
    worse = corrupted(pictures[-FRECHET_SIZE:])
    noise = gaussian(FRECHET_SIZE, tuple(pictures.shape[1:]))
    return embed(network, worse, "corrupted pictures"), embed(network, noise, "noise")


def _kernel_landmarks(x: Tensor, real: Tensor | None, worse: Tensor, noise: Tensor) -> Landmarks:
    mean, spread = halves(x)
    between = None if real is None else kernel(x, real)
    return Landmarks(mean, spread, between, kernel(x, worse), kernel(x, noise))


def _frechet_landmarks(x: Tensor, real: Tensor | None, worse: Tensor, noise: Tensor) -> Landmarks:
    first, second = x[:FRECHET_SIZE], x[FRECHET_SIZE : 2 * FRECHET_SIZE]
    others = None if real is None or len(real) < FRECHET_SIZE else real[:FRECHET_SIZE]
    return Landmarks(
        frechet(first, second),
        None,
        None if others is None else frechet(first, others),
        frechet(first, worse),
        frechet(first, noise),
    )

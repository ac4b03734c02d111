"""Learned noise levels: a classifier that tells how noisy an image is.

    min  E[−log softmax(ℓ(x_0 + σ_y ε))_y],   y uniform on the table of levels

Its optimum is q(σ | x) of `speed.levels`. Besides Denoising MCMC it serves blind denoising, and
tells images that are no data: their level is not the one they should have.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pathline.core.errors import CheckpointError, UsageError
from pathline.core.progress import track
from pathline.data import fashion
from pathline.learn.checkpoint import find_folder, read_folder, write_folder
from pathline.learn.lessons import Curve, keep, rate_shape, restore
from pathline.learn.run import step_generator
from pathline.nets.small_cnn import SmallCNN
from pathline.speed.levels import NoiseLevels, level_table

__all__ = [
    "FORMAT",
    "NoiseClassifier",
    "NoiseLesson",
    "load_noise_classifier",
    "train_noise_classifier",
]

FORMAT = "pathline-noise-levels-1"
SHIPPED = "fashion-levels"
STATE = "state.pt"


@dataclass(frozen=True)
class NoiseLesson:
    """How a noise-level classifier is trained; the same lesson gives the same weights.

    Args:
        sigma_min: below the smallest level.
        sigma_max: the largest.
        levels: how many, even in log σ.
        widths: of the network's levels.
        parts: after each of which the state is kept.
        updates: in each part.
        batch: images an update.
        rate: of Adam at its peak.
        seed: of the weights, the order, the levels and the noise.
    """

    sigma_min: float = 0.01
    sigma_max: float = 40.0
    levels: int = 250
    widths: tuple[int, ...] = (32, 64, 128, 256)
    parts: int = 8
    updates: int = 200
    batch: int = 100
    rate: float = 3e-3
    seed: int = 0

    def table(self) -> Tensor:
        """Return the levels, falling, (levels,) float64."""
        return level_table(self.sigma_min, self.sigma_max, self.levels)


@dataclass(frozen=True, eq=False)
class NoiseClassifier(NoiseLevels):
    """A trained network's q(σ | x), with the table and the scale of data that it knows.

    Args:
        network: images → logits.
        span: (σ_min, σ_max, levels) of the table.
        rms: root mean square of the data that it was trained on, which tells their scale.
        name: what it is called.
        deviation: of the same data about their mean; None if the folder does not say it.
    """

    network: SmallCNN
    span: tuple[float, float, int]
    rms: float
    name: str | None = None
    deviation: float | None = None

    @cached_property
    def sigmas(self) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return level_table(*self.span)

    @property
    def data_rms(self) -> float:
        return self.rms

    @property
    def data_deviation(self) -> float | None:
        return self.deviation

    def log_posterior(self, x: Tensor) -> Tensor:
        return self.network(x.to(self.network.levels.weight)).log_softmax(1)

    def estimate(self, x: Tensor) -> Tensor:
        """Return the most likely σ of each image, (batch,) float64.

        Args:
            x: images scaled as the data are, with noise added, (batch, channels, height, width).
        """
        return self.sigmas.to(x.device)[self.most_likely(x)]


def train_noise_classifier(
    out: str | Path, lesson: NoiseLesson | None = None, images: Tensor | None = None
) -> Path:
    """Train a noise-level classifier on a CPU, and write its folder.

    Keeps a state after each part in `out`, and goes on from it.

    Args:
        out: the folder of the run; the classifier goes to `out/model`.
        lesson: how; None is what made the shipped one.
        images: (n, channels, height, width) in [−1, 1]; None is Fashion-MNIST.

    Returns:
        The folder, for `load_noise_classifier`.

    Raises:
        FetchError: the package of data cannot be fetched.
        UsageError: images of another shape; an output that cannot be written.
        CheckpointError: the state in `out` is damaged or of another lesson.
    """
    lesson, out = lesson or NoiseLesson(), Path(out)
    own = images is None
    images = fashion_images("train") if images is None else images
    if images.ndim != 4 or not images.is_floating_point():
        raise UsageError(
            "images are (n, channels, height, width) in [−1, 1]; they are "
            f"{tuple(images.shape)} in {str(images.dtype).removeprefix('torch.')}."
        )
    table = lesson.table()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(lesson.seed)
        network = SmallCNN(table.log(), images.shape[1], lesson.widths)
    optimizer = torch.optim.Adam(network.parameters(), lr=lesson.rate)
    first, curve = restore(out / STATE, lesson, network, optimizer)
    parts = range(first, lesson.parts)
    for part in track(parts, "training the noise levels", len(parts)):
        curve.append(_part(lesson, images, network, optimizer, part))
        keep(out / STATE, lesson, network, optimizer, curve)
    about = fashion.LICENCES if own else {}
    rms, deviation = float(images.square().mean().sqrt()), float(images.std(correction=0))
    scale = {"data_rms": rms, "data_deviation": deviation}
    config = _config(network, lesson, curve) | scale | {"licences": dict(about)}
    return write_folder(out / "model", network.state_dict(), config, torch.float16)


def load_noise_classifier(name: str | Path = SHIPPED) -> NoiseClassifier:
    """Return a noise-level classifier, on the CPU in float32.

    Args:
        name: of a shipped one, or a folder that `train_noise_classifier` wrote.

    Raises:
        UsageError: there is no such folder.
        CheckpointError: it is damaged, or not a noise-level classifier's.
    """
    folder = find_folder(name)
    needed = {"name", "network", "levels", "data_rms"}
    config, weights = read_folder(folder, FORMAT, needed)
    shape, (low, high, n) = config["network"], config["levels"]
    network = SmallCNN(level_table(low, high, n).log(), shape["channels"], tuple(shape["widths"]))
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: the weights do not fit the network.") from error
    network.eval().requires_grad_(False)
    scale = config["data_rms"], config["name"], config.get("data_deviation")
    return NoiseClassifier(network, (low, high, n), *scale)


def fashion_images(split: str) -> Tensor:
    """Return Fashion-MNIST's images of a split ("train", "test") in [−1, 1], (n, 1, 28, 28)."""
    data = fashion.load()
    pixels = data.train_images if split == "train" else data.test_images
    return torch.from_numpy(pixels)[:, None].float() / 127.5 - 1


def _part(
    lesson: NoiseLesson,
    images: Tensor,
    network: SmallCNN,
    optimizer: torch.optim.Optimizer,
    part: int,
) -> tuple[float, float]:
    """Take the updates of a part; return the mean loss and the seconds it took."""
    start, total, table = time.monotonic(), 0.0, lesson.table().float()
    network.train()
    for i in range(lesson.updates):
        update = part * lesson.updates + i
        generator = step_generator(lesson.seed, update)
        for group in optimizer.param_groups:
            group["lr"] = lesson.rate * rate_shape(update / (lesson.parts * lesson.updates), 0.1)
        picked = images[torch.randint(len(images), (lesson.batch,), generator=generator)]
        y = torch.randint(lesson.levels, (lesson.batch,), generator=generator)
        noise = torch.randn(picked.shape, generator=generator)
        loss = F.cross_entropy(network(picked + table[y, None, None, None] * noise), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += float(loss.detach())
    return total / lesson.updates, time.monotonic() - start


def _config(network: SmallCNN, lesson: NoiseLesson, curve: Curve) -> dict[str, Any]:
    """Return what the classifier's folder says of it."""
    return {
        "format": FORMAT,
        "name": SHIPPED,
        "network": {"channels": network.channels, "widths": lesson.widths},
        "levels": [lesson.sigma_min, lesson.sigma_max, lesson.levels],
        "data_range": [-1.0, 1.0],
        "training": {
            "lesson": asdict(lesson),
            "loss": [round(loss, 4) for loss, _ in curve],
            "seconds": round(sum(seconds for _, seconds in curve)),
            "torch": torch.__version__,
        },
    }

"""The classifier of Fashion-MNIST: trained in minutes, to judge what a generator makes of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
from pathline.nets.classifier import Classifier

__all__ = ["FORMAT", "Lesson", "accuracy", "load_classifier", "train_classifier"]

FORMAT = "pathline-classifier-1"
SHIPPED = "fashion-classifier"
STATE = "state.pt"


@dataclass(frozen=True)
class Lesson:
    """How the classifier is trained; the same lesson gives the same weights.

    Args:
        widths: of the network's levels.
        epochs: passes over the data.
        batch: images an update.
        rate: of AdamW at its peak, reached after a fifth of the updates; then it falls to zero.
        decay: weight decay.
        shift: images are moved by at most this many pixels; half of them are mirrored.
        seed: of the weights, the order, and what is done to the images.
    """

    widths: tuple[int, ...] = (24, 64, 128)
    epochs: int = 12
    batch: int = 128
    rate: float = 4e-3
    decay: float = 0.05
    shift: int = 2
    seed: int = 0


def train_classifier(
    out: str | Path, lesson: Lesson | None = None, data: fashion.FashionData | None = None
) -> Path:
    """Train the classifier on a CPU, in bfloat16 arithmetic, and write its folder.

    Keeps a state after each epoch in `out`, and goes on from it.

    Args:
        out: the folder of the run; the classifier goes to `out/model`.
        lesson: how; None is what made the shipped one.
        data: images and labels; None is Fashion-MNIST.

    Returns:
        The folder, for `load_classifier`.

    Raises:
        FetchError: the package of data cannot be fetched.
        UsageError: the output cannot be written.
        CheckpointError: the state in `out` is damaged or of another lesson.
    """
    lesson, data, out = lesson or Lesson(), data or fashion.load(), Path(out)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(lesson.seed)
        network = Classifier(classes=len(fashion.CLASSES), widths=lesson.widths)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lesson.rate, weight_decay=lesson.decay)
    first, curve = restore(out / STATE, lesson, network, optimizer)
    for epoch in track(range(first, lesson.epochs), "training the classifier", lesson.epochs):
        with torch.random.fork_rng(devices=[]):  # dropout draws from torch's own generator
            torch.manual_seed(step_generator(lesson.seed, epoch).initial_seed())
            curve.append(_epoch(lesson, data, network, optimizer, epoch))
        keep(out / STATE, lesson, network, optimizer, curve)
    return write_folder(out / "model", network.state_dict(), _config(network, lesson, data, curve))


def load_classifier(name: str | Path = SHIPPED) -> Classifier:
    """Return a classifier, on the CPU in float32, in evaluation mode.

    Args:
        name: of a shipped classifier, or a folder that `train_classifier` wrote.

    Raises:
        UsageError: there is no such folder.
        CheckpointError: it is damaged, or not a classifier's.
    """
    folder = find_folder(name)
    config, weights = read_folder(folder, FORMAT, {"network", "classes"})
    table: Mapping[str, Any] = config["network"]
    network = Classifier(table["channels"], table["classes"], tuple(table["widths"]))
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: the weights do not fit the network.") from error
    return network.eval().requires_grad_(False)


@torch.no_grad()
def accuracy(network: Classifier, images: Tensor, labels: Tensor, batch: int = 500) -> float:
    """Return the share of images that are given their label.

    Args:
        network: in evaluation mode.
        images: (n, channels, height, width) uint8.
        labels: (n,) int64.
        batch: images at a time.
    """
    if not len(images):
        raise UsageError("there are no images to classify.")
    said = [network(network.scaled(part)).argmax(1) for part in images.split(batch)]
    return (torch.cat(said) == labels).double().mean().item()


def _epoch(
    lesson: Lesson,
    data: fashion.FashionData,
    network: Classifier,
    optimizer: torch.optim.Optimizer,
    epoch: int,
) -> tuple[float, float]:
    """Show every image once; return the mean loss and the seconds it took."""
    start, total = time.monotonic(), 0.0
    generator = step_generator(lesson.seed, epoch)
    images, labels = _tensors(data.train_images, data.train_labels)
    parts = torch.randperm(len(images), generator=generator).split(lesson.batch)
    network.train()
    for i, part in enumerate(parts):
        done = (epoch + i / len(parts)) / lesson.epochs
        for group in optimizer.param_groups:
            group["lr"] = lesson.rate * rate_shape(done)
        x = network.scaled(_moved(images[part], lesson.shift, generator))
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(x)
        loss = F.cross_entropy(logits.float(), labels[part])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item() * len(part)
    return total / len(images), time.monotonic() - start


def _moved(images: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Return images shifted by whole pixels, half of them mirrored; what comes in is black."""
    n, _, height, width = images.shape
    padded = F.pad(images, (shift,) * 4)
    rows, columns = (torch.randint(2 * shift + 1, (2, n), generator=generator)).unbind()
    rows = (rows[:, None] + torch.arange(height))[:, None, :, None]
    columns = (columns[:, None] + torch.arange(width))[:, None, None, :]
    moved = padded[torch.arange(n)[:, None, None, None], 0, rows, columns]
    mirrored = torch.rand(n, generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], moved.flip(-1), moved)


def _tensors(images: Any, labels: Any) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(images)[:, None], torch.from_numpy(labels).long()


def _config(
    network: Classifier,
    lesson: Lesson,
    data: fashion.FashionData,
    curve: Curve,
) -> dict[str, Any]:
    """Return what the classifier's folder says of it."""
    return {
        "format": FORMAT,
        "name": SHIPPED,
        "network": {"channels": 1, "classes": len(fashion.CLASSES), "widths": lesson.widths},
        "classes": list(fashion.CLASSES),
        "test_accuracy": accuracy(network.eval(), *_tensors(data.test_images, data.test_labels)),
        "training": {
            "lesson": asdict(lesson),
            "licences": dict(fashion.LICENCES),
            "loss": [round(loss, 4) for loss, _ in curve],
            "seconds": round(sum(seconds for _, seconds in curve)),
            "torch": torch.__version__,
        },
    }

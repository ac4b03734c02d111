"""Classes of noisy images: a classifier that makes any model of the same data one of classes.

    min  E[−log softmax(ℓ(x_t/√(α² + σ²), λ))_y],   x_t = α x_0 + σ ε,   λ = log α/σ ~ U[span]

Its optimum is p_t(y | x) on every path with Gaussian noise, and its gradient is what
`steer.Classifier` adds to a score that was never told of classes.

    classifier = load_noisy_classes("runs/digit-classes")
    sample(model, 16, guide=Classifier(classifier.on(model.path), classifier.label("7")))

Paper: Song et al. 2021 (arXiv:2011.13456), App. I.1.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pathline.core.errors import CheckpointError, UsageError, unknown
from pathline.core.progress import track
from pathline.data import digits
from pathline.learn.checkpoint import find_folder, read_folder, write_folder
from pathline.learn.labels import encode_label
from pathline.learn.lessons import keep, rate_shape, restore
from pathline.learn.run import step_generator
from pathline.learn.sources import Points, digits_source, fashion_source
from pathline.nets.noisy_classifier import NoisyClassifier
from pathline.paths import GaussianPath, bshape
from pathline.steer.classifier import Logits

__all__ = [
    "FORMAT",
    "ClassLesson",
    "Labelled",
    "NoisyClasses",
    "labelled",
    "load_noisy_classes",
    "train_noisy_classes",
]

FORMAT = "pathline-noisy-classes-1"
STATE = "state.pt"


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images of classes.

    Args:
        images: to train on and held out.
        labels: (n,) int64, of those to train on.
        test_labels: (m,) int64, of those held out.
        classes: the names.
    """

    images: Points
    labels: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]


def labelled(name: str) -> Labelled:
    """Return a data set with its classes: "digits" (8 × 8) or "fashion" (28 × 28).

    Raises:
        UsageError: another name.
        FetchError, MissingExtra: the data cannot be had.
    """
    if name not in ("digits", "fashion"):
        raise unknown("data set with classes", name, ("digits", "fashion"))
    if name == "digits":
        data = digits.load()
        labels, others = (torch.from_numpy(a).long() for a in (data.train_labels, data.test_labels))
        return Labelled(digits_source(), labels, others, digits.CLASSES)
    known = fashion_source()
    train, test = (pixels.float() / 127.5 - 1 for pixels in (known.images, known.test_images))
    return Labelled(Points(train, test), known.labels, known.test_labels, known.classes)


@dataclass(frozen=True)
class ClassLesson:
    """How a classifier of noisy images is trained; the same lesson gives the same weights.

    Args:
        span: the least and the largest λ that it learns; beyond, it is told the nearest.
        widths: of the network's levels.
        parts: after each of which the state is kept.
        updates: in each part.
        batch: images an update.
        rate: of AdamW at its peak.
        decay: weight decay.
        seed: of the weights, the order, the levels and the noise.
    """

    span: tuple[float, float] = (-5.0, 5.0)
    widths: tuple[int, ...] = (32, 64)
    parts: int = 5
    updates: int = 200
    batch: int = 128
    rate: float = 2e-3
    decay: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.span
        if not low < high:
            raise UsageError(
                f"the noise levels go from a lower λ to a higher one, not {self.span}."
            )


@dataclass(frozen=True, eq=False)
class NoisyClasses:
    """A trained classifier of noisy images.

    Args:
        network: (x over √(α² + σ²), λ) → logits.
        classes: their names.
        span: the λ that it knows.
        folder: where it is from.
    """

    network: NoisyClassifier
    classes: tuple[str, ...]
    span: tuple[float, float]
    folder: str | None = None

    def on(self, path: GaussianPath) -> Logits:
        """Return (x, t) → logits for the states of a path, as `steer.Classifier` takes it.

        Raises:
            UsageError: the noise of the path is not Gaussian.
        """
        if not path.kernel.is_gaussian:
            raise UsageError(
                f"the classifier knows Gaussian noise, and that of the path has "
                f"D={path.kernel.dof:g}."
            )
        return OnPath(self, path, self.folder)

    def features(self, x: Tensor, log_snr: float | None = None) -> Tensor:
        """Return what the last layer sees of data, (n, widths[-1]), as a Fréchet distance takes it.

        Args:
            x: (n, channels, height, width), data with as little noise as λ says.
            log_snr: λ; the largest that it knows if None.
        """
        at = x.new_full((len(x),), self.span[1] if log_snr is None else log_snr)
        return self.network.features(x.float(), at.float())

    def classify(self, x: Tensor) -> Tensor:
        """Return the most likely class of data, (n,) int64."""
        return self.network.head(self.features(x)).argmax(1)

    def label(self, name: str | int) -> int:
        """Return the number of a class.

        Raises:
            UsageError: no class has this name; the message has the nearest.
        """
        return int(encode_label(self.classes, name)["label"])


@dataclass(frozen=True, eq=False)
class OnPath:
    """The logits of a path's states.

    Args:
        inner: the classifier.
        path: that the states are on.
        folder: where it is from, for receipts.
    """

    inner: NoisyClasses
    path: GaussianPath
    folder: str | None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return logits, (batch, classes), of x at the times t, (batch,)."""
        t, weight = t.double(), self.inner.network.head.weight
        size = torch.hypot(self.path.alpha(t), self.path.sigma(t))
        log_snr = self.path.log_snr(t).clamp(*self.inner.span)
        return self.inner.network((x / bshape(size, x)).to(weight), log_snr.to(weight)).to(x)


def train_noisy_classes(
    out: str | Path, data: Labelled | str = "digits", lesson: ClassLesson | None = None
) -> Path:
    """Train a classifier of noisy images, and write its folder.

    Keeps a state after each part in `out`, and goes on from it.

    Args:
        out: the folder of the run; the classifier goes to `out/model`.
        data: images and labels, or "digits" or "fashion".
        lesson: how.

    Returns:
        The folder, for `load_noisy_classes`.

    Raises:
        UsageError: data without classes; an output that cannot be written.
        CheckpointError: the state in `out` is damaged or of another lesson.
    """
    lesson, out = lesson or ClassLesson(), Path(out)
    known = labelled(data) if isinstance(data, str) else data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(lesson.seed)
        channels = known.images.points.shape[1]
        network = NoisyClassifier(channels, len(known.classes), lesson.widths)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lesson.rate, weight_decay=lesson.decay)
    first, curve = restore(out / STATE, lesson, network, optimizer)
    parts = range(first, lesson.parts)
    for part in track(parts, "training the classifier", len(parts)):
        curve.append(_part(lesson, known, network, optimizer, part))
        keep(out / STATE, lesson, network, optimizer, curve)
    network.eval()
    config: dict[str, Any] = {
        "format": FORMAT,
        "network": {"channels": network.channels, "widths": lesson.widths},
        "classes": list(known.classes),
        "span": lesson.span,
        "training": {
            "lesson": asdict(lesson),
            "loss": [round(loss, 4) for loss, _ in curve],
            "seconds": round(sum(seconds for _, seconds in curve)),
            "accuracy": {f"{at:g}": accuracy(network, known, at) for at in (-2.0, 0.0, 2.0)},
            "torch": torch.__version__,
        },
    }
    return write_folder(out / "model", network.state_dict(), config, torch.float16)


def load_noisy_classes(name: str | Path) -> NoisyClasses:
    """Return a classifier of noisy images, on the CPU in float32.

    Args:
        name: a folder that `train_noisy_classes` wrote.

    Raises:
        UsageError: there is no such folder.
        CheckpointError: it is damaged, or of another kind.
    """
    folder = find_folder(name)
    config, weights = read_folder(folder, FORMAT, {"network", "classes", "span"})
    shape, classes = config["network"], tuple(config["classes"])
    network = NoisyClassifier(shape["channels"], len(classes), tuple(shape["widths"]))
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: the weights do not fit the network.") from error
    network.eval().requires_grad_(False)
    return NoisyClasses(network, classes, tuple(config["span"]), str(folder))


@torch.no_grad()
def accuracy(network: NoisyClassifier, data: Labelled, log_snr: float) -> float:
    """Return the share of held-out images that are given their label at a noise level."""
    images, labels = data.images.held_out(2000).x0, data.test_labels[:2000]
    at = torch.full((len(images),), log_snr)
    noisy = _noised(images, at, step_generator(0, -1))
    parts = zip(noisy.split(500), at.split(500), strict=True)
    said = torch.cat([network(*part).argmax(1) for part in parts])
    return round(float((said == labels).double().mean()), 4)


def _noised(x0: Tensor, log_snr: Tensor, generator: torch.Generator) -> Tensor:
    """Return (α x_0 + σ ε)/√(α² + σ²)."""
    eps = torch.randn(x0.shape, generator=generator)
    signal, noise = ((2 * s * log_snr).sigmoid().sqrt() for s in (1, -1))
    return bshape(signal, x0) * x0 + bshape(noise, x0) * eps


def _part(
    lesson: ClassLesson,
    data: Labelled,
    network: NoisyClassifier,
    optimizer: torch.optim.Optimizer,
    part: int,
) -> tuple[float, float]:
    """Take the updates of a part; return the mean loss and the seconds it took."""
    start, total, (low, high) = time.monotonic(), 0.0, lesson.span
    network.train()
    for i in range(lesson.updates):
        update = part * lesson.updates + i
        generator = step_generator(lesson.seed, update)
        done = update / (lesson.parts * lesson.updates)
        for group in optimizer.param_groups:
            group["lr"] = lesson.rate * rate_shape(done, 0.1)
        chosen = torch.randint(len(data.labels), (lesson.batch,), generator=generator)
        x0, y = data.images.at(chosen, generator), data.labels[chosen]
        log_snr = low + (high - low) * torch.rand(lesson.batch, generator=generator)
        with torch.random.fork_rng(devices=[]):  # dropout draws from torch's own generator
            torch.manual_seed(generator.initial_seed())
            loss = F.cross_entropy(network(_noised(x0, log_snr, generator), log_snr), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += float(loss.detach())
    return total / lesson.updates, time.monotonic() - start

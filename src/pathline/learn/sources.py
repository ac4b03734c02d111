"""Sources of training batches; a batch is a pure function of a generator: runs can resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from pathline.core.errors import UsageError, unknown
from pathline.data import digits, emoji, fashion
from pathline.fields.problems import checkerboard, eight_gaussians, m9, moons, rings
from pathline.learn.captions import Captions, TextTable, captions_of, text_table
from pathline.learn.objectives import drawn_noise
from pathline.paths import CondOT, StudentT
from pathline.paths.student import NORMAL

__all__ = [
    "SOURCES",
    "Batch",
    "EmojiSource",
    "LabelledImages",
    "Points",
    "Source",
    "checkerboard_source",
    "classes_of",
    "digits_source",
    "eight_gaussians_source",
    "emoji_source",
    "fashion_source",
    "is_plain",
    "moons_source",
    "nine_gaussians_source",
    "points_source",
    "rings_source",
    "small_fashion_source",
    "starts",
    "weight_of",
]


@dataclass(frozen=True)
class Batch:
    """Data (n, *state) in [−1, 1], and the keyword arguments that tell the network what it is."""

    x0: Tensor
    cond: Mapping[str, Any]


class Source(Protocol):
    """Where batches come from."""

    def batch(self, n: int, generator: torch.Generator) -> Batch:
        """Return n training samples drawn with `generator` and nothing else."""
        ...

    def held_out(self, n: int) -> Batch:
        """Return at most n held-out samples, always the same ones."""
        ...


@dataclass(frozen=True)
class EmojiSource:
    """Captioned emoji.

    Args:
        images: (n, 3, 32, 32) uint8.
        captions: of each image.
        weights: (n,) float64, how often each is drawn; zero where it is held out.
        validation: (m,), the held-out images without flags and skin variants.
        table: the token states of all captions.
        length: tokens a caption is padded or cut to.
        null_share: how many captions are dropped: the network learns the unconditional field too.
        tag_share: how many captions are a tag instead of a name.
    """

    images: Tensor
    captions: Sequence[Captions]
    weights: Tensor
    validation: Tensor
    table: TextTable = field(repr=False)
    length: int = 16
    null_share: float = 0.12
    tag_share: float = 0.15

    def batch(self, n: int, generator: torch.Generator) -> Batch:
        """Return n images drawn by weight, each with a caption drawn from its own."""
        chosen = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        coins = torch.rand(3, n, generator=generator, dtype=torch.float64)
        rows = zip(chosen.tolist(), *coins[:2].tolist(), strict=True)
        return self._assemble(chosen, [self._caption(*row) for row in rows], coins[2])

    def held_out(self, n: int) -> Batch:
        """Return n held-out images of all vendors under their plain names."""
        chosen = self.validation[:: max(1, len(self.validation) // n)][:n]
        texts = [self.captions[i].names[0] for i in chosen.tolist()]
        return self._assemble(chosen, texts, torch.ones(len(chosen), dtype=torch.float64))

    def _caption(self, image: int, kind: float, which: float) -> str:
        return self.captions[image].pick(kind, which, self.tag_share)

    def _assemble(self, chosen: Tensor, texts: list[str], coin: Tensor) -> Batch:
        context, mask = self.table.padded(texts, self.length)
        return Batch(
            _scaled(self.images[chosen]),
            {"context": context, "mask": mask, "drop": coin < self.null_share},
        )


def emoji_source(weights: Mapping[str, float] | None = None, **options: Any) -> EmojiSource:
    """Return the captioned emoji of all vendors.

    Args:
        weights: factors on how often images are drawn, by "flag", "skin_variant" or a group.
        options: `length`, `null_share` and `tag_share` of `EmojiSource`.

    Raises:
        FetchError: a package of data cannot be fetched.
        MissingExtra: the text encoder is not installed.
    """
    data = emoji.load()
    captions = [captions_of(entry) for entry in data.entries]
    table = text_table([text for c in captions for text in (*c.names, *c.tags)])
    drawn = [weight_of(e, weights or {}) * (e.split == "train") for e in data.entries]
    validation = [is_plain(e) and e.split == "held_out" for e in data.entries]
    return EmojiSource(
        torch.from_numpy(data.images).permute(0, 3, 1, 2).contiguous(),
        captions,
        torch.tensor(drawn, dtype=torch.float64),
        torch.tensor(validation).nonzero()[:, 0],
        table,
        **options,
    )


@dataclass(frozen=True)
class LabelledImages:
    """Images of classes.

    Args:
        images: (n, channels, height, width) uint8.
        labels: (n,) int64, numbers in `classes`.
        test_images: (m, channels, height, width) uint8, held out.
        test_labels: (m,) int64.
        classes: their names.
        flipped: the classes whose mirror images are as likely, and are shown half of the time.
        null_share: how many labels are dropped, that is, become `len(classes)`.
    """

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    flipped: tuple[str, ...] = ()
    null_share: float = 0.1

    def __post_init__(self) -> None:
        for name in self.flipped:
            if name not in self.classes:
                raise unknown("class", name, self.classes)

    def batch(self, n: int, generator: torch.Generator) -> Batch:
        """Return n images, each as likely as any other, some mirrored and some without label."""
        chosen = torch.randint(len(self.images), (n,), generator=generator)
        coins = torch.rand(2, n, generator=generator)
        x0, label = _scaled(self.images[chosen]), self.labels[chosen]
        may_flip = torch.tensor([name in self.flipped for name in self.classes])[label]
        mirrored = may_flip & (coins[0] < 0.5)
        x0 = torch.where(mirrored[:, None, None, None], x0.flip(-1), x0)
        return Batch(x0, {"label": label.masked_fill(coins[1] < self.null_share, self.null)})

    def held_out(self, n: int) -> Batch:
        """Return the first n held-out images under their labels."""
        return Batch(_scaled(self.test_images[:n]), {"label": self.test_labels[:n]})

    def alike(self, labels: Tensor, generator: torch.Generator) -> Batch:
        """Return an image of each of these classes; of any where the label means none."""
        u = torch.rand(len(labels), generator=generator, dtype=torch.float64)
        chosen = (u * len(self.images)).long()
        order, sizes = self.labels.argsort(stable=True), self.labels.bincount(minlength=self.null)
        first, known = sizes.cumsum(0) - sizes, labels != self.null
        told = labels[known]
        chosen[known] = order[first[told] + (u[known] * sizes[told]).long()]
        return Batch(_scaled(self.images[chosen]), {"label": labels})

    @property
    def null(self) -> int:
        """The label that means none."""
        return len(self.classes)


def fashion_source(**options: Any) -> LabelledImages:
    """Return Fashion-MNIST by class.

    Args:
        options: `flipped` and `null_share` of `LabelledImages`.

    Raises:
        FetchError: the package of data cannot be fetched.
    """
    data = fashion.load()
    images = [torch.from_numpy(a)[:, None] for a in (data.train_images, data.test_images)]
    labels = [torch.from_numpy(a).long() for a in (data.train_labels, data.test_labels)]
    options["flipped"] = tuple(options.get("flipped", ()))
    return LabelledImages(images[0], labels[0], images[1], labels[1], fashion.CLASSES, **options)


@dataclass(frozen=True)
class Points:
    """Points without a condition.

    Args:
        points: (n, *state).
        test_points: (m, *state), held out.
        cell: the width of the cell around each number from which it is drawn, uniformly:
            dequantisation, which a density needs.
    """

    points: Tensor
    test_points: Tensor
    cell: float = 0.0

    def batch(self, n: int, generator: torch.Generator) -> Batch:
        """Return n points, each as likely as any other."""
        chosen = torch.randint(len(self.points), (n,), generator=generator)
        return Batch(self.at(chosen, generator), {})

    def at(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """Return the points of these numbers, (n, *state), each drawn from its cell."""
        x0 = self.points[chosen]
        if not self.cell:
            return x0
        return x0 + self.cell * (torch.rand(x0.shape, generator=generator) - 0.5)

    def held_out(self, n: int) -> Batch:
        """Return the first n held-out points."""
        return Batch(self.test_points[:n], {})


def points_source(draw: Callable[[Sequence[int]], Tensor], n: int = 50_000) -> Points:
    """Return n points of a known law, and 4096 others.

    Args:
        draw: seeds → points, (n, *state).
        n: how many are trained on.
    """
    points = draw(range(n + 4096)).float()
    return Points(points[:n], points[n:])


SMALL = 4
"""Pixels that become one, along each side, in small Fashion-MNIST."""


def small_fashion_source(n: int | None = None) -> Points:
    """Return Fashion-MNIST of 7 × 7 pixels as points of 49 numbers, of mean 0 and deviation 1.

    Every number is the mean of 4 × 4 pixels. A data set that a small network learns in a minute.

    Args:
        n: how many are trained on; None for all 60 000.

    Raises:
        FetchError: the package of data cannot be fetched.
    """
    data = fashion.load()
    train, test = (
        avg_pool2d(_scaled(torch.from_numpy(images)[:, None]), SMALL).flatten(1)
        for images in (data.train_images, data.test_images)
    )
    mean = train.mean(0)
    std = (train - mean).square().mean().sqrt()
    return Points((train[:n] - mean) / std, (test - mean) / std)


def digits_source() -> Points:
    """Return the digits of scikit-learn, (1, 8, 8) in [−1, 1], dequantised.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    data = digits.load()
    train, test = (
        (torch.from_numpy(images)[:, None].float() + 0.5) * (2 / digits.LEVELS) - 1
        for images in (data.train_images, data.test_images)
    )
    return Points(train, test, cell=2 / digits.LEVELS)


def eight_gaussians_source(**options: Any) -> Points:
    """Return `problems.eight_gaussians`; `options` are its radius and std, and n."""
    n = options.pop("n", 50_000)
    return points_source(eight_gaussians(CondOT(), **options).draw, n)


def nine_gaussians_source(n: int = 50_000) -> Points:
    """Return `problems.m9`, n points of it."""
    return points_source(m9(CondOT()).draw, n)


def moons_source(n: int = 50_000, **options: Any) -> Points:
    """Return `problems.moons`, n of them; `options` are its scale and std."""
    return points_source(partial(moons, **options), n)


def rings_source(n: int = 50_000, **options: Any) -> Points:
    """Return `problems.rings`, n points of them; `options` are their radii and std."""
    return points_source(partial(rings, **options), n)


def checkerboard_source(n: int = 50_000, **options: Any) -> Points:
    """Return `problems.checkerboard`, n points of it; `options` are its side."""
    return points_source(partial(checkerboard, **options), n)


SOURCES: Mapping[str, Callable[..., Source]] = {
    "checkerboard": checkerboard_source,
    "digits": digits_source,
    "eight_gaussians": eight_gaussians_source,
    "emoji": emoji_source,
    "fashion": fashion_source,
    "moons": moons_source,
    "nine_gaussians": nine_gaussians_source,
    "rings": rings_source,
    "small_fashion": small_fashion_source,
}
"""The sources that a training configuration can name."""


def starts(
    source: Source | None, batch: Batch, generator: torch.Generator, law: StudentT = NORMAL
) -> tuple[Tensor, Tensor | None]:
    """Return where the paths of a batch begin, and the classes of that if it has any.

    Args:
        source: None is noise; data of classes are drawn by the classes of the batch.
        batch: the data that paths end at.
        generator: of the draw.
        law: of the noise, a path's `kernel`.

    Raises:
        UsageError: the batch has a condition, and so has the source, which cannot be asked for it.
    """
    if source is None:
        return drawn_noise(law, batch.x0.shape, generator), None
    labels = batch.cond.get("label")
    if labels is not None and isinstance(source, LabelledImages):
        return source.alike(labels, generator).x0, labels
    drawn = source.batch(len(batch.x0), generator)
    if batch.cond and drawn.cond:
        raise UsageError(
            "pairs would be mixed across classes: the data have a condition, the source has one of "
            "its own, and cannot be asked for the data's. Use a source of labelled images, or one "
            "without a condition."
        )
    return drawn.x0, None


def classes_of(cond: Mapping[str, Any]) -> Tensor | None:
    """Return the classes within which a batch may exchange partners; None for data without any.

    Args:
        cond: what the network is told.

    Raises:
        UsageError: the condition is no class, so nobody knows which data are alike.
    """
    labels = cond.get("label")
    if labels is None and cond:
        raise UsageError(
            f"this coupling exchanges partners within a class, and the data are told "
            f"{', '.join(sorted(cond))} instead: pairs would be mixed across conditions. Use the "
            "coupling 'independent' or 'gibbs'."
        )
    return labels


def _scaled(pixels: Tensor) -> Tensor:
    """Pixels as data: 0 … 255 to [−1, 1]."""
    return pixels.float() / 127.5 - 1


def weight_of(entry: emoji.Emoji, factors: Mapping[str, float]) -> float:
    """Return how often an emoji is drawn, beside a plain one of a group without a factor."""
    weight = factors.get(entry.group, 1.0)
    weight *= factors.get("flag", 1.0) if entry.is_flag else 1.0
    return weight * (factors.get("skin_variant", 1.0) if entry.is_skin_variant else 1.0)


def is_plain(entry: emoji.Emoji) -> bool:
    """Whether an emoji is neither a flag nor a skin tone of another."""
    return not (entry.is_flag or entry.is_skin_variant)

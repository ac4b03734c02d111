"""Rewards from labelled data: a classifier of clean data, and log p̂(y | x_0, c) of what is asked.

The data are triples (c, x, y), or pairs (x, y) where y is independent of c given x: then
p(y | x, c) = p(y | x), and a classifier of pairs serves every c. Whether it is so can be tested
where some triples are known (`learn.independence`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathline.core.errors import UsageError
from pathline.core.progress import track
from pathline.learn.calibrate import Calibrated
from pathline.learn.control import Question
from pathline.learn.run import step_generator

__all__ = ["ClassPrior", "ClassReward", "FitLesson", "JointReward", "Labelled", "fit_classifier"]

PROBABILITY_FLOOR = 1e-6


@dataclass(frozen=True, eq=False)
class Labelled:
    """Clean data with the class of each, and perhaps with what the model was told.

    Args:
        x: (n, *state).
        y: (n,) int64, from 0 to classes − 1.
        classes: K.
        c: (n, ...), what the model is told of each; None for pairs.

    Raises:
        UsageError: labels outside 0 … K − 1, or sizes that differ.
    """

    x: Tensor
    y: Tensor
    classes: int
    c: Tensor | None = None

    def __post_init__(self) -> None:
        check_classes(self.y, self.classes)
        sizes = [len(each) for each in (self.x, self.y, self.c) if each is not None]
        if len(set(sizes)) > 1 or not sizes[0]:
            raise UsageError(f"data, labels and conditions are one each; there are {sizes}.")

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, chosen: Tensor) -> Labelled:
        """Return some of the data."""
        c = None if self.c is None else self.c[chosen]
        return Labelled(self.x[chosen], self.y[chosen], self.classes, c)


@dataclass(frozen=True)
class FitLesson:
    """How a classifier of clean data is fitted.

    Args:
        epochs: at most.
        batch: data an update.
        rate: of Adam; divided by ten where the held-out loss has not fallen for `patience` epochs.
        patience: epochs.
        held_out: share of the data that chooses the epoch, and the temperature.
        decay: of the weights.
        seed: of the order and of what is held out.
    """

    epochs: int = 60
    batch: int = 64
    rate: float = 3e-3
    patience: int = 8
    held_out: float = 0.2
    decay: float = 0.0
    seed: int = 0


def fit_classifier(
    network: nn.Module,
    data: Labelled,
    lesson: FitLesson | None = None,
    *,
    is_conditional: bool = False,
) -> Calibrated:
    """Return a classifier of clean data, at its best epoch and temperature on held-out data.

    Args:
        network: (x) → logits (batch, K), or (x, c) if it is conditional; trained in place.
        data: pairs, or triples.
        lesson: how.
        is_conditional: whether it reads c. That it does not is the assertion that y is independent
            of c given x.

    Raises:
        UsageError: it reads c, and there are pairs; too few data to hold some out.
    """
    lesson = lesson or FitLesson()
    if is_conditional and data.c is None:
        raise UsageError(
            "this classifier reads c, and pairs (x, y) were given: assert y independent of c "
            "given x (is_conditional=False), or pass triples (Labelled(x, y, K, c))."
        )
    seen, held = _split(data, lesson)
    optimizer = torch.optim.Adam(network.parameters(), lr=lesson.rate, weight_decay=lesson.decay)
    falling = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=lesson.patience)
    best, kept = math.inf, copy.deepcopy(network.state_dict())
    for epoch in track(range(lesson.epochs), "fitting the classifier", lesson.epochs):
        _epoch(network, seen, optimizer, lesson, epoch, is_conditional)
        with torch.no_grad():
            loss = float(F.cross_entropy(_logits(network, held, is_conditional), held.y))
        falling.step(loss)
        if loss < best:
            best, kept = loss, copy.deepcopy(network.state_dict())
    network.load_state_dict(kept)
    network.eval().requires_grad_(False)
    return Calibrated.fitted(network, _logits(network, held, is_conditional), held.y)


@dataclass(frozen=True, eq=False)
class ClassReward:
    """log p̂(y | x_0, c) of the class that is asked for: the reward of Bayes' rule.

    Args:
        classifier: x, or (x, c), to calibrated logits (batch, K).
        y: by which name the class is asked for.
        c: by which name the model is told what the classifier reads, too; None if it reads x alone.
        floor: is added to the probability, so that a hopeless sample has a finite reward.

    Raises:
        UsageError: a class outside 0 … K − 1; a condition that was not given.
    """

    classifier: Callable[..., Tensor]
    y: str = "label"
    c: str | None = None
    floor: float = PROBABILITY_FLOOR

    def __call__(self, x0: Tensor, **words: Any) -> Tensor:
        """Return the reward of each sample, (batch,)."""
        missing = [name for name in (self.y, self.c) if name is not None and name not in words]
        if missing:
            raise UsageError(f"the reward reads {', '.join(missing)}, and got {', '.join(words)}.")
        logits = self.classifier(x0, *(() if self.c is None else (words[self.c],)))
        y = torch.as_tensor(words[self.y], device=x0.device).expand(len(x0))
        check_classes(y, logits.shape[1])
        return (logits.softmax(1).gather(1, y[:, None])[:, 0] + self.floor).log()


@dataclass(frozen=True, eq=False)
class JointReward:
    """Two controls at once: y = y_a K_b + y_b, and r = r_a + w r_b.

    With w = 1 it is log p̂(y_a, y_b | x), where the two are independent given x.

    Args:
        first: the classifier of y_a.
        second: the classifier of y_b, of K_b classes.
        weight: w.
        y: by which name the pair is asked for.
        floor: as `ClassReward`.
    """

    first: Callable[..., Tensor]
    second: Callable[..., Tensor]
    weight: float = 1.0
    y: str = "label"
    floor: float = PROBABILITY_FLOOR

    def __call__(self, x0: Tensor, **words: Any) -> Tensor:
        """Return the reward of each sample, (batch,)."""
        logits = self.first(x0), self.second(x0)
        k_a, k_b = (each.shape[1] for each in logits)
        y = torch.as_tensor(words[self.y], device=x0.device).expand(len(x0))
        check_classes(y, k_a * k_b)
        parts = (y // k_b, y % k_b)
        r_a, r_b = (
            (said.softmax(1).gather(1, part[:, None])[:, 0] + self.floor).log()
            for said, part in zip(logits, parts, strict=True)
        )
        return r_a + self.weight * r_b


@dataclass(frozen=True)
class ClassPrior:
    """What is asked for in training: classes drawn from Π, and conditions beside them.

    Args:
        chances: Π, one a class; or their number, for all alike.
        y: by which name a class is asked for.
        conditions: (n, generator) → what both models are told; None for nothing.

    Raises:
        UsageError: chances that are negative or do not sum to one.

    Example:
        >>> ClassPrior(3).draw(4, torch.Generator().manual_seed(0)).told["label"].shape
        torch.Size([4])
    """

    chances: Sequence[float] | int
    y: str = "label"
    conditions: Callable[[int, torch.Generator], Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        chances = self.weights
        if not len(chances) or bool((chances < 0).any()) or abs(float(chances.sum()) - 1) > 1e-6:
            raise UsageError(
                "the class prior is one chance ≥ 0 for each class, summing to 1; it is "
                f"{self.chances}, summing to {float(chances.sum()):.6g}."
            )

    @property
    def weights(self) -> Tensor:
        """Π, (K,)."""
        if isinstance(self.chances, int):
            return torch.full((self.chances,), 1 / max(self.chances, 1), dtype=torch.float64)
        return torch.tensor(list(self.chances), dtype=torch.float64)

    def draw(self, n: int, generator: torch.Generator) -> Question:
        """Return what a batch of n is asked for."""
        told = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        cond = {} if self.conditions is None else self.conditions(n, generator)
        return Question(cond, {self.y: told})


def check_classes(y: Tensor, classes: int) -> None:
    """Refuse labels that are no classes."""
    if y.is_floating_point() or bool((y < 0).any()) or bool((y >= classes).any()):
        raise UsageError(
            f"classes are whole numbers from 0 to {classes - 1}; these go from {y.min().item()} to "
            f"{y.max().item()} in {str(y.dtype).removeprefix('torch.')}."
        )


def _split(data: Labelled, lesson: FitLesson) -> tuple[Labelled, Labelled]:
    n = round(lesson.held_out * len(data))
    if not 0 < n < len(data):
        raise UsageError(f"of {len(data)} data, {n} would be held out; both parts need some.")
    order = torch.randperm(len(data), generator=step_generator(lesson.seed, -1))
    return data.rows(order[n:]), data.rows(order[:n])


def _epoch(
    network: nn.Module,
    data: Labelled,
    optimizer: torch.optim.Optimizer,
    lesson: FitLesson,
    epoch: int,
    is_conditional: bool,
) -> None:
    network.train()
    order = torch.randperm(len(data), generator=step_generator(lesson.seed, epoch))
    for chosen in order.split(lesson.batch):
        part = data.rows(chosen)
        loss = F.cross_entropy(network(part.x, *_read(part, is_conditional)), part.y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def _logits(network: nn.Module, data: Labelled, is_conditional: bool) -> Tensor:
    network.eval()
    return network(data.x, *_read(data, is_conditional))


def _read(data: Labelled, is_conditional: bool) -> tuple[Tensor, ...]:
    return (data.c,) if is_conditional and data.c is not None else ()

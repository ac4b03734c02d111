"""Training of models of series: the weights that are best on the part that chooses are kept.

All that is random in a step is a function of its number, so a training that is cut short goes on
from its file as if nothing had happened.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pathline.core.errors import UsageError
from pathline.core.files import write_atomically
from pathline.core.progress import track
from pathline.domains.series.series import Observed, Series
from pathline.learn.run import step_generator

__all__ = ["Aim", "Classes", "Fit", "accuracy", "averaged", "fit", "predict"]


@dataclass(frozen=True)
class Fit:
    """How a model is trained.

    Args:
        iterations: steps of Adam, at most.
        batch: series in a step.
        rate: of Adam.
        decay: of weights, times the rate.
        penalty: of Σ‖θ‖ over the vector field's parameters.
        every: steps between looks at the part that chooses; after each, the rate is halved where
            nothing was better for `patience` looks, and after twice as many the training ends.
        patience: of these looks.
        seed: of all that is random.
    """

    iterations: int = 1200
    batch: int = 64
    rate: float = 3e-3
    decay: float = 0.01
    penalty: float = 0.0
    every: int = 50
    patience: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.iterations, self.batch, self.every, self.patience) < 1 or not self.rate > 0:
            raise UsageError("iterations, batch, every and patience are 1 or more, rate above 0.")


class Aim(Protocol):
    """What a model is trained for: a loss of a batch, and what is looked at on other series."""

    def loss(self, model: Any, series: Any, seeds: Sequence[int], step: int) -> Tensor:
        """Return the loss, (), with a gradient.

        Args:
            model: what is trained.
            series: a batch of the training part.
            seeds: of the batch's noise.
            step: of the training, from 0.
        """
        ...

    def look(self, model: Any, series: Any, seed: int) -> float:
        """Return the loss on all of the part that chooses, with noise of this seed."""
        ...


@dataclass(frozen=True)
class Classes:
    """The cross entropy of labels."""

    def loss(self, model: nn.Module, series: Series, seeds: Sequence[int], step: int) -> Tensor:
        del step
        return nn.functional.cross_entropy(model(series, seeds), series.labels)

    def look(self, model: nn.Module, series: Series, seed: int) -> float:
        said = predict(model, series, passes=1, seed=seed)
        return float(nn.functional.nll_loss(said.clamp_min(1e-12).log(), series.labels))


def fit(
    model: nn.Module, train: Observed, valid: Observed, how: Fit | None = None, *,
    aim: Aim | None = None, state: Path | None = None,
) -> nn.Module:  # fmt: skip
    """Train a model, in place; it ends with the weights that were best on `valid`.

    Args:
        model: called with (series, seeds); its `penalised` are the vector field's parameters.
        train, valid: what is learned from, and what chooses.
        how: steps, rates, seeds.
        aim: what is minimised; the cross entropy of labels if None.
        state: a file from which a training that was cut short goes on; None keeps nothing.
    """
    run = _Running(model, train, valid, how or Fit(), aim or Classes())
    if state is not None and state.is_file():
        run.restore(state)
    for _ in track(range(run.step, run.how.iterations), "training"):
        if run.is_over:
            break
        run.advance()
        if run.step % run.how.every == 0 or run.step == run.how.iterations:
            run.look()
            if state is not None:
                run.save(state)
    model.load_state_dict(run.best)
    return model


class _Running:
    """A training on its way."""

    def __init__(
        self, model: nn.Module, train: Observed, valid: Observed, how: Fit, aim: Aim
    ) -> None:
        self.model, self.train, self.valid, self.how, self.aim = model, train, valid, how, aim
        _ = train.knots, valid.knots  # made once
        self.optimiser = torch.optim.Adam(
            model.parameters(), how.rate, weight_decay=how.decay * how.rate
        )
        self.step, self.waited, self.least = 0, 0, float("inf")
        self.best = _copied(model.state_dict())

    @property
    def is_over(self) -> bool:
        return self.waited >= 2 * self.how.patience

    def advance(self) -> None:
        """Make one step."""
        how, n = self.how, len(self.train)
        generator = step_generator(how.seed, self.step)
        rows = torch.randperm(n, generator=generator)[: how.batch]
        torch.manual_seed(how.seed * 1_000_003 + self.step)  # dropout's
        batch = self.train[rows]
        self.model.train()
        seeds = _seeds(how.seed, self.step, len(batch))
        loss = self.aim.loss(self.model, batch, seeds, self.step)
        if how.penalty:
            norms = [p.norm() for p in getattr(self.model, "penalised", ())]
            loss = loss + how.penalty * sum(norms)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        self.optimiser.step()
        self.step += 1

    def look(self) -> None:
        """Measure the loss on the part that chooses."""
        self.model.eval()
        with torch.no_grad():
            loss = self.aim.look(self.model, self.valid, self.how.seed + 1)
        if loss < self.least:
            self.least, self.waited, self.best = loss, 0, _copied(self.model.state_dict())
            return
        self.waited += 1
        if self.waited % self.how.patience == 0:
            for group in self.optimiser.param_groups:
                group["lr"] /= 2

    def save(self, path: Path) -> None:
        content: dict[str, Any] = {
            "model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(),
            "best": self.best, "step": self.step, "waited": self.waited, "least": self.least,
        }  # fmt: skip
        memory = io.BytesIO()
        torch.save(content, memory)
        write_atomically(path, memory.getvalue())

    def restore(self, path: Path) -> None:
        content = torch.load(path, weights_only=True)
        self.model.load_state_dict(content["model"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.best, self.step = content["best"], content["step"]
        self.waited, self.least = content["waited"], content["least"]


def _copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}


def _seeds(seed: int, step: int, n: int) -> Sequence[int]:
    """Return seeds of Brownian paths that no other step has."""
    first = (seed << 44) + (step << 16)
    return range(first, first + n)


@torch.no_grad()
def predict(
    model: nn.Module, series: Series, *, passes: int = 5, seed: int = 0, batch: int = 512
) -> Tensor:
    """Return the probabilities of the classes, (n, classes): the mean over passes of fresh noise.

    Args:
        model: a classifier; it is put into evaluation mode.
        series: what is classified.
        passes: how many.
        seed: of the noise; none of it is that of a training of another seed.
        batch: series at a time.
    """
    return averaged(lambda part, seeds: model(part, seeds).softmax(1), model, series,
                    passes=passes, seed=seed, batch=batch)  # fmt: skip


@torch.no_grad()
def averaged(
    say: Callable[[Any, Sequence[int]], Tensor], model: nn.Module, series: Observed, *,
    passes: int, seed: int = 0, batch: int = 512,
) -> Tensor:  # fmt: skip
    """Return what a model in evaluation mode says of (series, seeds), a mean over passes, (n, …).

    Args:
        say: what is asked, for a part of the series at a time.
        model: the model.
        series, passes, seed, batch: as for `predict`.
    """
    model.eval()
    _ = series.knots
    made = list[Tensor]()
    for first in range(0, len(series), batch):
        part = series[slice(first, first + batch)]
        each = [
            say(part, _seeds(seed, 2**24 + k, 2**16)[first % 2**15 :][: len(part)])
            for k in range(passes)
        ]
        made.append(torch.stack(each).mean(0))
    return torch.cat(made)


def accuracy(model: nn.Module, series: Series, *, passes: int = 5, seed: int = 0) -> float:
    """Return the share of series whose likeliest class is theirs."""
    said = predict(model, series, passes=passes, seed=seed).argmax(1)
    return float((said == series.labels).double().mean())

"""Teaching a control: updates of its weights along the gradient of rollouts, and what is made."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pathline.core.errors import UsageError
from pathline.core.progress import track
from pathline.fields import Denoiser, Field
from pathline.learn.control import AnyControl, Noise, Question, SoftControl
from pathline.learn.journal import TrainingError
from pathline.learn.lessons import Curve, keep, restore
from pathline.learn.run import step_generator
from pathline.paths import as_time
from pathline.steer.control import Shift

__all__ = ["Assessment", "ControlLesson", "Questions", "assess", "train_control", "weights_of"]

STATE = "control.pt"


class Questions(Protocol):
    """What batches are asked for; `ClassPrior` is one."""

    def draw(self, n: int, generator: torch.Generator) -> Question:
        """Return what a batch of n is asked for."""
        ...


@dataclass(frozen=True)
class ControlLesson:
    """How a control is taught; the same lesson gives the same weights.

    Args:
        updates: in all.
        batch: trajectories an update.
        rate: of AdamW at the start.
        last_rate: at the end, reached along a cosine; None keeps the rate.
        embedding_rate: of class embeddings, in place of `rate`; None is ten times it.
        decay: of the weights; it draws a low-rank control towards the pretrained model.
        clip: the largest norm of the gradient.
        part: updates after which the state is kept.
        seed: of the noise and of what is asked for.
    """

    updates: int = 200
    batch: int = 128
    rate: float = 1e-3
    last_rate: float | None = None
    embedding_rate: float | None = None
    decay: float = 0.1
    clip: float = 5.0
    part: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.updates, self.batch, self.part) < 1 or not self.rate > 0:
            raise UsageError(
                "a lesson needs updates, batch and part of at least 1 and a rate above 0; they are "
                f"{self.updates}, {self.batch}, {self.part}, {self.rate}."
            )

    def factor(self, update: int) -> float:
        """Return the rate of an update, over that of the first."""
        if self.last_rate is None:
            return 1.0
        left = (1 + math.cos(math.pi * update / self.updates)) / 2
        return left + (1 - left) * self.last_rate / self.rate


class Teaching(NamedTuple):
    """What is taught, and by what."""

    objective: SoftControl
    model: Field
    control: AnyControl
    questions: Questions


def train_control(
    objective: SoftControl,
    model: Field,
    control: AnyControl,
    questions: Questions,
    lesson: ControlLesson | None = None,
    out: str | Path | None = None,
) -> Curve:
    """Teach a control, in place, and return its curve.

    Args:
        objective: what is to be reached.
        model: the pretrained one.
        control: `Control(adapt(model, ...))` or `Shift(network)`; what asks for gradients in it
            is taught.
        questions: what batches are asked for.
        lesson: how.
        out: a folder for the state after each part, from which it goes on; None keeps none.

    Returns:
        (objective, reward, divergence, seconds) of each part: means over its trajectories, γ r less
        the divergence as it is reduced.

    Raises:
        UsageError: nothing asks for gradients; as `SoftControl.rollout`.
        TrainingError: a loss is not finite; names the update.
        CheckpointError: the state in `out` is damaged, or of another lesson.
    """
    lesson = lesson or ControlLesson()
    work = Teaching(objective, model, control, questions)
    network = weights_of(control)
    optimizer = _optimizer(network, lesson)
    state = None if out is None else Path(out) / STATE
    told = (lesson, objective.describe())
    first, curve = (0, []) if state is None else restore(state, told, network, optimizer)
    parts = -(-lesson.updates // lesson.part)
    for part in track(range(first, parts), "teaching the control", parts - first):
        curve.append(_part(work, lesson, network, optimizer, part))
        if state is not None:
            keep(state, told, network, optimizer, curve)
    return curve


def weights_of(control: AnyControl) -> nn.Module:
    """Return the network that a control is taught in.

    Raises:
        UsageError: it has none whose weights ask for gradients.
    """
    model = control.network if isinstance(control, Shift) else control.model
    network = model.network if isinstance(model, Denoiser) else model
    if not isinstance(network, nn.Module) or not any(p.requires_grad for p in network.parameters()):
        raise UsageError(
            "the control has no weights that ask for gradients: give Shift(network), or "
            "Control(adapt(model, ...))."
        )
    return network


class Assessment(NamedTuple):
    """What a control does, from noise that is always the same.

    Args:
        reward: mean reward by class, (K,).
        accuracy: share of samples of the class that was asked for.
        macro_f1: mean over classes of 2 hits/(asked + said).
        divergence: mean, as it is reduced.
    """

    reward: Tensor
    accuracy: float
    macro_f1: float
    divergence: float


@torch.no_grad()
def assess(  # noqa: PLR0913 - what is assessed, by whom, and on what
    objective: SoftControl,
    model: Field,
    control: AnyControl,
    classify: Callable[[Tensor], Tensor],
    question: Question,
    seeds: range = range(128),
    y: str = "label",
) -> Assessment:
    """Return what a control makes of these seeds.

    Args:
        objective, model, control: as in training.
        classify: x → logits (batch, K).
        question: what each seed is asked for.
        seeds: of the trajectories.
        y: by which name a class is asked for.
    """
    made = objective.rollout(model, control, seeds, question)
    asked, logits = question.told[y], classify(made.x)
    said, k = logits.argmax(1), logits.shape[1]
    hits, wanted, claimed = (
        each.bincount(minlength=k).double() for each in (asked[said == asked], asked, said)
    )
    present = wanted + claimed > 0
    reward = torch.zeros(k).double().index_add_(0, asked, made.reward.double()) / wanted
    f1 = (2 * hits / (wanted + claimed))[present].mean()
    accuracy = float(hits.sum() / len(asked))
    return Assessment(reward, accuracy, float(f1), float(made.divergence.double().mean()))


def _optimizer(network: nn.Module, lesson: ControlLesson) -> torch.optim.Optimizer:
    """Return AdamW over what asks for gradients, embeddings at a rate of their own."""
    taught = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    embeddings = [p for name, p in taught if name.split(".")[0] == "classes"]
    others = [p for name, p in taught if name.split(".")[0] != "classes"]
    faster = 10 * lesson.rate if lesson.embedding_rate is None else lesson.embedding_rate
    groups = [
        {"params": group, "lr": rate, "first": rate}
        for group, rate in ((others, lesson.rate), (embeddings, faster)) if group
    ]  # fmt: skip
    return torch.optim.AdamW(groups, lr=lesson.rate, weight_decay=lesson.decay)


def _part(
    work: Teaching,
    lesson: ControlLesson,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    part: int,
) -> tuple[float, ...]:
    """Take the updates of a part; return the means of what they saw, and the seconds."""
    begun, seen = time.monotonic(), []
    first = part * lesson.part
    for update in range(first, min(first + lesson.part, lesson.updates)):
        for group in optimizer.param_groups:
            group["lr"] = group["first"] * lesson.factor(update)
        made = _update(work, lesson, network, optimizer, update)
        if not bool(torch.isfinite(made).all()):
            raise TrainingError(f"the loss is not finite at update {update}; lower the rate.")
        seen.append(made)
    return (*torch.stack(seen).mean(0).tolist(), time.monotonic() - begun)


def _update(
    work: Teaching,
    lesson: ControlLesson,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    update: int,
) -> Tensor:
    """Make one update; return the objective, the reward and the divergence."""
    objective, model, control, questions = work
    generator = step_generator(lesson.seed, update)
    weight = next(p for p in network.parameters() if p.requires_grad)
    shape, device = (lesson.batch, *(model.shape or ())), weight.device

    def draw(_: object) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=weight.dtype).to(device)

    assert model.path is not None
    sigma = model.path.sigma(as_time(objective.plan(model).start[-1]))
    question = questions.draw(lesson.batch, generator)
    question = Question(*({k: _placed(v, device) for k, v in told.items()} for told in question))
    noise = Noise(draw(0) * float(sigma), draw, generator)
    made = objective.run(model, control, noise, question)
    if made.loss.requires_grad:  # random truncation may leave nothing of a short rollout
        optimizer.zero_grad()
        made.loss.backward()
        nn.utils.clip_grad_norm_([p for p in network.parameters() if p.requires_grad], lesson.clip)
        optimizer.step()
    return torch.stack([-made.loss, made.reward.mean(), made.divergence.mean()]).detach()


def _placed(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value

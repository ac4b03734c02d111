"""The tasks of `pathline steer`: what is known of a picture, and the guide that keeps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.fields import Denoiser, Field
from pathline.solvers import Solver, Step, grids, sample, solvers
from pathline.steer import CFG, Correction, Estimate, Guide, Inpaint, Projection, Repeat, operators
from pathline.steer.operators import Operator

GUIDANCE = 3.0
ORIGINALS = ("red apple", "red heart", "yellow circle", "automobile")
"""Pictures that the model draws, and that are taken apart."""

OTHERS = ("green apple", "blue heart", "purple circle", "taxi")
"""What the text asks for instead."""

SCATTERED = 0.06
"""The share of pixels whose colour is known beside the luma."""

FACTOR = 4


@dataclass(frozen=True)
class Prior:
    """A model, pictures that are taken apart, and what is said of them.

    Args:
        model: the field.
        name: as the user wrote it.
        pictures: (n, *shape) in [−1, 1].
        titles: what each shows.
        score: log p(hidden | known) of samples by the mask, nats a pixel, where it is exact.
    """

    model: Field
    name: str
    pictures: Tensor
    titles: Sequence[str]
    score: Callable[[Tensor, operators.Mask], Tensor] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a picture."""
        return tuple(self.pictures.shape[1:])


@dataclass(frozen=True)
class Task:
    """What is done to pictures.

    Args:
        name: what a person types.
        about: one sentence for the page.
        operator: what is measured, of pictures of a shape.
        seen: what is known, as a picture that a person can look at.
        colours: whether it needs three channels.
        texts: whether the other texts are asked for.
    """

    name: str
    about: str
    operator: Callable[[tuple[int, ...]], Operator]
    guide: Callable[[Operator, Tensor], Guide]
    seen: Callable[[Operator, Tensor], Tensor]
    colours: bool = False
    texts: bool = False


def half(shape: tuple[int, ...]) -> operators.Mask:
    """Return the mask that hides the right half."""
    mask = torch.ones(1, *shape[1:])
    mask[..., shape[2] // 2 :] = 0
    return operators.Mask(mask)


def hole(shape: tuple[int, ...]) -> operators.Mask:
    """Return the mask that hides the middle, half as wide and as high as the picture."""
    mask = torch.ones(1, *shape[1:])
    high, wide = shape[1] // 4, shape[2] // 4
    mask[..., high : 3 * high, wide : 3 * wide] = 0
    return operators.Mask(mask)


def scattered(shape: tuple[int, ...]) -> operators.Mask:
    """Return the mask that keeps a few pixels, always the same ones."""
    u = noise.uniform([0], (1, *shape[1:]), stream="choice")[0]
    return operators.Mask((u < SCATTERED).float())


def _kept(operator: Operator, x: Tensor) -> Tensor:
    """Return the known pixels, the others in grey."""
    return operator.forward(x)


def _grey(operator: Operator, x: Tensor) -> Tensor:
    return operator.forward(x).expand_as(x)


def _small(operator: Operator, x: Tensor) -> Tensor:
    return F.interpolate(operator.forward(x), tuple(x.shape[2:]), mode="nearest")


def _hinted(operator: Operator, x: Tensor) -> Tensor:
    mask = scattered(tuple(x.shape[1:])).mask
    return torch.where(mask.bool(), x, _grey(operator, x))


def _projected(operator: Operator, x: Tensor) -> Guide:
    return Projection(operator, operator.forward(x))


def _filled(operator: Operator, x: Tensor) -> Guide:
    assert isinstance(operator, operators.Mask)
    return Inpaint(operator.mask, x)


def _both(operator: Operator, x: Tensor) -> Guide:
    return Inpaint(scattered(tuple(x.shape[1:])).mask, x) & _projected(operator, x)


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("inpaint", "The middle is hidden and made up.", hole, _filled, _kept),
        Task("colour", "Only the luma is known.", lambda _: operators.Luma(), _projected, _grey,
             colours=True),
        Task("sr", f"A picture {FACTOR} times smaller is known.",
             lambda _: operators.Cubic(FACTOR), _projected, _small),
        Task("text", "The luma is kept, and words ask for something else.",
             lambda _: operators.Luma(), _projected, _grey, colours=True, texts=True),
        Task("multi", f"Two conditions at once: the luma, and the colour of {SCATTERED:.0%} of the "
             "pixels.", lambda _: operators.Luma(), _both, _hinted, colours=True),
    )
}  # fmt: skip
"""Every task, by name."""


@dataclass(frozen=True, eq=False)
class Recorder(Correction):
    """Changes nothing, and writes down how far each estimate is from what is known."""

    operator: Operator
    y: Tensor
    log: list[tuple[float, float]] = field(default_factory=list)

    def corrected(self, now: Estimate) -> Tensor:
        off = (self.operator.forward(now.x0) - self.y).square().mean().sqrt()
        self.log.append((float(now.t.max()), float(off)))
        return now.x0

    def describe(self) -> dict[str, Any]:
        """Return its name."""
        return {"name": "recorder"}


@dataclass(frozen=True)
class Done:
    """What came of a task.

    Args:
        task: which.
        seen: what was known, as pictures.
        x: the results, (n, *shape).
        residuals: (time, root mean square by which x̂_0 missed the data before it was corrected).
        off: by how much the results miss them, at most.
        score: log p(hidden | known), nats a pixel, where it is exact.
        nfe: evaluations.
    """

    task: Task
    seen: Tensor
    x: Tensor
    residuals: Sequence[tuple[float, float]]
    off: float
    score: float | None
    nfe: int

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values."""
        told = {"task": self.task.name, "evaluations": self.nfe, "off": self.off}
        per_step = [{"t": t, "residual": r, "V": r * r / 2} for t, r in self.residuals]
        return {**told, "log p(hidden | known)": self.score, "evaluated": per_step}


@dataclass(frozen=True)
class Workshop:
    """How tasks are done.

    Args:
        prior: the model and its pictures.
        steps: of the grid; the last one goes to data.
        repeats: R, visits of each level.
        seed: of the first picture.
    """

    prior: Prior
    steps: int = 15
    repeats: int = 4
    seed: int = 100

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise UsageError(f"--steps {self.steps}: two or more.")
        _ = self.solver  # refuses repeats below one

    @cached_property
    def solver(self) -> Solver:
        """DDPM, each level visited so many times."""
        return solvers.build("ddpm") if self.repeats == 1 else Repeat("ddpm", self.repeats)

    def check(self, task: Task) -> None:
        """Refuse a task that this model cannot do.

        Raises:
            UsageError: it has one channel, or reads no text.
        """
        name = self.prior.name
        if task.colours and self.prior.shape[0] != 3:
            raise UsageError(f"{task.name} needs colours, and {name} draws in grey; take inpaint.")
        if task.texts and not getattr(self.prior.model, "is_conditional", False):
            raise UsageError(f"{task.name} needs a model that reads text, and {name} does not.")

    def done(self, task: Task, observe: Callable[[Step], None] | None = None) -> Done:
        """Do a task, without gradients."""
        self.check(task)
        prior, x = self.prior, self.prior.pictures
        operator = task.operator(prior.shape)
        recorder = Recorder(operator, operator.forward(x))
        guide = recorder & task.guide(operator, x)
        told: dict[str, Any] = {}
        if task.texts:
            guide, told = CFG(GUIDANCE) & guide, {"text": list(OTHERS[: len(x)])}
        grid = grids.log_snr(self.steps, last="denoise")
        with torch.no_grad():
            made = sample(
                prior.model, len(x), solver=self.solver, grid=grid, guide=guide, seed=self.seed,
                shape=prior.shape, dtype=x.dtype, observe=observe, **told,
            )  # fmt: skip
            off = float((operator.forward(made.x) - recorder.y).abs().max())
        score = None
        if prior.score is not None and isinstance(operator, operators.Mask):
            score = float(prior.score(made.x, operator).mean())
        seen = task.seen(operator, x)
        return Done(task, seen, made.x, recorder.log, off, score, made.stats.nfe)


def prior_of(name: str, observe: Callable[[Step], None] | None = None) -> Prior:
    """Return a model that reads text with pictures that it draws, or the digits with their own.

    Raises:
        UsageError: no such model, or one that does not read text.
        MissingExtra: scikit-learn, for the digits, or what reads text is missing.
    """
    if name == "digits":
        from pathline.systems.steered_digits import law, log_hole, pixels

        x, labels = (part[-4:] for part in pixels())
        return Prior(law(), name, x, [str(int(label)) for label in labels], log_hole)
    from pathline.learn.checkpoint import load_model

    model = load_model(name)
    return Prior(model, name, originals(model, observe), ORIGINALS)


def originals(model: Denoiser, observe: Callable[[Step], None] | None) -> Tensor:
    """Return the pictures that are taken apart."""
    if not model.is_conditional or model.details.get("condition") != "text":
        raise UsageError(
            f"{model.name} does not read text, and what is taken apart is drawn from words; "
            "take emoji, or digits."
        )
    with torch.no_grad():
        return sample(
            model, len(ORIGINALS), solver="dpmpp_2m", grid=grids.log_snr(STEPS, last="denoise"),
            guide=CFG(GUIDANCE), observe=observe, text=list(ORIGINALS),
        ).x.clamp(-1, 1)  # fmt: skip


STEPS = 12
"""Of the originals."""

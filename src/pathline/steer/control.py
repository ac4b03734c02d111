"""Learned control: a model that was taught by a reward, or a small network beside a model.

    F = F_pre + w (F_θ − F_pre)

The pretrained model F_pre is what a guide is put on; F_θ is what `learn.train_control` made of it.
As guides they work under every solver, and the strength w can be changed after training: 0 is the
pretrained model, 1 the control as it was trained. A control is a change of the drift, so the law of
its samples is the trained one where the solver draws noise as it did in training (eta = 1).

Paper: Zhao et al. 2024 (arXiv:2406.12120).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields import Condition, Denoiser, Evaluate, Field, change
from pathline.fields.around import Around
from pathline.fields.denoiser import denoiser_in
from pathline.paths import bshape
from pathline.steer.contrast import repeated, said_in
from pathline.steer.guide import Guide, Guided, guides, named

Pair = Callable[[int, Tensor], tuple[Tensor, Tensor]]
"""f(k, x): what the pretrained and the controlled model say, each (batch, *state)."""


@guides.register("control", aliases=("ctrl",), paper="arXiv:2406.12120")
@dataclass(frozen=True)
class Control(Guide):
    """A controlled model in place of the pretrained one, as strongly as is wanted.

    Args:
        model: the controlled model, on the same path; it may say another view.
        told: what it is told besides the condition, in its user's words: {"label": 3}, or one
            value a sample.
        weight: w; 0 is the pretrained model, 1 the controlled one, and above 1 goes beyond.
        inside: a guide that acts on both models before they are compared: CFG on the text.

    Raises:
        UsageError: no model, one on another path or of another shape, a weight that is no number.

    Cost: at w = 1 the controlled model alone; else both.
    """

    model: Field | None = field(default=None, compare=False)
    told: Mapping[str, Any] = field(default_factory=dict, hash=False)
    weight: float = 1.0
    inside: Guide | None = None

    def __post_init__(self) -> None:
        check_weight(self.weight)

    @property
    def is_none(self) -> bool:
        return self.weight == 0 and self.inside is None

    @property
    def chooses_evaluations(self) -> bool:
        return not self.is_none

    def __call__(self, field: Field) -> Field:
        return field if self.is_none else self.controlled(field)

    def controlled(self, field: Field) -> Controlled:
        """Return the field of both models, whatever the weight.

        Raises:
            UsageError: as the class says.
        """
        model = self.model
        if model is None:
            raise UsageError("Control(model=...) needs the controlled model.")
        if isinstance(field, Guided):
            raise UsageError(
                f"{named(self)} chooses which evaluations of the model are made, so it comes "
                "first, and alone of its kind; what acts on both models goes inside=."
            )
        if model.path != field.path or field.path is None:
            raise UsageError(
                f"both models must be on one path; they are on {field.path} and {model.path}."
            )
        if None not in (model.shape, field.shape) and model.shape != field.shape:
            raise UsageError(f"the control takes {model.shape}, and the model {field.shape}.")
        told = Told(model, self.told) if self.told else model
        both = (field, told) if self.inside is None else (self.inside(field), self.inside(told))
        return Controlled(both[0], self, both[1])

    def describe(self) -> dict[str, Any]:
        """Return what a receipt says of it: all but the model, which is named."""
        model = denoiser_in(self.model)
        about = None if model is None else {
            "name": model.name, "weights": model.details.get("weights")
        }  # fmt: skip
        inside = None if self.inside is None else self.inside.describe()
        told = {name: plainly(value) for name, value in self.told.items()}
        return {"name": "control", "weight": self.weight, "told": told, "inside": inside,
                "model": about}  # fmt: skip


@dataclass(frozen=True)
class Controlled(Guided):
    """The pretrained model (inner) and the controlled one, mixed by the guide's weight."""

    guide: Control
    better: Field

    @property
    def evaluated(self) -> tuple[Field, ...]:
        """The models that an evaluation asks."""
        alone = {0.0: (self.inner,), 1.0: (self.better,)}
        return alone.get(self.guide.weight, (self.inner, self.better))

    @property
    def calls(self) -> int:
        return sum(each.calls for each in self.evaluated)

    @property
    def vjps(self) -> int:
        return sum(each.vjps for each in self.evaluated)

    def calls_at(self, times: Tensor) -> int:
        return sum(each.calls_at(times) for each in self.evaluated)

    def piece(self, times: Tensor) -> Tensor:
        free, controlled = self.inner.piece(times), self.better.piece(times)
        return free * (int(controlled.max()) + 1) + controlled

    def condition(self, cond: Condition, batch: int) -> Condition:
        free, controlled = (f.condition(cond, batch) for f in (self.inner, self.better))
        return {"free": free, "controlled": controlled}

    def part(self, cond: Condition, rows: Tensor) -> Condition | None:
        free = self.inner.part(cond["free"], rows)
        controlled = self.better.part(cond["controlled"], rows)
        known = free is not None and controlled is not None
        return {"free": free, "controlled": controlled} if known else None

    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.bind(t.reshape(1, *t.shape), x, cond)(0, x)

    def bind(self, times: Tensor, x: Tensor, cond: Condition) -> Evaluate:
        weight = self.guide.weight
        if weight == 1:
            return said_in(self.inner.view, self.better, times, x, cond["controlled"])
        if weight == 0:
            return self.inner.bind(times, x, cond["free"])
        both = self.pair(times, x, cond)

        def evaluate(k: int, state: Tensor) -> Tensor:
            return torch.lerp(*both(k, state), weight)

        return evaluate

    def pair(self, times: Tensor, x: Tensor, cond: Condition) -> Pair:
        """Return f(k, x) of both models at the same state, in the view of the pretrained one."""
        free = self.inner.bind(times, x, cond["free"])
        controlled = said_in(self.inner.view, self.better, times, x, cond["controlled"])
        return lambda k, state: (free(k, state), controlled(k, state))


@dataclass(frozen=True)
class Told(Around):
    """A model that is always told something besides its condition; its null condition knows it too.

    Args:
        inner: the model.
        told: in its user's words, one value for all samples or one for each.
    """

    inner: Field
    told: Mapping[str, Any]

    @property
    def null(self) -> Mapping[str, Any] | None:
        """The model's, to which what it is told is added as to every condition."""
        return getattr(self.inner, "null", None)

    def condition(self, cond: Condition, batch: int) -> Condition:
        if known := [name for name in self.told if name in cond]:
            raise UsageError(f"{', '.join(known)} is said by the control; leave it out here.")
        for name, value in self._encoded().items():
            if isinstance(value, Tensor) and value.ndim and len(value) not in (1, batch):
                raise UsageError(f"{len(value)} values of {name} were given for {batch} samples.")
        return self.inner.condition(cond, batch) if cond else {}

    def part(self, cond: Condition, rows: Tensor) -> Condition | None:
        each = any(_is_each(value) for value in self._encoded().values())
        return None if each else self.inner.part(cond, rows)

    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.bind(t.reshape(1, *t.shape), x, cond)(0, x)

    def bind(self, times: Tensor, x: Tensor, cond: Condition) -> Evaluate:
        more = {name: _filled(value, len(x)) for name, value in self._encoded().items()}
        return self.inner.bind(times, x, {**cond, **more})

    def _encoded(self) -> Mapping[str, Any]:
        """Return what is told as the network's keyword arguments."""
        encode = self.inner.encode if isinstance(self.inner, Denoiser) else None
        return self.told if encode is None else encode(**self.told)


@guides.register("shift", paper="arXiv:2406.12120")
@dataclass(frozen=True)
class Shift(Guide):
    """A control beside the model: ε̂ moves by a small network's answer, ε̂_θ = ε̂ + w u(t) m(x, t).

    Choose it where the model cannot be adapted: an exact oracle, a network that only answers. Where
    α = 0 a state says nothing of the data, and nothing is moved.

    Args:
        network: m(x (batch, *state), t (batch,), **told) → (batch, *state).
        told: what it is told besides, as it is: {"y": tensor([2])}.
        weight: w; 0 is none.
        unit: u, a function of times; None is 1. `learn.noise_unit` makes m count in standard
            deviations of a plan's own noise.

    Raises:
        UsageError: no network, an answer of another shape, a weight that is no number.

    Cost: one call of the small network an evaluation; none through the model.
    """

    network: Callable[..., Tensor] | None = field(default=None, compare=False)
    told: Mapping[str, Any] = field(default_factory=dict, hash=False)
    weight: float = 1.0
    unit: Callable[[Tensor], Tensor] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_weight(self.weight)

    @property
    def is_none(self) -> bool:
        return self.weight == 0

    def __call__(self, field: Field) -> Field:
        return field if self.is_none else self.controlled(field)

    def controlled(self, field: Field) -> Shifted:
        """Return the field beside the network, whatever the weight.

        Raises:
            UsageError: no network; a field without a path.
        """
        if self.network is None:
            raise UsageError("Shift(network=...) needs the network that says by how much.")
        if field.path is None:
            raise UsageError("Shift moves ε̂, and a field without a path has none.")
        return Shifted(field, self)

    def describe(self) -> dict[str, Any]:
        """Return what a receipt says of it: all but the network."""
        told = {name: plainly(value) for name, value in self.told.items()}
        return {"name": "shift", "weight": self.weight, "told": told}


@dataclass(frozen=True)
class Shifted(Guided):
    """A field whose ε̂ is moved by a small network."""

    guide: Shift

    def part(self, cond: Condition, rows: Tensor) -> Condition | None:
        alone = all(not _is_each(value) for value in self.guide.told.values())
        return self.inner.part(cond, rows) if alone else None

    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.bind(t.reshape(1, *t.shape), x, cond)(0, x)

    def bind(self, times: Tensor, x: Tensor, cond: Condition) -> Evaluate:
        both = self.pair(times, x, cond)

        def evaluate(k: int, state: Tensor) -> Tensor:
            return torch.lerp(*both(k, state), self.guide.weight)

        return evaluate

    def pair(self, times: Tensor, x: Tensor, cond: Condition) -> Pair:
        """Return f(k, x) of the model, and of the model with the whole shift, on one evaluation."""
        guide, network, path = self.guide, self.guide.network, self.path
        assert network is not None and path is not None
        free = self.inner.bind(times, x, cond)
        unit = 1.0 if guide.unit is None else guide.unit(times)
        _, gain = change(path, "eps", self.view, times)
        gains = torch.where(path.alpha(times) == 0, 0.0, unit * gain).unbind()
        labels = times.to(torch.promote_types(x.dtype, torch.float32))
        labels = labels.reshape(len(times), -1).expand(-1, len(x)).unbind()
        told = {name: _filled(repeated(v, len(x)), len(x)) for name, v in guide.told.items()}

        def both(k: int, state: Tensor) -> tuple[Tensor, Tensor]:
            raw, said = free(k, state), network(state, labels[k], **told)
            if said.shape != state.shape:
                raise UsageError(
                    f"the network of a Shift answers a state {tuple(state.shape)}, and said "
                    f"{tuple(said.shape)}."
                )
            return raw, raw + bshape(gains[k], state) * said

        return both


def check_weight(weight: float) -> None:
    """Refuse a weight that is no number."""
    if not math.isfinite(weight):
        raise UsageError(f"the weight of a control is a finite number, 1 as trained; not {weight}.")


def plainly(value: Any) -> Any:
    """Return a value as a receipt writes it."""
    return value.tolist() if isinstance(value, Tensor) else value


def _is_each(value: Any) -> bool:
    """Whether a value is one for each sample."""
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) > 1


def _filled(value: Any, batch: int) -> Any:
    """Repeat values of some samples for a batch that holds all of them several times."""
    if not isinstance(value, Tensor) or not value.ndim or len(value) == batch:
        return value
    if batch % len(value):
        raise UsageError(f"{len(value)} values were given for {batch} samples.")
    return value.repeat(batch // len(value), *[1] * (value.ndim - 1))

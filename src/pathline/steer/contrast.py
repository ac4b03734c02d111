"""Guidance by contrast: two evaluations, and a step from the worse one to the better one and on.

    F = F_worse + w (F − F_worse)

What is worse is the model without the condition (`CFG`, `APG`) or another, weaker model
(`Autoguidance`). Guidance may be confined to an interval of times or noise levels; outside it the
second evaluation is not made.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pathline.core.errors import UsageError, unknown
from pathline.core.tensors import on_host
from pathline.fields import Condition, Evaluate, Field, Halves, View, change
from pathline.fields.denoiser import null_of, repeated
from pathline.paths import GaussianPath, bshape
from pathline.steer.guide import Guide, Guided, named

Of = Literal["t", "sigma"]

Pair = tuple[Tensor, Tensor]
"""What the worse and the better evaluation say, each (batch, *state)."""


@dataclass(frozen=True)
class Contrast(Guide):
    """A guide that sets an evaluation against a worse one."""

    weight: float = 4.0
    interval: tuple[float, float] | None = None
    of: Of = "t"

    def __post_init__(self) -> None:
        if self.of not in get_args(Of):
            raise unknown("measure of noise", self.of, get_args(Of))
        if self.interval is not None and not self.interval[0] < self.interval[1]:
            raise UsageError(f"interval={self.interval}: the lower end comes first, as (0.2, 0.8).")

    @property
    def is_none(self) -> bool:
        return self.weight == 1

    @property
    def chooses_evaluations(self) -> bool:
        return not self.is_none

    def applies(self, path: GaussianPath | None, times: Tensor) -> Tensor:
        """Return at which times there is guidance, bool, of the shape of `times`."""
        if self.interval is None:
            return torch.ones_like(times, dtype=torch.bool)
        if self.of == "t":
            level = times
        elif path is None:
            raise UsageError("an interval of σ needs a path; this field has none: use of='t'.")
        else:
            level = path.sigma(times) / path.alpha(times)
        return (level >= self.interval[0]) & (level <= self.interval[1])

    def mixed(self, worse: Tensor, better: Tensor, x: Tensor, t: Tensor, field: Field) -> Tensor:
        """Return the guided evaluation, in the field's view."""
        del x, t, field
        return torch.lerp(worse, better, self.weight)

    @abstractmethod
    def contrasted(self, field: Field) -> Contrasted:
        """Return the field of both evaluations.

        Raises:
            UsageError: there is nothing to contrast with.
        """

    def __call__(self, field: Field) -> Field:
        if self.is_none:
            return field
        if isinstance(field, Guided):
            raise UsageError(
                f"{named(self)} chooses which evaluations of the model are made, so it comes "
                "first, and alone of its kind: give it the model itself."
            )
        return self.contrasted(field)


@dataclass(frozen=True)
class Contrasted(Guided):
    """A field of two evaluations, where its guide applies; of one elsewhere."""

    guide: Contrast

    def calls_at(self, times: Tensor) -> int:
        applied = self.guide.applies(self.path, times).reshape(len(times), -1).any(1)
        n = int(applied.sum())
        return n * self.calls + (len(times) - n) * self.inner.calls

    def piece(self, times: Tensor) -> Tensor:
        return 2 * self.inner.piece(times) + self.guide.applies(self.path, times).long()

    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.bind(t.reshape(1, *t.shape), x, cond)(0, x)

    def bind(self, times: Tensor, x: Tensor, cond: Condition) -> Evaluate:
        applied = self.guide.applies(self.path, on_host(times)).reshape(len(times), -1)
        any_, all_ = applied.any(1).tolist(), applied.all(1).tolist()
        alone = None if all(any_) else self.better(times, x, cond)
        both = self.pair(times, x, cond) if any(any_) else None
        instants = times.unbind()

        def evaluate(k: int, state: Tensor) -> Tensor:
            if not any_[k]:
                assert alone is not None
                return alone(k, state)
            assert both is not None
            worse, better = both(k, state)
            made = self.guide.mixed(worse, better, state, instants[k], self.inner)
            if all_[k]:
                return made
            where = self.guide.applies(self.path, instants[k])
            return torch.where(bshape(where, state) > 0, made, better)

        return evaluate

    def halves(self, times: Tensor, x: Tensor, cond: Condition) -> Halves | None:
        if not bool(self.guide.applies(self.path, on_host(times)).all()):
            return None
        instants, mixed = times.unbind(), self.guide.mixed

        def made(k: int, state: Tensor, worse: Tensor, better: Tensor) -> Tensor:
            return mixed(worse, better, state, instants[k], self.inner)

        return Halves(self.pair(times, x, cond), self.better(times, x, cond), made)

    @abstractmethod
    def better(self, times: Tensor, x: Tensor, cond: Condition) -> Evaluate:
        """Return the better evaluation alone."""

    @abstractmethod
    def pair(self, times: Tensor, x: Tensor, cond: Condition) -> Any:
        """Return f(k, x) of both evaluations."""


@dataclass(frozen=True)
class Unconditioned(Contrasted):
    """The model without its condition against the model with it, in one call of twice the batch."""

    null: Mapping[str, Any]

    @classmethod
    def of(cls, field: Field, guide: Contrast) -> Unconditioned:
        """Return the contrast, of a model that was also trained without a condition.

        Raises:
            UsageError: it was not.
        """
        null = null_of(field)
        if null is None:
            raise UsageError(
                f"guidance {guide.weight} needs a model that was also trained without a condition, "
                "and this one has no null condition (Denoiser(..., null=...))."
            )
        return cls(field, guide, null)

    @property
    def calls(self) -> int:
        return 2 * self.inner.calls

    def condition(self, cond: Condition, batch: int) -> Condition:
        if not cond:
            raise UsageError(
                f"guidance {self.guide.weight} has nothing to guide to: give a condition "
                "(text=...)."
            )
        return self.inner.condition(cond, batch)

    def part(self, cond: Condition, rows: Tensor) -> Condition | None:
        return self.inner.part(cond, rows)

    def better(self, times: Tensor, x: Tensor, cond: Condition) -> Evaluate:
        return self.inner.bind(times, x, cond)

    def pair(self, times: Tensor, x: Tensor, cond: Condition) -> Any:
        batch = len(x)
        null = {k: repeated(v, batch) for k, v in self.null.items()}
        both = joined((null, cond), batch)
        if both is None:
            free, bound = self.inner.bind(times, x, null), self.inner.bind(times, x, cond)
            return lambda k, state: (free(k, state), bound(k, state))
        inner = self.inner.bind(twice(times, 2), torch.cat((x, x)), both)
        return lambda k, state: inner(k, torch.cat((state, state))).chunk(2)


def said_in(view: View, field: Field, times: Tensor, x: Tensor, cond: Condition) -> Evaluate:
    """Return f(k, x) of a field on a path, said in another view."""
    bound = field.bind(times, x, cond)
    if field.view == view:
        return bound
    assert field.path is not None
    p, q = (c.unbind() for c in change(field.path, field.view, view, times))
    return lambda k, state: bshape(p[k], state) * state + bshape(q[k], state) * bound(k, state)


def twice(times: Tensor, n: int) -> Tensor:
    """Return times for a batch n times as large, where samples have their own."""
    return torch.cat([times] * n, -1) if times.ndim > 1 else times


def joined(conditions: tuple[Condition, ...], batch: int) -> Condition | None:
    """Return conditions as one of a larger batch, or None where they do not fit together."""
    *others, last = conditions
    if any(each.keys() != last.keys() for each in others):
        return None
    made: dict[str, Any] = {}
    for name, told in last.items():
        values = [each[name] for each in conditions]
        if not isinstance(told, Tensor):
            if any(value is not told and value != told for value in values):
                return None
            made[name] = told
        elif all(_fits(value, told, batch) for value in values):
            made[name] = torch.cat([value.to(told) for value in values])
        else:
            return None
    return made


def _fits(value: Any, told: Tensor, batch: int) -> bool:
    return isinstance(value, Tensor) and value.shape == told.shape and len(told) == batch

"""What an evaluation returns: measures beside what real and noise pictures get."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from torch import Tensor

__all__ = ["Drawn", "Measure", "Memory", "Report"]


@dataclass(frozen=True)
class Measure:
    """One number about the samples, with what it can be compared with.

    Args:
        id: what programs call it.
        text: what people do.
        samples: its value.
        halves: its value for one half of the real pictures beside the other.
        spread: the standard deviation of that over random halves.
        real: its value for other real pictures.
        corrupted: its value for real pictures with noise on them.
        noise: its value for Gaussian noise, or for chance.
        better: which direction is.
        goal: what was to be reached.
    """

    id: str
    text: str
    samples: float
    halves: float | None = None
    spread: float | None = None
    real: float | None = None
    corrupted: float | None = None
    noise: float | None = None
    better: Literal["lower", "higher"] = "lower"
    goal: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the goal is reached; None if there is none."""
        if self.goal is None:
            return None
        below = self.samples <= self.goal
        return below if self.better == "lower" else self.samples >= self.goal

    @property
    def verdict(self) -> str:
        """The goal, and by how much it is missed, in words; empty without a goal."""
        if self.goal is None:
            return ""
        sign = "≤" if self.better == "lower" else "≥"
        missed = "" if self.holds else f", missed by {written(abs(self.samples - self.goal))}"
        return f"{sign} {written(self.goal)}{missed or ', reached'}"


@dataclass(frozen=True)
class Memory:
    """Whether samples are pictures of the training set.

    Args:
        by: what "near" means: pixels, or the name of a feature network.
        samples: the distance of each sample to its nearest training picture, (n,).
        held_out: the same for held-out pictures, which nobody can have remembered, (m,).
        index: the number of each sample's nearest training picture, (n,).
    """

    by: str
    samples: Tensor = field(repr=False)
    held_out: Tensor = field(repr=False)
    index: Tensor = field(repr=False)

    @property
    def near(self) -> float:
        """The share of samples nearer than all but a twentieth of held-out pictures are."""
        return (self.samples < self.held_out.quantile(0.05)).double().mean().item()

    @property
    def copies(self) -> float:
        """The share of samples nearer than half of what the nearest held-out twentieth is."""
        return (self.samples < self.held_out.quantile(0.05) / 2).double().mean().item()

    def to_dict(self) -> dict[str, Any]:
        """Return quantiles and shares as JSON values."""
        points = (0.01, 0.05, 0.25, 0.5)
        rows = {"samples": self.samples, "held_out": self.held_out}
        quantiles = {
            name: {str(p): round(row.quantile(p).item(), 5) for p in points}
            for name, row in rows.items()
        }
        return {"by": self.by, "near": self.near, "copies": self.copies, **quantiles}


@dataclass(frozen=True)
class Drawn:
    """Samples, and what each was asked to be.

    Args:
        pixels: (n, channels, height, width) uint8.
        titles: one a sample.
    """

    pixels: Tensor = field(repr=False)
    titles: Sequence[str] = field(repr=False)


@dataclass(frozen=True)
class Report:
    """How good a model's samples are.

    Args:
        model: its name.
        call: what was sampled and how: n, seed, solver, steps, guidance, the weights' checksum.
        measures: the numbers.
        memory: nearest training pictures, by pixels and by features.
        judge: how far the judge of captions can be trusted; empty without one.
        drawn: the samples.
        unseen: samples of held-out captions.
        nearest: the training pictures nearest to the samples, by each kind of `memory`.
        seconds: how long it took.
    """

    model: str
    call: Mapping[str, Any]
    measures: Sequence[Measure]
    memory: Sequence[Memory] = ()
    judge: Mapping[str, Any] = field(default_factory=dict)
    drawn: Drawn | None = field(default=None, repr=False)
    unseen: Drawn | None = field(default=None, repr=False)
    nearest: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    seconds: float = 0.0

    def measure(self, id: str) -> Measure:
        """Return the measure of an id."""
        return next(m for m in self.measures if m.id == id)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values; the same call gives the same, but for "seconds"."""
        return {
            "model": self.model,
            "call": dict(self.call),
            "measures": [asdict(m) | {"holds": m.holds} for m in self.measures],
            "memory": [m.to_dict() for m in self.memory],
            "judge": dict(self.judge),
            "seconds": round(self.seconds, 1),
        }

    def rows(self) -> list[dict[str, str]]:
        """Return the measures as rows of a table that people read."""
        return [
            {
                "measure": m.text,
                "samples": written(m.samples),
                "real halves": f"{written(m.halves)}{_spread(m.spread)}",
                "other real": written(m.real),
                "corrupted": written(m.corrupted),
                "noise or chance": written(m.noise),
                "goal": m.verdict,
            }
            for m in self.measures
        ]


def written(value: float | None) -> str:
    """Return a number with three digits, for people; empty for None.

    >>> written(0.12345), written(266.4), written(-0.00001), written(None)
    ('0.123', '266', '0.000', '')
    """
    if value is None:
        return ""
    if abs(value) < 0.0005:
        return "0.000"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if abs(value) >= 1 else 3
    return f"{value:.{digits}f}"


def _spread(value: float | None) -> str:
    return "" if value is None else f" ± {written(value)}"

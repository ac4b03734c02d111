"""Systems: a paper as a composition of shared parts, with claims that measure themselves.

A recipe is an *experiment*, an object whose cached properties are what is expensive, and a table
of claims, each a number read off the experiment and the threshold it is held to:

    register(System("ddim", ..., experiment=Experiment, claims=(
        Claim("order", "converges with order 1 ± 0.2", lambda e: e.order, 1.0, "equal", 0.2),
    )))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from pathline.core.errors import UsageError, unknown
from pathline.core.registry import Entry, Registry

Better = Literal["lower", "higher", "equal"]
Needs = Literal["training", "gpu"]


@dataclass(frozen=True)
class Claim:
    """A sentence with a number in it, and how to measure that number.

    Args:
        id: its name within the system.
        text: what is claimed; for "equal", with its tolerance.
        measure: reads the number off the system's experiment.
        threshold: what the number is held to.
        better: on which side of the threshold it must lie ("equal": within `tolerance` of it).
        tolerance: for "equal"; 0 where things are counted.
        headline: whether it is what the paper is known for.
        needs: what a run must have to measure it.
    """

    id: str
    text: str
    measure: Callable[[Any], float]
    threshold: float
    better: Better = "lower"
    tolerance: float = 0.0
    headline: bool = False
    needs: Needs | None = None

    def __post_init__(self) -> None:
        if self.better not in get_args(Better):
            raise ValueError(f"claim {self.id}: better={self.better!r} is none of {Better}.")
        if self.needs is not None and self.needs not in get_args(Needs):
            raise ValueError(f"claim {self.id}: needs={self.needs!r} is none of {Needs}.")
        if self.tolerance < 0 or (self.tolerance and self.better != "equal"):
            raise ValueError(f"claim {self.id}: a tolerance belongs to better='equal', and is ≥ 0.")

    def holds(self, value: float) -> bool:
        """Whether a measured value keeps the claim."""
        if self.better == "equal":
            return abs(value - self.threshold) <= self.tolerance
        return value <= self.threshold if self.better == "lower" else value >= self.threshold

    @property
    def bound(self) -> str:
        """The threshold as people write it: "≤ 0.25", "3 ± 0.35"."""
        if self.better == "equal":
            spread = f" ± {self.tolerance:g}" if self.tolerance else ""
            return f"{self.threshold:g}{spread}"
        return f"{'≤' if self.better == 'lower' else '≥'} {self.threshold:g}"


@dataclass(frozen=True)
class Measured:
    """A claim, and what came of measuring it.

    Args:
        claim: what was claimed.
        value: what was measured; None if that failed.
        error: why it failed.
    """

    claim: Claim
    value: float | None
    error: str | None = None

    @classmethod
    def of(cls, claim: Claim, experiment: Any) -> Measured:
        """Measure a claim. What it raises, and a value that is no number, is its failure."""
        try:
            value = float(claim.measure(experiment))
        except Exception as error:  # a claim that breaks must be seen failing, whatever broke it
            return cls(claim, None, f"{type(error).__name__}: {error}")
        if not math.isfinite(value):
            return cls(claim, None, f"the measured value is {value}.")
        return cls(claim, value)

    @property
    def passed(self) -> bool:
        """Whether the claim holds here."""
        return self.value is not None and self.claim.holds(self.value)

    def to_dict(self) -> dict[str, Any]:
        """Return the claim as JSON values; "error" is there only if measuring failed."""
        claim = self.claim
        content = {
            "id": claim.id,
            "text": claim.text,
            "measured": self.value,
            "threshold": claim.threshold,
            "better": claim.better,
            "passed": self.passed,
            "headline": claim.headline,
            "needs": claim.needs,
        }
        return content if self.error is None else content | {"error": self.error}


@dataclass(frozen=True)
class Plot:
    """Curves for a report, on logarithmic axes: name → points (x, y)."""

    title: str
    x: str
    y: str
    curves: Mapping[str, Sequence[tuple[float, float]]]


def no_plots(experiment: Any) -> tuple[Plot, ...]:
    """Return the plots of a system that draws none."""
    del experiment
    return ()


@dataclass(frozen=True)
class System:
    """A paper: what it is, and what must hold of it here.

    Args:
        slug: its name ("dpm-solver").
        title: of the method, as people know it.
        paper: where it is from.
        summary: one sentence on what it is for.
        experiment: makes the object that claims read, anew for every run.
        claims: what must hold.
        plots: what the report draws of the experiment.
        tables: writes what was trained beyond the claims into a folder, and returns the files; a
            run with all of the training claims ends with it.
    """

    slug: str
    title: str
    paper: str
    summary: str
    experiment: Callable[[], Any]
    claims: tuple[Claim, ...]
    plots: Callable[[Any], Sequence[Plot]] = no_plots
    tables: Callable[[Path], Sequence[Path]] | None = None

    def __post_init__(self) -> None:
        ids = [claim.id for claim in self.claims]
        if len(set(ids)) != len(ids):
            raise ValueError(f"system {self.slug} has two claims of one id: {ids}.")
        if not any(claim.headline for claim in self.claims):
            raise ValueError(f"system {self.slug} has no headline claim.")

    def chosen(self, only: Sequence[str] | None, train: bool) -> tuple[Claim, ...]:
        """Return the claims to measure: those named, or all that can be measured here.

        Raises:
            UsageError: an unknown claim; one that cannot be measured here; none is left.
        """
        lacking = {"training": not train, "gpu": not torch.cuda.is_available()}
        able = [c for c in self.claims if c.needs is None or not lacking[c.needs]]
        if not only:
            if not able:
                raise UsageError(f"every claim of {self.slug} {_wanting(self.claims)}.")
            return tuple(able)
        ids = [claim.id for claim in self.claims]
        for name in only:
            if name not in ids:
                raise unknown(f"claim of {self.slug}", name, ids)
        named = tuple(claim for claim in self.claims if claim.id in only)
        barred = [claim for claim in named if claim not in able]
        if barred:
            raise UsageError(f"{', '.join(c.id for c in barred)} {_wanting(barred)}.")
        return named


def _wanting(claims: Sequence[Claim]) -> str:
    """Say what these claims need, and how to give it."""
    ways = {"training": "needs training (pass train=True, --train)", "gpu": "needs a CUDA device"}
    return " or ".join(dict.fromkeys(ways[c.needs] for c in claims if c.needs is not None))


systems: Registry[System] = Registry("system")
"""Every system, by its slug."""


def register(system: System) -> System:
    """Register a system under its slug, and return it."""
    systems.add(Entry(system.slug, lambda: system, paper=system.paper, about=system.summary))
    return system

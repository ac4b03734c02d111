"""Stable neural SDEs, trained: accuracies over data sets and missing rates, beside baselines.

`write(FOLDER)` trains what is missing and writes the table. Every training is kept in the
cache, by its settings, and one that was cut short goes on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import nn

from pathline.core.files import write_atomically
from pathline.core.progress import track
from pathline.domains.series import (
    Fit,
    GRUClassifier,
    Parts,
    Series,
    StableClassifier,
    accuracy,
    archive,
    fit,
    frequencies,
    prepared,
)
from pathline.systems import stable_sde_gaps as gaps
from pathline.systems.kept import file_of, kept

MODELS = ("lsde", "lnsde", "gsde", "naive", "gru")
STABLE = MODELS[:3]
RATES = (0.0, 0.3, 0.5, 0.7)
SETS = ("ItalyPowerDemand", "BasicMotions", "JapaneseVowels")
"""Short, and two of them of several channels."""
ON_SETS = ("lnsde", "naive", "gru")
HOW = Fit(iterations=600, batch=64, rate=3e-3)
SERIES = 512
VERSION, FILES = 1, "stable-neural-sde-table"


class Task(NamedTuple):
    """A training: a model, a set ("frequencies", or one of the archive's) and a missing rate."""

    model: str
    data: str
    missing: float

    @property
    def parts(self) -> Parts[Series]:
        """The data."""
        if self.data != "frequencies":
            return archive(self.data, missing=self.missing)
        train, test = (frequencies(range(k, k + SERIES)) for k in (0, 10_000))
        return prepared(train, test, classes=3, missing=self.missing)

    def network(self, parts: Parts[Series]) -> nn.Module:
        """The model with the weights that it begins with."""
        torch.manual_seed(0)
        channels, classes = parts.train.channels, parts.train.classes
        if self.model == "gru":
            return GRUClassifier(channels, classes)
        return StableClassifier(self.model, channels, classes)  # type: ignore[arg-type]

    @property
    def file(self) -> Path:
        """That of its outcome."""
        return file_of(self._name)

    @property
    def _name(self) -> str:
        folder = f"stable-neural-sde/{VERSION}-{HOW.iterations}"
        return f"{folder}/{self.model}-{self.data}-{self.missing:g}"

    def outcome(self) -> float:
        """Return the test accuracy, from the cache if it is there."""
        found = kept(self._name, self._trained)["accuracy"]
        self.file.with_suffix(".pt").unlink(missing_ok=True)
        return found

    def _trained(self) -> dict[str, Any]:
        parts = self.parts
        model = self.network(parts)
        fit(model, parts.train, parts.valid, HOW, state=self.file.with_suffix(".pt"))
        return {"accuracy": accuracy(model, parts.test), "how": asdict(HOW)}


@dataclass(frozen=True)
class Trained:
    """What the claims read; each training is made when it is asked for."""

    def frequencies(self, model: str, missing: float) -> float:
        """Return a model's test accuracy on three frequencies."""
        return Task(model, "frequencies", missing).outcome()

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """Return accuracies over the share that was observed; empty if one was not trained yet."""
        tasks = {m: [Task(m, "frequencies", r) for r in RATES] for m in STABLE}
        if not all(task.file.is_file() for each in tasks.values() for task in each):
            return {}
        return {m: [(1 - t.missing, t.outcome()) for t in each] for m, each in tasks.items()}

    def loss_of_the_best(self) -> float:
        """Return by how much the mean accuracy of the best class falls from 0 to 70 % missing.

        The best class is the one of the best mean over all four rates.
        """
        tasks = [(m, r) for m in STABLE for r in RATES]
        found = {task: self.frequencies(*task) for task in track(tasks, "missing rates")}
        best = max(STABLE, key=lambda m: fmean(found[m, r] for r in RATES))
        return found[best, RATES[0]] - found[best, RATES[-1]]

    def on_the_archive(self, model: str, missing: float = 0.5) -> float:
        """Return the mean of a model's test accuracies over three sets."""
        return fmean(Task(model, name, missing).outcome() for name in track(SETS, model))

    def ahead_on_the_archive(self) -> float:
        """Return by how much linear noise is ahead of the naive net."""
        return self.on_the_archive("lnsde") - self.on_the_archive("naive")


def write(folder: str | Path) -> tuple[Path, ...]:
    """Train what is missing, write all that was measured, JSON and a page; return the files."""
    home, trained = Path(folder), Trained()
    tasks = [Task(m, "frequencies", r) for m in MODELS for r in RATES]
    tasks += [Task(m, name, 0.5) for name in SETS for m in ON_SETS]
    rows: list[dict[str, Any]] = [
        {**task._asdict(), "accuracy": task.outcome()} for task in track(tasks, "trainings")
    ]
    first = [[m, *(f"{trained.frequencies(m, r):.3f}" for r in RATES)] for m in MODELS]
    second = [[n, *(f"{Task(m, n, 0.5).outcome():.3f}" for m in ON_SETS)] for n in SETS]
    second.append(["mean", *(f"{trained.on_the_archive(m):.3f}" for m in ON_SETS)])
    found = {gap: gap.outcome() for gap in track(gaps.ALL, "gaps")}
    rows += [{**gap._asdict(), "error": error} for gap, error in found.items()]
    third = [[d, *(f"{found[gaps.Gap(m, d)]:.3f}" for m in gaps.MODELS)] for d in gaps.DATA]
    text = (
        f"{TITLE}\n\n{ABOUT}\n\n"
        + _table(["model", *(f"{r:.0%} missing" for r in RATES)], first)
        + f"\n\n{ARCHIVE}\n\n"
        + _table(["set", *ON_SETS], second)
        + f"\n\n{gaps.ABOUT}\n\n"
        + _table(["set", *gaps.MODELS], third)
        + "\n\nAgain, and on where it was cut off: `pathline run stable-neural-sde --train`.\n"
    )
    numbers, page = home / f"{FILES}.json", home / f"{FILES}.md"
    write_atomically(numbers, json.dumps(rows, indent=1) + "\n")
    write_atomically(page, text)
    return numbers, page


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


TITLE = "# Series with gaps: classified, filled in, foretold"
ABOUT = f"""Test accuracies. Three frequencies in noise, {SERIES} series to learn from and as many
to measure, of length 40 with two channels, one of which is noise; each channel loses its share of
values independently. Hidden states of 32, {HOW.iterations} steps of Adam at most. `gru` is told
what is missing."""
ARCHIVE = """Sets of the UCR and UEA archives at 50 % missing, training and test parts joined and
split 70/15/15:"""

"""Evaluating a model: its samples beside real pictures, their halves, and noise."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pathline.core.errors import UsageError
from pathline.core.files import write_atomically
from pathline.core.receipt import versions
from pathline.fields import Denoiser
from pathline.learn.checkpoint import load_model
from pathline.learn.quality.distances import frechet, kernel, on_scale
from pathline.learn.quality.drawing import How, draw
from pathline.learn.quality.features import embed, embed_cached
from pathline.learn.quality.neighbours import nearest_features, nearest_pixels
from pathline.learn.quality.page import write_page
from pathline.learn.quality.reference import FRECHET_SIZE, Landmarks, Reference, load_reference
from pathline.learn.quality.report import Drawn, Measure, Memory, Report
from pathline.learn.quality.subjects import Subject, subject_of
from pathline.steer import CFG

__all__ = ["SAMPLES", "evaluate", "how_of"]

SAMPLES = 512
UNSEEN = 96
_UNSEEN_SEED = 2_000_000
_SPLITS = {"held_out": "held-out", "train": "training"}


def evaluate(
    model: str | Path | Denoiser,
    n: int = SAMPLES,
    *,
    how: How | None = None,
    out: str | Path | None = None,
    subject: Subject | None = None,
    reference: Reference | None = None,
) -> Report:
    """Draw samples from a model as it was trained, and measure how good they are.

    Args:
        model: a shipped model's name, a folder, or a denoiser.
        n: how many samples; Fréchet distances need 500.
        how: solver, steps, guidance and seeds; None is what the model recommends.
        out: a folder for `report.json`, `index.html` and the samples, from which an interrupted
            run goes on; None writes nothing.
        subject: what to ask; None is what the model was trained on.
        reference: the real pictures to compare with; None is the shipped one, or made now.

    Raises:
        UsageError: there is no such model, it does not say what it was trained on, or `out`
            cannot be written.
        FetchError: the training data, which the neighbours are looked for in, cannot be had.
        MissingExtra: a package of the extra "quality" is not installed.

    Cost: n samples; five minutes on one core for 512 emoji at 20 evaluations with guidance.
    """
    begun = time.monotonic()
    denoiser = model if isinstance(model, Denoiser) else load_model(model)
    if n < 2:
        raise UsageError(f"at least 2 samples are needed to be compared, and n is {n}.")
    subject, how = subject or subject_of(denoiser), how or how_of(denoiser)
    folder = None if out is None else Path(out)
    reference = reference or load_reference(subject)
    wishes = subject.wishes(n, how.seed)
    pixels = draw(denoiser, wishes.cond, how, _file(folder, "samples"))
    measures, seen = _distances(pixels, subject, reference)
    measures += subject.agreement(pixels, wishes)
    unseen, more = _unseen(denoiser, how, subject, folder)
    memory, nearest = _memory(pixels, next(iter(seen.items())), subject)
    report = Report(
        model=denoiser.name or "model",
        call=_call(denoiser, how, n, subject),
        measures=[*measures, *more],
        memory=memory,
        judge=subject.judged_by(),
        drawn=Drawn(pixels, wishes.titles),
        unseen=unseen,
        nearest=nearest,
        seconds=time.monotonic() - begun,
    )
    if folder is not None:
        write(report, folder)
    return report


def write(report: Report, folder: Path) -> None:
    """Write a report as JSON and as a page."""
    text = json.dumps(report.to_dict(), indent=1, ensure_ascii=False)
    write_atomically(folder / "report.json", text + "\n")
    write_page(report, folder / "index.html")


def how_of(model: Denoiser, **given: Any) -> How:
    """Return how a model wants to be drawn from, but for what is given (None is not)."""
    watch = model.details.get("training", {}).get("recipe", {}).get("watch", {})
    guidance = watch.get("guidance", CFG().weight)
    recommended = {"guidance": guidance, **model.defaults}
    known = ("solver", "grid", "steps", "guidance")
    chosen: dict[str, Any] = {name: recommended[name] for name in known if name in recommended}
    if not model.is_conditional:
        chosen["guidance"] = 1.0
    return How(**chosen | {name: value for name, value in given.items() if value is not None})


def _distances(
    pixels: Tensor, subject: Subject, reference: Reference
) -> tuple[list[Measure], dict[str, Tensor]]:
    """Return the distances of samples to every reference, and the samples' features."""
    seen: dict[str, Tensor] = {}
    scaled: list[Measure] = []
    plain: list[Measure] = []
    for name in subject.limits:
        seen[name] = embed(subject.network(name), pixels, "samples")
    for key, marks in reference.landmarks.items():
        kind, name, split = key.split("/")
        real, fake = reference.features[f"{name}/{split}"], seen[name]
        what = f"distance to {_SPLITS[split]} pictures, {name}"
        if kind == "kernel":
            value = kernel(real, fake)
            plain.append(_measure(f"kernel_{split}_{name}", f"kernel {what}", value, marks))
            if split == "held_out":
                goal = subject.goal if not scaled else None
                scaled.append(_scaled(name, value, marks, goal))
        elif len(fake) >= FRECHET_SIZE:
            value = frechet(real[:FRECHET_SIZE], fake[:FRECHET_SIZE])
            about = f"Fréchet {what}, {FRECHET_SIZE} of each"
            plain.append(_measure(f"frechet_{split}_{name}", about, value, marks))
    return scaled + plain, seen


def _measure(id: str, text: str, value: float, marks: Landmarks) -> Measure:
    return Measure(id, text, value, **asdict(marks))


def _scaled(name: str, value: float, marks: Landmarks, goal: float | None) -> Measure:
    """Return a kernel distance where 0 is between real halves and 1 is to Gaussian noise."""
    ends = {"zero": marks.halves, "one": marks.noise}
    width = marks.noise - marks.halves
    return Measure(
        f"scale_{name}",
        f"kernel distance to held-out pictures from 0 (real halves) to 1 (noise), {name}",
        on_scale(value, **ends),
        halves=0.0,
        spread=None if marks.spread is None else marks.spread / width,
        real=None if marks.real is None else on_scale(marks.real, **ends),
        corrupted=on_scale(marks.corrupted, **ends),
        noise=1.0,
        goal=goal,
    )


def _unseen(
    model: Denoiser, how: How, subject: Subject, folder: Path | None
) -> tuple[Drawn | None, list[Measure]]:
    """Return samples of conditions that were never trained on, and how well they agree."""
    wishes = subject.unseen_wishes(UNSEEN)
    if wishes is None:
        return None, []
    how = replace(how, seed=_UNSEEN_SEED)
    pixels = draw(model, wishes.cond, how, _file(folder, "unseen"), "what was held out")
    return Drawn(pixels, wishes.titles), subject.agreement(pixels, wishes, unseen=True)


def _memory(
    pixels: Tensor, seen: tuple[str, Tensor], subject: Subject
) -> tuple[list[Memory], dict[str, Tensor]]:
    """Return how near samples are to training pictures, by pixels and by features."""
    name, features = seen
    train, held_out = subject.pictures("train"), subject.reference("held_out", 1000)
    network = subject.network(name)
    trained = embed_cached(network, train, "training pictures, once")
    by_pixels = [nearest_pixels(these, train) for these in (pixels, held_out)]
    others = embed_cached(network, held_out, "held-out pictures")
    by_features = [nearest_features(these, trained) for these in (features, others)]
    found = {"pixels": by_pixels, name: by_features}
    memory = [
        Memory(by, mine.distance, theirs.distance, mine.index)
        for by, (mine, theirs) in found.items()
    ]
    return memory, {each.by: train[each.index] for each in memory}


def _call(model: Denoiser, how: How, n: int, subject: Subject) -> dict[str, Any]:
    """Return what was asked, for whoever wants to ask it again."""
    weights = model.details.get("weights", {}).get("sha256")
    return {
        "n": n,
        **asdict(how),
        "data": subject.name,
        "weights": weights,
        "versions": versions(),
    }


def _file(folder: Path | None, name: str) -> Path | None:
    return None if folder is None else folder / f"{name}.safetensors"

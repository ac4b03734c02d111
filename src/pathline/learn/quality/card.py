"""Model cards: what a model is, how it was made, how good it is, and what falls short."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from pathline.core.files import write_atomically
from pathline.data import DATASETS, prepare
from pathline.fields import Denoiser
from pathline.learn.checkpoint import WEIGHTS, find_folder, load_model
from pathline.learn.quality.drawing import How, draw
from pathline.learn.quality.page import remembered
from pathline.learn.quality.pictures import as_png, curve, memory_sheet, rows_sheet, sheet
from pathline.learn.quality.report import Report, written
from pathline.learn.quality.subjects import subject_of

__all__ = ["write_card"]

CARD, NOTES = "README.md", "notes.md"
LARGEST = 290_000
EACH = 16
_CARD_SEED = 0


def write_card(
    model: str | Path, report: Report, pictures: str | Path, work: str | Path | None = None
) -> Path:
    """Write the card of a model into its folder, and its pictures into another.

    A file `notes.md` beside the pictures, written by a person who has looked at them, becomes
    part of the card.

    Args:
        model: a shipped model's name, or a folder.
        report: what `evaluate` returned for it.
        pictures: the folder of the pictures; the card refers to it by a relative path.
        work: a folder for samples drawn so far, from which an interrupted run goes on.

    Raises:
        UsageError: there is no such model, or a folder cannot be written.
        MissingExtra: matplotlib is not installed.
    """
    home, place = find_folder(model), Path(pictures)
    denoiser = load_model(model)
    drawn = _pictures(denoiser, report, None if work is None else Path(work))
    for name, image in drawn.items():
        write_atomically(place / f"{name}.png", as_png(image, LARGEST))
    links = {name: os.path.relpath(place / f"{name}.png", home) for name in drawn}
    notes = place / NOTES
    said = notes.read_text(encoding="utf-8").strip() if notes.is_file() else ""
    lines = _card(denoiser, report, links, said, (home / WEIGHTS).stat().st_size)
    return write_atomically(home / CARD, "\n".join(lines) + "\n")


def _pictures(model: Denoiser, report: Report, work: Path | None) -> dict[str, Image.Image]:
    """Return the card's pictures by name."""
    subject = subject_of(model)
    how = How(
        **{name: report.call[name] for name in ("solver", "grid", "steps", "guidance", "batch")}
    )
    prompts = [prompt for prompt in subject.showcase for _ in range(EACH)]
    told = {str(model.details["condition"]): prompts}
    keep = None if work is None else work / "card.safetensors"
    rows = draw(model, told, how, keep, "the card's samples").split(EACH)
    unseen = () if report.unseen is None else report.unseen.titles
    names = [f"{name} (held out)" if name in unseen else name for name in subject.showcase]
    found = {"prompts": rows_sheet(list(zip(names, rows, strict=True)))}
    if report.unseen is not None:
        found["held-out"] = sheet(report.unseen.pixels[:48], report.unseen.titles[:48])
    shown = memory_sheet(report)
    if shown is not None:
        found["nearest"] = shown
    points = model.details["training"].get("curve")
    if points:
        found["loss"] = curve(points, "update", "loss")
    return found


def _card(
    model: Denoiser, report: Report, links: Mapping[str, str], notes: str, size: int
) -> Iterator[str]:
    call, training = report.call, model.details["training"]
    yield f"# {report.model}\n"
    yield f"{_about(model)}\n"
    yield (
        f"![samples]({links['prompts']})\n\n"
        f"*{EACH} samples a row, seeds in order and none left out: {call['steps']} evaluations "
        f"with {call['solver']}, guidance {call['guidance']:g}.*\n"
    )
    yield from _use(model, report)
    yield from _data(report)
    yield from _architecture(model, size)
    yield from _training(model, training, links)
    yield from _quality(report)
    yield from _unseen(report, links)
    yield from _memory(report, links)
    yield from _shortcomings(report, notes)


def _about(model: Denoiser) -> str:
    told = {"text": "a sentence", "label": "a class"}.get(str(model.details["condition"]))
    shape = " × ".join(map(str, model.shape or ()))
    of = f"pictures ({shape}) of {told}" if told else f"pictures ({shape})"
    return f"A small model that draws {of}. `pathline evaluate` wrote this card."


def _use(model: Denoiser, report: Report) -> Iterator[str]:
    told, prompt = str(model.details["condition"]), subject_of(model).showcase[0]
    call, weight = report.call, report.call["guidance"]
    how = f'solver="{call["solver"]}", grid="{call["grid"]}", steps={call["steps"]}'
    guided = "" if weight == 1 else f", guide=pl.CFG({weight:g})"
    yield "```python\nimport pathline as pl\n"
    yield f'model = pl.load("{model.name}")'
    yield f'sol = pl.sample(model, n=16, {told}="{prompt}",\n                {how}{guided})\n```\n'


def _data(report: Report) -> Iterator[str]:
    name = report.call["data"]
    info = prepare(name)
    counts = ", ".join(f"{n} {kind.replace('_', ' ')}" for kind, n in info.counts.items())
    yield f"## Data\n\n{DATASETS[name].about[0].upper()}{DATASETS[name].about[1:]}: {counts}.\n"
    yield "| what | licence |\n| --- | --- |"
    yield from (f"| {what} | {licence} |" for what, licence in info.licences.items())
    yield f"\nMade by `pathline data {name}`, sha256 `{info.checksum[:16]}…`.\n"


def _architecture(model: Denoiser, size: int) -> Iterator[str]:
    table = dict(model.details["network"])
    network: Any = model.network
    n = sum(p.numel() for p in network.parameters()) if isinstance(network, nn.Module) else 0
    rest = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in table.items())
    yield (
        f"## Architecture\n\n{rest}. {n / 1e6:.2f} million parameters, {size / 2**20:.1f} MiB in "
        f"{model.details['weights']['dtype']}. Path `{model.details['path']['name']}`, view "
        f"`{model.view}`.\n"
    )


def _training(
    model: Denoiser, training: Mapping[str, Any], links: Mapping[str, str]
) -> Iterator[str]:
    recipe = training["recipe"]
    name = training.get("config", recipe["name"])
    where = f"{training.get('device', 'cpu')}, {training.get('machine', 'x86_64')}"
    yield (
        f"## Training\n\n`pathline train {name}` "
        f"([configuration](../../learn/configs/{name}.toml)): {training['step']} updates "
        f"of {recipe['batch']}, {training['samples']} samples seen, in "
        f"{training['seconds'] / 60:.0f} minutes on {where}, threads {training.get('threads', 1)}, "
        f"torch {training['torch']}, {recipe['precision']}.\n"
    )
    for part in training.get("schedule", ()):
        first, last = part["steps"]
        told = ", ".join(f"{name} {value}" for name, value in part["data"].items())
        yield f"- updates {first} to {last}: rate {part['rate']}; data: {told}"
    if training.get("schedule"):
        yield "\nThe configuration trains such a model in one go.\n"
    if training.get("held_out_loss") is not None:
        yield f"The loss on held-out pictures ends at {training['held_out_loss']:.4f}."
    if "loss" in links:
        yield f"\n![loss]({links['loss']})\n"


def _quality(report: Report) -> Iterator[str]:
    rows = report.rows()
    call = report.call
    options = ("solver", "grid", "steps", "guidance", "seed")
    told = " ".join(f"--{name} {call[name]}" for name in options)
    yield f"## Quality\n\n`pathline evaluate {report.model} -n {call['n']} {told}`\n"
    yield "| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0])
    yield from ("| " + " | ".join(row.values()) + " |" for row in rows)
    yield (
        "\nReal halves: one half of the real pictures beside the other. Other real: pictures of "
        "the other split; for captions, the pictures that they were drawn from. Corrupted: real "
        "pictures with Gaussian noise on them.\n"
    )
    reads = report.judge.get("reads", {})
    if reads:
        yield f"The judge of captions learned from {report.judge['vendor']}. It finds a drawing's"
        yield "caption among a hundred (or as many as there are):\n"
        yield "| drawings | first | in the first five | captions |\n| --- | --- | --- | --- |"
        yield from (
            f"| {name.replace('_', ' ')} | {written(r['first'])} | {written(r['among_five'])} "
            f"| {r['choices']} |"
            for name, r in reads.items()
        )
        yield ""
    elif "test_accuracy" in report.judge:
        yield f"The classifier is right on {report.judge['test_accuracy']:.1%} of test pictures.\n"


def _unseen(report: Report, links: Mapping[str, str]) -> Iterator[str]:
    if "held-out" in links:
        yield (
            f"## Captions that were held out\n\n![samples of held-out captions]"
            f"({links['held-out']})\n\n*One sample each, none left out. No vendor's drawing of "
            "these was trained on; words of their names were, in other captions.*\n"
        )


def _memory(report: Report, links: Mapping[str, str]) -> Iterator[str]:
    if "nearest" in links:
        yield (
            f"## Does it remember?\n\n![samples and their nearest training pictures]"
            f"({links['nearest']})\n\n*The samples nearest to training pictures.*\n"
        )
        yield from (f"{remembered(memory)}\n" for memory in report.memory)


def _shortcomings(report: Report, notes: str) -> Iterator[str]:
    yield "## What falls short\n"
    for m in report.measures:
        if m.holds is False:
            yield f"- {m.text}: {written(m.samples)}, and the goal was {m.verdict}."
    goals = [m for m in report.measures if m.goal is not None]
    if goals and all(m.holds for m in goals):
        yield "- The goals of the table are reached; they are modest."
    if notes:
        yield f"\n{notes}"
    yield f"\n*Measured with torch {torch.__version__}.*"

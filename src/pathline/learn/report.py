"""The report of a training run: what was trained, how the loss fell, and what is drawn by now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from pathline.core.errors import MissingExtra
from pathline.core.files import write_atomically
from pathline.core.page import image, page, table
from pathline.learn.journal import Journal
from pathline.learn.quality.pictures import as_png, curve

__all__ = ["write_report"]

REPORT = "report.html"


def write_report(out: Path, config: Mapping[str, Any], journal: Journal) -> Path:
    """Write `report.html` into the folder of a run, from its record and its sheets of samples.

    Args:
        out: the run's folder, with `sheet-STEP.png` in it.
        config: what the model's folder says of it.
        journal: the run's losses and times.
    """
    return write_atomically(
        out / REPORT, page(f"Training {config['name']}", _body(out, config, journal))
    )


def _body(out: Path, config: Mapping[str, Any], journal: Journal) -> Iterator[str]:
    training = config["training"]
    yield from table([{"what": name, "is": str(value)} for name, value in _facts(training)])
    yield "<h2>Loss</h2>"
    yield _curves(journal)
    for sheet in sorted(out.glob("sheet-*.png"), reverse=True):
        step = int(sheet.stem.removeprefix("sheet-"))
        yield f"<h2>Samples after {step} updates</h2>"
        yield image(sheet.read_bytes(), f"samples after {step} updates")
    yield "<h2>Configuration</h2>"
    for part in ("data", "start", "network", "objective", "coupling", "regulariser"):
        if (said := training["recipe"].get(part)) is None:
            continue
        yield f"<h3>{part}</h3>"
        yield from table([{"name": name, "value": str(value)} for name, value in said.items()])


def _facts(training: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    recipe = training["recipe"]
    yield "updates", f"{training['step']} of {recipe['steps']}, {recipe['batch']} samples each"
    yield "time", f"{training['seconds'] / 60:.1f} minutes"
    yield "loss on held-out data", training["held_out_loss"]
    yield "peak rate, decay, clip", f"{recipe['rate']:g}, {recipe['decay']:g}, {recipe['clip']:g}"
    yield "precision", recipe["precision"]
    if (pairs := training.get("coupling")) is not None:
        yield "temperature of the pairs' weights", pairs["eps"]
        yield "effective share of pairs", f"{pairs['ess']:.3g}"
        yield "tilt of source, data", f"{pairs['tilt_x']:.3g}, {pairs['tilt_y']:.3g}"
        yield "mean cost of a pair", f"{pairs['cost']:.4g}"
        yield "batches skipped", pairs["skipped"]
    for name in ("device", "machine", "threads", "torch"):
        yield name, training[name]


def _curves(journal: Journal) -> str:
    points = [(row.step, row.loss) for row in journal.rows]
    held_out = [(row.step, row.held_out) for row in journal.rows if row.held_out is not None]
    try:
        drawn = [curve(points, "update", "training loss")]
        drawn += [curve(held_out, "update", "held-out loss")] if len(held_out) > 1 else []
    except MissingExtra as error:
        return f'<p class="small">{escape(str(error))}</p>'
    return "\n".join(image(as_png(picture), "the loss over the updates") for picture in drawn)

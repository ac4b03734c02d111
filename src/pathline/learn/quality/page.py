"""An evaluation as one page that any browser opens, with everything inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

from PIL import Image

from pathline.core.errors import MissingExtra
from pathline.core.files import write_atomically
from pathline.core.page import image, page, table
from pathline.learn.quality.pictures import as_png, memory_curve, memory_sheet, sheet
from pathline.learn.quality.report import Drawn, Memory, Report, written

__all__ = ["write_page"]

SHOWN = 96

_STYLE = "td:nth-child(2) { font-weight: bold }"


def write_page(report: Report, path: Path) -> Path:
    """Write a report as one HTML file."""
    return write_atomically(path, page(f"How good {report.model} is", _body(report), _STYLE))


def _body(report: Report) -> Iterator[str]:
    call = report.call
    yield (
        f"<p>{call['n']} samples, seeds from {call['seed']}: {escape(call['solver'])} with "
        f"{call['steps']} steps on the grid {escape(call['grid'])}, guidance "
        f"{call['guidance']:g}.</p>"
    )
    yield from _table(report)
    yield from _judge(report)
    yield from _drawn("Samples of captions drawn as in training", report.drawn)
    yield from _drawn("Samples of captions that were held out", report.unseen)
    yield from _remembered(report)
    made = ", ".join(f"{name} {version}" for name, version in call["versions"].items())
    yield f'<p class="small">Measured in {report.seconds:.0f} s with {escape(made)}.</p>'


def _table(report: Report) -> Iterator[str]:
    yield from table(report.rows())
    yield (
        '<p class="small">Real halves: one half of the real pictures beside the other. Other real: '
        "pictures of the other split; for captions, the pictures that they were drawn from. "
        "Corrupted: real pictures with Gaussian noise on them, half as large as the range.</p>"
    )


def _judge(report: Report) -> Iterator[str]:
    reads = report.judge.get("reads", {})
    if not reads:
        return
    yield f"<h2>How far the judge can be trusted</h2>\n<p>It learned from {report.judge['vendor']}."
    yield "How often it finds a drawing's caption among as many as it says:</p>"
    yield from table(
        [
            {
                "drawings": name.replace("_", " "),
                "first": written(r["first"]),
                "in the first five": written(r["among_five"]),
                "captions": str(r["choices"]),
                "pictures": str(r["pictures"]),
            }
            for name, r in reads.items()
        ]
    )


def _drawn(title: str, drawn: Drawn | None) -> Iterator[str]:
    if drawn is not None:
        yield f"<h2>{escape(title)}</h2>"
        yield _image(sheet(drawn.pixels[:SHOWN], drawn.titles[:SHOWN]), title)


def _remembered(report: Report) -> Iterator[str]:
    shown = memory_sheet(report)
    if shown is None:
        return
    yield "<h2>Nearest training pictures</h2>"
    yield "<p>The samples that are nearest to training pictures, and those pictures.</p>"
    yield _image(shown, "samples and their nearest training pictures")
    for memory in report.memory:
        yield f"<p>{escape(remembered(memory))}</p>"
    yield _optional(lambda: memory_curve(report.memory), "distributions of distances")


def remembered(memory: Memory) -> str:
    """Return what a memory says, as a sentence."""
    return (
        f"By {memory.by}, {memory.near:.0%} of the samples are nearer to a training picture than "
        f"the nearest twentieth of held-out pictures is, and {memory.copies:.0%} nearer than half "
        "of that."
    )


def _image(picture: Image.Image, about: str) -> str:
    return image(as_png(picture), about)


def _optional(make: Callable[[], Image.Image], about: str) -> str:
    try:
        return _image(make(), about)
    except MissingExtra:
        return '<p class="small">No curves: pip install "pathline[plot]" brings them.</p>'

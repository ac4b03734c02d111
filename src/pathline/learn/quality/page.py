"""An evaluation as one page that any browser opens, with everything inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

from PIL import Image

from pathline.core.errors import MissingExtra
from pathline.core.files import write_atomically
from pathline.learn.quality.pictures import data_url, memory_curve, memory_sheet, sheet
from pathline.learn.quality.report import Drawn, Memory, Report, written

__all__ = ["write_page"]

SHOWN = 96

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse }
td, th { text-align: left; vertical-align: top; padding: .3rem 1rem .3rem 0;
         border-bottom: 1px solid #ccc; font-variant-numeric: tabular-nums }
td:nth-child(2) { font-weight: bold } .small { color: #666 }
img { max-width: 100%; image-rendering: pixelated }
"""


def write_page(report: Report, path: Path) -> Path:
    """Write a report as one HTML file."""
    return write_atomically(path, "\n".join(_page(report)) + "\n")


def _page(report: Report) -> Iterator[str]:
    call = report.call
    yield '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">'
    yield f"<title>How good {escape(report.model)} is</title>\n<style>{_STYLE}</style>"
    yield f"<h1>How good {escape(report.model)} is</h1>"
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
    yield f'<p class="small">Measured in {report.seconds:.0f} s with {escape(made)}.</p>\n</html>'


def _table(report: Report) -> Iterator[str]:
    rows = report.rows()
    yield "<table>\n<tr>" + "".join(f"<th>{escape(name)}" for name in rows[0])
    for row in rows:
        yield "<tr>" + "".join(f"<td>{escape(value)}" for value in row.values())
    yield "</table>"
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
    yield "How often it finds a drawing's caption among as many as it says:</p>\n<table>"
    yield "<tr><th>drawings<th>first<th>in the first five<th>captions<th>drawings"
    for name, r in reads.items():
        yield (
            f"<tr><td>{escape(name.replace('_', ' '))}<td>{written(r['first'])}"
            f"<td>{written(r['among_five'])}<td>{r['choices']}<td>{r['pictures']}"
        )
    yield "</table>"


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


def _image(image: Image.Image, about: str) -> str:
    return f'<img src="{data_url(image)}" alt="{escape(about)}">'


def _optional(make: Callable[[], Image.Image], about: str) -> str:
    try:
        return _image(make(), about)
    except MissingExtra:
        return '<p class="small">No curves: pip install "pathline[plot]" brings them.</p>'

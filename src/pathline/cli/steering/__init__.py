"""`pathline steer`: one model without training as inpainter, colouriser, upscaler, editor."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from pathline.cli.output import check_writable
from pathline.core.errors import UsageError, unknown
from pathline.core.files import write_atomically
from pathline.core.images import Layout, encode_png, to_pixels
from pathline.core.page import image, page, table
from pathline.core.progress import progress

if TYPE_CHECKING:
    from pathline.cli.steering.tasks import Done, Prior

Name = Annotated[
    str | None, typer.Argument(metavar="TASK", help="inpaint, colour, sr, text or multi.")
]
Demo = Annotated[bool, typer.Option("--demo", help="All of them, on one page.")]
Model = Annotated[str, typer.Option(help="A model that reads text; digits: exact, in grey.")]
Repeats = Annotated[int, typer.Option(help="Visits of each level; more agree better.")]
Steps = Annotated[int, typer.Option(help="Levels.")]
Output = Annotated[str, typer.Option("-o", "--output", help="The folder.")]


def steer(
    task: Name = None,
    demo: Demo = False,
    model: Model = "emoji",
    repeats: Repeats = 4,
    steps: Steps = 15,
    output: Output = "out/steer",
) -> None:
    """Take pictures apart and let a model make them whole again, without training.

    pathline steer inpaint --repeats 8 writes inpaint.png (what there was, what was known, what
    came of it) and inpaint.json (the residual and V of every evaluation, and log p where it is
    exact); pathline steer --demo writes index.html, in a minute or two.
    """
    from pathline.cli.steering.tasks import STEPS, TASKS, Workshop, prior_of

    if demo == (task is not None):
        raise UsageError(f"name a task, {', '.join(TASKS)}, or give --demo for all of them.")
    if task is not None and task not in TASKS:
        raise unknown("task", task, TASKS)
    chosen = list(TASKS.values()) if task is None else [TASKS[task]]
    folder, begun = Path(output), time.perf_counter()
    names = [f"{each.name}.{end}" for each in chosen for end in ("png", "json")]
    for name in [*names, *(["index.html"] if demo else [])]:
        check_writable(folder / name)
    with progress() as bar:
        total = STEPS + steps * len(chosen)
        bars = bar.add_task(f"steering {model}", total=total)
        prior = prior_of(model, lambda _: bar.advance(bars))
        shop = Workshop(prior, steps, repeats)
        if demo and model == "digits":
            chosen = [each for each in chosen if not each.colours]
        for each in chosen:
            shop.check(each)
        done = [shop.done(each, lambda _: bar.advance(bars)) for each in chosen]
    for each in done:
        _write(folder, prior, each, repeats)
    seconds = time.perf_counter() - begun
    if demo:
        body = _body(prior, done, repeats, seconds)
        file = write_atomically(folder / "index.html", page("Steering", body))
        typer.echo(f"{file}: open it in a browser; {seconds:.0f} s")
    else:
        typer.echo(f"{folder / names[0]}: {_said(done[0])}; {seconds:.0f} s")


def _said(done: Done) -> str:
    exact = "" if done.score is None else f", log p(hidden | known) {done.score:.2f} nats a pixel"
    return f"{done.nfe} evaluations, what is known is off by {done.off:.1g} at most{exact}"


def _strip(prior: Prior, done: Done) -> bytes:
    """Return rows of originals, what is known, and results, as PNG."""
    rows = torch.cat((prior.pictures, done.seen, done.x)).float()
    n, width = len(prior.pictures), prior.shape[-1]
    layout = Layout(n, max(1, round(96 / width)), 4)
    return encode_png(layout.arrange(to_pixels(rows)))


def _write(folder: Path, prior: Prior, done: Done, repeats: int) -> None:
    told = {"model": prior.name, "repeats": repeats, **done.to_dict()}
    write_atomically(folder / f"{done.task.name}.png", _strip(prior, done))
    text = json.dumps(told, ensure_ascii=False, indent=1)
    write_atomically(folder / f"{done.task.name}.json", text + "\n")


def _body(prior: Prior, done: Sequence[Done], repeats: int, seconds: float) -> Iterator[str]:
    name = escape(prior.name)
    yield (
        f"<p>The model <b>{name}</b> was never trained for any of this. Each step puts what is "
        f"known into its clean estimate; every level is visited {repeats} times. Rows: the "
        "originals, what is known of them, what the model makes of it.</p>"
    )
    for each in done:
        yield f"<h2>{escape(each.task.name)}</h2><p>{escape(each.task.about)} {_said(each)}.</p>"
        words = ", ".join(prior.titles)
        yield image(_strip(prior, each), f"{each.task.name}: {words}")
    rows = [
        {
            "task": each.task.name,
            "evaluations": str(each.nfe),
            "off at the start": f"{each.residuals[0][1]:.3f}",
            "half-way": f"{each.residuals[len(each.residuals) // 2][1]:.3f}",
            "at the end": f"{each.residuals[-1][1]:.3f}",
        }
        for each in done
    ]
    yield "<h2>Residuals</h2><p>How far the model's own estimate is from what is known, before it "
    yield "is put in: root mean square.</p>"
    yield from table(rows)
    yield f'<p class="small">Made in {seconds:.0f} s; your own pictures: pathline sample '
    yield f'{name} --guide "inpaint:mask=mask.png,image=photo.png" --last denoise.</p>'

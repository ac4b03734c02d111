"""`pathline demo`: one page that shows what the library does, measured while you wait."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pathline.cli.output import check_writable
from pathline.core.errors import MissingExtra
from pathline.core.files import write_atomically
from pathline.core.progress import progress

if TYPE_CHECKING:
    from pathline.cli.demo.measure import Flow, Study

Output = Annotated[str, typer.Option("-o", "--output", help="The folder.")]
Model = Annotated[str, typer.Option(help="Which model; it has to read text.")]


def demo(output: Output = "out/demo", model: Model = "emoji") -> None:
    """Make a page of pictures, solvers and errors, in about a minute.

    It writes index.html, which opens in any browser and needs nothing else, and hero.png.
    """
    from pathline.cli.demo.measure import measured_flow, planned
    from pathline.cli.demo.page import page
    from pathline.learn.checkpoint import load_model

    begun, folder = time.perf_counter(), Path(output)
    for name in ("index.html", "hero.png"):
        check_writable(folder / name)
    plan = planned(load_model(model), model)
    with progress() as bar:
        task = bar.add_task(f"following the field of {model}", total=plan.n_steps)
        study = plan.run(lambda _: bar.advance(task))
        flow = measured_flow()
    picture = _hero(study, flow, folder / "hero.png")
    seconds = time.perf_counter() - begun
    file = write_atomically(folder / "index.html", page(study, flow, picture, seconds))
    typer.echo(f"{file}: open it in a browser; {seconds:.0f} s")


def _hero(study: Study, flow: Flow, path: Path) -> bytes | None:
    """Draw the picture for the README; without matplotlib, say so and go on."""
    from pathline.cli.demo.hero import hero

    try:
        picture = hero(study, flow)
    except MissingExtra as error:
        typer.echo(f"pathline: {error}", err=True)
        return None
    write_atomically(path, picture)
    return picture

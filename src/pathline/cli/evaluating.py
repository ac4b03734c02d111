"""`pathline evaluate`: how good a model is, as a table, JSON, a page and a card."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from pathline.cli.listing import Json, show
from pathline.cli.options import chosen_device, given
from pathline.cli.output import check_writable
from pathline.cli.sampling import Device, Guidance, Model, Steps

Number = Annotated[int, typer.Option("-n", help="How many samples; Fréchet distances need 500.")]
SolverName = Annotated[str | None, typer.Option(help="A name of pathline solvers.")]
GridName = Annotated[str | None, typer.Option(help="A name of pathline grids.")]
Seed = Annotated[int, typer.Option(help="Of the first sample; the next has one more.")]
Output = Annotated[
    str, typer.Option("-o", "--output", help="A folder; the model's name is added to it.")
]
Card = Annotated[
    str | None,
    typer.Option(help="Write the model's card too, with its pictures in this folder."),
]


def evaluate(  # noqa: PLR0913 - each is an option
    model: Model,
    n: Number = 512,
    solver: SolverName = None,
    grid: GridName = None,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    output: Output = "out/evaluate",
    card: Card = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Measure how good a model's samples are, beside real pictures and beside noise.

    An interrupted run goes on from the samples in its folder.
    """
    from pathline.learn.checkpoint import load_model
    from pathline.learn.quality import evaluate as measure
    from pathline.learn.quality import how_of, write_card

    denoiser = load_model(model).to(chosen_device(device))
    folder = Path(output) / (denoiser.name or "model")
    check_writable(folder / "report.json")
    chosen = given(solver=solver, grid=grid, steps=steps, guidance=guidance, seed=seed)
    how = how_of(denoiser, **chosen)
    report = measure(denoiser, n, how=how, out=folder)
    if json:
        typer.echo(jsonlib.dumps(report.to_dict(), ensure_ascii=False, indent=1))
    else:
        show(report.rows(), as_json=False)
        typer.echo(f"{folder / 'index.html'}; {report.seconds:.0f} s")
    if card is not None:
        written = write_card(model, report, card, folder)
        typer.echo(str(written), err=json)

"""`pathline sample`: from a sentence to a picture that knows how it was made."""

from __future__ import annotations

import time
from typing import Annotated

import torch
import typer

from pathline.cli import options
from pathline.cli.output import Destination, destination, picture_of, sheet_of
from pathline.cli.request import BATCH, Request
from pathline.core.images import Layout
from pathline.core.progress import progress
from pathline.core.solution import Solution

Model = Annotated[str, typer.Argument(help="A shipped model (pathline models), or a folder.")]
Prompt = Annotated[str | None, typer.Argument(help="What to draw: words, or a class. Optional.")]
SolverName = Annotated[str | None, typer.Option(help="A name of pathline solvers.")]
Order = Annotated[int | None, typer.Option(help="For solvers that have several.")]
Steps = Annotated[int | None, typer.Option(help="More is closer to the exact solution.")]
GridName = Annotated[
    str | None, typer.Option(help="A name of pathline grids, or times: 1,0.6,0.2,0.001.")
]
Last = Annotated[str | None, typer.Option(help="stop, or denoise: the last step goes to data.")]
Guidance = Annotated[
    float | None, typer.Option(help="How strongly to follow the prompt; 1 adds nothing.")
]
Number = Annotated[int | None, typer.Option("-n", help="How many samples (16).")]
Seed = Annotated[int | None, typer.Option(help="Of the first sample; the next has one more (0).")]
Seeds = Annotated[str | None, typer.Option(help="One for each sample, such as 0-15,20.")]
Output = Annotated[
    str | None, typer.Option("-o", "--output", help="A PNG file; a folder/ for one file a sample.")
]
Each = Annotated[bool, typer.Option("--each", help="One file a sample, named by its seed.")]
Columns = Annotated[int | None, typer.Option(help="Samples in a row of the sheet.")]
Scale = Annotated[int | None, typer.Option(help="How often each pixel is repeated.")]
Batch = Annotated[int, typer.Option(help="Samples that run together.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; the fastest if left out.")]


def sample(  # noqa: PLR0913 - each is an option
    model: Model,
    prompt: Prompt = None,
    solver: SolverName = None,
    order: Order = None,
    steps: Steps = None,
    grid: GridName = None,
    last: Last = None,
    guidance: Guidance = None,
    n: Number = None,
    seed: Seed = None,
    seeds: Seeds = None,
    output: Output = None,
    each: Each = False,
    columns: Columns = None,
    scale: Scale = None,
    batch: Batch = BATCH,
    device: Device = None,
) -> None:
    """Draw samples from a model into a PNG that carries the receipt to remake it.

    pathline sample emoji "a red apple" --solver dpmpp --order 3 --steps 10 -o apple.png
    """
    from pathline.learn.checkpoint import load_model

    drawn = options.chosen_seeds(n, seed, seeds)
    where = destination(output, each, model, prompt)
    place = options.chosen_device(device)
    denoiser = load_model(model).to(place)
    request = Request(
        denoiser,
        model,
        options.chosen_solver(solver, order, denoiser),
        options.chosen_grid(grid, steps, last, denoiser),
        options.chosen_guide(guidance, prompt, denoiser),
        options.chosen_condition(prompt, denoiser),
        drawn,
        batch,
    )
    layout = _layout(request, where.each, columns, scale)
    begun = time.perf_counter()
    solutions = watched(request, f"sampling {model}")
    seconds = time.perf_counter() - begun
    typer.echo(f"{_written(request, solutions, where, layout)}; {seconds:.1f} s")


def watched(request: Request, what: str) -> list[Solution]:
    """Run a request under a progress bar that moves with every step."""
    with progress() as bar, torch.no_grad():
        task = bar.add_task(what, total=request.n_steps)
        return request.run(lambda _: bar.advance(task))


def _layout(request: Request, each: bool, columns: int | None, scale: int | None) -> Layout:
    """Return how the samples stand in the picture; a file of one sample has its own pixels."""
    if each:
        return Layout(scale=1 if scale is None else scale)
    shape = request.model.shape or (1,)
    return Layout.of(len(request.seeds), shape[-1], columns, scale)


def _written(
    request: Request, solutions: list[Solution], where: Destination, layout: Layout
) -> str:
    """Write the files, and return one line that says what was made and how to make it again."""
    n, nfe = len(request.seeds), solutions[0].stats.nfe
    if where.each:
        files = []
        for index in range(n):
            picture = picture_of(request, solutions, index, layout)
            files.append(picture.write(where.path / picture.name))
        made = f"{n} files in {where.path}" if n > 1 else str(files[0])
        again = files[0]
    else:
        again = sheet_of(request, solutions, layout).write(where.path)
        made = f"{again}: {n} samples"
    calls = solutions[0].stats.network_calls
    cost = f"{nfe} evaluations" + (f" ({calls} of the network)" if calls != nfe else "")
    return f"{made}, {cost} each; again: pathline replay {again}"

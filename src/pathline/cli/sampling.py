"""`pathline sample`: from a sentence to a picture that knows how it was made."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pathline.cli import options
from pathline.cli.guiding import Spec, typed
from pathline.cli.kept import kept, without
from pathline.cli.output import destination, pictures_of, sheet_of
from pathline.cli.request import BATCH, Request, classifier_of
from pathline.cli.together import check_together
from pathline.cli.weighing import SOLVER, chosen_particles, outcome_of, summed_up
from pathline.core.errors import UsageError
from pathline.core.images import Layout
from pathline.core.progress import progress
from pathline.core.solution import Solution
from pathline.fields import Denoiser
from pathline.steer import Classifier, Guide

Model = Annotated[str, typer.Argument(help="A shipped model (pathline models), or a folder.")]
Prompt = Annotated[str | None, typer.Argument(help="What to draw: words, or a class. Optional.")]
SolverName = Annotated[
    str | None,
    typer.Option(help="A name of pathline solvers; s3, s3_guided: this model's own."),
]
Order = Annotated[int | None, typer.Option(help="For solvers that have several.")]
Steps = Annotated[int | None, typer.Option(help="More is closer to the exact solution.")]
GridName = Annotated[
    str | None, typer.Option(help="A name of pathline grids, or times: 1,0.6,0.2,0.001.")
]
Last = Annotated[str | None, typer.Option(help="stop, or denoise: the last step goes to data.")]
Guidance = Annotated[
    float | None, typer.Option(help="How strongly to follow the prompt; 1 adds nothing.")
]
GuideSpecs = Annotated[
    list[str] | None,
    typer.Option(
        "--guide",
        metavar="SPEC",
        help="Steer: NAME:KEY=VALUE,… such as inpaint:mask=mask.png,image=photo.png; repeatable.",
    ),
]
ParticleCount = Annotated[
    int | None,
    typer.Option("--particles", help="Weigh so many for each sample, by the --guide's likelihood."),
]
SpeedName = Annotated[
    str | None, typer.Option("--speed", help="Leave evaluations out: sada, or cadence.")
]
ClassifierFolder = Annotated[
    str | None,
    typer.Option("--classifier", help="A folder of pathline classifier: the prompt is its class."),
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
    guide: GuideSpecs = None,
    particles: ParticleCount = None,
    speed: SpeedName = None,
    classifier: ClassifierFolder = None,
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

    pathline sample emoji "a red apple" --solver s3_guided --steps 10 -o apple.png
    pathline sample emoji "a cat" --guide inpaint:mask=mask.png,image=photo.png --last denoise
    pathline sample emoji --guide pigdm:0.1,cubic=4,image=small.png --particles 8 -n 2
    """
    from pathline.learn.checkpoint import load_model

    drawn = options.chosen_seeds(n, seed, seeds)
    where = destination(output, each, model, prompt)
    place = options.chosen_device(device)
    denoiser = load_model(model).to(place)
    suited = "uniform" if speed == "sada" else None  # it extrapolates over even steps
    steering, specs, cond = _told(prompt, guidance, classifier, guide, denoiser)
    weighing = chosen_particles(particles, steering, speed)
    solver = SOLVER if solver is None and weighing is not None else solver
    request = Request(
        denoiser,
        model,
        *options.chosen_steps(solver, order, grid or suited, steps, last, denoiser),
        steering,
        cond,
        drawn,
        batch,
        speed=options.chosen_speed(speed, solver, steps, denoiser),
        typed=specs,
        particles=weighing,
    )
    check_together(request, solver, steps, speed)
    layout = _layout(request, where.each, columns, scale)
    begun = time.perf_counter()
    said = _each(request, where.path, layout) if where.each else _sheet(request, where.path, layout)
    typer.echo(f"{said}; {time.perf_counter() - begun:.1f} s")


def _told(
    prompt: str | None,
    guidance: float | None,
    classifier: str | None,
    specs: list[str] | None,
    model: Denoiser,
) -> tuple[Guide | None, tuple[Spec, ...], dict[str, str]]:
    """Return guides and the condition: a prompt is the model's, or a classifier's class."""
    if classifier is None:
        guide, typed_as = options.chosen_guides(specs, guidance, prompt, model)
        return guide, typed_as, options.chosen_condition(prompt, model)
    if prompt is None:
        raise UsageError("--classifier needs a prompt: the class that is asked for.")
    weight = 1.0 if guidance is None else guidance
    if specs:
        made = typed([f"classifier:{weight},folder={classifier},label={prompt}", *specs], model)
        return made.guide, made.specs, {}
    logits, label = classifier_of(classifier, model)
    return Classifier(logits, label(prompt), weight), (), {}


def watched(request: Request, what: str) -> Iterator[Solution]:
    """Run a request under a progress bar that moves with every step."""
    with progress() as bar:
        task = bar.add_task(what, total=request.n_steps)
        yield from request.run(lambda _: bar.advance(task))


def _layout(request: Request, each: bool, columns: int | None, scale: int | None) -> Layout:
    """Return how the samples stand in the picture; a file of one sample has its own pixels."""
    if each:
        return Layout(scale=1 if scale is None else scale)
    shape = request.model.shape or (1,)
    return Layout.of(len(request.seeds), shape[-1], columns, scale)


def _sheet(request: Request, path: Path, layout: Layout) -> str:
    """Write one sheet, and say what was made and how to make it again."""
    solutions = list(watched(request, f"sampling {request.source}"))
    sheet_of(request, solutions, layout).write(path)
    return _said(f"{path}: {len(request.seeds)} samples", request, solutions, path)


def _each(request: Request, folder: Path, layout: Layout) -> str:
    """Write a file for each sample as soon as its batch is done, and say so.

    What the same command has written before is kept, where its receipts say that it is the same.
    """
    before = kept(request, folder, layout)
    rest, written = without(request, before), list[Path]()
    told: list[Solution] = []
    try:
        for number, solution in enumerate(watched(rest, f"sampling {request.source}")):
            told.append(replace(solution, x=solution.x[:0]))  # the samples are written, and let go
            for picture in pictures_of(rest, number, solution, layout):
                written.append(picture.write(folder / picture.name))
    except KeyboardInterrupt:
        there = len(before) + len(written)
        typer.echo(
            f"{folder}: {there} of {len(request.seeds)} files are there; with -o {folder}/ the "
            "same command goes on from them.",
            err=True,
        )
        raise
    if not told:
        there = f"{folder}: all {len(before)} files were there already"
        return f"{there}; again: pathline replay {before[0]}"
    more = f" beside {len(before)} that were there already" if before else ""
    return _said(f"{folder}: {len(written)} files{more}", request, told, written[0])


def _said(made: str, request: Request, solutions: Sequence[Solution], again: Path) -> str:
    """Say what was made, what it cost, and how to make it again; a request has a seed or more."""
    stats = solutions[0].stats
    most = "at most " if stats.per_sample else ""
    cost = f"{most}{stats.nfe} evaluations"
    if stats.network_calls != stats.nfe:
        cost += f" ({stats.network_calls} of the network)"
    weighed = ""
    if request.particles is not None:
        cost += f" of each of {request.particles.n} particles"
        outcome = outcome_of([made.receipt for made in solutions if made.receipt is not None])
        weighed = f"\n{summed_up(outcome, request.particles.n)}"
    return f"{made}, {cost} each; again: pathline replay {again}{weighed}"

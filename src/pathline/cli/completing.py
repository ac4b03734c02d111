"""What one score gives besides samples: parts and colours of a picture, pictures between two."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from pathline.cli import options
from pathline.cli.output import check_writable, sheet_of
from pathline.cli.reading import as_data, mask_of, pictures
from pathline.cli.request import BATCH, Request
from pathline.cli.sampling import Device, Model, watched
from pathline.core.errors import UsageError
from pathline.core.images import Layout, to_pixels, write_picture
from pathline.fields import Denoiser
from pathline.solvers import Grid, grids
from pathline.solvers.corrector import PredictorCorrector
from pathline.steer import Known

NOISE = -7.0
"""The log-SNR at which samples begin if a path begins at pure noise."""

Picture = Annotated[str, typer.Argument(help="A PNG of the model's size.")]
Prompt = Annotated[str | None, typer.Option(help="What it shows: words, or a class.")]
Mask = Annotated[
    str | None, typer.Option(help="A PNG: white is known, black is to be made. Left out: colours.")
]
Output = Annotated[str, typer.Option("-o", "--output", help="A PNG file.")]
Number = Annotated[int, typer.Option("-n", help="How many.")]
Seed = Annotated[int, typer.Option(help="Of the first; the next has one more.")]
Steps = Annotated[int, typer.Option(help="Of the predictor.")]
Corrections = Annotated[int, typer.Option(help="Langevin steps at each level of noise.")]
Guidance = Annotated[float | None, typer.Option(help="How strongly to follow the prompt.")]
Tolerance = Annotated[float, typer.Option(help="Relative and absolute, of Dormand-Prince.")]
Between = Annotated[int, typer.Option("-n", help="Pictures, both ends included.")]


def complete(  # noqa: PLR0913 - each is an option
    model: Model,
    picture: Picture,
    mask: Mask = None,
    prompt: Prompt = None,
    output: Output = "complete.png",
    n: Number = 4,
    seed: Seed = 0,
    steps: Steps = 200,
    corrections: Corrections = 1,
    guidance: Guidance = None,
    device: Device = None,
) -> None:
    """Make what a mask hides of a picture, or the colours of a grey one, as the model has it.

    pathline complete fashion half.png --mask left.png --prompt bag -o bags.png
    """
    from pathline.learn.checkpoint import load_model

    check_writable(Path(output))
    denoiser = load_model(model).to(options.chosen_device(device))
    request = Request(
        denoiser,
        model,
        PredictorCorrector("ddpm", n=corrections),
        _grid(denoiser, steps),
        options.chosen_guide(guidance, prompt, denoiser),
        options.chosen_condition(prompt, denoiser),
        options.chosen_seeds(n, seed, None),
        BATCH,
        keep=_known(denoiser, picture, mask),
    )
    begun = time.perf_counter()
    solutions = list(watched(request, f"completing {picture}"))
    shape = denoiser.shape or (1,)
    made = sheet_of(request, solutions, Layout.of(n, shape[-1]))
    made.write(Path(output))
    nfe = solutions[0].stats.nfe
    typer.echo(
        f"{output}: {n} samples, {nfe} evaluations each; {time.perf_counter() - begun:.1f} s"
    )


def interpolate(  # noqa: PLR0913 - each is an option
    model: Model,
    first: Picture,
    last: Picture,
    prompt: Prompt = None,
    output: Output = "between.png",
    n: Between = 8,
    tolerance: Tolerance = 1e-3,
    device: Device = None,
) -> None:
    """Make what lies between two pictures, along the great circle of their codes.

    pathline interpolate fashion bag.png shoe.png -o strip.png
    """
    from pathline.edit import interpolate as between
    from pathline.learn.checkpoint import load_model
    from pathline.solvers.adaptive_rk import AdaptiveRK

    check_writable(Path(output))
    denoiser = load_model(model).to(options.chosen_device(device))
    ends = as_data(pictures(denoiser, [first, last])[0]).to(options.chosen_device(device))
    told: dict[str, Any] = {**options.chosen_condition(prompt, denoiser)}
    rule = AdaptiveRK(rtol=tolerance, atol=tolerance)
    begun = time.perf_counter()
    with torch.no_grad():
        strip = between(denoiser, ends[:1], ends[1:], n, solver=rule, **told)[:, 0]
    layout = Layout.of(n, strip.shape[-1], columns=n)
    write_picture(Path(output), layout.arrange(to_pixels(strip)))
    typer.echo(f"{output}: {n} pictures; {time.perf_counter() - begun:.1f} s")


def classifier(
    data: Annotated[str, typer.Argument(help="digits or fashion.")],
    output: Annotated[str, typer.Option("-o", "--output", help="A folder.")] = "runs/classifier",
    seed: Seed = 0,
) -> None:
    """Train a classifier of noisy images, which makes any model of them one of classes; resumable.

    pathline classifier digits, then pathline sample my-digits 7 --classifier runs/classifier/model
    """
    from pathline.learn.noisy_classes import ClassLesson, train_noisy_classes

    check_writable(Path(output) / "model" / "config.json")
    made = train_noisy_classes(output, data, ClassLesson(seed=seed))
    typer.echo(f"{made}: try pathline sample MODEL CLASS --classifier {made}")


def _grid(model: Denoiser, steps: int) -> Grid:
    """Return even times, which begin where there is a trace of the data: scores need one."""
    start = model.path.t_max
    if float(model.path.log_snr(start)) < NOISE:
        start = float(model.path.time_of_log_snr(NOISE))
    return grids.uniform(steps, start=start)


def _known(model: Denoiser, picture: str, mask: str | None) -> Known:
    """Return what a picture tells: the pixels under a mask, or its greys."""
    y = as_data(pictures(model, [picture])[0])
    if mask is not None:
        return Known(y, mask_of(model, mask))
    if y.shape[1] != 3:
        raise UsageError(f"{model.name} makes no colours: give --mask, what is known of {picture}.")
    return Known.grey(y.mean(1, keepdim=True).expand_as(y))

"""`pathline tune`: the best way to sample a model in few evaluations, found and saved beside it."""

from __future__ import annotations

import json as jsonlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from pathline.cli.listing import Json, show
from pathline.cli.options import chosen_device, chosen_guide, parsed_seeds
from pathline.cli.output import check_writable
from pathline.cli.sampling import Device, Guidance, Model
from pathline.core.errors import UsageError
from pathline.fields import Denoiser

Counts = Annotated[str, typer.Option("--nfe", help="Numbers of evaluations, such as 4-6,8,10.")]
Prompts = Annotated[
    str | None,
    typer.Option(help="A file with a condition a line; every other one is kept for measuring."),
]
Budget = Annotated[int, typer.Option(help="Schedules that are tried at each number.")]
Noises = Annotated[int, typer.Option("-n", help="Noises to search on; twice as many measure.")]
Reference = Annotated[int, typer.Option(help="Steps that lead to where samples should be.")]
Seed = Annotated[int, typer.Option(help="Of the search.")]
Output = Annotated[
    str | None, typer.Option("-o", "--output", help="The folder that gets schedules/; the model's.")
]
Ray = Annotated[bool, typer.Option("--ray", help="Score on Ray's workers, as many as --workers.")]
Workers = Annotated[int, typer.Option(help="Schedules that are scored at once.")]

PROMPTS = (
    "red heart", "green apple", "smiling face", "dog", "automobile", "rocket", "pizza", "tree",
    "blue car", "cat face", "house", "yellow star", "fish", "guitar", "umbrella", "banana",
    "crying face", "clock", "mountain", "airplane", "cup of coffee", "rose", "sun", "book",
    "bicycle", "ghost", "elephant", "soccer ball", "key", "strawberry", "moon", "penguin",
)  # fmt: skip
"""What a model of texts is asked, where nobody says it."""


def tune(  # noqa: PLR0913 - each is an option
    model: Model,
    nfe: Counts = "5,6,8,10",
    guidance: Guidance = None,
    prompts: Prompts = None,
    budget: Budget = 60,
    n: Noises = 16,
    reference: Reference = 64,
    seed: Seed = 0,
    output: Output = None,
    ray: Ray = False,
    workers: Workers = 1,
    device: Device = None,
    json: Json = False,
) -> None:
    """Search for the best steps of a model at few evaluations; pathline sample --solver s3.

    Every fixed solver and grid is tried too, and the error is measured on other noises and
    conditions than were searched on. An interrupted run goes on where it was.
    """
    from pathline.data import cache_folder
    from pathline.learn.checkpoint import find_folder, load_model
    from pathline.solvers.saved import schedule_file
    from pathline.speed.tune import TuneSettings, bench_of
    from pathline.speed.tune import tune as search

    counts = parsed_seeds(nfe)
    settings = TuneSettings(budget, n, 2 * n, reference, seed, workers)
    out = find_folder(model) if output is None else Path(output)
    check_writable(schedule_file(out, 0))
    denoiser = load_model(model).to(chosen_device(device))
    train, test = _conditions(denoiser, prompts)
    guide = chosen_guide(guidance, next(iter(train.values()))[0] if train else None, denoiser)
    work = cache_folder() / "tune"
    begun = time.perf_counter()
    bench = bench_of(denoiser, guide, train, test, settings, work / f"{denoiser.name}.safetensors")
    found = search(bench, counts, settings, out=out, work=work, ray=ray)
    if json:
        typer.echo(jsonlib.dumps([t.to_dict() for t in found], ensure_ascii=False, indent=1))
        return
    show([t.row() for t in found], as_json=False)
    where = schedule_file(out, 0).parent
    typer.echo(
        f"{where}; {time.perf_counter() - begun:.0f} s; try pathline sample {model} --solver s3 "
        f"--steps {counts[0]}"
    )


def _conditions(
    model: Denoiser, file: str | None
) -> tuple[Mapping[str, Sequence[str]], Mapping[str, Sequence[str]]]:
    """Return the conditions to search on, and those to measure on: every other one."""
    told = model.details.get("condition")
    if not isinstance(told, str):
        if file is not None:
            raise UsageError("this model takes no condition; leave --prompts out.")
        return {}, {}
    lines = _lines(file) if file is not None else model.details.get("classes", PROMPTS)
    if len(lines) < 2:
        raise UsageError(f"{file} has {len(lines)} conditions; two are needed at least.")
    return {told: lines[::2]}, {told: lines[1::2]}


def _lines(file: str) -> list[str]:
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read conditions from {file}: {error}.") from error
    return [line.strip() for line in text.splitlines() if line.strip()]

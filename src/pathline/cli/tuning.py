"""`pathline tune`: the best way to sample a model in few evaluations, found and saved beside it."""

from __future__ import annotations

import json as jsonlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pathline.cli.listing import Json, show
from pathline.cli.options import chosen_device, chosen_guide, parsed_seeds
from pathline.cli.output import check_writable
from pathline.cli.sampling import Device, Guidance, Model
from pathline.core.errors import UsageError
from pathline.core.tensors import full_float32
from pathline.fields import Denoiser

Counts = Annotated[str, typer.Option("--nfe", help="Numbers of evaluations, such as 4-6,8,10.")]
Prompts = Annotated[
    str | None,
    typer.Option(help="A file with a condition a line; every other one is kept for measuring."),
]
Budget = Annotated[
    str, typer.Option(help="Schedules that are tried at each number; 12m: minutes in all.")
]
Noises = Annotated[int, typer.Option("-n", help="Noises to search on; twice as many measure.")]
Reference = Annotated[int, typer.Option(help="Steps that lead to where samples should be.")]
Seed = Annotated[int, typer.Option(help="Of the search.")]
Output = Annotated[
    str | None, typer.Option("-o", "--output", help="The folder that gets schedules/; the model's.")
]
Ray = Annotated[bool, typer.Option("--ray", help="Score on Ray's workers, as many as --workers.")]
Workers = Annotated[int, typer.Option(help="Schedules that are scored at once.")]

Statistics = Annotated[
    bool, typer.Option(help="Also measure what DPM-Solver-v3 needs (ems.safetensors).")
]

Thin = Annotated[
    bool,
    typer.Option(
        "--thin", help="For guided sampling: leave halves out; begins at what is in schedules/."
    ),
]

Fit = Annotated[
    int, typer.Option(help="With --thin: so many moves by gradient, instead of a descent.")
]
HeadCount = Annotated[
    int, typer.Option("--heads", help="With --fit: evaluations that get a head on the network.")
]

Scales = Annotated[
    bool, typer.Option(help="With --fit: scale and shift the network's layers, too.")
]

PROMPTS = (
    "red heart", "green apple", "smiling face", "dog", "automobile", "rocket", "pizza", "tree",
    "blue car", "cat face", "house", "yellow star", "fish", "guitar", "umbrella", "banana",
    "crying face", "clock", "mountain", "airplane", "cup of coffee", "rose", "sun", "book",
    "bicycle", "ghost", "elephant", "soccer ball", "key", "strawberry", "moon", "penguin",
    "fire", "snowman", "rainbow", "camera", "butterfly", "hamburger", "thumbs up", "lemon",
    "train", "owl", "hammer", "laughing face", "cactus", "birthday cake", "ship", "purple heart",
    "angry face", "bus", "frog", "light bulb", "cherries", "castle", "bell", "lion",
    "envelope", "pineapple", "sleeping face", "bear", "crown", "sunflower", "scissors", "whale",
)  # fmt: skip
"""What a model of texts is asked, where nobody says it."""


def tune(  # noqa: PLR0913 - each is an option
    model: Model,
    nfe: Counts = "4,5,6,8,10",
    guidance: Guidance = None,
    prompts: Prompts = None,
    budget: Budget = "150",
    n: Noises = 32,
    reference: Reference = 64,
    seed: Seed = 0,
    output: Output = None,
    ray: Ray = False,
    workers: Workers = 1,
    statistics: Statistics = True,
    thin: Thin = False,
    fit: Fit = 0,
    heads: HeadCount = 3,
    scales: Scales = True,
    device: Device = None,
    json: Json = False,
) -> None:
    """Search for the best steps of a model at few evaluations; pathline sample --solver s3.

    Every fixed solver and grid is tried too, and the error is measured on other noises and
    conditions than were searched on. An interrupted run goes on where it was. With --thin the
    schedules are for guided sampling alone, and leave unconditional halves of evaluations out:
    pathline sample --solver s3_guided. With --fit too all their numbers follow the gradient, and
    small heads on the network correct the first evaluations, and its layers are scaled and shifted
    at each of them; that wants hundreds of noises (-n).
    """
    from pathline.data import cache_folder
    from pathline.learn.checkpoint import find_folder, load_model
    from pathline.solvers import ems
    from pathline.solvers.saved import FOUND, GUIDED, schedule_file
    from pathline.speed.fit import FitSettings
    from pathline.speed.goal import bench_of
    from pathline.speed.guided import tune_guided
    from pathline.speed.tune import TuneSettings, tries_within
    from pathline.speed.tune import statistics as measured
    from pathline.speed.tune import tune as search

    _check_ways(thin, ray, fit)
    fitting = FitSettings(iterations=fit, heads=heads, scales=scales, seed=seed) if fit else None
    begun = time.perf_counter()
    counts, minutes = _counts(nfe), _minutes(budget)
    settings = TuneSettings(_tries(budget), n, 2 * n, reference, seed, workers)
    measures = statistics and not thin
    if n < 2 and measures:
        raise UsageError(
            f"-n {n} is too few noises to measure DPM-Solver-v3's statistics on; give -n 2 at "
            "least, or --no-statistics."
        )
    out = find_folder(model) if output is None else Path(output)
    check_writable(schedule_file(out, 0))
    denoiser = load_model(model).to(chosen_device(device))
    train, test = _conditions(denoiser, prompts)
    guide = chosen_guide(guidance, next(iter(train.values()))[0] if train else None, denoiser)
    work = cache_folder() / "tune"
    keep = work / f"{denoiser.name}.safetensors"
    with full_float32():
        bench = bench_of(denoiser, guide, train, test, (n, 2 * n), reference, keep)
        if measures:
            details = {**denoiser.details, "ems": measured(bench, out / ems.FILE, work)}
            bench = replace(bench, model=replace(denoiser, details=details))
        if minutes is not None:
            spent = (time.perf_counter() - begun) / 60
            settings = replace(settings, budget=tries_within(bench, counts, minutes, spent, work))
        if thin:
            found = tune_guided(bench, counts, settings, out=out, work=work, fitting=fitting)
        else:
            found = search(bench, counts, settings, out=out, work=work, ray=ray)
    if json:
        typer.echo(jsonlib.dumps([t.to_dict() for t in found], ensure_ascii=False, indent=1))
        return
    show([t.row() for t in found], as_json=False)
    for each in found:
        if each.is_behind:
            typer.echo(
                f"{each.nfe} evaluations: {each.fixed} is better than what is saved, and is no "
                "schedule that could be; sample with it by name."
            )
    hint = _hint(model, out, GUIDED if thin else FOUND, counts[0])
    typer.echo(f"{schedule_file(out, 0).parent}; {time.perf_counter() - begun:.0f} s; {hint}")


def _check_ways(thin: bool, ray: bool, fit: int) -> None:
    """Refuse options that do not go together."""
    if thin and ray:
        raise UsageError("--thin scores one schedule after the other; leave --ray out.")
    if fit and not thin:
        raise UsageError("--fit is for schedules of guided sampling; give --thin too.")


def _hint(model: str, out: Path, solver: str, steps: int) -> str:
    """Return how to sample with what was saved."""
    from pathline.learn.checkpoint import find_folder

    folder = find_folder(model)
    if out.resolve() == folder.resolve():
        return f"try pathline sample {model} --solver {solver} --steps {steps}"
    return f"--solver {solver} looks in {folder}: copy what {out} has there to sample with it"


def _counts(text: str) -> tuple[int, ...]:
    """Return numbers of evaluations, which are written as seeds are."""
    try:
        return parsed_seeds(text)
    except UsageError:
        raise UsageError(f"--nfe {text!r} cannot be read; write numbers as 4-6,8,10.") from None


def _minutes(budget: str) -> float | None:
    """Return the minutes that a budget allows; None if it is a number of schedules."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?m(?:in(?:utes)?)?", budget.strip())
    return float(match[1]) if match else None


LEAST = 10
"""Schedules, until it is known how many the minutes allow."""


def _tries(budget: str) -> int:
    """Return the schedules that a budget pays for, as far as it says it itself."""
    if _minutes(budget) is not None:
        return LEAST
    if not budget.strip().isdecimal():
        raise UsageError(
            f"--budget {budget!r} cannot be read; write schedules, 150, or minutes, 12m."
        )
    return int(budget)


def _conditions(
    model: Denoiser, file: str | None
) -> tuple[Mapping[str, Sequence[str]], Mapping[str, Sequence[str]]]:
    """Return the conditions to search on, and those to measure on.

    Of texts it is every other one; classes are few, and are all in both.
    """
    told = model.details.get("condition")
    if not isinstance(told, str):
        if file is not None:
            raise UsageError("this model takes no condition; leave --prompts out.")
        return {}, {}
    classes = model.details.get("classes")
    if file is None and classes:
        return {told: classes}, {told: classes}
    lines = PROMPTS if file is None else _lines(file)
    if len(lines) < 2:
        raise UsageError(f"{file} has {len(lines)} conditions; two are needed at least.")
    return {told: lines[::2]}, {told: lines[1::2]}


def _lines(file: str) -> list[str]:
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read conditions from {file}: {error}.") from error
    return [line.strip() for line in text.splitlines() if line.strip()]

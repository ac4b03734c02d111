"""Work that takes longer: systems, training, data sets, benchmarks."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Collection
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer

from pathline.cli.listing import Json, show
from pathline.cli.options import chosen_device, given
from pathline.cli.output import check_writable
from pathline.core.errors import UsageError, unknown

Slug = Annotated[str, typer.Argument(help="A name of pathline systems.")]
AnySlug = Annotated[str | None, typer.Argument(help="One of them, with its claims.")]
Out = Annotated[str | None, typer.Option("-o", "--output", help="A folder.")]
Reports = Annotated[str, typer.Option("-o", "--output", help="The folder of the reports.")]
Only = Annotated[list[str] | None, typer.Option(help="Ids of claims, once for each.")]
Train = Annotated[bool, typer.Option("--train", help="Also the claims that train a model.")]
Configs = Annotated[
    list[str], typer.Argument(help="TOML files, or names that are shipped; one after the other.")
]
Devices = Annotated[int, typer.Option(help="How many share every batch.")]
Sharing = Annotated[
    str, typer.Option("--strategy", help="ddp: each has the network; fsdp: each has its shards.")
]
RunFolder = Annotated[str, typer.Argument(help="The output of pathline train.")]
Width = Annotated[
    float, typer.Option(help="Of the average, as a share of the training: 0 to 0.28.")
]
AtStep = Annotated[float | None, typer.Option(help="As it was at this step; the last if left out.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")]
DataName = Annotated[str | None, typer.Argument(help="Which one to make; a list if left out.")]

Problems = Annotated[
    list[str] | None,
    typer.Option("--problem", help="Of bench solvers: an oracle, a model or a folder; repeatable."),
]
Counts = Annotated[
    list[int] | None,
    typer.Option("--nfe", help="Of bench solvers, paths and guides: evaluations; repeatable."),
]
Noises = Annotated[
    int | None,
    typer.Option("-n", help="Of bench solvers: how many noises; of bench guides: how many digits."),
]
Where = Annotated[
    str | None,
    typer.Option("--device", help="Of bench solvers: cpu or cuda; the fastest if left out."),
]
BenchName = Annotated[str | None, typer.Argument(help="Which one; a list if left out.")]


def systems(slug: AnySlug = None, json: Json = False) -> None:
    """List the systems: methods of papers, each with claims; or the claims of one."""
    from pathline.systems import claims_of, listing

    show(listing() if slug is None else claims_of(slug), json)


def run(
    slug: Slug,
    json: Json = False,
    output: Reports = "out/systems",
    only: Only = None,
    train: Train = False,
) -> None:
    """Measure the claims of a system and write a report; exit code 0 only if all that ran hold."""
    from pathline.systems import run as run_system

    report = run_system(slug, out=output, only=only, train=train)
    if json:
        typer.echo(jsonlib.dumps(report.to_dict(), ensure_ascii=False, indent=1))
    else:
        rows = [
            {
                "claim": measured.claim.id,
                "text": measured.claim.text,
                "measured": "–" if measured.value is None else f"{measured.value:.4g}",
                "bound": measured.claim.bound,
                "verdict": "holds" if measured.passed else f"fails {measured.error or ''}".strip(),
            }
            for measured in report.claims
        ]
        show(rows, as_json=False)
        held = sum(measured.passed for measured in report.claims)
        typer.echo(f"{slug}: {held} of {len(rows)} claims hold; {report.seconds:.1f} s")
        for path in report.artifacts:
            typer.echo(str(path))
    if not report.passed:
        raise typer.Exit(1)


def train(
    configs: Configs,
    output: Out = None,
    resume: Resume = False,
    devices: Devices = 1,
    strategy: Sharing = "ddp",
) -> None:
    """Train a model; the folder it writes is a model for pathline sample.

    Of several configurations each gets a folder of its own in the output. Several devices share
    every batch, and come to the weights that one would; under fsdp they share the weights, too.
    """
    from pathline.learn.recipe import read_recipe
    from pathline.learn.sharding import as_strategy
    from pathline.learn.trainer import train as train_model

    way, recipes = as_strategy(strategy), [read_recipe(config) for config in configs]
    inside = output is None or len(recipes) > 1
    folders = [Path(output or "runs") / (r.name if inside else "") for r in recipes]
    if len(set(folders)) < len(folders):
        raise UsageError("two of the configurations have one name; train them one at a time.")
    for folder in folders:
        check_writable(folder / "model" / "config.json")
    for recipe, folder in zip(recipes, folders, strict=True):
        made = train_model(recipe, folder, resume=resume, devices=devices, strategy=way)
        typer.echo(f"{made}: try pathline sample {made}")


def average(run: RunFolder, width: Width, output: Out = None, step: AtStep = None) -> None:
    """Make a model with another average of its weights, from the snapshots of a training run.

    pathline average runs/fashion --width 0.12 -o fashion-12
    """
    from pathline.learn.averages import mixed, snapshots
    from pathline.learn.checkpoint import FORMAT, read_folder, save_model

    out = Path(output or f"{run}/average-{width:g}")
    check_writable(out / "config.json")
    tensors = mixed(snapshots(Path(run) / "averages"), width, step)
    config, weights = read_folder(Path(run) / "model", FORMAT, set())
    typer.echo(f"{save_model(out, {**weights, **tensors}, config)}: width {width:g}")


def data(name: DataName = None, json: Json = False) -> None:
    """List the data sets, or make one in the cache."""
    from pathline.data import DATASETS, prepare

    if name is None:
        show([{"name": d.name, "about": d.about} for d in DATASETS.values()], json)
        return
    info = prepare(name)
    row = {
        "name": info.name,
        "path": str(info.path),
        "counts": dict(info.counts),
        "checksum": info.checksum,
        "licences": dict(info.licences),
    }
    show([row] if json else [{"what": k, "is": v} for k, v in row.items()], json)


def bench(  # noqa: PLR0913 - each is an option
    name: BenchName = None,
    json: Json = False,
    output: Out = None,
    problem: Problems = None,
    nfe: Counts = None,
    n: Noises = None,
    device: Where = None,
) -> None:
    """Measure speed, error, paths or guides; exit code 0 only if every bar is kept."""
    from pathline.bench import BENCHES

    if name is None:
        show([{"name": bench} for bench in BENCHES], json)
        return
    if name not in BENCHES:
        raise unknown("benchmark", name, BENCHES)
    takes = signature(BENCHES[name]).parameters
    asked = _taken(name, takes, given(problems=problem, nfe=nfe, n=n, device=device))
    if "device" in takes:
        asked["device"] = chosen_device(device)
    if "output" in takes:
        asked["output"] = output
    if output is not None:
        check_writable(Path(output) / f"{name}.json")
    report = BENCHES[name](**asked)
    text = jsonlib.dumps(report.to_dict(), ensure_ascii=False, indent=1)
    typer.echo(text if json else report.table())
    if output is not None:
        report.save(output)
    if not report.passed:
        raise typer.Exit(1)


def _taken(name: str, takes: Collection[str], asked: dict[str, Any]) -> dict[str, Any]:
    """Return what was asked of a benchmark; refuse what it does not take."""
    for what, flag in (
        ("problems", "--problem"),
        ("nfe", "--nfe"),
        ("n", "-n"),
        ("device", "--device"),
    ):
        if what in asked and what not in takes:
            raise UsageError(f"bench {name} takes no {flag}; bench solvers does.")
    return asked

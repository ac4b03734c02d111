"""Training: one loop for every recipe, that can be killed at any step and goes on as before."""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.core.images import Layout, to_pixels, write_picture
from pathline.core.progress import progress
from pathline.data import DATASETS, prepare
from pathline.fields import Denoiser
from pathline.learn.averages import Snapshot
from pathline.learn.checkpoint import assemble, save_model
from pathline.learn.recipe import Recipe, read_recipe
from pathline.learn.regularise import SHOWN, FokkerPlanckPenalty
from pathline.learn.report import write_report
from pathline.learn.run import Run
from pathline.learn.sharding import Strategy
from pathline.learn.sources import Source
from pathline.paths import paths
from pathline.solvers import sample
from pathline.steer import CFG

__all__ = ["train"]

STATE, AVERAGES = "state.pt", "averages"
ROW = 20
"""Steps between two looks at the losses, which on a GPU wait for it."""


def train(  # noqa: PLR0913 - keyword-only: each is one idea
    config: str | Path | Recipe,
    out: str | Path,
    *,
    resume: bool = True,
    source: Source | None = None,
    until: int | None = None,
    devices: int = 1,
    strategy: Strategy = "ddp",
) -> Path:
    """Train a network, and write its model folder.

    Writes in `out`: `state.pt` to resume from, `curve.csv`, `sheet-STEP.png`, `report.html`,
    `averages/` if the recipe has some, and `model/`.

    Args:
        config: a TOML file, the name of a shipped configuration ("emoji"), or a `Recipe`.
        out: the folder of the run.
        resume: go on from the state in `out`; False refuses a folder that has one.
        source: where batches come from; None is what the configuration names.
        until: stop after this many steps in all; None trains to the end.
        devices: that share every batch, each in a process that runs this program from its
            beginning. The weights are those of one device, but for roundings.
        strategy: "ddp": each device has the whole network; "fsdp": each has its shards of weights,
            moments and averages, for networks that no device can hold. The state in `out` is whole
            either way: a run goes on with any number of devices, shared in either way.

    Returns:
        The model folder, for `load_model`.

    Raises:
        UsageError: a configuration that cannot work, an output that cannot be written.
        CheckpointError: the state in `out` is damaged, or of another configuration.
        TrainingError: a loss is not finite; names the step, and keeps the last good state.
        MissingExtra: lightning_fabric is not installed.
    """
    recipe = config if isinstance(config, Recipe) else read_recipe(config)
    out = Path(out)
    if not resume and (out / STATE).exists():
        raise UsageError(f"{out} already holds a training run; resume it, or choose another.")
    run = Run.start(recipe, source, devices, strategy)
    if (out / STATE).exists():
        run.restore(out / STATE)
    run.fabric.barrier()  # nobody writes before all have read
    if run.writes:
        run.journal.write(out / "curve.csv")  # refuses a place that cannot be written at once
    _loop(run, out, min(recipe.steps, until or recipe.steps))
    run.fabric.barrier()
    return out / "model"


def _loop(run: Run, out: Path, last: int) -> None:
    """Advance to the step `last`, recording at the recipe's intervals."""
    watch = run.recipe.watch
    recorded = exported = time.monotonic()
    with progress() as bar:
        task = bar.add_task(f"training {run.recipe.name}", total=last, completed=run.step)
        while run.step < last:
            n = min(ROW - run.step % ROW, last - run.step)
            every = run.recipe.snapshot
            n = min(n, every - run.step % every) if every else n
            _advance(run, n)
            if run.step == last or (every and run.step % every == 0):
                _snapshot(run, out / AVERAGES)
            bar.advance(task, n)
            now = time.monotonic()
            # the first process's clock decides for all: each has a part in what is written
            due = run.fabric.broadcast(
                (now - recorded > watch.every, now - exported > watch.export)
            )
            if due[0]:
                _record(run, out)
                recorded = now
            if due[1]:
                _export(run, out)
                exported = now
    _record(run, out)
    _export(run, out)
    if run.writes:
        _warn_of_skips(run)


def _snapshot(run: Run, folder: Path) -> None:
    """Write the recipe's further averages as they are now."""
    for profile, average in zip(run.profile_now, run.profiles, strict=True):
        named = run.named(average)
        if run.writes:
            Snapshot.write(folder, profile, named)


def _warn_of_skips(run: Run) -> None:
    """Say it if more than one batch in a hundred was left out."""
    skipped = run.weighing.skipped
    if skipped > run.step / 100:
        eps = getattr(run.coupling, "eps", None)
        warnings.warn(
            f"{skipped} of {run.step} steps were skipped: in their batches the weights left less "
            f"than two effective pairs. eps = {eps:g} is too small, or the batch is.",
            stacklevel=3,
        )


def _advance(run: Run, n: int) -> None:
    losses: Sequence[tuple[Tensor, ...] | None] = [run.advance() for _ in range(n)]
    run.journal.add(run.step, losses, run.recipe.batch)


def _record(run: Run, out: Path) -> None:
    """Write the state and the curve."""
    run.journal.note_held_out(run.held_out_loss())
    run.save(out / STATE)
    if run.writes:
        run.journal.write(out / "curve.csv")


def _export(run: Run, out: Path) -> None:
    """Write the model as it is now, a sheet of its samples, and the report so far."""
    averaged, watch = run.averaged_state(), run.recipe.watch
    if not run.writes:
        return
    config = _config(run)
    save_model(out / "model", averaged, config)
    if watch.prompts:
        model = assemble(run.network_of(averaged), config)
        with run.fabric.autocast():
            _draw(model, watch.prompts, watch.guidance, out / f"sheet-{run.step:06d}.png")
    write_report(out, config, run.journal)


@torch.no_grad()
def _draw(
    model: Denoiser, prompts: Sequence[str], guidance: float, path: Path, each: int = 8
) -> None:
    """Write a sheet with a row of samples for each prompt, always from the same seeds."""
    told = [prompt for prompt in prompts for _ in range(each)]
    cond: dict[str, Any] = {str(model.details["condition"]): told}
    seeds = list(range(each)) * len(prompts)
    drawn = sample(model, seeds=seeds, steps=12, guide=CFG(guidance), **cond)
    pixels = to_pixels(drawn.x)
    layout = Layout.of(len(told), pixels.shape[2], columns=each, scale=2)
    write_picture(path, layout.arrange(pixels))


def _config(run: Run) -> dict[str, Any]:
    """Return what a model's folder says of it."""
    recipe, matching = run.recipe, run.recipe.matching()
    return {
        "name": recipe.name,
        "network": dict(recipe.network),
        "path": paths.describe(matching.path),
        "view": matching.view,
        "label": recipe.objective.get("label", 1),
        **_condition(run),
        **({"start": dict(recipe.start)} if recipe.start else {}),
        "shape": list(run.source.held_out(1).x0.shape[1:]),
        "training": {
            "recipe": asdict(recipe),
            "data": _data(recipe),
            **_coupling(run),
            **_residual(run),
            **_circumstances(run),
        },
    }


def _condition(run: Run) -> dict[str, Any]:
    """Return what the network is told: a text, one of the source's classes, a value, or nothing."""
    table = run.recipe.network
    if table.get("label_width"):
        return {"condition": "y", "dropped": bool(getattr(run.source, "is_dropped", False))}
    if table.get("classes"):
        names = getattr(run.source, "classes", range(table["classes"]))
        return {"condition": "label", "classes": [str(name) for name in names]}
    return {"condition": "text" if table.get("context_width") else None}


def _data(recipe: Recipe) -> dict[str, Any] | None:
    name = str(recipe.data.get("source"))
    if name not in DATASETS:
        return None
    info = prepare(name)
    return {"name": name, "checksum": info.checksum, "licences": dict(info.licences)}


def _coupling(run: Run) -> dict[str, Any]:
    """Return what the weights of the pairs were and did."""
    if not run.coupling.is_weighted:
        return {}
    about = {"eps": getattr(run.coupling, "eps", None), "skipped": run.weighing.skipped}
    return {"coupling": about | asdict(run.diagnosis())}


def _residual(run: Run) -> dict[str, Any]:
    """Return by how much the averaged weights miss what the regulariser holds them to, by time."""
    if not isinstance(run.regulariser, FokkerPlanckPenalty):
        return {}
    batch = run.source.held_out(SHOWN)
    x0, cond = run.fabric.to_device((batch.x0, dict(batch.cond)))
    found = run.regulariser.report(
        run.recipe.matching(), run.network_of(run.averaged_state()), x0, cond
    )
    return {"residual": found.to_dict()}


def _circumstances(run: Run) -> dict[str, Any]:
    machine = {
        "device": str(run.fabric.device.type),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    return {**run.journal.summary(), **machine}

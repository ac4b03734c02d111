"""Drawing many samples, in batches that are kept as they come: an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.core.files import write_atomically
from pathline.core.progress import progress
from pathline.core.receipt import versions
from pathline.fields import Denoiser
from pathline.learn.quality.reference import to_uint8
from pathline.solvers import sample
from pathline.solvers.saved import SAVED
from pathline.solvers.solve import DEFAULT_GRID, DEFAULT_SOLVER, DEFAULT_STEPS
from pathline.steer import CFG

__all__ = ["How", "draw"]


@dataclass(frozen=True)
class How:
    """How samples are drawn.

    Args:
        solver: its name.
        grid: its name.
        steps: of the grid.
        guidance: the weight; 1 is none.
        seed: of the first sample; the next has one more.
        batch: samples that run together.
    """

    solver: str = DEFAULT_SOLVER
    grid: str = DEFAULT_GRID
    steps: int = DEFAULT_STEPS
    guidance: float = 1.0
    seed: int = 0
    batch: int = 64

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.seed < 0:
            raise UsageError(
                "drawing needs steps ≥ 1, batch ≥ 1 and seed ≥ 0; they are "
                f"{self.steps}, {self.batch} and {self.seed}."
            )


def draw(
    model: Denoiser,
    cond: Mapping[str, Sequence[str]],
    how: How,
    keep: Path | None = None,
    what: str = "samples",
) -> Tensor:
    """Return a sample for each condition, (n, channels, height, width) uint8 on the CPU.

    Args:
        model: what draws.
        cond: in the user's words, one a sample.
        how: solver, steps, guidance, seeds.
        keep: a file for what is drawn so far; a run with the same request goes on from it.
        what: the samples are called under the progress bar.

    Raises:
        UsageError: the model is not told such a condition; the file cannot be written.
        NonFiniteError: the model returned a NaN or an infinity.
    """
    n = len(next(iter(cond.values())))
    request = _fingerprint(model, cond, how)
    done = _kept(keep, request)
    parts = [] if done is None else [done]
    guide = None if how.guidance == 1 else CFG(how.guidance)
    with torch.no_grad(), progress() as bar:
        task = bar.add_task(f"drawing {what}", total=n, completed=sum(map(len, parts)))
        for start in range(sum(map(len, parts)), n, how.batch):
            told: dict[str, Any] = {k: list(v[start : start + how.batch]) for k, v in cond.items()}
            seeds = range(how.seed + start, how.seed + min(n, start + how.batch))
            drawn = sample(
                model,
                seeds=seeds,
                solver=how.solver,
                grid=None if how.solver in SAVED else how.grid,
                steps=how.steps,
                guide=guide,
                **told,
            )
            parts.append(to_uint8(drawn.x.float()).cpu())
            bar.advance(task, len(parts[-1]))
            if keep is not None:
                _keep(keep, torch.cat(parts), request)
    return torch.cat(parts)


def _fingerprint(model: Denoiser, cond: Mapping[str, Sequence[str]], how: How) -> str:
    weights = model.details.get("weights", {}).get("sha256")
    told = {name: list(values) for name, values in cond.items()}
    text = json.dumps([weights, told, asdict(how), versions()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _keep(path: Path, pixels: Tensor, request: str) -> None:
    write_atomically(path, lambda p: save_file({"pixels": pixels}, p, {"request": request}))


def _kept(path: Path | None, request: str) -> Tensor | None:
    """Return what an earlier run of the same request has drawn; None if there is none."""
    if path is None or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            about: Mapping[str, str] = file.metadata() or {}
            return file.get_tensor("pixels") if about.get("request") == request else None
    except SafetensorError:
        return None  # damaged: drawn again

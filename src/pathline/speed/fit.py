"""Fitting a schedule by gradient: its times, all its weights, its ratios, heads and scales.

A descent (`speed.descent`) asks for no gradient of the network, and a dozen numbers are what it can
find. Through a network that can be differentiated everything moves at once: with

    x_{i+1} = a_i x_i + Σ_j b_ij x̂_0(x_j, t_j; M_j)

the inner times t, the weights a and b, the ratios of the differences that are guessed, and what is
added to the network, M: heads at the first evaluations, scales and shifts of its layers at all of
them (`solvers.heads`), follow the gradient of

    mean over noises of ‖x_n − x*‖ / √d

on a few noises at a time (Adam), x* being where many steps lead. New heads begin step by step
(`speed.stepwise`).

Papers: Shaul et al. 2024 (arXiv:2403.01329), without heads; Dockhorn et al. 2022
(arXiv:2210.05475).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from pathline.core.errors import PathlineError, UsageError
from pathline.core.files import write_atomically
from pathline.core.progress import progress
from pathline.fields.denoiser import with_details
from pathline.solvers.heads import Heads, network_of
from pathline.solvers.schedule import SolverSchedule
from pathline.speed.metrics import Endpoint
from pathline.speed.rollout import Rollout
from pathline.speed.stepwise import stepwise

__all__ = ["FitSettings", "fit", "with_these_heads"]

SMALL = 1e-12
"""Added under a root, whose slope at nothing is infinite."""


@dataclass(frozen=True)
class FitSettings:
    """How a schedule is fitted.

    Args:
        iterations: moves.
        batch: noises that each looks at.
        heads: evaluations that get a head, the first ones; more than there are is all of them.
        scales: whether the layers of the network are scaled and shifted, at every evaluation.
        rate: of the weights, in units of x̂_0 and of the state.
        rate_of_heads: of the heads' numbers.
        rate_of_scales: of those of the scales and shifts.
        rate_of_times: of the logarithms of the steps' lengths.
        epochs: how often the fit of a new head's own step sees all noises, before the moves; see
            `speed.stepwise`. 0 begins with heads that add nothing, and with the schedule's weights.
        way: steps of DPM-Solver++ 3M that say where noises should be on the way there.
        seed: of the noises' order, and of new heads.
        every: moves after which an interrupted fit has something to go on from.
    """

    iterations: int = 500
    batch: int = 32
    heads: int = 3
    scales: bool = True
    rate: float = 1e-3
    rate_of_heads: float = 5e-4
    rate_of_scales: float = 1.5e-4
    rate_of_times: float = 5e-3
    epochs: int = 12
    way: int = 40
    seed: int = 0
    every: int = 20

    def __post_init__(self) -> None:
        for name in ("iterations", "batch", "way", "every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, and is {getattr(self, name)}.")
        for name in ("heads", "epochs"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} must be 0 or more, and is {getattr(self, name)}.")


def fit(
    bench: Endpoint,
    schedule: SolverSchedule,
    settings: FitSettings | None = None,
    *,
    file: str | Path | None = None,
    what: str = "fitting",
) -> tuple[SolverSchedule, Heads | None]:
    """Fit a schedule for guided sampling by gradient; what is fitted begins where it is.

    Args:
        bench: its field is guided, its network a module; the more noises the better.
        schedule: one evaluation a step, with ratios; its heads, if it has some, go on.
        settings: how.
        file: what an interrupted fit goes on from; None keeps nothing.
        what: is going on, for the progress bar.

    Returns:
        The schedule and its heads (None for none). The bench's field finds them only if it is told:
        `with_these_heads`.

    Raises:
        UsageError: a schedule without ratios; a field without halves; a network that is no module.
        PathlineError: the gradient is not finite.

    Cost: a move is a forward and a backward pass of the schedule on `batch` noises, in which the
        network's activations are kept.
    """
    made = settings or FitSettings()
    rollout = Rollout(bench, schedule, made.heads, made.seed, made.scales)
    groups = [
        {"params": [rollout.lengths], "lr": made.rate_of_times},
        {"params": [*rollout.rows, *rollout.ratios], "lr": made.rate},
        {"params": list(rollout.heads.each.parameters()), "lr": made.rate_of_heads},
        {"params": list(rollout.heads.scales), "lr": made.rate_of_scales},
    ]
    moved = torch.optim.Adam([g for g in groups if g["params"]], betas=(0.9, 0.98))
    paced = torch.optim.lr_scheduler.LambdaLR(moved, lambda i: _pace(i, made.iterations))
    parts, done = (rollout, moved, paced), _resumed(file, (rollout, moved, paced))
    order = _orders(len(bench.starts), made.batch, made.seed)
    with progress() as bar, _frozen(network_of(bench.field)):
        if made.epochs and len(rollout.heads.each) and not schedule.heads and not done:
            stepwise(rollout, bench, made.way, made.epochs, made.batch, made.seed)
        task = bar.add_task(what, total=made.iterations, completed=done)
        for i, rows in zip(range(made.iterations), order, strict=False):
            if i < done:
                continue
            _move(rollout, moved, bench, rows)
            paced.step()
            bar.update(task, completed=i + 1)
            if file is not None and (i + 1) % made.every == 0:
                _kept(file, i + 1, parts)
    return rollout.schedule()


def _move(rollout: Rollout, moved: torch.optim.Optimizer, bench: Endpoint, rows: Tensor) -> None:
    part = bench.chosen(rows)
    off = (rollout(part) - part.ends).flatten(1)
    loss = (off.square().mean(1) + SMALL).sqrt().mean()
    moved.zero_grad()
    loss.backward()
    sizes = [nn.utils.clip_grad_norm_(group["params"], 1.0) for group in moved.param_groups]
    if not all(bool(torch.isfinite(size)) for size in sizes):
        raise PathlineError("the gradient of a schedule is not finite; fit from another one.")
    moved.step()


@contextmanager
def _frozen(network: nn.Module) -> Generator[None]:
    """Ask for no gradient of the network's own numbers."""
    asked = [p for p in network.parameters() if p.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


def _pace(i: int, n: int) -> float:
    """Return the share of the rate at move i: warmed up, then down a cosine."""
    return min(1.0, (i + 1) / 20) * max(0.02, 0.5 * (1 + math.cos(math.pi * i / n)))


def _orders(n: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Yield the rows of each batch: all of them in a new order, again and again."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(n, generator=generator).split(batch):
            if len(rows) == min(batch, n):
                yield rows


def _kept(file: str | Path, done: int, parts: Sequence[Any]) -> None:
    content = {"done": done, "parts": [part.state_dict() for part in parts]}
    write_atomically(file, lambda place: torch.save(content, place))


def _resumed(file: str | Path | None, parts: Sequence[Any]) -> int:
    """Take up what an interrupted fit has left, and return how many moves it made."""
    if file is None or not Path(file).is_file():
        return 0
    try:
        content = torch.load(file, weights_only=True)
        for part, state in zip(parts, content["parts"], strict=True):
            part.load_state_dict(state)
    except (OSError, RuntimeError, ValueError, KeyError, UnpicklingError):
        return 0  # damaged, or of another fit: made again
    return int(content["done"])


def with_these_heads(bench: Endpoint, heads: Heads | None) -> Endpoint:
    """Return a bench whose model knows heads that are not beside it yet."""
    return bench if heads is None else replace(bench, field=with_details(bench.field, heads=heads))

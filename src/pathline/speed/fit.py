"""Fitting a schedule by gradient: its times, all its weights, its ratios, and heads.

A descent (`speed.descent`) asks for no gradient of the network, and a dozen numbers are what it can
find. Through a network that can be differentiated everything moves at once: with

    x_{i+1} = a_i x_i + Σ_j b_ij x̂_0(x_j, t_j; M_j)

the inner times t, the weights a and b, the ratios of the differences that are guessed, and the
heads M of the first evaluations (`solvers.heads`) follow the gradient of

    mean over noises of ‖x_n − x*‖ / √d

on a few noises at a time (Adam), x* being where many steps lead.

Papers: Shaul et al. 2024 (arXiv:2403.01329), without heads; Dockhorn et al. 2022
(arXiv:2210.05475).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
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
from pathline.fields.views import change
from pathline.solvers.heads import Heads, heads_of, network_of, new_heads, with_heads
from pathline.solvers.null_start import null_start_of
from pathline.solvers.schedule import SolverSchedule
from pathline.speed.metrics import Endpoint

__all__ = ["FitSettings", "fit", "rows_of", "with_these_heads"]

SMALL = 1e-12
"""Added under a root, whose slope at nothing is infinite."""


@dataclass(frozen=True)
class FitSettings:
    """How a schedule is fitted.

    Args:
        iterations: moves.
        batch: noises that each looks at.
        heads: evaluations that get a head, the first ones; more than there are is all of them.
        rate: of the weights, in units of x̂_0 and of the state.
        rate_of_heads: of the heads' numbers.
        rate_of_times: of the logarithms of the steps' lengths.
        seed: of the noises' order, and of new heads.
        every: moves after which an interrupted fit has something to go on from.
    """

    iterations: int = 500
    batch: int = 32
    heads: int = 3
    rate: float = 1e-3
    rate_of_heads: float = 5e-4
    rate_of_times: float = 5e-3
    seed: int = 0
    every: int = 20

    def __post_init__(self) -> None:
        for name in ("iterations", "batch", "every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, and is {getattr(self, name)}.")
        if self.heads < 0:
            raise UsageError(f"a schedule has 0 heads or more, and {self.heads} were asked for.")


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
    rollout = Rollout(bench, schedule, made.heads, made.seed)
    groups = [
        {"params": [rollout.lengths], "lr": made.rate_of_times},
        {"params": [*rollout.rows, *rollout.ratios], "lr": made.rate},
        {"params": list(rollout.heads.parameters()), "lr": made.rate_of_heads},
    ]
    moved = torch.optim.Adam([g for g in groups if g["params"]], betas=(0.9, 0.98))
    paced = torch.optim.lr_scheduler.LambdaLR(moved, lambda i: _pace(i, made.iterations))
    parts, done = (rollout, moved, paced), _resumed(file, (rollout, moved, paced))
    order = _orders(len(bench.starts), made.batch, made.seed)
    with progress() as bar, _frozen(network_of(bench.field)):
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
    size = nn.utils.clip_grad_norm_(rollout.parameters(), 1.0)
    if not bool(torch.isfinite(size)):
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


class Rollout(nn.Module):
    """A schedule whose numbers are parameters.

    Args:
        bench: what it is for.
        schedule: where its numbers begin.
        n: evaluations that get a head, if it has none yet.
        seed: of new heads.
    """

    def __init__(self, bench: Endpoint, schedule: SolverSchedule, n: int, seed: int = 0) -> None:
        super().__init__()
        if not schedule.ratios or bench.field.path is None:
            raise UsageError("schedules of thinned guidance are fitted: tune with --thin first.")
        times, rows = rows_of(schedule)
        self.begun, self.span, device = schedule, (times[0], times[-1]), bench.starts.device
        steps = -torch.tensor(times, dtype=torch.float64, device=device).diff()
        self.lengths = nn.Parameter(steps.log())
        self.rows = nn.ParameterList(_number(row, device) for row in rows)
        self.guessed = {k: i for i, k in enumerate(_guessed(schedule))}
        self.ratios = nn.ParameterList(
            _number(schedule.ratios[k], device) for k in _guessed(schedule)
        )
        self.null = null_start_of(bench.field) if schedule.null_start else None
        self.heads = _heads(bench, schedule, min(n, len(rows)), seed)
        self.of = with_heads(bench.field, self.heads)  # in a tuple: the network is no part of this

    def times(self) -> Tensor:
        """Return the times, n + 1 that fall between the same ends."""
        share = self.lengths.softmax(0).cumsum(0)
        first, last = self.span
        inner = first + (last - first) * share[:-1]
        return torch.cat([inner.new_tensor([first]), inner, inner.new_tensor([last])])

    def forward(self, bench: Endpoint) -> Tensor:
        """Return where the schedule takes the starts of a bench."""
        (field, headed), x, times = self.of, bench.starts, self.times()
        path = field.path
        assert path is not None
        seen, last = list[Tensor](), torch.zeros_like(x)
        for k, row in enumerate(self.rows):
            headed.now, t = k, times[k : k + 1]
            halves = field.halves(t, x, bench.cond)
            if halves is None:
                raise UsageError("only guidance by contrast has halves: give a weight.")
            p, q = (c[0] for c in change(path, "x0", field.view, t))  # view = p x + q x̂_0
            if k in self.guessed:
                better = halves.better(0, x)
                worse = better - self.ratios[self.guessed[k]] * q * last
            elif k == 0 and self.null is not None:
                better, worse = halves.better(0, x), p * x + q * self.null(x)
            else:
                worse, better = halves.both(0, x)
            if k not in self.guessed:
                last = (better - worse) / q
            seen.insert(0, (halves.mixed(0, x, worse, better) - p * x) / q)
            x = row[0] * x + sum(b * each for b, each in zip(row[1:], seen, strict=True))
        return x

    def schedule(self) -> tuple[SolverSchedule, Heads | None]:
        """Return the schedule that the numbers make now, and its heads.

        Raises:
            UsageError: the numbers make none.
        """
        begun = self.begun
        rows, times = [row.tolist() for row in self.rows], self.times().tolist()
        ratios = [
            self.ratios[self.guessed[k]].item() if k in self.guessed else None
            for k in range(len(rows))
        ]
        made = SolverSchedule.linear(begun.path, times, rows)
        heads = self.heads.rounded() if len(self.heads) else None
        return replace(
            made,
            ratios=tuple(ratios),
            null_start=begun.null_start,
            heads="" if heads is None else heads.digest,
        ), heads


def _number(value: Any, device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.tensor(value, dtype=torch.float64, device=device))


def _guessed(schedule: SolverSchedule) -> list[int]:
    """Return the evaluations whose unconditional half is guessed."""
    return [k for k, ratio in enumerate(schedule.ratios) if ratio is not None]


def _heads(bench: Endpoint, schedule: SolverSchedule, n: int, seed: int) -> Heads:
    """Return the heads of a schedule, to be moved, or new ones."""
    if schedule.heads:
        return deepcopy(heads_of(bench.field, schedule.heads)).requires_grad_(True)
    few = bench.first(1)
    return new_heads(bench.field, few.starts, few.cond, n, seed)


def rows_of(schedule: SolverSchedule) -> tuple[list[float], list[list[float]]]:
    """Return a schedule as times and rows, as `SolverSchedule.linear` takes them.

    Any list of explicit steps, with correctors or without, is one: every evaluated state is a sum
    of the noise and of the evaluations before it.

    Raises:
        UsageError: it has a known first x̂_0, or a closing step to data.
    """
    plan = schedule.plan().folded("x0")
    if schedule.last != "stop" or any(row.has_constant for row in plan.rows):
        raise UsageError("a schedule that knows its first x̂_0, or ends with a step to data, stays.")
    made: list[tuple[float, dict[int, float]]] = [(1.0, {})]
    for row in plan.rows:
        a, b = 0.0, {k: float(c) for k, c in row.f.items()}
        for j, c in row.x.items():
            a += float(c) * made[j][0]
            for k, before in made[j][1].items():
                b[k] = b.get(k, 0.0) + float(c) * before
        made.append((a, b))
    at = [*plan.evaluated, len(plan.rows)]
    rows = list[list[float]]()
    for i, (here, there) in enumerate(zip(at, at[1:], strict=False)):
        (a, b), (a_next, b_next) = made[here], made[there]
        c = a_next / a
        rows.append([c, *(b_next.get(k, 0.0) - c * b.get(k, 0.0) for k in at[i::-1])])
    return [float(plan.times[k]) for k in at], rows

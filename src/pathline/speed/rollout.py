"""A schedule of thinned guidance whose numbers are parameters, so that they have gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pathline.core.errors import UsageError
from pathline.fields import Condition
from pathline.fields.views import change
from pathline.solvers.headed import with_heads
from pathline.solvers.heads import Heads, heads_of, new_heads, scalable
from pathline.solvers.null_start import null_start_of
from pathline.solvers.schedule import SolverSchedule
from pathline.speed.metrics import Endpoint

__all__ = ["Rollout", "is_of_rows", "rows_of"]


class Rollout(nn.Module):
    """A schedule whose numbers are parameters.

    Args:
        bench: what it is for.
        schedule: where its numbers begin.
        n: evaluations that get a head, if it has none yet.
        seed: of new heads.
        scales: whether every evaluation scales and shifts the network's layers.
    """

    def __init__(
        self,
        bench: Endpoint,
        schedule: SolverSchedule,
        n: int,
        seed: int = 0,
        scales: bool = False,
    ) -> None:
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
        if scales and not len(self.heads.scales):
            few = bench.first(1)
            self.heads.scale(scalable(bench.field, few.starts, few.cond), len(rows))
            self.heads.to(device)
        self.of = with_heads(bench.field, self.heads)  # in a tuple: the network is no part of this

    def times(self) -> Tensor:
        """Return the times, n + 1 that fall between the same ends."""
        share = self.lengths.softmax(0).cumsum(0)
        first, last = self.span
        inner = first + (last - first) * share[:-1]
        return torch.cat([inner.new_tensor([first]), inner, inner.new_tensor([last])])

    def forward(self, bench: Endpoint) -> Tensor:
        """Return where the schedule takes the starts of a bench."""
        x, seen, last = bench.starts, list[Tensor](), torch.zeros_like(bench.starts)
        for k in range(len(self.rows)):
            clean, last = self.evaluated(k, x, last, bench.cond)
            seen.insert(0, clean(self.ratio(k)))
            x = self.stepped(k, x, seen)
        return x

    def ratio(self, k: int) -> Tensor | None:
        """Return the ratio of evaluation k; None if both of its halves are known."""
        return self.ratios[self.guessed[k]] if k in self.guessed else None

    def stepped(self, k: int, x: Tensor, seen: Sequence[Tensor]) -> Tensor:
        """Return where row k leads from x, given the guided x̂_0 so far, the newest first."""
        row = self.rows[k]
        return row[0] * x + sum(b * each for b, each in zip(row[1:], seen, strict=True))

    def evaluated(
        self, k: int, x: Tensor, last: Tensor, cond: Condition
    ) -> tuple[Callable[[Tensor | float | None], Tensor], Tensor]:
        """Ask the network for evaluation k.

        Args:
            k: which.
            x: the state there.
            last: the difference of both halves when both were known last, in units of x̂_0.
            cond: of the samples.

        Returns:
            The guided x̂_0 as a function of the ratio, and the difference for the next evaluation.
        """
        (field, headed), t = self.of, self.times()[k : k + 1]
        headed.now, path = k, field.path
        halves = field.halves(t, x, cond)
        if halves is None or path is None:
            raise UsageError("only guidance by contrast has halves: give a weight.")
        p, q = (c[0] for c in change(path, "x0", field.view, t))  # view = p x + q x̂_0
        if k in self.guessed:
            better = halves.better(0, x)

            def guessed(ratio: Tensor | float | None) -> Tensor:
                assert ratio is not None
                worse = better - ratio * q * last
                return (halves.mixed(0, x, worse, better) - p * x) / q

            return guessed, last
        if k == 0 and self.null is not None:
            worse, better = p * x + q * self.null(x), halves.better(0, x)
        else:
            worse, better = halves.both(0, x)
        clean = (halves.mixed(0, x, worse, better) - p * x) / q
        return lambda _: clean, (better - worse) / q

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


def is_of_rows(schedule: SolverSchedule) -> bool:
    """Whether all its x̂_0 are evaluated, and it ends at a time: what `rows_of` takes."""
    return schedule.guess is None and schedule.last == "stop"


def rows_of(schedule: SolverSchedule) -> tuple[list[float], list[list[float]]]:
    """Return a schedule as times and rows, as `SolverSchedule.linear` takes them.

    Any list of explicit steps, with correctors or without, is one: every evaluated state is a sum
    of the noise and of the evaluations before it.

    Raises:
        UsageError: it has a known first x̂_0, or a closing step to data.
    """
    plan = schedule.plan().folded("x0")
    if not is_of_rows(schedule):
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

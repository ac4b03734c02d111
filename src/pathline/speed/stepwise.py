"""Step by step: each row, ratio and head of a schedule, so that its step lands on the way.

Where many steps are when they pass the schedule's times is known, x*(t). So the numbers of a step
can be found when those before it are, without a gradient through any other:

    a_i, b_ij, ρ_i    by least squares of x*(t_{i+1}) in x_i and all x̂_0 so far;
    M_i               by Adam on ‖x_{i+1} − x*(t_{i+1})‖², where the network is asked again but only
                      its head has a gradient.

A greedy fit knows nothing of what the later steps make of its errors, but takes two minutes where a
fit through the whole solve (`speed.fit`) takes twenty; so it is where that begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from pathline.core.progress import track
from pathline.solvers.evaluate import Evaluator
from pathline.solvers.execute import execute
from pathline.solvers.exponential import DPMpp
from pathline.solvers.grids import LogSNR, Times
from pathline.speed.metrics import Endpoint
from pathline.speed.rollout import Rollout

Clean = Callable[[Tensor | float | None], Tensor]
"""The guided x̂_0 as a function of the ratio that the evaluation is guessed with."""

RATE = 1e-3
HELD = 8
"""One of so many noises says how much of a head carries over."""
RIDGE = 1e-10
"""Of the normal equations, in units of their diagonal."""


@torch.no_grad()
def way_of(bench: Endpoint, times: Sequence[float], steps: int, size: int) -> list[Tensor]:
    """Return where the starts of a bench are at these times, by many steps.

    Args:
        bench: what is integrated.
        times: falling, the first of them that of the starts.
        steps: of the log-SNR grid that is walked besides these times.
        size: noises at a time.
    """
    path = bench.field.path
    assert path is not None  # a denoiser has one
    grid = LogSNR(steps).times(path)
    near = [t for t in grid if times[-1] < t < times[0] and min(abs(t - s) for s in times) > 1e-6]
    plan = DPMpp(order=3).plan(path, Times(tuple(sorted({*near, *times}, reverse=True))))
    plan, found = plan.folded(bench.field.view), list[list[Tensor]]()
    for part in track(bench.parts(size), "the way there"):
        evaluate = Evaluator(part.field, plan, part.starts, part.cond)
        seen = [part.starts]
        for step in execute(plan, evaluate, [part.starts]):
            if min(abs(step.t - s) for s in times[1:]) < 1e-9:
                seen.append(step.x)
        found.append(seen)
    return [torch.cat(each) for each in zip(*found, strict=True)]


class Sought(NamedTuple):
    """A step whose numbers are sought.

    Args:
        k: which.
        x: the states that it begins at, (n, *state).
        last: the difference that guesses are made of there.
        seen: the guided x̂_0 before it, the newest first.
        wanted: where it should end.
    """

    k: int
    x: Tensor
    last: Tensor
    seen: Sequence[Tensor]
    wanted: Tensor

    def of(self, rows: Tensor) -> Sought:
        """Return it for some of the noises."""
        seen = [each[rows] for each in self.seen]
        return Sought(self.k, self.x[rows], self.last[rows], seen, self.wanted[rows])


@dataclass(frozen=True)
class Stepwise:
    """Fits the numbers of a schedule one step after the other, its times excepted.

    Args:
        rollout: the schedule; what is found is written into it.
        bench: noises.
        epochs: of each head.
        size: noises at a time.
        seed: of their order.
    """

    rollout: Rollout
    bench: Endpoint
    epochs: int
    size: int
    seed: int

    def run(self, way: Sequence[Tensor]) -> None:
        """Fit everything, given where the noises should be at each of the schedule's times."""
        rollout, starts = self.rollout, self.bench.starts
        x, last, seen = starts, torch.zeros_like(starts), list[Tensor]()
        for k, wanted in enumerate(track(way[1:], "step by step", len(way) - 1)):
            step = Sought(k, x, last, seen, wanted)
            self._weigh(step)
            if k < len(rollout.heads.each):
                self._add_head(step)
            with torch.no_grad():
                made = [self._asked(step, rows) for rows in self._rows()]
                seen = [torch.cat([clean(rollout.ratio(k)) for clean, _ in made]), *seen]
                last = torch.cat([each for _, each in made])
                x = rollout.stepped(k, x, seen)

    def _rows(self) -> Sequence[Tensor]:
        return torch.arange(len(self.bench.starts)).split(self.size)

    def _asked(self, step: Sought, rows: Tensor) -> tuple[Clean, Tensor]:
        cond = self.bench.chosen(rows).cond
        return self.rollout.evaluated(step.k, step.x[rows], step.last[rows], cond)

    @torch.no_grad()
    def _weigh(self, step: Sought) -> None:
        """Find the weights of a row, and its ratio, by least squares."""
        rollout, gram, is_guessed = self.rollout, torch.zeros(()), step.k in self.rollout.guessed
        for rows in self._rows():
            at, (clean, _) = step.of(rows), self._asked(step, rows)
            new = [clean(0.0)]
            if is_guessed:
                new.append(clean(1.0) - new[0])
            columns = [at.x, *new, *at.seen, at.wanted]
            stacked = torch.stack([each.double().flatten() for each in columns])
            gram = gram.to(stacked) + stacked @ stacked.T
        square, goal = gram[:-1, :-1], gram[:-1, -1]
        weights = torch.linalg.solve(square + RIDGE * square.diag().diag(), goal)
        if is_guessed:
            ratio = rollout.ratio(step.k)
            assert ratio is not None
            ratio.copy_(weights[2] / weights[1])
            weights = torch.cat([weights[:2], weights[3:]])
        rollout.rows[step.k].copy_(weights)

    def _add_head(self, step: Sought) -> None:
        """Fit the head of a step, and add as much of it as helps noises that it has not seen."""
        n, head = len(step.x), cast("nn.Sequential", self.rollout.heads.each[step.k])
        held = torch.arange(n) % HELD == 0
        kept, moved = (~held).nonzero()[:, 0], torch.optim.Adam(head.parameters(), RATE)
        drawn = torch.Generator().manual_seed(self.seed)
        moves = max(1, self.epochs * -(-len(kept) // self.size))
        paced = torch.optim.lr_scheduler.OneCycleLR(moved, RATE, total_steps=moves + 1)
        for _ in range(self.epochs):
            for rows in kept[torch.randperm(len(kept), generator=drawn)].split(self.size):
                off = self._off(step, rows)
                scale = off.detach().square().mean()
                moved.zero_grad()
                (off.square().mean() / scale).backward()
                moved.step()
                paced.step()
        self.rollout.zero_grad()
        with torch.no_grad():
            share = self._share(step, held.nonzero()[:, 0], head)
            for number in head[-1].parameters():
                number.mul_(share)

    def _off(self, step: Sought, rows: Tensor) -> Tensor:
        """Return how far the step ends from where it should."""
        at, (clean, _) = step.of(rows), self._asked(step, rows)
        seen = [clean(self.rollout.ratio(step.k)), *at.seen]
        return self.rollout.stepped(step.k, at.x, seen) - at.wanted

    def _share(self, step: Sought, rows: Tensor, head: nn.Sequential) -> float:
        """Return which share of what a head adds is best on noises that it has not seen."""
        off = self._off(step, rows)
        kept = deepcopy(head.state_dict())
        for number in head[-1].parameters():
            number.zero_()
        bare = self._off(step, rows)
        head.load_state_dict(kept)
        added = off - bare
        size = float(added.square().sum())
        return min(1.0, max(0.0, -float((added * bare).sum()) / size)) if size else 0.0


def stepwise(
    rollout: Rollout, bench: Endpoint, steps: int, epochs: int, size: int, seed: int
) -> None:
    """Fit the numbers of a schedule one step after the other, its times excepted.

    Args:
        rollout: the schedule; what is found is written into it.
        bench: noises.
        steps: that say where they should be on the way.
        epochs: of each head.
        size: noises at a time.
        seed: of their order.

    Cost: `steps` evaluations of each noise, two runs of the schedule, and for each head its
        evaluation `epochs` times.
    """
    way = way_of(bench, rollout.times().tolist(), steps, size)
    Stepwise(rollout, bench, epochs, size, seed).run(way)

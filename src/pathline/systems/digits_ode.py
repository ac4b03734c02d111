"""Digits by a neural ODE: what training with a cost of the solve makes of its price.

64 pixels flow for a unit of time under a network of two tanh layers, which both read the time, and
a linear layer says which digit it was. The whole batch shares its steps, as in the papers.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from pathline.core.progress import track
from pathline.data import digits
from pathline.learn.solve_costs import Decay, Heuristics, Plain, SolveCost
from pathline.solvers import AdaptiveRK
from pathline.solvers.adaptive import Control
from pathline.systems.kept import kept

SPAN = (0.0, 1.0)
SOLVER = AdaptiveRK(method="tsit5", rtol=1e-6, atol=1e-6, norms="batch", control=Control())
"""Integral control, as in the papers: every step errs by about what it may, which the cost sees."""
BATCH, RATE = 128, 5e-3
SEEDS = 0, 1


@dataclass(frozen=True)
class Lesson:
    """How a classifier is trained.

    Args:
        cost: of the solve.
        weight: of the cost in the loss, by step.
        adjoint: of the solve.
        steps: of training.
    """

    cost: SolveCost = Plain()
    weight: Decay = Decay(0.0)
    adjoint: str = "direct"
    steps: int = 400


class Dynamics(nn.Module):
    """dx/dt, by two layers that both read the time."""

    def __init__(self, dim: int = 64, width: int = 64) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(dim + 1, width), nn.Linear(width + 1, dim)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = t.expand(len(x), 1)
        h = self.first(torch.cat((x, t), 1)).tanh()
        return self.second(torch.cat((h, t), 1)).tanh()


@cache
def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return pixels in [0, 1] and labels, those to learn from and those held out."""
    kept = digits.load()
    pair = ((kept.train_images, kept.train_labels), (kept.test_images, kept.test_labels))
    return tuple(
        made
        for images, labels in pair
        for made in (
            torch.from_numpy(images).double().flatten(1) / (digits.LEVELS - 1),
            torch.from_numpy(labels).long(),
        )
    )  # type: ignore[return-value]


def outcome(lesson: Lesson, seed: int) -> Mapping[str, float]:
    """Return what is measured on a training: kept in the cache, or trained now.

    "accuracy" and "nfe" are of the digits held out, in one batch; "stiffness" the largest S of its
    steps; "training_nfe" a mean over the steps, "seconds" of processor time.
    """
    told = f"{lesson} {seed} {SOLVER}"
    name = hashlib.sha256(told.encode()).hexdigest()[:16]
    return kept(f"digits-ode/{name}", lambda: _trained(lesson, seed))


def _trained(lesson: Lesson, seed: int) -> dict[str, float]:
    pixels, labels, others, truth = data()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        flow, head = Dynamics().double(), nn.Linear(64, 10).double()
        optimizer = torch.optim.Adam([*flow.parameters(), *head.parameters()], RATE)
        spent, begun = list[int](), time.process_time()
        for k in track(range(lesson.steps), f"digits, {type(lesson.cost).__name__}, {seed}"):
            rows = torch.randint(len(pixels), (BATCH,))
            made = lesson.cost.solve(flow, pixels[rows], solver=SOLVER, grid=SPAN, seed=k,
                                     adjoint=lesson.adjoint)  # fmt: skip
            loss = nn.functional.cross_entropy(head(made.solution.x), labels[rows])
            loss = loss + lesson.weight(k) * made.cost
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            spent.append(made.nfe)
        seconds = time.process_time() - begun
    with torch.no_grad():
        made = Heuristics("stiffness").solve(flow, others, solver=SOLVER, grid=SPAN)
        right = head(made.solution.x).argmax(1) == truth
    return {
        "accuracy": float(right.double().mean()),
        "nfe": float(made.solution.stats.nfe),
        "stiffness": float(made.cost),
        "training_nfe": sum(spent) / len(spent),
        "seconds": seconds,
    }


@dataclass(frozen=True)
class Trained:
    """Trainings of one lesson with several seeds, beside those of another with the same."""

    lesson: Lesson
    seeds: tuple[int, ...] = SEEDS

    def mean(self, name: str) -> float:
        """Return the mean of a number over the seeds."""
        return sum(outcome(self.lesson, seed)[name] for seed in self.seeds) / len(self.seeds)

    def ratio(self, name: str, other: Trained) -> float:
        """Return a number as a multiple of the other's."""
        return self.mean(name) / other.mean(name)

    def lost(self, other: Trained) -> float:
        """Return the most points of accuracy that are lost to the other, of any seed."""
        pairs = ((outcome(t.lesson, s)["accuracy"] for t in (other, self)) for s in self.seeds)
        return max(100 * (a - b) for a, b in pairs)


VANILLA = Trained(Lesson(adjoint="direct"))

"""Does a sampler remember its noise? Then a controlled law is biased, and by how much.

    V_T(x_T) = log E[exp γ r(x_0) | x_T],   of the pretrained chain

is the same for every start if the end does not depend on it. Here it is estimated by several
trajectories from each of some starts. A mean of few draws spreads by itself; how much, is measured
by dealing all ends out to the starts at random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pathline.core import noise
from pathline.fields import Field
from pathline.learn.control import NOTHING, Question, SoftControl
from pathline.learn.run import step_generator
from pathline.solvers import solve
from pathline.solvers.soft_value import spread, warn_of_memory
from pathline.solvers.solve import start

__all__ = ["Memory", "measure_memory"]


DEALS = 100


@dataclass(frozen=True)
class Memory:
    """How far the value of the start spreads.

    Args:
        spread: 5 to 95 % of the estimated values, in nats.
        by_chance: the same where ends are dealt out at random: what the draws alone do (median).
        most_by_chance: the largest of a hundred such deals.
    """

    spread: float
    by_chance: float
    most_by_chance: float

    @property
    def excess(self) -> float:
        """What the start is responsible for, √(spread² − by_chance²); 0 if chance explains it."""
        if self.spread <= self.most_by_chance:
            return 0.0
        return math.sqrt(max(self.spread**2 - self.by_chance**2, 0.0))


@torch.no_grad()
def measure_memory(
    objective: SoftControl,
    model: Field,
    question: Question = NOTHING,
    *,
    starts: int = 64,
    draws: int = 64,
    seed: int = 0,
) -> Memory:
    """Return how far the value of the start spreads; warns where chance does not explain it.

    Args:
        objective: its reward, γ, solver and grid.
        model: the pretrained one.
        question: what one sample is asked for.
        starts: how many.
        draws: trajectories from each.
        seed: of all noise.

    Cost: starts · draws trajectories of the pretrained model. With a reward that is worth a nat or
    so, 64 · 64 see a spread of 0.3, and 512 · 200 one of 0.1.
    """
    plan = objective.plan(model)
    seeds = range(seed, seed + starts)
    device = model.device or "cpu"
    assert model.path is not None
    x = start(model.path, plan.start[-1], seeds, model.shape or (), device=device)
    rewards: list[Tensor] = []
    for k in range(draws):
        made = solve(model, x, solver=plan, seeds=noise.derived_seeds(seeds, k), **question.cond).x
        rewards.append(objective.reward(made, **{**question.cond, **question.told}).double())
    ends = objective.gamma(x[0].numel()) * torch.stack(rewards, 1)
    generator, each = step_generator(seed, -1), ends.flatten()
    deals = (each[torch.randperm(len(each), generator=generator)] for _ in range(DEALS))
    dealt = sorted(_spread(deal.view_as(ends)) for deal in deals)
    found = Memory(_spread(ends), dealt[DEALS // 2], dealt[-1])
    warn_of_memory(found.excess)
    return found


def _spread(ends: Tensor) -> float:
    return spread(ends.logsumexp(1) - math.log(ends.shape[1]))

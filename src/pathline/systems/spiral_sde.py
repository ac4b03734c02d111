"""A spiral with noise, learned from means and variances: what a cost of the solve makes of it.

dx = A x³ dt + 0.2 x dW (Itô),   A = ((−0.1, 2), (−2, −0.1)),   x(0) = (2, 0)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from pathline.core import noise
from pathline.core.progress import track
from pathline.fields import SDE
from pathline.learn.solve_costs import Decay, Plain, SolveCost
from pathline.solvers import grids, solve
from pathline.solvers.adaptive_sde import AdaptiveSDE
from pathline.systems.kept import kept

TIMES = tuple(k / 10 for k in range(11))
"""Where means and variances are compared, and all samples stop over."""
SPREAD, PATHS, BATCH = 0.2, 20_000, 100
SOLVER = AdaptiveSDE(rtol=0.02, atol=0.02)
SEEDS = 0, 1, 2
VERSION = 3
"""Of the trainings that are kept."""


def spiral(x: Tensor, t: Tensor) -> Tensor:
    """Return the drift of the true equation."""
    del t
    a, b = (x**3).unbind(1)
    return torch.stack((-0.1 * a + 2 * b, -2 * a - 0.1 * b), 1)


def start(n: int) -> Tensor:
    """Return where all samples begin, (n, 2)."""
    return torch.tensor([[2.0, 0.0]], dtype=torch.float64).expand(n, 2).contiguous()


@cache
def truth() -> tuple[Tensor, Tensor]:
    """Return means and variances of the true equation at `TIMES`, each (11, 2).

    Milstein's method with as many steps would be off by 0.4 in the loss: Euler's step of a drift
    that turns leads outwards.
    """
    true = SDE(spiral, lambda x, t: SPREAD * x, noise="diagonal", sde_type="ito").stratonovich()
    grid = grids.uniform(400, 0.0, 1.0)
    with torch.no_grad():
        sol = solve(true, start(PATHS), solver="slow_rk", grid=grid, seed=0, save=TIMES)
    assert sol.trajectory is not None
    return sol.trajectory.mean(1), sol.trajectory.var(1)


class Net(nn.Module):
    """The drift, a network of x³, and the diffusion, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.drift = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))
        self.diffusion = nn.Linear(2, 2)

    def equation(self) -> SDE:
        """Return the equation, as Stratonovich's."""
        return SDE(
            lambda x, t: self.drift(x**3),
            lambda x, t: self.diffusion(x),
            noise="diagonal",
            sde_type="stratonovich",
        )


@dataclass(frozen=True)
class Lesson:
    """How the equation is learned.

    Args:
        cost: of the solve.
        weight: of the cost in the loss.
        steps: of training.
        rate: of learning, at first; it falls to zero as a cosine.
    """

    cost: SolveCost = Plain()
    weight: Decay = Decay(0.0)
    steps: int = 250
    rate: float = 0.02


def loss_of(states: Tensor) -> Tensor:
    """Return the squared errors of means and variances, summed, (); states are (11, batch, 2)."""
    mean, variance = truth()
    return (states.mean(1) - mean).square().sum() + (states.var(1) - variance).square().sum()


def outcome(lesson: Lesson, seed: int) -> Mapping[str, float]:
    """Return the loss and the drift's evaluations on noise not trained with; kept in the cache."""
    told = f"{lesson} {seed} {SOLVER} {VERSION}"
    name = hashlib.sha256(told.encode()).hexdigest()[:16]
    return kept(f"spiral-sde/{name}", lambda: _trained(lesson, seed))


def _trained(lesson: Lesson, seed: int) -> dict[str, float]:
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        net = Net().double()
        optimizer = torch.optim.Adam(net.parameters(), lesson.rate)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, lesson.steps)
        for k in track(range(lesson.steps), f"spiral, {type(lesson.cost).__name__}, {seed}"):
            states = _States()
            made = lesson.cost.solve(net.equation(), start(BATCH), solver=SOLVER, grid=TIMES,
                                     seed=k * BATCH, observe=states, adjoint="direct")  # fmt: skip
            loss = loss_of(states.stack()) + lesson.weight(k) * made.cost
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 10.0)
            optimizer.step()
            falling.step()
    with torch.no_grad():
        states = _States()
        seeds = noise.derived_seeds(range(1000), 2**20)
        sol = solve(net.equation(), start(1000), solver=SOLVER, grid=TIMES, seeds=seeds,
                    observe=states)  # fmt: skip
    return {"loss": float(loss_of(states.stack())), "nfe": sum(sol.nfes) / len(sol.nfes)}


class _States:
    """The states at the points of the grid, but of those that a cost has put in."""

    def __init__(self) -> None:
        self._seen: list[Tensor] = []

    def __call__(self, step: object) -> None:
        if any(abs(float(step.t) - t) < 1e-12 for t in TIMES):  # type: ignore[attr-defined]
            self._seen.append(step.x)  # type: ignore[attr-defined]

    def stack(self) -> Tensor:
        """Return them, (11, batch, 2)."""
        return torch.stack([start(len(self._seen[0])), *self._seen])


@dataclass(frozen=True)
class Trained:
    """Trainings of one lesson with several seeds."""

    lesson: Lesson
    seeds: tuple[int, ...] = SEEDS

    def mean(self, name: str) -> float:
        """Return the mean of a number over the seeds."""
        return sum(outcome(self.lesson, seed)[name] for seed in self.seeds) / len(self.seeds)

    def ratio(self, name: str, other: Trained) -> float:
        """Return a number as a multiple of the other's."""
        return self.mean(name) / other.mean(name)


VANILLA = Trained(Lesson())

"""CTRL on a line: a mixture of three, a classifier, and chains whose every law can be summed up."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import cache, cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathline.core import noise
from pathline.fields import Field, Mixture
from pathline.learn import SoftControl, noise_unit
from pathline.paths import VPLinear
from pathline.solvers import DDIM, LatticeChain, Plan, SoftValues, grids, sample, solve
from pathline.steer import Classifier, Shift

STEPS = (20, 50, 200)
STRENGTHS = (1.0, 5.0, 10.0)
SLOPE, MIDDLE = 6.0, 0.3
BINS = 60


def line(weights: tuple[float, ...] = (0.35, 0.4, 0.25)) -> Mixture:
    """Return three Gaussians on a line, at −1, 0 and 1.2, in float64."""
    means = torch.tensor([[-1.0], [0.0], [1.2]], dtype=torch.float64)
    chances = torch.tensor(weights, dtype=torch.float64)
    return Mixture(VPLinear(), means, torch.full_like(means, 0.25), chances)


def log_chance(x: Tensor, middle: float = MIDDLE) -> Tensor:
    """Return log p(y = 1 | x) = log sigmoid(6 (x − 0.3))."""
    return F.logsigmoid(SLOPE * (x - middle))


def off(law: Tensor, target: Tensor) -> float:
    """Return the total variation of two laws on the lattice."""
    return float((law - target).abs().sum() / 2)


class Network(nn.Module):
    """Two layers of 64 with SiLU, and a last one that starts at zero.

    Args:
        told: numbers that it is told besides x and t.
    """

    def __init__(self, told: int = 0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 + told, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU()
        )
        self.last = nn.Linear(64, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, t: Tensor, **told: Tensor) -> Tensor:
        """Return a number a sample, (batch, 1)."""
        more = [value.to(t)[:, None] for value in told.values()]
        return self.last(self.layers(torch.cat((x.to(t), t[:, None], *more), 1).float())).to(x)


@dataclass(frozen=True)
class Oracle:
    """The chains of the claims, on a lattice.

    Args:
        points: of the lattice.
        steps: numbers of steps.
        strengths: γ.
    """

    points: int = 1201
    steps: tuple[int, ...] = STEPS
    strengths: tuple[float, ...] = STRENGTHS
    law: Mixture = field(default_factory=line)

    @cached_property
    def axis(self) -> Tensor:
        """The lattice, in [−4.5, 4.5]."""
        return torch.linspace(-4.5, 4.5, self.points, dtype=torch.float64)

    def plan(self, n: int, eta: float = 1.0, begin: float = 1.0) -> Plan:
        """Return the plan of n DDIM steps, even in t."""
        grid = grids.uniform(n, begin, self.law.path.t_min)
        return DDIM(eta=eta).plan(self.law.path, grid)

    def chain(self, n: int, field: Field | None = None, **how: float) -> LatticeChain:
        """Return the chain of a field; the law itself, where none is given."""
        return LatticeChain.of(self.plan(n, **how), field or self.law, (self.axis,))

    @cached_property
    def start(self) -> Tensor:
        """The law that chains start from, N(0, 1) but for what is left of the data."""
        chain = LatticeChain((self.axis,), self.axis.new_zeros(0, self.points, 1), ())
        return chain.noise(self.law.path, 1.0)

    @cache  # noqa: B019 - lives as long as the run
    def soft(self, n: int, eta: float = 1.0, begin: float = 1.0) -> SoftValues:
        """Return the soft values of all strengths."""
        gammas = torch.tensor(self.strengths, dtype=torch.float64)
        chain = self.chain(n, eta=eta, begin=begin)
        return SoftValues.of(chain, log_chance(self.axis)[:, None] * gammas)

    @cache  # noqa: B019 - lives as long as the run
    def missed(self, n: int, eta: float = 1.0, begin: float = 1.0) -> tuple[float, ...]:
        """Return how far the best chain ends from p_pre p̂^γ, in total variation, for each γ."""
        soft = self.soft(n, eta, begin)
        pairs = zip(soft.end(self.start).unbind(1), self.target(n, eta, begin)[0].unbind(1),
                    strict=True)  # fmt: skip
        return tuple(off(*pair) for pair in pairs)

    @cache  # noqa: B019 - lives as long as the run
    def target(self, n: int, eta: float = 1.0, begin: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return the laws that are aimed at, and log Z."""
        return self.soft(n, eta, begin).target(self.start)

    def gaps(self) -> tuple[float, float]:
        """Return how far objective and log Z are from E[V_T] at most, over all steps and γ."""
        worst = [0.0, 0.0]
        for n in self.steps:
            soft = self.soft(n)
            value = self.start @ soft.start_value
            both = soft.objective(self.start), self.target(n)[1]
            worst = [
                max(w, float((b - value).abs().max())) for w, b in zip(worst, both, strict=True)
            ]
        return worst[0], worst[1]

    def memory(self, n: int, eta: float) -> tuple[float, bool]:
        """Return the spread of V_T at γ = 1, and whether there was a warning."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = float(self.soft(n, eta).memory(self.start)[0])
        return found, any("remember" in str(each.message) for each in said)

    def by_means(self, n: int) -> float:
        """Return how far the chain of shifted means ends from the target."""
        end = self.soft(n).gaussian().end(self.start)
        return off(end, self.target(n)[0][:, 0])

    def binned(self, law: Tensor, target: Tensor) -> float:
        """Return the total variation on 60 bins."""
        low, high = -2.0, 2.5
        where = ((self.axis - low) / (high - low) * BINS).long().clamp(0, BINS - 1)
        gaps = torch.zeros(BINS, dtype=torch.float64).index_add_(0, where, law - target)
        return float(gaps.abs().sum() / 2)

    def naive(self, n: int) -> float:
        """Return what guidance by the clean classifier at x_t misses, on 60 bins."""

        def logits(x: Tensor, t: Tensor) -> Tensor:
            return torch.cat((-SLOPE * (x - MIDDLE), 0 * x), 1)

        guided = self.chain(n, Classifier(logits, 1)(self.law))
        return self.binned(guided.end(self.start), self.target(n)[0][:, 0])


@dataclass(frozen=True)
class Accounting:
    """Is the divergence of a rollout that of its trajectories, and nothing without a control?"""

    n: int = 20
    trajectories: int = 4096
    law: Mixture = field(default_factory=line)

    def off(self) -> float:
        """Return by how many standard errors Σ KL misses the mean log-ratio of trajectories."""
        objective = self.objective
        torch.manual_seed(0)
        network = Network().requires_grad_(False)
        nn.init.normal_(network.last.weight, std=0.3)
        control, seeds = Shift(network, unit=noise_unit(objective.plan(self.law))), range(
            self.trajectories
        )  # fmt: skip
        ratio = self._log_ratio(control, seeds)
        found = objective.rollout(self.law, control, seeds).divergence.mean()
        return float((found - ratio.mean()).abs() / (ratio.std() / len(ratio) ** 0.5))

    def idle(self) -> tuple[float, float]:
        """Return the divergence of a control that starts at zero, and how many bits it changes."""
        control = Shift(Network().requires_grad_(False))
        found = float(self.objective.rollout(self.law, control, range(64)).divergence.abs().max())
        solver, grid = DDIM(eta=1.0), self.objective.grid
        pairs = [
            sample(self.law, 64, solver=solver, grid=grid, guide=guide).x
            for guide in (None, control)
        ]
        return found, float((pairs[0] != pairs[1]).sum())

    @cached_property
    def objective(self) -> SoftControl:
        """What is controlled."""
        return SoftControl(
            lambda x: log_chance(x[:, 0]), solver=DDIM(eta=1.0), grid=grids.uniform(self.n)
        )

    def _log_ratio(self, control: Shift, seeds: range) -> Tensor:
        """Return log dP^θ/dP^pre of controlled trajectories, from densities of their steps."""
        plan = self.objective.plan(self.law)
        x = noise.normal(seeds, (1,), dtype=torch.float64) * self.law.path.sigma(1.0)
        made = solve(self.law, x, solver=plan, seeds=seeds, guide=control, trajectory=True)
        assert made.trajectory is not None
        states, total = made.trajectory, torch.zeros(len(x), dtype=torch.float64)
        both = control(self.law), self.law
        for i, row in enumerate(plan.rows):
            (std,), t = row.z.values(), plan.instants[i]
            here, after = states[i], states[i + 1]
            means = [row.x[i] * here + row.f[i] * f.evaluate(here, t, {}) for f in both]
            ours, theirs = ((after - mean).square() / (2 * std**2) for mean in means)
            total = total + (theirs - ours)[:, 0]
        return total

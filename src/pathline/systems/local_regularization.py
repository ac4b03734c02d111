"""LRNODE: a neural ODE learns to be cheap from one more step at a random point of its solution.

What is drawn is held to the averages that it estimates; its gradient to what it must not see; and a
classifier of digits, trained by the continuous adjoint, to its evaluations.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

import torch
from torch import Tensor

from pathline.learn.solve_costs import Decay, Heuristics, Local, SolveCost
from pathline.learn.solve_costs.local import Mode
from pathline.solvers import AdaptiveRK, grids, solve
from pathline.solvers.adaptive import Control
from pathline.solvers.adjoints.meter import peak_bytes
from pathline.systems import spiral_sde
from pathline.systems.digits_ode import VANILLA, Dynamics, Lesson, Trained
from pathline.systems.solver_heuristic_regularization import ERROR
from pathline.systems.system import Claim, System, register

TSIT5 = AdaptiveRK(method="tsit5", rtol=1e-6, atol=1e-6)
INTEGRAL = AdaptiveRK(method="tsit5", rtol=1e-6, atol=1e-6, control=Control())
BIASED = Trained(Lesson(Local("biased"), Decay(10.0, 1.0, 400), "continuous"))
UNBIASED = Trained(Lesson(Local("unbiased"), Decay(30.0, 3.0, 400), "continuous"))
NOISY = spiral_sde.Trained(spiral_sde.Lesson(Local("unbiased"), Decay(400.0, 2.0, 250)))
"""About the weights of all steps, times their number; chosen with two other seeds."""
WALKS, PLANS = ("direct", "continuous"), ("direct", "checkpoint", "reversible")
MU, HORIZON = 5.0, 20.0


def van_der_pol(x: Tensor, t: Tensor) -> Tensor:
    """Return dx/dt of van der Pol's oscillator, μ = 5."""
    del t
    a, b = x.unbind(1)
    return torch.stack((b, MU * (1 - a.square()) * b - a), 1)


@dataclass(frozen=True)
class Experiment:
    """What the claims read.

    Args:
        draws: of the point, each in a sample of its own.
    """

    draws: int = 4000

    @cached_property
    def problem(self) -> tuple[Dynamics, Tensor]:
        """A small field of random weights, and states."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Dynamics(3, 8).double(), torch.randn(4, 3, dtype=torch.float64)

    def drawn(self, mode: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return costs, times and |x₂| of many draws on van der Pol's oscillator."""
        each = Local(mode, per_sample=True)
        x = torch.tensor([[2.0, 0.0]], dtype=torch.float64).expand(self.draws, 2)
        with torch.no_grad():
            point = each.point(van_der_pol, x, solver=INTEGRAL, grid=(0.0, HORIZON))
            costs = each.costs(van_der_pol, point, INTEGRAL)
        return costs, torch.from_numpy(point.t), point.x[:, 1].abs()

    @cached_property
    def unbiased(self) -> tuple[Tensor, Tensor, Tensor]:
        """Draws even in time."""
        return self.drawn("unbiased")

    @cached_property
    def biased(self) -> tuple[Tensor, Tensor, Tensor]:
        """Draws among the solver's own points."""
        return self.drawn("biased")

    def time_average(self) -> float:
        """Return how many standard errors the unbiased mean is off 1/T ∫ e dt.

        The integral is a midpoint rule over as many times, that are no draws.
        """
        x = torch.tensor([[2.0, 0.0]], dtype=torch.float64).expand(self.draws, 2)
        part = (torch.arange(self.draws, dtype=torch.float64) + 0.5) / self.draws
        with torch.no_grad():
            point = Local("unbiased").point(van_der_pol, x, solver=INTEGRAL, grid=(0.0, HORIZON),
                                            part=part.numpy())  # fmt: skip
            exact = Local().costs(van_der_pol, point, INTEGRAL).mean()
        return _off(self.unbiased[0], exact)

    def step_average(self) -> float:
        """Return how many standard errors the biased mean is off that over all steps."""
        x = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
        with torch.no_grad():
            made = Heuristics().solve(van_der_pol, x, solver=INTEGRAL, grid=(0.0, HORIZON))
        return _off(self.biased[0], made.cost)

    def fast_share(self) -> float:
        """Return how much more often biased draws are in the fast phase, |x₂| > 2."""
        shares = [float((fast > 2).double().mean()) for _, _, fast in (self.biased, self.unbiased)]
        return shares[0] / shares[1]

    def _gradients(self, how: dict[str, Any], task: float, cost: float) -> Tensor:
        field, x = self.problem
        made = Local("unbiased").solve(field, x, seed=3, **how)
        loss = task * made.solution.x.square().sum() + cost * made.cost
        found = torch.autograd.grad(loss, list(field.parameters()))
        return torch.cat([g.flatten() for g in found])

    @property
    def _ways(self) -> list[list[dict[str, Any]]]:
        """The adjoints of an adaptive solver, and of a reversible one."""
        plan = {"solver": "reversible_heun", "grid": [i / 10 for i in range(11)]}
        walk = {"solver": TSIT5, "grid": (0.0, 1.0)}
        return [
            [{**walk, "adjoint": adjoint} for adjoint in WALKS],
            [{**plan, "adjoint": adjoint} for adjoint in PLANS],
        ]

    def adjoint_spread(self) -> float:
        """Return the most that the cost's gradients of two adjoints differ, relative."""
        spreads: list[float] = []
        for ways in self._ways:
            first, *others = (self._gradients(how, 0.0, 1.0) for how in ways)
            spreads += [float((g - first).norm() / first.norm()) for g in others]
        return max(spreads)

    def task_spread(self) -> float:
        """Return the largest difference of the task's gradient with the cost, λ = 0, and without.

        Where a grid stops over at the point the plain solve stops over there, too.
        """
        field, x = self.problem
        most = 0.0
        for how in (ways for each in self._ways for ways in each):
            made = Local("biased").solve(field, x, seed=3, **how).solution.x
            plain = solve(field, x, **how).x
            pair = [torch.autograd.grad(v.square().sum(), list(field.parameters()))
                    for v in (made, plain)]  # fmt: skip
            most = max(most, *(float((a - b).abs().max()) for a, b in zip(*pair, strict=True)))
        return most

    def leak(self) -> float:
        """Return the gradient of the cost in the start, and in weights used before the point."""
        field, x = self.problem
        before, x = torch.ones((), dtype=torch.float64), x.clone()
        before.requires_grad_()
        x.requires_grad_()

        def switched(x: Tensor, t: Tensor) -> Tensor:
            return torch.where(t < 0.2, before, 1.0) * field(x, t)

        for seed in range(10):
            made = Local("unbiased").solve(switched, x, solver=TSIT5, grid=(0.0, 1.0), seed=seed)
            assert made.t is not None
            if float(made.t[0]) > 0.2:
                found = torch.autograd.grad(made.cost, (before, x), allow_unused=True)
                return max(0.0 if g is None else float(g.abs().max()) for g in found)
        raise AssertionError("ten draws were all in the first fifth.")

    def extra(self) -> float:
        """Return the evaluations of an extra step."""
        field, x = self.problem
        return float(Local("biased").solve(field, x, solver=TSIT5, grid=(0.0, 1.0)).extra)

    def _memory(self, cost: SolveCost, how: Callable[[int], dict[str, Any]]) -> float:
        """Return by how much four times the steps raise the peak memory of a gradient."""
        rate = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        x = torch.ones(64, 2, dtype=torch.float64)

        def turning(x: Tensor, t: Tensor) -> Tensor:
            del t
            return rate * torch.stack((x[:, 1], -x[:, 0]), 1)

        def run(n: int) -> None:
            made = cost.solve(turning, x, **how(n))
            (made.solution.x.sum() + made.cost).backward()

        sizes = [peak_bytes(lambda n=n: run(n)) for n in (1, 4)]
        return sizes[1] / sizes[0]

    def local_memory(self) -> float:
        """Return how the peak memory grows with four times the steps, reversible."""

        def how(n: int) -> dict[str, Any]:
            grid = grids.uniform(50 * n, 0.0, 1.0 * n)
            return {"solver": "reversible_heun", "grid": grid, "adjoint": "reversible"}

        return self._memory(Local("biased"), how)

    def global_memory(self) -> float:
        """Return the same of all steps' cost."""
        shared = AdaptiveRK(method="tsit5", rtol=1e-6, atol=1e-6, norms="batch")
        return self._memory(Heuristics(), lambda n: {"solver": shared, "grid": (0.0, 4.0 * n)})

    def shown(self) -> float:
        """Return by how much saved states and times differ from those of a plain solve."""
        field, x = self.problem
        save = [0.25, 0.5, 1.0]
        walk: dict[str, Any] = {"solver": TSIT5, "grid": (0.0, 1.0)}
        plan: dict[str, Any] = {"solver": "rk4", "grid": [i / 40 for i in range(41)]}
        pair: list[Tensor] = []
        for mode, how in itertools.product(get_args(Mode), (walk, plan)):
            made = Local(mode).solve(field, x, seed=5, save=save, **how).solution
            plain = solve(field, x, save=save, **how)
            for a, b in ((made.trajectory, plain.trajectory), (made.times, plain.times)):
                assert a is not None and b is not None
                pair.append(a - b)
        return max(float(v.detach().abs().max()) for v in pair)


def _off(draws: Tensor, exact: Tensor) -> float:
    """Return the distance of a mean from a value, in standard errors."""
    return float((draws.mean() - exact).abs() / (draws.std() / len(draws) ** 0.5))


CLAIMS = (
    Claim("biased-nfe", "digits, continuous adjoint: biased draws bring it to at most 0.5 of the "
          "evaluations", lambda e: BIASED.ratio("nfe", VANILLA), 0.5, headline=True,
          needs="training"),
    Claim("unbiased-nfe", "and unbiased ones to at most 0.6",
          lambda e: UNBIASED.ratio("nfe", VANILLA), 0.6, headline=True, needs="training"),
    Claim("accuracy", "with at most 1.5 points of accuracy lost, any seed, any draws",
          lambda e: max(t.lost(VANILLA) for t in (BIASED, UNBIASED)), 1.5, headline=True,
          needs="training"),
    Claim("as-global", "and within 8 evaluations of what the errors of all steps bring",
          lambda e: max(abs(t.mean("nfe") - ERROR.mean("nfe")) for t in (BIASED, UNBIASED)), 8.0,
          headline=True, needs="training"),
    Claim("time-average", "unbiased draws average e over time, to 3 standard errors",
          Experiment.time_average, 3.0),
    Claim("step-average", "biased draws average e over the steps, to 3 standard errors",
          Experiment.step_average, 3.0),
    Claim("fast", "on van der Pol's oscillator they are twice as often in the fast phase",
          Experiment.fast_share, 2.0, "higher"),
    Claim("black-box", "the cost's gradient is the same by every adjoint",
          Experiment.adjoint_spread, 1e-12),
    Claim("task", "and with weight 0 the task's gradient is that of the plain solve",
          Experiment.task_spread, 0.0),
    Claim("leak", "nothing of the cost's gradient goes to the start, or to what was before",
          Experiment.leak, 0.0),
    Claim("extra", "it costs at most 7 evaluations", Experiment.extra, 7.0),
    Claim("memory", "four times the steps change the memory of a reversible solve by at most 2 %",
          Experiment.local_memory, 1.02),
    Claim("memory-global", "where the cost of all steps takes at least 3 times as much",
          Experiment.global_memory, 3.0, "higher"),
    Claim("sde", "a spiral with noise: at most 0.9 of the drift's evaluations, on average",
          lambda e: NOISY.ratio("nfe", spiral_sde.VANILLA), 0.9, needs="training"),
    Claim("sde-loss", "at no more than 1.1 of the loss",
          lambda e: NOISY.ratio("loss", spiral_sde.VANILLA), 1.1, needs="training"),
    Claim("shown", "saved states are those of a solve without it, to its tolerance",
          Experiment.shown, 1e-6),
)  # fmt: skip

register(System(
    slug="local-regularization",
    title="LRNODE",
    paper="Pal et al. 2023, arXiv:2303.02262",
    summary="The same from one more step at a random point, so that any adjoint will do.",
    experiment=Experiment,
    claims=CLAIMS,
))  # fmt: skip

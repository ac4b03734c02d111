"""USF and S³: every step of an exponential solver makes its own choices, and a search finds them.

Measured on M4 (`fields.problems`), VP-linear, float64: 64 starts to search on, 256 others to
measure on, and a zoo of 64 fixed schedules to beat.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import product
from statistics import median

import torch

from pathline.fields import Denoiser
from pathline.learn.checkpoint import load_model
from pathline.solvers import DDIM, DEIS, DPM, DPMpp, Solver, SolverSchedule, UniPC, grids, solve
from pathline.solvers.execute import run
from pathline.solvers.order import fitted_slope
from pathline.solvers.phi import derivative_weights
from pathline.solvers.saved import saved_schedule
from pathline.speed import ScheduleSpace
from pathline.speed.fixed import fixed_solvers
from pathline.speed.goal import bench_of
from pathline.speed.mutations import Correctors, Mutation
from pathline.speed.predictor import Predictor, kendall
from pathline.speed.schedules import mutants
from pathline.steer import CFG
from pathline.systems.searching import PATH, Searches
from pathline.systems.system import Claim, System, register

COUNTS = Searches().counts
RECIPES: tuple[Solver, ...] = (
    DDIM(), DPMpp(), DPMpp(expansion="taylor"), DPMpp(order=3), DPM(2, "x0"), DPM(3),
    UniPC(1), UniPC(2), UniPC(3), UniPC(3, "eps"), DEIS(4, "lambda"),
)  # fmt: skip
OFFSETS = (-0.7, 0.31, -1.9, 1.13)
"""Uneven points on both sides of a step's start."""


@dataclass(frozen=True)
class Experiment:
    """What the claims read."""

    searches: Searches = field(default_factory=Searches)

    def recipe_error(self) -> float:
        """Return how far schedules and the solvers that they are taken from are apart."""
        law, x = self.searches.benches[0].field, self.searches.benches[0].starts
        made = (grids.log_snr(7), grids.uniform(9), grids.karras(12))
        pairs = (
            (solver.plan(PATH, grid), SolverSchedule.of(solver, PATH, grid).plan())
            for solver, grid in product(RECIPES, made)
        )
        ends = ([run(plan.folded("x0"), law, x) for plan in pair] for pair in pairs)
        return max(float((a - b).abs().max()) for a, b in ends)

    def miscounted(self) -> int:
        """Return for how many of 200 mutated schedules the network is not called nfe times."""
        calls, x = list[int](), self.searches.benches[0].starts[:1]

        def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return torch.zeros_like(x)

        def is_wrong(schedule: SolverSchedule) -> bool:
            calls.clear()
            solve(Denoiser(network, PATH, "x0"), x, solver=schedule)
            extra = sum(choice.corrector == "implicit" for choice in schedule.choices)
            told = len(schedule.choices) - (schedule.guess is not None) + extra
            return not len(calls) == schedule.nfe == told

        space = self.searches.space
        some = mutants(replace(space, mutations=_with_implicit(space)), 200)
        return sum(is_wrong(schedule) for schedule in some)

    def rank_quality(self, n: int) -> float:
        """Return Kendall's τ of a predictor that has seen n schedules, on 300 others."""
        pool = mutants(self.searches.space, 900, (5,))
        scores = [self.searches.benches[0](schedule) for schedule in pool]
        learned = Predictor().fitted(pool[:n], scores[:n])
        return kendall(learned(pool[600:]), scores[600:])


def _with_implicit(space: ScheduleSpace) -> tuple[Mutation, ...]:
    """Return the mutations, with correctors that cost an evaluation among them."""
    return tuple(
        Correctors(chances=(0.4, 0.3, 0.3)) if isinstance(m, Correctors) else m
        for m in space.mutations
    )


def estimator_error() -> float:
    """Return the error of D^(k) from m points on powers up to m, for every k ≤ m."""
    worst = 0.0
    for m in range(1, 5):
        for k, power in product(range(1, m + 1), range(m + 1)):
            weights = derivative_weights(OFFSETS[:m], k)
            at_zero = float(power == 0)
            pairs = zip(weights, OFFSETS, strict=False)
            estimate = sum(a * (delta**power - at_zero) for a, delta in pairs)
            worst = max(worst, abs(estimate - (math.factorial(k) if power == k else 0.0)))
    return worst


def estimator_slope_error() -> float:
    """Return how far the error of D^(k) from m points, on e^λ, is from falling as δ^{m+1−k}."""
    widths, worst = (0.2, 0.1, 0.05), 0.0
    for m in range(1, 5):
        for k in range(1, m + 1):
            errors: list[float] = []
            for width in widths:
                at = [width * delta for delta in OFFSETS[:m]]
                pairs = zip(derivative_weights(at, k), at, strict=True)
                errors.append(abs(sum(a * math.expm1(delta) for a, delta in pairs) - 1))
            worst = max(worst, abs(-fitted_slope(widths, errors) - (m + 1 - k)))
    return worst


def on_fashion(nfe: int) -> float:
    """Return the mean square error of what is shipped for `fashion` over that of the best fixed."""
    model = load_model("fashion")
    schedule, told = saved_schedule(model, nfe), {"label": model.details["classes"]}
    guide = CFG(schedule.about["guide"]["weight"])
    bench = bench_of(model, guide, told, told, (1, 64), 64)
    fixed = fixed_solvers(bench.train, nfe, model)[schedule.about["fixed"]]
    return (bench.test(schedule) / bench.test(fixed)) ** 2


CLAIMS = (
    Claim("recipes", "as schedules DDIM, ++2M, ++3M, 2S, 3S, UniPC and λ-DEIS do what they do",
          Experiment.recipe_error, 1e-12),
    *(Claim(f"found-{n}", f"at {n} evaluations what is found makes at most half of the error of "
            "the best of 64 fixed schedules, from noise that it has not seen",
            lambda e, n=n: e.searches.ratio(n), 0.5, headline=True) for n in COUNTS),
    Claim("found-early", "at 5 evaluations 300 tries are enough for 0.6 of it (median of 5 seeds)",
          lambda e: median(e.searches.ratio(5, 300, seed) for seed in range(5)), 0.6),
    *(Claim(f"descent-{n}", f"at {n} evaluations descents of times and slopes with a quarter of "
            "the tries make at most half of it too", lambda e, n=n: e.searches.descended(n), 0.5)
      for n in COUNTS),
    Claim("overfit", "its error on fresh noise is at most 1.5 times that on the noise it was "
          "searched on, at every number", lambda e: e.searches.overfit(), 1.5),
    Claim("ablation-choices", "with its most frequent prediction and order at every step it is "
          "worse, at every number", lambda e: e.searches.ablated("choices"), 1.0, "higher"),
    Claim("ablation-times", "on the best fixed grid it is worse, at every number",
          lambda e: e.searches.ablated("times"), 1.0, "higher"),
    Claim("estimator", "derivatives from m uneven points are exact on polynomials of degree m",
          lambda e: estimator_error(), 1e-12),
    Claim("estimator-order", "and their errors fall as δ^(m+1−k) elsewhere: slopes off by at most",
          lambda e: estimator_slope_error(), 0.2),
    Claim("evaluations", "200 mutated schedules, with known first points and implicit correctors, "
          "call the network as often as they say", Experiment.miscounted, 0.0, "equal"),
    Claim("predictor", "a predictor that has seen 600 schedules ranks others with Kendall's τ",
          lambda e: e.rank_quality(600), 0.45, "higher"),
    Claim("real-model", "on the shipped Fashion-MNIST model what is shipped with it makes at most "
          "0.8 of the mean square error of the best fixed solver, at 5 evaluations, on 64 fresh "
          "noises", lambda e: on_fashion(5), 0.8),
)  # fmt: skip

register(System(
    slug="usf-s3",
    title="USF and S³",
    paper="Liu et al. 2023, arXiv:2312.07243",
    summary="Samples in 3 to 10 network calls: steps that differ along the way, found for a model.",
    experiment=Experiment,
    claims=CLAIMS,
    plots=lambda e: e.searches.plots(),
))  # fmt: skip

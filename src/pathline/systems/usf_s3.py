"""USF and S³: every step of an exponential solver makes its own choices, and a search finds them.

Measured on M4 (`fields.problems`), VP-linear, float64: 64 starts to search on, 256 others to
measure on, and a zoo of 64 fixed schedules to beat.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from statistics import median

import torch

from pathline.core import noise
from pathline.fields import Denoiser
from pathline.fields.problems import m4
from pathline.paths import VPLinear
from pathline.solvers import DDIM, DEIS, DPM, DPMpp, Solver, SolverSchedule, UniPC, grids, solve
from pathline.solvers.execute import run
from pathline.solvers.order import fitted_slope
from pathline.solvers.phi import derivative_weights
from pathline.solvers.reference import reference
from pathline.speed import Endpoint, ScheduleSpace, Search, evolve, zoo
from pathline.speed.goal import bench_of
from pathline.speed.mutations import Correctors, Mutation
from pathline.speed.predictor import Predictor, kendall
from pathline.speed.schedules import mutants
from pathline.speed.tune import TuneSettings, tune
from pathline.systems.system import Claim, Plot, System, register

PATH = VPLinear()
COUNTS = (4, 5, 6, 8)
BUDGET = 1500
RECIPES: tuple[Solver, ...] = (
    DDIM(), DPMpp(), DPMpp(expansion="taylor"), DPMpp(order=3), DPM(2, "x0"), DPM(3),
    UniPC(1), UniPC(2), UniPC(3), UniPC(3, "eps"), DEIS(4, "lambda"),
)  # fmt: skip
OFFSETS = (-0.7, 0.31, -1.9, 1.13)
"""Uneven points on both sides of a step's start."""


@dataclass(frozen=True)
class Experiment:
    """What the claims read."""

    searches: dict[tuple[int, int, int], Search[SolverSchedule]] = field(default_factory=dict)

    @cached_property
    def benches(self) -> tuple[Endpoint, Endpoint]:
        """What is searched on, and what is measured on."""
        law = m4(PATH)
        x = noise.normal(range(64 + 256), (3,), dtype=torch.float64)
        end = reference(law, x, tolerance=1e-9)
        return Endpoint(law, x[:64], end[:64]), Endpoint(law, x[64:], end[64:])

    @cached_property
    def space(self) -> ScheduleSpace:
        """The schedules of the path; the mean of the data is known."""
        law = m4(PATH)
        return ScheduleSpace(PATH, (0.0, tuple((law.weights[:, None] * law.means).sum(0).tolist())))

    def search(self, nfe: int, budget: int = BUDGET, seed: int = 0) -> Search[SolverSchedule]:
        """Search from the zoo, once for each question."""
        if (nfe, budget, seed) not in self.searches:
            begun = Search(self.space, list(zoo(PATH, nfe).values()), (nfe,), seed)
            found = evolve(begun, self.benches[0], budget, what=f"{nfe} evaluations")
            self.searches[nfe, budget, seed] = found
        return self.searches[nfe, budget, seed]

    def fixed(self, nfe: int) -> tuple[str, float]:
        """Return the fixed schedule that is best on what is measured on, and its error there."""
        errors = {name: self.benches[1](each) for name, each in zoo(PATH, nfe).items()}
        return min(errors.items(), key=lambda item: item[1])

    def ratio(self, nfe: int, budget: int = BUDGET, seed: int = 0) -> float:
        """Return the error of the found schedule over that of the best fixed one."""
        best = self.search(nfe, budget, seed).best(nfe)[0].candidate
        return self.benches[1](best) / self.fixed(nfe)[1]

    def overfit(self) -> float:
        """Return the largest error on fresh noise over that on the noise of the search."""
        best = [self.search(n).best(n)[0] for n in COUNTS]
        return max(self.benches[1](each.candidate) / each.score for each in best)

    def ablated(self, what: str) -> float:
        """Return how much worse the found schedules are without a part, at the least."""
        test, ratios = self.benches[1], list[float]()
        for nfe in COUNTS:
            best = self.search(nfe).best(nfe)[0].candidate
            rest = _uniform(best)
            if what == "times":
                usual = zoo(PATH, len(best.choices))[self.fixed(nfe)[0]]
                rest = replace(best, times=usual.times)
            ratios.append(test(rest) / test(best))
        return min(ratios)

    def recipe_error(self) -> float:
        """Return how far schedules and the solvers that they are taken from are apart."""
        law, x = self.benches[0].field, self.benches[0].starts
        made = (grids.log_snr(7), grids.uniform(9), grids.karras(12))
        pairs = (
            (solver.plan(PATH, grid), SolverSchedule.of(solver, PATH, grid).plan())
            for solver, grid in product(RECIPES, made)
        )
        ends = ([run(plan.folded("x0"), law, x) for plan in pair] for pair in pairs)
        return max(float((a - b).abs().max()) for a, b in ends)

    def miscounted(self) -> int:
        """Return for how many of 200 mutated schedules the network is not called nfe times."""
        calls: list[int] = []

        def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return torch.zeros_like(x)

        def is_wrong(schedule: SolverSchedule) -> bool:
            calls.clear()
            solve(Denoiser(network, PATH, "x0"), self.benches[0].starts[:1], solver=schedule)
            extra = sum(choice.corrector == "implicit" for choice in schedule.choices)
            told = len(schedule.choices) - (schedule.guess is not None) + extra
            return not len(calls) == schedule.nfe == told

        mutated = mutants(replace(self.space, mutations=_with_implicit(self.space)), 200)
        return sum(is_wrong(schedule) for schedule in mutated)

    def rank_quality(self, n: int) -> float:
        """Return Kendall's τ of a predictor that has seen n schedules, on 300 others."""
        pool = mutants(self.space, 900, (5,))
        scores = [self.benches[0](schedule) for schedule in pool]
        learned = Predictor().fitted(pool[:n], scores[:n])
        return kendall(learned(pool[600:]), scores[600:])

    def plots(self) -> tuple[Plot, ...]:
        """Return error against evaluations: DDIM, the best fixed schedule, and what was found."""
        test, names = self.benches[1], ("DDIM", "best of 64 fixed", "found")
        found = [self.search(n).best(n)[0].candidate for n in COUNTS]
        rows = [
            [test(DDIM().plan(PATH, grids.log_snr(n))), self.fixed(n)[1], test(best)]
            for n, best in zip(COUNTS, found, strict=True)
        ]
        curves = {
            name: tuple((float(n), row[i]) for n, row in zip(COUNTS, rows, strict=True))
            for i, name in enumerate(names)
        }
        return (Plot("S³ on M4, fresh noise", "evaluations", "root mean square error", curves),)


def _uniform(schedule: SolverSchedule) -> SolverSchedule:
    """Return the schedule with its most frequent prediction and order at every step."""
    pairs = Counter((c.prediction, c.order, c.points) for c in schedule.choices)
    prediction, order, points = pairs.most_common(1)[0][0]
    choices = [
        replace(c, prediction=prediction, order=order, points=points).clipped(i)
        for i, c in enumerate(schedule.choices, 1)
    ]
    return replace(schedule, choices=tuple(choices))


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
    """Return the mean square error of what is found for the shipped model over the best fixed."""
    from pathline.learn.checkpoint import load_model

    model = load_model("fashion")
    told = {"label": model.details["classes"]}
    settings = TuneSettings(budget=200, n_train=256, n_test=256)
    (found,) = tune(bench_of(model, None, told, told, (256, 256), 64), [nfe], settings)
    return (found.found / found.fixed_error) ** 2


CLAIMS = (
    Claim("recipes", "as schedules DDIM, ++2M, ++3M, 2S, 3S, UniPC and λ-DEIS do what they do",
          Experiment.recipe_error, 1e-12),
    *(Claim(f"found-{n}", f"at {n} evaluations what is found makes at most half of the error of "
            "the best of 64 fixed schedules, from noise that it has not seen",
            lambda e, n=n: e.ratio(n), 0.5, headline=True) for n in COUNTS),
    Claim("found-early", "at 5 evaluations 300 tries are enough for 0.6 of it (median of 5 seeds)",
          lambda e: median(e.ratio(5, 300, seed) for seed in range(5)), 0.6),
    Claim("overfit", "its error on fresh noise is at most 1.5 times that on the noise it was "
          "searched on, at every number", Experiment.overfit, 1.5),
    Claim("ablation-choices", "with its most frequent prediction and order at every step it is "
          "worse, at every number", lambda e: e.ablated("choices"), 1.0, "higher"),
    Claim("ablation-times", "on the best fixed grid it is worse, at every number",
          lambda e: e.ablated("times"), 1.0, "higher"),
    Claim("estimator", "derivatives from m uneven points are exact on polynomials of degree m",
          lambda e: estimator_error(), 1e-12),
    Claim("estimator-order", "and their errors fall as δ^(m+1−k) elsewhere: slopes off by at most",
          lambda e: estimator_slope_error(), 0.2),
    Claim("evaluations", "200 mutated schedules, with known first points and implicit correctors, "
          "call the network as often as they say", Experiment.miscounted, 0.0, "equal"),
    Claim("predictor", "a predictor that has seen 600 schedules ranks others with Kendall's τ",
          lambda e: e.rank_quality(600), 0.45, "higher"),
    Claim("real-model", "on the shipped Fashion-MNIST model what is found makes at most 0.8 of the "
          "mean square error of the best fixed solver, at 5 evaluations (256 fresh samples)",
          lambda e: on_fashion(5), 0.8, needs="training"),
)  # fmt: skip

register(System(
    slug="usf-s3",
    title="USF and S³",
    paper="Liu et al. 2023, arXiv:2312.07243",
    summary="Samples in 3 to 10 network calls: steps that differ along the way, found for a model.",
    experiment=Experiment,
    claims=CLAIMS,
    plots=Experiment.plots,
))  # fmt: skip

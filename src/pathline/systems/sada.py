"""SADA: evaluations that a trajectory can do without are predicted from its last real ones.

Measured on H64: six mixtures in R⁶⁴ of 8 to 40 components, VP-linear (the straight path for the
flow claims), fifty steps even in t, 64 starts. A distance is the median over samples of |x − x₅₀| /
|x₅₀|, x₅₀ the run that skips nothing: a few samples change component, which a mean would see alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from statistics import geometric_mean

import torch
from torch import Tensor

from pathline.core import noise
from pathline.fields import Mixture
from pathline.paths import CondOT, GaussianPath, VPLinear
from pathline.solvers import DPMpp, Solver, grids, sample
from pathline.solvers.evaluate import Speed
from pathline.solvers.order import fitted_slope
from pathline.speed import SADA, Cadence
from pathline.speed.criteria import CRITERIA, Criterion, Moment
from pathline.speed.extrapolate import slope_weights
from pathline.systems.sada_emoji import OnEmoji
from pathline.systems.system import Claim, Plot, System, register

VP = VPLinear()
FLOW = CondOT()
STEPS, STARTS = 50, 64
SIZES = ((8, 0.15), (12, 0.2), (16, 0.25), (24, 0.3), (32, 0.35), (40, 0.4))
"""Components and their standard deviation, of the six mixtures."""

PAPER = SADA(acc_range=(10, 47), lagrange_step=20)
BASE = DPMpp(final="lower")


@lru_cache(maxsize=12)
def h64(i: int, path: GaussianPath) -> Mixture:
    """Return mixture i in R⁶⁴."""
    n, std = SIZES[i]
    means = 0.8 * noise.normal(
        range(1000 * (i + 1), 1000 * (i + 1) + n), (64,), dtype=torch.float64
    )
    return Mixture(path, means, torch.full_like(means, std), torch.full((n,), 1 / n).double())


@dataclass(frozen=True)
class Run:
    """What a run came to: its end, mean evaluations, and the share of stable decisions."""

    x: Tensor
    nfe: float
    stable: float = math.nan

    def distance(self, other: Run) -> float:
        """Return the median relative distance of the ends."""
        apart = (self.x - other.x).norm(dim=1) / other.x.norm(dim=1)
        return float(apart.median())


@lru_cache(maxsize=256)
def ran(
    law: Mixture, n: int = STEPS, speed: Speed | None = None, solver: Solver | str = BASE
) -> Run:
    """Return a run of n steps even in t."""
    grid = grids.uniform(n)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "SADA's criterion")  # "always-stable" measures that
        made = sample(law, STARTS, solver=solver, grid=grid, dtype=torch.float64, speed=speed)
    stable = math.nan if made.skipped is None else made.skipped.stable
    return Run(made.x, sum(made.nfes) / STARTS, stable)


@dataclass(frozen=True)
class Experiment:
    """What the claims read; everything is computed when first asked for, and once."""

    @cached_property
    def emoji(self) -> OnEmoji:
        """The same on the shipped transformer."""
        return OnEmoji()

    def distance(self, n: int = STEPS, speed: Speed | None = None) -> float:
        """Return the geometric mean over the six mixtures of the distance to the baseline."""
        laws = [h64(i, VP) for i in range(6)]
        return geometric_mean(ran(law, n, speed).distance(ran(law)) for law in laws)

    def ratio(self, speed: Speed, n: int = STEPS) -> float:
        """Return SADA's distance over that of n plain steps, or of another policy."""
        return self.distance(speed=PAPER) / self.distance(n, speed)

    def plain_ratio(self) -> float:
        """Return SADA's distance over that of plain steps with as many evaluations."""
        return self.distance(speed=PAPER) / self.distance(round(self.nfe()))

    def nfe(self) -> float:
        """Return SADA's mean evaluations."""
        return sum(ran(h64(i, VP), speed=PAPER).nfe for i in range(6)) / 6

    def criteria_ratio(self) -> float:
        """Return the largest over the least of the distances with three criteria."""
        names: tuple[Criterion, ...] = ("ddim", "paper", "released")
        each = [self.distance(speed=replace(PAPER, criterion=name)) for name in names]
        return max(each) / min(each)

    def identity_error(self) -> float:
        """Return |x_AB2 − x̂ + ⅔ Δ Δ²y| for random slopes."""
        x, *y = noise.normal(range(4), (1000,), dtype=torch.float64)
        step = 0.02
        weights = slope_weights((0.4, 0.42, 0.44, 0.46))
        extrapolated = x - sum(w * v for w, v in zip(weights, y, strict=True))
        solver = x - step * (1.5 * y[0] - 0.5 * y[1])
        error = solver - extrapolated + 2 / 3 * step * (y[0] - 2 * y[1] + y[2])
        return float(error.abs().max())

    def least_stable(self) -> float:
        """Return the least share of stable decisions of the paper's criterion, N = 25 to 400."""
        never = SADA(criterion="paper", lagrange_step=None, max_interval=0, acc_range=(0.0, 1.0))
        return min(ran(h64(0, VP), n, never).stable for n in (25, 50, 100, 200, 400))

    def order(self, damped: bool) -> float:
        """Return the order of x̂ on y = exp(t)."""
        steps = (40, 80, 160, 320)
        return fitted_slope(steps, [_extrapolation_error(1 / n, damped) for n in steps])

    def constant(self, damped: bool) -> float:
        """Return the constant of its error, of Δ³y'' or of Δ²y'."""
        h = 1e-3
        return _extrapolation_error(h, damped) / h ** (2 if damped else 3)

    @cached_property
    def correlations(self) -> Mapping[Criterion, tuple[float, float]]:
        """Criterion → its rank correlation with what skipping costs: pooled, and within steps."""
        found = [_skipping_costs(h64(i, VP)) for i in range(4)]
        told: dict[Criterion, tuple[float, float]] = {}
        names: tuple[Criterion, ...] = ("ddim", "magnitude")
        for name in names:
            steps = [torch.cat(parts, 1) for parts in zip(*(f[name] for f in found), strict=True)]
            within = [rank_correlation(*step) for step in steps]
            told[name] = rank_correlation(*torch.cat(steps, 1)), sum(within) / len(within)
        return told

    def flow_ratio(self) -> float:
        """Return the largest of SADA's distances over plain Euler's with as many evaluations."""
        ratios: list[float] = []
        for law in (h64(i, FLOW) for i in range(4)):
            base = ran(law, solver="euler")
            fast = ran(law, speed=PAPER, solver="euler")
            plain = ran(law, round(fast.nfe), solver="euler")
            ratios.append(fast.distance(base) / plain.distance(base))
        return max(ratios)

    def chained_ratio(self) -> float:
        """Return the least of chained extrapolation's distances over SADA's."""
        ratios: list[float] = []
        for law in (h64(i, FLOW) for i in range(4)):
            base, fast = ran(law, solver="euler"), ran(law, speed=PAPER, solver="euler")
            ratios.append(_chained(law).distance(base) / fast.distance(base))
        return min(ratios)


def _extrapolation_error(h: float, damped: bool) -> float:
    """Return |x(t − h) − x̂| for x = y = exp(t) at t = 0, from slopes at 0, h and 2h."""
    weights = slope_weights((-h, 0.0, h, 2 * h), damped)
    made = 1.0 - sum(w * math.exp(k * h) for k, w in enumerate(weights))
    return abs(math.exp(-h) - made)


def _skipping_costs(law: Mixture) -> Mapping[Criterion, Sequence[Tensor]]:
    """Return for the steps 10 to 45 of a run (κ, error of x̂_0 if the next were skipped), (2, 64).

    κ is its mean over elements in units of |y| |Δ²y|, the size that it can have.
    """
    times = grids.uniform(STEPS).times(VP)
    solved = sample(
        law, STARTS, solver=BASE, grid=grids.uniform(STEPS), dtype=torch.float64, trajectory=True
    )
    assert solved.trajectory is not None
    seen = [law(x, t) for x, t in zip(solved.trajectory, times, strict=True)]
    found: dict[Criterion, list[Tensor]] = {"ddim": [], "magnitude": []}
    for i in range(10, 46):
        y = (seen[i].velocity, seen[i - 1].velocity, seen[i - 2].velocity)
        ahead = (times[i + 1], times[i], times[i - 1], times[i - 2])
        m = Moment(
            solved.trajectory[i + 1], solved.trajectory[i], y, ahead, VP, STEPS, "paper", 0.1
        )
        alpha, sigma = float(VP.alpha(ahead[0])), float(VP.sigma(ahead[0]))
        replaced = (m.x_hat - sigma * seen[i].eps) / alpha
        error = (replaced - seen[i + 1].x0).norm(dim=1)
        unit = (y[0].square().mean(1) * m.curvature.square().mean(1)).sqrt()
        for name, kappas in found.items():
            kappas.append(torch.stack((CRITERIA[name](m).mean(1) / unit, error)))
    return found


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Return Spearman's ρ of two (n,) tensors without ties."""
    ranks = torch.stack([v.argsort().argsort().double() for v in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def _chained(law: Mixture) -> Run:
    """Euler with every fourth slope real, the others 2 y_{i−1} − y_{i−2} of whatever was used."""
    x = noise.normal(range(STARTS), (64,), dtype=torch.float64)
    used: list[Tensor] = []
    calls = 0
    for i, (s, t) in enumerate(pairwise(grids.uniform(STEPS).times(FLOW))):
        if i < 10 or i >= 47 or i % 4 == 0:
            used.append(law(x, s).velocity)
            calls += 1
        else:
            used.append(2 * used[-1] - used[-2])
        x = x + (t - s) * used[-1]
    return Run(x, calls)


CLAIMS = (
    Claim("plain", "SADA is at most 0.4 as far from the 50-step result as ++2M of as many "
          "evaluations", Experiment.plain_ratio, 0.4, headline=True),
    Claim("cadence", "and at most half as far as reusing ε̂ on a fixed cadence of 22",
          lambda e: e.ratio(Cadence(50 / 22)), 0.5, headline=True),
    Claim("evaluations", "with at most half of the evaluations", Experiment.nfe, 25.0,
          headline=True),
    Claim("step-wise", "where that comes from: without the Lagrange regime the distance is more "
          "than twice SADA's",
          lambda e: 1 / e.ratio(SADA(acc_range=(10, 47), lagrange_step=None)), 2.0, "higher"),
    Claim("lagrange", "and with it alone at most 1.2 of it",
          lambda e: 1 / e.ratio(SADA(acc_range=(11, 47), lagrange_step=12)), 1.2),
    Claim("criteria", "whichever criterion decides, the DDIM step's, the paper's or the released "
          "code's, it comes out alike: at most 1.5 times as far as with the best of them",
          Experiment.criteria_ratio, 1.5),
    Claim("identity", "under AB2 the paper's residual is −⅔ Δ Δ²y, whatever the slopes",
          Experiment.identity_error, 1e-14),
    Claim("always-stable", "so its criterion calls 95 % of the steps of ++2M stable, or more: it "
          "tells nothing", Experiment.least_stable, 0.95, "higher"),
    Claim("extrapolant", "x̂ has order 3 ± 0.15", lambda e: e.order(False), 3.0, "equal", 0.15),
    Claim("extrapolant-released", "with the released weights its order is 2 ± 0.15",
          lambda e: e.order(True), 2.0, "equal", 0.15),
    Claim("constant", "their constants are 13/12 and ½, to 5 % (largest error)",
          lambda e: max(abs(e.constant(False) * 12 / 13 - 1), abs(e.constant(True) * 2 - 1)), 0.05),
    Claim("telling", "κ with a DDIM step ranks what skipping costs: Spearman's ρ, all steps",
          lambda e: e.correlations["ddim"][0], 0.6, "higher"),
    Claim("telling-within", "and within a step", lambda e: e.correlations["ddim"][1], 0.5,
          "higher"),
    Claim("flow", "on the straight path it is at most 0.35 as far as plain Euler of as many "
          "evaluations", Experiment.flow_ratio, 0.35),
    Claim("chained", "to extrapolate from what was extrapolated is ten times as far, or more",
          Experiment.chained_ratio, 10.0, "higher"),
    Claim("emoji", "on the emoji model it takes 1.8 times fewer evaluations than 50, or more",
          lambda e: e.emoji.saved, 1.8, "higher", headline=True, needs="training"),
    Claim("emoji-look", "at a perceptual distance of at most 0.10 (two prompts: 1.25)",
          lambda e: e.emoji.distance, 0.10, headline=True, needs="training"),
    Claim("emoji-cadence", "and at most 1.05 as far as the best fixed cadence of as many",
          lambda e: e.emoji.cadence_ratio, 1.05, needs="training"),
    Claim("emoji-adapts", "prompts differ in what they need (standard deviation, evaluations)",
          lambda e: e.emoji.spread, 0.1, "higher", needs="training"),
    # The specification expects this and has not measured it. Here it fails, with 59 % of the tokens
    # computed either way: on 64 tokens that all see each other, κ chooses no better than chance.
    Claim("emoji-tokens", "tokens chosen by κ: at most half as far as as many at random",
          lambda e: e.emoji.token_ratio, 0.5, needs="training"),
)  # fmt: skip


def plots(e: Experiment) -> tuple[Plot, ...]:
    """Return the distance against evaluations: plain steps, a cadence, SADA."""
    plain = [(n, e.distance(n)) for n in (18, 22, 25, 30, 38)]
    held = [(n, e.distance(speed=Cadence(50 / n))) for n in (18, 22, 25, 30, 38)]
    curves = {
        "++2M": plain,
        "fixed cadence, ε̂ reused": held,
        "SADA": [(e.nfe(), e.distance(speed=PAPER))],
    }
    return (Plot("SADA on H64", "evaluations", "distance to 50 steps", curves),)


register(System(
    slug="sada",
    title="SADA",
    paper="Jiang et al. 2025, arXiv:2507.17135",
    summary="The picture of fifty steps from about half of the network calls.",
    experiment=Experiment,
    claims=CLAIMS,
    plots=plots,
))  # fmt: skip

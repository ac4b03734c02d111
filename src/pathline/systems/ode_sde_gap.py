"""The ODE-SDE gap: what a score that misses the Fokker-Planck equation costs, and a penalty on it.

Gap and bound are measured where both are known in closed form, a linear score that is off by a
known factor; the residual on mixtures' exact densities; what the penalty does on potentials of two
rings, trained with four weights and three seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from pathline.core import noise
from pathline.fields import FokkerPlanck, Mixture
from pathline.fields.problems import e16
from pathline.fields.trace import Exact, Hutchinson
from pathline.learn.quality.histogram import Histograms
from pathline.paths import GaussianPath, OrnsteinUhlenbeck, VPLinear
from pathline.systems.ode_sde_gaussian import Linear, constant, swinging
from pathline.systems.ode_sde_trained import Trained
from pathline.systems.score_sde import three_modes
from pathline.systems.system import Claim, System, register

PROBES, POINTS, CROWD = 4096, 1000, 20_000
SHIFT = 0.5


def drawn(law: Mixture, n: int, index: int) -> tuple[Tensor, Tensor]:
    """Return noised draws of a mixture, (n, dim), and their times, from 0.01 of its clock on."""
    path, seeds = law.path, range(n)
    low = 0.01 / getattr(path, "horizon", 1.0)
    u = noise.uniform(seeds, (1,), stream="probe", index=index, dtype=torch.float64)[:, 0]
    eps = noise.normal(seeds, law.shape, stream="forward", index=index, dtype=torch.float64)
    t = low + (1 - low) * u
    return path.noised(law.draw(seeds), eps, t), t


def residual(path: GaussianPath, moved: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Return R of three modes' exact log-density plus c(t), less c'(t), at 1000 points."""
    law = three_modes(path)
    x, t = drawn(law, POINTS, 0)
    add = moved or torch.zeros_like
    found = FokkerPlanck(path).of_potential(lambda x, t: law.log_prob(x, t) + add(t), x, t)
    at = t.clone().requires_grad_()
    (slope,) = torch.autograd.grad((add(at) + 0 * at).sum(), at)
    return (found[:, 0] - slope).detach()


def wave(t: Tensor) -> Tensor:
    """Return a constant of each time, as a potential is free to have."""
    return (7 * t).sin() + t.exp()


def laplacian_off(law: Mixture) -> float:
    """Return how many standard errors the mean of many probes is off, at one place."""
    x, t = drawn(law, 1, 3)

    def score(x: Tensor) -> Tensor:
        return law(x, t).score

    exact = Exact().of(score, x, x)[1].detach()
    how = Hutchinson(PROBES)
    made = how.of(score, x, how.probes([11], law.shape, x.dtype, x.device))[1].detach()
    return float((made.mean() - exact).abs() / (made.std() / math.sqrt(PROBES)))


@dataclass(frozen=True)
class Experiment:
    """What the claims read."""

    linear: Mapping[str, Linear] = field(
        default_factory=lambda: {
            "steep": Linear(constant(0.1)),
            "flat": Linear(constant(-0.1)),
            "swinging": Linear(swinging),
            "exact": Linear(constant(0.0)),
        }
    )
    trained: Trained = field(default_factory=Trained)

    def slack(self) -> float:
        """Return the least of bound − W2."""
        return min(each.bound - each.w2 for each in self.linear.values())

    def bound_off(self) -> float:
        """Return the largest |bound − W2| of scores that err to one side."""
        return max(abs(self.linear[k].bound - self.linear[k].w2) for k in ("steep", "flat"))

    def farther(self) -> float:
        """Return the least by which the ODE is farther from the truth than the SDE."""
        return min(self.linear[k].farther for k in ("steep", "flat", "swinging"))

    def residual_off(self, moved: Callable[[Tensor], Tensor] | None = None) -> float:
        """Return the largest error of R, on OU and two VP paths."""
        paths = OrnsteinUhlenbeck(3.0), OrnsteinUhlenbeck(3.0, std=1.0), VPLinear()
        return max(float(residual(path, moved).abs().max()) for path in paths)

    @cached_property
    def shifted(self) -> tuple[float, float]:
        """The distance of two Gaussians of deviation ½, one moved by `SHIFT`, and its swap's."""
        z = noise.normal(range(2 * CROWD), (2,), stream="data", dtype=torch.float64) / 2
        x, y = z[:CROWD], z[CROWD:] + torch.tensor([SHIFT, 0.0])
        there, back = Histograms().distance(x, y).w2, Histograms().distance(y, x).w2
        return there, abs(there - back)


CLAIMS = (
    Claim("bound", "Gaussian data, scores off by a known factor: the bound less W2, at least",
          Experiment.slack, 0.0, "higher", headline=True),
    Claim("bound-tight", "bound and W2 agree where the score errs to one side all the time",
          Experiment.bound_off, 1e-5, headline=True),
    Claim("gap-exact", "with the exact score the gap vanishes", lambda e: e.linear["exact"].w2,
          1e-8, headline=True),
    Claim("residual-exact", "and so does its residual, up to a constant of each time",
          lambda e: e.linear["exact"].residual(), 1e-10, headline=True),
    Claim("gap-steep", "a score 1 + 0.1 e^−t times too steep: W2 is 0.02859 ± 5e-06",
          lambda e: e.linear["steep"].w2, 2.859e-2, "equal", 5e-6),
    Claim("sd-sde", "its SDE ends in the deviation 0.1837 ± 5e-05, where the truth is 0.2",
          lambda e: e.linear["steep"].deviations[0], 0.1837, "equal", 5e-5),
    Claim("sd-ode", "and its ODE in 0.1635 ± 5e-05", lambda e: e.linear["steep"].deviations[1],
          0.1635, "equal", 5e-5),
    Claim("gap-flat", "one 1 − 0.1 e^−t times too flat: W2 is 0.03414 ± 5e-06",
          lambda e: e.linear["flat"].w2, 3.414e-2, "equal", 5e-6),
    Claim("gap-swinging", "one off by 0.2 sin(3t) e^−t: W2 is 0.02572 ± 5e-06",
          lambda e: e.linear["swinging"].w2, 2.572e-2, "equal", 5e-6),
    Claim("bound-swinging", "where the bound is 0.04893 ± 5e-06",
          lambda e: e.linear["swinging"].bound, 4.893e-2, "equal", 5e-6),
    Claim("ode-farther", "in these three the ODE is farther from the truth than the SDE, by at "
          "least", Experiment.farther, 0.0, "higher"),
    Claim("residual", "R of a mixture's exact log-density, on OU and VP, 1000 points from t = 0.01",
          Experiment.residual_off, 1e-8),
    Claim("residual-constant", "with c(t) added it is c'(t), within",
          lambda e: e.residual_off(wave), 1e-8),
    Claim("laplacian-2", "4096 probes estimate the Laplacian in 2 dimensions within so many "
          "standard errors", lambda e: laplacian_off(three_modes(VPLinear())), 4.0),
    Claim("laplacian-16", "and in 16", lambda e: laplacian_off(e16(VPLinear())), 4.0),
    Claim("histogram", "W2 of histograms of two Gaussians 0.5 apart is off by at most 2 % and half "
          "a cell", lambda e: abs(e.shifted[0] - SHIFT), 0.02 * SHIFT + 8 / 64 / 2),
    Claim("histogram-swap", "and is the same both ways", lambda e: e.shifted[1], 0.0, "equal"),
    Claim("trained-residual", "rings: w = 0.003 makes the residual so many times smaller",
          lambda e: e.trained.residual_falls(), 10.0, "higher", needs="training"),
    Claim("trained-gap", "and takes this share off the gap's excess over two samples of one law",
          lambda e: e.trained.gap_closes(), 0.3, "higher", needs="training"),
    Claim("trained-price", "honest limit: with w = 0.1 the SDE's samples are farther from the data "
          "than without", lambda e: e.trained.price(), 0.0, "higher", needs="training"),
)  # fmt: skip

register(System(
    slug="ode-sde-gap",
    title="ODE-SDE gap",
    paper="Deveney et al. 2023, arXiv:2311.15996",
    summary="What a score that misses the Fokker-Planck equation costs, and a penalty on it.",
    experiment=Experiment,
    claims=CLAIMS,
))  # fmt: skip

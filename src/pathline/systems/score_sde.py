"""Score SDE: one score, and four things from it: samplers, likelihoods, codes, posteriors.

Everything is measured with exact scores: a three-mode mixture in two dimensions for the flow, two
modes on a line for the samplers, a correlated Gaussian for what is known of a sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from pathline.core import noise
from pathline.fields import Field, Gaussian, Mixture, VectorField
from pathline.fields.trace import Exact, Hutchinson
from pathline.paths import VE, GaussianPath, SubVP, VPLinear
from pathline.solvers import Grid, grids, sample, solve
from pathline.solvers.adaptive_rk import AdaptiveRK
from pathline.solvers.corrector import PredictorCorrector
from pathline.solvers.likelihood import log_prob
from pathline.steer import Known
from pathline.systems.score_sde_digits import bits, distance, share_of_class
from pathline.systems.system import Claim, System, register

TIGHT = AdaptiveRK(rtol=1e-10, atol=1e-10)
PATHS: Sequence[GaussianPath] = (VPLinear(), SubVP(), VE())
PROBES = 4096


def f64(values: Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
    """Return numbers in float64."""
    return torch.tensor(values, dtype=torch.float64)


def three_modes(path: GaussianPath) -> Mixture:
    """Return a mixture in two dimensions that nothing is symmetric about."""
    means, stds = f64([[1.5, 0.0], [-1.0, 1.0], [0.0, -1.2]]), f64([[0.3], [0.4], [0.5]])
    return Mixture(path, means, stds.expand(3, 2), f64([0.5, 0.3, 0.2]))


@dataclass(frozen=True)
class Experiment:
    """What the claims read."""

    n: int = 64
    crowd: int = 40_000
    posterior: int = 4_000

    def likelihood_error(self, path: GaussianPath, prior: str = "exact") -> float:
        """Return the largest error of log p, in nats, at draws of the mixture."""
        law = three_modes(path)
        x = law.draw(range(self.n))
        at_end = None if prior == "standard" else lambda z: law.log_prob(z, path.t_max)
        found = log_prob(law, x, solver=TIGHT, trace=Exact(), prior=at_end)
        return float((found.log_prob - law.log_prob(x, path.t_min)).abs().max())

    def round_trip(self) -> float:
        """Return how far encoding and decoding come from where they began, on every path."""
        worst = 0.0
        for path in PATHS:
            law = three_modes(path)
            x = law.draw(range(self.n))
            z = solve(law, x, solver=TIGHT, grid=[path.t_min, path.t_max]).x
            back = solve(law, z, solver=TIGHT, grid=[path.t_max, path.t_min]).x
            worst = max(worst, float((back - x).abs().max()))
        return worst

    def code_difference(self) -> float:
        """Return how far the codes of two implementations of one score are from each other."""
        law = three_modes(VPLinear())
        path, x = law.path, law.draw(range(self.n))

        def by_autograd(x: Tensor, t: Tensor) -> Tensor:
            with torch.enable_grad():
                at = x.detach().requires_grad_()
                (score,) = torch.autograd.grad(law.log_prob(at, t.flatten()[0]).sum(), at)
            return path.drift(t) * x - path.diffusion_squared(t) / 2 * score

        way = grids.uniform(2000, path.t_min, path.t_max)
        each = law, VectorField(by_autograd)
        codes = [solve(field, x, solver="rk4", grid=way).x for field in each]
        return float((codes[0] - codes[1]).abs().max())

    def schedule_error(self) -> float:
        """Return |(σ²)' − 2fσ² − g²| at most, the derivative by differences of order eight.

        σ² of VE is 2500 at its end, and a difference of order two of it cannot meet 1e-8.
        """
        h, worst = 2e-3, 0.0
        t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
        weights = 4 / 5, -1 / 5, 4 / 105, -1 / 280
        for path in PATHS:
            pairs = (
                c * (path.sigma(t + k * h) ** 2 - path.sigma(t - k * h) ** 2)
                for k, c in enumerate(weights, 1)
            )
            change = path.diffusion_squared(t) + 2 * path.drift(t) * path.sigma(t) ** 2
            worst = max(worst, float((sum(pairs) / h - change).abs().max()))
        return worst

    @cache  # noqa: B019 - lives as long as the run
    def distance(self, predictor: str, n: int, corrections: int) -> float:
        """Return W1 between samples and two modes on a line, on VE."""
        law = Mixture(VE(), f64([[-1.0], [1.0]]), f64([[0.2], [0.3]]), f64([0.4, 0.6]))
        how = PredictorCorrector(predictor, n=corrections, norms="batch")
        x = sample(law, self.crowd, solver=how, grid=grids.log_snr(n), dtype=torch.float64).x
        exact = law.draw(range(10**6, 10**6 + 10 * self.crowd)).flatten().sort().values
        return float((x.flatten().sort().values - exact.view(-1, 10).mean(1)).abs().mean())

    def gained(self, predictor: str) -> float:
        """Return W1 with one correction over W1 without, at 50 steps."""
        return self.distance(predictor, 50, 1) / self.distance(predictor, 50, 0)

    @cache  # noqa: B019 - lives as long as the run
    def known(self, n: int, corrections: int) -> tuple[float, float]:
        """Return mean and deviation of one coordinate where the other is known to be 0.6."""
        covariance = 0.25 * f64([[1.0, 0.9], [0.9, 1.0]])
        law = Gaussian(VPLinear(), f64([0.0, 0.0]), covariance)
        how = PredictorCorrector("euler_maruyama", n=corrections, norms="batch")
        keep, grid = Known(f64([[0.6, 0.0]]), f64([1.0, 0.0])), grids.uniform(n)
        x = _sampled(law, self.posterior, how, grid, keep)
        return float(x[:, 1].mean()), float(x[:, 1].std())

    def hutchinson(self) -> dict[str, tuple[float, float]]:
        """Return, by law, how many standard errors the mean is off, and the variance."""
        law, t = three_modes(VPLinear()), torch.tensor(0.4, dtype=torch.float64)
        x = law.draw([3])

        def velocity(x: Tensor) -> Tensor:
            return law(x, t).velocity

        exact = Exact().of(velocity, x, x)[1].detach()
        found: dict[str, tuple[float, float]] = {}
        for each in ("rademacher", "gaussian"):
            trace = Hutchinson(PROBES, each)
            made = trace.of(velocity, x, trace.probes([11], (2,), x.dtype, x.device))[1].detach()
            error = made.std() / math.sqrt(PROBES)
            found[each] = float((made.mean() - exact).abs() / error), float(made.var())
        return found

    def uniform_bits(self) -> float:
        """Return how far from 8 the bits per dimension of a uniform density are, in both ranges."""
        worst = 0.0
        for low, high in ((-1.0, 1.0), (0.0, 1.0)):
            x = low + (high - low) * noise.uniform(range(4), (3, 4, 4), dtype=torch.float64)
            at_end = x.new_full((len(x),), -x[0].numel() * math.log(high - low))
            still = log_prob(
                lambda x, t: 0 * x, x, prior=lambda z, p=at_end: p, grid=[1.0, 0.0], solver="rk4"
            )
            worst = max(worst, float((still.bits_per_dim(low, high) - 8).abs().max()))
        return worst


def _sampled(law: Field, n: int, how: PredictorCorrector, grid: Grid, keep: Known) -> Tensor:
    return sample(law, n, solver=how, grid=grid, keep=keep, dtype=torch.float64).x


CLAIMS = (
    Claim("likelihood", "by the flow of a mixture's exact score log p is its own, in nats, from "
          "the true density at the noise end", lambda e: e.likelihood_error(VPLinear()), 1e-7,
          headline=True),
    Claim("likelihood-paths", "so it is on sub-VP and VE", lambda e: max(
        e.likelihood_error(path) for path in PATHS[1:]), 1e-7),
    Claim("prior", "from N(0, I) it is off by what is left of the data there",
          lambda e: e.likelihood_error(VPLinear(), "standard"), 1e-2),
    Claim("codes", "encoding and decoding return x", Experiment.round_trip, 1e-6),
    Claim("codes-agree", "two implementations of one score give one code",
          Experiment.code_difference, 1e-6),
    Claim("schedules", "f and g² of VP, sub-VP and VE agree with σ by differences",
          Experiment.schedule_error, 1e-8),
    Claim("corrector", "50 steps of reverse diffusion on VE, with a Langevin correction each: W1 "
          "over that without", lambda e: e.gained("reverse_diffusion"), 0.95, headline=True),
    Claim("corrector-ancestral", "so it is with ancestral steps", lambda e: e.gained("ddpm"), 0.95),
    Claim("known-biased", "what is known put back after 200 or 1000 steps without corrections: the "
          "conditional mean 0.54 is missed by", lambda e: min(
              abs(e.known(n, 0)[0] - 0.54) for n in (200, 1000)), 0.1, "higher"),
    Claim("known", "with one correction or four it is met within", lambda e: max(
        abs(e.known(1000, k)[0] - 0.54) for k in (1, 4)), 0.03),
    Claim("known-spread", "with four the deviation is 0.218 ± 0.01",
          lambda e: e.known(1000, 4)[1], 0.218, "equal", 0.01),
    Claim("hutchinson", "4096 probes estimate the divergence within so many standard errors",
          lambda e: max(off for off, _ in e.hutchinson().values()), 4.0),
    Claim("rademacher", "the variance with ±1 over that with Gaussians",
          lambda e: e.hutchinson()["rademacher"][1] / e.hutchinson()["gaussian"][1], 1.0),
    Claim("bits", "a uniform density costs 8 bits, in [−1, 1] and in [0, 1]",
          Experiment.uniform_bits, 1e-9),
    Claim("digits-bits", "trained on digits, sub-VP costs at most so many bits per dimension more "
          "than VP on held-out ones", lambda e: bits("sub_vp") - bits("vp_linear"), 0.05,
          needs="training"),
    Claim("digits-corrector", "the Fréchet distance, of a classifier's features, after 50 steps "
          "with a correction each, over that without (the larger of VP and sub-VP)",
          lambda e: max(distance(path, 1) / distance(path, 0) for path in ("vp_linear", "sub_vp")),
          1.0, needs="training"),
    Claim("digits-class", "guided by a classifier of noisy digits, a model that was never told of "
          "classes makes the digit that is asked for, as another classifier sees it (share)",
          lambda e: share_of_class("vp_linear", 4.0), 0.9, "higher", needs="training"),
)  # fmt: skip

register(System(
    slug="score-sde",
    title="Score SDE",
    paper="Song et al. 2021, arXiv:2011.13456",
    summary="One score, four uses: samplers with corrections, likelihoods, codes and posteriors.",
    experiment=Experiment,
    claims=CLAIMS,
))  # fmt: skip

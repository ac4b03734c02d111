"""CODE: blind repair by encoding, clipping, a Langevin walk and decoding, against SDEdit.

Realism is the mean log-density per dimension of an exact prior, fidelity the mean square distance
to the damaged input; methods are compared at equal realism, not each at its best. Nothing is
thresholded here: the denoiser is exact, and a bounded x̂_0 would be that of another law.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import pairwise

import torch
from torch import Tensor

from pathline.core import noise
from pathline.edit import Confidence, code, sdedit
from pathline.fields import Gaussian
from pathline.paths import CondOT, GaussianPath, VPLinear
from pathline.solvers import BDIA, Solver
from pathline.solvers.langevin import AnnealedBlocks
from pathline.systems.code_digits import Digits
from pathline.systems.system import Claim, Plot, System, register

STEPS = 200
RATES = (1e-4, 1e-3, 1e-2)
STRENGTHS = (10, 20, 30, 40, 50, 60, 80, 100, 120)
WIDTHS = (1.0, 1.7, 2.0, 3.0)
WALK = 2000


@dataclass(frozen=True)
class Experiment:
    """What the claims read.

    Args:
        digits: pictures and their prior.
        walkers: samples of the walk that must stay where it is.
    """

    digits: Digits = field(default_factory=Digits)
    walkers: int = 1000

    @cache  # noqa: B019 - lives as long as the run
    def repaired(
        self, what: str, depth: int, rate: float | None, eta: float | None = 1.7
    ) -> Tensor:
        """Return damaged digits as CODE repairs them; without Langevin steps if there is no e."""
        y, n = self.digits.damaged[what], 0 if rate is None else 200
        made = code(
            self.digits.law, y, depth=depth, eps_rel=rate or 1e-3, n=n, eta=eta, threshold=None
        )
        return made.x[:, 0]

    @cache  # noqa: B019 - lives as long as the run
    def noised(self, what: str, depth: int) -> Tensor:
        """Return damaged digits as SDEdit repairs them."""
        y = self.digits.damaged[what]
        return sdedit(self.digits.law, y, strength=depth / STEPS, steps=STEPS).x[:, 0]

    def off(self, x: Tensor, what: str) -> float:
        """Return the mean square distance to the damaged digits."""
        return float((x - self.digits.damaged[what]).square().mean())

    def wrong(self, x: Tensor) -> float:
        """Return the mean square distance to the digits before their damage."""
        return float((x - self.digits.clean).square().mean())

    def more_real(self) -> float:
        """Return how much more real CODE makes masked digits than SDEdit at L = 50."""
        real = self.digits.realism
        return real(self.repaired("mask", 80, 1e-4)) - real(self.noised("mask", 50))

    @cache  # noqa: B019 - lives as long as the run
    def curve(self, what: str, of: str = "input") -> list[tuple[float, float]]:
        """Return SDEdit's realism and distance to the input, or the clean digits, by strength."""
        made = [self.noised(what, depth) for depth in STRENGTHS]
        return [(self.digits.realism(x), self.distance(x, what, of)) for x in made]

    def distance(self, x: Tensor, what: str, of: str) -> float:
        """Return the distance to the input, or to the clean digits."""
        return self.off(x, what) if of == "input" else self.wrong(x)

    def against_curve(self, what: str, depth: int, rate: float, of: str = "input") -> float:
        """Return CODE's distance over SDEdit's at the same realism, or at the most it comes to."""
        x = self.repaired(what, depth, rate)
        return self.distance(x, what, of) / interpolated(
            self.curve(what, of), self.digits.realism(x)
        )

    def least_rise(self) -> float:
        """Return the least ratio of distances to the input from one step size to the next."""
        offs = [[self.off(self.repaired(w, 80, e), w) for e in RATES] for w in self.digits.damaged]
        return min(b / a for row in offs for a, b in pairwise(row))

    def untypical(self) -> float:
        """Return how far realism is from that of the prior's own draws, over all damage."""
        real = self.digits.realism
        made = [self.repaired(w, d, 1e-2) for w in self.digits.damaged for d in (80, 120)]
        return max(abs(real(x) - self.digits.typical) for x in made)

    def covered(self, spread: float, path: GaussianPath, times: Sequence[float]) -> list[float]:
        """Return by how many standard errors more states are inside than are promised."""
        n, found = 100_000, list[float]()
        u = noise.uniform(range(n), (1,), stream="data", dtype=torch.float64)
        z = noise.normal(range(n), (1,), stream="data", index=1, dtype=torch.float64)
        for eta in WIDTHS:
            interval = Confidence(eta)
            for t in times:
                x = path.noised(spread * (2 * u - 1), z, t)
                share, p = 1 - float(interval(x, path, t)[1].mean()), interval.coverage
                found.append((share - p) / math.sqrt(p * (1 - p) / n))
        return found

    @cached_property
    def stationary(self) -> float:
        """How far the variance of exact samples moves in a long walk, relatively."""
        variances = torch.linspace(0.1, 1.0, 64, dtype=torch.float64)
        law = Gaussian(VPLinear(), torch.zeros(64, dtype=torch.float64), variances)
        t, seeds = torch.tensor(0.5, dtype=torch.float64), range(self.walkers)
        alpha, sigma = float(law.path.alpha(t)), float(law.path.sigma(t))
        exact = alpha**2 * variances + sigma**2
        x = noise.normal(seeds, (64,), stream="data", dtype=torch.float64) * exact.sqrt()
        bound = law.bind(t[None], x, {})

        def score(at: Tensor) -> Tensor:
            return (alpha * bound(0, at) - at) / sigma**2

        walk = AnnealedBlocks(WALK, 1)
        end = walk.run(score, x, 1e-3 * sigma**2, sigma, seeds=seeds).x
        return abs(float((end.square().mean(0) / exact).mean()) - 1)

    @cache  # noqa: B019 - lives as long as the run
    def round_trip(self, solver: Solver | str) -> float:
        """Return the mean square error of encoding and decoding clean digits."""
        x = self.digits.clean
        made = code(
            self.digits.law, x, depth=STEPS, n=0, eta=None, threshold=None, jitter=0.0,
            solver=solver,
        )  # fmt: skip
        return self.wrong(made.x[:, 0])


def interpolated(curve: Sequence[tuple[float, float]], realism: float) -> float:
    """Return the distance at a realism on a curve, linearly; beyond its most real point, there.

    Raises:
        ValueError: the whole curve is more real.
    """
    rising = sorted(curve)
    if realism > rising[-1][0]:
        return rising[-1][1]
    for (r0, d0), (r1, d1) in pairwise(rising):
        if r0 <= realism <= r1:
            return d0 + (d1 - d0) * (realism - r0) / (r1 - r0)
    raise ValueError(f"the curve begins at {rising[0][0]:.3g}, and {realism:.3g} is less real.")


def plots(e: Experiment) -> tuple[Plot, ...]:
    """Return the trade of realism against fidelity for masks and for noise."""

    def of(what: str) -> Plot:
        real = e.digits.realism
        walked = [e.repaired(what, d, 1e-3) for d in (20, 40, 80, 120)]
        curves = {
            "SDEdit": [(d, -r) for r, d in e.curve(what)],
            "CODE, η = 1.7, e = 1e-3": [(e.off(x, what), -real(x)) for x in walked],
        }
        axes = "mean square distance to the input", "surprise, −log p per dimension"
        return Plot(f"Digits with {what}", *axes, curves)

    return of("mask"), of("noise")


TIMES = tuple(float(k) / 20 for k in range(1, 21))
CLAIMS = (
    Claim("mask-realism", "masked digits: realism of CODE (η = 1.7, L = 80, e = 1e-4) beyond that "
          "of SDEdit at L = 50", Experiment.more_real, 0.0, "higher", headline=True),
    Claim("mask-input", "its distance to the input over SDEdit's", lambda e: e.off(
        e.repaired("mask", 80, 1e-4), "mask") / e.off(e.noised("mask", 50), "mask"), 0.5,
          headline=True),
    Claim("mask-clean", "its distance to the clean digit over SDEdit's", lambda e: e.wrong(
        e.repaired("mask", 80, 1e-4)) / e.wrong(e.noised("mask", 50)), 0.8, headline=True),
    Claim("equal-input", "at the realism that CODE has, or the most that SDEdit comes to (L ≤ "
          "120): its distance to the input over SDEdit's",
          lambda e: e.against_curve("mask", 80, 1e-4), 0.5),
    Claim("equal-clean", "at the same realism: its distance to the clean digit over SDEdit's",
          lambda e: e.against_curve("mask", 80, 1e-4, "clean"), 0.8),
    Claim("clip-realism", "clipping alone (L = 120) makes masked digits as real as",
          lambda e: e.digits.realism(e.repaired("mask", 120, None)), -0.30, "higher"),
    Claim("clip-input", "at a distance to the input of", lambda e: e.off(
        e.repaired("mask", 120, None), "mask"), 0.10),
    Claim("no-clip", "without clipping their realism stays at", lambda e: e.digits.realism(
        e.repaired("mask", 120, None, None)), -0.45),
    Claim("noise", "noisy digits, L = 20, e = 1e-2: distance to the input over SDEdit's at the "
          "same realism", lambda e: e.against_curve("noise", 20, 1e-2), 1.0),
    Claim("contrast", "digits of less contrast, L = 80, e = 1e-2: the same is 1 ± 0.15",
          lambda e: e.against_curve("contrast", 80, 1e-2), 1.0, "equal", 0.15),
    Claim("walk", "the distance to the input grows with e at L = 80 for all damage, from one e to "
          "the next at least by a factor of", Experiment.least_rise, 1.0, "higher"),
    Claim("forgets", "e = 1e-2, L = 80 and 120: realism is off that of the prior's draws by",
          Experiment.untypical, 0.10),
    Claim("coverage", "states of uniform data inside ±(α + ησ) beyond Φ(η) − Φ(−η), in standard "
          "errors of 1e5 draws, at least", lambda e: min(e.covered(1.0, VPLinear(), TIMES)), -3.0,
          "higher"),
    Claim("coverage-zero", "the same for data at 0 and α = 0, the furthest from 0: 0 ± 3",
          lambda e: max(e.covered(0.0, CondOT(), (1.0,)), key=abs), 0.0, "equal", 3.0),
    Claim("stationary", "2000 steps of e = 1e-3 move the variance of exact samples by",
          lambda e: e.stationary, 0.02),
    Claim("round-trip", "no steps, no clipping, L = 200: mean square error of clean digits",
          lambda e: e.round_trip("ddim"), 0.012),
    Claim("round-trip-bdia", "the same with BDIA, which is inverted exactly",
          lambda e: e.round_trip(BDIA()), 1e-10),
)  # fmt: skip

register(System(
    slug="code-editing",
    title="Confident ordinary differential editing",
    paper="van Delft et al. 2024, arXiv:2408.12418",
    summary="Blind repair by encoding, a confidence interval, a Langevin walk and decoding.",
    experiment=Experiment,
    claims=CLAIMS,
    plots=plots,
))  # fmt: skip

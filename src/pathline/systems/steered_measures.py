"""What is measured of steered digits: holes, means of blocks, a half and a class."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from pathline.fields import Spherical
from pathline.solvers import Solver, grids, sample
from pathline.solvers.exponential import DDIM
from pathline.steer import Inpaint, Loss, Posterior, Projection, Repeat, operators, posterior
from pathline.steer.guide import Guide
from pathline.steer.loss import Through
from pathline.systems.steered_digits import centre, judge, law, left, log_hole, pixels
from pathline.systems.steered_emoji import OnEmoji

GRID = grids.uniform(100, last="denoise")
REPEATS = 1, 2, 4, 8
POOLED = 30.0
"""λ of the loss ½ |A x − y|² of 2 × 2 means."""

CLASS = 1.0
"""λ of the cross-entropy of the class that is asked for."""

DRAWS = 64
"""Exact draws of each half."""


def ancestral(times: int = 1) -> Solver:
    """Return DDPM with each level visited so many times."""
    return Repeat("ddpm", times) if times > 1 else DDIM(eta=1.0)


def mean_square(x: Tensor, y: Tensor) -> float:
    """Return the mean square difference."""
    return float((x - y).square().mean())


@dataclass(frozen=True)
class Experiment:
    """What the claims read.

    Args:
        n: digits.
        draws: samples of each digit's hole.
    """

    n: int = 100
    draws: int = 4

    @cached_property
    def emoji(self) -> OnEmoji:
        """What is measured on the shipped emoji model."""
        return OnEmoji()

    @cached_property
    def truth(self) -> Tensor:
        """The digits, each as often as it is drawn."""
        return pixels()[0][: self.n].repeat(self.draws, 1, 1, 1)

    @cached_property
    def exact(self) -> Posterior:
        """The posterior of the hole."""
        return posterior(law(), centre(), centre().forward(self.truth), 0.0)

    def drawn(self, guide: Guide, times: int = 1) -> Tensor:
        """Return samples of the guided mixture, one for each of `truth`."""
        n, solver = len(self.truth), ancestral(times)
        with torch.no_grad():
            return sample(law(), n, solver=solver, grid=GRID, guide=guide, dtype=torch.float64).x

    @cache  # noqa: B019 - lives as long as the run
    def inpainted(self, times: int) -> Tensor:
        """Return the digits with their holes filled, each level visited so many times."""
        return self.drawn(Inpaint(centre().mask, self.truth), times)

    @cache  # noqa: B019 - lives as long as the run
    def score(self, times: int) -> float:
        """Return the mean of log p(hole | rest), nats a pixel; of exact draws for 0."""
        x = (
            self.inpainted(times)
            if times
            else self.exact.draw(range(10**6, 10**6 + len(self.truth)))
        )
        return float(log_hole(x, centre()).mean())

    def error(self, times: int) -> float:
        """Return the mean square error of the hole."""
        hidden = 1 - centre().mask
        off = (self.inpainted(times) - self.truth).square() * hidden
        return float(off.sum() / hidden.sum() / len(off))

    @property
    def known_residual(self) -> float:
        """By how much the known pixels are off, at most."""
        off = [centre().forward(self.inpainted(k) - self.truth).abs().max() for k in REPEATS]
        return float(torch.stack(off).max())

    @property
    def pooled_residual(self) -> float:
        """By how much 2 × 2 means are off that were projected onto, at most."""
        pooling = operators.Pooling(2)
        y = pooling.forward(self.truth)
        return float((pooling.forward(self.drawn(Projection(pooling, y))) - y).abs().max())

    @cache  # noqa: B019 - lives as long as the run
    def pooled(self, through: Through) -> tuple[float, float, float]:
        """Return mean log p a pixel, the error to the truth, and the rms residual."""
        pooling = operators.Pooling(2)
        y = pooling.forward(self.truth)

        def loss(x: Tensor) -> Tensor:
            return (pooling.forward(x) - y).square().flatten(1).sum(1) / 2

        x = self.drawn(Loss(loss, POOLED, through=through))
        density = law().log_prob(x, torch.zeros((), dtype=torch.float64)).mean() / 64
        residual = (pooling.forward(x) - y).square().mean().sqrt()
        return float(density), mean_square(x, self.truth), float(residual)

    @cached_property
    def _allowed(self) -> Tensor:
        """What the classifier says of exact draws given the left half, (n, DRAWS, classes)."""
        known = left().forward(pixels()[0][: self.n]).repeat_interleave(DRAWS, 0)
        x = posterior(law(), left(), known, 0.0).draw(range(len(known)))
        return judge()(x).softmax(1).unflatten(0, (self.n, DRAWS))

    @cached_property
    def asked(self) -> Tensor:
        """The class that each left half most allows besides the digit's own, (n,)."""
        own = pixels()[1][: self.n, None]
        return self._allowed.mean(1).scatter(1, own, 0.0).argmax(1)

    def share(self, x: Tensor) -> float:
        """Return how many samples the classifier takes for what was asked."""
        return float((judge()(x).argmax(1) == self.asked.repeat(self.draws)).double().mean())

    @property
    def exact_share(self) -> float:
        """The share under the exact posterior of both conditions: draws of the first, weighed."""
        weight = self._allowed.gather(2, self.asked[:, None, None].expand(-1, DRAWS, 1))[..., 0]
        hit = (self._allowed.argmax(2) == self.asked[:, None]).double()
        return float(((weight * hit).sum(1) / weight.sum(1)).mean())

    @cached_property
    def both(self) -> Tensor:
        """The left half known, and a class asked for; what the class moves is put back."""
        known = Inpaint(left().mask, self.truth)
        return self.drawn(known & Loss(self._wrong, CLASS) & known, 2)

    @cached_property
    def half(self) -> Tensor:
        """The left half known."""
        return self.drawn(Inpaint(left().mask, self.truth), 2)

    def _wrong(self, x: Tensor) -> Tensor:
        return F.cross_entropy(judge()(x), self.asked.repeat(self.draws), reduction="none")

    @property
    def both_residual(self) -> float:
        """By how much the known half is off, at most."""
        return float(left().forward(self.both - self.truth).abs().max())


def gradient_error(n: int = 32) -> float:
    """Return how far g of autograd is from (α/σ²) Cov[x_0 | x_t] ∇V, relatively, at four times."""
    prior, worst = law(), 0.0
    target = pixels()[0][n : 2 * n]
    for t in (0.05, 0.2, 0.5, 0.8):
        at = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = prior.path.alpha(at), prior.path.sigma(at)
        x = alpha * pixels()[0][:n] + sigma * prior.draw(range(n))
        plain = prior(x, at).x0
        guide = Loss(lambda z: (z - target).square().flatten(1).sum(1) / 2, lag=0.0)
        moved = (guide(prior)(x, at).x0 - plain) / -sigma
        exact = (
            alpha / sigma**2 * (_covariance(prior, x, at) @ (plain - target).flatten(1)[..., None])
        )
        exact = exact[..., 0].view_as(x)
        worst = max(worst, float((moved - exact).abs().max() / exact.abs().max()))
    return worst


def _covariance(prior: Spherical, x: Tensor, t: Tensor) -> Tensor:
    """Return Cov[x_0 | x_t] of the mixture, (batch, 64, 64), from the law of its components."""
    alpha, sigma = prior.path.alpha(t), prior.path.sigma(t)
    share = prior.log_joint(x, t).softmax(1)
    variance = (alpha * prior.stds) ** 2 + sigma**2
    gain = (alpha * prior.stds**2 / variance)[:, None]
    means = prior.means.flatten(1)
    each = means + gain * (x.flatten(1)[:, None] - alpha * means)
    off = each - (share[..., None] * each).sum(1, keepdim=True)
    within = (share @ (prior.stds**2 * sigma**2 / variance))[:, None, None]
    eye = torch.eye(means.shape[1], dtype=torch.float64)
    return within * eye + torch.einsum("bk,bki,bkj->bij", share, off, off)

"""Exact denoisers: data laws whose posterior mean E[x_0 | x_t] has a closed form.

They are the ground truth of the test suite and of every claim that "holds exactly", and they make
a benchmark of any path: no training, no approximation, float64 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.fields.field import Condition, Evaluate, Field
from pathline.fields.views import View
from pathline.paths import GaussianPath, Time, as_time, bshape

_LOG_2PI = math.log(2 * math.pi)


class Oracle(Field):
    """What exact denoisers share: they know nothing of single samples, and take no condition."""

    def part(self, cond: Condition, rows: Tensor) -> Condition | None:
        del rows
        return cond


def check_gaussian(path: GaussianPath) -> None:
    """Refuse a path whose noise has no closed form with continuous data."""
    if not path.kernel.is_gaussian:
        raise UsageError(
            f"this closed form is for Gaussian noise, and the path's has D={path.kernel.dof:g}; "
            "take Dataset, whose points serve any D, or path.gaussian."
        )


@dataclass(frozen=True)
class Gaussian(Oracle):
    """Gaussian data N(mean, covariance), with its exact flow map.

        x̂_0 = m + α C (α² C + σ² I)⁻¹ (x − α m)

    Args:
        path: any Gaussian path.
        mean: (dim,).
        covariance: (dim, dim) symmetric positive semi-definite, or (dim,) variances. It may be
            singular: data on a subspace (`Subspace.gaussian`) have x̂_0 on it exactly.

    Raises:
        UsageError: noise that is not Gaussian; shapes that do not fit; at the first use, a
            covariance that is none.

    Cost: one eigendecomposition in float64 for all evaluations, then two products each.
    """

    path: GaussianPath  # pyright: ignore[reportIncompatibleVariableOverride]
    mean: Tensor
    covariance: Tensor
    view: View = "x0"

    def __post_init__(self) -> None:
        check_gaussian(self.path)
        dim, shape = self.mean.numel(), tuple(self.covariance.shape)
        if self.mean.ndim != 1 or shape not in ((dim,), (dim, dim)):
            raise UsageError(
                f"a Gaussian has a mean of shape (dim,) and a covariance of (dim, dim), or (dim,) "
                f"variances; these are {tuple(self.mean.shape)} and {shape}: flatten pictures."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.mean.shape)

    @cached_property
    def _kept(self) -> tuple[Tensor, Tensor]:
        """The axes, for all evaluations."""
        return self._axes()

    def _axes(self) -> tuple[Tensor, Tensor]:
        """Return variances, none below 0 by rounding, and their directions, in float64."""
        covariance = self._matrix
        values, vectors = torch.linalg.eigh(covariance)
        if float(values.detach()[0]) < -1e-6 * float(values.detach().abs().max()):
            raise UsageError(
                f"a covariance has no negative variance, and this one has {float(values[0]):.3g}; "
                "give a symmetric positive semi-definite matrix, or (dim,) variances."
            )
        return values.clamp(min=0), vectors

    @property
    def _matrix(self) -> Tensor:
        """The covariance, (dim, dim) float64."""
        with torch.inference_mode(False):  # what is kept must serve gradients
            covariance = self.covariance.clone().double()
            return covariance.diag() if covariance.ndim == 1 else covariance

    def _spectrum(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        is_trained = self.covariance.requires_grad  # a graph is for one evaluation
        with torch.inference_mode(False):
            values, vectors = self._axes() if is_trained else self._kept
        return self.mean.to(like), values.to(like), vectors.to(like)

    def given(self, matrix: Tensor, y: Tensor | float, std: float) -> Gaussian:
        """Return the law of x_0 given y = A x_0 + s n: the posterior, in closed form.

            m + K (y − A m),   C − K A C,   K = C Aᵀ (A C Aᵀ + s² I)⁻¹

        Args:
            matrix: A, (measured, dim); or (dim,) of one measurement.
            y: (measured,), or a number of one.
            std: s, above 0.
        """
        if not std > 0:
            raise UsageError(f"std={std}: a law given a measurement needs noise on it, s > 0.")
        a, c, m = matrix.reshape(-1, *self.shape).double(), self._matrix, self.mean.double()
        seen = torch.as_tensor(y, dtype=torch.float64).reshape(-1)
        root = torch.linalg.cholesky(a @ c @ a.T + std**2 * torch.eye(len(a)).to(a))
        gain = torch.cholesky_solve(a @ c, root).T
        left = c - gain @ (a @ c)
        return replace(self, mean=m + gain @ (seen - a @ m),
                       covariance=(left + left.T) / 2)  # fmt: skip

    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.bind(t.reshape(1, *t.shape), x, cond)(0, x)

    def bind(self, times: Tensor, x: Tensor, cond: Condition) -> Evaluate:
        mean, values, vectors = self._spectrum(x)
        steps: list[tuple[Tensor, Tensor]] = []
        for a, s in zip(self.path.alpha(times), self.path.sigma(times), strict=True):
            alpha, sigma = bshape(a, x), bshape(s, x)
            steps.append((alpha * mean, alpha * values / (alpha**2 * values + sigma**2)))

        def evaluate(k: int, state: Tensor) -> Tensor:
            center, gain = steps[k]
            return mean + ((state - center) @ vectors * gain) @ vectors.T

        return evaluate

    def draw(self, seeds: Sequence[int]) -> Tensor:
        """Return data, (batch, dim) float64; each is a function of its seed."""
        z = noise.normal(seeds, self.shape, stream="data", dtype=torch.float64)
        mean, values, vectors = self._spectrum(z)
        return mean + (z * values.sqrt()) @ vectors.T

    def flow(self, x: Tensor, start: Time, end: Time) -> Tensor:
        """Carry x from time `start` to `end` along the probability flow, exactly.

        Each eigendirection is scaled by √((α_e² c + σ_e²)/(α_s² c + σ_s²)).
        """
        mean, values, vectors = self._spectrum(x)
        p, (s, e) = self.path, (as_time(start), as_time(end))
        spread = [(p.alpha(t) ** 2 * values + p.sigma(t) ** 2).sqrt() for t in (s, e)]
        scaled = (x - p.alpha(s) * mean) @ vectors * (spread[1] / spread[0])
        return p.alpha(e) * mean + scaled @ vectors.T

    def log_prob(self, x: Tensor, t: Time) -> Tensor:
        """log p_t(x), (batch,)."""
        mean, values, vectors = self._spectrum(x)
        alpha, sigma = (bshape(c(as_time(t)), x) for c in (self.path.alpha, self.path.sigma))
        variance = alpha**2 * values + sigma**2
        squared = ((x - alpha * mean) @ vectors).square()
        return -(squared / variance + variance.log() + _LOG_2PI).sum(1) / 2

    def log_prob_noised(self, x: Tensor, sigmas: Tensor) -> Tensor:
        """log density of x_0 + σ ε for every σ, (batch, levels)."""
        mean, values, vectors = self._spectrum(x)
        variance = values + sigmas.to(x)[:, None] ** 2
        squared = ((x - mean) @ vectors).square()
        return -(squared @ (1 / variance).T + (variance.log() + _LOG_2PI).sum(1)) / 2


@dataclass(frozen=True)
class Mixture(Oracle):
    """A Gaussian mixture with axis-aligned components.

    Args:
        path: any Gaussian path.
        means: (components, dim).
        stds: (components, dim).
        weights: (components,), summing to one.
    """

    path: GaussianPath  # pyright: ignore[reportIncompatibleVariableOverride]
    means: Tensor
    stds: Tensor
    weights: Tensor
    view: View = "x0"

    def __post_init__(self) -> None:
        check_gaussian(self.path)
        if self.means.shape != self.stds.shape or len(self.weights) != len(self.means):
            raise UsageError(
                f"means {tuple(self.means.shape)}, stds {tuple(self.stds.shape)} and "
                f"weights {tuple(self.weights.shape)} do not describe one mixture."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.means.shape[1:])

    def _parts(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return α, each component's residual (batch, k, dim) and its variance at time t."""
        alpha = bshape(self.path.alpha(t), x[:, None])
        sigma = bshape(self.path.sigma(t), x[:, None])
        variance = (alpha * self.stds.to(x)) ** 2 + sigma**2
        return alpha, x[:, None] - alpha * self.means.to(x), variance

    def _log_joint(self, residual: Tensor, variance: Tensor) -> Tensor:
        """log of weight × density for each component, without the constant (2π)^−d/2."""
        quadratic = (residual**2 / variance + variance.log()).sum(-1)
        return self.weights.to(residual).log() - quadratic / 2

    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self._bound(t.reshape(1, *t.shape), x)(0, x)

    def bind(self, times: Tensor, x: Tensor, cond: Condition) -> Evaluate:
        if type(self).evaluate is not Mixture.evaluate:  # somebody evaluates otherwise
            return super().bind(times, x, cond)
        return self._bound(times, x)

    def _bound(self, times: Tensor, x: Tensor) -> Evaluate:
        """Work out all that depends on times alone once, for all of them together.

        Not where that has a gradient, which would keep it alive for every step of a solve.
        """
        learns = self.stds.requires_grad or self.weights.requires_grad
        steps = None if learns and torch.is_grad_enabled() else self._at(times, x)
        means = self.means.to(x)

        def evaluate(k: int, state: Tensor) -> Tensor:
            made = self._at(times[k : k + 1], x)[0] if steps is None else steps[k]
            a, precision, offset, gain = made
            residual = state[:, None] - a * means
            shares = (offset - (residual.square() * precision).sum(-1)).softmax(1)
            return (shares[..., None] * torch.addcmul(means, gain, residual)).sum(1)

        return evaluate

    def _at(self, times: Tensor, like: Tensor) -> list[tuple[Tensor, ...]]:
        """Return α, 1/2v, log w − ½ Σ log v and the gain α s²/v at each time, v = α² s² + σ²."""
        alpha, sigma = (
            c(times).to(like).reshape(len(times), -1, 1, 1)
            for c in (self.path.alpha, self.path.sigma)
        )
        squared = self.stds.to(like) ** 2
        variance = alpha**2 * squared + sigma**2
        constant = self.weights.to(like).log() - variance.log().sum(-1) / 2
        known = (alpha, 0.5 / variance, constant, alpha * squared / variance)
        return list(zip(*(each.unbind() for each in known), strict=True))

    def draw(self, seeds: Sequence[int]) -> Tensor:
        """Return data, (batch, dim) float64; each is a function of its seed."""
        z = noise.normal(seeds, self.shape, stream="data", dtype=torch.float64)
        u = noise.uniform(seeds, (1,), stream="data", index=1, dtype=torch.float64)
        which = (u > self.weights.to(z).cumsum(0)[:-1]).sum(1)
        return self.means.to(z)[which] + self.stds.to(z)[which] * z

    def log_prob(self, x: Tensor, t: Time) -> Tensor:
        """log p_t(x), (batch,)."""
        _, residual, variance = self._parts(x, as_time(t))
        return self._log_joint(residual, variance).logsumexp(1) - x.shape[1] / 2 * _LOG_2PI

    def log_prob_noised(self, x: Tensor, sigmas: Tensor) -> Tensor:
        """log density of x_0 + σ ε for every σ, (batch, levels)."""
        residual = x[:, None] - self.means.to(x)
        variance = self.stds.to(x) ** 2 + sigmas.to(x)[:, None, None] ** 2  # (levels, k, dim)
        quadratic = torch.einsum("bkd,mkd->kbm", residual**2, 1 / variance)
        offset = self.weights.to(x).log() - variance.log().sum(-1) / 2
        joint = offset.T[:, None] - quadratic / 2
        return joint.logsumexp(0) - x.shape[1] / 2 * _LOG_2PI


@dataclass(frozen=True)
class Dataset(Oracle):
    """The exact denoiser of a finite data set: a softmax over its points.

        x̂_0 = Σ_i w_i x_i,   w ∝ p_ε((x − α x_i)/σ) = exp(−‖x − α x_i‖² / 2σ²)

    It reproduces the training set, as any network of unbounded capacity would. Where the path's
    noise is Student-t, so is p_ε; the weights are then computed in float64.

    Args:
        path: any path.
        points: (n, *state).
    """

    path: GaussianPath  # pyright: ignore[reportIncompatibleVariableOverride]
    points: Tensor
    view: View = "x0"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.points.shape[1:])

    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        kernel, n = self.path.kernel, self.points[0].numel()
        if x[0].numel() != n:
            raise UsageError(f"the kernel was built for N={n}, and the sample has {x[0].numel()}.")
        state = x if kernel.is_gaussian else x.double()
        points, flat = self.points.to(state).flatten(1), state.flatten(1)[:, None]
        alpha, sigma = bshape(self.path.alpha(t), flat), bshape(self.path.sigma(t), flat)
        distance = ((flat - alpha * points) / sigma).square().sum(-1)
        return (kernel.log_shape(distance, n).softmax(1) @ points).reshape(x.shape).to(x.dtype)

    def log_prob(self, x: Tensor, t: Time) -> Tensor:
        """log p_t(x), (batch,)."""
        points, flat = self.points.to(x).flatten(1), x.flatten(1)[:, None]
        alpha, sigma = (c(as_time(t)).to(flat) for c in (self.path.alpha, self.path.sigma))
        squared = (flat - bshape(alpha, flat) * points).square().sum(-1)
        return self._log_mixed(squared, sigma.reshape(-1, 1)).squeeze(1)

    def log_prob_noised(self, x: Tensor, sigmas: Tensor) -> Tensor:
        """log density of x_0 + σ ε for every σ, (batch, levels)."""
        points, flat = self.points.to(x).flatten(1), x.flatten(1)
        squared = (flat[:, None] - points).square().sum(-1)
        return self._log_mixed(squared, sigmas.to(x)[None])

    def _log_mixed(self, squared: Tensor, sigma: Tensor) -> Tensor:
        """Return the log mean density of σ ε at distances (batch, n), for σ (batch, levels)."""
        n, dim, kernel = self.points.shape[0], self.points[0].numel(), self.path.kernel
        joint = kernel.log_shape(squared[:, None] / sigma[:, :, None] ** 2, dim)
        return joint.logsumexp(2) - math.log(n) - dim * sigma.log() + kernel.log_peak(dim)

"""The data separation function λ(s), measured: on a data set, or with a trained denoiser.

    λ(s) = 1 − E ‖x̂_0 − x_0‖²/d      from the denoiser's error
         = E ‖x̂_0‖²/d                from the energy of its answers

at s = α/σ, for data scaled to mean 0 and E ‖x_0‖² = d. For the exact posterior mean both are the
same; with a network the first is a lower bound of λ, whatever the network is, and their difference
measures how far it is from the best one.

Paper: Shaul et al. 2023 (arXiv:2306.06626).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.core.progress import track
from pathline.fields.field import Field
from pathline.fields.oracles import Dataset, Gaussian, Mixture
from pathline.paths import KineticOptimal, Separation
from pathline.paths.separation import check_scales, gaussian_mmse

BATCH = 1024
"""Draws, and points of a data set, that are handled at once."""

_PART = 128
"""Draws that a denoiser is asked at once."""

SCALES: tuple[float, ...] = tuple(torch.logspace(-2, 2, 64, dtype=torch.float64).tolist())
"""Where λ is measured if nobody says it."""

_SURE = 3.0
"""Standard errors by which an estimate may leave what is possible."""

Denoise = Callable[[Tensor, float], Tensor]
"""x_0 + ε/s, (batch, d) of scaled data, and s → x̂_0."""


@dataclass(frozen=True)
class Estimate:
    """λ(s), estimated in two ways; every number is of data scaled to mean 0 and E ‖x_0‖² = d.

    Args:
        scales: s, (levels,).
        mmse: E ‖x̂_0 − x_0‖²/d at each.
        mmse_error: their standard errors.
        energy: E ‖x̂_0‖²/d.
        energy_error: their standard errors.
        mean: what was subtracted from the data, (*state).
        std: what they were divided by.
        scale: c of the paths for these data as they are: `std`, or 1 if they were left alone.
    """

    scales: Tensor
    mmse: Tensor
    mmse_error: Tensor
    energy: Tensor
    energy_error: Tensor
    mean: Tensor
    std: float
    scale: float

    @property
    def lam(self) -> Tensor:
        """λ(s) = 1 − mmse/d, as it was measured."""
        return 1 - self.mmse

    @property
    def gap(self) -> Tensor:
        """E ‖x̂_0‖²/d − λ: 0 but for the draws if the denoiser is exact."""
        return self.energy - self.lam

    @property
    def separation(self) -> Separation:
        """λ in its bounds, s²/(1 + s²) ≤ λ ≤ 1, and made to rise by isotonic regression.

        Raises:
            UsageError: the draws contradict each other, or the bounds, by 3 standard errors.
        """
        self._check()
        ceiling = 1 / (1 + self.scales**2)
        bounded = torch.minimum(self.mmse, ceiling)
        falling = -rising((-bounded).tolist())
        mmse = torch.minimum(falling, ceiling).clamp(min=0)
        return Separation(tuple(self.scales.tolist()), tuple(mmse.tolist()))

    def path(self, floor: float = 0.05) -> KineticOptimal:
        """Return the kinetic optimal path for these data."""
        return KineticOptimal(self.separation, floor, self.scale)

    def _check(self) -> None:
        lam, error = self.lam, _SURE * self.mmse_error
        if bool((lam < -error).any() | (lam > 1 + error).any()):
            at = int((lam < -error).int().argmax())
            raise UsageError(
                f"λ leaves [0, 1] by more than 3 standard errors ({float(lam[at]):.4g} at "
                f"s = {float(self.scales[at]):.4g}): increase draws; if it stays, the denoiser is "
                "worse than the mean of the data."
            )
        fall = lam[:-1] - lam[1:] - torch.hypot(error[:-1], error[1:])
        if bool((fall > 1e-12).any()):
            at = int(fall.argmax())
            raise UsageError(
                f"λ falls from {float(lam[at]):.4g} to {float(lam[at + 1]):.4g} at "
                f"s = {float(self.scales[at]):.4g}, by more than 3 standard errors: increase "
                "draws; if it stays, the denoiser is wrong there."
            )


def estimate(
    source: Tensor | Field,
    data: Tensor | None = None,
    *,
    scales: Sequence[float] | None = None,
    draws: int = 4096,
    seed: int = 0,
    normalise: bool = True,
    **cond: Any,
) -> Estimate:
    """Measure the data separation function.

    All levels see the same data and the same noise, so the curve is smoother than its errors say.

    Args:
        source: data (n, *state), whose posterior mean is known exactly; or a denoiser on a path.
        data: what the denoiser was trained on, (n, *state); an oracle draws its own.
        scales: s at variance 1, positive and rising; 64 from 0.01 to 100 if None, as far as
            the denoiser's path goes.
        draws: noised data for each level.
        seed: of the draws.
        normalise: False to insist that the data have mean 0 and E ‖x‖² = d already.
        cond: the denoiser's condition, one for all draws.

    Raises:
        UsageError: data without variance, or not normalised though `normalise=False`; scales that
            do not rise, or that the denoiser's path does not cover.

    Cost: `draws` evaluations of a denoiser at each level; draws × n × d products for a data set.

    Example: two points ±1 at s = 1, where λ = E tanh²(s² + s ε) = 0.5504.
        >>> found = estimate(torch.tensor([[-1.0], [1.0]]), scales=[0.5, 1.0, 2.0], draws=20_000)
        >>> bool((found.lam[1] - 0.5504).abs() < 0.02)
        True
    """
    if draws < 2:
        raise UsageError(f"at least 2 draws are needed, and {draws} were asked for.")
    known = _known(source, data, draws, seed)
    if not normalise:
        _check_normal(known)
    levels = _chosen(source, scales, known.std)
    scale = known.std if normalise else 1.0
    if isinstance(source, Gaussian):
        mmse, none = gaussian_mmse(known.variances)(levels), torch.zeros_like(levels)
        return Estimate(levels, mmse, none, 1 - mmse, none, known.mean, known.std, scale)
    denoise = _asked(source, known, cond) if isinstance(source, Field) else _posterior(known)
    batches = track(_draws(known.points, draws, seed), "separation", total=-(-draws // BATCH))
    error, energy = _Sums.empty(len(levels)), _Sums.empty(len(levels))
    for y, eps in batches:
        for i, s in enumerate(levels.tolist()):
            x0, linear = denoise(y + eps / s, s), (s * s * y + s * eps) / (1 + s * s)
            error.add(i, (x0 - y).square().mean(1), (linear - y).square().mean(1))
            energy.add(i, x0.square().mean(1), linear.square().mean(1))
    worst = 1 / (1 + levels**2)
    made = *error.controlled(worst, draws), *energy.controlled(1 - worst, draws)
    return Estimate(levels, *made, known.mean, known.std, scale)


def posterior_mean(x: Tensor, points: Tensor, s: float) -> Tensor:
    """Return E[x_0 | x_0 + ε/s = x] for x_0 drawn from n points, in blocks of them.

    Args:
        x: (batch, d).
        points: (n, d), each as likely.
        s: α/σ.
    """
    s2 = s * s
    most = x.new_full((len(x), 1), -torch.inf)
    total, weighed = x.new_zeros(len(x), 1), torch.zeros_like(x)
    for block in points.split(BATCH):
        logits = s2 * (x @ block.T - block.square().sum(1) / 2)
        higher = torch.maximum(most, logits.amax(1, keepdim=True))
        weights, kept = (logits - higher).exp(), (most - higher).exp()
        total = total * kept + weights.sum(1, keepdim=True)
        weighed, most = weighed * kept + weights @ block, higher
    return weighed / total


def rising(values: Sequence[float]) -> Tensor:
    """Return the rising sequence nearest to one in squares (pool adjacent violators), float64.

    >>> rising([1.0, 3.0, 2.0, 4.0]).tolist()
    [1.0, 2.5, 2.5, 4.0]
    """
    pools: list[tuple[float, int]] = []
    for value in values:
        pool = (value, 1)
        while pools and pools[-1][0] > pool[0]:
            (a, n), (b, m) = pools.pop(), pool
            pool = ((a * n + b * m) / (n + m), n + m)
        pools.append(pool)
    return torch.tensor([value for value, n in pools for _ in range(n)], dtype=torch.float64)


class _Data(NamedTuple):
    """Data scaled to mean 0 and E ‖x‖² = d, (n, d), and what was done to them.

    Args:
        points: the scaled data, (n, d).
        mean: what was subtracted, (*state).
        std: what they were divided by.
        variances: of Gaussian data, for its closed form.
    """

    points: Tensor
    mean: Tensor
    std: float
    variances: tuple[float, ...] = ()


class _Sums(NamedTuple):
    """Sums over the draws of a quantity e and of its control l, whose mean is known.

    The control is what the best linear denoiser gives, x̂_0 = s² x/(1 + s²), of mmse 1/(1 + s²).
    Where noise is much both nearly agree, and what is left of e − b l hardly varies.
    """

    values: Tensor

    @classmethod
    def empty(cls, levels: int) -> _Sums:
        return cls(torch.zeros(5, levels, dtype=torch.float64))

    def add(self, level: int, e: Tensor, control: Tensor) -> None:
        products = torch.stack((e, control, e * e, control * control, e * control))
        self.values[:, level] += products.sum(1).cpu()

    def controlled(self, exact: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Return the mean of e − b (l − exact), b = Cov(e, l)/Var(l), and its standard error."""
        e, control, ee, cc, ec = self.values / n
        variance, spread = (cc - control**2).clamp(min=1e-300), (ee - e**2).clamp(min=0)
        b = (ec - e * control) / variance
        left = (spread - b**2 * variance).clamp(min=0)
        return e - b * (control - exact), (left / (n - 1)).sqrt()


def _known(source: Tensor | Field, data: Tensor | None, draws: int, seed: int) -> _Data:
    """Return the data of a source: itself, the user's, an oracle's own, or a law in closed form."""
    if isinstance(source, Gaussian):
        covariance = source.covariance.double()
        variances = torch.linalg.eigvalsh(covariance) if covariance.ndim == 2 else covariance
        std = float(variances.mean().sqrt())
        none, mean = torch.zeros(0), source.mean.double()
        return _Data(none, mean, std, tuple(variances.clamp(min=0).tolist()))
    if not isinstance(source, Field):
        return _normalised(source)
    if data is not None:
        return _normalised(data if source.device is None else data.to(source.device))
    if isinstance(source, Mixture):
        weights, means = source.weights.double()[:, None], source.means.double()
        mean = (weights * means).sum(0)
        second = weights * (source.stds.double() ** 2 + (means - mean) ** 2)
        std = float(second.sum(0).mean().sqrt())
        return _Data((source.draw(range(seed, seed + draws)) - mean) / std, mean, std)
    if isinstance(source, Dataset):
        return _normalised(source.points)
    raise UsageError("a denoiser does not know its data: give some of them, data=(n, *state).")


def _draws(flat: Tensor, n: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of scaled data, drawn with replacement, and of noise."""
    for index, first in enumerate(range(0, n, BATCH)):
        size = min(BATCH, n - first)
        u = noise.uniform([seed], (size,), stream="choice", index=index, dtype=torch.float64)
        chosen = (u[0] * len(flat)).long().to(flat.device)
        shape = (size, flat.shape[1])
        eps = noise.normal(
            [seed], shape, stream="probe", index=index, dtype=torch.float64, device=flat.device
        )
        yield flat[chosen], eps[0]


def _posterior(known: _Data) -> Denoise:
    return lambda x, s: posterior_mean(x, known.points, s)


def _asked(field: Field, known: _Data, cond: dict[str, Any]) -> Denoise:
    """Return the denoiser for scaled data: at λ = log(s/c), of x = α (c y + m) + σ ε."""
    path, std, middle = field.path, known.std, known.mean.flatten()
    assert path is not None

    def denoise(x: Tensor, s: float) -> Tensor:
        t = path.time_of_log_snr(math.log(s / std))
        state = float(path.alpha(t)) * (std * x + middle)
        parts = state.reshape(len(x), *known.mean.shape).split(_PART)
        with torch.no_grad():
            x0 = torch.cat([field(part, t, **cond).x0 for part in parts])
        return (x0.double().flatten(1) - middle) / std

    return denoise


def _normalised(data: Tensor) -> _Data:
    if data.ndim < 2 or data.shape[0] < 2 or data[0].numel() < 1:
        raise UsageError(
            f"the data {tuple(data.shape)} have no variance: at least two points (n, *state)."
        )
    flat = data.double().flatten(1)
    mean = flat.mean(0)
    std = float((flat - mean).square().mean().sqrt())
    if not 0 < std < math.inf:
        raise UsageError(f"the data have no variance: their standard deviation is {std}.")
    return _Data((flat - mean) / std, mean.reshape(data.shape[1:]), std)


def _check_normal(known: _Data) -> None:
    mean = float(known.mean.square().mean().sqrt())
    second = known.std**2 + mean**2
    if mean > 0.1 or abs(second - 1) > 0.05:
        raise UsageError(
            f"the data are not normalised: their mean is {mean:.4g} (root mean square over "
            f"dimensions; 0 is needed) and E‖x‖²/d is {second:.4g} (1 is needed); leave out "
            "normalise=False."
        )


def _chosen(source: Tensor | Field, scales: Sequence[float] | None, std: float) -> Tensor:
    """Return the levels: the user's, or those of the usual ones that the source knows."""
    given = SCALES if scales is None else tuple(scales)
    check_scales(given)
    s = torch.tensor(given, dtype=torch.float64)
    if not isinstance(source, Field):
        return s
    if source.path is None:
        raise UsageError("the separation is measured with a denoiser on a path; this has none.")
    if not source.path.kernel.is_gaussian:
        raise UsageError(
            "the separation is that of Gaussian noise, and the noise of this denoiser's path has "
            f"D={source.path.kernel.dof:g}: measure the data themselves."
        )
    low, high = (float(source.path.log_snr(t)) for t in (source.path.t_max, source.path.t_min))
    known = ((s / std).log() >= low - 1e-9) & ((s / std).log() <= high + 1e-9)
    if scales is None and int(known.sum()) >= 2:
        return s[known]
    if not bool(known.all()):
        raise UsageError(
            f"the scales ask for log-SNRs λ = log(s/{std:.4g}) from {math.log(given[0] / std):.4g} "
            f"to {math.log(given[-1] / std):.4g}, and the model was trained on {low:.4g} to "
            f"{high:.4g}."
        )
    return s

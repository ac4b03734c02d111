"""What latent variable models of series share: a look backwards, a bound, and its training.

    ELBO = Σ_i log N(x_i; said_i, noise²) − KL(q(z_0) ‖ p(z_0)) − what the paths' laws are apart

Missing values cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from pathline.core.progress import track

__all__ = ["Elbo", "Latent", "backwards", "fit_latent", "log_likelihood", "reader", "start_kl"]


class Elbo(NamedTuple):
    """The parts of the bound, means over series.

    Args:
        log_likelihood: of what was observed.
        start: KL of the laws of z_0.
        path: KL of the laws of the paths; 0 where z_0 decides the path.
        cost: of the solve, no part of the bound (`learn.solve_costs`).
    """

    log_likelihood: Tensor
    start: Tensor
    path: Tensor
    cost: Tensor

    def total(self, weight: float = 1.0) -> Tensor:
        """Return the bound, both divergences weighed."""
        return self.log_likelihood - weight * (self.start + self.path)


class Latent(Protocol):
    """A model that has such a bound."""

    def elbo(self, times: Tensor, values: Tensor, *, seed: int = 0) -> Elbo:
        """Return the parts of the bound.

        Args:
            times: (length,) float64, increasing.
            values: (batch, length, channels), NaN where nothing was observed.
            seed: of the draws: series i has seed + i.
        """
        ...


def reader(channels: int, context: int) -> nn.GRU:
    """Return what `backwards` runs over series."""
    return nn.GRU(2 * channels + 1, context, batch_first=True)


def backwards(gru: nn.GRU, times: Tensor, values: Tensor) -> Tensor:
    """Return what a GRU has seen from the end to each time, (batch, length, context).

    It is told values, which of them were observed, and the time to the next.
    """
    seen = values.isfinite()
    gaps = times.diff(append=times[-1:]).to(values)[None, :, None].expand(len(values), -1, 1)
    told = torch.cat((values.nan_to_num(), seen.to(values), gaps), 2)
    made, _ = gru(told.flip(1))
    return made.flip(1)


def log_likelihood(values: Tensor, said: Tensor, deviation: float) -> Tensor:
    """Return log N(values; said, deviation²) of what was observed, (batch,)."""
    off = torch.where(values.isfinite(), (values.nan_to_num() - said) / deviation, 0.0)
    count = values.isfinite().sum((1, 2))
    unit = math.log(deviation) + math.log(2 * math.pi) / 2
    return -off.square().sum((1, 2)) / 2 - count * unit


def start_kl(mean: Tensor, log_std: Tensor, prior_mean: Tensor, prior_log_std: Tensor) -> Tensor:
    """Return KL(N(mean, std²) ‖ N(prior)), (batch,)."""
    ratio = 2 * (log_std - prior_log_std)
    off = (mean - prior_mean).square() / (2 * prior_log_std).exp()
    return ((ratio.exp() + off - 1 - ratio) / 2).sum(1)


M = TypeVar("M", bound=nn.Module)


def fit_latent(  # noqa: PLR0913 - keyword-only
    model: M, times: Tensor, values: Tensor, *, iterations: int = 1000, rate: float = 1e-2,
    batch: int = 64, seed: int = 0, weight: Callable[[int], float] | None = None,
    price: Callable[[int], float] | None = None,
) -> M:  # fmt: skip
    """Raise the bound of a latent variable model by Adam, in place.

    Args:
        model: a `Latent`.
        times: (length,).
        values: (n, length, channels), NaN where nothing was observed.
        iterations: steps; the rate falls by 0.3 % at each.
        rate: of Adam.
        batch: series in a step.
        seed: of batches and draws.
        weight: of the divergences, by step; None lets them come in over the first fifth.
        price: of the solve's cost, by step (`solve_costs.Decay`); None is nothing.
    """
    optimiser = torch.optim.Adam(model.parameters(), rate)
    falling = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.997)
    generator = torch.Generator().manual_seed(seed)
    for step in track(range(iterations), "latent variables"):
        rows = torch.randperm(len(values), generator=generator)[:batch]
        ramp = min(1.0, (step + 1) / max(1.0, 0.2 * iterations))
        bound: Elbo = model.elbo(times, values[rows], seed=(seed << 40) + (step + 1) * len(values))  # pyright: ignore
        loss = -bound.total(ramp if weight is None else weight(step))
        if price is not None:
            loss = loss + price(step) * bound.cost
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        optimiser.step()
        falling.step()
    return model

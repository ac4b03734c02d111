"""What a stable neural SDE says of times at which nothing was seen.

    forecast         ŷ(t) = ℓ(z(t)): after the last observation the data path stays where it is
    interpolation    q(ζ_r | series) = N(m(z(r)), s(z(r))²) at reference times r; a GRU reads
                     (ζ_r)_r, and what it says between them is on the chord

The second is a latent variable model, trained by a bound on log p of what is known with k draws,

    log p(x) ≥ E log 1/k Σ_j p(x | ζ_j) (p(ζ_j)/q(ζ_j | series))^w,   w = 1 in the end

which is tighter the larger k.

Paper: Oh, Lim & Kim 2024 (arXiv:2402.14989); Burda, Grosse & Salakhutdinov 2016 (arXiv:1509.00519)
for the bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.domains.series.gaps import Gapped, error
from pathline.domains.series.series import Observed
from pathline.domains.series.stable import StablePath
from pathline.nets.vector_fields import layers

__all__ = ["Bound", "StableForecaster", "StableInterpolator", "between"]


class StableForecaster(nn.Module):
    """Says every value of a series, seen and to come, from a stable SDE's state at its time.

    Args:
        path: reads the series.
        channels: of the series.
    """

    def __init__(self, path: StablePath, channels: int) -> None:
        super().__init__()
        self.path = path
        self.readout = layers((path.hidden, path.hidden, channels), nn.ReLU)

    @property
    def penalised(self) -> Sequence[nn.Parameter]:
        """As of the path."""
        return self.path.penalised

    def forward(self, series: Observed, seeds: Sequence[int]) -> Tensor:
        """Return values at the series' times, (n, length, channels).

        Args:
            series: n of them, NaN where nothing is known.
            seeds: of the Brownian paths, one a series.
        """
        return self.readout(self.path.path(series, seeds, series.times)).transpose(0, 1)


class StableInterpolator(nn.Module):
    """A latent variable at reference times, whose law a stable SDE reads off a series.

    Args:
        path: reads the series.
        channels: of the series.
        latent: numbers of the variable at each reference time.
        width: of the GRU.
        references: how many times, even from the first to the last.
        deviation: of an observation from what is decoded.

    Raises:
        UsageError: fewer than two references, a deviation that is not above 0.
    """

    def __init__(
        self,
        path: StablePath,
        channels: int,
        *,
        latent: int = 8,
        width: int = 64,
        references: int = 64,
        deviation: float = 0.01,
    ) -> None:
        super().__init__()
        if references < 2 or not deviation > 0:
            raise UsageError(
                f"references are 2 or more and the deviation is above 0, not {references} and "
                f"{deviation:g}."
            )
        self.path, self.latent = path, latent
        self.references, self.deviation = references, deviation
        self.law = layers((path.hidden, path.hidden, 2 * latent), nn.ReLU)
        self.gru = nn.GRU(latent, width, batch_first=True, bidirectional=True)
        self.readout = layers((2 * width, width, channels), nn.ReLU)

    @property
    def penalised(self) -> Sequence[nn.Parameter]:
        """As of the path."""
        return self.path.penalised

    def grid(self, series: Observed) -> Tensor:
        """Return the reference times, (references,)."""
        first, last = (float(series.times[i]) for i in (0, -1))
        return torch.linspace(first, last, self.references, dtype=torch.float64)

    def posterior(self, series: Observed, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return means and log deviations of the variable, each (n, references, latent).

        Args:
            series: n of them.
            seeds: of the Brownian paths, one a series.
        """
        states = self.path.path(series, seeds, self.grid(series)).transpose(0, 1)
        mean, log_std = self.law(states).chunk(2, 2)
        return mean, log_std

    def decoded(self, z: Tensor, series: Observed) -> Tensor:
        """Return what the variable (n, references, latent) says, (n, length, channels)."""
        read, _ = self.gru(z)
        return self.readout(between(read, self.grid(series), series.times))

    def forward(self, series: Observed, seeds: Sequence[int]) -> Tensor:
        """Return what the means say at the series' times, (n, length, channels)."""
        return self.decoded(self.posterior(series, seeds)[0], series)

    def bound(
        self, series: Gapped, seeds: Sequence[int], *, draws: int = 5, weight: float = 1.0
    ) -> Tensor:
        """Return the bound on log p of the goals, (n,).

        Args:
            series: n of them.
            seeds: of the Brownian paths and of the draws, one a series.
            draws: k.
            weight: w, of p/q.
        """
        mean, log_std = self.posterior(series, seeds)
        shape = (draws, *mean.shape[1:])
        eps = noise.normal(seeds, shape, stream="data", dtype=mean.dtype).transpose(0, 1)
        z = mean + log_std.exp() * eps
        ratio = (eps.square() - z.square()).sum((2, 3)) / 2 + log_std.sum((1, 2))
        said = self.decoded(z.flatten(0, 1), series).unflatten(0, (draws, -1))
        known = series.goals.isfinite()
        off = torch.where(known, (said - series.goals.nan_to_num()) / self.deviation, 0.0)
        unit = math.log(self.deviation) + math.log(2 * math.pi) / 2
        fits = -off.square().sum((2, 3)) / 2 - known.sum((1, 2)) * unit
        return (fits + weight * ratio).logsumexp(0) - math.log(draws)


def between(values: Tensor, times: Tensor, to: Tensor) -> Tensor:
    """Return values (n, times, …) at other times, on chords, (n, to, …)."""
    right = torch.searchsorted(times, to).clamp(1, len(times) - 1)
    share = ((to - times[right - 1]) / (times[right] - times[right - 1])).clamp(0, 1)
    share = share.to(values).reshape(1, -1, *[1] * (values.ndim - 2))
    return torch.lerp(values[:, right - 1], values[:, right], share)


@dataclass(frozen=True)
class Bound:
    """The bound of a `StableInterpolator` is raised; what is looked at is the error of the asked.

    Args:
        draws: k.
        epoch: steps of an epoch: in epoch e the weight is 1 − 0.99^(e − late).
        late: epochs without any weight.
    """

    draws: int = 5
    epoch: int = 1
    late: int = 10

    def weight(self, step: int) -> float:
        """Return w at a step of the training."""
        return 1 - 0.99 ** max(0, step // self.epoch - self.late)

    def loss(
        self, model: StableInterpolator, series: Gapped, seeds: Sequence[int], step: int
    ) -> Tensor:
        return -model.bound(series, seeds, draws=self.draws, weight=self.weight(step)).mean()

    def look(self, model: StableInterpolator, series: Gapped, seed: int) -> float:
        return error(model, series, passes=1, seed=seed)

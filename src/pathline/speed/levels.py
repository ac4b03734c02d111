"""Noise levels: a table of σ, and what a noisy state says about which one it has.

For x = x_0 + σ ε and a table σ_1 > … > σ_M, every entry as likely as the others,

    q(σ_k | x) ∝ p_σk(x),   p_σ = data ∗ N(0, σ² I)

A classifier trained by cross-entropy has it as its optimum; data with a closed density have it
exactly. In d dimensions the level is known to about 1/√(2d) of itself, and not better.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields import Dataset, Gaussian, Mixture
from pathline.paths import GaussianPath
from pathline.solvers.solver import check_gaussian

Law = Gaussian | Mixture | Dataset


def level_table(sigma_min: float, sigma_max: float, n: int) -> Tensor:
    """Return n noise levels, even in log σ, falling from σ_max to just above σ_min, (n,) float64.

    σ_k = σ_min (σ_max/σ_min)^τ_k,   τ = 1 … 1e-3. Index 0 is σ_max.

    Raises:
        UsageError: not 0 < σ_min < σ_max < ∞, or fewer than two levels.
    """
    if not 0 < sigma_min < sigma_max < math.inf:
        raise UsageError(
            "noise levels need 0 < sigma_min < sigma_max, both finite; they are "
            f"{sigma_min:g}, {sigma_max:g}."
        )
    if n < 2:
        raise UsageError(f"a table needs at least 2 noise levels, and was asked for {n}.")
    tau = torch.linspace(1, 1e-3, n, dtype=torch.float64)
    return sigma_min * (sigma_max / sigma_min) ** tau


class NoiseLevels(ABC):
    """What tells the noise level of a state: a table of σ and q(σ | x) on it."""

    @property
    @abstractmethod
    def sigmas(self) -> Tensor:
        """The table, falling, (levels,) float64."""

    @abstractmethod
    def log_posterior(self, x: Tensor) -> Tensor:
        """Return log q(σ | x), (batch, levels), up to a constant of each sample.

        Args:
            x: x_0 + σ ε, (batch, *state).
        """

    @property
    def data_rms(self) -> float | None:
        """The root mean square of the data that it knows; None if that is not recorded."""
        return None

    @property
    def data_deviation(self) -> float | None:
        """Their standard deviation about their mean; None if that is not recorded."""
        return None

    def most_likely(self, x: Tensor) -> Tensor:
        """Return the index of the most likely level, (batch,)."""
        return self.log_posterior(x).argmax(1)

    def drawn(self, x: Tensor, u: Tensor) -> Tensor:
        """Return the index of a level drawn from q(σ | x), (batch,).

        Args:
            x: (batch, *state).
            u: uniform in (0, 1), (batch,).
        """
        total = self.log_posterior(x).double().softmax(1).cumsum(1)
        index = torch.searchsorted(total, (u.to(total) * total[:, -1])[:, None])
        return index[:, 0].clamp_max(len(self.sigmas) - 1)


@dataclass(frozen=True, eq=False)
class ExactLevels(NoiseLevels):
    """The exact posterior of the level, where the density of the data is known.

    Args:
        law: of the data.
        sigma_min: below the smallest level.
        sigma_max: the largest.
        n: levels, even in log σ.

    Cost: one quadratic form for each sample, level and component (or data point).
    """

    law: Law
    sigma_min: float = 0.01
    sigma_max: float = 50.0
    n: int = 250

    def __post_init__(self) -> None:
        level_table(self.sigma_min, self.sigma_max, self.n)

    @cached_property
    def sigmas(self) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return level_table(self.sigma_min, self.sigma_max, self.n)

    def log_posterior(self, x: Tensor) -> Tensor:
        return self.law.log_prob_noised(x, self.sigmas.to(x.device))

    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return log p_σ(x), each sample at its own level, (batch,).

        Args:
            x: (batch, *state).
            sigma: (batch,).
        """
        path = self.law.path
        t = path.time_of_log_snr(-sigma.log())
        alpha = path.alpha(t)
        scaled = x * alpha.to(x).reshape(-1, *[1] * (x.ndim - 1))
        return self.law.log_prob(scaled, t) + x[0].numel() * alpha.log().to(x)


def check_levels(path: GaussianPath, levels: NoiseLevels) -> None:
    """Refuse levels outside of those that a path has, and what is no levels."""
    if not isinstance(levels, NoiseLevels):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(
            f"levels={levels!r}: give what tells the noise of a state, ExactLevels(law) or "
            "pathline.learn.noise_classifier.load_noise_classifier()."
        )
    check_gaussian(path)
    sigmas = levels.sigmas
    low, high = float(path.sigma(path.t_min)), float(path.sigma(path.t_max))
    if not (float(sigmas[-1]) > low * 0.999 and float(sigmas[0]) < high * 1.001):
        raise UsageError(
            f"the level table runs from σ = {float(sigmas[-1]):.4g} to {float(sigmas[0]):.4g}, and "
            f"the model knows σ/α from {low:.4g} to {high:.4g}: use levels made for this model."
        )


def check_scale(levels: NoiseLevels, x: Tensor) -> None:
    """Compare the size of generated data with that of the data the levels were learned from.

    Their root mean square, and their deviation about the mean: even in [−1, 1] and in [0, 1] data
    can have one of 0.58, but the other is then 0.58 and 0.29.
    """
    values = x.detach().double()
    compared = (
        ("root mean square", levels.data_rms, values.square().mean().sqrt()),
        ("standard deviation", levels.data_deviation, values.std(correction=0)),
    )
    for name, known, found in compared:
        if known is not None and not known / 1.5 < float(found) < known * 1.5:
            raise UsageError(
                f"the model's data have a {name} of {float(found):.3g}, and those that the noise "
                f"levels were learned from {known:.3g}: is one scaled to [0, 1], the other to "
                "[−1, 1]?"
            )

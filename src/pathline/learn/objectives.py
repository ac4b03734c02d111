"""What a network is trained to say: one regression for every path and view.

    L = E ‖F(x_t, label(t); c) − (A_t x_0 + B_t ε)‖²,   x_t = α_t x_0 + σ_t ε

ε is drawn from the path's own law (`path.kernel`), so on `PFGMpp` any of this trains a model of
PFGM++. The minimiser is the conditional expectation of the view given x_t: the score, the denoised
data or the velocity of the probability flow. With CondOT and the velocity view it is flow matching;
with a VP path and ε it is denoising score matching. Only the distribution of t, which weighs the
times against each other, is a choice.

Paper: Lipman et al. 2023 (arXiv:2210.02747); Ho et al. 2020 (arXiv:2006.11239); Song et al. 2021
(arXiv:2101.09258) for the weight g²; Xu et al. 2023 (arXiv:2302.04265), Eq. 5.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields import View, change, target
from pathline.paths import GaussianPath, StudentT, Tabulated, bshape

__all__ = [
    "EarlyTimes",
    "LogNormalLevels",
    "LogitNormalTimes",
    "Matching",
    "Times",
    "UniformTimes",
    "drawn_noise",
    "stratified",
    "time_label",
]


class Times(Protocol):
    """A distribution of training times on (0, 1), given by its quantile function."""

    def quantile(self, u: Tensor) -> Tensor:
        """Return the time below which a fraction `u` of the draws lies."""
        ...


@dataclass(frozen=True)
class UniformTimes:
    """Every time alike."""

    def quantile(self, u: Tensor) -> Tensor:
        return u


@dataclass(frozen=True)
class LogitNormalTimes:
    """logit(t) ~ N(mean, std²): most draws in the middle, where the regression is hardest.

    Paper: Esser et al. 2024 (arXiv:2403.03206), Eq. 19.
    """

    mean: float = 0.0
    std: float = 1.0

    def quantile(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


@dataclass(frozen=True)
class EarlyTimes:
    """t ~ Beta(1, power): more draws next to data, of a density that falls to the power − 1.

    Paper: Deveney et al. 2023 (arXiv:2311.15996), with power 2.
    """

    power: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.power < math.inf:
            raise UsageError(f"the power of the times is finite and above 0, not {self.power}.")

    def quantile(self, u: Tensor) -> Tensor:
        return -torch.expm1(torch.log1p(-u) / self.power)


@dataclass(frozen=True)
class LogNormalLevels:
    """log σ/α ~ N(mean, std²), cut off at the ends of the path.

    Paper: Karras et al. 2022 (arXiv:2206.00364), Tab. 1.
    """

    path: GaussianPath
    mean: float = -1.2
    std: float = 1.2

    def quantile(self, u: Tensor) -> Tensor:
        t = self.path.time_of_log_snr(-(self.mean + self.std * torch.special.ndtri(u)))
        low, high = self.path.t_min, self.path.t_max
        return ((t - low) / (high - low)).clamp(0, 1)


def stratified(n: int, generator: torch.Generator) -> Tensor:
    """Return n uniform draws in shuffled order, exactly one in each [i/n, (i + 1)/n).

    A batch's mean of a smooth function of t then errs by n^-1.5 instead of n^-0.5.

    Returns:
        (n,) float64, strictly inside (0, 1).
    """
    u = torch.rand(n, generator=generator, dtype=torch.float64)
    order = torch.randperm(n, generator=generator)
    return ((order + u) / n).clamp(1e-9, 1 - 1e-9)


def drawn_noise(law: StudentT, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return ε of a path's law (`path.kernel`), (batch, *state) in the default dtype."""
    eps = torch.randn(shape, generator=generator)
    if law.is_gaussian:
        return eps
    seeds = torch.randint(2**63 - 1, (len(eps),), generator=generator)
    return law.spread(eps, seeds.tolist()).to(eps.dtype)


def time_label(path: GaussianPath, label: float | str) -> float | Callable[[Tensor], Tensor]:
    """Return what a network is told for t: a factor, the labels of a tabulated path, or σ.

    Args:
        path: how data becomes noise.
        label: a number, which multiplies t; "table", for `path.label` (0 … N − 1); or "sigma".

    Raises:
        UsageError: none of them, or a table for a path that has none.
    """
    if label == "sigma":
        return path.sigma
    if label == "table" and isinstance(path, Tabulated):
        return path.label
    if isinstance(label, str):
        raise UsageError(
            f"the label is a number, 'sigma', or 'table' for a tabulated path; it is {label!r} "
            f"for {type(path).__name__}."
        )
    return label


@dataclass(frozen=True)
class Matching:
    """The regression on a path, in a view.

    Args:
        path: how data becomes noise.
        view: what the network says.
        times: how often each time is trained on, as a fraction of the path's own interval.
        label: what the network is told for t: a factor, or a function of t.
        error: the view in which the error is measured, which weighs the times: an error of 1 in ε
            is one of 1/α in v and one of σ/α in x0. None is the network's own view. A number is
            σ_d, the standard deviation of the data, for EDM's weighting: that of x0 is taken in
            units of ρ σ_d/√(ρ² + σ_d²), ρ = σ/α, what is to be said at that level. "likelihood"
            weighs the error of the score by g², which bounds −log p; "eps" is λ = σ², "score" 1.
        bridge: standard deviation of the noise around the straight line from ε to x_0, of which
            the target knows nothing.
    """

    path: GaussianPath
    view: View = "velocity"
    times: Times = UniformTimes()
    label: float | Callable[[Tensor], Tensor] = 1.0
    error: View | float | Literal["likelihood"] | None = None
    bridge: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.bridge < math.inf:
            raise UsageError(f"the bridge noise is a finite number ≥ 0; it is {self.bridge!r}.")
        if self.path.kernel.dof <= 2:
            warnings.warn(
                f"noise of D={self.path.kernel.dof:g} has an infinite variance, and so has the "
                "loss; take D > 2, and 8 or more on small data.",
                stacklevel=3,
            )

    def draw_times(self, n: int, generator: torch.Generator) -> Tensor:
        """Return n stratified times in [t_min, t_max], (n,) float64."""
        low, high = self.path.t_min, self.path.t_max
        return low + (high - low) * self.times.quantile(stratified(n, generator))

    def loss(
        self,
        network: Callable[..., Tensor],
        x0: Tensor,
        eps: Tensor,
        t: Tensor,
        cond: Mapping[str, Any],
        xi: Tensor | None = None,
    ) -> Tensor:
        """Return the mean squared error of each sample, (batch,) in the dtype of `x0`.

        Args:
            network: called as network(x, label, **cond).
            x0: (batch, *state), data.
            eps: (batch, *state), noise.
            t: (batch,) float64.
            cond: keyword arguments of the network.
            xi: (batch, *state), the draw of the bridge noise.
        """
        x = bshape(self.path.alpha(t), x0) * x0 + bshape(self.path.sigma(t), x0) * eps
        x = x if xi is None else x + self.bridge * xi
        label = self.label(t) if callable(self.label) else t * self.label
        said = network(x, label.to(x0.dtype), **cond).to(x0.dtype)
        wrong = said - target(self.path, self.view, x0, eps, t)
        if self.error is not None:
            wrong = wrong * bshape(self._weight(t, self.error), wrong)
        return wrong.square().flatten(1).mean(1)

    def _weight(self, t: Tensor, error: View | float | Literal["likelihood"]) -> Tensor:
        """Return what an error of the network's own view is multiplied with, (batch,)."""
        if error == "likelihood":
            g = self.path.diffusion_squared(t).sqrt()
            return g * change(self.path, self.view, "score", t)[1]
        if isinstance(error, str):
            return change(self.path, self.view, error, t)[1]
        rho = (-self.path.log_snr(t)).exp()
        unit = rho * error / (rho**2 + error**2).sqrt()
        return change(self.path, self.view, "x0", t)[1] / unit

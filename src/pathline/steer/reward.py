"""Guidance to a value of a reward: samples of which r(x_0) is y, give or take s.

    y = r(x_0) + s n,   r(x_0) ≈ r(x̂_0) + g · (x_0 − x̂_0),   g = ∇r(x̂_0)
    Δx̂_0 = C g (y − r(x̂_0)) / (s² + gᵀ C g),   C = Cov[x_0 | x_t] = (σ²/α) Jᵀ

                C is                                       through the model    leaves a subspace
    LookAhead   the model's own, by its Jacobian           1 VJP                never
    Naive       r² I, that of data N(·, c I)               no                   yes

`LookAhead` is exact where the reward is linear and data are Gaussian, of any covariance. A model of
data on a subspace has a C along it, so whatever the reward asks for, samples stay among the data:
this is what keeps designs realistic that are made to score high. `Naive` adds the reward's
gradient as it is, and goes where there are no data.

Only the difference y − r(x̂_0) counts, so a target may be relative: y = g·z + δ asks for an increase
δ of the linear part over a sample z (`optimise`).

Paper: Guo et al. 2024 (arXiv:2404.14743), after which Chen et al. 2024 (arXiv:2404.07771), Sec. 5.
Their look-ahead loss G = −β ∇_x (y − g·x̂_0)², β = (α²/2)/(α² s² + σ² ‖∇_x (g·x̂_0)‖²), is this one
with (σ/α)² ‖Jᵀg‖² in the place of gᵀ C g, which is the same for data N(·, I) on α² + σ² = 1 alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pathline.core.errors import UsageError, unknown
from pathline.paths import bshape
from pathline.steer.classifier import Logits
from pathline.steer.estimate import Correction, Estimate, Steering
from pathline.steer.guide import guides, named

Reward = Callable[[Tensor], Tensor]
"""(batch, *state) of clean data → (batch,), for autograd."""

Spread = Literal["covariance", "norm"]


@dataclass(frozen=True, eq=False)
class Targeted(Steering):
    """What guides to a value of a reward share.

    Args:
        reward: r: (batch, *state) → (batch,), differentiable, of clean data.
        y: what it shall be: a number, or one a sample, (batch,).
        std: s above 0, how exactly.
        weight: of the step; 0 is none.
    """

    reward: Reward | None = field(default=None, compare=False)
    y: Tensor | float | None = field(default=None, repr=False)
    std: float = 0.1
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.std < math.inf:
            raise UsageError(
                f"{named(self)}(std={self.std}): the step is divided by s² + the variance of the "
                "reward given x_t, which vanishes at the data; that needs s > 0, a finite number. "
                "Take what the reward's own noise is, or 0.1 of its deviation."
            )
        if self.y is not None and not bool(torch.as_tensor(self.y).isfinite().all()):
            raise UsageError(f"{named(self)}: the target y is not finite.")

    @property
    def is_none(self) -> bool:
        return self.weight == 0

    @property
    def is_score(self) -> bool:
        return True

    def wanted(self, now: Estimate) -> tuple[Tensor, Tensor]:
        """Return y − r(x̂_0) of each sample, ready to multiply a state, and g, (batch, *state).

        Raises:
            UsageError: no reward or no target; a target of another batch; a reward that cannot be
                differentiated, or returns something else than a number a sample.
        """
        if self.reward is None or self.y is None:
            raise UsageError(f"{named(self)}(reward=..., y=...) needs both.")
        value, slope = now.linearised(self.reward)
        y = torch.as_tensor(self.y, dtype=value.dtype, device=value.device)
        if y.ndim > 1 or (y.ndim and len(y) not in (1, len(value))):
            raise UsageError(
                f"{named(self)} was given targets {tuple(y.shape)} for {len(value)} samples; give "
                "one number, or (batch,)."
            )
        return bshape(y - value, now.x), slope

    def told(self, name: str, **rest: Any) -> dict[str, Any]:
        """Return what a receipt says of it: all but the reward, and targets of samples."""
        y = self.y
        many = isinstance(y, Tensor) and y.numel() > 1
        target = "one a sample" if many or y is None else float(y)
        return {"name": name, "y": target, "std": self.std, "weight": self.weight, **rest}


@guides.register(
    "look_ahead", aliases=("lookahead", "gradient_guidance"), paper="arXiv:2404.14743; 2404.07771"
)
@dataclass(frozen=True, eq=False)
class LookAhead(Targeted):
    """Guides to a value of a reward along what the model knows to vary: Δx̂_0 = C g (…).

    Choose it for any differentiable reward of clean data; where measurements are many and linear,
    `MMPS` does the same for all of them at once.

    Args:
        reward, y, std, weight: as for every guide to a value.
        spread: the variance of the reward given x_t: "covariance" is gᵀ C g, exact for Gaussian
            data; "norm" is (σ/α)² ‖Jᵀg‖², the paper's, which no asymmetric Jacobian of a network
            can make negative. Both are made of the one product Jᵀg.

    Cost: one vector-Jacobian product through the model, and one gradient of the reward.

    Example: data N(0, 1), of which the sum of two coordinates is 2: each is 1, on average.
        >>> import torch, pathline as pl
        >>> law = pl.Gaussian(pl.VPLinear(), torch.zeros(2).double(), torch.ones(2).double())
        >>> guide = LookAhead(lambda x0: x0.sum(1), 2.0, std=0.01)
        >>> x = pl.sample(law, 500, dtype=torch.float64, guide=guide, steps=30).x
        >>> bool((x.mean(0) - 1).abs().max() < 0.1), bool((x.sum(1) - 2).abs().max() < 0.1)
        (True, True)
    """

    spread: Spread = "covariance"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spread not in get_args(Spread):
            raise unknown("variance of the reward", self.spread, get_args(Spread))

    @property
    def vjps(self) -> int:
        return 1

    @property
    def shares(self) -> bool:
        return False  # the step is Jᵀg over what Jᵀg decides

    def cotangent(self, now: Estimate) -> Tensor:
        return self.wanted(now)[1]

    def stepped(self, now: Estimate) -> Tensor:
        missing, slope = self.wanted(now)
        along = now.gain * now.pulled(slope, again=True)  # C g
        if self.spread == "norm":
            variance = _dot(along, along) / now.sigma**2
        else:
            variance = _dot(slope, along).clamp(min=0)
        return self.weight * missing / (self.std**2 + variance) * along

    def describe(self) -> dict[str, Any]:
        return self.told("look_ahead", spread=self.spread)


@guides.register("naive_gradient", aliases=("naive",), paper="arXiv:2404.14743; 2404.07771")
@dataclass(frozen=True, eq=False)
class Naive(Targeted, Correction):
    """Guides to a value of a reward by the reward's gradient alone: Δx̂_0 = r_t² g (…).

        G = β (y − g·x̂_0) g,   β = α/(s² + σ² ‖g‖²)        the paper's term of the score, c = 1

    For comparison, and where the model cannot be differentiated: it leaves the data's subspace
    wherever the gradient does.

    Args:
        reward, y, std, weight: as for every guide to a value.
        variance: c, of the data: r_t² = c σ²/(c α² + σ²).

    Cost: one gradient of the reward; none through the model.
    """

    variance: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.variance > 0:
            raise UsageError(f"Naive(variance={self.variance}): that of data is above 0.")

    def corrected(self, now: Estimate) -> Tensor:
        missing, slope = self.wanted(now)
        share = self.variance * now.alpha * now.gain  # c σ², and 0 where α = 0
        spread = share / (self.variance * now.alpha**2 + now.sigma**2)
        size = self.std**2 + spread * _dot(slope, slope)
        return now.x0 + self.weight * spread * missing / size * slope

    def describe(self) -> dict[str, Any]:
        return self.told("naive_gradient", variance=self.variance)


def closeness(reward: Logits, y: float) -> Logits:
    """Return a classifier of whether a reward of a noisy state is y, for `Classifier`.

        p(yes | x) = exp(−(y − μ(x, t))²/2),   w ∇ log p = −w ∇ (y − μ)²/2

    Under `Classifier(closeness(μ, y), 0, w)` a model becomes the conditional one without training:
    ε̂ grows by σ w ∇(y − μ)²/2. The weight w is 1/s².

    Args:
        reward: μ(x (batch, *state), t (batch,)) → (batch,), of noisy states, differentiable.
        y: what it shall be.

    Paper: Yuan et al. 2023 (arXiv:2307.07055); w = 100 in their public code.
    """

    def logits(x: Tensor, t: Tensor) -> Tensor:
        half = (y - reward(x, t)).square().clamp(min=1e-30) / 2
        return torch.stack((-half, (-torch.expm1(-half)).log()), 1)

    return logits


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of each two samples, ready to multiply a state."""
    return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))

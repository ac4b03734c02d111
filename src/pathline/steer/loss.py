"""Steered Diffusion: any loss of the clean estimate steers a model that was never told of it.

    x̃_0 = x̂_0 − κ_t ∇_x λ V(x̂_0(x)),   κ_t = σ_{t + lag}, or σ²/α

V sees the estimate of the data, so any network of clean data serves (a classifier, a parser, a
face's embedding), and its gradient is taken through the model, with respect to the noisy state.

Paper: Nair et al. 2023 (arXiv:2310.00224), Sec. 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pathline.core.errors import UsageError, unknown
from pathline.paths import GaussianPath, bshape
from pathline.steer.estimate import Estimate, Steering, differentiable
from pathline.steer.guide import guides

Through = Literal["model", "estimate", "state"]
Scale = Literal["sigma", "score"]


@guides.register("loss", aliases=("steered_diffusion",), paper="arXiv:2310.00224, Sec. 4")
@dataclass(frozen=True)
class Loss(Steering):
    """Steers by a loss of the clean estimate.

    Args:
        loss: V: (batch, *state) → (batch,), differentiable, of clean data.
        weight: λ; 0 is none.
        window: the times in which it acts, (low, high).
        normalise: what ∇_x V is divided by: "none", or "rms" (of each sample), which makes λ
            comparable between losses, and takes a product of its own.
        through: "model" is the method. "estimate" takes ∇/α in x̂_0 for ∇_x: cheaper, and blind to
            how the model would follow. "state" evaluates V at the noisy state: for comparison,
            for networks of clean data say little there.
        lag: κ is σ so much later, as the paper has it: one of a thousand steps.
        scale: what κ is: "sigma", or "score" (σ²/α), with which −λ V is taken for a log-likelihood,
            as DPS takes one; σ pulls harder, the more so the less noise there is.

    Raises:
        UsageError: no loss; one that is not differentiable or not a number a sample.

    Cost: with through="model" one vector-Jacobian product through the model; else none.
    """

    loss: Callable[[Tensor], Tensor] | None = field(default=None, compare=False)
    weight: float = 1.0
    window: tuple[float, float] = (0.0, 1.0)
    normalise: Literal["none", "rms"] = "none"
    through: Through = "model"
    lag: float = 1e-3
    scale: Scale = "sigma"

    def __post_init__(self) -> None:
        if self.through not in get_args(Through):
            raise unknown("way of a gradient", self.through, get_args(Through))
        if self.scale not in get_args(Scale):
            raise unknown("scale of a gradient", self.scale, get_args(Scale))
        if self.normalise not in ("none", "rms"):
            raise unknown("norm", self.normalise, ("none", "rms"))
        low, high = self.window
        if not 0 <= low < high <= 1:
            raise UsageError(f"window={self.window}: two times of the path, 0 ≤ low < high ≤ 1.")

    @property
    def is_none(self) -> bool:
        return self.weight == 0

    @property
    def is_score(self) -> bool:
        return True

    @property
    def vjps(self) -> int:
        return int(self.through == "model")

    @property
    def shares(self) -> bool:
        return self.normalise == "none"

    @property
    def acts(self) -> tuple[float, float]:
        return self.window

    def check_times(self, times: Tensor) -> None:
        low, high = self.window
        if not bool(((times >= low) & (times <= high)).any()):
            raise UsageError(
                f"Loss(window={self.window}): no step begins in it; the grid goes from "
                f"{float(times.max()):.4g} to {float(times.min()):.4g}."
            )

    def _value(self, at: Tensor) -> Tensor:
        if self.loss is None:
            raise UsageError("Loss(loss=...) needs a function of clean data.")
        return self.loss(at)

    def _step(self, now: Estimate) -> Tensor:
        """Return −λ κ in its window, ready to multiply a gradient."""
        if self.scale == "score":
            return -self.weight * now.gain * now.within(self.window)
        late = (now.t + self.lag).clamp(max=now.path.t_max)
        return -self.weight * bshape(now.path.sigma(late), now.x) * now.within(self.window)

    def cotangent(self, now: Estimate) -> Tensor:
        slope = now.slope(self._value)
        return self._step(now) * slope if self.shares else slope

    def finished(self, step: Tensor, now: Estimate) -> Tensor:
        return self._step(now) * _scaled(step)

    def log_twist(self, now: Estimate) -> Tensor:
        """Return −λ V(x̂_0) in the window, (batch,): what particles are weighed by on their way."""
        inside = now.within(self.window).reshape(-1)
        return -self.weight * inside * self._value(now.x0)

    def log_likelihood(self, x0: Tensor, path: GaussianPath) -> Tensor:
        """Return −λ V(x0), (batch,): the target is p(x_0) exp(−λ V), not normalised.

        Args:
            x0: data, (batch, *state).
            path: not looked at.
        """
        del path
        return -self.weight * self._value(x0)

    def corrected(self, now: Estimate) -> Tensor:
        if self.through == "estimate":
            slope = now.slope(self._value) / now.alpha
            slope = slope.nan_to_num(0.0, 0.0, 0.0)
        else:
            further = torch.is_grad_enabled() and now.x.requires_grad
            at = now.x if further else differentiable(now.x).detach().requires_grad_()
            noisy = Estimate(at, now.t, at, now.path, further)
            slope = noisy.slope(self._value)
        return now.x0 + self._step(now) * (slope if self.shares else _scaled(slope))

    def describe(self) -> dict[str, Any]:
        """Return what a receipt says of it: all but the function."""
        told = {
            name: getattr(self, name) for name in ("weight", "normalise", "through", "lag", "scale")
        }
        return {"name": "loss", **told, "window": list(self.window)}


def _scaled(gradient: Tensor) -> Tensor:
    """Return a gradient with a root mean square of 1 a sample, or 0."""
    rms = gradient.flatten(1).square().mean(1).sqrt().reshape(-1, *[1] * (gradient.ndim - 1))
    return torch.where(rms == 0, 0.0, gradient / torch.where(rms == 0, 1.0, rms))

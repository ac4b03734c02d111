"""Kernels: how a chain moves its state at a fixed noise level, leaving p_σ (nearly) as it is.

    Langevin   x' = x + (η/2) s(x, σ) + √η z
    MALA       the same as a proposal, accepted with min(1, p_σ(x') q(x | x') / p_σ(x) q(x' | x))

The first is biased by its step: around one datum it turns the squared noise σ² into σ² + η²/4σ²,
upwards without end if η grows with σ² and the level is then drawn from q(σ | x). A constant η, the
most likely level instead of a drawn one, or MALA, do not run away.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.paths import bshape


class Target(NamedTuple):
    """p_σ at each sample's own level.

    Args:
        sigma: (batch,) float64.
        score: x → ∇ log p_σ(x), one evaluation of the field.
        log_prob: x → log p_σ(x), (batch,); None where only the score is known.
    """

    sigma: Tensor
    score: Callable[[Tensor], Tensor]
    log_prob: Callable[[Tensor], Tensor] | None


class Move(NamedTuple):
    """Where a kernel went.

    Args:
        x: (batch, *state).
        accepted: whether each sample moved, (batch,) bool.
    """

    x: Tensor
    accepted: Tensor


@dataclass(frozen=True)
class Kernel(ABC):
    """A move of the state at its noise level.

    Args:
        eta: the step size η; with `width`, as a share of the squared width of p_σ.
        width: None for a constant η; or the data's own (local) standard deviation s, and the step
            is η (σ² + s²).
        guard: a constant step above this multiple of σ² is cut to 2 σ²: p_σ may be as narrow as
            that, and above 4 σ² the step would diverge. None never cuts.
    """

    eta: float
    width: float | None = None
    guard: float | None = 4.0

    def __post_init__(self) -> None:
        if not 0 < self.eta < math.inf:
            raise UsageError(f"the step size eta must be positive, and is {self.eta:g}.")
        if self.width is not None and not 0 <= self.width < math.inf:
            raise UsageError(f"the width must not be negative, and is {self.width:g}.")

    @property
    @abstractmethod
    def nfe(self) -> int:
        """Evaluations of the field a move."""

    @abstractmethod
    def move(self, at: Target, x: Tensor, z: Tensor, u: Tensor) -> Move:
        """Move every sample once.

        Args:
            at: the law that the move is to leave as it is.
            x: (batch, *state).
            z: standard normal, like x.
            u: uniform in (0, 1), (batch,).
        """

    def step_size(self, sigma: Tensor) -> Tensor:
        """Return each sample's η, (batch,)."""
        if self.width is not None:
            return self.eta * (sigma**2 + self.width**2)
        eta = torch.full_like(sigma, self.eta)
        if self.guard is None:
            return eta
        return torch.where(eta > self.guard * sigma**2, 2 * sigma**2, eta)


@dataclass(frozen=True)
class Langevin(Kernel):
    """A step of unadjusted Langevin dynamics: one evaluation, and no density needed.

    Paper: Kim & Ye 2022 (arXiv:2209.14593), the x-step of Denoising Langevin Gibbs.
    """

    @property
    def nfe(self) -> int:
        return 1

    def move(self, at: Target, x: Tensor, z: Tensor, u: Tensor) -> Move:
        eta = bshape(self.step_size(at.sigma), x)
        moved = x + eta / 2 * at.score(x) + eta.sqrt() * z
        return Move(moved, torch.ones(len(x), dtype=torch.bool, device=x.device))


@dataclass(frozen=True)
class MALA(Kernel):
    """The Metropolis-adjusted Langevin step: leaves p_σ exactly as it is; two evaluations.

    Paper: Roberts & Tweedie 1996.
    """

    @property
    def nfe(self) -> int:
        return 2

    def move(self, at: Target, x: Tensor, z: Tensor, u: Tensor) -> Move:
        if at.log_prob is None:
            raise UsageError(
                "MALA needs the density of the data, which a classifier does not know: use "
                "Langevin, or ExactLevels of an exact denoiser."
            )
        eta = bshape(self.step_size(at.sigma), x)
        moved = x + eta / 2 * at.score(x) + eta.sqrt() * z
        back = (x - moved - eta / 2 * at.score(moved)).square() / eta  # what z is for the way back
        rise = at.log_prob(moved) - at.log_prob(x)
        log_ratio = rise + (z.square() - back).flatten(1).sum(1) / 2
        accepted = u.log() < log_ratio
        return Move(torch.where(bshape(accepted, x).bool(), moved, x), accepted)

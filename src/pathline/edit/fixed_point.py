"""Inversion of DDIM's own steps, each an implicit equation for the noisier state.

    z_i = f(z_i) = C1 z_{i−1} + C2 ε̂(z_i, t_i)        C1 = α_i/α_{i−1},  C2 = σ_i − C1 σ_{i−1}

DDIM inversion takes ε̂(z_{i−1}, t_i) for ε̂(z_i, t_i) and stops there; fixed-point inversion goes on
from it (f contracts if |C2| times the Lipschitz constant of ε̂ is below 1); dual-conditional
inversion solves the same equation with the noise drawn a little towards the data (`Reference`).

What is left of an equation is m = mean((z − f(z))²), for each sample on its own: a sample that has
converged stays as it is, whatever its batch.

Papers: Song et al. 2021 (arXiv:2010.02502); Pan et al. 2023 (arXiv:2309.04907); Li et al. 2025
(arXiv:2506.02560).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.edit.inverter import Inverted, Inverter, Noise, Watch, Way
from pathline.edit.reference import Reference
from pathline.fields.denoiser import denoiser_in
from pathline.paths import bshape

__all__ = [
    "AdamW",
    "Anderson",
    "FixedPoint",
    "Picard",
    "Residuals",
    "Update",
    "dci",
    "ddim_inversion",
]

Move = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(z, f(z), m) → the next z; m is (batch,)."""


class Update(ABC):
    """How the next guess follows from z and f(z)."""

    needs_gradient = False
    """Whether m must be differentiable in z."""

    @abstractmethod
    def begin(self, z: Tensor) -> Move:
        """Return the moves of one equation, from its first guess."""


@dataclass(frozen=True)
class Picard(Update):
    """z ← (1 − ω) z + ω f(z); ω is halved for a sample whose m grows.

    Args:
        damping: ω, in (0, 1].
    """

    damping: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.damping <= 1:
            raise UsageError(f"damping must lie in (0, 1], and is {self.damping}.")

    def begin(self, z: Tensor) -> Move:
        share = z.new_full((len(z),), self.damping)
        before = z.new_full((len(z),), torch.inf)

        def move(z: Tensor, goal: Tensor, left: Tensor) -> Tensor:
            nonlocal share, before
            share = torch.where(left > before, share / 2, share)
            before = left
            return z + bshape(share, z) * (goal - z)

        return move


@dataclass(frozen=True)
class Anderson(Update):
    """Anderson's mixing: the combination of the last steps whose residual is least.

    Args:
        depth: differences that are combined.
    """

    depth: int = 3

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise UsageError(f"depth={self.depth}: at least 1 difference is combined.")

    def begin(self, z: Tensor) -> Move:
        goals: list[Tensor] = []
        residuals: list[Tensor] = []

        def move(z: Tensor, goal: Tensor, left: Tensor) -> Tensor:
            del left
            goals.append(goal.flatten(1))
            residuals.append((goal - z).flatten(1))
            del goals[: -self.depth - 1], residuals[: -self.depth - 1]
            if len(goals) == 1:
                return goal
            last = residuals[-1]
            steps = torch.stack([last - r for r in residuals[:-1]], 2)
            jumps = torch.stack([goals[-1] - g for g in goals[:-1]], 2)
            gram = steps.mT @ steps
            floor = gram.diagonal(dim1=1, dim2=2).amax(1).clamp(min=torch.finfo(z.dtype).tiny)
            eye = torch.eye(gram.shape[1], dtype=z.dtype, device=z.device)
            gram = gram + 10 * torch.finfo(z.dtype).eps * floor[:, None, None] * eye
            weights = torch.linalg.solve(gram, steps.mT @ last[:, :, None])
            return (goals[-1] - (jumps @ weights)[:, :, 0]).reshape(z.shape)

        return move


@dataclass(frozen=True)
class AdamW(Update):
    """A step of AdamW on m, through the network: the published update of SPDInv and DCI.

    No entry moves by much more than `rate` a round, so rounds × rate bounds what it can repair.

    Args:
        rate: the learning rate.
        decay: the weight decay.
    """

    rate: float = 1e-3
    decay: float = 0.01
    needs_gradient = True

    def begin(self, z: Tensor) -> Move:
        first, second, n = torch.zeros_like(z), torch.zeros_like(z), 0
        b1, b2, tiny = 0.9, 0.999, 1e-8

        def move(z: Tensor, goal: Tensor, left: Tensor) -> Tensor:
            nonlocal first, second, n
            if not goal.requires_grad:
                raise UsageError("AdamW needs a field that can be differentiated; take Picard().")
            (slope,) = torch.autograd.grad(left.sum(), z)
            n += 1
            first = b1 * first + (1 - b1) * slope
            second = b2 * second + (1 - b2) * slope.square()
            step = (first / (1 - b1**n)) / ((second / (1 - b2**n)).sqrt() + tiny)
            return z.detach() * (1 - self.rate * self.decay) - self.rate * step

        return move


class Residuals(NamedTuple):
    """What was left of the equation of each step, data first.

    Args:
        left: m, (steps, batch).
        rounds: evaluations of f that were made, (steps,).
        converged: whether m fell below ten times the tolerance, bool (steps, batch).
    """

    left: Tensor
    rounds: tuple[int, ...]
    converged: Tensor


@dataclass(frozen=True)
class FixedPoint(Inverter):
    """DDIM's steps inverted by iteration; with a reference, dual-conditional inversion.

    Args:
        rounds: K, the most evaluations of f at each step; 0 is DDIM inversion.
        tolerance: of m; None for the square of 1e-12 in float64 and of 1e-6 in float32.
        update: Picard, Anderson or AdamW.
        reference: what noise is drawn towards the data, and how far; None for not at all.

    Cost: 1 + `rounds` evaluations a step at most, and as many VJPs with AdamW.
    """

    rounds: int = 50
    tolerance: float | None = None
    update: Update = field(default_factory=Picard)
    reference: Reference | None = None

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise UsageError(f"K = {self.rounds}: 0 rounds (DDIM inversion) or more.")
        if self.tolerance is not None and not self.tolerance >= 0:
            raise UsageError(f"the tolerance must not be negative, and is {self.tolerance}.")

    @property
    def is_exact(self) -> bool:
        return False  # to the tolerance, where it converges

    def check(self, way: Way) -> None:
        if way.levels.alpha[0] == 0:
            raise UsageError("the way begins at data, and α is 0 there: turn the grid round.")
        model = denoiser_in(way.field)
        is_conditional = model is not None and model.is_conditional
        if self.reference is not None and is_conditional and not way.cond:
            raise UsageError(
                "dual-conditional inversion needs the source's condition: say what the data show "
                "(text=...)."
            )

    def invert(self, way: Way, x: Tensor, watch: Watch | None = None) -> Inverted:
        plain = way.noise(x)
        drawn = plain
        if self.reference is not None:
            drawn = replace(way, field=self.reference(way.field, x)).noise(x)
        z, left, rounds = x, list[Tensor](), list[int]()
        for i in range(1, way.n + 1):
            step = _Step(way, i, z)
            z, m, n = self._solved(step, step.towards(plain(i, z)), drawn)
            if watch is not None:
                (z,) = watch(i, (z,))
            left.append(m)
            rounds.append(n)
        residuals = torch.stack(left)
        report = Residuals(residuals, tuple(rounds), residuals < 10 * self._tolerance(x))
        return Inverted((z,), plain.n + (drawn.n if drawn is not plain else 0), report)

    def _tolerance(self, x: Tensor) -> float:
        if self.tolerance is not None:
            return self.tolerance
        return 1e-24 if x.dtype == torch.float64 else 1e-12

    def _solved(self, step: _Step, z: Tensor, noise: Noise) -> tuple[Tensor, Tensor, int]:
        """Return the root as far as it was found, m there, and the evaluations."""
        best, least = z, z.new_full((len(z),), torch.inf)
        is_better = least > 0
        move, tolerance = self.update.begin(z), self._tolerance(z)
        for k in range(self.rounds):
            with torch.set_grad_enabled(torch.is_grad_enabled() or self.update.needs_gradient):
                at = z.detach().requires_grad_() if self.update.needs_gradient else z
                goal = step.towards(noise(step.i, at))
                left = (at - goal).square().flatten(1).mean(1)
                moved = move(at, goal, left)
            left = left.detach()
            is_better = left <= least
            least = torch.where(is_better, left, least)
            done = least <= tolerance
            best = torch.where(bshape(is_better, z) > 0, at.detach() if at is not z else z, best)
            z = torch.where(bshape(done, z) > 0, best, moved)
            if bool(done.all()):
                return best, least, k + 1
        # What the last move made has not been looked at: it is taken where moves have helped.
        return torch.where(bshape(is_better, z) > 0, z, best), least, self.rounds

    def describe(self) -> dict[str, Any]:
        update = {"name": type(self.update).__name__, **asdict(self.update)}  # type: ignore[call-overload]
        reference = None if self.reference is None else asdict(self.reference)
        told = {"rounds": self.rounds, "tolerance": self.tolerance}
        return {"method": "fixed_point", **told, "update": update, "reference": reference}


class _Step:
    """The equation of one step, from grid point i − 1 to i."""

    def __init__(self, way: Way, i: int, z: Tensor) -> None:
        alpha, sigma = way.levels
        ratio = alpha[i] / alpha[i - 1]
        self.i, self._kept, self._weight = i, ratio * z, sigma[i] - ratio * sigma[i - 1]

    def towards(self, eps: Tensor) -> Tensor:
        """Return C1 z_{i−1} + C2 ε."""
        return self._kept + self._weight * eps


def ddim_inversion() -> FixedPoint:
    """Return DDIM inversion as editing code has it, an approximation: ε̂(z_{i−1}, t_i)."""
    return FixedPoint(rounds=0)


def dci(
    rho: float | None = None,
    length: float | None = None,
    *,
    rounds: int = 25,
    update: Update | None = None,
    tolerance: float | None = None,
) -> FixedPoint:
    """Return dual-conditional inversion.

    Args:
        rho: ρ = λ/√n, how far noise is drawn towards the data, per entry; 0.02 if neither is given.
        length: λ, instead.
        rounds: K.
        update: Picard if None; AdamW(1e-3) is the published one.
        tolerance: as for `FixedPoint`.
    """
    rho = 0.02 if rho is None and length is None else rho
    reference = Reference(rho, length)
    return FixedPoint(rounds, tolerance, update or Picard(), reference)

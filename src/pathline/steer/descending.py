"""Optimising what a sample is made of: its noise, its condition, or weights of the network.

    minimise L(x_0),   x_0 = solve(model, x; c, θ)     over x, c or θ

A loss on the finished sample is all that is needed; gradients come back through the whole solve by
an adjoint (`solvers.adjoints`).

Paper: Pan et al. 2023 (arXiv:2307.10711), Secs. 4-5.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.core.progress import track
from pathline.fields.denoiser import as_told
from pathline.solvers.adjoints import Adjoint, as_adjoint
from pathline.solvers.adjoints.continuous import Continuous
from pathline.solvers.gradients import Gradients, Loss, Wrt, differentiate, weights_of
from pathline.solvers.solve import AnyField, AnyGrid, AnySolver, Guide, as_field, solve

Watch = Callable[[int, float, Tensor], None]
"""Called with the number of the iteration, its loss and the sample."""


class Update(ABC):
    """How a gradient becomes a step; a frozen value."""

    @abstractmethod
    def over(self, leaves: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], None]:
        """Return what moves these tensors, in place, given their gradients."""


@dataclass(frozen=True)
class Adam(Update):
    """Adam, by torch.

    Args:
        rate: its learning rate; 0.05 suits embeddings of length one an element, and 1e-3 weights.
    """

    rate: float = 0.05

    def __post_init__(self) -> None:
        _check_rate(self.rate)

    def over(self, leaves: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], None]:
        optimizer = torch.optim.Adam(leaves, self.rate)

        def move(gradients: Sequence[Tensor]) -> None:
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf.grad = gradient.to(leaf)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return move


@dataclass(frozen=True)
class Steepest(Update):
    """Steps of one length in the direction of steepest descent, −rate g/‖g‖_p, sample by sample.

    Args:
        rate: the length.
        p: of the norm, above 0; inf makes the largest change of a coordinate `rate`.
    """

    rate: float = 0.01
    p: float = math.inf

    def __post_init__(self) -> None:
        _check_rate(self.rate)
        if not self.p > 0:
            raise UsageError(f"p={self.p}: the order of a norm is above 0.")

    def over(self, leaves: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], None]:
        @torch.no_grad()
        def move(gradients: Sequence[Tensor]) -> None:
            for leaf, gradient in zip(leaves, gradients, strict=True):
                length = gradient.flatten(1).norm(self.p, dim=1).clamp(min=1e-30)
                leaf -= self.rate * gradient / length.reshape(-1, *[1] * (leaf.ndim - 1))

        return move


@dataclass(frozen=True)
class Descended:
    """What came of it.

    Args:
        x: the sample after the last update, (batch, *state); of the first noise, if of several.
        losses: before each update, and after the last one; the mean over noises.
        noise: the state to start from, (batch, *state).
        condition: as the network is told it.
    """

    x: Tensor
    losses: tuple[float, ...]
    noise: Tensor
    condition: Mapping[str, Any] = field(default_factory=dict)


def descend(  # noqa: PLR0913 - keyword-only: what `solve` takes, and how to descend
    model: AnyField,
    x: Tensor | Sequence[Tensor],
    loss: Loss,
    *,
    wrt: Wrt = "noise",
    iterations: int = 50,
    update: Update | None = None,
    within: float | None = None,
    watch: Watch | None = None,
    solver: AnySolver = "dpmpp_2m",
    grid: AnyGrid = None,
    steps: int | None = None,
    guide: Guide | None = None,
    adjoint: Adjoint | str = "checkpoint",
    seeds: Sequence[int] | None = None,
    **cond: Any,
) -> Descended:
    """Minimise a loss on the finished sample over what it is made of.

    Args:
        model: a denoiser, or f(x, t, **cond) → dx/dt.
        x: the state at the start, (batch, *state); over a condition or weights also several, whose
            gradients are added up before each update.
        loss: of the final state, (batch, *state) → (); maximise by its negative.
        wrt: "noise"; "condition" (every floating tensor that the network is told; text is encoded
            first, one embedding for all samples where one text is given); "weights" (every
            parameter that asks for a gradient, changed in place: `learn.lora` adds small ones).
        iterations: updates.
        update: `Steepest` for noise if None, else `Adam`.
        within: every coordinate stays within ± this of where it began; None for anywhere.
        watch: told of every iteration; what it raises ends the loop.
        solver, grid, steps, guide, adjoint, seeds, cond: as `solvers.differentiate`.

    Raises:
        UsageError: as `differentiate`; no iterations, a bound that is not above 0.

    Cost: an iteration is a solve and its way back for each noise; one more solve at the end, so
    that what is returned is what the last update made.

    Example: the noise whose decay ends at 1.
        >>> far = torch.zeros(1, 1, dtype=torch.float64)
        >>> found = descend(lambda x, t: -x, far, lambda x: (x - 1).square().sum(),
        ...                  update=Adam(0.1), iterations=150, solver="rk4", grid=[0.0, 1.0])
        >>> f"{found.x.item():.2f} from {found.noise.item():.1f}"  # e = 2.7
        '1.00 from 2.7'
    """
    if iterations < 1:
        raise UsageError(f"iterations={iterations}: at least one update is made.")
    if within is not None and not within > 0:
        raise UsageError(f"within={within}: a distance above 0, or None for no bound.")
    noises = [x] if isinstance(x, Tensor) else list(x)
    if not noises or (wrt == "noise" and len(noises) > 1):
        raise UsageError(f"{len(noises)} states were given; one is optimised, and at least one.")
    flow, told = as_told(as_field(model), cond)
    how = {"solver": solver, "grid": grid, "steps": steps, "guide": guide, "seeds": seeds}
    work = _Work(flow, [z.detach().clone() for z in noises], loss, wrt, dict(told), how)
    losses = _descend(work, iterations, update, within, watch, as_adjoint(adjoint))
    final, after = work.after()
    return Descended(final, (*losses, after), work.noises[0], work.told)


@dataclass
class _Work:
    """What is optimised, as it stands."""

    flow: AnyField
    noises: list[Tensor]
    loss: Loss
    wrt: Wrt
    told: dict[str, Any]
    how: Mapping[str, Any]

    def gradients(self, adjoint: Adjoint) -> list[Gradients]:
        """Return the gradients for every noise."""
        return [
            differentiate(self.flow, z, self.loss, wrt=self.wrt, adjoint=adjoint,
                          **self.how, **self.told)
            for z in self.noises
        ]  # fmt: skip

    def leaves(self, first: Gradients) -> list[Tensor]:
        """Return what is moved: the noise, numbers of the condition, or parameters."""
        if self.wrt == "noise":
            return self.noises
        if self.wrt == "condition":
            for name in first.condition:
                self.told[name] = self.told[name].detach().clone()
            return [self.told[name] for name in first.condition]
        return list(weights_of(as_field(self.flow)).values())

    def found(self, one: Gradients) -> list[Tensor]:
        """Return the gradients of the leaves."""
        if self.wrt == "noise":
            return [] if one.noise is None else [one.noise]
        return list((one.condition if self.wrt == "condition" else one.weights).values())

    @torch.no_grad()
    def after(self) -> tuple[Tensor, float]:
        """Return the sample of the first noise as things stand, and the mean loss of all."""
        made = [solve(self.flow, z, **self.how, **self.told).x for z in self.noises]
        return made[0], sum(float(self.loss(x)) for x in made) / len(made)


def _descend(
    work: _Work,
    iterations: int,
    update: Update | None,
    within: float | None,
    watch: Watch | None,
    adjoint: Adjoint,
) -> list[float]:
    """Make the updates, and return the loss before each."""
    leaves, start, losses = list[Tensor](), list[Tensor](), list[float]()
    move: Callable[[Sequence[Tensor]], None] | None = None
    rule = update or (Steepest() if work.wrt == "noise" else Adam())
    for i in track(range(iterations), f"optimising the {work.wrt}"):
        each = work.gradients(adjoint)
        losses.append(sum(float(one.loss) for one in each) / len(each))
        if watch is not None:
            watch(i, losses[-1], each[0].solution.x.detach())
        if move is None:
            leaves = work.leaves(each[0])
            start, move = [leaf.detach().clone() for leaf in leaves], rule.over(leaves)
            adjoint = _unprobed(adjoint)
        total = [torch.stack(parts).sum(0) for parts in zip(*map(work.found, each), strict=True)]
        move(total)
        _keep_within(leaves, start, within)
    return losses


@torch.no_grad()
def _keep_within(leaves: Sequence[Tensor], start: Sequence[Tensor], within: float | None) -> None:
    if within is not None:
        for leaf, begun in zip(leaves, start, strict=True):
            leaf.copy_(leaf.clamp(begun - within, begun + within))


def _unprobed(adjoint: Adjoint) -> Adjoint:
    """Return the adjoint without its probe: the first iteration has warned."""
    return replace(adjoint, probe=0) if isinstance(adjoint, Continuous) else adjoint


def _check_rate(rate: float) -> None:
    if not 0 < rate < math.inf:
        raise UsageError(f"rate={rate}: the length of a step is above 0.")

"""Gradients of a loss on the finished sample, in what has produced it.

x_0 = solve(model, x, …),   L(x_0)   →   dL/dx,  dL/d(condition),  dL/d(weights)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pathline.core.errors import UsageError, unknown
from pathline.core.solution import Solution
from pathline.fields import Condition, Field
from pathline.fields.denoiser import as_told
from pathline.solvers.adjoints import Adjoint
from pathline.solvers.adjoints.sources import gradients, parts
from pathline.solvers.solve import (
    AnyField,
    AnyGrid,
    AnySolver,
    Guide,
    as_field,
    solve,
)

Wrt = Literal["noise", "condition", "weights"]
Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Gradients:
    """A loss on the finished sample, and its gradients in what was asked for.

    Args:
        loss: its value, ().
        solution: of the solve: the sample, what it cost, and in `backward` what the way back did.
        noise: in the state at the start, (batch, *state); None if it was not asked for.
        condition: in every floating tensor of the condition, by name.
        weights: in every parameter that asks for a gradient, by name.
    """

    loss: Tensor
    solution: Solution
    noise: Tensor | None = None
    condition: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)


def differentiate(  # noqa: PLR0913 - keyword-only: what `solve` takes, and of what gradients are
    model: AnyField,
    x: Tensor,
    loss: Loss,
    *,
    wrt: Wrt | Sequence[Wrt] = "noise",
    solver: AnySolver = "dpmpp_2m",
    grid: AnyGrid = None,
    steps: int | None = None,
    guide: Guide | None = None,
    adjoint: Adjoint | str = "checkpoint",
    seeds: Sequence[int] | None = None,
    **cond: Any,
) -> Gradients:
    """Return a loss on the finished sample and its gradients.

    Args:
        model: a denoiser, or f(x, t, **cond) → dx/dt.
        x: the state at the start, (batch, *state).
        loss: of the final state, (batch, *state) → ().
        wrt: "noise" (the state at the start), "condition" (every floating tensor that the network
            is told; text is encoded first), "weights" (every parameter that asks for a gradient).
        solver, grid, steps, guide, seeds: as `solve`.
        adjoint: how gradients come back (`solvers.adjoints`).
        cond: the condition, in the user's words, or as the network is told it (context=...): then
            its leading axis may be 1 for all samples.

    Raises:
        UsageError: nothing to differentiate; a loss that is no number, or knows nothing of the
            sample.
        GradientError: as the adjoint.

    Cost: the solve, and its way back; `solvers.explain` says it beforehand.

    Example: how fast a decay forgets.
        >>> x = torch.ones(1, 1, dtype=torch.float64)
        >>> found = differentiate(lambda x, t: -x, x, lambda x: x.sum(), solver="rk4",
        ...                       grid=[0.0, 0.5, 1.0])
        >>> f"{found.noise.item():.4f}"  # e⁻¹ = 0.3679
        '0.3682'
    """
    asked = _asked(wrt)
    flow, told = _told(as_field(model), cond, "condition" in asked)
    noise = x.detach().clone().requires_grad_("noise" in asked)
    leaves = {n: v for n, v in told.items() if isinstance(v, Tensor) and v.requires_grad}
    weights = weights_of(flow) if "weights" in asked else {}
    if not ("noise" in asked or leaves or weights):
        raise UsageError(
            "nothing to differentiate: pass wrt='noise', 'condition' or 'weights'; a condition "
            "needs a tensor of numbers, and weights need network.requires_grad_()."
        )
    with torch.enable_grad():
        solution = solve(flow, noise, solver=solver, grid=grid, steps=steps, guide=guide,
                         adjoint=adjoint, seeds=seeds, **told)  # fmt: skip
        value = _checked(loss(solution.x))
    inputs = [*([noise] if "noise" in asked else []), *leaves.values(), *weights.values()]
    found = gradients([value], inputs)
    made = [torch.zeros_like(v) if g is None else g for g, v in zip(found, inputs, strict=True)]
    own = made.pop(0) if "noise" in asked else None
    in_condition = dict(zip(leaves, made[: len(leaves)], strict=True))
    in_weights = dict(zip(weights, made[len(leaves) :], strict=True))
    return Gradients(value.detach(), solution, own, in_condition, in_weights)


def _asked(wrt: Wrt | Sequence[Wrt]) -> tuple[str, ...]:
    names = (wrt,) if isinstance(wrt, str) else tuple(wrt)
    for name in names:
        if name not in get_args(Wrt):
            raise unknown("thing to differentiate", str(name), get_args(Wrt))
    return names


def _told(flow: Field, cond: Condition, asks: bool) -> tuple[Field, dict[str, Any]]:
    """Return the field and the condition as the network is told it, its numbers as leaves."""
    raw, encoded = as_told(flow, cond)
    return raw, {name: _leaf(value) if asks else value for name, value in encoded.items()}


def _leaf(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().clone().requires_grad_()
    return value


def weights_of(flow: Field) -> dict[str, Tensor]:
    """Return the parameters that ask for a gradient, by name; of several networks, numbered."""
    networks = [part for part in parts(flow) if isinstance(part, nn.Module)]
    found: dict[str, Tensor] = {}
    for i, network in enumerate(networks):
        prefix = f"{i}." if i else ""
        named = network.named_parameters()
        found |= {f"{prefix}{name}": p for name, p in named if p.requires_grad}
    return found


def _checked(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim or not value.requires_grad:
        what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else "none"
        if isinstance(value, Tensor) and not value.ndim:
            what = "a number that knows nothing of it"
        raise UsageError(f"the loss must be a scalar that depends on the sample, and is {what}.")
    return value

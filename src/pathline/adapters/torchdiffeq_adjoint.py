"""The adjoint equation from one output time to the one before, for `adapters.torchdiffeq`.

    d/dt (y, a, g) = (f, −aᵀ ∂f/∂y, −aᵀ ∂f/∂θ)

is solved backwards between output times; at each the state is put back to the one that the way out
saw, and its own gradient added to a.

Source: Chen et al. 2018 (arXiv:1806.07366), App. B and C.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Slope = Callable[[Tensor, Tensor], Tensor]
Carry = Callable[[Slope, Tensor, Tensor], Tensor]


def adjoint(
    field: Slope,
    run: Callable[[Tensor], Tensor],
    carry: Carry,
    x: Tensor,
    times: Tensor,
    params: Sequence[Tensor],
) -> Tensor:
    """Return run(x), (m, 1, n), whose gradients come by the adjoint equation.

    Args:
        field: f(x (1, n), t).
        run: the solve.
        carry: solves an augmented field from its state between two times.
        x: the start.
        times: of the states, (m,).
        params: who else asks.
    """
    made: Tensor = _Solve.apply(field, run, carry, times, x, *params)  # pyright: ignore
    return made


class _Solve(torch.autograd.Function):
    """A solve that keeps its states at output times alone."""

    @staticmethod
    def forward(
        ctx: Any,
        field: Slope,
        run: Callable[[Tensor], Tensor],
        carry: Carry,
        times: Tensor,
        x: Tensor,
        *params: Tensor,
    ) -> Tensor:
        states = run(x.detach())
        ctx.field, ctx.carry = field, carry
        ctx.save_for_backward(states, times, *params)
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        states, times, *params = ctx.saved_tensors
        (cotangents,) = gradients
        n = states.shape[-1]
        sizes = [n, n, *(p.numel() for p in params)]

        def augmented(v: Tensor, t: Tensor) -> Tensor:
            y, a = v[:, :n], v[:, n : 2 * n]
            with torch.enable_grad():
                point = y.detach().requires_grad_()
                f = ctx.field(point, t)
                found = torch.autograd.grad(f, (point, *params), -a, allow_unused=True) if (
                    f.requires_grad
                ) else (None,) * (1 + len(params))  # fmt: skip
            wanted = (point, *params)
            flat = [
                (torch.zeros_like(w) if g is None else g).reshape(1, -1)
                for g, w in zip(found, wanted, strict=True)
            ]
            return torch.cat((f.detach(), *flat), 1)

        zeros = torch.zeros(1, sum(sizes[2:]), dtype=states.dtype, device=states.device)
        a, rest = cotangents[-1], zeros
        with torch.no_grad():
            for i in range(len(times) - 1, 0, -1):
                v = torch.cat((states[i], a, rest), 1)
                v = ctx.carry(augmented, v, times[[i, i - 1]])
                a, rest = v[:, n : 2 * n] + cotangents[i - 1], v[:, 2 * n :]
        each = rest[0].split(sizes[2:]) if params else ()
        found = [g.reshape(p.shape) for g, p in zip(each, params, strict=True)]
        return None, None, None, None, a, *found

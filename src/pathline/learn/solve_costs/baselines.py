"""What the estimates are compared with: nothing, a random end, and derivatives of high order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.fields import Field
from pathline.learn.solve_costs.cost import Asked, Costed, SolveCost


@dataclass(frozen=True)
class Plain(SolveCost):
    """No cost: what a field learns by itself."""

    def costed(self, asked: Asked) -> Costed:
        return Costed(asked.solved(), asked.x.new_zeros(()))


@dataclass(frozen=True)
class RandomEnd(SolveCost):
    """STEER: the end of the solve is drawn evenly from t_end ± spread, one for the batch.

    Args:
        spread: below the length of the solve.

    Paper: Ghosh et al. 2020 (arXiv:2006.10711).
    """

    spread: float = 0.5

    def costed(self, asked: Asked) -> Costed:
        *before, end = asked.grid
        if not 0 <= self.spread < abs(end - before[-1]):
            raise UsageError(
                f"a spread of {self.spread:g} about t = {end:g} reaches back to the last time "
                f"before, {before[-1]:g}; take less."
            )
        u = float(noise.uniform([asked.seed], (1,), stream="data", dtype=torch.float64))
        moved = end + self.spread * (2 * u - 1)
        return Costed(asked.solved(grid=[*before, moved]), asked.x.new_zeros(()))


@dataclass(frozen=True)
class Taylor(SolveCost):
    """TayNODE: ∫ |d^K x/dt^K|² dt along the solution, by nested forward derivatives.

    The derivative is per element (a mean of squares), and the integral one more state, so it is
    under the solver's error control too.

    Args:
        order: K, at least 2.

    Paper: Kelly et al. 2020 (arXiv:2007.04504).

    Cost: each evaluation takes K − 1 nested derivatives, about 2^(K−1) evaluations.
    """

    order: int = 2

    def __post_init__(self) -> None:
        if self.order < 2:
            raise UsageError(f"order={self.order}: the derivative is the second or a higher one.")

    def costed(self, asked: Asked) -> Costed:
        field, x = asked.field, asked.x
        if isinstance(field, Field):
            raise UsageError("the derivatives are those of a function f(x, t); give the function.")
        shape, derivative = x.shape[1:], flow_derivative(field, self.order)

        def both(w: Tensor, t: Tensor) -> Tensor:
            state = w[:, :-1].unflatten(1, shape)
            at = t.reshape(-1, *[1] * len(shape)) if t.ndim else t
            bent = derivative(state, at).flatten(1).square().mean(1, keepdim=True)
            return torch.cat((field(state, at).flatten(1), bent), 1)

        begun = torch.cat((x.flatten(1), x.new_zeros(len(x), 1)), 1)
        sol = replace(asked, field=both, x=begun).solved()
        solution = replace(sol, x=sol.x[:, :-1].unflatten(1, shape), receipt=None)
        return Costed(solution, sol.x[:, -1].mean())


def flow_derivative(
    f: Callable[[Tensor, Tensor], Tensor], order: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return d^order x/dt^order of dx/dt = f, as a function of x and t."""
    made = f
    for _ in range(order - 1):
        made = _along(f, made)
    return made


def _along(
    f: Callable[[Tensor, Tensor], Tensor], g: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return dg/dt along the flow of f, ∂g/∂x f + ∂g/∂t."""

    def along(x: Tensor, t: Tensor) -> Tensor:
        return torch.func.jvp(g, (x, t), (f(x, t), torch.ones_like(t)))[1]

    return along

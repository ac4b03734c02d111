"""Layers that are the solution of an equation: z = g(z, x), found once and differentiated there.

    z* = g(z*, x)                                 by Anderson mixing of the last m iterates
    u = (∂g/∂z)ᵀ u + ∂L/∂z*,   dL/dθ = uᵀ ∂g/∂θ   whatever steps led there

Memory does not grow with the steps, for none is remembered. What did not converge has no such
gradient: it is refused, with the residual, and not differentiated in silence.

Paper: Bai, Kolter & Koltun 2019 (arXiv:1909.01377); Anderson 1965; Kidger 2022, Sec. 6.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pathline.core.errors import PathlineError, UsageError, unknown

__all__ = ["DEQ", "Equilibrium", "FixedPoint", "NotConverged", "TanhLayer", "solve_fixed_point"]

Backward = Literal["linear", "fixed_point", "gmres"]
OnFailure = Literal["raise", "warn"]
Pull = Callable[[Tensor], Tensor]


class NotConverged(PathlineError, ArithmeticError):
    """An equation was not solved to its tolerance; `residual` says how far off it is."""

    def __init__(self, message: str, residual: float) -> None:
        super().__init__(message)
        self.residual = residual


@dataclass(frozen=True)
class FixedPoint:
    """How a fixed point is looked for.

    Args:
        tolerance: of ‖g(z) − z‖/‖g(z)‖, for every sample; None is 1e-10, in float32 1e-5.
        max_steps: evaluations of g, at most.
        memory: how many iterates are mixed; 1 is plain iteration.
        ridge: added to the normal equations of the mixing, relative to their largest number.
        backward: how the linear equation of the gradient is solved: "linear" makes the matrix
            (small states), "fixed_point" iterates as forward, "gmres" needs no contraction.
        on_failure: what happens where it does not converge: "raise", or "warn" and go on without a
            gradient.
    """

    tolerance: float | None = None
    max_steps: int = 200
    memory: int = 5
    ridge: float = 1e-12
    backward: Backward = "fixed_point"
    on_failure: OnFailure = "raise"

    def __post_init__(self) -> None:
        if self.backward not in get_args(Backward):
            raise unknown("way back", self.backward, get_args(Backward))
        if self.on_failure not in get_args(OnFailure):
            raise unknown("on_failure", self.on_failure, get_args(OnFailure))
        positive = self.tolerance is None or self.tolerance > 0
        if not (positive and self.max_steps >= 1 and self.memory >= 1):
            raise UsageError(
                "a fixed point is found to a tolerance above 0 in one step or more from one iterate"
                f" or more; got {self.tolerance}, {self.max_steps}, {self.memory}."
            )

    def within(self, dtype: torch.dtype) -> float:
        """Return the tolerance in this dtype."""
        if self.tolerance is not None:
            return self.tolerance
        return 1e-10 if dtype == torch.float64 else 1e-5


@dataclass(frozen=True)
class Equilibrium:
    """What was found.

    Args:
        z: (batch, *state).
        residual: ‖g(z) − z‖/‖g(z)‖, (batch,).
        steps: evaluations of g.
        converged: whether every sample is within the tolerance.
    """

    z: Tensor
    residual: Tensor
    steps: int
    converged: bool


@torch.no_grad()
def solve_fixed_point(
    g: Callable[[Tensor], Tensor], z: Tensor, how: FixedPoint | None = None
) -> Equilibrium:
    """Return z = g(z), by Anderson mixing: the combination of iterates with the least residual.

    Args:
        g: (batch, *state) → the same shape.
        z: where to start.
        how: tolerance, memory, steps.

    Cost: one evaluation of g a step; memory of 2 m states.
    """
    how = how or FixedPoint()
    shape, z, tolerance = z.shape, z.flatten(1), how.within(z.dtype)

    def image(flat: Tensor) -> Tensor:
        return g(flat.reshape(shape)).flatten(1)

    points, images = list[Tensor](), list[Tensor]()
    best, least = z, torch.full((len(z),), math.inf, dtype=z.dtype, device=z.device)
    step, done = 0, False
    while step < how.max_steps and not done:
        f, step = image(z), step + 1
        off = (f - z).norm(dim=1) / f.norm(dim=1).clamp_min(torch.finfo(f.dtype).tiny)
        better = off < least
        best = torch.where(better[:, None], f, best)
        least = torch.where(better, off, least)
        done = bool((off <= tolerance).all()) or not bool(f.isfinite().all())
        points, images = [*points, z][-how.memory :], [*images, f][-how.memory :]
        z = _mixed(points, images, how.ridge)
    return Equilibrium(best.reshape(shape), least, step, bool((least <= tolerance).all()))


def _mixed(points: list[Tensor], images: list[Tensor], ridge: float) -> Tensor:
    """Return Σ a_i f_i where Σ a_i = 1 and ‖Σ a_i (f_i − z_i)‖ is least, for each sample."""
    if len(points) == 1:
        return images[0]
    f, z = torch.stack(images, 1), torch.stack(points, 1)
    r = f - z
    gram = r @ r.mT  # (batch, m, m)
    top = gram.diagonal(dim1=1, dim2=2).amax(1).clamp_min(torch.finfo(gram.dtype).tiny)
    eye = torch.eye(len(points), dtype=z.dtype, device=z.device)
    gram = gram / top[:, None, None] + ridge * eye
    a = torch.linalg.solve_ex(gram, gram.new_ones(len(z), len(points), 1)).result[:, :, 0]
    a = a / a.sum(1, keepdim=True)
    usable = a.isfinite().all(1, keepdim=True)  # parallel residuals may cancel: then a plain step
    a = torch.where(usable, a, eye[-1])
    return (a[:, :, None] * f).sum(1)


class DEQ(nn.Module):
    """A layer whose output is the fixed point of another layer, z* = g(z*, x).

    Choose it for a deep network of equal layers in the memory of one.

    Args:
        layer: g(z (batch, hidden), x) → (batch, hidden).
        hidden: numbers in z; iteration starts at 0.
        how: how it is solved, forward and backward.

    Raises:
        NotConverged: a gradient is asked for and the residual is above the tolerance.

    Cost: forward one evaluation a step without a graph and one with; backward one vector-Jacobian
    product a step ("linear": one for each hidden number, and a solve of hidden × hidden a sample).

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = DEQ(TanhLayer(8, 3), 8).double()
        >>> x = torch.randn(4, 3, dtype=torch.float64)
        >>> z = net(x)
        >>> bool((net.layer(z, x) - z).abs().max() < 1e-9)
        True
    """

    def __init__(self, layer: nn.Module, hidden: int, how: FixedPoint | None = None) -> None:
        super().__init__()
        self.layer, self.hidden, self.how = layer, hidden, how or FixedPoint()

    def forward(self, x: Tensor) -> Tensor:
        """Return z*, (batch, hidden).

        Args:
            x: (batch, *input).
        """
        with torch.no_grad():
            found = solve_fixed_point(
                lambda z: self.layer(z, x), x.new_zeros(len(x), self.hidden), self.how
            )
        if not torch.is_grad_enabled():
            if not found.converged:
                _complain(found, self.how, refuse=False)
            return found.z
        if not found.converged:
            _complain(found, self.how, refuse=self.how.on_failure == "raise")
            return found.z.detach()
        z = found.z.detach().requires_grad_()
        image = self.layer(z, x)
        return _attached(image, z, self.how)


def _complain(found: Equilibrium, how: FixedPoint, refuse: bool) -> None:
    worst = float(found.residual.max())
    told = (
        f"the fixed point was not found: after {found.steps} steps the residual is {worst:.3g}, "
        f"and {how.within(found.z.dtype):g} is needed. Keep the layer a contraction (`TanhLayer` "
        "is one), allow more steps, or a larger tolerance"
    )
    if refuse:
        raise NotConverged(f"{told}; on_failure='warn' goes on without a gradient.", worst)
    warnings.warn(f"{told}. The result has no gradient.", stacklevel=3)


def _attached(image: Tensor, z: Tensor, how: FixedPoint) -> Tensor:
    """Return g(z*, x) with the gradient of z*: the cotangent v is replaced by u = Jᵀ u + v."""
    if not image.requires_grad:
        return image

    def pull(v: Tensor) -> Tensor:
        (pulled,) = torch.autograd.grad(image, z, v, retain_graph=True, allow_unused=True)
        return torch.zeros_like(v) if pulled is None else pulled

    return _Solved.apply(image, pull, how)  # pyright: ignore


class _Solved(torch.autograd.Function):
    """The identity, whose backward pass solves (I − J)ᵀ u = v."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, pull: Pull, how: FixedPoint) -> Tensor:
        ctx.pull, ctx.how = pull, how
        return image.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return solve_adjoint(ctx.pull, cotangents[0], ctx.how), None, None


def solve_adjoint(pull: Pull, v: Tensor, how: FixedPoint) -> Tensor:
    """Return u = pull(u) + v, where pull is the product with Jᵀ.

    Raises:
        NotConverged: it was not found to the tolerance.
    """
    if how.backward == "linear":
        return _by_matrix(pull, v)
    if how.backward == "gmres":
        return _by_gmres(pull, v, how)
    scale = v.norm(dim=1, keepdim=True)
    unit = v / scale.clamp_min(torch.finfo(v.dtype).tiny)
    found = solve_fixed_point(lambda u: pull(u) + unit, torch.zeros_like(v), how)
    if not found.converged and bool((scale > 0).any()):
        worst = float(found.residual[scale[:, 0] > 0].max())
        raise _unsolved(worst, how.within(v.dtype))
    return found.z * scale


def _unsolved(residual: float, tolerance: float) -> NotConverged:
    return NotConverged(
        f"the linear equation of the gradient was not solved: its residual is {residual:.3g}, and "
        f"{tolerance:g} is needed; backward='linear' solves it by a matrix.",
        residual,
    )


def _by_matrix(pull: Pull, v: Tensor) -> Tensor:
    n = v.shape[1]
    eye = torch.eye(n, dtype=v.dtype, device=v.device)
    columns = [pull(e.expand_as(v)) for e in eye]  # Jᵀ e_k of every sample
    matrix = eye - torch.stack(columns, 2)
    return torch.linalg.solve(matrix, v)


def _by_gmres(pull: Pull, v: Tensor, how: FixedPoint) -> Tensor:
    """Solve u − Jᵀ u = v in the Krylov space of each sample: all samples at once."""
    size = v.norm(dim=1)
    tiny = torch.finfo(v.dtype).tiny
    basis = [v / size.clamp_min(tiny)[:, None]]
    rows = list[Tensor]()
    u, worst = torch.zeros_like(v), math.inf
    for k in range(1, min(how.max_steps, v.shape[1]) + 1):
        w = basis[-1] - pull(basis[-1])
        column = list[Tensor]()
        for q in basis * 2:  # orthogonalised twice: once loses digits
            h = (q * w).sum(1)
            w = w - h[:, None] * q
            column.append(h)
        heights = torch.stack(column).view(2, k, -1).sum(0)
        length = w.norm(dim=1)
        basis.append(w / length.clamp_min(tiny)[:, None])
        rows.append(torch.cat((heights, length[None])))
        hessenberg = v.new_zeros(len(v), k + 1, k)
        for j, entries in enumerate(rows):
            hessenberg[:, : len(entries), j] = entries.T
        goal = v.new_zeros(len(v), k + 1, 1)
        goal[:, 0, 0] = size
        y = torch.linalg.pinv(hessenberg) @ goal  # a sample that is done has a vanishing column
        left = (goal - hessenberg @ y).norm(dim=1)[:, 0] / size.clamp_min(tiny)
        worst = float(left.max())
        u = (torch.stack(basis[:k], 2) @ y)[:, :, 0]
        if worst <= how.within(v.dtype):
            return u
    raise _unsolved(worst, how.within(v.dtype))


class TanhLayer(nn.Module):
    """g(z, x) = tanh(W z + U x + b) with ‖W‖₂ ≤ norm: a contraction, so a fixed point exists.

    W is a free matrix divided by its largest singular value where that is above the bound.

    Args:
        hidden: numbers in z.
        inputs: numbers in x.
        norm: the bound, below 1.
    """

    def __init__(self, hidden: int, inputs: int, norm: float = 0.9) -> None:
        super().__init__()
        if not 0 < norm < 1:
            raise UsageError(f"a contraction has a norm between 0 and 1, not {norm}.")
        self.norm = norm
        self.free = nn.Parameter(torch.randn(hidden, hidden) / hidden**0.5)
        self.given = nn.Linear(inputs, hidden)

    @property
    def weight(self) -> Tensor:
        """W, (hidden, hidden)."""
        top = torch.linalg.matrix_norm(self.free, 2)
        return self.free * (self.norm / top).clamp_max(1.0)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z @ self.weight.T + self.given(x))

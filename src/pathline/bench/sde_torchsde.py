"""torchsde's side of bench sde: its sample paths, its gradients, and the errors of both."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from pathline.bench.sde import REFERENCE, Problem, exact, rms


def _interval(problem: Problem, method: str, n: int) -> Any:
    """Return a path made for steps of 1/n."""
    torchsde: Any = import_module("torchsde")
    area = "space-time" if method == "srk" else "none"
    return torchsde.BrownianInterval(
        0.0, 1.0, size=tuple(problem.x.shape), dtype=problem.x.dtype, dt=1 / n,
        levy_area_approximation=area, entropy=0,
    )  # fmt: skip


def _solved(problem: Problem, x: Tensor, method: str, n: int, bm: Any) -> Tensor:
    torchsde: Any = import_module("torchsde")
    ends = torch.tensor([0.0, 1.0], dtype=x.dtype)
    is_by_hand = problem.by_hand is not None and method == "srk"
    module = problem.by_hand if is_by_hand else problem.module
    given = {"bm": bm, "method": method, "dt": 1 / n}
    if method == "reversible_heun" and torch.is_grad_enabled():
        adjoint = "adjoint_reversible_heun"
        return torchsde.sdeint_adjoint(module, x, ends, **given, adjoint_method=adjoint)[-1]
    return torchsde.sdeint(module, x, ends, **given)[-1]


@torch.no_grad()
def run(problem: Problem, method: str, told: bool, n: int) -> Tensor:
    """Draw sample paths, along one made for the step, or along one that `sdeint` makes."""
    bm = _interval(problem, method, n) if told else None
    return _solved(problem, problem.x, method, n, bm)


def gradient(problem: Problem, method: str, told: bool, n: int, bm: Any = None) -> Sequence[Tensor]:
    """Return the gradient for the starts and all weights."""
    x = problem.x.clone().requires_grad_()
    bm = _interval(problem, method, n) if told else bm
    with torch.enable_grad():
        end = _solved(problem, x, method, n, bm)
        return torch.autograd.grad(end.square().sum(), [x, *problem.module.parameters()])


@cache
def _reference(problem: Problem, has_area: bool) -> tuple[Any, Tensor, Tensor]:
    """Return a path, where many steps of Heun's method lead along it, and the gradient there."""
    bm = _interval(problem, "srk" if has_area else "heun", REFERENCE)
    with torch.no_grad():
        end = _solved(problem, problem.x, "heun", REFERENCE, bm)
    return bm, end, gradient(problem, "heun", False, REFERENCE, bm)[0]


@torch.no_grad()
def error(problem: Problem, method: str, n: int) -> float:
    """Return the strong error along a path of torchsde's own."""
    if problem.is_learned:
        bm, right, _ = _reference(problem, method == "srk")
        return rms(_solved(problem, problem.x, method, n, bm) - right)
    bm = _interval(problem, method, n)
    return rms(_solved(problem, problem.x, method, n, bm) - exact(problem, bm(0.0, 1.0)))


def gradient_error(problem: Problem, method: str, n: int) -> float:
    """Return the relative error of the gradient for the starts."""
    bm, _, right = _reference(problem, method == "srk")
    return rms(gradient(problem, method, False, n, bm)[0] - right) / rms(right)

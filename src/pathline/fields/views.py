"""Views: five ways in which a network can say the same thing.

Every view is a linear function F = A x̂_0 + B ε̂ of the denoised data and the noise, and so is the
state, x = α x̂_0 + σ ε̂. Solving the two for (x̂_0, ε̂) and inserting them into another view
G = C x̂_0 + D ε̂ gives one formula for every change of view:

    G = p x + q F,   p = (C B − D A)/Δ,   q = (D α − C σ)/Δ,   Δ = α B − σ A

Because it is linear, solvers fold it into their coefficients (`Plan.folded`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from pathline.core.errors import UsageError, unknown
from pathline.paths import GaussianPath, Time, as_time, bshape

View = Literal["eps", "x0", "v", "score", "velocity"]
VIEWS: tuple[View, ...] = get_args(View)

_ALIASES: dict[str, View] = {
    "epsilon": "eps",
    "noise": "eps",
    "sample": "x0",
    "data": "x0",
    "denoised": "x0",
    "v_prediction": "v",
    "flow": "velocity",
}


def as_view(name: str) -> View:
    """Return the view of a name or alias.

    Raises:
        UsageError: nobody knows it; the message has the nearest names.
    """
    view = _ALIASES.get(name, name)
    if view not in VIEWS:
        raise unknown("view", name, [*VIEWS, *_ALIASES])
    return view


_Row = Callable[[GaussianPath, Tensor], tuple[Tensor, Tensor]]


def _score(path: GaussianPath, t: Tensor) -> tuple[Tensor, Tensor]:
    if not path.kernel.is_gaussian:
        raise UsageError(
            "−ε̂/σ is the score, the gradient of log p_t, for D=inf alone, and the noise of this "
            f"path has D={path.kernel.dof:g}; use the view eps."
        )
    return torch.zeros_like(t), -1 / path.sigma(t)


_ROWS: dict[View, _Row] = {
    "eps": lambda _, t: (torch.zeros_like(t), torch.ones_like(t)),
    "x0": lambda _, t: (torch.ones_like(t), torch.zeros_like(t)),
    "v": lambda path, t: (-path.sigma(t), path.alpha(t)),
    "score": _score,
    "velocity": lambda path, t: (path.d_alpha(t), path.d_sigma(t)),
}


def row(path: GaussianPath, view: View, t: Time) -> tuple[Tensor, Tensor]:
    """Return (A, B) with view = A x̂_0 + B ε̂ at time t."""
    return _ROWS[view](path, as_time(t))


def change(path: GaussianPath, source: View, goal: View, t: Time) -> tuple[Tensor, Tensor]:
    """Return (p, q) with goal = p x + q source at time t, in the dtype of t.

    Not finite where the source says nothing of the goal: ε where α = 0, x̂_0 where σ = 0.
    """
    t = as_time(t)
    if source == goal:
        return torch.zeros_like(t), torch.ones_like(t)
    alpha, sigma = path.alpha(t), path.sigma(t)
    (a, b), (c, d) = row(path, source, t), row(path, goal, t)
    determinant = alpha * b - sigma * a
    return (c * b - d * a) / determinant, (d * alpha - c * sigma) / determinant


def target(path: GaussianPath, view: View, x0: Tensor, eps: Tensor, t: Time) -> Tensor:
    """Return what a network of this view is trained to say: A x_0 + B ε.

    Args:
        x0: (batch, *state).
        eps: (batch, *state).
        t: () or (batch,).
    """
    a, b = row(path, view, t)
    return bshape(a, x0) * x0 + bshape(b, eps) * eps


def convert(path: GaussianPath, source: View, goal: View, x: Tensor, f: Tensor, t: Time) -> Tensor:
    """Return the prediction `f` of view `source` at (x, t) as view `goal`.

    Raises:
        UsageError: the source says nothing of the goal at this time.
    """
    p, q = change(path, source, goal, t)
    if not bool(torch.isfinite(p).all() & torch.isfinite(q).all()):
        raise UsageError(
            f"{goal} cannot be had from {source} at t = {as_time(t).tolist()}: "
            f"α = {path.alpha(t).tolist()}, σ = {path.sigma(t).tolist()}."
        )
    return bshape(p, x) * x + bshape(q, f) * f

"""Derivatives of a field along a direction in state and time, and the diagonal of its Jacobian.

    dF = ∂F/∂x dx + ∂F/∂t dt                          one forward-mode sweep
    diag ∂F/∂x ≈ mean of v ⊙ (∂F/∂x) v,  v_i = ±1     Hutchinson's estimator, unbiased

Times are path times: a derivative in λ is one along dt = dt/dλ (`time_per_log_snr`), and along the
probability flow dx = (dα/dλ)/α x − σ ε̂ besides. Networks see what they always see, a label, so
one that looks its label up in a table of integers cannot be differentiated in time: its derivative
there is zero, and `calibrate` refuses it.

Paper: Hutchinson 1990; Bekas, Kokiopoulou, Saad 2007 for the diagonal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.core.tensors import plain_attention
from pathline.fields.denoiser import Denoiser, dtype_of
from pathline.fields.field import Condition, Field
from pathline.fields.views import View, change
from pathline.paths import GaussianPath, Time, as_time, bshape

Method = Literal["forward", "difference"]

MOST_ELEMENTS = 1024
"""Elements up to which `exact_diagonal` agrees to take one derivative each."""


def jvp(  # noqa: PLR0913 - a point, a direction, and how
    field: Field,
    x: Tensor,
    t: Time,
    dx: Tensor,
    dt: Time,
    cond: Condition | None = None,
    *,
    view: View | None = None,
    method: Method = "forward",
) -> tuple[Tensor, Tensor]:
    """Return F(x, t) and its derivative dF along (dx, dt).

    Args:
        field: any field; its network need not require gradients.
        x: (batch, *state).
        t: () or (batch,), path time.
        dx: (batch, *state), the direction in x.
        dt: the direction in t, of the shape of t.
        cond: as `field.condition` returned it.
        view: what F is; the field's own view if None.
        method: "forward" differentiates exactly; "difference" takes a central difference, for
            networks without forward-mode derivatives, right to about ε^⅔ (1e-10 in float64,
            2e-5 in float32, where it is noisy).

    Raises:
        UsageError: the network has no forward-mode derivative; a view that it does not tell.

    Cost: "forward" about two evaluations in time and memory, "difference" three.

    Example:
        >>> from pathline.fields import VectorField
        >>> square = VectorField(lambda x, t: t * x**2)
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> [v.item() for v in jvp(square, 3 * one, 2.0, one, 1.0)]
        [18.0, 21.0]
    """
    t, still = as_time(t), not isinstance(dt, Tensor) and dt == 0
    dt = as_time(dt).to(t).expand_as(t)
    f = _viewed(field, cond or {}, field.view if view is None else view)
    if method == "difference":
        return _difference(f, (x, t), (dx, dt), _precision(field, x))
    if method != "forward":
        raise UsageError(f"method={method!r}: choose 'forward' or 'difference'.")
    try:
        with plain_attention():
            if still:  # spares the derivatives of all that time alone decides
                found = torch.func.jvp(lambda x: f(x, t), (x,), (dx,))
            else:
                found = torch.func.jvp(f, (x, t), (dx, dt))
    except (NotImplementedError, RuntimeError) as error:
        known = ("jvp", "view size")  # the latter: group norm of states that are not contiguous
        if not isinstance(error, NotImplementedError) and not any(k in str(error) for k in known):
            raise
        reason = str(error).split(". ")[0].split("\n")[0]
        raise UsageError(
            f"the network has no forward-mode derivative ({reason}); take method='difference'."
        ) from error
    return found[0], found[1]


def diagonal(  # noqa: PLR0913 - a point, the probes, and how
    field: Field,
    x: Tensor,
    t: Time,
    cond: Condition | None = None,
    *,
    seeds: Sequence[int],
    n_probes: int = 1,
    view: View | None = None,
    method: Method = "forward",
) -> Tensor:
    """Return an unbiased estimate of diag ∂F/∂x, (batch, *state).

    The variance of an element is the sum of the squares of its row's other entries, over
    `n_probes`: none for a field that acts element by element.

    Args:
        field, x, t, cond, view, method: as for `jvp`.
        seeds: one a sample; probe p of a sample is a function of its seed and p alone.
        n_probes: probes a sample.

    Cost: `n_probes` calls of `jvp`.
    """
    if n_probes < 1:
        raise UsageError(f"at least 1 probe is needed, and {n_probes} were asked for.")
    total = torch.zeros_like(x)
    for p in range(n_probes):
        v = noise.rademacher(seeds, x.shape[1:], index=p, dtype=x.dtype, device=x.device)
        total += v * jvp(field, x, t, v, 0.0, cond, view=view, method=method)[1]
    return total / n_probes


def exact_diagonal(
    field: Field,
    x: Tensor,
    t: Time,
    cond: Condition | None = None,
    *,
    view: View | None = None,
    method: Method = "forward",
) -> Tensor:
    """Return diag ∂F/∂x, (batch, *state), one element after the other.

    Args:
        field, x, t, cond, view, method: as for `jvp`.

    Raises:
        UsageError: a state of more than `MOST_ELEMENTS` elements.

    Cost: a call of `jvp` for each element of a state.
    """
    size = x[0].numel()
    if size > MOST_ELEMENTS:
        raise UsageError(
            f"an exact diagonal takes one derivative for each of {size} elements; more than "
            f"{MOST_ELEMENTS} are refused: estimate it with random probes (`diagonal`)."
        )
    found = torch.empty_like(x).flatten(1)
    for i in range(size):
        e = torch.zeros_like(found)
        e[:, i] = 1
        column = jvp(field, x, t, e.view_as(x), 0.0, cond, view=view, method=method)[1]
        found[:, i] = column.flatten(1)[:, i]
    return found.view_as(x)


def time_per_log_snr(path: GaussianPath, t: Time) -> Tensor:
    """Return dt/dλ = 1/(α'/α − σ'/σ), negative: what turns a derivative in t into one in λ."""
    t = as_time(t)
    return 1 / (path.d_alpha(t) / path.alpha(t) - path.d_sigma(t) / path.sigma(t))


def _viewed(field: Field, cond: Condition, view: View) -> Callable[[Tensor, Tensor], Tensor]:
    """Return F(x, t) in a view, the coefficients of the change differentiable in t."""
    if view == field.view:
        return lambda x, t: field.evaluate(x, t, cond)
    path = field.path
    if path is None:
        raise UsageError(f"a field without a path has no {view}, only its {field.view}.")

    def f(x: Tensor, t: Tensor) -> Tensor:
        p, q = change(path, field.view, view, t)
        return bshape(p, x) * x + bshape(q, x) * field.evaluate(x, t, cond)

    return f


def _precision(field: Field, x: Tensor) -> float:
    """Return the rounding unit that the field works with."""
    own = dtype_of(field.network, x.dtype) if isinstance(field, Denoiser) else x.dtype
    return max(torch.finfo(dtype).eps for dtype in (own, x.dtype))


Point = tuple[Tensor, Tensor]


def _difference(
    f: Callable[[Tensor, Tensor], Tensor], at: Point, along: Point, unit: float
) -> tuple[Tensor, Tensor]:
    """Return f and a central difference of it, over a step that balances rounding and curvature."""
    (x, t), (dx, dt) = at, along
    moves = dx.square().mean().sqrt() / x.square().mean().sqrt().clamp(min=1)
    fastest = max(float(moves), float(dt.abs().max()))
    if fastest == 0:
        return f(x, t), torch.zeros_like(x)
    h = unit ** (1 / 3) / fastest
    after, before = f(x + h * dx, t + h * dt), f(x - h * dx, t - h * dt)
    return f(x, t), (after - before) / (2 * h)

"""torchcde's calls, answered by our control paths and solvers: change the import.

    from pathline.adapters import torchcde          # instead of: import torchcde
    coeffs = torchcde.hermite_cubic_coefficients_with_backward_differences(x)
    X = torchcde.CubicSpline(coeffs)
    z = torchcde.cdeint(X, func, z0, X.interval)

Coefficients are tensors in torchcde's own layout, so files of them go on to serve. A control may
also be any object with a method derivative(t).

What is otherwise: steps never straddle a knot of a piecewise linear path unseen (adaptive solvers
step onto them, without `jump_t`); `adjoint=True` gives the solver's own gradient by checkpoints,
for all who ask, so `adjoint_params` has nothing to choose. Log-signatures have depth 1 or 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError, unknown
from pathline.fields import CDE, VectorField
from pathline.paths import controls
from pathline.paths.controls import Control
from pathline.solvers.reversible_heun import ReversibleHeun
from pathline.solvers.runge_kutta import RK
from pathline.solvers.solve import solve
from pathline.solvers.solver import Solver, solvers

FIXED: Mapping[str, Solver] = {
    "euler": RK(method="euler"),
    "midpoint": RK(method="midpoint"),
    "heun2": RK(method="heun"),
    "heun3": RK(method="heun3"),
    "rk4": RK(method="three_eighths"),
    "reversible_heun": ReversibleHeun(),
}
ADAPTIVE: Mapping[str, str] = {
    "dopri5": "dopri5",
    "bosh3": "bosh3",
    "tsit5": "tsit5",
    "dopri8": "dop853",
}
"""torchdiffeq's methods → our solvers; its rk4 is the three-eighths rule."""


def linear_interpolation_coeffs(
    x: Tensor, t: Tensor | None = None, rectilinear: int | None = None
) -> Tensor:
    """Return the knots of the linear (or rectilinear) path, (..., length, channels)."""
    flat, lead = _flat(x)
    if rectilinear is not None:
        return _knots(controls.rectilinear(flat, time_channel=rectilinear)).unflatten(0, lead)
    return _knots(controls.linear(flat, t)).unflatten(0, lead)


def hermite_cubic_coefficients_with_backward_differences(
    x: Tensor, t: Tensor | None = None
) -> Tensor:
    """Return the coefficients of cubic Hermite splines, (..., length − 1, 4 channels)."""
    return _cubic(controls.hermite, x, t)


def natural_cubic_coeffs(x: Tensor, t: Tensor | None = None) -> Tensor:
    """Return the coefficients of natural cubic splines, (..., length − 1, 4 channels)."""
    return _cubic(controls.natural, x, t)


natural_cubic_spline_coeffs = natural_cubic_coeffs


def logsig_windows(x: Tensor, depth: int, window_length: float, t: Tensor | None = None) -> Tensor:
    """Return log-signatures of windows, summed up, (..., windows + 1, channels): a path's knots.

    Raises:
        UsageError: windows that do not end at observations, or a depth above 2.
    """
    flat, lead = _flat(x)
    times = _clock(t, x.shape[-2], flat)
    size = _size(times, float(window_length))
    made = controls.windows(flat, times, size=size, depth=depth)
    return _knots(made).unflatten(0, lead)


def _size(times: Tensor, length: float) -> int:
    gaps = times.diff()
    size = round(length / float(gaps[0]))
    even = bool(((gaps - gaps[0]).abs() <= 1e-6 * gaps[0]).all())
    if not even or size < 1 or abs(size * float(gaps[0]) - length) > 1e-6 * length:
        raise UsageError(
            f"windows of {length:g} must hold a whole number of even steps; use "
            "pathline.paths.controls.windows(x, times, size=…), which counts observations."
        )
    return size


class _Path:
    """A control under torchcde's names."""

    def __init__(self, control: Control, lead: tuple[int, ...]) -> None:
        self.control, self._lead = control, lead

    @property
    def grid_points(self) -> Tensor:
        """The knots."""
        return self.control.times.to(self.control.coefficients.dtype)

    @property
    def interval(self) -> Tensor:
        """The first and the last knot."""
        return self.grid_points[[0, -1]]

    def evaluate(self, t: Tensor | float) -> Tensor:
        """Return X(t), (..., *t.shape, channels); at a knot the piece before it counts."""
        return self._at(self.control.value, t)

    def derivative(self, t: Tensor | float) -> Tensor:
        """Return dX/dt, (..., *t.shape, channels); at a knot the piece before it counts."""
        return self._at(self.control.derivative, t)

    def _at(self, what: Callable[..., Tensor], t: Tensor | float) -> Tensor:
        t = torch.as_tensor(t)
        if not t.ndim:
            return what(t, "left").unflatten(0, self._lead)
        each = torch.stack([what(u, "left") for u in t.flatten().unbind()], 1)
        return each.unflatten(1, t.shape).unflatten(0, self._lead)

    def to(self, *args: Any) -> _Path:
        """Return the path elsewhere."""
        control = self.control
        for where in args:
            control = control.to(where)
        return type(self)._of(control, self._lead)

    @classmethod
    def _of(cls, control: Control, lead: tuple[int, ...]) -> _Path:
        made = cls.__new__(cls)
        _Path.__init__(made, control, lead)
        return made


class LinearInterpolation(_Path):
    """The linear path through knots, as `linear_interpolation_coeffs` returned them."""

    def __init__(self, coeffs: Tensor, t: Tensor | None = None) -> None:
        flat, lead = _flat(coeffs)
        super().__init__(controls.linear(flat, _clock(t, flat.shape[1], flat)), lead)


class CubicSpline(_Path):
    """The cubic path of coefficients of `hermite_…` or `natural_cubic_coeffs`."""

    def __init__(self, coeffs: Tensor, t: Tensor | None = None) -> None:
        flat, lead = _flat(coeffs)
        if flat.shape[-1] % 4:
            raise UsageError(f"cubic coefficients come in fours, and these are {flat.shape[-1]}.")
        pieces = flat.unflatten(-1, (4, -1)) / flat.new_tensor([1.0, 1.0, 2.0, 3.0])[:, None]
        super().__init__(Control(_clock(t, flat.shape[1] + 1, flat), pieces), lead)


def cdeint(
    X: Any,
    func: Callable[[Tensor, Tensor], Tensor],
    z0: Tensor,
    t: Tensor,
    adjoint: bool = True,
    backend: str = "torchdiffeq",
    **kwargs: Any,
) -> Tensor:
    """Return the solution of dz = f(t, z) dX at t, (..., len(t), hidden).

    Args:
        X: the control: a path of this module, a `Control`, or anything with derivative(t).
        func: f(t, z) → (..., hidden, channels); or with a method prod(t, z, dXdt) → (..., hidden).
        z0: (..., hidden).
        t: the times to return, increasing.
        adjoint: True takes steps again instead of keeping them, where steps are fixed.
        backend: "torchdiffeq" or "torchsde", which says what the method's name means.
        kwargs: method, rtol, atol, options (step_size; jump_t), dt (backend torchsde).

    Raises:
        UsageError: what torchcde refuses, and what is not answered here.
    """
    if not isinstance(z0, Tensor):
        raise UsageError("z0 is one tensor here; join the states of a tuple along their last axis.")
    times = [float(u) for u in t.tolist()]
    flat = z0.reshape(-1, z0.shape[-1])
    field = _field(X, func, z0.shape[:-1])
    method = kwargs.pop("method", None) or ("dopri5" if backend == "torchdiffeq" else "midpoint")
    options = dict(kwargs.pop("options", None) or {})
    rtol, atol = float(kwargs.pop("rtol", 1e-4)), float(kwargs.pop("atol", 1e-6))
    step = options.pop("step_size", kwargs.pop("dt", None))
    jumps = options.pop("jump_t", ())
    for name in [name for name in kwargs if name.startswith("adjoint_")]:
        del kwargs[name]
    if kwargs or options:
        raise UsageError(f"cdeint knows nothing of {', '.join([*kwargs, *options])} here.")
    if method in ADAPTIVE:
        jumps = {"jumps": tuple(float(u) for u in jumps)} if len(jumps) else {}
        solver = solvers.build(ADAPTIVE[method], rtol=rtol, atol=atol, norms="batch", **jumps)
        made = solve(field, flat, solver=solver, grid=[times[0], times[-1]], save=times)
    elif method in FIXED:
        grid = _steps(times, None if step is None else float(step))
        how = "checkpoint" if adjoint else "direct"
        made = solve(field, flat, solver=FIXED[method], grid=grid, save=times, adjoint=how)
    else:
        raise unknown("method", method, [*ADAPTIVE, *FIXED])
    assert made.trajectory is not None
    return (
        made.trajectory.movedim(0, 1)
        .unflatten(0, z0.shape[:-1] or (1,))
        .reshape(*z0.shape[:-1], len(times), z0.shape[-1])
    )


def _field(X: Any, func: Any, lead: torch.Size) -> CDE | VectorField:
    control = X.control if isinstance(X, _Path) else X
    if isinstance(control, Control) and not hasattr(func, "prod"):
        return CDE(_Function(func, lead), control, warns=False)
    if not hasattr(X, "derivative"):
        raise UsageError("X must have a method derivative(t).")
    return VectorField(_Product(X, func, lead))


class _Function:
    """f(t, z) of torchcde, in our order and on a flat batch."""

    def __init__(self, func: Any, lead: torch.Size) -> None:
        self.func, self._lead = func, lead

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        made = self.func(_told(t, z), z.reshape(*self._lead, z.shape[-1]))
        return made.reshape(len(z), z.shape[-1], -1)


class _Product:
    """f(t, z) dX/dt of torchcde, or func.prod."""

    def __init__(self, path: Any, func: Any, lead: torch.Size) -> None:
        self.path, self.func, self._lead = path, func, lead

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        t, shaped = _told(t, z), z.reshape(*self._lead, z.shape[-1])
        slope = self.path.derivative(t)
        if hasattr(self.func, "prod"):
            return self.func.prod(t, shaped, slope).reshape(z.shape)
        return (self.func(t, shaped) @ slope.unsqueeze(-1)).squeeze(-1).reshape(z.shape)


def _told(t: Tensor, z: Tensor) -> Tensor:
    """Return the time as torchcde has it, () of the state's precision."""
    return (t.flatten()[0] if t.ndim else t).to(z.dtype)


def _steps(times: list[float], step: float | None) -> list[float]:
    grid = [times[0]]
    for s, u in zip(times, times[1:], strict=False):
        n = 1 if step is None else max(1, math.ceil((u - s) / step - 1e-6))
        grid += [s + (u - s) * i / n for i in range(1, n)]
        grid.append(u)
    return grid


def _cubic(make: Callable[..., Control], x: Tensor, t: Tensor | None) -> Tensor:
    flat, lead = _flat(x)
    pieces = make(flat, t).coefficients
    made = pieces * pieces.new_tensor([1.0, 1.0, 2.0, 3.0])[:, None]
    return made.flatten(-2).unflatten(0, lead)


def _knots(control: Control) -> Tensor:
    last = control.value(control.end, "left")[:, None]
    return torch.cat((control.coefficients[:, :, 0], last), 1)


def _flat(x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Return a tensor with one batch axis, and the shape of those that it had."""
    lead = tuple(x.shape[:-2])
    return x.reshape(-1, *x.shape[-2:]), lead or (1,)


def _clock(t: Tensor | None, length: int, like: Tensor) -> Tensor:
    if t is None:
        return torch.arange(length, dtype=torch.float64, device=like.device)
    return torch.as_tensor(t, dtype=torch.float64, device=like.device)

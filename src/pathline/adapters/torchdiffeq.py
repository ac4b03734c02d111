"""torchdiffeq's functions on our solvers: change the import, and a program runs as before.

    from pathline.adapters.torchdiffeq import odeint, odeint_adjoint, odeint_event

Signatures, shapes and conventions are that library's: func(t, y) with a scalar t, a state of any
shape or a tuple of them, one step size for all of it. What differs is said where it does: an output
time never falls between two steps of a fixed grid, `norm` is ours, "dopri8" is DOP853, and a failed
solve names the time and the cause.

Source: github.com/rtqichen/torchdiffeq (its documented interface).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pathline.adapters.torchdiffeq_adjoint import adjoint
from pathline.core.errors import UsageError, unknown
from pathline.core.solution import Solution
from pathline.solvers import RK, AdaptiveRK, Rodas, Solver, solve
from pathline.solvers.events import Event
from pathline.solvers.pace import Control

__all__ = ["METHODS", "odeint", "odeint_adjoint", "odeint_event"]

State = Tensor | tuple[Tensor, ...]
Function = Callable[[Tensor, Any], Any]

ADAPTIVE: Mapping[str, str] = {
    "dopri5": "dopri5",
    "dopri8": "dop853",
    "bosh3": "bosh3",
    "tsit5": "tsit5",
    "adaptive_heun": "adaptive_heun",
    "fehlberg2": "fehlberg2",
}
FIXED: Mapping[str, str] = {
    "euler": "euler",
    "midpoint": "midpoint",
    "heun2": "heun",
    "heun3": "heun3",
    "rk4": "three_eighths",
}
STIFF = ("scipy_solver", "rodas5p", "rodas4")
METHODS = (*ADAPTIVE, *FIXED, *STIFF)
"""The methods that are understood; "scipy_solver" is Rodas5P, with gradients."""

_OPTIONS = {
    "first_step", "jump_t", "step_t", "max_num_steps", "safety", "ifactor", "dfactor", "dtype",
    "step_size", "min_step", "max_step", "norm", "solver", "interp", "perturb",
}  # fmt: skip
FAR = 1e9
"""How far an event is looked for, where nobody says an end."""


def odeint(  # noqa: PLR0913 - the signature is torchdiffeq's
    func: Function,
    y0: Any,
    t: Tensor,
    *,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[[Tensor, Any], Tensor] | None = None,
) -> Any:
    """Integrate dy/dt = func(t, y) from y0 at t[0], and return the states at every t.

    Args:
        func: (t (), y) → dy/dt like y.
        y0: a tensor of any shape, or a tuple of tensors.
        t: (n,), rising or falling; may ask for a gradient.
        rtol, atol: tolerances of a step.
        method: see `METHODS`; None is "dopri5".
        options: torchdiffeq's: first_step, jump_t, step_t, max_num_steps, safety, ifactor, dfactor
            of adaptive methods, step_size of fixed ones.
        event_fn: (t, y) → a tensor; the solve ends where one of its numbers becomes 0.

    Returns:
        (n, *y0.shape), or a tuple of such; with an event (its time, the states at t[0] and there).

    Raises:
        UsageError: an unknown method or option; times that do not follow each other.
        SolveError: the solve could not be finished.

    Example:
        >>> t = torch.linspace(0, 1, 3, dtype=torch.float64)
        >>> y = odeint(lambda t, y: -y, torch.ones(2, dtype=torch.float64), t)
        >>> bool((y[-1] - math.exp(-1)).abs().max() < 1e-6)
        True
    """
    pack = _Pack(y0)
    x, times = pack.flat(y0), _checked(t)
    solver = solver_of(method, rtol, atol, options)
    if event_fn is not None:
        return _until(func, pack, x, times, solver, event_fn)
    moved = _moved_start(func, pack, x, times)
    states = _states(func, pack, moved, times, solver, options)
    states = torch.cat((x[None], states[1:]))  # the start itself does not move with its time
    return pack.released(pack.of(states), func, times)


def odeint_adjoint(  # noqa: PLR0913 - the signature is torchdiffeq's
    func: Function,
    y0: Any,
    t: Tensor,
    *,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[[Tensor, Any], Tensor] | None = None,
    adjoint_rtol: float | None = None,
    adjoint_atol: float | None = None,
    adjoint_method: str | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Sequence[Tensor] | None = None,
) -> Any:
    """Integrate as `odeint`, with gradients by the adjoint equation: no activation is kept.

    Args:
        func, y0, t, rtol, atol, method, options, event_fn: as `odeint`.
        adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options: of the way back; those of the
            way out if None.
        adjoint_params: what gradients are asked for; the parameters of func if None.

    Raises:
        UsageError: func is no module and adjoint_params is None; or as `odeint`.
    """
    if adjoint_params is None and not isinstance(func, nn.Module):
        raise UsageError(
            "func is no nn.Module, so its parameters are not known: pass adjoint_params=(...), or "
            "() if it has none."
        )
    if adjoint_params is None:
        assert isinstance(func, nn.Module)
        adjoint_params = tuple(func.parameters())
    asked = tuple(p for p in adjoint_params if p.requires_grad)
    if event_fn is not None:
        with torch.no_grad():
            end, _ = odeint(func, y0, t, rtol=rtol, atol=atol, method=method, options=options,
                            event_fn=event_fn)  # fmt: skip
        way = torch.stack((t[0], end.to(t)))
        states = odeint_adjoint(func, y0, way, rtol=rtol, atol=atol, method=method, options=options,
                                adjoint_rtol=adjoint_rtol, adjoint_atol=adjoint_atol,
                                adjoint_method=adjoint_method, adjoint_options=adjoint_options,
                                adjoint_params=adjoint_params)  # fmt: skip
        return _linked(func, event_fn, end, states)
    pack, times = _Pack(y0), _checked(t)
    out = solver_of(method, rtol, atol, options)
    back = solver_of(
        adjoint_method or method,
        rtol if adjoint_rtol is None else adjoint_rtol,
        atol if adjoint_atol is None else adjoint_atol,
        options if adjoint_options is None else adjoint_options,
    )
    x, field = pack.flat(y0), pack.field(func)
    moved = _moved_start(func, pack, x, times)

    def run(start: Tensor) -> Tensor:
        return _states(func, pack, start, times, out, options)

    def carry(augmented: Callable[[Tensor, Tensor], Tensor], v: Tensor, ends: Tensor) -> Tensor:
        grid = _grid(ends, options if adjoint_options is None else adjoint_options, back)
        return solve(augmented, v, solver=back, grid=grid).x

    states = adjoint(field, run, carry, moved, times.detach(), asked)
    states = torch.cat((x[None], states[1:]))
    return pack.released(pack.of(states), func, times)


def odeint_event(
    func: Function,
    y0: Any,
    t0: Tensor,
    *,
    event_fn: Callable[[Tensor, Any], Tensor],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """Integrate until an event, and return its time, with its gradient, and the states there.

    Args:
        func, y0, event_fn: as `odeint`.
        t0: the start.
        reverse_time: whether to look backwards.
        odeint_interface: `odeint` or `odeint_adjoint`.
        kwargs: passed on to it.
    """
    ahead = t0.reshape(-1).detach() + (-1.0 if reverse_time else 1.0)
    way = torch.cat((t0.reshape(-1), ahead))
    return odeint_interface(func, y0, way, event_fn=event_fn, **kwargs)


class _Pack:
    """A state as one sample: (1, n), and back."""

    def __init__(self, y0: Any) -> None:
        parts = (y0,) if isinstance(y0, Tensor) else tuple(y0)
        for part in parts:
            if not isinstance(part, Tensor) or not part.is_floating_point():
                raise UsageError("y0 takes a floating tensor or a tuple of them.")
        self._is_tensor = isinstance(y0, Tensor)
        self._shapes = [part.shape for part in parts]
        self._sizes = [part.numel() for part in parts]

    def flat(self, y: Any) -> Tensor:
        parts = (y,) if self._is_tensor else tuple(y)
        return torch.cat([part.reshape(1, -1) for part in parts], 1)

    def state(self, x: Tensor) -> Any:
        """Return the state of (1, n)."""
        made = tuple(
            part.reshape(shape)
            for part, shape in zip(x[0].split(self._sizes), self._shapes, strict=True)
        )
        return made[0] if self._is_tensor else made

    def of(self, states: Tensor) -> Any:
        """Return the states of (m, 1, n), each (m, *shape)."""
        parts = states[:, 0].split(self._sizes, 1)
        made = tuple(
            part.reshape(len(states), *shape)
            for part, shape in zip(parts, self._shapes, strict=True)
        )
        return made[0] if self._is_tensor else made

    def field(self, func: Function) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, t: self.flat(func(t.reshape(()), self.state(x)))

    def released(self, states: Any, func: Function, times: Tensor) -> Any:
        """Return the states with the gradient of the times they belong to: dy/dt = f."""
        if not (times.requires_grad and torch.is_grad_enabled()):
            return states
        parts = (states,) if self._is_tensor else states
        late = times - times.detach()
        rows: list[tuple[Tensor, ...]] = []
        for i, t in enumerate(times.detach()):
            at = tuple(part[i] for part in parts)
            f = func(t, at[0] if self._is_tensor else at)
            f = (f,) if self._is_tensor else tuple(f)
            shift = 0.0 if i == 0 else late[i]
            rows.append(tuple(y + v.detach() * shift for y, v in zip(at, f, strict=True)))
        made = tuple(torch.stack(column) for column in zip(*rows, strict=True))
        return made[0] if self._is_tensor else made


def _moved_start(func: Function, pack: _Pack, x: Tensor, times: Tensor) -> Tensor:
    """Return the start with the gradient of its time: later is as if the state were less."""
    if not (times.requires_grad and torch.is_grad_enabled()):
        return x
    with torch.no_grad():
        slope = pack.field(func)(x, times[0].detach())
    return x - slope * (times[0] - times[0].detach())


def _checked(t: Tensor) -> Tensor:
    if not isinstance(t, Tensor) or t.ndim != 1 or not t.is_floating_point() or not len(t):
        raise UsageError("t takes a floating tensor of times, (n,), the first one where y0 is.")
    gaps = t.detach().diff()
    if not bool((gaps > 0).all() or (gaps < 0).all()):
        wrong = int(((gaps.sign() != gaps[0].sign()) | (gaps == 0) | gaps.isnan()).nonzero()[0])
        raise UsageError(
            f"t must rise or fall throughout; t[{wrong}] = {float(t[wrong]):.6g} is followed by "
            f"{float(t[wrong + 1]):.6g}."
        )
    return t


def solver_of(
    method: str | None, rtol: float, atol: float, options: Mapping[str, Any] | None = None
) -> Solver:
    """Return our solver for a method of torchdiffeq.

    Raises:
        UsageError: one that is not known, with the nearest names; an option that is not.
    """
    name, told = method or "dopri5", dict(options or {})
    for option in told:
        if option not in _OPTIONS:
            raise unknown("option", option, _OPTIONS)
    if callable(told.get("norm")):
        raise UsageError("a norm of your own is not taken; the error is measured as a whole.")
    if name in FIXED:
        return RK(method=FIXED[name])
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    ends = [*torch.as_tensor(told.get("jump_t", ())).tolist()]
    ends += torch.as_tensor(told.get("step_t", ())).tolist()
    first = told.get("first_step")
    how: dict[str, Any] = {
        "rtol": float(rtol),
        "atol": float(atol),
        "first": None if first is None else float(first),
        "max_steps": int(min(told.get("max_num_steps", 2**31 - 1), 2**31 - 1)),
        "jumps": tuple(ends),
        "control": Control(
            safety=float(told.get("safety", 0.9)),
            least=float(told.get("dfactor", 0.2)),
            most=float(told.get("ifactor", 10.0)),
        ),
    }
    if name in STIFF:
        return Rodas(method="rodas4" if name == "rodas4" else "rodas5p", **how)
    return AdaptiveRK(method=ADAPTIVE[name], **how)


def _states(
    func: Function,
    pack: _Pack,
    x: Tensor,
    times: Tensor,
    solver: Solver,
    options: Mapping[str, Any] | None,
) -> Tensor:
    """Return the states at all times, (m, 1, n)."""
    if len(times) == 1:
        return x[None]
    told = [float(t) for t in times.detach()]
    field = pack.field(func)
    if solver.is_adaptive:
        sol = solve(field, x, solver=solver, grid=[told[0], told[-1]], save=told[1:])
        assert sol.trajectory is not None
        return torch.cat((x[None], sol.trajectory))
    grid = _grid(times, options, solver)
    sol = solve(field, x, solver=solver, grid=grid, trajectory=True, adjoint="direct")
    assert sol.trajectory is not None
    places = {t: i for i, t in enumerate(grid)}
    return sol.trajectory[[places[t] for t in told]]


def _grid(times: Tensor, options: Mapping[str, Any] | None, solver: Solver) -> list[float]:
    """Return the points of a solve: those asked for, and steps of one size between them."""
    told = [float(t) for t in times.detach()]
    size = (options or {}).get("step_size")
    if solver.is_adaptive or size is None:
        return told
    made = told[:1]
    for a, b in zip(told, told[1:], strict=False):
        n = max(1, math.ceil(abs(b - a) / float(size) - 1e-9))
        made += [a + (b - a) * i / n for i in range(1, n)] + [b]
    return made


def _until(
    func: Function,
    pack: _Pack,
    x: Tensor,
    times: Tensor,
    solver: Solver,
    event_fn: Callable[[Tensor, Any], Tensor],
) -> tuple[Tensor, Any]:
    """Solve until an event happens."""
    if not solver.is_adaptive:
        raise UsageError("events are looked for inside adaptive steps: use dopri5 or another pair.")
    if len(times) != 2:
        raise UsageError(f"with event_fn t takes a start and a direction, not {len(times)} times.")
    start, way = float(times[0]), math.copysign(1.0, float(times[1] - times[0]))
    signs = event_fn(times[0].detach(), pack.state(x.detach())).detach().reshape(-1).sign()

    def value(state: Tensor, t: Tensor) -> Tensor:
        g = event_fn(t.reshape(()), pack.state(state)).reshape(-1)
        return (g * signs).min().reshape(1)  # until the first of its numbers changes its sign

    end = start + way * FAR * max(1.0, abs(start))
    moved = _moved_start(func, pack, x, times)
    sol: Solution = solve(pack.field(func), moved, solver=solver, grid=[start, end],
                          events=Event(value, direction="down", name="event_fn"))  # fmt: skip
    if not sol.events:
        raise UsageError(f"no event between t = {start:.6g} and {end:.6g}.")
    happened = sol.events[0]
    return happened.t[0].to(times), pack.of(torch.cat((x[None], happened.x[None])))


def _linked(
    func: Function, event_fn: Callable[[Tensor, Any], Tensor], end: Tensor, states: Any
) -> tuple[Tensor, Any]:
    """Return the time of an event with its gradient, and the states that move with it."""
    is_tensor = isinstance(states, Tensor)
    parts = (states,) if is_tensor else tuple(states)
    at = tuple(part[-1] for part in parts)
    free = tuple(y.detach().requires_grad_() for y in at), end.detach().requires_grad_()
    with torch.enable_grad():
        slopes = func(free[1], free[0][0] if is_tensor else free[0])
        slopes = tuple(v.detach() for v in ((slopes,) if is_tensor else slopes))
        g = event_fn(free[1], free[0][0] if is_tensor else free[0]).reshape(-1)
        g = g[g.detach().abs().argmin()]
        bent = torch.autograd.grad(g, (*free[0], free[1]), allow_unused=True)
    speed = sum(
        ((b * v).sum() for b, v in zip(bent[:-1], slopes, strict=True) if b is not None),
        bent[-1] if bent[-1] is not None else torch.zeros_like(end),
    )
    now = event_fn(end.detach(), at[0] if is_tensor else at).reshape(-1)
    now = now[now.detach().abs().argmin()]
    late = -(now - now.detach()) / speed
    moved = tuple(
        torch.cat((part[:-1], (y + v * late)[None]))
        for part, y, v in zip(parts, at, slopes, strict=True)
    )
    return end.detach() + late, moved[0] if is_tensor else moved

"""torchsde's calls, answered by our solvers: change the import, and a program runs as it did.

    from pathline.adapters import torchsde          # instead of: import torchsde
    ys = torchsde.sdeint(sde, y0, ts, method="srk", dt=1e-2)

An SDE is what it is there: an object with `noise_type`, `sde_type`, f(t, y), g(t, y) (or f_and_g),
and h(t, y) for `logqp`. Noise is new at every call and follows torch's global generator
(`torch.manual_seed`), unless `bm` is given: a `Brownian` of ours, a `BrownianInterval` of this
module, or torchsde's own.

What is otherwise: steps are at most dt and land on every time of `ts`, where torchsde steps over
them and interpolates; `sdeint_adjoint` gives the solver's own gradient (reversible for
reversible_heun, else by checkpoints), so the adjoint_ arguments have nothing to choose; "log_ode"
is Milstein's method with the same areas; "slow_rk" is new (Stratonovich, order 1.5); adaptive
steps are those of `AdaptiveSDE`; options and `extra` are refused, not ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pathline.core.bridge import Piece
from pathline.core.brownian import Brownian
from pathline.core.errors import UsageError, unknown
from pathline.fields import SDE
from pathline.solvers.adaptive_sde import AdaptiveSDE
from pathline.solvers.solve import solve

METHODS: Mapping[str, str] = {
    "euler": "euler_maruyama",
    "milstein": "milstein",
    "srk": "srk",
    "midpoint": "midpoint",
    "heun": "heun",
    "euler_heun": "euler_heun",
    "reversible_heun": "reversible_heun",
    "log_ode": "milstein",
    "slow_rk": "slow_rk",
}
"""torchsde's method → our solver; the last one torchsde does not have."""


class SDEIto(nn.Module):
    """A module that is an Itô SDE; subclasses give f(t, y) and g(t, y)."""

    sde_type = "ito"

    def __init__(self, noise_type: str) -> None:
        super().__init__()
        self.noise_type = noise_type


class SDEStratonovich(nn.Module):
    """A module that is a Stratonovich SDE."""

    sde_type = "stratonovich"

    def __init__(self, noise_type: str) -> None:
        super().__init__()
        self.noise_type = noise_type


def sdeint(  # noqa: PLR0913 - the signature is torchsde's
    sde: Any,
    y0: Tensor,
    ts: Tensor | Sequence[float],
    bm: Any = None,
    method: str | None = None,
    dt: float | Tensor = 1e-3,
    adaptive: bool = False,
    rtol: float | Tensor = 1e-5,
    atol: float | Tensor = 1e-4,
    dt_min: float | Tensor = 1e-5,
    options: Mapping[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
    logqp: bool = False,
    extra: bool = False,
    extra_solver_state: Any = None,
) -> Any:
    """Return the solution at ts, (times, batch, d); with `logqp` also the path's log-ratios.

    Args:
        sde, y0, ts, bm, method, dt, adaptive, rtol, atol, names, logqp: as torchsde has them.
        dt_min: as torchsde has it; adaptive solves choose their own least step.
        options, extra, extra_solver_state: refused unless None and False.

    Raises:
        UsageError: what torchsde refuses, and what is not answered here.
    """
    _check_extras(options, extra, extra_solver_state)
    del dt_min
    how = _How(method, float(dt), adaptive, float(rtol), float(atol), "direct")
    return _integrated(_Named(sde, dict(names or {})), y0, ts, bm, how, logqp)


def sdeint_adjoint(  # noqa: PLR0913 - the signature is torchsde's
    sde: Any,
    y0: Tensor,
    ts: Tensor | Sequence[float],
    bm: Any = None,
    method: str | None = None,
    adjoint_method: str | None = None,
    dt: float | Tensor = 1e-3,
    adaptive: bool = False,
    adjoint_adaptive: bool = False,
    rtol: float | Tensor = 1e-5,
    adjoint_rtol: float | Tensor = 1e-5,
    atol: float | Tensor = 1e-4,
    adjoint_atol: float | Tensor = 1e-4,
    dt_min: float | Tensor = 1e-5,
    options: Mapping[str, Any] | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Any = None,
    names: Mapping[str, str] | None = None,
    logqp: bool = False,
    extra: bool = False,
    extra_solver_state: Any = None,
) -> Any:
    """Return what `sdeint` returns, differentiated in little memory, and exactly.

    Args:
        sde, y0, ts, bm, method, dt, adaptive, rtol, atol, names, logqp: as for `sdeint`.
        adjoint_method, adjoint_adaptive, adjoint_rtol, adjoint_atol, adjoint_options: taken and
            not needed: the gradient is that of the solver.
        adjoint_params: taken and not needed: all who ask for a gradient get theirs.
        dt_min, options, extra, extra_solver_state: as for `sdeint`.
    """
    _check_extras(options, extra, extra_solver_state)
    del dt_min, adjoint_method, adjoint_adaptive, adjoint_rtol, adjoint_atol
    del adjoint_options, adjoint_params
    made = _Named(sde, dict(names or {}))
    method = method or _usual(made)
    adjoint = "reversible" if method == "reversible_heun" else "checkpoint"
    how = _How(method, float(dt), adaptive, float(rtol), float(atol), adjoint)
    return _integrated(made, y0, ts, bm, how, logqp)


@dataclass(frozen=True)
class _How:
    method: str | None
    dt: float
    adaptive: bool
    rtol: float
    atol: float
    adjoint: str


class _Named:
    """An SDE whose methods may have other names, with what torchsde derives from them."""

    def __init__(self, sde: Any, names: dict[str, str]) -> None:
        self.sde = sde
        for name in ("noise_type", "sde_type"):
            if not hasattr(sde, name):
                raise UsageError(f"the SDE has no attribute {name}, which torchsde asks for, too.")
        self.noise_type, self.sde_type = sde.noise_type, sde.sde_type
        self._f = getattr(sde, names.get("drift", "f"), None)
        self._g = getattr(sde, names.get("diffusion", "g"), None)
        self._h = getattr(sde, names.get("prior_drift", "h"), None)
        self._both = getattr(sde, names.get("drift_and_diffusion", "f_and_g"), None)
        if self._f is None and self._both is None:
            raise UsageError("the SDE defines neither f(t, y) nor f_and_g(t, y).")
        if self._g is None and self._both is None:
            raise UsageError("the SDE defines neither g(t, y) nor f_and_g(t, y).")

    def f(self, y: Tensor, t: Tensor) -> Tensor:
        """The drift, in our order."""
        return self._f(t, y) if self._f is not None else self._both(t, y)[0]  # type: ignore

    def g(self, y: Tensor, t: Tensor) -> Tensor:
        """The diffusion, in our order."""
        return self._g(t, y) if self._g is not None else self._both(t, y)[1]  # type: ignore

    def with_ratio(self) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
        """Return drift and diffusion with ½|g⁻¹(f − h)|² as one more element."""
        if self._h is None:
            raise UsageError("logqp compares the drift f with a prior drift h, and there is none.")
        h, diagonal = self._h, self.noise_type == "diagonal"

        def drift(y: Tensor, t: Tensor) -> Tensor:
            y = y[:, :-1]
            f, g = self.f(y, t), self.g(y, t)
            gap = f - h(t, y)
            u = _divided(gap, g) if diagonal else (g.pinverse() @ gap.unsqueeze(-1)).squeeze(-1)
            return torch.cat((f, 0.5 * u.square().sum(1, keepdim=True)), 1)

        def diffusion(y: Tensor, t: Tensor) -> Tensor:
            g = self.g(y[:, :-1], t)
            return torch.cat((g, torch.zeros_like(g[:, :1])), 1)

        return drift, diffusion


def _divided(a: Tensor, b: Tensor, least: float = 1e-7) -> Tensor:
    """Return a/b, where b is not smaller than it may be."""
    return a / torch.where(
        b.abs() > least, b, torch.full_like(b, least) * torch.where(b < 0, -1, 1)
    )


def _usual(sde: _Named) -> str:
    if sde.sde_type == "stratonovich":
        return "midpoint"
    return "euler" if sde.noise_type == "general" else "srk"


def _integrated(
    sde: _Named, y0: Tensor, ts: Tensor | Sequence[float], bm: Any, how: _How, logqp: bool
) -> Any:
    method = how.method or _usual(sde)
    if method not in METHODS:
        raise unknown("torchsde method", method, METHODS)
    times = _times(ts)
    drift, diffusion = sde.with_ratio() if logqp else (sde.f, sde.g)
    x = torch.cat((y0, y0.new_zeros(len(y0), 1)), 1) if logqp else y0
    g = diffusion(x, torch.as_tensor(times[0], dtype=y0.dtype, device=y0.device))
    channels = g.shape[-1] if g.ndim > x.ndim else None
    made = SDE(
        _Timed(drift, y0.dtype), _Timed(diffusion, y0.dtype), noise=sde.noise_type,
        sde_type=sde.sde_type, channels=channels,
    )  # fmt: skip
    shape = (channels,) if channels else tuple(x.shape[1:])
    path = None if bm is None else _path(bm, times, len(y0), shape)
    if path is None:
        seeds = torch.randint(2**62, (len(y0),)).tolist()
    else:
        made, seeds = made.driven(path), None
    if how.adaptive:
        return _adapted(made, x, times, seeds, how, logqp)
    grid, solver = _grid(times, how.dt), METHODS[method]
    sol = solve(made, x, solver=solver, grid=grid, save=times, seeds=seeds, adjoint=how.adjoint,
                on_failure="return")  # fmt: skip
    return _told(sol.trajectory, logqp)


def _told(ys: Tensor | None, logqp: bool) -> Any:
    assert ys is not None
    return (ys[..., :-1], ys[..., -1].diff(dim=0)) if logqp else ys


def _adapted(
    made: SDE,
    x: Tensor,
    times: Sequence[float],
    seeds: list[int] | None,
    how: _How,
    logqp: bool,
) -> Any:
    """Integrate with steps that adapt: by Euler-Heun on the Stratonovich form."""
    if isinstance(made.brownian, _Foreign):
        raise UsageError(
            "adaptive=True asks for the path at times of each sample's own: give bm as a "
            "BrownianInterval of this module, or leave it out."
        )
    solver = AdaptiveSDE(rtol=how.rtol, atol=how.atol, first=how.dt)
    sol = solve(made.stratonovich(), x, solver=solver, grid=times, seeds=seeds, trajectory=True,
                on_failure="return")  # fmt: skip
    return _told(sol.trajectory, logqp)


@dataclass(frozen=True)
class _Timed:
    """A function of (y, t) whose time has the state's precision, as torchsde's has."""

    function: Callable[[Tensor, Tensor], Tensor]
    dtype: torch.dtype

    def __call__(self, y: Tensor, t: Tensor) -> Tensor:
        return self.function(y, t.to(self.dtype))


def _times(ts: Tensor | Sequence[float]) -> list[float]:
    times = [float(t) for t in (ts.tolist() if isinstance(ts, Tensor) else ts)]
    if len(times) < 2 or not all(a < b for a, b in zip(times, times[1:], strict=False)):
        raise UsageError("ts must be two times or more, strictly increasing.")
    return times


def _grid(times: Sequence[float], dt: float) -> list[float]:
    """Return steps of at most dt that land on all times."""
    if not dt > 0:
        raise UsageError(f"dt={dt}: a step is above 0.")
    grid = [times[0]]
    for s, t in zip(times, times[1:], strict=False):
        n = max(1, math.ceil((t - s) / dt - 1e-6))
        grid += [s + (t - s) * i / n for i in range(1, n)]
        grid.append(t)
    return grid


def _check_extras(options: Any, extra: bool, state: Any) -> None:
    if options or extra or state is not None:
        raise UsageError(
            "options, extra and extra_solver_state are torchsde's own; our methods take no "
            "derivatives (grad_free) and hand out no hidden state."
        )


class BrownianInterval:
    """torchsde's BrownianInterval, on a `Brownian`: W(t_b) − W(t_a) for any two times.

    Args:
        t0, t1: the span.
        size: (batch, m).
        dtype, device: of what is returned.
        entropy: the seed; from torch's global generator if None.
        levy_area_approximation: "none", "space-time", "davie" or "foster".
        depth: how often the span is halved, as for `Brownian`.
    """

    def __init__(  # noqa: PLR0913 - the signature is torchsde's
        self,
        t0: float | Tensor = 0.0,
        t1: float | Tensor = 1.0,
        size: Sequence[int] | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        entropy: int | None = None,
        levy_area_approximation: str = "none",
        depth: int = 14,
    ) -> None:
        if size is None:
            raise UsageError("size=(batch, m) is needed.")
        batch, *shape = size
        drawn = torch.randint(2**62, (batch,)).tolist()
        seeds = drawn if entropy is None else [entropy * 2**32 + i for i in range(batch)]
        has_area = levy_area_approximation != "none"
        span = float(t0), float(t1)
        where = str(torch.device(device))
        self.path = Brownian(*span, tuple(seeds), tuple(shape), depth, has_area, where)
        self.dtype = dtype or torch.get_default_dtype()
        self.shape, self.levy_area_approximation = tuple(size), levy_area_approximation

    def __call__(
        self, ta: float | Tensor, tb: float | Tensor | None = None, return_U: bool = False,
        return_A: bool = False,
    ) -> Any:  # fmt: skip
        """Return W over [ta, tb]; with return_U also ∫ (W_u − W_ta) du, with return_A the area."""
        s, t = (self.path.start, float(ta)) if tb is None else (float(ta), float(tb))
        piece = self.path.over((s, t))
        found = [piece.w[0]]
        if return_U:
            if piece.h is None:
                raise UsageError("U needs levy_area_approximation='space-time' or more.")
            found.append((piece.w[0] * 0.5 + piece.h[0]) * (t - s))
        if return_A:
            found.append(self.path.levy_area(s, t))
        made = [v.to(self.dtype) for v in found]
        return made[0] if len(made) == 1 else tuple(made)


@dataclass(frozen=True)
class _Foreign(Brownian):
    """A Brownian motion that somebody else holds, asked over one interval after the other."""

    bm: Any = field(default=None, kw_only=True)

    def over(self, times: Sequence[float]) -> Piece:
        w, h = list[Tensor](), list[Tensor]()
        for s, t in zip(times, times[1:], strict=False):
            if not self.has_area:
                w.append(self.bm(s, t).double())
                continue
            rise, mean = (v.double() for v in self.bm(s, t, return_U=True))
            w.append(rise)
            h.append(mean / (t - s) - 0.5 * rise)
        return Piece(torch.stack(w), torch.stack(h) if h else None)

    def levy_area(self, s: float, t: float) -> Tensor:
        return self.bm(s, t, return_U=True, return_A=True)[2].double()


def _path(bm: Any, times: Sequence[float], batch: int, shape: tuple[int, ...]) -> Brownian:
    if isinstance(bm, Brownian):
        return bm
    if isinstance(bm, BrownianInterval):
        return bm.path
    if not callable(bm):
        raise UsageError(f"bm is a Brownian motion, bm(ta, tb) → W; it is a {type(bm).__name__}.")
    has_area = getattr(bm, "levy_area_approximation", "none") != "none"
    size = tuple(getattr(bm, "shape", (batch, *shape)))
    device = str(getattr(bm, "device", "cpu") or "cpu")
    zero = (0,) * size[0]
    return _Foreign(times[0], times[-1], zero, size[1:], has_area=has_area, device=device, bm=bm)

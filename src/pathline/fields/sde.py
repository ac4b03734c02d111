"""Stochastic differential equations: a drift, a diffusion, and what is meant by the integral.

    dx = f(x, t) dt + g(x, t) dW        Itô
    dx = f(x, t) dt + g(x, t) ∘ dW      Stratonovich

The two differ by ½ Σ_j (∂g_j/∂x) g_j in the drift, so whoever writes down a diffusion that depends
on the state has to say which one is meant; nobody can tell from the functions.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from pathline.core.brownian import Brownian
from pathline.core.errors import UsageError
from pathline.fields.field import Condition, Evaluate, Field
from pathline.fields.views import View
from pathline.paths import GaussianPath, bshape

Noise = Literal["diagonal", "scalar", "additive", "general"]
Integral = Literal["ito", "stratonovich"]

NOISES: tuple[Noise, ...] = ("diagonal", "scalar", "additive", "general")
INTEGRALS: tuple[Integral, ...] = ("ito", "stratonovich")


@dataclass(frozen=True)
class SDE(Field):
    """A stochastic differential equation, dx = f(x, t) dt + g(x, t) dW.

    Solved by the same call as every field, `solve(sde, x, solver=…, grid=…, seeds=…)`; as a field
    of its own it is its drift.

    Args:
        drift: f(x (batch, *state), t, **condition) → (batch, *state); t as for `VectorField`.
        diffusion: g(x, t, **condition), whose shape says how noise enters, see `noise`.
        noise: what the diffusion is.
            "diagonal": (batch, *state), an element a motion, which depends on its own element of
            the state; "scalar": (batch, *state) or (batch, *state, 1), one motion for all;
            "additive": any of these shapes, or (batch, *state, m), and it does not depend on the
            state; "general": (batch, *state, m), m motions for all.
        sde_type: "ito" or "stratonovich"; may be left out for additive noise, where it is all one.
        channels: m, which solvers need that go through the motions one by one (Milstein with
            general noise).
        brownian: the path that drives it; None draws one from the seeds of the solve.

    Raises:
        UsageError: a kind of noise or integral that there is not, or none where it matters.

    Example: geometric Brownian motion.
        >>> import torch
        >>> sde = SDE(lambda x, t: 0.1 * x, lambda x, t: 0.5 * x, noise="diagonal", sde_type="ito")
        >>> sde.stratonovich().drift(torch.ones(1, 1), 0.0)  # 0.1 − ½ 0.5²
        tensor([[-0.0250]])
    """

    drift: Callable[..., Tensor]
    diffusion: Callable[..., Tensor]
    noise: Noise = field(kw_only=True)
    sde_type: Integral | None = field(default=None, kw_only=True)
    channels: int | None = field(default=None, kw_only=True)
    brownian: Brownian | None = field(default=None, kw_only=True, repr=False)
    path: GaussianPath | None = field(default=None, init=False)
    view: View = field(default="velocity", init=False)

    def __post_init__(self) -> None:
        if self.noise not in NOISES:
            raise UsageError(f"noise={self.noise!r}: choose from {', '.join(NOISES)}.")
        if self.sde_type is None and self.noise != "additive":
            raise UsageError(
                f"say what is meant by {self.noise} noise: sde_type='ito' or 'stratonovich'. "
                "They differ by ½ Σ (∂g/∂x) g in the drift; .stratonovich() and .ito() convert."
            )
        if self.sde_type not in (None, *INTEGRALS):
            raise UsageError(f"sde_type={self.sde_type!r}: choose from {', '.join(INTEGRALS)}.")

    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Return the drift."""
        return self.drift(x, bshape(t, x) if t.ndim else t, **cond)

    def diffuse(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Return the diffusion, (batch, *state) or (batch, *state, m).

        Raises:
            UsageError: it has another shape.
        """
        g = self.diffusion(x, bshape(t, x) if t.ndim else t, **cond)
        if self.noise == "scalar" and g.shape == x.shape:
            return g.unsqueeze(-1)
        _check_shape(g, x, self.noise)
        return g

    def bind(self, times: Tensor, x: Tensor, cond: Condition) -> Evaluate:
        """Return f(k, x), the drift at times[k], or the diffusion there for ~k."""
        del x
        instants = times.unbind()

        def evaluate(k: int, state: Tensor) -> Tensor:
            if k < 0:
                return self.diffuse(state, instants[~k], cond)
            return self.evaluate(state, instants[k], cond)

        return evaluate

    def condition(self, cond: Condition, batch: int) -> Condition:
        """Pass the condition on as it is."""
        del batch
        return cond

    def driven(self, brownian: Brownian | None) -> SDE:
        """Return the equation driven by this path, whatever the seeds of a solve."""
        return replace(self, brownian=brownian)

    def stratonovich(self) -> SDE:
        """Return the same process as a Stratonovich equation, drift f − ½ Σ (∂g_j/∂x) g_j.

        Cost: a derivative of the diffusion an evaluation: of diagonal noise in reverse mode, of
            other noise in forward mode, one for each of its motions; nothing if it is one already.
        """
        return self._as("stratonovich", -0.5)

    def ito(self) -> SDE:
        """Return the same process as an Itô equation, drift f + ½ Σ (∂g_j/∂x) g_j."""
        return self._as("ito", 0.5)

    def _as(self, wanted: Integral, sign: float) -> SDE:
        if self.sde_type == wanted:
            return self
        if self.noise == "additive":
            return replace(self, sde_type=wanted)
        drift = Corrected(self.drift, self.diffusion, self.noise, sign)
        return replace(self, drift=drift, sde_type=wanted)


@dataclass(frozen=True)
class Corrected:
    """A drift with a multiple of Σ_j (∂g_j/∂x) g_j added, which carries one integral to another.

    Args:
        drift, diffusion, noise: of the equation.
        weight: ½ from Stratonovich to Itô, −½ the other way.
    """

    drift: Callable[..., Tensor]
    diffusion: Callable[..., Tensor]
    noise: Noise
    weight: float

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.drift(x, t, **cond) + self.weight * self.correction(x, t, cond)

    def correction(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Return Σ_j (∂g_j/∂x) g_j, like the state."""

        def g(state: Tensor) -> Tensor:
            return self.diffusion(state, t, **cond)

        has_tape = not (torch.compiler.is_compiling() or torch.is_inference_mode_enabled())
        if self.noise == "diagonal" and has_tape:
            with suppress(RuntimeError):  # nor is there one within torch.func's transforms
                return _reverse(g, x)
        here = g(x)
        if here.shape == x.shape:
            return torch.func.jvp(g, (x,), (here,))[1]
        columns = [torch.func.jvp(g, (x,), (column,))[1][..., j]
                   for j, column in enumerate(here.unbind(-1))]  # fmt: skip
        return torch.stack(columns).sum(0)


def _reverse(g: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return (∂g/∂x) g of a g whose elements see only their own: its Jacobian is symmetric."""
    is_differentiated = torch.is_grad_enabled() and (x.requires_grad or g(x).requires_grad)
    with torch.enable_grad():
        at = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        here = g(at)
        if not here.requires_grad:
            return torch.zeros_like(x)
        along = here if is_differentiated else here.detach()
        (found,) = torch.autograd.grad(
            here, at, along, create_graph=is_differentiated, materialize_grads=True
        )
    return found


def _check_shape(g: Tensor, x: Tensor, noise: Noise) -> None:
    elementwise = g.shape == x.shape
    channels = g.ndim == x.ndim + 1 and g.shape[:-1] == x.shape
    fits = {
        "diagonal": elementwise,
        "scalar": channels and g.shape[-1] == 1,
        "general": channels,
        "additive": elementwise or channels,
    }
    if not fits[noise]:
        batch, *state = x.shape
        like = ", ".join(map(str, (batch, *state)))
        needed = {
            "diagonal": f"({like})",
            "scalar": f"({like}) or ({like}, 1)",
            "general": f"({like}, m) for m Brownian motions",
            "additive": f"({like}), or ({like}, m) for m Brownian motions",
        }
        raise UsageError(
            f"the diffusion returned shape {tuple(g.shape)}; {noise} noise on a state of "
            f"({like}) needs {needed[noise]}."
        )

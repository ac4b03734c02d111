"""Controlled differential equations, dz = F(z) dX: a network driven by a series.

    dz/dt = F(z, t) X'(t)                                      CDE, for any solver
    dz/ds = Σ_i F_i ΔX_i + Σ_{i<j} A_ij (F_j' F_i − F_i' F_j)   log-ODE of depth two, s the window

Paper: Kidger et al. 2020 (arXiv:2005.08926), Sec. 3; Morrill et al. 2021 (arXiv:2009.08295).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields.field import Condition, Evaluate, Field
from pathline.fields.views import View
from pathline.paths import GaussianPath, bshape
from pathline.paths.controls import Control


@dataclass(frozen=True, eq=False)
class CDE(Field):
    """A controlled differential equation, an ordinary one in time: dz/dt = F(z, t) X'(t).

    Args:
        function: F(z (batch, *state), t, **condition) → (batch, *state, channels); t as for
            `VectorField`.
        control: X (`pathline.paths.controls`). Without a channel that is time, how fast X is
            walked along cannot be seen, and a warning says so.
        warns: whether it does; False where that is what is wanted.

    Example: z' = z dX over X = 2 t is e².
        >>> import torch
        >>> from pathline.paths import controls
        >>> x = controls.linear(torch.tensor([[[0.0], [2.0]]], dtype=torch.float64))
        >>> cde = CDE(lambda z, t: z.unsqueeze(-1), x)
        >>> cde(torch.ones(1, 1, dtype=torch.float64), 0.5).velocity
        tensor([[2.]], dtype=torch.float64)
    """

    function: Callable[..., Tensor]
    control: Control
    warns: bool = True
    path: GaussianPath | None = field(default=None, init=False)
    view: View = field(default="velocity", init=False)

    def __post_init__(self) -> None:
        if self.warns and not self.control.has_time:
            warnings.warn(
                "no channel of the control rises with time, so the solution does not see how fast "
                "the path is walked along; add one: controls.with_time(x, times).",
                stacklevel=3,
            )

    @property
    def jumps(self) -> tuple[float, ...]:
        """The times at which the field jumps: step onto them."""
        return self.control.jumps

    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self._along(x, t, self.control.derivative(t), cond)

    def bind(self, times: Tensor, x: Tensor, cond: Condition) -> Evaluate:
        """Return f(k, z); where two states share a time, the first ends a step and looks back."""
        control, instants = self.control, times.unbind()
        if control.coefficients.shape[2] > 2 or times.ndim > 1:
            return lambda k, z: self._along(z, instants[k], control.derivative(instants[k]), cond)
        told = times.tolist()
        sides = ["left" if a == b else "right" for a, b in zip(told, told[1:], strict=False)]
        sides.append("right")
        return lambda k, z: self._along(
            z, instants[k], control.derivative(instants[k], sides[k]), cond
        )

    def bind_some(
        self, times: Tensor, numbers: Sequence[int], x: Tensor, cond: Condition
    ) -> Evaluate:
        """Return f(i, z) at some of the times, each from the side that it has among all."""
        evaluate = self.bind(times, x, cond)
        return lambda i, z: evaluate(numbers[i], z)

    def condition(self, cond: Condition, batch: int) -> Condition:
        """Pass the condition on as it is.

        Raises:
            UsageError: the control is of another number of samples.
        """
        if len(self.control) != batch:
            raise UsageError(
                f"the control is of {len(self.control)} samples and the state of {batch}; take "
                "the control of the batch, control[rows]."
            )
        return cond

    def _along(self, z: Tensor, t: Tensor, slope: Tensor, cond: Condition) -> Tensor:
        f = self.function(z, bshape(t, z) if t.ndim else t, **cond)
        return contracted(f, slope.to(f.dtype), z)


def contracted(f: Tensor, slope: Tensor, z: Tensor) -> Tensor:
    """Return F X', the product over channels, like the state.

    Raises:
        UsageError: F is not (batch, *state, channels).
    """
    if f.shape != (*z.shape, slope.shape[-1]):
        raise UsageError(
            f"the function returned shape {tuple(f.shape)}; a state of {tuple(z.shape)} driven by "
            f"{slope.shape[-1]} channels needs {(*z.shape, slope.shape[-1])}."
        )
    spread = slope.reshape(len(slope), *[1] * (z.ndim - 1), slope.shape[-1])
    return (f * spread).sum(-1)


@dataclass(frozen=True, eq=False)
class LogODE(Field):
    """The log-ODE method of depth two for dz = F(z) dX: one smooth equation over each window.

    It converges with the square of the window where the CDE's increments alone converge with the
    window, and needs the brackets of F's columns, which are forward-mode derivatives.

    Args:
        function: F(z, **condition) → (batch, *state, channels); it may not ask for the time (make
            time a channel).
        control: the increments and areas of windows, `controls.windows(x, times, size=…)`.
        channels: how many of the control's channels are increments.

    Cost: an evaluation costs one of F and `channels` forward-mode derivatives.
    """

    function: Callable[..., Tensor]
    control: Control
    channels: int
    path: GaussianPath | None = field(default=None, init=False)
    view: View = field(default="velocity", init=False)

    def __post_init__(self) -> None:
        pairs = self.channels * (self.channels - 1) // 2
        if self.control.channels != self.channels + pairs:
            raise UsageError(
                f"the log-signature of {self.channels} channels has {self.channels + pairs} "
                f"entries at depth 2, and the control has {self.control.channels}; make it with "
                "controls.windows(x, times, size=…, depth=2)."
            )

    @property
    def jumps(self) -> tuple[float, ...]:
        """The edges of the windows."""
        return self.control.jumps

    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self._along(x, self.control.derivative(t), cond)

    def bind(self, times: Tensor, x: Tensor, cond: Condition) -> Evaluate:
        """Return f(k, z), with the sides of windows as `CDE` has them."""
        control, instants = self.control, times.unbind()
        told = times.tolist()
        sides = ["left" if a == b else "right" for a, b in zip(told, told[1:], strict=False)]
        sides.append("right")
        return lambda k, z: self._along(z, control.derivative(instants[k], sides[k]), cond)

    def bind_some(
        self, times: Tensor, numbers: Sequence[int], x: Tensor, cond: Condition
    ) -> Evaluate:
        """Return f(i, z) at some of the times, each from the side that it has among all."""
        evaluate = self.bind(times, x, cond)
        return lambda i, z: evaluate(numbers[i], z)

    def condition(self, cond: Condition, batch: int) -> Condition:
        """Pass the condition on as it is."""
        del batch
        return cond

    def _along(self, z: Tensor, slope: Tensor, cond: Condition) -> Tensor:
        c = self.channels

        def f(state: Tensor) -> Tensor:
            return self.function(state, **cond)

        here = f(z)
        areas = z.new_zeros(len(z), c, c)
        j, k = torch.triu_indices(c, c, 1, device=z.device)
        areas[:, j, k] = slope[:, c:].to(z)
        areas = areas - areas.mT
        total: Any = contracted(here, slope[:, :c].to(here.dtype), z)
        for i, column in enumerate(here.unbind(-1)):  # Σ_j A_ij F_j' F_i, antisymmetric in i and j
            derivative = torch.func.jvp(f, (z,), (column,))[1]
            total = total + contracted(derivative, areas[:, i], z)
        return total

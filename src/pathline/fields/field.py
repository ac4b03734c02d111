"""Fields: what is integrated.

A field is a function of state, time and condition. Its `view` says what it returns: the velocity
dx/dt of any differential equation, or, on a path, one of the five views of a denoiser.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields.views import View, convert
from pathline.paths import GaussianPath, Time, as_time, bshape

Condition = Mapping[str, Any]
Evaluate = Callable[[int, Tensor], Tensor]


def selected(cond: Condition, rows: Tensor) -> Condition:
    """Return the condition of some samples, where every tensor but a number has the batch first."""
    return {
        name: value[rows.to(value.device)] if isinstance(value, Tensor) and value.ndim else value
        for name, value in cond.items()
    }


@dataclass(frozen=True)
class Prediction:
    """One evaluation, in every view.

    Args:
        x: the state, (batch, *state).
        t: the time, () or (batch,).
        raw: what the field returned, (batch, *state).
        view: what that is.
        path: the path; None for a field that has only a velocity.
    """

    x: Tensor
    t: Tensor
    raw: Tensor
    view: View
    path: GaussianPath | None

    def of(self, view: View) -> Tensor:
        """Return the prediction in this view."""
        if view == self.view:
            return self.raw
        if self.path is None:
            raise UsageError(f"a field without a path has no {view}, only its {self.view}.")
        return convert(self.path, self.view, view, self.x, self.raw, self.t)

    @cached_property
    def x0(self) -> Tensor:
        """The denoised data, E[x_0 | x_t]."""
        return self.of("x0")

    @cached_property
    def eps(self) -> Tensor:
        """The noise, E[ε | x_t]."""
        return self.of("eps")

    @cached_property
    def v(self) -> Tensor:
        """α ε̂ − σ x̂_0."""
        return self.of("v")

    @cached_property
    def score(self) -> Tensor:
        """∇ log p_t(x) = −ε̂/σ."""
        return self.of("score")

    @cached_property
    def velocity(self) -> Tensor:
        """The probability flow dx/dt = α' x̂_0 + σ' ε̂."""
        return self.of("velocity")


class Halves(NamedTuple):
    """A field that guides by contrast, in its two halves, both in its own view.

    Args:
        both: f(k, x) → (the worse evaluation, the better one), in one call of the network.
        better: f(k, x), the better one alone.
        mixed: f(k, x, worse, better), what the field makes of them.
    """

    both: Callable[[int, Tensor], tuple[Tensor, Tensor]]
    better: Evaluate
    mixed: Callable[[int, Tensor, Tensor, Tensor], Tensor]


class Field(ABC):
    """What is integrated: a function of (x, t; condition).

    Subclasses give `path`, `view` and `evaluate`, and may refine `bind` to do what does not depend
    on the state once, before the loop.
    """

    path: GaussianPath | None
    view: View

    @property
    def calls(self) -> int:
        """Network calls that one evaluation costs; the most, where times differ."""
        return 1

    def calls_at(self, times: Tensor) -> int:
        """Return the network calls that an evaluation at each of these times costs, for a sample.

        Args:
            times: (n,), or (n, batch) where samples have their own: then those of the dearest.
        """
        return self.calls * len(times)

    def piece(self, times: Tensor) -> Tensor:
        """Return a number for each time, of its shape: another one where the field has jumped.

        Guidance that is switched on in an interval makes two fields of one; a solver that remembers
        evaluations must not take both for values of the same.
        """
        return torch.zeros_like(times, dtype=torch.int64)

    @property
    def vjps(self) -> int:
        """Vector-Jacobian products through the network that one evaluation costs."""
        return 0

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of one sample, where the field knows it."""
        return None

    @property
    def device(self) -> torch.device | None:
        """Where the field lives; None if it follows the state."""
        return None

    @abstractmethod
    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Return the field in its own view, (batch, *state).

        Args:
            x: (batch, *state).
            t: float64, () or (batch,).
            cond: the network's keyword arguments, as `condition` returned them.
        """

    def condition(self, cond: Condition, batch: int) -> Condition:
        """Turn what the user says ("text=...") into the network's keyword arguments.

        Raises:
            UsageError: a condition that this field does not take.
        """
        del batch
        if cond:
            raise UsageError(f"this field takes no condition, and was given {', '.join(cond)}.")
        return {}

    def part(self, cond: Condition, rows: Tensor) -> Condition | None:
        """Return the condition of some of the samples; None if only whole batches can be evaluated.

        Samples of a stepped solve end at different times, and what is done need not be evaluated
        again. A field that holds a value for each sample in a way only it knows says None.

        Args:
            cond: of the whole batch, as `condition` returned it.
            rows: the numbers of the samples, (n,) int64.
        """
        del cond, rows
        return None

    def bind(self, times: Tensor, x: Tensor, cond: Condition) -> Evaluate:
        """Return f(k, x), the field at times[k]; what depends on the data alone is left to it.

        Args:
            times: (n,) float64, on the device of x; (n, batch) where each sample has its own.
            x: a state, for its shape, dtype and device.
            cond: as `condition` returned it.
        """
        del x
        instants = times.unbind()
        return lambda k, state: self.evaluate(state, instants[k], cond)

    def halves(self, times: Tensor, x: Tensor, cond: Condition) -> Halves | None:
        """Return the two evaluations that the field is mixed of at all these times.

        None where it is one of its own, or two at some times only. What leaves a half out
        (`solvers.ThinnedGuidance`) asks for it.

        Args:
            times, x, cond: as `bind`.
        """
        del times, x, cond
        return None

    def bind_some(
        self, times: Tensor, numbers: Sequence[int], x: Tensor, cond: Condition
    ) -> Evaluate:
        """Return f(i, x), the field at times[numbers[i]]: for a part of a solve, taken again.

        A field that looks at the times beside its own (`CDE` at knots) is asked for some of them
        here, where all are known.
        """
        return self.bind(times[list(numbers)], x, cond)

    def __call__(self, x: Tensor, t: Time, **cond: Any) -> Prediction:
        """Evaluate once, and return every view.

        Args:
            x: (batch, *state).
            t: () or (batch,).
            cond: the condition, in the user's words.
        """
        t = as_time(t)
        raw = self.evaluate(x, t, self.condition(cond, len(x)))
        return Prediction(x, t, raw, self.view, self.path)


@dataclass(frozen=True)
class VectorField(Field):
    """The velocity of any differential equation, dx/dt = f(x, t, **condition).

    Args:
        function: f(x (batch, *state), t () float64, **condition) → (batch, *state). Where
            samples have times of their own (stepped solvers, a grid a sample) t is (batch, 1, …),
            so that what is written for one time stays right.
        jacobian: ∂f/∂x with the same arguments, (batch, *state, *state), for stiff solvers; they
            differentiate where there is none.

    Example:
        >>> import torch
        >>> decay = VectorField(lambda x, t: -x)
        >>> decay(torch.ones(1, 2), 0.0).velocity
        tensor([[-1., -1.]])
    """

    function: Callable[..., Tensor]
    path: GaussianPath | None = field(default=None, init=False)
    view: View = field(default="velocity", init=False)
    jacobian: Callable[..., Tensor] | None = None

    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.function(x, bshape(t, x) if t.ndim else t, **cond)

    def condition(self, cond: Condition, batch: int) -> Condition:
        """Pass the condition on as it is."""
        del batch
        return cond

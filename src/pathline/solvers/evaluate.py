"""The evaluator: the single place between driver and field.

Here evaluations are counted, and checked; and here a `Speed` policy leaves some of them out. What
can be decided without data is decided on the plan; what cannot, by an evaluator of the policy's
own, which lives for one solve.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from torch import Tensor

from pathline.core.brownian import Brownian
from pathline.core.errors import UsageError
from pathline.core.solution import finite_status
from pathline.core.tensors import on_device
from pathline.fields import Condition, Evaluate, Field, Halves
from pathline.fields.around import Around
from pathline.solvers.history import warn_of_jumps
from pathline.solvers.plan import Plan


class Call(NamedTuple):
    """What a solve evaluates, and for whom.

    Args:
        field: guided, if there is a guide.
        plan: in the field's own view.
        x: the state it starts from, (batch, *state).
        cond: as the field's `condition` returned it.
        seeds: one a sample, or the Brownian motion; None where nobody gave them.
    """

    field: Field
    plan: Plan
    x: Tensor
    cond: Condition
    seeds: tuple[int, ...] | Brownian | None = None


class Evaluator:
    """Between driver and field: counts evaluations and checks the first one's shape.

    Attributes:
        n: evaluations so far.
        last: the state at which the last one was made.
    """

    __slots__ = ("_bound", "last", "n")

    def __init__(self, field: Field, plan: Plan, x: Tensor, cond: Condition) -> None:
        warn_of_jumps(field, plan)
        self._bound, self.n = field.bind(on_device(plan.instants, x.device), x, cond), 0
        self.last: Tensor | None = None

    def __call__(self, k: int, x: Tensor) -> Tensor:
        """Return the field at state number k, or for ~k the diffusion there."""
        f = self._bound(k, x)
        if k < 0:
            return f
        if not self.n:
            check_output(f, x)
        self.n += 1
        self.last = x
        return f

    @property
    def policy(self) -> Speed | None:
        """What makes another one like it for a call; None: the plain evaluator serves."""
        return None

    @property
    def per_sample(self) -> tuple[int, ...] | None:
        """Evaluations of each sample, where they may differ; None if all had `n`."""
        return None

    def report(self) -> Any:
        """Return what was left out and why; None if nothing can be."""
        return None


class Speed(ABC):
    """A policy that makes fewer evaluations than the plan asks for; a frozen value.

    It works under any solver, guide and model: neither of them is told.
    """

    def thinned(self, plan: Plan) -> Plan:
        """Return the plan with what needs no data already decided.

        Args:
            plan: in the field's own view.

        Raises:
            UsageError: the policy does not suit the plan.
        """
        return plan

    def evaluator(self, call: Call) -> Evaluator:
        """Return what evaluates the thinned plan in one solve.

        Raises:
            UsageError: the policy does not suit what is solved.
        """
        return Evaluator(call.field, call.plan, call.x, call.cond)

    def calls(self, field: Field) -> int | None:
        """Return the network calls of a sample; None where evaluations cost what the field says."""
        del field
        return None

    @property
    def looks_at_data(self) -> bool:
        """Whether it decides while the solve runs, and so waits for the device."""
        return type(self).evaluator is not Speed.evaluator

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what rebuilds the policy, as plain values."""


class Watched(Around):
    """A field that looks at every state and output, and says what was first not finite."""

    def __init__(self, inner: Field) -> None:
        self.inner = inner
        self.trouble: str | None = None

    def part(self, cond: Condition, rows: Tensor) -> Condition | None:
        return self.inner.part(cond, rows)

    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.bind(t[None], x, cond)(0, x)

    def bind(self, times: Tensor, x: Tensor, cond: Condition) -> Evaluate:
        inner = self.inner.bind(times, x, cond)

        return lambda k, state: self._seen(k, state, inner(k, state), times)

    def halves(self, times: Tensor, x: Tensor, cond: Condition) -> Halves | None:
        inner = self.inner.halves(times, x, cond)
        if inner is None:
            return None

        def mixed(k: int, state: Tensor, worse: Tensor, better: Tensor) -> Tensor:
            return self._seen(k, state, inner.mixed(k, state, worse, better), times)

        return inner._replace(mixed=mixed)

    def look(self, part: str, value: Tensor, t: Tensor) -> None:
        """Look at what is made of the field, (batch, ...), at times that broadcast to (batch,)."""
        bad = finite_status(value)
        if self.trouble is None and bool(bad.any()):
            at = t.flatten().expand(len(value))[bad.bool()][0]
            self.trouble = f"{part} is not finite at t = {at:.6g}"

    def _seen(self, k: int, state: Tensor, f: Tensor, times: Tensor) -> Tensor:
        """Return an output that has been looked at."""
        at = times[max(k, ~k)]
        self.look("the state", state, at)
        self.look("the diffusion" if k < 0 else "the field's output", f, at)
        return f


def check_output(f: Tensor, x: Tensor) -> None:
    """Refuse a field whose output is no tensor, is not shaped like the state, or is complex."""
    if not isinstance(f, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(
            f"the field returned a {type(f).__name__}, not a tensor: wrap the network in a "
            "function that returns its prediction alone (of a diffusers output, `.sample`)."
        )
    if f.shape != x.shape:
        hint = ""
        if f.ndim == x.ndim and f.shape[1] == 2 * x.shape[1]:
            hint = " (a network that also predicts a variance? pass only the first half on)"
        raise UsageError(
            f"the field returned shape {tuple(f.shape)} for a state of {tuple(x.shape)}{hint}."
        )
    if f.is_complex():
        raise UsageError(
            f"the field returned {f.dtype} for a state of {x.dtype}: give states of real and "
            "imaginary parts, torch.view_as_real(x)."
        )

"""Adjoints: how a gradient comes back through a solve, and what has to be kept for it.

    direct        autograd through the loop: every activation of every step is kept
    checkpoint    states are kept, and steps taken again: the same gradient in less memory
    reversible    nothing is kept and states are carried back exactly, by plans that can be inverted
    continuous    the adjoint differential equation: the gradient of the flow, not of the solver

An adjoint is a value. It changes neither the result of a solve nor its cost where nothing asks for
a gradient: that is decided by the first evaluation, which has to be made anyway.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.core.registry import Registry
from pathline.solvers.adjoints.segments import Found, Loop, Walk
from pathline.solvers.adjoints.sources import (
    check_steady,
    random_module,
    sources,
    transforms_are_active,
)
from pathline.solvers.evaluate import Evaluator
from pathline.solvers.plan import Plan

adjoints: Registry[Adjoint] = Registry("adjoint")
"""Every adjoint, by name."""

Gradients = tuple[Sequence[Tensor | None], Sequence[Tensor | None]]
"""With respect to the states at the start, and to the sources."""


class Cost(NamedTuple):
    """What the way back of a gradient costs, and what is kept for it.

    Args:
        nfe: evaluations that are made again.
        vjps: vector-Jacobian products.
        states: tensors of the state's size that are kept at one time.
        evaluations: evaluations whose activations are kept at one time.
    """

    nfe: int
    vjps: int
    states: int
    evaluations: int


class Pass(ABC):
    """A solve that has been run without a graph and can be differentiated."""

    @abstractmethod
    def forward(self) -> Tensor:
        """Run, and return the final state."""

    @abstractmethod
    def backward(self, cotangent: Tensor, result: Tensor) -> Gradients:
        """Return the gradients, given that of the final state."""

    @abstractmethod
    def again(self) -> Tensor:
        """Run with a graph, for derivatives of the gradient.

        Raises:
            UsageError: the gradient has none.
        """


@dataclass(frozen=True)
class Adjoint(ABC):
    """How gradients come back through a solve; see the module."""

    @property
    def name(self) -> str:
        """What calls and messages call it."""
        return next(entry.name for entry in adjoints if entry.make is type(self))

    def check(self, loop: Loop) -> None:
        """Refuse a solve that this adjoint cannot differentiate.

        Raises:
            UsageError: it cannot; the message says what can.
        """
        if not loop.executor.is_watchable:
            raise UsageError(
                f"executor={loop.executor.name!r} has no gradients; use executor='eager'."
            )
        if type(loop.evaluator) is not Evaluator:
            raise UsageError(
                "this speed policy decides on what it sees, so steps cannot be taken again: use "
                "adjoint='direct', or leave speed out."
            )
        check_steady((loop.call.field, loop.call.cond), self.name)

    @abstractmethod
    def cost(self, plan: Plan) -> Cost:
        """Return what the way back through a plan costs."""

    @abstractmethod
    def prepared(self, found: Found) -> Pass:
        """Return what runs the solve and differentiates it."""

    def complete(self, loop: Loop) -> Tensor:
        """Run a loop to its end, and return the final state, with a gradient if one is asked for.

        Raises:
            UsageError: a gradient is asked for, and this adjoint cannot give it.
        """
        if not torch.is_grad_enabled() or transforms_are_active():
            return loop.direct()
        begun = Begun(loop)
        if not begun.asks:
            return begun.rest()
        self.check(loop)
        found = begun.found()
        return through(self.prepared(found), loop.given, found.sources)

    def walked(self, walk: Walk) -> Tensor:
        """Run a stepped solve to its end, and return the final state, with a gradient if asked for.

        Raises:
            UsageError: this adjoint takes steps again, and a stepped solver has none to take.
        """
        raise UsageError(
            f"adjoint={self.name!r} takes the steps of a plan again, and {walk.solver} decides its "
            "steps while it runs: use adjoint='direct' or 'continuous'."
        )


class Begun:
    """A loop that has made its first evaluation, with a graph: that tells whether anybody asks."""

    def __init__(self, loop: Loop) -> None:
        self._loop, self._at = loop._replace(drawn=loop.draw), 0
        self._first: tuple[int, Tensor] | None = None
        self._diffusion: Tensor | None = None
        self._execution = loop.execution(self._evaluate, loop.given, self._loop.draw)
        self._x, unseen = loop.given[-1], bool(loop.plan.diffused)
        self._made = dict(enumerate(loop.given))
        while self._first is None or (unseen and self._diffusion is None):
            if self._at == len(self._execution.program):
                break
            self._advance()

    @property
    def asks(self) -> bool:
        """Whether the field asks for a gradient; if not, the loop has nothing to keep."""
        return any(f.requires_grad for f in self._seen)

    @property
    def _seen(self) -> list[Tensor]:
        """The first evaluation, and that of the diffusion, if there is one."""
        field = None if self._first is None else self._first[1]
        return [f for f in (field, self._diffusion) if f is not None]

    def rest(self) -> Tensor:
        """Run what is left, and return the final state."""
        while self._at < len(self._execution.program):
            self._advance()
        return self._loop.told(self._made, self._x)

    def found(self) -> Found:
        """Return the loop, with the first evaluation known, and who asks."""
        assert self._first is not None
        (k, f), loop = self._first, self._loop
        who = sources((loop.call.field, loop.call.cond), self._seen, loop.given)
        del self._execution, self._made
        again = loop._replace(evaluator=Remembering(loop.evaluator, k, f.detach()))
        return Found(again, who.tensors, who.keeps_graph)

    def _advance(self) -> None:
        row = self._execution.program[self._at]
        self._x = self._execution.advance(row)
        if row.number in self._loop.shown:
            self._made[row.number] = self._x
        self._at += 1

    def _evaluate(self, k: int, x: Tensor) -> Tensor:
        f = self._loop.evaluator(k, x)
        if k < 0:
            self._diffusion = f if self._diffusion is None else self._diffusion
        elif self._first is None:
            self._first = (k, f)
        return f


class Remembering(Evaluator):
    """An evaluator that has made its first evaluation; it is handed out once."""

    __slots__ = ("_first", "_inner")

    def __init__(self, inner: Evaluator, k: int, f: Tensor) -> None:
        self._inner = inner
        self._first: tuple[int, Tensor] | None = (k, f)

    def counted(self, n: int) -> int:
        """Count n evaluations that somebody else makes; return how many had been made before."""
        again, self._first = int(self._first is not None), None
        self._inner.n += n - again
        return again

    def __call__(self, k: int, x: Tensor) -> Tensor:
        first = self._first
        if first is None or first[0] != k:
            return self._inner(k, x)
        self._first = None
        return first[1]


def through(work: Pass, given: Sequence[Tensor], sources: Sequence[Tensor]) -> Tensor:
    """Run a solve as one operation of autograd."""
    run: Callable[..., Tensor] = _Through.apply  # pyright: ignore
    return run(work, len(given), *given, *sources)


class _Through(torch.autograd.Function):
    """A whole solve as one node of the graph, whose inputs are all that asks for a gradient."""

    @staticmethod
    def forward(ctx: Any, work: Pass, n_given: int, *tensors: Tensor) -> Tensor:
        ctx.work, ctx.n_given = work, n_given
        result = work.forward()
        ctx.save_for_backward(*tensors, result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        *tensors, result = ctx.saved_tensors  # which also refuses what was changed in place
        (cotangent,) = gradients
        if torch.is_grad_enabled():
            with torch.enable_grad():
                made = ctx.work.again()
            found = torch.autograd.grad(
                made, _asked(ctx, tensors), cotangent, create_graph=True, allow_unused=True
            )
            return None, None, *_spread(ctx, found)
        given, sources = ctx.work.backward(cotangent, result)
        return None, None, *given, *sources


def _asked(ctx: Any, tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t for t, asks in zip(tensors, ctx.needs_input_grad[2:], strict=True) if asks]


def _spread(ctx: Any, found: Sequence[Tensor | None]) -> list[Tensor | None]:
    left = iter(found)
    return [next(left) if asks else None for asks in ctx.needs_input_grad[2:]]


@adjoints.register("direct", aliases=("autograd", "backprop"))
@dataclass(frozen=True)
class Direct(Adjoint):
    """Autograd through the loop: exact, of any order, and the fastest; memory grows with the steps.

    Choose it for few steps or small networks, and for what only it can do: stepped solvers, speed
    policies that look at data, dropout.

    Cost: forward as without; backward one vector-Jacobian product an evaluation. Keeps the
    activations of all evaluations.
    """

    def complete(self, loop: Loop) -> Tensor:
        return loop.direct()

    def walked(self, walk: Walk) -> Tensor:
        return walk.run()

    def cost(self, plan: Plan) -> Cost:
        return Cost(0, plan.nfe, 2, plan.nfe)

    def prepared(self, found: Found) -> Pass:
        raise UsageError("direct needs no preparation.")


def is_usual(loop: Loop) -> bool:
    """Whether a solve for which nobody has chosen can be differentiated by taking steps again."""
    if not torch.is_grad_enabled():
        return True  # no matter: nothing is kept either way
    plain = type(loop.evaluator) is Evaluator and loop.executor.is_watchable
    return plain and random_module((loop.call.field, loop.call.cond)) is None


def as_adjoint(adjoint: Adjoint | str) -> Adjoint:
    """Return the adjoint of a name, or the adjoint itself.

    Raises:
        UsageError: there is none of this name; the message has the nearest ones.
    """
    if isinstance(adjoint, Adjoint):
        return adjoint
    if not isinstance(adjoint, str):
        raise UsageError(
            f"adjoint= takes a name or an adjoint, and was given a {type(adjoint).__name__}."
        )
    return adjoints.build(adjoint)

"""Checkpointing: states are kept, and every step is taken again, with a graph, on the way back.

With memory for all states each step is taken twice. With less, states are remade from the nearest
one that is kept, and where to keep them is chosen so that as few steps as possible are taken again:
with s states and t repetitions C(s + t, s) steps can be reversed, and reversing n of them takes

    T(n, s) = t n − C(s + t, t − 1)      t the least with C(s + t, s) ≥ n

steps without a graph. Paper: Griewank & Walther 2000 (ACM TOMS 26, Algorithm 799), Sec. 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import comb
from typing import Literal, get_args

from torch import Tensor

from pathline.core.errors import UsageError, unknown
from pathline.solvers.adjoints.adjoint import Adjoint, Cost, Gradients, Pass, Remembering, adjoints
from pathline.solvers.adjoints.segments import (
    Cotangents,
    Found,
    Live,
    Shape,
    Stretcher,
    Tape,
    Totals,
    Walk,
    grouped,
    stretches,
)
from pathline.solvers.adjoints.taped import taped
from pathline.solvers.execute import instructions
from pathline.solvers.plan import Plan

Last = Literal["again", "kept"]


@lru_cache(maxsize=4096)
def fewest(n: int, s: int) -> int:
    """Return T(n, s): the steps taken to reverse n of them with s states kept, the first included.

    >>> fewest(10, 10), fewest(10, 1), fewest(10, 3)
    (9, 45, 15)
    """
    if n <= 1:
        return 0
    s = min(s, n)
    t = 1
    while comb(s + t, s) < n:
        t += 1
    return t * n - comb(s + t, t - 1)


@lru_cache(maxsize=4096)
def next_kept(n: int, s: int) -> int:
    """Return after how many steps to keep the next state, to reverse n with s states in all."""
    return min(range(1, n), key=lambda m: (m + fewest(m, s) + fewest(n - m, s - 1), -m))


class Kept:
    """States of a loop, a few of which are kept at a time; asked for from the last to the first.

    Args:
        start: the state before step 0, which is always kept.
        advance: takes step i from a state.
        memory: how many states are kept, and the last one until it is asked for; None for all.
    """

    def __init__(
        self, start: Live, advance: Callable[[int, Live], Live], memory: int | None
    ) -> None:
        self._kept = {0: start}
        self._advance, self._memory = advance, memory

    def sweep(self, n: int, advance: Callable[[int, Live], Live]) -> Live:
        """Take all n steps for the first time, and return the state after the last."""
        self._kept[n - 1] = live = self._towards(n - 1, advance)
        return advance(n - 1, live)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Before which steps states are kept now."""
        return tuple(self._kept)

    def at(self, i: int) -> Live:
        """Return the state before step i; later ones are forgotten."""
        for later in [k for k in self._kept if k > i]:
            del self._kept[later]
        return self._towards(i, self._advance)

    def _towards(self, i: int, advance: Callable[[int, Live], Live]) -> Live:
        """Go from the nearest state to step i, and keep states on the way where it pays."""
        at = max(k for k in self._kept if k <= i)
        live = self._kept[at]
        while at < i:
            stop = self._stop(at, i)
            while at < (i if stop is None else stop):
                live = advance(at, live)
                at += 1
            if stop is not None:
                self._kept[at] = live
        return live

    def _stop(self, at: int, i: int) -> int | None:
        """Return the next state to keep on the way to step i; None if there is no room."""
        if self._memory is None:
            return at + 1
        room = self._memory - len(self._kept)
        return at + next_kept(i - at + 1, room + 1) if room else None


@dataclass
class Counted:
    """Takes steps that cost nothing, and notes which."""

    steps: list[int] = field(default_factory=list)

    def advance(self, i: int, live: Live) -> Live:
        """Note a step."""
        self.steps.append(i)
        return live


class Retaken(Pass):
    """A solve whose steps are taken again.

    Args:
        found: the loop, and who asks.
        memory: how many states are kept; None for all.
        together: how many steps are taken again at a time.
        last: whether the last of these are taken with a graph at once.
    """

    def __init__(
        self, found: Found, memory: int | None, together: int = 1, last: Last = "again"
    ) -> None:
        self._stretcher, self._last = Stretcher(found, together), last
        self._tape: Tape | None = None
        self._kept = Kept(self._stretcher.start(), self._stretcher.advance, memory)

    def forward(self) -> Tensor:
        stretcher, evaluate = self._stretcher, self._stretcher.loop.evaluator
        loop, made = stretcher.loop, dict(enumerate(stretcher.loop.given))
        n = len(stretcher.steps)

        def advance(i: int, live: Live) -> Live:
            is_kept = self._last == "kept" and i == n - 1
            after = self._taped(i, live) if is_kept else stretcher.advance(i, live, evaluate)
            made.update((k, after["x", k]) for k in stretcher.numbers(i) if k in loop.shown)
            return after

        return loop.told(made, stretcher.result(self._kept.sweep(n, advance)))

    def _taped(self, i: int, live: Live) -> Live:
        """Take a step with a graph, which is kept for the way back."""
        stretcher = self._stretcher
        loop, n = stretcher.loop, stretcher.shape.evaluations[i]
        assert isinstance(loop.evaluator, Remembering)
        loop.record.nfe += loop.evaluator.counted(n)
        self._tape = stretcher.taped(i, live)
        return {key: value.detach() for key, value in self._tape.made.items()}

    def backward(self, cotangent: Tensor, result: Tensor) -> Gradients:
        stretcher, totals = self._stretcher, Totals(self._stretcher.sources)
        n = len(stretcher.steps)
        last = result[-1] if stretcher.loop.shown else result
        ends, end = stretcher.loop.ends(cotangent), Cotangents()
        for i in reversed(range(n)):
            add_shown(end, ends, stretcher.numbers(i))
            if self._tape is not None:
                tape, self._tape = self._tape, None
                end = stretcher.handed_on(i, tape, end, totals)
                continue
            made = last if i == n - 1 else None
            end = stretcher.pulled(i, self._kept.at(i), end, totals, made)
        count = len(stretcher.loop.given)
        add_shown(end, ends, set(range(count)))
        given = [end.get(("x", k)) for k in range(count)]
        return given, totals.cast()

    def again(self) -> Tensor:
        return self._stretcher.loop.afresh().direct()


def add_shown(end: Cotangents, ends: Mapping[int, Tensor], numbers: set[int]) -> None:
    """Add to cotangents those of the states among these that are part of the result."""
    for k in numbers & ends.keys():
        end["x", k] = end["x", k] + ends[k] if ("x", k) in end else ends[k]


@adjoints.register(
    "checkpoint", aliases=("checkpointed", "recompute", "revolve"), paper="ACM TOMS 26, Alg. 799"
)
@dataclass(frozen=True)
class Checkpoint(Adjoint):
    """The solver's own gradient, to rounding, from states that are kept and steps taken again.

    Choose it, which is the default, whenever a plan runs: what is kept of a network is one step's
    activations, whatever the number of steps. Derivatives of the gradient are taken as by `direct`.

    Args:
        memory: how many states are kept at a time, 1 or more; None keeps all of them. A state is
            what the solver remembers between steps: a multistep method's has earlier slopes. From
            the way out to the way back the last one is kept, too.
        together: how many steps are taken again at a time, with the activations of all of them.
            More cost less time where networks are small, and keep fewer states.
        last: "again" keeps nothing but states from the way out to the way back; "kept" takes the
            last of these steps with a graph at once, so that they are evaluated once: the
            activations of `together` steps are then alive between both ways, too.

    Raises:
        UsageError: memory or together below 1; dropout or batch norm in training mode; a solver
            without a plan.

    Cost: backward each evaluation again, with a product. With memory = s of n steps
    `fewest(n, s) − (n − 1)` steps more without a product: none from s = n, half as many again as
    steps for s = √n or so, and never more than n (n − 1)/2.
    """

    memory: int | None = None
    together: int = 1
    last: Last = "again"

    def __post_init__(self) -> None:
        if self.memory is not None and self.memory < 1:
            raise UsageError(f"memory={self.memory}: at least one state is kept, the first.")
        if self.together < 1:
            raise UsageError(f"together={self.together}: at least one step is taken at a time.")
        if self.last not in get_args(Last):
            raise unknown("choice for the last steps", self.last, get_args(Last))

    def cost(self, plan: Plan) -> Cost:
        each = stretches(tuple(instructions(plan)))
        steps = Shape.of(plan, grouped(each, self.together))
        n, taken = len(steps.evaluations), Counted()
        kept = Kept({}, taken.advance, self.memory)
        kept.sweep(n, lambda i, live: live)
        states = sum(len(steps.live[i]) for i in kept.numbers)
        for i in reversed(range(n)):
            kept.at(i)
        again = sum(steps.evaluations[i] for i in taken.steps)
        once = steps.evaluations[-1] - (n == 1) if self.last == "kept" else 0
        return Cost(again + plan.nfe - once, plan.nfe, states, max(steps.evaluations))

    def walked(self, walk: Walk) -> Tensor:
        return taped(walk, self.name)

    def prepared(self, found: Found) -> Pass:
        return Retaken(found, self.memory, self.together, self.last)

"""Plans driven from outside: others own the loop and call the network, we say what comes next.

A sampler of ours asks a field for F wherever a row needs it. Other libraries do it the other way
round: they call the network once a turn and hand its output in. `Driven` runs the rows of a plan
that way, as far as what it was told allows:

    F at state k_0, k_1, …  →  the state to evaluate next; after the last, the final state

The numbers k_i are `plan.evaluated`, so solvers with stages, with correctors and with memory need
nothing of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from pathline.core.errors import UsageError
from pathline.solvers import Plan
from pathline.solvers.evaluate import check_output
from pathline.solvers.execute import Execution
from pathline.solvers.plan import Terms

Draw = Callable[[int, Tensor], Tensor]
"""Noise for draw number d, shaped like the state."""


class Driven(Execution):
    """A plan under way whose field somebody else evaluates.

    Args:
        plan: in the network's own view, from one state, which is evaluated (see `suffix`).
        like: a state, for its shape, dtype and device.
    """

    __slots__ = ("_at", "_draw", "_drawn", "_outputs", "_shared", "_turn")

    def __init__(self, plan: Plan, like: Tensor) -> None:
        self._outputs: dict[int, Tensor] = {}
        super().__init__(plan, lambda k, _: self._outputs.pop(k), [like], None)
        counts = Counter(d for row in plan.rows for d in row.z)
        self._shared = {d for d, n in counts.items() if n > 1}
        self._drawn: dict[int, Tensor] = {}
        self._draw: Draw | None = None
        self._at = self._turn = 0

    @property
    def turn(self) -> int:
        """How many evaluations have been handed in."""
        return self._turn

    def push(self, f: Tensor, x: Tensor, draw: Draw) -> Tensor:
        """Return the next state to evaluate; after the last evaluation, the final state.

        Args:
            f: the network's output at x.
            x: the state that was evaluated: the one returned before, or what became of it.
            draw: the noise for rows that need it.
        """
        check_output(f, x)
        evaluated, self._draw = self.plan.evaluated, draw
        k = evaluated[self._turn]
        self._known["x"][k], self._outputs[k] = x, f
        self._turn += 1
        if self._turn == len(evaluated):
            return self._advance_to(len(self.plan.times) - 1)
        return self._advance_to(evaluated[self._turn])

    def draw(self, d: int) -> Tensor:
        if d in self._drawn:
            return self._drawn[d]
        assert self._draw is not None
        z = self._draw(d, self._like)
        if d in self._shared:
            self._drawn[d] = z
        return z

    def copy(self) -> Driven:
        """Return another run from here on that this one does not disturb, nor it this one."""
        other = Driven(self.plan, self._like)
        other._known = {letter: dict(values) for letter, values in self._known.items()}
        other._outputs, other._drawn = dict(self._outputs), dict(self._drawn)
        other._at, other._turn, other.latest = self._at, self._turn, self.latest
        return other

    def _advance_to(self, number: int) -> Tensor:
        """Take rows until the state of this number is made, and return it."""
        while self._at < number:
            self.advance(self.program[self._at])
            self._at += 1
        return self._known["x"][number]


def suffix(plan: Plan, turn: int) -> Plan:
    """Return the plan from the state of evaluation number `turn` on; its rows are the same.

    Raises:
        UsageError: later rows look back further than that.
    """
    first = plan.evaluated[turn] if plan.rows else 0
    if not first:
        return plan
    rows = plan.rows[first:]
    used = [k for row in rows for k in (*row.x, *row.f)]
    if min(used, default=first) < first:
        raise UsageError(f"the rows after state {first} look back beyond it.")

    def moved(terms: Terms) -> Terms:
        return {k - first: c for k, c in terms.items()}

    rows = tuple(replace(row, x=moved(row.x), f=moved(row.f)) for row in rows)
    return replace(plan, start=(plan.times[first],), rows=rows)


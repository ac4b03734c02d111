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
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

from torch import Tensor

from pathline.core.errors import UsageError
from pathline.solvers import Plan, Solver, Stepped
from pathline.solvers.evaluate import check_output
from pathline.solvers.execute import Draw, Execution, combined
from pathline.solvers.plan import Functional, Row, Terms


class Driven(Execution):
    """A plan under way whose field somebody else evaluates.

    Args:
        plan: in the network's own view, from one state, which is evaluated (see `suffix`).
        like: a state, for its shape, dtype and device.
    """

    __slots__ = ("_at", "_draws", "_outputs", "_turn")

    def __init__(self, plan: Plan, like: Tensor) -> None:
        self._outputs: dict[int, Tensor] = {}
        self._draws = _Draws(plan)
        super().__init__(plan, self._handed_in, [like], combined, self._draws)
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
        evaluated, self._draws.source = self.plan.evaluated, draw
        k = evaluated[self._turn]
        self.known["x"][k], self._outputs[k] = x, f
        self._turn += 1
        is_last = self._turn == len(evaluated)
        state = self._advance_to(len(self.plan.times) - 1 if is_last else evaluated[self._turn])
        self._draws.source = None  # it is the caller's, and no part of a copy or a pickle
        return state

    def copy(self) -> Self:
        """Return another run from here on that this one does not disturb, nor it this one."""
        states = self.known["x"]
        other = type(self)(self.plan, next(iter(states.values())))
        other.known = {letter: dict(values) for letter, values in self.known.items()}
        other._outputs.update(self._outputs)
        other._draws.kept.update(self._draws.kept)
        other._at, other._turn, other.latest = self._at, self._turn, self.latest
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.copy()  # states are never changed, only replaced

    def _handed_in(self, k: int, x: Tensor) -> Tensor:
        return self._outputs.pop(k)

    def _advance_to(self, number: int) -> Tensor:
        """Take rows until the state of this number is made, and return it."""
        while self._at < number:
            self.advance(self.program[self._at])
            self._at += 1
        return self.known["x"][number]


class _Draws:
    """The draws of a plan, from whoever hands in the evaluation; kept if several rows share one."""

    def __init__(self, plan: Plan) -> None:
        counts = Counter(d for row in plan.rows for d in row.z)
        self.shared = {d for d, n in counts.items() if n > 1}
        self.kept: dict[int | Functional, Tensor] = {}
        self.source: Draw | None = None

    def __call__(self, d: int | Functional) -> Tensor:
        if d in self.kept:
            return self.kept[d]
        assert self.source is not None
        z = self.source(d)
        if d in self.shared:
            self.kept[d] = z
        return z


def with_plan(solver: Solver) -> Solver:
    """Return a solver that can be driven.

    Raises:
        UsageError: it has no plan.
    """
    if isinstance(solver, Stepped):
        raise UsageError(
            f"{type(solver).__name__} chooses its steps while it runs, and here somebody else owns "
            "the loop; take a solver with a plan (dpmpp_2m, unipc, …), or pl.sample."
        )
    return solver


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
    return replace(plan, start=(plan.times[first],), rows=_renumbered(rows, -first))


def waiting(plan: Plan) -> Plan:
    """Return the plan with one evaluation before it, at its start, that changes nothing."""
    wait = Row(plan.start[0], {0: 1.0}, {0: 0.0}, lands=False)
    return replace(plan, rows=(wait, *_renumbered(plan.rows, 1)))


def _renumbered(rows: Sequence[Row], by: int) -> tuple[Row, ...]:
    def moved(terms: Terms) -> Terms:
        return {k + by: c for k, c in terms.items()}

    return tuple(replace(row, x=moved(row.x), f=moved(row.f)) for row in rows)

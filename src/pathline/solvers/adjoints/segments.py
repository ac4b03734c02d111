"""Stretches of a plan: rows from one grid point to the next, taken again with a graph.

Between two grid points a plan remembers its *live* states and slopes: one state for a one-step
method, earlier slopes too for a multistep one. Given these, a stretch can be taken anew and alone,
and its vector-Jacobian product handed on to the stretch before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields import Condition, Evaluate, Field
from pathline.solvers.adjoints.sources import check_all_known, gradients
from pathline.solvers.adjoints.totals import Totals, autocast, check_same
from pathline.solvers.evaluate import Call, Evaluator
from pathline.solvers.execute import Draw, Execution, Instruction, drawing
from pathline.solvers.executors import Executor
from pathline.solvers.plan import Plan, Row
from pathline.solvers.stepped import Course

Key = tuple[str, int]
"""A live tensor: "x", "f" or "g", and its number."""

Live = Mapping[Key, Tensor]
Cotangents = dict[Key, Tensor]


@dataclass
class Record:
    """What a backward pass has cost and found; filled in when it runs.

    Args:
        nfe: evaluations of the field, those that were made again.
        vjps: vector-Jacobian products through it.
        drift: how far the state that was carried back to the start is from the one that it started
            from, relative to it; None where nothing is carried back.
        cosine: between the continuous gradient and that of the solver itself, where it was probed.
    """

    nfe: int = 0
    vjps: int = 0
    drift: float | None = None
    cosine: float | None = None


class Loop(NamedTuple):
    """A solve, ready to run.

    Args:
        call: what is evaluated, and for whom.
        given: the states at the start.
        evaluator: counts evaluations.
        executor: sums rows.
        record: of the backward pass.
        shown: numbers of the states that are the result, (shown, batch, *state), the final one
            last; if there are none, the final state is.
        drawn: what draws the noise, where it has been made before.
    """

    call: Call
    given: tuple[Tensor, ...]
    evaluator: Evaluator
    executor: Executor
    record: Record
    shown: tuple[int, ...] = ()
    drawn: Draw | None = None

    @property
    def plan(self) -> Plan:
        """The plan, in the field's own view."""
        return self.call.plan

    def direct(self) -> Tensor:
        """Run in the caller's gradient mode."""
        if not self.shown:
            return self.executor.complete(self.call, self.given, self.evaluator)
        execution, x = self.execution(self.evaluator, self.given, self.draw), self.given[-1]
        made = dict(enumerate(self.given))
        for row in execution.program:
            x = execution.advance(row)
            if row.number in self.shown:
                made[row.number] = x
        return self.told(made, x)

    def told(self, states: Mapping[int, Tensor], last: Tensor) -> Tensor:
        """Return the result, given the states that are shown and the final one."""
        return torch.stack([states[k] for k in self.shown]) if self.shown else last

    def ends(self, cotangent: Tensor) -> dict[int, Tensor]:
        """Return the cotangent of each state of the result, by number."""
        if not self.shown:
            return {len(self.plan.times) - 1: cotangent}
        ends = dict[int, Tensor]()
        for k, each in zip(self.shown, cotangent.unbind(), strict=True):
            ends[k] = ends[k] + each if k in ends else each
        return ends

    def afresh(self) -> Loop:
        """Return the loop with an evaluator that binds in the gradient mode of here and now."""
        call = self.call
        return self._replace(evaluator=Evaluator(call.field, call.plan, self.given[0], call.cond))

    def execution(self, evaluate: Evaluate, given: Sequence[Tensor], draw: Draw) -> Execution:
        """Return the plan under way from these states."""
        return Execution(self.plan, evaluate, given, self.executor.combined, draw)

    @property
    def draw(self) -> Draw:
        """What draws the plan's noise, the same each time."""
        return self.drawn or drawing(self.plan, self.call.seeds, self.given[0])

    def bound(self, numbers: Sequence[int]) -> Evaluate:
        """Return f(k, x) at these states' times alone, bound anew: with a graph of its own."""
        index = {k: i for i, k in enumerate(numbers)}
        times, x = self.plan.instants.to(self.given[0].device), self.given[0].detach()
        evaluate = self.call.field.bind_some(times, numbers, x, self.call.cond)
        return lambda k, x: evaluate(index[k] if k >= 0 else ~index[~k], x)


class Walk(NamedTuple):
    """A stepped solve, ready to run.

    Args:
        field: what is integrated, guided if there is a guide.
        course: where it goes.
        x: the state at the start.
        cond: as the field's `condition` returned it.
        record: of the backward pass.
        run: runs it in the caller's gradient mode, and returns the final state.
        tally: what it sets down as it runs.
    """

    field: Field
    course: Course
    x: Tensor
    cond: Condition
    record: Record
    run: Callable[[], Tensor]
    tally: Any = None

    @property
    def solver(self) -> str:
        """The name of the solver's class."""
        return type(self.course.solver).__name__


def grouped(
    steps: Sequence[tuple[Instruction, ...]], together: int
) -> list[tuple[Instruction, ...]]:
    """Return steps put together, so many at a time; the first may be fewer."""
    first = len(steps) % together
    cuts = [0, *range(first or together, len(steps) + 1, together)]
    pairs = zip(cuts, cuts[1:], strict=False)
    return [tuple(row for step in steps[a:b] for row in step) for a, b in pairs]


class Found(NamedTuple):
    """A loop and who asks for gradients of it.

    Args:
        loop: the solve.
        sources: who asks, the states at the start excepted.
        keeps_graph: whether some of them lie behind a graph that is not ours to free.
        is_all: whether these are all, so that another one is an error.
    """

    loop: Loop
    sources: tuple[Tensor, ...]
    keeps_graph: bool
    is_all: bool = True


def stretches(program: Sequence[Instruction]) -> list[tuple[Instruction, ...]]:
    """Return the rows of each step: up to one that lands; what is left belongs to the last."""
    made: list[list[Instruction]] = [[]]
    for row in program:
        made[-1].append(row)
        if row.lands:
            made.append([])
    left = made.pop()
    if not made:
        return [tuple(left)]
    made[-1].extend(left)
    return [tuple(rows) for rows in made]


class Shape(NamedTuple):
    """The steps of a plan as a backward pass sees them.

    Args:
        evaluations: of each step.
        live: what later rows need of the states and slopes before each step, and at the end.
    """

    evaluations: tuple[int, ...]
    live: tuple[frozenset[Key], ...]

    @classmethod
    def of(cls, plan: Plan, steps: Sequence[Sequence[Instruction]]) -> Shape:
        """Return the steps of a plan, made ready."""
        live, at = [frozenset({("x", len(plan.times) - 1)})], frozenset[Key]()
        for rows in reversed(steps):
            at = live[-1]
            for row in reversed(rows):
                used = plan.rows[row.number - len(plan.start)]
                at = (at - {("x", row.number)}) | {("x", k) for k in used.x}
                at |= {("f", k) for k in used.f} | {("g", product.state) for product in used.g}
                fresh = {("f", k) for k in row.evaluations} | {("g", k) for k in row.diffusions}
                at = (at - fresh) | {("x", k) for _, k in fresh}
            live.append(at)
        evaluations = (sum(len(row.evaluations) for row in rows) for rows in steps)
        return cls(tuple(evaluations), tuple(reversed(live)))


class Tape(NamedTuple):
    """A step with its graph.

    Args:
        leaves: what was live before it.
        made: what is live after it.
    """

    leaves: Live
    made: Live


class Stretcher:
    """Takes stretches of a loop again, without a graph, or with one to differentiate it.

    Args:
        found: the loop, and who asks.
        together: how many steps are one stretch.
        each_row: whether every row is a step.
    """

    def __init__(self, found: Found, together: int = 1, *, each_row: bool = False) -> None:
        self.found, self.loop, self.sources = found, found.loop, found.sources
        loop, self.draw = found.loop, found.loop.draw
        program = loop.execution(loop.evaluator, loop.given, self.draw).program
        steps = [(row,) for row in program] if each_row else stretches(program)
        self.steps = grouped(steps, together)
        self.shape = Shape.of(loop.plan, self.steps)
        self.mode = autocast(loop.given[0].device)

    def start(self) -> Live:
        """Return what is live before the first step."""
        return {("x", k): x.detach() for k, x in enumerate(self.loop.given)}

    def advance(self, i: int, live: Live, evaluate: Evaluate | None = None) -> Live:
        """Take step i without a graph, and return what is live after it."""
        with torch.no_grad(), self.mode:
            again = evaluate is None
            evaluate = evaluate or self._bound(i)
            known = self._taken(i, live, evaluate)
        if again:
            self.loop.record.nfe += self.shape.evaluations[i]
        return known

    def numbers(self, i: int) -> set[int]:
        """Return the numbers of the states that step i makes."""
        return {row.number for row in self.steps[i]}

    def result(self, live: Live) -> Tensor:
        """Return the state that the last row has made."""
        return live["x", self.steps[-1][-1].number]

    def pulled(
        self,
        i: int,
        live: Live,
        cotangents: Cotangents,
        total: Totals,
        result: Tensor | None = None,
    ) -> Cotangents:
        """Return the cotangents of what was live before step i, given those of what is after it.

        Args:
            i: which step.
            live: what is live before it.
            cotangents: of what is live after it.
            total: gradients of the sources are added to it.
            result: what the step has made before, to be compared.

        Raises:
            UsageError: the step makes something else now.

        Cost: the evaluations of the step, with a graph, and one backward pass.
        """
        tape = self.taped(i, live)
        self.loop.record.nfe += self.shape.evaluations[i]
        if result is not None:
            check_same(self.result(tape.made), result)
        return self.handed_on(i, tape, cotangents, total)

    def taped(self, i: int, live: Live) -> Tape:
        """Take step i with a graph of its own."""
        leaves = {key: value.detach().requires_grad_() for key, value in live.items()}
        with torch.enable_grad(), self.mode:
            return Tape(leaves, self._taken(i, leaves, self._bound(i)))

    def handed_on(self, i: int, tape: Tape, cotangents: Cotangents, total: Totals) -> Cotangents:
        """Return the cotangents of what was live before step i, through its graph."""
        leaves, known = tape
        self.loop.record.vjps += self.shape.evaluations[i]
        wanted = {k: known[k] for k in cotangents if k in known and known[k].requires_grad}
        if not wanted:
            return {}
        outputs = list(wanted.values())
        inputs = [*leaves.values(), *self.sources]
        found = self.gradients(outputs, inputs, [cotangents[k] for k in wanted], i)
        total.add(found[len(leaves) :])
        mine = zip(leaves, found, strict=False)
        return {key: gradient for key, gradient in mine if gradient is not None}

    def gradients(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Tensor],
        cotangents: Sequence[Tensor],
        i: int,
    ) -> Sequence[Tensor | None]:
        """Return the gradients of step i; None where there is none.

        Raises:
            UsageError: the step depends on somebody who asks and is not among the inputs.
        """
        if self.found.is_all:
            check_all_known(outputs, inputs, f"at step {i + 1}")
        return gradients(outputs, inputs, cotangents, self.found.keeps_graph)

    def alone(
        self, rows: Sequence[Instruction], states: Mapping[int, Tensor], without: int | None
    ) -> Tensor:
        """Return what rows make of these states, with a graph, a state left out of their sum."""
        zero = {} if without is None else {without: torch.zeros_like(self.loop.given[0])}
        live = {("x", k): x for k, x in {**states, **zero}.items()}
        evaluated = {k for row in rows for k in self._row(row).f}
        numbers = sorted(evaluated | {p.state for row in rows for p in self._row(row).g})
        with torch.enable_grad(), self.mode:
            execution = self._under_way(live, self.loop.bound(numbers) if numbers else _never)
            made = [execution.advance(self._whole(row, execution)) for row in rows]
        self.loop.record.nfe += len(evaluated)
        self.loop.record.vjps += len(evaluated)
        return made[-1]

    def _whole(self, row: Instruction, execution: Execution) -> Instruction:
        """Return a row that evaluates all that it needs, and forgets nothing."""
        known = execution.known
        fresh = tuple(k for k in self._row(row).f if k not in known["f"])
        diffusions = tuple(k for k, _ in row.products if k not in known["g"])
        return row._replace(evaluations=fresh, diffusions=diffusions, spent=())

    def _row(self, row: Instruction) -> Row:
        return self.loop.plan.rows[row.number - len(self.loop.given)]

    def _bound(self, i: int) -> Evaluate:
        numbers = [k for row in self.steps[i] for k in {*row.evaluations, *row.diffusions}]
        return self.loop.bound(numbers) if numbers else _never

    def _taken(self, i: int, live: Live, evaluate: Evaluate) -> Live:
        """Take the rows of step i from what is live, in the gradient mode of the caller."""
        execution = self._under_way(live, evaluate)
        known, made = execution.known, dict[Key, Tensor]()
        for row in self.steps[i]:
            x = execution.advance(row)
            if row.number in self.loop.shown:
                made["x", row.number] = x
        return made | {(letter, k): known[letter][k] for letter, k in self.shape.live[i + 1]}

    def _under_way(self, live: Live, evaluate: Evaluate) -> Execution:
        execution = self.loop.execution(evaluate, self.loop.given, self.draw)
        execution.known = {letter: {} for letter in "xfg"}
        for (letter, k), value in live.items():
            execution.known[letter][k] = value
        return execution


def _never(k: int, x: Tensor) -> Tensor:
    raise UsageError(f"a step that evaluates nothing asked for the field at state {k}.")


__all__ = [
    "autocast",
    "Cotangents",
    "Found",
    "Live",
    "Loop",
    "Record",
    "Stretcher",
    "Tape",
    "Totals",
    "Walk",
    "stretches",
]

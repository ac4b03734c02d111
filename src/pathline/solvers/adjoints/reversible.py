"""The reversible adjoint: states are carried back by solving rows for them, and nothing is kept.

A step whose oldest state enters its last row alone, through a coefficient,

    x_n = a x_o + R(newer states),

gives x_o = (x_n − R)/a, and R has to be evaluated anyway for its product. So one pass, with one
evaluation and one product where the solve had one evaluation, gives states and gradient, exact to
rounding. Rules with two states a row are of this kind (leapfrog, BDIA, coupled states).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.solvers.adjoints.adjoint import Adjoint, Cost, Gradients, Pass, adjoints
from pathline.solvers.adjoints.rows import Rows, add, evaluated
from pathline.solvers.adjoints.segments import Found, Stretcher, Totals, stretches
from pathline.solvers.execute import Instruction, instructions
from pathline.solvers.plan import Coefficient, Plan


class Back(NamedTuple):
    """How a step is taken back.

    Args:
        rows: of the step.
        solved: the state that is had by solving the last row; None where all are known.
        kept: states that must have been kept.
        needed: the states that it starts from, `solved` excepted.
    """

    rows: tuple[Instruction, ...]
    solved: int | None
    kept: frozenset[int]
    needed: tuple[int, ...]

    @property
    def number(self) -> int:
        """Of the state that the step makes."""
        return self.rows[-1].number

    @property
    def coefficient(self) -> Coefficient:
        """What `solved` is multiplied with in the last row."""
        terms = self.rows[-1].terms
        return next(
            c for letter, k, c in (terms.first, *terms.others) if (letter, k) == ("x", self.solved)
        )


def way_back(plan: Plan, steps: Sequence[tuple[Instruction, ...]]) -> list[Back]:
    """Return how to take each step back, the last one first.

    Raises:
        UsageError: more states would have to be kept than the solver itself remembers.
    """
    known, made = {len(plan.times) - 1}, list[Back]()
    for rows in reversed(steps):
        made.append(_back(plan, rows, known))
        known |= {*made[-1].needed, made[-1].number}
        known |= set() if made[-1].solved is None else {made[-1].solved}
    kept = {k for back in made for k in back.kept}
    if len(kept) > _remembered(plan, steps):
        raise UsageError(
            "adjoint='reversible' needs a plan that can be inverted exactly (Plan.inverse), and of "
            f"this one {len(kept)} states would have to be kept. Take an exactly invertible "
            "solver, one with two states a row, or adjoint='checkpoint'."
        )
    return made


def cut(plan: Plan, program: tuple[Instruction, ...]) -> list[tuple[Instruction, ...]] | None:
    """Return the rows, each alone, where they can be taken back and whole steps cannot; else None.

    A rule may hand a stage on (reversible Heun's ŷ): then no step can be solved for what it began
    with, and every row can.

    Raises:
        UsageError: neither can.
    """
    try:
        way_back(plan, stretches(program))
    except UsageError:
        alone = [(row,) for row in program]
        try:
            way_back(plan, alone)
        except UsageError:
            pass
        else:
            return alone
        raise
    return None


def _back(plan: Plan, rows: tuple[Instruction, ...], known: set[int]) -> Back:
    """Return how to take a step back, where these states are known by then."""
    given = len(plan.start)
    stages = {row.number for row in rows}
    *before, last = (plan.rows[row.number - given] for row in rows)
    evaluated = {k for row in (*before, last) for k in (*row.f, *(p.state for p in row.g))}
    evaluated |= {k for row in before for k in row.x}
    needed = (evaluated | set(last.x)) - stages
    unknown = needed - known
    free = [k for k in sorted(unknown - evaluated) if _is_nonzero(last.x[k])]
    solved = free[0] if free else None
    missing = unknown | (set() if solved is None else {rows[-1].number} - known)
    kept = missing - {solved} - set(range(given))
    return Back(rows, solved, frozenset(kept), tuple(sorted(needed - {solved})))


def _remembered(plan: Plan, steps: Sequence[tuple[Instruction, ...]]) -> int:
    """Return the most grid points that the solver remembers at a time."""
    given, last_use = len(plan.start), dict[int, int]()
    for i, rows in enumerate(steps):
        for row in (plan.rows[row.number - given] for row in rows):
            last_use |= dict.fromkeys(row.states, i)
    born = dict.fromkeys(range(given), -1) | {rows[-1].number: i for i, rows in enumerate(steps)}
    change = [0] * (len(steps) + 1)
    for k, begin in born.items():
        last = last_use.get(k, -1)
        if last > begin:  # it is there for the steps begin + 1 … last
            change[begin + 1] += 1
            change[last + 1] -= 1
    return max(accumulate(change[:-1]))


def _is_nonzero(c: Coefficient) -> bool:
    return bool((c != 0).all()) if isinstance(c, Tensor) else c != 0


class CarriedBack(Pass):
    """A solve whose states are carried back.

    Args:
        found: the loop, and who asks.
    """

    def __init__(self, found: Found) -> None:
        self._found, self._loop = found, found.loop
        program = tuple(instructions(found.loop.plan))
        self._stretcher = Stretcher(found, each_row=cut(found.loop.plan, program) is not None)
        self._way = way_back(found.loop.plan, self._stretcher.steps)
        self._is_rows = all(len(back.rows) == 1 for back in self._way)
        self._wanted = {k for back in self._way for k in back.kept}
        self._kept = dict[int, Tensor]()

    def forward(self) -> Tensor:
        loop, given = self._loop, [x.detach() for x in self._loop.given]
        made, x = dict(enumerate(given)), given[-1]
        with torch.no_grad(), self._stretcher.mode:
            execution = loop.execution(loop.evaluator, given, self._stretcher.draw)
            for row in execution.program:
                x = execution.advance(row)
                if row.number in self._wanted:
                    self._kept[row.number] = x
                if row.number in loop.shown:
                    made[row.number] = x
        return loop.told(made, x)

    def backward(self, cotangent: Tensor, result: Tensor) -> Gradients:
        loop, totals = self._loop, Totals(self._found.sources)
        given = dict(enumerate(x.detach() for x in loop.given))
        last = result[-1] if loop.shown else result
        states = {**given, **self._kept, self._way[0].number: last.detach()}
        ends = loop.ends(cotangent)
        drifts = list[Tensor]()
        rows = (
            Rows(self._stretcher, [back.rows[0] for back in self._way]) if self._is_rows else None
        )
        for i, back in enumerate(self._way):
            if rows is not None:
                rest = rows.taken(i, back.rows[0], back.solved, states, ends, totals)
            else:
                rest = self._pulled(len(self._way) - 1 - i, back, states, ends, totals)
            if back.solved is not None:
                solved = (states[back.number] - rest) / back.coefficient
                if back.solved in given:
                    x = given[back.solved]
                    drifts.append((solved - x).norm() / x.norm().clamp(min=1e-30))
                else:
                    states[back.solved] = solved
            del states[back.number]
        if drifts:
            loop.record.drift = float(torch.stack(drifts).max())
        return [ends.get(k) for k in given], totals.cast()

    def again(self) -> Tensor:
        return self._loop.afresh().direct()

    def _pulled(
        self,
        number: int,
        back: Back,
        states: Mapping[int, Tensor],
        ends: dict[int, Tensor],
        totals: Totals,
    ) -> Tensor:
        """Hand the cotangent of a step's result on, and return that without its solved state."""
        leaves = {k: states[k].detach().requires_grad_() for k in back.needed}
        rest = self._stretcher.alone(back.rows, leaves, back.solved)
        cotangent = ends.pop(back.number, None)
        if cotangent is None:
            return rest.detach()
        if rest.requires_grad:
            sources = [*leaves.values(), *self._found.sources]
            found = self._stretcher.gradients([rest], sources, [cotangent], number)
            totals.add(found[len(leaves) :])
            for k, gradient in zip(leaves, found, strict=False):
                add(ends, k, gradient)
        if back.solved is not None:
            add(ends, back.solved, cotangent * back.coefficient)
        return rest.detach()


def _at_a_time(rows: Sequence[Sequence[int]]) -> list[int]:
    """Return of how many states the evaluations are there as each row is taken back."""
    first, last = dict[int, int](), dict[int, int]()
    for i, row in enumerate(rows):
        for k in row:
            first.setdefault(k, i)
            last[k] = i
    return [sum(first[k] <= i <= last[k] for k in first) for i in range(len(rows))]


@adjoints.register("reversible", aliases=("exact_inverse",), paper="arXiv:2307.10829; 2102.04668")
@dataclass(frozen=True)
class Reversible(Adjoint):
    """The solver's own gradient, without keeping anything: states are carried back exactly.

    Choose it with exactly invertible solvers (two states a row), for any number of steps in the
    memory of one. Rounding grows on the way back as it does in every inversion: `drift` of the
    record says by how much, and float64 has room for it.

    Raises:
        UsageError: the plan cannot be inverted; dropout or batch norm in training mode.

    Cost: backward each evaluation again, with a product. Keeps the states that the solver remembers
    at a time, and one step's activations.
    """

    def cost(self, plan: Plan) -> Cost:
        program = tuple(instructions(plan))
        steps = cut(plan, program) or stretches(program)
        way = way_back(plan, steps)
        rows = [[plan.rows[row.number - len(plan.start)] for row in back.rows] for back in way]
        each = [len({k for row in step for k in row.f}) for step in rows]
        nfe = sum(each)
        if all(len(back.rows) == 1 for back in way):
            each, nfe = _at_a_time([evaluated(back.rows[0]) for back in way]), plan.nfe
        kept = {k for back in way for k in back.kept}
        states = 2 * _remembered(plan, steps) + len(kept - {back.solved for back in way})
        return Cost(nfe, nfe, states, max(each))

    def prepared(self, found: Found) -> Pass:
        return CarriedBack(found)

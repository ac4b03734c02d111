"""The executor: one loop that runs any plan.

Everything that does not depend on the state is done before the loop: coefficients are Python
floats (computed in float64, rounded once by the kernel that uses them), times and labels are on
the device, conditions are prepared. Inside it there is the field, and one fused update a term; no
host synchronisation, and no decision that looks at data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.fields import Condition, Evaluate, Field, Prediction
from pathline.solvers.plan import Coefficient, Plan


class Step:
    """A grid point that a solve has reached; assign `x` to change the state it goes on from.

    Attributes:
        index: which grid point, from 0 (the first one after the start).
        t: its time.
        x: the state, (batch, *state).
    """

    __slots__ = ("_latest", "index", "t", "x")

    def __init__(
        self, index: int, t: float, x: Tensor, latest: tuple[Plan, int, Tensor, Tensor] | None
    ) -> None:
        self.index, self.t, self.x, self._latest = index, t, x, latest

    @property
    def prediction(self) -> Prediction:
        """The latest evaluation of the field: where the step came from, in every view."""
        if self._latest is None:
            raise UsageError("the field has not been evaluated yet, so there is no prediction.")
        plan, k, x, f = self._latest
        t = torch.tensor(plan.times[k], dtype=torch.float64, device=x.device)
        return Prediction(x, t, f, plan.view, plan.path)

    @property
    def x0(self) -> Tensor:
        """The denoised data that the latest evaluation saw."""
        return self.prediction.x0


class Instruction(NamedTuple):
    """A row, made ready: what to evaluate, what to sum, what to forget afterwards."""

    number: int
    t: float
    evaluate: tuple[int, ...]
    x: tuple[tuple[int, Coefficient], ...]
    f: tuple[tuple[int, Coefficient], ...]
    z: tuple[tuple[int, Coefficient], ...]
    lands: bool
    forget: tuple[int, ...]


@lru_cache(maxsize=256)
def _program(plan: Plan) -> tuple[Instruction, ...]:
    """Return the instructions of a plan, each with the states that nobody needs after it."""
    return tuple(_instructions(plan))


def _instructions(plan: Plan) -> Iterator[Instruction]:
    uses = {k: i for i, row in enumerate(plan.rows) for k in (*row.x, *row.f)}
    known: set[int] = set()
    for i, row in enumerate(plan.rows):
        fresh = tuple(k for k in sorted(row.f) if k not in known)
        known.update(fresh)
        forget = tuple(k for k, last in uses.items() if last == i)
        number = len(plan.start) + i
        x, f, z = (tuple(terms.items()) for terms in (row.x, row.f, row.z))
        yield Instruction(number, row.t, fresh, x, f, z, row.lands, forget)


def execute(
    plan: Plan, evaluate: Evaluate, given: Sequence[Tensor], seeds: Sequence[int] | None = None
) -> Iterator[Step]:
    """Run a plan, yielding at every grid point.

    Args:
        plan: in the field's own view.
        evaluate: f(k, x), the field at state number k.
        given: the states at `plan.start`.
        seeds: one a sample, for a plan that draws noise.

    Cost: `plan.nfe` evaluations; memory for the states and evaluations that later rows name.
    """
    states: dict[int, Tensor] = dict(enumerate(given))
    slopes: dict[int, Tensor] = {}
    index, latest = 0, None
    for row in _placed(plan, given[0]):
        for k in row.evaluate:
            slopes[k] = evaluate(k, states[k])
            latest = (plan, k, states[k], slopes[k])
        new = _combined(row, states, slopes, seeds)
        if row.lands:
            step = Step(index, row.t, new, latest)
            yield step
            new, index = step.x, index + 1
        states[row.number] = new
        for k in row.forget:
            states.pop(k, None)
            slopes.pop(k, None)


def _combined(
    row: Instruction,
    states: dict[int, Tensor],
    slopes: dict[int, Tensor],
    seeds: Sequence[int] | None,
) -> Tensor:
    """Return Σ a_j x_j + Σ b_k F_k + Σ c_d z_d, one fused update a term."""
    terms = [(states[j], a) for j, a in row.x]
    terms += [(slopes[k], b) for k, b in row.f]
    if row.z:
        terms += [(_draw(seeds, d, terms[0][0]), c) for d, c in row.z]
    (first, a), *rest = terms
    if rest and not isinstance(a, Tensor) and a == 1:
        (second, b), *rest = rest
        total = first + second * b if isinstance(b, Tensor) else torch.add(first, second, alpha=b)
    else:
        total = first * a
    for term, c in rest:
        total = total + term * c if isinstance(c, Tensor) else total.add_(term, alpha=c)
    return total


def _draw(seeds: Sequence[int] | None, index: int, like: Tensor) -> Tensor:
    if seeds is None:
        raise UsageError("a stochastic solver needs seeds, one a sample.")
    shape, device = like.shape[1:], like.device
    return noise.normal(seeds, shape, stream="step", index=index, dtype=like.dtype, device=device)


def _placed(plan: Plan, x: Tensor) -> tuple[Instruction, ...]:
    """Return the program with its tensor coefficients on the device and in the dtype of `x`."""
    program = _program(plan)
    if not any(isinstance(c, Tensor) for row in program for _, c in (*row.x, *row.f, *row.z)):
        return program
    return tuple(
        row._replace(**{n: tuple((k, _cast(c, x)) for k, c in getattr(row, n)) for n in "xfz"})
        for row in program
    )


def _cast(c: Coefficient, x: Tensor) -> Coefficient:
    return c.to(x) if isinstance(c, Tensor) else c


class Evaluator:
    """Between driver and field: counts evaluations and checks the first one's shape."""

    __slots__ = ("_bound", "n")

    def __init__(self, field: Field, times: Sequence[float], x: Tensor, cond: Condition) -> None:
        at = torch.tensor(times, dtype=torch.float64, device=x.device)
        self._bound, self.n = field.bind(at, x, cond), 0

    def __call__(self, k: int, x: Tensor) -> Tensor:
        """Return the field at state number k."""
        f = self._bound(k, x)
        if not self.n:
            check_output(f, x)
        self.n += 1
        return f


def check_output(f: Tensor, x: Tensor) -> None:
    """Refuse a field whose output is not shaped like the state."""
    if f.shape != x.shape:
        hint = ""
        if f.ndim == x.ndim and f.shape[1] == 2 * x.shape[1]:
            hint = " (a network that also predicts a variance? pass only the first half on)"
        raise UsageError(
            f"the field returned shape {tuple(f.shape)} for a state of {tuple(x.shape)}{hint}."
        )


def run(plan: Plan, field: Field, x: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
    """Run a plan from one state to its end and return the final state; no checks, no record."""
    bound = Evaluator(field, plan.times, x, {})
    for step in execute(plan, bound, [x], seeds):
        x = step.x
    return x

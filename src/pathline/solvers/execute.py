"""The executor: one loop that runs any plan.

Everything that does not depend on the state is done before the loop: coefficients are Python
floats (computed in float64, rounded once by the kernel that uses them), times and labels are on
the device, conditions are prepared. Inside it there is the field, and one fused update a term; no
host synchronisation, and no decision that looks at data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.brownian import Brownian
from pathline.core.errors import PathlineError, UsageError
from pathline.fields import Evaluate, Field, Prediction
from pathline.paths import Time
from pathline.solvers.driving import Source, Weighed, plus_product, products
from pathline.solvers.evaluate import Evaluator
from pathline.solvers.plan import Coefficient, Functional, Plan, sample_first


class Step:
    """A grid point that a solve has reached; assign `x` to change the state it goes on from.

    Attributes:
        index: which grid point, from 0 (the first one after the start).
        t: its time; (batch,) where each sample has its own.
        x: the state, (batch, *state).
    """

    __slots__ = ("_latest", "index", "t", "x")

    def __init__(
        self,
        index: int,
        t: Time,
        x: Tensor,
        latest: tuple[Plan, int, Tensor, Tensor] | Prediction | None,
    ) -> None:
        self.index = index
        self.t = t
        self.x = x
        self._latest = latest

    @property
    def prediction(self) -> Prediction:
        """The latest evaluation of the field: where the step came from, in every view."""
        if self._latest is None:
            raise UsageError("the field has not been evaluated yet, so there is no prediction.")
        if isinstance(self._latest, Prediction):
            return self._latest
        plan, k, x, f = self._latest
        t = plan.instants[k].to(x.device)
        return Prediction(x, t, f, plan.view, plan.path)

    @property
    def x0(self) -> Tensor:
        """The denoised data that the latest evaluation saw."""
        return self.prediction.x0


Term = tuple[str, int, Coefficient]
"""What is summed: "x", "f" or "z", its number, its coefficient."""


class Sum(NamedTuple):
    """A row's terms: the first, whether it stands bare (its coefficient is 1), and the others."""

    first: Term
    is_bare: bool
    others: tuple[Term, ...]


Known = Mapping[str, Mapping[int, Tensor]]
"""States, evaluations and draws, by letter and number."""

Combine = Callable[[Sum, Known], Tensor]
Draw = Callable[[int | Functional], Tensor]
"""Of z_d, or of a functional of the Brownian motion, (batch, channels …)."""


class Instruction(NamedTuple):
    """A row, made ready: what to evaluate, draw and sum, and what nobody needs afterwards."""

    number: int
    t: Time
    evaluations: tuple[int, ...]
    draws: tuple[int, ...]
    terms: Sum
    lands: bool
    spent: tuple[int, ...]
    constant: Coefficient | None
    diffusions: tuple[int, ...] = ()
    products: tuple[tuple[int, Weighed], ...] = ()


@lru_cache(maxsize=64)
def _program(
    plan: Plan, device: torch.device, dtype: torch.dtype, ndim: int
) -> tuple[Instruction, ...]:
    """Return the instructions of a plan, their tensor coefficients placed, cast and shaped."""

    def place(c: Coefficient) -> Coefficient:
        if not isinstance(c, Tensor):
            return float(c)
        return (c if plan.batch is None else sample_first(c, ndim)).to(device, dtype)

    with torch.inference_mode(False):  # what is kept must also serve a solve with gradients
        return tuple(instructions(plan, place))


def instructions(
    plan: Plan, place: Callable[[Coefficient], Coefficient] = lambda c: c
) -> Iterator[Instruction]:
    """Yield the rows of a plan, made ready; `place` says what becomes of a coefficient."""
    last_use = {k: i for i, row in enumerate(plan.rows) for k in row.states}
    spent: dict[int, list[int]] = {}
    for k, i in last_use.items():
        spent.setdefault(i, []).append(k)
    known: set[int] = set()
    diffused: set[int] = set()
    for i, (row, multiplied) in enumerate(zip(plan.rows, products(plan), strict=True)):
        fresh = tuple(k for k in sorted(row.f) if k not in known)
        known.update(fresh)
        placed = tuple((k, _placed(by, place)) for k, by in multiplied)
        diffusions = tuple(k for k, _ in placed if k not in diffused)
        diffused.update(diffusions)
        named = zip("xfz", (row.x, row.f, row.z), strict=True)
        terms = [
            (letter, k, place(c)) for letter, coefficients in named for k, c in coefficients.items()
        ]
        terms += [("x", k, 0.0) for k, _ in placed[:1] if not terms]
        number, unused = len(plan.start) + i, tuple(spent.get(i, ()))
        added = place(row.constant) if row.has_constant else None
        summed, ready = _sum(terms, bool(placed)), (diffusions, placed)
        yield Instruction(
            number, row.t, fresh, tuple(row.z), summed, row.lands, unused, added, *ready
        )


def _placed(by: Weighed, place: Callable[[Coefficient], Coefficient]) -> Weighed:
    return by._replace(terms=tuple((functional, place(c)) for functional, c in by.terms))


def _sum(terms: list[Term], goes_on: bool) -> Sum:
    """Order terms so that the sum begins with a bare one, which saves a kernel, if there is one.

    A sum of a bare state alone is a copy, unless it goes on.
    """

    def is_one(term: Term) -> bool:
        return not isinstance(term[2], Tensor) and term[2] == 1

    first, *others = sorted(terms, key=is_one, reverse=True)
    return Sum(first, is_one(first) and (bool(others) or goes_on), tuple(others))


class Execution:
    """A plan under way: the states, evaluations and draws that later rows name.

    Args:
        plan: in the field's own view.
        evaluate: f(k, x), the field at state number k; at ~k, the diffusion there.
        given: the states at `plan.start`.
        combine: what sums a row.
        draw: z_d, for a plan that draws noise.
    """

    __slots__ = ("_combine", "_draw", "_evaluate", "known", "latest", "plan", "program")

    def __init__(
        self, plan: Plan, evaluate: Evaluate, given: Sequence[Tensor], combine: Combine, draw: Draw
    ) -> None:
        first = given[0]
        self.plan, self.program = plan, _program(plan, first.device, first.dtype, first.ndim)
        self.latest: tuple[Plan, int, Tensor, Tensor] | None = None
        self._evaluate, self._combine, self._draw = evaluate, combine, draw
        self.known: dict[str, dict[int, Tensor]] = {"x": dict(enumerate(given)), "f": {}, "g": {}}

    def advance(self, row: Instruction) -> Tensor:
        """Take a row and return the state that it makes."""
        number, _, evaluations, draws, terms, _, spent, constant, diffusions, multiplied = row
        known = self.known
        states, slopes = known["x"], known["f"]
        for k in evaluations:
            x = states[k]
            slopes[k] = f = self._evaluate(k, x)
            self.latest = (self.plan, k, x, f)
        if draws:
            known["z"] = {d: self._draw(d) for d in draws}
        new = self._combine(terms, known)
        if multiplied:
            new = self._with_noise(new, diffusions, multiplied)
        states[number] = new = new if constant is None else new + constant
        for k in spent:
            for made in (states, slopes, known["g"]):
                made.pop(k, None)
        return new

    def _with_noise(
        self, x: Tensor, fresh: tuple[int, ...], multiplied: tuple[tuple[int, Weighed], ...]
    ) -> Tensor:
        """Return a sum with the products of diffusions and noise added to it."""
        diffused, source = self.known["g"], self._draw
        assert isinstance(source, Source)
        for k in fresh:
            diffused[k] = self._evaluate(~k, self.known["x"][k])
        for k, by in multiplied:
            x = plus_product(x, diffused[k], by, source)
        return x

    def replace(self, row: Instruction, x: Tensor) -> None:
        """Go on from another state than the one that a row has made."""
        self.known["x"][row.number] = x


def execute(
    plan: Plan,
    evaluate: Evaluate,
    given: Sequence[Tensor],
    seeds: Sequence[int] | Brownian | None = None,
    combine: Combine | None = None,
) -> Iterator[Step]:
    """Run a plan, yielding at every grid point.

    Args:
        plan, evaluate, given, combine: as for `Execution`.
        seeds: one a sample, for a plan that draws noise; or the Brownian motion that drives it.

    Cost: `plan.nfe` evaluations; memory for the states and evaluations that later rows name.
    """
    draw, index = drawing(plan, seeds, given[0]), 0
    execution = Execution(plan, evaluate, given, combine or combined, draw)
    for row in execution.program:
        x = execution.advance(row)
        if row.lands:
            step = Step(index, row.t, x, execution.latest)
            yield step
            if step.x is not x:
                execution.replace(row, step.x)
            index += 1


def complete(
    plan: Plan,
    evaluate: Evaluate,
    given: Sequence[Tensor],
    seeds: Sequence[int] | Brownian | None = None,
    combine: Combine | None = None,
    draw: Draw | None = None,
) -> Tensor:
    """Run a plan to its end with nobody watching, and return the final state.

    Args:
        plan, evaluate, given, seeds, combine: as for `execute`.
        draw: z_d, where it has been drawn before.
    """
    draw, x = draw or drawing(plan, seeds, given[0]), given[-1]
    execution = Execution(plan, evaluate, given, combine or combined, draw)
    for row in execution.program:
        x = execution.advance(row)
    return x


def combined(terms: Sum, known: Known) -> Tensor:
    """Return Σ a_j x_j + Σ b_k F_k + Σ c_d z_d, one fused update a term."""
    (letter, k, c), is_bare, others = terms
    total = known[letter][k]
    if not is_bare:
        total = total * c
    for letter, k, c in others:
        term = known[letter][k]
        if isinstance(c, Tensor):
            total = torch.addcmul(total, term, c)
        elif is_bare:
            total = torch.add(total, term, alpha=c)
        else:
            total.add_(term, alpha=c)
        is_bare = False  # from here on the total is ours to change
    return total


AHEAD = 2**15
"""Numbers that are drawn at once: for small states, the noise of many steps."""


def drawing(plan: Plan, seeds: Sequence[int] | Brownian | None, like: Tensor) -> Draw:
    """Return what draws z_d of a plan, shaped like the state, or the functionals of its legs.

    Raises:
        UsageError: the plan is stochastic, and there are no seeds.
    """
    if not plan.is_stochastic:
        return _nothing
    if seeds is None:
        raise UsageError("a stochastic solver needs seeds, one a sample.")
    if plan.legs:
        return Source(plan, seeds, like)
    return Drawn(plan, seeds.seeds if isinstance(seeds, Brownian) else seeds, like)


class Drawn:
    """z_d of a plan from seeds: of many steps at once, where the state is small.

    Args:
        plan: without legs.
        seeds: one a sample.
        like: the state.
    """

    __slots__ = ("_ahead", "_dtype", "_keys", "_kept", "_last", "_shape")

    def __init__(self, plan: Plan, seeds: Sequence[int], like: Tensor) -> None:
        self._keys = noise.keys(seeds, like.device)
        self._shape, self._dtype = like.shape[1:], like.dtype
        self._last = max(d for row in plan.rows for d in row.z)
        self._ahead = max(1, AHEAD // max(like.numel(), 1))
        self._kept: dict[int | Functional, Tensor] = {}

    def __call__(self, d: int | Functional) -> Tensor:
        """Return z_d, (batch, *state)."""
        if d not in self._kept:
            assert isinstance(d, int)
            coming = range(d, max(d, min(d + self._ahead - 1, self._last)) + 1)
            self._kept = {}  # another one, for copies share what was there
            made = noise.normals(self._keys, self._shape, coming, stream="step", dtype=self._dtype)
            self._kept.update(zip(coming, made.unbind(), strict=True))
        return self._kept[d]


def _nothing(index: int | Functional) -> Tensor:
    raise PathlineError(f"a plan without noise drew z{index}.")


def run(plan: Plan, field: Field, x: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
    """Run a plan from one state to its end and return the final state; no checks, no record."""
    return complete(plan, Evaluator(field, plan, x, {}), [x], seeds)

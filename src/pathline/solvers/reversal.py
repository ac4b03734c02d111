"""Plans that run back: cutting a plan at its grid points, and solving its rows for older states.

A *step* of a plan is its stages and the row that lands. It can be solved for an older state when
that state enters it through one coefficient alone, and never through an evaluation: then all that
has to be evaluated on the way back is what was evaluated on the way out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from pathline.core.errors import UsageError
from pathline.solvers.plan import Coefficient, Plan, Row, Terms

MOST_STATES = 8
"""The most grid points that a rule is supposed to remember."""


class Stretch(NamedTuple):
    """The rows of one step: stages first, then the one that lands, and the number of the first."""

    first: int
    stages: tuple[Row, ...]
    landing: Row


def stretches(plan: Plan) -> Iterator[Stretch]:
    """Yield the steps of a plan; rows after the last grid point belong to none."""
    stages: list[Row] = []
    for number, row in enumerate(plan.rows, len(plan.start)):
        if row.lands:
            yield Stretch(number - len(stages), tuple(stages), row)
            stages = []
        else:
            stages.append(row)


def grid_points(plan: Plan) -> list[int]:
    """Return the numbers of the states on grid points, all that are given included."""
    given = len(plan.start)
    return [*range(given), *(given + i for i, row in enumerate(plan.rows) if row.lands)]


def inverse(plan: Plan) -> Plan:
    """Return the plan that runs the same way back; see `Plan.inverse`."""
    try:
        return _step_by_step(plan)
    except UsageError:
        made = _row_by_row(plan)
        if made is None:
            raise
        return made


def _row_by_row(plan: Plan) -> Plan | None:
    """Return the plan that solves every row for the state that it uses last; None if none does.

    A rule may hand on a stage, as reversible Heun does: then no step can be solved for what it
    began with, and every row can. It starts from all states that the end still knows.
    """
    given, known, ends = len(plan.start), set[int](), set[int]()
    order = list[tuple[int, int]]()
    for number, row in reversed(list(enumerate(plan.rows, given))):
        evaluated = {*row.f, *(product.state for product in row.g)}
        unknown = row.states - known
        free = sorted(k for k in unknown - evaluated if _is_nonzero(row.x[k]))
        solved = free[:1]
        ends |= ({number} - known) | (unknown - set(solved))
        known |= {number, *row.states}
        order += [(number, k) for k in solved]
    total = len(plan.times)
    if ends != set(range(total - len(ends), total)) or not ends.isdisjoint(range(given)):
        return None
    names = {k: i for i, k in enumerate(sorted(ends))}
    rows, lands = list[Row](), set(plan.landings)
    for number, k in order:
        row = _solved(plan.rows[number - given], number, k, plan, names)
        rows.append(replace(row, lands=k in lands))
        names[k] = len(ends) + len(rows) - 1
    return replace(plan, start=tuple(plan.times[k] for k in sorted(ends)), rows=tuple(rows))


def _step_by_step(plan: Plan) -> Plan:
    """Return the plan that solves the last row of every step for its oldest state."""
    points, given = grid_points(plan), len(plan.start)
    names = {old: new for new, old in enumerate(reversed(points[-given:]))}
    made, rows = given, list[Row]()
    for index, step in reversed(list(enumerate(stretches(plan)))):
        oldest = points[index]
        _check_step(step, index, oldest)
        for number, row in enumerate(step.stages, step.first):
            rows.append(_renamed(row, names))
            names[number], made = made, made + 1
        rows.append(_solved(step.landing, points[index + given], oldest, plan, names))
        names[oldest], made = made, made + 1
    start = tuple(plan.times[k] for k in reversed(points[-given:]))
    return replace(plan, start=start, rows=tuple(rows))


def _check_step(step: Stretch, index: int, oldest: int) -> None:
    """Refuse a step that asks more of its oldest state than one coefficient."""
    uses = [k for row in (*step.stages, step.landing) for k in (*row.f, *(p.state for p in row.g))]
    uses += [k for row in step.stages for k in row.x]
    uses += [k for k in step.landing.x if k < oldest]
    if min(uses, default=oldest + 1) <= oldest or not _is_nonzero(step.landing.x.get(oldest, 0.0)):
        raise UsageError(
            f"row {step.first + len(step.stages)} (step {index + 1}) cannot be solved for state "
            f"{oldest}: only rules with two states a row can be inverted; use an exactly "
            "invertible solver, BDIA() or Reversible(solver)."
        )


def _solved(row: Row, number: int, oldest: int, plan: Plan, names: Mapping[int, int]) -> Row:
    """Return a row that was solved for its oldest state."""
    a = row.x[oldest]
    x = {names[number]: 1 / a}
    x |= {names[j]: -c / a for j, c in row.x.items() if j != oldest}
    f = {names[k]: -c / a for k, c in row.f.items()}
    z = {d: -c / a for d, c in row.z.items()}
    g = {p._replace(state=names[p.state]): -c / a for p, c in row.g.items()}
    return Row(plan.times[oldest], x, f, z, constant=-row.constant / a, g=g)


def after(plan: Plan, n: int) -> Plan:
    """Return the plan that goes on from grid points 0 … n, which are given then.

    Raises:
        UsageError: there are fewer steps, or a later row needs a stage of these.
    """
    points = grid_points(plan)
    if not 0 <= n < len(points):
        raise UsageError(f"the plan has {len(points) - 1} steps, fewer than {n}.")
    kept = points[: n + 1]
    names = {old: new for new, old in enumerate(kept)}
    rows: list[Row] = []
    for number in range(kept[-1] + 1, len(plan.times)):
        rows.append(_renamed(plan.rows[number - len(plan.start)], names))
        names[number] = n + len(rows)
    return replace(plan, start=tuple(plan.times[k] for k in kept), rows=tuple(rows))


def opening(plan: Plan, n: int) -> Plan:
    """Return the first n steps of a plan."""
    last = grid_points(plan)[n]
    return replace(plan, rows=plan.rows[: last + 1 - len(plan.start)])


def joined(first: Plan, then: Plan) -> Plan:
    """Return the plan of both: `then` goes on from the last grid points of `first`, oldest first.

    Raises:
        UsageError: they do not meet, or differ in path or view.
    """
    points = grid_points(first)[-len(then.start) :]
    if tuple(first.times[k] for k in points) != then.start:
        raise UsageError(f"a plan that starts at {then.start} does not go on from this one.")
    if (first.view, first.path) != (then.view, then.path):
        raise UsageError("plans of other paths or views cannot be joined.")
    names = dict(enumerate(points))
    rows = list(first.rows)
    for number, row in enumerate(then.rows, len(then.start)):
        rows.append(_renamed(row, names))
        names[number] = len(first.start) + len(rows) - 1
    return replace(first, rows=tuple(rows))


def remembered(plan: Plan) -> int:
    """Return how many grid points a plan must be given to be inverted exactly; 0 if it cannot be.

    A plan from one state opens with steps that make the others: those are not inverted, but the
    states that they make are part of what is handed over.
    """
    for n in range(len(plan.start), min(MOST_STATES, plan.steps) + 1):
        try:
            _step_by_step(after(plan, n - 1))
        except UsageError:
            continue
        return n
    return 0


def _renamed(row: Row, names: Mapping[int, int]) -> Row:
    """Return a row with its states under other numbers."""
    if missing := row.states - names.keys():
        raise UsageError(f"a later row needs state {min(missing)}, which is no grid point.")
    g = {p._replace(state=names[p.state]): c for p, c in row.g.items()}
    return replace(row, x=_named(row.x, names), f=_named(row.f, names), g=g)


def _named(terms: Terms, names: Mapping[int, int]) -> dict[int, Coefficient]:
    return {names[k]: c for k, c in terms.items()}


def _is_nonzero(c: Coefficient) -> bool:
    return bool((c != 0).all()) if isinstance(c, Tensor) else c != 0


__all__: Sequence[str] = ["after", "inverse", "joined", "opening", "remembered", "stretches"]

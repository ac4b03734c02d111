"""A solver's rows as steps, each in terms of grid points: what can be moved along a grid.

States of a plan are numbered in the order in which they are made. A step that is to be taken again
elsewhere, or run back, must say instead which grid points it uses; its own stages have names of
their own, −1, −2 and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from pathline.core.errors import UsageError
from pathline.solvers.plan import Coefficient, Row, Terms
from pathline.solvers.solver import Writer


class Block(NamedTuple):
    """A step's rows, with states named by grid point (≥ 0) or as own stages (−1, −2, …)."""

    stages: tuple[Row, ...]
    landing: Row

    @property
    def points(self) -> set[int]:
        """The grid points that the step uses."""
        return {k for row in (*self.stages, self.landing) for k in (*row.x, *row.f) if k >= 0}

    def moved(self, by: int) -> Block:
        """Return the step as if it began so many grid points later."""
        return self._mapped(lambda k: k + by if k >= 0 else k)

    def _mapped(self, name: Callable[[int], int]) -> Block:
        def mapped(row: Row) -> Row:
            x, f = ({name(k): c for k, c in terms.items()} for terms in (row.x, row.f))
            return replace(row, x=x, f=f)

        return Block(tuple(map(mapped, self.stages)), mapped(self.landing))


def blocks(rows: Sequence[Row]) -> list[Block]:
    """Return the steps of a solver's rows, each in terms of grid points and its own stages.

    Where a step uses an evaluation at an earlier step's prediction of a grid point, it is given the
    evaluation at the grid point itself: the state there can be recovered, its prediction cannot.

    Raises:
        UsageError: a step uses an earlier step's stage inside the step.
    """
    found: list[Block] = []
    names, own = {0: 0}, list[Row]()
    for number, row in enumerate(rows, 1):
        own.append(row)
        if not row.lands:
            names[number] = -len(own)
            continue
        found.append(_block(own, names))
        for stage, earlier in enumerate(own[:-1], number + 1 - len(own)):
            names[stage] = len(found) if earlier.t == row.t else _LOST
        names[number], own = len(found), []
    return found


_LOST = -1000
"""The name of a stage inside an earlier step."""


def _block(rows: Sequence[Row], names: Mapping[int, int]) -> Block:
    """Return a step's rows in the names of a block."""
    *stages, landing = [
        replace(row, x=_named(row.x, names), f=_named(row.f, names)) for row in rows
    ]
    if any(_LOST in (*row.x, *row.f) for row in (*stages, landing)):
        raise UsageError(
            "a step uses a stage inside an earlier step, which cannot be recovered on the way "
            "back: take another solver."
        )
    return Block(tuple(stages), landing)


def _named(terms: Terms, names: Mapping[int, int]) -> dict[int, Coefficient]:
    """Return terms under other names; those that fall together are added."""
    found: dict[int, Coefficient] = {}
    for k, c in terms.items():
        found[names[k]] = found[names[k]] + c if names[k] in found else c
    return found


def write_with_memory(
    to: Writer, steps: Sequence[Block], guesses: Sequence[Block], factors: Sequence[float]
) -> None:
    """Write x_new = F + γ (x_old − B) for each step.

    Args:
        to: where to write.
        steps: F of every step.
        guesses: B of the last steps, in the same names, its stages numbered on their own; the
            steps before these are F alone, and x_old lies as many grid points before a step.
        factors: γ of each of these.
    """
    lag, points = len(steps) - len(guesses), [0]
    for i, step in enumerate(steps):
        landing = _write_stages(to, step, points)
        if i >= lag:
            guess = _write_stages(to, guesses[i - lag], points)
            landing = _with_memory(landing, guess, points[i - lag], factors[i - lag])
        x, f, constant = landing.x, landing.f, landing.constant
        points.append(to.write(float(landing.t), x, f, landing.z, constant=constant))


def _write_stages(to: Writer, step: Block, points: Sequence[int]) -> Row:
    """Write the stages of a step, and return the row that would land.

    Args:
        to: where to write.
        step: in terms of grid points.
        points: the number of the state on each grid point.
    """
    names = {k: points[k] for k in step.points}
    for i, row in enumerate(step.stages):
        x, f = _named(row.x, names), _named(row.f, names)
        names[-1 - i] = to.write(float(row.t), x, f, lands=False, constant=row.constant)
    return replace(step.landing, x=_named(step.landing.x, names), f=_named(step.landing.f, names))


def _with_memory(step: Row, guess: Row, old: int, gamma: float) -> Row:
    """Return the row x_new = F + γ (x_old − B)."""
    x = _combined(step.x, guess.x, -gamma)
    f = _combined(step.f, guess.f, -gamma)
    x[old] = x.get(old, 0.0) + gamma
    return replace(step, x=x, f=f, constant=step.constant - gamma * guess.constant)


def _combined(a: Terms, b: Terms, factor: float) -> dict[int, Coefficient]:
    """Return a + factor b."""
    return {k: a.get(k, 0.0) + factor * b.get(k, 0.0) for k in {**a, **b}}

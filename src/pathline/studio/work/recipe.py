"""Recipes: what a visitor chose of solver, grid, steps and guidance, checked and built."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pathline.cli.options import chosen_condition, chosen_guide, chosen_speed, chosen_steps
from pathline.core.errors import UsageError
from pathline.core.registry import Registry
from pathline.fields import Denoiser
from pathline.solvers import Grid, Solver, solvers
from pathline.solvers.evaluate import Speed
from pathline.solvers.grids import grids
from pathline.solvers.saved import SAVED
from pathline.solvers.solve import DEFAULT_GRID, DEFAULT_SOLVER
from pathline.steer import Guide
from pathline.studio.limits import Limits

TYPED = 200
"""Characters of a grid that is typed as times."""


@dataclass(frozen=True)
class Typed:
    """A recipe as it came from the page: nothing is believed yet, and what is empty is left out."""

    solver: Any = None
    grid: Any = None
    steps: Any = None
    guidance: Any = None
    last: Any = None


@dataclass(frozen=True)
class Recipe:
    """A recipe that fits a model.

    Args:
        solver, grid, guide: how.
        cond: what the model is told.
        calls: of the network, for a batch.
        speed: what leaves evaluations out, if anything does.
    """

    solver: Solver
    grid: Grid
    guide: Guide | None
    cond: dict[str, Any]
    calls: int
    speed: Speed | None = None

    @property
    def name(self) -> str:
        """What really runs, in a line; it is written from the parts, not from what was typed."""
        guide = f", guidance {getattr(self.guide, 'weight', '')}" if self.guide is not None else ""
        return f"{_told(solvers, self.solver)} on {_told(grids, self.grid)}{guide}"


def _told(registry: Registry[Any], thing: Any) -> str:
    """Return a registered thing as one would write it."""
    if not registry.has(thing):
        return type(thing).__name__
    described = registry.describe(thing)
    name, last = described.pop("name"), described.pop("last", "stop")
    if last != "stop":
        described["last"] = last
    simple = {k: v for k, v in described.items() if isinstance(v, str | int | float)}
    return f"{name}({', '.join(f'{k}={v}' for k, v in simple.items())})"


def recipe(model: Denoiser, typed: Typed, prompt: Any, limits: Limits) -> Recipe:
    """Return the recipe that was chosen.

    Raises:
        UsageError: a name is unknown, a number out of bounds, or the parts do not go together.
    """
    steps = None
    if typed.steps not in (None, ""):
        steps = limits.whole("steps", number("steps", typed.steps), 1, limits.steps)
    name = word("solver", typed.solver)
    solver, grid = chosen_steps(
        name, None, word("grid", typed.grid), steps, word("last", typed.last), model
    )
    speed = chosen_speed(None, name, steps, model)
    limits.whole("steps", grid.n, 1, limits.steps)
    told = text(prompt, limits)
    weight = None
    if typed.guidance not in (None, ""):
        weight = number("guidance", typed.guidance)
        if not -20 <= weight <= 50:
            raise UsageError(f"guidance {weight:g}: choose from -20 to 50; 1 adds nothing.")
    guide = chosen_guide(weight, told, model)
    each = limits.steps if solver.is_adaptive else grid.n  # adaptive solvers say it afterwards
    calls = each * max(1, round(float(solver.nfe_per_step)))
    return Recipe(solver, grid, guide, {**chosen_condition(told, model)}, calls, speed)


def solver_of(typed: Typed, limits: Limits) -> tuple[Solver, Grid, str]:
    """Return solver, grid and name of a recipe without a model.

    Raises:
        UsageError: a name is unknown, or a number out of bounds.
    """
    steps = limits.whole("steps", number("steps", typed.steps or 10), 1, limits.steps)
    solver = solvers.build(word("solver", typed.solver) or DEFAULT_SOLVER)
    grid = grids.build(word("grid", typed.grid) or DEFAULT_GRID, n=steps)
    return solver, grid, Recipe(solver, grid, None, {}, 0).name


def text(prompt: Any, limits: Limits) -> str | None:
    """Return a prompt; None if there is none.

    Raises:
        UsageError: it is no text, or too long.
    """
    if prompt is None:
        return None
    if not isinstance(prompt, str) or len(prompt) > limits.prompt:
        raise UsageError(f"a prompt is a text of at most {limits.prompt} characters.")
    return prompt.strip() or None


def seeds(seed: Any, n: Any, limits: Limits) -> tuple[int, ...]:
    """Return one seed a sample.

    Raises:
        UsageError: they are no numbers, or too many.
    """
    first = limits.whole("seed", number("seed", seed), 0, 2**31 - 1)
    return tuple(range(first, first + limits.whole("n", number("n", n), 1, limits.samples)))


def solver_names() -> list[str]:
    """Return what can be chosen: every solver, and the schedules that were found for a model."""
    return [entry.name for entry in solvers] + [*SAVED]


def grid_names() -> list[str]:
    """Return the grids that need no more than a number of steps."""
    return [entry.name for entry in grids if entry.name != "times"]


def word(what: str, value: Any) -> str | None:
    """Return a name as it was chosen, or times; nothing that could be a place on a disk."""
    if value in (None, ""):
        return None
    if not isinstance(value, str) or len(value) > TYPED or not re.fullmatch(r"[\w+ .,-]+", value):
        raise UsageError(f"the {what} {str(value)[:40]!r} is no name, and no times 1,0.6,0.2.")
    return value.strip()


def number(what: str, value: Any) -> float:
    """Return a finite number, whole where it is.

    Raises:
        UsageError: it is none.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(value)
        if number != number or number in (float("inf"), float("-inf")):
            raise ValueError
    except (TypeError, ValueError):
        raise UsageError(f"{what} {str(value)[:40]!r} is no number.") from None
    return int(number) if number == int(number) else number

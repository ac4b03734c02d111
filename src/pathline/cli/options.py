"""What the options of `pathline sample` mean: seeds, grids and guides from what a person types."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch

from pathline.cli.guiding import Spec, typed
from pathline.core.errors import UsageError
from pathline.core.noise import check_seeds
from pathline.fields import Denoiser
from pathline.solvers import Grid
from pathline.solvers.evaluate import Speed
from pathline.solvers.grids import Times, grids
from pathline.solvers.saved import SAVED, saved_schedule
from pathline.solvers.solve import DEFAULT_GRID, DEFAULT_SOLVER, DEFAULT_STEPS, default_steps
from pathline.solvers.solver import Solver, solvers
from pathline.speed import speeds
from pathline.steer import CFG, Guide

SAMPLES = 16
"""How many samples, where nobody says it."""

GUIDANCE = 4.0
"""The guidance weight of a prompt, where neither the user nor the model says one."""

MOST_SEEDS = 100_000


def given(**values: Any) -> dict[str, Any]:
    """Return the values that were given."""
    return {name: value for name, value in values.items() if value is not None}


def chosen_seeds(n: int | None, seed: int | None, seeds: str | None) -> tuple[int, ...]:
    """Return one seed a sample.

    Raises:
        UsageError: they contradict each other, or are not seeds.
    """
    if n is not None and not 1 <= n <= MOST_SEEDS:
        raise UsageError(f"-n {n}: choose from 1 to {MOST_SEEDS} samples.")
    if seeds is None:
        first = 0 if seed is None else seed
        drawn = tuple(range(first, first + (SAMPLES if n is None else n)))
    elif seed is None:
        drawn = parsed_seeds(seeds)
    else:
        raise UsageError("--seed and --seeds were given; leave one out.")
    check_seeds(drawn)
    if n is not None and len(drawn) != n:
        raise UsageError(f"{len(drawn)} seeds were given for {n} samples; leave -n out.")
    return drawn


def parsed_seeds(text: str) -> tuple[int, ...]:
    """Read seeds as people write them.

    Raises:
        UsageError: it cannot be read.

    Example:
        >>> parsed_seeds("0-3,20")
        (0, 1, 2, 3, 20)
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise UsageError(f"seeds {text!r} cannot be read at {part!r}; write them as 0-15,20.")
        if len(found) + last - first >= MOST_SEEDS:
            raise UsageError(f"seeds {text!r} are more than {MOST_SEEDS}; sample them in parts.")
        found.extend(range(first, last + 1))
    return tuple(found)


def chosen_steps(
    solver: str | None,
    order: int | None,
    grid: str | None,
    steps: int | None,
    last: str | None,
    model: Denoiser,
) -> tuple[Solver, Grid]:
    """Return the solver and the grid; with "s3" both are those of the model's own schedule.

    Raises:
        UsageError: they do not go together, or the model has no such schedule.
    """
    name = solver or model.defaults.get("solver", DEFAULT_SOLVER)
    if name not in SAVED:
        rule = chosen_solver(name, order, model)
        return rule, chosen_grid(grid, steps, last, model, rule)
    if (order, grid, last) != (None, None, None):
        raise UsageError(f"--solver {name} has orders and times of its own; leave the others out.")
    schedule = saved_schedule(model, steps, name)
    schedule.plan(model.path)  # refuses another path
    return schedule.solver, schedule.grid


def chosen_solver(name: str | None, order: int | None, model: Denoiser) -> Solver:
    """Return the solver of a name, in an order if it has several."""
    return solvers.build(name or model.defaults.get("solver", DEFAULT_SOLVER), **given(order=order))


def chosen_grid(
    name: str | None,
    steps: int | None,
    last: str | None,
    model: Denoiser,
    solver: Solver | None = None,
) -> Grid:
    """Return the grid of a name and a step count, or of times with commas between them.

    An adaptive solver chooses its own steps, so its grid has one unless the user asks for more.

    Raises:
        UsageError: the times cannot be read, or are not as many as the steps.
    """
    values = None if name is None else _times(name)
    if values is not None:
        grid = Times(values, **given(last=last))
        if steps not in (None, grid.n):
            raise UsageError(f"--steps {steps} and a grid of {grid.n} steps; leave --steps out.")
        return grid
    defaults = model.defaults
    unasked = defaults.get("steps", DEFAULT_STEPS)
    if solver is not None and solver.is_adaptive:
        unasked = default_steps(solver)
    n = unasked if steps is None else steps
    return grids.build(name or defaults.get("grid", DEFAULT_GRID), n=n, **given(last=last))


def _times(text: str) -> tuple[float, ...] | None:
    """Read times; None if it is a name."""
    if not re.match(r"[\s\d.+-]", text) and "," not in text:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"the grid {text!r} cannot be read; write times as 1,0.6,0.2.") from None


def chosen_condition(prompt: str | None, model: Denoiser) -> dict[str, str]:
    """Return the prompt as what the model is told: a text, or the name of a class."""
    told = model.details.get("condition")
    return {} if prompt is None else {told if isinstance(told, str) else "text": prompt}


def chosen_guide(weight: float | None, prompt: str | None, model: Denoiser) -> Guide | None:
    """Return the guide: what the user says, else what the model recommends for a prompt.

    Raises:
        UsageError: the weight is not finite.
    """
    if weight is None:
        if prompt is None or not model.is_conditional:
            return None
        weight = float(model.defaults.get("guidance", GUIDANCE))
    if not math.isfinite(weight):
        raise UsageError(f"--guidance {weight}: give a finite number, such as 4; 1 adds nothing.")
    return None if weight == 1 else CFG(weight)


def chosen_guides(
    texts: Sequence[str] | None, weight: float | None, prompt: str | None, model: Denoiser
) -> tuple[Guide | None, tuple[Spec, ...]]:
    """Return the guide of `--guide`, beside the guidance of a prompt, and its parts as typed.

    Raises:
        UsageError: a guide cannot be read; --guidance beside one that chooses evaluations.
    """
    usual = chosen_guide(weight, prompt, model)
    if not texts:
        return usual, ()
    made = typed(texts, model)
    if not made.guide.chooses_evaluations and usual is not None:
        assert isinstance(usual, CFG)
        made = typed([f"cfg:{usual.weight}", *texts], model)
    elif weight is not None and made.guide.chooses_evaluations:
        raise UsageError(
            f"--guidance {weight:g} and a --guide that chooses evaluations were given; leave one "
            "out."
        )
    return made.guide, made.specs


def chosen_speed(
    name: str | None,
    solver: str | None = None,
    steps: int | None = None,
    model: Denoiser | None = None,
) -> Speed | None:
    """Return the policy of a name, or that of the model's own schedule, or none.

    Raises:
        UsageError: there is no such policy, or the schedule has one already.
    """
    own = None
    if model is not None:
        named = str(solver or model.defaults.get("solver", DEFAULT_SOLVER))
        own = saved_schedule(model, steps, named).speed if named in SAVED else None
    if own is not None and name is not None:
        raise UsageError(f"--solver {solver} leaves evaluations out by itself; leave --speed out.")
    return own if name is None else speeds.build(name)


def chosen_device(name: str | None) -> torch.device:
    """Return the device of a name, or the fastest one.

    Raises:
        UsageError: there is no such device here.
    """
    here = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    try:
        device = torch.device(here[-1] if name is None else name)
    except RuntimeError:
        device = None
    if device is None or device.type not in here:
        raise UsageError(f"there is no device {name!r} here; choose {' or '.join(here)}.")
    return device

"""`--particles K`: every sample is one of K that are weighed, and the receipt tells of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from pathline.core.errors import ReceiptError, UsageError
from pathline.core.receipt import Receipt
from pathline.core.solution import Solution
from pathline.steer import Guide, Particles

if TYPE_CHECKING:
    from pathline.cli.request import Request

SOLVER = "ddpm"
"""Takes the steps, where nobody says: it draws noise in each."""

OUTCOME = "population"
"""Where a receipt tells what came of the particles, one entry a sample."""


def chosen_particles(n: int | None, guide: Guide | None, speed: str | None) -> Particles | None:
    """Return what weighs samples, if particles were asked for.

    Raises:
        UsageError: there is nothing to weigh them by, or evaluations would be left out.
    """
    if n is None:
        return None
    made = Particles(n)
    if guide is None:
        raise UsageError(
            f"--particles {n}: they are weighed by a likelihood, and no guide has one; add for "
            'example --guide "pigdm:0.1,cubic=4,image=small.png", or mmps, dps, or --classifier.'
        )
    if speed is not None:
        raise UsageError(
            f"--speed {speed} leaves evaluations out, and particles are weighed by every one; "
            "leave one of both out."
        )
    return made


def weighed(
    request: Request, seeds: Sequence[int], watch: Callable[[Any], None] | None = None
) -> Solution:
    """Return one particle of each run of a request, with what came of the runs in its receipt.

    Args:
        request: with particles and a guide.
        seeds: of the runs.
        watch: called at every grid point, with its number.

    Raises:
        UsageError: a guide without a likelihood, a solver without noise.
        NonFiniteError: all weights of a run vanished.
    """
    assert request.particles is not None and request.guide is not None
    with torch.no_grad():
        found = request.particles.sample(
            request.model, seeds=seeds, guide=request.guide, solver=request.solver,
            grid=request.grid, dtype=request.dtype, watch=watch, **request.cond,
        )  # fmt: skip
    recipe = {**found.receipt.recipe, "cond": dict(request.cond), OUTCOME: found.told()}
    status = torch.zeros(len(found.x), dtype=torch.int8)
    end = float(torch.as_tensor(found.receipt.grid[-1]))
    receipt = replace(found.receipt, recipe=recipe)
    return Solution(found.x, end, status, found.stats, receipt)


def outcome_of(receipts: Sequence[Receipt]) -> Mapping[str, Any]:
    """Return what came of the particles of all batches, as one table; empty without particles."""
    tables = [receipt.recipe[OUTCOME] for receipt in receipts if OUTCOME in receipt.recipe]
    return {name: [each for table in tables for each in table[name]]
            for table in tables[:1] for name in table}  # fmt: skip


def particles_of(recipe: Mapping[str, Any]) -> Particles | None:
    """Return the particles that a receipt tells of; None if there were none.

    Raises:
        ReceiptError: they cannot be read.
    """
    told = recipe.get("particles")
    try:
        return None if told is None else Particles(**told)
    except TypeError as error:
        raise ReceiptError(f"the receipt is damaged: its particles are {told!r}.") from error


def summed_up(outcome: Mapping[str, Any], n: int) -> str:
    """Return in words what came of runs of n particles; their evidence is that of all together."""
    logs, origins = outcome["log_evidence"], outcome["origins"]
    most = max(logs)
    together = most + math.log(sum(math.exp(each - most) for each in logs) / len(logs))
    kept = sum(len(set(each)) for each in origins)
    return (
        f"log p(y) = {together:.2f} (single runs {min(logs):.2f} to {most:.2f}); "
        f"{kept} of {n * len(origins)} starts live on, least effective share "
        f"{min(outcome['least_share']):.2f}"
    )

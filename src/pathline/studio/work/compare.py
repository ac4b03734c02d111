"""Compare: one noise under several whole recipes, beside the solution that they approximate.

The converged solution of a guidance is the third-order multistep solver over many steps; a second
run over half as many says how far it can be believed, as all lines of the table do: what is told is
written from what ran.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import PathlineError, UsageError
from pathline.fields import Denoiser
from pathline.solvers import DPMpp, Step, grids, sample
from pathline.studio import jobs
from pathline.studio.limits import Limits
from pathline.studio.shelf import Shelf
from pathline.studio.work.recipe import Recipe, Typed, recipe, seeds

FINE = 128
"""Steps of the converged solution; half as many are taken to judge it."""


@dataclass(frozen=True)
class Line:
    """One recipe's way.

    Args:
        name: what ran.
        x: where it ended, (n, *state).
        nfe: evaluations.
        error: root mean square distance from the converged solution; None for a solver that draws
            noise, whose samples have no solution to converge to.
        times: of the curves.
        x0: distance of the denoised estimate from the converged solution, as it went.
        norm: root mean square of the state.
        bend: how fast the denoised estimate moves, rms dx̂_0/dλ: zero on a straight way.
        trouble: why there is nothing, if there is nothing.
    """

    name: str
    x: Tensor | None = None
    nfe: int = 0
    error: float | None = None
    times: list[float] = field(default_factory=list)
    x0: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)
    bend: list[tuple[float, float]] = field(default_factory=list)
    trouble: str | None = None


@dataclass(frozen=True)
class Compared:
    """All lines, and what they are measured against.

    Args:
        lines: in the order of the recipes.
        converged: the converged solution of the first recipe's guidance.
        uncertain: how far the converged solutions are from those of half as many steps, at most.
    """

    lines: list[Line]
    converged: Tensor
    uncertain: float


@dataclass(frozen=True)
class Comparison:
    """What was asked for, checked."""

    model: Denoiser
    recipes: tuple[Recipe, ...]
    seeds: tuple[int, ...]

    def run(self) -> Compared:
        """Compare; to be called in a job."""
        guides = list(dict.fromkeys(r.guide for r in self.recipes))
        jobs.expect(sum(r.calls for r in self.recipes) + len(guides) * (FINE + FINE // 2))
        with torch.no_grad():
            known = {guide: self._converged(guide) for guide in guides}
            lines = [self._line(r, known[r.guide][0]) for r in self.recipes]
        first = self.recipes[0].guide
        return Compared(lines, known[first][0], max(gap for _, gap in known.values()))

    def _converged(self, guide: Any) -> tuple[Tensor, float]:
        """Return where the flow ends, and how far off half as many steps are."""
        both = [
            sample(
                self.model, seeds=self.seeds, solver=DPMpp(order=3), grid=grids.log_snr(n),
                guide=guide, observe=lambda _: jobs.tick(0), **self.recipes[0].cond,
            ).x
            for n in (FINE // 2, FINE)
        ]  # fmt: skip
        return both[1], rms(both[1] - both[0])

    def _line(self, how: Recipe, converged: Tensor) -> Line:
        line, path, before = Line(how.name), self.model.path, list[tuple[Tensor, float]]()

        def look(step: Step) -> None:
            jobs.tick(0)
            t, x0 = float(torch.as_tensor(step.t).double().mean()), step.x0
            line.times.append(t)
            line.x0.append(rms(x0 - converged))
            line.norm.append(rms(step.x))
            level = float(path.log_snr(step.prediction.t.double().mean()))
            if before and level != before[-1][1]:
                line.bend.append((t, rms(x0 - before[-1][0]) / abs(level - before[-1][1])))
            before[:] = [(x0, level)]

        try:
            made = sample(
                self.model, seeds=self.seeds, solver=how.solver, grid=how.grid, guide=how.guide,
                speed=how.speed, observe=look, **how.cond,
            )  # fmt: skip
        except jobs.Stopped:
            raise
        except PathlineError as error:
            return Line(how.name, trouble=" ".join(str(error).split()))
        error = None if how.solver.is_stochastic else rms(made.x - converged)
        return replace(line, x=made.x, nfe=made.stats.nfe, error=error)


def rms(x: Tensor) -> float:
    """Return the root mean square."""
    return float(x.double().square().mean().sqrt())


def asked(  # noqa: PLR0913 - what the page has
    shelf: Shelf, model: Any, prompt: Any, typed: Sequence[Typed], seed: Any, n: Any, limits: Limits
) -> Comparison:  # fmt: skip
    """Return what was asked for.

    Raises:
        UsageError: it cannot be, or is too much; names the row.
    """
    if not 1 <= len(typed) <= limits.recipes:
        raise UsageError(f"compare 1 to {limits.recipes} recipes, not {len(typed)}.")
    denoiser, drawn = shelf.model(model), seeds(seed, n, limits)
    made: list[Recipe] = []
    for number, each in enumerate(typed, 1):
        try:
            made.append(recipe(denoiser, each, prompt, limits))
        except UsageError as error:
            raise UsageError(f"recipe {number}: {error}") from None
    fine = (FINE + FINE // 2) * len({r.guide for r in made})
    calls = sum(r.calls * (2 if r.guide else 1) for r in made) + 2 * fine
    limits.count("the comparison", calls * len(drawn))
    return Comparison(denoiser, tuple(made), drawn)

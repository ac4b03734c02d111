"""SDEdit: noise is added, and taken away again by the model.

    x_s = α_s x + σ_s n,   then any solver from s to data

What the model finds likely replaces what the noise has hidden: coarse things at high strength, fine
ones at low. Strength is its only knob, so realism is paid for by forgetting the input.

Paper: Meng et al. 2022 (arXiv:2108.01073).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.edit.change import ChangeMap, check_mask
from pathline.edit.edited import Edited, check_picture, repeated, repeated_condition, seeds_of
from pathline.fields import Field
from pathline.paths import as_time, bshape
from pathline.solvers import Grid, Solver, solve
from pathline.solvers.grids import Times
from pathline.solvers.solve import Guide, as_grid, as_solver, start

__all__ = ["sdedit"]

STEPS = 50


def sdedit(  # noqa: PLR0913 - keyword-only: each is one idea of the house
    model: Field,
    x: Tensor,
    *,
    strength: float | Sequence[float] = 0.5,
    mask: Tensor | None = None,
    solver: Solver | str = "ddpm",
    grid: Grid | str | Sequence[float] | None = None,
    steps: int | None = None,
    guide: Guide | None = None,
    samples: int = 1,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    **cond: Any,
) -> Edited:
    """Return data noised to a strength and denoised again.

    Args:
        model: a denoiser.
        x: data, a sketch or strokes, (batch, *state).
        strength: the share of the grid's steps that are undone, in (0, 1]; several are rounds, one
            after the other.
        mask: what is edited: 1 is, 0 stays to the bit, and a value between is a strength of its own
            (a share of `strength`); of a shape that broadcasts to (batch, *state).
        solver: any: ancestral steps if nobody says it, a deterministic one keeps more.
        grid, steps: of generation, as for `solve`; 50 steps even in t.
        guide: of the field.
        samples, seed, seeds: answers to each picture.
        cond: what it shall show, in the user's words.

    Raises:
        UsageError: a strength that leaves no step; a mask that does not fit; what `solve` refuses.
        NonFiniteError: a sample met a NaN or an infinity.

    Cost: the evaluations of each round's steps.

    Example: at full strength nothing is left of the input.
        >>> import torch
        >>> from pathline.fields import Gaussian
        >>> from pathline.paths import VPLinear
        >>> law = Gaussian(VPLinear(), torch.tensor([3.0]), torch.tensor([0.25]))
        >>> far = torch.full((1, 1), -5.0)
        >>> made = sdedit(law, far, strength=1.0, samples=500).x
        >>> made.shape, bool((made.mean() - 3).abs() < 0.1)
        (torch.Size([1, 500, 1]), True)
    """
    check_picture(model, x)
    rounds = (strength,) if isinstance(strength, int | float) else tuple(strength)
    if not rounds:
        raise UsageError("strength: a number, or the numbers of several rounds; none were given.")
    whole = as_grid("uniform" if grid is None else grid, _count(grid, steps))
    drawn = seeds_of(len(x), samples, seed, seeds)
    told = repeated_condition(cond, len(x), samples)
    state = origin = repeated(x, samples)
    edited = None if mask is None else repeated(check_mask(mask, x), samples)
    rule, nfe, parts = as_solver(solver), 0, list[Any]()
    for number, share in enumerate(rounds):
        part = _part(model, whole, share)
        keys = drawn if number == 0 else tuple(noise.derived_seeds(drawn, number))
        keep = None if edited is None else ChangeMap(origin, edited, part.times(model.path))
        noised = _noised(model, state, part.times(model.path)[0], keys)
        solution = solve(
            model, noised, solver=rule, grid=part, guide=guide, keep=keep, seeds=keys, **told
        )
        state, nfe = solution.x, nfe + solution.stats.nfe
        parts.append(solution.receipt)
    recipe = {**parts[-1].recipe, "strength": list(rounds), "method": "sdedit"}
    receipt = replace(parts[-1], recipe=recipe, seeds=drawn, nfe=nfe)
    return Edited(state.unflatten(0, (len(x), samples)), nfe, receipt)


def _count(grid: Grid | str | Sequence[float] | None, steps: int | None) -> int | None:
    return STEPS if steps is None and (grid is None or isinstance(grid, str)) else steps


def _part(model: Field, grid: Grid, strength: float) -> Grid:
    """Return the last part of a grid."""
    if not 0 < strength <= 1:
        raise UsageError(f"strength is the share of the steps to undo, in (0, 1], not {strength}.")
    times = grid.times(model.path)
    if times[0] < times[-1]:
        raise UsageError("give the grid of generation, from noise to data: its times must fall.")
    kept = int(grid.n * strength + 1e-9)
    if kept < 1:
        raise UsageError(
            f"strength {strength} of {grid.n} steps is less than one step from noise: take more "
            "steps, or a greater strength."
        )
    if kept == grid.n:
        return grid
    end = -1 if grid.last == "denoise" else None
    return Times(times[-kept - 1 : end], last=grid.last)


def _noised(model: Field, x: Tensor, t: float, seeds: Sequence[int]) -> Tensor:
    """Return α_t x + σ_t ε."""
    assert model.path is not None
    eps = start(model.path, t, seeds, x.shape[1:], x.dtype, x.device)
    return bshape(model.path.alpha(as_time(t)), x) * x + eps

"""The skeleton of edits by latents: encode, act at chosen depths, decode.

A picture is carried up the probability flow to a depth; at chosen grid points of the way down
somebody acts on the state, and the rest of the flow makes a picture of it. What the action is, is
open: Langevin steps (`edit.code`), likelihood ascent, a classifier's gradient, a drawn stroke.

    def brighter(latent):                        # a latent is a state, its time, and its score
        return latent.x + 0.1 * latent.alpha

    edit.latent_edit(model, x, brighter, depth=80, at=(79, 40))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.edit.edited import Edited, check_picture, repeated, repeated_condition, seeds_of
from pathline.edit.inverter import Inverter, Noise, Watch, Way
from pathline.edit.ways import (
    check_function,
    fingerprint,
    method_of,
    receipt_of,
    rising,
    way_of,
    working_dtype,
)
from pathline.fields import Field
from pathline.paths import GaussianPath, bshape
from pathline.solvers import Grid, Solver
from pathline.solvers.solve import Guide

__all__ = ["Acted", "Act", "EditLog", "Latent", "latent_edit"]

STEPS = 200


@dataclass(frozen=True)
class Latent:
    """A state on the way, as an action sees it.

    Args:
        x: (batch, *state).
        index: its grid point; 0 is data.
        way: the field, its condition and the times.
        seeds: one a sample, for actions that draw.
        noise: what evaluates the field there, and counts.
    """

    x: Tensor
    index: int
    way: Way
    seeds: tuple[int, ...]
    noise: Noise

    @property
    def t(self) -> float:
        """The time."""
        return self.way.times[self.index]

    @property
    def path(self) -> GaussianPath:
        """The model's path."""
        return self.way.path

    @property
    def alpha(self) -> float:
        """The scale of the data there."""
        return self.way.levels.alpha[self.index]

    @property
    def sigma(self) -> float:
        """The scale of the noise there."""
        return self.way.levels.sigma[self.index]

    def eps(self, x: Tensor | None = None) -> Tensor:
        """Return the predicted noise of a state at this level: of `self.x` if None."""
        return self.noise(self.index, self.x if x is None else x)

    def score(self, x: Tensor | None = None) -> Tensor:
        """Return ∇ log p_t = −ε̂/σ of a state at this level."""
        return self.eps(x) / -bshape(torch.tensor(self.sigma, dtype=torch.float64), self.x)


class Acted(NamedTuple):
    """What an action made of a state, and what it has to say of it."""

    x: Tensor
    note: Any = None


Act = Callable[[Latent], Tensor | Acted]


class EditLog(NamedTuple):
    """What actions said: of each grid point where one had something to say.

    Args:
        rise: on the way up, grid point → note.
        acts: on the way down.
    """

    rise: Mapping[int, Any]
    acts: Mapping[int, Any]


def latent_edit(  # noqa: PLR0913 - keyword-only: each is one idea of the house
    model: Field,
    x: Tensor,
    act: Act,
    *,
    depth: int,
    at: Sequence[int] | None = None,
    rise: Act | None = None,
    solver: Inverter | Solver | str = "ddim",
    grid: Grid | str | Sequence[float] | None = None,
    steps: int | None = None,
    guide: Guide | None = None,
    target: Mapping[str, Any] | None = None,
    samples: int = 1,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    check: bool = False,
    keep: bool = False,
    **cond: Any,
) -> Edited:
    """Encode data, act on their latents, and decode.

    Args:
        model: a denoiser.
        x: data, (batch, *state).
        act: what is done at the depths of `at`: a latent → its state, changed (or `Acted`).
        depth: L, the grid point up to which data are encoded, from 1 to N.
        at: at which grid points of the way down there is an action, 0 to L; (L,) if None.
        rise: what is done at every grid point of the way up but the data themselves.
        solver: of both ways, deterministic: a solver, or an inverter as for `encode`.
        grid, steps: of generation; 200 steps even in t.
        guide: of the field, both ways.
        target: the condition of the way down; that of the way up if None.
        samples, seed, seeds: answers to each picture, for actions that draw.
        check: whether the round trip without any action is made, and its error measured.
        keep: whether the result holds every latent of the way up.
        cond: the condition of the data, in the user's words.

    Raises:
        UsageError: a depth that is not on the grid, or an action below it; what `encode` refuses.

    Cost: L evaluations up and L down for one-step methods, and those of the actions.

    Example: nothing is done, and what comes back is off by the error of both ways.
        >>> from pathline.fields import Gaussian
        >>> from pathline.paths import VPLinear
        >>> law = Gaussian(VPLinear(), torch.tensor([3.0]), torch.tensor([0.25]))
        >>> x = torch.tensor([[2.5], [3.5]], dtype=torch.float64)
        >>> same = latent_edit(law, x, lambda latent: latent.x, depth=50)
        >>> same.x.shape, bool((same.x[:, 0] - x).abs().max() < 0.05)
        (torch.Size([2, 1, 1]), True)
    """
    check_picture(model, x)
    method = method_of(solver)
    whole = rising(model, "uniform" if grid is None else grid, _count(grid, steps), 1.0)
    up = way_of(model, guide, whole[: _checked(depth, len(whole) - 1) + 1], cond)
    chosen = _depths(at, depth)
    drawn = seeds_of(len(x), samples, seed, seeds)
    check_function(up.field)
    method.check(up)
    state = x.to(working_dtype(x, up.field, method.growth(up)))
    going = _Rising(up, state, rise, drawn[::samples], keep)
    found = method.invert(up, state, going.watch if rise is not None or keep else None)
    off = (method.regenerate(up, found.states).x - state).flatten(1) if check else None
    told = repeated_condition(cond if target is None else target, len(x), samples)
    down = Way(up.field, up.times, told)
    falling = _Falling(down, repeated(state, samples), act, chosen, drawn)
    states = falling.begun(method, tuple(repeated(z, samples) for z in found.states))
    made = method.regenerate(down, states, falling.watch)
    nfe = found.nfe + going.noise.n + made.nfe + falling.noise.n
    recipe = {**fingerprint(down, method, state.dtype), "depth": depth, "at": list(chosen)}
    receipt = receipt_of(down, recipe, told, made.x, nfe)
    return Edited(
        made.x.to(x.dtype).unflatten(0, (len(x), samples)),
        nfe,
        _seeded(receipt, drawn),
        EditLog(going.notes, falling.notes),
        found.states,
        tuple(going.latents),
        None if off is None else off.detach().abs().amax(1),
        None if off is None else off.detach().square().mean(1).sqrt(),
    )


def _seeded(receipt: Any, seeds: tuple[int, ...]) -> Any:
    from dataclasses import replace

    return replace(receipt, seeds=seeds)


def _count(grid: Grid | str | Sequence[float] | None, steps: int | None) -> int | None:
    """Return the steps of a grid that is named; one that is given has its own."""
    return STEPS if steps is None and (grid is None or isinstance(grid, str)) else steps


def _checked(depth: int, n: int) -> int:
    if isinstance(depth, bool) or not isinstance(depth, int) or not 1 <= depth <= n:
        raise UsageError(
            f"L = {depth}: the depth is a grid point from 1 (almost data) to {n} (noise)."
        )
    return depth


def _depths(at: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """Return where there is an action, deepest first."""
    chosen = (depth,) if at is None else tuple(sorted(set(at), reverse=True))
    for index in chosen:
        if not 0 <= index <= depth:
            raise UsageError(
                f"an action at grid point {index} is not on the way: data are encoded up to "
                f"L = {depth}. Choose 0 to {depth}, or a greater depth."
            )
    return chosen


class _Rising:
    """The way up: what is done at each grid point, and what was seen there."""

    def __init__(
        self, way: Way, x: Tensor, act: Act | None, seeds: tuple[int, ...], keep: bool
    ) -> None:
        self._way, self._act, self._seeds, self._keep = way, act, seeds, keep
        self.noise, self.notes = way.noise(x), dict[int, Any]()
        self.latents = [x] if keep else []

    def watch(self, index: int, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Act at a grid point."""
        (x,) = states
        if self._act is not None:
            x = _acted(self._act, Latent(x, index, self._way, self._seeds, self.noise), self.notes)
        if self._keep:
            self.latents.append(x)
        return (x,)


class _Falling:
    """The way down: an action at each of the chosen grid points."""

    def __init__(
        self, way: Way, x: Tensor, act: Act, at: tuple[int, ...], seeds: tuple[int, ...]
    ) -> None:
        self._way, self._act, self._at, self._seeds = way, act, frozenset(at), seeds
        self.noise, self.notes = way.noise(x), dict[int, Any]()

    def begun(self, method: Inverter, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the states of a code after the actions at their grid points."""
        places = method.places(self._way)
        return tuple(self._at_point(i, z) for i, z in zip(places, states, strict=True))

    @property
    def watch(self) -> Watch | None:
        """What acts at the grid points behind the code; None if nothing does."""
        if not self._at:
            return None
        return lambda index, states: tuple(self._at_point(index, z) for z in states)

    def _at_point(self, index: int, x: Tensor) -> Tensor:
        if index not in self._at:
            return x
        return _acted(self._act, Latent(x, index, self._way, self._seeds, self.noise), self.notes)


def _acted(act: Act, latent: Latent, notes: dict[int, Any]) -> Tensor:
    made = act(latent)
    x, note = made if isinstance(made, Acted) else (made, None)
    if not isinstance(x, Tensor) or x.shape != latent.x.shape:
        what = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise UsageError(
            f"an action returns a state like the one it is given, {tuple(latent.x.shape)}, and "
            f"this one returned {what}."
        )
    if note is not None:
        notes[latent.index] = note
    return x

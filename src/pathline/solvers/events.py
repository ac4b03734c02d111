"""Events: what happens to a sample when a function of its state changes sign, and when it does.

Inside the step in which g(x, t) changes sign, its root is found on the step's interpolant. There
the sample stops, or goes on from another state. By the implicit function theorem

    dt* = −∂g/ġ,    ġ = ∂g/∂t + ∂g/∂x · f

so the time of an event has a gradient, and so has what comes after it: a sample that goes on from
x⁺ at t* goes on from x⁺ − f(x⁺) dt*, and the state at the event is x + f(x) dt*.

Source: Chen, Amos & Nickel 2021 (arXiv:2011.03902); Hairer, Nørsett & Wanner, Sec. II.6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from pathline.core.errors import UsageError, unknown
from pathline.solvers.pace import Numbers
from pathline.solvers.slope import Slope
from pathline.solvers.trial import Rows
from pathline.solvers.watching import Taken

Direction = Literal["both", "up", "down"]
Reset = Callable[[Tensor, Tensor], Tensor]

BEHIND = 1e-3
"""Which part of a step is just behind its start."""

HALVINGS = 60
"""Bisections of a step at most: float64 has no more digits."""


@dataclass(frozen=True)
class Event:
    """A sign change of g(x, t), and what it does.

    Args:
        value: g(x (n, *state), t (n, 1, …)) → (n,), as the field takes them; a boolean g happens
            at the end of the first step at which it is true.
        direction: which changes count: "up" is from negative to positive.
        reset: what the state becomes, reset(x, t) → x, of the samples that it happens to, and the
            solve goes on; None lets the sample stop there.
        name: what results and messages call it.
    """

    value: Callable[[Tensor, Tensor], Tensor]
    direction: Direction = "both"
    reset: Reset | None = None
    name: str = "event"

    def __post_init__(self) -> None:
        if self.direction not in get_args(Direction):
            raise unknown("direction", str(self.direction), get_args(Direction))
        if not callable(self.value):
            raise UsageError(f"an event needs a function g(x, t), not {self.value!r}.")

    def of(self, x: Tensor, t: Tensor, f: Tensor | None) -> Tensor:
        """Return g, (n,): a number, or whether it happens."""
        del f
        g = self.value(x, t)
        if g.numel() != len(x):
            raise UsageError(
                f"{self.name} returned shape {tuple(g.shape)} for {len(x)} samples: it takes one "
                "number for each."
            )
        return g.reshape(len(x))


@dataclass(frozen=True)
class SteadyState(Event):
    """Stop where nothing changes any more: |f| < atol + rtol |x|, root mean squares of a sample.

    Args:
        rtol, atol: how little counts as nothing.
    """

    value: Callable[[Tensor, Tensor], Tensor] = lambda x, t: x
    name: str = "steady state"
    rtol: float = 1e-6
    atol: float = 1e-6

    def of(self, x: Tensor, t: Tensor, f: Tensor | None) -> Tensor:
        del t
        assert f is not None
        slope, size = (v.detach().flatten(1).square().mean(1).sqrt() for v in (f, x))
        return slope < self.atol + self.rtol * size


@dataclass(frozen=True)
class Happened:
    """An event of some samples.

    Args:
        event: its number among the events that were given.
        name: its name.
        samples: to whom, (m,) int64.
        t: when, (m,) float64, with a gradient where the solve has one.
        x: the states there, before a reset, (m, *state).
    """

    event: int
    name: str
    samples: Tensor
    t: Tensor
    x: Tensor


class Met(NamedTuple):
    """Who met an event in a step: numbers within its rows, which event, at which clock."""

    which: Rows
    event: Rows
    clocks: Numbers


class Alarm:
    """The events of one solve, and the signs of their functions where each sample's step begins.

    Args:
        events: what to watch for.
        batch: how many samples there are.
        slope: the field.
    """

    def __init__(self, events: Sequence[Event], batch: int, slope: Slope) -> None:
        self.events, self._slope = tuple(events), slope
        self._signs = np.zeros((len(self.events), batch))
        self._is_state = np.zeros((len(self.events), 1), dtype=bool)
        self.happened: list[Happened] = []

    def begin(self, rows: Rows, clocks: Numbers, x: Tensor, f: Tensor) -> None:
        """See where the samples begin: a function that is 0 there has not changed its sign."""
        self._signs[:, rows] = self._signs_at(x, clocks, f)

    def values(self, event: Event, x: Tensor, clocks: Numbers, f: Tensor | None = None) -> Tensor:
        """Return g of every sample, (n,)."""
        return event.of(x, self.time(x, clocks), f)

    def time(self, x: Tensor, clocks: Numbers) -> Tensor:
        """Return times as the field takes them, (n, 1, …)."""
        (t,) = self._slope.times(clocks[None], x)
        return t.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))

    @torch.no_grad()
    def _signs_at(self, x: Tensor, clocks: Numbers, f: Tensor | None) -> Numbers:
        made = [self.values(event, x, clocks, f) for event in self.events]
        self._is_state = np.array([[g.dtype == torch.bool] for g in made])
        signs = [g.double() if g.dtype == torch.bool else g.double().sign() for g in made]
        return torch.stack(signs).cpu().numpy()

    def look(self, step: Taken) -> Met | None:
        """Return who met an event in this step; None if nobody did."""
        before = self._departed(step)
        after = self._signs_at(step.trial.x, step.reach.end, step.trial.last)
        ups, downs = ([[e.direction != no] for e in self.events] for no in ("down", "up"))
        crossed = (before < 0) & (after >= 0) & np.array(ups)
        crossed |= (before > 0) & (after <= 0) & np.array(downs)
        hit = np.where(self._is_state, (after > 0) & (before <= 0), crossed) & step.taken
        self._signs[:, step.rows] = np.where(step.taken, after, before)
        if not hit.any():
            return None
        clocks = np.where(hit, step.reach.end, np.inf)
        for k, event in enumerate(self.events):
            which = np.flatnonzero(hit[k])
            if len(which) and not self._is_state[k, 0]:
                clocks[k, which] = self._root(event, step, which, before[k, which])
        which = np.flatnonzero(hit.any(0))
        first = clocks[:, which].argmin(0)
        self._signs[first, step.rows[which]] = 0.0
        return Met(which, first, clocks[first, which])

    @torch.no_grad()
    def _departed(self, step: Taken) -> Numbers:
        """Return the signs at the start; of what is 0 there, the sign that it takes just behind."""
        signs = self._signs[:, step.rows].copy()
        unsure = (signs == 0) & ~self._is_state & step.taken
        which = np.flatnonzero(unsure.any(0))
        if not len(which):
            return signs
        clocks = step.reach.start.copy()
        clocks[which] += BEHIND * step.reach.size[which]
        at = torch.from_numpy(which).to(step.x.device)
        x = step.x.index_put((at,), step.inside(which, clocks[which]))
        return np.where(unsure, self._signs_at(x, clocks, step.trial.last), signs)

    @torch.no_grad()
    def _root(self, event: Event, step: Taken, which: Rows, before: Numbers) -> Numbers:
        """Return the clock at which g has just changed sign, by bisection on the interpolant."""
        low, high = step.reach.start[which], step.reach.end[which]
        at, clocks = torch.from_numpy(which).to(step.x.device), step.reach.start.copy()
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            if ((middle <= low) | (middle >= high)).all():
                break
            clocks[which] = middle
            x = step.x.index_put((at,), step.inside(which, middle))
            signs = self.values(event, x, clocks)[at].double().sign().cpu().numpy()
            low, high = (
                np.where(signs == before, middle, low),
                np.where(signs == before, high, middle),
            )
        return high

    def timed(self, event: Event, x: Tensor, clocks: Numbers, f: Tensor) -> Tensor:
        """Return t* − t*, (n,): the number 0, with the gradient of the event's time."""
        t = self.time(x, clocks)
        g = event.of(x, t, f)
        if g.dtype == torch.bool or not torch.is_grad_enabled() or not g.requires_grad:
            return torch.zeros(len(x), dtype=x.dtype, device=x.device)
        with torch.enable_grad():
            point = x.detach().requires_grad_(), t.detach().requires_grad_()
            bent = torch.autograd.grad(event.of(*point, f).sum(), point, materialize_grads=True)
        speed = (bent[0] * f.detach()).flatten(1).sum(1) + bent[1].flatten(1).sum(1)
        flat = speed == 0
        return torch.where(flat, 0.0, -(g - g.detach()) / torch.where(flat, 1.0, speed).detach())

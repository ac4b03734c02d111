"""The whole way of an inversion: a state at every level, not only the code at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from pathline.core.errors import UsageError
from pathline.edit.inverter import Inverter, Way
from pathline.solvers import DDIM, grids, solve

__all__ = ["Trajectory", "trajectory"]


@dataclass(frozen=True)
class Trajectory:
    """Where data were on their way to noise.

    Args:
        states: (batch, *state) each, one a time, data first.
        times: rising.
        nfe: evaluations of the field that it took.
    """

    states: tuple[Tensor, ...]
    times: tuple[float, ...]
    nfe: int

    def __post_init__(self) -> None:
        if len(self.states) != len(self.times):
            raise UsageError(
                f"the trajectory has {len(self.states)} states and {len(self.times)} times: a "
                "level is missing. Keep the state of every level, data and noise among them."
            )

    def at(self, t: float) -> Tensor:
        """Return the state at one of its times.

        Raises:
            UsageError: it is none of them.
        """
        if t not in self.times:
            raise UsageError(
                f"the trajectory has no state at t = {t:.6g}: its {len(self.times)} times go from "
                f"{self.times[0]:.6g} to {self.times[-1]:.6g}; invert on the grid of the edit."
            )
        return self.states[self.times.index(t)]


def trajectory(method: Inverter, way: Way, x: Tensor) -> Trajectory:
    """Return the states of data at every time of a way.

    Args:
        method: one whose code is a single state: FixedPoint, ddim_inversion(), dci().
        way: the field, the times and the condition.
        x: data, (batch, *state).

    Raises:
        UsageError: a method of several states.
    """
    if method.n_states != 1:
        raise UsageError(
            f"codes of {type(method).__name__} are {method.n_states} states, and a trajectory has "
            "one at each level: take FixedPoint, or ddim_inversion()."
        )
    states, nfe = [x], 0
    for step in zip(way.times, way.times[1:], strict=False):
        found = method.invert(replace(way, times=step), states[-1])
        states.append(found.states[0])
        nfe += found.nfe
    return Trajectory(tuple(states), way.times, nfe)


def regenerated(way: Way, states: Sequence[Tensor]) -> Tensor:
    """Return the data that DDIM's steps lead to from the noisiest of the states."""
    grid = grids.times(way.times[::-1])
    return solve(way.field, states[-1], solver=DDIM(), grid=grid, **way.cond).x

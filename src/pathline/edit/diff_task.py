"""A task of DiffEditor: what becomes of an object, and what that means on grids of pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from torch import Tensor

from pathline.nets.kv_bank import Reuse
from pathline.steer.energy import Energy

__all__ = ["Laid", "Size", "Task", "Tuning"]

Size = tuple[int, int]
"""(height, width)."""


class Tuning(NamedTuple):
    """What the public code takes for a task.

    Args:
        strength: η; a gradient is multiplied by η κ.
        kappa: κ.
        guidance: w.
        eta_sde: η of the noise inside the region.
        last_banked: the last of 50 steps in which the bank is used.
    """

    strength: float
    kappa: float
    guidance: float = 4.0
    eta_sde: float = 0.4
    last_banked: int = 49


@dataclass(frozen=True, eq=False)
class Laid:
    """A task on the grids of a state and of its features.

    Args:
        inside: the energy whose gradient acts in the region.
        outside: the one that acts everywhere else.
        region: m, (height, width) bool on the state's grid.
        regions: all of its masks on that grid, by name.
        reuse: what is done with the bank.
        begin: the noisiest states of the pictures, (1, *state) each → the one to start from.
        views: which references the energies compare with: maps of each picture → maps.
    """

    inside: Energy
    outside: Energy
    region: Tensor
    regions: Mapping[str, Tensor]
    reuse: Reuse
    begin: Callable[[Sequence[Tensor]], Tensor]
    views: tuple[Callable[[Sequence[Sequence[Tensor]]], Sequence[Tensor]], ...]


class Task(ABC):
    """What becomes of an object; a frozen value."""

    @property
    def needs_reference(self) -> bool:
        """Whether there is a second picture."""
        return False

    @property
    @abstractmethod
    def tuning(self) -> Tuning:
        """What the public code takes."""

    @abstractmethod
    def laid(self, state: Size, features: Size) -> Laid:
        """Lay the task on grids of (height, width).

        Raises:
            UsageError: what is meant is not inside the picture.
        """

    def describe(self) -> dict[str, Any]:
        """Return what a receipt says of it: the numbers, and how large the masks are."""
        told = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {"name": type(self).__name__.lower(), **{k: _told(v) for k, v in told.items()}}


def _told(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"pixels": int(value.sum()), "of": list(value.shape)}
    if isinstance(value, tuple):
        return [_told(each) for each in value]
    return value

"""What each step of DiffEditor does: windows that the paper gives for 50 steps, scaled to any.

Steps are counted q = 0, 1, … from the noisiest, and p = 50 q/N is where that is among 50:

    guided        p < 30, and q even or p < 10
    travelled     20 < p < 30, q even, and guided
    stochastic    10 < p < 20
    image prompt  10 ≤ p < 20
    bank          5 ≤ p, up to 35 for tasks with two pictures
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from pathline.core.errors import UsageError

__all__ = ["Planned", "schedule"]

FEWEST = 20


@dataclass(frozen=True)
class Planned:
    """What one step does.

    Args:
        q: its number, 0 is the noisiest.
        guided: whether the energies pull.
        repeats: how often it is taken.
        eta: of the noise inside the region.
        prompted: whether the image prompt is heard.
        banked: whether keys and values of the reference are used.
    """

    q: int
    guided: bool
    repeats: int
    eta: float
    prompted: bool
    banked: bool


def schedule(
    n: int, *, guides: bool, travel: int, eta: float, last_banked: float = 49
) -> tuple[Planned, ...]:
    """Return what each of n steps does.

    Args:
        n: steps; below 20 the windows have too few, and that is warned of.
        guides: whether the energies pull at all; without them nothing is repeated.
        travel: how often a step of its window is taken.
        eta: of the noise inside the region, in its window.
        last_banked: the last of 50 steps in which the bank is used.

    Raises:
        UsageError: no steps, or repeats below 1.

    Example:
        >>> made = schedule(50, guides=True, travel=3, eta=0.4)
        >>> sum(each.guided for each in made), sum(each.repeats - 1 for each in made)
        (20, 8)
    """
    if n < 1 or travel < 1:
        raise UsageError(f"N = {n} steps and {travel} visits: 1 or more of either.")
    if n < FEWEST:
        warnings.warn(
            f"the windows of DiffEditor were made for 50 steps, and N = {n} leaves some of them "
            f"empty: take {FEWEST} steps at least.",
            stacklevel=3,
        )
    return tuple(_planned(q, 50 * q / n, guides, travel, eta, last_banked) for q in range(n))


def _planned(
    q: int, p: float, guides: bool, travel: int, eta: float, last_banked: float
) -> Planned:
    guided = guides and p < 30 and (q % 2 == 0 or p < 10)
    travels = guided and 20 < p < 30 and q % 2 == 0
    return Planned(
        q,
        guided,
        travel if travels else 1,
        eta if 10 < p < 20 else 0.0,
        10 <= p < 20,
        5 <= p <= last_banked,
    )

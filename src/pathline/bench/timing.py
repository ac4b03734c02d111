"""Timing beside a busy neighbour: processor time, in rounds in which everybody runs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterable, Mapping
from statistics import median
from time import thread_time
from typing import NamedTuple, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Run(NamedTuple):
    """What is timed, and what has to be done before each time without being timed."""

    call: Callable[[], object]
    before: Callable[[], object] | None = None


def interleaved(
    runs: Mapping[Key, Run], rounds: Iterable[int], repeats: int = 5
) -> dict[Key, float]:
    """Return how long each run takes, in seconds: the median over the rounds of its best time.

    Time is the thread's own, so a neighbour who takes the processor away costs nothing. In a round
    everybody runs `repeats` times, so what slows the machine for a while (caches, clock) slows all
    of them; the best of a round leaves hiccups out, and the median the rounds that were lucky.

    Args:
        runs: what to time.
        rounds: an iterable that is gone through once; its items are not looked at.
        repeats: runs of each in a round.
    """
    best: dict[Key, list[float]] = {key: [] for key in runs}
    for run in runs.values():
        _timed(run)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in rounds:
            for key, run in runs.items():
                best[key].append(min(_timed(run) for _ in range(repeats)))
    finally:
        if collecting:
            gc.enable()
    return {key: median(times) for key, times in best.items()}


def _timed(run: Run) -> float:
    if run.before is not None:
        run.before()
    start = thread_time()
    run.call()
    return thread_time() - start

"""Where descents begin, which of them go on, and what is made of their end.

A descent ends in the valley that it begins in, so several begin: the best fixed schedules, and the
same with their first x̂_0 taken for known. Under noise alone a network sees nothing but the mean
of what it may draw; the evaluation that this saves is better spent farther down, where the first
real one, at little less noise, tells the same. After two rounds the better half goes on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from pathline.solvers.schedule import SolverSchedule
from pathline.solvers.solver import Writer
from pathline.solvers.unified import Constant, StepChoice
from pathline.speed.descent import Descent, Freedom, Numbers, descend
from pathline.speed.metrics import Endpoint

__all__ = ["affordable", "beginnings", "downhill", "freedoms", "guessed", "polished"]

ENOUGH = 3
"""Rounds that a descent of all weights must afford; with less, one slope a step moves."""

MANY = 9
"""Rounds that pay for the polish;"""

MOST = 20
"""and for four beginnings instead of two."""

STAGE = 2
"""Rounds after which the worse half of the descents ends."""

POLISH = 2
"""Rounds of least squares proper, where it is asked whether they help on other noise."""


def freedoms(nfe: int) -> int:
    """Return how many numbers a schedule of so many evaluations has: inner times, and weights."""
    return nfe - 1 + nfe * (nfe + 3) // 2


def affordable(schedule: SolverSchedule, tries: int) -> Freedom:
    """Return what may move so that the tries are enough for a descent."""
    return "weights" if tries >= ENOUGH * Numbers.of(schedule, "weights").n else "slopes"


def guessed(schedule: SolverSchedule, guess: Constant) -> SolverSchedule:
    """Return a schedule of as many evaluations whose first x̂_0 is known, with one more step.

    Its times go through those of the schedule, by λ as a function of the step.

    Args:
        schedule: with its first x̂_0 evaluated.
        guess: what it is taken to be, the mean of the data.
    """
    levels = Writer(schedule.path, schedule.times, denoises=False).levels
    snr = torch.tensor([level.log_snr for level in levels], dtype=torch.float64)
    n = len(snr) - 1
    at = torch.arange(1, n + 1, dtype=torch.float64) * (n / (n + 1))
    i = at.long().clamp(max=n - 1)
    inner = torch.lerp(snr[i], snr[i + 1], at - i)
    times = (
        schedule.times[0],
        *schedule.path.time_of_log_snr(inner).tolist(),
        schedule.times[-1],
    )
    return SolverSchedule(
        schedule.path, times, (StepChoice(order=1), *schedule.choices), guess, schedule.last
    )


def beginnings(
    known: Sequence[SolverSchedule], guess: Constant, tries: int
) -> tuple[list[SolverSchedule], Freedom]:
    """Return where descents begin, and what moves in them, so that their tries are enough.

    Args:
        known: the best fixed schedules, the best first.
        guess: the mean of the data.
        tries: schedules that may be run.
    """
    if affordable(known[0], tries) == "slopes":
        return list(known[:2]), "slopes"
    if tries < MOST * freedoms(known[0].nfe):
        return [known[0], _guessed_if_it_was_not(known[0], guess)], "weights"
    both = [each for k in known[:2] for each in (k, _guessed_if_it_was_not(k, guess))]
    return list(dict.fromkeys(both)), "weights"


def _guessed_if_it_was_not(schedule: SolverSchedule, guess: Constant) -> SolverSchedule:
    return schedule if schedule.guess is not None else guessed(schedule, guess)


def downhill(
    bench: Endpoint,
    begin: Sequence[SolverSchedule],
    tries: int,
    freedom: Freedom,
    files: Sequence[Path | None],
    what: str,
) -> Descent:
    """Return where the best of several descents ends.

    Args:
        bench: what measures.
        begin: where they begin; all take two rounds, the better half two more, and so on.
        tries: schedules that may be run, in all descents together.
        freedom: what moves.
        files: what an interrupted one goes on from, one a beginning; None keeps nothing.
        what: is going on, for the progress bar.

    A descent only goes down, so one that was interrupted later is chosen again when it goes on.
    """
    left = {i: Descent(each) for i, each in enumerate(begin)}
    spent, rounds = dict[int, int](), 0
    while len(left) > 1:
        rounds += STAGE
        for i in left:
            while (at := left[i]).rounds < rounds and not at.is_done:
                left[i] = descend(bench, at, at.tries + 1, freedom, file=files[i], what=what)
            spent[i] = left[i].tries
        order = sorted(left, key=lambda i: left[i].score)
        left = {i: left[i] for i in order[: math.ceil(len(order) / 2)]}
    ((best, at),) = left.items()
    others = sum(n for i, n in spent.items() if i != best)
    return descend(bench, at, tries - others, freedom, file=files[best], what=what)


def polished(
    bench: Endpoint,
    at: Descent,
    file: Path | None,
    what: str,
    freedom: Freedom = "weights",
    tries: int = 0,
) -> SolverSchedule:
    """Return a schedule after some rounds of least squares proper, which outliers weigh more in.

    Args:
        bench: what measures.
        at: where a descent of the mean error has ended.
        file: what an interrupted one goes on from; None keeps nothing.
        what: is going on, for the progress bar.
        freedom: what moves.
        tries: schedules that may be run; a few rounds are made in any case.

    On few noises squares learn the outliers by heart; so what comes of it must be measured on
    others before it is taken.
    """
    tries = max(tries, POLISH * Numbers.of(at.schedule, freedom).n)
    return descend(
        bench, Descent(at.schedule, power=2.0), tries, freedom, file=file, what=what
    ).schedule

"""Mutations of solver schedules, each under a name, with the values of the released search.

A mutation changes a `Draft`, which need not be valid while it changes: `ScheduleSpace` repairs it.

Paper: Liu et al. 2023 (arXiv:2312.07243), and its released code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, get_args

import numpy as np

from pathline.core.registry import Registry
from pathline.solvers.schedule import SolverSchedule
from pathline.solvers.unified import Constant, Corrector, StepChoice

Draw = np.random.Generator
T = TypeVar("T")

mutations: Registry[Mutation] = Registry("mutation")
"""Every mutation, by name."""

NEAR = 1e-3
"""How near, as a share of the way, a time may come to an end of it."""


@dataclass
class Draft:
    """A schedule while it is changed: n + 1 times, n choices, and whether its first x̂_0 is known.

    Args:
        times: falling; the first and the last stay.
        choices: one a step.
        guess: as of `SolverSchedule`.
    """

    times: list[float]
    choices: list[StepChoice]
    guess: Constant | None

    @classmethod
    def of(cls, schedule: SolverSchedule) -> Draft:
        """Return a copy that can be changed."""
        return cls(list(schedule.times), list(schedule.choices), schedule.guess)

    def insert(self, draw: Draw) -> None:
        """Add a step: a time somewhere between its neighbours, a choice like one of them."""
        i = int(draw.integers(len(self.choices)))
        share = draw.uniform(0.25, 0.75)
        s, t = self.times[i : i + 2]
        self.times.insert(i + 1, s + share * (t - s) if t <= 0 else s ** (1 - share) * t**share)
        self.choices.insert(i + 1, self.choices[i])

    def delete(self, draw: Draw) -> None:
        """Take a step out, if one is left afterwards."""
        if len(self.choices) > 1:
            i = int(draw.integers(1, len(self.choices)))
            del self.times[i], self.choices[i]


class Mutation(ABC):
    """A change to a draft."""

    @abstractmethod
    def __call__(self, draft: Draft, draw: Draw, guesses: Sequence[Constant]) -> None:
        """Change the draft in place.

        Args:
            draft: what is changed.
            draw: randomness.
            guesses: for the first x̂_0: those that may be taken for known, 0 first.
        """


def pick(draw: Draw, values: Sequence[T], chances: Sequence[float]) -> T:
    """Return one of the values, by their chances."""
    total = sum(chances)
    return values[int(draw.choice(len(values), p=[chance / total for chance in chances]))]


@dataclass(frozen=True)
class PerStep(Mutation):
    """A mutation that may change each step.

    Args:
        rate: how often it does.
    """

    rate: float = 0.3

    def __call__(self, draft: Draft, draw: Draw, guesses: Sequence[Constant]) -> None:
        del guesses
        for i, choice in enumerate(draft.choices):
            if draw.random() < self.rate:
                draft.choices[i] = self.changed(choice, draw)

    @abstractmethod
    def changed(self, choice: StepChoice, draw: Draw) -> StepChoice:
        """Return another choice for one step."""


@mutations.register("length", paper="arXiv:2312.07243, released code")
@dataclass(frozen=True)
class Length(Mutation):
    """Insert a step, or delete one."""

    insert: float = 0.2
    delete: float = 0.2

    def __call__(self, draft: Draft, draw: Draw, guesses: Sequence[Constant]) -> None:
        chance = draw.random()
        if chance < self.insert:
            draft.insert(draw)
        elif chance < self.insert + self.delete:
            draft.delete(draw)


@mutations.register("times", paper="arXiv:2312.07243, released code")
@dataclass(frozen=True)
class MoveTimes(Mutation):
    """Move each inner time by a few per cent of itself; the ends are what is compared, and stay.

    Args:
        rate: how often a time moves.
        least, most: the spread of a move relative to the time, drawn once a child.
    """

    rate: float = 0.3
    least: float = 0.03
    most: float = 0.08

    def __call__(self, draft: Draft, draw: Draw, guesses: Sequence[Constant]) -> None:
        spread = draw.uniform(self.least, self.most)
        first, last = draft.times[0], draft.times[-1]
        margin = NEAR * (first - last)
        for i in range(1, len(draft.times) - 1):
            if draw.random() < self.rate:
                moved = draft.times[i] * (1 + spread * draw.standard_normal())
                if last + margin < moved < first - margin:
                    draft.times[i] = moved


@mutations.register("orders", paper="arXiv:2312.07243, released code")
@dataclass(frozen=True)
class Orders(PerStep):
    """Draw a step's order anew, with as many points for each derivative as it uses."""

    chances: tuple[float, ...] = (0.2, 0.4, 0.3, 0.1)

    def changed(self, choice: StepChoice, draw: Draw) -> StepChoice:
        order = pick(draw, range(1, len(self.chances) + 1), self.chances)
        return replace(choice, order=order, points=())


@mutations.register("predictions", paper="arXiv:2312.07243, released code")
@dataclass(frozen=True)
class Predictions(PerStep):
    """Draw what a step takes for nearly constant anew."""

    def changed(self, choice: StepChoice, draw: Draw) -> StepChoice:
        return replace(choice, prediction=pick(draw, ("eps", "x0"), (0.3, 0.3)))


@mutations.register("slopes", paper="arXiv:2312.07243, released code")
@dataclass(frozen=True)
class Slopes(PerStep):
    """Change how the first derivative is weighed: κ moves a little; a named weight becomes κ."""

    rate: float = 0.09
    spread: float = 0.03

    def changed(self, choice: StepChoice, draw: Draw) -> StepChoice:
        kappa = 0.0 if isinstance(choice.scale, str) else choice.scale
        return replace(choice, scale=float(kappa + self.spread * draw.standard_normal()))


@mutations.register("points", paper="arXiv:2312.07243, released code")
@dataclass(frozen=True)
class Points(PerStep):
    """Draw from how many points, one or two, the first derivative is estimated."""

    def changed(self, choice: StepChoice, draw: Draw) -> StepChoice:
        if choice.order == 1:
            return choice
        return replace(choice, points=(int(draw.integers(1, 3)), *choice.counts[1:]))


@mutations.register("correctors", paper="arXiv:2312.07243, released code")
@dataclass(frozen=True)
class Correctors(PerStep):
    """Draw whether a step is corrected: not, at no cost, or with an evaluation of its own."""

    chances: tuple[float, float, float] = (0.5, 0.5, 0.0)

    def changed(self, choice: StepChoice, draw: Draw) -> StepChoice:
        return replace(choice, corrector=pick(draw, get_args(Corrector), self.chances))


@mutations.register("first", paper="arXiv:2312.07243, released code")
@dataclass(frozen=True)
class First(Mutation):
    """Draw whether the first x̂_0 is evaluated, or taken to be zero or a mean."""

    rate: float = 0.3
    chances: tuple[float, ...] = (0.3, 0.3, 0.4)

    def __call__(self, draft: Draft, draw: Draw, guesses: Sequence[Constant]) -> None:
        if draw.random() < self.rate:
            known = [None, *guesses]
            draft.guess = pick(draw, known, self.chances[: len(known)])

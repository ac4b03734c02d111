"""The space of solver schedules, and the zoo of fixed ones that a search starts from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np

from pathline.paths import GaussianPath
from pathline.solvers.exponential import NEAREST
from pathline.solvers.grids import Grid, Karras, LogSNR, Power, Uniform
from pathline.solvers.schedule import SolverSchedule
from pathline.solvers.unified import Constant, Prediction, StepChoice
from pathline.speed.mutations import Draft, Draw, Mutation, mutations

MOST_REPAIRS = 40


def released() -> tuple[Mutation, ...]:
    """Return every registered mutation, as registered, in order."""
    return tuple(entry.build() for entry in mutations)


@dataclass(frozen=True)
class ScheduleSpace:
    """Schedules of one path with the ends of their times fixed; see `search.Space`.

    Args:
        path: the path.
        guesses: what a first x̂_0 may be taken for: 0, and a mean of the data if it is known.
        mutations: what a child goes through, in this order.
    """

    path: GaussianPath
    guesses: Sequence[Constant] = (0.0,)
    mutations: Sequence[Mutation] = field(default_factory=released)

    def mutated(self, parent: SolverSchedule, draw: Draw, cost: int) -> SolverSchedule:
        """Return a child of `cost` evaluations; the parent itself if none could be made."""
        draft = Draft.of(parent)
        for mutation in self.mutations:
            mutation(draft, draw, self.guesses)
        return self.fitted(draft, draw, cost) or parent

    def crossed(self, one: SolverSchedule, other: SolverSchedule, draw: Draw) -> SolverSchedule:
        """Take times, predictions, orders with their points, and so on, each from either parent.

        Half of the time predictions and orders are also mixed step by step.
        """
        pair = (one, other)
        times, guess = (pair[int(draw.integers(2))] for _ in range(2))
        n = len(times.choices)
        sources = {name: np.full(n, draw.integers(2)) for name in _TRAITS}
        if draw.random() < 0.5:
            mixed = draw.integers(2, size=n)
            sources |= {"prediction": mixed, "orders": mixed}
        choices = [_mixed(pair, i, {k: int(v[i]) for k, v in sources.items()}) for i in range(n)]
        return self.repaired(Draft(list(times.times), choices, guess.guess)) or one

    def fitted(self, draft: Draft, draw: Draw, cost: int) -> SolverSchedule | None:
        """Insert or delete steps until the draft, repaired, costs this much; None if it never does.

        Cost: one compilation a step.
        """
        for _ in range(MOST_REPAIRS):
            made = self.repaired(draft)
            if made is None:
                return None
            if made.nfe == cost:
                return made
            draft = Draft.of(made)
            if made.nfe < cost:
                draft.insert(draw)
            else:
                draft.delete(draw)
        return None

    def repaired(self, draft: Draft) -> SolverSchedule | None:
        """Return the schedule that a draft means.

        Times are sorted, and those too near to another dropped; choices are clipped to the points
        there are, the last one loses its corrector, and a step from pure noise predicts x̂_0.
        """
        order = sorted(range(len(draft.times)), key=lambda i: -draft.times[i])
        times, choices = [draft.times[order[0]]], list[StepChoice]()
        level = self._level(times[0])
        for i in order[1:]:
            new = self._level(draft.times[i])
            if abs(new - level) > 2 * NEAREST:
                times.append(draft.times[i])
                choices.append(draft.choices[min(i, len(draft.choices)) - 1])
                level = new
        if not choices:
            return None
        starts_blind = float(self.path.alpha(times[0])) == 0
        clipped = [choice.clipped(i) for i, choice in enumerate(choices, 1)]
        clipped[-1] = clipped[-1].uncorrected()
        fixed = [
            replace(c, prediction="x0") if starts_blind and i + c.start == 0 else c
            for i, c in enumerate(clipped, 1)
        ]
        return SolverSchedule(self.path, tuple(times), tuple(fixed), draft.guess)

    def _level(self, t: float) -> float:
        return max(float(self.path.log_snr(t)), self.path.log_snr_range()[0])

    def cost(self, candidate: SolverSchedule) -> int:
        return candidate.nfe

    def dump(self, candidate: SolverSchedule) -> Any:
        return candidate.to_dict() | {"about": {}}

    def load(self, content: Any) -> SolverSchedule:
        return SolverSchedule.from_dict(content)


_TRAITS: Mapping[str, Sequence[str]] = {
    "prediction": ("prediction",),
    "orders": ("order", "points", "start", "nudges", "corrector_nudges", "gains"),
    "scale": ("scale",),
    "corrector": ("corrector",),
}
"""What is inherited together."""


def _mixed(
    pair: tuple[SolverSchedule, SolverSchedule], i: int, sources: Mapping[str, int]
) -> StepChoice:
    """Return the choice of step i with each trait from one parent."""
    traits: dict[str, Any] = {}
    for name, source in sources.items():
        choices = pair[source].choices
        choice = choices[min(i, len(choices) - 1)]
        traits |= {each: getattr(choice, each) for each in _TRAITS[name]}
    return StepChoice(**traits)


GRIDS: Mapping[str, Callable[[int], Grid]] = {
    "log_snr": LogSNR,
    "uniform": Uniform,
    "quadratic": Power,
    "karras": Karras,
}
STEPS: Mapping[str, StepChoice] = {
    "1": StepChoice(order=1),
    "2 taylor": StepChoice(order=2),
    "2 midpoint": StepChoice(order=2, scale="bh2"),
    "3": StepChoice(order=3),
}
PREDICTIONS: Sequence[Prediction] = ("x0", "eps")


def zoo(
    path: GaussianPath, n: int, made: Mapping[str, Callable[[int], Grid]] = GRIDS
) -> dict[str, SolverSchedule]:
    """Return the fixed schedules of n steps: grids × predictions × orders × corrector or not.

    Steps do not change along the way, but for the first ones, which lack points (and predict x̂_0
    where there is no signal yet).
    """
    space = ScheduleSpace(path)
    return {
        name: found
        for name, grid, choice in _combinations(made)
        if (found := space.repaired(_draft(path, grid(n), choice))) is not None
    }


def _combinations(
    made: Mapping[str, Callable[[int], Grid]],
) -> Iterator[tuple[str, Callable[[int], Grid], StepChoice]]:
    for (grid, make), view, (order, step), corrector in product(
        made.items(), PREDICTIONS, STEPS.items(), ("none", "pseudo")
    ):
        choice = replace(step, prediction=view, corrector=corrector)
        corrected = ", corrected" if corrector != "none" else ""
        yield f"{view} order {order}{corrected} on {grid}", make, choice


def _draft(path: GaussianPath, grid: Grid, choice: StepChoice) -> Draft:
    times = grid.times(path)
    return Draft(list(times), [choice] * (len(times) - 1), None)


def mutants(
    space: ScheduleSpace, n: int, counts: Sequence[int] = range(3, 13), seed: int = 7
) -> list[SolverSchedule]:
    """Return n different schedules, one to three mutations away from the zoo.

    Args:
        space: what mutates them.
        n: how many.
        counts: the numbers of evaluations that they have, drawn evenly.
        seed: of all draws.
    """
    draw, found = np.random.Generator(np.random.Philox(key=seed)), dict[SolverSchedule, None]()
    while len(found) < n:
        nfe = counts[int(draw.integers(len(counts)))]
        pool = list(zoo(space.path, nfe).values())
        schedule = pool[int(draw.integers(len(pool)))]
        for _ in range(int(draw.integers(1, 4))):
            schedule = space.mutated(schedule, draw, nfe)
        found[schedule] = None
    return list(found)

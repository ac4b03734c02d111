"""Searches on M4, VP-linear: what is found for a number of evaluations, against what is fixed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from pathline.core import noise
from pathline.fields.problems import m4
from pathline.paths import VPLinear
from pathline.solvers import DDIM, SolverSchedule, grids
from pathline.solvers.reference import reference
from pathline.speed import Endpoint, ScheduleSpace, Search, evolve, zoo
from pathline.speed.descent import Descent, descend
from pathline.systems.system import Plot

PATH = VPLinear()


@dataclass(frozen=True)
class Searches:
    """Searches from 64 starts, measured on 256 others.

    Args:
        counts: numbers of evaluations.
        budget: true evaluations, the zoo of 64 included.
    """

    counts: Sequence[int] = (4, 5, 6, 8)
    budget: int = 1500

    kept: dict[tuple[int, int, int], Search[SolverSchedule]] = field(default_factory=dict)

    @cached_property
    def benches(self) -> tuple[Endpoint, Endpoint]:
        """What is searched on, and what is measured on."""
        law = m4(PATH)
        x = noise.normal(range(64 + 256), (3,), dtype=torch.float64)
        end = reference(law, x, tolerance=1e-9)
        return Endpoint(law, x[:64], end[:64]), Endpoint(law, x[64:], end[64:])

    @cached_property
    def space(self) -> ScheduleSpace:
        """The schedules of the path; the mean of the data is known."""
        law = m4(PATH)
        return ScheduleSpace(PATH, (0.0, tuple((law.weights[:, None] * law.means).sum(0).tolist())))

    def search(self, nfe: int, budget: int | None = None, seed: int = 0) -> Search[SolverSchedule]:
        """Search from the zoo, once for each question."""
        budget = self.budget if budget is None else budget
        if (nfe, budget, seed) not in self.kept:
            begun = Search(self.space, list(zoo(PATH, nfe).values()), (nfe,), seed)
            found = evolve(begun, self.benches[0], budget, what=f"{nfe} evaluations")
            self.kept[nfe, budget, seed] = found
        return self.kept[nfe, budget, seed]

    def fixed(self, nfe: int) -> tuple[str, float]:
        """Return the fixed schedule that is best on what is measured on, and its error there."""
        errors = {name: self.benches[1](each) for name, each in zoo(PATH, nfe).items()}
        return min(errors.items(), key=lambda item: item[1])

    def ratio(self, nfe: int, budget: int | None = None, seed: int = 0) -> float:
        """Return the error of the found schedule over that of the best fixed one."""
        best = self.search(nfe, budget, seed).best(nfe)[0].candidate
        return self.benches[1](best) / self.fixed(nfe)[1]

    def overfit(self) -> float:
        """Return the largest error on fresh noise over that on the noise of the search."""
        best = [self.search(n).best(n)[0] for n in self.counts]
        return max(self.benches[1](each.candidate) / each.score for each in best)

    def ablated(self, what: str) -> float:
        """Return how much worse the found schedules are without a part, at the least."""
        test, ratios = self.benches[1], list[float]()
        for nfe in self.counts:
            best = self.search(nfe).best(nfe)[0].candidate
            rest = _uniform(best)
            if what == "times":
                usual = zoo(PATH, len(best.choices))[self.fixed(nfe)[0]]
                rest = replace(best, times=usual.times)
            ratios.append(test(rest) / test(best))
        return min(ratios)

    def descended(self, nfe: int) -> float:
        """Return the same of a descent from the two best fixed ones, for a quarter of the tries."""
        train, test = self.benches
        fixed = sorted(zoo(PATH, nfe).values(), key=train.typical)
        tries = self.budget // 8
        ends = [descend(train, Descent(each), tries) for each in fixed[:2]]
        return test(min(ends, key=lambda end: end.score).schedule) / self.fixed(nfe)[1]

    def plots(self) -> tuple[Plot, ...]:
        """Return error against evaluations: DDIM, the best fixed schedule, and what was found."""
        test, names = self.benches[1], ("DDIM", "best of 64 fixed", "found")
        found = [self.search(n).best(n)[0].candidate for n in self.counts]
        rows = [
            [test(DDIM().plan(PATH, grids.log_snr(n))), self.fixed(n)[1], test(best)]
            for n, best in zip(self.counts, found, strict=True)
        ]
        curves = {
            name: tuple((float(n), row[i]) for n, row in zip(self.counts, rows, strict=True))
            for i, name in enumerate(names)
        }
        return (Plot("S³ on M4, fresh noise", "evaluations", "root mean square error", curves),)


def _uniform(schedule: SolverSchedule) -> SolverSchedule:
    """Return the schedule with its most frequent prediction and order at every step."""
    pairs = Counter((c.prediction, c.order, c.points) for c in schedule.choices)
    prediction, order, points = pairs.most_common(1)[0][0]
    choices = [
        replace(c, prediction=prediction, order=order, points=points).clipped(i)
        for i, c in enumerate(schedule.choices, 1)
    ]
    return replace(schedule, choices=tuple(choices))

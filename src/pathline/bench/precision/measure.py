"""Measuring: everybody on a problem, at each number of evaluations that is asked for."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from pathline.bench.peers import Absent, installed, k_diffusion_sampling
from pathline.bench.precision import ours, peers_azula, peers_diffusers, peers_k_diffusion
from pathline.bench.precision.problems import Converged, Problem, each_rms, rms
from pathline.bench.precision.query import Contestant, Ended, Query, Rehearsal
from pathline.bench.precision.store import Key, Store, code_stamp, version_stamp
from pathline.core.progress import track

SCREENS = 4, 6
"""On a network everybody is measured at these numbers of evaluations, or next to them, on the
problem's few noises (ours not with a step to data); then go on, to all its noises:"""

SHARE = 0.5
"""this share of each library's samplers, the better ones, on all grids to a screening at"""

FEW = 12
"""evaluations, and to one at the first count beyond: what is good for few need not be for many;"""

KEPT = 12
"""each library's best ones at 4, 6 and 12 to all counts up to that;"""

GRIDS = 2
"""each of the better samplers on so many grids, its best beyond, to one at the last count;"""

LAST = 8
"""and each library's best of either to all the others. Nothing is screened on an oracle."""

TOLERANCE = 0.2
"""A sampler's end may differ from t_min by this share: libraries keep their tables in float32."""


def everybody(problem: Problem) -> tuple[list[Contestant], dict[str, str]]:
    """Return who takes part, and why others do not."""
    found, absent = ours.contestants(problem)
    peers = {
        peers_diffusers.NAME: lambda: peers_diffusers.contestants(problem.path),
        peers_k_diffusion.NAME: lambda: peers_k_diffusion.contestants(problem.path),
        peers_azula.NAME: peers_azula.contestants,
    }
    for name, contestants in peers.items():
        try:
            _IMPORTS[name]()
        except Absent as reason:
            absent[name] = f'{reason}; `pip install "pathline[bench]"` or `make bench` brings it'
        else:
            found += contestants()
    return found, absent


_IMPORTS: Mapping[str, Callable[[], object]] = {
    peers_diffusers.NAME: lambda: installed("diffusers"),
    peers_k_diffusion.NAME: k_diffusion_sampling,
    peers_azula.NAME: lambda: installed("azula.sample"),
}


def stamps(problem: Problem) -> dict[str, str]:
    """Return what each library's numbers depend on; ours also on what was tuned for the model."""
    home = "bench/precision/"
    own = ("paths", "fields", "solvers", "steer", "nets", f"{home}ours.py", f"{home}problems.py")
    files = {
        name: (f"{home}{module.__name__.rpartition('.')[2]}.py", f"{home}query.py")
        for name, module in (
            (peers_diffusers.NAME, peers_diffusers),
            (peers_k_diffusion.NAME, peers_k_diffusion),
            (peers_azula.NAME, peers_azula),
        )
    }
    peers = {name: version_stamp(name, parts) for name, parts in files.items()}
    return {ours.NAME: " ".join([code_stamp(*own), *ours.tuned(problem)]), **peers}


def measure(
    problem: Problem, counts: Sequence[int], folder: Path | None
) -> tuple[Store, Converged]:
    """Measure everybody, or what is still missing.

    Args:
        problem: what is integrated.
        counts: evaluations.
        folder: where the results are kept; None for nowhere.
    """
    file = None if folder is None else folder / f"solvers-{problem.name}.json"
    store = Store(file, problem.settings, stamps(problem))
    with torch.inference_mode(), _quiet():
        converged = problem.converged()
        contestants, store.absent = everybody(problem)
        try:
            _Measuring(problem, converged, store).all(contestants, sorted(counts))
        finally:
            store.save()
    return store, converged


class Errors(NamedTuple):
    """The root mean square over everything, and the median of that of each noise."""

    rms: float
    median: float


class _Measuring:
    """A problem under measurement."""

    def __init__(self, problem: Problem, converged: Converged, store: Store) -> None:
        self.problem, self.converged, self.store = problem, converged, store
        self.rehearsal = Rehearsal(problem)
        self.has_few = problem.few is not None
        self.known: dict[tuple[str, int, bool], Errors] = {}

    def all(self, contestants: Sequence[Contestant], counts: Sequence[int]) -> None:
        """Measure everybody; on a network, screen them first, and again for many evaluations."""
        name = self.problem.name
        if self.problem.is_cheap:
            self.these(contestants, f"{name}, all", counts)
            return
        few, many = [n for n in counts if n <= FEW], [n for n in counts if n > FEW]
        left = [each for each in contestants if not ours.goes_to_data(each)]
        chosen: dict[Key, Contestant] = {}
        for screen in (*SCREENS, FEW):
            near = sorted(few or many, key=lambda n: (abs(n - screen), n))
            left = left if screen in SCREENS else self.of_better_samplers(left)
            self.screen(left, near, f"screening at {near[0]}")
            chosen |= {each.key: each for each in self.best(left, screen, KEPT)}
        self.these(list(chosen.values()), f"{name}, few", few)
        if many:
            self.these(self.best_of_many(contestants, many), f"{name}, many", many)

    def best_of_many(self, contestants: Sequence[Contestant], many: list[int]) -> list[Contestant]:
        """Return who is best at the first or the last of these counts."""
        chosen: dict[Key, Contestant] = {}
        left = self.of_better_samplers(contestants)
        for near in (many, many[::-1]):
            self.screen(left, near, f"screening at {near[0]}")
            chosen |= {each.key: each for each in self.best(left, near[0], LAST)}
            left = self.on_best_grids(left, near[0])
        return list(chosen.values())

    def these(self, contestants: Sequence[Contestant], what: str, counts: Sequence[int]) -> None:
        """Measure these at all counts."""
        for contestant in track(contestants, what, len(contestants)):
            self.each(contestant, counts)

    def screen(self, contestants: Sequence[Contestant], near: Sequence[int], what: str) -> None:
        """Measure these on few noises, each at the first of these counts that it can take."""
        for contestant in track(contestants, f"{self.problem.name}, {what}", len(contestants)):
            for nfe in near:
                self.each(contestant, [nfe], few=self.has_few)
                if self.store.get(contestant.key, nfe, few=self.has_few) is not None:
                    break

    def each(self, contestant: Contestant, counts: Sequence[int], few: bool = False) -> None:
        """Measure one, at the counts that it has not been measured at."""
        for nfe in counts:
            if self.store.get(contestant.key, nfe, few=few) is not None:
                continue
            try:
                n = self.rehearsal.steps_for(contestant, nfe)
                if n is not None:
                    error, median = self.error(contestant, n, nfe, few)
                    told = None if few else median
                    self.store.put(contestant.key, nfe, error, few=few, median=told)
            except Absent as reason:
                self.store.absent[_words(contestant.key)] = str(reason)
                return
            except Exception as error:  # theirs: it is told, and the others go on
                if contestant.by == ours.NAME:
                    raise
                said = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
                self.store.absent[_words(contestant.key)] = f"{said} ({nfe} evaluations)"

    def error(self, contestant: Contestant, n: int, nfe: int, few: bool) -> Errors:
        """Return the errors of n steps; NaN if the result is not finite."""
        same = None if contestant.same is None else (contestant.same(n), nfe, few)
        if same is not None and same in self.known:
            return self.known[same]
        query = Query(self.problem.few if few and self.problem.few else self.problem)
        end = contestant.run(query, n)
        if query.calls != nfe:
            raise Absent(f"took {query.calls} evaluations, and {nfe} in rehearsal")
        off = end.x - self.goal(end)[: len(end.x)]
        errors = Errors(rms(off), float(each_rms(off).quantile(0.5)))
        errors = errors if math.isfinite(errors.rms) else Errors(math.nan, math.nan)
        if same is not None:
            self.known[same] = errors
        return errors

    def goal(self, end: Ended) -> torch.Tensor:
        """Return the converged solution where a sampler ended."""
        t_min = self.problem.path.t_min
        if end.t == 0:
            return self.converged.data
        if abs(end.t - t_min) > TOLERANCE * t_min:
            raise Absent(f"ends at t = {end.t:.3g}, neither at data nor at t_min = {t_min:.3g}")
        return self.converged.stop

    def best(self, contestants: Sequence[Contestant], nfe: int, most: int) -> list[Contestant]:
        """Return each library's best, those that do exactly the same once, and what was tuned."""
        chosen: list[Contestant] = []
        seen: set[tuple[str, ...]] = set()
        left: dict[str, int] = {}
        for contestant in sorted(contestants, key=lambda c: self.rank(c, nfe)):
            by = contestant.by
            same = contestant.same(nfe) if contestant.same is not None else ""
            mark = (by, same) if same else contestant.key
            if mark in seen:
                continue
            seen.add(mark)
            left[by] = left.get(by, most) - 1
            if left[by] >= 0 or contestant.is_tuned:
                chosen.append(contestant)
        return chosen

    def of_better_samplers(self, contestants: Sequence[Contestant]) -> list[Contestant]:
        """Return the `SHARE` of each library's samplers that were best at the last of `SCREENS`."""
        ranked = sorted(contestants, key=lambda c: self.rank(c, SCREENS[-1]))
        chosen: set[tuple[str, str]] = set()
        for by in {contestant.by for contestant in contestants}:
            names = list(dict.fromkeys(c.sampler for c in ranked if c.by == by))
            chosen |= {(by, name) for name in names[: math.ceil(SHARE * len(names))]}
        return [c for c in contestants if (c.by, c.sampler) in chosen]

    def on_best_grids(self, contestants: Sequence[Contestant], nfe: int) -> list[Contestant]:
        """Return each sampler on the `GRIDS` grids that are its best at this count."""
        samplers: dict[tuple[str, str], list[Contestant]] = {}
        for contestant in sorted(contestants, key=lambda c: self.rank(c, nfe)):
            samplers.setdefault((contestant.by, contestant.sampler), []).append(contestant)
        return [contestant for those in samplers.values() for contestant in those[:GRIDS]]

    def rank(self, contestant: Contestant, nfe: int) -> float:
        """Return the error at the nearest count that was measured; infinity for none."""
        table = self.store.screened if self.has_few else self.store.errors
        errors = table.get(contestant.key, {})
        finite = {n: e for n, e in errors.items() if math.isfinite(e)}
        return finite[min(finite, key=lambda n: abs(n - nfe))] if finite else math.inf


def _words(key: Key) -> str:
    by, sampler, grid = key
    return f"{by}, {sampler}, {grid}"


@contextmanager
def _quiet() -> Generator[None]:
    """Keep other libraries from talking in between."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

"""Tuning: the best schedule for a model at each number of evaluations, measured on fresh noise.

Fixed solvers and grids are raced (many on few noises, the better ones on more); times and weights
of the best are moved downhill (`descent`), and a search goes on from there. What is sought is a
small mean of the errors: the distances to where many steps of a good solver lead from the same
noise. What is found is compared with the fixed ways, by root mean square, on noises, and conditions
where the model takes any, that neither has seen.

Papers: Liu et al. 2023 (arXiv:2312.07243); Shaul et al. 2024 (arXiv:2403.01329).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pathline.core.errors import UsageError
from pathline.core.files import write_atomically
from pathline.core.receipt import versions
from pathline.solvers.calibrate import UNKNOWN_WEIGHTS, calibrate
from pathline.solvers.ems import EMSTable
from pathline.solvers.exponential import DDIM, DPMpp
from pathline.solvers.grids import LogSNR
from pathline.solvers.saved import schedule_file
from pathline.solvers.schedule import SolverSchedule
from pathline.speed.downhill import MANY, POLISH, beginnings, downhill, freedoms, polished
from pathline.speed.fixed import How, fixed_solvers, race
from pathline.speed.goal import Bench
from pathline.speed.schedules import ScheduleSpace
from pathline.speed.search import Search, Settings, evolve

RIVALS = 4
"""The first of the race, which are measured on fresh noise too."""
LEAST = 10
"""Schedules that must be tried at each number of evaluations."""
DOWN = 0.95
"""What share of the budget the descent may spend, before a search that begins where it ends."""
KNOWN = 2
"""The best schedules of the race, which descents begin at, and the search goes on from."""
RACED = {"cpu": 500, "cuda": 3000}
"""Samples that the race between fixed ways runs, at each number of evaluations."""
ANEW = 0.3
"""What share of the evaluations of a schedule that is tried is not in memory yet, about."""
FORMAT = 2
"""Of what an interrupted call goes on from."""
REPORT = "report.json"
STATISTICS = 16, 80
"""Samples, and intervals, that statistics shared by all elements are measured on."""


@dataclass(frozen=True)
class TuneSettings:
    """What tuning spends.

    Args:
        budget: schedules that are tried at each number of evaluations, after the race; a mean over
            them: more where there are more numbers to find.
        n_train: noises that the search sees; as many others choose between what it finds.
        n_test: fresh noises that its result is measured on.
        reference: steps of DPM-Solver++ 3M that lead to where samples should be.
        seed: of the search.
        workers: schedules scored at once; with Ray, by as many workers.
    """

    budget: int = 150
    n_train: int = 32
    n_test: int = 32
    reference: int = 64
    seed: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        for name in ("n_train", "n_test", "reference", "workers"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, and is {getattr(self, name)}.")
        if self.seed < 0:
            raise UsageError(f"the seed must be at least 0, and is {self.seed}.")
        if self.budget < LEAST:
            raise UsageError(f"a budget of {self.budget} schedules is too small; take {LEAST}.")


@dataclass(frozen=True)
class Tuned:
    """What came of it at one number of evaluations.

    Args:
        nfe: evaluations.
        schedule: the best schedule, by the noise that chooses: a found or a fixed one.
        found: its error on fresh noise.
        seen: its mean error on the noise of the search.
        fixed: the best fixed solver and grid, by the noise that chooses.
        fixed_error: its error on the fresh noise.
        default: that of the default there, DPM-Solver++ 2M on the log-SNR grid.
        ddim: that of DDIM there.
        evaluations: schedules that the search scored, after the descent.
        is_behind: whether the best fixed way is better, by the noise that chooses, and cannot be
            kept: it evaluates twice at a time, or has numbers of each element.
    """

    nfe: int
    schedule: SolverSchedule = field(repr=False)
    found: float
    seen: float
    fixed: str
    fixed_error: float
    default: float
    ddim: float
    evaluations: int
    is_behind: bool = False

    def row(self) -> dict[str, Any]:
        """Return the line of a table."""
        return {
            "evaluations": self.nfe,
            "found": f"{self.found:.4g}",
            "best fixed": f"{self.fixed_error:.4g}",
            "ratio": f"{self.found / self.fixed_error:.2f}",
            "which": self.fixed + (" (not a schedule)" if self.is_behind else ""),
            "dpmpp_2m": f"{self.default:.4g}",
            "ddim": f"{self.ddim:.4g}",
            "seen": f"{self.seen:.4g}",
            "scored": self.evaluations,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        told = {k: v for k, v in vars(self).items() if k != "schedule"}
        return told | {"ratio": self.found / self.fixed_error}


def tries_within(
    bench: Bench,
    counts: Sequence[int],
    minutes: float,
    spent: float = 0.0,
    work: str | Path | None = None,
) -> int:
    """Return how many schedules can be tried at each number of evaluations in so many minutes.

    Args:
        bench: what is tuned.
        counts: numbers of evaluations.
        minutes: in all.
        spent: of them already.
        work: where the number is kept, so that an interrupted call goes on with the same.

    Raises:
        UsageError: not even the race between fixed solvers fits in.
    """
    mark = marked([bench.about, sorted(set(counts)), minutes, versions()])
    file = None if work is None else Path(work) / f"{mark}-tries.json"
    kept = kept_in(file)
    if isinstance(kept, int):
        return kept
    seconds, evaluations = bench.seconds(), sum(set(counts))
    raced, judged = RACED[bench.train.starts.device.type], 2 * RIVALS * len(bench.judge.starts)
    fixed = evaluations * (raced + judged + 4 * len(bench.test.starts)) * seconds
    shares = sum(n * share for n, share in _shares(counts).items())
    one = shares * len(bench.train.starts) * ANEW * seconds
    tries = int((60 * (minutes - spent) - fixed) / one)
    if tries < LEAST:
        least = math.ceil(spent + (fixed + LEAST * one) / 60)
        raise UsageError(
            f"{minutes:g} minutes are too few: fixed solvers and {LEAST} schedules take {least} "
            "here; give more, or ask for fewer numbers of evaluations."
        )
    keep_in(file, tries)
    return tries


def statistics(bench: Bench, file: str | Path, work: str | Path | None = None) -> EMSTable:
    """Return the statistics for DPM-Solver-v3, measured on the model's own many-step samples.

    Args:
        bench: the model, and its samples.
        file: where they are kept; those of the same weights, of as many samples or more, are taken
            as they are.
        work: a folder for what an interrupted call goes on from.

    Derivatives are taken by differences, which any network can.

    Cost: 5 · 16 · 81 evaluations without guidance.
    """
    assert bench.model is not None
    mark, at = str(bench.about.get("weights") or ""), Path(file)
    k, n = STATISTICS
    x0 = bench.train.ends[:k].to(torch.float32)
    known = EMSTable.load(at) if at.is_file() and mark else None
    if known is not None and known.weights == mark and known.n_samples >= len(x0):
        return known
    told: Any = {name: list(values[: len(x0)]) for name, values in bench.told.items()}
    resume = (
        None
        if work is None
        else Path(work) / f"{marked([bench.about, versions(), FORMAT])}-ems.safetensors"
    )
    table = calibrate(
        bench.model, x0, n, numbers="shared", method="difference", resume=resume, **told
    )
    table.save(at)
    return table


def tune(
    bench: Bench,
    counts: Sequence[int],
    settings: TuneSettings,
    *,
    out: str | Path | None = None,
    work: str | Path | None = None,
    ray: bool = False,
) -> list[Tuned]:
    """Find the best schedule for each number of evaluations.

    Args:
        bench: the model, its noises, and where they should lead.
        counts: numbers of evaluations.
        settings: what may be spent.
        out: the model's folder, which gets `schedules/`; None writes nothing.
        work: a folder for what an interrupted call goes on from; None keeps nothing.
        ray: score `settings.workers` schedules at once, on Ray's workers.

    Raises:
        UsageError: a number of evaluations that no schedule has; a place that cannot be written;
            work on a model whose weights are unknown.
        MissingExtra: Ray is not installed.

    Cost: for n evaluations about n (n_train · budget/2 + 500 + 7 · n_test) calls of the field.
    """
    if not counts or min(counts) < 2:
        raise UsageError(f"numbers of evaluations are 2 or more, and were {list(counts)}.")
    if work is not None and bench.about.get("weights", "") is None:
        raise UsageError(f"{UNKNOWN_WEIGHTS} leave work out.")
    done: list[Tuned] = []
    for nfe, share in _shares(counts).items():
        how = replace(settings, budget=max(round(share * settings.budget), LEAST))
        task = _Task(bench, nfe, how, None if work is None else Path(work), ray)
        done.append(task.result())
        if out is not None:
            done[-1].schedule.save(schedule_file(out, nfe))
            write_report(schedule_file(out, 0).parent / REPORT, done, settings, bench)
    return done


def same_goal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two searches were for the same weights under the same guide."""
    return all(one.get(key) == other.get(key) for key in ("weights", "guide"))


def write_report(file: Path, done: Sequence[Tuned], settings: TuneSettings, bench: Bench) -> None:
    """Tell what was found, beside what was found before at other numbers of evaluations.

    Each tells its own budget and noises; the rest is of the last search.
    """
    known = kept_in(file) or {}
    before = known.get("tuned", []) if same_goal(known, bench.about) else []
    terms = {"budget": settings.budget, "n_train": settings.n_train}
    tuned = {each["nfe"]: each for each in before}
    for each in done:
        fitted = {k: v for k, v in each.schedule.about.items() if k == "fit"}
        tuned[each.nfe] = each.to_dict() | terms | fitted
    told = {"tuned": [tuned[nfe] for nfe in sorted(tuned)], "settings": asdict(settings)}
    content = {**told, **bench.about, "versions": versions()}
    write_atomically(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _shares(counts: Sequence[int]) -> dict[int, float]:
    """Return what part of the mean budget each number of evaluations gets: by its freedoms."""
    numbers = {nfe: freedoms(nfe) for nfe in sorted(set(counts))}
    mean = sum(numbers.values()) / len(numbers)
    return {nfe: n / mean for nfe, n in numbers.items()}


@dataclass(frozen=True)
class _Task:
    """One number of evaluations: race, search, measurement; each is kept when it is done."""

    bench: Bench
    nfe: int
    settings: TuneSettings
    work: Path | None
    ray: bool

    @property
    def mark(self) -> str:
        """What the result depends on."""
        told = [self.bench.about, asdict(self.settings), self.nfe, versions(), FORMAT]
        return marked(told)

    def file(self, what: str) -> Path | None:
        """Return where a part of the work is kept."""
        return None if self.work is None else self.work / f"{self.mark}-{what}.json"

    def result(self) -> Tuned:
        """Return what was found, or find it."""
        kept = kept_in(self.file("result"))
        if kept is not None:
            return Tuned(**kept | {"schedule": SolverSchedule.from_dict(kept["schedule"])})
        fixed = fixed_solvers(self.bench.train, self.nfe, self.bench.model)
        finalists = race(self.bench.train, fixed, self.nfe, self.file("race"))
        found = _measured(self.bench, *self._search(fixed, finalists), fixed, finalists, self.nfe)
        keep_in(self.file("result"), vars(found) | {"schedule": found.schedule.to_dict()})
        return found

    def _search(
        self, fixed: Mapping[str, How], finalists: Sequence[str]
    ) -> tuple[Search[SolverSchedule], list[SolverSchedule]]:
        """Return the search, and what the descent has found."""
        path = self.bench.train.field.path
        assert path is not None  # a denoiser has one
        known = [way for n in finalists if isinstance(way := fixed[n], SolverSchedule)]
        known = known or [SolverSchedule.of(DDIM(), path, LogSNR(self.nfe))]
        down = self._down(known[:KNOWN])
        begin = list(dict.fromkeys([down[0], *known[:KNOWN]]))
        space = ScheduleSpace(path, (0.0, self.bench.train.mean()))
        how = Settings(batch=self.settings.workers)
        search = Search(space, begin, (self.nfe,), self.settings.seed, how, about=self.bench.about)
        what = f"{self.nfe} evaluations: search"
        budget = max(round((1 - DOWN) * self.settings.budget), len(begin))
        bench = self.bench.train if self.ray else self.bench.train.remembering()
        done = evolve(
            search, bench.typical, budget, file=self.file("search"), what=what, ray=self.ray
        )
        return done, down

    def _down(self, known: Sequence[SolverSchedule]) -> list[SolverSchedule]:
        """Return where the best of several descents ends; with its polish, if there is time."""
        bench, tries = self.bench.train, int(DOWN * self.settings.budget)
        a_round, what = freedoms(self.nfe), f"{self.nfe} evaluations: descent"
        polishes = tries >= MANY * a_round
        begin, freedom = beginnings(known, bench.mean(), tries)
        files = [self.file(f"down-{i}") for i in range(len(begin))]
        left = tries - polishes * POLISH * a_round
        down = downhill(bench, begin, left, freedom, files, what)
        more = [polished(bench, down, self.file("polish"), what)] if polishes else []
        return [down.schedule, *more]


def marked(told: Any) -> str:
    """Return a short mark of plain values."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def kept_in(file: Path | None) -> Any:
    """Return what an earlier run has written; None if there is none, or it is damaged."""
    try:
        return None if file is None else json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def keep_in(file: Path | None, content: Any) -> None:
    """Write it down for a later run; nowhere if there is no file."""
    if file is not None:
        write_atomically(file, json.dumps(content, ensure_ascii=False))


def _measured(
    bench: Bench,
    search: Search[SolverSchedule],
    down: Sequence[SolverSchedule],
    fixed: Mapping[str, How],
    finalists: Sequence[str],
    nfe: int,
) -> Tuned:
    """Choose between what was found and the best fixed solvers, and measure it on fresh noise."""
    judge, test = bench.judge, bench.test
    errors = {name: judge(fixed[name]) for name in finalists[:RIVALS]}
    name = min(errors, key=lambda each: errors[each])
    made = list(dict.fromkeys([search.best(nfe)[0].candidate, *down]))
    made += [way for way in (fixed[name],) if isinstance(way, SolverSchedule)]
    error, i = min((judge(each), i) for i, each in enumerate(made))
    schedule = made[i]
    found, rival = test(schedule), test(fixed[name])
    path = bench.test.field.path
    default, ddim = (bench.test(each.plan(path, LogSNR(nfe))) for each in (DPMpp(), DDIM()))
    told = {"nfe": nfe, "error": found, "fixed": name, "fixed_error": rival}
    told |= {k: v for k, v in bench.about.items() if k != "conditions"}
    told |= {"scored": len(search.scored), "seed": search.seed, "versions": versions()}
    kept = replace(schedule, about=told)
    scored = len(search.scored)
    seen = bench.train.typical(schedule)
    is_behind = errors[name] < error
    return Tuned(nfe, kept, found, seen, name, rival, default, ddim, scored, is_behind)

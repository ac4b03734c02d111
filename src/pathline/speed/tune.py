"""Tuning: the best schedule for a model at each number of evaluations, measured on fresh noise.

Fixed solvers and grids are raced (many on few noises, the better ones on more), the best of them
begin a search, and what it finds is compared with them on noises, and conditions where the model
takes any, that neither has seen. The measure is the root mean square distance to where many steps
of a good solver lead from the same noise.

Paper: Liu et al. 2023 (arXiv:2312.07243).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import PathlineError, UsageError
from pathline.core.files import write_atomically
from pathline.core.progress import track
from pathline.core.receipt import versions
from pathline.core.tensors import read_tensors, write_tensors
from pathline.fields import Denoiser, Field
from pathline.solvers.exponential import DDIM, DPMpp
from pathline.solvers.grids import Grid, LogSNR, Times, grids
from pathline.solvers.plan import Plan
from pathline.solvers.saved import schedule_file
from pathline.solvers.schedule import SolverSchedule
from pathline.solvers.solve import start
from pathline.solvers.solver import Solver, solvers
from pathline.speed.metrics import Endpoint
from pathline.speed.schedules import ScheduleSpace, zoo
from pathline.speed.search import Search, Settings, evolve

Conditions = Mapping[str, Sequence[Any]]
How = Plan | SolverSchedule

RACE = ((2, 4), (8, 3))
"""Rounds of the race: on so many noises, and one of so many goes on."""
FINALISTS = 10
"""Fixed ways that the race leaves; those that are schedules begin the search."""
RIVALS = 4
"""The first of them, which are measured on fresh noise too."""
TRAIN_SEED, TEST_SEED = 1_000_000, 3_000_000
CHUNK = 16
"""Samples that run together while references are made."""
REPORT = "report.json"


@dataclass(frozen=True)
class TuneSettings:
    """What tuning spends.

    Args:
        budget: true evaluations of schedules a number of evaluations, its finalists included.
        n_train: noises that the search sees.
        n_test: fresh noises that its result is measured on.
        reference: steps of DPM-Solver++ 3M that lead to where samples should be.
        seed: of the search.
        workers: schedules scored at once; with Ray, by as many workers.
    """

    budget: int = 60
    n_train: int = 16
    n_test: int = 32
    reference: int = 64
    seed: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        for name in ("n_train", "n_test", "reference", "workers"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, and is {getattr(self, name)}.")
        if self.budget < FINALISTS:
            raise UsageError(
                f"a budget of {self.budget} does not pay for the {FINALISTS} finalists of the "
                f"race; take {FINALISTS} or more."
            )


@dataclass(frozen=True)
class Tuned:
    """What came of it at one number of evaluations.

    Args:
        nfe: evaluations.
        schedule: the best schedule; a fixed one where nothing better was found.
        found: its error on fresh noise.
        seen: its error on the noise of the search.
        fixed: the best fixed solver and grid, by the fresh noise.
        fixed_error: its error there.
        default: that of the default, DPM-Solver++ 2M on the log-SNR grid.
        ddim: that of DDIM there.
        evaluations: schedules that were scored.
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

    def row(self) -> dict[str, Any]:
        """Return the line of a table."""
        return {
            "evaluations": self.nfe,
            "found": f"{self.found:.4g}",
            "best fixed": f"{self.fixed_error:.4g}",
            "ratio": f"{self.found / self.fixed_error:.2f}",
            "which": self.fixed,
            "dpmpp_2m": f"{self.default:.4g}",
            "ddim": f"{self.ddim:.4g}",
            "seen": f"{self.seen:.4g}",
            "scored": self.evaluations,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        told = {k: v for k, v in vars(self).items() if k != "schedule"}
        return told | {"ratio": self.found / self.fixed_error}


@dataclass(frozen=True)
class Bench:
    """A model with its noises and where they should lead: those to search on, and fresh ones."""

    train: Endpoint
    test: Endpoint
    about: Mapping[str, Any] = field(default_factory=dict)
    model: Denoiser | None = None


def bench_of(
    model: Denoiser,
    guide: Callable[[Field], Field] | None,
    train: Conditions,
    test: Conditions,
    settings: TuneSettings,
    keep: str | Path | None = None,
) -> Bench:
    """Return what a model is tuned on; the references are made once, and kept.

    Args:
        model: what samples.
        guide: as it will be guided; None for not at all.
        train: conditions of the search in the user's words, taken in turn; empty for none.
        test: others, for the fresh noises.
        settings: how many noises, and how many steps lead to a reference.
        keep: a file for the references; None makes them anew.

    Cost: `settings.reference` evaluations for each noise.
    """
    field = model if guide is None else guide(model)
    benches = [
        _endpoint(model, field, conditions, seed, n)
        for conditions, seed, n in (
            (train, TRAIN_SEED, settings.n_train),
            (test, TEST_SEED, settings.n_test),
        )
    ]
    describe = getattr(guide, "describe", None)
    about = {
        "model": model.name,
        "weights": model.details.get("weights", {}).get("sha256"),
        "guide": describe() if callable(describe) else None,
        "conditions": [{k: list(map(str, v)) for k, v in told.items()} for told in (train, test)],
        "noises": [settings.n_train, settings.n_test],
        "reference": settings.reference,
    }
    refs = _references(benches, settings.reference, about, None if keep is None else Path(keep))
    on, off = (replace(e, ends=x) for e, x in zip(benches, refs, strict=True))
    return Bench(on, off, about, model)


def _endpoint(model: Denoiser, field: Field, conditions: Conditions, seed: int, n: int) -> Endpoint:
    if model.shape is None:
        raise UsageError("the model does not know the shape of a sample; give Denoiser(shape=...).")
    seeds = range(seed, seed + n)
    told = {
        name: [values[i % len(values)] for i in range(n)] for name, values in conditions.items()
    }
    x = start(
        model.path, model.path.t_max, seeds, model.shape, torch.float32, model.device or "cpu"
    )
    return Endpoint(field, x, x, field.condition(told, n))


def _references(
    benches: Sequence[Endpoint], steps: int, about: Mapping[str, Any], keep: Path | None
) -> list[Tensor]:
    mark = hashlib.sha256(json.dumps([about, versions()], sort_keys=True).encode()).hexdigest()
    if keep is not None and keep.is_file():
        header, tensors = read_tensors(keep)
        if header.get("mark") == mark:
            return [tensors[str(i)].to(b.starts.device) for i, b in enumerate(benches)]
    path = benches[0].field.path
    assert path is not None  # a denoiser has one
    plan = DPMpp(order=3).plan(path, LogSNR(steps))
    parts = [(i, part) for i, bench in enumerate(benches) for part in bench.parts(CHUNK)]
    found: list[list[Tensor]] = [[] for _ in benches]
    for i, part in track(parts, "references"):
        found[i].append(part.samples(plan))
    ends = [torch.cat(each) for each in found]
    if not all(bool(torch.isfinite(x).all()) for x in ends):
        raise PathlineError("the model's many-step samples are not finite; nothing can be tuned.")
    if keep is not None:
        write_tensors(keep, {str(i): x for i, x in enumerate(ends)}, {"mark": mark})
    return ends


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
        UsageError: a number of evaluations that no schedule has; a place that cannot be written.
        MissingExtra: Ray is not installed.

    Cost: for n evaluations about n (n_train · budget + 4 · fixed ways + 6 · n_test) calls of the
    field; there are a hundred fixed ways.
    """
    if not counts or min(counts) < 2:
        raise UsageError(f"numbers of evaluations are 2 or more, and were {list(counts)}.")
    done: list[Tuned] = []
    for nfe in sorted(set(counts)):
        task = _Task(bench, nfe, settings, None if work is None else Path(work), ray)
        done.append(task.result())
        if out is not None:
            done[-1].schedule.save(schedule_file(out, nfe))
    if out is not None:
        told = {"tuned": [t.to_dict() for t in done], "settings": asdict(settings)}
        content = {**told, **bench.about, "versions": versions()}
        text = json.dumps(content, indent=1, ensure_ascii=False)
        write_atomically(schedule_file(out, 0).parent / REPORT, text + "\n")
    return done


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
        told = [self.bench.about, asdict(self.settings), self.nfe, versions()]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def file(self, what: str) -> Path | None:
        """Return where a part of the work is kept."""
        return None if self.work is None else self.work / f"{self.mark}-{what}.json"

    def result(self) -> Tuned:
        """Return what was found, or find it."""
        kept = _kept(self.file("result"))
        if kept is not None:
            return Tuned(**kept | {"schedule": SolverSchedule.from_dict(kept["schedule"])})
        fixed = fixed_solvers(self.bench.train, self.nfe, self.bench.model)
        race = _kept(self.file("race"))
        finalists = _race(self.bench, fixed, self.nfe) if race is None else race
        _keep(self.file("race"), finalists)
        found = _measured(self.bench, self._search(fixed, finalists), fixed, finalists, self.nfe)
        _keep(self.file("result"), vars(found) | {"schedule": found.schedule.to_dict()})
        return found

    def _search(self, fixed: Mapping[str, How], finalists: Sequence[str]) -> Search[SolverSchedule]:
        path = self.bench.train.field.path
        assert path is not None  # a denoiser has one
        space = ScheduleSpace(path, (0.0, self.bench.train.mean()))
        begin = [way for n in finalists if isinstance(way := fixed[n], SolverSchedule)]
        begin = begin or [SolverSchedule.of(DDIM(), path, LogSNR(self.nfe))]
        how = Settings(batch=self.settings.workers)
        search = Search(space, begin, (self.nfe,), self.settings.seed, how, about=self.bench.about)
        what = f"{self.nfe} evaluations: search"
        budget, file = self.settings.budget, self.file("search")
        return evolve(search, self.bench.train, budget, file=file, what=what, ray=self.ray)


def _kept(file: Path | None) -> Any:
    """Return what an earlier run has written; None if there is none, or it is damaged."""
    try:
        return None if file is None else json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _keep(file: Path | None, content: Any) -> None:
    if file is not None:
        write_atomically(file, json.dumps(content, ensure_ascii=False))


def _measured(
    bench: Bench,
    search: Search[SolverSchedule],
    fixed: Mapping[str, How],
    finalists: Sequence[str],
    nfe: int,
) -> Tuned:
    """Compare the best of the search with the best fixed solvers, on fresh noise."""
    best = search.best(nfe)[0]
    fresh = {name: bench.test(fixed[name]) for name in finalists[:RIVALS]}
    name = min(fresh, key=lambda each: fresh[each])
    schedule, found, rival = best.candidate, bench.test(best.candidate), fixed[name]
    if fresh[name] < found and isinstance(rival, SolverSchedule):
        schedule, found = rival, fresh[name]
    path = bench.test.field.path
    default, ddim = (bench.test(each.plan(path, LogSNR(nfe))) for each in (DPMpp(), DDIM()))
    told = {"nfe": nfe, "error": found, "fixed": name, "fixed_error": fresh[name]}
    told |= {k: v for k, v in bench.about.items() if k != "conditions"}
    told |= {"scored": len(search.scored), "seed": search.seed, "versions": versions()}
    kept = replace(schedule, about=told)
    scored = len(search.scored)
    return Tuned(nfe, kept, found, best.score, name, fresh[name], default, ddim, scored)


def fixed_solvers(bench: Endpoint, nfe: int, model: Denoiser | None = None) -> dict[str, How]:
    """Return every fixed way to spend so many evaluations: all solvers and the zoo, on all grids.

    A way that is a list of exponential steps is a schedule, and can begin a search.
    """
    path = bench.field.path
    assert path is not None
    made = {entry.name: entry.make for entry in grids if entry.make is not Times}
    ways: dict[str, How] = dict(zoo(path, nfe, made))
    known = {way for way in ways.values() if isinstance(way, SolverSchedule)}
    for entry in solvers:
        solver = entry.build()
        if solver.is_stochastic:
            continue
        for grid, make in made.items():
            way = _way(solver, bench, make, nfe, model)
            if way is None or (isinstance(way, SolverSchedule) and way in known):
                continue
            if isinstance(way, SolverSchedule):
                known.add(way)
            ways[f"{entry.name} on {grid}"] = way
    return ways


def _way(
    solver: Solver, bench: Endpoint, make: Callable[..., Grid], nfe: int, model: Denoiser | None
) -> How | None:
    """Return a solver on a grid as a schedule or a plan; None where it does not fit."""
    path = bench.field.path
    n, rest = divmod(nfe, solver.nfe_per_step)
    if rest or not n or path is None:
        return None
    try:
        if model is not None:
            solver = solver.tuned(model, tuple(bench.starts.shape[1:]))
        plan = solver.plan(path, make(n))
    except PathlineError:  # it cannot start where α = 0, or needs statistics that there are not
        return None
    try:
        return SolverSchedule.of(solver, path, make(n))
    except UsageError:
        return plan if plan.nfe == nfe else None


def _race(bench: Bench, fixed: Mapping[str, How], nfe: int) -> list[str]:
    """Return the names of the best fixed ways, best first, by rounds on more and more noises."""
    left = list(fixed)
    for n, share in RACE:
        few = bench.train.first(n)
        what = f"{nfe} evaluations: {len(left)} fixed solvers, {len(few.starts)} noises"
        errors = {name: few(fixed[name]) for name in track(left, what)}
        left = sorted(left, key=lambda name: errors[name])
        keep = max(FINALISTS, len(left) // share)
        left = left[:keep]
    return left[:FINALISTS]

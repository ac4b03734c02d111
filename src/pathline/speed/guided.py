"""Schedules for guided sampling: fewer unconditional halves, and more steps for the same cost.

n evaluations of which the first m are whole, and whose first unconditional half is known
(`solvers.null_start`), cost as many calls of the network as (n + m − 1)/2 guided ones. For each way
to spend a number of evaluations so, the best schedule of n steps begins a descent, its ratios taken
from how the difference of both halves shrinks on it; the descent moves them with all the rest. A
later search, on more noises say, goes on from the schedule that was saved. A fit by gradient
(`speed.fit`) takes the descent's place where the network can be differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.core.receipt import versions
from pathline.fields.denoiser import with_details
from pathline.fields.views import change
from pathline.solvers.execute import complete
from pathline.solvers.exponential import DDIM, DPMpp
from pathline.solvers.grids import LogSNR
from pathline.solvers.heads import heads_file
from pathline.solvers.null_start import FILE, measured_null_start, null_start_of
from pathline.solvers.saved import FOUND, GUIDED, SAVED, saved_counts, schedule_file
from pathline.solvers.schedule import SolverSchedule
from pathline.speed.downhill import affordable, downhill, polished
from pathline.speed.fit import FitSettings, fit
from pathline.speed.fixed import fixed_solvers, race
from pathline.speed.goal import Bench
from pathline.speed.metrics import Endpoint
from pathline.speed.rollout import is_of_rows
from pathline.speed.tune import (
    Tuned,
    TuneSettings,
    keep_in,
    kept_in,
    marked,
    same_goal,
    write_report,
)

MORE = 3
"""At most so many steps more than evaluations;"""

WHOLE = 3
"""and at least so many whole evaluations, the first one included."""

BEGUN = 2
"""Descents that begin at each number of evaluations."""

REPORT = "guided-report.json"


def measured_ratios(
    bench: Endpoint, schedule: SolverSchedule, whole: int
) -> tuple[float | None, ...]:
    """Return ρ_k of each evaluation after the first ones.

    Args:
        bench: its field is guided.
        schedule: of n evaluations.
        whole: how many of them are whole, 1 to n.

    Raises:
        UsageError: the field is not guided by contrast.

    Cost: n evaluations of each sample of the bench.
    """
    plan = schedule.plan(bench.field.path).folded(bench.field.view)
    halves = bench.field.halves(plan.instants.to(bench.starts.device), bench.starts, bench.cond)
    if halves is None or bench.field.path is None:
        raise UsageError("only guidance by contrast has halves: give a weight, --guidance 2.")
    units = change(bench.field.path, "x0", bench.field.view, plan.instants)[1].tolist()
    told = list[Tensor]()

    def evaluate(k: int, x: Tensor) -> Tensor:
        worse, better = halves.both(k, x)
        told.append(((better - worse) / units[k]).double())
        return halves.mixed(k, x, worse, better)

    with torch.no_grad():
        complete(plan, evaluate, [bench.starts])
    last = told[whole - 1]
    after = [float((d * last).sum() / last.square().sum()) for d in told[whole:]]
    return (*[None] * whole, *after)


def thinned(bench: Endpoint, schedule: SolverSchedule, whole: int) -> SolverSchedule:
    """Return a schedule whose evaluations after the first ones are halves."""
    ratios, known = measured_ratios(bench, schedule, whole), schedule.guess is None
    return replace(schedule, ratios=ratios, null_start=known, about={})


def spendings(nfe: int) -> list[tuple[int, int]]:
    """Return the ways to spend the cost of so many guided evaluations: (steps, whole ones).

    >>> spendings(5)
    [(6, 5), (7, 4), (8, 3)]
    """
    each = ((n, 2 * nfe + 1 - n) for n in range(nfe + 1, nfe + MORE + 1))
    return [(n, m) for n, m in each if WHOLE <= m < n]


def tune_guided(
    bench: Bench,
    counts: Sequence[int],
    settings: TuneSettings,
    *,
    out: str | Path,
    work: str | Path | None = None,
    fitting: FitSettings | None = None,
) -> list[Tuned]:
    """Find the best schedule for guided sampling at each cost.

    Args:
        bench: the model, guided, its noises, and where they should lead.
        counts: costs, in guided evaluations.
        settings: what may be spent; the budget counts runs of a schedule at each cost.
        out: the model's folder, whose schedules begin descents, and which gets the new ones.
        work: a folder for what an interrupted call goes on from; None keeps nothing.
        fitting: how to fit by gradient, in place of the descent; None descends.

    Raises:
        UsageError: no way to spend a number of evaluations so; a field that has no halves; a place
            that cannot be written.
    """
    if not counts or any(not spendings(nfe) for nfe in counts):
        raise UsageError(f"numbers of guided evaluations are 3 or more, and were {list(counts)}.")
    if bench.model is None:
        raise UsageError("halves are thinned of a model, and there is none.")
    bench = _with_null_start(bench, Path(out))
    done = list[Tuned]()
    for nfe in sorted(set(counts)):
        place = None if work is None else Path(work)
        task = _Guided(bench, nfe, settings, Path(out), place, fitting)
        done.append(task.result())
        done[-1].schedule.save(schedule_file(out, nfe, GUIDED))
        _drop_heads(Path(out))
        write_report(schedule_file(out, 0).parent / REPORT, done, settings, bench)
    return done


def _with_null_start(bench: Bench, out: Path) -> Bench:
    """Return a bench whose model knows what it says of pure noise; measured if it must be."""
    assert bench.model is not None
    try:
        table = null_start_of(with_details(bench.model, folder=str(out)))
    except UsageError:
        table = measured_null_start(bench.model)
        table.save(out / FILE)

    def told(end: Endpoint) -> Endpoint:
        details = {"null_start": table, "folder": str(out)}
        return replace(end, field=with_details(end.field, **details))

    valid = None if bench.valid is None else told(bench.valid)
    return replace(bench, train=told(bench.train), test=told(bench.test), valid=valid)


def _drop_heads(out: Path) -> None:
    """Delete heads that no schedule has any more."""
    kinds = [(nfe, kind) for kind in SAVED for nfe in saved_counts(out, kind)]
    used = {SolverSchedule.load(schedule_file(out, *each)).heads for each in kinds}
    folder = schedule_file(out, 0).parent
    kept = {heads_file(folder, digest).name for digest in used}
    for file in folder.glob(heads_file(folder, "*").name):
        if file.name not in kept:
            file.unlink()


@dataclass(frozen=True)
class _Guided:
    """One cost: where descents begin, where they end, and what comes of it on fresh noise."""

    bench: Bench
    nfe: int
    settings: TuneSettings
    out: Path
    work: Path | None
    fitting: FitSettings | None = None

    @property
    def folder(self) -> Path:
        """Where schedules are, and their heads."""
        return schedule_file(self.out, 0).parent

    def file(self, what: str) -> Path | None:
        """Return where a part of the work is kept."""
        told = [self.bench.about, asdict(self.settings), self.nfe, GUIDED, versions()]
        mark = marked(told if self.fitting is None else [*told, asdict(self.fitting)])
        return None if self.work is None else self.work / f"{mark}-{what}.json"

    def result(self) -> Tuned:
        """Return what was found, or find it."""
        kept = kept_in(self.file("result"))
        if kept is not None:
            schedule = SolverSchedule.from_dict(kept["schedule"])
            if not schedule.heads or heads_file(self.folder, schedule.heads).is_file():
                return Tuned(**kept | {"schedule": schedule})
        found = self._measured(self._found() if self.fitting is None else self._fitted())
        keep_in(self.file("result"), vars(found) | {"schedule": found.schedule.to_dict()})
        return found

    def _found(self) -> list[SolverSchedule]:
        """Return where the best descent ends, before and after its polish, and what was saved."""
        bench, what = self.bench.train, f"{self.nfe} guided evaluations: descent"
        saved, tries = self._saved(), self.settings.budget
        begin = self._beginnings() if saved is None else [saved]
        name, freedom = "down" if saved is None else "further", affordable(begin[0], tries)
        files = [self.file(f"{name}-{i}") for i in range(len(begin))]
        down = downhill(bench, begin, tries, freedom, files, what)
        left = tries - down.tries
        end = polished(bench, down, self.file(f"{name}-polish"), what, freedom, left)
        return [*([] if saved is None else [saved]), down.schedule, end]

    def _fitted(self) -> list[SolverSchedule]:
        """Return what was saved, where the fit begins, and where it ends."""
        saved = self._saved()
        known = self._beginnings() if saved is None else [saved]
        begin = next((each for each in known if is_of_rows(each)), None) or self._plainest()
        what, file = f"{self.nfe} guided evaluations: fit", self.file("fit")
        fitted, heads = fit(self.bench.train, begin, self.fitting, file=file, what=what)
        if heads is not None:
            heads.save(self.folder)
        return [*([] if saved is None else [saved]), begin, fitted]

    def _plainest(self) -> SolverSchedule:
        """Return a beginning that evaluates everything: of DPM-Solver++ on the log-SNR grid."""
        (n, m), path = spendings(self.nfe)[0], self.bench.train.field.path
        assert path is not None  # a denoiser has one
        return thinned(self.bench.train, SolverSchedule.of(DPMpp(), path, LogSNR(n)), m)

    def _beginnings(self) -> list[SolverSchedule]:
        """Return the best ways to spend the evaluations, before they are moved."""
        bench = self.bench.train
        ways = [(self._plain(n), m) for n, m in spendings(self.nfe)]
        begin = [thinned(bench, each, m - (each.guess is not None)) for each, m in ways]
        return sorted(begin, key=bench.typical)[:BEGUN]

    def _saved(self) -> SolverSchedule | None:
        """Return what was found before for the same weights and guide."""
        if self.nfe not in saved_counts(self.out, GUIDED):
            return None
        found = SolverSchedule.load(schedule_file(self.out, self.nfe, GUIDED))
        return replace(found, about={}) if same_goal(found.about, self.bench.about) else None

    def _plain(self, n: int) -> SolverSchedule:
        """Return the best schedule of n whole evaluations: a saved one, or the best fixed one."""
        if n in saved_counts(self.out):
            return SolverSchedule.load(schedule_file(self.out, n))
        kept = kept_in(self.file(f"fixed-{n}"))
        if kept is not None:
            return SolverSchedule.from_dict(kept)
        fixed = fixed_solvers(self.bench.train, n, self.bench.model)
        ways = {name: way for name, way in fixed.items() if isinstance(way, SolverSchedule)}
        best = ways[race(self.bench.train, ways, n)[0]]
        keep_in(self.file(f"fixed-{n}"), best.to_dict())
        return best

    def _measured(self, found: Sequence[SolverSchedule]) -> Tuned:
        """Choose, and measure on fresh noise beside what spends the same on whole evaluations."""
        bench, path = self.bench, self.bench.train.field.path
        assert path is not None  # a denoiser has one
        schedule, plain = min(found, key=bench.judge), self._plain(self.nfe)
        error, rival = bench.test(schedule), bench.test(plain)
        usual = (each.plan(path, LogSNR(self.nfe)) for each in (DPMpp(), DDIM()))
        default, ddim = map(bench.test, usual)
        told: dict[str, Any] = {"nfe": self.nfe, "error": error, "whole": rival}
        told |= {k: v for k, v in bench.about.items() if k != "conditions"}
        if self.fitting is not None and schedule is found[-1]:
            told["fit"] = asdict(self.fitting)
        kept = replace(schedule, about=told | {"versions": versions()})
        seen = bench.train.typical(schedule)
        which = FOUND if self.nfe in saved_counts(self.out) else "the best fixed one"
        return Tuned(self.nfe, kept, error, seen, which, rival, default, ddim, 0)

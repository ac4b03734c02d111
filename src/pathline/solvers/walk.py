"""The loop of all adaptive solvers: every sample at its own pace, a step of all of them at a time.

An attempt is made for all samples under way at once, each from its own time with its own step. One
that is done waits with a step of length 0, unless the field can be evaluated without it: then it is
left out. The host hears of an attempt once, by its errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.core.solution import Status
from pathline.fields import Prediction
from pathline.paths import Time, bshape
from pathline.solvers.adjoints.sources import transforms_are_active
from pathline.solvers.dense import Dense
from pathline.solvers.events import Alarm, Happened, Met
from pathline.solvers.pace import Flags, Numbers, Pace, Reach
from pathline.solvers.replay import Took
from pathline.solvers.slope import Slope
from pathline.solvers.stepped import Problem
from pathline.solvers.trial import Rows, Trial, chosen
from pathline.solvers.wanted import clocks_of
from pathline.solvers.watching import Saving, Taken, Telling, Watcher

if TYPE_CHECKING:
    from pathline.solvers.adaptive import Adaptive


class Walk:
    """A solve under way: where each sample is, and what it remembers.

    Args:
        solver: the method and its tolerances.
        problem: what is solved.
    """

    def __init__(self, solver: Adaptive, problem: Problem) -> None:
        course, batch = problem.course, len(problem.x)
        self._solver, self._problem, self._tally = solver, problem, problem.tally
        self._slope = Slope(problem, solver.view, np.ones(batch))
        self._stepper = solver.stepper(course, self._slope)
        self._stepper.shares = solver.shares
        points = course.grid[: -1 if course.denoises else None]
        clocks = np.stack([self._stepper.clocks(t) for t in points])
        way = self._way(clocks)
        self._slope.turn(way)
        self._all = Pace(batch, solver.control, solver.error_order, self._jumps(way))
        self._all.at = clocks[0] * way
        self._all.goal = self._all.at
        self._x, self._first = problem.x, torch.zeros_like(problem.x)
        self._known, self._ended = np.zeros(batch, dtype=bool), np.zeros(batch, dtype=bool)
        self._nfe = np.zeros(batch, dtype=np.int64)
        self._rows: Rows = np.arange(batch)
        self._attempts, self._unsized = 0, True
        self._pace, self._whole = self._all, True
        self._begin_watching(way, clocks[-1] * way)

    # what a solve is asked for

    def _way(self, clocks: Numbers) -> Numbers:
        """Return the direction of each sample; refuse grid points that do not follow each other."""
        way = np.where(clocks[-1] >= clocks[0], 1.0, -1.0)
        if np.isnan(clocks).any():
            where = np.argwhere(np.isnan(clocks))[0]
            raise UsageError(f"sample {where[1]}: time {where[0]} of its grid is not a number.")
        back = np.argwhere(np.diff(clocks * way, axis=0) < 0)
        if len(back):
            i, sample = back[0]
            a, b = (float(v) for v in clocks[i : i + 2, sample])
            raise UsageError(
                f"sample {sample}: its grid turns back from t = {a:.6g} to {b:.6g}; give times "
                "that only rise, or only fall."
            )
        return way

    def _jumps(self, way: Numbers) -> list[float]:
        if self._solver.jumps and (way != way[0]).any():
            raise UsageError("with jumps all samples go the same way; solve the others apart.")
        return [t * float(way[0]) for t in self._solver.jumps]

    def _begin_watching(self, way: Numbers, end: Numbers) -> None:
        wanted, batch = self._problem.wanted, len(self._all.at)
        self._watchers: list[Watcher] = []
        self._alarm: Alarm | None = None
        if wanted is None:
            return
        found = self._problem.tally.found
        if wanted.on_step is not None:
            told = wanted.on_step
            watches = isinstance(told, Watcher)
            self._watchers.append(told if watches else Telling(told))
            self._stepper.wants_stiffness = not watches
        if wanted.save is not None:
            clocks = clocks_of(wanted.save, batch, way, self._all.at, end)
            found.saving = Saving(clocks)
            found.times = np.where(np.isinf(clocks), np.nan, clocks * way[:, None])
            self._watchers.append(found.saving)
        if wanted.dense:
            found.dense = Dense(batch, way)
            self._watchers.append(found.dense)
        if wanted.events:
            self._alarm = Alarm(wanted.events, batch, self._slope)
            found.happened = self._alarm.happened
            found.ends = torch.as_tensor(end * way)

    # from grid point to grid point

    @property
    def x(self) -> Tensor:
        """The states, all of the batch."""
        return self._x

    @property
    def seen(self) -> Prediction | None:
        """The latest evaluation of each sample."""
        view, path, seen = self._solver.view, self._problem.course.path, self._stepper.seen
        if seen is not None:
            return Prediction(*seen, view, path)
        if not self._known.all():
            return None
        t = torch.from_numpy(self._all.at * self._slope.way).to(self._x.device)
        return Prediction(self._x, t, self._first, view, path)

    def resume(self, x: Tensor) -> None:
        """Go on from another state, if it is another."""
        if x is not self._x:
            self._x = x
            self._stepper.moved(x)
            self._known[:] = False

    def to(self, end: Time) -> None:
        """Walk to a grid point."""
        alive = (self._tally.status.numpy() == 0) & ~self._ended
        goal = np.where(alive, self._stepper.clocks(end) * self._slope.way, self._all.at)
        self._stepper.aim(end)
        self._all.aim(goal)
        self._unsized = True
        begins = bool(self._watchers or self._alarm) and not self._all.tries.any()
        rows = np.arange(len(goal))
        if begins:
            self._begin(rows)
        narrows = self._slope.splits or self._stepper.narrows
        moving = self._all.moving
        self._select(np.flatnonzero(moving) if narrows else rows)
        while moving.any():
            if narrows and not moving.all():
                self._put_back()
                self._select(np.flatnonzero(self._all.moving))
            self._step()
            moving = self._pace.moving
        self._put_back()
        self._slope.narrow(None)
        self._stepper.narrow(None)
        self._settle(goal)

    def _begin(self, rows: Rows) -> None:
        """Let those who look see the start."""
        if self._alarm is not None or any(w.needs_inside for w in self._watchers):
            self._select(rows)
            self._look()
            self._put_back()
        for watcher in self._watchers:
            watcher.begin(rows, self._all.at, self._x)
        if self._alarm is not None:
            self._alarm.begin(rows, self._all.at, self._x, self._first)

    def _select(self, rows: Rows) -> None:
        """Go on with some samples."""
        self._rows, self._whole = rows, len(rows) == len(self._all.at)
        at = None if self._whole else torch.from_numpy(rows)
        self._slope.narrow(at)
        self._stepper.narrow(at)
        self._pace = self._all if at is None else self._all.of(rows)
        self._now = self._x if at is None else self._x[at.to(self._x.device)]
        self._f = self._first if at is None else self._first[at.to(self._x.device)]
        self._knows = self._known if at is None else self._known[rows]

    def _put_back(self) -> None:
        """Write down where the samples are that have been gone on with."""
        if self._whole:
            x = self._now
            self._x = x.clone() if x._base is not None else x  # a buffer of the stepper's
            self._first = self._f
            return
        at = torch.from_numpy(self._rows).to(self._x.device)
        self._all.put(self._rows, self._pace)
        self._x = self._x.index_put((at,), self._now)
        self._first = self._first.index_put((at,), self._f)
        self._known[self._rows] = self._knows

    def _settle(self, goal: Numbers) -> None:
        """Set down what it cost, and who has failed, and why."""
        pace, tally = self._all, self._tally
        tally.nfe.copy_(torch.from_numpy(self._nfe))
        tally.steps.copy_(torch.from_numpy(pace.taken))
        tally.rejected.copy_(torch.from_numpy(pace.tries - pace.taken))
        failed = np.flatnonzero((pace.at != goal) & (tally.status.numpy() == 0) & ~self._ended)
        if len(failed):
            lost = ~np.isfinite(pace.error[failed])
            self._fail(failed[lost], Status.NON_FINITE)
            self._fail(failed[~lost], Status.STEP_TOO_SMALL)

    def _fail(self, rows: Rows, status: Status) -> None:
        at = self._all if self._whole else self._pace
        place = at.at[rows] if self._whole else at.at[np.searchsorted(self._rows, rows)]
        t = torch.from_numpy(self._stepper.time(place, rows))
        self._tally.fail(torch.from_numpy(rows), status, t)

    # one step

    def _look(self) -> None:
        """Evaluate the field where samples stand, if that is not known."""
        if self._knows.all():
            return
        fresh = ~self._knows & self._pace.moving
        if not fresh.any():
            return
        clocks = self._pace.at
        if self._solver.jumps:
            clocks = _beyond(clocks, self._now, np.inf)
        f = self._fresh_field(fresh, self._stepper.here(clocks, self._now))
        self._stepper.graph = transforms_are_active() or (
            torch.is_grad_enabled() and (f.requires_grad or self._now.requires_grad)
        )
        self._f = f if fresh.all() else chosen(_flags(fresh, f), f, self._f)
        self._nfe[self._rows[fresh]] += 1
        self._knows[fresh] = True
        lost = ~np.isfinite(self._stepper.own(f * 0)) & fresh
        if lost.any():
            self._give_up(lost, Status.NON_FINITE)

    def _fresh_field(self, fresh: Flags, t: Tensor) -> Tensor:
        """Return the field; of the fresh ones alone, and zeros, where it can be asked for them."""
        if fresh.all() or not self._slope.splits:
            return self._slope(self._now, t)
        at = torch.from_numpy(np.flatnonzero(fresh))
        here = at.to(self._now.device)
        self._slope.narrow(torch.from_numpy(self._rows[fresh]))
        part = self._slope(self._now[here], t[here])
        self._slope.narrow(None if self._whole else torch.from_numpy(self._rows))
        return torch.zeros_like(self._now).index_put((here,), part)

    def _give_up(self, who: Flags, status: Status) -> None:
        self._fail(self._rows[who], status)
        self._pace.stop(who)

    def _step(self) -> None:
        """Let the samples attempt one step towards their goals."""
        self._look()
        pace, stepper = self._pace, self._stepper
        if self._unsized:
            self._open()
        reach = pace.reach()
        tried = self._short_of_jumps(reach)
        trial = stepper.attempt(self._now, self._f, tried)
        error = stepper.numbers(trial.error)
        moves = reach.size > 0
        taken = pace.advance(reach, error)
        self._nfe[self._rows] += stepper.evaluations * moves
        if stepper.graph and taken.any() and not np.isfinite(error).all():
            size = np.where(np.isfinite(error), tried.size, 0.0)  # no NaN may be behind a gradient
            trial = stepper.attempt(self._now, self._f, tried._replace(size=size))
        x = self._now
        if self._tally.tape is not None and taken.any():
            begin = reach.start
            if self._solver.jumps:
                begin = _beyond(begin, x, np.inf)
            way = self._slope.all_ways
            self._tally.tape.append(Took(self._rows, x.detach().clone(), begin, tried, taken, way))
        self._commit(trial, error, taken)
        if self._watchers or self._alarm is not None:
            self._show(Taken(self._rows, reach, taken, x, trial, stepper, self._slope.way))
        self._behind_jumps(reach, taken)
        self._attempts += 1
        if self._attempts >= self._solver.max_steps:
            over = (pace.tries >= self._solver.max_steps) & pace.moving
            if over.any():
                self._give_up(over, Status.MAX_STEPS)

    def _open(self) -> None:
        """Choose the size of the first step of those who have none."""
        pace, first = self._pace, self._solver.first
        self._unsized = False
        if not (np.isnan(pace.size) & pace.moving).any():
            return
        if first is not None:
            size = np.full_like(pace.at, first)
        else:
            whole = Reach(pace.at, pace.goal - pace.at, pace.goal, pace.moving)
            size = self._stepper.opening(self._now, self._f, whole)
            self._nfe[self._rows[np.isnan(pace.size) & pace.moving]] += self._stepper.opens
        pace.size = np.where(np.isnan(pace.size) & pace.moving, size, pace.size)

    def _commit(self, trial: Trial, error: Numbers, taken: Flags) -> None:
        """Move the samples whose step was taken."""
        if not taken.any():
            return
        harmless = error <= 1.0
        last = self._f if trial.last is None else trial.last
        self._stepper.took(taken, self._now, self._f)
        if harmless.all():
            self._now, self._f = trial.x, last
        else:
            flags = _flags(harmless, trial.x)
            self._now, self._f = chosen(flags, trial.x, self._now), chosen(flags, last, self._f)
        if trial.last is None:
            self._knows[taken] = False

    def _short_of_jumps(self, reach: Reach) -> Reach:
        """Let steps that land on a jump see the field before it."""
        if not self._solver.jumps:
            return reach
        lands = reach.lands & np.isin(reach.end, self._all.jumps)
        return reach._replace(
            end=np.where(lands, _beyond(reach.end, self._now, -np.inf), reach.end)
        )

    def _behind_jumps(self, reach: Reach, taken: Flags) -> None:
        """Forget the field before a jump."""
        if self._solver.jumps:
            self._knows[taken & np.isin(reach.end, self._all.jumps)] = False

    # what is seen of it

    def _show(self, step: Taken) -> None:
        met = None if self._alarm is None else self._alarm.look(step)
        if met is not None:
            end = step.reach.end.copy()
            end[met.which] = met.clocks
            step.reach = step.reach._replace(end=end)
        charged = np.zeros(len(self._rows), dtype=bool)
        for watcher in self._watchers:
            rows = watcher.see(step)
            if rows is not None:
                charged[rows] = True
        self._nfe[self._rows[charged]] += self._stepper.extra
        if met is not None:
            self._meet(met, step)

    def _meet(self, met: Met, step: Taken) -> None:
        """Let events happen to samples."""
        alarm, pace, way = self._alarm, self._pace, self._slope.way
        assert alarm is not None
        device = self._now.device
        at = torch.from_numpy(met.which).to(device)
        inside = step.inside(met.which, met.clocks)
        x = self._now.index_put((at,), inside)
        pace.at[met.which] = met.clocks
        f = self._f
        if self._stepper.graph:
            f = self._slope(x, self._stepper.here(pace.at, x))
            self._nfe[self._rows[met.which]] += 1
        for k in sorted({int(k) for k in met.event}):
            event, mine = alarm.events[k], met.which[met.event == k]
            here = torch.from_numpy(mine).to(device)
            late = alarm.timed(event, x, pace.at, f)
            shift = bshape(late, x)
            there = x + f * shift
            rows = torch.from_numpy(self._rows[mine]).to(device)
            t = torch.from_numpy((pace.at * way)[mine]).to(device) + late[here].double()
            alarm.happened.append(Happened(k, event.name, rows, t, there[here]))
            if event.reset is None:
                self._end_at(mine, rows, t)
            else:
                there = event.reset(there, alarm.time(x, pace.at) + shift)
                if self._stepper.graph:
                    with torch.no_grad():
                        after = self._slope(there, self._stepper.here(pace.at, there))
                    self._nfe[self._rows[mine]] += 1
                    there = there - after * shift
                self._knows[mine] = False
            x = x.index_put((here,), there[here])
        self._now = x

    def _end_at(self, mine: Rows, rows: Tensor, t: Tensor) -> None:
        """Let samples stop at an event."""
        self._ended[self._rows[mine]] = True
        who = np.zeros(len(self._rows), dtype=bool)
        who[mine] = True
        self._pace.stop(who)
        ends = self._tally.found.ends
        assert ends is not None
        self._tally.found.ends = ends.to(t.device).index_put((rows,), t)


def _flags(flags: Flags, like: Tensor) -> Tensor:
    return torch.from_numpy(flags).to(like.device)


def _beyond(clocks: Numbers, like: Tensor, towards: float) -> Numbers:
    """Return the next number of the state's dtype in a direction."""
    kind = np.float32 if like.dtype == torch.float32 else np.float64
    return np.nextafter(clocks.astype(kind), kind(towards)).astype(np.float64)

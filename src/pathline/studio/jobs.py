"""Jobs: a queue with bounded concurrency, fair between visitors, whose jobs can be stopped.

A job is a function that runs in one of a few threads. It calls `tick` as it goes (the hook of
`studio.shelf` does so before every evaluation of a network), and that is where it is stopped: by
its visitor, by the clock, or because nobody has asked about it for a while. So a visitor who closes
the page frees the slot, whatever the server notices of it.
"""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import torch

from pathline.core.errors import PathlineError, UsageError
from pathline.studio.limits import Limits

State = Literal["queued", "running", "done", "failed", "stopped"]
POLL = 0.1
"""Seconds between two looks at a job."""

_current: ContextVar[Job | None] = ContextVar("job", default=None)


class Stopped(PathlineError):
    """A job ended before it was done, and why."""


class Look(NamedTuple):
    """What can be said of a job at one moment.

    `ahead` counts the jobs that come before it; `total` is 0 where it is not known.
    """

    state: State
    done: int
    total: int
    ahead: int
    seconds: float


class Job:
    """One piece of work of one session; what `Jobs.submit` returns."""

    def __init__(self, session: str, work: Callable[[], Any], limits: Limits) -> None:
        self.session = session
        self.state: State = "queued"
        self.result: Any = None
        self.error: PathlineError | None = None
        self.done = self.total = 0
        self._work, self._limits = work, limits
        self._stop: str | None = None
        self._touched = self._begun = time.monotonic()
        self._ended: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ("done", "failed", "stopped")

    def touch(self) -> None:
        """Renew the lease: somebody is waiting for this job."""
        self._touched = time.monotonic()

    def cancel(self, why: str = "stopped.") -> None:
        """Have it stop at its next tick, or not begin at all; more than once is once."""
        if self._stop is None:
            self._stop = why

    def expect(self, total: int) -> None:
        """Say how many ticks are to come."""
        self.total = self.done + total

    def tick(self, n: int = 1) -> None:
        """Count what was done, and stop here if that is wanted.

        Raises:
            Stopped: it was cancelled, takes too long, or has no one who waits for it.
        """
        self.done += n
        if (why := self._reason()) is not None:
            raise Stopped(why)

    def _reason(self) -> str | None:
        now, limits = time.monotonic(), self._limits
        if self._stop is None and now - self._touched > limits.lease:
            self._stop = "stopped, as nobody waited for it any more."
        if self._stop is None and self.state == "running" and now - self._begun > limits.seconds:
            self._stop = f"stopped after {limits.seconds:g} seconds, which is all a job may take."
        return self._stop

    def _run(self) -> None:
        """Do the work and keep what comes of it; only a worker calls this."""
        token = _current.set(self)
        self.state, self._begun = "running", time.monotonic()
        try:
            self.tick(0)
            self.result = self._work()
            self.state = "done"
        except Stopped as stopped:
            self.error, self.state = stopped, "stopped"
        except PathlineError as error:
            self.error, self.state = _bare(error), "failed"
        except Exception:  # a defect of ours must not take the worker with it
            traceback.print_exc()
            self.error = PathlineError("something went wrong here; the server's log has it.")
            self.state = "failed"
        finally:
            self._ended, self._work = time.monotonic(), _nothing
            _current.reset(token)

    def look(self, ahead: int = 0) -> Look:
        """Return how it stands."""
        until = time.monotonic() if self._ended is None else self._ended
        return Look(self.state, self.done, self.total, ahead, until - self._begun)


def _nothing() -> None:
    """Stand for work that is over, so that nothing it held is kept."""


def _bare(error: PathlineError) -> PathlineError:
    """Return an error's sentence alone: the error itself holds frames, and these hold tensors."""
    return PathlineError(" ".join(str(error).split()))


def tick(n: int = 1) -> None:
    """Tick the job of this thread, if it has one."""
    if (job := _current.get()) is not None:
        job.tick(n)


def expect(total: int) -> None:
    """Say how many ticks the job of this thread has before it."""
    if (job := _current.get()) is not None:
        job.expect(total)


class Jobs:
    """The queue and its workers.

    Sessions take turns, so that one visitor with many jobs does not keep the others waiting.

    Args:
        limits: workers, length, and what a session may have.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()
        self._running: set[Job] = set()
        self._changed = threading.Condition()
        self._open = True
        self._threads = [
            threading.Thread(target=self._serve, name=f"studio-{i}", daemon=True)
            for i in range(limits.workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, session: str | None, work: Callable[[], Any]) -> Job:
        """Queue a job of a session.

        Raises:
            UsageError: there is no session, or too many jobs wait, of this session or of all.
        """
        if not session:
            raise UsageError("this request has no session: open the studio in a browser.")
        with self._changed:
            self._sweep()
            mine = self._of(session)
            if len(mine) >= self.limits.per_session:
                raise UsageError(
                    f"{len(mine)} jobs of yours are not done yet: wait for them, or stop them."
                )
            if sum(map(len, self._waiting.values())) >= self.limits.queue:
                raise UsageError("too many jobs are waiting; try again in a minute.")
            job = Job(session, work, self.limits)
            self._waiting.setdefault(session, deque()).append(job)
            self._changed.notify()
        return job

    def cancel(self, session: str | None) -> int:
        """Stop all jobs of a session, and return how many there were."""
        with self._changed:
            mine = [job for job in self._of(session or "") if not job.is_over]
            for job in mine:
                job.cancel()
            self._sweep()
        return len(mine)

    def look(self, job: Job) -> Look:
        """Return how a job stands, and how many come before it."""
        with self._changed:
            self._sweep()
            return job.look(self._ahead(job))

    async def watch(self, job: Job) -> AsyncIterator[Look]:
        """Yield how a job stands until it is over; one who stops listening stops the job."""
        try:
            while not job.is_over:
                job.touch()
                yield self.look(job)
                await asyncio.sleep(POLL)
            yield self.look(job)
        finally:
            job.cancel()

    @property
    def busy(self) -> int:
        """Jobs that wait or run."""
        with self._changed:
            self._sweep()
            return len(self._running) + sum(map(len, self._waiting.values()))

    def close(self) -> None:
        """Stop everything, and wait for the workers."""
        with self._changed:
            self._open = False
            for job in [*self._running, *(j for line in self._waiting.values() for j in line)]:
                job.cancel("stopped, as the studio closes.")
            self._sweep()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=30)

    def _of(self, session: str) -> list[Job]:
        running = [job for job in self._running if job.session == session]
        return [*running, *self._waiting.get(session, ())]

    def _ahead(self, job: Job) -> int:
        """Return how many jobs are taken before this one: rounds, one of each session."""
        if job.state != "queued":
            return 0
        ahead, lines = 0, list(self._waiting.items())
        names = [name for name, _ in lines]
        mine = names.index(job.session) if job.session in names else 0
        turn = list(self._waiting.get(job.session, (job,))).index(job)
        for place, (_, line) in enumerate(lines):
            ahead += min(len(line), turn + (place < mine))
        return ahead

    def _sweep(self) -> None:
        """End what waits and is not wanted any more."""
        for session in list(self._waiting):
            line = self._waiting[session]
            for job in [job for job in line if job._reason() is not None]:  # pyright: ignore[reportPrivateUsage]
                line.remove(job)
                job._run()  # pyright: ignore[reportPrivateUsage]  # ends at its first tick
            if not line:
                del self._waiting[session]

    def _next(self) -> Job | None:
        """Return the job whose turn it is; None when the studio closes."""
        with self._changed:
            while self._open:
                self._sweep()
                if self._waiting:
                    session, line = self._waiting.popitem(last=False)
                    job = line.popleft()
                    if line:
                        self._waiting[session] = line  # behind the others
                    self._running.add(job)
                    return job
                self._changed.wait()
        return None

    def _serve(self) -> None:
        torch.set_num_threads(self.limits.threads)  # a thread's own number
        while (job := self._next()) is not None:
            job._run()  # pyright: ignore[reportPrivateUsage]
            with self._changed:
                self._running.discard(job)
            del job  # or its result would live until the next one

"""Between the page and the queue: a click becomes a job, and its progress what the page shows."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from html import escape
from typing import Any, Protocol

from pathline.core.errors import PathlineError
from pathline.studio.jobs import Jobs, Look

OFTEN, SELDOM = 0.25, 2.0
"""Seconds between two lines of status: where it changes, and where it does not."""


class Work(Protocol):
    """What can be run in a job."""

    def run(self) -> Any:
        """Do it."""
        ...


def status(look: Look) -> str:
    """Return how a job stands, in HTML."""
    if look.state == "queued":
        return said(f"waiting; {look.ahead} before this one.")
    if look.state == "running":
        known = 0 < look.done <= look.total
        bar = f'<progress max="{look.total}" value="{look.done}"></progress>' if known else ""
        bar = bar or "<progress></progress>"
        return said(f"{look.done} evaluations, {look.seconds:.0f} s", before=bar)
    return said(f"{look.state}: {look.done} evaluations, {look.seconds:.1f} s")


def said(text: str, *, before: str = "", refused: bool = False) -> str:
    """Return a line of the page's status."""
    kind = "status refused" if refused else "status"
    return f'<div class="{kind}" role="status">{before}{escape(text)}</div>'


def _done(work: Work, show: Callable[[Any], Sequence[Any]]) -> Sequence[Any]:
    return show(work.run())


async def follow(
    jobs: Jobs,
    session: str | None,
    begin: Callable[[], Work],
    show: Callable[[Any], Sequence[Any]],
) -> AsyncIterator[tuple[str, Sequence[Any] | None]]:
    """Run what a visitor asked for, and yield (status, outputs): outputs once, at the end.

    Args:
        jobs: the queue.
        session: the visitor's.
        begin: checks what was asked for; runs in a thread, for a model may have to be loaded.
        show: makes outputs of a result; runs in the job.
    """
    try:
        work = await asyncio.to_thread(begin)
        job = jobs.submit(session, partial(_done, work, show))
    except PathlineError as error:
        yield said(" ".join(str(error).split()), refused=True), None
        return
    del begin, work  # the job alone holds what was sent, and lets go of it when it is over
    looks = jobs.watch(job)
    try:
        told, before = -math.inf, ""
        async for look in looks:
            now, line = time.monotonic(), status(look)
            pause = min(OFTEN + look.ahead / 20, SELDOM)  # who waits behind many is told seldom
            due = now - told > (pause if line != before else SELDOM)
            if due and not job.is_over:
                told, before = now, line
                yield line, None  # where nobody listens, this does not return: the lease ends
        if job.error is not None:
            yield said(str(job.error), refused=True), None
        else:
            yield status(jobs.look(job)), job.result
    finally:
        await looks.aclose()  # type: ignore[attr-defined]  # stops the job, if nobody listens

"""What a step needs, made while the steps before it are taken."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["Ahead"]

T = TypeVar("T")

WORKERS = 4


@dataclass
class Ahead(Generic[T]):
    """The values of a function of the step, computed ahead in threads of their own.

    The function must depend on the step alone: then it does not matter when it is called, and a run
    that draws ahead is bitwise one that does not.

    Args:
        draw: step → value.
        depth: how many values may wait; 0 computes each when it is asked for.

    Example:
        >>> squares = Ahead(lambda step: step**2, depth=3)
        >>> [squares.at(step) for step in (0, 1, 2, 7)]
        [0, 1, 4, 49]
    """

    draw: Callable[[int], T]
    depth: int
    _waiting: dict[int, Future[T]] = field(default_factory=lambda: {}, repr=False)
    _threads: ThreadPoolExecutor | None = field(default=None, repr=False)

    def at(self, step: int) -> T:
        """Return the value of a step, and have those of the next ones made."""
        if not self.depth:
            return self.draw(step)
        if self._threads is None:
            self._threads = ThreadPoolExecutor(WORKERS, thread_name_prefix="pathline-ahead")
        wanted = range(step, step + self.depth)
        for gone in self._waiting.keys() - set(wanted):
            self._waiting.pop(gone).cancel()
        for i in wanted:
            if i not in self._waiting:
                self._waiting[i] = self._threads.submit(self.draw, i)
        return self._waiting.pop(step).result()

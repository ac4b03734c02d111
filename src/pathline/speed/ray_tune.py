"""A search whose candidates are scored by Ray Tune's workers, on one machine or many.

Candidates are made in batches, each from what was known before it, so the result is that of the
same search in one process with the same batch, whichever worker is faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pathline.core.errors import MissingExtra
from pathline.speed.search import Search

T = TypeVar("T")


@dataclass
class _Queue(Generic[T]):
    """Candidates on their way: asked for one by one, told in the order of asking."""

    search: Search[T]
    budget: int
    tell: Callable[[T, float], None]
    asked: dict[str, tuple[int, T]] = field(default_factory=dict)
    found: dict[int, tuple[T, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.next = len(self.search.scored)

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune copies what it works with, and the search writes itself down."""
        return {}

    @property
    def is_done(self) -> bool:
        """Whether the budget has been asked for."""
        return self.next >= self.budget

    @property
    def must_wait(self) -> bool:
        """Whether the batch before the next candidate is still being scored."""
        return len(self.search.scored) < self.search.known_by(self.next)

    def ask(self, trial: str) -> T:
        """Return the next candidate, which this trial scores."""
        candidate = self.search.ask(self.next)
        self.asked[trial] = (self.next, candidate)
        self.next += 1
        return candidate

    def answer(self, trial: str, value: float) -> None:
        """Take a trial's score, and tell all those whose turn it is."""
        i, candidate = self.asked.pop(trial)
        self.found[i] = (candidate, value)
        while len(self.search.scored) in self.found:
            self.tell(*self.found.pop(len(self.search.scored)))


def run_with_ray(
    search: Search[T],
    score: Callable[[T], float],
    budget: int,
    tell: Callable[[T, float], None],
) -> None:
    """Score candidates on Ray's workers until so many have been.

    Args:
        search: asked for candidates; `search.settings.batch` of them are scored at a time.
        score: is sent to the workers, with all that it refers to.
        budget: true evaluations in all.
        tell: adds a score to the search.

    Raises:
        MissingExtra: Ray is not installed.
    """
    tune, algorithms = _ray()
    queue = _Queue(search, budget, tell)
    if queue.is_done:
        return
    load = search.space.load

    def trial(config: dict[str, Any]) -> dict[str, float]:
        return {"score": score(load(config["candidate"]))}

    settings = tune.TuneConfig(
        search_alg=_searcher(algorithms.Searcher, queue),
        num_samples=budget - queue.next,
        max_concurrent_trials=search.settings.batch,
    )
    quiet = tune.RunConfig(verbose=0)
    tune.Tuner(trial, tune_config=settings, run_config=quiet).fit()


def _searcher(base: Any, queue: _Queue[T]) -> Any:
    """Return Tune's view of a queue."""

    class Asking(base):
        """Suggests candidates, and hears what they scored."""

        def suggest(self, trial_id: str) -> Any:
            if queue.is_done:
                return base.FINISHED
            if queue.must_wait:
                return None
            return {"candidate": queue.search.space.dump(queue.ask(trial_id))}

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            failed = error or not result
            queue.answer(trial_id, math.inf if failed else float((result or {})["score"]))

        def save(self, checkpoint_path: str) -> None:
            """Leave it to the search, which writes itself down."""

        def restore(self, checkpoint_path: str) -> None:
            """Leave it to the search, too."""

    return Asking(metric="score", mode="min")


def _ray() -> tuple[Any, Any]:
    try:
        from ray import tune  # pyright: ignore[reportMissingImports]
        from ray.tune import search  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtra("ray", "ray", "to search on several workers") from error
    return tune, search

"""Population search over anything that can be mutated, with a fixed number of true evaluations.

Steady-state evolution: candidate i is made from the best of what was scored before it, scored, and
joins the others of its cost. The start is a zoo of known good candidates. What is drawn for
candidate i is a function of the seed and i alone, and what it is made from is what came before, so
an interrupted search goes on from its file exactly as if nothing had happened.

The search knows nothing of solvers: a `Space` says how to make a child, what it costs, and how to
write it down. Step-skipping masks, guidance by step or models by step are spaces as well.

Paper: Liu et al. 2023 (arXiv:2312.07243); the released code's loop and its values.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from pathline.core.errors import UsageError
from pathline.core.files import write_atomically
from pathline.core.progress import progress

T = TypeVar("T")
In = TypeVar("In", contravariant=True)
FORMAT = 2
SAVE_EVERY = 5.0
"""Seconds between two writings of the file that a search goes on from."""
TRIES = 20
"""Children that are made until one is new."""
FILTERED = 16
"""Children of which a ranker picks one."""


class Space(Protocol[T]):
    """What is searched."""

    def mutated(self, parent: T, draw: np.random.Generator, cost: int) -> T:
        """Return a changed copy that costs this much."""
        ...

    def crossed(self, one: T, other: T, draw: np.random.Generator) -> T:
        """Return a mix of two."""
        ...

    def cost(self, candidate: T) -> int:
        """Return what using it costs (evaluations of a network)."""
        ...

    def dump(self, candidate: T) -> Any:
        """Return it as JSON values."""
        ...

    def load(self, content: Any) -> T:
        """Read what `dump` wrote."""
        ...


class Ranker(Protocol[In]):
    """Guesses scores without measuring them; see `predictor`."""

    def fitted(self, candidates: Sequence[In], scores: Sequence[float]) -> Ranker[In]:
        """Return a ranker that has learned from these."""
        ...

    def __call__(self, candidates: Sequence[In]) -> Sequence[float]:
        """Return a number for each; lower is taken for better."""
        ...


@dataclass(frozen=True)
class Scored(Generic[T]):
    """A candidate with its cost and its score (lower is better; +∞ where it was no number)."""

    candidate: T
    cost: int
    score: float


@dataclass(frozen=True)
class Settings:
    """How children are made.

    Args:
        parents: the best of a cost, from which parents are drawn.
        crossover: how often two parents are mixed before the mutation.
        tournament: draws for a parent, of which the best is taken.
        batch: candidates made from the same past, to be scored at once (by Ray's workers, say).
        relearn: new scores after which a ranker learns again.
    """

    parents: int = 15
    crossover: float = 0.3
    tournament: int = 2
    batch: int = 1
    relearn: int = 50

    def __post_init__(self) -> None:
        for name in ("parents", "tournament", "batch", "relearn"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, and is {getattr(self, name)}.")
        if not 0 <= self.crossover <= 1:
            raise UsageError(f"crossover must lie in [0, 1], and is {self.crossover}.")


@dataclass
class Search(Generic[T]):
    """A search under way: `ask(i)` for candidate i, `tell` its score.

    Args:
        space: what is searched.
        start: the candidates to begin with (a zoo); at least one of every cost.
        costs: which costs are searched, in turn.
        seed: of all draws.
        settings: how children are made.
        ranker: picks the better of several children, for every second one, once two scores are
            finite; None for none. Half of the children stay unfiltered, for diversity.
        about: what the scores depend on besides; a file of another search is refused.
    """

    space: Space[T]
    start: Sequence[T]
    costs: Sequence[int]
    seed: int = 0
    settings: Settings = field(default_factory=Settings)
    ranker: Ranker[T] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    scored: list[Scored[T]] = field(default_factory=list)

    def __post_init__(self) -> None:
        found = {self.space.cost(candidate) for candidate in self.start}
        if lacking := sorted(set(self.costs) - found):
            raise UsageError(f"the search starts with no candidate of cost {lacking}.")
        if self.seed < 0:
            raise UsageError(f"the seed must be at least 0, and is {self.seed}.")
        self._learned: tuple[int, Ranker[T]] | None = None
        self._keys = [self._key(each.candidate) for each in self.scored]

    def ask(self, i: int) -> T:
        """Return candidate i; what comes before its batch must have been told."""
        if i < len(self.start):
            return self.start[i]
        past = self.scored[: self.known_by(i)]
        draw = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, i]))
        cost = self.costs[(i - len(self.start)) % len(self.costs)]
        if self.ranker is None or i % 2:
            return self._child(past, cost, draw)
        ranker = self._ranker(past)
        if ranker is None:
            return self._child(past, cost, draw)
        children = [self._child(past, cost, draw) for _ in range(FILTERED)]
        return children[int(np.argmin(ranker(children)))]

    def tell(self, candidate: T, score: float) -> None:
        """Add the next score; one that is no number counts as the worst."""
        worth = float(score)
        worth = math.inf if math.isnan(worth) else worth
        self.scored.append(Scored(candidate, self.space.cost(candidate), worth))
        self._keys.append(self._key(candidate))

    def best(self, cost: int, n: int = 1) -> list[Scored[T]]:
        """Return the n best of a cost, best first."""
        return _best(self.scored, cost)[:n]

    def known_by(self, i: int) -> int:
        """Return how many scores candidate i is made from: all those before its batch."""
        first, batch = len(self.start), self.settings.batch
        return 0 if i < first else first + (i - first) // batch * batch

    def _child(self, past: Sequence[Scored[T]], cost: int, draw: np.random.Generator) -> T:
        how = self.settings
        parents = _best(past, cost)[: how.parents]
        known = set(self._keys[: len(past)])
        child = parents[0].candidate
        for _ in range(TRIES):
            one, other = (self._parent(parents, draw) for _ in range(2))
            if draw.random() < how.crossover:
                one = self.space.crossed(one, other, draw)
            child = self.space.mutated(one, draw, cost)
            if self._key(child) not in known:
                break
        return child

    def _parent(self, parents: Sequence[Scored[T]], draw: np.random.Generator) -> T:
        """Return the best of a few: they are sorted, so the lowest number."""
        return parents[
            int(draw.integers(len(parents), size=self.settings.tournament).min())
        ].candidate

    def _ranker(self, past: Sequence[Scored[T]]) -> Ranker[T] | None:
        """Return the ranker as it was after the last multiple of `relearn` scores.

        None if fewer than two of them were finite.
        """
        assert self.ranker is not None
        n = max(len(self.start), len(past) // self.settings.relearn * self.settings.relearn)
        if self._learned is None or self._learned[0] != n:
            known = [each for each in past[:n] if math.isfinite(each.score)]
            if len(known) < 2:
                return None
            learned = self.ranker.fitted([e.candidate for e in known], [e.score for e in known])
            self._learned = (n, learned)
        return self._learned[1]

    def _key(self, candidate: T) -> str:
        return json.dumps(self.space.dump(candidate), sort_keys=True)

    def fingerprint(self) -> str:
        """Return a checksum of what decides the search, but for its budget."""
        start = [self.space.dump(candidate) for candidate in self.start]
        told = [start, list(self.costs), self.seed, asdict(self.settings), dict(self.about)]
        text = json.dumps([*told, _told(self.space), _told(self.ranker)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def save(self, file: str | Path) -> Path:
        """Write what has been scored."""
        scored = [[self.space.dump(e.candidate), e.score] for e in self.scored]
        content = {"search": FORMAT, "fingerprint": self.fingerprint(), "scored": scored}
        return write_atomically(file, json.dumps(content))

    def resume(self, file: str | Path) -> None:
        """Go on from a file that `save` wrote.

        Raises:
            UsageError: it cannot be read, or is of another search.
        """
        try:
            content = json.loads(Path(file).read_text(encoding="utf-8"))
            mark, scored = content["fingerprint"], content["scored"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"cannot read a search from {file}: {error}.") from error
        if content.get("search") != FORMAT or mark != self.fingerprint():
            raise UsageError(
                f"{file} is of another search (model, seed, start or settings differ); move it "
                "away, or write elsewhere."
            )
        for candidate, score in scored:
            self.tell(self.space.load(candidate), score)


def evolve(
    search: Search[T],
    score: Callable[[T], float],
    budget: int,
    *,
    file: str | Path | None = None,
    what: str = "searching",
    ray: bool = False,
) -> Search[T]:
    """Score candidates until so many have been, and return the search.

    Args:
        search: where to begin; what it has scored already counts.
        score: lower is better; a NaN counts as +∞. It must not depend on anything that changes
            (fix the noise), or ranks are noise too.
        budget: true evaluations in all, those of the start included.
        file: what an interrupted search goes on from; None keeps nothing.
        what: is going on, for the progress bar.
        ray: score each batch with Ray Tune, on all the machines that it has.

    Raises:
        UsageError: the budget does not pay for the start, or the file is of another search.
        MissingExtra: Ray is not installed.
    """
    if budget < len(search.start):
        raise UsageError(
            f"a budget of {budget} does not pay for the {len(search.start)} candidates to start "
            "with; raise it, or start with fewer."
        )
    if file is not None and Path(file).exists():
        search.resume(file)
    keeper = _Keeper(search, file)
    with progress() as bar:
        task = bar.add_task(what, total=budget, completed=len(search.scored))

        def tell(candidate: T, value: float) -> None:
            search.tell(candidate, value)
            keeper.save_soon()
            bar.advance(task)

        try:
            if ray:
                from pathline.speed.ray_tune import run_with_ray

                run_with_ray(search, score, budget, tell)
            else:
                for i in range(len(search.scored), budget):
                    candidate = search.ask(i)
                    tell(candidate, score(candidate))
        finally:
            keeper.save()
    return search


class _Keeper:
    """Writes a search down, now and then, and at the end."""

    def __init__(self, search: Search[Any], file: str | Path | None) -> None:
        self.search, self.file, self.last = search, file, time.monotonic()

    def save_soon(self) -> None:
        if time.monotonic() - self.last > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        if self.file is not None:
            self.search.save(self.file)
        self.last = time.monotonic()


def _told(value: Any) -> Any:
    """Return a space, a ranker or a part of one as JSON values: its class, and what it was given.

    What does not show in a dataclass (`repr=False`) does not count: what was learned, say.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _told(each) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [_told(each) for each in value]
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if not is_dataclass(value):
        return [name, value.tolist()] if hasattr(value, "tolist") else name
    return [name, {f.name: _told(getattr(value, f.name)) for f in fields(value) if f.repr}]


def _best(scored: Sequence[Scored[T]], cost: int) -> list[Scored[T]]:
    return sorted((each for each in scored if each.cost == cost), key=lambda each: each.score)

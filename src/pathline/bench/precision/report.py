"""What a comparison found: the best of each library at each cost, the bars, and who loses where."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from pathline.bench.precision import ours
from pathline.bench.precision.plot import COLOURS, Curve, draw_png, svg
from pathline.bench.precision.store import Key
from pathline.bench.report import Bar, aligned, piped
from pathline.core.files import write_atomically
from pathline.core.page import page, table

HALF_AT = 5, 6, 8, 10
"""At these evaluations the best of ours is to have at most half of the best peer's error."""

FIRST_ORDER = "ddim"
"""What loses to it is not worth its name."""

ABOUT = (
    "RMS error to the converged solution, each on its best grid; evaluations are counted calls of "
    "the guided network, which are two of the network itself: of s3_guided, which leaves some of "
    "these out, two count as one. The same noises, held out, for everybody."
)

MEDIAN = (
    "The median of the noises' own errors, by each library's best there. A noise whose sample "
    "forks ends elsewhere whatever few steps do, and a few of them make most of a root mean square."
)

FRECHET = "## Fréchet distance to held-out pictures, 500 of each"


class Best(NamedTuple):
    """The least error, and who had it."""

    error: float
    sampler: str
    grid: str

    def __str__(self) -> str:
        return f"{self.error:.3g} ({self.sampler}; {self.grid})"


@dataclass(frozen=True)
class Seen:
    """How near sets of pictures are to real ones, by Fréchet distance.

    Args:
        network: whose features.
        real: between two sets of real pictures.
        converged: of the model's own, as good as converged.
        distances: (contestant, evaluations) → distance.
    """

    network: str
    real: float
    converged: float
    distances: Mapping[tuple[Key, int], float]

    def cells(self) -> list[list[str]]:
        """One line for each of those who were measured, and what to hold them to."""
        lines = [["evaluations", "", "sampler", "Fréchet distance"]]
        for ((by, sampler, grid), n), distance in self.distances.items():
            lines.append([str(n), by, f"{sampler}; {grid}", f"{distance:.3g}"])
        lines.append(["", "", "the model's own, converged", f"{self.converged:.3g}"])
        return [*lines, ["", "", "other real pictures", f"{self.real:.3g}"]]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        lines = [
            {"by": by, "sampler": sampler, "grid": grid, "nfe": n, "distance": distance}
            for ((by, sampler, grid), n), distance in self.distances.items()
        ]
        ends = {"real": self.real, "converged": self.converged}
        return {"network": self.network, **ends, "distances": lines}


@dataclass(frozen=True)
class Outcome:
    """What was found on a problem.

    Args:
        problem: its name.
        settings: samples, seeds, guidance, weights.
        errors: contestant → evaluations → error.
        absent: who could not take part, and why.
        converged: how well the goal is known, in words.
        held: whether the bars hold for it; on an oracle they are only told.
        counts: the evaluations that were asked for.
        place: machine, versions and date.
        seen: how near to real pictures each library's best come; None where nobody looked.
        medians: as `errors`, of the median noise.
    """

    problem: str
    settings: Mapping[str, Any]
    errors: Mapping[Key, Mapping[int, float]]
    absent: Mapping[str, str]
    converged: str
    held: bool
    counts: Sequence[int]
    place: Mapping[str, str]
    seen: Seen | None = None
    medians: Mapping[Key, Mapping[int, float]] = field(default_factory=dict)

    @cached_property
    def libraries(self) -> list[str]:
        """Ours, and the peers that have numbers."""
        return list(dict.fromkeys(by for by, _, _ in self.errors))

    def best(self, nfe: int, by: Iterable[str], *, median: bool = False) -> Best | None:
        """Return the least error of these libraries at so many evaluations."""
        whose, measured = set(by), self.medians if median else self.errors
        found = [
            Best(errors[nfe], sampler, grid)
            for (library, sampler, grid), errors in measured.items()
            if library in whose and math.isfinite(errors.get(nfe, math.nan))
        ]
        return min(found, default=None)

    def ratio(self, nfe: int, *, median: bool = False) -> float | None:
        """Return the error of our best over that of the best peer, where both have one."""
        mine, theirs = (self.best(nfe, by, median=median) for by in ([ours.NAME], self.peers))
        return None if mine is None or theirs is None else mine.error / theirs.error

    @property
    def peers(self) -> list[str]:
        """The libraries that are not ours."""
        return [by for by in self.libraries if by != ours.NAME]

    @property
    def missing(self) -> list[str]:
        """The libraries that are not here."""
        return [by for by in COLOURS if by in self.absent]

    @cached_property
    def bars(self) -> list[Bar]:
        """Our best beside the best peer, at every number of evaluations where both have one."""
        bars: list[Bar] = []
        for nfe in self.counts:
            if (ratio := self.ratio(nfe)) is not None:
                limit = (0.5 if nfe in HALF_AT else 1.0) if self.held else None
                bars.append(Bar(self._bar(nfe), ratio, limit))
        return bars

    def _bar(self, nfe: int) -> str:
        return f"{self.problem}, {nfe} evaluations: best of ours / best peer"

    def cells(self, *, median: bool = False) -> list[list[str]]:
        """The main table: a line for each number of evaluations. The median is held to no bar."""
        lines = [["evaluations", *self.libraries, "ours / best peer"]]
        verdicts = {} if median else {bar.text: bar.verdict for bar in self.bars}
        for nfe in self.counts:
            bests = [self.best(nfe, [by], median=median) for by in self.libraries]
            ratio, verdict = self.ratio(nfe, median=median), verdicts.get(self._bar(nfe), "")
            told = "" if ratio is None else f"{ratio:.2f} {verdict}".strip()
            lines.append([str(nfe), *("" if b is None else str(b) for b in bests), told])
        return lines

    def samplers(self) -> dict[tuple[str, str], dict[int, float]]:
        """Return each sampler's error on its best grid, by evaluations."""
        found: dict[tuple[str, str], dict[int, float]] = {}
        for (by, sampler, _), errors in self.errors.items():
            mine = found.setdefault((by, sampler), {})
            for nfe, error in errors.items():
                if math.isfinite(error):
                    mine[nfe] = min(error, mine.get(nfe, math.inf))
        return found

    def sampler_cells(self) -> list[list[str]]:
        """Every sampler on its best grid; the best of all first."""
        lines = [["", "sampler", *map(str, self.counts)]]
        found = self.samplers()

        def rank(item: tuple[tuple[str, str], dict[int, float]]) -> float:
            logs = [math.log(e / self._least[n]) for n, e in item[1].items() if n in self._least]
            return sum(logs) / len(logs) if logs else math.inf

        for (by, sampler), errors in sorted(found.items(), key=rank):
            numbers = (f"{errors[n]:.2g}" if n in errors else "" for n in self.counts)
            lines.append([by, sampler, *numbers])
        return lines

    @cached_property
    def _least(self) -> dict[int, float]:
        bests = {n: self.best(n, self.libraries) for n in self.counts}
        return {n: best.error for n, best in bests.items() if best is not None}

    def recommended(self) -> dict[int, Best]:
        """Return what to take of ours, by evaluations."""
        bests = {n: self.best(n, [ours.NAME]) for n in self.counts}
        return {n: best for n, best in bests.items() if best is not None}

    def losing(self) -> Iterator[str]:
        """Say which of ours lose to first order, and where."""
        found = {name: e for (by, name), e in self.samplers().items() if by == ours.NAME}
        plain = found.get(FIRST_ORDER, {})
        for name, errors in found.items():
            lost = [n for n, e in sorted(errors.items()) if n in plain and e > 1.0001 * plain[n]]
            if lost:
                yield f"{name}: at {', '.join(map(str, lost))}"

    def summary(self) -> dict[str, Any]:
        """Return what matters as plain JSON values."""
        best = {
            str(n): {by: b._asdict() for by in self.libraries if (b := self.best(n, [by]))}
            for n in self.counts
        }
        bars = [
            {"text": b.text, "measured": b.measured, "limit": b.limit, "passed": b.passed}
            for b in self.bars
        ]
        recommended = {str(n): f"{b.sampler}; {b.grid}" for n, b in self.recommended().items()}
        return {
            "problem": self.problem,
            "place": dict(self.place),
            "converged": self.converged,
            "passed": all(bar.passed for bar in self.bars),
            "recommended": recommended,
            "frechet": None if self.seen is None else self.seen.to_dict(),
            "bars": bars,
            "medians": {str(n): r for n in self.counts if (r := self.ratio(n, median=True))},
            "best": best,
        }

    # Files

    def markdown(self) -> str:
        """Return the outcome as a page of Markdown."""
        facts = {**self.place, **self.settings, "converged": self.converged}
        parts = [
            f"# pathline bench solvers: {self.problem}",
            ABOUT,
            "\n".join(f"- {key}: {value}" for key, value in facts.items()),
            f"![error against evaluations](solvers-{self.problem}.png)",
            "\n".join(_markdown(self.cells())),
            *self._median_markdown(),
            "## Of ours, take",
            "\n".join(f"- {n} evaluations: {best}" for n, best in self.recommended().items()),
            *([] if self.seen is None else [FRECHET, "\n".join(_markdown(self.seen.cells()))]),
            "## Every sampler on its best grid",
            "The best on average first.",
            "\n".join(_markdown(self.sampler_cells())),
            "## Where ours lose to DDIM",
            "Each on its best grid.",
            "\n".join(f"- {line}" for line in self.losing()) or "Nowhere.",
            "## Left out",
            "\n".join(f"- {who}: {why}" for who, why in self.absent.items()) or "Nobody.",
        ]
        return "\n\n".join(parts) + "\n"

    def _median_markdown(self) -> list[str]:
        lines = "\n".join(_markdown(self.cells(median=True)))
        return ["## The median noise", MEDIAN, lines] if self.medians else []

    def html(self) -> str:
        """Return the outcome as a page with everything inside; points tell who they are."""
        head, *body = self.cells()
        rows = [dict(zip(head, line, strict=True)) for line in body]
        first, *others = self.sampler_cells()
        first = ["library", *first[1:]]
        everybody = [dict(zip(first, line, strict=True)) for line in others]
        facts = {**self.place, **self.settings, "converged": self.converged}
        told = "; ".join(f"{key}: {value}" for key, value in facts.items())
        parts = [
            f"<p>{escape(ABOUT)}</p>",
            svg(self.curves()),
            *table(rows),
            *self._median_html(),
            *self._seen_html(),
            "<h2>Every sampler on its best grid</h2>",
            *table(everybody),
            "<h2>Where ours lose to DDIM</h2>",
            f"<p>{escape('; '.join(self.losing()) or 'Nowhere.')}</p>",
            f'<p class="small">{escape(told)}</p>',
        ]
        return page(f"pathline bench solvers: {self.problem}", parts, "body { max-width: 80rem }")

    def _median_html(self) -> Iterator[str]:
        if self.medians:
            head, *body = self.cells(median=True)
            yield f"<h2>The median noise</h2><p>{escape(MEDIAN)}</p>"
            yield from table([dict(zip(head, line, strict=True)) for line in body])

    def _seen_html(self) -> Iterator[str]:
        if self.seen is not None:
            head, *body = self.seen.cells()
            yield f"<h2>{escape(FRECHET.removeprefix('## '))}</h2>"
            yield from table([dict(zip(head, line, strict=True)) for line in body])

    def curves(self) -> list[Curve]:
        """Return every sampler on its best grid at each cost, and each library's best."""
        curves: list[Curve] = []
        for (by, sampler), errors in self.samplers().items():
            points = {n: (errors[n], sampler) for n in self.counts if n in errors}
            curves.append(Curve(by, sampler, points, is_best=False))
        for by in self.libraries:
            bests = ((n, self.best(n, [by])) for n in self.counts)
            points = {n: (b.error, f"{b.sampler}; {b.grid}") for n, b in bests if b is not None}
            curves.append(Curve(by, "best", points, is_best=True))
        return curves

    def save(self, folder: Path) -> list[Path]:
        """Write Markdown, page and picture, and return their paths."""
        stem = folder / f"solvers-{self.problem}"
        paths = [
            write_atomically(stem.with_suffix(".md"), self.markdown()),
            write_atomically(stem.with_suffix(".html"), self.html()),
        ]
        picture = draw_png(self.curves(), f"{self.problem}: error to the converged solution")
        return paths + (
            [] if picture is None else [write_atomically(stem.with_suffix(".png"), picture)]
        )


def _markdown(cells: Sequence[Sequence[str]]) -> list[str]:
    head, *body = cells
    return [piped(head), "|" + " --- |" * len(head), *map(piped, body)]


@dataclass(frozen=True)
class Comparison:
    """What was found on every problem.

    Args:
        outcomes: one a problem.
    """

    outcomes: Sequence[Outcome]

    @property
    def passed(self) -> bool:
        """Whether every bar that is held is kept."""
        return all(bar.passed for outcome in self.outcomes for bar in outcome.bars)

    def to_dict(self) -> dict[str, Any]:
        """Return what matters as plain JSON values; the files have every number."""
        return {"passed": self.passed, "problems": [o.summary() for o in self.outcomes]}

    def table(self) -> str:
        """Return the main tables as text."""
        parts = [ABOUT]
        for outcome in self.outcomes:
            parts += ["", f"{outcome.problem} (converged to {outcome.converged})", ""]
            parts += aligned(outcome.cells())
            parts += [f"{by} is left out: {outcome.absent[by]}." for by in outcome.missing]
        return "\n".join(parts)

    def save(self, folder: str | Path) -> list[Path]:
        """Write the files of every problem."""
        return [path for outcome in self.outcomes for path in outcome.save(Path(folder))]

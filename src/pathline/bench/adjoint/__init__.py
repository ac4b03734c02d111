"""Gradients through a solve: time and memory of every adjoint, beside torchdiffeq's.

One field, one loss, one reference. Everybody gets as many steps as his gradient (in the noise and
in the weights) needs to come within the same error of the flow's own, and is timed there: that is
what a step, a solver and an adjoint are worth together. The bar is held by those of ours whose
memory does not grow with the steps.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from pathline.bench.adjoint.contestants import (
    BOUNDED,
    CONTINUOUS,
    LADDER,
    PEER,
    PEER_DIRECT,
    STATES,
    TOGETHER,
    contestants,
)
from pathline.bench.adjoint.fitting import Fit, Kept, fitted
from pathline.bench.adjoint.problems import REFERENCE, SAMPLES, Problem, problems, reference
from pathline.bench.precision.store import code_stamp
from pathline.bench.report import Bar, Report, Row
from pathline.bench.timing import Run, interleaved
from pathline.core.errors import MissingExtra, PathlineError
from pathline.core.progress import track
from pathline.core.receipt import versions
from pathline.data.fetch import cache_folder
from pathline.solvers.adjoints.meter import peak_bytes

ERROR = 1e-3
"""How near everybody's gradient comes to the flow's, relative."""

AT_MOST = 0.5
"""The bar: of the time of torchdiffeq's fastest adjoint."""

NEAR = 1.3
"""Who took longer than this times the fastest of his family, on a first try, is not timed again."""

ABOUT = (
    "What a gradient costs that is within 1e-3 of the flow's: processor time in milliseconds, the "
    "most bytes of tensors alive at one time, evaluations on both ways."
)

NOTES = (
    "Of each family the fastest is shown, with the solver, the form and the steps or the tolerance "
    "that it took. Ours without the probe that compares directions.",
    f"The bar is for what keeps a bounded number of states: checkpointing with {STATES} of them "
    f"({TOGETHER} steps taken again at a time) and the continuous adjoint. The reversible adjoint "
    "is left out: its rules are of order two, and with 160 steps a tenth off on the mixture.",
    "torchdiffeq is told coefficients that were worked out before it is timed.",
    "Bytes are those of tensors that operations have returned: states, slopes and activations on "
    "both sides, and not what an operation allocates inside itself.",
)


def adjoint(nfe: Sequence[int] | None = None, rounds: int = 5) -> Report:
    """Measure what a gradient costs by every adjoint, beside torchdiffeq's.

    Shows its progress, and keeps what it found (steps and tolerances that suffice) in the cache.

    Args:
        nfe: numbers of steps to choose from; `LADDER` if None.
        rounds: how often everybody runs; the median of each one's times is reported.

    Raises:
        MissingExtra: torchdiffeq is not installed.
        PathlineError: nobody comes near enough with these steps.

    Cost: two minutes on a quiet core.
    """
    if find_spec("torchdiffeq") is None:
        raise MissingExtra("torchdiffeq", "bench", "as the other side of bench adjoint")
    ladder = tuple(sorted(set(LADDER if nfe is None else nfe)))
    settings: dict[str, Any] = {
        "error": ERROR, "steps": _span(ladder), "samples": SAMPLES, "dtype": "float64",
        "threads": 1, "reference": f"rk4 in σ/α, {REFERENCE} steps",
    }  # fmt: skip
    code = code_stamp("solvers", "fields", "paths", "bench/adjoint")
    kept = Kept(cache_folder() / "bench-adjoint", settings | versions() | {"code": code})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows, bars, sure = list[Row](), list[Bar](), dict[str, str]()
    try:
        for problem in problems():
            exact, off = reference(problem, ERROR)
            sure[f"reference, {problem.name}"] = f"{off:.1e} from that of half as many steps"
            fits: dict[str, list[Fit]] = {}
            who = list(contestants(problem, ladder))
            for each in track(who, f"{problem.name}: steps"):
                seek = partial(fitted, each, exact, ERROR)
                if (fit := kept.fit(problem.name, each, seek)) is not None:
                    fits.setdefault(each.family, []).append(fit)
            table, ratios = _measured(problem, fits, rounds)
            rows += table
            bars += ratios
    finally:
        torch.set_num_threads(threads)
    return Report("adjoint", ABOUT, rows, bars, settings | {"rounds": rounds} | sure, NOTES)


def _span(ladder: Sequence[int]) -> str:
    """Say which numbers of steps there are to choose from."""
    if ladder == tuple(range(ladder[0], ladder[-1] + 1)):
        return f"{ladder[0]} to {ladder[-1]}"
    return ", ".join(map(str, ladder))


def _measured(
    problem: Problem, fits: Mapping[str, Sequence[Fit]], rounds: int
) -> tuple[list[Row], list[Bar]]:
    """Time all fits, and return the rows of each family's fastest, and the ratios."""
    if PEER not in fits or not {BOUNDED, CONTINUOUS} & fits.keys():
        raise PathlineError(
            f"{problem.name}: with these steps nobody's gradient comes within {ERROR:g}; give more."
        )
    gc.collect()
    first = interleaved(_runs(fits), range(1), repeats=1)
    near = {family: _near(each, first) for family, each in fits.items()}
    seconds = interleaved(_runs(near), track(range(rounds), f"{problem.name}: time"), repeats=1)
    best = {family: min(each, key=lambda fit: seconds[fit.who.name])
            for family, each in near.items()}  # fmt: skip
    rows = [row for fit in best.values() for row in _rows(problem, fit, seconds)]
    times = {family: seconds[fit.who.name] for family, fit in best.items()}
    return rows, list(bars_of(problem.name, times))


def _runs(fits: Mapping[str, Sequence[Fit]]) -> dict[str, Run]:
    return {fit.who.name: Run(partial(fit.who.gradients, fit.how))
            for each in fits.values() for fit in each}  # fmt: skip


def _near(fits: Sequence[Fit], seconds: Mapping[str, float]) -> list[Fit]:
    """Return those that may be the fastest."""
    fastest = min(seconds[fit.who.name] for fit in fits)
    return [fit for fit in fits if seconds[fit.who.name] <= NEAR * fastest]


def _rows(problem: Problem, fit: Fit, seconds: Mapping[str, float]) -> Iterator[Row]:
    how = f"{fit.how} steps" if isinstance(fit.how, int) else f"tolerance {fit.how:.1g}"
    by = f"{problem.name}: {fit.who.name}, {how}"
    yield Row("ms", by, 1e3 * seconds[fit.who.name])
    yield Row("kB", by, peak_bytes(partial(fit.who.gradients, fit.how)) / 1e3)
    yield Row("evaluations", by, float(fit.nfe))
    yield Row("error, millionths", by, 1e6 * fit.error)


def bars_of(problem: str, times: Mapping[str, float]) -> Iterator[Bar]:
    """Yield the ratios of the families' times to torchdiffeq's; the first is the bar."""
    bounded = min(t for family, t in times.items() if family in (BOUNDED, CONTINUOUS))
    text = f"{problem}: our fastest adjoint of bounded memory / torchdiffeq's"
    yield Bar(text, bounded / times[PEER], AT_MOST)
    for family, t in times.items():
        if family not in (PEER, PEER_DIRECT):
            yield Bar(f"{problem}: {family} / torchdiffeq's adjoint", t / times[PEER])
    if PEER_DIRECT in times and "pathline, direct" in times:
        ratio = times["pathline, direct"] / times[PEER_DIRECT]
        yield Bar(f"{problem}: direct, ours / torchdiffeq's", ratio)


__all__ = ["AT_MOST", "ERROR", "adjoint", "bars_of"]

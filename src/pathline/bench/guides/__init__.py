"""`pathline bench guides`: quality against passes on inverse problems, beside azula and deepinv.

Digits are a mixture whose posterior is exact, so what is told is the distance to it; emoji are
held-out pictures under the shipped model, and what is told is how near a sample comes to the
truth. A last table tells each guide's bias, at many steps.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pathline.bench.guides.contestants import GUIDES, Contestant, everybody
from pathline.bench.guides.problems import (
    DRAWS,
    STD,
    Problem,
    against,
    classes,
    digits,
    emoji,
)
from pathline.bench.report import Report, Reports, Row
from pathline.core.errors import UsageError
from pathline.core.progress import track
from pathline.solvers import grids, sample
from pathline.steer import Chain, Classifier, Guide, Loss, Particles
from pathline.systems.steered_digits import law

__all__ = ["guides"]

COUNTS = 12, 25, 50, 100
"""Passes on digits."""

FEW = 16, 32
"""Passes on emoji."""

MANY = 100
"""Steps of the table of biases."""

LABEL = 8
RUNS = 256


def guides(nfe: Sequence[int] | None = None, n: int | None = None) -> Reports:
    """Compare guides on four inverse problems, and tell what each is biased by.

    Args:
        nfe: passes on digits; `COUNTS` if None. Emoji are drawn with 16 and 32.
        n: pictures of each problem; 5 if None, and 0 emoji where it is given.

    Raises:
        UsageError: passes below one.
        FetchError: the emoji cannot be fetched.

    Cost: five minutes on a quiet core.
    """
    counts = sorted(set(COUNTS if nfe is None else nfe))
    if not counts or counts[0] < 1:
        raise UsageError(f"evaluations are counted from 1, and {counts} were asked for.")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        exact = digits() if n is None else digits(n)
        found = [_problem(problem, counts) for problem in exact]
        if n is None:
            found += [_problem(problem, FEW) for problem in emoji()]
        reports = [*found, _biases(exact, MANY if n is None else counts[-1])]
    finally:
        torch.set_num_threads(threads)
    about = "distance to the exact posterior against passes"
    return Reports("guides", about, reports, _picture(found[: len(exact)], counts))


def _problem(problem: Problem, counts: Sequence[int]) -> Report:
    """Measure everybody at each number of passes."""
    found, absent = everybody()
    is_network = problem.dtype == torch.float32
    chosen = [each for each in found if each.networks or not is_network]
    rows = [Row("", by, None, why) for by, why in absent.items()]
    for contestant in track(chosen, problem.name, len(chosen)):
        rows += _rows(contestant, problem, counts)
    settings: dict[str, Any] = {"pictures": len(problem.y), "samples of each": problem.draws}
    settings |= {"noise of a measurement": problem.std}
    notes = [NOTE]
    if not is_network:
        notes.append(f"Exact draws, as many: {problem.floor:.1f}.")
    return Report(f"guides: {problem.name}", problem.about, rows, (), settings, notes)


NOTE = (
    "A pass is an evaluation of the model; a vector-Jacobian product through it counts as another. "
    "Ours: ancestral steps even in log-SNR, unless it says ++2M."
)


def _rows(contestant: Contestant, problem: Problem, counts: Sequence[int]) -> list[Row]:
    rows: list[Row] = []
    for passes in counts:
        try:
            x = contestant.drawn(problem, passes)
        except Exception as error:  # theirs: it is told, and the others go on
            if contestant.by == "pathline":
                raise
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            return [Row("", contestant.label, None, why)]
        if x is not None and bool(x.isfinite().all()):
            rows.append(Row(f"{passes}", contestant.label, problem.judge(x)["distance"]))
    return rows


# biases


def _biases(exact: Sequence[Problem], steps: int) -> Report:
    """Measure what guides are biased by, at as many steps each, whatever they cost."""
    contestants = {each.name: each for each in everybody()[0] if each.by == "pathline"}
    rows: list[Row] = []
    for problem in exact:
        short = problem.name.removeprefix("digits, ")
        names = [name for name in contestants if "++2M" not in name]
        for name in track(names, f"{problem.name}, biases"):
            x = contestants[name].run(problem, steps)
            rows += _bias_rows(name, short, problem.judge(x))
    rows += _classes(steps)
    about = (
        "The bias of each guide: how far the mean is off and how large the variance is, in "
        "hundredths of the exact posterior's deviation and variance."
    )
    settings = {"steps": steps, "noise of a measurement": STD, "class": LABEL}
    floors = " and ".join(f"{100 / DRAWS**0.5:.0f} ({p.name})" for p in exact[:1])
    notes = (f"Exact draws have an off of about {floors}: that of a mean of {DRAWS}.",)
    return Report("guides: biases", about, rows, (), settings, notes)


def _bias_rows(name: str, short: str, told: Mapping[str, float]) -> list[Row]:
    return [Row(f"{short}: {what}", name, told[what]) for what in ("off", "spread")]


def _classes(steps: int) -> list[Row]:
    """Measure a class: by the exact classifier of noisy digits, and by one of clean ones."""
    known = classes()
    judge = against(known.exact(LABEL, 4000)[None])

    def wrong(x: Tensor) -> Tensor:
        logits = known.logits(x, torch.zeros((), dtype=torch.float64))
        target = torch.full((len(x),), LABEL)
        return F.cross_entropy(logits, target, reduction="none").clamp(max=60.0)

    ways: dict[str, Guide] = {
        "no guide": Chain(()),
        "classifier of noisy states": Classifier(
            lambda x, t: known.logits(x, t.flatten()[0]), LABEL
        ),
        "loss of a clean classifier, σ": Loss(wrong),
        "loss of a clean classifier, score": Loss(wrong, scale="score"),
    }
    rows: list[Row] = []
    grid = grids.log_snr(steps, last="denoise")
    for name, guide in track(list(ways.items()), "classes, biases"):
        with torch.no_grad():
            x = sample(
                law(), RUNS, solver="ddpm", grid=grid, guide=guide, dtype=torch.float64
            ).x  # fmt: skip
        rows += _bias_rows(name, "a class", judge(x))
    with torch.no_grad():
        found = Particles(16).sample(
            law(), RUNS // 4, guide=ways["loss of a clean classifier, score"], grid=grid,
            dtype=torch.float64,
        )  # fmt: skip
    return [*rows, *_bias_rows("particles of that, 16 a run", "a class", judge(found.x))]


def _picture(reports: Sequence[Report], counts: Sequence[int]) -> bytes | None:
    """Return distance against passes as PNG; None where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    styles = {"pathline": "-", "azula": "--", "deepinv": ":"}
    names = [*GUIDES, "particles of ΠGDM"]
    for axes, report in zip(figure.subplots(1, len(reports), sharey=True), reports, strict=True):
        for by in dict.fromkeys(row.by for row in report.rows if row.value is not None):
            library, _, guide = by.partition(": ")
            points = [(int(r.method), r.value) for r in report.rows if r.by == by]
            colour = f"C{names.index(guide) if guide in names else 7}"
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, styles[library], color=colour, marker="o", ms=3, label=by)
        axes.set(xscale="log", yscale="log", title=report.name, xlabel="passes")
        axes.set_xticks(list(counts), [str(n) for n in counts])
        axes.set_xticks([], minor=True)
        axes.grid(True, alpha=0.3)
    figure.axes[0].set_ylabel("distance to the exact posterior, thousandths")
    figure.axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    return image.getvalue()

"""`pathline bench solvers`: error to the converged solution against evaluations.

Every deterministic solver of ours on every grid, beside every deterministic sampler of diffusers,
k-diffusion and azula on the grids that it has, on one model, from the same noises, with the same
guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from pathline.bench.precision import frechet
from pathline.bench.precision.measure import everybody, measure, stamps
from pathline.bench.precision.problems import Problem, problem_names, problem_of
from pathline.bench.precision.report import Comparison, Outcome, Seen
from pathline.bench.report import place
from pathline.core.errors import UsageError
from pathline.core.tensors import full_float32

__all__ = ["COUNTS", "Comparison", "Outcome", "compare", "solvers"]

COUNTS = 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 35, 50
"""Evaluations."""


def solvers(
    problems: Sequence[str] | None = None,
    nfe: Sequence[int] | None = None,
    n: int | None = None,
    output: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> Comparison:
    """Compare all samplers; resume what is in the output folder already.

    Args:
        problems: names of oracles and shipped models, or model folders; all that there are if None.
        nfe: evaluations; `COUNTS` if None.
        n: noises; 256 for an oracle and 4 for a network if None.
        output: the folder of the results; nothing is kept if None.
        device: where networks run.

    Raises:
        UsageError: a problem that is not known, or counts below one.

    Cost: with all counts a network takes an hour on a core at 10 ms a sample and evaluation.
    """
    counts = sorted(set(COUNTS if nfe is None else nfe))
    if not counts or counts[0] < 1:
        raise UsageError(f"evaluations are counted from 1, and {counts} were asked for.")
    chosen = [problem_of(name, n, device) for name in problems or problem_names()]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with full_float32():
            return Comparison([compare(problem, counts, output) for problem in chosen])
    finally:
        torch.set_num_threads(threads)


def compare(problem: Problem, counts: Sequence[int], output: str | Path | None) -> Outcome:
    """Compare all samplers on one problem; where pictures are looked at, the best of them there."""
    folder = None if output is None else Path(output)
    store, converged = measure(problem, counts, folder)
    known = f"{converged.difference:.2g} ({' against '.join(converged.methods)})"
    outcome = Outcome(
        problem.name,
        problem.settings,
        store.errors,
        store.absent,
        known,
        not problem.is_cheap,
        counts,
        place() | _accelerator(problem.x.device),
        medians=store.medians,
    )
    if frechet.is_seen(problem):
        outcome = replace(outcome, seen=_seen(problem, outcome, folder))
    store.about = outcome.summary()
    store.save()
    return outcome


def _accelerator(device: torch.device) -> dict[str, str]:
    """Return what the network ran on, if it was no processor."""
    return {} if device.type == "cpu" else {"device": torch.cuda.get_device_name(device)}


def _seen(problem: Problem, outcome: Outcome, folder: Path | None) -> Seen:
    """Return the Fréchet distances of each library's best."""
    contestants = {contestant.key: contestant for contestant in everybody(problem)[0]}
    chosen = {
        n: [
            contestants[by, best.sampler, best.grid]
            for by in outcome.libraries
            if (best := outcome.best(n, [by]))
        ]
        for n in frechet.AT
        if n in outcome.counts
    }
    found = frechet.distances(problem, chosen, stamps(problem), folder).errors
    wanted = {(c.key, n) for n, those in chosen.items() for c in those}
    return Seen(
        frechet.NETWORKS[problem.name],
        frechet.between_real(problem),
        found[frechet.CONVERGED][frechet.ENOUGH],
        {(key, n): found[key][n] for key, n in sorted(wanted, key=lambda k: (k[1], k[0]))},
    )

"""`pathline bench solvers`: error to the converged solution against evaluations.

Every deterministic solver of ours on every grid, beside every deterministic sampler of diffusers,
k-diffusion and azula on the grids that it has, on one model, from the same noises, with the same
guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pathline.bench.precision.measure import measure
from pathline.bench.precision.problems import Problem, problem_names, problem_of
from pathline.bench.precision.report import Comparison, Outcome
from pathline.bench.report import place
from pathline.core.errors import UsageError

__all__ = ["COUNTS", "Comparison", "Outcome", "compare", "solvers"]

COUNTS = 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 35, 50
"""Evaluations."""


def solvers(
    problems: Sequence[str] | None = None,
    nfe: Sequence[int] | None = None,
    n: int | None = None,
    output: str | Path | None = None,
) -> Comparison:
    """Compare all samplers; resume what is in the output folder already.

    Args:
        problems: names of oracles and shipped models, or model folders; all that there are if None.
        nfe: evaluations; `COUNTS` if None.
        n: noises; 256 for an oracle and 4 for a network if None.
        output: the folder of the results; nothing is kept if None.

    Raises:
        UsageError: a problem that is not known, or counts below one.

    Cost: with all counts a network takes half an hour on a core at 10 ms a sample and evaluation.
    """
    counts = sorted(set(COUNTS if nfe is None else nfe))
    if not counts or counts[0] < 1:
        raise UsageError(f"evaluations are counted from 1, and {counts} were asked for.")
    chosen = [problem_of(name, n) for name in problems or problem_names()]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return Comparison([compare(problem, counts, output) for problem in chosen])
    finally:
        torch.set_num_threads(threads)


def compare(problem: Problem, counts: Sequence[int], output: str | Path | None) -> Outcome:
    """Compare all samplers on one problem."""
    store, converged = measure(problem, counts, None if output is None else Path(output))
    known = f"{converged.difference:.2g} ({' against '.join(converged.methods)})"
    outcome = Outcome(
        problem.name,
        problem.settings,
        store.errors,
        store.absent,
        known,
        not problem.is_cheap,
        counts,
        place(),
    )
    store.about = outcome.summary()
    store.save()
    return outcome

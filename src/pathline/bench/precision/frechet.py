"""Fréchet distance to held-out pictures: what of an error can be seen.

Error says how near a sampler comes to the pictures of this model; the distance says how many
evaluations it takes until they are, as a set, as near to real ones as the model's own. So each
library's best sampler is measured beside a converged one, on noises that chose none of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pathline.bench.precision.problems import FIRST_SEED, Problem, learned
from pathline.bench.precision.query import Contestant, Ended, Query, Rehearsal
from pathline.bench.precision.store import Key, Store
from pathline.core.progress import progress
from pathline.fields import Denoiser
from pathline.learn.quality.distances import frechet
from pathline.learn.quality.features import embed
from pathline.learn.quality.reference import FRECHET_SIZE, load_reference, to_uint8
from pathline.learn.quality.subjects import subject_of
from pathline.solvers import grids, solve

AT = 5, 10, 20
"""Evaluations."""

NETWORKS: Mapping[str, str] = {"fashion": "fashion-classifier"}
"""What looks at a model's pictures, where it costs little beside drawing them."""

SEED = FIRST_SEED + 1000
"""The first noise: those before it may have chosen the sampler."""

BATCH = 50

CONVERGED: Key = ("converged", "dpmpp_3m", "log_snr")
ENOUGH = 60
"""Evaluations of the converged pictures: on the shipped model less than half a grey level off."""


def is_seen(problem: Problem) -> bool:
    """Return whether there is a network that looks at this problem's pictures."""
    return problem.name in NETWORKS


def distances(
    problem: Problem,
    chosen: Mapping[int, Sequence[Contestant]],
    stamps: Mapping[str, str],
    folder: Path | None,
) -> Store:
    """Measure those who were chosen at each count, and the converged pictures.

    Args:
        problem: that they were chosen on.
        chosen: evaluations → contestants.
        stamps: what each library's numbers depend on.
        folder: where the results are kept, and resumed from; None for nowhere.

    Cost: 500 pictures each; on the shipped model 2.5 s an evaluation on one core.
    """
    settings = {**problem.settings, "samples": FRECHET_SIZE, "first seed": SEED}
    settings["features"] = NETWORKS[problem.name]
    file = None if folder is None else folder / f"frechet-{problem.name}.json"
    store = Store(file, settings, {**stamps, CONVERGED[0]: stamps["pathline"]}, measure="frechet")
    rehearsal = Rehearsal(problem)
    runs = [(converged(), ENOUGH)] + [(c, n) for n in sorted(chosen) for c in chosen[n]]
    missing = [(c, n) for c, n in runs if store.get(c.key, n) is None]
    with torch.inference_mode(), progress() as bar:
        task = bar.add_task(f"{problem.name}, Fréchet", total=sum(n for _, n in missing))
        for contestant, nfe in missing:
            steps = rehearsal.steps_for(contestant, nfe)
            assert steps is not None  # it was measured at this count
            pixels = torch.cat(list(_pixels(problem, contestant, steps)))
            store.put(contestant.key, nfe, distance(problem, pixels))
            store.save()
            bar.advance(task, nfe)
    return store


def converged() -> Contestant:
    """Return what is as good as converged, as a contestant."""

    def run(query: Query, n: int) -> Ended:
        problem = query.problem
        end = solve(problem.field, problem.x, solver="dpmpp_3m", grid=grids.log_snr(n))
        return Ended(end.x, problem.path.t_min)

    return Contestant(*CONVERGED, run, lambda n: n)


def distance(problem: Problem, pixels: Tensor) -> float:
    """Return the Fréchet distance of pictures to held-out ones, as a model's card has it."""
    model, name = _denoiser(problem), NETWORKS[problem.name]
    subject = subject_of(model)
    real = load_reference(subject).features[f"{name}/held_out"][:FRECHET_SIZE]
    return frechet(real, embed(subject.network(name), pixels))


def between_real(problem: Problem) -> float:
    """Return the distance between two sets of held-out pictures of that size."""
    model, name = _denoiser(problem), NETWORKS[problem.name]
    return load_reference(subject_of(model)).landmarks[f"frechet/{name}/held_out"].halves


def _pixels(problem: Problem, contestant: Contestant, steps: int) -> Iterator[Tensor]:
    for first in range(SEED, SEED + FRECHET_SIZE, BATCH):
        part = learned(_denoiser(problem), BATCH, first)
        yield to_uint8(contestant.run(Query(part), steps).x.float().cpu())


def _denoiser(problem: Problem) -> Denoiser:
    assert isinstance(problem.model, Denoiser)
    return problem.model

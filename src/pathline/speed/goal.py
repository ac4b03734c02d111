"""What a model is tuned on: noises, conditions, and where many steps lead from there."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import PathlineError, UsageError
from pathline.core.progress import track
from pathline.core.receipt import versions
from pathline.core.tensors import read_tensors, write_tensors
from pathline.fields import Denoiser, Field
from pathline.solvers.calibrate import UNKNOWN_WEIGHTS, checksum_of
from pathline.solvers.exponential import DPMpp
from pathline.solvers.grids import LogSNR
from pathline.solvers.solve import start
from pathline.speed.metrics import Endpoint

Conditions = Mapping[str, Sequence[Any]]

TRAIN_SEED, VALID_SEED, TEST_SEED = 500_000, 600_000, 700_000
"""Where the noises begin; those of `pathline bench solvers`, from 1 000 000 on, stay unseen."""

CHUNK = 16
"""Samples that run together while references are made, on a CPU;"""

WIDE_CHUNK = 256
"""and elsewhere, where a call costs the same for one as for many."""


@dataclass(frozen=True)
class Bench:
    """A model with its noises and where they should lead.

    Args:
        train: those to search on.
        test: fresh ones, which the result is measured on.
        about: what else decides the result.
        model: unguided.
        told: the conditions of `train`.
        valid: others that choose between what was found; None leaves that to `test`.
    """

    train: Endpoint
    test: Endpoint
    about: Mapping[str, Any] = field(default_factory=dict)
    model: Denoiser | None = None
    told: Conditions = field(default_factory=dict)
    valid: Endpoint | None = None

    @property
    def judge(self) -> Endpoint:
        """What chooses between what was found."""
        return self.test if self.valid is None else self.valid

    def seconds(self) -> float:
        """Return how long an evaluation of one sample takes, as it is guided; measured once."""
        path, device = self.train.field.path, self.train.starts.device
        assert path is not None  # a denoiser has one
        plan, few = DPMpp().plan(path, LogSNR(2)), self.train.first(_chunk(device))
        warm = few.first(1) if device.type == "cpu" else few
        warm.samples(plan).cpu()  # what is done once is done now
        begun = time.perf_counter()
        few.samples(plan).cpu()  # which waits for the device
        return (time.perf_counter() - begun) / (2 * len(few.starts))


def bench_of(  # noqa: PLR0913 - what decides a measurement
    model: Denoiser,
    guide: Callable[[Field], Field] | None,
    train: Conditions,
    test: Conditions,
    noises: tuple[int, int],
    reference: int,
    keep: str | Path | None = None,
) -> Bench:
    """Return what a model is tuned on; the references are made once, and kept.

    Args:
        model: what samples.
        guide: as it will be guided; None for not at all.
        train: conditions of the search in the user's words, taken in turn; empty for none.
        test: others, for the fresh noises.
        noises: how many, to search on (and as many to choose with), and fresh.
        reference: steps of DPM-Solver++ 3M that lead to where samples should be.
        keep: a file for the references; None makes them anew.

    Raises:
        UsageError: references are to be kept of a model whose weights are unknown.

    Cost: as many evaluations for each noise as the reference has steps.
    """
    weights = checksum_of(model)
    if keep is not None and weights is None:
        raise UsageError(f"{UNKNOWN_WEIGHTS} leave keep out.")
    field = model if guide is None else guide(model)
    benches = [
        _endpoint(model, field, conditions, seed, n)
        for conditions, seed, n in (
            (train, TRAIN_SEED, noises[0]),
            (test, TEST_SEED, noises[1]),
            (train, VALID_SEED, noises[0]),
        )
    ]
    describe = getattr(guide, "describe", None)
    about = {
        "model": model.name,
        "weights": weights,
        "guide": describe() if callable(describe) else None,
        "conditions": [{k: list(map(str, v)) for k, v in told.items()} for told in (train, test)],
        "noises": [noises[0], noises[1]],
        "reference": reference,
    }
    refs = _references(benches, reference, about, None if keep is None else Path(keep))
    on, off, valid = (replace(e, ends=x) for e, x in zip(benches, refs, strict=True))
    return Bench(on, off, about, model, _repeated(train, noises[0]), valid)


def _endpoint(model: Denoiser, field: Field, conditions: Conditions, seed: int, n: int) -> Endpoint:
    if model.shape is None:
        raise UsageError("the model does not know the shape of a sample; give Denoiser(shape=...).")
    seeds = range(seed, seed + n)
    told = _repeated(conditions, n)
    x = start(
        model.path, model.path.t_max, seeds, model.shape, torch.float32, model.device or "cpu"
    )
    cond = field.condition(told, n)
    cond = {k: v.to(x.device) if isinstance(v, Tensor) else v for k, v in cond.items()}
    return Endpoint(field, x, x, cond)


def _repeated(conditions: Conditions, n: int) -> dict[str, list[Any]]:
    """Return a condition for each of n samples, taken in turn."""
    return {
        name: [values[i % len(values)] for i in range(n)] for name, values in conditions.items()
    }


def _references(
    benches: Sequence[Endpoint], steps: int, about: Mapping[str, Any], keep: Path | None
) -> list[Tensor]:
    """Return where the noises of each bench lead; parts that are done are kept as they come."""
    told = [about, versions(), _chunk(benches[0].starts.device)]
    mark = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    done = _kept(keep, mark)
    path = benches[0].field.path
    assert path is not None  # a denoiser has one
    plan = DPMpp(order=3).plan(path, LogSNR(steps))
    parts = [
        (f"{i}-{j}", part)
        for i, bench in enumerate(benches)
        for j, part in enumerate(bench.parts(_chunk(bench.starts.device)))
    ]
    for name, part in track([p for p in parts if p[0] not in done], "references"):
        done[name] = part.samples(plan).cpu()
        if not bool(torch.isfinite(done[name]).all()):
            raise PathlineError(
                "the model's many-step samples are not finite; nothing can be tuned."
            )
        if keep is not None:
            write_tensors(keep, done, {"mark": mark})
    return [
        torch.cat([done[name] for name, _ in parts if name.startswith(f"{i}-")]).to(
            bench.starts.device
        )
        for i, bench in enumerate(benches)
    ]


def _chunk(device: torch.device) -> int:
    return CHUNK if device.type == "cpu" else WIDE_CHUNK


def _kept(keep: Path | None, mark: str) -> dict[str, Tensor]:
    """Return the references that an earlier run of the same request has made."""
    if keep is None or not keep.is_file():
        return {}
    try:
        header, tensors = read_tensors(keep)
    except UsageError:
        return {}  # damaged: made again
    return dict(tensors) if header.get("mark") == mark else {}

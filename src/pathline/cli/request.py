"""A request: everything that decides a picture, in the form in which it is run and written down.

`pathline sample` makes one from options, `pathline replay` from a receipt, and both run it by the
same function, so a replay is the same computation: the same plan, conditions, seeds and batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathline.cli.guiding import Spec, retyped
from pathline.cli.weighing import OUTCOME, outcome_of, particles_of, weighed
from pathline.core.errors import ReceiptError, UsageError
from pathline.core.receipt import Receipt
from pathline.core.solution import Solution
from pathline.fields import Denoiser
from pathline.solvers import Grid, Solver, sample, solvers
from pathline.solvers.evaluate import Speed
from pathline.solvers.grids import grids
from pathline.solvers.solve import Keep
from pathline.speed import speeds
from pathline.steer import Classifier, Guide, Particles, guides
from pathline.steer.classifier import Logits

BATCH = 64
"""Samples that go through the network together, unless the user says otherwise."""


@dataclass(frozen=True)
class Request:
    """What is to be sampled.

    Args:
        model: the denoiser.
        source: how the user named it, a shipped name or a folder.
        solver, grid, guide: how.
        cond: the condition, in the user's words.
        seeds: one a sample.
        batch: samples that go through the network together; a network may round differently
            in another batch, so this belongs to what decides the bits.
        dtype: of the state.
        speed: a policy that leaves evaluations out.
        keep: what is put back after every update; a receipt does not hold it.
        typed: the guides as they were typed, if they were, with the checksums of their files.
        particles: each sample is one of so many that are weighed; None for samples alone.
    """

    model: Denoiser
    source: str
    solver: Solver
    grid: Grid
    guide: Guide | None
    cond: Mapping[str, Any]
    seeds: tuple[int, ...]
    batch: int = BATCH
    dtype: torch.dtype = torch.float32
    speed: Speed | None = None
    keep: Keep | None = None
    typed: tuple[Spec, ...] = ()
    particles: Particles | None = None

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UsageError(f"a batch has at least 1 sample, and {self.batch} were asked for.")

    @property
    def batches(self) -> list[tuple[int, ...]]:
        """The seeds of each batch, in order; particles of a sample run together."""
        n = self.batch if self.particles is None else max(1, self.batch // self.particles.n)
        return [self.seeds[i : i + n] for i in range(0, len(self.seeds), n)]

    @property
    def n_steps(self) -> int:
        """Steps of all batches together."""
        return self.grid.n * len(self.batches)

    def run(self, observe: Callable[[Any], None] | None = None) -> Iterator[Solution]:
        """Sample without gradients, and yield each batch's solution when it is done.

        Args:
            observe: called at every grid point: with the `Step`, or, of particles, its number.

        Raises:
            UsageError: the parts do not fit together.
            NonFiniteError: the network returned a NaN or an infinity.
        """
        how = {"solver": self.solver, "grid": self.grid, "guide": self.guide, "dtype": self.dtype}
        how |= {"speed": self.speed, "keep": self.keep}
        for seeds in self.batches:
            if self.particles is not None:
                yield weighed(self, seeds, observe)
                continue
            with torch.no_grad():  # not around the yield, where it would leak to the caller
                solution = sample(self.model, seeds=seeds, observe=observe, **how, **self.cond)
            yield solution


def samples(solutions: Sequence[Solution]) -> Tensor:
    """Return the samples of all batches, (n, *state)."""
    return torch.cat([solution.x for solution in solutions])


def receipt_of(request: Request, solutions: Sequence[Solution]) -> Receipt:
    """Return one receipt for all batches."""
    return receipt_with(request, [_receipt(solution) for solution in solutions])


def receipt_with(request: Request, parts: Sequence[Receipt]) -> Receipt:
    """Return one receipt of those of all batches.

    The model's is cut down to what finds it again and proves that it is the same.
    """
    model = {"name": request.model.name, "source": request.source}
    model["weights"] = request.model.details.get("weights", {})
    recipe = {**parts[0].recipe, "model": model, "batch": request.batch}
    if request.typed:
        recipe["guides"] = [spec.to_dict() for spec in request.typed]
    if OUTCOME in recipe:
        recipe[OUTCOME] = outcome_of(parts)
    return replace(
        parts[0],
        recipe=recipe,
        seeds=request.seeds,
        status=tuple(status for part in parts for status in part.status),
    )


def _receipt(solution: Solution) -> Receipt:
    assert solution.receipt is not None  # `sample` always writes one
    return solution.receipt


def request_of(
    receipt: Receipt, model: str | None, load: Callable[[str], Denoiser], near: Path = Path()
) -> Request:
    """Return the request that a receipt tells of.

    Args:
        receipt: of a picture.
        model: where the model is now; None for where it was.
        load: what loads a model by name or folder.
        near: a folder in which files of guides are looked for that are not where they were.

    Raises:
        ReceiptError: the receipt is incomplete, the weights or files are others, or the device is
            missing.
        UsageError: the model, solver, grid or guide is unknown here.
    """
    recipe = receipt.recipe
    if recipe.get("keep") is not None:
        raise ReceiptError(
            "it was made around pixels that were given, which a receipt does not hold; make it "
            "again with pathline complete, with the same seed."
        )
    dtype = getattr(torch, receipt.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ReceiptError("the receipt is damaged: it has an unknown dtype.")
    speed = None if recipe.get("speed") is None else speeds.rebuild(_table(recipe, "speed"))
    solver = solvers.rebuild(_table(recipe, "solver"))
    grid = grids.rebuild(_table(recipe, "grid"))
    cond, batch = _conditions(_table(recipe, "cond")), recipe.get("batch", len(receipt.seeds))
    if not isinstance(batch, int):
        raise ReceiptError(f"the receipt is damaged: its batch is {batch!r}.")
    denoiser, source = model_of(receipt, model, load)
    guide, specs = _guides(recipe, denoiser, near)
    seeds = receipt.seeds
    how = (solver, grid, guide, cond, seeds, batch, dtype, speed)
    return Request(denoiser, source, *how, typed=specs, particles=particles_of(recipe))


def model_of(
    receipt: Receipt, model: str | None, load: Callable[[str], Denoiser] | None = None
) -> tuple[Denoiser, str]:
    """Return the model of a receipt on its device, and where it is.

    Raises:
        ReceiptError: its weights are others, or the device is missing.
    """
    from pathline.learn.checkpoint import load_model

    made_with = _table(receipt.recipe, "model")
    source = model or made_with.get("source") or made_with.get("name")
    if not isinstance(source, str):
        raise ReceiptError("the receipt is damaged: it names no model.")
    denoiser = (load or load_model)(source).to(_device(receipt))
    _check_weights(denoiser, source, _table(made_with, "weights").get("sha256"))
    return denoiser, source


def _guides(
    recipe: Mapping[str, Any], model: Denoiser, near: Path
) -> tuple[Guide | None, tuple[Spec, ...]]:
    """Return the guide of a receipt, and its parts as they were typed, if they were."""
    if "guides" in recipe:
        made = retyped(recipe["guides"], model, near)
        return made.guide, made.specs
    guide = None if recipe.get("guide") is None else guides.rebuild(_table(recipe, "guide"))
    if isinstance(guide, Classifier) and isinstance(guide.network, str):
        guide = replace(guide, network=classifier_of(guide.network, model)[0])
    return guide, ()


def classifier_of(folder: str, model: Denoiser) -> tuple[Logits, Callable[[str], int]]:
    """Return a classifier's logits on a model's path, and what finds the number of a class.

    Raises:
        UsageError: there is no such folder.
        CheckpointError: it is no classifier of noisy images.
    """
    from pathline.learn.noisy_classes import load_noisy_classes

    known = load_noisy_classes(folder)
    if model.device is not None:
        known.network.to(model.device)
    return known.on(model.path), known.label


def _table(recipe: Any, name: str) -> Mapping[str, Any]:
    """Return a part of a receipt that has to be there."""
    part = recipe.get(name) if isinstance(recipe, Mapping) else None
    if not isinstance(part, Mapping) or (
        name in ("solver", "grid", "guide", "speed") and "name" not in part
    ):
        raise ReceiptError(f"the receipt is damaged: it does not tell the {name}.")
    return part


def _conditions(cond: Mapping[str, Any]) -> Mapping[str, Any]:
    for name, value in cond.items():
        if isinstance(value, Mapping):
            kind = value.get("type", "value")
            raise ReceiptError(
                f"the condition {name!r} was a {kind}, which a receipt does not hold; "
                "sample it again in Python."
            )
    return cond


def _device(receipt: Receipt) -> str:
    here = {"cpu"} | ({"cuda"} if torch.cuda.is_available() else set())
    if receipt.device not in here:
        raise ReceiptError(
            f"it was made on {receipt.device}, and bits are the same only on the same type of "
            f"device; here there is {' and '.join(sorted(here))}."
        )
    return receipt.device


def _check_weights(model: Denoiser, source: str, digest: Any) -> None:
    found = model.details.get("weights", {}).get("sha256")
    if found != digest:
        raise ReceiptError(
            f"the model {source} has other weights now (sha256 {str(found)[:12]}…) than the ones "
            f"it was made with ({str(digest)[:12]}…); name the right folder with --model."
        )

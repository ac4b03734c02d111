"""Sample: pictures with the receipt that remakes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pathline.cli.output import Picture, sheet_of
from pathline.cli.request import Request
from pathline.core.images import Layout, encode_png, to_pixels
from pathline.core.solution import Solution
from pathline.fields import Denoiser
from pathline.studio import jobs
from pathline.studio.limits import Limits
from pathline.studio.shelf import Shelf
from pathline.studio.work.recipe import Recipe, Typed, recipe, seeds


@dataclass(frozen=True)
class Sampled:
    """A sheet as the bytes of a PNG, its receipt, and what it cost.

    Args:
        png: with the receipt inside: `pathline replay` remakes it.
        bare: the first sample alone, in its own pixels, as a PNG.
        receipt: as JSON values.
        recipe: what ran, in a line.
        nfe: evaluations of each sample; the most of any, where they differ.
        calls: of the network.
        n: samples.
    """

    png: bytes
    bare: bytes
    receipt: dict[str, Any]
    recipe: str
    nfe: int
    calls: int
    n: int


@dataclass(frozen=True)
class Sampling:
    """What was asked for, checked."""

    model: Denoiser
    source: str
    how: Recipe
    seeds: tuple[int, ...]

    def run(self) -> Sampled:
        """Sample; to be called in a job."""
        jobs.expect(self.how.calls)
        how = self.how
        n = len(self.seeds)
        request = Request(
            self.model, self.source, how.solver, how.grid, how.guide, how.cond, self.seeds, n,
            speed=how.speed,
        )  # fmt: skip
        solutions = list(request.run(lambda _: jobs.tick(0)))
        picture = _sheet(request, solutions)
        stats = solutions[0].stats
        told = json.loads(picture.receipt.to_json())
        png = encode_png(picture.pixels, picture.receipt)
        bare = encode_png(to_pixels(solutions[0].x)[0])
        return Sampled(png, bare, told, how.name, stats.nfe, stats.network_calls, n)


def asked(  # noqa: PLR0913 - what the page has
    shelf: Shelf, model: Any, prompt: Any, typed: Typed, seed: Any, n: Any, limits: Limits
) -> Sampling:  # fmt: skip
    """Return what was asked for.

    Raises:
        UsageError: it cannot be, or is too much.
    """
    source = shelf.source(model)
    denoiser, drawn = shelf.model(model), seeds(seed, n, limits)
    made = recipe(denoiser, typed, prompt, limits)
    limits.count("this", made.calls * len(drawn) * (2 if made.guide is not None else 1))
    return Sampling(denoiser, source, made, drawn)


def _sheet(request: Request, solutions: Sequence[Solution]) -> Picture:
    shape = request.model.shape
    assert shape is not None  # the shelf holds models of pictures
    return sheet_of(request, solutions, Layout.of(len(request.seeds), shape[-1]))

"""Files of an earlier `pathline sample --each` that the same command need not make again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pathline.cli.output import file_name, placed
from pathline.cli.request import Request, receipt_with
from pathline.core.errors import ReceiptError
from pathline.core.images import Layout, read_pixels, read_receipt
from pathline.core.receipt import Receipt
from pathline.solvers.how import How
from pathline.solvers.job import Start, sampling
from pathline.steer import Chain, Classifier

COME_OF_IT = "grid", "nfe", "status"
"""What a receipt tells of a solve that is known afterwards alone."""


def kept(request: Request, folder: Path, layout: Layout) -> list[Path]:
    """Return the files that are there already, of whole batches.

    A batch counts if each of its files can be read, and carries the receipt that it would get: the
    same recipe, seeds, weights, device, threads and versions.
    """
    batches = [seeds for seeds in request.batches if _all_there(seeds, folder)]
    if not batches or not _is_told(request):
        return []
    recipe = _planned(request)
    return [
        folder / file_name(seed)
        for seeds in batches
        if all(_is_same(folder, seeds, i, recipe, layout) for i in range(len(seeds)))
        for seed in seeds
    ]


def without(request: Request, made: Sequence[Path]) -> Request:
    """Return the request for what is not made yet; whole batches are left out, so others stay."""
    names = {path.name for path in made}
    return replace(request, seeds=tuple(s for s in request.seeds if file_name(s) not in names))


def _all_there(seeds: Sequence[int], folder: Path) -> bool:
    return all((folder / file_name(seed)).is_file() for seed in seeds)


def _is_told(request: Request) -> bool:
    """Return whether receipts tell all that decides the bits, and can be told beforehand.

    Particles are told afterwards; of a classifier its folder is told, and not its weights.
    """
    guide = request.guide
    members = guide.members if isinstance(guide, Chain) else (guide,)
    return request.particles is None and not any(isinstance(g, Classifier) for g in members)


def _planned(request: Request) -> Receipt:
    """Return the receipt of the first batch, but for what comes of it."""
    how = How(request.solver, request.grid, None, request.guide, request.speed, keep=request.keep)
    seeds = request.batches[0]
    job = sampling(request.model, how, Start(None, request.dtype, None), seeds, request.cond)
    device = job.given[0].device.type
    made = Receipt(job.recipe, seeds, (), 0, (), device, str(request.dtype).split(".")[-1])
    return receipt_with(request, [made])


def _is_same(
    folder: Path, seeds: Sequence[int], index: int, recipe: Receipt, layout: Layout
) -> bool:
    file = folder / file_name(seeds[index])
    try:
        read_pixels(file)
        found = read_receipt(file)
    except ReceiptError:
        return False
    return _told(found) == _told(placed(replace(recipe, seeds=tuple(seeds)), layout, index))


def _told(receipt: Receipt) -> dict[str, Any]:
    content = json.loads(receipt.to_json())
    return {name: value for name, value in content.items() if name not in COME_OF_IT}

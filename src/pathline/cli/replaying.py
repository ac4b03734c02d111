"""`pathline replay`: makes a picture again from the receipt inside it, and compares the bits."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from pathline.cli.output import Picture, check_picture, pictures_of, sheet_of
from pathline.cli.request import Request, model_of, request_of
from pathline.cli.sampling import watched
from pathline.core.errors import ReceiptError
from pathline.core.images import Pixels, place_of, read_pixels, read_receipt, to_pixels
from pathline.core.receipt import Receipt, versions

ROUNDING = 8
"""Levels of 255 by which another order of rounding may move a picture: 1 as a rule, and several
where many steps carry it on; far more is another picture."""

File = Annotated[str, typer.Argument(help="A PNG that pathline wrote.")]
Output = Annotated[str | None, typer.Option("-o", "--output", help="Write the remade PNG here.")]
Model = Annotated[str | None, typer.Option(help="Where the model is now, if it has moved.")]


def replay(file: File, output: Output = None, model: Model = None) -> None:
    """Make a picture again from its receipt, bit for bit, and compare it with the file.

    pathline replay apple.png -o again.png
    """
    from pathline.learn.checkpoint import load_model

    receipt, before = read_receipt(file), read_pixels(file)
    if output is not None:
        check_picture(Path(output))
    with threads(receipt.threads):
        if "edit" in receipt.recipe:
            picture = edited_again(receipt, model, Path(file).parent)
        elif "diff_edit" in receipt.recipe:
            picture = diff_edited_again(receipt, model, Path(file).parent)
        else:
            picture = remade(receipt, request_of(receipt, model, load_model, Path(file).parent))
    if output is not None:
        picture.write(Path(output))
    typer.echo(f"{file}: {_compared(before, picture.pixels, receipt)}")
    if not np.array_equal(before, picture.pixels):
        raise typer.Exit(1)


def remade(receipt: Receipt, request: Request) -> Picture:
    """Run the request of a receipt and lay the result out as it was."""
    layout, index = place_of(receipt)
    solutions = list(watched(request, "replaying"))
    if index is None:
        return sheet_of(request, solutions, layout)
    return list(pictures_of(request, 0, solutions[0], layout))[index]


def edited_again(receipt: Receipt, model: str | None, near: Path) -> Picture:
    """Edit the pictures of a receipt again; they are looked for where they were, and near."""
    from pathline.cli.edit_request import EditRequest
    from pathline.cli.edit_request import receipt_of as receipt_of_edit

    request = EditRequest.of(receipt, near)
    denoiser, source = model_of(receipt, model)
    made = request.run(denoiser)
    return Picture("", request.arranged(made), receipt_of_edit(request, made, denoiser, source))


def diff_edited_again(receipt: Receipt, model: str | None, near: Path) -> Picture:
    """Edit the picture of a receipt by DiffEditor again."""
    from pathline.cli.diff_editing import watched as watched_edit
    from pathline.cli.diff_request import DiffRequest
    from pathline.cli.diff_request import receipt_of as receipt_of_edit

    request = DiffRequest.of(receipt, near)
    denoiser, source = model_of(receipt, model)
    made = watched_edit(request, denoiser, "replaying")
    return Picture("", to_pixels(made.x)[0], receipt_of_edit(request, made, source))


@contextmanager
def threads(n: int) -> Generator[None]:
    """Run with n threads of torch, because sums round differently with another number."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ReceiptError(f"the receipt is damaged: it was made with {n!r} threads.")
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _compared(before: Pixels, after: Pixels, receipt: Receipt) -> str:
    """Say whether two pictures are the same, and if not, how far off and perhaps why."""
    n = receipt.recipe.get("picture", {}).get("n", len(receipt.seeds) or 1)
    if np.array_equal(before, after):
        return f"identical, bit for bit ({n} samples, {receipt.nfe} evaluations each)."
    if before.shape != after.shape:
        return f"different: {before.shape} was remade as {after.shape}."
    off = np.abs(before.astype(int) - after.astype(int))
    here = versions()
    moved = [
        f"{k} {v} then, {here.get(k)} now" for k, v in receipt.versions.items() if v != here.get(k)
    ]
    why = "; ".join(moved) or "the same versions, so the processor rounds differently"
    if off.max() > ROUNDING:
        changed = "which is more than rounding: the file was changed since it was made"
        why = f"{changed}, or the versions make the difference: {why}" if moved else changed
    n_off = np.count_nonzero(off)
    return f"different: {n_off} of {off.size} values, by {off.max()} of 255 at most; {why}."

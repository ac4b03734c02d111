"""Where samples go: one sheet, or one file each, always with the receipt that remakes them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pathline.cli.request import Request, receipt_of, samples
from pathline.core.errors import UsageError
from pathline.core.images import Layout, Pixels, to_pixels, write_picture
from pathline.core.receipt import Receipt
from pathline.core.solution import Solution


@dataclass(frozen=True)
class Destination:
    """A sheet's file, or a folder of one file a sample."""

    path: Path
    each: bool


def destination(output: str | None, each: bool, model: str, prompt: str | None) -> Destination:
    """Return where the samples go, having made sure that they can.

    Raises:
        UsageError: the place cannot be written to, or is not a PNG file.
    """
    if output is None:
        path = _unused(_slug(model, prompt), "" if each else ".png")
    else:
        path = Path(output)
        each = each or output.endswith(("/", os.sep)) or path.is_dir()
    if each and path.suffix.lower() == ".png":
        raise UsageError(f"{path} would be a folder of pictures; name it without .png.")
    if not each and path.suffix.lower() != ".png":
        raise UsageError(f"a sheet is a PNG file: -o {path}.png; or a folder: -o {path}/.")
    check_writable(path / "0.png" if each else path)
    return Destination(path, each)


def check_picture(path: Path) -> None:
    """Refuse a file that is no PNG, or could not be written."""
    check_writable(path)
    if path.suffix.lower() != ".png":
        raise UsageError(f"pictures are a PNG file: -o {path}.png.")


def check_writable(path: Path) -> None:
    """Refuse a file that could not be written, before anything is computed for it."""
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if path.is_dir():
        reason = "it is a folder"
    elif not folder.is_dir():
        reason = f"{folder} is a file, not a folder"
    elif not os.access(folder, os.W_OK | os.X_OK):
        reason = f"the folder {folder} is read-only"
    else:
        return
    raise UsageError(f"cannot write {path}: {reason}; choose a place that can be written.")


def _slug(model: str, prompt: str | None) -> str:
    words = f"{Path(model).name} {prompt or ''}".lower()
    return re.sub(r"[^\w]+", "-", words).strip("-")[:60] or "samples"


def _unused(stem: str, suffix: str) -> Path:
    """Return a name in the current folder that nothing has yet."""
    path, number = Path(stem + suffix), 1
    while path.exists():
        number += 1
        path = Path(f"{stem}-{number}{suffix}")
    return path


@dataclass(frozen=True)
class Picture:
    """One file to be: its name, its pixels and its receipt."""

    name: str
    pixels: Pixels
    receipt: Receipt

    def write(self, path: Path) -> Path:
        """Write it as PNG."""
        return write_picture(path, self.pixels, self.receipt)


def sheet_of(request: Request, solutions: Sequence[Solution], layout: Layout) -> Picture:
    """Return all samples as one picture."""
    receipt = placed(receipt_of(request, solutions), layout, None)
    return Picture("", layout.arrange(to_pixels(samples(solutions))), receipt)


def pictures_of(
    request: Request, number: int, solution: Solution, layout: Layout
) -> Iterator[Picture]:
    """Yield each sample of batch `number` as a picture, with the seeds of all that were in it."""
    seeds = request.batches[number]
    receipt = receipt_of(replace(request, seeds=seeds), [solution])
    for place, (seed, pixels) in enumerate(zip(seeds, to_pixels(solution.x), strict=True)):
        told = placed(receipt, layout, place)
        yield Picture(file_name(seed), layout.arrange(pixels[None]), told)


def file_name(seed: int) -> str:
    """Return what the file of one sample is called."""
    return f"{seed:06d}.png"


def placed(receipt: Receipt, layout: Layout, index: int | None) -> Receipt:
    """Return the receipt of a picture: of a sheet, or of sample `index` of the batch alone."""
    picture = {"layout": layout.to_dict(), "sample": index}
    return replace(receipt, recipe={**receipt.recipe, "picture": picture})

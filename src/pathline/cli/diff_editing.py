"""`pathline diff-edit`: an object of a picture moved, resized, dragged, restyled or pasted."""

from __future__ import annotations

import json as jsonlib
import re
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from pathline.cli.diff_request import DiffRequest, receipt_of
from pathline.cli.listing import Json
from pathline.cli.options import chosen_device
from pathline.cli.output import check_writable
from pathline.cli.sampling import Device, Model
from pathline.core.errors import UsageError
from pathline.core.images import to_pixels, write_picture
from pathline.core.progress import progress
from pathline.edit.diff_editor import DiffEdited
from pathline.fields import Denoiser

Image = Annotated[str, typer.Option(help="The picture, a PNG of the model's size.")]
Name = Annotated[str, typer.Option("--task", help="move, resize, drag, appearance or paste.")]
Mask = Annotated[
    str | None, typer.Option(help="PNG, white on the object; of a drag: where things may change.")
]
Dx = Annotated[float | None, typer.Option(help="To the right, in pixels of the mask.")]
Dy = Annotated[float | None, typer.Option(help="Down, in pixels of the mask.")]
Scale = Annotated[float | None, typer.Option(help="About the object's centre.")]
Points = Annotated[
    str | None, typer.Option(help="Of a drag: x,y>x,y with semicolons between: 3,4>9,4;5,5>6,6.")
]
Reference = Annotated[
    str | None, typer.Option(help="The other picture, of appearance and paste; --mask of a paste "
                             "is the object there.")
]  # fmt: skip
ReferenceMask = Annotated[str | None, typer.Option(help="PNG, white on what is to be looked like.")]
Background = Annotated[
    str | None, typer.Option(help="PNG, white on what the place that is left shall look like.")
]
Fill = Annotated[
    str | None, typer.Option(help="Noise of the place that is left: own, or swap (of the target).")
]
Prompt = Annotated[str | None, typer.Option(help="What the picture shows.")]
Steps = Annotated[int, typer.Option(help="N; the paper's windows are scaled to it.")]
Guidance = Annotated[float | None, typer.Option(help="Of the prompt; 4 (appearance: 5) if unsaid.")]
Strength = Annotated[float | None, typer.Option(help="η; the task's own if unsaid; 0 is none.")]
Noise = Annotated[float | None, typer.Option(help="Inside the region, 0 to 1; 0.4 if unsaid.")]
NoBank = Annotated[bool, typer.Option("--no-bank", help="Leave keys and values of it alone.")]
Seed = Annotated[int, typer.Option(help="Of the noise inside the region.")]
Output = Annotated[
    str, typer.Option("-o", "--output", help="A PNG; what every step did is beside it, .json.")
]


def diff_edit(  # noqa: PLR0913 - each is an option
    model: Model,
    image: Image,
    task: Name,
    mask: Mask = None,
    dx: Dx = None,
    dy: Dy = None,
    scale: Scale = None,
    points: Points = None,
    reference: Reference = None,
    reference_mask: ReferenceMask = None,
    background: Background = None,
    fill: Fill = None,
    prompt: Prompt = None,
    steps: Steps = 50,
    guidance: Guidance = None,
    strength: Strength = None,
    noise: Noise = None,
    no_bank: NoBank = False,
    seed: Seed = 0,
    output: Output = "edited.png",
    device: Device = None,
    json: Json = False,
) -> None:
    """Move, resize or drag what a picture shows, or make it look like another one.

    pathline diff-edit emoji --image cat.png --task move --mask cat-mask.png --dx 8 --prompt "a cat"

    pathline diff-edit emoji --image a.png --task paste --reference b.png --mask b-mask.png --dx -4
    """
    from pathline.learn.checkpoint import load_model

    path = Path(output)
    if path.suffix.lower() != ".png":
        raise UsageError(f"the picture is a PNG file: -o {path}.png.")
    check_writable(path)
    denoiser = load_model(model).to(chosen_device(device))
    files = {"image": image, "mask": mask, "reference": reference,
             "reference_mask": reference_mask, "background": background}  # fmt: skip
    numbers = {"dx": dx, "dy": dy, "scale": scale, "points": _points(points), "fill": fill}
    request = DiffRequest(
        task, {role: file for role, file in files.items() if file}, numbers, prompt, steps,
        guidance, strength, noise, not no_bank, seed,
    ).signed()  # fmt: skip
    edited = watched(request, denoiser, "editing")
    write_picture(path, to_pixels(edited.x)[0], receipt_of(request, edited, model))
    report = {"file": str(path), "task": request.made().describe(), **edited.to_dict()}
    text = jsonlib.dumps(report, ensure_ascii=False, indent=1)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    typer.echo(text if json else f"{path}: {_said(edited)}; again: pathline replay {path}")


def watched(request: DiffRequest, model: Denoiser, what: str) -> DiffEdited:
    """Run a request behind a progress bar."""
    with progress() as bar:
        line = bar.add_task(what, total=request.steps)
        return request.run(model, lambda _: bar.advance(line))


_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_PAIR = re.compile(rf"{_NUMBER},{_NUMBER}>{_NUMBER},{_NUMBER}")


def _points(text: str | None) -> Any:
    """Read points as people write them.

    Raises:
        UsageError: they cannot be read.
    """
    if text is None:
        return None
    found: list[Any] = []
    for part in text.split(";"):
        match = _PAIR.fullmatch(part)
        if match is None:
            raise UsageError(
                f"--points {text!r} cannot be read at {part!r}; write from and to as 3,4>9,4 with "
                "semicolons between."
            )
        a, b, c, d = (float(each) for each in match.groups())
        found.append(((a, b), (c, d)))
    return tuple(found)


def _said(edited: DiffEdited) -> str:
    guided = [s for s in edited.steps if s.guided]
    fell = ""
    if guided:
        first, last = guided[0], guided[-1]
        fell = f"; energies {first.edit:.3g} + {first.content:.3g} → {last.edit:.3g} + " \
               f"{last.content:.3g}"  # fmt: skip
    off = (edited.reconstruction.clamp(-1, 1) - edited.x.clamp(-1, 1)).square().mean().sqrt()
    return (
        f"{edited.nfe} evaluations, {edited.vjps} backward passes{fell}; root mean square "
        f"distance from the unedited reconstruction {float(torch.as_tensor(off)):.3f}"
    )

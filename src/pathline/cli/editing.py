"""`pathline edit`: pictures changed by words, by noise, or back into what a model finds likely."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer

from pathline.cli.edit_request import WAYS, EditRequest, receipt_of
from pathline.cli.listing import Json
from pathline.cli.options import chosen_device
from pathline.cli.output import check_picture
from pathline.cli.sampling import Device, Model
from pathline.core.errors import UsageError, unknown
from pathline.core.images import write_picture
from pathline.edit import CodeLog, Edited
from pathline.edit.text_edit import DAMPED

Files = Annotated[str, typer.Argument(metavar="PICTURE[,PICTURE…]", help="PNG files.")]
Prompt = Annotated[str | None, typer.Argument(help="What they shall show. Optional but for text.")]
By = Annotated[str, typer.Option(help="text, sdedit or code.")]
Source = Annotated[str | None, typer.Option(help="Of text: what the pictures show.")]
Mask = Annotated[str | None, typer.Option(help="A picture: white is edited, black stays.")]
SolverName = Annotated[
    str | None, typer.Option("--solver", help="Of text: as pathline invert; else a solver's name.")
]
Steps = Annotated[int | None, typer.Option(help="Of the grid: 50; of code 200.")]
Guidance = Annotated[float | None, typer.Option(help="How strongly to follow the prompt (3).")]
Strength = Annotated[
    float | None, typer.Option(help="Share of the way to noise, 0 to 1: of text 1, of sdedit 0.5.")
]
Depth = Annotated[
    int | None, typer.Option(help="Of code: the grid point up to which it encodes (80).")
]
At = Annotated[str | None, typer.Option(help="Of code: correction depths, such as 20,50,79.")]
EpsRel = Annotated[float | None, typer.Option(help="Of code: Langevin steps, in σ² (1e-3).")]
Walk = Annotated[int | None, typer.Option(help="Of code: Langevin steps at each depth (200).")]
Eta = Annotated[float | None, typer.Option(help="Of code: η of the clipping (1.7); 0 for none.")]
Gamma = Annotated[float | None, typer.Option(help="Of text with bdia, in (0, 1] (0.96).")]
Rho = Annotated[float | None, typer.Option(help="Of text with dci.")]
Samples = Annotated[int, typer.Option(help="Answers to each picture.")]
Seed = Annotated[int, typer.Option(help="Of the first answer; the next has one more.")]
Output = Annotated[str | None, typer.Option("-o", "--output", help="A PNG file.")]


def edit(  # noqa: PLR0913 - each is an option
    model: Model,
    files: Files,
    prompt: Prompt = None,
    by: By = "text",
    source: Source = None,
    mask: Mask = None,
    solver: SolverName = None,
    steps: Steps = None,
    guidance: Guidance = None,
    strength: Strength = None,
    depth: Depth = None,
    at: At = None,
    eps_rel: EpsRel = None,
    walk: Walk = None,
    eta: Eta = None,
    gamma: Gamma = None,
    rho: Rho = None,
    samples: Samples = 1,
    seed: Seed = 0,
    output: Output = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Edit pictures: by words, by adding noise, or blindly, where something is damaged.

    pathline edit emoji apple.png "green apple" --source "red apple" -o green.png

    pathline edit emoji strokes.png "a castle" --by sdedit --strength 0.6 --samples 4

    pathline edit emoji damaged.png --by code --depth 80 --eps-rel 1e-4 --eta 1.7 --samples 4
    """
    from pathline.learn.checkpoint import load_model

    if by not in WAYS:
        raise unknown("way to edit", by, WAYS)
    _check_knobs(by, strength=strength, depth=depth, at=at, eps_rel=eps_rel, walk=walk, eta=eta,
                 gamma=gamma, rho=rho, source=source)  # fmt: skip
    names = tuple(files.split(","))
    path = Path(output or f"{Path(names[0]).stem}-{by}.png")
    check_picture(path)
    knobs = _knobs(by, depth, at, eps_rel, walk, eta, gamma, rho)
    request = EditRequest(
        by, names, prompt, source, mask, solver,
        steps or (200 if by == "code" else 50),
        3.0 if guidance is None else guidance,
        (1.0 if by == "text" else 0.5) if strength is None else strength,
        samples, seed, knobs,
    ).signed()  # fmt: skip
    denoiser = load_model(model).to(chosen_device(device))
    made = request.run(denoiser)
    write_picture(path, request.arranged(made), receipt_of(request, made, denoiser, model))
    told = _told(made, str(path))
    typer.echo(jsonlib.dumps(told, ensure_ascii=False, indent=1) if json else _said(told))


_OF = {
    "strength": ("text", "sdedit"),
    "source": ("text",),
    "gamma": ("text",),
    "rho": ("text",),
}
"""Which ways an option belongs to; the others are those of code."""


def _check_knobs(by: str, **options: Any) -> None:
    """Refuse options of another way."""
    for name, value in options.items():
        ways = _OF.get(name, ("code",))
        if value is not None and by not in ways:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} is of --by {' or '.join(ways)}, and this is --by {by}.")


def _knobs(  # noqa: PLR0913 - each is an option
    by: str,
    depth: int | None,
    at: str | None,
    eps_rel: float | None,
    walk: int | None,
    eta: float | None,
    gamma: float | None,
    rho: float | None,
) -> dict[str, Any]:
    """Return what was said of the method alone."""
    said: dict[str, Any] = {"depth": depth, "eps_rel": eps_rel, "n": walk}
    if by == "text":
        said = {"gamma": DAMPED if gamma is None else gamma, "rho": rho}
    if at is not None:
        try:
            said["at"] = [int(part) for part in at.split(",")]
        except ValueError:
            raise UsageError(f"--at {at}: write depths as 20,50,79.") from None
    made = {name: value for name, value in said.items() if value is not None}
    return made if eta is None else {**made, "eta": eta or None}


def _told(made: Edited, path: str) -> dict[str, Any]:
    """Return what came of an edit as JSON values."""
    told: dict[str, Any] = {
        "file": path,
        "pictures": made.x.shape[0],
        "answers": made.x.shape[1],
        "evaluations": made.nfe,
    }
    if made.error is not None:
        told["round_trip_error"] = float(made.error.max())
    if isinstance(made.log, CodeLog):
        if made.log.clipped is not None:
            told["clipped"] = float(made.log.clipped.mean())
        told["depths"] = [
            {
                "index": each.index,
                "t": each.t,
                "eps": each.eps,
                "score_before": float(each.before.mean()),
                "score_after": float(each.after.mean()),
                "restarts": int(each.restarts.sum()),
            }
            for each in made.log.depths
        ]
    return told


def _said(told: dict[str, Any]) -> str:
    words = [f"{told['file']}: {told['pictures']} pictures, {told['answers']} answers each"]
    words.append(f"{told['evaluations']} evaluations")
    if "round_trip_error" in told:
        words.append(f"the round trip without the edit is off by {told['round_trip_error']:.3g}")
    if "clipped" in told:
        words.append(f"{100 * told['clipped']:.2g} % of entries clipped")
    for each in told.get("depths", ()):
        words.append(
            f"at {each['index']} the score's norm went from {each['score_before']:.4g} to "
            f"{each['score_after']:.4g}"
        )
    return f"{', '.join(words)}; again: pathline replay {told['file']}"

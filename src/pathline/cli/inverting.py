"""`pathline invert`: from a picture to its code, back, and methods beside each other."""

from __future__ import annotations

import json as jsonlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from pathline.cli.likelihood import held_out
from pathline.cli.listing import Json, show
from pathline.cli.options import chosen_condition, chosen_device
from pathline.cli.output import check_picture, check_writable
from pathline.cli.reading import pictures
from pathline.cli.sampling import Device, Model, Number
from pathline.core.errors import UsageError
from pathline.core.images import Layout, to_pixels, write_picture
from pathline.edit import (
    EDICT,
    BySolver,
    Code,
    FixedPoint,
    Inverter,
    dci,
    ddim_inversion,
    decode,
    encode,
)
from pathline.fields import Denoiser
from pathline.solvers import BDIA, Grid, grids, solvers
from pathline.steer import CFG

Files = Annotated[
    list[str] | None,
    typer.Argument(
        help="PNG files, or a .safetensors file with their code; held-out ones if none."
    ),
]
Prompt = Annotated[str | None, typer.Option(help="What the pictures show; of a code: shall show.")]
Methods = Annotated[
    str,
    typer.Option(
        "--solver",
        help="bdia, any solver, ddim-inversion, fixed-point, edict or dci; with commas: a table.",
    ),
]
Gamma = Annotated[float, typer.Option(help="Of bdia, in (0, 1].")]
Rho = Annotated[float, typer.Option(help="Of dci: how far noise is drawn to the data, per entry.")]
Steps = Annotated[int, typer.Option(help="From data to noise.")]
Guidance = Annotated[float, typer.Option(help="Of the field; 1 adds nothing, and is best to edit.")]
Output = Annotated[
    str | None, typer.Option("-o", "--output", help="The code, .safetensors; of a code: a PNG.")
]
END = 0.98
"""Where codes lie if α is 0 at the noise end, which some methods divide by."""


def invert(  # noqa: PLR0913 - each is an option
    model: Model,
    files: Files = None,
    n: Number = None,
    prompt: Prompt = None,
    solver: Methods = "bdia",
    gamma: Gamma = 1.0,
    rho: Rho = 0.02,
    steps: Steps = 50,
    guidance: Guidance = 1.0,
    output: Output = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Find the noise that a picture comes from, and tell how exactly it comes back.

    pathline invert emoji apple.png --prompt "red apple" -o apple.safetensors

    pathline invert emoji apple.safetensors --prompt "green apple" -o green.png
    """
    from pathline.learn.checkpoint import load_model

    denoiser = load_model(model).to(chosen_device(device))
    how: dict[str, Any] = {**chosen_condition(prompt, denoiser)}
    if guidance != 1:
        how["guide"] = CFG(guidance)
    if files and files[0].endswith(".safetensors"):
        _draw(denoiser, files, how, output, json)
        return
    pixels, names = pictures(denoiser, files) if files else held_out(denoiser, n or 8)
    x = pixels.to(chosen_device(device)).float() / 127.5 - 1
    methods = {name: method_named(name, gamma, rho) for name in solver.split(",")}
    if output is not None:
        _check_file(output, methods)
    codes = {each: _coded(denoiser, x, m, steps, how) for each, m in methods.items()}
    rows = [_told(name, code) for name, code in codes.items()]
    (code, *_) = codes.values()
    said = "" if output is None else f"{code.save(output)}: "
    if json:
        content = {"model": denoiser.name, "pictures": names, "file": output, "methods": rows}
        typer.echo(jsonlib.dumps(content, ensure_ascii=False, indent=1))
        return
    if len(rows) > 1:
        table = [{k: v if isinstance(v, str) else f"{v:.4g}" for k, v in r.items()} for r in rows]
        show(table, as_json=False)
        return
    row = rows[0]
    typer.echo(
        f"{said}{len(x)} pictures, {row['states']} states each, {row['evaluations']} evaluations; "
        f"round trip: largest error {row['largest error']:.3g}, rms {row['rms error']:.3g}"
    )


def _coded(model: Denoiser, x: Tensor, method: Inverter, steps: int, how: dict[str, Any]) -> Code:
    with torch.no_grad():
        return encode(model, x, solver=method, grid=grid_of(model, steps), **how)


def grid_of(model: Denoiser, steps: int) -> Grid:
    """Return the grid of codes, even in λ from where the state still says something of the data."""
    needs_signal = float(model.path.alpha(model.path.t_max)) == 0
    return grids.log_snr(steps, start=END if needs_signal else None)


def _told(name: str, code: Code) -> dict[str, Any]:
    assert code.error is not None and code.rms is not None
    return {
        "method": name,
        "states": len(code.states),
        "largest error": float(code.error.max()),
        "rms error": float(code.rms.square().mean().sqrt()),
        "code deviation": float(code.z.std()),
        "evaluations": code.nfe,
        "state": str(code.z.dtype).removeprefix("torch."),
    }


def method_named(name: str, gamma: float, rho: float) -> Inverter:
    """Return the inverter of a name that a person types."""
    made = {
        "ddim-inversion": ddim_inversion,
        "fixed-point": FixedPoint,
        "edict": EDICT,
        "dci": lambda: dci(rho),
        "bdia": lambda: BySolver(BDIA(gamma)),
    }
    name = name.strip()
    return made[name]() if name in made else BySolver(solvers.build(name))


def _check_file(output: str, methods: dict[str, Inverter]) -> None:
    if not output.endswith(".safetensors"):
        raise UsageError(f"a code is a safetensors file: -o {output}.safetensors.")
    if len(methods) > 1 or not all(isinstance(m, BySolver) for m in methods.values()):
        raise UsageError("a file holds the code of one solver (bdia, reversible …): name that.")
    check_writable(Path(output))


def _draw(
    model: Denoiser, files: list[str], how: dict[str, Any], output: str | None, json: bool
) -> None:
    """Regenerate the pictures of a code."""
    if len(files) > 1:
        raise UsageError("one code at a time: several files were given, the first of them a code.")
    path = Path(output or Path(files[0]).with_suffix(".png"))
    check_picture(path)
    code = Code.load(files[0])
    device = model.device or torch.device("cpu")
    code = replace(code, states=tuple(z.to(device) for z in code.states))
    with torch.no_grad():
        solution = decode(model, code, **how)
    made = to_pixels(solution.x)
    layout = Layout(1, 1) if len(made) == 1 else Layout.of(len(made), made.shape[2])
    write_picture(path, layout.arrange(made), solution.receipt)
    error = None if code.error is None else float(code.error.max())
    if json:
        content = {"file": str(path), "pictures": len(made), "round_trip_error": error}
        content["evaluations"] = solution.stats.nfe
        typer.echo(jsonlib.dumps(content, ensure_ascii=False, indent=1))
        return
    known = "" if error is None else f"; the round trip of the code was off by {error:.3g} at most"
    typer.echo(f"{path}: {len(made)} pictures, {solution.stats.nfe} evaluations{known}")

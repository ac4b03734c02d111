"""`pathline likelihood`: how many bits pictures cost under a model."""

from __future__ import annotations

import json as jsonlib
import time
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from pathline.cli.listing import Json, show
from pathline.cli.options import chosen_condition, chosen_device
from pathline.cli.reading import pictures
from pathline.cli.sampling import Device, Model
from pathline.core.errors import UsageError
from pathline.fields import Denoiser

Files = Annotated[
    list[str] | None, typer.Argument(help="PNG files of the model's size; held-out ones if none.")
]
Number = Annotated[int, typer.Option("-n", help="Held-out pictures.")]
Prompt = Annotated[str | None, typer.Option(help="What the pictures show: words, or a class.")]
Draws = Annotated[int, typer.Option(help="Dequantisations a picture; more bound more tightly.")]
Probes = Annotated[int, typer.Option(help="Of the trace; 0 works it out exactly.")]
Tolerance = Annotated[float, typer.Option(help="Relative and absolute, of Dormand-Prince.")]
Seed = Annotated[int, typer.Option(help="Of the first picture; the next has one more.")]


def likelihood(  # noqa: PLR0913 - each is an option
    model: Model,
    files: Files = None,
    n: Number = 8,
    prompt: Prompt = None,
    draws: Draws = 1,
    probes: Probes = 4,
    tolerance: Tolerance = 1e-3,
    seed: Seed = 0,
    device: Device = None,
    json: Json = False,
) -> None:
    """Measure the bits per dimension of pictures, by the probability flow.

    pathline likelihood fashion -n 8
    """
    from pathline.fields.trace import Exact, Hutchinson
    from pathline.learn.checkpoint import load_model
    from pathline.learn.likelihood import bits_per_dim
    from pathline.solvers.adaptive_rk import AdaptiveRK

    denoiser = load_model(model).to(chosen_device(device))
    pixels, names = held_out(denoiser, n) if not files else pictures(denoiser, files)
    begun = time.perf_counter()
    told: dict[str, Any] = {**chosen_condition(prompt, denoiser)}
    with torch.no_grad():
        found = bits_per_dim(
            denoiser,
            pixels.to(chosen_device(device)),
            draws=draws,
            seeds=range(seed, seed + len(pixels)),
            solver=AdaptiveRK(rtol=tolerance, atol=tolerance),
            trace=Exact() if probes == 0 else Hutchinson(probes),
            **told,
        )
    mean, error = found.mean()
    rows = [
        {"picture": name, "bits per dimension": bits, "standard error": wrong}
        for name, bits, wrong in zip(
            names, found.bits.tolist(), found.standard_error.tolist(), strict=True
        )
    ]
    if json:
        spread = None if len(rows) == 1 else error
        if probes == 1:  # of one nothing is known, and JSON has no NaN
            rows = [{**row, "standard error": None} for row in rows]
        said = {"model": denoiser.name, "mean": mean, "standard_error": spread, "nfe": found.nfe}
        typer.echo(jsonlib.dumps({**said, "pictures": rows}, ensure_ascii=False, indent=1))
        return
    show([{k: v if isinstance(v, str) else f"{v:.4f}" for k, v in r.items()} for r in rows], False)
    spread = "" if len(rows) == 1 else f" ± {error:.3f} (standard error over pictures)"
    typer.echo(
        f"{mean:.3f}{spread} bits per dimension; at most {found.nfe} evaluations each; "
        f"{time.perf_counter() - begun:.0f} s"
    )


def held_out(model: Denoiser, n: int) -> tuple[Tensor, list[str]]:
    """Return held-out pictures of a shipped model's data, uint8, and names for them."""
    from pathline.learn.quality.subjects import subject_of

    if n < 1:
        raise UsageError(f"at least 1 picture is needed, and -n {n} was given.")
    pixels = subject_of(model).pictures("held_out")[:n]
    return pixels, [f"held out, {i}" for i in range(len(pixels))]

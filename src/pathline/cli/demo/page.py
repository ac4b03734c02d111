"""The page of the demonstration: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from importlib import resources
from string import Template

import torch

from pathline.cli.demo.chart import Chart
from pathline.cli.demo.measure import (
    CONVERGED,
    GALLERY,
    GUIDANCE,
    SHOWN,
    SOLVERS,
    Flow,
    Made,
    Study,
)
from pathline.cli.output import sheet_of
from pathline.core.images import Layout, encode_png
from pathline.core.page import image
from pathline.core.receipt import versions
from pathline.fields import Denoiser


def page(study: Study, flow: Flow, hero: bytes | None, seconds: float) -> str:
    """Return the page as HTML text.

    Args:
        study: the measurements on the model.
        flow: the measurements on the exact mixture.
        hero: the picture at its top, as PNG; None for none.
        seconds: how long everything took.
    """
    request = study.converged.request
    n_threads = torch.get_num_threads()
    return _template().substitute(
        hero="" if hero is None else image(hero, "paths from noise to data", "hero"),
        model=escape(request.source),
        gallery="\n".join(_gallery(study)),
        gallery_steps=GALLERY,
        guidance=f"{GUIDANCE:g}",
        compare="\n".join(_comparison(study)),
        half=CONVERGED[1] // 2,
        whole=CONVERGED[1],
        doubt=f"{study.doubt:.3f}",
        model_chart=Chart(study.curves(), study.doubt).svg("error against evaluations, the model"),
        flow_chart=Chart(flow.errors).svg("error against evaluations, an exact mixture"),
        seconds=f"{seconds:.0f}",
        versions=escape(", ".join(f"{name} {version}" for name, version in versions().items())),
        threads=f"{n_threads} thread{'s' if n_threads > 1 else ''}",
        training=escape(_training(request.model)),
    )


def _template() -> Template:
    return Template((resources.files(__package__ or "") / "page.html").read_text("utf-8"))


def _sheet(made: Made, columns: int, words: str) -> str:
    """Return the samples as one picture, with their receipt inside."""
    picture = sheet_of(made.request, made.solutions, Layout(columns, 3, 4))
    return image(encode_png(picture.pixels, picture.receipt), words, "pixels")


def _gallery(study: Study) -> Iterator[str]:
    for prompt, made in study.gallery.items():
        words = escape(prompt)
        yield f"<figure>{_sheet(made, 3, words)}<figcaption>{words}</figcaption></figure>"


def _comparison(study: Study) -> Iterator[str]:
    yield '<div class="head"></div>'
    for n in SHOWN:
        yield f'<div class="head">{n} evaluations</div>'
    yield f'<div class="head">converged ({CONVERGED[1]})</div>'
    for i, (name, title) in enumerate(SOLVERS.items()):
        yield f'<div class="solver c{i}">{escape(title)}</div>'
        for n in SHOWN:
            made, error = study.runs[name, n], study.error(name, n)
            note = "" if made.nfe == n else f" <small>with {made.nfe}</small>"
            caption = f'<figcaption class="error">{error:.3f}{note}</figcaption>'
            yield f"<figure>{_sheet(made, 3, f'{title}, {n} evaluations')}{caption}</figure>"
    whole = _sheet(study.converged, 2, "the converged solution")
    yield f'<figure class="whole">{whole}<figcaption>what all are held to</figcaption></figure>'


def _training(model: Denoiser) -> str:
    """Return what is known of how the model was trained."""
    training = model.details.get("training", {})
    if not {"samples", "seconds", "held_out_loss"} <= set(training):
        return ""
    hours = training["seconds"] / 3600
    return (
        f"The model saw {training['samples']:,} pictures in {hours:.1f} hours of training; "
        f"its held-out loss is {training['held_out_loss']:.3f}."
    )

"""The Edit tab: a picture that is chosen or drawn, and the tools that work on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from pathline.edit.diff_tasks import TASKS
from pathline.studio import views
from pathline.studio.running import Work
from pathline.studio.tabs import Bench
from pathline.studio.work import diff, edit, sample
from pathline.studio.work.recipe import Typed

MANY = 5
"""Pictures on one sheet that are shown smaller."""


def editing(bench: Bench, canvas: str) -> None:
    """Edit: a picture, and what is done to it."""
    with gr.Row():
        with gr.Column(scale=1):
            gr.HTML(canvas)
        with gr.Column(scale=2):
            shared = _shared(bench)
            tools = [_invert, _text, _noise, _restore, _move]
            for title, tool in zip(("Invert", "By text", "SDEdit", "CODE", "DiffEditor"), tools,
                                   strict=True):  # fmt: skip
                with gr.Tab(title):
                    tool(bench, shared)


@dataclass(frozen=True)
class _Shared:
    """What all edits have in common: what was drawn, the model, its prompt, steps and seed."""

    sent: gr.Textbox
    model: gr.Dropdown
    prompt: gr.Dropdown
    steps: gr.Number
    seed: gr.Number

    def inputs(self) -> list[Component]:
        return [self.sent, self.model, self.prompt, self.steps, self.seed]


def _shared(bench: Bench) -> _Shared:
    with gr.Row():
        model, prompt = bench.model()
        steps = gr.Number(20, label="Steps", precision=0)
        seed = gr.Number(0, label="Seed", precision=0)
    sent = gr.Textbox("", visible="hidden", label="sent")
    shape = gr.Textbox(_shape(bench, model.value), visible="hidden", label="shape")
    model.change(
        lambda name: _shape(bench, name),
        model,
        shape,
        show_progress="hidden",
        api_visibility="undocumented",
    ).then(
        None,
        shape,
        None,
        js="(shape) => { window.pathline.shape(shape); }",
        api_visibility="undocumented",
    )
    button = bench.button("Draw one to edit", "draw")
    url = gr.Textbox("", visible="hidden", label="url")

    def begin(model: Any, prompt: Any, seed: Any) -> Work:
        return sample.asked(bench.shelf, model, prompt, Typed(), seed, 1, bench.limits)

    def show(made: sample.Sampled) -> list[Any]:
        return [views.data_url(made.bare, "image/png")]

    drawn = bench.wire(button, begin, show, [model, prompt, seed], [url])
    drawn.then(
        None, url, None, js="(url) => { window.pathline.show(url); }", api_visibility="undocumented"
    )
    return _Shared(sent, model, prompt, steps, seed)


def _shape(bench: Bench, name: Any) -> str:
    _, height, width = bench.shelf.shape(name)
    return f"{height} {width}"


def _edit(
    bench: Bench, shared: _Shared, name: str, task: Callable[..., Work], more: list[Component]
) -> None:
    """Add a button that does an edit with what is shared, and more of its own."""
    button = bench.button("Go", name)
    out = gr.HTML("", elem_id=f"{name}-result")
    receipt = gr.JSON(None, label="Receipt")

    def begin(sent: Any, model: Any, prompt: Any, steps: Any, seed: Any, *own: Any) -> Work:
        of = edit.subject(bench.shelf, model, _read(sent), bench.limits)
        return task(of, prompt, steps, seed, *own)

    def show(made: edit.Shown) -> list[Any]:
        pictures = [
            views.image(
                views.png_url(views.sheet(x, width=160 if len(x) < MANY else 64)), caption, caption
            )
            for caption, x in made.pictures
        ]
        html = views.row(*pictures) + views.table(made.told)
        if made.png is not None:
            html += views.download(made.png, f"pathline-{name}.png")
        if made.plots:
            html += views.image(views.curves(made.plots), "what every step did")
        return [html, _short(made.receipt)]

    js = "(sent, ...rest) => [window.pathline.sent(), ...rest]"
    bench.wire(button, begin, show, [*shared.inputs(), *more], [out, receipt], js)


def _read(sent: Any) -> Any:
    """Return what the page sent of its canvas; what cannot be read is nothing."""
    try:
        return json.loads(sent) if sent else None
    except (TypeError, ValueError, RecursionError):
        return None


def _invert(bench: Bench, shared: _Shared) -> None:
    inverter = gr.Dropdown([*edit.INVERTERS], value="bdia", label="Inverter")
    _edit(bench, shared, "invert", lambda of, prompt, steps, seed, how:
          edit.inverted(of, prompt, how, steps), [inverter])  # fmt: skip


def _text(bench: Bench, shared: _Shared) -> None:
    with gr.Row():
        target = gr.Textbox("", label="Target: what it shall show (the prompt says what it shows)")
        inverter = gr.Dropdown([*edit.INVERTERS], value="bdia", label="Inverter")
    with gr.Row():
        strength = gr.Slider(0.05, 1, 1, label="Strength")
        guidance = gr.Number(3, label="Guidance of the way back")
    _edit(bench, shared, "text", lambda of, prompt, steps, seed, target, how, strength, guidance:
          edit.by_text(of, prompt, target, how, steps, strength, guidance),
          [target, inverter, strength, guidance])  # fmt: skip


def _noise(bench: Bench, shared: _Shared) -> None:
    with gr.Row():
        strength = gr.Slider(0.05, 1, 0.5, label="Strength")
        guidance = gr.Number(2, label="Guidance")
        samples = gr.Number(2, label="Samples", precision=0)
    _edit(bench, shared, "noise", lambda of, prompt, steps, seed, strength, guidance, samples:
          edit.by_noise(of, prompt, strength, steps, guidance, samples, seed),
          [strength, guidance, samples])  # fmt: skip


def _restore(bench: Bench, shared: _Shared) -> None:
    with gr.Row():
        depth = gr.Slider(2, edit.CODE_STEPS - 1, 80, step=1, label=f"Depth, of {edit.CODE_STEPS}")
        updates = gr.Number(200, label="Updates", precision=0)
        samples = gr.Number(1, label="Samples", precision=0)
    with gr.Row():
        eps = gr.Number(1e-3, label="Step of an update, in σ²")
        eta = gr.Number(1.7, label="Clipping η, 0 for none")
    _edit(bench, shared, "restore",
          lambda of, prompt, steps, seed, depth, updates, eps, eta, samples:
          edit.restored(of, prompt, depth, updates, eps, eta, samples, seed),
          [depth, updates, eps, eta, samples])  # fmt: skip


def _move(bench: Bench, shared: _Shared) -> None:
    with gr.Row():
        task = gr.Dropdown([*TASKS], value="drag", label="Task")
        scale = gr.Number(1, label="Scale (move, resize, paste)")
        fill = gr.Dropdown(["own", "swap"], value="own", label="Noise of the place that is left")
    with gr.Row():
        strength = gr.Textbox("", label="Strength η")
        guidance = gr.Textbox("", label="Guidance")
        noise = gr.Textbox("", label="Noise inside, 0 to 1")
        bank = gr.Checkbox(True, label="Keys and values of the picture")
    _edit(bench, shared, "move", lambda of, prompt, steps, seed, *typed:
          diff.moved(of, diff.Wanted(*typed), prompt, steps, seed),
          [task, scale, fill, strength, guidance, noise, bank])  # fmt: skip


def _short(receipt: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a receipt as it is shown, without the pictures that it holds."""
    if receipt is None:
        return None
    recipe = dict(receipt["recipe"])
    for name in ("edit", "request"):
        if name in recipe:
            held = {of: "in the saved file" for of in recipe[name]["held"]}
            recipe[name] = {**recipe[name], "held": held}
    return {**receipt, "recipe": recipe}

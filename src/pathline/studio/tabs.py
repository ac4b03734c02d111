"""The four tabs: what can be chosen, and what is shown."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from pathline.studio import views
from pathline.studio.jobs import Jobs
from pathline.studio.limits import Limits
from pathline.studio.running import Work, follow
from pathline.studio.shelf import Shelf
from pathline.studio.work import compare, edit, sample, watch
from pathline.studio.work.recipe import Typed, grid_names, solver_names

RECIPES = 6
"""Rows of the comparison."""
_FIRST = (("ddim", "log_snr", "10"), ("dpmpp_2m", "log_snr", "10"), ("unipc_3", "log_snr", "10"))


@dataclass(frozen=True)
class Bench:
    """What every tab works with."""

    shelf: Shelf
    jobs: Jobs

    @property
    def limits(self) -> Limits:
        """Of the studio."""
        return self.jobs.limits

    def model(self) -> tuple[gr.Dropdown, gr.Dropdown]:
        """Return a choice of models and of prompts, the second following the first."""
        names = self.shelf.names
        model = gr.Dropdown(names, value=names[0], label="Model")
        prompt = gr.Dropdown(
            self.shelf.prompts(names[0]), value="", label="Prompt or class",
            allow_custom_value=True,
        )  # fmt: skip

        def changed(name: str) -> Any:
            return gr.Dropdown(self.shelf.prompts(name), value="")

        model.change(changed, model, prompt, show_progress="hidden", api_visibility="undocumented")
        return model, prompt

    def recipe(self, steps: int | None = None) -> list[Component]:
        """Return choices of solver, grid, steps and guidance; what is empty is the model's."""
        with gr.Row():
            return [
                gr.Dropdown(["", *solver_names()], value="", label="Solver"),
                gr.Dropdown(["", *grid_names()], value="", label="Grid", allow_custom_value=True),
                gr.Textbox("" if steps is None else str(steps), label="Steps"),
                gr.Textbox("", label="Guidance"),
            ]

    def button(self, label: str, name: str) -> tuple[gr.Button, gr.HTML]:
        """Return a button that begins, and the line that tells how it goes; beside it one stops."""
        with gr.Row():
            begin = gr.Button(label, variant="primary", elem_id=f"{name}-run")
            stop = gr.Button("Stop", elem_id=f"{name}-stop")
        line = gr.HTML("", elem_id=f"{name}-status")

        def stopped(request: gr.Request) -> None:
            self.jobs.cancel(request.session_hash)

        stop.click(stopped, None, None, show_progress="hidden", api_visibility="undocumented")
        return begin, line

    def wire(
        self,
        button: tuple[gr.Button, gr.HTML],
        begin: Callable[..., Work],
        show: Callable[[Any], Sequence[Any]],
        inputs: Sequence[Component],
        outputs: Sequence[Component],
        js: str | None = None,
    ) -> Any:  # fmt: skip
        """Have a button run a job, and show what it comes to."""
        press, line = button
        nothing = [gr.skip()] * len(outputs)

        async def clicked(request: gr.Request, *values: Any) -> AsyncIterator[list[Any]]:
            steps = follow(self.jobs, request.session_hash, lambda: begin(*values), show)
            try:
                async for said, made in steps:
                    yield [said, *(nothing if made is None else made)]
            finally:
                await steps.aclose()  # type: ignore[attr-defined]

        return press.click(
            clicked, list(inputs), [line, *outputs], js=js, show_progress="hidden",
            concurrency_limit=None, api_visibility="undocumented",
        )  # fmt: skip


def sampling(bench: Bench) -> None:
    """Sample: a sheet, its receipt, and the file that `pathline replay` remakes."""
    with gr.Row():
        model, prompt = bench.model()
        n = gr.Number(4, label="Samples", precision=0)
        seed = gr.Number(0, label="Seed", precision=0)
    recipe = bench.recipe()
    button = bench.button("Sample", "sample")
    picture = gr.HTML("", elem_id="sample-picture")
    receipt = gr.JSON(None, label="Receipt", elem_id="sample-receipt")

    def begin(model: Any, prompt: Any, n: Any, seed: Any, *typed: Any) -> Work:
        return sample.asked(bench.shelf, model, prompt, Typed(*typed), seed, n, bench.limits)

    def show(made: sample.Sampled) -> list[Any]:
        told = {"recipe": made.recipe, "evaluations": made.nfe, "of the network": made.calls}
        html = views.image(views.data_url(made.png, "image/png"), f"{made.n} samples")
        save = views.download(made.png, "pathline-sample.png")
        return [html + views.table([told]) + save, made.receipt]

    bench.wire(button, begin, show, [model, prompt, n, seed, *recipe], [picture, receipt])


def comparing(bench: Bench) -> None:
    """Compare: one noise under several recipes."""
    with gr.Row():
        model, prompt = bench.model()
        n = gr.Number(4, label="Samples", precision=0)
        seed = gr.Number(0, label="Seed", precision=0)
    rows: list[Component] = []
    for number in range(RECIPES):
        solver, grid, steps = _FIRST[number] if number < len(_FIRST) else ("", "", "")
        with gr.Row():
            rows += [
                gr.Dropdown(["", *solver_names()], value=solver, label=f"{number + 1}. Solver"),
                gr.Dropdown(["", *grid_names()], value=grid, label="Grid", allow_custom_value=True),
                gr.Textbox(steps, label="Steps"),
                gr.Textbox("", label="Guidance"),
            ]
    button = bench.button("Compare", "compare")
    out = gr.HTML("", elem_id="compare-result")

    def begin(model: Any, prompt: Any, n: Any, seed: Any, *typed: Any) -> Work:
        each = [Typed(*typed[i : i + 4]) for i in range(0, len(typed), 4)]
        asked = [row for row in each if row.solver]
        return compare.asked(bench.shelf, model, prompt, asked, seed, n, bench.limits)

    bench.wire(button, begin, _compared, [model, prompt, n, seed, *rows], [out])


def _compared(made: compare.Compared) -> list[Any]:
    named = [(f"{i}. {line.name.partition('(')[0]}", line) for i, line in enumerate(made.lines, 1)]
    table = [
        {
            "": name,
            "what ran": line.trouble or line.name,
            "evaluations": line.nfe,
            "rms error": line.error if line.trouble or line.error is not None else "draws noise",
        }
        for name, line in named
    ]
    ran = {name: line for name, line in named if line.x is not None}
    sheets = [("converged", made.converged), *((name, line.x) for name, line in ran.items())]
    pictures = [
        views.image(views.png_url(views.sheet(x)), name, name)
        for name, x in sheets
        if x is not None
    ]
    plots = views.curves(
        {
            "rms distance of x̂₀ from the converged": {k: (v.times, v.x0) for k, v in ran.items()},
            "rms of x": {k: (v.times, v.norm) for k, v in ran.items()},
            "bend, rms dx̂₀/dλ": {
                k: ([t for t, _ in v.bend], [b for _, b in v.bend])
                for k, v in ran.items()
                if v.bend
            },
        }
    )
    known = (
        f"Errors are distances from the converged solution of the same noise and guidance, which "
        f"is itself known to {made.uncertain:.2g}."
    )
    html = views.table(table) + f"<p>{known}</p>" + views.row(*pictures)
    return [html + views.image(plots, "curves over time")]


def watching(bench: Bench) -> None:
    """Trajectories: a solve step by step, and ways in the plane."""
    with gr.Tab("Pictures"):
        with gr.Row():
            model, prompt = bench.model()
            n = gr.Number(1, label="Samples", precision=0)
            seed = gr.Number(0, label="Seed", precision=0)
        recipe = bench.recipe(20)
        button = bench.button("Watch", "watch")
        out = gr.HTML("", elem_id="watch-result")

        def begin(model: Any, prompt: Any, n: Any, seed: Any, *typed: Any) -> Work:
            return watch.asked(bench.shelf, model, prompt, Typed(*typed), seed, n, bench.limits)

        bench.wire(button, begin, _watched, [model, prompt, n, seed, *recipe], [out])
    with gr.Tab("In the plane"):
        with gr.Row():
            problem = gr.Dropdown([*watch.PROBLEMS], value=next(iter(watch.PROBLEMS)), label="Data")
            path = gr.Dropdown([*watch.PATHS], value="cond_ot", label="Path")
            count = gr.Number(60, label="Particles", precision=0)
            first = gr.Number(0, label="Seed", precision=0)
        with gr.Row():
            typed = [
                gr.Dropdown(
                    [s for s in solver_names() if s != "s3"], value="euler", label="Solver"
                ),
                gr.Dropdown(grid_names(), value="uniform", label="Grid"),
                gr.Number(10, label="Steps", precision=0),
            ]
        press = bench.button("Draw", "plane")
        plane = gr.HTML("", elem_id="plane-result")

        def begin_plane(problem: Any, path: Any, n: Any, seed: Any, *typed: Any) -> Work:
            return watch.asked_plane(problem, path, Typed(*typed), seed, n, bench.limits)

        inputs = [problem, path, count, first, *typed]
        bench.wire(press, begin_plane, _plane, inputs, [plane])


def _watched(made: watch.Frames) -> list[Any]:
    strip = views.image(
        views.png_url(made.strip()), "states and estimates over time",
        f"{made.name}: above x_t (scaled by 1/√(α² + σ²)), below x̂₀; t from "
        f"{made.times[0]:.3g} to {made.times[-1]:.3g}",
    )  # fmt: skip
    moving = views.image(views.animation(made.frames()), "the same as an animation", "x_t, x̂₀")
    return [strip + moving]


def _plane(made: watch.Plane) -> list[Any]:
    ways = {"the exact flow": (made.exact, made.data), made.name: (made.ways, made.data)}
    told = {
        "recipe": made.name, "evaluations": made.nfe, "rms error at the end": made.error,
        "the exact flow is known to": made.uncertain,
    }  # fmt: skip
    return [views.image(views.pathlines(ways), "ways in the plane") + views.table([told])]


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
            views.image(views.png_url(views.sheet(x, width=160)), caption, caption)
            for caption, x in made.pictures
        ]
        return [views.row(*pictures) + views.table(made.told), made.receipt]

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
    _edit(bench, shared, "restore", lambda of, prompt, steps, seed, depth, updates, samples:
          edit.restored(of, prompt, depth, updates, samples, seed),
          [depth, updates, samples])  # fmt: skip


def _move(bench: Bench, shared: _Shared) -> None:
    with gr.Row():
        task = gr.Dropdown([*edit.TASKS], value="drag", label="Task")
        scale = gr.Number(1, label="Scale (move, resize)")
    _edit(bench, shared, "move", lambda of, prompt, steps, seed, task, scale:
          edit.moved(of, task, prompt, steps, scale, seed), [task, scale])  # fmt: skip

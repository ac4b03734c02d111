"""The tabs but Edit: what can be chosen, and what is shown."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from pathline.solvers.saved import SAVED
from pathline.studio import views
from pathline.studio.jobs import Jobs
from pathline.studio.limits import Limits
from pathline.studio.running import Work, follow
from pathline.studio.shelf import Shelf
from pathline.studio.work import compare, sample, watch
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
                    [s for s in solver_names() if s not in SAVED], value="euler", label="Solver"
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

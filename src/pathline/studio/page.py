"""The page: tabs, and what their buttons do. This module, `tabs` and `edit_tab` alone know gradio.

Importing it imports gradio, which only `serve` asks for.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio.themes import Base, Font

from pathline.studio import edit_tab, tabs
from pathline.studio.jobs import Jobs
from pathline.studio.shelf import Shelf

MOST_EVENTS = 512
"""Events that gradio may hold: what waits for a turn waits in `Jobs`, not there."""

HINT = "What is left empty is the model's own; guidance 1 adds nothing."

SESSIONS = 32
"""Pages that gradio remembers what it last showed of (half a MiB each). Nothing here asks for it:
what a page needs, it sends."""


def asset(name: str) -> str:
    """Return a text that is shipped beside this module."""
    return resources.files("pathline.studio").joinpath("assets", name).read_text("utf-8")


def blocks(shelf: Shelf, jobs: Jobs) -> gr.Blocks:
    """Return the page."""
    with gr.Blocks(title="Pathline studio", analytics_enabled=False) as page:
        gr.HTML(f"<h1>Pathline studio</h1><p>{HINT}</p>")
        bench = tabs.Bench(shelf, jobs)
        with gr.Tabs():
            with gr.Tab("Sample"):
                tabs.sampling(bench)
            with gr.Tab("Compare"):
                tabs.comparing(bench)
            with gr.Tab("Edit"):
                edit_tab.editing(bench, asset("canvas.html"))
            with gr.Tab("Trajectories"):
                tabs.watching(bench)

        def left(request: gr.Request) -> None:
            jobs.cancel(request.session_hash)

        page.unload(left)
    page.state_session_capacity = SESSIONS
    page.queue(max_size=MOST_EVENTS, default_concurrency_limit=None, api_open=False)
    return page


def mounted(shelf: Shelf, jobs: Jobs) -> Any:
    """Return the page as an application."""
    sans = [Font("system-ui"), Font("sans-serif")]
    mono = [Font("ui-monospace"), Font("monospace")]
    return gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks(shelf, jobs),
        path="/",
        theme=Base(font=sans, font_mono=mono),
        css=asset("studio.css"),
        head=f"<script>{asset('canvas.js')}</script>",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=False,
    )

"""`pathline studio`: opens the page."""

from __future__ import annotations

from typing import Annotated

import typer

from pathline.cli.options import chosen_device, given

Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model", help="What visitors choose from: a shipped model or a folder; repeatable."
    ),
]
Host = Annotated[str, typer.Option(help="An address of this machine.")]
Port = Annotated[int, typer.Option(help="0 takes a free one.")]
Open = Annotated[
    bool,
    typer.Option("--open-to-network", help="Needed for a host that other machines reach."),
]
Workers = Annotated[int | None, typer.Option(min=1, max=64, help="Jobs that compute at one time.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; the fastest if left out.")]


def studio(
    model: Models = None,
    host: Host = "127.0.0.1",
    port: Port = 7860,
    open_to_network: Open = False,
    workers: Workers = None,
    device: Device = None,
) -> None:
    """Open a page in which to sample, compare, edit and watch; it is reached from here alone.

    pathline studio --model fashion --port 0
    """
    from pathline.learn.checkpoint import model_names
    from pathline.studio import Limits, serve

    serve(
        model or model_names(),
        host=host,
        port=port,
        device=chosen_device(device).type,
        limits=Limits(**given(workers=workers)),
        open_to_network=open_to_network,
    )

"""`serve`: opens the studio on an address."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pathline.core.errors import MissingExtra, UsageError
from pathline.studio.door import LOOPBACK, Door
from pathline.studio.jobs import Jobs
from pathline.studio.limits import Limits
from pathline.studio.shelf import Shelf

PORT = 7860


@dataclass
class Studio:
    """A studio that is not open yet.

    Args:
        shelf: its models.
        limits: what a visitor may ask for.
        jobs: the queue.
        app: what answers requests (ASGI).
    """

    shelf: Shelf
    limits: Limits
    jobs: Jobs
    app: Any


def studio(shelf: Shelf, limits: Limits, hosts: frozenset[str] | None) -> Studio:
    """Return a studio.

    Args:
        shelf: its models.
        limits: what a visitor may ask for.
        hosts: names that it answers to; None for any.

    Raises:
        MissingExtra: gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported, and later
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        from pathline.studio.page import mounted
    except ImportError as error:
        raise MissingExtra(error.name or "gradio", "studio", "for the studio") from error
    jobs = Jobs(limits)
    return Studio(shelf, limits, jobs, Door(mounted(shelf, jobs), hosts, limits.body))


def serve(
    models: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    device: str = "cpu",
    limits: Limits | None = None,
    open_to_network: bool = False,
) -> None:
    """Open the studio and stay until it is interrupted.

    Args:
        models: shipped names, or folders: what visitors may choose from.
        host: an address of this machine.
        port: 0 takes a free one.
        device: where models run.
        limits: what a visitor may ask for.
        open_to_network: must be said for a host that is not loopback; there is no password.

    Raises:
        UsageError: the address is not loopback, or is taken; a model is unknown.
        MissingExtra: gradio is not installed.
    """
    check_host(host, open_to_network)
    shelf = Shelf(models, device)
    for name in shelf.names:
        shelf.model(name)  # refuses what cannot be read, before anybody waits for it
    door = bound(host, port)
    try:
        made = studio(shelf, limits or Limits(), hosts_of(host))
        run(made, door)
    finally:
        door.close()


def run(made: Studio, door: socket.socket) -> None:
    """Serve on a socket until interrupted."""
    import uvicorn

    host, port = door.getsockname()[:2]
    address = f"[{host}]" if ":" in host else host
    print(f"the studio is open at http://{address}:{port}/ (Ctrl-C closes it)", flush=True)
    config = uvicorn.Config(
        made.app, log_level="warning", timeout_graceful_shutdown=2, server_header=False
    )
    try:
        uvicorn.Server(config).run(sockets=[door])
    finally:
        made.jobs.close()


def check_host(host: str, open_to_network: bool) -> None:
    """Refuse an address that others reach, unless that was said.

    Raises:
        UsageError: says how.
    """
    if not is_loopback(host) and not open_to_network:
        raise UsageError(
            f"{host} can be reached from other machines, and the studio has no password: leave "
            "--host out, or say --open-to-network as well."
        )


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def hosts_of(host: str) -> frozenset[str] | None:
    """Return the names that a studio on this address answers to; None for any."""
    return frozenset({*LOOPBACK, host}) if is_loopback(host) else None


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address.

    Raises:
        UsageError: it is taken, or is none of this machine.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"--port {port}: choose from 0 (a free one) to 65535.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    door = socket.socket(family, socket.SOCK_STREAM)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((host, port))
        door.listen(128)
    except OSError as error:
        door.close()
        reason = (error.strerror or str(error)).lower()
        raise UsageError(
            f"cannot open {host}:{port}: {reason}; choose another with --port, or --port 0 for a "
            "free one."
        ) from error
    return door

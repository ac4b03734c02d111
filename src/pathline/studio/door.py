"""The door: which requests come in. It stands before gradio, in plain ASGI.

Only what the page itself asks for is let through: no uploads, no files, no proxy, no calls past the
queue. Bodies are counted as they arrive. A server on loopback answers to loopback names alone, so
that no page elsewhere reaches it through a name of its own; and pages may load nothing from
anywhere else.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from pathline.studio.limits import MIB

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_API = r"(?:/gradio_api)?"
GETS = re.compile(
    rf"/|{_API}/(?:config|info|startup-events)/?|{_API}/(?:queue/data|heartbeat/[\w-]+)"
    r"|/(?:theme\.css|favicon\.ico|manifest\.json|robots\.txt)"
    r"|(?:/gradio_api)?/(?:assets|static|svelte)/[\w./@+-]+"
)
POSTS = re.compile(rf"{_API}/(?:queue/join|cancel|reset)/?")
LOOPBACK = {"127.0.0.1", "localhost", "[::1]"}
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:; frame-ancestors 'none'; "
    "form-action 'self'; base-uri 'self'; object-src 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


@dataclass
class Door:
    """Lets in what the page needs, and nothing larger than `body` bytes.

    Args:
        app: what stands behind it.
        hosts: names that it answers to; None for any.
        body: bytes of a request.
    """

    app: App
    hosts: frozenset[str] | None
    body: int = 12 * MIB

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        refused = (404, "not here.") if scope["type"] != "http" else self._refused(scope)
        if refused is not None:
            await _answer(send, *refused)
            return
        await self.app(scope, _Counted(receive, self.body), _marked(send))

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        headers = {k.lower(): v.decode("latin-1") for k, v in scope["headers"]}
        if self.hosts is not None and _host(headers.get(b"host", "")) not in self.hosts:
            return 421, "this studio answers to loopback names only."
        origin = headers.get(b"origin")
        if origin is not None and origin.partition("://")[2] != headers.get(b"host", ""):
            return 403, "requests come from the studio's own page."
        allowed = {"GET": GETS, "HEAD": GETS, "POST": POSTS}.get(scope["method"])
        path = scope["path"]
        if allowed is None or not allowed.fullmatch(path) or ".." in path:
            return 404, "not here."
        length = headers.get(b"content-length", "0")
        if not length.isdigit() or int(length) > self.body:
            return 413, f"a request may have {self.body // MIB} MiB."
        return None


@dataclass
class _Counted:
    """The body of a request, cut off where it is too long, whatever its header said."""

    receive: Receive
    left: int

    async def __call__(self) -> MutableMapping[str, Any]:
        message = await self.receive()
        self.left -= len(message.get("body", b""))
        return {"type": "http.disconnect"} if self.left < 0 else message


def _host(text: str) -> str:
    """Return a host without its port."""
    return re.sub(r":\d+$", "", text).lower()


def _marked(send: Send) -> Send:
    """Return what sends answers with our headers."""

    async def marked(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
        await send(message)

    return marked


async def _answer(send: Send, status: int, text: str) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

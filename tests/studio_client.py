"""A studio on a port of this machine, and a visitor that speaks as its page does."""

import asyncio
import json
import secrets
import threading
from contextlib import contextmanager

import httpx
import uvicorn

from pathline.studio.limits import Limits
from pathline.studio.server import bound, hosts_of, studio
from pathline.studio.shelf import Shelf


@contextmanager
def opened(folder, **limits):
    """Open a studio in a thread; yields it and its address."""
    made = studio(Shelf([str(folder)]), Limits(**limits), hosts_of("127.0.0.1"))
    door = bound("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(made.app, log_level="error", timeout_graceful_shutdown=1)
    )
    server.install_signal_handlers = lambda: None
    thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, daemon=True)
    thread.start()
    try:
        yield made, f"http://127.0.0.1:{door.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        made.jobs.close()
        door.close()


class Visitor:
    """One page: a session, and what its buttons are called."""

    def __init__(self, client, config):
        self.client, self.session = client, secrets.token_hex(8)
        ids = {c["props"].get("elem_id"): c["id"] for c in config["components"]}
        self.buttons = {
            name: next(d["id"] for d in config["dependencies"] if [number, "click"] in d["targets"])
            for name, number in ids.items()
            if name and name.endswith(("-run", "-stop"))
        }

    @classmethod
    async def arriving(cls, client):
        return cls(client, (await client.get("/config")).json())

    async def join(self, button, *data):
        sent = {"data": list(data), "fn_index": self.buttons[button], "session_hash": self.session}
        return await self.client.post("/gradio_api/queue/join", json=sent)

    async def listen(self):
        """Yield what the server says to this session."""
        how = {"params": {"session_hash": self.session}, "timeout": httpx.Timeout(180)}
        async with self.client.stream("GET", "/gradio_api/queue/data", **how) as answer:
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                if line.startswith("data:"):
                    yield json.loads(line[5:])

    async def press(self, button, *data):
        """Press a button and return its outputs, the status line first; none if it was refused."""
        answer = await self.join(button, *data)
        assert answer.status_code == 200, answer.text
        async for message in self.listen():
            mine = message.get("event_id") == answer.json()["event_id"]
            if mine and message["msg"] == "process_completed":
                return message["output"].get("data") or []
        raise AssertionError("the server hung up")


def visit(address, *coroutines):
    """Run visitors' coroutines, called with a client, at the same time."""

    async def all_of_them():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=address, timeout=60, limits=limits) as client:
            return await asyncio.gather(*(each(client) for each in coroutines))

    return asyncio.run(all_of_them())

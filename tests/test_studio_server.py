"""The studio under visitors: many at once, ones that leave, ones that send what they should not."""

import asyncio
import base64
import contextlib
import io
import json
import time

import httpx
import psutil
import pytest
import torch
from PIL import Image
from studio_client import Visitor, opened, visit
from tiny_model import tiny_model

from pathline.core.images import CHUNK

LEASE = 5.0


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    folder = tiny_model(tmp_path_factory.mktemp("server") / "tiny", conditional=False)
    with opened(folder, lease=LEASE) as made:
        yield made


@pytest.fixture
def slow(studio):
    """Have the model take 0.1 s for each evaluation."""
    network = studio[0].shelf.model("tiny").network
    hook = network.register_forward_pre_hook(lambda *_: time.sleep(0.1))
    yield studio
    hook.remove()


def sampled(seed, steps=3, n=1):
    """Return what the Sample tab sends."""
    return "sample-run", "tiny", "", n, seed, "ddim", "uniform", str(steps), ""


def seeds_in(html):
    """Return the seeds of the receipt inside the picture that the page shows."""
    content = base64.b64decode(html.partition("base64,")[2].partition('"')[0])
    with Image.open(io.BytesIO(content)) as image:
        return json.loads(image.info[CHUNK])["seeds"]


def idle(jobs, seconds=20.0):
    until = time.monotonic() + seconds
    while jobs.busy:
        assert time.monotonic() < until, "the slot was not freed"
        time.sleep(0.02)


def test_fifty_at_once_each_get_their_own_picture(studio):
    made, address = studio

    def one(seed):
        async def go(client):
            visitor = Visitor(client, config)
            status, picture, receipt = await visitor.press(*sampled(seed))
            assert "done: 3 evaluations" in status
            return seeds_in(picture), receipt["seeds"]

        return go

    config = httpx.get(f"{address}/config").json()
    answers = visit(address, *(one(seed) for seed in range(1000, 1050)))
    assert answers == [([seed], [seed]) for seed in range(1000, 1050)]
    assert made.jobs.busy == 0


def test_one_who_leaves_in_the_middle_frees_the_slot(slow):
    made, address = slow

    async def leaves(client):
        visitor = await Visitor.arriving(client)
        await visitor.join(*sampled(0, steps=200))
        async for message in visitor.listen():
            if "evaluations" in str(message):
                return  # closes the stream

    visit(address, leaves)
    begun = time.monotonic()
    idle(made.jobs)
    assert time.monotonic() - begun < LEASE + 5  # 200 steps of 0.1 s take longer

    async def next_one(client):
        return await (await Visitor.arriving(client)).press(*sampled(1))

    assert "done" in visit(address, next_one)[0][0]


def test_stopping_again_and_again_stops_mine_and_nobody_elses(slow):
    made, address = slow

    async def both(client):
        mine, other = await Visitor.arriving(client), await Visitor.arriving(client)
        running = asyncio.create_task(mine.press(*sampled(0, steps=200)))
        behind = asyncio.create_task(other.press(*sampled(7)))
        while not made.jobs.busy:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        for _ in range(6):
            assert (await mine.join("sample-stop")).status_code == 200
        stopped, done = await running, await behind
        again = await mine.press(*sampled(3))
        return stopped, done, again

    ((stopped, done, again),) = visit(address, both)
    assert "stopped." in stopped[0] and "<figure" not in str(stopped)
    assert seeds_in(done[1]) == [7] and seeds_in(again[1]) == [3]
    idle(made.jobs)


def test_a_visitor_has_so_many_jobs_and_is_told(slow):
    made, address = slow

    async def greedy(client):
        visitor, heard = await Visitor.arriving(client), []
        for seed in range(3):
            await visitor.join(*sampled(seed, steps=100))
        async for message in visitor.listen():
            heard.append(str(message))
            if "of yours" in heard[-1] or message["msg"] == "close_stream":
                break
        await visitor.join("sample-stop")
        return heard[-1]

    (said,) = visit(address, greedy)
    assert "2 jobs of yours are not done yet" in said
    idle(made.jobs)


def edited(picture, prompt=""):
    """Return what the Invert tab of Edit sends."""
    sent = json.dumps({"picture": picture, "mask": None, "points": []})
    return "invert-run", sent, "tiny", prompt, 4, 0, "bdia"


def picture():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def test_what_no_page_sends_is_refused_and_nothing_falls(studio):
    made, address = studio
    file = {"path": "/etc/passwd", "url": "/etc/passwd", "orig_name": "../../x.png",
            "meta": {"_type": "gradio.FileData"}}  # fmt: skip
    attempts = {
        "malformed": (edited("data:image/png;base64,AAAA"), "damaged"),
        "a path": (edited("../../../etc/passwd"), "PNG, JPEG or WebP"),
        "a file": (edited(file), "PNG, JPEG or WebP"),
        "no JSON": (("invert-run", "{[", "tiny", "", 4, 0, "bdia"), "no picture yet"),
        "deep JSON": (("invert-run", "[" * 9000, "tiny", "", 4, 0, "bdia"), "no picture yet"),
        "a number": (("invert-run", 7, "tiny", "", 4, 0, "bdia"), ""),
        "a model's path": (("sample-run", "../tiny", "", 1, 0, "ddim", "uniform", "3", ""), ""),
        "a file as prompt": (("sample-run", "tiny", file, 1, 0, "ddim", "", "3", ""), "text"),
        "too many": (sampled(0, n=10_000), "choose from 1 to 64"),
        "too long": (sampled(0, steps=10_000), "choose from 1 to 200"),
        "too few values": (("sample-run", "tiny"), ""),
    }

    def one(data):
        async def go(client):
            return await (await Visitor.arriving(client)).press(*data)

        return go

    answers = visit(address, *(one(data) for data, _ in attempts.values()))
    for (name, (_, said)), outputs in zip(attempts.items(), answers, strict=True):
        assert said in str(outputs[:1]), name
        assert "root:" not in str(outputs) and "<figure" not in str(outputs), name
    ((exact),) = visit(address, one(edited(picture())))
    assert "regenerated" in exact[1] and made.jobs.busy == 0


def test_long_bodies_uploads_and_files_stay_out(studio):
    made, address = studio
    with httpx.Client(base_url=address, timeout=30) as client:
        join = "/gradio_api/queue/join"
        assert client.post(join, content=b"x" * (made.limits.body + 1)).status_code == 413

        def chunks():  # no content-length
            for _ in range(made.limits.body // 2**20 + 2):
                yield b" " * 2**20

        with contextlib.suppress(httpx.HTTPError):  # cut off while it was sending
            assert client.post(join, content=chunks()).status_code >= 400
        assert client.post(join, content=b"{").status_code in (400, 422)
        sent = {"files": ("../../../tmp/evil.py", b"print(1)")}
        assert client.post("/gradio_api/upload", files=sent).status_code == 404
        for path in ("/gradio_api/file=/etc/passwd", "/static/..%2f..%2f..%2fetc/passwd",
                     "/gradio_api/file=C:/x", "/assets/../../../../etc/passwd"):  # fmt: skip
            answer = client.get(path)
            assert answer.status_code in (403, 404) and "root:" not in answer.text
        assert client.get("/", headers={"host": "evil.example"}).status_code == 421
        page = client.get("/")
    assert (
        page.status_code == 200
        and "frame-ancestors 'none'" in page.headers["content-security-policy"]
    )


def test_another_session_hears_nothing_of_mine(studio):
    made, address = studio

    async def go(client):
        mine, other = await Visitor.arriving(client), await Visitor.arriving(client)
        heard = []

        async def overhear():
            async for message in other.listen():
                heard.append(message)

        listening = asyncio.create_task(overhear())
        outputs = await mine.press(*sampled(5))
        event = (await mine.join(*sampled(6))).json()["event_id"]
        stolen = await client.get(f"/gradio_api/call/clicked/{event}")
        async for message in mine.listen():
            if message["msg"] == "process_completed":
                break
        await asyncio.sleep(0.3)
        listening.cancel()
        return outputs, heard, stolen.status_code

    ((outputs, heard, stolen),) = visit(address, go)
    assert seeds_in(outputs[1]) == [5] and stolen == 404
    assert not any(m.get("event_id") or "output" in m for m in heard)


@pytest.mark.slow
def test_two_hundred_jobs_leave_no_memory_behind(studio):
    """Within 10 %, after 40 jobs that warm up what is kept: the model, gradio, fonts."""
    made, address = studio
    config = httpx.get(f"{address}/config").json()
    here = psutil.Process()

    def some(first, n):
        async def go(client):
            for seed in range(first, first + n):
                visitor = Visitor(client, config)
                kind = seed % 8  # of each eight: one in the plane, two inversions, two watched
                if kind in (0, 1, 2):
                    out = await visitor.press(*sampled(seed, n=16))
                elif kind in (3, 4):
                    out = await visitor.press(*edited(picture()))
                elif kind in (5, 6):
                    watched = ("tiny", "", 2, seed, "ddim", "uniform", "10", "")
                    out = await visitor.press("watch-run", *watched)
                else:
                    plane = ("eight Gaussians", "cond_ot", 20, seed, "euler", "uniform", 8)
                    out = await visitor.press("plane-run", *plane)
                assert "done" in out[0], out[0]

        return go

    visit(address, some(0, 40))
    before = here.memory_info().rss
    visit(address, some(40, 200))
    after = here.memory_info().rss
    print(f"RSS {before / 2**20:.1f} MiB before, {after / 2**20:.1f} MiB after 200 jobs")
    assert after < 1.1 * before
    assert torch.get_num_threads() == 1

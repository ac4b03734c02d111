"""The studio without its page: jobs, uploads, the door, and what each tab computes."""

import asyncio
import base64
import contextlib
import gc
import io
import json
import socket
import tempfile
import threading
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import tiny_model
from typer.testing import CliRunner

import pathline as pl
from pathline.cli.main import app
from pathline.core.errors import MissingExtra, PathlineError, UsageError
from pathline.core.images import read_pixels, read_receipt, write_picture
from pathline.studio import server as serving
from pathline.studio import views
from pathline.studio.door import Door
from pathline.studio.jobs import Jobs, Stopped, expect, tick
from pathline.studio.limits import Limits
from pathline.studio.running import follow
from pathline.studio.shelf import Shelf
from pathline.studio.uploads import drawn
from pathline.studio.work import compare, diff, edit, sample, watch
from pathline.studio.work.recipe import Typed, recipe

LIMITS = Limits()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("studio") / "tiny", conditional=False)


@pytest.fixture(scope="module")
def shelf(folder):
    return Shelf([str(folder)])


@pytest.fixture
def queue():
    made = []

    def opened(**limits):
        made.append(Jobs(Limits(**limits)))
        return made[-1]

    yield opened
    for jobs in made:
        jobs.close()


def finished(job, seconds=20.0):
    until = time.monotonic() + seconds
    while not job.is_over:
        assert time.monotonic() < until, job.state
        job.touch()
        time.sleep(0.005)
    return job


def looping():
    while True:
        tick()
        time.sleep(0.002)


# Jobs


def test_as_many_jobs_run_as_there_are_workers_and_no_more(queue):
    jobs, lock, now, most = queue(workers=2, per_session=9), threading.Lock(), [0], [0]

    def work():
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.03)
        with lock:
            now[0] -= 1

    for job in [jobs.submit(f"s{i % 3}", work) for i in range(9)]:
        assert finished(job).state == "done"
    assert most[0] == 2 and jobs.busy == 0


def test_sessions_take_turns(queue):
    jobs, gate, order = queue(per_session=9), threading.Event(), []
    first = jobs.submit("z", gate.wait)
    while first.state != "running":
        time.sleep(0.005)
    asked = [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("c", 1), ("b", 2)]
    made = [jobs.submit(who, lambda name=(who, n): order.append(name)) for who, n in asked]
    ahead = [jobs.look(job).ahead for job in made]
    gate.set()
    for job in made:
        finished(job)
    assert order == [("a", 1), ("b", 1), ("c", 1), ("a", 2), ("b", 2), ("a", 3)]
    assert ahead == [order.index(name) for name in asked]  # what the page tells is what happens


def test_a_session_and_the_queue_have_bounds(queue):
    jobs = queue(per_session=2, queue=2)
    running = jobs.submit("a", looping)
    while running.state != "running":
        time.sleep(0.005)
    jobs.submit("a", looping)
    with pytest.raises(UsageError, match="2 jobs of yours"):
        jobs.submit("a", looping)
    jobs.submit("b", looping)
    with pytest.raises(UsageError, match="too many jobs are waiting"):
        jobs.submit("c", looping)
    with pytest.raises(UsageError, match="no session"):
        jobs.submit(None, looping)


def test_cancelling_frees_the_slot_however_often_and_touches_nobody_else(queue):
    jobs = queue(per_session=3)
    mine, waiting = jobs.submit("a", looping), jobs.submit("a", looping)
    other = jobs.submit("b", lambda: 7)
    for _ in range(5):
        jobs.cancel("a")
    assert finished(mine).state == finished(waiting).state == "stopped"
    assert str(mine.error) == "stopped."
    assert jobs.cancel("a") == 0 and jobs.cancel("nobody") == 0
    assert finished(other).result == 7
    assert finished(jobs.submit("a", lambda: 8)).result == 8


def test_a_job_that_nobody_waits_for_stops_and_one_that_takes_too_long(queue):
    jobs = queue(lease=0.1, per_session=3)
    left, behind = jobs.submit("a", looping), jobs.submit("b", lambda: 1)
    assert finished(behind).result == 1 and left.state == "stopped"
    assert "nobody waited" in str(left.error)
    slow = finished(queue(seconds=0.1).submit("a", looping))
    assert slow.state == "stopped" and "0.1 seconds" in str(slow.error)


def test_a_defect_fails_its_job_and_leaves_the_worker(queue, capsys):
    jobs = queue()
    failed = finished(jobs.submit("a", lambda: 1 / 0))
    assert failed.state == "failed" and "server's log" in str(failed.error)
    assert "ZeroDivisionError" in capsys.readouterr().err

    def refused():
        raise UsageError("in one\nsentence")

    assert str(finished(jobs.submit("a", refused)).error) == "in one sentence"
    assert finished(jobs.submit("a", lambda: 3)).result == 3


def test_a_result_lives_as_long_as_its_job(queue):
    class Big:
        pass

    jobs, held = queue(), Big()
    alive = weakref.ref(held)
    job = finished(jobs.submit("a", lambda held=held: held))
    del held
    time.sleep(0.05)  # the worker lets go of it just after
    assert job.result is alive()
    del job
    gc.collect()
    assert alive() is None


def test_progress_counts_ticks_and_closing_stops_all():
    jobs = Jobs(Limits())

    def work():
        expect(10)
        for _ in range(4):
            tick()
        looping()

    job = jobs.submit("a", work)
    while job.done < 5:
        job.touch()
        time.sleep(0.005)
    assert job.look().total == 10
    jobs.close()
    assert job.state == "stopped" and "closes" in str(job.error)


def test_one_who_stops_listening_stops_the_job(queue):
    jobs = queue(lease=60.0)

    class Endless:
        def run(self):
            looping()

    async def leaves():
        steps = follow(jobs, "a", Endless, lambda made: [made])
        async for said, made in steps:
            assert made is None
            if "evaluations" in said:
                break
        await steps.aclose()

    asyncio.run(leaves())
    until = time.monotonic() + 10
    while jobs.busy:
        assert time.monotonic() < until
        time.sleep(0.01)


# Uploads


def url(image, kind="png", **how):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **how)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def test_pixels_come_in_as_they_are():
    pixels = np.arange(3 * 64, dtype=np.uint8).reshape(8, 8, 3)
    for kind, how in (("png", {}), ("webp", {"lossless": True})):
        x = drawn({"picture": url(Image.fromarray(pixels), kind, **how)}, (3, 8, 8), LIMITS).x
        assert np.array_equal(((x[0] + 1) * 127.5).round().permute(1, 2, 0), pixels)


def test_what_is_transparent_is_white_and_what_is_wide_is_cut():
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert bool((drawn({"picture": url(clear)}, (3, 8, 8), LIMITS).x == 1).all())
    wide = np.zeros((8, 16), np.uint8)
    wide[:, 4:12] = 255  # the part in the middle
    assert bool((drawn({"picture": url(Image.fromarray(wide))}, (1, 8, 8), LIMITS).x == 1).all())


def test_marks_and_arrows_are_on_the_models_grid():
    mask = np.full((32, 32), 255, np.uint8)
    mask[:8, :16] = 0  # painted: the upper left, in a picture four times as large
    picture = Image.new("L", (8, 8))
    sent = {"picture": url(picture), "mask": url(Image.fromarray(mask)), "points": [[0, 0.5, 1, 1]]}
    made = drawn(sent, (1, 8, 8), LIMITS)
    want = torch.zeros(8, 8)
    want[:2, :4] = 1
    # the first pixel's middle is at 0, and what is drawn to the border ends in the last pixel
    assert torch.equal(made.mask, want) and made.points == (((0.0, 3.5), (7.0, 7.0)),)
    blank = url(Image.new("L", (32, 32), 255))
    assert drawn({"picture": url(picture), "mask": blank}, (1, 8, 8), LIMITS).mask is None


def bomb():
    """A PNG of a hundred bytes that says it has 50 000 × 50 000 pixels."""
    content = bytearray(base64.b64decode(url(Image.new("L", (8, 8))).partition(",")[2]))
    content[16:24] = (50_000).to_bytes(4, "big") * 2
    import zlib

    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


WHOLE = url(Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)))
BAD = {
    "nothing": (None, "no picture yet"),
    "a list": ([1], "no picture yet"),
    "no picture": ({"picture": ""}, "no picture yet"),
    "a path": ({"picture": "/etc/passwd"}, "PNG, JPEG or WebP"),
    "a path up": ({"picture": "../../secret.png"}, "PNG, JPEG or WebP"),
    "a file of gradio": ({"picture": {"path": "/etc/passwd"}}, "PNG, JPEG or WebP"),
    "an address": ({"picture": "http://127.0.0.1/a.png"}, "PNG, JPEG or WebP"),
    "an svg": ({"picture": "data:image/svg+xml;base64,PHN2Zy8+"}, "PNG, JPEG or WebP"),
    "a pickle": ({"picture": "data:image/png;base64,gASVAAAAAAAAAIwCb3M="}, "damaged"),
    "no base64": ({"picture": "data:image/png;base64,%%%%"}, "damaged"),
    "cut off": ({"picture": WHOLE[: len(WHOLE) // 2 // 4 * 4]}, "damaged"),
    "a gif": ({"picture": url(Image.new("L", (8, 8)), "gif").replace("gif", "png", 1)}, "damaged"),
    "a bomb": ({"picture": bomb()}, "50000 × 50000|damaged"),
    "too large": ({"picture": "data:image/png;base64," + "A" * 6_000_000}, "more than 4 MiB"),
    "a mask that is none": ({"picture": WHOLE, "mask": "../mask.png"}, "PNG, JPEG or WebP"),
    "arrows outside": ({"picture": WHOLE, "points": [[0, 0, 2, 0]]}, "from 0 to 1"),
    "arrows of nothing": ({"picture": WHOLE, "points": [[0, 0, float("nan"), 0]]}, "from 0 to 1"),
    "too many arrows": ({"picture": WHOLE, "points": [[0, 0, 1, 1]] * 17}, "at most 16"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture_is_refused_in_a_sentence(name):
    sent, said = BAD[name]
    with pytest.raises(UsageError, match=said):
        drawn(sent, (3, 8, 8), LIMITS)


# The door


def knock(method, path, headers=(), body=b"", hosts=frozenset({"127.0.0.1"}), most=100):
    """Return the status that a request gets, and what of its body the application saw."""
    seen, sent = [], []

    async def inside(scope, receive, send):
        message = await receive()
        seen.append(message)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def go():
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [(b"host", b"127.0.0.1:7860"), *headers],
        }

        async def receive():
            return {"type": "http.request", "body": body}

        async def send(message):
            sent.append(message)

        await Door(inside, hosts, most)(scope, receive, send)

    asyncio.run(go())
    return sent[0]["status"], seen, dict(sent[0]["headers"])


@pytest.mark.parametrize("path", [
    "/gradio_api/upload", "/gradio_api/file=/etc/passwd", "/file=/etc/passwd", "/file/etc/passwd",
    "/gradio_api/proxy=http://a.b", "/gradio_api/component_server", "/gradio_api/run/clicked",
    "/gradio_api/call/clicked", "/static/../../../etc/passwd", "/assets/%2e%2e/x/..", "/monitoring",
    "/gradio_api/vibe-edit", "/login", "/docs",
])  # fmt: skip
def test_what_the_page_does_not_ask_for_is_not_there(path):
    for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
        assert knock(method, path)[0] == 404


def test_the_page_gets_in_and_may_load_nothing_from_elsewhere():
    for path in ("/", "/config", "/gradio_api/queue/data", "/assets/index-1.js", "/theme.css"):
        status, _, headers = knock("GET", path)
        assert status == 200 and b"default-src 'self'" in headers[b"content-security-policy"]
    assert knock("POST", "/gradio_api/queue/join")[0] == 200


def test_other_names_other_pages_and_long_bodies_stay_out():
    assert knock("GET", "/", [(b"host", b"evil.example")])[0] == 421
    assert knock("GET", "/", [(b"host", b"evil.example")], hosts=None)[0] == 200
    join = "/gradio_api/queue/join"
    assert knock("POST", join, [(b"origin", b"http://evil.example")])[0] == 403
    assert knock("POST", join, [(b"origin", b"http://127.0.0.1:7860")])[0] == 200
    assert knock("POST", join, [(b"content-length", b"101")])[0] == 413
    assert knock("POST", join, [(b"content-length", b"-1")])[0] == 413
    _, seen, _ = knock("POST", join, body=b"x" * 101)  # without a header that says it
    assert seen == [{"type": "http.disconnect"}]


# What the tabs compute


def test_a_sample_is_what_pl_sample_draws_and_replays(shelf, folder, tmp_path):
    asked = sample.asked(shelf, "tiny", "", Typed("heun", "uniform", 3), 5, 2, LIMITS)
    made = asked.run()
    x = pl.sample(
        pl.load(str(folder)),
        seeds=[5, 6],
        solver="heun",
        grid="uniform",
        steps=3,
        dtype=torch.float32,
    ).x
    first = np.array(Image.open(io.BytesIO(made.bare)))
    assert np.array_equal(first, ((x[0].clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0))
    assert (made.nfe, made.n, made.receipt["seeds"]) == (6, 2, [5, 6])
    assert made.recipe.startswith("heun(") and "uniform(n=3)" in made.recipe
    file = tmp_path / "again.png"
    file.write_bytes(made.png)
    result = CliRunner().invoke(app, ["replay", str(file)])
    assert result.exit_code == 0 and "identical, bit for bit" in result.output


REFUSED = {
    "model": (("../tiny", "", Typed(), 0, 1), "unknown model"),
    "no model": ((None, "", Typed(), 0, 1), "unknown model"),
    "solver": (("tiny", "", Typed("hoin"), 0, 1), "did you mean .*heun"),
    "solver path": (("tiny", "", Typed("../../x"), 0, 1), "is no name"),
    "grid": (("tiny", "", Typed(grid=["a"]), 0, 1), "is no name"),
    "times": (("tiny", "", Typed(grid="1,0.5,x"), 0, 1), "cannot be read"),
    "a long grid": (("tiny", "", Typed(grid="1," * 101), 0, 1), "is no name"),
    "steps": (("tiny", "", Typed(steps=201), 0, 1), "choose from 1 to 200"),
    "half a step": (("tiny", "", Typed(steps="2.5"), 0, 1), "whole number"),
    "no number": (("tiny", "", Typed(steps="many"), 0, 1), "no number"),
    "nan": (("tiny", "", Typed(guidance="nan"), 0, 1), "no number"),
    "guidance": (("tiny", "", Typed(guidance=1e9), 0, 1), "choose from -20 to 50"),
    "samples": (("tiny", "", Typed(), 0, 65), "choose from 1 to 64"),
    "seed": (("tiny", "", Typed(), -1, 1), "choose from 0"),
    "prompt": (("tiny", "a" * 201, Typed(), 0, 1), "at most 200 characters"),
    "work": (("tiny", "", Typed("rk4", steps=200), 0, 64), "51200 evaluations"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_before_it_is_a_job(shelf, name):
    asked, said = REFUSED[name]
    with pytest.raises(UsageError, match=said):
        sample.asked(shelf, *asked, LIMITS)


def test_a_model_stops_in_the_middle_when_its_job_is_cancelled(shelf, queue):
    jobs = queue()
    asked = sample.asked(shelf, "tiny", "", Typed("rk4", steps=200), 0, 16, LIMITS)
    job = jobs.submit("a", asked.run)
    while job.done < 3:
        job.touch()
        time.sleep(0.001)
    jobs.cancel("a")
    assert finished(job).state == "stopped" and job.done < 800
    with pytest.raises(Stopped):
        raise job.error


def point_law():
    """An oracle whose data are one picture: every way is straight, and x̂_0 is that picture."""
    return pl.Dataset(pl.CondOT(), torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4))


def test_a_straight_way_has_no_bend_and_no_error():
    law = point_law()
    how = recipe_on(law, Typed("ddim", "uniform", 5))
    (line,) = compare.Comparison(law, (how,), (0, 1)).run().lines
    assert line.nfe == 5 and len(line.times) == 5
    assert max(line.x0) < 2e-3  # it ends at t = 1e-3: off by 1e-3 (ε − x_0), of rms 1.2
    assert max(bend for _, bend in line.bend) < 1e-6  # float32
    assert line.error < 1e-5


def recipe_on(law, typed):
    model = pl.Denoiser(lambda x, t: x, law.path, view="x0")  # for its defaults: none
    return recipe(model, typed, None, LIMITS)


def test_the_error_is_measured_from_the_converged_solution(shelf):
    rows = (("dpmpp_3m", compare.FINE), ("ddim", 8), ("ddim", 16), ("ddpm", 8))
    typed = [Typed(solver, "log_snr", steps) for solver, steps in rows]
    made = compare.asked(shelf, "tiny", "", typed, 0, 2, LIMITS).run()
    same, coarse, fine, noisy = made.lines
    assert same.error == 0 and 0 < fine.error < coarse.error
    assert (
        noisy.error is None and "eta=1" in noisy.name
    )  # the name says what ran, not what was typed
    with pytest.raises(UsageError, match="recipe 2: unknown solver"):
        compare.asked(shelf, "tiny", "", [Typed("ddim"), Typed("nope")], 0, 1, LIMITS)
    with pytest.raises(UsageError, match="1 to 8 recipes, not 0"):
        compare.asked(shelf, "tiny", "", [], 0, 1, LIMITS)


def test_a_recipe_that_fails_leaves_the_others_theirs(shelf):
    typed = [Typed("ddim", "log_snr", 4), Typed("dpm_v3", "log_snr", 4)]  # no table of statistics
    good, bad = compare.asked(shelf, "tiny", "", typed, 0, 1, LIMITS).run().lines
    assert good.error is not None and bad.x is None and bad.trouble


def test_watching_sees_the_states_of_the_sample(shelf, folder):
    made = watch.asked(shelf, "tiny", "", Typed("dpmpp_2m", "log_snr", 12), 3, 2, LIMITS).run()
    seen = pl.sample(
        pl.load(str(folder)),
        2,
        seed=3,
        solver="dpmpp_2m",
        grid="log_snr",
        steps=12,
        trajectory=True,
    )
    path, times = pl.CondOT(), torch.tensor(made.times, dtype=torch.float64)
    scale = (path.alpha(times) ** 2 + path.sigma(times) ** 2).sqrt().clamp(min=1).float()
    assert torch.allclose(
        made.states * scale[:, None, None, None, None], seen.trajectory, atol=1e-6
    )
    assert len(made.frames()) == 13 and made.strip().shape[2] == 3
    with pytest.raises(UsageError, match="do not fit on a strip"):
        watch.asked(shelf, "tiny", "", Typed(), 0, 5, LIMITS)


def test_in_the_plane_eulers_error_falls_with_its_order():
    def error(n):
        typed = Typed("euler", "log_snr", n)
        made = watch.asked_plane("nine Gaussians (M9)", "vp_linear", typed, 0, 20, LIMITS).run()
        assert made.uncertain < 1e-2 * made.error and made.ways.shape == (n + 1, 20, 2)
        return made.error

    # order one: from 100 to 200 steps the error halves, to the next order's few per cent
    assert error(200) / error(100) == pytest.approx(0.5, abs=0.06)
    noisy = watch.asked_plane("eight Gaussians", "edm", Typed("ddpm", "log_snr", 4), 0, 3, LIMITS)
    assert noisy.run().error is None
    with pytest.raises(UsageError, match="unknown path"):
        watch.asked_plane("eight Gaussians", "../x", Typed(), 0, 3, LIMITS)


def test_an_inversion_tells_how_exactly_it_comes_back(shelf):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    of = edit.subject(shelf, "tiny", {"picture": url(Image.fromarray(noise))}, LIMITS)
    exact = edit.inverted(of, "", "bdia", 10).run()
    (given, code, back), (told,) = exact.pictures, exact.told
    assert torch.allclose(back[1], given[1], atol=1e-4)  # float32, γ = 1
    assert (
        told["largest error"] < 1e-4 and told["evaluations"] == 10 and code[1].shape == (1, 3, 8, 8)
    )
    rough = edit.inverted(of, "", "ddim-inversion", 10).run().told[0]
    assert rough["largest error"] > 100 * told["largest error"]
    with pytest.raises(UsageError, match="unknown inverter"):
        edit.inverted(of, "", "../bdia", 10)


def subject(shelf, name="tiny", size=8, **more):
    noise = np.random.default_rng(1).integers(0, 256, (size, size), dtype=np.uint8)
    return edit.subject(shelf, name, {"picture": url(Image.fromarray(noise)), **more}, LIMITS)


def half():
    """A mask: the left half is painted."""
    mask = Image.new("L", (16, 16), 255)
    mask.paste(0, (0, 0, 8, 16))
    return url(mask)


def test_what_is_not_painted_is_kept_to_the_bit(shelf):
    of = subject(shelf, mask=half())
    made = edit.by_noise(of, "", 0.5, 4, 1, 2, 0).run()
    (_, given), (_, edited) = made.pictures
    assert torch.equal(edited[..., 4:], given[..., 4:].expand_as(edited[..., 4:]))
    assert not torch.equal(edited[:1, ..., :4], edited[1:, ..., :4])  # two samples, two seeds
    assert made.receipt["seeds"] == [0, 1]


def test_an_edit_to_the_same_words_is_the_round_trip_and_to_others_is_not():
    of = subject(Shelf(["fashion"]), "fashion", 28)
    same = edit.by_text(of, "bag", "bag", "bdia", 3, 1.0, 1).run()
    assert torch.allclose(same.pictures[1][1], same.pictures[0][1], atol=1e-3)
    other = edit.by_text(of, "bag", "dress", "bdia", 3, 1.0, 1).run()
    assert not torch.allclose(other.pictures[1][1], other.pictures[0][1], atol=1e-2)
    with pytest.raises(UsageError, match="a target prompt is needed"):
        edit.by_text(of, "bag", " ", "bdia", 3, 1.0, 1)
    with pytest.raises(UsageError, match="strength 2"):
        edit.by_text(of, "bag", "dress", "bdia", 3, 2, 1)


SHORT = pytest.mark.filterwarnings("ignore:the windows of DiffEditor")


@SHORT
def test_arrows_and_marks_become_a_task_of_diffeditor(shelf):
    arrow = [[0.25, 0.5, 0.75, 0.5]]
    drag = diff.moved(subject(shelf, points=arrow), diff.Wanted("drag"), "", 4, 0).run()
    said = [caption.partition(":")[0] for caption, _ in drag.pictures]
    assert said == ["given", "inverted and back", "edited", "regions"]
    (told,) = drag.told
    assert told["evaluations"] > 2 * 4 and drag.pictures[2][1].shape == (1, 3, 8, 8)
    assert all(len(times) == len(values) > 0 for plot in drag.plots.values()
               for times, values in plot.values())  # fmt: skip
    # the middle of the first of eight pixels is at a sixteenth of the side
    (start, end) = drag.receipt["recipe"]["request"]["numbers"]["points"][0]
    assert (start, end) == ([1.5, 3.5], [5.5, 3.5])
    painted = subject(shelf, points=arrow, mask=half())
    moved = diff._numbers(painted.drawn, diff.Wanted("move", scale=2.0))
    assert moved == {"dx": 4.0, "dy": 0.0, "scale": 2.0, "fill": "own"}
    for wanted, said in (
        (("drag",), "draw an arrow"),
        (("resize",), "paint the object of resize"),
        (("paint",), "unknown task"),
        (("paste",), "takes from another picture"),
        (("drag", 1, "own", "much"), "strength 'much' is no number"),
        (("drag", 1, "own", "", "", 2), "noise 2: choose from 0 to 1"),
    ):
        drawn_on = {"points": arrow} if len(wanted) > 1 else {}
        with pytest.raises(UsageError, match=said):
            diff.moved(subject(shelf, **drawn_on), diff.Wanted(*wanted), "", 4, 0)


def replayed(png, tmp_path):
    """See that a file that was saved replays, with nothing beside it."""
    file = tmp_path / "saved.png"
    file.write_bytes(png)
    with tempfile.TemporaryDirectory() as elsewhere, contextlib.chdir(elsewhere):
        result = CliRunner().invoke(app, ["replay", str(file)])
    assert result.exit_code == 0 and "identical, bit for bit" in result.output, result.output
    return True


@SHORT
@pytest.mark.parametrize("task", ["drag", "move", "appearance", "paste"])
def test_an_edit_by_diffeditor_is_saved_with_all_that_remakes_it(shelf, tmp_path, task):
    arrow, dot = [[0.25, 0.5, 0.45, 0.5]], Image.new("L", (8, 8), 255)
    dot.paste(0, (1, 2, 4, 5))
    marks = {"mask": url(dot), "points": arrow}
    other = {"picture": url(Image.new("RGB", (8, 8), "red")), **marks}
    of = subject(shelf, **marks, reference=other)
    wanted = diff.Wanted(task, 1, "swap", 300, "", 1.0, task != "move")
    assert replayed(diff.moved(of, wanted, "", 4, 3).run().png, tmp_path)


@pytest.mark.parametrize("way", ["noise", "code", pytest.param("text", marks=pytest.mark.slow)])
def test_an_edit_is_saved_with_all_that_remakes_it(shelf, tmp_path, way):
    if way == "text":
        of = subject(Shelf(["fashion"]), "fashion", 28)
        task = edit.by_text(of, "bag", "dress", "bdia", 3, 1.0, 2)
    else:
        of = subject(shelf, mask=half())
        task = {
            "noise": lambda: edit.by_noise(of, "", 0.5, 4, 1, 2, 5),
            "code": lambda: edit.restored(of, "", 3, 2, 1e-3, 0, 2, 5),
        }[way]()
    made = task.run()
    assert replayed(made.png, tmp_path)
    if way == "code":  # what is not painted is the picture's
        shown = made.pictures[1][1]
        assert torch.equal(shown[..., 4:], of.x[..., 4:].expand_as(shown[..., 4:]))


def test_what_a_receipt_holds_must_be_what_it_says(shelf, tmp_path):
    made = edit.by_noise(subject(shelf), "", 0.5, 4, 1, 1, 0).run()
    file = tmp_path / "saved.png"
    file.write_bytes(made.png)
    receipt = read_receipt(file)
    held = receipt.recipe["edit"]["held"]["picture.png"]
    for bad in (held[:-8] + "AAAAAAA=", "no base64", 7):
        recipe = {
            **receipt.recipe,
            "edit": {**receipt.recipe["edit"], "held": {"picture.png": bad}},
        }
        write_picture(file, read_pixels(file), replace(receipt, recipe=recipe))
        result = CliRunner().invoke(app, ["replay", str(file)])
        assert result.exit_code == 2 and "the receipt is damaged" in result.output


def test_code_restores_within_its_bounds():
    of = subject(Shelf(["fashion"]), "fashion", 28)
    made = edit.restored(of, "bag", 3, 2, 1e-3, 1.7, 1, 0).run()
    assert made.pictures[1][1].shape == (1, 1, 28, 28) and made.told[0]["updates"] == 2
    for bad in (
        (200, 2, 1e-3, 1.7, 1, 0),
        (3, 2000, 1e-3, 1.7, 1, 0),
        (3, 2, 0.1, 1.7, 1, 0),
        (3, 2, 1e-3, -1, 1, 0),
        (3, 2, 1e-3, 1.7, 9, 0),
        (3, 2, 1e-3, 1.7, 1, -1),
    ):
        with pytest.raises(UsageError, match="choose from"):
            edit.restored(of, "bag", *bad)


# Views and serving


def test_html_holds_what_was_typed_as_text():
    bad = '<script>alert("1")</script>'
    for html in (
        views.table([{bad: bad}]),
        views.image("data:,", bad, bad),
        views.download(b"", bad),
    ):
        assert "<script" not in html
    assert views.table([]) == "" and "1.23e-05" in views.table([{"a": 1.2345e-5, "b": None}])


def test_an_animation_has_its_frames():
    frames = [np.full((8, 8, 3), i * 40, np.uint8) for i in range(5)]
    content = base64.b64decode(views.animation(frames).partition(",")[2])
    with Image.open(io.BytesIO(content)) as image:
        assert image.n_frames == 5 and image.format == "WEBP"


def test_the_network_is_asked_for_in_words():
    with pytest.raises(UsageError, match="--open-to-network"):
        serving.check_host("0.0.0.0", False)
    serving.check_host("0.0.0.0", True)
    for host in ("127.0.0.1", "::1", "localhost"):
        serving.check_host(host, False)
    assert serving.hosts_of("0.0.0.0") is None and "localhost" in serving.hosts_of("127.0.0.1")


def run_cli(*words):
    return CliRunner().invoke(app, ["studio", *words])


def test_a_port_in_use_an_unknown_model_and_a_missing_extra_are_named(folder, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run_cli("--model", str(folder), "--port", str(port))
    assert (
        result.exit_code == 2 and "already in use" in result.stderr and "--port 0" in result.stderr
    )
    assert "--open-to-network" in run_cli("--host", "0.0.0.0").stderr
    assert "choose from 0" in run_cli("--model", str(folder), "--port", "70000").stderr
    assert run_cli("--model", "no-such-model").exit_code == 2
    assert "reached from here alone" in " ".join(run_cli("--help").output.split())
    import sys

    for name in [n for n in sys.modules if n.startswith(("gradio", "pathline.studio.page"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "pathline.studio.tabs", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingExtra, match=r'pip install "pathline\[studio\]"'):
        serving.studio(Shelf([str(folder)]), LIMITS, None)


def test_a_shelf_has_pictures_under_different_names(folder, tmp_path):
    with pytest.raises(UsageError, match="different names"):
        Shelf([str(folder), str(tmp_path / "tiny")])
    with pytest.raises(UsageError, match="different names"):
        Shelf([])
    assert json.loads(json.dumps(Shelf(["fashion"]).prompts("fashion")))[7] == "sneaker"
    with pytest.raises(PathlineError):
        Shelf(["fashion"]).model("emoji")

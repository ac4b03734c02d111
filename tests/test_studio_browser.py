"""The studio as a person meets it: headless Chromium walks through each tab, with a tiny model."""

import io
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from studio_client import opened
from tiny_model import tiny_model
from typer.testing import CliRunner

from pathline.cli.main import app
from pathline.studio.limits import Limits
from pathline.studio.uploads import drawn

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
PATIENCE = 60_000
"""Milliseconds: what the page waits for is computed, on a machine that may be busy."""


@pytest.fixture(scope="module")
def browser():
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with driver.sync_playwright() as engine:
        found = next(filter(None, map(shutil.which, NAMES)), None)
        own = engine.chromium.executable_path
        if found is None and not Path(own).exists():
            pytest.skip("no Chromium here: `make browser` installs one, where that is possible")
        made = engine.chromium.launch(executable_path=found or own, args=ARGUMENTS)
        yield made
        made.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tiny_model(tmp_path_factory.mktemp("browser") / "tiny", conditional=False)
    with opened(folder) as (studio, at):
        yield studio, at


@pytest.fixture
def slow(address):
    """Let each call of the network take long, so that a job is still there when it is stopped."""
    network = address[0].shelf.model("tiny").network
    hook = network.register_forward_pre_hook(lambda *_: time.sleep(0.1))
    yield
    hook.remove()


@pytest.fixture
def page(browser, address):
    """A page that must ask nobody else for anything, and meet no error."""
    made, trouble = browser.new_page(viewport={"width": 1180, "height": 900}), []
    made.set_default_timeout(PATIENCE)
    made.on("request", lambda r: trouble.append(r.url) if not _is_ours(r.url, address[1]) else None)
    made.on("response", lambda r: trouble.append((r.status, r.url)) if r.status >= 400 else None)
    made.on("pageerror", lambda error: trouble.append(str(error)))
    made.goto(address[1])
    yield made
    assert trouble == []
    made.close()


def _is_ours(url, address):
    return url.startswith((address, "data:", "blob:"))


def tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def shown(page, name):
    """Wait for a result's pictures, see that the browser can show them, and return its text."""
    page.wait_for_selector(f"#{name} img")
    see = f"[...document.querySelectorAll('#{name} img')].every(i => i.complete && i.naturalWidth)"
    page.wait_for_function(see)
    return page.inner_text(f"#{name}")


def told(page, text):
    """Wait until the canvas says so."""
    said = "document.getElementById('pathline-said').textContent"
    page.wait_for_function(f"{said} == '{text}'")


def test_sample_gives_a_file_that_replays(page, tmp_path):
    page.get_by_label("Samples").first.fill("2")
    page.click("#sample-run")
    assert "dpmpp" in shown(page, "sample-picture")
    assert '"receipt"' in page.inner_text("#sample-receipt")
    with page.expect_download() as saving:
        page.click("#sample-picture a.save")
    file = tmp_path / saving.value.suggested_filename
    saving.value.save_as(file)
    result = CliRunner().invoke(app, ["replay", str(file)])
    assert result.exit_code == 0 and "2 samples" in result.output, result.output


def test_compare_names_what_ran_and_draws_curves(page):
    tab(page, "Compare")
    page.click("#compare-run")
    said = shown(page, "compare-result")
    assert "unipc" in said and "ddim" in said and "known to" in said
    assert page.locator("#compare-result img").count() == 5  # converged, three recipes, curves


def test_edit_takes_a_file_whatever_its_name_and_inverts_it(page):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 8, 3), np.uint8)).save(
        buffer, "PNG"
    )
    tab(page, "Edit")
    page.click("#invert-run")  # without a picture: refused in a sentence
    page.wait_for_selector("#invert-status .refused")
    assert "no picture yet" in page.inner_text("#invert-status")
    file = {"name": "..%2f..%2fetc%2fpasswd.png", "mimeType": "image/png"}
    page.set_input_files("#pathline-file", {**file, "buffer": buffer.getvalue()})
    page.wait_for_function(
        "document.getElementById('pathline-said').textContent == '8 × 12 pixels'"
    )
    page.click("#invert-run")
    said = shown(page, "invert-result")
    assert "regenerated" in said and "bdia" in said


def stroke(page, *points):
    """Draw on the canvas with the mouse, through points that are shares of its sides."""
    canvas = page.locator("#pathline-canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for i, (x, y) in enumerate(points):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        if i == 0:
            page.mouse.down()
    page.mouse.up()


def chosen(page, label, value):
    """Choose from a list of the tab that is open."""
    page.get_by_label(label, exact=True).locator("visible=true").click()
    page.get_by_role("option", name=value, exact=True).click()


def saved(page, name, tmp_path):
    """Save an edited picture, and see that the file replays with nothing beside it."""
    with page.expect_download() as saving:
        page.click(f"#{name}-result a.save")
    file = tmp_path / saving.value.suggested_filename
    saving.value.save_as(file)
    result = CliRunner().invoke(app, ["replay", str(file)])
    assert result.exit_code == 0 and "identical, bit for bit" in result.output, result.output


def test_edit_sends_what_is_painted_and_drawn(page):
    tab(page, "Edit")
    page.click("#draw-run")
    told(page, "8 × 8 pixels")
    stroke(page, (0.2, 0.5), (0.5, 0.5), (0.8, 0.5))
    page.click("[data-tool=arrow]")
    stroke(page, (0.25, 0.25), (0.75, 0.5))
    sent = page.evaluate("JSON.parse(window.pathline.sent())")
    (arrow,) = sent["points"]
    assert arrow == pytest.approx([0.25, 0.25, 0.75, 0.5], abs=0.01)
    mask = drawn(sent, (3, 8, 8), Limits()).mask
    assert bool(mask[3:5, 2:6].all()) and not bool(mask[[0, 1, 6, 7]].any())
    assert sent["reference"] is None


def test_code_repairs_what_is_painted_and_saves_a_file_that_replays(page, tmp_path):
    tab(page, "Edit")
    page.click("#draw-run")
    told(page, "8 × 8 pixels")
    stroke(page, (0.1, 0.5), (0.9, 0.5))
    tab(page, "CODE")
    page.get_by_label("Updates").locator("visible=true").fill("4")
    page.get_by_label("Clipping η, 0 for none").fill("2")
    page.click("#restore-run")
    said = shown(page, "restore-result")
    assert "edited" in said and "80" in said
    saved(page, "restore", tmp_path)


def test_diffeditor_drags_inside_a_mask_and_pastes_from_another_picture(page, tmp_path):
    tab(page, "Edit")
    page.click("#draw-run")
    told(page, "8 × 8 pixels")
    stroke(page, (0.2, 0.3), (0.8, 0.3))
    stroke(page, (0.2, 0.6), (0.8, 0.6))
    page.click("[data-tool=arrow]")
    stroke(page, (0.3, 0.4), (0.55, 0.4))
    tab(page, "DiffEditor")
    page.click("#move-run")
    said = shown(page, "move-result")
    assert "drag" in said and "regions: object, target" in said
    assert page.locator("#move-result img[alt='what every step did']").count() == 1
    saved(page, "move", tmp_path)
    # paste: an object of the other picture, carried along the arrow on this one
    chosen(page, "Task", "paste")
    page.click("#move-run")
    page.wait_for_selector("#move-status .refused")
    assert "another picture" in page.inner_text("#move-status")
    page.click("[data-side=reference]")
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    file = {"name": "other.png", "mimeType": "image/png", "buffer": buffer.getvalue()}
    page.set_input_files("#pathline-file", file)
    page.wait_for_function("JSON.parse(window.pathline.sent()).reference !== null")
    page.click("[data-tool=brush]")
    stroke(page, (0.2, 0.3), (0.4, 0.3))
    page.click("#move-run")
    page.wait_for_function("document.getElementById('move-result').innerText.includes('the other')")
    assert "paste" in shown(page, "move-result")
    saved(page, "move", tmp_path)


def test_trajectories_show_a_strip_an_animation_and_ways_in_the_plane(page):
    tab(page, "Trajectories")
    page.click("#watch-run")
    assert "x̂₀" in shown(page, "watch-result")
    assert page.locator("#watch-result img").count() == 2
    tab(page, "In the plane")
    page.click("#plane-run")
    assert "the exact flow is known to" in shown(page, "plane-result")


def test_stop_stops(page, slow):
    page.get_by_label("Samples").first.fill("64")
    page.get_by_label("Steps").first.fill("200")
    page.click("#sample-run")
    page.wait_for_selector("#sample-status progress")
    page.click("#sample-stop")
    page.wait_for_selector("#sample-status .refused")
    assert "stopped." in page.inner_text("#sample-status")

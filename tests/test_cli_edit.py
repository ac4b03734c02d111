"""`pathline edit`: it computes what the library computes, and its pictures replay bit for bit."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import assert_refused, done
from tiny_model import tiny_model

import pathline as pl
from pathline import edit
from pathline.cli.reading import read_picture
from pathline.core.images import Layout, read_pixels, read_receipt, to_pixels
from pathline.solvers import grids


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A model, two pictures, and a mask of the left half."""
    tiny_model(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(name)
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :4] = 255
    Image.fromarray(mask).save("mask.png")
    Image.fromarray(mask[:2, :2]).save("small.png")
    return tmp_path


def picture(name):
    with Image.open(name) as image:
        pixels = np.array(image.convert("RGB")).transpose(2, 0, 1)
    return torch.from_numpy(pixels.copy()).float()[None] / 127.5 - 1


def left():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    return mask


def replayed(file):
    assert "identical, bit for bit" in done("replay", file)


def test_words(here):
    told = json.loads(
        done("edit", "tiny", "a.png", "green", "--source", "red", "--steps", "6", "--strength",
             "0.5", "--mask", "mask.png", "-o", "out.png", "--json")
    )  # fmt: skip
    model = pl.load("tiny")
    with torch.no_grad():
        made = edit.text_edit(
            model, picture("a.png"), "red", "green", grid=grids.log_snr(6, start=0.98),
            strength=0.5, guide=pl.CFG(3.0), mask=left(),
        )  # fmt: skip
    pixels = Layout.of(1, 8).arrange(to_pixels(made.flat))
    assert np.array_equal(read_pixels("out.png"), pixels)
    assert told["round_trip_error"] == pytest.approx(float(made.error.max()))
    assert told["evaluations"] == made.nfe
    assert read_receipt("out.png").recipe["edit"]["source"] == "red"
    assert f"(1 samples, {made.nfe} evaluations each)" in done("replay", "out.png")


def test_what_an_edit_wrote_is_read_as_it_was_made(here):
    done("edit", "tiny", "a.png", "green", "--source", "red", "--steps", "4", "-o", "once.png")
    sheet = read_pixels("once.png")
    found = read_picture("once.png", 3).numpy().transpose(1, 2, 0)
    assert found.shape == (8, 8, 3) and (Layout.of(1, 8).arrange(found[None]) == sheet).all()
    done("edit", "tiny", "once.png", "--by", "sdedit", "--steps", "4", "-o", "again.png")
    replayed("again.png")


def test_noise(here):
    done("edit", "tiny", "a.png,b.png", "red", "--by", "sdedit", "--steps", "6", "--samples", "2",
         "--seed", "4", "-o", "out.png")  # fmt: skip
    x = torch.cat((picture("a.png"), picture("b.png")))
    with torch.no_grad():
        made = edit.sdedit(
            pl.load("tiny"), x, steps=6, samples=2, seed=4, guide=pl.CFG(3.0), text="red"
        )
    assert np.array_equal(read_pixels("out.png"), Layout(2, 12, 4).arrange(to_pixels(made.flat)))
    replayed("out.png")


def test_code(here):
    said = done("edit", "tiny", "a.png", "--by", "code", "--steps", "10", "--depth", "6", "--at",
                "2,5", "--eps-rel", "1e-4", "--walk", "4", "--samples", "2", "-o",
                "out.png")  # fmt: skip
    assert "clipped" in said
    assert "at 5 the score's norm went from" in said
    with torch.no_grad():
        made = edit.code(
            pl.load("tiny"), picture("a.png"), depth=6, at=(2, 5), eps_rel=1e-4, n=4, steps=10,
            samples=2,
        )  # fmt: skip
    assert np.array_equal(read_pixels("out.png"), Layout.of(2, 8).arrange(to_pixels(made.flat)))
    replayed("out.png")
    # no clipping, and what is outside of a mask is the picture's
    done("edit", "tiny", "a.png", "--by", "code", "--steps", "10", "--depth", "6", "--walk", "4",
         "--eta", "0", "--mask", "mask.png", "-o", "masked.png")  # fmt: skip
    shown = read_pixels("masked.png")[4:-4:12, 4:-4:12]
    assert np.array_equal(shown[:, 4:], read_pixels("a.png")[:, 4:])
    assert read_receipt("masked.png").recipe["edit"]["knobs"]["eta"] is None


def test_a_replay_finds_pictures_beside_it_and_refuses_others(here):
    done("edit", "tiny", "a.png", "--by", "sdedit", "--steps", "4", "-o", "made/out.png")
    (here / "a.png").rename(here / "made" / "a.png")
    replayed("made/out.png")
    (here / "b.png").rename(here / "made" / "a.png")
    assert_refused(here, ["replay", "made/out.png"], "another picture now")
    (here / "made" / "a.png").unlink()
    assert_refused(here, ["replay", "made/out.png"], "put it beside")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.png", "green"], "--source"),
        (["a.png", "--by", "sded"], "did you mean sdedit"),
        (["a.png", "green", "--source", "red", "--samples", "2"], "one answer"),
        (["a.png", "--by", "sdedit", "--depth", "3"], "--depth is of --by code"),
        (["a.png", "--by", "code", "--strength", "0.3"], "--strength is of --by text or sdedit"),
        (["a.png", "--by", "sdedit", "--source", "red"], "--source is of --by text"),
        (["a.png", "--by", "code", "--eps-rel", "0.5", "--steps", "9", "--depth", "3"], "its cap"),
        (["a.png", "--by", "code", "--at", "x"], "20,50,79"),
        (["none.png", "--by", "sdedit"], "cannot read a picture"),
        (["a.png", "--by", "sdedit", "--mask", "small.png"], "2 × 2 pixels"),
        (["a.png", "--by", "sdedit", "-o", "out.jpg"], "PNG file"),
    ],
)
def test_what_is_refused(here, arguments, said):
    assert_refused(here, ["edit", "tiny", *arguments], said)

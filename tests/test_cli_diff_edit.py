"""`pathline diff-edit`: the library's edit from the command line, with a receipt and a report."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import assert_refused, done
from tiny_model import tiny_model

from pathline.core.images import read_pixels, read_receipt, to_pixels, write_picture
from pathline.edit.diff_editor import DiffEditor, diff_edit
from pathline.edit.diff_tasks import Move
from pathline.learn import load_model


@pytest.fixture
def here(tmp_path, monkeypatch):
    tiny_model(tmp_path / "tiny", conditional=False)
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for name in ("image", "other"):
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(f"{name}.png")
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[1:4, 1:4] = 255
    Image.fromarray(mask).save("mask.png")
    return tmp_path


USUAL = ("diff-edit", "tiny", "--image", "image.png", "--steps", 20)


def test_a_move_is_that_of_the_library_and_says_how_it_was_made(here):
    done(*USUAL, "--task", "move", "--mask", "mask.png", "--dx", 2, "-o", "made.png", "--seed", 3)
    pixels = torch.from_numpy(read_pixels("image.png").copy())
    x = pixels.permute(2, 0, 1)[None].float() / 127.5 - 1
    mask = torch.zeros(8, 8)
    mask[1:4, 1:4] = 1
    same = diff_edit(load_model("tiny"), x, Move(mask, dx=2), editor=DiffEditor(steps=20), seed=3)
    assert np.array_equal(read_pixels("made.png"), to_pixels(same.x)[0])
    told = json.loads((here / "made.json").read_text())
    assert told["task"]["dx"] == 2 and told["nfe"] == same.nfe and len(told["steps"]) == 20
    receipt = read_receipt("made.png")
    assert receipt.seeds == (3,) and len(receipt.recipe["request"]["digests"]["mask.png"]) == 64


MASKED = ("--mask", "mask.png")


@pytest.mark.parametrize(("words", "says"), [
    (("--task", "drag", "--points", "1,2"), "write from and to as 3,4>9"),
    (("--task", "drag"), "the task 'drag' needs points"),
    (("--task", "move", *MASKED, "--points", "1,2>3,4"),
     "takes mask, dx, dy, scale, background, fill, and was given points"),
    (("--task", "move", "--mask", "image.png"), "image.png has greys"),
    (("--task", "paste", *MASKED), "give reference="),
    (("--task", "move", *MASKED, "--dx", 6), "leaves the picture"),
    (("--task", "move", *MASKED, "-o", "a.jpg"), "PNG file"),
])  # fmt: skip
def test_what_cannot_be_is_refused(here, words, says):
    assert_refused(here, (*USUAL, *words), says)


def test_points_of_a_drag_are_pixels_of_the_picture(here):
    done(*USUAL, "--task", "drag", "--points", "2,2>4,2;5,5>6,6", "-o", "made.png")
    told = json.loads((here / "made.json").read_text())
    assert told["task"]["points"] == [[[2, 2], [4, 2]], [[5, 5], [6, 6]]]
    assert told["regions"]["edited"] == 64


@pytest.mark.parametrize("words", [
    ("--task", "move", *MASKED, "--dx", 2, "--fill", "swap", "--noise", 1.0, "--seed", 3),
    ("--task", "resize", *MASKED, "--scale", 1.5, "--background", "ground.png", "--no-bank"),
    ("--task", "drag", "--points", "2,2>4,2;5,5>6,6", "--strength", 900),
    ("--task", "drag", "--points", "2,2>3,2", *MASKED),
    ("--task", "appearance", *MASKED, "--reference", "other.png", "--reference-mask", "mask.png"),
    ("--task", "paste", *MASKED, "--reference", "other.png", "--dy", 1.0),
], ids=("move", "resize", "landmarks", "drag", "appearance", "paste"))  # fmt: skip
def test_every_task_replays_bit_for_bit(here, words):
    ground = np.zeros((8, 8), dtype=np.uint8)
    ground[6:] = 255
    Image.fromarray(ground).save("ground.png")
    done(*USUAL, *words, "-o", "made.png")
    assert "identical, bit for bit" in done("replay", "made.png", "-o", "again.png")
    assert "identical, bit for bit" in done("replay", "again.png")


def test_a_replay_refuses_another_picture_and_a_receipt_that_tells_too_little(here):
    done(*USUAL, "--task", "move", *MASKED, "--dx", 2, "-o", "made.png")
    receipt = read_receipt("made.png")
    (here / "other.png").rename(here / "image.png")
    assert_refused(here, ("replay", "made.png"), "image.png is another picture now")
    (here / "mask.png").unlink()
    done("diff-edit", "tiny", "--image", "image.png", "--steps", 20, "--task", "drag", "--points",
         "2,2>4,2", "-o", "drag.png")  # fmt: skip
    for damage, said in (
        ({"request": None}, "does not tell what was asked for"),
        ({"request": {**receipt.recipe["request"], "digests": 3}}, "does not tell of its pictures"),
        ({"request": {"digests": {}, "held": {}, "task": "move"}}, "damaged"),
        ({"request": {"digests": {}, "task": "move", "files": {"image": "x.png"}}}, "damaged"),
    ):
        recipe = {**receipt.recipe, **damage}
        write_picture("bad.png", read_pixels("made.png"), replace(receipt, recipe=recipe))
        assert_refused(here, ("replay", "bad.png"), said)

"""`pathline diff-edit`: the library's edit from the command line, with a receipt and a report."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import assert_refused, done
from tiny_model import tiny_model

from pathline.core.images import read_pixels, read_receipt, to_pixels
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
    assert receipt.seeds == (3,) and len(receipt.recipe["files"]["mask"]["sha256"]) == 64
    assert_refused(here, ("replay", "made.png"), "an edit of pictures, which a receipt does not")


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

"""Replays: the receipt in a picture is all that it takes to make the same bytes again."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_cli import assert_refused, done, run
from tiny_model import tiny_model

from pathline.core.images import read_pixels, read_receipt, write_picture


@pytest.fixture
def here(tmp_path, monkeypatch):
    tiny_model(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    return tmp_path


CALLS = {
    "defaults": [],
    "prompt and guidance": ["a red apple", "--guidance", 3],
    "third order": ["--solver", "dpmpp", "--order", 3],
    "noise": ["--solver", "ddpm"],
    "own times": ["--grid", "1,0.6,0.2"],
    "to data": ["--grid", "karras", "--last", "denoise"],
    "batches": ["-n", 5, "--batch", 2],
    "layout": ["-n", 5, "--columns", 2, "--scale", 3],
}


@pytest.mark.parametrize("words", CALLS.values(), ids=CALLS.keys())
def test_a_replay_is_the_same_file(here, words):
    steps = [] if "1,0.6,0.2" in words else ["--steps", 3]
    done("sample", "tiny", *words, *steps, *([] if "-n" in words else ["-n", 3]), "-o", "a.png")
    said = done("replay", "a.png", "-o", "b.png")
    assert "identical" in said
    assert (here / "a.png").read_bytes() == (here / "b.png").read_bytes()


def test_each_sample_is_replayed_in_its_batch(here):
    """The network may round otherwise in another batch, so a file tells of all that were in it."""
    done("sample", "tiny", "a dog", "--steps", 2, "--seeds", "3-7", "--batch", 2, "-o", "each/")
    assert [read_receipt(f"each/00000{s}.png").seeds for s in range(3, 8)] == [
        (3, 4), (3, 4), (5, 6), (5, 6), (7,),
    ]  # fmt: skip
    for seed in range(3, 8):
        done("replay", f"each/00000{seed}.png", "-o", "again.png")
        again = (here / "again.png").read_bytes()
        assert again == (here / f"each/00000{seed}.png").read_bytes()


def test_without_an_output_it_compares_and_writes_nothing(here):
    done("sample", "tiny", "--steps", 2, "-n", 2, "-o", "a.png")
    before = sorted(here.iterdir())
    assert "identical, bit for bit (2 samples, 2 evaluations each)" in done("replay", "a.png")
    assert sorted(here.iterdir()) == before


def test_a_picture_that_differs_is_told_by_how_much(here):
    done("sample", "tiny", "--steps", 2, "-n", 2, "-o", "a.png")
    pixels = read_pixels("a.png").copy()
    pixels[10, 10] = np.where(pixels[10, 10] < 128, pixels[10, 10] + 7, pixels[10, 10] - 7)
    write_picture("a.png", pixels, read_receipt("a.png"))
    outcome = run("replay", "a.png")
    assert outcome.exit_code == 1
    assert f"3 of {pixels.size} values, by 7 of 255 at most" in outcome.stdout


def test_threads_are_those_of_the_receipt_during_the_run_only(here, monkeypatch):
    done("sample", "tiny", "--steps", 1, "-n", 1, "-o", "a.png")
    write_picture("a.png", read_pixels("a.png"), replace(read_receipt("a.png"), threads=2))
    from pathline.cli import replaying

    seen = []
    original = replaying.watched
    monkeypatch.setattr(
        replaying, "watched", lambda *a: seen.append(torch.get_num_threads()) or original(*a)
    )
    before = torch.get_num_threads()
    done("replay", "a.png")
    assert (seen, torch.get_num_threads()) == ([2], before)


def test_other_weights_are_refused(here):
    done("sample", "tiny", "--steps", 1, "-n", 1, "-o", "a.png")
    tiny_model(here / "tiny", seed=1)
    assert_refused(here, ["replay", "a.png"], "has other weights now")


def test_a_model_that_moved_is_named(here):
    done("sample", "tiny", "--steps", 1, "-n", 1, "-o", "a.png")
    (here / "tiny").rename(here / "moved")
    assert_refused(here, ["replay", "a.png"], "tiny")
    assert "identical" in done("replay", "a.png", "--model", "moved")


def changed(receipt, **parts):
    return replace(receipt, recipe={**receipt.recipe, **parts})


DAMAGED = {
    "another device": (lambda r: replace(r, device="npu"), "it was made on npu"),
    "no such dtype": (lambda r: replace(r, dtype="float7"), "unknown dtype"),
    "no threads": (lambda r: replace(r, threads=0), "0 threads"),
    "no solver": (lambda r: changed(r, solver=None), "does not tell the solver"),
    "unknown solver": (lambda r: changed(r, solver={"name": "eulr"}), "did you mean euler"),
    "unknown argument": (lambda r: changed(r, grid={"name": "uniform", "m": 2}), "takes no 'm'"),
    "no weights": (lambda r: changed(r, model={"source": "tiny"}), "does not tell the weights"),
    "no model": (lambda r: changed(r, model={}), "names no model"),
    "no layout": (lambda r: changed(r, picture={}), "how its samples stand"),
    "no such sample": (
        lambda r: changed(r, picture={"layout": {}, "sample": 9}), "no sample 9",
    ),
    "no batch": (lambda r: changed(r, batch="all"), "its batch is 'all'"),
    "an empty batch": (lambda r: changed(r, batch=0), "at least 1 sample"),
    "no such sample in its batch": (
        lambda r: replace(
            changed(r, batch=1, picture={"layout": {}, "sample": 1}), seeds=(0, 1)
        ), "no sample 1",
    ),
    "a tensor's condition": (
        lambda r: changed(r, cond={"context": {"type": "Tensor"}}), "was a Tensor",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage, says", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_receipt_that_cannot_be_replayed_says_why(here, damage, says):
    done("sample", "tiny", "--steps", 1, "-n", 1, "-o", "a.png")
    write_picture("a.png", read_pixels("a.png"), damage(read_receipt("a.png")))
    assert_refused(here, ["replay", "a.png", "-o", "b.png"], says)


def test_files_that_cannot_be_replayed(here):
    write_picture("bare.png", np.zeros((4, 4), np.uint8))
    (here / "text.png").write_text("no picture")
    assert_refused(here, ["replay", "bare.png"], "carries no receipt")
    assert_refused(here, ["replay", "text.png"], "no PNG picture")
    assert_refused(here, ["replay", "none.png"], "No such file")


def test_an_output_that_cannot_be_written_is_refused_before_the_work(here):
    done("sample", "tiny", "--steps", 1, "-n", 1, "-o", "a.png")
    (here / "folder").mkdir()
    assert_refused(here, ["replay", "a.png", "-o", "folder"], "it is a folder")
    assert_refused(here, ["replay", "a.png", "-o", "a.png/b.png"], "is a file")

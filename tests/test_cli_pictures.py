"""Commands that begin with pictures: what a mask hides, colours, what lies between, classes."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import assert_refused, done, files, run
from tiny_model import tiny_model

import pathline as pl
from pathline.cli.reading import read_picture
from pathline.core.images import read_pixels, read_receipt, to_pixels, write_picture
from pathline.fields.trace import Hutchinson
from pathline.learn.likelihood import bits_per_dim
from pathline.learn.noisy_classes import (
    ClassLesson,
    Labelled,
    load_noisy_classes,
    train_noisy_classes,
)
from pathline.learn.sources import Points
from pathline.solvers import PredictorCorrector

SIZE = 8


def picture(file, colour=True, seed=0):
    made = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3 if colour else 1))
    Image.fromarray(np.broadcast_to(made, (SIZE, SIZE, 3)).astype(np.uint8)).save(file)
    return torch.from_numpy(made.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1


@pytest.fixture
def here(tmp_path, monkeypatch):
    tiny_model(tmp_path / "tiny", conditional=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mask(file, grey=255):
    half = np.zeros((SIZE, SIZE), np.uint8)
    half[:, : SIZE // 2] = grey
    Image.fromarray(half).save(file)
    return torch.from_numpy(half)[None, None] / 255.0


def sheet(file, n):
    """The samples of a sheet, (n, height, width, 3)."""
    layout = pl.core.images.Layout(**read_receipt(file).recipe["picture"]["layout"])
    pixels, step = read_pixels(file), layout.scale * SIZE + layout.gap
    assert layout.columns >= n or layout.columns**2 >= n
    corners = [divmod(k, layout.columns) for k in range(n)]
    tiles = [pixels[r * step + layout.gap :, c * step + layout.gap :] for r, c in corners]
    return np.stack([t[: layout.scale * SIZE : layout.scale, : layout.scale * SIZE : layout.scale]
                     for t in tiles])  # fmt: skip


def test_what_a_mask_hides_is_made_and_the_rest_is_kept(here):
    y, known = picture("half.png"), mask("left.png")
    words = ("complete", "tiny", "half.png", "--mask", "left.png", "--steps", 3, "-n", 2)
    assert "2 samples, 6 evaluations each" in done(*words, "-o", "out.png", "--seed", 5)
    with torch.no_grad():
        expected = pl.sample(
            pl.load("tiny"), seeds=[5, 6], solver=PredictorCorrector("ddpm"),
            grid=pl.grids.uniform(3, start=1 / (1 + math.exp(-7))), keep=pl.Known(y, known),
        ).x  # fmt: skip
    found = sheet("out.png", 2)
    assert np.array_equal(found, to_pixels(expected))
    left = found[:, :, : SIZE // 2].astype(int) - read_pixels("half.png")[:, : SIZE // 2]
    assert abs(left).max() <= 1  # a path ends beside data, and pixels are rounded
    outcome = run("replay", "out.png")
    assert outcome.exit_code == 2 and "make it again with pathline complete" in outcome.stderr


def test_a_grey_picture_gets_colours(here):
    picture("grey.png", colour=False)
    done("complete", "tiny", "grey.png", "--steps", 2, "-n", 1, "-o", "out.png")
    found = sheet("out.png", 1)[0].astype(float)
    inside = ((found > 0) & (found < 255)).all(2)  # colours beyond the range are cut
    off = found.mean(2) - read_pixels("grey.png")[..., 0]
    assert inside.any() and abs(off[inside]).max() <= 1.5
    assert np.ptp(found, axis=2).max() > 5


def test_a_strip_from_one_picture_to_another(here):
    ends = torch.cat((picture("a.png"), picture("b.png", seed=1)))
    done("interpolate", "tiny", "a.png", "b.png", "-n", 3, "-o", "strip.png", "--tolerance", 0.01)
    rule = pl.solvers.AdaptiveRK(rtol=0.01, atol=0.01)
    with torch.no_grad():
        made = pl.edit.interpolate(pl.load("tiny"), ends[:1], ends[1:], 3, solver=rule)[:, 0]
    layout = pl.core.images.Layout.of(3, SIZE, columns=3)
    assert np.array_equal(read_pixels("strip.png"), layout.arrange(to_pixels(made)))


def test_a_classifier_makes_a_class_of_a_model_and_is_in_the_receipt(here):
    images = Points(
        torch.stack((torch.ones(3, 8, 8), -torch.ones(3, 8, 8))), torch.ones(1, 3, 8, 8)
    )
    data = Labelled(images, torch.tensor([0, 1]), torch.tensor([0]), ("light", "dark"))
    lesson = ClassLesson(widths=(8,), parts=1, updates=40, batch=32)
    train_noisy_classes("classes", data, lesson)
    words = ("--classifier", "classes/model", "--steps", 4, "-n", 2, "--guidance", 30)
    model, known, made = pl.load("tiny"), load_noisy_classes("classes/model"), []
    for number, name in enumerate(data.classes):
        done("sample", "tiny", name, *words, "-o", f"{name}.png")
        made.append(sheet(f"{name}.png", 2))
        guide = pl.Classifier(known.on(model.path), number, 30.0)
        with torch.no_grad():
            expected = pl.sample(model, 2, steps=4, guide=guide).x
        assert np.array_equal(made[-1], to_pixels(expected))
    assert made[0].mean() > made[1].mean()
    assert read_receipt("dark.png").recipe["guide"] == {
        "name": "classifier", "labels": 1, "weight": 30.0, "network": "classes/model",
    }  # fmt: skip
    assert "bit for bit" in done("replay", "dark.png")


def test_a_classifier_is_trained_from_the_command_line(here, monkeypatch):
    asked = []

    def train(out, data, lesson):
        asked.append((out, data, lesson.seed))
        return here / "made"

    monkeypatch.setattr("pathline.learn.noisy_classes.train_noisy_classes", train)
    assert "--classifier" in done("classifier", "digits", "--seed", 3)
    assert asked == [("runs/classifier", "digits", 3)]


def test_bits_of_pictures_are_those_of_the_library(here):
    picture("a.png")
    how = ("--probes", 1, "--draws", 2, "--tolerance", 0.05, "--seed", 3)
    told = json.loads(done("likelihood", "tiny", "a.png", *how, "--json"))
    pixels = torch.from_numpy(read_pixels("a.png")).permute(2, 0, 1)[None]
    rule = pl.solvers.AdaptiveRK(rtol=0.05, atol=0.05)
    with torch.no_grad():
        found = bits_per_dim(
            pl.load("tiny"), pixels, draws=2, seeds=[3], solver=rule, trace=Hutchinson(1)
        )
    assert told["pictures"][0]["bits per dimension"] == found.bits.item()
    assert told["mean"] == found.bits.item() and told["nfe"] == found.nfe


def test_a_likelihood_that_cannot_be_measured_is_refused(here):
    picture("a.png")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save("small.png")
    for words, says in (
        (["a.png", "--draws", 0], "at least 1"),
        (["a.png", "--probes", -1], "at least 1 probe"),
        (["a.png", "--tolerance", -1], "must not be negative"),
        (["a.png", "--seed", -1], "seed -1 is not an integer"),
        (["a.png", "--prompt", "a bag"], "takes no condition"),
        (["small.png"], "scale it first"),
        (["absent.png"], "cannot read a picture"),
        (["-n", 0], "at least 1 picture"),
    ):
        assert_refused(here, ["likelihood", "tiny", *words], says)


def test_a_sheet_of_one_is_read_as_the_sample_on_it(here):
    for options in (["-n", 1, "--scale", 5, "-o", "one.png"], ["-n", 2, "-o", "all/"],
                    ["-n", 2, "-o", "two.png"]):  # fmt: skip
        done("sample", "tiny", "--steps", 2, *options)
    for name in ("one.png", "all/000001.png"):
        assert (read_picture(name, 3).numpy() == sheet(name, 1)[0].transpose(2, 0, 1)).all()
    assert_refused(here, ["complete", "tiny", "two.png"], "of a sheet of samples, take one")
    write_picture("cut.png", read_pixels("one.png")[3:, 3:], read_receipt("one.png"))
    assert_refused(here, ["complete", "tiny", "cut.png"], "scale it first")


def test_pictures_that_cannot_be_used_are_refused(here):
    picture("half.png")
    mask("grey.png", grey=100)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save("small.png")
    for words, says in (
        (["half.png", "--mask", "grey.png"], "white is what is known"),
        (["small.png"], "scale it first"),
        (["absent.png"], "cannot read a picture"),
    ):
        assert_refused(here, ["complete", "tiny", *words], says)
    assert_refused(here, ["sample", "tiny", "--classifier", "none"], "needs a prompt")
    assert_refused(here, ["interpolate", "tiny", "half.png", "half.png", "-n", 1], "both ends")
    assert files(here) == files(here)

"""Guides on the command line: they compute what the library computes, and replay bit for bit."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import assert_refused, done, run
from tiny_model import tiny_model

import pathline as pl
from pathline import steer
from pathline.core.images import Layout, read_pixels, read_receipt, to_pixels, write_picture
from pathline.steer import operators


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Models, a picture, a mask of its left half, and what is left of it."""
    tiny_model(tmp_path / "tiny")
    tiny_model(tmp_path / "worse", seed=1)
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :4] = 255
    Image.fromarray(mask).save("mask.png")
    Image.fromarray(np.dstack((pixels, mask))).save("cut.png")
    Image.fromarray(pixels[:2, :2]).save("small.png")
    Image.fromarray(pixels[..., 0]).save("grey.png")
    return tmp_path


def picture(name, mode="RGB"):
    with Image.open(name) as image:
        pixels = np.atleast_3d(np.array(image.convert(mode))).transpose(2, 0, 1)
    return torch.from_numpy(pixels.copy()).float()[None] / 127.5 - 1


def half():
    mask = torch.zeros(1, 8, 8)
    mask[..., :4] = 1
    return mask


CALLS = {
    "inpaint": (["inpaint:mask=mask.png,image=photo.png"],
                lambda: steer.Inpaint(half(), picture("photo.png"))),
    "transparent": (["inpaint:image=cut.png"], lambda: steer.Inpaint(half(), picture("photo.png"))),
    "order": (["inpaint:mask=mask.png,image=photo.png", "cfg:4,rescale=0.5"],
              lambda: steer.CFG(4.0, rescale=0.5) & steer.Inpaint(half(), picture("photo.png"))),
    "interval": (["apg:3,interval=0.2..0.8"], lambda: steer.APG(3.0, (0.2, 0.8))),
    "small": (["projection:cubic=4,image=small.png"],
              lambda: steer.Projection(operators.Cubic(4), picture("small.png"))),
    "whole": (["diffpir:0.1,pooling=2,image=photo.png"],
              lambda: steer.DiffPIR(operators.Pooling(2),
                                    operators.Pooling(2).forward(picture("photo.png")), 0.1)),
    "grey": (["pigdm:0.2,luma,image=grey.png"],
             lambda: steer.PiGDM(operators.Luma(), picture("grey.png", "L"), 0.2)),
    "blur": (["mmps:std=0.3,blur=0.8,image=photo.png,iterations=1", "clip:-1,high=1"],
             lambda: steer.MMPS(operators.Blur(0.8),
                                operators.Blur(0.8).forward(picture("photo.png")), 0.3,
                                iterations=1) & steer.Clip(-1, 1)),
    "masked": (["dps:0.5,mask=mask.png,image=photo.png"],
               lambda: steer.DPS(operators.Mask(half()), half() * picture("photo.png"), 0.5)),
    "regions": (["regions:mask=mask.png,white=a cat,black=a dog,weight=2"],
                lambda: steer.Regions(torch.stack((half(), 1 - half())),
                                      ({"text": "a cat"}, {"text": "a dog"}), 2.0)),
    "worse": (["autoguidance:2,worse=worse"],
              lambda: steer.Autoguidance(2.0, worse=pl.load("worse"))),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_guide_is_that_of_the_library_and_replays(here, name):
    specs, guide = CALLS[name]
    options = [word for spec in specs for word in ("--guide", spec)]
    prompt = ["a red apple"] if specs[-1][:3] in ("cfg", "apg") else []
    how = ["--solver", "ddpm", "--steps", 4, "--last", "denoise", "-n", 3, "--scale", 1]
    done("sample", "tiny", *prompt, *options, *how, "-o", "a.png")
    grid = pl.grids.log_snr(4, last="denoise")
    told = {"text": prompt[0]} if prompt else {}
    with torch.no_grad():
        x = pl.sample(pl.load("tiny"), 3, solver="ddpm", grid=grid, guide=guide(), **told).x
    assert np.array_equal(read_pixels("a.png"), Layout(2, 1, 4).arrange(to_pixels(x)))
    assert "identical" in done("replay", "a.png", "-o", "b.png")
    assert (here / "a.png").read_bytes() == (here / "b.png").read_bytes()
    told = read_receipt("a.png").recipe["guides"]
    assert [each["spec"] for each in told] == specs and json.dumps(told)


def test_a_classifier_goes_with_other_guides(here):
    """--classifier beside --guide is the library's chain, and replays by the folder's weights."""
    from pathline.learn.noisy_classes import ClassLesson, Labelled, train_noisy_classes
    from pathline.learn.sources import Points

    images = Points(
        torch.stack((torch.ones(3, 8, 8), -torch.ones(3, 8, 8))), torch.ones(1, 3, 8, 8)
    )
    data = Labelled(images, torch.tensor([0, 1]), torch.tensor([0]), ("up", "down"))
    train_noisy_classes("c", data, ClassLesson(widths=(8,), parts=1, updates=2, batch=8))
    done("sample", "tiny", "down", "--classifier", "c/model", "--guidance", 2, "--guide",
         "clip:-1,high=1", "--steps", 2, "-n", 2, "-o", "a.png")  # fmt: skip
    assert [g["name"] for g in read_receipt("a.png").recipe["guide"]["guides"]] == [
        "classifier", "clip",
    ]  # fmt: skip
    assert "identical" in done("replay", "a.png")


def test_the_guidance_of_a_prompt_goes_on(here):
    """Another guide does not switch it off; one of its own kind takes its place."""
    put = ["--guide", "inpaint:image=cut.png"]
    done("sample", "tiny", "a cat", "--guidance", 2.5, *put, "--steps", 2, "-n", 1, "-o", "a.png")
    recipe = read_receipt("a.png").recipe
    assert [each["spec"] for each in recipe["guides"]] == ["cfg:2.5", "inpaint:image=cut.png"]
    assert [each["name"] for each in recipe["guide"]["guides"]] == ["cfg", "inpaint"]
    done("sample", "tiny", "a cat", "--guide", "apg:2", "--steps", 2, "-n", 1, "-o", "b.png")
    assert read_receipt("b.png").recipe["guide"]["name"] == "apg"


def test_a_replay_wants_the_same_files(here):
    done("sample", "tiny", "--guide", "inpaint:image=cut.png", "--steps", 1, "-n", 1, "-o", "a.png")
    (here / "elsewhere").mkdir()
    (here / "cut.png").rename(here / "elsewhere" / "cut.png")
    assert_refused(here, ["replay", "a.png"], "put it beside the picture")
    (here / "a.png").rename(here / "elsewhere" / "a.png")
    assert "identical" in done("replay", "elsewhere/a.png")
    Image.new("RGBA", (8, 8)).save("elsewhere/cut.png")
    assert_refused(here, ["replay", "elsewhere/a.png"], "is another picture now")
    done("sample", "tiny", "--guide", "autoguidance:2,worse=worse", "--steps", 1, "-n", 1, "-o",
         "c.png")  # fmt: skip
    tiny_model(here / "worse", seed=2)
    assert_refused(here, ["replay", "c.png"], "worse has other weights")


@pytest.mark.parametrize("guides", [[], "cfg:4", [{"spec": 3}], [{"spec": "cfg:2", "files": 1}]])
def test_a_damaged_receipt_says_so(here, guides):
    from dataclasses import replace

    done("sample", "tiny", "--guide", "clip:-1", "--steps", 1, "-n", 1, "-o", "a.png")
    receipt = read_receipt("a.png")
    receipt = replace(receipt, recipe={**receipt.recipe, "guides": guides})
    write_picture("a.png", read_pixels("a.png"), receipt)
    assert_refused(here, ["replay", "a.png"], "does not tell")


REFUSED = {
    "inpant:image=cut.png": "did you mean inpaint",
    "inpaint": "needs image=",
    "inpaint:image=photo.png": "opaque everywhere",
    "inpaint:image=none.png": "there is no file none.png",
    "inpaint:image=a.txt": "cannot read a picture",
    "inpaint:image=small.png": "scale it first",
    "inpaint:mask=grey.png,image=photo.png": "has greys",
    "inpaint:mask=black.png,image=photo.png": "nothing is known",
    "projection:image=photo.png": "one of mask=FILE, cubic=FACTOR",
    "projection:cubic=4,luma,image=photo.png": "one of mask=FILE, cubic=FACTOR",
    "projection:cubic,image=photo.png": "needs a number",
    "projection:cubic=3,image=photo.png": "does not divide",
    "projection:cubic=2,image=small.png": "give what was measured (4 × 4)",
    "cfg:four": "no number",
    "cfg:4,weight=3": "cannot be read",
    "cfg:4,scale=3": "takes no 'scale'",
    "cfg:interval=0.2..x": "no number",
    "cfg:4,of=lambda": "unknown measure of noise",
    "dps:0,mask=mask.png,image=photo.png": "above 0 here",
    "loss:3": "use it in Python",
    "look_ahead:3": "would need a reward",
    "classifier:3": "needs folder=",
    "autoguidance:2,worse=nowhere": "unknown model",
}


@pytest.mark.parametrize("spec", REFUSED)
def test_what_cannot_be_read_is_refused_in_a_sentence(here, spec):
    (here / "a.txt").write_text("no picture")
    Image.new("L", (8, 8)).save("black.png")
    assert_refused(here, ["sample", "tiny", "--guide", spec, "-o", "a.png"], REFUSED[spec])


def test_guides_that_do_not_go_together_are_refused(here):
    both = ["--guide", "cfg:2", "--guide", "apg:2"]
    assert_refused(here, ["sample", "tiny", "a cat", *both, "-o", "a.png"], "alone of its kind")
    twice = ["--guidance", 3, "--guide", "cfg:2"]
    assert_refused(here, ["sample", "tiny", "a cat", *twice, "-o", "a.png"], "leave one out")
    assert run("guides").exit_code == 0


# --- particles ----------------------------------------------------------------------------------


def test_particles_are_those_of_the_library_and_replay(here):
    """Three runs of four, of which two fit into a batch: what came of each is in the receipt."""
    spec = "pigdm:0.5,cubic=4,image=small.png"
    how = ["--particles", 4, "--steps", 3, "-n", 3, "--batch", 8, "--scale", 1]
    said = done("sample", "tiny", "--guide", spec, *how, "-o", "a.png")
    guide = steer.PiGDM(operators.Cubic(4), picture("small.png"), 0.5)
    found = [
        steer.Particles(4).sample(
            pl.load("tiny"), seeds=seeds, guide=guide, grid=pl.grids.log_snr(3),
            dtype=torch.float32,
        )
        for seeds in ([0, 1], [2])
    ]  # fmt: skip
    x = torch.cat([each.x for each in found])
    assert np.array_equal(read_pixels("a.png"), Layout(2, 1, 4).arrange(to_pixels(x)))
    recipe = read_receipt("a.png").recipe
    assert recipe["particles"] == steer.Particles(4).describe()
    told = recipe["population"]
    assert told["log_evidence"] == [v for each in found for v in each.log_evidence.tolist()]
    assert told["origins"] == [row for each in found for row in each.origins.tolist()]
    assert told["resampled"] == [n for each in found for n in each.resampled.tolist()]
    together = torch.tensor(told["log_evidence"]).double().logsumexp(0) - np.log(3)
    assert "of each of 4 particles" in said and f"log p(y) = {float(together):.2f}" in said
    assert "identical" in done("replay", "a.png", "-o", "b.png")
    assert (here / "a.png").read_bytes() == (here / "b.png").read_bytes()


def test_each_run_of_particles_has_a_file(here):
    """Under guidance of a prompt, which belongs to the prior; each file knows its batch's runs."""
    done("sample", "tiny", "a cat", "--guidance", 2, "--guide", "dps:1,luma,image=grey.png",
         "--particles", 2, "--steps", 2, "-n", 2, "--batch", 2, "-o", "out/")  # fmt: skip
    for name, seed in (("000000.png", 0), ("000001.png", 1)):
        receipt = read_receipt(f"out/{name}")
        assert receipt.seeds == (seed,) and receipt.recipe["cond"] == {"text": "a cat"}
        assert len(receipt.recipe["population"]["log_evidence"]) == 1
        assert "identical" in done("replay", f"out/{name}")


NOT_WEIGHED = {
    (): "no guide has one",
    ("--guide", "projection:cubic=4,image=small.png"): "Projection has none",
    ("--guide", "inpaint:image=cut.png"): "Inpaint has none",
    ("--guide", "clip:-1", "--guide", "dps:1,cubic=4,image=small.png"): "has no likelihood",
    ("--guide", "pigdm:0,cubic=4,image=small.png"): "has no likelihood",
    ("--guide", "dps:1,luma,image=grey.png", "--solver", "ddim"): "a solver that draws noise",
    ("--guide", "dps:1,luma,image=grey.png", "--solver", "dopri5"): "has no plan",
    ("--guide", "dps:1,luma,image=grey.png", "--speed", "sada"): "leave one of both out",
}


@pytest.mark.parametrize("options", NOT_WEIGHED)
def test_what_cannot_be_weighed_is_refused_with_the_reason(here, options):
    words = ["sample", "tiny", *options, "--particles", 2, "-o", "a.png"]
    assert_refused(here, words, NOT_WEIGHED[options])


def test_particles_are_counted_from_one_and_a_damaged_receipt_says_so(here):
    from dataclasses import replace

    spec = ["--guide", "dps:1,luma,image=grey.png"]
    assert_refused(here, ["sample", "tiny", *spec, "--particles", 0], "one particle or more")
    done("sample", "tiny", *spec, "--particles", 2, "--steps", 2, "-n", 1, "-o", "a.png")
    receipt = read_receipt("a.png")
    receipt = replace(receipt, recipe={**receipt.recipe, "particles": {"k": 3}})
    write_picture("a.png", read_pixels("a.png"), receipt)
    assert_refused(here, ["replay", "a.png"], "its particles are")

"""`pathline steer`: pictures taken apart and made whole, with the numbers of every evaluation."""

import json
import re

import numpy as np
import pytest
import torch
from test_cli import assert_refused, done
from tiny_model import tiny_model

import pathline as pl
from pathline.cli.steering.tasks import TASKS, Prior, Workshop, half, hole, originals, scattered
from pathline.core.images import read_pixels
from pathline.steer import Inpaint, Repeat
from pathline.steer.operators import Luma


@pytest.fixture
def here(tmp_path, monkeypatch):
    tiny_model(tmp_path / "tiny")
    tiny_model(tmp_path / "plain", conditional=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_task_writes_its_strip_and_its_numbers(here):
    said = done("steer", "inpaint", "--model", "tiny", "--repeats", 2, "--steps", 3, "-o", "out")
    assert "5 evaluations" in said  # two visits of two steps, and one to data
    told = json.loads((here / "out" / "inpaint.json").read_text())
    assert (told["task"], told["model"], told["repeats"]) == ("inpaint", "tiny", 2)
    assert len(told["evaluated"]) == told["evaluations"] == 5 and told["off"] < 1e-6  # float32
    for each in told["evaluated"]:
        assert each["V"] == each["residual"] ** 2 / 2
    assert read_pixels("out/inpaint.png").ndim == 3


def test_the_demonstration_is_one_page(here):
    done("steer", "--demo", "--model", "tiny", "--steps", 2, "--repeats", 1, "-o", "out")
    page = (here / "out" / "index.html").read_text(encoding="utf-8")
    assert len(re.findall("data:image/png;base64,", page)) == len(TASKS)
    assert not re.findall(r"<(?:script|link|iframe)|https?:", page)
    assert all(task.about in page for task in TASKS.values())


def test_results_are_those_of_the_library(here):
    """Inpainting and its score on digits, whose law is exact."""
    pytest.importorskip("sklearn", reason='it comes with the extra "pathline[data]"')
    from pathline.systems.steered_digits import law, log_hole, pixels

    x = pixels()[0][-4:]
    prior = Prior(law(), "digits", x, list("1234"), log_hole)
    made = Workshop(prior, steps=4, repeats=2, seed=7).done(TASKS["inpaint"])
    mask = hole(prior.shape)
    how = {"solver": Repeat("ddpm", 2), "grid": pl.grids.log_snr(4, last="denoise")}
    same = pl.sample(law(), 4, seed=7, dtype=torch.float64, guide=Inpaint(mask.mask, x), **how).x
    assert torch.equal(made.x, same)
    assert made.score == pytest.approx(float(log_hole(same, mask).mean()))
    assert made.residuals[0][1] > made.residuals[-1][1] > 0


def test_every_task_keeps_what_is_known(here):
    model = pl.load("tiny")
    prior = Prior(model, "tiny", originals(model, None), ("a", "b", "c", "d"))
    for task in TASKS.values():
        if task.name == "sr":  # eight pixels, four times smaller
            assert task.operator(prior.shape).forward(prior.pictures).shape[-1] == 2
        made = Workshop(prior, steps=3, repeats=1).done(task)
        assert made.off < 1e-5, task.name
    both = Workshop(prior, steps=3, repeats=1).done(TASKS["multi"]).x
    known = scattered(prior.shape).mask.bool().expand_as(both)
    torch.testing.assert_close(both[known], prior.pictures[known], atol=1e-5, rtol=0)
    torch.testing.assert_close(Luma().forward(both), Luma().forward(prior.pictures),
                               atol=1e-5, rtol=0)  # fmt: skip


def test_masks_are_what_they_say():
    assert float(half((1, 8, 8)).mask.mean()) == 0.5 and float(hole((1, 8, 8)).mask.mean()) == 0.75
    share = float(scattered((3, 32, 32)).mask.mean())
    assert abs(share - 0.06) < 4 * (0.06 * 0.94 / 1024) ** 0.5 and np.isfinite(share)


def test_what_cannot_be_steered_is_refused(here):
    assert_refused(here, ["steer"], "name a task")
    assert_refused(here, ["steer", "sr", "--demo"], "name a task")
    assert_refused(here, ["steer", "inpant"], "did you mean inpaint")
    assert_refused(here, ["steer", "inpaint", "--model", "plain"], "does not read text")
    assert_refused(here, ["steer", "inpaint", "--model", "tiny", "--steps", 1], "two or more")
    assert_refused(here, ["steer", "inpaint", "--model", "tiny", "--repeats", 0], "once or more")
    (here / "file").write_text("a file")
    assert_refused(here, ["steer", "--demo", "-o", "file/out"], "is a file")


def test_digits_are_grey(here):
    pytest.importorskip("sklearn", reason='it comes with the extra "pathline[data]"')
    assert_refused(here, ["steer", "colour", "--model", "digits"], "draws in grey")

"""A batch in parts, and shared by processes, teaches what it teaches in one piece."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import pathline as pl
from pathline.cli.main import app
from pathline.core import UsageError
from pathline.core.tensors import read_tensors
from pathline.learn.averages import Profile, exponent, snapshots
from pathline.learn.recipe import Recipe
from pathline.learn.run import Run
from pathline.learn.trainer import train

pytest.importorskip("lightning_fabric", reason="it comes with the extra pathline[train]")

TESTS = Path(__file__).parent
RECIPE = Recipe(
    name="moons",
    steps=24,
    data={"source": "moons"},
    network={"class": "MLP", "dim": 2, "width": 16, "depth": 2},
    objective={"path": "cond_ot"},
    batch=32,
    warmup=4,
    seed=3,
)


def weights(folder):
    return torch.load(folder / "state.pt", weights_only=True)["network"]


def same(one, other, tolerance):
    return all(
        (a.double() - b.double()).abs().max() < tolerance
        for a, b in zip(one.values(), other.values(), strict=True)
    )


@pytest.mark.parametrize("coupling", [None, {"kind": "gibbs", "eps": 2.0}])
def test_a_batch_in_parts_is_the_batch(tmp_path, coupling):
    recipe = replace(RECIPE, coupling=coupling)
    train(recipe, tmp_path / "whole")
    train(replace(recipe, accumulate=4), tmp_path / "parts")
    train(replace(recipe, seed=4), tmp_path / "other")
    whole = weights(tmp_path / "whole")
    assert same(weights(tmp_path / "parts"), whole, 1e-5)
    assert not same(weights(tmp_path / "other"), whole, 1e-2)


def test_two_processes_come_to_the_weights_of_one(tmp_path):
    """Through the command line, as a user starts them; the second is begun by the first."""
    config = tmp_path / "moons.toml"
    config.write_text(
        'name = "moons"\nsteps = 24\nbatch = 32\nwarmup = 4\nseed = 3\naccumulate = 2\n'
        '[data]\nsource = "moons"\n[objective]\npath = "cond_ot"\n'
        '[network]\nclass = "MLP"\ndim = 2\nwidth = 16\ndepth = 2\n'
    )
    call = [sys.executable, "-m", "pathline", "train", str(config), "-o", str(tmp_path / "two")]
    done = subprocess.run(
        [*call, "--devices", "2"], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    train(replace(RECIPE, accumulate=2), tmp_path / "one")
    assert same(weights(tmp_path / "two"), weights(tmp_path / "one"), 1e-5)
    names = sorted(p.name for p in (tmp_path / "two").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "one").iterdir())
    assert pl.sample(pl.load(str(tmp_path / "two" / "model")), 2, steps=2).x.isfinite().all()


SHARED = """
import sys
from test_sharing import RECIPES
from pathline.learn.trainer import train

name, strategy, out, *stops = sys.argv[1:]
for until in stops:
    train(RECIPES[name], out, until=int(until), devices=2, strategy=strategy)
"""
RECIPES = {
    "moons": replace(RECIPE, steps=9),
    "rings": replace(
        RECIPE,
        steps=9,
        data={"source": "rings", "n": 256},
        network={"class": "Potential", "dim": 2, "width": 16, "depth": 2},
        objective={"path": "ou", "view": "score", "label": 10.0, "time_power": 2.0},
        regulariser={"kind": "fokker_planck", "weight": 0.1, "points": 16, "warmup": 3, "clip": 1},
    ),
    "digits": replace(
        RECIPE,
        steps=9,
        data={"source": "digits"},
        network={"class": "UNet", "width": 8, "multipliers": [1, 2], "blocks": 1},
        averages=(0.1,),
        accumulate=2,
        rate=1e-4,
    ),
}


def train_in_two(tmp_path, name, strategy, *stops):
    """Train a recipe in two processes, cut short at these steps, and return its folder."""
    script, out = tmp_path / "shared.py", tmp_path / "two"
    script.write_text(SHARED)
    done = subprocess.run(
        [sys.executable, str(script), name, strategy, str(out), *map(str, stops)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def test_a_penalty_shared_by_two_processes_is_that_of_one(tmp_path):
    """With clip = 1 no residual is cut, and the means of both shares make the whole's."""
    two, one, none = train_in_two(tmp_path, "rings", "ddp", 9), tmp_path / "one", tmp_path / "none"
    train(RECIPES["rings"], one)
    train(replace(RECIPES["rings"], regulariser=None), none)
    assert same(weights(two), weights(one), 2e-5)  # Adam divides tiny gradients
    assert not same(weights(none), weights(one), 1e-3)
    rows = [torch.load(f / "state.pt", weights_only=True)["journal"][-1] for f in (two, one)]
    assert rows[0]["penalty"] == pytest.approx(rows[1]["penalty"], rel=1e-4)


def moments(folder):
    state = torch.load(folder / "state.pt", weights_only=True)["optimizer"]["state"]
    return {i: kept["exp_avg"] for i, kept in state.items()}


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("moons", 1e-5), pytest.param("digits", 1e-3, marks=pytest.mark.slow)],
)
def test_shards_of_two_processes_come_to_the_weights_of_one(tmp_path, name, tolerance):
    """Cut short and resumed in shards, then finished in one piece: what is written is whole.

    A U-Net has its channels last in one process and first in shards, so convolutions round
    differently, and Adam makes a whole step of the sign of a gradient that is nearly nothing: its
    weights agree to a few of its 9 steps of 1e-4, its moments as those of others do.
    """
    one, two = tmp_path / "one", train_in_two(tmp_path, name, "fsdp", 3, 6)
    for folder in (one, two):
        train(RECIPES[name], folder)
    assert same(weights(two), weights(one), tolerance)
    assert same(moments(two), moments(one), 1e-5)
    assert sorted(p.name for p in two.iterdir()) == sorted(p.name for p in one.iterdir())
    if RECIPES[name].averages:
        kept = [read_tensors(each.file)[1] for each in snapshots(two / "averages")]
        assert len(kept) == 3 and all(t.isfinite().all() for t in kept[0].values())


def test_averages_of_a_run_are_written_and_mixed(tmp_path):
    """The widths that were kept come back as they are; a third lies between; resume is exact."""
    recipe = replace(RECIPE, averages=(0.05, 0.1), snapshot=8)
    run, walk = Run.start(recipe), []
    for _ in range(recipe.steps):
        run.advance()
        walk.append(run.network.state_dict()["layers.0.0.weight"].clone())
    train(recipe, tmp_path / "cut", until=10)
    train(recipe, tmp_path / "cut")
    kept = snapshots(tmp_path / "cut" / "averages")
    assert sorted({each.profile.t for each in kept}) == [8.0, 10.0, 16.0, 24.0]
    runner = CliRunner()
    for width in (0.05, 0.1):
        exact = walk[0].double()
        for i, now in enumerate(walk, 1):
            keep = Profile(float(i), exponent(width)).keeps()
            exact = now + keep * (exact - now)
        out = tmp_path / f"average-{width}"
        call = ["average", str(tmp_path / "cut"), "--width", str(width), "-o", str(out)]
        assert runner.invoke(app, call).exit_code == 0
        found = pl.load(str(out)).network.state_dict()["layers.0.0.weight"]
        assert (found.double() - exact).abs().max() < 1e-3  # half precision on disk, twice
    text = json.loads((tmp_path / "average-0.1" / "config.json").read_text())
    assert text["name"] == "moons"


def test_bad_input_is_told(tmp_path):
    with pytest.raises(UsageError, match="do not make a batch of 32"):
        replace(RECIPE, accumulate=5)
    with pytest.raises(UsageError, match="cannot be shared by 3 devices"):
        train(RECIPE, tmp_path, devices=3)
    with pytest.raises(UsageError, match="give devices=2 or more"):
        train(RECIPE, tmp_path, strategy="fsdp")
    with pytest.raises(UsageError, match="did you mean fsdp"):
        train(RECIPE, tmp_path, devices=2, strategy="fspd")
    with pytest.raises(UsageError, match="below 0.289"):
        replace(RECIPE, averages=(0.5,))

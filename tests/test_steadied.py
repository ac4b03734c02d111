"""Targets that are means over a reference batch, against the posterior of a finite data set."""

import pytest
import torch

import pathline as pl
from pathline.core import UsageError
from pathline.fields import target
from pathline.learn.exercise import Exercise
from pathline.learn.recipe import Recipe
from pathline.learn.run import Run
from pathline.learn.steadied import steadied
from pathline.paths import PFGMpp

DATA = torch.tensor([[1.0, 0.0], [-0.5, 1.0], [0.0, -1.0]], dtype=torch.float64)
PATHS = [pl.VPLinear(), pl.CondOT(), PFGMpp(0.002, 2.0, 8.0)]


def drawn(path, n=300, cond=None):
    generator = torch.Generator().manual_seed(0)
    x0 = DATA[torch.arange(n) % 3]
    eps = path.kernel.draw(range(n), (2,), dtype=torch.float64)
    t = torch.rand(n, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    return Exercise(x0, eps, t, None, None, cond or {})


def states(path, made):
    return path.alpha(made.t)[:, None] * made.x0 + path.sigma(made.t)[:, None] * made.x1


@pytest.mark.parametrize("path", PATHS, ids=["vp", "flow", "pfgmpp"])
def test_states_stay_and_targets_go_to_the_posterior_mean(path):
    """The reference is the data set a hundred times over, and the own datum one more of 301.

    So the weights are off by one part in a hundred at most, and x̂_0 by that times the data's width.
    """
    before = drawn(path)
    after = steadied(before, path, DATA.repeat(100, 1))
    torch.testing.assert_close(states(path, after), states(path, before), rtol=1e-10, atol=1e-10)
    x = states(path, before)
    exact = torch.cat([pl.Dataset(path, DATA)(x[i : i + 1], before.t[i]).x0 for i in range(300)])
    assert (after.x0 - exact).norm(dim=1).max() < 0.03
    assert (before.x0 - exact).norm(dim=1).mean() > 0.1
    for view in ("eps", "velocity"):
        aims = [target(path, view, m.x0, m.x1, m.t) for m in (before, after)]
        assert (aims[0] - aims[1]).mean(0).norm() < 5 * (aims[0] - aims[1]).std() / 300**0.5


def test_the_own_datum_alone_changes_nothing():
    before = drawn(pl.VPLinear())
    far = torch.full((4, 2), 1e3, dtype=torch.float64)
    after = steadied(before, pl.VPLinear(), far)
    near = before.t < 0.5  # where there is signal enough to tell data a thousand away
    torch.testing.assert_close(after.x0[near], before.x0[near], rtol=1e-9, atol=1e-9)


def recipe(**objective):
    table = {"path": "pfgmpp", "path_args": {"dof": 8.0, "sigma_max": 2.0}, "view": "x0"}
    return Recipe(
        name="steady",
        steps=1,
        data={"source": "moons"},
        network={"class": "MLP", "dim": 2, "width": 8, "depth": 1},
        objective={**table, **objective},
        batch=64,
    )


def test_a_run_learns_from_them():
    """Of the same states, with targets that vary less: the loss of a network that says nothing."""
    pytest.importorskip("lightning_fabric", reason="it comes with the extra pathline[train]")
    plain, steady = (Run.start(recipe(reference=n)).exercises.at(0) for n in (0, 512))
    path = recipe().matching().path
    torch.testing.assert_close(states(path, steady), states(path, plain), rtol=1e-4, atol=1e-4)
    assert steady.x0.square().mean() < plain.x0.square().mean()


def test_bad_input_is_told():
    pytest.importorskip("lightning_fabric", reason="it comes with the extra pathline[train]")
    for table, words in (
        ({"reference": -1}, "a whole number of data"),
        ({"reference": 8, "bridge": 0.1, "path": "cond_ot", "path_args": {}}, "no bridge noise"),
    ):
        with pytest.raises(UsageError, match=words):
            Run.start(recipe(**table))
    with pytest.raises(UsageError, match="without a condition.*label"):
        path = pl.VPLinear()
        steadied(drawn(path, cond={"label": torch.zeros(300)}), path, DATA)

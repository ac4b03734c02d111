"""Both systems of neural differential equations; shooting; and the page, whose examples run."""

import json
import re
from pathlib import Path

import pytest
import torch

import pathline as pl
from pathline import systems
from pathline.learn.shooting import Shooting, fit_trajectories, pieces, sparse_regression, whole
from pathline.nets.vector_fields import ODENet

PAGE = Path(__file__).resolve().parent.parent / "docs" / "neural-des.md"
TIMES = torch.linspace(0, 2, 21, dtype=torch.float64)


def test_the_page_runs(tmp_path, monkeypatch):
    """Block after block, as a reader would."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {}
    for number, code in enumerate(
        re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    ):
        exec(compile(code, f"block {number + 1}", "exec"), names)
    assert names["f"].rounded(0.01).same_as("y/(1 + y)")


# -- shooting


def test_pieces_begin_at_every_state_that_has_enough_after_it():
    states = torch.arange(21.0, dtype=torch.float64)[None, :, None] + torch.tensor(
        [[[0.0]], [[100]]]
    )
    parts = pieces(TIMES, states, 5)
    assert len(parts) == 2 * 16 and parts.goals.shape == (5, 32, 1)
    rises = torch.arange(1.0, 6).double()[:, None].expand(5, 32)
    assert torch.equal(parts.goals[:, :, 0] - parts.starts[:, 0], rises)
    torch.testing.assert_close(parts.begins, TIMES[:16].repeat_interleave(2))
    assert len(whole(TIMES, states)) == 2


def test_pieces_of_a_field_with_time_begin_at_their_own():
    """x' = t: the error of the exact right-hand side is that of the solver, none."""
    states = (TIMES**2 / 2)[None, :, None]
    error = Shooting().error(lambda x, t: t.expand_as(x), pieces(TIMES, states, 4))
    assert float(error) < 1e-28


def test_a_network_learns_decay():
    x = torch.linspace(0.5, 2, 6, dtype=torch.float64)[:, None, None]
    data = x * (-TIMES).exp()[None, :, None]
    torch.manual_seed(0)
    net = ODENet(1, width=16).double()
    first = float(Shooting().error(net, pieces(TIMES, data, 5)).detach())
    fit_trajectories(net, TIMES, data, Shooting(iterations=100, rate=3e-2, batch=64))
    assert float(Shooting().error(net, pieces(TIMES, data, 5)).detach()) < 0.1 * first


def test_regression_keeps_the_terms_that_are_there():
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).double()
    noise = 0.01 * torch.randn(200, 2, generator=torch.Generator().manual_seed(1)).double()
    values = torch.stack((2 * x[:, 1], x[:, 0] - 3 * x[:, 3]), 1)
    found = sparse_regression(x, values + noise)
    exact = torch.tensor([[0, 1], [2, 0], [0, 0], [0, -3]]).double()
    assert bool(((found != 0) == (exact != 0)).all())
    torch.testing.assert_close(found, exact, atol=0.01, rtol=0)


def test_pieces_that_cannot_be_are_refused():
    with pytest.raises(pl.UsageError, match="pieces of 1 to 20 steps"):
        pieces(TIMES, torch.zeros(2, 21, 1).double(), 21)
    uneven = TIMES.clone()
    uneven[3] += 0.01
    with pytest.raises(pl.UsageError, match="even times"):
        pieces(uneven, torch.zeros(2, 21, 1).double(), 5)


# -- systems


def test_neural_differential_equations_hold_what_costs_little():
    quick = ["reversible-gradient", "reversible-gradient-sde", "continuous-falls",
             "order-reversible", "dense", "hermite-knots", "hermite-local", "rectilinear-causal",
             "event-time", "event-speed", "event-gradient", "deq"]  # fmt: skip
    report = systems.run("neural-differential-equations", only=quick)
    assert [m for m in report.claims if not m.passed] == []


def test_stable_neural_sde_holds_what_costs_little():
    quick = ["contraction", "log-signs", "log-zero", "crossing-1-0.2", "crossing-2-0.2",
             "reads-naive", "reads-stable"]  # fmt: skip
    report = systems.run("stable-neural-sde", only=quick)
    assert [m for m in report.claims if not m.passed] == []


@pytest.mark.slow
@pytest.mark.parametrize("slug", ["neural-differential-equations", "stable-neural-sde"])
def test_every_claim_that_trains_nothing_holds(slug):
    assert [m for m in systems.run(slug).claims if not m.passed] == []


def test_thresholds_are_the_specifications():
    """Of the claims that train: 1, 2 and 7."""
    asked = {
        "neural-differential-equations": {
            "cde-accuracy": 0.95, "cde-start-only": 0.7, "ude-interaction": 0.1,
            "ude-visited": 0.1, "ude-terms": 0.0,
            "ude-extrapolation": 0.02, "node-extrapolation": 0.1, "symbolic": 2.0,
        },
        "stable-neural-sde": {
            "accuracy-lnsde": 0.9, "accuracy-gsde": 0.9, "accuracy-lsde": 0.6,
            "accuracy-naive": 0.45, "robust": 0.1, "archive": 0.1,
        },
    }  # fmt: skip
    for slug, thresholds in asked.items():
        claims = systems.systems.build(slug).claims
        assert {c.id: c.threshold for c in claims if c.needs == "training"} == thresholds


def test_a_training_run_of_stable_sdes_ends_with_a_table_of_all(tmp_path, monkeypatch):
    """Every accuracy and error has its place; numbers tell which is where."""
    from pathline.systems import stable_sde_gaps as gaps
    from pathline.systems import stable_sde_trained as trained

    monkeypatch.setattr(trained.Task, "outcome", lambda self: self.missing)
    monkeypatch.setattr(gaps.Gap, "outcome", lambda self: float(len(self.model)))
    numbers, page = systems.systems.build("stable-neural-sde").tables(tmp_path)
    rows = json.loads(numbers.read_text("utf-8"))
    models, sets = len(trained.MODELS), len(trained.SETS)
    assert len(rows) == 4 * models + 3 * sets + len(gaps.ALL)
    text = page.read_text("utf-8")
    assert text.count("| 0.000 | 0.300 | 0.500 | 0.700 |") == models
    assert "| latent | 5.000 | 5.000 | – | – |" in text
    assert "| motions | 5.000 | 5.000 | 3.000 | 6.000 |" in text

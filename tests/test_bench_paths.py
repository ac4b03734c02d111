"""`pathline bench paths`: every path gets the same network and batches, and a run is taken up."""

import json
import math

import pytest
import torch

import pathline as pl
from pathline.bench import Report
from pathline.bench.paths import SCALE, WAYS, _distances, compare, objectives
from pathline.core import noise
from pathline.fields import estimate_separation
from pathline.learn.recipe import Recipe
from pathline.learn.sources import Points
from pathline.paths import PFGMpp

DATA = Points(*(noise.normal(range(a, a + 100), (49,)) for a in (0, 100)))


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setattr("pathline.bench.paths.small_fashion_source", lambda: DATA)
    monkeypatch.setattr("pathline.bench.paths.cache_folder", lambda: tmp_path)
    monkeypatch.setattr("pathline.bench.paths.SAMPLES", 100)
    made = objectives(DATA)
    monkeypatch.setattr("pathline.bench.paths.objectives", lambda data: made)
    return monkeypatch


def test_what_is_trained_is_what_is_said():
    made = {
        name: Recipe(name, 1, {}, {"class": "MLP"}, table).matching().path
        for name, table in objectives(DATA).items()
    }
    assert made["kinetic_optimal"] == estimate_separation(DATA.points.double()).path()
    assert made["pfgmpp, D = 64"] == PFGMpp(dof=64.0) and made["edm"] == pl.EDM()
    assert made["cond_ot"] == pl.CondOT() and len(made) == 9


def test_a_run_compares_all_paths_and_is_taken_up(small, tmp_path):
    found = compare(nfe=[3, 5], steps=2)
    assert [report.name for report in found.reports] == ["paths-sliced", "paths-frechet"]
    for report in found.reports:
        assert len({row.by for row in report.rows}) == 9 * len(WAYS)
        assert all(math.isfinite(row.value) and row.value > 0 for row in report.rows)
        values = {(row.by, row.method): row.value for row in report.rows}
        first = next(bar for bar in report.bars if bar.text.startswith("vp_linear"))
        ratio = (
            values["vp_linear; euler, even in t", "5"] / values["cond_ot; euler, even in t", "5"]
        )
        assert first.measured == pytest.approx(ratio)
    small.setattr("pathline.bench.paths.train", None)  # nothing is trained again
    again = compare(nfe=[3, 5], steps=2)
    assert [r.rows for r in again.reports] == [r.rows for r in found.reports]
    written = found.save(tmp_path / "out")
    told = json.loads(written[0].read_text(encoding="utf-8"))
    assert Report.from_dict(told["reports"][0]).to_dict() == json.loads(
        json.dumps(found.reports[0].to_dict())
    )
    assert "kinetic_optimal" in found.table()


def test_evaluations_below_one_are_refused():
    with pytest.raises(pl.UsageError, match="counted from 1"):
        compare(nfe=[0])


def test_distances_see_the_deviation_of_samples():
    """x → 1.5 x moves every quantile by half of itself: a sliced distance of 0.5 E|z| at W1."""
    same = _distances(DATA.test_points, DATA)
    wide = _distances(1.5 * DATA.test_points, DATA)
    assert same["sliced"] < 1e-3 * SCALE and abs(same["frechet"]) < 1e-2 * SCALE
    variances = torch.linalg.eigvalsh(torch.cov(DATA.test_points.double().T)).clamp(min=0)
    moved = 0.25 * float(DATA.test_points.double().mean(0).square().sum() + variances.sum())
    assert wide["frechet"] == pytest.approx(SCALE * moved, rel=0.05)

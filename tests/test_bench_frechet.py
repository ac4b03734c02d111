"""Of `pathline bench solvers`: how near the pictures of the best come to real ones."""

import pytest
import torch

import pathline as pl
from pathline.bench.precision import frechet as looking
from pathline.bench.precision.measure import everybody, stamps
from pathline.bench.precision.problems import problem_of, rms
from pathline.bench.precision.report import Seen
from pathline.learn.quality.distances import frechet
from pathline.learn.quality.features import embed
from pathline.learn.quality.reference import load_reference, to_uint8
from pathline.learn.quality.subjects import subject_of

pytest.importorskip("torchmetrics")

OURS = "pathline", "dpmpp_2m", "focused"
FEW = 12


@pytest.fixture
def few(monkeypatch):
    """Twelve pictures instead of five hundred, converged in four evaluations."""
    monkeypatch.setattr(looking, "FRECHET_SIZE", FEW)
    monkeypatch.setattr(looking, "BATCH", FEW // 2)
    monkeypatch.setattr(looking, "ENOUGH", 4)
    problem = problem_of("fashion", 2)
    contestants = {c.key: c for c in everybody(problem)[0]}
    return problem, contestants[OURS]


def test_distances_are_those_of_a_plain_call_and_are_not_measured_twice(few, monkeypatch, tmp_path):
    problem, ours = few
    store = looking.distances(problem, {3: [ours]}, stamps(problem), tmp_path)
    model = problem.model
    subject = subject_of(model)
    seeds = range(looking.SEED, looking.SEED + FEW)
    names = model.details["classes"]
    drawn = pl.sample(
        model,
        seeds=seeds,
        label=[names[seed % len(names)] for seed in seeds],
        guide=pl.CFG(problem.settings["guidance"]),
        solver="dpmpp_2m",
        grid="focused",
        steps=3,
    )
    real = load_reference(subject).features["fashion-classifier/held_out"][:FEW]
    seen = embed(subject.network("fashion-classifier"), to_uint8(drawn.x))
    assert store.errors[OURS][3] == pytest.approx(frechet(real, seen), rel=0.01)  # by grey levels
    monkeypatch.setattr(looking, "learned", None)  # nothing is drawn any more
    again = looking.distances(problem, {3: [ours]}, stamps(problem), tmp_path)
    assert again.errors.keys() == store.errors.keys()
    assert again.errors[OURS][3] == pytest.approx(store.errors[OURS][3], rel=1e-3)


def test_parts_are_the_pictures_of_their_own_seeds():
    model = pl.load("fashion")
    whole = looking.learned(model, 6, looking.SEED)
    part = looking.learned(model, 2, looking.SEED + 4)
    assert torch.equal(whole.x[4:], part.x)
    with torch.no_grad():
        assert rms(whole.field(whole.x, 0.7).x0[4:] - part.field(part.x, 0.7).x0) < 1e-5


def test_a_table_has_what_was_seen():
    seen = Seen("eyes", 1.5, 20.0, {((*OURS,), 5): 31.25})
    lines = [" ".join(line) for line in seen.cells()]
    assert "5 pathline dpmpp_2m; focused 31.2" in lines and lines[-1].endswith("1.5")
    assert seen.to_dict()["distances"][0]["distance"] == 31.25


def test_only_where_looking_costs_little():
    assert looking.is_seen(problem_of("fashion", 1)) and not looking.is_seen(problem_of("m4-vp", 1))

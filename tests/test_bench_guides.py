"""Bench guides: the judge is right, peers see the same model, and who is missing is told."""

import json
import sys
from dataclasses import replace
from importlib import import_module

import pytest
import torch

from pathline.bench import guides as bench
from pathline.bench.guides import contestants, problems
from pathline.bench.peers import Absent, deepinv
from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.paths import EDM
from pathline.steer import MMPS, posterior

pytest.importorskip("sklearn", reason='it comes with the extra "pathline[data]"')
module = import_module("pathline.bench.guides")


@pytest.fixture(scope="module")
def pair():
    return problems.digits(2)


def test_exact_draws_are_judged_as_such(pair):
    """Mean within five errors of 64 draws of 64 correlated pixels, variance within a third."""
    for problem in pair:
        law, y = problem.field, problem.each
        x = posterior(law, problem.operator, y, problem.std).draw(range(10**7, 10**7 + len(y)))
        told = problem.judge(x)
        assert told["off"] < 5 * 100 / problem.draws**0.5
        assert told["spread"] == pytest.approx(100, abs=33)
        assert told["distance"] < 2 * problem.floor
        assert problem.judge(x + 1)["off"] > 100


def test_peers_ask_the_same_model_in_their_own_scale(pair):
    law, x = pair[0].field, torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor(0.4, dtype=torch.float64)
    alpha, sigma = law.path.alpha(t), law.path.sigma(t)
    exact = law(x.double(), t).x0
    torch.testing.assert_close(pair[0].denoised(x.double(), alpha, sigma), exact)
    half = pair[0].denoised(x.double() / 2, alpha / 2, sigma / 2)
    torch.testing.assert_close(half, exact)


def test_moment_matching_agrees_with_azula(pair):
    """The same conjugate gradients on the same system, azula's on its own schedule."""
    problem, t = pair[0], torch.tensor(0.5, dtype=torch.float64)
    try:
        denoiser = contestants._denoiser(problem)
        theirs = contestants.azula_mmps(problem, denoiser, iterations=6, solver="cg")
    except Absent as reason:
        pytest.skip(str(reason))
    x = noise.normal(range(len(problem.each)), (1, 8, 8), dtype=torch.float64)
    alpha, sigma = denoiser.schedule(t)
    made = theirs(x.flatten(1), t).mean.view_as(x)
    law = replace(problem.field, path=EDM(sigma_max=2000.0))
    guide = MMPS(problem.operator, problem.each, problem.std, iterations=6)
    ours = guide(law)(x / alpha, sigma / alpha / 2000).x0
    torch.testing.assert_close(made, ours, rtol=1e-6, atol=1e-6)


def test_deepinv_is_imported_without_torchvision_or_told():
    try:
        package = deepinv()
    except Absent as reason:
        assert "installed" in str(reason) or "cannot be imported" in str(reason)
        return
    assert package.sampling.DPS and "natsort" not in sys.modules


def test_a_run_tells_who_is_missing_and_is_saved(monkeypatch, tmp_path):
    def missing(name):
        raise Absent("not installed here")

    monkeypatch.setattr(contestants, "installed", missing)
    monkeypatch.setattr(contestants, "deepinv", lambda: missing("deepinv"))
    for name, value in (("DRAWS", 8), ("EXACT", 50)):
        monkeypatch.setattr(problems, name, value)
    monkeypatch.setattr(module, "RUNS", 8)
    found = bench(nfe=[8, 16], n=1)
    assert found.passed and len(found.reports) == 3
    told = found.table()
    assert "Left out: azula, not installed here" in told and "deepinv" in told
    by = {row.by for row in found.reports[0].rows}
    assert "pathline: ΠGDM" in by and "pathline: particles of ΠGDM" in by
    assert {row.by for row in found.reports[-1].rows} >= {"DPS", "classifier of noisy states"}
    files = found.save(tmp_path)
    assert json.loads(files[0].read_text())["passed"]
    with pytest.raises(UsageError, match="counted from 1"):
        bench(nfe=[0])


def test_too_few_passes_are_none():
    made = contestants.Contestant("x", "y", lambda p, n: torch.zeros(n), passes=4)
    assert made.drawn(None, 15) is None and len(made.drawn(None, 16)) == 4

"""`pathline bench solvers`: everybody is counted and measured alike, and a run goes on."""

import json
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch

import pathline as pl
from pathline import bench
from pathline.bench.peers import Absent
from pathline.bench.precision.measure import everybody, measure
from pathline.bench.precision.problems import problem_of, rms
from pathline.bench.precision.query import Query, Rehearsal
from pathline.bench.precision.report import Outcome
from pathline.fields.denoiser import Denoiser
from pathline.fields.problems import m4

pytest.importorskip("diffusers")
pytest.importorskip("azula")
if find_spec("k_diffusion") is None:  # imported whole it asks for much more than its samplers do
    pytest.skip("k_diffusion is not installed", allow_module_level=True)

measuring = import_module("pathline.bench.precision.measure")

FEW = {
    ("pathline", "dpmpp_2m", "log_snr"), ("pathline", "ddim", "log_snr"),
    ("pathline", "heun", "power"), ("pathline", "s3", "its own"),
    ("diffusers", "DPM++ 2M midpoint", "exponential"), ("diffusers", "DDIM", "trailing"),
    ("k-diffusion", "dpmpp_2m", "exponential"), ("azula", "DDIM", "VE"),
    ("azula", "Heun", "rectified"),
}  # fmt: skip


def few(problem):
    found, absent = everybody(problem)
    return [c for c in found if c.key in FEW], absent


@pytest.fixture
def problem():
    return problem_of("m4-vp", 8)


def test_one_method_of_two_libraries_has_one_error(problem):
    """DDIM on steps even in log σ/α: by azula's formula on a VE path, and by our plan."""
    found = {c.key: c for c in everybody(problem)[0]}
    ours, theirs = (
        found[key].run(Query(problem), 7)
        for key in (("pathline", "ddim", "log_snr"), ("azula", "DDIM", "VE"))
    )
    assert theirs.t == pytest.approx(problem.path.t_min, rel=1e-6)
    assert rms(ours.x - theirs.x) < 1e-6
    direct = pl.solve(problem.field, problem.x, solver="ddim", grid="log_snr", steps=7)
    assert torch.equal(ours.x, direct.x)


def test_evaluations_are_those_that_the_network_sees(problem):
    """Counted in the network itself, for everybody, at six evaluations."""
    seen = []

    def network(x, t):
        seen.append(len(x))
        return 0.5 * x

    counted = Denoiser(network, problem.path, view="x0")
    watched = problem_of("m4-vp", 1)
    watched = type(watched)(
        "counted", counted, counted, watched.x, watched.settings, True, watched.starts
    )
    rehearsal = Rehearsal(problem)
    for contestant in everybody(problem)[0][::23]:
        n = rehearsal.steps_for(contestant, 6)
        if n is None:
            continue
        query = Query(watched)
        query.start(problem.path.t_max)
        seen.clear()
        end = contestant.run(query, n)
        assert query.calls == 6 and len(seen) >= 6, contestant.key  # starts may cost some more
        assert end.x.shape == watched.x.shape


def test_an_interrupted_run_goes_on_to_the_same_numbers(problem, monkeypatch, tmp_path):
    monkeypatch.setattr(measuring, "everybody", few)
    whole, _ = measure(problem, [4, 6], tmp_path / "whole")
    work, left = measuring._Measuring.error, [7]

    def interrupted(self, *args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return work(self, *args)

    monkeypatch.setattr(measuring._Measuring, "error", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(problem, [4, 6], tmp_path / "part")
    left[0] = 1000
    again, _ = measure(problem, [4, 6], tmp_path / "part")
    assert left[0] == 1000 - (sum(map(len, whole.errors.values())) - 7)
    kept = [
        json.loads((tmp_path / f / "solvers-m4-vp.json").read_text()) for f in ("whole", "part")
    ]
    assert kept[0] == kept[1]
    assert again.errors.keys() == whole.errors.keys()


def test_a_report_says_what_was_measured(problem, monkeypatch, tmp_path):
    monkeypatch.setattr(measuring, "everybody", few)
    found = bench.solvers(["m4-vp"], [4, 6], 8, tmp_path)
    (outcome,) = found.outcomes
    assert isinstance(outcome, Outcome) and found.passed  # bars are held on networks only
    for n, best in outcome.recommended().items():
        assert best.error == min(
            e[n] for (by, *_), e in outcome.errors.items() if by == "pathline" and n in e
        )
    theirs = outcome.best(6, outcome.peers)
    mine = outcome.best(6, ["pathline"])
    assert outcome.bars[1].measured == mine.error / theirs.error
    paths = {path.suffix: path for path in found.save(tmp_path)}
    assert f"{mine.error:.3g}" in paths[".md"].read_text()
    assert f"{theirs.error:.3g}" in paths[".html"].read_text()
    assert "k-diffusion" in found.table() and json.dumps(found.to_dict())


def with_a_step_to_data(problem):
    found, absent = everybody(problem)
    more = ("pathline", "dpmpp_2m", "log_snr, then data")
    return [c for c in found if c.key in FEW or c.key == more], absent


def test_on_a_network_the_best_of_the_screenings_go_on(problem, monkeypatch):
    """All are measured at 4 and 6, the better samplers at 12, and the best alone at 8; the better
    samplers at 14 and 20, also with a step to data; the best of either alone at 18."""
    converged = problem.converged()
    costly = replace(problem, is_cheap=False)
    monkeypatch.setattr(type(costly), "converged", lambda self: converged)
    monkeypatch.setattr(measuring, "everybody", with_a_step_to_data)
    monkeypatch.setattr(measuring, "KEPT", 1)
    monkeypatch.setattr(measuring, "LAST", 1)
    store, _ = measure(costly, [4, 6, 8, 12, 14, 18, 20], None)
    ours = {key: e for key, e in store.errors.items() if key[0] == "pathline"}

    def at(nfe):
        return {key for key, e in ours.items() if nfe in e}

    def best(nfe):
        return min(at(nfe), key=lambda key: ours[key][nfe])

    assert at(4) == at(6) and len(at(6)) == 3
    left = sorted(at(6), key=lambda key: ours[key][6])[:2]  # the better half of three samplers
    late = min(left, key=lambda key: ours[key][12])
    assert at(8) == {best(4), best(6), late} and at(12) == {*left, *at(8)}
    assert {key[1] for key in at(14)} == {key[1] for key in left}
    to_data = ("pathline", "dpmpp_2m", "log_snr, then data")
    assert to_data not in at(6) and at(14) - at(6) <= {to_data}
    assert at(20) == at(14) and at(18) == {best(14), best(20)}


def test_a_network_is_screened_on_its_first_noises(problem, monkeypatch, tmp_path):
    """All are screened on four noises at 6 and the better half at 8, the best go on to all eight;
    nothing is asked twice."""
    converged = problem.converged()
    costly = replace(problem, is_cheap=False, few=problem_of("m4-vp", 4))
    monkeypatch.setattr(type(costly), "converged", lambda self: converged)
    monkeypatch.setattr(measuring, "everybody", few)
    monkeypatch.setattr(measuring, "KEPT", 1)
    store, _ = measure(costly, [6, 8], tmp_path)
    ours = [key for key in store.screened if key[0] == "pathline"]
    ours.sort(key=lambda key: store.screened[key][6])
    assert [set(store.screened[key]) for key in ours] == [{6, 8}, {6, 8}, {6}]
    best, late = ours[0], min(ours[:2], key=lambda key: store.screened[key][8])
    assert {key for key in store.errors if key[0] == "pathline"} == {best, late}
    (contestant,) = [c for c in everybody(problem)[0] if c.key == best]
    end = contestant.run(Query(problem), Rehearsal(problem).steps_for(contestant, 6))
    assert store.errors[best][6] == pytest.approx(rms(end.x - converged.stop), rel=1e-3)
    assert store.screened[best][6] == pytest.approx(rms((end.x - converged.stop)[:4]), rel=1e-3)
    each = sorted(rms(x) for x in end.x - converged.stop)
    assert store.medians[best][6] == pytest.approx((each[3] + each[4]) / 2, rel=1e-3)
    monkeypatch.setattr(measuring._Measuring, "error", None)
    again, _ = measure(costly, [6, 8], tmp_path)
    assert again.errors.keys() == store.errors.keys()
    assert again.screened.keys() == store.screened.keys()


def test_a_library_that_is_not_here_is_told(problem, monkeypatch):
    def missing():
        raise Absent("not installed here")

    monkeypatch.setitem(measuring._IMPORTS, "azula", missing)
    found, absent = everybody(problem)
    assert {c.by for c in found} == {"pathline", "diffusers", "k-diffusion"}
    assert 'pip install "pathline[bench]"' in absent["azula"]


def test_bad_input_is_told():
    with pytest.raises(pl.UsageError, match="counted from 1"):
        bench.solvers(["m4-vp"], [0])
    with pytest.raises(pl.UsageError, match="at least 1 sample"):
        bench.solvers(["m4-vp"], [5], 0)
    with pytest.raises(pl.UsageError, match="m4-vp"):
        bench.solvers(["m4-vq"], [5])


def test_a_network_is_converged_noise_by_noise(monkeypatch):
    """Steps are doubled for those noises alone that still move, and the goal is the exact end."""
    problems = import_module("pathline.bench.precision.problems")
    law = m4(pl.CondOT())
    network = pl.Denoiser(
        lambda x, t: law.evaluate(x, t, {}), law.path, law.view, shape=(3,), name="m4-network",
        details={"weights": {"sha256": "none"}},
    )  # fmt: skip
    problem = problems.learned(network, 8)
    runs = []
    rk4 = problems._rk4

    def counted(part, steps):
        runs.append((steps, len(part.x)))
        return rk4(part, steps)

    monkeypatch.setattr(problems, "_rk4", counted)
    monkeypatch.setattr(problems, "_STEPS", 4)
    found = problems._converged_network(problem)
    assert runs[0] == (4, 8) and [steps for steps, _ in runs] == [
        4 * 2**i for i in range(len(runs))
    ]
    assert runs[-1][1] < 8  # not all of them want as many
    exact = pl.solve(law, problem.x.double(), solver="rk4", grid=pl.grids.log_snr(500)).x
    off = problems.each_rms(found.stop.double() - exact)
    assert off.max() < problems._CLOSE  # each within what its last doubling moved
    assert found.difference < problems._CLOSE

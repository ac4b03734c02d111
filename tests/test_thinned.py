"""Thinned guidance: which halves are evaluated, what stands for the others, and how it is found."""

import dataclasses
import json
import warnings

import pytest
import torch
from tiny_model import tiny_model
from typer.testing import CliRunner

import pathline as pl
from pathline.adapters.choice import plain_solver
from pathline.cli.main import app
from pathline.core import noise
from pathline.fields.views import convert
from pathline.learn.checkpoint import find_folder, load_model, model_names
from pathline.solvers import SolverSchedule, ThinnedGuidance, grids, null_start
from pathline.solvers.null_start import NullStart, measured_null_start
from pathline.solvers.saved import GUIDED, saved_counts, saved_schedule, schedule_file
from pathline.speed import speeds
from pathline.speed.descent import Descent, descend
from pathline.speed.goal import bench_of
from pathline.speed.guided import REPORT, measured_ratios, spendings, thinned, tune_guided
from pathline.speed.metrics import Endpoint
from pathline.speed.tune import TuneSettings
from pathline.steer import Chain

VP, OT = pl.VPLinear(), pl.CondOT()
D = 3
AWAY = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
SLOPE = noise.normal([5], (D, D), dtype=torch.float64)[0]


def shrinking(t):
    """How the difference of both halves depends on time; it is AWAY times this."""
    return 0.2 + t**2


class Toy(torch.nn.Module):
    """x̂_∅ = tanh of the state, linear at t_max; x̂_c = x̂_∅ + kind · shrinking(t) · AWAY."""

    def __init__(self, path, view):
        super().__init__()
        self.path, self.view, self.rows = path, view, 0
        self.like = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64), requires_grad=False)

    def forward(self, x, t, kind):
        self.rows += len(x)
        t = t.double()
        free = torch.where((t == self.path.t_max)[:, None], 0.3 + x @ SLOPE, torch.tanh(x))
        clean = free + kind[:, None] * shrinking(t)[:, None] * AWAY
        return convert(self.path, "x0", self.view, x, clean, t)


def told(kind):
    """The condition as the network takes it."""
    return {"kind": torch.as_tensor(kind, dtype=torch.float64)}


def toy(path=VP, view="x0", **details):
    null = {"kind": torch.zeros(1, dtype=torch.float64)}
    return pl.Denoiser(
        Toy(path, view), path, view, label=lambda t: t, null=null, encode=told, shape=(D,),
        details=details,
    )  # fmt: skip


def exact_start():
    """What the toy says of noise alone, in full rank."""
    return NullStart(torch.full((D,), 0.3, dtype=torch.float64), SLOPE, torch.eye(D).double(), 0, 1)


def guided(model, n=4, speed=None, solver="dpmpp_2m", steps=6, weight=2.5, **rest):
    """A solve, the samples, and how often the network was asked for one."""
    before = model.network.rows
    sol = pl.sample(
        model, n, solver=solver, steps=steps, guide=pl.CFG(weight), speed=speed,
        dtype=torch.float64, kind=torch.ones(n, dtype=torch.float64), **rest,
    )  # fmt: skip
    asked = (model.network.rows - before) / n
    assert sol.stats.network_calls == asked
    return sol


def ratios_of(plan, whole):
    """The toy's own: how its difference at each evaluation compares with the last whole one's."""
    at = shrinking(plan.instants[list(plan.evaluated)])
    return (*[None] * whole, *(at[whole:] / at[whole - 1]).tolist())


# --- the policy --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path,view", [(VP, "x0"), (VP, "eps"), (VP, "velocity"), (OT, "x0"), (OT, "velocity")]
)
@pytest.mark.parametrize("whole", [1, 3])
def test_with_the_ratios_that_it_has_nothing_changes(path, view, whole):
    """In every view: the difference is that of the data, which other views scale anew."""
    model = toy(path, view)
    full = guided(model, solver="unipc")
    plan = pl.solvers.UniPC().plan(path, grids.log_snr(6))
    half = guided(model, speed=ThinnedGuidance(ratios_of(plan, whole)), solver="unipc")
    torch.testing.assert_close(half.x, full.x, rtol=1e-12, atol=1e-12)
    assert (full.stats.nfe, full.stats.network_calls) == (6, 12)
    assert (half.stats.nfe, half.stats.network_calls) == (6, 6 + whole)
    assert pl.explain(model, 2, guide=pl.CFG(2.0), solver="unipc", steps=6,
                      speed=ThinnedGuidance(ratios_of(plan, whole)),
                      kind=torch.ones(2)).network_calls == 6 + whole  # fmt: skip


def test_whole_evaluations_are_those_of_plain_guidance_to_the_bit():
    model = toy()
    assert torch.equal(guided(model, speed=ThinnedGuidance([None] * 6)).x, guided(model).x)


@pytest.mark.filterwarnings("ignore:the guidance is switched")
def test_no_ratio_is_guidance_in_an_interval():
    plan = pl.DPMpp().plan(VP, grids.log_snr(6))
    at = plan.instants[list(plan.evaluated)]
    model, speed = toy(), ThinnedGuidance([None] * 3 + [0.0] * 3)
    inside = pl.CFG(2.5, interval=(float(at[2]), 1.0))
    within = pl.sample(model, 4, steps=6, guide=inside, dtype=torch.float64,
                       kind=torch.ones(4, dtype=torch.float64))  # fmt: skip
    torch.testing.assert_close(guided(model, speed=speed).x, within.x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("view", ["x0", "velocity"])
def test_what_is_known_of_noise_alone_saves_a_half(view):
    model = toy(view=view, null_start=exact_start())
    full = guided(model)
    speed = ThinnedGuidance([None] * 6, null_start=True)
    half = guided(model, speed=speed)
    torch.testing.assert_close(half.x, full.x, rtol=1e-11, atol=1e-11)
    assert half.stats.network_calls == 11 == speed.halves


def test_other_guides_of_two_halves_are_thinned_too():
    plan = pl.DPMpp().plan(VP, grids.log_snr(6))
    model, kind = toy(), torch.ones(2, dtype=torch.float64)
    guide = pl.steer.APG(3.0, parallel=0.3)
    full, half = (
        pl.sample(model, 2, steps=6, guide=guide, speed=speed, dtype=torch.float64, kind=kind)
        for speed in (None, ThinnedGuidance(ratios_of(plan, 2)))
    )
    torch.testing.assert_close(half.x, full.x, rtol=1e-12, atol=1e-12)


def test_a_policy_is_told_and_rebuilt():
    speed = ThinnedGuidance((None, 0.5), null_start=True)
    assert speeds.rebuild(json.loads(json.dumps(speed.describe()))) == speed
    sol = guided(toy(), speed=ThinnedGuidance([None] * 5 + [0.3]))
    told = json.loads(sol.receipt.to_json())["recipe"]["speed"]
    assert speeds.rebuild(told) == ThinnedGuidance([None] * 5 + [0.3])


@pytest.mark.filterwarnings("ignore:the guidance is switched")
def test_what_cannot_be_is_refused(tmp_path):
    model = toy(folder=str(tmp_path))
    for ratios, says in (
        ([0.5, None], "the first evaluation has no difference"),
        ([None, float("nan")], "finite"),
        ([None, "much"], "ratios are numbers"),
    ):
        with pytest.raises(pl.UsageError, match=says):
            ThinnedGuidance(ratios)
    with pytest.raises(pl.UsageError, match="2 ratios were given for 6 evaluations"):
        guided(model, speed=ThinnedGuidance([None, 0.1]))
    six = ThinnedGuidance([None] * 6)
    kind = torch.ones(2, dtype=torch.float64)
    for guide in (None, pl.CFG(2.0, interval=(0.2, 0.8))):
        with pytest.raises(pl.UsageError, match="no unconditional half to leave out"):
            pl.sample(model, 2, steps=6, guide=guide, speed=six, kind=kind, dtype=torch.float64)
    known = ThinnedGuidance([None] * 6, null_start=True)
    with pytest.raises(pl.UsageError, match="is not known; measure it: pathline tune"):
        guided(model, speed=known)
    dataclasses.replace(exact_start(), weights="others").save(tmp_path / null_start.FILE)
    with pytest.raises(pl.UsageError, match="is of other weights"):
        guided(toy(folder=str(tmp_path), weights={"sha256": "mine"}), speed=known)
    late = grids.log_snr(6, start=0.7)
    with pytest.raises(pl.UsageError, match="known at t_max alone"):
        pl.solve(model, torch.ones(2, D).double(), grid=late, guide=pl.CFG(2.0), speed=known,
                 kind=kind)  # fmt: skip


def fitted_at(weight, **about):
    """A thinned schedule of three evaluations that says which guidance it was fitted to."""
    plain = SolverSchedule.of(pl.DDIM(), VP, grids.log_snr(3))
    guide = {"name": "cfg", "weight": weight}
    return dataclasses.replace(plain, ratios=[None, None, 0.5], about={"guide": guide, **about})


@pytest.mark.parametrize("as_guide", [pl.CFG, lambda weight: Chain((pl.CFG(weight),))])
def test_guidance_that_a_schedule_was_not_fitted_to_is_told(as_guide):
    """Once a solve, at the line that asked for it."""
    for weight, n in ((2.0, 0), (4.0, 1)):
        made, guide = fitted_at(2.0), as_guide(weight)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            pl.sample(toy(), 1, solver=made, guide=guide, dtype=torch.float64, kind=[1.0])
        assert [each.filename for each in told] == [__file__] * n
        assert all("weight 2, and is run with 4" in str(each.message) for each in told)


def test_schedules_that_tell_no_guidance_warn_of_none():
    for about in ({"guide": None}, {"guide": {"name": "apg", "weight": 2.0}}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            guided(toy(), solver=fitted_at(2.0, **about), steps=None, weight=4.0)


def test_what_is_not_finite_is_said():
    model, six = toy(), ThinnedGuidance([None] * 5 + [0.3])
    kind = torch.tensor([1.0, float("nan")], dtype=torch.float64)
    with pytest.raises(pl.NonFiniteError, match="the field's output is not finite at t = 1"):
        pl.sample(model, 2, steps=6, guide=pl.CFG(2.0), speed=six, kind=kind, dtype=torch.float64)


# --- what a model says of noise ------------------------------------------------------------------


def test_what_is_linear_is_found_and_kept(tmp_path):
    """The penalty, 30 against 3584 noises of variance 1, shrinks the slope by 1 %."""
    found = measured_null_start(toy(), rank=2, n=4096)
    full = measured_null_start(toy(), rank=D, n=4096)
    x = noise.normal(range(64), (D,), dtype=torch.float64)
    said = 0.3 + x @ SLOPE
    assert float((full(x) - said).square().mean().sqrt()) < 0.02 * float(said.std())
    assert full.error < 0.02 * full.spread
    left_out = torch.linalg.svdvals(SLOPE)[-1] / D**0.5
    assert found.error == pytest.approx(float(left_out), rel=0.1)
    again = NullStart.load(found.save(tmp_path / null_start.FILE))
    assert torch.equal(again(x), found(x)) and again.error == found.error
    with pytest.raises(pl.UsageError, match="null condition"):
        measured_null_start(dataclasses.replace(toy(), null=None))
    (tmp_path / "other.safetensors").write_bytes(b"")
    with pytest.raises(pl.UsageError, match="cannot be read"):
        NullStart.load(tmp_path / "other.safetensors")


# --- schedules -----------------------------------------------------------------------------------


def goal(model, n=8, weight=2.5):
    """The toy, guided, and where many steps lead from n noises."""
    field, kind = pl.CFG(weight)(model), torch.ones(n, dtype=torch.float64)
    x = noise.normal(range(n), (D,), dtype=torch.float64)
    cond = field.condition({"kind": kind}, n)
    ends = pl.solve(field, x, solver="rk4", grid=grids.log_snr(100), kind=kind).x
    return Endpoint(field, x, ends, cond)


def plain(n=6):
    return SolverSchedule.of(pl.DPMpp(), VP, grids.log_snr(n))


def test_ratios_are_measured():
    bench = goal(toy())
    found = measured_ratios(bench, plain(), 2)
    assert found[:2] == (None, None)
    assert found[2:] == pytest.approx(ratios_of(plain().plan(), 2)[2:], rel=1e-9)


def test_a_schedule_knows_what_it_costs_and_is_saved_with_its_ratios(tmp_path):
    bench = goal(toy(null_start=exact_start()))
    made = thinned(bench, plain(), 3)
    assert made.nfe == 4 and made.speed.halves == 6 + 3 - 1  # as four whole ones
    assert SolverSchedule.load(made.save(tmp_path / "a.json")) == made
    assert SolverSchedule.from_dict(plain().to_dict()).speed is None
    torch.testing.assert_close(bench(made), bench(plain()), rtol=1e-9, atol=1e-12)
    for change, says in (
        ({"ratios": made.ratios[:-1]}, "5 ratios were given for 6 evaluations"),
        ({"ratios": ()}, "null_start and heads are for schedules"),
    ):
        with pytest.raises(pl.UsageError, match=says):
            dataclasses.replace(made, **change)


def test_a_memory_of_halves_changes_nothing():
    bench = goal(toy(null_start=exact_start()))
    made, remembering = thinned(bench, plain(), 3), bench.remembering()
    for schedule in (made, plain(), made):
        assert torch.equal(remembering.samples(schedule), bench.samples(schedule))


def test_a_descent_finds_the_ratios():
    """With steps enough, what is left of the error is the guess of the differences."""
    bench, exact = goal(toy()), ratios_of(plain(12).plan(), 3)
    wrong = (*[None] * 3, *(0.7 * ratio for ratio in exact[3:]))
    begin = dataclasses.replace(plain(12), ratios=wrong)
    end = descend(bench, Descent(begin, power=2.0), 600)
    right = bench(dataclasses.replace(begin, ratios=exact))
    assert bench(begin) > 3 * right and end.score < right


def test_a_saved_one_is_used_by_name(tmp_path):
    model = toy(folder=str(tmp_path), null_start=exact_start())
    made = thinned(goal(model), plain(), 3)
    made.save(schedule_file(tmp_path, 4, GUIDED))
    assert saved_counts(tmp_path, GUIDED) == (4,) and saved_counts(tmp_path) == ()
    found = guided(model, solver=GUIDED, steps=4)
    assert found.stats.network_calls == 8
    assert torch.equal(found.x, guided(model, solver=made, steps=None).x)
    assert torch.equal(found.x, guided(model, solver=made, steps=None, speed=made.speed).x)
    with pytest.raises(pl.UsageError, match="by itself; leave speed out"):
        guided(model, solver=GUIDED, steps=4, speed=pl.speed.Cadence(2))
    with pytest.raises(pl.UsageError, match="find some with: pathline tune .* --guidance W --thin"):
        saved_schedule(toy(folder=str(tmp_path / "none")), 4, GUIDED)


def test_a_pipeline_cannot_leave_halves_out():
    made = dataclasses.replace(plain(), ratios=[None] * 5 + [0.1])
    with pytest.raises(pl.UsageError, match="evaluates both halves"):
        plain_solver(made)


# --- tuning --------------------------------------------------------------------------------------


def test_what_may_be_spent():
    for nfe in range(3, 12):
        assert all(n + m - 1 == 2 * nfe and 3 <= m < n for n, m in spendings(nfe))
    assert spendings(2) == []


def test_tuning_finds_better_ones_and_goes_on_from_its_files(tmp_path, monkeypatch):
    model = toy()
    bench = bench_of(model, pl.CFG(2.5), {"kind": [1.0]}, {"kind": [1.0]}, (8, 16), 64)
    settings = TuneSettings(budget=150, n_train=8, n_test=16)
    how = {"out": tmp_path / "model", "work": tmp_path / "work"}
    (found,) = tune_guided(bench, [4], settings, **how)
    assert found.found < 0.9 * found.fixed_error  # of the best whole evaluations at that cost
    schedule = SolverSchedule.load(schedule_file(tmp_path / "model", 4, GUIDED))
    assert schedule == found.schedule and schedule.nfe == 4 and schedule.null_start
    assert NullStart.load(tmp_path / "model" / null_start.FILE).spread > 0
    report = json.loads((tmp_path / "model" / "schedules" / REPORT).read_text())
    assert [each["nfe"] for each in report["tuned"]] == [4]
    before = model.network.rows
    assert tune_guided(bench, [4], settings, **how) == [found]
    assert model.network.rows == before  # what is done is read
    more = dataclasses.replace(settings, budget=80)
    monkeypatch.delattr("pathline.speed.guided.thinned")  # nothing begins anew
    (further,) = tune_guided(bench, [4], more, **how)
    assert further.found < 1.05 * found.found  # chosen on other noises than these
    with pytest.raises(pl.UsageError, match="3 or more"):
        tune_guided(bench, [2], settings, **how)


def test_the_command_finds_some_and_samples_with_them(tmp_path, monkeypatch):
    tiny_model(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATHLINE_CACHE", str(tmp_path / "cache"))

    def run(*words):
        return CliRunner().invoke(app, [str(word) for word in words])

    few = ("tune", "tiny", "--thin", "--budget", 10, "-n", 2, "--reference", 4, "--nfe", 3)
    refused = run(*few, "--guidance", 1)
    assert refused.exit_code == 2 and "guidance by contrast" in refused.output.replace("\n", " ")
    outcome = run(*few, "--guidance", 2)
    assert outcome.exit_code == 0, outcome.output
    assert "--solver s3_guided --steps 3" in outcome.output.replace("\n", " ")
    asked = ("sample", "tiny", "red heart", "--solver", "s3_guided", "--guidance", 2)
    for words in ((*asked, "--steps", 3, "-o", "a.png"), ("replay", "a.png", "-o", "b.png")):
        outcome = run(*words)
        assert outcome.exit_code == 0, outcome.output
    assert "identical" in outcome.output
    outcome = run(*asked, "--steps", 3, "--speed", "cadence")
    assert outcome.exit_code == 2 and "leave --speed out" in outcome.output


# --- what is shipped -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in model_names() if saved_counts(find_folder(n), GUIDED)])
def test_shipped_ones_are_of_the_shipped_weights_and_better_than_whole_ones(name):
    folder, model = find_folder(name), load_model(name)
    report = json.loads((folder / "schedules" / REPORT).read_text(encoding="utf-8"))
    weights = model.details["weights"]["sha256"]
    assert report["weights"] == weights == NullStart.load(folder / null_start.FILE).weights
    assert [each["nfe"] for each in report["tuned"]] == list(saved_counts(folder, GUIDED))
    for each in report["tuned"]:
        schedule = saved_schedule(model, each["nfe"], GUIDED)
        assert schedule.path == model.path and schedule.about["error"] == each["found"]
        assert each["found"] < each["fixed_error"]

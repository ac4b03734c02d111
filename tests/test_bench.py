"""Benchmarks: everybody computes the same, and what is told is what was measured.

No test here times anything.
"""

import json
import sys
from importlib import import_module
from itertools import count
from pathlib import Path

import pytest
import torch

import pathline as pl
from pathline.bench import BENCHES, Bar, Report, Row, overhead, peers, timing
from pathline.bench.kept import kept
from pathline.bench.overhead import BARE, DIFFUSERS, GUIDED, OURS, contestants, methods
from pathline.bench.peers import PATH, Absent, Case, azula, diffusers_steps, k_diffusion
from pathline.bench.timing import Run, interleaved
from pathline.core import UsageError

COMMITTED = Path(__file__).parents[1] / "benchmarks/overhead.json"


def network(x):
    """Depends on the state, so that an error anywhere would show in the result."""
    return x.tanh() + 0.1 * x.mean(1, keepdim=True)


def two_networks(both):
    """What guidance blends: another answer for the second half of the batch."""
    free, bound = both.chunk(2)
    return torch.cat((network(free), 1.2 * network(bound)))


def case(weight=None, steps=10):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    return Case(x, network if weight is None else two_networks, steps, weight)


def result(run):
    if run.before is not None:
        run.before()
    with torch.no_grad():
        return run.call()


def agree(ours, theirs, tolerance):
    assert (ours - theirs).abs().max() <= tolerance * ours.abs().max()


# Everybody computes the same


WEIGHTS = pytest.mark.parametrize("weight", [None, 3.0])


@WEIGHTS
@pytest.mark.parametrize("what", methods())
def test_the_bare_arithmetic_gives_our_result(what, weight):
    found = dict(contestants(methods()[what], case(weight)))
    suffix = "" if weight is None else GUIDED
    # a few roundings of ten steps, through 1/α ≤ 160
    agree(result(found[OURS + suffix]), result(found[BARE + suffix]), 1e-11)


@WEIGHTS
@pytest.mark.parametrize("what", methods())
def test_diffusers_gives_our_result(what, weight):
    """Its states are float32. At order 3 it has half of a derivative, and is near us only."""
    method = methods()[what]
    if what in ("Euler", "Heun"):
        method = method._replace(grid=their_flow_grid)
    found = dict(contestants(method, case(weight)))
    suffix = "" if weight is None else GUIDED
    theirs = found[DIFFUSERS + suffix]
    if isinstance(theirs, Absent):
        pytest.skip(str(theirs))
    tolerance = 0.05 if what == "++3M" else 2.0**-18  # a few roundings in each of ten steps
    agree(result(found[OURS + suffix]), result(theirs).double(), tolerance)


def their_flow_grid(n):
    """Theirs goes to σ = 1/1000 first, and then from there to data."""
    sigmas = torch.linspace(1, 1e-3, n, dtype=torch.float64)
    return pl.grids.times(sigmas.tolist(), last="denoise")


def test_set_timesteps_changes_what_is_timed_and_not_the_result():
    build = diffusers_steps("DDIMScheduler", clip_sample=False)
    both = diffusers_steps("DDIMScheduler", clip_sample=False, prepares=True)
    try:
        apart, together = build(case()), both(case())
    except Absent as reason:
        pytest.skip(str(reason))
    assert apart.before is not None and together.before is None
    assert torch.equal(result(apart), result(together))


def on_their_path(solver, steps=10):
    """Ours, on the path that azula and k-diffusion are run on, with a network that says x̂_0."""
    model = pl.Denoiser(lambda x, t: network(x), PATH, view="x0")
    grid = pl.grids.uniform(steps, start=1.0, end=0.0)
    return pl.solve(model, case().x, solver=solver, grid=grid).x


FULL = dict(expansion="taylor", final="full")


@pytest.mark.parametrize(
    "peer, solver, tolerance",
    [
        (azula("EulerSampler"), pl.DDIM(), 1e-5),
        (azula("xEABSampler", order=2), pl.DPMpp(order=2, **FULL), 1e-5),
        (azula("HeunSampler"), pl.Heun(view="eps"), 1e-5),
        (k_diffusion("sample_euler"), pl.DDIM(), 1e-12),
        (k_diffusion("sample_dpmpp_2m"), pl.DPMpp(order=2, final="full"), 1e-12),
        (k_diffusion("sample_heun"), pl.Heun(view="eps"), 1e-12),
    ],
)
def test_azula_and_k_diffusion_give_our_result(peer, solver, tolerance):
    """azula's times are float32, and its result is exact to a few of their roundings."""
    try:
        theirs = result(peer(case()))
    except Absent as reason:
        pytest.skip(str(reason))
    agree(on_their_path(solver), theirs, tolerance)


def test_a_missing_peer_is_told_with_its_reason(monkeypatch):
    def missing(name):
        raise Absent(f"{name} is not installed here")

    monkeypatch.setattr(peers, "installed", missing)
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    found = dict(contestants(methods()["++2M"], case()))
    assert str(found[DIFFUSERS]) == "diffusers is not installed here"
    assert str(found["azula"]) == "azula.denoise is not installed here"
    assert isinstance(found["k-diffusion"], Absent) and isinstance(found[OURS], Run)


def test_importing_samplers_alone_leaves_no_stand_in_behind():
    before = {name: sys.modules.get(name) for name in ("torchvision", "k_diffusion")}
    try:
        k_diffusion("sample_euler")(case())
    except Absent as reason:
        pytest.skip(str(reason))
    assert {name: sys.modules.get(name) for name in before} == before


# Timing


def test_the_median_over_the_rounds_of_the_best_of_each(monkeypatch):
    """A clock that only the runs move: their durations are known, and so is the answer."""
    now = 0
    durations = {"a": iter([9, 5, 3, 8, 8, 4, 7]), "b": count(1)}

    def run(key):
        def call():
            nonlocal now
            now += next(durations[key])

        return call

    def untimed():
        nonlocal now
        now += 1000

    monkeypatch.setattr(timing, "thread_time", lambda: now)
    runs = {"a": Run(run("a"), untimed), "b": Run(run("b"))}
    # the first of each is not counted; a: best of (5, 3), (8, 8), (4, 7); b: (2, 3), (4, 5), (6, 7)
    assert interleaved(runs, range(3), repeats=2) == {"a": 4, "b": 4}


# Reports


def report(*bars):
    rows = [Row("DDIM", "ours", 2.0), Row("DDIM", "theirs", 10.5), Row("Heun", "ours", 3.25)]
    rows.append(Row("Heun", "others", None, "not installed here"))
    return Report("speed", "Microseconds.", rows, bars, {"steps": 3}, ("A note.",), {"date": "now"})


def test_a_report_says_who_is_missing_and_which_bar_is_not_kept():
    kept, broken, told = Bar("a / b", 0.19, 0.2), Bar("c / d", 2.5, 2.0), Bar("e / f", 9.0)
    assert report(kept, told).passed and not report(kept, broken).passed
    for text in (report(kept, broken, told).table(), report(kept, broken, told).markdown()):
        assert "at most 0.2: kept" in text and "at most 2: NOT KEPT" in text
        assert "Left out: others, not installed here." in text and "A note." in text
    assert "| ours | 2.0 | 3.2 |" in report().markdown()
    assert "| theirs | 10.5 |  |" in report().markdown()


def test_a_report_survives_json_and_is_written_whole(tmp_path):
    made = report(Bar("a / b", 0.19, 0.2), Bar("e / f", 9.0))
    data, page = made.save(tmp_path / "deep")
    again = Report.from_dict(json.loads(data.read_text(encoding="utf-8")))
    assert again.to_dict() == json.loads(json.dumps(made.to_dict()))
    assert page.read_text(encoding="utf-8") == again.markdown() == made.markdown()


def test_overhead_measures_everybody_on_one_thread_and_restores_them():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        made = BENCHES["overhead"](steps=3, rounds=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    told = {(row.method, row.by) for row in made.rows}
    for what in methods():
        for suffix in ("", GUIDED):
            assert {
                (what, BARE + suffix),
                (what, OURS + suffix),
                (what, DIFFUSERS + suffix),
            } <= told
    assert {"azula", "k-diffusion"} <= {by for _, by in told}
    assert all((row.value is None) == (row.skipped is not None) for row in made.rows)
    values = {(row.method, row.by): row.value for row in made.rows}
    bar = made.bars[0]
    assert bar.text == f"DDIM: {OURS} / {BARE}" and bar.limit == 2.0
    assert bar.measured == values["DDIM", OURS] / values["DDIM", BARE]


@pytest.mark.parametrize("steps, rounds", [(2, 1), (3, 0)])
def test_too_few_steps_or_rounds_are_refused(steps, rounds):
    with pytest.raises(UsageError, match="at least 3 steps and 1 round"):
        overhead(steps, rounds)


def test_the_committed_table_keeps_the_bars_and_its_page_is_made_from_it():
    content = json.loads(COMMITTED.read_text(encoding="utf-8"))
    committed = Report.from_dict(content)
    assert committed.passed and content["passed"]
    assert {bar.limit for bar in committed.bars} == {2.0, 0.2, None}
    assert COMMITTED.with_suffix(".md").read_text(encoding="utf-8") == committed.markdown()
    assert {row.method for row in committed.rows} == set(methods())


def test_tensors_of_a_run_are_made_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("pathline.bench.kept.cache_folder", lambda: tmp_path)
    made = count()

    def make():
        return {"x": torch.arange(6).reshape(2, 3).T + next(made)}

    first = kept("bench", [1, "a"], make)["x"]
    assert torch.equal(kept("bench", [1, "a"], make)["x"], first) and next(made) == 1
    assert not torch.equal(kept("bench", [2, "a"], make)["x"], first)


def test_sde_gives_everybody_the_steps_that_an_error_asks_for(monkeypatch):
    pytest.importorskip("torchsde")
    bench = import_module("pathline.bench.sde")
    peer = import_module("pathline.bench.sde_torchsde")
    monkeypatch.setattr(bench, "LEVELS", (0.1,))
    monkeypatch.setattr(bench, "LADDER", (2, 4, 8))
    monkeypatch.setattr(bench, "JAX", "no such library")  # it compiles for each number of steps
    monkeypatch.setattr(peer, "REFERENCE", 128)
    report = bench.sde(rounds=1)
    limits = [bar.limit for bar in report.bars]
    assert limits.count(bench.AT_MOST) == 6 and limits.count(None) == 2
    motion, net = bench.problems()
    assert peer.error(motion, "srk", 8) < 0.02 < peer.error(motion, "milstein", 8)
    for error in (bench.our_error, bench.our_gradient_error):  # order 1.5 beside order one
        assert error(net, "slow_rk", 8) < 0.2 * error(net, "heun", 8)
    assert peer.error(net, "srk", 16) < 0.5 * peer.error(net, "heun", 16)  # by hand, the same law
    assert bench.fitted(lambda n: 1 / n, 0.3) == 4 and bench.fitted(lambda n: 1.0, 0.3) is None

"""Heads on a network's last layer, and schedules that are fitted by gradient."""

import json
import threading
from dataclasses import replace

import pytest
import torch
from tiny_model import tiny_model
from torch import nn
from typer.testing import CliRunner

import pathline as pl
from pathline.cli.main import app
from pathline.core import noise
from pathline.core.errors import PathlineError
from pathline.fields.denoiser import with_details
from pathline.fields.views import convert
from pathline.solvers import DPMpp, SolverSchedule, ThinnedGuidance, UniPC, grids
from pathline.solvers.executors import Compiled
from pathline.solvers.headed import Headed
from pathline.solvers.heads import (
    Heads,
    heads_file,
    heads_of,
    new_heads,
    scalable,
)
from pathline.solvers.saved import GUIDED, schedule_file
from pathline.speed.fit import FitSettings, fit, with_these_heads
from pathline.speed.goal import bench_of
from pathline.speed.guided import tune_guided
from pathline.speed.metrics import Endpoint
from pathline.speed.rollout import Rollout, rows_of
from pathline.speed.stepwise import stepwise, way_of
from pathline.speed.tune import TuneSettings

VP, OT = pl.VPLinear(), pl.CondOT()
D = 4
RATIOS = (None, None, 0.5, 0.3)


class Net(nn.Module):
    """Features that are not linear in the state, and a last linear layer."""

    def __init__(self, path, view):
        super().__init__()
        torch.manual_seed(3)
        self.path, self.view = path, view
        self.first = nn.Linear(D + 2, 16, dtype=torch.float64)
        self.last = nn.Linear(16, D, dtype=torch.float64)

    def forward(self, x, t, kind):
        t = t.double()
        told = torch.cat([x, t[:, None], kind[:, None]], 1)
        clean = self.last(torch.tanh(2 * self.first(told)))
        return convert(self.path, "x0", self.view, x, clean, t)


def told(kind):
    """The condition as the network takes it."""
    return {"kind": torch.as_tensor(kind, dtype=torch.float64)}


def model(path=VP, view="x0", **details):
    null = {"kind": torch.zeros(1, dtype=torch.float64)}
    return pl.Denoiser(
        Net(path, view), path, view, label=lambda t: t, null=null, encode=told, shape=(D,),
        details=details,
    )  # fmt: skip


def bench(path=VP, view="x0", n=16, weight=2.0):
    field = pl.CFG(weight)(model(path, view))
    x = noise.normal(range(n), (D,), dtype=torch.float64) * float(path.sigma(path.t_max))
    kind = {"kind": torch.ones(n, dtype=torch.float64)}
    ends = pl.solve(field, x, solver="dpmpp_3m", grid=grids.log_snr(100), **kind).x
    return Endpoint(field, x, ends.detach(), kind)


def thinned(solver, path=VP, ratios=RATIOS):
    return replace(SolverSchedule.of(solver, path, grids.log_snr(len(ratios))), ratios=ratios)


def filled(heads, seed=0):
    """Heads that add something."""
    torch.manual_seed(seed)
    for each in heads.parameters():
        nn.init.normal_(each, std=0.3)
    return heads.double().rounded()


# --- schedules of given rows ---------------------------------------------------------------------


@pytest.mark.parametrize("path", [VP, OT])
def test_a_schedule_of_given_rows_has_those_rows(path):
    times = [path.t_max, 0.7, 0.4, 0.01]
    rows = [[0.9, 0.2], [0.8, 0.5, -0.3], [0.1, 0.7, 0.2, 0.05]]
    plan = SolverSchedule.linear(path, times, rows).plan().folded("x0")
    for i, (row, wanted) in enumerate(zip(plan.rows, rows, strict=True)):
        assert row.x[i] == pytest.approx(wanted[0], rel=1e-12)
        assert [row.f[j] for j in range(i, -1, -1)] == pytest.approx(wanted[1:], rel=1e-12)
    with pytest.raises(pl.UsageError, match="step 2 has 3 coefficients, and 2 came"):
        SolverSchedule.linear(path, times, [rows[0], rows[0], rows[2]])


@pytest.mark.parametrize("solver", [DPMpp(order=3), UniPC(), pl.DDIM()])
@pytest.mark.parametrize("view", ["x0", "velocity"])
def test_any_explicit_schedule_is_one_of_given_rows(solver, view):
    """With correctors too: what is evaluated is a sum of the noise and of what was before."""
    on, plain = bench(view=view), replace(thinned(solver), ratios=())
    times, rows = rows_of(plain)
    same = SolverSchedule.linear(VP, times, rows)
    torch.testing.assert_close(on.samples(same), on.samples(plain), rtol=1e-11, atol=1e-11)


def test_what_is_no_list_of_rows_is_refused():
    for schedule in (
        SolverSchedule.of(DPMpp(), VP, grids.log_snr(4, last="denoise")),
        replace(SolverSchedule.of(DPMpp(), VP, grids.log_snr(4)), guess=0.2),
    ):
        with pytest.raises(pl.UsageError, match="known first|knows its first"):
            rows_of(schedule)


# --- heads ---------------------------------------------------------------------------------------


def test_new_heads_change_nothing_and_are_of_the_last_layer():
    on, schedule = bench(), thinned(DPMpp())
    few = on.first(1)
    heads = new_heads(on.field, few.starts, few.cond, 3).double()
    assert heads.layer == "last" and len(heads) == 3
    added = replace(schedule, heads=heads.digest)
    with_them = with_these_heads(on, heads)
    assert torch.equal(with_them.samples(added), on.samples(schedule))


@pytest.mark.parametrize("layer", [nn.Linear(5, 2), nn.Conv2d(5, 2, 3, padding=1)])
def test_a_head_is_added_to_what_its_layer_makes(layer):
    """Position by position, at its own evaluation and no other."""
    network = nn.Sequential(nn.ReLU(), layer)
    heads = Heads("1", (5, 2), 2, hidden=7)
    for each in heads.parameters():
        nn.init.normal_(each)
    linear = isinstance(layer, nn.Linear)
    x = torch.randn(3, 6, 5) if linear else torch.randn(3, 5, 4, 4)
    headed, axis = Headed(network, heads), -1 if linear else 1
    for k in range(3):
        headed.now = k
        if k < 2:
            (w, b), (v, c) = ((m.weight, m.bias) for m in (heads.each[k][0], heads.each[k][2]))
            h = torch.relu(x).movedim(axis, -1)
            more = (nn.functional.gelu(h @ w.T + b) @ v.T + c).movedim(-1, axis)
        else:
            more = 0
        torch.testing.assert_close(headed(x), network(x) + more)
    assert not layer._forward_hooks  # the network is as it was


def scaled(heads, layers, n, seed=1):
    """Heads that scale and shift layers, too."""
    heads.scale(layers, n)
    torch.manual_seed(seed)
    for each in heads.scales:
        nn.init.normal_(each, std=0.2)
    return heads.rounded()


def compiled(network):
    """Return a network as the executor has it, traced and not turned into code."""
    executor, denoiser = Compiled(backend="eager"), model()
    return executor.prepared(replace(denoiser, network=network)).network


@pytest.mark.parametrize("how", ["fitted", "folded", "compiled"])
@pytest.mark.parametrize(
    "layer", [nn.Linear(5, 2), nn.Linear(5, 2, bias=False), nn.Conv2d(5, 2, 3, padding=1)]
)
def test_what_a_layer_makes_is_scaled_and_shifted(layer, how):
    """Output by output, at each evaluation otherwise; a head is added to the scaled last layer.

    Where scales have gradients outputs are scaled, and otherwise weights.
    """
    network = nn.Sequential(layer, nn.Tanh())
    heads = scaled(filled(Heads("0", (5, 2), 1, hidden=7)).float(), {"0": 2}, 2)
    heads.requires_grad_(how == "fitted")
    linear = isinstance(layer, nn.Linear)
    x, axis = (torch.randn(3, 6, 5), -1) if linear else (torch.randn(3, 5, 4, 4), 1)
    headed = Headed(compiled(network) if how == "compiled" else network, heads)
    for k in range(3):
        headed.now, wanted = k, layer(x)
        if k < 2:
            s, d = (v if linear else v.view(2, 1, 1) for v in heads.scales[k])
            wanted = (1 + s) * wanted + d
        if k < 1:
            wanted = wanted + heads(x, 0, axis)
        torch.testing.assert_close(headed(x), wanted.tanh())
    assert not layer._forward_hooks
    torch.testing.assert_close(network(x), layer(x).tanh())  # as it was


@pytest.mark.parametrize("as_it_is", [lambda network: network, compiled])
def test_a_layer_that_is_asked_twice_is_scaled_twice(as_it_is):
    layer = nn.Linear(3, 3, bias=False)
    network, x = nn.Sequential(layer, nn.Tanh(), layer), torch.randn(4, 3)
    heads = scaled(filled(Heads("0", (3, 3), 1, hidden=4)).float(), {"0": 3}, 1)
    s, d = heads.scales[0]
    each = lambda h: (1 + s) * layer(h) + d + heads(h, 0, -1)  # noqa: E731
    torch.testing.assert_close(Headed(as_it_is(network), heads)(x), each(each(x).tanh()))
    assert layer.bias is None


def test_scales_are_of_all_layers_that_are_asked():
    on, schedule = bench(), thinned(DPMpp())
    few = on.first(1)
    layers = scalable(on.field, few.starts, few.cond)
    assert layers == {"first": 16, "last": D}
    rollout = Rollout(on, schedule, 0, scales=True)
    assert rollout.heads.scaled == layers and len(rollout.heads) == 4
    torch.testing.assert_close(rollout(on), on.samples(schedule), rtol=1e-10, atol=1e-10)
    with pytest.raises(pl.UsageError, match="'second', which the network lacks"):
        Headed(nn.Identity(), scaled(Heads("", (1, 1), 0), {"second": 3}, 1))


def test_scales_are_kept_with_the_heads(tmp_path):
    for n in (0, 2):
        heads = scaled(filled(Heads("last", (16, D), n)), {"first": 16, "last": D}, 3)
        again = Heads.load(heads.save(tmp_path))
        assert again.digest == heads.digest and list(again.scaled.items()) == [
            ("first", 16), ("last", D),
        ]  # fmt: skip
        assert all(torch.equal(*pair) for pair in zip(again.scales, heads.scales, strict=True))
        other = scaled(filled(Heads("last", (16, D), n)), {"last": D, "first": 16}, 3)
        assert other.digest != heads.digest  # the same numbers, for other layers


def test_other_threads_do_not_see_the_heads():
    network = nn.Sequential(nn.Linear(3, 3))
    headed = Headed(network, filled(Heads("0", (3, 3), 1, hidden=4)).float())
    x, inside, found = torch.randn(2, 3), threading.Event(), []
    alone, with_head = network(x), headed(x)
    go = threading.Event()

    def slow(_, given):
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            go.wait(10)

    network.register_forward_pre_hook(slow)
    thread = threading.Thread(target=lambda: found.append(headed(x)))
    thread.start()
    assert inside.wait(10)
    assert torch.equal(network(x), alone) and torch.equal(headed(x), with_head)
    go.set()
    thread.join()
    assert torch.equal(found[0], with_head)


def test_heads_are_kept_under_their_digest(tmp_path):
    heads = filled(Heads("last", (16, D), 2, weights="abc"))
    file = heads.save(tmp_path / "schedules")
    assert file == heads_file(tmp_path / "schedules", heads.digest)
    again = Heads.load(file)
    assert (again.digest, again.layer, again.weights) == (heads.digest, "last", "abc")
    assert file.stat().st_size < 2 * sum(p.numel() for p in heads.parameters()) + 2000
    exact = Heads("last", (16, D), 1).double()
    assert Heads.load(exact.save(tmp_path)).digest == exact.digest  # its numbers are no halves
    field = with_details(pl.CFG(2.0)(model()), folder=str(tmp_path))
    assert heads_of(field, heads.digest).digest == heads.digest
    with pytest.raises(pl.UsageError, match="of other weights"):
        heads_of(with_details(field, weights={"sha256": "def"}), heads.digest)
    with pytest.raises(pl.UsageError, match="is not there; find them anew"):
        heads_of(field, "0" * 12)
    with pytest.raises(pl.UsageError, match="cannot be read"):
        Heads.load(tmp_path / "nothing")


class _Same(nn.Module):
    def forward(self, x, t):
        return x


def test_heads_want_a_module_with_such_a_layer():
    function = pl.Denoiser(lambda x, t: x, VP, "x0", shape=(D,))
    with pytest.raises(pl.UsageError, match="torch module"):
        new_heads(function, torch.ones(1, D), {}, 1)
    none = pl.Denoiser(_Same(), VP, "x0", shape=(D,))
    with pytest.raises(pl.UsageError, match="no linear layer"):
        new_heads(none, torch.ones(1, D), {}, 1)
    with pytest.raises(pl.UsageError, match="'last', which the network lacks"):
        Headed(nn.Identity(), Heads("last", (2, 2), 1))


def test_a_schedule_with_heads_is_the_same_value_again():
    schedule = replace(thinned(DPMpp()), heads="0123456789ab")
    assert SolverSchedule.from_dict(schedule.to_dict()) == schedule
    assert schedule.speed == ThinnedGuidance(RATIOS, heads="0123456789ab")
    assert "heads" not in thinned(DPMpp()).speed.describe()
    with pytest.raises(pl.UsageError, match="heads are for schedules with ratios"):
        replace(schedule, ratios=())


def test_samples_take_the_heads_that_are_in_the_details():
    heads = filled(Heads("last", (16, D), 2, hidden=8))
    denoiser, kind = model(heads=heads), torch.ones(3, dtype=torch.float64)
    schedule = replace(thinned(DPMpp()), heads=heads.digest)
    how = {"guide": pl.CFG(2.0), "dtype": torch.float64, "kind": kind}
    found = pl.sample(denoiser, 3, solver=schedule, **how)
    plain = pl.sample(denoiser, 3, solver=thinned(DPMpp()), **how)
    assert (found.x - plain.x).abs().max() > 1e-3
    assert found.stats.network_calls == plain.stats.network_calls
    on = Endpoint(pl.CFG(2.0)(denoiser), found.x, found.x, {"kind": kind})
    starts = noise.normal(range(3), (D,), dtype=torch.float64) * float(VP.sigma(VP.t_max))
    torch.testing.assert_close(
        replace(on, starts=starts).remembering().samples(schedule), found.x, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("ahead", [True, False])
def test_a_compiled_network_takes_them_too(ahead):
    """Compiled code was traced without them, and would leave them out without a word."""
    heads = filled(Heads("last", (16, D), 2, hidden=8))
    denoiser = model(heads=heads)
    schedule = replace(thinned(DPMpp()), heads=heads.digest)
    how = {"guide": pl.CFG(2.0), "dtype": torch.float64, "kind": torch.ones(3)}
    eager = pl.sample(denoiser, 3, solver=schedule, **how).x
    executor = Compiled(backend="eager")
    if ahead:
        network = torch.compile(denoiser.network, backend="eager")
        denoiser, executor = replace(denoiser, network=network), "eager"
        ones = torch.ones(1, D, dtype=torch.float64)
        made = new_heads(denoiser, ones, told([1.0]), 1)
        assert made.layer == "last"
    for _ in range(2):
        found = pl.sample(denoiser, 3, solver=schedule, executor=executor, **how).x
        torch.testing.assert_close(found, eager, rtol=1e-12, atol=1e-12)


def test_what_the_executor_compiles_serves_all_evaluations_and_other_heads():
    """One program with a head and one without, for a batch and for both halves: no more."""
    made = []

    def note(graph, _):
        made.append(graph)
        return graph.forward

    layers, executor = {"first": 16, "last": D}, Compiled(backend=note)
    how = {"guide": pl.CFG(2.0), "dtype": torch.float64, "kind": torch.ones(3)}
    network = model().network
    for seed in range(3):
        heads = scaled(filled(Heads("last", (16, D), 2, hidden=8), seed), layers, 4, seed)
        denoiser = replace(model(heads=heads), network=network)
        schedule = replace(thinned(DPMpp()), heads=heads.digest)
        eager = pl.sample(denoiser, 3, solver=schedule, **how).x
        found = pl.sample(denoiser, 3, solver=schedule, executor=executor, **how).x
        torch.testing.assert_close(found, eager, rtol=1e-12, atol=1e-12)
        if not seed:
            first = len(made)
    assert first and len(made) == first


# --- the fit -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path,view", [(VP, "eps"), (OT, "velocity")])
def test_the_rollout_is_the_schedule(path, view):
    """What is differentiated is what samples."""
    on = bench(path, view)
    heads = scaled(filled(Heads("last", (16, D), 2, hidden=8)), {"first": 16, "last": D}, 4)
    on = with_these_heads(on, heads)
    schedule = replace(thinned(UniPC(), path), heads=heads.digest)
    rollout = Rollout(on, schedule, 2)
    assert not any("network" in name for name, _ in rollout.named_parameters())
    torch.testing.assert_close(rollout(on), on.samples(schedule), rtol=1e-10, atol=1e-10)
    made, again = rollout.schedule()
    assert again.digest == heads.digest == made.heads
    torch.testing.assert_close(on.samples(made), on.samples(schedule), rtol=1e-10, atol=1e-10)


def test_its_gradient_is_that_of_differences():
    """Of a time, a weight, a ratio, and a head's and a scale's numbers, in double precision."""
    heads = scaled(filled(Heads("last", (16, D), 2, hidden=8)), {"first": 16, "last": D}, 4)
    on = with_these_heads(bench(n=5), heads)
    rollout = Rollout(on, replace(thinned(DPMpp()), heads=heads.digest), 2)
    size = lambda: (rollout(on) - on.ends).square().sum()  # noqa: E731
    size().backward()
    numbers = [rollout.lengths, rollout.rows[2], rollout.ratios[0], rollout.heads.each[1][2].weight]
    numbers.append(rollout.heads.scales[3])
    for number in numbers:
        flat, h = number.data.view(-1), 1e-6
        flat[0] += h
        above = size().item()
        flat[0] -= 2 * h
        below = size().item()
        flat[0] += h
        slope = number.grad.view(-1)[0].item()
        assert slope == pytest.approx((above - below) / (2 * h), rel=1e-5, abs=1e-9)


def test_a_fit_brings_a_schedule_nearer_and_leaves_the_network_alone():
    on, schedule = bench(n=64), thinned(DPMpp())
    before = {k: v.clone() for k, v in on.field.inner.network.state_dict().items()}
    settings = FitSettings(iterations=150, batch=32, heads=2, rate=1e-2, rate_of_heads=1e-2)
    found, heads = fit(on, schedule, settings)
    scaled, scales = fit(on, schedule, replace(settings, heads=0, rate_of_scales=1e-2))
    plain, none = fit(on, schedule, replace(settings, heads=0, scales=False))
    made = (found, heads), (scaled, scales), (plain, none)
    errors = [with_these_heads(on, h)(s) for s, h in made]
    assert none is None and plain.heads == ""
    assert len(scales.each) == 0 and len(scales.scales) == 4
    assert errors[0] < errors[2] < 0.7 * on(schedule) and errors[1] < errors[2]
    after = on.field.inner.network.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(p.requires_grad and p.grad is None for p in on.field.inner.network.parameters())
    further, _ = fit(with_these_heads(on, heads), found, replace(settings, iterations=1))
    assert further.heads != found.heads  # it goes on from the heads that there are


def test_an_interrupted_fit_ends_where_a_whole_one_does(tmp_path, monkeypatch):
    on, schedule = bench(n=8), thinned(DPMpp())
    settings = FitSettings(iterations=6, batch=3, heads=1, every=2)
    whole, _ = fit(on, schedule, settings)
    seen = []

    def dies(self, part, kept=Rollout.forward):
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return kept(self, part)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Rollout, "forward", dies)
        fit(on, schedule, settings, file=tmp_path / "fit")
    torch.manual_seed(99)
    again, _ = fit(on, schedule, settings, file=tmp_path / "fit")
    assert again.times == whole.times and again.choices == whole.choices
    (tmp_path / "fit").write_bytes(b"damaged")
    anew, _ = fit(on, schedule, settings, file=tmp_path / "fit")
    assert anew.times == whole.times


def test_what_cannot_be_fitted_is_refused():
    on = bench(n=2)
    with pytest.raises(pl.UsageError, match="tune with --thin first"):
        fit(on, replace(thinned(DPMpp()), ratios=()))
    alone = replace(on, field=on.field.inner)
    with pytest.raises(pl.UsageError, match="only guidance by contrast"):
        fit(alone, thinned(DPMpp()))
    with pytest.raises(PathlineError, match="gradient of a schedule is not finite"):
        fit(replace(on, ends=on.ends * float("inf")), thinned(DPMpp()))
    for wrong, words in (({"iterations": 0}, "iterations"), ({"heads": -1}, "heads")):
        with pytest.raises(pl.UsageError, match=words):
            FitSettings(**wrong)


# --- step by step --------------------------------------------------------------------------------


def test_the_way_is_where_many_steps_are_at_these_times():
    on, times = bench(n=5), [1.0, 0.7, 0.3, 0.01]
    kind = {"kind": torch.ones(5, dtype=torch.float64)}
    way = way_of(on, times, 60, 2)
    assert torch.equal(way[0], on.starts)
    for t, x in zip(times[1:], way[1:], strict=True):
        exact = pl.solve(on.field, on.starts, solver="rk4", grid=grids.log_snr(100, end=t), **kind)
        torch.testing.assert_close(x, exact.x.detach(), rtol=1e-3, atol=1e-3)


def test_where_steps_are_exact_step_by_step_finds_them():
    """Of data N(μ, s²) the flow is affine in x and x̂_0, so every row can land on the way."""

    class Oracle(nn.Module):
        def __init__(self):
            super().__init__()
            self.like = nn.Linear(1, 1, dtype=torch.float64)

        def forward(self, x, t, kind):
            a, s = VP.alpha(t)[:, None], VP.sigma(t)[:, None]
            clean = 0.4 + a * 0.36 / (a**2 * 0.36 + s**2) * (x - a * 0.4)
            return clean + 0.1 * kind[:, None]

    null = {"kind": torch.zeros(1, dtype=torch.float64)}
    denoiser = pl.Denoiser(Oracle(), VP, "x0", label=lambda t: t, null=null, shape=(D,))
    x = noise.normal(range(12), (D,), dtype=torch.float64) * float(VP.sigma(VP.t_max))
    kind = {"kind": torch.ones(12, dtype=torch.float64)}
    on = Endpoint(pl.CFG(2.0)(denoiser), x, x, kind)
    ratios = (None, 1.0, 1.0)
    rollout = Rollout(on, thinned(DPMpp(), ratios=ratios), 0)
    way = way_of(on, rollout.times().tolist(), 200, 12)
    stepwise(rollout, on, 200, 1, 12, 0)
    off = (rollout(on) - way[-1]).abs().max()
    assert off < 1e-6 < (on.samples(thinned(DPMpp(), ratios=ratios)) - way[-1]).abs().max()


def test_a_head_brings_its_step_nearer_on_fresh_noise_too():
    on, every, errors = bench(n=128), bench(n=192), []
    fresh = every.chosen(torch.arange(128, 192))
    for n in (0, 1):
        rollout = Rollout(on, thinned(DPMpp()), n)
        stepwise(rollout, on, 60, 30, 16, 0)
        wanted = way_of(fresh, rollout.times().tolist(), 60, 64)[1]
        with torch.no_grad():
            clean, _ = rollout.evaluated(0, fresh.starts, fresh.starts, fresh.cond)
            x = rollout.stepped(0, fresh.starts, [clean(None)])
        errors.append((x - wanted).square().mean().sqrt().item())
    assert errors[1] < 0.9 * errors[0]


# --- tune ----------------------------------------------------------------------------------------


def test_tuning_by_gradient_keeps_the_heads_of_what_it_found(tmp_path):
    made = bench_of(model(), pl.CFG(2.0), {"kind": [1.0]}, {"kind": [1.0]}, (16, 16), 64)
    how = {"out": tmp_path / "model", "work": tmp_path / "work"}
    settings = TuneSettings(budget=10, n_train=16, n_test=16)
    fitting = FitSettings(iterations=60, batch=8, heads=2, rate=1e-2, rate_of_heads=1e-2)
    (found,) = tune_guided(made, [4], settings, fitting=fitting, **how)
    schedule = SolverSchedule.load(schedule_file(tmp_path / "model", 4, GUIDED))
    assert schedule.about["fit"]["iterations"] == 60
    folder = tmp_path / "model" / "schedules"
    assert [f.name for f in folder.glob("heads-*")] == [heads_file(folder, schedule.heads).name]
    assert tune_guided(made, [4], settings, fitting=fitting, **how) == [found]
    (further,) = tune_guided(made, [4], settings, fitting=replace(fitting, seed=1), **how)
    assert further.schedule.heads  # of one of the two, and of no other
    assert [f.name for f in folder.glob("heads-*")] == [
        heads_file(folder, further.schedule.heads).name
    ]


def test_what_knows_its_first_point_is_kept_beside_a_fit_that_begins_elsewhere(tmp_path):
    made = bench_of(model(), pl.CFG(2.0), {"kind": [1.0]}, {"kind": [1.0]}, (4, 4), 32)
    guessing = replace(
        SolverSchedule.of(DPMpp(), VP, grids.log_snr(5)), guess=0.1, about=dict(made.about)
    )
    guessing = replace(guessing, ratios=(None, None, 0.5, 0.5))
    guessing.save(schedule_file(tmp_path, guessing.nfe, GUIDED))
    settings = TuneSettings(budget=10, n_train=4, n_test=4)
    fitting = FitSettings(iterations=2, batch=4, heads=1, epochs=1, way=16)
    (found,) = tune_guided(made, [guessing.nfe], settings, out=tmp_path, fitting=fitting)
    assert found.schedule.nfe == guessing.nfe


def test_the_command_fits_and_replays(tmp_path, monkeypatch):
    tiny_model(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATHLINE_CACHE", str(tmp_path / "cache"))

    def run(*words):
        return CliRunner().invoke(app, [str(word) for word in words])

    few = ("tune", "tiny", "--budget", 10, "-n", 8, "--reference", 8, "--nfe", 3, "--guidance", 2)
    refused = run(*few, "--fit", 2)
    assert refused.exit_code == 2 and "give --thin too" in refused.output.replace("\n", " ")
    outcome = run(*few, "--thin", "--fit", 30, "--heads", 1)
    assert outcome.exit_code == 0, outcome.output
    kept = json.loads((tmp_path / "tiny" / "schedules" / "guided-03.json").read_text())
    asked = ("sample", "tiny", "red heart", "--solver", "s3_guided", "--guidance", 2)
    for words in ((*asked, "--steps", 3, "-o", "a.png"), ("replay", "a.png", "-o", "b.png")):
        outcome = run(*words)
        assert outcome.exit_code == 0, outcome.output
    assert "identical" in outcome.output
    if kept.get("heads"):
        heads_file(tmp_path / "tiny" / "schedules", kept["heads"]).unlink()
        outcome = run(*asked, "--steps", 3, "-o", "c.png")
        assert outcome.exit_code == 2 and "is not there" in outcome.output.replace("\n", " ")

"""Codes and back: exact ones to rounding, approximate ones named so, and what is refused."""

import dataclasses
import json
import warnings

import pytest
import torch
from tiny_model import tiny_model
from torch import nn
from typer.testing import CliRunner

import pathline as pl
from pathline import edit
from pathline.cli.main import app
from pathline.core import noise
from pathline.core.images import read_pixels, read_receipt, write_picture
from pathline.edit import Way
from pathline.fields import Field, problems
from pathline.solvers import Reversible, Stepped, solvers
from pathline.solvers.execute import execute, run
from pathline.solvers.order import fitted_slope
from pathline.solvers.reference import reference
from pathline.solvers.reversal import after, joined, opening, remembered

VP = pl.VPLinear()
EPS = torch.finfo(torch.float64).eps
BUILT = {e.name: e.build() for e in solvers}
PLANNED = {n: s for n, s in BUILT.items() if not isinstance(s, Stepped) and not s.is_stochastic}
INVERTIBLE = [n for n in PLANNED if n.startswith("bdia") and "reuse" not in n and n[-2:] != "2m"]
BASES = [n for n in PLANNED if not n.startswith(("bdia", "reversible"))]


def starts(n=8, dim=3):
    return noise.normal(range(n), (dim,), dtype=torch.float64)


def passed(plan, field, given):
    """Every grid point's state, those given first."""
    plan = plan.folded(field.view)
    bound = field.bind(plan.instants, given[0], {})
    return [*given, *(step.x for step in execute(plan, bound, given))]


def trip(solver, x, n=20):
    """How far noise → data → noise by the inverse plan comes from where it began, and the plan."""
    mixture = problems.m4(VP)
    plan = solver.standard(VP).plan(VP, pl.grids.log_snr(n))
    states, held = passed(plan, mixture, [x]), remembered(plan)
    back = after(plan, held - 1).inverse()
    found = passed(back, mixture, states[: -held - 1 : -1])
    return float((found[-1] - x).abs().max()), plan


def made(name, gamma=1.0):
    return Reversible(gamma, PLANNED[name].standard(VP))


@pytest.mark.parametrize("name", BASES)
def test_any_fixed_grid_solver_is_made_exactly_invertible(name):
    """Noise → data → noise in 20 steps, to rounding.

    Rounding grows by less than σ_1/σ_0.001 = 96 to the power 4/3 (500) for what reaches over
    several steps, times the sizes of the coefficients (below 100) and a hundred operations.
    """
    error, plan = trip(made(name), starts())
    assert error < 500 * 100 * 100 * EPS
    assert remembered(plan) >= 2 and plan.nfe == made(name).evaluations(20)


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m", "unipc", "deis"])
def test_in_float32_a_round_trip_costs_as_many_digits_more(name):
    error, _ = trip(made(name), starts().float())
    assert error < 500 * 100 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("name", INVERTIBLE)
def test_registered_rules_are_inverted_as_they_are(name):
    assert trip(BUILT[name], starts())[0] < 1e-12


def test_an_inverse_undoes_itself():
    plan = Reversible(0.9, pl.Heun()).plan(VP, pl.grids.log_snr(6))
    down = after(plan, 1)
    again = down.inverse().inverse()
    assert again.start == down.start
    mixture, given = problems.m4(VP), passed(opening(plan, 1), problems.m4(VP), [starts()])
    one, two = (passed(p, mixture, given)[-1] for p in (down, again))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-13)


def test_a_plan_cut_in_two_is_the_plan():
    plan = Reversible(0.9, pl.DPMpp(order=2)).plan(VP, pl.grids.log_snr(12))
    whole = joined(opening(plan, 5), after(plan, 5))
    mixture = problems.m4(VP)
    assert whole.times == plan.times
    ends = [run(p.folded("x0"), mixture, starts()) for p in (plan, whole)]
    assert torch.equal(*ends)
    with pytest.raises(pl.UsageError, match="does not go on from this one"):
        joined(plan, after(plan, 3))


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m", "deis_lambda"])
def test_the_wrapper_keeps_the_order(name):
    """Between 40 and 80 steps, to 0.4: the base's or better."""
    x, mixture, errors = starts(), problems.m4(VP), []
    exact = reference(mixture, x, tolerance=1e-9)
    for n in (40, 80):
        plan = made(name).plan(VP, pl.grids.log_snr(n)).folded("x0")
        errors.append(float((run(plan, mixture, x) - exact).square().mean().sqrt()))
    assert fitted_slope((40, 80), errors) > PLANNED[name].convergence - 0.4


def test_the_wrapper_costs_what_it_says():
    extra = {"heun": 3, "rk4": 7, "dpmpp_2m": 1, "unipc": 2, "ddim": 1}
    assert {name: made(name).nfe_per_step for name in extra} == extra


def test_plain_differential_equations_run_back_too():
    """dx/dt = −x² cos t by RK4 and its inverse; no path, so the plain rule."""
    field = pl.VectorField(lambda x, t: -(x**2) * torch.cos(t))
    x = 2 + 0.1 * starts()
    plan = Reversible(1.0, pl.RK4()).plan(None, pl.grids.uniform(40, 0.0, 2.0))
    states = passed(plan, field, [x])
    torch.testing.assert_close(states[-1], 1 / (1 / x + torch.tensor(2.0).sin()), rtol=0, atol=1e-6)
    found = passed(after(plan, 1).inverse(), field, [states[-1], states[-2]])
    torch.testing.assert_close(found[-1], x, rtol=0, atol=1e-13)


def test_bdia_is_its_linear_form():
    """z_{i−1} = γ z_{i+1} + a z_i + b ε, with the coefficients of the paper."""
    gamma, plan = 0.7, pl.BDIA(0.7).plan(VP, pl.grids.log_snr(6)).folded("eps")
    t = torch.tensor(plan.times, dtype=torch.float64)
    alpha, sigma = VP.alpha(t), VP.sigma(t)
    for i in range(1, 6):
        a = (alpha[i + 1] - gamma * alpha[i - 1]) / alpha[i]
        b = sigma[i + 1] - gamma * sigma[i - 1] - sigma[i] * a
        row = plan.rows[i]
        assert row.x[i - 1] == gamma
        assert (row.x[i], row.f[i]) == pytest.approx((float(a), float(b)), rel=1e-10, abs=1e-13)


def test_a_reversible_ddim_is_bdia():
    plans = [s.plan(VP, pl.grids.karras(7)) for s in (pl.BDIA(0.8), Reversible(0.8, pl.DDIM()))]
    assert plans[0].rows == plans[1].rows


# --- encode and decode ---------------------------------------------------------------------------


def data(n=6):
    return problems.m4(VP).draw(range(n))


def test_a_code_returns_its_data_and_says_so():
    x, law = data(), problems.m4(VP)
    code = pl.encode(law, x, steps=20)
    assert len(code.states) == 2 and code.nfe == 20
    assert float(code.error.max()) < 1e-13 and (code.rms <= code.error).all()
    back = pl.decode(law, code)
    assert back.ok and back.stats.nfe == 19 and back.t == VP.t_min
    torch.testing.assert_close(back.x, x, rtol=0, atol=1e-13)
    assert back.receipt.recipe["round_trip_error"] == float(code.error.max())


@pytest.mark.parametrize(
    ("method", "least", "most"),
    [
        (edit.ddim_inversion(), 1e-2, 1.0),
        ("ddim", 1e-2, 2.0),
        (edit.FixedPoint(rounds=60), 0.0, 1e-8),
        (edit.FixedPoint(rounds=40, update=edit.Anderson()), 0.0, 1e-8),
        (edit.EDICT(), 0.0, 1e-12),
        (Reversible(solver="dpmpp_2m"), 0.0, 1e-11),
    ],
)
def test_the_error_of_the_round_trip_is_measured(method, least, most):
    """Exact methods to rounding; iterations to their tolerance of 1e-12 times what follows."""
    code = pl.encode(problems.m4(VP), data(), solver=method, steps=20)
    assert least <= float(code.error.max()) < most


def test_part_of_the_way_is_a_code_too():
    x, law = data(), problems.m4(VP)
    code = pl.encode(law, x, steps=20, strength=0.5)
    assert len(code.times) == 11 and code.times[-1] < 0.5
    torch.testing.assert_close(pl.decode(law, code).x, x, rtol=0, atol=1e-13)


def test_a_code_is_a_file(tmp_path):
    x, law = data(), problems.m4(VP)
    code = pl.encode(law, x.float(), solver=Reversible(solver="heun"), steps=12)
    again = edit.Code.load(code.save(tmp_path / "code.safetensors"))
    assert again.method == code.method and again.times == code.times
    assert torch.equal(pl.decode(law, again).x, pl.decode(law, code).x)
    assert torch.equal(again.error, code.error) and again.dtype == torch.float32
    (tmp_path / "no").write_bytes(b"no")
    with pytest.raises(pl.UsageError, match="cannot read a code"):
        edit.Code.load(tmp_path / "no")


def test_rounding_that_would_show_takes_float64_and_then_warns():
    law, x = problems.m4(VP), data().float()
    assert pl.encode(law, x, solver=pl.BDIA(), steps=20).z.dtype == torch.float32
    wide = pl.encode(law, x, solver=pl.BDIA(0.7), steps=30)  # 0.7^-29 · 1e-7 is above 1e-4
    assert wide.z.dtype == torch.float64 and pl.decode(law, wide).x.dtype == torch.float32
    assert pl.encode(law, x.half(), steps=10).z.dtype == torch.float32
    with pytest.warns(UserWarning, match="rounding errors grow by"):
        pl.encode(law, x, solver=pl.BDIA(0.3), steps=30)


def test_a_half_precision_network_comes_back_under_a_float64_state():
    """Its outputs are the same bits on both ways unless a state rounds over an edge: rarely."""

    class Coarse(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.5, dtype=torch.bfloat16))

        def forward(self, x, t):
            return torch.tanh(x * self.scale)

    model, x = pl.Denoiser(Coarse(), VP, view="eps"), data().float()
    with torch.no_grad():
        code = pl.encode(model, x, steps=30)
    assert code.z.dtype == torch.float64 and float(code.error.max()) < 1e-12


def test_what_dci_draws_has_its_length_for_each_sample():
    law, x = problems.m4(VP), data()
    for residual, view in (("noise", "eps"), ("x0", "x0")):
        moved = edit.Reference(length=0.3, residual=residual)(law, x.flip(0))(x, 0.4)
        step = (moved.of(view) - law(x, 0.4).of(view)).norm(dim=1)
        torch.testing.assert_close(step, torch.full_like(step, 0.3), rtol=1e-12, atol=0)
    assert edit.Reference(rho=0.5).lengths(16) == (2.0, 0.5)
    same = law(x, 0.4).eps
    torch.testing.assert_close(edit.Reference(length=0.3)(law, same)(x, 0.4).eps, same)


def test_samples_do_not_depend_on_their_batch():
    law, x = problems.m4(VP), data()
    method = edit.dci(length=0.1, rounds=10)
    together = pl.encode(law, x, solver=method, steps=10).z
    alone = pl.encode(law, x[2:3], solver=method, steps=10).z
    torch.testing.assert_close(together[2:3], alone, rtol=0, atol=1e-12)


def test_the_published_update_moves_an_entry_by_its_rate_a_round():
    law, x = problems.m4(VP), data()
    way = Way(law, pl.grids.log_snr(10).times(VP)[:-3:-1], {})
    first = edit.ddim_inversion().invert(way, x).states[0]
    moved = edit.FixedPoint(10, 0.0, edit.AdamW()).invert(way, x)
    assert float((moved.states[0] - first).abs().max()) <= 1.05 * 10 * 1e-3
    assert moved.nfe == 11 and not moved.states[0].requires_grad


def test_a_step_that_does_not_converge_is_told():
    way = Way(problems.m4(VP), pl.grids.log_snr(4).times(VP)[::-1], {})
    report = edit.FixedPoint(3).invert(way, data()).report
    assert not bool(report.converged.all()) and report.rounds == (3, 3, 3, 3)
    plain = edit.FixedPoint(0).invert(way, data())
    assert plain.nfe == 4 and plain.states[0].shape == data().shape


def test_anchored_guidance_steps_away_from_the_source():
    """F_source + w (F_target − F_source) = (1 − w) a + w b for a network that returns its label."""
    model = pl.Denoiser(lambda x, t, k: 0 * x + k[:, None], VP, null={"k": torch.zeros(1)})
    guide, x = edit.Anchored(3.0, k=torch.tensor([1.0])), data()
    made = guide(model)(x, 0.5, k=torch.tensor([2.0])).eps
    torch.testing.assert_close(made, torch.full_like(x, -2.0 * 1 + 3.0 * 2))
    with pytest.raises(pl.UsageError, match="source's condition"):
        edit.Anchored(3.0)


class Drawing(Field):
    """A field that says something else each time."""

    view, path = "eps", VP

    def evaluate(self, x, t, cond):
        return torch.rand_like(x)


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.hide = nn.Dropout(0.5)

    def forward(self, x, t):
        return self.hide(x)


LAW = problems.m4(VP)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: pl.BDIA(0), "not invertible: gamma must be > 0"),
        (lambda: pl.BDIA(1.5), r"gamma must lie in \(0, 1\]"),
        (lambda: pl.BDIA(-0.1), r"gamma must lie in \(0, 1\]"),
        (lambda: pl.BDIA(back="x"), "choose 'same', 'euler' or 'reuse'"),
        (lambda: pl.BDIA(solver=pl.DPMpp()).plan(VP, pl.grids.log_snr(5)), "no one-step rule"),
        (lambda: Reversible(solver="euler_maruyama"), "draws noise"),
        (lambda: Reversible(solver="dopri5"), "no fixed grid"),
        (lambda: pl.encode(LAW, data(), steps=1), "N = 1: an exact code by BDIA needs 2 steps"),
        (lambda: pl.encode(LAW, data(), steps=0), "N = 0"),
        (lambda: pl.encode(LAW, data(), grid=[1.0, 0.2, 0.4]), "must move one way at every step"),
        (lambda: pl.encode(LAW, data(), grid=[0.2, 0.4, 0.9]), "from noise to data"),
        (
            lambda: pl.encode(LAW, data(), grid=pl.grids.log_snr(5, last="denoise")),
            "a last step to data itself has no way back",
        ),
        (
            lambda: pl.encode(problems.m4(pl.CondOT()), data(), grid=[0.9, 0.5, 0.0]),
            "log-SNR at t = 0 is infinite",
        ),
        (lambda: pl.encode(LAW, data(), strength=0.0), "share of the steps"),
        (lambda: pl.encode(LAW, data(), solver="ddpm"), "not a function of z"),
        (lambda: pl.encode(Drawing(), data(), steps=5), "not a function of z"),
        (lambda: pl.encode(pl.Denoiser(Dropping(), VP), data(), steps=5), r"hide \(Dropout\)"),
        (lambda: pl.decode(LAW, data()), "is a Tensor: from one state alone"),
        (lambda: edit.dci(length=-1.0), "whole length in R"),
        (lambda: edit.dci(rho=1.5), "λ is a length in R"),
        (lambda: pl.encode(LAW, data(), solver=edit.dci(length=5.0), steps=5), "above 1"),
        (lambda: edit.FixedPoint(-1), "K = -1"),
        (lambda: edit.EDICT(0.0), "mixing must lie"),
        (
            lambda: pl.encode(problems.m4(pl.CondOT()), data(), solver=edit.EDICT(), steps=5),
            "where EDICT divides",
        ),
        (lambda: edit.Picard(0.0), "damping must lie"),
        (lambda: edit.Anderson(0), "at least 1 difference"),
        (
            lambda: edit.Reference(length=0.1)(LAW, data()[:, :2])(data(), 0.3),
            "the reference has the shape",
        ),
        (
            lambda: pl.encode(
                pl.Denoiser(lambda x, t: x.detach(), VP),
                data(),
                solver=edit.FixedPoint(3, update=edit.AdamW()),
                steps=3,
            ),
            "can be differentiated",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, says):
    with pytest.raises(pl.PathlineError, match=says):
        make()


def test_a_code_is_only_decoded_by_what_it_was_made_with():
    code = pl.encode(LAW, data(), steps=10)
    with pytest.raises(pl.UsageError, match="another method"):
        pl.decode(LAW, code, solver=pl.BDIA(0.9))
    with pytest.raises(pl.UsageError, match="another grid"):
        pl.decode(LAW, code, grid=pl.grids.log_snr(11))
    with pytest.raises(pl.UsageError, match="another path"):
        pl.decode(problems.m4(pl.CondOT()), code)
    halved = dataclasses.replace(code, states=tuple(z.half() for z in code.states))
    with pytest.raises(pl.UsageError, match="another dtype"):
        pl.decode(LAW, halved)
    with pytest.raises(pl.UsageError, match="2 states, and 1"):
        pl.decode(LAW, dataclasses.replace(code, states=code.states[:1]))


def test_a_failure_tells_step_and_predicted_growth():
    bad = pl.Denoiser(lambda x, t: torch.where(t[:, None] > 300, x / 0, x), VP, label=1000.0)
    with pytest.raises(pl.NonFiniteError, match=r"step \d+ of 10.*predicted to grow by"):
        pl.encode(bad, data(), solver=pl.BDIA(0.9), steps=10)


def test_a_reference_far_from_data_is_warned_of():
    with pytest.warns(UserWarning, match="standard deviation"):
        pl.encode(LAW, 20 * data(), solver=edit.dci(rounds=1), steps=3, check=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pl.encode(LAW, data(), solver=edit.dci(rounds=1), steps=3, check=False)


def test_a_conditional_model_needs_its_source_condition():
    model = pl.Denoiser(lambda x, t, k=None: x, VP, null={"k": torch.zeros(1)})
    with pytest.raises(pl.UsageError, match="what the data show"):
        pl.encode(model, data(), solver=edit.dci(), steps=3)


# --- the command ---------------------------------------------------------------------------------


def told(*words):
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_command_goes_there_and_back(tmp_path, monkeypatch):
    """A PNG of 8-bit pixels comes back as the same pixels; the code's file is a receipt."""
    monkeypatch.chdir(tmp_path)
    tiny_model(tmp_path / "tiny")
    pixels = (noise.uniform([3], (8, 8, 3))[0] * 255).round().to(torch.uint8).numpy()
    write_picture("in.png", pixels)
    there = ("invert", "tiny", "in.png", "--prompt", "a", "--steps", 6, "-o", "c.safetensors")
    said = json.loads(told(*there, "--json"))
    (row,) = said["methods"]
    assert row["states"] == 2 and row["evaluations"] == 6 and row["largest error"] < 1e-3
    back = told("invert", "tiny", "c.safetensors", "--prompt", "a", "-o", "out.png")
    assert "round trip of the code was off by" in back
    assert (read_pixels("out.png") == pixels).all()
    code = edit.Code.load("c.safetensors")
    assert code.receipt.recipe["cond"] == {"text": "a"} and code.receipt.nfe == 6
    assert read_receipt("out.png").recipe["code"]["method"]["solver"]["name"] == "bdia"
    methods = "bdia,ddim-inversion,dci"
    table = told("invert", "tiny", "in.png", "--prompt", "a", "--steps", 4, "--solver", methods)
    assert all(name in table for name in ("bdia", "ddim-inversion", "dci", "code deviation"))
    for words, says in [
        (("in.png", "-o", "c.png"), "a code is a safetensors file"),
        (("in.png", "-o", "d.safetensors", "--solver", "dci"), "the code of one solver"),
        (("in.png", "--solver", "nobody"), "unknown solver"),
        (("c.safetensors", "in.png"), "one code at a time"),
    ]:
        done = CliRunner().invoke(app, ["invert", "tiny", *words])
        assert done.exit_code == 2 and says in done.output


def test_the_systems_measure_what_they_say():
    """At a fraction of the size: round trips, calls, the length of corrections."""
    from pathline.systems.bdia import Experiment
    from pathline.systems.dci import DDIM, drawn
    from pathline.systems.dci import Experiment as Classes

    small = Experiment(n=4, counts=(10,), fine=20)
    assert small.round_trip(torch.float64) < 1e-13 < 1e-3 < small.ddim()
    assert small.calls() == 0 and small.code(0.5, 60)[2] == 1
    classes = Classes(n=8, steps=10)
    assert classes.length_off() < 1e-14
    assert classes.edit(drawn(0.2), 3.0) > 0 and classes.back(DDIM) > 1e-3
    rows = classes.table({"ddim": DDIM})
    assert rows[0]["calls"] == 10 + 20


def test_an_oracle_of_two_classes_is_the_mixture_of_all_without_a_class():
    from pathline.systems.dci import TwoClasses

    oracle = TwoClasses()
    x = oracle.laws[0].draw(range(6))
    told = torch.tensor([0, 1, 2, 0, 1, 2])
    mixed = oracle.field(x, 0.4, cls=told).eps
    each = torch.stack([oracle.laws[int(c)](x[i : i + 1], 0.4).eps[0] for i, c in enumerate(told)])
    torch.testing.assert_close(mixed, each)

"""Schedules: every exponential solver is one, found ones are saved and replayed, bad ones named."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

import pathline as pl
from pathline.core import noise
from pathline.fields import problems
from pathline.solvers import (
    DEIS,
    DPM,
    SolverSchedule,
    StepChoice,
    Unified,
    UniPC,
    grids,
)
from pathline.solvers.execute import run
from pathline.solvers.exponential import expansion_weights
from pathline.solvers.order import fitted_slope
from pathline.solvers.phi import derivative_weights, phi
from pathline.solvers.saved import saved_schedule, schedule_file
from pathline.solvers.solver import Writer

VP = pl.VPLinear()
SOLVERS = [
    pl.DDIM(),
    pl.DPMpp(order=2),
    pl.DPMpp(order=2, expansion="taylor", final="lower"),
    pl.DPMpp(order=3),
    pl.DPMpp(order=3, final="full"),
    *(UniPC(order, view) for order, view in itertools.product((1, 2, 3), ("x0", "eps"))),
    *(DEIS(order, "lambda") for order in (1, 2, 3, 4)),
    *(DPM(order, view) for order, view in itertools.product((1, 2, 3), ("x0", "eps"))),
    *(DPM(order, "x0", expansion="taylor") for order in (2, 3)),
    DPM(3, "eps", "fast"),
    Unified((StepChoice(), StepChoice(order=3, corrector="implicit")), guess=0.3),
]


def starts(n=16, dim=3):
    return noise.normal(range(n), (dim,), dtype=torch.float64)


def schedule(*choices, path=VP, **kwargs):
    times = grids.log_snr(len(choices)).times(path)
    return SolverSchedule(path, times, tuple(choices), **kwargs)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("path", [VP, pl.EDM()], ids=["vp", "edm"])
def test_a_solver_and_its_schedule_do_the_same(solver, path):
    """To 1e-12 of the state's size, at any number of steps, with a closing step to data or not."""
    x, field = starts() * path.sigma(1.0), problems.m4(path)
    for n, last in itertools.product((1, 2, 3, 7, 12), ("stop", "denoise")):
        if (n, last) == (1, "denoise"):
            continue  # has no steps of the solver at all
        grid = grids.karras(n, last=last)
        made = SolverSchedule.of(solver, path, grid)
        again = SolverSchedule.from_dict(json.loads(json.dumps(made.to_dict())))
        assert again == made
        ends = [run(p.folded("x0"), field, x) for p in (solver.plan(path, grid), again.plan())]
        scale = max(1.0, float(ends[0].abs().max()))
        assert float((ends[0] - ends[1]).abs().max()) <= 1e-12 * scale
        assert made.nfe == solver.plan(path, grid).nfe


@pytest.mark.parametrize("path", [pl.CondOT(), pl.paths.VPCosine()], ids=["flow", "cosine"])
def test_multistep_schedules_start_from_pure_noise_too(path):
    x, field = starts(), problems.m4(path)
    for solver in (pl.DDIM(), pl.DPMpp(order=3), UniPC(3)):
        plans = (
            solver.plan(path, grids.log_snr(6)),
            SolverSchedule.of(solver, path, grids.log_snr(6)).plan(),
        )
        ends = [run(plan.folded("velocity"), field_as(field, "velocity"), x) for plan in plans]
        torch.testing.assert_close(*ends, rtol=0, atol=1e-12)


def field_as(field, view):
    return pl.Denoiser(lambda x, t: field(x, t.reshape(-1)[0]).of(view), field.path, view=view)


def test_what_is_no_list_of_exponential_steps_is_refused():
    for solver, says in (
        (pl.Heun(), "is not a list of exponential steps"),
        (pl.DDIM(eta=1.0), "draws noise"),
        (DEIS(3, "t"), "choose variable='lambda'"),
    ):
        with pytest.raises(pl.UsageError, match=says):
            SolverSchedule.of(solver, VP, grids.log_snr(4))


# --- the estimator of derivatives ------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_derivatives_are_exact_on_polynomials_of_as_many_points(m):
    """Uneven points on both sides; all derivatives k ≤ m of every power up to m."""
    offsets = [-0.7, 0.31, -1.9, 1.13][:m]
    for k, power in itertools.product(range(1, m + 1), range(m + 1)):
        weights = derivative_weights(offsets, k)
        values = [delta**power for delta in offsets]
        origin = 1.0 if power == 0 else 0.0
        estimate = sum(a * (f - origin) for a, f in zip(weights, values, strict=True))
        exact = float(np.prod(range(1, k + 1))) if power == k else 0.0
        assert estimate == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("m,k", [(m, k) for m in (1, 2, 3, 4) for k in range(1, m + 1)])
def test_the_error_of_a_derivative_falls_as_it_should(m, k):
    """O(δ^{m+1−k}) on e^λ, whose every derivative at 0 is 1."""
    widths, errors = (0.2, 0.1, 0.05), []
    for width in widths:
        offsets = [width * delta for delta in (-0.7, 0.31, -1.9, 1.13)[:m]]
        weights = derivative_weights(offsets, k)
        estimate = sum(a * np.expm1(d) for a, d in zip(weights, offsets, strict=True))
        errors.append(abs(estimate - 1))
    slope = -fitted_slope(widths, errors)
    assert slope == pytest.approx(m + 1 - k, abs=0.2)


def test_each_derivative_may_have_points_of_its_own():
    """D1 from the newest point, D2 from two: the weights by hand."""
    levels = Writer(VP, (0.7, 0.5, 0.4, 0.2), False).levels
    s, t, others = levels[2], levels[3], [levels[1], levels[0]]
    linear, weights = expansion_weights("x0", s, t, others, counts=(1, 2))
    h = t.log_snr - s.log_snr
    deltas = [(level.log_snr - s.log_snr) for level in others]
    slope = 1 / deltas[0]
    curve = derivative_weights(deltas, 2)
    # ∫ of the Taylor polynomial against e^λ, by quadrature
    nodes, w = np.polynomial.legendre.leggauss(40)
    u = h * (nodes + 1) / 2
    kernel = t.alpha * np.exp(u - h) * w * h / 2
    first, second = (kernel * u).sum(), (kernel * u**2 / 2).sum()
    expected = [
        kernel.sum() - first * slope - second * sum(curve),
        first * slope + second * curve[0],
        second * curve[1],
    ]
    assert weights == pytest.approx(expected, rel=1e-11)
    assert linear == pytest.approx(t.sigma / s.sigma)


@pytest.mark.parametrize(
    "choice",
    [
        StepChoice(order=3, points=(1, 2)),
        StepChoice(order=3, points=(2, 3)),
        StepChoice(order=3, scale="bh1"),
        StepChoice("eps", order=2, scale=0.05),
        StepChoice("eps", order=2, scale="exp+"),
        StepChoice("eps", order=2, corrector="pseudo"),
        StepChoice(order=2, corrector="implicit"),
        StepChoice(order=3, nudges=(0.1, 0.05)),
        StepChoice("eps", order=2, nudges=(0.4,), corrector="pseudo"),
        StepChoice(order=2, corrector="pseudo", corrector_nudges=(0.05,)),
        StepChoice(order=4),
    ],
    ids=repr,
)
def test_choices_converge_at_the_order_they_claim(choice):
    """On M4 over 80 to 320 steps; more points than derivatives may only help."""
    measured = Unified((choice,)).plan(VP, grids.log_snr(10)).order()
    most = 0.5 if max(choice.counts) > choice.order - 1 else 0.2
    assert choice.convergence - 0.2 < measured < choice.convergence + most


@pytest.mark.parametrize("view", ["x0", "eps"])
def test_a_nudge_by_the_slope_is_order_two(view):
    """h φ_2(z)/φ_1(z) D^(1), moved by hand from the start's evaluation to the one before."""
    times = grids.karras(4).times(VP)
    levels = Writer(VP, times, False).levels
    choices = [StepChoice(view, 1)]
    for before, s, t in zip(levels, levels[1:], levels[2:], strict=False):
        h, back = t.log_snr - s.log_snr, before.log_snr - s.log_snr
        z = h if view == "eps" else -h
        choices.append(StepChoice(view, 1, nudges=(h / back * phi(2, z) / phi(1, z),)))
    nudged = SolverSchedule(VP, times, tuple(choices))
    usual = SolverSchedule(VP, times, tuple(StepChoice(view, min(i, 2)) for i in (1, 2, 2, 2)))
    assert SolverSchedule.from_dict(json.loads(json.dumps(nudged.to_dict()))) == nudged
    ends = [pl.solve(problems.m4(VP), starts(), solver=each).x for each in (nudged, usual)]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-12)


def test_a_corrector_is_nudged_by_itself():
    """Order 1, corrected, its trapezoid's weight moved by hand to twice the share of F_t."""
    choice = StepChoice(order=1, corrector="pseudo", corrector_nudges=(0.25,))
    made, field, x = schedule(choice, StepChoice(order=1)), problems.m4(VP), starts()
    first, middle, last = Writer(VP, made.times, False).levels
    f0 = field(x, first.t).x0
    linear, (w0, w1) = expansion_weights("x0", first, middle, [middle], counts=(1,))
    predicted = linear * x + (w0 + w1) * f0
    f1 = field(predicted, middle.t).x0
    corrected = linear * x + w0 * f0 + w1 * f1 + 0.25 * (w0 + w1) * (f1 - f0)
    ratio, (w,) = expansion_weights("x0", middle, last, [], counts=())
    end = ratio * corrected + w * f1
    torch.testing.assert_close(pl.solve(field, x, solver=made).x, end, rtol=0, atol=1e-12)


def test_gains_magnify_the_state_and_what_is_added():
    choice = StepChoice(order=1, gains=(0.1, -0.2))
    made, field, x = schedule(choice, StepChoice(order=1)), problems.m4(VP), starts()
    first, middle, last = Writer(VP, made.times, False).levels
    (a, (b,)), (c, (d,)) = (
        expansion_weights("x0", s, t, [], counts=()) for s, t in ((first, middle), (middle, last))
    )
    half = 1.1 * a * x + 0.8 * b * field(x, first.t).x0
    end = c * half + d * field(half, middle.t).x0
    torch.testing.assert_close(pl.solve(field, x, solver=made).x, end, rtol=0, atol=1e-12)
    assert choice.convergence == 0
    assert SolverSchedule.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    with pytest.raises(pl.UsageError, match="give two"):
        StepChoice(gains=(0.1,))


# --- the first point, correctors, and what they cost ---------------------------------------------


def counted(plan, path=VP):
    calls = []

    def network(x, t):
        calls.append(t)
        return x

    pl.solve(pl.Denoiser(network, path, view="x0"), starts(2), solver=plan)
    return len(calls)


def test_evaluations_are_the_steps_less_the_guess_and_more_for_implicit_correctors():
    pseudo, implicit = (StepChoice(order=1, corrector=c) for c in ("pseudo", "implicit"))
    for middle, guess in itertools.product((pseudo, implicit), (None, 0.0)):
        made = schedule(StepChoice(order=1), middle, middle, StepChoice(), guess=guess)
        cost = 4 - (guess is not None) + 2 * (middle is implicit)
        assert made.nfe == cost == counted(made.plan())


@pytest.mark.parametrize("view", ["x0", "eps"])
def test_a_guess_is_an_evaluation_that_returns_it(view):
    """As a field that says the guess at the first time, and the truth afterwards."""
    mean = torch.tensor([0.15, -0.2, 0.3], dtype=torch.float64)
    choices = [StepChoice(view, order=min(i + 1, 3)) for i in range(5)]
    field, x = problems.m4(VP), starts()

    def network(state, t):
        if float(t[0]) == 1.0:
            return mean.expand_as(state)
        return field(state, t[0]).x0

    told = pl.solve(pl.Denoiser(network, VP, view="x0"), x, solver=schedule(*choices)).x
    guessed = schedule(*choices, guess=mean.tolist())
    torch.testing.assert_close(pl.solve(field, x, solver=guessed).x, told, rtol=0, atol=1e-12)
    zero = schedule(*choices, guess=0.0)
    assert pl.solve(field, x, solver=zero).stats.nfe == 4


def test_an_implicit_corrector_evaluates_where_it_has_corrected():
    """Two steps by hand, order 1: predict, trapezoid-correct, evaluate there, go on."""
    field, x = problems.m4(VP), starts()
    made = schedule(StepChoice(order=1, corrector="implicit"), StepChoice(order=1))
    first, middle, last = Writer(VP, made.times, False).levels

    def step(state, s, t, f, g=None):
        others = [] if g is None else [t]
        linear, w = expansion_weights("x0", s, t, others, counts=(1,) * len(others))
        return linear * state + w[0] * f + (w[1] * g if g is not None else 0)

    f0 = field(x, first.t).x0
    predicted = step(x, first, middle, f0)
    corrected = step(x, first, middle, f0, field(predicted, middle.t).x0)
    end = step(corrected, middle, last, field(corrected, middle.t).x0)
    torch.testing.assert_close(pl.solve(field, x, solver=made).x, end, rtol=0, atol=1e-12)


# --- files, receipts, models ------------------------------------------------------------


def test_a_schedule_is_saved_and_runs_wherever_a_solver_does(tmp_path):
    made = schedule(StepChoice(order=1), StepChoice("eps", scale=0.02), about={"by": "hand"})
    again = SolverSchedule.load(made.save(tmp_path / "found.json"))
    assert again == made and again.about == made.about
    field = problems.m4(VP)
    sol = pl.sample(field, 4, solver=again, dtype=torch.float64)
    assert torch.equal(sol.x, pl.sample(field, 4, solver=made.plan(), dtype=torch.float64).x)
    recipe = json.loads(sol.receipt.to_json())["recipe"]
    solver = pl.solvers.solver.solvers.rebuild(recipe["solver"])
    assert solver == made.solver
    assert pl.solvers.grids.grids.rebuild(recipe["grid"]) == made.grid


def test_a_model_has_schedules_of_its_own(tmp_path):
    made = schedule(StepChoice(order=1), StepChoice())
    field = problems.m4(VP)
    model = pl.Denoiser(
        lambda x, t: field(x, t[0]).x0, VP, "x0", shape=(3,), details={"folder": str(tmp_path)}
    )
    with pytest.raises(pl.UsageError, match="has no schedules; find some with: pathline tune"):
        pl.sample(model, 2, solver="s3")
    made.save(schedule_file(tmp_path, 2))
    for asked in (None, 2):
        sol = pl.sample(model, 2, solver="s3", steps=asked)
        assert torch.equal(sol.x, pl.sample(model, 2, solver=made).x) and sol.stats.nfe == 2
    made.save(schedule_file(tmp_path, 8))
    with pytest.raises(pl.UsageError, match="no schedule of 5 .* the nearest have 2 and 8"):
        pl.sample(model, 2, solver="s3", steps=5)
    with pytest.raises(pl.UsageError, match="has 2 evaluations, and not 8"):
        saved_schedule(model, 8)
    with pytest.raises(pl.UsageError, match="not from a folder"):
        pl.sample(dataclasses.replace(model, details={}), 2, solver="s3", steps=2)


# --- what cannot be ------------------------------------------------------------


@pytest.mark.parametrize(
    "make,says",
    [
        (lambda: StepChoice(order=5), "choose from 1 to 4"),
        (lambda: StepChoice(start=0), "refers to the future"),
        (lambda: StepChoice(order=3, points=(1, 1)), "derivative 2 needs at least 2 points"),
        (lambda: StepChoice(order=3, points=(2,)), "estimates 2 derivatives"),
        (lambda: StepChoice(prediction="v3"), "choose 'x0', 'eps'"),
        (lambda: StepChoice(scale="bh3"), "scale='bh3'"),
        (lambda: StepChoice(scale=float("nan")), "finite number"),
        (lambda: StepChoice(nudges=(float("inf"),)), "nudges=.* must be finite"),
        (
            lambda: schedule(StepChoice(order=1), StepChoice(order=1, nudges=(0.1, 0.1))),
            "step 2 nudges 2 earlier evaluations besides its start's, and there are 1",
        ),
        (lambda: schedule(StepChoice(order=1), StepChoice(order=3)), "step 2 of order 3 needs 2"),
        (lambda: schedule(StepChoice(order=1), StepChoice(start=-3)), "step 2 starts 3 points"),
        (
            lambda: schedule(StepChoice(order=1), StepChoice(corrector="pseudo")),
            "step 2 is the last, where a corrector",
        ),
        (lambda: schedule({"order": 1}, {"order": 0}), "step 2: order=0"),
        (lambda: schedule({"order": 1}, {"ordr": 2}), "step 2: a step has prediction, order"),
        (lambda: SolverSchedule(VP, (1.0, 0.5, 0.5), ({"order": 1},) * 2), "step 2 goes from"),
        (lambda: SolverSchedule(VP, (0.1, 0.5), ({"order": 1},)), "times of a schedule fall"),
        (lambda: SolverSchedule(VP, (1.5, 0.5), ({"order": 1},)), "from 0 .data. to 1"),
        (lambda: SolverSchedule(VP, (1.0, 0.5, 0.1), ({"order": 1},)), "go between 2 times"),
        (
            lambda: SolverSchedule(VP, (1.0, 0.5, 0.5 - 1e-9), ({"order": 1},) * 2).plan(),
            "step 2 moves by .* in λ",
        ),
        (lambda: schedule(StepChoice(order=1)).plan(pl.EDM()), "made for the path VPLinear"),
        (lambda: schedule(StepChoice("eps", 1), path=pl.CondOT()).plan(), "cannot start"),
        (lambda: schedule(StepChoice(order=1), guess="blue"), "must be numbers"),
        (lambda: SolverSchedule.from_dict({"plan": 1}), "not a solver schedule of format 1"),
        (lambda: Unified(()), "at least one choice"),
    ],
)
def test_schedules_that_cannot_be_are_refused(make, says):
    with pytest.raises(pl.UsageError, match=says):
        make()


def test_a_damaged_file_is_told_by_name(tmp_path):
    content = schedule(StepChoice(order=1)).to_dict()
    for damage, says in (
        ({"choices": [{"order": 9}]}, "bad.json: step 1: order=9"),
        ({"times": None}, "bad.json: the schedule is damaged"),
        ({"times": ["x", 0.5]}, "bad.json: the schedule is damaged: could not convert"),
        ({"choices": [{"order": 1, "nudges": ["a"]}]}, "bad.json: step 1: could not convert"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps(content | damage))
        with pytest.raises(pl.UsageError, match=says):
            SolverSchedule.load(tmp_path / "bad.json")
    with pytest.raises(pl.UsageError, match="cannot read a schedule"):
        SolverSchedule.load(tmp_path / "none.json")

"""The contract that every registered solver inherits: no code per solver.

Orders are measured on M4, a mixture with an exact denoiser, in float64, against a reference by
SciPy's DOP853 at a relative tolerance of 1e-12: nothing of ours but the path and the mixture, which
have tests of their own.
"""

import dataclasses
import functools
import itertools
import json
import math
import warnings

import pytest
import torch
from scipy.integrate import solve_ivp

import pathline as pl
from pathline.core import noise
from pathline.fields import VIEWS, Field, problems
from pathline.paths import paths
from pathline.solvers import Stepped, solvers
from pathline.solvers.execute import run
from pathline.solvers.grids import grids
from pathline.solvers.order import fitted_slope
from pathline.solvers.reference import moments

SOLVERS = {e.name: s for e in solvers if not isinstance(s := e.build(), Stepped)}
STEPPED = {e.name: s for e in solvers if isinstance(s := e.build(), Stepped)}
ADAPTIVE = {name: s for name, s in STEPPED.items() if s.is_adaptive}
FIXED = {name: s for name, s in SOLVERS.items() if not s.is_stochastic}
STOCHASTIC = {name: s for name, s in SOLVERS.items() if s.is_stochastic}
GRIDS = [entry.name for entry in grids if entry.name != "times"]
# Where the noise is not Gaussian the flow is that of path.gaussian, bit for bit (test_pfgmpp.py).
PATHS = {entry.name: entry.build() for entry in paths}
PATHS = {name: path for name, path in PATHS.items() if path.kernel.is_gaussian}
VP = pl.VPLinear()

every = pytest.mark.parametrize("name", SOLVERS)
every_fixed = pytest.mark.parametrize("name", FIXED)


def starts(n=16, dim=3):
    return noise.normal(range(n), (dim,), dtype=torch.float64)


def made(name, path=VP):
    """The solver; one that is tuned to models, with the statistics of standard normal data."""
    return SOLVERS[name].standard(path)


def can_start(name, path):
    """Whether the solver can start from t_max: one in ε cannot where α = 0."""
    return SOLVERS[name].view != "eps" or float(path.alpha(path.t_max)) > 0


def rmse(a, b):
    return float((a - b).square().mean().sqrt())


@functools.cache
def reference():
    """The end points of `starts()` on M4, integrated as x/α over λ by SciPy."""
    mixture, x = problems.m4(VP), starts()

    def slope(level, y):
        level = torch.tensor(level, dtype=torch.float64)
        t = VP.time_of_log_snr(level)
        state = torch.from_numpy(y).reshape(x.shape) * VP.alpha(t)
        return (-(-level).exp() * mixture(state, t).eps).flatten().numpy()

    first = (x / VP.alpha(1.0)).flatten().numpy()
    done = solve_ivp(slope, VP.log_snr_range(), first, "DOP853", rtol=1e-12, atol=1e-12)
    return torch.from_numpy(done.y[:, -1]).reshape(x.shape) * VP.alpha(VP.t_min)


LATE = {"adams_pc": 3.7}
"""What is of order 4, and still measures so much at 80 to 320 steps: see `test_adams`."""


@every_fixed
def test_the_claimed_order_is_the_measured_order(name):
    """Slope of log error over 80, 160 and 320 steps, uniform in log-SNR."""
    solver, counts = made(name), (80, 160, 320)
    plans = [solver.plan(VP, pl.grids.log_snr(n)).folded("x0") for n in counts]
    errors = [rmse(run(plan, problems.m4(VP), starts()), reference()) for plan in plans]
    assert fitted_slope(counts, errors) == pytest.approx(
        LATE.get(name, solver.convergence), abs=0.15
    )


@every_fixed
def test_a_plan_measures_its_own_order(name):
    plan = made(name).plan(VP, pl.grids.log_snr(10))
    claimed = FIXED[name].convergence
    assert plan.order() == pytest.approx(LATE.get(name, claimed), abs=0.15)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_claimed_weak_order_is_the_measured_one(name):
    """On Gaussian data every state is Gaussian; `moments` carries its variance exactly."""
    law = pl.Gaussian(VP, torch.zeros(1), torch.tensor([0.25], dtype=torch.float64))
    counts, errors = (80, 160, 320), []
    for n in counts:
        plan = made(name).plan(VP, pl.grids.log_snr(n))
        _, variance = moments(plan, law, 0.0, float(VP.sigma(1.0)) ** 2)
        exact = VP.alpha(VP.t_min) ** 2 * 0.25 + VP.sigma(VP.t_min) ** 2
        errors.append(abs(variance - float(exact)))
    assert fitted_slope(counts, errors) == pytest.approx(STOCHASTIC[name].convergence, abs=0.15)


@every
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("grid", GRIDS)
def test_a_constant_field_is_integrated_exactly(name, n, grid):
    """Data that is one point, on the straight path: every view is constant along a trajectory."""
    point, path, eps = torch.tensor([[1.5, -2.0]], dtype=torch.float64), pl.CondOT(), starts(4, 2)
    if not SOLVERS[name].is_exact_on_points:
        pytest.skip("not claimed")
    first = None if can_start(name, path) else 0.9
    plan = made(name, path).plan(path, grids.build(grid, n=n, start=first))
    data, x = pl.Dataset(path, point), path.noised(point, eps, plan.start[0])
    if plan.is_stochastic:
        (t,) = plan.start
        before = 1.5 * float(path.alpha(t)), float(path.sigma(t)) ** 2
        mean, variance = moments(plan, pl.Dataset(path, point[:, :1]), *before)
        exact = 1.5 * float(path.alpha(path.t_min)), float(path.sigma(path.t_min)) ** 2
        assert (mean, variance) == pytest.approx(exact, rel=1e-9)
    else:
        end = run(plan.folded("x0"), data, x)
        exact = path.noised(point, eps, path.t_min)
        torch.testing.assert_close(end, exact, rtol=1e-9, atol=1e-9)


@every
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("last", ["stop", "denoise"])
def test_every_view_of_the_network_gives_the_same_result(name, n, path, last):
    """Folding a change of view into the plan changes nothing, on any path, down to one step."""
    path = PATHS[path]
    mixture, seeds = problems.m4(path), range(4)
    grid = pl.grids.log_snr(n, last=last)
    if not can_start(name, path):
        with pytest.raises(pl.UsageError, match="a solver in ε cannot start"):
            made(name, path).plan(path, pl.grids.log_snr(2))
        grid = pl.grids.log_snr(n, start=0.99, last=last)
    ends = []
    for view in VIEWS:
        if view in ("eps", "score") and grid.start is None and not float(path.alpha(path.t_max)):
            continue  # an ε network cannot start where there is no signal
        model = pl.Denoiser(Viewed(mixture, view), path, view=view)
        sol = pl.sample(
            model,
            solver=made(name, path),
            grid=grid,
            seeds=seeds,
            shape=(3,),
            dtype=torch.float64,
        )
        assert sol.ok and sol.t == (0 if last == "denoise" else path.t_min)
        ends.append(sol.x)
    for end in ends[1:]:
        scale = float(ends[0].abs().max())
        torch.testing.assert_close(end, ends[0], rtol=1e-7, atol=1e-7 * scale)


class Viewed:
    """A network that says what the mixture knows, in one view."""

    def __init__(self, mixture, view):
        self.mixture, self.view = mixture, view

    def __call__(self, x, t):
        return self.mixture(x, t).of(self.view)


@every
def test_the_last_step_to_data_is_the_denoised_state(name):
    mixture = problems.m4(VP)
    seen = list(
        pl.steps(
            mixture,
            solver=made(name),
            grid=pl.grids.karras(5, last="denoise"),
            shape=(3,),
            dtype=torch.float64,
        )
    )
    torch.testing.assert_close(seen[-1].x, mixture(seen[-2].x, VP.t_min).x0)
    assert seen[-1].t == 0 and seen[-2].t == VP.t_min


@every
def test_a_sample_is_bitwise_the_same_alone_in_any_batch_in_any_order(name):
    seeds = [5, 1, 9, 0, 3]

    def draw(some, shape):
        field = Elementwise(VP) if shape != (3,) else problems.m4(VP)
        return pl.sample(field, solver=made(name), steps=4, seeds=some, shape=shape).x

    for shape in [(3,), (7,), (2, 3, 3)]:
        together, turned = draw(seeds, shape), draw(seeds[::-1], shape).flip(0)
        assert torch.equal(together, turned)
        for i, seed in enumerate(seeds):
            assert torch.equal(together[i], draw([seed], shape)[0])


class Elementwise(Field):
    """Standard normal data of any shape, from rounded operations only."""

    view = "x0"

    def __init__(self, path):
        self.path = path

    def evaluate(self, x, t, cond):
        alpha, sigma = float(self.path.alpha(t)), float(self.path.sigma(t))
        return x * (alpha / (alpha**2 + sigma**2))


@every
def test_any_shape_gives_the_same_numbers(name):
    flat = pl.sample(Elementwise(VP), 3, solver=made(name), steps=4, shape=(24,)).x
    for shape in [(24, 1), (2, 3, 4), (1, 2, 3, 4)]:
        x = pl.sample(Elementwise(VP), 3, solver=made(name), steps=4, shape=shape).x
        assert torch.equal(x.flatten(1), flat)


@every
def test_float32_follows_float64(name):
    """To about the steps times the rounding unit; the network is the same."""
    ends = [
        pl.sample(
            problems.m4(VP), 8, solver=made(name), steps=10, shape=(3,), dtype=dtype
        ).x.double()
        for dtype in (torch.float32, torch.float64)
    ]
    torch.testing.assert_close(ends[0], ends[1], rtol=2e-4, atol=2e-5)


@every
def test_evaluations_are_what_was_claimed_and_counted(name):
    solver, calls = made(name), []

    def network(x, t):
        calls.append(x.shape)
        return x

    model = pl.Denoiser(network, VP, view="v")
    for n, last in itertools.product([1, 2, 5], ["stop", "denoise"]):
        calls.clear()
        plan = solver.plan(VP, pl.grids.log_snr(n, last=last))
        sol = pl.sample(model, 2, solver=plan, shape=(3,))
        closes = last == "denoise"
        claimed = solver.evaluations(n - closes) + closes
        assert sol.stats.nfe == plan.nfe == len(calls) == claimed


@every_fixed
@pytest.mark.parametrize("path", [VP, pl.CondOT()], ids=["vp", "to pure noise"])
def test_the_way_back_leads_back_at_the_claimed_order(name, path):
    """Data → noise → data by the same call on the reversed grid; the error falls as it should.

    Multistep methods start each way with lower orders, so only order one is asked of them; and on
    the straight path of all, for its grid ends where λ is infinite.
    """
    if not can_start(name, path):
        pytest.skip("a solver in ε cannot start back from t = 1")
    solver, mixture, counts, errors = made(name, path), problems.m4(path), (40, 80), []
    x = pl.sample(mixture, 16, solver="rk4", steps=80, dtype=torch.float64).x
    for n in counts:
        grid = pl.grids.log_snr(n)
        z = pl.solve(mixture, x, solver=solver, grid=grid.reverse(path)).x
        errors.append(rmse(pl.solve(mixture, z, solver=solver, grid=grid).x, x))
    least = 0.8 if solver.nfe_per_step == 1 or path != VP else solver.order - 0.3
    assert fitted_slope(counts, errors) > least


@every
def test_a_solve_is_pure(name):
    """Run twice, and after other work: the same bits; nothing is stored on solver or plan."""
    solver = made(name)
    plan = solver.plan(VP, pl.grids.log_snr(5))
    before = (solver, plan.to_dict())
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first = pl.sample(problems.m4(VP), 3, solver=plan, shape=(3,)).x
    pl.sample(problems.m4(VP), 2, solver=plan, shape=(3,), seed=77)
    assert torch.equal(first, pl.sample(problems.m4(VP), 3, solver=plan, shape=(3,)).x)
    assert (solver, plan.to_dict()) == before
    assert torch.equal(torch.random.get_rng_state(), state)


@every
def test_a_saved_plan_computes_the_same_bits(name, tmp_path):
    plan = made(name).plan(VP, pl.grids.karras(6))
    again = pl.Plan.load(plan.save(tmp_path / "plan.json"))
    assert again.to_dict() == plan.to_dict()
    ends = [pl.sample(problems.m4(VP), 3, solver=p, shape=(3,)).x for p in (plan, again)]
    assert torch.equal(*ends)
    assert solvers.rebuild(solvers.describe(SOLVERS[name])) == SOLVERS[name]


@every
def test_the_result_is_differentiable_in_start_and_field(name):
    plan = made(name).plan(VP, pl.grids.log_snr(3))

    def end(x, scale):
        model = pl.Denoiser(lambda x, t: torch.tanh(x * scale), VP, view="v")
        return pl.solve(model, x, solver=plan, seeds=[0, 1]).x

    x = starts(2).requires_grad_()
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(end, (x, scale))
    assert torch.autograd.gradgradcheck(end, (x, scale))


@every_fixed
def test_per_sample_results_do_not_depend_on_a_failing_neighbour(name):
    def network(x, t):
        return torch.where(x[:, :1] > 50, float("inf"), x)  # x / 0 would have a NaN for a slope

    model = pl.Denoiser(network, VP, view="v")
    x = starts(3)
    bad = torch.cat((x, torch.full((1, 3), 99.0, dtype=torch.float64)))
    sol = pl.solve(model, bad, solver=made(name), steps=3, on_failure="return")
    assert [s.name for s in sol.statuses] == ["OK", "OK", "OK", "NON_FINITE"]
    assert torch.equal(sol.x[:3], pl.solve(model, x, solver=made(name), steps=3).x)


@pytest.mark.parametrize("name", [n for n, s in FIXED.items() if not s.needs_path])
def test_plain_differential_equations_too(name):
    """dx/dt = −x² cos t has x = 1/(1/x₀ + sin t), forwards and backwards."""
    solver, counts, errors = FIXED[name], (80, 160, 320), []
    if name == "reversible_heun":  # its two states drift apart where x falls: finer steps
        counts = (320, 640, 1280)
    x = 2 + 0.1 * starts()
    for n in counts:
        grid = pl.grids.uniform(n, start=0.0, end=2.0)
        sol = pl.solve(lambda x, t: -(x**2) * torch.cos(t), x, solver=solver, grid=grid)
        errors.append(rmse(sol.x, 1 / (1 / x + math.sin(2.0))))
    assert fitted_slope(counts, errors) == pytest.approx(solver.convergence, abs=0.15)


@pytest.mark.parametrize("name", [n for n, s in SOLVERS.items() if s.needs_path])
def test_what_needs_a_path_says_so(name):
    with pytest.raises(pl.UsageError, match="needs a path"):
        pl.solve(lambda x, t: x, starts(), solver=made(name), grid=pl.grids.uniform(2, 1.0, 0.0))


# --- stepped solvers: no plan, each sample at its own pace --------------------------------------

every_stepped = pytest.mark.parametrize("name", STEPPED)
every_adaptive = pytest.mark.parametrize("name", ADAPTIVE)


class Rational(Field):
    """Standard normal data on the straight path, from rounded operations only, at any times."""

    view, path = "x0", pl.CondOT()

    def __init__(self, splits=True):
        self.splits, self.rows = splits, 0

    def part(self, cond, rows):
        return cond if self.splits else None

    def evaluate(self, x, t, cond):
        self.rows += len(x)
        t = t.reshape(-1, *[1] * (x.ndim - 1)) if t.ndim else t
        return (x.double() * ((1 - t) / ((1 - t) ** 2 + t**2))).to(x)


def from_here(n=1, last="stop"):
    """A grid that every solver can start on the straight path."""
    return pl.grids.log_snr(n, start=0.9, last=last)


@every_adaptive
def test_a_tighter_tolerance_makes_a_smaller_error_for_more_evaluations(name):
    errors, spent = [], []
    for tolerance in (1e-2, 1e-4, 1e-6):
        solver = dataclasses.replace(ADAPTIVE[name], rtol=tolerance, atol=tolerance)
        sol = pl.solve(problems.m4(VP), starts(), solver=solver)
        errors.append(rmse(sol.x, reference()))
        spent.append(sol.stats.nfe)
    assert errors[0] > 5 * errors[1] > 25 * errors[2] and errors[2] < 2e-5
    assert spent == sorted(spent) and spent[0] < spent[2]


@every_stepped
@pytest.mark.parametrize("splits", [True, False], ids=["sub-batches", "whole batches"])
def test_stepped_samples_are_bitwise_the_same_alone_in_any_batch_in_any_order(name, splits):
    seeds = [5, 1, 9, 0, 3, 8]

    def draw(some, shape):
        grid = from_here(3)
        return pl.sample(Rational(splits), solver=STEPPED[name], grid=grid, seeds=some, shape=shape)

    for shape in [(3,), (7,), (2, 3, 3)]:
        together, turned = draw(seeds, shape), draw(seeds[::-1], shape)
        assert torch.equal(together.x, turned.x.flip(0))
        assert together.nfes == turned.nfes[::-1]
        for i, seed in enumerate(seeds):
            alone = draw([seed], shape)
            assert torch.equal(together.x[i], alone.x[0])
            assert together.nfes[i] == alone.stats.nfe


@every_stepped
def test_every_sample_pays_for_its_own_evaluations_only(name):
    field = Rational()
    sol = pl.sample(field, 9, solver=STEPPED[name], grid=from_here(2), shape=(4,))
    assert field.rows == sum(sol.nfes) and sol.stats.nfe == max(sol.nfes)
    assert sol.stats.steps == max(walk.steps for walk in sol.stats.walks)
    assert sol.stats.rejected == max(walk.rejected for walk in sol.stats.walks)
    if name not in ADAPTIVE:
        assert sol.nfes == (2 * STEPPED[name].nfe_per_step,) * 9


@every_stepped
@pytest.mark.parametrize("last", ["stop", "denoise"])
def test_every_view_of_the_network_gives_the_same_stepped_result(name, last):
    mixture, ends = problems.m4(VP), []
    for view in VIEWS:
        model = pl.Denoiser(Viewed(mixture, view), VP, view=view, shape=(3,))
        grid = pl.grids.log_snr(6 if name not in ADAPTIVE else 2, last=last)
        sol = pl.sample(model, 4, solver=STEPPED[name], grid=grid, dtype=torch.float64)
        assert sol.ok and sol.t == (0 if last == "denoise" else VP.t_min)
        ends.append(sol.x)
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-7, atol=1e-7)


@every_stepped
def test_a_stepped_solve_ends_in_the_denoised_state_and_stops_over_at_the_grid(name):
    grid = pl.grids.karras(5, last="denoise")
    how = {"solver": STEPPED[name], "grid": grid, "shape": (3,), "dtype": torch.float64}
    seen = list(pl.steps(problems.m4(VP), 2, **how))
    assert [step.t for step in seen] == list(grid.times(VP))[1:]
    before_last = problems.m4(VP)(seen[-2].x, VP.t_min).x0
    if name in ADAPTIVE:
        torch.testing.assert_close(seen[-1].x, before_last)
    sol = pl.sample(problems.m4(VP), 2, **how, trajectory=True)
    assert torch.equal(sol.trajectory[1:], torch.stack([step.x for step in seen]))
    assert sol.times.tolist() == list(grid.times(VP))


@every_stepped
def test_a_stepped_solve_is_pure_and_its_receipt_makes_it_again(name):
    solver, torch_state = STEPPED[name], torch.random.get_rng_state()
    how = {"solver": solver, "grid": from_here(3), "shape": (3,)}
    first = pl.sample(problems.m4(pl.CondOT()), 3, **how)
    pl.sample(problems.m4(pl.CondOT()), 2, **how, seed=77)
    told = json.loads(first.receipt.to_json())
    again = pl.sample(
        problems.m4(pl.CondOT()),
        solver=solvers.rebuild(told["recipe"]["solver"]),
        grid=grids.rebuild(told["recipe"]["grid"]),
        seeds=told["seeds"],
    )
    assert torch.equal(first.x, again.x) and again.receipt == first.receipt
    assert torch.equal(torch.random.get_rng_state(), torch_state)


@every_stepped
def test_any_shape_gives_the_same_numbers_stepped_too(name):
    how = {"solver": STEPPED[name], "grid": from_here(2)}
    flat = pl.sample(Rational(), 3, **how, shape=(24,)).x
    for shape in [(24, 1), (2, 3, 4), (1, 2, 3, 4)]:
        assert torch.equal(pl.sample(Rational(), 3, **how, shape=shape).x.flatten(1), flat)


@every_adaptive
def test_the_way_back_leads_back_within_the_tolerance(name):
    solver = dataclasses.replace(ADAPTIVE[name], rtol=1e-5, atol=1e-5)
    x, mixture = reference(), problems.m4(VP)
    z = pl.solve(mixture, x, solver=solver, grid=pl.grids.log_snr(1).reverse(VP)).x
    back = pl.solve(mixture, z, solver=solver).x
    assert rmse(back, x) < 3e-4
    assert rmse(z, starts()) < 3e-4


@every_stepped
def test_a_failing_neighbour_changes_nothing(name):
    def network(x, t):
        return torch.where(x[:, :1] > 50, float("inf"), x)  # x / 0 would have a NaN for a slope

    model = pl.Denoiser(network, VP, view="v")
    bad = torch.cat((starts(3), torch.full((1, 3), 99.0, dtype=torch.float64)))
    how = {"solver": STEPPED[name], "steps": 3}
    sol = pl.solve(model, bad, **how, seeds=range(4), on_failure="return")
    assert [s.name for s in sol.statuses] == ["OK", "OK", "OK", "NON_FINITE"]
    assert torch.equal(sol.x[:3], pl.solve(model, starts(3), **how, seeds=range(3)).x)
    with pytest.raises(pl.NonFiniteError, match=r"sample 3 \(seed 3\): the field's output is not"):
        pl.solve(model, bad, **how, seeds=range(4))


@every_stepped
def test_a_stepped_solver_has_no_plan_and_says_so(name):
    with pytest.raises(pl.UsageError, match="has no plan"):
        STEPPED[name].plan(VP, pl.grids.log_snr(3))
    if STEPPED[name].needs_path:
        with pytest.raises(pl.UsageError, match="needs a path"):
            pl.solve(lambda x, t: x, starts(), solver=STEPPED[name], grid=[1.0, 0.0])


@pytest.mark.parametrize("name", [n for n, s in ADAPTIVE.items() if not s.needs_path])
def test_plain_differential_equations_to_a_tolerance(name):
    tolerance = 1e-8 if ADAPTIVE[name].order > 2 else 1e-6  # order two would take 10⁴ steps
    solver = dataclasses.replace(ADAPTIVE[name], rtol=tolerance, atol=tolerance)
    x = 2 + 0.1 * starts()
    sol = pl.solve(lambda x, t: -(x**2) * torch.cos(t), x, solver=solver, grid=[0.0, 2.0])
    assert rmse(sol.x, 1 / (1 / x + math.sin(2.0))) < 10 * tolerance


@every
@pytest.mark.parametrize("n", [2, 20])
@pytest.mark.parametrize("times", [(1.0, 0.0), (0.0, 1.0)], ids=["down", "up"])
def test_data_itself_is_met_or_refused_in_words(name, n, times):
    """At t = 0 σ vanishes: λ is infinite and ε̂ unknown, and no library may say so for us."""
    solver, x = SOLVERS[name], starts(2)
    grid = pl.grids.uniform(n, *times)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            sol = pl.solve(problems.m4(VP), x, solver=made(name), grid=grid, seeds=[0, 1])
        except pl.UsageError as error:
            assert "t_min" in str(error) or "λ = inf" in str(error) or solver.is_stochastic
        else:
            assert bool(sol.x.isfinite().all())

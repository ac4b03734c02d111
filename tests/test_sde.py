"""Stochastic equations: orders, laws, gradients, the way back, and what is refused."""

import math

import numpy as np
import pytest
import torch

import pathline as pl
from pathline.core import noise
from pathline.core.brownian import Brownian
from pathline.core.errors import UsageError
from pathline.fields import SDE, VectorField
from pathline.solvers import AdaptiveSDE, Plan, ReversibleHeun
from pathline.solvers.evaluate import Evaluator
from pathline.solvers.execute import Execution, combined, drawing
from pathline.solvers.reversal import inverse

DRIFT, NOISE = 0.5, 0.8
ITO = ("euler_maruyama", "milstein", "srk")
STRATONOVICH = ("heun", "midpoint", "euler_heun", "reversible_heun", "slow_rk")
WITH_AREA = ("srk", "slow_rk")


def uniform(n, end=1.0, start=0.0):
    return pl.grids.uniform(n, start=start, end=end)


def geometric(noise="diagonal"):
    return SDE(lambda x, t: DRIFT * x, lambda x, t: NOISE * x, noise=noise, sde_type="ito")


def general():
    """Two motions that do not commute."""
    a = torch.tensor([[0.0, 0.6], [0.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[0.0, 0.0], [0.6, 0.2]], dtype=torch.float64)
    return SDE(
        lambda x, t: -0.5 * x,
        lambda x, t: torch.stack((x @ a.T, x @ b.T), -1),
        noise="general",
        sde_type="ito",
        channels=2,
    )


def additive():
    return SDE(
        lambda x, t: torch.sin(2 * x),
        lambda x, t: torch.ones_like(x) * (0.5 + 0.3 * torch.cos(2 * t)),
        noise="additive",
    )


def slope(counts, errors):
    x, y = (np.log2(np.asarray(v)) for v in (counts, errors))
    return -np.polyfit(x, y, 1)[0]


def form(sde, solver):
    return sde.ito() if solver in ITO else sde.stratonovich()


@pytest.mark.parametrize(
    ("solver", "order"),
    [("euler_maruyama", 0.5), ("milstein", 1.0), ("srk", 1.5), ("heun", 1.0), ("midpoint", 1.0),
     ("euler_heun", 1.0), ("reversible_heun", 1.0), ("slow_rk", 1.5)],
)  # fmt: skip
def test_strong_orders_on_geometric_brownian_motion(solver, order):
    """Four halvings on one path each, 1000 of them; in one dimension all noise commutes."""
    n, counts = 1000, (16, 32, 64, 128, 256)
    path = Brownian(0.0, 1.0, tuple(range(n)), (1,), depth=8, has_area=solver in WITH_AREA)
    exact = torch.exp(DRIFT - NOISE**2 / 2 + NOISE * path(0.0, 1.0))
    sde, x = form(geometric(), solver).driven(path), torch.ones(n, 1, dtype=torch.float64)
    errors = [
        (pl.solve(sde, x, solver=solver, grid=uniform(m)).x - exact).abs().mean() for m in counts
    ]
    assert slope(counts, errors) == pytest.approx(order, abs=0.1)


def test_the_other_integral_is_another_process():
    """Heun on the Itô drift would be off by the correction, whatever the steps."""
    path = Brownian(0.0, 1.0, tuple(range(100)), (1,), depth=8)
    x = torch.ones(100, 1, dtype=torch.float64)
    said = SDE(geometric().drift, geometric().diffusion, noise="diagonal", sde_type="stratonovich")
    found = pl.solve(said.driven(path), x, solver="heun", grid=uniform(256)).x
    assert torch.allclose(found, torch.exp(DRIFT + NOISE * path(0.0, 1.0)), rtol=0.02)


@pytest.mark.parametrize(
    ("solver", "order"),
    [("euler_maruyama", 1.0), ("heun", 1.0), ("srk", 1.5), ("reversible_heun", 1.0),
     ("slow_rk", 1.5)],
)  # fmt: skip
def test_strong_orders_with_additive_noise(solver, order):
    n, counts = 200, (16, 32, 64, 128)
    path = Brownian(0.0, 1.0, tuple(range(n)), (1,), depth=10, has_area=True)
    sde, x = additive().driven(path), torch.ones(n, 1, dtype=torch.float64)
    exact = pl.solve(sde, x, solver="srk", grid=uniform(1024)).x
    errors = [
        (pl.solve(sde, x, solver=solver, grid=uniform(m)).x - exact).abs().mean() for m in counts
    ]
    assert slope(counts, errors) == pytest.approx(order, abs=0.2)  # 200 paths


def bounded():
    """A drift and a noise that do not commute, and depend on time."""
    return SDE(
        lambda x, t: torch.sin(2 * x) + t,
        lambda x, t: 0.5 + (0.3 + 0.2 * t) * torch.sin(x),
        noise="diagonal",
        sde_type="stratonovich",
    )


@pytest.mark.parametrize(("solver", "order"), [("heun", 1.0), ("slow_rk", 1.5)])
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0)])
def test_strong_orders_where_drift_and_noise_do_not_commute(solver, order, ends):
    """The reference is of another method in the other form, forward; back, a start found again."""
    n, counts = 200, (8, 16, 32, 64)
    path = Brownian(0.0, 1.0, tuple(range(n)), (1,), depth=10, has_area=True)
    x = torch.ones(n, 1, dtype=torch.float64)
    end = pl.solve(bounded().ito().driven(path), x, solver="srk", grid=uniform(1024)).x
    start, exact = (x, end) if ends[0] < ends[1] else (end, x)
    sde = bounded().driven(path)
    found = [pl.solve(sde, start, solver=solver, grid=uniform(m, ends[1], ends[0])).x
             for m in counts]  # fmt: skip
    assert slope(counts, [(y - exact).abs().mean() for y in found]) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("noise", ["diagonal", "scalar"])
def test_the_correction_is_the_derivative_in_every_mode(noise):
    """½ g' g, by the tape, within torch.func and without gradients, and differentiable."""
    w = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64, requires_grad=True)

    def g(x):
        return w * torch.sin(x) + 0.2 * x**2

    x = torch.linspace(-1, 2, 15, dtype=torch.float64).reshape(5, 3)
    sde = SDE(lambda x, t: -x, lambda x, t: g(x), noise=noise, sde_type="stratonovich")
    drift = sde.ito().drift
    exact = -x + 0.5 * (w * torch.cos(x) + 0.4 * x) * g(x)
    assert torch.allclose(drift(x, 0.0), exact, rtol=1e-14)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert torch.allclose(drift(x, 0.0), exact.detach(), rtol=1e-14)
    within = torch.func.vmap(lambda x: drift(x[None], 0.0)[0])(x)
    assert torch.allclose(within, exact, rtol=1e-14)
    y = x.clone().requires_grad_()
    found = torch.autograd.grad(drift(y, 0.0).square().sum(), [y, w])
    closed = -y + 0.5 * (w * torch.cos(y) + 0.4 * y) * g(y)
    for a, b in zip(found, torch.autograd.grad(closed.square().sum(), [y, w]), strict=True):
        assert torch.allclose(a, b, rtol=1e-12)
    still = SDE(lambda x, t: -x, lambda x, t: torch.ones_like(x), noise=noise, sde_type="ito")
    assert torch.equal(still.stratonovich().drift(x, 0.0), -x)
    assert (
        not SDE(torch.add, lambda x, t: x, noise=noise, sde_type="ito")
        .stratonovich()
        .drift(x, 0.0)
        .requires_grad
    )


@pytest.fixture(scope="module")
def reference():
    """A path of two motions, and where the equation that does not commute is led along it."""
    path = Brownian(0.0, 1.0, tuple(range(150)), (2,), depth=9, has_area=True)
    x = torch.ones(len(path), 2, dtype=torch.float64)
    return path, pl.solve(general().driven(path), x, solver="milstein", grid=uniform(512)).x


@pytest.mark.parametrize(("solver", "order"), [("euler_maruyama", 0.5), ("heun", 0.5),
                                               ("milstein", 1.0)])  # fmt: skip
def test_noise_that_does_not_commute_needs_the_levy_area(solver, order, reference):
    counts, (path, exact) = (8, 16, 32, 64), reference
    x = torch.ones(len(path), 2, dtype=torch.float64)
    sde = form(general(), "euler_maruyama" if solver == "milstein" else solver).driven(path)
    errors = [
        (pl.solve(sde, x, solver=solver, grid=uniform(m)).x - exact).norm(dim=1).mean()
        for m in counts
    ]
    assert slope(counts, errors) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("solver", [*ITO, *STRATONOVICH])
def test_weak_order_one_or_more(solver):
    """E x of dx = ½x dt + ¾x dW; the very path gives the exact value of every sample: a control."""
    n, counts, errors = 4000, (2, 4, 8), []
    x = torch.ones(n, 1, dtype=torch.float64)
    sde = form(geometric(), solver)
    for m in counts:
        path = Brownian(0.0, 1.0, tuple(range(n)), (1,), depth=3, has_area=solver in WITH_AREA)
        exact = torch.exp(DRIFT - NOISE**2 / 2 + NOISE * path(0.0, 1.0))
        found = pl.solve(sde.driven(path), x, solver=solver, grid=uniform(m)).x
        errors.append(abs(float((found - exact).mean())))
    assert slope(counts, errors) > 0.8


@pytest.mark.parametrize("solver", ["euler_maruyama", "srk", "heun", "reversible_heun", "slow_rk"])
def test_the_stationary_law_of_ornstein_uhlenbeck(solver):
    """dx = −x dt + 0.7 dW has the variance 0.245; at h = 0.05 Euler's is 0.245/(1 − h/2)."""
    n, h = 4000, 0.05
    sde = SDE(lambda x, t: -x, lambda x, t: torch.full_like(x, 0.7), noise="additive")
    x = 0.7 / math.sqrt(2) * noise.normal(range(n), (4,), dtype=torch.float64)
    found = pl.solve(sde, x, solver=solver, grid=uniform(40, 2.0), seed=10_000).x
    wanted = 0.245 / (1 - h / 2) if solver == "euler_maruyama" else 0.245
    tolerance = 5 * math.sqrt(2 / (4 * n)) + (0.01 if solver == "reversible_heun" else 0.002)
    assert float(found.var()) == pytest.approx(wanted, rel=tolerance)


def networks():
    torch.manual_seed(0)
    drift = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    spread = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Sigmoid())
    return drift.double(), spread.double()


def neural(drift, spread):
    return SDE(
        lambda x, t: drift(x),
        lambda x, t: spread(x).unflatten(-1, (3, 2)),
        noise="general",
        sde_type="stratonovich",
    )


@pytest.mark.parametrize("trajectory", [False, True])
@pytest.mark.parametrize("has_noise", [False, True])
def test_the_reversible_adjoint_is_the_gradient_of_the_solver(has_noise, trajectory):
    drift, spread = networks()
    field = neural(drift, spread) if has_noise else (lambda x, t: drift(x))
    weights = [*drift.parameters(), *(spread.parameters() if has_noise else ())]
    found = {}
    for adjoint in ("direct", "checkpoint", "reversible"):
        x = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
        sol = pl.solve(field, x, solver="reversible_heun", grid=uniform(30), seed=0,
                       adjoint=adjoint, trajectory=trajectory)  # fmt: skip
        loss = (sol.trajectory if trajectory else sol.x).sin().sum()
        gradients = torch.autograd.grad(loss, [x, *weights])
        found[adjoint] = torch.cat([g.flatten() for g in gradients])
        if adjoint == "reversible":
            assert sol.backward.drift < 1e-12
            assert sol.backward.nfe == sol.backward.vjps == sol.stats.nfe == 31
    for adjoint in ("checkpoint", "reversible"):
        off = (found[adjoint] - found["direct"]).norm() / found["direct"].norm()
        assert off < 1e-12


@pytest.mark.parametrize("noise", ["diagonal", "scalar"])
def test_the_reversible_adjoint_takes_back_one_motion_an_element_or_for_all(noise):
    drift, _ = networks()
    scale = torch.full((3,), 0.4, dtype=torch.float64, requires_grad=True)
    sde = SDE(lambda x, t: drift(x), lambda x, t: scale * x.cos(), noise=noise,
              sde_type="stratonovich")  # fmt: skip
    found = {}
    for adjoint in ("direct", "reversible"):
        x = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
        sol = pl.solve(sde, x, solver="reversible_heun", grid=uniform(20), seed=0, adjoint=adjoint)
        gradients = torch.autograd.grad(sol.x.sin().sum(), [x, scale, *drift.parameters()])
        found[adjoint] = torch.cat([g.flatten() for g in gradients])
    off = (found["reversible"] - found["direct"]).norm() / found["direct"].norm()
    assert off < 1e-12


@pytest.mark.parametrize("has_noise", [False, True])
@pytest.mark.parametrize("n", [1, 2, 10, 1000])
def test_reversible_heun_goes_back_to_where_it_came_from(n, has_noise):
    drift, spread = networks()
    sde = neural(drift, spread)
    field = sde if has_noise else VectorField(lambda x, t: drift(x))
    rule = ReversibleHeun().tuned(field, (3,))
    out = rule.plan(None, uniform(n))
    x, seeds = torch.ones(2, 3, dtype=torch.float64), [3, 4]
    with torch.no_grad():
        states = run(out, field, [x], seeds)
        back = inverse(out)
        ends = [states[k] for k in (2 * n - 1, 2 * n)]
        again = run(back, field, ends, seeds)
    assert (again[len(back.times) - 1] - x).abs().max() < 1e-12
    assert out.nfe == n + 1 and back.steps == n


def run(plan: Plan, field, given, seeds):
    """Run a plan and return all its states."""
    evaluator = Evaluator(field, plan, given[0], {})
    execution = Execution(plan, evaluator, given, combined, drawing(plan, seeds, given[0]))
    states = dict(enumerate(given))
    for row in execution.program:
        states[row.number] = execution.advance(row)
    return states


def test_two_states_that_come_apart_are_told_of(recwarn):
    """x' = −x: ŷ − y grows by about 1 + h λ a step, and is as large as y after a few units."""
    x = torch.ones(2, 1, dtype=torch.float64)
    for end, parts in ((2.0, False), (20.0, True)):
        recwarn.clear()
        sol = pl.solve(lambda x, t: -x, x, solver="reversible_heun", grid=uniform(200, end))
        assert (
            any("two states, which should be one, differ" in str(w.message) for w in recwarn)
            == parts
        )
        assert (float((sol.x - math.exp(-end)).abs().max()) > 0.1 * math.exp(-end)) == parts


@pytest.mark.parametrize(
    "solver", ["euler_maruyama", "milstein", "srk", "heun", "euler_heun", "slow_rk"]
)
def test_gradients_by_checkpoints_are_those_of_autograd(solver):
    spread = torch.tensor([0.3, 0.5], dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    sde = SDE(
        lambda x, t: -rate * x,
        lambda x, t: spread * torch.cos(x),
        noise="diagonal",
        sde_type="ito" if solver in ITO else "stratonovich",
    )
    found = []
    for adjoint in ("direct", "checkpoint"):
        x = torch.ones(3, 2, dtype=torch.float64)
        sol = pl.solve(sde, x, solver=solver, grid=uniform(12), seed=0, adjoint=adjoint)
        found.append(torch.autograd.grad(sol.x.square().sum(), [spread, rate]))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("solver", [*ITO, *STRATONOVICH, "adaptive_sde"])
def test_a_sample_is_the_same_alone_and_in_any_batch(solver):
    sde = geometric().ito() if solver in ITO else geometric().stratonovich()
    x = 1 + 0.1 * torch.arange(10.0, dtype=torch.float64).reshape(5, 2)
    grid = uniform(1 if solver == "adaptive_sde" else 12)
    solver = AdaptiveSDE(rtol=0.1, atol=0.1) if solver == "adaptive_sde" else solver
    whole = pl.solve(sde, x, solver=solver, grid=grid, seed=5).x
    some = pl.solve(sde, x[[3, 0]], solver=solver, grid=grid, seeds=[8, 5]).x
    assert torch.equal(some, whole[[3, 0]])


def test_twice_the_steps_are_along_the_same_path():
    """At 12 and 24 steps of dx = dW the ends are the same."""
    sde = SDE(lambda x, t: torch.zeros_like(x), lambda x, t: torch.ones_like(x), noise="additive")
    x = torch.zeros(3, 2, dtype=torch.float64)
    ends = [pl.solve(sde, x, solver="euler_maruyama", grid=uniform(n), seed=0).x for n in (12, 24)]
    assert (ends[0] - ends[1]).abs().max() < 1e-14


def test_noises_of_every_kind_that_say_the_same_agree():
    """Scalar noise, and general noise of one column; diagonal and additive ones as matrices."""
    x = torch.linspace(0.5, 1.5, 6, dtype=torch.float64).reshape(3, 2)
    scalar = geometric("scalar").stratonovich()
    column = SDE(
        scalar.drift, lambda x, t: NOISE * x.unsqueeze(-1), noise="general",
        sde_type="stratonovich",
    )  # fmt: skip
    ends = [pl.solve(s, x, solver="heun", grid=uniform(8), seed=0).x for s in (scalar, column)]
    assert torch.equal(*ends)
    diagonal = geometric().ito()
    matrix = SDE(
        diagonal.drift, lambda x, t: torch.diag_embed(NOISE * x), noise="general", sde_type="ito",
        channels=2,
    )  # fmt: skip
    for solver in ("euler_maruyama", "milstein"):
        path = Brownian(0.0, 1.0, (0, 1, 2), (2,), has_area=True)
        ends = [pl.solve(s.driven(path), x, solver=solver, grid=uniform(8)).x
                for s in (diagonal, matrix)]  # fmt: skip
        assert torch.allclose(*ends, rtol=1e-12)


def test_the_correction_is_half_of_the_diffusion_along_itself():
    x = torch.linspace(0.5, 1.5, 6, dtype=torch.float64).reshape(3, 2)
    drift = geometric().stratonovich().drift(x, torch.tensor(0.0))
    assert torch.allclose(drift, (DRIFT - NOISE**2 / 2) * x)
    assert (
        geometric().stratonovich().ito().drift(x, torch.tensor(0.0)).sub(DRIFT * x).abs().max()
        < 1e-15
    )
    a, b = (
        torch.tensor([[0.0, 0.6], [0.0, 0.0]]).double(),
        torch.tensor([[0.0, 0.0], [0.6, 0.2]]).double(),
    )
    drift = general().stratonovich().drift(x, torch.tensor(0.0))
    assert torch.allclose(drift, -0.5 * x - 0.5 * x @ (a @ a + b @ b).T)


def test_adaptive_steps_follow_the_tolerance_on_one_path():
    n = 60
    sde, x = geometric().stratonovich(), torch.ones(n, 1, dtype=torch.float64)
    path = Brownian(0.0, 1.0, tuple(range(n)), (1,), depth=18)
    exact = torch.exp(DRIFT - NOISE**2 / 2 + NOISE * path(0.0, 1.0))
    errors, costs = [], []
    for tol in (1e-1, 1e-2):
        sol = pl.solve(sde.driven(path), x, solver=AdaptiveSDE(rtol=tol, atol=tol), grid=[0.0, 1.0])
        errors.append(float((sol.x - exact).abs().mean()))
        costs.append(np.mean(sol.nfes))
        assert sol.stats.rejected > 0
    assert errors[1] < errors[0] / 4
    assert costs[1] > 2 * costs[0]


def test_states_are_had_at_the_grid_or_at_save_times():
    sde, x = geometric(), torch.ones(2, 1, dtype=torch.float64)
    whole = pl.solve(sde, x, solver="euler_maruyama", grid=uniform(8), seed=0, trajectory=True)
    some = pl.solve(sde, x, solver="euler_maruyama", grid=uniform(8), seed=0, save=[0.25, 0.75])
    assert torch.equal(some.trajectory, whole.trajectory[[2, 6]])
    assert some.times.tolist() == [0.25, 0.75] and torch.equal(some.x, whole.x)
    with pytest.raises(UsageError, match="no point of the grid; the nearest is 0.25"):
        pl.solve(sde, x, solver="euler_maruyama", grid=uniform(8), seed=0, save=[0.3])
    for save, said in (([0.5, 0.25], "0.5 is followed by 0.25"), ([0.5, 0.5], "0.5 comes twice"),
                       ([float("nan")], "t = nan")):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            pl.solve(sde, x, solver="euler_maruyama", grid=uniform(8), seed=0, save=save)


@pytest.mark.parametrize("solver", ["euler_heun", AdaptiveSDE()], ids=["plan", "adaptive"])
def test_a_diffusion_that_is_not_finite_is_named_with_its_sample_and_time(solver):
    """The root of sample 1 has no value after t = 1/2, where its state is held at −1."""
    late = SDE(lambda x, t: 0 * x, lambda x, t: 0 * torch.where(t > 0.5, x, 1.0).sqrt(),
               noise="diagonal", sde_type="stratonovich")  # fmt: skip
    x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    with pytest.raises(
        pl.NonFiniteError, match=r"sample 1 .seed 1.: the diffusion is not finite at t = 0\."
    ):
        pl.solve(late, x, solver=solver, grid=[0.0, 0.25, 0.75, 1.0], seed=0)
    sol = pl.solve(late, x, solver=solver, grid=[0.0, 0.25, 0.75, 1.0], seed=0, on_failure="return")
    assert sol.status.tolist() == [0, 1] and float(sol.x[0]) == 1


def test_a_plan_with_products_is_saved_and_told():
    plan = ReversibleHeun().tuned(neural(*networks()), (3,)).plan(None, uniform(3))
    again = Plan.from_dict(plan.to_dict())
    assert again.to_dict() == plan.to_dict() and again.legs == plan.legs
    assert "g0·w[0]" in plan.table() and plan.is_stochastic and plan.diffused == plan.evaluated


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda x: SDE(torch.sin, torch.cos, noise="diagonal"), "sde_type='ito' or 'stratonovich'"),
        (lambda x: SDE(torch.sin, torch.cos, noise="white"), "diagonal, scalar, additive, general"),
        (lambda x: solved(geometric(), x, "heun"), r"sde.stratonovich\(\).*½ Σ"),
        (lambda x: solved(geometric().stratonovich(), x, "srk"), r"sde.ito\(\)"),
        (lambda x: solved(general(), x, "srk"), "takes diagonal or scalar or additive noise"),
        (lambda x: solved(general(), x, "slow_rk"), "takes diagonal or scalar or additive noise"),
        (lambda x: solved(geometric(), x, "slow_rk"), r"sde.stratonovich\(\)"),
        (lambda x: solved(geometric(), x, "dopri5"), "integrates no noise"),
        (lambda x: solved(geometric(), x, "adams_2"), "integrates no noise"),
        (lambda x: pl.solve(geometric(), x, solver="milstein", grid=uniform(4)), "needs seeds"),
        (lambda x: solved(geometric(), x, "milstein", uniform(4, 0.0, 1.0)), "has a direction"),
        (lambda x: solved(column(), x, "euler_maruyama"), r"\(3, 2, m\) for m Brownian motions"),
        (lambda x: solved(geometric().driven(short()), x, "milstein"), "outside of the Brownian"),
        (lambda x: solved(geometric().driven(short(1.0, (3,))), x, "milstein"), "has shape"),
        (lambda x: solved(geometric().driven(short(1.0)), x, "srk"), "has_area=True"),
        (lambda x: solved(unsaid(), x, "milstein"), "channels=m"),
        (lambda x: graded(geometric().stratonovich(), x, "heun"), "inverted exactly"),
        (lambda x: graded(geometric(), x, "milstein", "continuous"), "draws noise"),
    ],
)
def test_what_cannot_work_is_refused(ask, said):
    with pytest.raises(UsageError, match=said):
        ask(torch.ones(3, 2, dtype=torch.float64))


def solved(sde, x, solver, grid=None):
    return pl.solve(sde, x, solver=solver, grid=grid or uniform(4), seed=0)


def graded(sde, x, solver, adjoint="reversible"):
    return pl.solve(
        sde, x.requires_grad_(), solver=solver, grid=uniform(4), seed=0, adjoint=adjoint
    )


def column():
    return SDE(lambda x, t: x, lambda x, t: x, noise="general", sde_type="ito")


def unsaid():
    made = general()
    return SDE(made.drift, made.diffusion, noise="general", sde_type="ito")


def short(end=0.5, shape=(2,)):
    return Brownian(0.0, end, (0, 1, 2), shape)

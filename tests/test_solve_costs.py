"""Costs of a solve that can be trained: what they estimate, where gradients go, what is refused."""

import pytest
import torch

import pathline as pl
from pathline.core.errors import NonFiniteError, UsageError
from pathline.fields import SDE
from pathline.learn.solve_costs import Decay, Heuristics, Local, Plain, RandomEnd, Taylor
from pathline.learn.solve_costs.baselines import flow_derivative
from pathline.solvers import AdaptiveRK
from pathline.solvers.adaptive_sde import AdaptiveSDE
from pathline.systems import local_regularization, solver_heuristic_regularization

TSIT5 = AdaptiveRK(method="tsit5", rtol=1e-5, atol=1e-5)
TOGETHER = AdaptiveRK(method="tsit5", rtol=1e-5, atol=1e-5, norms="batch")
X = torch.tensor([[1.0, 0.3], [0.2, -1.0], [-0.5, 0.4]], dtype=torch.float64)


def turning(rate):
    return lambda x, t: rate * torch.stack((x[:, 1], -x[:, 0]), 1) - 0.1 * x * (1 + t)


@pytest.fixture
def rate():
    return torch.tensor(3.0, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    "experiment",
    [solver_heuristic_regularization, local_regularization],
    ids=lambda module: module.__name__.rpartition(".")[2],
)
def test_claims_that_need_no_training(experiment):
    made = experiment.Experiment()
    failed = {
        claim.id: value
        for claim in experiment.CLAIMS
        if claim.needs is None and not claim.holds(value := float(claim.measure(made)))
    }
    assert not failed


def test_each_sample_has_steps_of_its_own(rate):
    whole = Heuristics("both").solve(turning(rate), X, solver=TSIT5, grid=(0.0, 2.0)).cost
    alone = [
        Heuristics("both").solve(turning(rate), x[None], solver=TSIT5, grid=(0.0, 2.0)).cost
        for x in X
    ]
    assert torch.allclose(whole, torch.stack(alone).mean(), rtol=1e-12)


def test_ways_to_put_steps_together(rate):
    made = {
        over: Heuristics("error", over).solve(turning(rate), X[:1], solver=TSIT5, grid=(0.0, 2.0))
        for over in ("mean", "sum", "max")
    }
    steps = made["sum"].solution.stats.steps
    assert made["sum"].cost.item() == pytest.approx(steps * made["mean"].cost.item(), rel=1e-12)
    assert made["mean"].cost < made["max"].cost < made["sum"].cost


def test_backwards_in_time_it_costs_as_much():
    def still(x, t):
        return torch.stack((x[:, 1], -x[:, 0]), 1)

    def back(x, t):
        return -still(x, t)

    forth = Heuristics().solve(still, X, solver=TSIT5, grid=(0.0, 2.0)).cost
    other = Heuristics().solve(back, X, solver=TSIT5, grid=(2.0, 0.0)).cost
    assert torch.allclose(forth, other, rtol=1e-9)
    made = Local("unbiased").solve(back, X, solver=TSIT5, grid=(2.0, 0.0), seed=1)
    same = Local("unbiased").solve(still, X, solver=TSIT5, grid=(0.0, 2.0), seed=1)
    assert torch.allclose(made.cost, same.cost, rtol=1e-6)
    assert torch.allclose(made.t, 2 - same.t)


@pytest.mark.parametrize("mode", ["biased", "unbiased"])
@pytest.mark.parametrize("solver", [TSIT5, TOGETHER, "rk4"], ids=["own", "together", "plan"])
def test_the_solve_is_a_black_box(rate, mode, solver):
    """The cost's gradient is that of one step from constants."""
    grid = [i / 10 for i in range(11)] if solver == "rk4" else (0.0, 1.0)
    made = Local(mode).solve(turning(rate), X, solver=solver, grid=grid, seed=2)
    with torch.no_grad():
        again = Local(mode).solve(turning(rate), X, solver=solver, grid=grid, seed=2)
    assert again.cost == made.cost and torch.equal(again.t, made.t)
    (found,) = torch.autograd.grad(made.cost, rate)
    assert found != 0 and made.extra == 7


def test_another_seed_draws_another_point(rate):
    made = [Local("unbiased").solve(turning(rate), X, solver=TSIT5, grid=(0.0, 1.0), seed=s).t
            for s in (0, 1)]  # fmt: skip
    assert not torch.equal(*made)


def test_the_first_stage_can_be_left_out_of_the_gradient(rate):
    made = [
        Local(detach_first=d).solve(turning(rate), X, solver=TSIT5, grid=(0.0, 1.0)).cost
        for d in (False, True)
    ]
    one, other = (torch.autograd.grad(cost, rate)[0] for cost in made)
    assert torch.allclose(*made, rtol=1e-12) and not torch.allclose(one, other, rtol=1e-3)


def test_noise_of_the_extra_step_is_its_own():
    """Fresh for each seed, and not that of the solve."""
    level = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    law = SDE(lambda x, t: -x, lambda x, t: level * x, noise="diagonal", sde_type="stratonovich")
    solver, x = AdaptiveSDE(rtol=0.1, atol=0.1), torch.ones(4, 2, dtype=torch.float64)
    for cost in (Heuristics(), Local("biased"), Local("unbiased")):
        one, same, other = (
            cost.solve(law, x, solver=solver, grid=(0.0, 0.5), seed=s) for s in (0, 0, 1)
        )
        assert one.cost == same.cost != other.cost
        (found,) = torch.autograd.grad(one.cost, level)
        assert found.isfinite() and found != 0
    fixed = Plain().solve(law, x, solver=solver, grid=(0.0, 0.5), seeds=[1, 2, 3, 4]).solution.x
    assert torch.equal(
        fixed, pl.solve(law, x, solver=solver, grid=(0.0, 0.5), seeds=[1, 2, 3, 4]).x
    )


def test_the_error_of_a_step_with_noise_is_differentiated_with_its_scale():
    """Against central differences of the same step, on the same path."""

    def error(level):
        law = SDE(lambda x, t: -x, lambda x, t: level * x, noise="diagonal",
                  sde_type="stratonovich")  # fmt: skip
        solver, seen = AdaptiveSDE(rtol=1.0, atol=1e-6, first=0.1), []
        x = torch.ones(4, 2, dtype=torch.float64)
        pl.solve(law, x, solver=solver, grid=[0.0, 0.1], seed=0, on_step=seen.append)
        (record,) = seen
        return record.error.sum()

    level, d = torch.tensor(2.0, dtype=torch.float64, requires_grad=True), 1e-5
    (found,) = torch.autograd.grad(error(level), level)
    with torch.no_grad():
        exact = (error(level + d) - error(level - d)) / (2 * d)
    assert abs(float(found / exact) - 1) < 1e-8  # d² of a function of moderate curvature


def test_derivatives_along_a_flow():
    """x' = x t: x'' = x (t² + 1), x''' = x (t³ + 3 t)."""
    x, t = torch.tensor([[2.0]], dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)

    def field(x, t):
        return x * t

    assert torch.allclose(flow_derivative(field, 2)(x, t), x * (t**2 + 1))
    assert torch.allclose(flow_derivative(field, 3)(x, t), x * (t**3 + 3 * t))


def test_taylor_is_the_integral_of_the_square():
    """x' = −a x from 1: ∫ (a² e^(−at))² dt = a³ (1 − e^(−2a))/2."""
    a = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    x = torch.ones(2, 3, dtype=torch.float64)
    tight = AdaptiveRK(method="tsit5", rtol=1e-9, atol=1e-9)
    made = Taylor(2).solve(lambda x, t: -a * x, x, solver=tight, grid=(0.0, 1.0))
    exact = a**3 * (1 - (-2 * a).exp()) / 2
    assert torch.allclose(made.cost, exact, rtol=1e-7)
    assert torch.allclose(made.solution.x, (-a).exp() * x, rtol=1e-7)
    (found,), (wanted,) = torch.autograd.grad(made.cost, a), torch.autograd.grad(exact, a)
    assert torch.allclose(found, wanted, rtol=1e-6)


def test_the_random_end_is_even():
    ends = torch.tensor([
        RandomEnd(0.5).solve(lambda x, t: 0 * x, X, solver="euler", grid=(0.0, 1.0), seed=s)
        .solution.t for s in range(200)
    ])  # fmt: skip
    assert 0.5 <= ends.min() < 0.55 and 1.45 < ends.max() <= 1.5
    assert abs(ends.mean() - 1) < 3 * (1 / 12) ** 0.5 / 200**0.5


def test_weights_fall_exponentially():
    fall = Decay(10.0, 1.0, 4)
    assert [fall(k) for k in (0, 2, 4, 9)] == pytest.approx([10.0, 10**0.5, 1.0, 1.0])
    assert Decay(0.1)(7) == 0.1 and Decay(0.0)(3) == 0.0


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda f: Heuristics("size"), "unknown estimate of a step's cost"),
        (lambda f: Heuristics(over="least"), "unknown way to put steps together"),
        (lambda f: Local("even"), "unknown way to draw the point"),
        (lambda f: Local(size="free"), "unknown length of the step"),
        (lambda f: Decay(-1.0), "finite and at least 0, and was -1.0"),
        (lambda f: Decay(1.0, -1.0), "finite and at least 0, and was -1.0"),
        (lambda f: Decay(1.0, 0.0), "no number of steps"),
        (lambda f: Taylor(1), "order=1"),
        (lambda f: RandomEnd(2.0).solve(f, X, solver=TSIT5, grid=(0.0, 1.0)), "reaches back"),
        (lambda f: Heuristics().solve(f, X, solver=TSIT5, grid=(1.0, 1.0)), "t = 1 to t = 1"),
        (lambda f: Heuristics().solve(f, X, solver="rk4", grid=(0.0, 1.0)),
         "RK4 does not estimate the error of its steps.*bosh3"),
        (lambda f: Heuristics().solve(f, X, solver=TSIT5, grid=(0.0, 1.0), adjoint="continuous"),
         "not 'continuous'. `Local` takes one step, and any adjoint"),
        (lambda f: Heuristics().solve(f, X, solver=TSIT5, grid=(0.0, 1.0), adjoint="checkpoint"),
         "norms='batch'"),
        (lambda f: Heuristics("stiffness").solve(f, X, solver="bosh3", grid=(0.0, 1.0)),
         "bosh3 has not; choose .*tsit5"),
        (lambda f: Local(kind="stiffness").solve(f, X, solver=AdaptiveSDE(), grid=(0.0, 1.0)),
         "adaptive_sde has not"),
        (lambda f: Heuristics().solve(f, X.float(), solver=AdaptiveRK(rtol=1e-8, atol=1e-8),
                                      grid=(0.0, 1.0)), "is rounding; take 1.2e-06"),
        (lambda f: Local().solve(f, X, solver="rk4", grid=(0.0, 1.0)), "none but the start"),
        (lambda f: Local().solve(f, X, solver="rk4", grid=[0.0, 0.5, 1.0], save=[0.3]),
         "t = 0.3, which is no point of the grid"),
        (lambda f: Local().solve(f, X, solver=TSIT5, grid=(0.0, 1.0), save=[1.5], adjoint="direct"),
         "to be saved at t = 1.5"),
    ],
)  # fmt: skip
def test_bad_input(rate, wrong, told):
    with pytest.raises(UsageError, match=told):
        wrong(turning(rate))


def test_a_cost_that_is_no_number_is_told():
    def field(x, t):  # the solve never asks behind 0.5 at this grid; the extra step does
        return torch.where(t > 0.6, float("nan"), -x)

    with pytest.raises(NonFiniteError, match="sample"):
        for seed in range(20):
            Local("unbiased").solve(field, X, solver="euler", grid=[0.0, 0.5, 1.0], seed=seed)


def test_the_noisy_spiral_is_learned_from_moments_of_its_own_equation(monkeypatch):
    """Along the same noise, a method of the other integral with many more steps agrees."""
    from pathline.systems import spiral_sde as spiral

    monkeypatch.setattr(spiral, "PATHS", 300)
    mean, variance = spiral.truth.__wrapped__()
    true = SDE(spiral.spiral, lambda x, t: spiral.SPREAD * x, noise="diagonal", sde_type="ito")
    sol = pl.solve(true, spiral.start(300), solver="srk", grid=pl.grids.uniform(3200, 0.0, 1.0),
                   seed=0, save=spiral.TIMES)  # fmt: skip
    assert (sol.trajectory.mean(1) - mean).abs().max() < 5e-3
    assert (sol.trajectory.var(1) - variance).abs().max() < 5e-3

"""Adjoints: every one against autograd through the loop, in float64; leaks, bytes, bad input."""

import gc
import math
import re
import warnings
import weakref

import pytest
import torch
from torch import nn

import pathline as pl
from pathline.bench.memory import ADJOINTS, HELD, SIZE, kept
from pathline.core import noise
from pathline.fields import Dataset
from pathline.nets import UNet
from pathline.solvers import AdaptiveRK, Plan, Row, differentiate, solve, solvers
from pathline.solvers.adjoints import Checkpoint, Continuous, adjoints, as_adjoint
from pathline.solvers.adjoints.checkpoint import Kept, fewest
from pathline.solvers.adjoints.meter import saved
from pathline.solvers.adjoints.sources import asking, hidden, random_module
from pathline.speed import SADA
from pathline.steer import APG, CFG, Autoguidance, Clip, Loss

VP = pl.VPLinear()
TARGET = torch.tensor([0.3, 0.1], dtype=torch.float64)
PLANNED = [e.name for e in solvers if not e.build().is_adaptive and e.name != "dpm_v3"
           and not hasattr(e.build(), "march")]  # fmt: skip


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def mixture(path=VP):
    """The specification's three modes, whose means ask for gradients."""
    means = f64([[-0.5, 0.3], [0.6, -0.2], [0.1, 0.8]]).requires_grad_()
    return pl.Mixture(path, means, torch.full((3, 2), 0.15).double(), f64([0.2, 0.5, 0.3]))


def starts(n=6, dim=2):
    return noise.normal(range(n), (dim,), dtype=torch.float64).requires_grad_()


def gradients(field, x, leaves, **how):
    """The gradients of a quadratic loss of the sample, and the solution."""
    sol = solve(field, x, **how)
    return torch.autograd.grad((sol.x - TARGET).square().sum(), leaves), sol


def off(found, exact):
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True))


def midpoint_rule(n, path=VP, last="stop"):
    """x_{i+1} from x_{i−1} and F_i: a two-state rule that starts by itself, in ε̂ over σ/α."""
    times = pl.grids.log_snr(n).times(path)
    t = f64(times)
    a, rho = path.alpha(t).tolist(), (path.sigma(t) / path.alpha(t)).tolist()
    rows = [Row(times[1], {0: a[1] / a[0]}, {0: a[1] * (rho[1] - rho[0])})]
    rows += [
        Row(times[i + 1], {i - 1: a[i + 1] / a[i - 1]}, {i: a[i + 1] * (rho[i + 1] - rho[i - 1])})
        for i in range(1, n)
    ]
    return Plan(times[:1], tuple(rows), "eps", path)


# --- the solver's own gradient ------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANNED)
@pytest.mark.parametrize(
    "adjoint",
    [Checkpoint(), Checkpoint(memory=3, together=2), Checkpoint(together=4, last="kept")],
    ids=["all", "few", "last"],
)
def test_checkpoint_is_direct_for_every_solver(name, adjoint):
    """The same operations in the same order: only sums over steps are rounded otherwise (1e-15)."""
    for grid in (pl.grids.log_snr(7), pl.grids.uniform(6, last="denoise")):
        results = []
        for how in ("direct", adjoint):
            field, x = mixture(), starts()
            seeds = range(6) if solvers.build(name).is_stochastic else None
            leaves = [x, field.means]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # repeats without noise mix poorly
                results.append(gradients(field, x, leaves, solver=name, grid=grid, adjoint=how,
                                         seeds=seeds))  # fmt: skip
        (exact, direct), (found, again) = results
        assert torch.equal(direct.x, again.x) and off(found, exact) < 1e-10
        assert again.backward.vjps == direct.stats.nfe == again.stats.nfe


def test_nobody_says_and_steps_are_taken_again_where_they_can():
    field, x = mixture(), starts()
    exact, _ = gradients(field, x, [x, field.means], steps=8, adjoint="direct")
    found, sol = gradients(field, x, [x, field.means], steps=8)
    assert off(found, exact) < 1e-10 and sol.backward.nfe == 8
    assert type(sol.x.grad_fn).__name__ == "_ThroughBackward"
    watched, sol = gradients(field, x, [x, field.means], steps=8, observe=lambda step: None)
    assert off(watched, exact) < 1e-10 and sol.backward.nfe == 0
    adaptive, sol = gradients(field, x, [x], solver="dopri5", grid=[1.0, 1e-3])
    assert sol.backward.nfe == 0 and bool(adaptive[0].isfinite().all())


@pytest.mark.parametrize("n", [1, 2, 5, 24])
def test_reversible_is_direct_for_a_rule_with_two_states(n):
    """States carried back are rounded once a step; the last steps' derivatives are of size 1/σ."""
    results = []
    for how in ("direct", "reversible"):
        field, x = mixture(), starts()
        results.append(gradients(field, x, [x, field.means], solver=midpoint_rule(n), adjoint=how))
    (exact, direct), (found, again) = results
    assert torch.equal(direct.x, again.x) and off(found, exact) < 1e-9
    assert again.backward.nfe == again.backward.vjps == n
    assert n == 1 or again.backward.drift < 1e-12


@pytest.mark.parametrize("name", ["bdia", "bdia_edm", "bdia_dpmpp_2s", "reversible"])
@pytest.mark.parametrize("last", ["stop", "denoise"])
def test_reversible_is_direct_for_every_solver_that_can_be_inverted(name, last):
    """Opening steps, stages and the step to data included."""
    results = []
    for how in ("direct", "reversible"):
        field, x = mixture(), starts()
        grid = pl.grids.log_snr(9, last=last)
        results.append(gradients(field, x, [x, field.means], solver=name, grid=grid, adjoint=how))
    (exact, direct), (found, again) = results
    assert torch.equal(direct.x, again.x) and off(found, exact) < 1e-10
    assert again.backward.drift < 1e-12


def test_reversible_takes_stages_and_a_step_to_data_in_its_way():
    """Leapfrog with a stage: x_{i+1} = x_{i−1} + 2h F(x_i + (h/2) F_i), then x = x + h F."""
    h, n = 0.1, 6
    rows, lands, number = [], [0, 1], 1
    for i in range(1, n):
        rows.append(Row((i + 0.5) * h, {lands[i]: 1.0}, {lands[i]: h / 2}, lands=False))
        rows.append(Row((i + 1) * h, {lands[i - 1]: 1.0}, {number + 1: 2 * h}))
        number += 2
        lands.append(number)
    rows.append(Row((n + 1) * h, {number: 1.0}, {number: h}))
    plan = Plan((0.0, h), tuple(rows))
    turn = f64([[0.1, 1.0], [-1.0, -0.2]]).requires_grad_()
    found = {}
    for how in ("direct", "reversible"):
        given = [starts(), starts().detach().roll(1, 0).requires_grad_()]
        sol = solve(lambda x, t: torch.tanh(x @ turn) * (1 + t), given, solver=plan, adjoint=how)
        loss = (sol.x - TARGET).square().sum()
        found[how] = torch.autograd.grad(loss, [*given, turn])
    assert off(found["reversible"], found["direct"]) < 1e-12


def test_a_rule_with_one_state_cannot_be_carried_back():
    field, x = mixture(), starts()
    with pytest.raises(pl.UsageError, match="exactly invertible solver"):
        gradients(field, x, [x], solver="ddim", steps=6, adjoint="reversible")


@pytest.mark.parametrize("adjoint", ["direct", "checkpoint", Checkpoint(memory=2), "reversible"])
def test_gradients_and_their_derivatives_pass_gradcheck(adjoint):
    how = (
        {"solver": midpoint_rule(3)} if adjoint == "reversible" else {"solver": "heun", "steps": 3}
    )

    def run(x, means):
        field = pl.Mixture(VP, means, torch.full((3, 2), 0.4).double(), f64([0.2, 0.5, 0.3]))
        return solve(field, x, adjoint=adjoint, **how).x

    inputs = (starts(2), mixture().means)
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


# --- memory for states --------------------------------------------------------------------------


def fewest_by_trying(n, s, known={}):  # noqa: B006
    """The recursion that the closed form solves, tried out: where to keep the next state."""
    if n <= 1 or s == 1:
        return n * (n - 1) // 2
    if (n, s) not in known:
        known[n, s] = min(
            m + fewest_by_trying(m, s) + fewest_by_trying(n - m, s - 1) for m in range(1, n)
        )
    return known[n, s]


def test_states_are_kept_where_the_fewest_steps_are_taken_again():
    for n in (1, 2, 5, 11, 30):
        for s in (1, 2, 3, 6, 40):
            taken = []

            def advance(i, live, taken=taken):
                assert live == i
                taken.append(i)
                return i + 1

            kept = Kept(0, advance, s)
            assert kept.sweep(n, advance) == n
            most = [len(kept.numbers)]
            for i in reversed(range(n)):
                assert kept.at(i) == i
                most.append(len(kept.numbers))
            assert len(taken) - 1 == fewest_by_trying(n, s) == fewest(n, s)
            assert max(most[2:], default=1) <= s and max(most) <= s + 1


def test_a_backward_pass_can_be_taken_twice():
    field, x = mixture(), starts()
    for adjoint in (Checkpoint(memory=2), "continuous"):
        sol = solve(field, x, solver="rk4", steps=9, adjoint=adjoint)
        loss = (sol.x - TARGET).square().sum()
        first = torch.autograd.grad(loss, [x, field.means], retain_graph=True)
        assert off(torch.autograd.grad(loss, [x, field.means]), first) < 1e-14


# --- who asks -----------------------------------------------------------------------------------


def test_every_leaf_is_found_wherever_it_hides():
    w, deep, outer = (f64([v]).requires_grad_() for v in (0.3, 0.2, 0.5))
    shown = outer * 2  # a graph that is not the solve's to free
    holder = {"deep": deep}

    def field(x, t, shift):
        return torch.sin(w * x) + holder["deep"] * t - shown * x + shift

    shift = f64([0.1]).requires_grad_()
    found = {}
    for how in ("direct", "checkpoint", Continuous("rk4")):
        x = starts()
        sol = solve(field, x, solver="rk4", grid=[0.0, 0.1, 0.2, 0.3], shift=shift, adjoint=how)
        loss = (sol.x - TARGET).square().sum()
        found[str(how)] = torch.autograd.grad(loss, [x, w, deep, outer, shift], retain_graph=True)
    exact = found.pop("direct")
    assert off(found.pop("checkpoint"), exact) < 1e-12
    assert off(*found.values(), exact) < 1e-5  # of the flow's gradient: h⁴


@pytest.mark.parametrize("how", [
    {"solver": "heun", "adjoint": "checkpoint"}, {"solver": "tsit5", "adjoint": "checkpoint"},
    {"solver": "reversible_heun", "adjoint": "reversible"},
    {"solver": AdaptiveRK(rtol=1e-10, atol=1e-10), "adjoint": "checkpoint"},
    {"solver": AdaptiveRK(rtol=1e-10, atol=1e-10), "adjoint": "continuous"},
], ids=["heun", "tsit5", "reversible", "adaptive", "continuous"])  # fmt: skip
def test_what_a_field_made_of_its_own_weights_counts_once(how):
    """A table worked out before the solve, a table of that, and the weights, in one closure."""
    weight, other = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (0.4, 0.7))

    def loss(**how):
        table = weight * 3.0
        tables = [table, table.sin() + other]

        def field(x, t):
            return weight * x.sin() - tables[1] * x + tables[0] * t

        grid = [0.0, 0.5, 1.0]
        end = solve(pl.VectorField(field), f64([[1.0], [0.2]]), grid=grid, **how).x
        return torch.autograd.grad(end.square().sum(), (weight, other))

    exact = loss(solver=how["solver"], adjoint="direct")
    assert off(loss(**how), exact) < (1e-6 if how["adjoint"] == "continuous" else 1e-12)


def test_a_leaf_that_turns_up_late_is_refused_and_not_forgotten():
    class Late(pl.Field):
        path, view = None, "velocity"
        early, late = f64([1.0]).requires_grad_(), f64([1.0]).requires_grad_()

        def evaluate(self, x, t, cond):
            return -x * (Late.early if t < 0.5 else Late.late)

    x = starts()
    sol = solve(Late(), x, solver="euler", grid=[0.0, 0.3, 0.6, 0.9], adjoint="checkpoint")
    with pytest.raises(pl.UsageError, match=r"at step 3 .* shape \(1,\) that asks"):
        sol.x.sum().backward()


def test_the_weights_of_a_guide_that_acts_late_are_found():
    """Autoguidance in an interval: the worse network is not used at the start."""

    def network(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()

    def denoiser(net):
        return pl.Denoiser(lambda x, t: net(x) * (1 + t[:, None]), VP, "eps")

    better, worse = network(0), network(1)
    guide = Autoguidance(2.0, (0.2, 0.6), worse=denoiser(worse))
    found = {}
    for how in ("direct", "checkpoint"):
        sol = solve(denoiser(better), starts(), guide=guide, steps=6, adjoint=how)
        leaves = [*better.parameters(), *worse.parameters()]
        found[how] = torch.autograd.grad(sol.x.square().sum(), leaves)
    assert off(found["checkpoint"], found["direct"]) < 1e-10


def test_the_search_stops_at_what_is_known():
    a = f64([1.0]).requires_grad_()
    b = a * 2
    c = b.exp()
    assert [t is a for t in hidden([c], [])] == [True]
    assert hidden([c], [b]) == []
    assert {id(t) for t in asking({"k": [a, (b,)]}, c)} == {id(a), id(b), id(c)}


def test_nothing_is_kept_where_nobody_asks():
    field = pl.Mixture(
        VP, mixture().means.detach(), torch.ones(3, 2).double(), f64([0.2, 0.5, 0.3])
    )
    counted = []
    plain = pl.VectorField(lambda x, t: counted.append(1) or field(x, float(t)).velocity)
    grid = [1.0, 0.7, 0.3]
    for adjoint in (None, "direct", *(e.name for e in adjoints)):
        counted.clear()
        with saved() as gauge:
            sol = solve(plain, starts().detach(), solver="heun", grid=grid, adjoint=adjoint)
        assert gauge.peak == 0 and not sol.x.requires_grad and len(counted) == 4
    with torch.no_grad():
        assert not solve(mixture(), starts(), steps=3, adjoint="continuous").x.requires_grad


# --- under guidance -----------------------------------------------------------------------------


class Conditional(nn.Module):
    """A small network with a condition that is a vector."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.one, self.two = nn.Linear(5, 16), nn.Linear(16, 2)
        self.double().requires_grad_()

    def forward(self, x, t, c):
        return self.two(torch.tanh(self.one(torch.cat((x, c, t[:, None]), 1))))


def conditional():
    return pl.Denoiser(Conditional(), VP, "eps", null={"c": torch.zeros(1, 2).double()})


@pytest.mark.parametrize(
    "guide",
    [CFG(3.0), CFG(3.0, interval=(0.2, 0.8)), APG(3.0), CFG(2.0) & Clip(-2.0, 2.0),
     Loss(lambda x: x.square().sum(1), weight=0.1)],
    ids=["cfg", "interval", "apg", "clipped", "loss"],
)  # fmt: skip
def test_gradients_under_guidance(guide):
    """Of noise, condition (one for all samples) and weights, w and the doubled batch included."""
    found, cost = {}, {}
    for how in ("direct", "checkpoint", Checkpoint(memory=2)):
        model, x = conditional(), starts()
        c = f64([[0.4, -0.7]]).requires_grad_()
        sol = solve(model, x, solver="dpmpp_2m", steps=6, guide=guide, c=c, adjoint=how)
        leaves = [x, c, *model.network.parameters()]
        found[str(how)] = torch.autograd.grad((sol.x - TARGET).square().sum(), leaves)
        cost[str(how)] = sol.backward.vjps
    exact = found.pop("direct")
    assert all(off(grads, exact) < 1e-10 for grads in found.values())
    assert set(cost.values()) == {0, 6}


def test_the_continuous_adjoint_under_guidance_converges_to_the_solver_s_gradient():
    """Both converge to the gradient of the flow with h⁴, from either side."""
    errors = []
    for n in (12, 24):
        found = []
        for how in ("direct", Continuous("rk4")):
            model, x = conditional(), starts()
            c = f64([[0.4, -0.7]]).requires_grad_()
            leaves = [x, c, *model.network.parameters()]
            found.append(gradients(model, x, leaves, solver="rk4", steps=n, guide=CFG(3.0), c=c,
                                   adjoint=how)[0])  # fmt: skip
        errors.append(off(found[1], found[0]))
    assert math.log2(errors[0] / errors[1]) > 3.3 and errors[1] < 1e-2


# --- the flow's own gradient --------------------------------------------------------------------


def test_the_continuous_adjoint_is_exact_for_a_linear_flow():
    """dx/dt = A x: dL/dx = exp(Aᵀ) dL/dx₁, and dL/dA by the closed form of exp, of order 4."""
    a = f64([[-0.3, 1.1], [-0.9, 0.2]]).requires_grad_()
    x = starts(3)
    exact = torch.autograd.grad((x @ torch.linalg.matrix_exp(a).T - TARGET).square().sum(), [x, a])
    errors = []
    for n in (8, 16):
        grid = pl.grids.uniform(n, start=0.0, end=1.0)
        found, sol = gradients(lambda x, t: x @ a.T, x, [x, a], solver="rk4", grid=grid,
                               adjoint="continuous")  # fmt: skip
        errors.append(off(found, exact))
        assert sol.backward.nfe == sol.backward.vjps == 4 * n
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.2)
    found, sol = gradients(lambda x, t: x @ a.T, x, [x, a], solver=AdaptiveRK(1e-9, 1e-9),
                           grid=[0.0, 1.0], adjoint="continuous")  # fmt: skip
    assert off(found, exact) < 1e-7  # a hundred times the tolerance of a step
    assert sol.backward.drift < 1e-7


@pytest.mark.parametrize("form", ["eps", "x0", "velocity"])
@pytest.mark.parametrize("states", ["recompute", "stored"])
def test_forms_and_states_meet_in_the_closed_form_of_gaussian_data(form, states):
    """The flow of a Gaussian scales by √(v_e/v_s): dL/dx is that times dL/dx_0, m's derivative too.

    RK4 at 60 steps: the largest error is what the middle of the path leaves, under 1e-4.
    """
    mean = f64([0.4, -0.3]).requires_grad_()
    law = pl.Gaussian(VP, mean, f64([0.5, 0.2]))
    x, grid = starts(), pl.grids.log_snr(60)
    ends = grid.times(VP)
    exact = torch.autograd.grad((law.flow(x, ends[0], ends[-1]) - TARGET).square().sum(), [x, mean])
    how = Continuous("rk4", form, states)
    found, sol = gradients(law, x, [x, mean], solver="rk4", grid=grid, adjoint=how)
    assert off(found, exact) < 1e-4
    assert sol.backward.cosine > 1 - 1e-6 and (sol.backward.drift is None) == (states == "stored")


def test_the_step_to_data_is_differentiated_as_it_is():
    """x = x̂_0 at the end: its product is exact, and the rest is the flow's."""
    results = []
    for how in ("direct", Continuous("rk4")):
        field, x = mixture(), starts()
        grid = pl.grids.log_snr(80, last="denoise")
        results.append(gradients(field, x, [x, field.means], solver="rk4", grid=grid,
                                 adjoint=how)[0])  # fmt: skip
    assert off(results[1], results[0]) < 1e-3


def test_flows_that_start_at_pure_noise_take_the_raw_form():
    """α = 0 at t = 1: σ/α is infinite there, so nobody's choice is the raw form."""
    law = pl.Gaussian(pl.CondOT(), f64([0.4, -0.3]), f64([0.5, 0.2]))
    x, grid = starts(), pl.grids.uniform(40, start=1.0, end=0.05)
    exact = torch.autograd.grad((law.flow(x, 1.0, 0.05) - TARGET).square().sum(), [x])
    found, _ = gradients(law, x, [x], solver="rk4", grid=grid, adjoint="continuous")
    assert off(found, exact) < 1e-5
    for form, clock in (("eps", "σ/α"), ("x0", "α/σ")):
        with pytest.raises(pl.UsageError, match=f"clock {clock}.* at grid point 0, t = 1"):
            law = pl.Gaussian(pl.CondOT(), f64([0.4, -0.3]).requires_grad_(), f64([0.5, 0.2]))
            gradients(law, x, [x], solver="rk4", grid=grid, adjoint=Continuous(form=form))


def test_a_clock_that_vanishes_at_the_data_is_refused_by_its_grid_point():
    """ρ = 0 at t = 0, where α/σ is infinite; the raw form has a clock there."""
    times = [0.9, 0.4, 0.0]
    for form, said in (("eps", "σ/α, which is 0"), ("x0", "α/σ, which is inf")):
        with pytest.raises(ValueError, match=f"{said} at grid point 2, t = 0"):
            Continuous(form=form).clocked(mixture(), times)
    assert tuple(Continuous(form="velocity").clocked(mixture(), times)[1]) == tuple(times)


def test_few_steps_of_first_order_are_seen_to_point_elsewhere():
    """The specification's advice: at 10 steps Euler's adjoint is no gradient, and says so."""
    field, x = mixture(), noise.normal(range(64), (2,), dtype=torch.float64).requires_grad_()
    with pytest.warns(UserWarning, match="cosine of -"):
        gradients(field, x, [x], solver=pl.Euler(view="eps"), grid=pl.grids.log_snr(10),
                  adjoint=Continuous(probe=64))  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradients(field, x, [x], solver="rk4", grid=pl.grids.log_snr(50), adjoint="continuous")


# --- networks -----------------------------------------------------------------------------------


def unet():
    torch.manual_seed(0)
    net = UNet(channels=1, width=8, multipliers=(1, 2), blocks=1, classes=3, time_scale=1000.0)
    for parameter in net.parameters():  # an untrained U-Net is the zero function
        nn.init.normal_(parameter, std=0.15)
    return net.double().eval()


def test_all_leaves_of_a_conditional_unet_against_central_differences():
    """Differences at h = 1e-5 of a float64 loss: truncation h² and rounding 1e-16/h, both 1e-10."""
    net, x = unet(), noise.normal(range(2), (1, 8, 8), dtype=torch.float64).requires_grad_()
    model = pl.Denoiser(net, VP, "eps", label=1.0)
    shift = torch.zeros(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    told = pl.Denoiser(lambda x, t, label, shift: net(x + shift, t, label=label), VP, "eps")
    label = torch.tensor([0, 2])

    def loss(adjoint="direct"):
        sol = solve(told, x, solver="dpmpp_2m", steps=4, label=label, shift=shift, adjoint=adjoint)
        return sol.x.square().mean()

    leaves = [x, shift, *net.parameters()]
    found = torch.autograd.grad(loss("checkpoint"), leaves)
    assert model.network is net
    for leaf, slope in zip(leaves[:2] + leaves[2::7], found[:2] + found[2::7], strict=True):
        way = torch.randn(leaf.shape, dtype=torch.float64, generator=torch.manual_seed(1))
        with torch.no_grad():
            ends = []
            for h in (1e-5, -1e-5):
                leaf += h * way
                ends.append(float(loss()))
                leaf -= h * way
        exact, mine = (ends[0] - ends[1]) / 2e-5, float((slope * way).sum())
        assert mine == pytest.approx(exact, rel=1e-5, abs=1e-9)


def test_half_precision_sums_are_kept_in_float32():
    class Net(nn.Linear):
        def forward(self, x, t):
            return super().forward(x)

    net = Net(2, 2).to(torch.bfloat16)
    model = pl.Denoiser(net, VP, "eps")
    for how in ("checkpoint", Continuous("rk4", probe=0)):
        sol = solve(model, starts().float(), solver="rk4", steps=8, adjoint=how)
        (found,) = torch.autograd.grad(sol.x.sum(), [net.weight])
        assert found.dtype == torch.bfloat16 and bool(found.isfinite().all())


# --- leaks and bytes ----------------------------------------------------------------------------


@pytest.mark.parametrize("adjoint", ["direct", "checkpoint", "reversible", "continuous"])
def test_nothing_outlives_its_solution(adjoint):
    field, x = mixture(), starts()
    solver = midpoint_rule(6) if adjoint == "reversible" else pl.RK4().plan(VP, pl.grids.log_snr(6))
    alive = []

    class Seen(pl.Field):
        path, view = VP, "x0"
        inner = field

        def evaluate(self, x, t, cond):
            made = field.evaluate(x, t, cond)
            alive.append(weakref.ref(made))
            return made

    sol = solve(Seen(), x, solver=solver, adjoint=adjoint)
    torch.autograd.grad(sol.x.sum(), [x])
    del sol
    gc.collect()
    assert len(alive) > 6 and not any(ref() is not None for ref in alive)


def saved_peak(adjoint, n):
    """Bytes that autograd keeps at most, out and back; states are ours to keep, and not counted.

    So many samples that the mixture's constants, a few numbers for each time, are nothing.
    """
    field, x = mixture(), starts(8192)
    plan = midpoint_rule(n) if adjoint == "reversible" else pl.Heun().plan(VP, pl.grids.log_snr(n))
    with saved(field) as gauge:
        sol = solve(field, x, solver=plan, adjoint=adjoint)
        torch.autograd.grad((sol.x - TARGET).square().sum(), [x, field.means])
    return gauge.peak


@pytest.mark.parametrize("adjoint", ["checkpoint", "reversible", Continuous(probe=0)], ids=str)
def test_saved_activations_do_not_grow_with_the_steps(adjoint):
    assert saved_peak(adjoint, 200) <= 1.1 * saved_peak(adjoint, 20)


def test_saved_activations_of_direct_grow_with_the_steps():
    assert saved_peak("direct", 200) >= 8 * saved_peak("direct", 20)


@pytest.mark.parametrize("name", HELD)
def test_all_memory_is_constant_in_the_number_of_steps(name):
    """Every tensor that is alive at one time, states included, from 10 to 200 steps: within 5 %."""
    few, many = (kept(*ADJOINTS[name], n) for n in (10, 200))
    assert many == pytest.approx(few, rel=0.05)


def test_what_checkpointing_keeps_is_what_it_says():
    """Bytes of states: one a step, or as many as `memory=` has, whatever the number of steps;
    everything else that is alive then is the same."""
    state = 8 * SIZE * SIZE
    every = [kept("heun", Checkpoint(), n) for n in (20, 60)]
    assert every[1] - every[0] == pytest.approx(40 * state, rel=0.01)
    few = [kept("heun", Checkpoint(memory=5), n) for n in (20, 60)]
    assert few[1] == pytest.approx(few[0], rel=0.05)
    assert every[1] - few[1] == pytest.approx((60 - 5) * state, rel=0.05)
    direct = [kept("heun", "direct", n) for n in (20, 40)]
    assert direct[1] > 1.8 * direct[0]


# --- bad input ----------------------------------------------------------------------------------


def test_names_and_values_are_checked_at_the_door():
    field, x = mixture(), starts()
    assert as_adjoint("revolve") == Checkpoint()
    for wrong, said in (
        ("chekpoint", "did you mean checkpoint"),
        (3, "takes a name or an adjoint"),
    ):
        with pytest.raises(pl.UsageError, match=said):
            solve(field, x, adjoint=wrong)
    for make, said in (
        (lambda: Checkpoint(0), "at least one state"),
        (lambda: Checkpoint(together=0), "at least one step"),
        (lambda: Checkpoint(last="graph"), "unknown choice for the last steps"),
        (lambda: Continuous(form="y"), "unknown form 'y'"),
        (lambda: Continuous(states="kept"), "unknown choice of states"),
        (lambda: Continuous(probe=-1), "0 or more"),
        (lambda: Continuous("ddim"), "Runge-Kutta method"),
    ):
        with pytest.raises(pl.UsageError, match=said):
            make()
    for how, said in (
        ({"adjoint": "checkpoint", "observe": print}, "adjoint='direct' alone"),
        ({"adjoint": "continuous", "trajectory": True}, "starts from the final state"),
        (
            {"adjoint": "checkpoint", "solver": "dopri5", "grid": [1.0, 0.1], "dense": True},
            "adjoint='direct' alone",
        ),
        ({"adjoint": "continuous", "solver": "ddpm", "seeds": range(6)}, "draws noise"),
        ({"adjoint": "continuous", "start": [0.9] * 6}, "grids of each sample's own"),
        ({"adjoint": "continuous", "solver": "pc", "seeds": range(6)}, "is none, or draws noise"),
        (
            {"adjoint": "checkpoint", "speed": SADA(), "steps": 12},
            "decides on what it sees",
        ),
    ):
        with pytest.raises(pl.UsageError, match=said):
            solve(field, x, **how)
    with pytest.raises(pl.UsageError, match="needs a path"):
        solve(lambda x, t: -x, x, solver="rk4", grid=[0.0, 1.0], adjoint=Continuous(form="eps"))


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(4)], ids=["drop", "norm"])
def test_what_is_not_steady_is_named_and_direct_takes_it(layer):
    net = nn.Sequential(nn.Linear(2, 4), layer, nn.Linear(4, 2)).double()
    model, x = pl.Denoiser(lambda x, t: net(x), VP, "eps"), starts()
    name = f"1 ({type(layer).__name__})"
    assert random_module(model) == name
    for adjoint in ("checkpoint", "continuous", "reversible"):
        with pytest.raises(pl.UsageError, match=re.escape(f"{name} is in training mode")):
            solve(model, x, steps=3, adjoint=adjoint)
    sol = solve(model, x, steps=3)  # nobody has chosen: autograd through the loop
    assert type(sol.x.grad_fn).__name__ != "_ThroughBackward"
    net.eval()
    assert random_module(model) is None
    solve(model, x, steps=3, adjoint="continuous").x.sum().backward()


def test_a_field_that_answers_otherwise_the_second_time_is_found_out():
    x = starts()
    sol = solve(lambda x, t: -x * torch.rand(()), x, solver="euler", grid=[0.0, 0.5, 1.0],
                adjoint="checkpoint")  # fmt: skip
    with pytest.raises(pl.UsageError, match="not the same"):
        sol.x.sum().backward()


@pytest.mark.parametrize("n, together, again", [(7, 3, 4), (6, 2, 4), (5, 8, 1), (1, 1, 1)])
def test_last_steps_that_are_kept_are_evaluated_once(n, together, again):
    """Of n steps the last `together` need no second evaluation; one that was made to see who asks
    is made again where there are no others. Without a graph nothing is kept, and a second pass
    back over the same graph takes all steps again."""
    field, x, seen = mixture(), starts(), []

    def counted(x, t):
        seen.append(float(t[0]))
        return field.evaluate(x, t[0].double(), {})

    model, grid = pl.Denoiser(counted, VP, "x0"), pl.grids.log_snr(n)
    sol = solve(model, x, solver="euler", grid=grid, adjoint=Checkpoint(2, together, "kept"))
    first = torch.autograd.grad(sol.x.sum(), [x, field.means], retain_graph=True)
    assert sol.stats.nfe == n and sol.backward.nfe == again and len(seen) == n + again
    assert sol.backward.vjps == n
    second = torch.autograd.grad(sol.x.sum(), [x, field.means])
    exact, _ = gradients_of_sum(model, field, x, grid)
    assert off(first, exact) < 1e-12 and off(second, exact) < 1e-12
    seen.clear()
    with torch.no_grad():
        made = solve(model, x, solver="euler", grid=grid, adjoint=Checkpoint(2, together, "kept"))
    assert len(seen) == n and torch.equal(made.x, sol.x)


def gradients_of_sum(model, field, x, grid):
    sol = solve(model, x, solver="euler", grid=grid, adjoint="direct")
    return torch.autograd.grad(sol.x.sum(), [x, field.means]), sol


def test_what_is_changed_between_the_passes_is_refused():
    net, x = nn.Linear(2, 2).double(), starts()
    sol = solve(lambda x, t: net(x), x, solver="euler", grid=[0.0, 0.5], adjoint="checkpoint")
    with torch.no_grad():
        net.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sol.x.sum().backward()


def test_a_gradient_that_is_not_finite_names_step_and_level():
    law, x = pl.Gaussian(VP, f64([0.0, 0.0]), f64([1.0, 1.0])), starts()

    class Kinked(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, t):
            ctx.t = t
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g * (math.nan if 0.3 < ctx.t < 0.5 else 1.0), None

    model = pl.Denoiser(lambda x, t: law(Kinked.apply(x, float(t[0])), float(t[0])).eps, VP, "eps")
    sol = solve(model, x, solver="euler", grid=pl.grids.uniform(10), adjoint="continuous")
    with pytest.raises(FloatingPointError, match=r"step \d of 10, t = 0\.\d+, λ = -\d"):
        sol.x.sum().backward()
    sol = solve(law, x, solver="euler", grid=pl.grids.uniform(4), adjoint="continuous")
    with pytest.raises(FloatingPointError, match="gradient of the loss"):
        (sol.x * math.inf).sum().backward()


def test_differentiate_says_what_is_missing():
    data = Dataset(VP, starts(5).detach())
    x = starts().detach()
    with pytest.raises(pl.UsageError, match="nothing to differentiate: pass wrt="):
        differentiate(data, x, lambda x: x.sum(), wrt="weights", steps=3)
    for loss in (lambda x: x, lambda x: torch.tensor(1.0), lambda x: 1.0):
        with pytest.raises(pl.UsageError, match="must be a scalar that depends on the sample"):
            differentiate(data, x, loss, steps=3)
    with pytest.raises(pl.UsageError, match="did you mean noise"):
        differentiate(data, x, lambda x: x.sum(), wrt="nois")


def test_differentiate_gives_what_was_asked_for():
    model, x, c = conditional(), starts().detach(), f64([[0.4, -0.7]])

    def loss(x):
        return (x - TARGET).square().sum()

    found = differentiate(model, x, loss, wrt=("noise", "condition", "weights"), steps=5, c=c,
                          guide=CFG(2.0))  # fmt: skip
    x, c = x.requires_grad_(), c.requires_grad_()
    sol = solve(model, x, steps=5, c=c, guide=CFG(2.0), adjoint="direct")
    names, parameters = zip(*model.network.named_parameters(), strict=True)
    exact = torch.autograd.grad(loss(sol.x), [x, c, *parameters])
    mine = [found.noise, found.condition["c"], *(found.weights[name] for name in names)]
    assert off(mine, exact) < 1e-10 and float(found.loss) == pytest.approx(float(loss(sol.x)))

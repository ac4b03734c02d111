"""Speed policies: what is left out, what stands for it, and that nobody else notices."""

import itertools
import json
import math
import warnings
from dataclasses import replace

import pytest
import torch
from test_cli import done
from tiny_model import tiny_model

import pathline as pl
from pathline.core import noise
from pathline.core.images import read_receipt
from pathline.fields.problems import m4
from pathline.nets import DiT
from pathline.nets.token_cache import TokenCache
from pathline.solvers.evaluate import Evaluator
from pathline.solvers.executors import Compiled
from pathline.speed import SADA, Cadence, Tokens, speeds
from pathline.speed.criteria import ddim_step
from pathline.speed.extrapolate import curvature_weights, lagrange_weights, slope_weights
from pathline.steer import Autoguidance

VP, OT = pl.VPLinear(), pl.CondOT()
FLOAT64 = {"dtype": torch.float64}
UNEVEN = (0.31, 0.42, 0.47, 0.6)


@pytest.fixture(autouse=True)
def _quiet():
    """A mixture is so smooth that every step is stable, which SADA warns about."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "SADA's criterion|Tokens left|the guidance is switched")
        yield


def drawn(field, n=4, steps=40, solver="dpmpp_2m", **rest):
    grid, n = pl.grids.uniform(steps), None if "seeds" in rest else n
    return pl.sample(field, n, grid=grid, solver=solver, **FLOAT64, **rest)


def randn(*shape, seed=0):
    return noise.normal(range(seed, seed + shape[0]), shape[1:], dtype=torch.float64)


# --- the formulas ------------------------------------------------------------------------------


def test_slope_weights_are_the_papers_and_the_released_ones_on_even_steps():
    h = 0.02
    even = (0.5 - h, 0.5, 0.5 + h, 0.5 + 2 * h)
    assert slope_weights(even) == pytest.approx([h * w for w in (5 / 6, 5 / 6, -2 / 3)])
    assert slope_weights(even, damped=True) == pytest.approx(
        [h * w for w in (5 / 8, 3 / 4, -3 / 8)]
    )
    assert curvature_weights(even[1:]) == pytest.approx((1, -2, 1))


@pytest.mark.parametrize("damped", [False, True])
@pytest.mark.parametrize("times", [UNEVEN, UNEVEN[::-1], (0.4, 0.5, 0.6, 0.7)])
def test_the_extrapolant_is_exact_for_what_it_should_be(times, damped):
    """Constant slopes always; linear ones with the paper's A and B."""
    w, at = slope_weights(times, damped), times[1:]
    assert sum(w) == pytest.approx(times[1] - times[0], rel=1e-12)
    moved = sum(c * t for c, t in zip(w, at, strict=True))  # y = t
    exact = (times[1] ** 2 - times[0] ** 2) / 2
    assert (moved == pytest.approx(exact, rel=1e-12)) is not damped


@pytest.mark.parametrize(("damped", "order", "constant"), [(False, 3, 13 / 12), (True, 2, 1 / 2)])
def test_the_extrapolants_order_and_constant(damped, order, constant):
    """x = sin 3t: x − x̂ = −(13/12) Δ³ y'', and ½ Δ² y' with the released weights."""
    errors, steps = [], (64, 128, 256)
    for n in steps:
        h, t = 1 / n, 0.4
        times = [t - h, t, t + h, t + 2 * h]
        w = slope_weights(tuple(times), damped)
        x_hat = math.sin(3 * t) - sum(
            c * 3 * math.cos(3 * s) for c, s in zip(w, times[1:], strict=True)
        )
        errors.append(math.sin(3 * times[0]) - x_hat)
    slope = math.log(errors[0] / errors[2]) / math.log(4)
    y1, y2 = -9 * math.sin(1.2), -27 * math.cos(1.2)
    leading = (-constant * y2 if order == 3 else constant * y1) * steps[-1] ** -order
    assert abs(abs(slope) - order) < 0.15
    assert errors[2] == pytest.approx(leading, rel=0.05)


@pytest.mark.parametrize("times", [(0.4, 0.5, 0.6, 0.7), UNEVEN])
def test_with_adams_bashforth_the_paper_criterion_is_a_negative_square(times):
    """x_AB2 − x̂ is a negative multiple of Δ²y; on even steps −⅔ Δ, whatever the slopes are."""
    y = randn(3, 200, seed=5)
    h0, h1 = times[1] - times[0], times[2] - times[1]
    ab2 = -h0 * ((1 + h0 / (2 * h1)) * y[0] - h0 / (2 * h1) * y[1])
    x_hat = -sum(w * slope for w, slope in zip(slope_weights(times), y, strict=True))
    second = sum(w * slope for w, slope in zip(curvature_weights(times[1:]), y, strict=True))
    ratio = (ab2 - x_hat) / second
    assert ratio.max() < 0 and ratio.std() < 1e-10
    if times is not UNEVEN:
        assert (ab2 - x_hat + 2 / 3 * h0 * second).abs().max() < 1e-14


def test_lagrange_is_exact_for_polynomials_and_at_its_nodes():
    nodes = torch.tensor([[0.6, 0.61], [0.7, 0.8], [0.75, 0.9]], dtype=torch.float64)
    weights = lagrange_weights(nodes, 0.5)
    for power in range(3):
        total = (weights * nodes**power).sum(0)
        torch.testing.assert_close(total, torch.full_like(total, 0.5**power), rtol=1e-12, atol=0)
    assert lagrange_weights(nodes, 0.7)[:, 0].tolist() == [0, 1, 0]


@pytest.mark.parametrize("path", [VP, OT, pl.EDM()], ids=["vp", "ot", "edm"])
def test_the_reference_step_is_the_solver_ddims(path):
    field = m4(path)
    plan = pl.DDIM().plan(path, pl.grids.log_snr(3))
    t, to = plan.times[1:3]
    x = randn(5, 3)
    said = field(x, t)
    step = ddim_step(path, x, said.velocity, t, to)
    exact = path.noised(said.x0, said.eps, torch.tensor(to, dtype=torch.float64))
    torch.testing.assert_close(step, exact, rtol=1e-12, atol=1e-12)


# --- neutrality --------------------------------------------------------------------------------

NEUTRAL = {
    "an empty range": SADA(acc_range=(10, 10)),
    "no skip in a row": SADA(max_interval=0),
    "every one": SADA(lagrange_step=0, every=1, acc_range=(5, 40)),
}


@pytest.mark.parametrize("speed", NEUTRAL.values(), ids=NEUTRAL.keys())
@pytest.mark.parametrize("name", ["dpmpp_2m", "euler", "unipc", "heun", "dpm"])
def test_what_skips_nothing_is_bitwise_the_baseline(name, speed):
    base, same = (drawn(m4(VP), solver=name, speed=s) for s in (None, speed))
    assert torch.equal(base.x, same.x)
    assert same.nfes == (base.stats.nfe,) * 4 and same.stats.nfe == base.stats.nfe


def test_a_cadence_of_one_is_the_plan_itself():
    plan = pl.DPMpp(order=3).plan(VP, pl.grids.uniform(10))
    assert Cadence(1).thinned(plan).rows == plan.rows


# --- what is spent, and by whom ----------------------------------------------------------------


class Counting(pl.Mixture):
    """M4, with the size of every call written down."""

    def evaluate(self, x, t, cond):
        sizes.append(len(x))
        return super().evaluate(x, t, cond)


sizes: list[int] = []


def counting(path):
    law = m4(path)
    sizes.clear()
    return Counting(path, law.means, law.stds, law.weights)


POLICIES = {
    "sada": SADA(),
    "released": SADA(criterion="released"),
    "magnitude": SADA(criterion="magnitude", limit=0.02),
    "paper": SADA(criterion="paper", weights="released"),
    "step-wise": SADA(lagrange_step=None, criterion="magnitude", limit=0.02),
    "batch": SADA(granularity="batch", criterion="magnitude", limit=0.02),
    "velocity": SADA(carry="velocity"),
}


@pytest.mark.parametrize("speed", POLICIES.values(), ids=POLICIES.keys())
@pytest.mark.parametrize("path", [VP, OT], ids=["vp", "ot"])
def test_every_evaluation_is_counted_once_and_for_whom_it_was(path, speed):
    solution = drawn(counting(path), 6, speed=speed)
    report = solution.skipped
    assert sum(solution.nfes) == sum(sizes)
    assert [40 - len(steps) for steps in report.steps] == list(solution.nfes)
    assert solution.stats.nfe == max(solution.nfes) < 40
    assert len(report.regimes) == 40 and report.criterion.shape == (40, 6)
    first, end, _ = speed.limits(40)
    assert all(first < i < end for steps in report.steps for i in steps)
    for steps in report.steps:
        rows = [i in steps for i in range(40)]
        longest = max(len(run) for run in "".join("s" if r else " " for r in rows).split())
        assert longest <= speed.max_interval


def test_step_skips_follow_the_sign_and_lagrange_the_cadence():
    speed = SADA(criterion="magnitude", limit=0.03)
    report = drawn(m4(VP), 8, speed=speed).skipped
    (first, end, late), decided = speed.limits(40), 0
    for s in range(8):
        row = 0
        for i in range(first + 1, end):
            regime, kappa = report.regimes[i][s], float(report.criterion[i, s])
            wanted = i % 4 != 0 if i >= late else kappa < 0
            decided += i < late
            assert (regime in ("step", "lagrange")) == (wanted and row < 4)
            assert regime != ("lagrange" if i < late else "step")
            row = row + 1 if regime != "real" else 0
    assert report.n_decisions == decided and 0 < report.stable < 1


@pytest.mark.parametrize("speed", POLICIES.values(), ids=POLICIES.keys())
def test_a_sample_is_the_same_alone(speed):
    together = drawn(m4(VP), 6, speed=speed)
    alone = [drawn(m4(VP), seeds=[s], speed=speed) for s in range(6)]
    if speed.granularity == "batch":
        assert {len(steps) for steps in together.skipped.steps} == {40 - together.stats.nfe}
        return
    for s, one in enumerate(alone):
        assert torch.equal(one.x[0], together.x[s]) and one.nfes[0] == together.nfes[s]
        assert one.skipped.steps[0] == together.skipped.steps[s]


def test_samples_decide_differently():
    report = drawn(m4(VP), 8, speed=SADA(criterion="magnitude", limit=0.03)).skipped
    assert len(set(report.steps)) > 1


def test_a_cadence_calls_what_it_says_and_no_more():
    for every, n in ((2, 20), (2.5, 16), (4, 10), (40 / 22, 22)):
        solution = drawn(counting(VP), 3, speed=Cadence(every))
        assert solution.stats.nfe == len(sizes) == n and solution.nfes == (n,) * 3
    assert drawn(m4(VP), speed=Cadence(3, span=(10, 39))).stats.nfe == 10 + 9 + 1


@pytest.mark.parametrize("carry", ["x0", "eps", "velocity"])
@pytest.mark.parametrize("nodes", [1, 3])
def test_a_cadence_is_extrapolation_by_hand(carry, nodes):
    """The thinned plan and a loop that holds or extrapolates predictions agree to rounding."""
    field, plan = m4(VP), pl.DPMpp().plan(VP, pl.grids.uniform(16))
    speed = Cadence(3, nodes=nodes, carry=carry)
    made, seen = speed.made(16), []

    def evaluate(k, x):
        t = plan.times[k]
        if made[k]:
            said = field(x, t)
            seen.append((t, getattr(said, carry)))
            return said.x0
        known = seen[-nodes:]
        weights = lagrange_weights(torch.tensor([s for s, _ in known], dtype=torch.float64), t)
        value = sum(w * f for w, (_, f) in zip(weights, known, strict=True))
        return pl.Prediction(x, torch.tensor(t, dtype=torch.float64), value, carry, VP).x0

    from pathline.solvers.execute import complete

    x = randn(4, 3)
    by_hand = complete(plan, evaluate, [x])
    torch.testing.assert_close(
        pl.solve(field, x, solver=plan, speed=speed).x, by_hand, rtol=1e-11, atol=1e-11
    )


def test_sada_that_only_keeps_a_cadence_is_the_cadence():
    speed = SADA(acc_range=(11, 38), lagrange_step=12, carry="x0")
    same = Cadence(4, nodes=3, carry="x0", span=(13, 38))
    a, b = drawn(m4(VP), speed=speed), drawn(m4(VP), speed=same)
    assert a.stats.nfe == b.stats.nfe
    torch.testing.assert_close(a.x, b.x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_3m", "deis", "unipc", "heun", "dpm", "rk4"])
def test_it_works_under_other_solvers_and_both_ways(solver):
    """Half of the evaluations, and nearer than a quarter of the distance that the flow covers."""
    law = m4(VP)
    base, fast = (drawn(law, 8, solver=solver, speed=s) for s in (None, SADA()))
    moved = (base.x - drawn(law, 8, steps=1, solver="ddim").x).norm()
    assert fast.stats.nfe < base.stats.nfe
    assert (fast.x - base.x).norm() < 0.25 * moved
    back = pl.grids.uniform(40, start=VP.t_min, end=1.0)
    there = pl.solve(law, base.x, solver=solver, grid=back, speed=SADA())
    assert there.ok and there.stats.nfe < base.stats.nfe


def test_gradients_pass_through_what_stands_for_evaluations():
    field, x = m4(VP), randn(2, 3).requires_grad_()
    for speed in (SADA(), Cadence(2)):
        end = pl.solve(field, x, grid=pl.grids.uniform(20), speed=speed).x
        (slope,) = torch.autograd.grad(end.sum(), x)
        moved = x.detach().clone()
        moved[0, 1] += 1e-6
        nudged = pl.solve(field, moved, grid=pl.grids.uniform(20), speed=speed).x
        finite = float((nudged - end.detach()).sum() / 1e-6)
        assert float(slope[0, 1]) == pytest.approx(finite, rel=1e-4)


# --- guidance and conditions -------------------------------------------------------------------


class Shifted(torch.nn.Module):
    """A denoiser of N(c, 1) whose samples are told different c."""

    def forward(self, x, t, c):
        sizes.append(len(x))
        assert len(c) == len(t) == len(x)
        return x - c * (1 + torch.sin(6 * c * t[:, None]))


def told(**rest):
    null = {"c": torch.zeros(1, 1, dtype=torch.float64)}
    sizes.clear()
    return pl.Denoiser(Shifted(), VP, null=null, shape=(3,), **rest)


def test_conditions_go_with_their_samples_and_guides_share_a_decision():
    speed = SADA(criterion="magnitude", limit=0.03)
    c = torch.linspace(0.1, 1.5, 6, dtype=torch.float64)[:, None]
    how = {"guide": pl.CFG(3.0), "speed": speed}
    together = drawn(told(), 6, c=c, **how)
    assert sum(sizes) == 2 * sum(together.nfes)
    assert together.stats.network_calls == 2 * together.stats.nfe
    for s in range(6):
        alone = drawn(told(), seeds=[s], c=c[s : s + 1], **how)
        torch.testing.assert_close(alone.x[0], together.x[s], rtol=1e-12, atol=1e-12)
        assert alone.skipped.steps[0] == together.skipped.steps[s]
    assert len(set(together.skipped.steps)) > 1


# --- what decides, and what does not ------------------------------------------------------------


class Rounded(pl.Mixture):
    """A mixture whose evaluations are rounded in another way in every batch size."""

    def evaluate(self, x, t, cond):
        said = super().evaluate(x, t, cond)
        return said * (1 + 8 * torch.finfo(x.dtype).eps * (len(x) % 3))


@pytest.mark.parametrize("criterion", ["ddim", "paper", "released", "magnitude"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_velocity_on_a_line_is_not_asked_about(criterion, dtype):
    """Δ²y of a prediction on the line through two real velocities is zero: rounding decides."""
    law = m4(OT)
    field = Rounded(OT, law.means, law.stds, law.weights)
    how = {"solver": "dpmpp_2m", "grid": "uniform", "steps": 50, "dtype": dtype}
    how["speed"] = SADA(criterion=criterion, lagrange_step=None)
    together = pl.sample(field, 6, **how)
    regimes = together.skipped.regimes
    assert any("step" in row for row in regimes)
    for (before, now), asked in zip(
        itertools.pairwise(regimes), together.skipped.criterion[1:], strict=True
    ):
        for s in range(6):
            if before[s] == "step":
                assert now[s] == "real" and asked[s].isnan()
    for s in range(6):
        alone = pl.sample(field, seeds=[s], **how)
        assert alone.skipped.steps[0] == together.skipped.steps[s]
        tolerance = 1e5 * torch.finfo(dtype).eps
        torch.testing.assert_close(alone.x[0], together.x[s], rtol=tolerance, atol=tolerance)


class Known(torch.nn.Module):
    """A classifier of three kinds, for guides that know a label or a datum of every sample."""

    def forward(self, x, t):
        return -3 * (x[:, :1] - torch.tensor([[-1.0, 0.0, 1.0]], dtype=x.dtype)).square()


DATA = randn(6, 1, seed=40)
GUIDES = {
    "worse": lambda rows: Autoguidance(2.0, worse=told()),
    "measured": lambda rows: pl.Measured(torch.eye(1, 3).double(), DATA[rows], 0.5),
    "labels": lambda rows: pl.Classifier(Known(), [r % 3 for r in rows], 0.1),
}


@pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES.keys())
def test_guides_that_know_single_samples_go_with_them(guide):
    """By the field's part, or in whole batches where it has none; alone it is the same."""
    speed, c = SADA(criterion="magnitude", limit=0.03), torch.linspace(0.1, 1.5, 6)[:, None]
    c = c.double()
    together = drawn(told(), 6, c=c, guide=guide(range(6)), speed=speed)
    assert len(set(together.skipped.steps)) > 1
    for s in range(6):
        how = {"c": c[s : s + 1], "guide": guide([s]), "speed": speed}
        alone = drawn(told(), seeds=[s], **how)
        torch.testing.assert_close(alone.x[0], together.x[s], rtol=1e-10, atol=1e-10)
        assert alone.skipped.steps[0] == together.skipped.steps[s]


def test_network_calls_are_those_at_the_times_that_were_evaluated():
    """Guidance in an interval costs two calls inside; a sample alone costs what was counted."""
    c = torch.linspace(0.1, 1.5, 6, dtype=torch.float64)[:, None]
    how = {"guide": pl.CFG(3.0, interval=(0.2, 0.5))}
    how["speed"] = SADA(criterion="magnitude", limit=0.03)
    counts = []
    for s in range(6):
        alone = drawn(told(), seeds=[s], c=c[s : s + 1], **how)
        counts.append(sum(sizes))
        assert alone.stats.network_calls == counts[-1] < 2 * alone.stats.nfe
    together = drawn(told(), 6, c=c, **how)
    assert together.stats.network_calls == max(counts) and sum(sizes) == sum(counts)


def test_a_batch_mate_spoils_no_gradient():
    """Samples that follow their polynomial beside those that have not all of its nodes yet."""
    speed = SADA((4, 38), lagrange_step=8, nodes=7, criterion="magnitude", limit=0.03)

    def slope(rows):
        x = randn(6, 3)[rows].requires_grad_()
        made = pl.solve(m4(VP), x, grid=pl.grids.uniform(40), speed=speed)
        return made, torch.autograd.grad(made.x.sum(), x)[0]

    together, slopes = slope(list(range(6)))
    rows = together.skipped.regimes
    assert any("lagrange" in row and len(set(row)) > 1 for row in rows)
    for s in range(6):
        torch.testing.assert_close(slopes[s : s + 1], slope([s])[1], rtol=1e-10, atol=1e-12)


# --- tokens ------------------------------------------------------------------------------------

FEW = SADA(max_interval=0, lagrange_step=None, tokens=Tokens(refresh=4))


def dit(depth=2, seed=3):
    net = DiT(channels=1, size=16, patch=4, width=32, depth=depth, heads=2, context_width=8)
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2, generator=generator)
    return net.double().eval().requires_grad_(False)


def tokened(net):
    null = {"context": torch.ones(1, 2, 8, dtype=torch.float64)}
    return pl.Denoiser(net, OT, view="velocity", null=null, shape=(1, 16, 16))


def test_all_tokens_kept_is_the_network():
    field, context = tokened(dit()), randn(3, 2, 8)
    speed = replace(FEW, tokens=Tokens(window=1, refresh=4))
    for guide in (None, pl.CFG(2.0)):
        base, same = (
            drawn(field, 3, 12, guide=guide, context=context, speed=s) for s in (None, speed)
        )
        assert "tokens" in {r for row in same.skipped.regimes for r in row}
        assert float((same.x - base.x).abs().max()) < 1e-6
        assert bool((same.skipped.tokens == 1).all())


def test_pruned_blocks_are_the_formula():
    """Kept tokens alone go through each block; the others are what the last block last said."""
    net, x, t = dit(), randn(2, 1, 16, 16), torch.tensor(0.4, dtype=torch.float64)
    later, context = x + 0.1 * randn(2, 1, 16, 16, seed=9), randn(2, 2, 8, seed=4)
    cached = TokenCache(net, 2)
    cached.aim([0, 1], None)
    assert torch.equal(cached(x, t, context), net(x, t, context))
    keep = torch.zeros(2, 16, dtype=torch.bool)
    keep[0, [1, 5, 6]] = keep[1, [0, 2, 9, 15]] = True  # not equally many: padding must not be seen
    cached.aim([0, 1], keep)
    whole = cached(later, t, context)
    tokens = net.context(context)
    h, old = {}, {}
    for s in range(2):
        features, inputs = [], []
        hooks = [
            net.blocks[0].register_forward_pre_hook(lambda _, args, to=inputs: to.append(args)),
            net.blocks[-1].register_forward_hook(lambda _, __, out, to=features: to.append(out)),
        ]
        net(x[s : s + 1], t, context[s : s + 1]), net(later[s : s + 1], t, context[s : s + 1])
        [hook.remove() for hook in hooks]
        rows, modulation = inputs[1][0][:, keep[s]], inputs[1][1]
        for block in net.blocks:
            rows = block(rows, modulation, tokens[s : s + 1], None)
        old[s], h[s] = features[0].clone(), rows
        old[s][:, keep[s]] = h[s]
        last = net.blocks[-1].register_forward_hook(lambda *_, out=old[s]: out)
        expected = net(later[s : s + 1], t, context[s : s + 1])
        last.remove()
        torch.testing.assert_close(whole[s : s + 1], expected, rtol=1e-10, atol=1e-10)


def test_tokens_are_the_unstable_ones_and_one_in_every_window():
    from pathline.solvers.evaluate import Call
    from pathline.speed.tokens import TokenChoice

    plan = pl.DDIM().plan(OT, pl.grids.uniform(12)).folded("velocity")
    kappa = randn(2, 1, 16, 16, seed=2)
    call = Call(tokened(dit()), plan, kappa, {}, (5, 6))
    mean = kappa.reshape(2, 4, 4, 4, 4).mean((2, 4)).flatten(1)
    for most in (None, 2):
        keep = TokenChoice.of(Tokens(most=most, window=3), call).kept(7, kappa)
        for s in range(2):
            best = mean[s].argsort(descending=True)[: 16 if most is None else most]
            wanted = {int(i) for i in best if mean[s, i] >= 0}
            found = set(keep[s].nonzero().flatten().tolist())
            assert wanted <= found and len(found - wanted) <= 4
            lies = {(i // 4 // 3, i % 4 // 3) for i in found}
            assert lies == {(0, 0), (0, 1), (1, 0), (1, 1)}
    one = call._replace(x=kappa[1:], seeds=(6,))
    alone = TokenChoice.of(Tokens(), one).kept(7, kappa[1:])
    both = TokenChoice.of(Tokens(), call).kept(7, kappa)
    assert torch.equal(alone[0], both[1])
    assert not torch.equal(both, TokenChoice.of(Tokens(), call).kept(8, kappa))


def test_a_sample_keeps_its_own_tokens_under_guidance():
    """Together and alone: other batches, other padding, the same tokens."""
    field, context = tokened(dit()), randn(4, 2, 8)
    how = {"steps": 12, "guide": pl.CFG(2.0), "speed": FEW}
    together = drawn(field, 4, context=context, **how)
    shares = together.skipped.tokens
    assert 0 < float(shares.min()) < 1
    for s in range(4):
        alone = drawn(field, seeds=[s], context=context[s : s + 1], **how)
        assert torch.equal(alone.skipped.tokens[:, 0], shares[:, s])
        torch.testing.assert_close(alone.x[0], together.x[s], rtol=1e-9, atol=1e-9)


def test_tokens_with_skips_mix_in_one_batch_and_leave_the_network_alone():
    net = dit()
    before = list(net.named_modules())
    speed = SADA(criterion="magnitude", limit=1.0, tokens=Tokens(refresh=2), lagrange_step=None)
    solution = drawn(tokened(net), 6, 40, context=randn(6, 2, 8), speed=speed)
    assert {"real", "tokens", "step"} == {r for row in solution.skipped.regimes for r in row}
    assert list(net.named_modules()) == before


@pytest.mark.parametrize("max_interval", [0, 1])
def test_tokens_follow_guidance_into_its_interval(max_interval):
    """Where guidance begins or ends, caches are of other calls: all tokens are computed anew."""
    field, context = tokened(dit()), randn(4, 2, 8)
    how = {"steps": 24, "guide": pl.CFG(2.0, interval=(0.2, 0.5))}
    how["speed"] = replace(FEW, max_interval=max_interval, criterion="magnitude", limit=1.5)
    together = drawn(field, 4, context=context, **how)
    assert {"real", "tokens"} <= {r for row in together.skipped.regimes for r in row}
    if not max_interval:
        times = pl.grids.uniform(24).times(OT)[:-1]
        inside = [0.2 <= t <= 0.5 for t in times]
        for i in range(1, 24):
            if inside[i] != inside[i - 1]:
                assert set(together.skipped.regimes[i]) == {"real"}
    for s in range(4):
        alone = drawn(field, seeds=[s], context=context[s : s + 1], **how)
        assert [r[0] for r in alone.skipped.regimes] == [r[s] for r in together.skipped.regimes]
        torch.testing.assert_close(alone.x[0], together.x[s], rtol=1e-9, atol=1e-9)


def test_tokens_of_a_guide_that_takes_whole_batches():
    """Those that are not listened to are called with all the same, and their caches kept."""
    field, context, data = tokened(dit()), randn(4, 2, 8), randn(4, 1, seed=40)
    speed = SADA(criterion="magnitude", limit=1.5, tokens=Tokens(refresh=2), lagrange_step=None)

    def made(rows):
        at = torch.zeros(1, 256, dtype=torch.float64)
        at[0, 7] = 1
        guide = pl.Measured(at, data[rows], 0.5)
        how = {"guide": guide, "context": context[rows], "speed": speed}
        return drawn(field, steps=24, seeds=rows, **how)

    together = made([0, 1, 2, 3])
    kinds = [set(row) for row in together.skipped.regimes]
    assert any({"step", "tokens"} <= row for row in kinds)
    for s in range(4):
        alone = made([s])
        assert [r[0] for r in alone.skipped.regimes] == [r[s] for r in together.skipped.regimes]
        torch.testing.assert_close(alone.x[0], together.x[s], rtol=1e-9, atol=1e-9)


def test_a_token_cache_without_a_whole_pass_says_so():
    cached = TokenCache(dit(), 1)
    cached.aim([0], torch.arange(16)[None] % 2 == 0)
    with pytest.raises(pl.UsageError, match="call once with all of them"):
        cached(randn(1, 1, 16, 16), torch.tensor(0.4), randn(1, 2, 8))


def test_tokens_that_leave_nothing_out_are_warned_about():
    """What is computed after a skip is whole; a compiled network is pruned as it was before."""
    field, context = tokened(dit()), randn(2, 2, 8)
    with pytest.warns(UserWarning, match=r"Tokens left 0.0% of the tokens out") as said:
        drawn(field, 2, 40, context=context, speed=SADA(tokens=Tokens()))
    assert {w.filename for w in said if "left" in str(w.message)} == {__file__}
    eager = drawn(field, 2, 12, context=context, speed=FEW)
    how = {"executor": Compiled(backend="eager"), "context": context, "speed": FEW}
    compiled = drawn(field, 2, 12, **how)
    assert 0 < compiled.skipped.computed < 0.98
    assert torch.equal(compiled.skipped.tokens, eager.skipped.tokens)
    torch.testing.assert_close(compiled.x, eager.x, rtol=1e-10, atol=1e-10)


# --- receipts, the command line, the report ----------------------------------------------------


@pytest.mark.parametrize("speed", [SADA(tokens=Tokens(most=9)), SADA((10, 30)), Cadence(2.5)])
def test_a_policy_is_rebuilt_from_its_description(speed):
    assert speeds.rebuild(json.loads(json.dumps(speed.describe()))) == speed


@pytest.mark.parametrize("name", ["sada", "cadence"])
def test_a_receipt_replays(tmp_path, monkeypatch, name):
    tiny_model(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    call = ["tiny", "a dog", "--grid", "uniform", "--steps", 20, "-n", 3]
    said = done("sample", *call, "--speed", name, "-o", "a.png")
    receipt = read_receipt("a.png")
    assert receipt.recipe["speed"]["name"] == name and receipt.nfe < 20
    assert f"{receipt.nfe} evaluations" in said
    assert "identical" in done("replay", "a.png", "-o", "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_criterion_that_tells_nothing_is_warned_about():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        drawn(m4(VP), 8, speed=SADA(criterion="paper"))
        drawn(m4(VP), 8, speed=SADA(criterion="magnitude", limit=0.03))
    assert ["'paper' called 100.0%" in str(w.message) for w in said] == [True]
    assert said[0].filename == __file__  # where Pathline was called, however deep it arises


def test_steps_and_trajectories_see_the_same_states():
    kept = drawn(m4(VP), trajectory=True, speed=SADA())
    states = [step.x for step in pl.steps(m4(VP), 4, grid=pl.grids.uniform(40), **FLOAT64,
                                          speed=SADA())]  # fmt: skip
    assert torch.equal(kept.trajectory[1:], torch.stack(states)) and kept.skipped is not None


# --- what is refused ---------------------------------------------------------------------------

REFUSED = {
    "few steps": (SADA(), {"steps": 7}, "at least 8 evaluations"),
    "range beyond": (SADA(acc_range=(10, 60)), {}, "10 … 60 of 40"),
    "upside down": (SADA(acc_range=(0.8, 0.2)), {}, "32 … 8 of 40"),
    "late": (SADA(lagrange_step=44), {}, "outside of 0 … 40"),
    "noise": (SADA(), {"solver": "ddpm"}, "assumes an ODE"),
    "churn": (SADA(), {"solver": "edm"}, "assumes an ODE"),
}


@pytest.mark.parametrize(("speed", "rest", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_work_is_refused_before_anything_is_evaluated(speed, rest, said):
    with pytest.raises(pl.UsageError, match=said):
        drawn(counting(VP), speed=speed, **rest)
    assert not sizes


def test_what_can_be_forced():
    assert drawn(m4(VP), solver="ddpm", speed=SADA(force=True)).stats.nfe < 40


ARGUMENTS = {
    "cadence that begins with a skip": ({"lagrange_step": 10}, "multiple of every=4"),
    "no nodes": ({"nodes": 0}, "at least 1 node"),
    "criterion": ({"criterion": "ddpm"}, "'ddim', 'paper'"),
    "granularity": ({"granularity": "token"}, "'per_sample', 'batch'"),
    "window": ({"tokens": {"window": 0}}, "at least 1"),
    "choice": ({"tokens": {"by": "size"}}, "'criterion' or 'random'"),
    "part of a window": ({"tokens": {"window": 2.5}}, "whole numbers"),
    "no grid": ({"tokens": {"grid": (0, 4)}}, "1 or more"),
    "tokens": ({"tokens": True}, r"give Tokens\(\)"),
    "cadence": ({"every": 2.5}, "whole numbers"),
    "nodes": ({"nodes": 2.0}, "whole numbers"),
    "limit": ({"limit": -0.1}, "limit must not be negative"),
    "no limit": ({"limit": math.nan}, "limit must not be negative"),
    "late": ({"lagrange_step": math.nan}, "lagrange_step must not be negative"),
    "a number": ({"acc_range": 0.5}, "acc_range=0.5: give two fractions"),
    "three": ({"acc_range": (0.1, 0.2, 0.3)}, "give two fractions"),
    "no number": ({"acc_range": (math.nan, 0.9)}, "give two fractions"),
    "whole ends": ({"acc_range": (0, 1)}, r"all of them are \(0.0, 1.0\)"),
}


@pytest.mark.parametrize(("given", "said"), ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_arguments_that_are_refused(given, said):
    with pytest.raises(pl.UsageError, match=said):
        SADA(**given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"every": math.nan}, "every ≥ 1"),
        ({"every": math.inf}, "every ≥ 1"),
        ({"nodes": 1.5}, "at least 1 node"),
        ({"span": (0, 1)}, r"all of them are \(0.0, 1.0\)"),
        ({"span": 0.5}, "give two fractions"),
    ],
)
def test_cadences_that_are_refused(given, said):
    with pytest.raises(pl.UsageError, match=said):
        Cadence(**given)


def test_more_nodes_than_are_known_falls_back_to_the_step_wise_rule():
    report = drawn(m4(VP), speed=SADA(acc_range=(4, 38), lagrange_step=8, nodes=7)).skipped
    found = [regime for row in report.regimes[8:] for regime in row]
    assert "step" in found and "lagrange" in found


def test_a_batch_that_changes_is_refused():
    with pytest.raises(pl.UsageError, match=r"was \(4, 3\) and is now \(2, 3\)"):
        for step in pl.steps(m4(VP), 4, grid=pl.grids.uniform(20), speed=SADA()):
            step.x = step.x[:2]


@pytest.mark.parametrize("speed", [SADA(), Cadence(2)])
def test_samples_with_times_of_their_own_are_refused(speed):
    levels = torch.tensor([0.9, 0.5], dtype=torch.float64)
    with pytest.raises(pl.UsageError, match="times of their own"):
        pl.solve(m4(VP), randn(2, 3), steps=20, start=levels, speed=speed)


def test_other_fields_and_networks():
    x = randn(2, 3)
    grid = pl.grids.uniform(10, start=0.0, end=1.0)
    decay = {"solver": "euler", "grid": grid}
    with pytest.raises(pl.UsageError, match="needs a model on a path"):
        pl.solve(lambda x, t: -x, x, speed=SADA(), **decay)
    with pytest.raises(pl.UsageError, match="carry='velocity'"):
        pl.solve(lambda x, t: -x, x, speed=Cadence(2), **decay)
    held = pl.solve(lambda x, t: -x, x, speed=Cadence(2, carry="velocity"), **decay)
    torch.testing.assert_close(held.x, x * 0.8**5, rtol=1e-12, atol=1e-12)
    with pytest.warns(UserWarning, match="no prunable blocks"):
        drawn(m4(VP), speed=FEW)
    with pytest.raises(pl.UsageError, match="cannot be divided into 3 × 3"):
        speed = replace(FEW, tokens=Tokens(grid=(3, 3)))
        drawn(tokened(dit()), 1, 12, context=randn(1, 2, 8), speed=speed)
    net = torch.nn.Module()
    net.blocks = torch.nn.ModuleList()
    net.forward = lambda x, t: x
    with pytest.raises(pl.UsageError, match="does not say how its tokens lie"):
        drawn(pl.Denoiser(net, OT, "velocity", shape=(1, 16, 16)), 1, 12, speed=FEW)


def test_the_default_evaluator_says_nothing():
    made = Evaluator(m4(VP), pl.DDIM().plan(VP, pl.grids.uniform(2)), randn(2, 3), {})
    assert made.per_sample is None and made.report() is None
    assert drawn(m4(VP)).skipped is None and drawn(m4(VP)).nfes == (40,) * 4

"""Couplings against brute force, closed forms and independent formulas; training with them."""

import json
import math
import sys
import warnings
from dataclasses import replace
from itertools import permutations

import pytest
import torch

from pathline.core import noise
from pathline.core.errors import MissingExtra, UsageError
from pathline.fields import Gaussian
from pathline.fields.problems import eight_gaussians, moons
from pathline.learn import (
    BalancedGibbs,
    ExactOT,
    Gibbs,
    Independent,
    Matching,
    Recipe,
    Sinkhorn,
    Watch,
    choose_eps,
    couplings,
    diagnose,
    load_model,
    train,
)
from pathline.learn.couplings import Weighing, assignment, effective, sinkhorn, wasserstein
from pathline.learn.couplings.coupling import costs, pair_costs
from pathline.learn.run import Run, step_generator
from pathline.learn.sources import LabelledImages, starts
from pathline.paths import CondOT
from pathline.solvers import grids, sample, solve
from pathline.solvers.likelihood import log_prob
from pathline.speed import normalised_path_energy, path_energy

ot = pytest.importorskip("ot", reason='it comes with the extra "pathline[ot]"')


def normal(n, dim=2, index=0):
    return noise.normal(range(n), (dim,), stream="probe", index=index, dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def samples():
    return normal(200), eight_gaussians(CondOT()).draw(range(200))


# -- optimal transport


@pytest.mark.parametrize("cost", ["distance", "squared"])
def test_the_exact_coupling_is_the_best_of_all_permutations(cost):
    x, y = normal(6, 3), normal(6, 3, 1)
    c = costs(x, y, cost)
    best = min(permutations(range(6)), key=lambda p: sum(c[p[j], j] for j in range(6)))
    assert ExactOT(cost).partners(x, y, None).tolist() == list(best)
    pairs = ExactOT(cost).pair(x, y)
    assert torch.equal(pairs.x, x[list(best)]) and torch.equal(pairs.y, y)
    assert torch.equal(pairs.log_weight, torch.zeros(6).double())


def test_on_a_line_the_ranks_are_paired():
    x, y = normal(50, 1), normal(50, 1, 1)
    pairs = ExactOT().pair(x, y)
    assert torch.equal(pairs.x[:, 0].argsort(), y[:, 0].argsort())
    exact = (x.sort(0).values - y.sort(0).values).square().mean().sqrt()
    assert wasserstein(x, y) == pytest.approx(float(exact), rel=1e-13)


def test_samples_of_different_sizes_are_drawn_from_the_exact_plan():
    """3 sources for 4 data on a line: the plan is the monotone one, quarter by quarter."""
    x, y = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    wanted = torch.tensor([[3, 1, 0, 0], [0, 2, 2, 0], [0, 0, 1, 3]]).double() / 12
    torch.testing.assert_close(ExactOT().plan(x, y), wanted, rtol=0, atol=1e-15)
    drawn = torch.stack([ExactOT().partners(x, y, generator(k)) for k in range(2000)])
    share = torch.nn.functional.one_hot(drawn, 3).double().mean(0).T / 4
    assert (share - wanted).abs().max() < 5 * 0.5 / 2000**0.5 / 4  # five deviations of a coin


def test_the_entropic_plan_of_two_points_is_the_closed_form():
    """½[[p, 1 − p], [1 − p, p]] with log p/(1 − p) = (c_01 + c_10 − c_00 − c_11)/2ε."""
    c, eps = torch.tensor([[0.3, 1.1], [2.0, 0.7]]).double(), 0.4
    p = torch.sigmoid((c[0, 1] + c[1, 0] - c[0, 0] - c[1, 1]) / (2 * eps))
    wanted = torch.stack((torch.stack((p, 1 - p)), torch.stack((1 - p, p)))) / 2
    found = sinkhorn(c, eps, tolerance=1e-15)
    torch.testing.assert_close(found.plan, wanted, rtol=0, atol=1e-14)
    rebuilt = ((found.phi[:, None] + found.psi - c) / eps).exp() / 4
    torch.testing.assert_close(rebuilt, wanted, rtol=0, atol=1e-14)


def test_the_entropic_coupling_draws_from_its_plan():
    """Two sources for two places with 5000 data each: shares of the closed form for two points."""
    x, places = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.2], [2.0]])
    y, eps = places.repeat_interleave(5000, 0), 0.8
    c = costs(x, places, "distance")
    p = float(torch.sigmoid((c[0, 1] + c[1, 0] - c[0, 0] - c[1, 1]) / (2 * eps)))
    drawn = Sinkhorn(eps, "distance").partners(x, y, generator()).reshape(2, 5000).double()
    allowed = 5 * (p * (1 - p) / 5000) ** 0.5  # five deviations of the coin
    assert p > 0.6
    assert drawn.mean(1).tolist() == pytest.approx([1 - p, p], abs=allowed)


def test_a_plan_that_has_not_converged_is_said(samples):
    c = costs(*samples, "squared")
    with pytest.warns(UserWarning, match="cut off after 3 with a marginal that is off by"):
        sinkhorn(c, 0.1, iterations=3)


# -- weights


@pytest.mark.parametrize("cost", ["distance", "squared"])
@pytest.mark.parametrize("eps", [2.0, 5.0, 20.0])
def test_gibbs_weights_are_the_entropic_plan_between_their_own_marginals(samples, cost, eps):
    """From a potential that is far from the solution: the iteration has to find it."""
    x, y = (each[:80] for each in samples)
    plan = Gibbs(eps, cost).plan(x, y)
    found = sinkhorn(
        costs(x, y, cost), eps, a=plan.sum(1), b=plan.sum(0), start=eps * normal(80, 1)[:, 0],
        tolerance=1e-15, iterations=20_000,
    )  # fmt: skip
    assert (found.plan - plan).abs().max() < 1e-14


def test_the_weights_of_pairs_are_those_of_the_plan(samples):
    x, y = samples
    gibbs = Gibbs(1.5)
    pairs = gibbs.pair(x, y)
    assert torch.equal(pairs.x, x) and torch.equal(pairs.y, y)
    diagonal = gibbs.plan(x, y).diagonal().log()
    # both are exp(−c/ε) up to one constant
    assert (pairs.log_weight - diagonal).std() < 1e-13


def test_balanced_weights_are_the_entropic_plan(samples):
    x, y = samples
    coupling = BalancedGibbs(1.0).fitted(x, y)
    exact = sinkhorn(costs(x, y, "distance"), 1.0)
    weights = coupling.pair(x, y).log_weight.exp() / len(x) ** 2
    # the soft minimum makes one more half-step; the plan is off by its tolerance of 1e-9
    torch.testing.assert_close(weights, exact.plan.diagonal(), rtol=1e-8, atol=0)
    found = diagnose(coupling, x, y)
    assert max(found.tilt_x, found.tilt_y) < 1e-9


def test_balanced_potentials_carry_over_to_fresh_points():
    """Gaussians and the squared cost: the entropic plan is Gaussian, its covariance closed.

    For N(0, 1) on both sides and cost (x − y)²/ε the plan's covariance k solves k² + εk/2 = 1
    (Janati et al. 2020). Weights of independent fresh pairs must bring just that, up to the
    draws' error: 0.02 of 20000 pairs and of a reference of 1500.
    """
    eps, n = 2.0, 20_000
    coupling = BalancedGibbs(eps, "squared").fitted(normal(1500, 1, 7), normal(1500, 1, 8))
    x, y = normal(n, 1, 9), normal(n, 1, 10)
    w = torch.cat([coupling.pair(x[i : i + 500], y[i : i + 500]).log_weight.exp()
                   for i in range(0, n, 500)])  # fmt: skip
    k = (math.sqrt(eps**2 / 4 + 4) - eps / 2) / 2
    assert float(w.mean()) == pytest.approx(1, abs=0.05)
    assert float((w * x[:, 0] * y[:, 0]).mean()) == pytest.approx(k, abs=0.1)


def test_symmetric_laws_are_not_tilted():
    angle = torch.arange(90, dtype=torch.float64) * (2 * math.pi / 90)
    ring = torch.stack((angle.cos(), angle.sin()), 1)
    for eps in (0.1, 1.0, 10.0):
        plan = Gibbs(eps).plan(ring, 3 * ring)
        found = diagnose(Gibbs(eps), ring, 3 * ring)
        assert max(found.tilt_x, found.tilt_y) < 1e-13
        exact = sinkhorn(costs(ring, 3 * ring, "distance"), eps, tolerance=1e-14).plan
        assert (plan - exact).abs().max() < 1e-15
    # so the rule takes the smallest temperature at which enough pairs count
    eps, c = choose_eps(ring, 3 * ring), costs(ring, 3 * ring, "distance")
    tried = [m * float(c.std()) for m in (0.3, 0.5, 1, 2, 3, 5, 10)]
    ess = [diagnose(Gibbs(e), ring, 3 * ring).ess for e in tried]
    assert eps == next(e for e, share in zip(tried, ess, strict=True) if share >= 0.3)


def test_a_diagnosis_is_what_it_says():
    """Two points each, by hand."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0]])
    w = [[1, math.exp(-3)], [math.exp(-1), math.exp(-2)]]
    total = sum(map(sum, w))
    found = diagnose(Gibbs(1.0), x, y)
    assert found.ess == pytest.approx(total**2 / 4 / sum(v**2 for r in w for v in r), rel=1e-12)
    assert found.tilt_x == pytest.approx(abs(sum(w[0]) / total - 0.5), rel=1e-12)
    assert found.tilt_y == pytest.approx(abs((w[0][0] + w[1][0]) / total - 0.5), rel=1e-12)
    mean = (3 * w[0][1] + w[1][0] + 2 * w[1][1]) / total
    assert found.cost == pytest.approx(mean, rel=1e-12)
    assert diagnose(Independent(), x, y).cost == pytest.approx(1.5, rel=1e-15)


def test_large_temperatures_are_no_coupling(samples):
    found = diagnose(Gibbs(1e9), *samples)
    plain = diagnose(Independent(), *samples)
    assert found.cost == pytest.approx(plain.cost, rel=1e-8) and found.ess == pytest.approx(1)


def test_the_rule_warns_where_weighting_buys_nothing():
    """One datum in 10⁴ is near: √10⁴ deviations off, it takes most of the weight at ten of them."""
    y = torch.ones(10_000, 1)
    y[0] = 0
    with pytest.warns(UserWarning, match="buys nothing here: even at eps = 0.1"):
        assert choose_eps(torch.zeros(2, 1), y) == pytest.approx(0.1, rel=1e-3)


def test_a_tilt_is_warned_of(samples):
    with pytest.warns(UserWarning, match="the sampled law is biased"):
        Gibbs(0.5).fitted(*samples)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Gibbs(5.0).fitted(*samples)


def test_mean_one_weights_by_hand_and_whatever_the_scale():
    batches = [normal(8, 1, k)[:, 0] for k in range(4)]
    state, mean = Weighing(), None
    for k, log_w in enumerate(batches):
        state = state.after(log_w)
        keep = k / (k + 1)
        new = float(log_w.exp().mean())
        mean = new if mean is None else keep * mean + (1 - keep) * new
        torch.testing.assert_close(state.weights(log_w), log_w.exp() / mean, rtol=1e-13, atol=0)
    low = Weighing()
    for log_w in batches:
        low = low.after(log_w - 5000)
    last = batches[-1]
    torch.testing.assert_close(low.weights(last - 5000), state.weights(last), rtol=1e-11, atol=0)
    assert Weighing().after(last).weights(last).mean() == pytest.approx(1, rel=1e-14)


def test_the_running_mean_keeps_ninety_nine_hundredths():
    state = replace(Weighing().after(torch.zeros(4).double()), batches=10_000)
    after = state.after(torch.full((4,), 3.0).double().log())
    assert math.exp(after.log_mean) == pytest.approx(0.99 + 0.01 * 3, rel=1e-13)


def test_effective_sizes():
    assert effective(torch.full((7,), -3000.0).double()) == pytest.approx(7)
    assert effective(torch.tensor([0.0, math.log(0.5)]).double()) == pytest.approx(2.25 / 1.25)
    lonely = torch.tensor([0.0, -1.0, -9.0]).double()
    assert Weighing().after(lonely) == Weighing(skipped=1)


# -- conditions


KINDS = [
    Independent(),
    ExactOT(),
    Sinkhorn(2.0, "distance"),
    Gibbs(2.0),
    BalancedGibbs(2.0),
]


@pytest.mark.parametrize("coupling", KINDS, ids=lambda c: type(c).__name__)
def test_partners_stay_within_their_class(samples, coupling):
    x, y = (each[:60] for each in samples)
    labels = torch.arange(60) % 3
    coupling = coupling.fitted(x, y, labels)
    pairs = coupling.pair(x, y, generator(), labels=labels)
    came_from = (pairs.x[:, None] == x).all(-1).int().argmax(1)
    assert torch.equal(labels[came_from], labels)
    if not isinstance(coupling, Sinkhorn):  # each class keeps all of its source
        assert torch.equal(came_from.sort().values, torch.arange(60))
    again = coupling.pair(x, y, generator(), labels=labels)
    assert all(map(torch.equal, pairs, again)), "a function of the generator"
    for k in range(3):  # and is, within the class, what it is without classes
        rows = labels == k
        if isinstance(coupling, ExactOT):
            assert torch.equal(pairs.x[rows], coupling.pair(x[rows], y[rows]).x)


def test_a_source_with_classes_is_paired_by_them(samples):
    x, y = (each[:6] for each in samples)
    labels, of_x = torch.tensor([0, 1, 0, 1, 2, 2]), torch.tensor([2, 2, 1, 1, 0, 0])
    for coupling in (Independent(), ExactOT(), Gibbs(5.0)):
        pairs = coupling.pair(x, y, labels=labels, source_labels=of_x)
        came_from = (pairs.x[:, None] == x).all(-1).int().argmax(1)
        assert torch.equal(of_x[came_from], labels)
    with pytest.raises(UsageError, match="class 2 and no source sample .* mixed across classes"):
        ExactOT().pair(x, y, labels=labels, source_labels=of_x.clamp(max=1))
    with pytest.raises(UsageError, match="5 source samples and 6 classes"):
        ExactOT().pair(x[:5], y, labels=labels)


def test_balanced_potentials_are_each_class_s_own(samples):
    x, y = samples
    labels = torch.arange(200) % 2
    both = BalancedGibbs(2.0).fitted(x, y, labels)
    pairs = both.pair(x, y, labels=labels)
    for k in (0, 1):
        rows = labels == k
        alone = BalancedGibbs(2.0).fitted(x[rows], y[rows]).pair(x[rows], y[rows])
        torch.testing.assert_close(pairs.log_weight[rows], alone.log_weight, rtol=0, atol=1e-12)
    with pytest.raises(UsageError, match="the potentials of class 2 are not known"):
        both.pair(x[:4], y[:4], labels=torch.tensor([0, 1, 2, 2]))


def pictures():
    images = (torch.arange(40) * 6).to(torch.uint8).reshape(40, 1, 1, 1).expand(40, 1, 4, 4)
    labels = torch.arange(40) % 4
    return LabelledImages(images, labels, images[:8], labels[:8], ("a", "b", "c", "d"))


def test_images_of_asked_classes():
    source, labels = pictures(), torch.tensor([3, 0, 4, 2] * 50)
    batch = source.alike(labels, generator())
    number = ((batch.x0[:, 0, 0, 0] + 1) * 127.5 / 6).round().long()
    known = labels < 4
    assert torch.equal(source.labels[number][known], labels[known])
    assert set(number[labels == 3].tolist()) <= set(range(3, 40, 4)) and len(number.unique()) > 25
    assert len(set((number[~known] % 4).tolist())) == 4, "none means any"


def test_a_source_of_classes_follows_the_data_s():
    batch = pictures().batch(16, generator())
    x, labels = starts(pictures(), batch, generator(1))
    assert labels is batch.cond["label"] and x.shape == batch.x0.shape

    class Captioned:
        def batch(self, n, generator):
            return replace(batch, cond={"context": torch.zeros(16)})

    with pytest.raises(UsageError, match="pairs would be mixed across classes"):
        starts(Captioned(), batch, generator())


# -- what is refused


@pytest.mark.parametrize("eps", [0, -1.0, math.inf, math.nan, "1", True])
@pytest.mark.parametrize("kind", [Gibbs, BalancedGibbs, Sinkhorn])
def test_a_temperature_is_finite_and_positive(kind, eps):
    with pytest.raises(ValueError, match="a temperature eps is a finite number above 0"):
        kind(eps)


@pytest.mark.parametrize("coupling", KINDS, ids=lambda c: type(c).__name__)
def test_different_shapes_have_no_cost(coupling):
    with pytest.raises(UsageError, match="a cost needs equal shapes.*supply a feature map"):
        coupling.pair(torch.zeros(4, 2), torch.zeros(4, 3))
    with pytest.raises(UsageError, match="0 source samples and 4 data"):
        coupling.pair(torch.zeros(0, 2), torch.zeros(4, 2))


def test_weights_that_underflow_are_refused_with_a_better_temperature(samples):
    c = pair_costs(*samples, "distance")
    with pytest.raises(UsageError, match=rf"far below the cost scale \(std c = {c.std():.3g}\)"):
        Gibbs(1e-5).pair(*samples)
    ways = torch.tensor([[0.0], [20.0], [1000.0], [2000.0]])
    with pytest.raises(UsageError, match="far below the cost scale"):  # exp(−20) is left, for what?
        Gibbs(1.0).pair(0 * ways, ways)
    assert effective(Gibbs(1.0).pair(0 * ways, ways / 40).log_weight) < 2  # one batch of few is met
    # costs that are large alike are no reason: exp(−2000) beside exp(−2001) is a weight
    x, y = samples
    far = Gibbs(1.0).pair(x + 2000, y).log_weight
    assert far.max() < -2000 and effective(far) > 2
    with pytest.raises(UsageError, match="a cost is not finite"):
        Gibbs(1.0).pair(x * math.nan, y)


def test_a_large_assignment_is_refused_for_its_cost():
    many = torch.zeros(4097, 1)
    with pytest.raises(UsageError, match="grows as the cube of the batch"):
        ExactOT().pair(many, many)


def test_other_mistakes_are_said(samples):
    with pytest.raises(UsageError, match="no temperature yet"):
        Gibbs().pair(*samples)
    with pytest.raises(UsageError, match=r"potentials are not known: use fitted\(x, y\)"):
        BalancedGibbs(1.0).pair(*samples)
    with pytest.raises(UsageError, match="unknown cost 'square': did you mean squared"):
        ExactOT("square")
    with pytest.raises(UsageError, match="do not pair"):
        Gibbs(1.0).log_weight(samples[0][:3], samples[1])
    with pytest.raises(UsageError, match="no temperature can be chosen"):
        choose_eps(torch.zeros(3, 1), torch.ones(3, 1))
    with pytest.raises(UsageError, match="compare equally many"):
        wasserstein(samples[0][:3], samples[1])


def test_without_pot_the_extra_is_named(samples, monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(MissingExtra, match=r'pip install "pathline\[ot\]"'):
        Sinkhorn(1.0).pair(*samples)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingExtra, match=r'pip install "pathline\[ot\]"'):
        assignment(torch.zeros(2, 2))


# -- training


RECIPE = Recipe(
    name="toy",
    steps=24,
    batch=32,
    warmup=4,
    data={"source": "eight_gaussians", "n": 2000},
    network={"class": "MLP", "dim": 2, "width": 16},
    objective={"path": "cond_ot", "view": "velocity"},
    watch=Watch(every=0, export=1e9),
)
TABLES = [
    {"kind": "exact_ot"},
    {"kind": "sinkhorn", "eps": 2.0},
    {"kind": "gibbs"},
    {"kind": "balanced_gibbs", "eps": 2.0},
]


@pytest.fixture
def fabric():
    pytest.importorskip("lightning_fabric", reason="it comes with the extra pathline[train]")


def state_of(folder):
    return torch.load(folder / "state.pt", weights_only=True)


@pytest.mark.parametrize("table", TABLES, ids=lambda t: t["kind"])
def test_a_coupled_run_resumes_bitwise(fabric, tmp_path, table):
    recipe = replace(RECIPE, coupling=table, start={"source": "moons", "n": 2000})
    train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "stopped", until=7)
    train(recipe, tmp_path / "stopped")
    whole, stopped = state_of(tmp_path / "whole"), state_of(tmp_path / "stopped")
    assert whole["weighing"] == stopped["weighing"]
    assert all(map(torch.equal, whole["network"].values(), stopped["network"].values()))
    assert all(map(torch.equal, whole["average"], stopped["average"]))
    if "gibbs" in table["kind"]:
        assert whole["weighing"]["batches"] == 24 and whole["weighing"]["log_mean"] != 0
    config = json.loads((tmp_path / "whole" / "model" / "config.json").read_text())
    assert config["start"] == {"source": "moons", "n": 2000}


def test_no_coupling_is_the_independent_one(fabric, tmp_path):
    train(RECIPE, tmp_path / "none")
    train(replace(RECIPE, coupling={"kind": "independent"}), tmp_path / "independent")
    a, b = state_of(tmp_path / "none"), state_of(tmp_path / "independent")
    assert all(map(torch.equal, a["network"].values(), b["network"].values()))


def test_the_loss_of_a_run_is_the_weighted_mean(fabric):
    run = Run.start(replace(RECIPE, coupling={"kind": "gibbs", "eps": 2.0}))
    run.advance()
    mean = run.weighing.log_mean
    batch = run.source.batch(32, step_generator(0, 1))
    pairs = run.pairs(batch, step_generator(1, 0))
    assert torch.equal(pairs.x, torch.randn(32, 2, generator=step_generator(1, 0)))
    g = step_generator(3, 0)
    found = run.loss(run.network, run.exercise(pairs, {}, g))
    t = Matching(CondOT()).draw_times(32, step_generator(3, 0)).float()[:, None]
    said = run.network((1 - t) * pairs.y + t * pairs.x, t[:, 0])
    w = (-(pairs.x - pairs.y).double().norm(dim=1) / 2.0 - mean).exp()
    losses = (said - (pairs.x - pairs.y)).square().mean(1)
    torch.testing.assert_close(found, (w.float() * losses).mean(), rtol=1e-5, atol=0)


def test_weighted_regression_is_the_plain_one_under_the_gibbs_law():
    """The best constant at one z and t: Newton's step of the library's loss, and the closed form.

    With bridge noise every pair says something at every z. The weighted loss over all pairs, at
    states that are all z, is least at the mean of x − y under π_w N(z; z_ij, σ²).
    """
    n, t, bridge = 12, 0.4, 0.5
    x, y = normal(n), eight_gaussians(CondOT()).draw(range(n))
    i, j = (k.flatten() for k in torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij"))
    z = torch.tensor([0.7, -0.3]).double()
    middle = (1 - t) * y[j] + t * x[i]
    xi = (z - middle) / bridge
    density = -xi.square().sum(1) / 2
    pairs = Gibbs(1.0).pair(x[i], y[j])
    weight = Weighing().weights(pairs.log_weight) * density.exp()
    guess = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    seen = []

    def network(state, label):
        seen.append(state)
        return guess.expand_as(state)

    matching = Matching(CondOT(), bridge=bridge)
    times = torch.full((n * n,), t, dtype=torch.float64)
    losses = matching.loss(network, pairs.y, pairs.x, times, {}, xi)
    torch.testing.assert_close(seen[0], z.expand(n * n, 2), rtol=0, atol=1e-14)
    (slope,) = torch.autograd.grad((weight * losses).sum(), guess)
    newton = -slope / weight.sum()  # each loss is a mean of two squares
    law = (Gibbs(1.0).plan(x, y).flatten() * density.exp())[:, None]
    exact = (law * (x[i] - y[j])).sum(0) / law.sum()
    torch.testing.assert_close(newton, exact, rtol=1e-12, atol=0)


def test_batches_without_two_pairs_are_skipped_and_said(fabric, tmp_path):
    recipe = replace(RECIPE, batch=2, coupling={"kind": "gibbs", "eps": 1.5}, steps=20)
    with pytest.warns(UserWarning, match=r"of 20 steps were skipped.*eps = 1\.5 is too small"):
        train(recipe, tmp_path)
    state = state_of(tmp_path)
    assert state["step"] == 20 and state["weighing"]["skipped"] == 20
    run = Run.start(recipe)
    before = [p.clone() for p in run.network.parameters()]
    assert run.advance() is None and run.step == 1
    assert all(map(torch.equal, before, run.network.parameters()))
    assert not state["journal"]


def test_bridge_noise_is_drawn_from_the_step(fabric):
    recipe = replace(RECIPE, objective={**RECIPE.objective, "bridge": 0.1})
    one, two = Run.start(recipe).advance(), Run.start(recipe).advance()
    plain = Run.start(RECIPE).advance()
    assert torch.equal(one[0], two[0]) and not torch.equal(one[0], plain[0])
    with pytest.raises(UsageError, match="bridge noise"):
        Matching(CondOT(), bridge=-1.0)


def test_a_model_between_data_is_not_sampled_from_noise(fabric, tmp_path):
    model = load_model(train(replace(RECIPE, start={"source": "moons"}, steps=2), tmp_path))
    with pytest.raises(UsageError, match=r"begins at other data \(moons\), not at noise"):
        sample(model, 2)
    x = moons(range(3)).float()
    with pytest.raises(UsageError, match=r"begins at other data \(moons\).*pass their log-density"):
        log_prob(model, x)
    assert solve(model, x, solver="euler", grid=grids.uniform(2)).x.shape == (3, 2)


def test_recipes_with_couplings_that_cannot_work(fabric):
    def refused(match, **change):
        with pytest.raises(UsageError, match=match):
            Run.start(replace(RECIPE, **change))

    refused("unknown coupling 'gibs'.*did you mean gibbs", coupling={"kind": "gibs"})
    refused("unknown coupling 'none'", coupling={"eps": 1.0})
    refused("gibbs takes no 'temperature'", coupling={"kind": "gibbs", "temperature": 1})
    refused("unknown data source 'moon'", start={"source": "moon"})


def test_text_is_no_class(fabric):
    import test_learn

    for kind, ok in (("exact_ot", False), ("gibbs", True)):
        table = {"kind": kind, "eps": 5.0} if kind == "gibbs" else {"kind": kind}
        run = Run.start(replace(test_learn.RECIPE, coupling=table), test_learn.Toy())
        if ok:
            assert run.advance() is not None
        else:
            with pytest.raises(UsageError, match="exchanges partners within a class.*context"):
                run.advance()


# -- path energy


@pytest.mark.parametrize("std", [0.5, 3.0])
def test_path_energy_of_gaussians_is_the_closed_form(std):
    """x(t) = x(1) √(t² + (1 − t)² s²), so the energy is ∫ (d/dt √·)² dt, here by quadrature."""
    law = Gaussian(CondOT(), torch.zeros(1).double(), torch.tensor([std**2]).double())
    grid = grids.uniform(400, start=1.0, end=0.01)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    x = x / x.square().mean().sqrt()  # E x² = 1
    found = solve(law, x, solver="rk4", grid=grid, trajectory=True)
    t = 0.01 + 0.99 * (torch.arange(100_000).double() + 0.5) / 100_000
    root = (t**2 + (1 - t) ** 2 * std**2).sqrt()
    energy = 0.99 * float((((t - (1 - t) * std**2) / root) ** 2).mean())
    assert path_energy(found.trajectory, found.times) == pytest.approx(energy, rel=3e-5)
    backwards = path_energy(found.trajectory.flip(0), found.times.flip(0))
    assert backwards == pytest.approx(energy, rel=3e-5)
    npe = normalised_path_energy(found.trajectory, found.times, (std - 1) ** 2)
    assert npe == pytest.approx(energy / (std - 1) ** 2 - 1, rel=1e-3) and npe > 0


def test_straight_ways_have_no_excess():
    x, y = normal(7, 3), normal(7, 3, 1)
    times = torch.tensor([1.0, 0.7, 0.2, 0.0]).double()
    line = torch.stack([t * x + (1 - t) * y for t in times])
    squared = float((x - y).square().sum(1).mean())
    assert normalised_path_energy(line, times, squared) < 1e-14
    with pytest.raises(UsageError, match="a time for each of at least two states"):
        path_energy(line, times[:2])
    with pytest.raises(UsageError, match="must be above 0"):
        normalised_path_energy(line, times, 0.0)


def test_every_coupling_is_registered():
    names = {entry.name for entry in couplings}
    assert names == {"independent", "exact_ot", "sinkhorn", "gibbs", "balanced_gibbs"}
    assert isinstance(couplings.build("OT-CFM"), ExactOT)
    assert couplings.build("w-cfm", eps=2.0).temperature == 2.0

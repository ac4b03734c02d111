"""Learned control: its objective against closed forms, its rewards, and what it refuses."""

import json
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathline as pl
from pathline.core.errors import UsageError
from pathline.fields import Gaussian
from pathline.learn import (
    Calibrated,
    ClassPrior,
    ClassReward,
    ControlLesson,
    FitLesson,
    JointReward,
    Labelled,
    Question,
    SoftControl,
    assess,
    best_temperature,
    calibration_error,
    fit_classifier,
    measure_memory,
    noise_unit,
    residual_test,
    teaching,
    train_control,
)
from pathline.learn.calibrate import warn_if_uncalibrated
from pathline.learn.control import Noise
from pathline.solvers import DDIM, DPMpp, EDMSampler, EulerMaruyama, grids, sample
from pathline.steer import Shift
from pathline.systems.ctrl_learned import Asked, Network
from pathline.systems.ctrl_oracle import Accounting

VP = pl.VPLinear()
LAW = Gaussian(VP, torch.zeros(1), torch.ones(1))
GRID = grids.log_snr(6)


def push(x, t):
    return -0.3 * torch.ones_like(x)


def first(x, **told):
    return x[:, 0]


# --- the objective ------------------------------------------------------------------------------


def test_the_divergence_is_that_of_the_trajectories_and_none_for_an_idle_control():
    """Within 3 standard errors of the mean log-ratio, from densities of the steps themselves."""
    small = Accounting(n=6, trajectories=300)
    assert small.off() < 3
    assert small.idle() == (0.0, 0.0)


@pytest.mark.parametrize("solver", [DDIM(eta=1.0), DPMpp(1, eta=1.0), EulerMaruyama()])
def test_a_shift_in_units_of_the_noise_costs_half_its_square(solver):
    objective = SoftControl(first, solver=solver, grid=GRID)
    control = Shift(push, unit=noise_unit(objective.plan(LAW)))
    made = objective.rollout(LAW, control, range(5))
    torch.testing.assert_close(made.divergence, torch.full((5,), 6 * 0.09 / 2))
    assert float(made.loss) == pytest.approx(6 * 0.045 - float(made.x.mean()), abs=1e-6)


@pytest.mark.parametrize("solver", [DDIM(eta=1.0), DPMpp(2, eta=1.0), EulerMaruyama()])
def test_a_rollout_is_what_the_guide_samples(solver):
    """The same noise, so the same states: what is taught is what is sampled."""
    objective, control = SoftControl(first, solver=solver, grid=GRID), Shift(push)
    made = objective.rollout(LAW, control, range(4))
    drawn = sample(LAW, 4, solver=solver, grid=GRID, guide=control).x
    assert torch.equal(made.x, drawn)


def test_a_multistep_row_is_charged_for_all_its_evaluations():
    """++2M SDE: the mean moves by Σ_k b_k ΔF_k, old evaluations too."""
    objective = SoftControl(first, solver=DPMpp(2, eta=1.0), grid=grids.log_snr(3))
    plan = objective.plan(LAW)
    by_hand = 0.0
    for row in plan.rows:
        (std,) = row.z.values()
        ratio = {k: float(VP.sigma(plan.times[k]) / VP.alpha(plan.times[k])) for k in row.f}
        by_hand += sum(b * 0.3 * ratio[k] for k, b in row.f.items()) ** 2 / (2 * std**2)
    found = objective.rollout(LAW, Shift(push), range(2)).divergence
    torch.testing.assert_close(found, torch.full((2,), by_hand), rtol=1e-4, atol=0)


@pytest.mark.parametrize("adjoint", ["direct", "checkpoint"])
def test_the_gradient_is_that_of_finite_differences(adjoint):
    """Through the states from step to step, in float64."""
    law = Gaussian(VP, torch.zeros(1).double(), torch.ones(1).double())
    size = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    objective = SoftControl(lambda x: -((x[:, 0] - 1) ** 2), 0.7, grid=GRID, adjoint=adjoint)
    noise = torch.randn(7, 8, 1, generator=torch.Generator().manual_seed(0)).double()

    def loss(size):
        given = Noise(noise[6], lambda d: noise[d])
        return objective.run(law, Shift(lambda x, t: size * torch.tanh(x)), given).loss

    assert torch.autograd.gradcheck(loss, (size,))


def test_truncation_detaches_the_networks_and_not_the_states():
    """With all but the last evaluation cut, only it and its own divergence have gradients."""
    sizes = [torch.tensor(0.1, requires_grad=True) for _ in range(6)]
    times = []

    def network(x, t):
        times.append(float(t[0]))
        return sizes[len(times) - 1] * torch.ones_like(x)

    objective = SoftControl(first, grid=GRID, truncate=5, adjoint="direct")
    objective.rollout(LAW, Shift(network), range(3)).loss.backward()
    assert [size.grad is None for size in sizes] == [True] * 5 + [False]
    random = SoftControl(first, grid=GRID, truncate="random")
    control = Shift(lambda x, t: sizes[0] * torch.ones_like(x))
    seen = {float(random.rollout(LAW, control, range(k, k + 2)).loss.detach()) for k in (7, 7)}
    assert len(seen) == 1  # random, and a function of the seeds


def test_gamma_in_the_sum_convention_is_strength_times_the_size():
    """One step, a linear reward: the best shift is γ s² b, found by minimising either loss.

    With the divergence averaged over d numbers a strength of c acts as γ = c d, not c/d.
    """
    law = Gaussian(VP, torch.zeros(4).double(), torch.ones(4).double())
    grid = grids.uniform(1, 0.6, 0.4)
    x = torch.zeros(2, 4, dtype=torch.float64)

    def best_of(reduction, strength):
        objective = SoftControl(
            lambda x: x.sum(1), strength, grid=grid, kl_reduction=reduction, adjoint="direct"
        )
        assert objective.gamma(4) == 8.0
        size = torch.zeros((), dtype=torch.float64, requires_grad=True)
        control = Shift(lambda x, t: size * torch.ones_like(x))
        loss = objective.run(law, control, Noise(x, lambda d: x)).loss  # a parabola in size
        (slope,) = torch.autograd.grad(loss, size, create_graph=True)
        return float(-slope.detach() / torch.autograd.grad(slope, size)[0])

    best = {"sum": best_of("sum", 8.0), "mean": best_of("mean", 2.0)}
    assert best["sum"] == pytest.approx(best["mean"], rel=1e-12)
    (row,) = SoftControl(first, grid=grid).plan(law).folded("eps").rows
    (std,) = row.z.values()
    assert best["sum"] == pytest.approx(8.0 * std**2 / row.f[0], rel=1e-9)


def test_a_last_step_without_noise_is_floored_or_dropped():
    grid = grids.log_snr(4, last="denoise")
    control = Shift(push, unit=lambda t: 1e-3 + 0 * t)
    found = {}
    for floor in (1e-4, 1e-2, None):
        made = SoftControl(first, grid=grid, floor=floor).rollout(LAW, control, range(2))
        found[floor] = float(made.divergence[0])
    extra = found[1e-4] - found[None], found[1e-2] - found[None]
    assert extra[0] == pytest.approx(1e4 * extra[1], rel=1e-2) and extra[1] > 0


# --- teaching -----------------------------------------------------------------------------------


def test_teaching_goes_on_where_it_was_cut_and_improves_the_objective(tmp_path, monkeypatch):
    """A resumed run is bitwise the run that never stopped."""
    objective = SoftControl(lambda x, y: x[:, 0], grid=GRID, adjoint="direct")

    def network():
        torch.manual_seed(0)
        return Network(told=1)

    def teach(net, folder):
        lesson = ControlLesson(updates=20, batch=16, rate=1e-2, part=10)
        control = Shift(net, unit=noise_unit(objective.plan(LAW)))
        return train_control(objective, LAW, control, Asked(), lesson, folder)

    whole, cut = network(), network()
    curve = teach(whole, tmp_path / "a")
    assert len(curve) == 2 and curve[1][0] > curve[0][0]
    real, calls = teaching._part, []

    def stopping(*given):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*given)

    monkeypatch.setattr(teaching, "_part", stopping)
    with pytest.raises(KeyboardInterrupt):
        teach(cut, tmp_path / "b")
    monkeypatch.undo()
    fresh = network()
    teach(fresh, tmp_path / "b")
    assert all(
        torch.equal(a, b) for a, b in zip(fresh.parameters(), whole.parameters(), strict=True)
    )


def test_an_assessment_counts():
    """A reward that reads the sign; classes asked for in turn."""

    def classify(x):
        return torch.cat((-x, x), 1)

    objective = SoftControl(ClassReward(classify, y="y"), grid=GRID)
    y = torch.arange(40) % 2
    found = assess(objective, LAW, Shift(lambda x, t, y: 0 * x), classify,
                   Question({}, {"y": y}), range(40), "y")  # fmt: skip
    drawn = sample(LAW, 40, solver=DDIM(eta=1.0), grid=GRID).x[:, 0]
    said = (drawn > 0).long()
    assert found.accuracy == pytest.approx(float((said == y).double().mean()))
    assert found.divergence == 0.0 and found.reward.shape == (2,)
    by_hand = [2 * float(((said == k) & (y == k)).sum()) / float((said == k).sum() + 20)
               for k in (0, 1)]  # fmt: skip
    assert found.macro_f1 == pytest.approx(sum(by_hand) / 2)


def test_memory_is_found_by_rollouts_where_the_lattice_finds_it():
    """η = 1 forgets its start to 0.03 nats; the probability flow with a little noise does not."""
    law = Accounting().law
    reward = lambda x: F.logsigmoid(6 * (x[:, 0] - 0.3))  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet = measure_memory(SoftControl(reward, grid=grids.uniform(12)), law, draws=24)
    loud = SoftControl(reward, solver=DDIM(eta=0.3), grid=grids.uniform(12))
    with pytest.warns(UserWarning, match="remember the noise"):
        found = measure_memory(loud, law, draws=24)
    assert found.excess > 1 > quiet.excess and json.dumps(quiet.spread)


# --- rewards and calibration --------------------------------------------------------------------


def test_the_best_temperature_is_a_stationary_point_and_undoes_a_scale():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 3, generator=generator).double()
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    once, thrice = best_temperature(logits, labels), best_temperature(3 * logits, labels)
    assert thrice == pytest.approx(3 * once, rel=1e-9)
    at = torch.tensor(once, dtype=torch.float64, requires_grad=True)
    F.cross_entropy(logits / at, labels).backward()
    assert abs(float(at.grad)) < 1e-9
    assert best_temperature(torch.eye(3).double(), torch.arange(3)) == 1.0  # none is best


def test_the_calibration_error_is_the_gap_between_sure_and_right():
    sure = math.log(0.9 / 0.1)
    logits = torch.tensor([[0.0, sure]]).expand(10, 2)
    labels = torch.tensor([1] * 7 + [0] * 3)
    assert calibration_error(logits, labels) == pytest.approx(0.2, abs=1e-6)
    with pytest.warns(UserWarning, match=r"error on held-out data is 0\.200.*Fit a temperature"):
        warn_if_uncalibrated(calibration_error(logits, labels))
    made = Calibrated.fitted(nn.Linear(2, 2), logits, labels)
    assert made.error == pytest.approx(0.0, abs=1e-6)  # 70 % sure, 70 % right


def test_a_class_reward_is_the_logarithm_of_its_probability():
    def classifier(x, c):
        return torch.cat((0 * x, x + c[:, None]), 1)

    reward = ClassReward(classifier, y="y", c="c", floor=0.0)
    x, c = torch.tensor([[0.3], [-2.0]]), torch.tensor([1.0, 0.0])
    found = reward(x, y=torch.tensor([1, 0]), c=c)
    torch.testing.assert_close(
        found, torch.stack([F.logsigmoid(x[0, 0] + 1), F.logsigmoid(-x[1, 0])])
    )
    hopeless = ClassReward(classifier, y="y", c="c")(x - 1000, y=1, c=c)
    torch.testing.assert_close(hopeless, torch.full((2,), math.log(1e-6)))


def test_two_controls_add_and_their_index_is_a_pair():
    def by_sign(x):
        return torch.cat((-x[:, :1], x[:, :1]), 1)

    def by_third(x):
        return torch.cat((x[:, 1:], 0 * x[:, 1:], -x[:, 1:]), 1)

    x, y = torch.randn(6, 2), torch.arange(6)
    found = JointReward(by_sign, by_third, weight=2.0, floor=0.0)(x, label=y)
    exact = by_sign(x).log_softmax(1)[torch.arange(6), y // 3]
    exact = exact + 2 * by_third(x).log_softmax(1)[torch.arange(6), y % 3]
    torch.testing.assert_close(found, exact)


def test_a_classifier_of_clean_data_is_fitted_to_what_is_held_out():
    """Logistic data, 2000 of them: the fitted slope is within 5 standard errors of the true one."""
    x = torch.randn(2000, 1, generator=torch.Generator().manual_seed(1))
    chance = torch.sigmoid(2 * x[:, 0])
    y = (torch.rand(2000, generator=torch.Generator().manual_seed(2)) < chance).long()
    made = fit_classifier(nn.Linear(1, 2), Labelled(x, y, 2), FitLesson(epochs=15, rate=3e-2))
    ends = made(torch.tensor([[0.0], [1.0]])).diff(dim=1)[:, 0]
    # Fisher information of the slope: n E[p (1 − p) x²] ≈ 2000 · 0.084
    assert float(ends[1] - ends[0]) == pytest.approx(2.0, abs=5 / math.sqrt(2000 * 0.084))
    assert made.error < 0.1


def test_the_residual_test_finds_dependence_and_its_false_alarms_are_as_rare_as_it_says():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 500, generator=generator)
    c = (torch.rand(200, 500, generator=generator) < torch.sigmoid(x)).long()
    y = (torch.rand(200, 500, generator=generator) < torch.sigmoid(2 * x)).long()
    chances = [
        residual_test(torch.stack((0 * a, 2 * a), 1), b, d).chance
        for a, b, d in zip(x, y, c, strict=True)
    ]
    # uniform under independence: of 200, a Kolmogorov distance above 0.16 has a chance of 1e-4
    ranks = torch.tensor(chances).sort().values - torch.arange(200) / 200
    assert float(ranks.abs().max()) < 0.16
    depends = (torch.rand(500, generator=generator) < torch.sigmoid(2 * x[0] + 2 * c[0])).long()
    with pytest.warns(UserWarning, match="y depends on c given x.*Pass triples"):
        found = residual_test(torch.stack((0 * x[0], 2 * x[0]), 1), depends, c[0])
    assert found.is_dependent and found.freedom == 1
    by_feature = residual_test(torch.stack((0 * x[0], 2 * x[0]), 1), y[0], c[0][:, None].float())
    assert by_feature.chance == pytest.approx(chances[0], rel=1e-6)


# --- bad input ----------------------------------------------------------------------------------


def test_bad_input_is_refused_with_the_way_out():
    x, y = torch.zeros(10, 1), torch.zeros(10, dtype=torch.long)
    ode = SoftControl(first, solver=DDIM(eta=0.0), grid=GRID)
    churned = SoftControl(first, solver=EDMSampler(), grid=GRID)
    plain, still = SoftControl(first, grid=GRID), Shift(push)
    reward = ClassReward(lambda x: torch.zeros(len(x), 3), y="y")
    cases = (
        (lambda: ode.rollout(LAW, still, range(2)),
         "KL to the pretrained chain is infinite for a deterministic sampler; use eta>0"),
        (lambda: churned.rollout(LAW, still, range(2)), "draw no noise of their own"),
        (lambda: SoftControl(first, strength=-1.0), "γ is a finite number ≥ 0"),
        (lambda: SoftControl(first, strength=math.inf), "γ is a finite number ≥ 0"),
        (lambda: SoftControl(first, kl_reduction="max"), "unknown kl_reduction"),
        (lambda: SoftControl(first, adjoint="reverse"), "unknown adjoint"),
        (lambda: SoftControl(first, truncate="half"), "a number of evaluations"),
        (lambda: SoftControl(lambda x: x, grid=GRID).rollout(LAW, still, range(2)),
         "one number a sample"),
        (lambda: reward(x, y=torch.full((10,), 3)), "whole numbers from 0 to 2"),
        (lambda: reward(x), "the reward reads y"),
        (lambda: Labelled(x, y - 1, 2), "whole numbers from 0 to 1"),
        (lambda: Labelled(x, y.float(), 2), "whole numbers"),
        (lambda: Labelled(x, y[:5], 2), "one each"),
        (lambda: ClassPrior((0.5, 0.6)), "summing to 1; it is .* summing to 1.1"),
        (lambda: ClassPrior((1.5, -0.5)), "one chance ≥ 0"),
        (lambda: fit_classifier(nn.Linear(1, 2), Labelled(x, y, 2), is_conditional=True),
         "assert y independent of c given x .* or pass triples"),
        (lambda: fit_classifier(nn.Linear(1, 2), Labelled(x[:2], y[:2], 2)), "some"),
        (lambda: calibration_error(torch.zeros(3, 2), torch.tensor([0, 1, 2])), "from 0 to 1"),
        (lambda: Calibrated(nn.Linear(1, 2), 0.0), "above 0"),
        (lambda: residual_test(torch.zeros(10, 2), y, y), "cannot test"),
        (lambda: ControlLesson(updates=0), "at least 1"),
        (lambda: train_control(plain, LAW, still, ClassPrior(2)), "ask for gradients"),
        (lambda: noise_unit(DDIM().plan(VP, GRID)), "noise in every step"),
    )  # fmt: skip
    for call, words in cases:
        with pytest.raises(UsageError, match=words):
            call()
        with pytest.raises(ValueError):
            call()

"""Chains on a lattice, and the soft values of rewards along them, against closed forms."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F

import pathline as pl
from pathline.core.errors import UsageError
from pathline.fields import Gaussian
from pathline.solvers import DDIM, DPMpp, LatticeChain, SoftValues, grids
from pathline.solvers.soft_value import spread
from pathline.systems.ctrl_oracle import Oracle, line, off

VP = pl.VPLinear()


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def axis(n=241, wide=6.0):
    return torch.linspace(-wide, wide, n, dtype=torch.float64)


def ou(steps=5, keep=0.7, std=0.8, n=241):
    """x' = 0.7 x + 0.8 z: everything about it is Gaussian."""
    x = axis(n)
    means = (keep * x)[None, :, None].expand(steps, -1, -1)
    return LatticeChain((x,), means, (std,) * steps)


def bell(x, mean, variance):
    return torch.softmax(-((x - mean) ** 2) / (2 * variance), 0)


def test_a_gaussian_chain_ends_in_its_gaussian():
    """Deviations of 16 spacings: the trapezoidal rule errs by exp(−2π² 16²), that is, not."""
    chain, variance = ou(), 1.0
    for _ in range(5):
        variance = 0.49 * variance + 0.64
    found = chain.end(bell(chain.axes[0], 0.5, 1.0))
    exact = bell(chain.axes[0], 0.5 * 0.7**5, variance)
    assert off(found, exact) < 1e-7  # what is beyond six deviations stays at the border


def test_values_of_a_linear_reward_are_in_closed_form():
    """E exp γx' = exp(γ 0.7 x + γ² 0.64/2), over and over; the policy moves means by γ 0.64."""
    gamma, chain = 0.5, ou()
    soft = SoftValues.of(chain, gamma * chain.axes[0])
    slope, level = gamma, 0.0
    middle = slice(80, 161)  # away from the border
    for i in reversed(range(5)):
        moved = soft.means[i, middle, 0, 0] - chain.means[i, middle, 0]
        torch.testing.assert_close(moved, torch.full_like(moved, slope * 0.64), rtol=0, atol=1e-4)
        level, slope = level + slope**2 * 0.64 / 2, slope * 0.7
        exact = level + slope * chain.axes[0][middle]
        torch.testing.assert_close(soft.values[i, middle, 0], exact, rtol=0, atol=1e-4)


def test_the_divergence_of_a_step_is_that_of_gaussians():
    """Of shifted Gaussians it is ‖shift‖²/(2 s²), for the optimal policy as for means alone."""
    gamma, chain = 0.5, ou(steps=1)
    soft = SoftValues.of(chain, gamma * chain.axes[0])
    middle = soft.divergences[0, 100:141, 0]
    assert float((middle - (gamma * 0.64) ** 2 / (2 * 0.64)).abs().max()) < 1e-6
    start = bell(chain.axes[0], 0.0, 0.25)
    found = soft.gaussian().divergence(chain, start)
    assert found == pytest.approx(gamma**2 * 0.64 / 2, abs=1e-6)


def test_two_dimensions_are_two_of_one():
    """A product law, a product reward: values add, laws multiply."""
    one, x = ou(steps=3, n=61), axis(61)
    pair = torch.stack(torch.meshgrid(x, x, indexing="ij"), -1).reshape(-1, 2)
    two = LatticeChain((x, x), (0.7 * pair)[None].expand(3, -1, -1), one.stds)
    reward = F.logsigmoid(3 * x), -0.2 * x**2
    single = [SoftValues.of(one, r) for r in reward]
    both = SoftValues.of(two, (reward[0][:, None] + reward[1][None]).flatten())
    summed = (single[0].values[0] + single[1].values[0].T).flatten()
    torch.testing.assert_close(both.values[0, :, 0], summed, rtol=0, atol=1e-10)
    start = bell(x, 0.3, 1.0)
    ends = [s.end(start)[:, 0] for s in single]
    joint = both.end((start[:, None] * start[None]).flatten())[:, 0]
    assert off(joint, (ends[0][:, None] * ends[1][None]).flatten()) < 1e-10
    assert both.means.shape == (3, 61 * 61, 2, 1)


def test_the_objective_is_the_value_of_the_start_and_at_most_log_z():
    """Nothing in the sum over steps knows of V_T; Jensen: E log ≤ log E, strictly with memory."""
    oracle = Oracle(points=241, steps=(20,))
    for eta in (1.0, 0.3):
        soft = oracle.soft(20, eta)
        value = oracle.start @ soft.start_value
        assert float((soft.objective(oracle.start) - value).abs().max()) < 1e-10
        gap = oracle.target(20, eta)[1] - value
        assert float(gap.min()) > 0 and (float(gap.max()) < 1e-3) == (eta == 1)


def test_the_best_chain_ends_in_bayes_rule_and_a_chain_with_memory_does_not():
    """Numbers of the specification, found with other code, to half their last digit."""
    oracle = Oracle(points=401, steps=(20,))
    assert max(oracle.missed(20)) < 1e-3
    assert oracle.missed(20, 0.3)[0] == pytest.approx(0.176, abs=5e-4)
    assert oracle.by_means(20) == pytest.approx(0.044, abs=5e-4)
    assert float(oracle.start @ oracle.soft(20).start_value[:, 0]) == pytest.approx(
        -1.176, abs=5e-4
    )
    assert oracle.memory(20, 1.0) == (pytest.approx(0.026, abs=5e-4), False)
    spread, warned = oracle.memory(20, 0.3)
    assert spread > 3 and warned


def test_a_deterministic_step_keeps_its_mean():
    """Between lattice points a state is shared; the mean is kept, and the variance grows ≤ h²/4."""
    x = axis(121)
    for std in (0.0, 0.02):
        chain = LatticeChain((x,), (0.63 * x + 0.017)[None, :, None], (std,))
        mean = chain.expected(0, x[:, None])[:, 0]
        torch.testing.assert_close(mean, 0.63 * x + 0.017, rtol=0, atol=1e-12)
        variance = chain.expected(0, x[:, None] ** 2)[:, 0] - mean**2 - std**2
        assert float(variance.min()) > -1e-12
        assert float(variance.max()) <= 0.1**2 / 4 + 1e-12


def test_a_plan_of_exact_gaussians_ends_in_its_law():
    """Ancestral steps: the end is Gaussian, with the variance that the rows say.

    Each step whose noise is below the spacing h adds at most h²/4 to it.
    """
    law, x = Gaussian(VP, f64([0.4]), f64([0.09])), axis(401, 5.0)
    plan = DDIM(eta=1.0).plan(VP, grids.log_snr(12))
    chain = LatticeChain.of(plan, law, (x,))
    mean, variance = 0.0, float(VP.sigma(1.0)) ** 2
    for i, row in enumerate(plan.rows):
        t = f64(plan.times[i])
        there = [float(law.evaluate(f64([[v]]), t, {})) for v in (0.0, 1.0)]
        slope, offset = row.f[i] * (there[1] - there[0]) + row.x[i], row.f[i] * there[0]
        (s,) = row.z.values()
        mean, variance = slope * mean + offset, slope**2 * variance + s**2
    found = chain.end(chain.noise(VP, 1.0))
    added = sum(s < 0.025 for s in chain.stds) * 0.025**2 / 4
    assert float(found @ x) == pytest.approx(mean, abs=1e-6)
    more = float(found @ x**2) - float(found @ x) ** 2 - variance
    assert -1e-6 < more < added + 1e-6


def test_quantiles_of_a_weighted_law():
    values = torch.arange(101, dtype=torch.float64)
    assert spread(values) == 90  # 5 % and 95 % of 101 alike
    assert spread(values, torch.where(values < 50, 0.0, 1.0)) == 46
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ou(steps=1)  # building warns of nothing


def test_bad_lattices_are_refused():
    x, law = axis(41), line()
    plan = DPMpp(2, eta=1.0).plan(VP, grids.log_snr(5))
    good = ou(steps=1, n=41)
    narrow = LatticeChain((axis(41, 1.0),), (0.9 * axis(41, 1.0))[None, :, None], (0.8,))
    cases = (
        (lambda: LatticeChain.of(plan, law, (x,)), "only a plan whose every state"),
        (lambda: LatticeChain((x, x, x), x, ()), "one or two axes"),
        (lambda: LatticeChain((axis(30001),), x, ()), "20000 at most"),
        (lambda: LatticeChain((x,), x, (1.0,)), "need means"),
        (lambda: SoftValues.of(good, x[:5]), "finite number for each of the 41"),
        (lambda: SoftValues.of(good, x * math.inf), "finite number for each"),
        (lambda: narrow.end(bell(narrow.axes[0], 0.0, 0.1)), "take wider axes"),
        (
            lambda: LatticeChain((x,), good.means, (0.0,)).divergence(
                good.moved(0 * good.means), bell(x, 0.0, 1.0)
            ),
            "other means cost infinitely",
        ),
    )
    for call, words in cases:
        with pytest.raises(UsageError, match=words):
            call()

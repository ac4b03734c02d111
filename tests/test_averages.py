"""Averages of weights chosen after training: closed forms, and a run whose averages are known."""

import numpy as np
import pytest
import torch

from pathline.core import UsageError
from pathline.learn.averages import (
    Profile,
    Snapshot,
    exponent,
    mixed,
    mixing,
    snapshots,
    width,
)


def average(gamma, values):
    """The profile's recursion, as a run does it."""
    found = values[0]
    for i, value in enumerate(values, 1):
        found = value + Profile(float(i), gamma).keeps() * (found - value)
    return found


@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.1, 0.2, 0.28])
def test_a_width_is_the_standard_deviation_of_its_profile(sigma):
    gamma = exponent(sigma)
    assert width(gamma) == pytest.approx(sigma, rel=1e-9)
    tau = (np.arange(200_000) + 0.5) / 200_000
    p = (gamma + 1) * tau**gamma / 200_000
    assert p.sum() == pytest.approx(1, rel=1e-6)
    mean = (p * tau).sum()
    assert np.sqrt((p * (tau - mean) ** 2).sum()) == pytest.approx(sigma, rel=1e-4)


def test_products_of_profiles_are_their_integrals():
    a, b = Profile(700.0, 6.9), Profile(1000.0, 16.9)
    tau = (np.arange(1_000_000) + 0.5) / 1000
    p, q = (
        np.where(tau < each.t, (each.gamma + 1) * tau**each.gamma / each.t ** (each.gamma + 1), 0)
        for each in (a, b)
    )
    assert a.dot(b) == pytest.approx((p * q).sum() / 1000, rel=1e-6)
    assert a.dot(b) == b.dot(a)


def test_the_recursion_is_the_profile():
    """Of θ(τ) = τ^k the average is (γ + 1)/(γ + k + 1) t^k."""
    for gamma in (0.0, 6.94, 16.97):
        steps = np.arange(1, 20_001, dtype=float)
        for k in (1, 2):
            exact = (gamma + 1) / (gamma + k + 1) * 20_000.0**k
            assert average(gamma, list(steps**k)) == pytest.approx(exact, rel=1e-3)


def test_any_width_is_mixed_from_two(tmp_path):
    """A walk of weights, two averages of it every 400 steps, and the others from those."""
    generator = np.random.default_rng(0)
    walk = np.cumsum(generator.normal(size=(4000, 3)), axis=0) / 60
    known = [exponent(s) for s in (0.05, 0.1)]
    kept = [walk[0].copy() for _ in known]
    for i, now in enumerate(walk, 1):
        for k, gamma in enumerate(known):
            kept[k] += (1 - Profile(float(i), gamma).keeps()) * (now - kept[k])
            if i % 400 == 0:
                made = {"weight": torch.from_numpy(kept[k].copy())}
                Snapshot.write(tmp_path, Profile(float(i), gamma), made)
    found = snapshots(tmp_path)
    assert len(found) == 20
    for sigma in (0.04, 0.07, 0.1, 0.15, 0.2):
        ours = mixed(found, sigma)["weight"].double().numpy()
        exact = average(exponent(sigma), list(walk))
        plain = mixed(found, 0.05)["weight"].double().numpy()
        assert np.abs(ours - exact).max() < 0.02
        assert sigma in (0.04,) or np.abs(plain - exact).max() > 2 * np.abs(ours - exact).max()
    early = mixed(found, 0.08, t=2000)["weight"].double().numpy()
    assert np.abs(early - average(exponent(0.08), list(walk[:2000]))).max() < 0.02


def test_a_known_profile_is_itself():
    known = [Profile(1000.0, 6.9), Profile(1000.0, 16.9), Profile(2000.0, 6.9)]
    np.testing.assert_allclose(mixing(known, known[1]), [0, 1, 0], atol=1e-9)


def test_bad_input_is_told(tmp_path):
    for call, words in (
        (lambda: exponent(0.0), "above 0"),
        (lambda: exponent(0.3), "below 0.289"),
        (lambda: mixing([Profile(10.0, 1.0)], Profile(5.0, 1.0)), "no snapshot up to step 5"),
        (lambda: snapshots(tmp_path), "has no snapshots"),
    ):
        with pytest.raises(UsageError, match=words):
            call()

"""Codes and what lies between them, against closed forms."""

import math

import pytest
import torch

import pathline as pl
from pathline.core import UsageError, noise
from pathline.edit import interpolate, slerp
from pathline.solvers.adaptive_rk import AdaptiveRK

TIGHT = AdaptiveRK(rtol=1e-9, atol=1e-9)


def normal(n, *shape, index=0):
    return noise.normal(range(n), shape, index=index, dtype=torch.float64)


def test_the_great_circle_is_walked_evenly():
    a, b = normal(5, 3, 4), normal(5, 3, 4, index=1)
    a, b = (z / z.flatten(1).norm(dim=1)[:, None, None] for z in (a, b))
    points = [slerp(a, b, k / 4) for k in range(5)]
    assert all((z.flatten(1).norm(dim=1) - 1).abs().max() < 1e-14 for z in points)
    angles = [(p * q).sum((1, 2)).acos() for p, q in zip(points, points[1:], strict=False)]
    assert (torch.stack(angles) - (a * b).sum((1, 2)).acos() / 4).abs().max() < 1e-12
    assert (points[0] - a).abs().max() < 1e-15 and (points[-1] - b).abs().max() < 1e-15
    assert (
        slerp(a, 3 * a, 0.5) - 2 * a
    ).abs().max() < 1e-15  # on one ray, the length alone changes


@pytest.mark.parametrize("path", [pl.VPLinear(), pl.CondOT(), pl.VE()])
def test_between_samples_of_a_round_gaussian_is_the_great_circle(path):
    """There the flow scales all states alike, so the circle of codes is a circle of data."""
    law = pl.Gaussian(path, torch.zeros(6).double(), torch.full((6,), 0.49).double())
    x, y = 0.7 * normal(4, 6), 0.7 * normal(4, 6, index=1)
    found = interpolate(law, x, y, 5, solver=TIGHT)
    expected = torch.stack([slerp(x, y, k / 4) for k in range(5)])
    assert (found - expected).abs().max() < 1e-6


def test_colder_codes_lie_nearer_to_the_mean():
    """The flow of a Gaussian is affine: what the code loses, the datum's way from the mean does."""
    mean = torch.tensor([1.0, -2.0, 0.5, 3.0]).double()
    law = pl.Gaussian(pl.VPLinear(), mean, torch.full((4,), 0.49).double())
    x, y = mean + normal(3, 4), mean + normal(3, 4, index=1)
    centre = pl.solve(law, mean[None], solver=TIGHT, grid=[law.path.t_min, law.path.t_max]).x
    warm, cold = (interpolate(law, x, y, 3, solver=TIGHT, temperature=c) for c in (1.0, 0.5))
    still = interpolate(law, mean[None], mean[None], 2, solver=TIGHT, temperature=0.5)[0]
    assert centre.abs().max() < 0.03  # of a code of 0, α of the mean is left
    assert (cold - still - (warm - mean) / 2).abs().max() < 1e-6


def test_a_mixture_is_crossed_by_likely_states():
    """Halfway between modes the straight line has nothing, and the circle of codes has data."""
    means = torch.tensor([[3.0, 0.0], [0.0, 3.0], [-3.0, 0.0]]).double()
    law = pl.Mixture(
        pl.VPLinear(), means, torch.full((3, 2), 0.2).double(), torch.ones(3).double() / 3
    )
    x, y = means[:1] + 0.1, means[1:2] - 0.1
    found = interpolate(law, x, y, 9, solver=TIGHT)
    assert (found[0] - x).abs().max() < 1e-6 and (found[-1] - y).abs().max() < 1e-6
    straight = torch.lerp(x, y, 0.5)
    codes = law.log_prob(found[:, 0], law.path.t_min)
    assert codes.median() > law.log_prob(straight, law.path.t_min)[0] + 5


def test_bad_input_is_told():
    law = pl.Gaussian(pl.VPLinear(), torch.zeros(2).double(), torch.ones(2).double())
    x = normal(2, 2)
    told = (
        (lambda: interpolate(law, x, x, 1), "at least both ends"),
        (lambda: interpolate(law, x, x[:1]), "differ"),
        (lambda: interpolate(law, x, x, temperature=0.0), "temperature is finite"),
        (lambda: interpolate(law, x, x, solver="ddpm"), "draws noise"),
        (lambda: slerp(x, x[:1], 0.5), "differ"),
        (lambda: slerp(x, -x, 0.5), "opposite"),
    )
    for call, words in told:
        with pytest.raises(UsageError, match=words):
            call()
    assert math.isfinite(float(slerp(x, x, 0.3).sum()))

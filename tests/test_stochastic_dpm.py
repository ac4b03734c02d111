"""DPM-Solver with noise: ancestral steps, DPM++ SDE, the noise form; k-diffusion's beside them."""

import itertools
import math

import pytest
import torch

import pathline as pl
from pathline.adapters import kdiffusion
from pathline.core import noise
from pathline.fields.problems import m4
from pathline.solvers import DPM, EDMSampler, solvers
from pathline.solvers.evaluate import Evaluator
from pathline.solvers.execute import complete
from pathline.solvers.order import fitted_slope
from pathline.solvers.reference import moments

VP, EDM = pl.VPLinear(), pl.EDM()
LAW = m4(EDM)
X = 80.0 * noise.normal(range(5), (3,), dtype=torch.float64)
LEVELS = torch.logspace(math.log10(80), math.log10(0.002), 9, dtype=torch.float64)


def model(x, sigma):
    return LAW(x, sigma / 80.0).x0


def draw(d):
    return noise.normal(range(5), (3,), index=d, dtype=torch.float64)


def step_of(sigma):
    return int((LEVELS - sigma).abs().argmin())


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("dpmpp_2s_ancestral", "sample_dpmpp_2s_ancestral"),
        ("dpm_2s_ancestral", "sample_dpm_2_ancestral"),
    ],
)
def test_ancestral_steps_are_k_diffusions(k_diffusion, name, theirs):
    def noise_sampler(sigma, after):
        return draw(step_of(sigma))

    ours = kdiffusion.sampler(name)(model, X, LEVELS, noise_sampler=noise_sampler)
    other = getattr(k_diffusion, theirs)(
        model, X, LEVELS, noise_sampler=noise_sampler, disable=True
    )
    torch.testing.assert_close(ours, other, rtol=1e-10, atol=1e-12)


def test_dpmpp_sde_is_k_diffusions_with_both_noises_from_one_motion(k_diffusion):
    """Their sampler asks for W over the half step and over the step; ours draws the two halves."""

    def noise_sampler(sigma, after):
        i = step_of(sigma)
        start, end = LEVELS[i], LEVELS[i + 1]
        middle = (start * end).sqrt()
        if abs(float(after / end) - 1) > 1e-6:
            return draw(2 * i)
        halves = (start - middle).sqrt() * draw(2 * i) + (middle - end).sqrt() * draw(2 * i + 1)
        return halves / (start - end).sqrt()

    grid = pl.grids.times((LEVELS / 80.0).tolist())
    plan = solvers.build("dpmpp_sde").plan(EDM, grid).folded(LAW.view)
    ours = complete(plan, Evaluator(LAW, plan, X, {}), [X], draw=draw)
    other = k_diffusion.sample_dpmpp_sde(
        model, X, LEVELS, noise_sampler=noise_sampler, disable=True
    )
    torch.testing.assert_close(ours, other, rtol=1e-10, atol=1e-12)


def test_churn_counts_the_step_to_data_as_k_diffusion_does(k_diffusion, monkeypatch):
    """Between levels that both leave alone: their last one and our highest."""
    levels = torch.cat((LEVELS, LEVELS.new_zeros(1)))
    churn, low, high = 3.0, 0.01, 70.0
    steps = itertools.count()

    def randn_like(x, **_):
        return draw(next(steps))

    with monkeypatch.context() as patched:
        patched.setattr(torch, "randn_like", randn_like)
        other = k_diffusion.sample_heun(
            model, X, levels, s_churn=churn, s_tmin=low, s_tmax=high, disable=True
        )
    grid = pl.grids.times((LEVELS / 80.0).tolist(), last="denoise")
    plan = EDMSampler(churn=churn, low=low, high=high).plan(EDM, grid).folded(LAW.view)
    ours = complete(plan, Evaluator(LAW, plan, X, {}), [X], draw=draw)
    torch.testing.assert_close(ours, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("n", [1, 3, 20])
@pytest.mark.parametrize(
    "solver",
    [
        *(DPM(order, "x0", eta=eta) for order in (1, 2, 3) for eta in (0.4, 1.0)),
        DPM(3, "x0", "fast", eta=1.0),
        *(pl.DPMpp(order, eta=eta) for order in (1, 2, 3) for eta in (1.7, 3.0)),
        solvers.build("dpmpp_sde"),
    ],
    ids=repr,
)
def test_point_data_are_sampled_with_the_exact_variance(solver, n):
    """x̂_0 is constant, so is the law: N(α_t x_0, σ_t²) whatever the order and the noise."""
    law = pl.Dataset(VP, torch.tensor([[1.5]], dtype=torch.float64))
    (a, s), (b, r) = ((float(VP.alpha(t)), float(VP.sigma(t))) for t in (VP.t_max, VP.t_min))
    mean, variance = moments(solver.plan(VP, pl.grids.log_snr(n)), law, 1.5 * a, s**2)
    assert mean == pytest.approx(1.5 * b, rel=1e-11)
    assert variance == pytest.approx(r**2, rel=1e-11)


@pytest.mark.parametrize("order", [1, 2])
def test_the_noise_form_has_its_order_where_data_are_narrow(order):
    """On wide data order one looks like two: what it misses is forgotten on the way."""
    law = pl.Gaussian(VP, torch.zeros(1), torch.full((1,), 1e-6, dtype=torch.float64))
    exact = float(VP.alpha(VP.t_min) ** 2 * 1e-6 + VP.sigma(VP.t_min) ** 2)
    counts, errors = (160, 320, 640), []
    for n in counts:
        plan = solvers.build("sde_dpm", order=order).plan(VP, pl.grids.log_snr(n))
        _, variance = moments(plan, law, 0.0, float(VP.sigma(1.0)) ** 2)
        errors.append(abs(variance - exact))
    assert fitted_slope(counts, errors) == pytest.approx(order, abs=0.15)


def test_without_noise_they_are_the_methods_without_noise():
    grid = pl.grids.log_snr(6)
    flow = DPM(2, "x0").plan(VP, grid)
    assert DPM(2, "x0", eta=0.0).plan(VP, grid).rows == flow.rows
    rows = solvers.build("dpmpp_sde", eta=0.0).plan(VP, grid).rows
    for mine, other in zip(rows, flow.rows, strict=True):
        assert mine.x == pytest.approx(other.x, rel=1e-12)
        assert {k: b for k, b in mine.f.items() if b} == pytest.approx(
            {k: b for k, b in other.f.items() if abs(b) > 1e-15}, rel=1e-9
        )


@pytest.mark.parametrize("name", ["dpmpp_2s_ancestral", "dpmpp_sde", "sde_dpm"])
def test_what_they_cannot_do_is_refused(name):
    solver = solvers.build(name)
    with pytest.raises(pl.UsageError, match="noise is added towards data only"):
        solver.plan(VP, pl.grids.times([0.2, 0.4]))
    with pytest.raises(pl.UsageError, match="is infinite in log-SNR"):
        solver.plan(VP, pl.grids.times([0.5, 0.0]))

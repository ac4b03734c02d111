"""Every registered path: derivatives, inverses and identities, in float64."""

import itertools
import math

import numpy as np
import pytest
import torch

import pathline as pl
from pathline.core import noise
from pathline.fields.problems import m4
from pathline.paths import paths

ALL = [pytest.param(entry.build(), id=entry.name) for entry in paths]
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)


def inside(path, n=400):
    """Times between t_min and t_max, away from a table's corners."""
    t = torch.linspace(path.t_min, path.t_max, n, dtype=torch.float64)[1:-1]
    return t + 1e-7


@pytest.mark.parametrize("path", ALL)
def test_derivatives_are_those_of_alpha_and_sigma(path):
    t = inside(path).requires_grad_()
    for value, slope in ((path.alpha, path.d_alpha), (path.sigma, path.d_sigma)):
        (expected,) = torch.autograd.grad((value(t) + 0 * t).sum(), t)
        torch.testing.assert_close(slope(t), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", ALL)
def test_log_snr_falls_and_its_inverse_is_exact(path):
    t = inside(path)
    level = path.log_snr(t)
    assert (level.diff() < 0).all()
    torch.testing.assert_close(level, (path.alpha(t) / path.sigma(t)).log(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(path.time_of_log_snr(level), t, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("path", ALL)
def test_the_sde_has_the_paths_marginals(path):
    """m' = f m and v' = 2 f v + g² hold for m = α and v = σ², by central differences."""
    t = inside(path, 50)
    h = 1e-7  # with float64 and these slopes the difference is good to about 1e-6
    variance = lambda s: path.sigma(s) ** 2  # noqa: E731
    numeric = (variance(t + h) - variance(t - h)) / (2 * h)
    exact = 2 * path.drift(t) * variance(t) + path.diffusion_squared(t)
    torch.testing.assert_close(exact, numeric, rtol=1e-5, atol=1e-5)
    assert (path.diffusion_squared(t) > 0).all()


@pytest.mark.parametrize("path", ALL)
def test_a_path_is_rebuilt_from_its_description(path):
    assert paths.rebuild(paths.describe(path)) == path


def test_known_values():
    """From the definitions, by hand."""
    t = torch.tensor([0.25, 1.0], dtype=torch.float64)
    close = lambda a, b: torch.testing.assert_close(a, torch.tensor(b, dtype=torch.float64))  # noqa: E731
    close(pl.CondOT().alpha(t), [0.75, 0.0])
    close(pl.CondOT().sigma(t), [0.25, 1.0])
    close(pl.EDM().sigma(t), [20.0, 80.0])
    close(pl.VE().sigma(t[1:]), [50.0])
    close(pl.VPLinear().log_alpha(t[1:]), [-(20 - 0.1) / 4 - 0.05])
    vp, sub = pl.VPLinear(), pl.paths.SubVP()
    close(vp.alpha(t) ** 2 + vp.sigma(t) ** 2, [1.0, 1.0])
    close(sub.sigma(t), (1 - sub.alpha(t) ** 2).tolist())  # a standard deviation
    cosine = pl.paths.VPCosine()
    close(cosine.alpha(t) ** 2 + cosine.sigma(t) ** 2, [1.0, 1.0])
    assert float(cosine.alpha(0.0)) == 1


@pytest.mark.parametrize("path", [pl.VPLinear(), pl.paths.SubVP(), pl.paths.VPCosine()])
def test_small_times_do_not_cancel(path):
    """σ near t = 0 against 60-digit arithmetic: σ² = 1 − α² loses nothing."""
    import mpmath

    mpmath.mp.dps = 60
    t = mpmath.mpf(1e-9)
    if isinstance(path, pl.paths.VPCosine):
        angle = lambda s: mpmath.pi / 2 * (s + mpmath.mpf(path.s)) / (1 + mpmath.mpf(path.s))  # noqa: E731
        alpha = mpmath.cos(angle(t)) / mpmath.cos(angle(mpmath.mpf(0)))
    else:
        b0, b1 = mpmath.mpf(path.beta_min), mpmath.mpf(path.beta_max)
        alpha = mpmath.exp(-t * (t * (b1 - b0) / 4 + b0 / 2))
    sigma = 1 - alpha**2 if isinstance(path, pl.paths.SubVP) else mpmath.sqrt(1 - alpha**2)
    assert float(path.sigma(1e-9)) == pytest.approx(float(sigma), rel=1e-12)
    assert float(path.log_snr(1e-9)) == pytest.approx(float(mpmath.log(alpha / sigma)), rel=1e-13)


def test_a_table_is_met_at_its_nodes():
    path = pl.paths.Tabulated.from_betas(BETAS)
    label = torch.arange(1000, dtype=torch.float64)
    t = path.time_of_label(label)
    torch.testing.assert_close(path.label(t), label, rtol=0, atol=1e-9)
    exact = torch.cumprod(1 - BETAS, 0)
    torch.testing.assert_close(path.alpha(t) ** 2, exact, rtol=1e-12, atol=0)
    assert float(path.alpha(0.0)) == 1 and float(path.sigma(0.0)) == 0


COSINE = [math.cos((k / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(1001)]
"""The cosine table, ᾱ_0 … ᾱ_1000 of which the first is of data."""


def cosine(lowest=-5.1):
    betas = [min(1 - b / a, 0.999) for a, b in itertools.pairwise(COSINE)]
    levels = torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0)
    return pl.paths.Tabulated(levels, lowest)


def test_a_table_is_any_sequence_and_one_value():
    listed = list(cosine().alphas_cumprod)
    made = [pl.paths.Tabulated(form(listed)) for form in (list, tuple, np.array, torch.tensor)]
    assert len(set(made[:3])) == 1 and isinstance(made[3].alphas_cumprod, tuple)
    assert pl.paths.paths.rebuild(made[0].describe()) == made[0]


def test_generation_starts_where_a_cosine_table_still_tells_something():
    """An ε network that is 1e-3 off ruins the result from λ = −10 on, and not from −5.1 on."""
    path, whole = cosine(), cosine(-math.inf)
    assert whole.t_max == 1 and float(whole.log_snr(1.0)) < -9.9
    assert path.kept == 996 and float(path.label(path.t_max)) == pytest.approx(995)
    assert float(path.log_snr(path.t_max)) >= -5.1 > float(path.log_snr(path.t_max + 1e-3))
    assert pl.paths.Tabulated.linear().t_max == 1  # DDPM's table ends at −5.06
    x = noise.normal(range(16), (3,), dtype=torch.float64)
    off = 1e-3 * noise.normal(range(16, 32), (3,), dtype=torch.float64)

    def error(on):
        law = m4(on)
        told = pl.Denoiser(lambda x, t: law(x, t).eps + off, on, "eps")
        ends = [pl.solve(f, x, solver="dpmpp_2m", grid=pl.grids.uniform(20)).x for f in (law, told)]
        return float((ends[0] - ends[1]).abs().max())

    assert error(path) < 0.1 * error(whole)


def test_log_snr_does_not_overflow():
    steep = pl.VPLinear(0.1, 2840.0)
    assert float(steep.log_snr(1.0)) == pytest.approx(-710.025, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: pl.VPLinear(beta_min=20, beta_max=0.1), "beta_min < beta_max"),
        (lambda: pl.VE(sigma_min=-1), "sigma_min < sigma_max"),
        (lambda: pl.EDM(sigma_min=2, sigma_max=1), "sigma_min < sigma_max"),
        (lambda: pl.paths.VPCosine(s=0), "offset s"),
        (lambda: pl.paths.Tabulated(()), "must lie in"),
        (lambda: pl.paths.Tabulated((0.9, 0.5, 0.0)), "zero terminal SNR"),
        (lambda: pl.paths.Tabulated((0.5, 0.9)), "fall strictly"),
        (lambda: pl.paths.Tabulated(0.5), "a sequence of numbers"),
        (lambda: pl.paths.Tabulated((1e-6, 1e-7)), "the first has -6.91"),
        (lambda: pl.paths.Tabulated.from_betas([0.1, 1.2]), "betas must lie in"),
        (lambda: pl.paths.Tabulated.from_betas([math.nan]), "betas must lie in"),
    ],
)
def test_a_path_that_cannot_be_is_refused(make, says):
    with pytest.raises(pl.UsageError, match=says):
        make()


def test_an_unknown_path_gets_the_nearest_names():
    with pytest.raises(pl.UsageError, match="vp_linear"):
        paths.build("vp_linaer")

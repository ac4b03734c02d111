"""Likelihoods and traces against closed forms, in float64."""

import math

import pytest
import torch

import pathline as pl
from pathline.core import UsageError, noise
from pathline.fields import Gaussian, Mixture, VectorField
from pathline.fields.trace import Exact, Hutchinson, HutchPP
from pathline.learn.likelihood import bits_per_dim, dequantised
from pathline.nets import UNet
from pathline.paths import VE, CondOT, SubVP, VPLinear
from pathline.solvers.adaptive_rk import AdaptiveRK
from pathline.solvers.likelihood import log_prob

TIGHT = AdaptiveRK(rtol=1e-10, atol=1e-10)


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def mixture(path):
    means = f64([[1.5, 0.0], [-1.0, 1.0], [0.0, -1.2]])
    stds = f64([[0.3, 0.4], [0.5, 0.2], [0.4, 0.4]])
    return Mixture(path, means, stds, f64([0.5, 0.3, 0.2]))


@pytest.mark.parametrize("path", [VPLinear(), SubVP(), CondOT(), VE()])
def test_a_mixtures_density_is_found_exactly(path):
    """From the true density at the noise end, so that nothing but the solver errs."""
    law = mixture(path)
    x = law.draw(range(12)) + 1e-2
    found = log_prob(law, x, solver=TIGHT, prior=lambda z: law.log_prob(z, path.t_max))
    assert (found.log_prob - law.log_prob(x, path.t_min)).abs().max() < 1e-7
    assert not found.standard_error.any()
    back = pl.solve(law, found.z, solver=TIGHT, grid=[path.t_max, path.t_min]).x
    assert (back - x).abs().max() < 1e-6


def test_the_standard_prior_is_off_by_what_is_left_of_the_data():
    law = mixture(VPLinear())
    x = law.draw(range(12))
    error = log_prob(law, x, solver=TIGHT).log_prob - law.log_prob(x, law.path.t_min)
    assert 1e-5 < error.abs().max() < 1e-2


@pytest.mark.parametrize("trace", [Hutchinson(64), Hutchinson(64, "gaussian"), HutchPP(48)])
def test_an_estimate_is_within_its_standard_error(trace):
    """A correlated Gaussian in 20 dimensions, where the Jacobian has much off its diagonal."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(20, 20, generator=generator, dtype=torch.float64) / 20**0.5
    law = Gaussian(VPLinear(), torch.zeros(20).double(), a @ a.T + 0.1 * torch.eye(20).double())
    x = law.draw(range(16))
    how = {"prior": lambda z: law.log_prob(z, law.path.t_max), "seeds": range(100, 116)}
    found = log_prob(law, x, trace=trace, **how)
    wrong = (found.log_prob - law.log_prob(x, law.path.t_min)) / found.standard_error
    assert found.standard_error.min() > 0
    assert wrong.abs().max() < 4.5 and 0.2 < wrong.square().mean() < 3


def test_shapes_steps_and_solvers_do_not_matter():
    """A picture's density is that of its pixels; RK4 on the user's times agrees with Dormand."""
    law = mixture(VPLinear())
    shaped = VectorField(lambda x, t: law(x.flatten(1), t).velocity.view_as(x))
    x, times = law.draw(range(5)), [1.0, 1e-3]
    prior = {"prior": lambda z: law.log_prob(z.flatten(1), 1.0)}
    flat = log_prob(law, x, solver=TIGHT, **prior).log_prob
    square = log_prob(shaped, x.view(5, 1, 2), solver=TIGHT, grid=times, **prior)
    assert square.z.shape == (5, 1, 2)
    torch.testing.assert_close(square.log_prob, flat, rtol=0, atol=1e-8)
    fixed = log_prob(law, x, solver="rk4", grid="log_snr", steps=400, **prior)
    torch.testing.assert_close(fixed.log_prob, flat, rtol=0, atol=1e-5)


def test_samples_do_not_know_each_other():
    law, trace = mixture(VPLinear()), Hutchinson(3)
    x = law.draw(range(6))
    whole = log_prob(law, x, trace=trace, seeds=range(6))
    part = log_prob(law, x[2:4], trace=trace, seeds=[2, 3])
    assert torch.equal(whole.log_prob[2:4], part.log_prob)
    assert torch.equal(whole.standard_error[2:4], part.standard_error)


@pytest.mark.parametrize("trace", [Exact(), Hutchinson(2), HutchPP(3)])
def test_gradients_of_the_likelihood(trace):
    """In x and in a parameter, against differences of the very same estimate."""
    path, x = VPLinear(), mixture(VPLinear()).draw(range(3))

    def found(x, shift):
        law = Mixture(path, mixture(path).means + shift, mixture(path).stds, f64([0.5, 0.3, 0.2]))
        return log_prob(law, x, solver="rk4", steps=12, trace=trace).log_prob.sum()

    assert torch.autograd.gradcheck(
        found, (x.requires_grad_(), f64(0.2).requires_grad_()), eps=1e-5, atol=1e-5, rtol=1e-4
    )
    with torch.no_grad():
        assert not found(x, f64(0.2)).requires_grad
    assert not found(x.detach(), f64(0.2)).requires_grad  # and nothing is kept for nobody


def test_gradients_through_attention_are_those_of_differences():
    """torch's fused attention on a CPU has no second derivative, which these need."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = UNet(channels=1, width=8, multipliers=(1,), blocks=1, attention=(0,)).double()
    model = pl.Denoiser(net, VPLinear(), "eps", label=1000.0)
    x = noise.normal(range(2), (1, 4, 4), dtype=torch.float64)
    weight = next(p for name, p in net.named_parameters() if "attention" in name and p.ndim > 1)

    def total():
        found = log_prob(model, x, solver="rk4", steps=2, trace=Hutchinson(2))
        return found.log_prob.sum()

    (slope,) = torch.autograd.grad(total(), weight)
    at = slope.abs().argmax()
    h, found = 1e-4, []
    for sign in (1, -1):
        with torch.no_grad():
            weight.view(-1)[at] += sign * h
            found.append(float(total()))
            weight.view(-1)[at] -= sign * h
    assert float(slope.view(-1)[at]) == pytest.approx((found[0] - found[1]) / (2 * h), rel=1e-4)


def test_bits_per_dim_of_a_uniform_density_are_eight():
    """A flow that does nothing to samples that are uniform on the data's own cube."""
    for low, high in ((-1.0, 1.0), (0.0, 1.0)):
        x = torch.full((2, 3, 4, 4), 0.5, dtype=torch.float64)
        at_end = torch.full((2,), -48 * math.log(high - low), dtype=torch.float64)
        still = log_prob(
            lambda x, t: 0 * x, x, prior=lambda z, p=at_end: p, grid=[1.0, 0.0], solver="rk4"
        )
        assert (still.bits_per_dim(low, high) - 8).abs().max() < 1e-12


@pytest.mark.slow
def test_more_dequantisations_bound_the_probability_of_pixels_more_tightly():
    """Pixels of a Gaussian ten levels wide: the probability of a cell is a difference of erfs."""
    path, wide = VPLinear(), 10 / 128
    law = Gaussian(path, torch.zeros(2).double(), torch.full((2,), wide**2).double())
    pixels = torch.tensor([[128, 135], [120, 110], [128, 90], [150, 128]], dtype=torch.uint8)
    wide = math.sqrt(float((path.alpha(1e-3) * wide) ** 2 + path.sigma(1e-3) ** 2))
    edges = torch.stack((pixels.double(), pixels.double() + 1)) / 128 - 1
    below, above = torch.special.ndtr(edges / wide)
    exact = -(above - below).log2().sum(1) / 2
    one, many = (bits_per_dim(law, pixels, draws=k, solver=AdaptiveRK()) for k in (1, 200))
    assert (many.bits - exact).abs().max() < 0.02 < (one.bits - exact).abs().max()
    assert not many.standard_error.any() and many.nfe > 100 * one.nfe
    again = bits_per_dim(law, pixels[2:], draws=1, seeds=[2, 3], solver=AdaptiveRK())
    assert torch.equal(again.bits, one.bits[2:])


@pytest.mark.parametrize("levels", [17, 256])
def test_pixels_of_any_number_of_levels(levels):
    """Each stays in its cell, and a cell's probability is what a Gaussian gives it."""
    pixels = torch.arange(levels, dtype=torch.uint8).reshape(-1, 1)
    x = dequantised(pixels, range(levels), levels=levels)
    cells = ((x[:, 0] + 1) * levels / 2).floor()
    assert torch.equal(cells, torch.arange(levels).double())
    law = Gaussian(VPLinear(), torch.zeros(1).double(), torch.full((1,), 0.01).double())
    few = bits_per_dim(law, pixels[levels // 2 :][:1], levels=levels, draws=100).bits
    at = 2 * (levels // 2) / levels - 1
    spread = math.hypot(0.1 * float(law.path.alpha(1e-3)), float(law.path.sigma(1e-3)))
    edges = torch.tensor([at, at + 2 / levels]).double() / spread
    below, above = torch.special.ndtr(edges)
    assert float(few) == pytest.approx(-math.log2(above - below), abs=0.02)


def jacobian(n):
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, n, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("law,factor", [("rademacher", 0.0), ("gaussian", 1.0)])
def test_hutchinson_has_the_mean_and_the_variance_that_it_should(law, factor):
    a = jacobian(6)
    s, trace, n = (a + a.T) / 2, Hutchinson(4096, law), 4096
    x = torch.zeros(1, 6, dtype=torch.float64)
    y, each = trace.of(lambda x: x @ a.T + 1, x, trace.probes([5], (6,), x.dtype, x.device))
    assert torch.equal(y, torch.ones_like(y))
    off = s.square().sum() - s.diag().square().sum()
    variance = 2 * (off + factor * s.diag().square().sum())
    assert (each.mean() - a.trace()).abs() < 4 * (variance / n).sqrt()
    assert float(each.var()) == pytest.approx(float(variance), rel=0.12)


def test_hutchpp_is_unbiased_and_exact_at_low_rank():
    x, n = torch.zeros(2000, 12, dtype=torch.float64), 6
    a, low = jacobian(12), jacobian(12)[:, :2] @ jacobian(12)[:2]
    trace = HutchPP(n)
    probes = trace.probes(range(2000), (12,), x.dtype, x.device)
    exact = trace.of(lambda x: x @ low.T, x, probes)[1]
    assert (exact - low.trace()).abs().max() < 1e-7
    each = trace.of(lambda x: x @ a.T, x, probes)[1].mean(1)
    assert (each.mean() - a.trace()).abs() < 4 * each.std() / 2000**0.5
    graded = torch.diag(2.0 ** -torch.arange(12, dtype=torch.float64)) + 0.01 * a
    spread = [
        t.of(lambda x: x @ graded.T, x, t.probes(range(2000), (12,), x.dtype, x.device))[1]
        for t in (trace, Hutchinson(n, "gaussian"))
    ]
    assert spread[0].mean(1).std() < 0.5 * spread[1].mean(1).std()


def test_an_exact_trace_is_exact_for_any_function():
    x = noise.normal(range(3), (2, 3), dtype=torch.float64)
    _, found = Exact().of(lambda x: x**3 + x.flip(-1), x, x.new_empty(3, 0, 2, 3))
    expected = (3 * x**2).flatten(1).sum(1) + 2  # the middle of three stays where it is, twice
    torch.testing.assert_close(found[:, 0], expected)
    assert not Exact().of(lambda x: torch.ones_like(x), x, x)[1].any()


def test_bad_input_is_told():
    law = mixture(VPLinear())
    x, pixels = law.draw(range(2)), torch.full((1, 2), 17, dtype=torch.uint8)
    told = (
        (lambda: log_prob(law, x, solver="ddpm"), "draws noise"),
        (lambda: log_prob(law, x, seeds=[1]), "1 seeds were given for 2 samples"),
        (lambda: log_prob(lambda x, t: -x, x), "no times of its own"),
        (lambda: log_prob(lambda x, t: -x, x, grid=[1, 0], solver="rk4"), "needs prior="),
        (lambda: log_prob(law, torch.ones(2, 2, dtype=torch.uint8)), "dequantise and scale"),
        (lambda: log_prob(law, 2 + 0 * x).bits_per_dim(), "go from 2 to 2, and the range is from"),
        (lambda: dequantised(x, [0, 1]), "uint8, not torch.float64"),
        (lambda: bits_per_dim(law, torch.ones(1, 2, dtype=torch.uint8), draws=0), "at least 1"),
        (lambda: dequantised(pixels, [0], levels=17), "end at 16, and these at 17"),
        (lambda: Hutchinson(0), "at least 1 probe"),
        (lambda: Hutchinson(1, "uniform"), "choose 'rademacher' or 'gaussian'"),
        (lambda: HutchPP(2), "3 products at least"),
        (lambda: log_prob(law, x, trace=HutchPP(9)), "use Exact"),
        (lambda: Exact().probes([0], (65, 65), x.dtype, x.device), "estimate it"),
    )
    for call, words in told:
        with pytest.raises(UsageError, match=words):
            call()

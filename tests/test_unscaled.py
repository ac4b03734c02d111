"""Densities of the exact oracles, and every path seen as one that only adds noise."""

import math

import pytest
import torch
from scipy.integrate import quad
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import pathline as pl
from pathline.core import noise
from pathline.fields import Unscaled, problems

PATHS = [pl.VPLinear(), pl.paths.SubVP(), pl.paths.VPCosine(), pl.CondOT(), pl.EDM(), pl.VE()]
ids = [type(path).__name__ for path in PATHS]
on_every_path = pytest.mark.parametrize("path", PATHS, ids=ids)


def draws(*shape, seed=0):
    return noise.normal(range(seed, seed + shape[0]), shape[1:], dtype=torch.float64)


def oracles(path, dim=3):
    root = draws(dim, dim, seed=50)
    points = draws(7, dim, seed=20)
    return [
        problems.m4(path),
        pl.Gaussian(path, points[0], root @ root.T),
        pl.Dataset(path, points),
    ]


@on_every_path
def test_the_score_is_the_gradient_of_the_density(path):
    t = torch.tensor([0.05, 0.3, 0.6, 0.9], dtype=torch.float64)
    for oracle in oracles(path):
        x = path.noised(draws(4, 3), draws(4, 3, seed=9), t).requires_grad_()
        (score,) = torch.autograd.grad(oracle.log_prob(x, t).sum(), x)
        torch.testing.assert_close(oracle(x, t).score, score, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_density_is_the_integral_over_the_data(t):
    """p_t(x) = ∫ p(x_0) N(x; α x_0, σ²) dx_0 by SciPy, in one dimension."""
    path = pl.VPLinear()
    alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
    x = torch.tensor([[-1.3], [0.2], [2.0]], dtype=torch.float64)

    def normal(x, mean, std):
        return math.exp(-(((x - mean) / std) ** 2) / 2) / std / math.sqrt(2 * math.pi)

    def check(oracle, data):
        for value, said in zip(x[:, 0].tolist(), oracle.log_prob(x, t).exp().tolist(), strict=True):

            def integrand(x0, value=value):
                return data(x0) * normal(value, alpha * x0, sigma)

            exact = quad(integrand, -12, 12, points=[-1, 1, value / alpha], limit=400)[0]
            assert said == pytest.approx(exact, rel=1e-7)

    means, stds, weights = (torch.tensor(v).double() for v in ([-1.0, 1.0], [0.3, 0.7], [0.4, 0.6]))
    mixture = pl.Mixture(path, means[:, None], stds[:, None], weights)
    check(mixture, lambda v: 0.4 * normal(v, -1.0, 0.3) + 0.6 * normal(v, 1.0, 0.7))
    gaussian = pl.Gaussian(path, means[:1], torch.tensor([0.25], dtype=torch.float64))
    check(gaussian, lambda v: normal(v, -1.0, 0.5))


def test_the_density_of_a_data_set_is_torchs():
    path, t = pl.paths.VPCosine(), 0.4
    data = pl.Dataset(path, draws(5, 2, 3, seed=3))
    x = draws(4, 2, 3)
    parts = Independent(
        Normal(path.alpha(t) * data.points.flatten(1), path.sigma(t).expand(5, 6)), 1
    )
    law = MixtureSameFamily(Categorical(torch.ones(5, dtype=torch.float64)), parts)
    torch.testing.assert_close(data.log_prob(x, t), law.log_prob(x.flatten(1)))


@on_every_path
def test_all_levels_at_once_is_each_level_alone(path):
    """log density of x_0 + σ ε, from the density at the time where σ/α is that σ."""
    sigmas = torch.tensor([0.05, 0.3, 1.0, 3.0], dtype=torch.float64)
    y = draws(6, 3)
    for oracle in oracles(path):
        together = oracle.log_prob_noised(y, sigmas)
        for k, sigma in enumerate(sigmas):
            t = path.time_of_log_snr(-sigma.log())
            alpha = path.alpha(t)
            alone = oracle.log_prob(alpha * y, t) + 3 * alpha.log()
            torch.testing.assert_close(together[:, k], alone, rtol=1e-9, atol=1e-9)


@on_every_path
def test_unscaled_coordinates_are_those_of_a_path_that_only_adds_noise(path):
    """A model on any path becomes the exact denoiser on EDM's, where α = 1 and σ = ρ."""
    edm = pl.EDM(1e-4, 1e3)
    t = torch.tensor([0.05, 0.3, 0.6, 0.9], dtype=torch.float64)
    y = 2 * draws(4, 3)
    for oracle, other in zip(oracles(path), oracles(edm), strict=True):
        model = pl.Denoiser(lambda x, t, oracle=oracle: oracle(x, t).velocity, path, "velocity")
        unscaled = Unscaled(model)
        rho = path.sigma(t) / path.alpha(t)
        torch.testing.assert_close(unscaled.path.sigma(t), rho)
        same = other(y, edm.time_of_log_snr(-rho.log())).x0
        torch.testing.assert_close(unscaled(y, t).x0, same, rtol=1e-8, atol=1e-8)
        at = y.clone().requires_grad_()
        (score,) = torch.autograd.grad(oracle.log_prob(at * path.alpha(t)[:, None], t).sum(), at)
        torch.testing.assert_close(unscaled(y, t).score, score, rtol=1e-6, atol=1e-6)


@on_every_path
def test_the_unscaled_path_knows_its_own_derivative(path):
    t = torch.tensor([0.05, 0.3, 0.6, 0.9], dtype=torch.float64)
    made = Unscaled(problems.m4(path)).path
    slope = torch.func.grad(lambda t: made.sigma(t).sum())(t)
    torch.testing.assert_close(made.d_sigma(t), slope, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(made.time_of_log_snr(made.log_snr(t)), t, rtol=1e-9, atol=1e-9)


@on_every_path
def test_solving_in_unscaled_coordinates_leads_to_the_same_data(path):
    """Solvers in ε or x̂_0 do the same arithmetic there."""
    mixture, begin = problems.m4(path), 0.7
    x = draws(4, 3) * path.sigma(begin)
    grid = pl.grids.log_snr(5, start=begin, last="denoise")
    for solver in (pl.Heun(view="eps"), pl.DPMpp(order=2), pl.DDIM()):
        there = pl.solve(Unscaled(mixture), x / path.alpha(begin), solver=solver, grid=grid).x
        here = pl.solve(mixture, x, solver=solver, grid=grid).x
        torch.testing.assert_close(there, here, rtol=1e-8, atol=1e-8)


def test_unscaled_coordinates_need_a_path():
    with pytest.raises(pl.UsageError, match="need a path"):
        Unscaled(pl.VectorField(lambda x, t: x))

"""Divergences of path laws against closed forms; what GANs and latent SDEs are made of."""

import math

import pytest
import torch

import pathline as pl
from pathline.core import noise
from pathline.learn.path_laws import critic_loss, generator_loss, with_path_kl


def kl(sde, x, n, seed=0):
    grid = pl.grids.uniform(n, start=0.0, end=1.0)
    start = torch.cat((x, torch.zeros_like(x[:, :1])), 1)
    return pl.solve(sde, start, solver="ito_euler", grid=grid, seed=seed).x[:, -1]


def test_the_divergence_of_two_ornstein_uhlenbeck_laws():
    """KL = ½ ((a − b)/σ)² ∫ E x² dt in closed form; 5 standard errors of 20 000 paths."""
    a, b, s, mean, var = 1.0, 0.3, 0.5, 1.0, 0.2
    decay = (1 - math.exp(-2 * a)) / (2 * a)
    exact = 0.5 * ((a - b) / s) ** 2 * ((mean**2 + var) * decay + s**2 / (2 * a) * (1 - decay))
    assert exact == pytest.approx(0.57796, abs=5e-6)  # as the specification has it
    sde = with_path_kl(lambda x, t: -a * x, lambda x, t: -b * x, lambda x, t: s + 0 * x)
    x = mean + var**0.5 * noise.normal(range(20_000), (1,), dtype=torch.float64)
    # Richardson: Euler's bias at 50 steps is about 1e-2
    coarse, fine = kl(sde, x, 25), kl(sde, x, 50)
    made = 2 * fine - coarse
    assert abs(float(made.mean()) - exact) < 5 * float(made.std()) / math.sqrt(20_000)


def test_correlated_noise_takes_the_pseudo_inverse():
    """σ of full rank: ‖σ⁻¹ v‖², here by hand; two numbers driven by three motions."""
    sigma = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.3]], dtype=torch.float64)
    sde = with_path_kl(
        lambda x, t: torch.ones_like(x), lambda x, t: torch.zeros_like(x),
        lambda x, t: sigma.expand(len(x), 2, 3), is_diagonal=False,
    )  # fmt: skip
    x = torch.zeros(4, 2, dtype=torch.float64)
    one = torch.ones(2, 1, dtype=torch.float64)
    exact = 0.5 * float(one.T @ torch.linalg.inv(sigma @ sigma.T) @ one)
    assert kl(sde, x, 4).tolist() == pytest.approx([exact] * 4)


def test_a_diffusion_of_zero_is_refused():
    sde = with_path_kl(lambda x, t: -x, lambda x, t: x, lambda x, t: 0 * x)
    with pytest.raises(pl.UsageError, match="floor"):
        kl(sde, torch.ones(2, 1), 2)


def test_the_signs_of_the_game():
    real, fake = torch.tensor([2.0, 4.0]), torch.tensor([1.0, 0.0])
    assert float(critic_loss(real, fake)) == -2.5 and float(generator_loss(fake)) == -0.5

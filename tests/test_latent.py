"""Latent ODEs: the bound in closed form, the flow between and after, gaps, and a price to learn."""

import math

import pytest
import torch

import pathline as pl
from pathline.core import noise
from pathline.data.irregular import drop
from pathline.domains import series as s
from pathline.domains.series.latent import log_likelihood, start_kl
from pathline.learn.solve_costs import Decay, Heuristics, Local

TIMES = torch.linspace(0, 2, 9, dtype=torch.float64)
TURN = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)


def made(**how):
    torch.manual_seed(0)
    return s.LatentODE(2, latent=2, context=6, hidden=8, noise=0.5, **how).double()


def turning(**how):
    """A model whose latent path turns, and which says it as it is."""
    model = made(**how)
    model.flow = Turn()
    model.readout = torch.nn.Identity()
    return model


class Turn(torch.nn.Module):
    def forward(self, x, t):
        return x @ TURN.T


def series(n=6):
    values = noise.normal(range(n), (9, 2), dtype=torch.float64)
    values[:, 4:6, 1] = math.nan
    return values


def test_likelihood_and_divergence_are_those_of_gaussians():
    values, said = series(), torch.zeros(6, 9, 2, dtype=torch.float64)
    law = torch.distributions.Normal(said, 0.5)
    seen = values.isfinite()
    exact = torch.where(seen, law.log_prob(values.nan_to_num()), 0.0).sum((1, 2))
    torch.testing.assert_close(log_likelihood(values, said, 0.5), exact)
    m, s_, p, q = (noise.normal([k], (3,), dtype=torch.float64) for k in range(4))
    q_law, p_law = (torch.distributions.Normal(a, b.exp()) for a, b in ((m, s_), (p, q)))
    exact = torch.distributions.kl_divergence(q_law, p_law).sum(1)
    torch.testing.assert_close(start_kl(m, s_, p[0], q[0]), exact)


@pytest.mark.parametrize("solver", ["rk4", "tsit5", pl.solvers.AdaptiveRK(rtol=1e-9, atol=1e-9)],
                         ids=["rk4", "tsit5", "adaptive"])  # fmt: skip
def test_the_path_between_and_after_the_observations_is_the_flow(solver):
    model, values = turning(solver=solver), series()
    to = torch.tensor([0.3, 1.0, 3.0], dtype=torch.float64)
    start = model.posterior(TIMES, values)[0]
    exact = torch.stack([start @ torch.linalg.matrix_exp(TURN * t).T for t in to], 1)
    off = (model.said(TIMES, values, to) - exact).detach().abs().max()
    assert float(off) < {"rk4": 0.2, "tsit5": 2e-2}.get(solver, 1e-7)
    at = model.said(TIMES, values, torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert torch.equal(at[:, 0], start)
    with pytest.raises(pl.UsageError, match="begins at t = 0, and t = -1 is asked"):
        model.said(TIMES, values, torch.tensor([-1.0, 1.0], dtype=torch.float64))


def test_the_bound_is_below_the_likelihood_of_a_linear_model():
    """x = R(t) z_0 + noise has a Gaussian law; with the exact posterior the bound would be it."""
    model = turning(solver=pl.solvers.AdaptiveRK(rtol=1e-9, atol=1e-9))
    values = noise.normal(range(40), (9, 2), dtype=torch.float64)
    turns = torch.cat([torch.linalg.matrix_exp(TURN * t) for t in TIMES])
    law = torch.distributions.MultivariateNormal(
        torch.zeros(18, dtype=torch.float64), turns @ turns.T + 0.25 * torch.eye(18)
    )
    exact = law.log_prob(values.flatten(1)).mean()
    assert float(model.elbo(TIMES, values).total().detach()) < float(exact)
    # the posterior of z_0 is N(Σ R'x/s², Σ) with Σ = (1 + 9/s²)⁻¹, R being a rotation
    spread = 1 / (1 + 9 / 0.25)
    model.posterior = lambda times, values: (
        spread * (values.flatten(1) @ turns) / 0.25,
        torch.full((40, 2), math.log(spread) / 2, dtype=torch.float64),
    )
    bounds = [float(model.elbo(TIMES, values, seed=k * 40).total().detach()) for k in range(40)]
    mean = sum(bounds) / 40
    error = (sum((b - mean) ** 2 for b in bounds) / 39 / 40) ** 0.5
    assert abs(mean - float(exact)) < 4 * error + 1e-6


def test_what_is_missing_says_nothing_nor_do_neighbours():
    model, values = made(), series()
    bound = model.elbo(TIMES, values)
    bound.total().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    assert float(bound.path) == 0 and float(bound.cost) == 0
    few = values[:2].clone()
    few[1, 0] = 7.0
    torch.testing.assert_close(
        model.said(TIMES, few, TIMES)[0], model.said(TIMES, values, TIMES)[0]
    )


@pytest.mark.parametrize("cost", [Heuristics(), Local("unbiased")], ids=["all", "one"])
def test_the_price_of_the_solve_is_no_part_of_the_bound(cost):
    plain, priced = made().elbo(TIMES, series()), made(cost=cost).elbo(TIMES, series())
    torch.testing.assert_close(plain.total(), priced.total(), rtol=1e-6, atol=1e-6)
    assert float(priced.cost.detach()) > 0
    model = made(cost=cost)
    s.fit_latent(model, TIMES, series(), iterations=2, price=Decay(1.0), weight=lambda k: 1.0)


def test_a_latent_ode_learns_what_is_hidden():
    """Nobody has seen the hidden values, in training either; the mean of all has an error of 1."""
    start = noise.normal(range(64), (2,), dtype=torch.float64)
    values = torch.stack([start @ torch.linalg.matrix_exp(TURN * 2 * t).T for t in TIMES], 1)
    seen = drop(values, 0.3, together=True)
    torch.manual_seed(0)
    model = s.LatentODE(2, latent=3, context=24, hidden=24, noise=0.2, solver="rk4").double()
    s.fit_latent(model, TIMES, seen[:48], iterations=120, rate=2e-2, batch=48)
    with torch.no_grad():
        said = model.said(TIMES, seen[48:], TIMES)
    hidden = seen[48:].isnan()
    assert float((said - values[48:])[hidden].square().mean()) < 0.3


def test_samples_are_of_the_seed_and_bad_numbers_are_refused():
    model = made()
    torch.testing.assert_close(model.sample(TIMES, 3, seed=1)[0], model.sample(TIMES, 1, seed=1)[0])
    with pytest.raises(pl.UsageError, match="noise is above 0"):
        s.LatentODE(1, noise=0.0)
    with pytest.raises(pl.UsageError, match=r"t\[1\] = 1 is followed by 1"):
        model.posterior(torch.tensor([0.0, 1.0, 1.0]), series()[:, :3])

"""Particles against exact posteriors, of the very law that the unguided solver samples."""

import json
import math

import pytest
import torch

import pathline as pl
from pathline import steer
from pathline.core import noise
from pathline.core.errors import NonFiniteError, UsageError
from pathline.fields import Spherical
from pathline.solvers import solvers
from pathline.solvers.reference import moments
from pathline.steer import Particles, Repeat, operators, posterior
from pathline.steer.particles import Twist

VP = pl.VPLinear()
ONE = operators.Dense(torch.ones(1, 1, dtype=torch.float64))


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def drawn(n, *shape, index=0):
    return noise.normal(range(n), shape, index=index, dtype=torch.float64)


# --- exact posteriors ----------------------------------------------------------------------------


def laws():
    root = drawn(3, 3, index=2)
    means, stds = f64([[1.0, 0.2, -0.4], [-0.7, 0.8, 0.3]]), f64([[0.5, 0.3, 0.6], [0.4] * 3])
    return {
        "gaussian": pl.Gaussian(VP, f64([0.5, -0.3, 0.1]), root @ root.T / 3),
        "mixture": pl.Mixture(VP, means, stds, f64([0.4, 0.6])),
        "spherical": Spherical(VP, means, f64([0.5, 0.3]), f64([0.3, 0.7])),
    }


@pytest.mark.parametrize("name", ["gaussian", "mixture", "spherical"])
@pytest.mark.parametrize("std", [0.0, 0.3])
def test_posteriors_are_those_of_weighed_draws(name, std):
    """Regression of draws on their measurements: E[x f(y)] = E[E[x | y] f(y)] for any f, and so
    for squares. 8000 draws, six standard errors: a false alarm is rarer than 1e-6."""
    law, a = laws()[name], f64([[1.0, 0.5, 0.0], [0.0, -0.4, 1.0]])
    x = law.draw(range(8000))
    y = x @ a.T + std * drawn(len(x), 2, index=9)
    found = posterior(law, operators.Dense(a), y, std)
    off = x - found.mean
    square = (off**2 - found.covariance.diagonal(dim1=1, dim2=2)).flatten(1)
    for f in (torch.ones(len(y), 1).double(), y.sin(), (2 * y).cos()):
        for wrong in (off, square):
            each = torch.einsum("bi,bj->bij", wrong, f).flatten(1)
            assert float((each.mean(0) / (each.std(0) / len(x) ** 0.5 + 1e-12)).abs().max()) < 6
    again = found.draw(range(10**6, 10**6 + len(x)))
    torch.testing.assert_close(again @ a.T, y) if std == 0 else None
    z = (again - x).mean(0) / ((again - x).std(0) / len(x) ** 0.5)
    assert float(z.abs().max()) < 6


def test_the_evidence_is_the_density_of_measurements():
    law, a = laws()["mixture"], f64([[1.0, 0.5, 0.0]])
    y = f64([[0.3], [-1.0]])
    normal = torch.distributions.Normal
    parts = [
        (w.log() + normal(m @ a[0], (a[0] ** 2 @ s**2 + 0.09).sqrt()).log_prob(y))
        for m, s, w in zip(law.means, law.stds, law.weights, strict=True)
    ]  # fmt: skip
    exact = torch.stack(parts).logsumexp(0)[:, 0]
    found = posterior(law, operators.Dense(a), y, 0.3)
    torch.testing.assert_close(found.log_evidence, exact)
    mask = posterior(law, operators.Mask(f64([1.0, 0.0, 0.0])), f64([[0.3, 7.0, 9.0]]), 0.3)
    alone = posterior(law, operators.Dense(f64([[1.0, 0.0, 0.0]])), f64([[0.3]]), 0.3)
    torch.testing.assert_close(mask.log_evidence, alone.log_evidence)


def test_a_round_mixture_is_the_mixture():
    """In every view that an oracle has, on pictures as on vectors."""
    means = drawn(4, 2, 3, index=5)
    stds, weights = f64([0.4, 0.3, 0.5, 0.2]), f64([0.1, 0.2, 0.3, 0.4])
    law = Spherical(VP, means, stds, weights)
    flat = pl.Mixture(VP, means.flatten(1), stds[:, None].expand(4, 6), weights)
    x = drawn(5, 2, 3)
    for t in (f64(0.3), torch.linspace(0.05, 0.9, 5).double()):
        torch.testing.assert_close(law(x, t).x0.flatten(1), flat(x.flatten(1), t).x0)
        torch.testing.assert_close(law.log_prob(x, t), flat.log_prob(x.flatten(1), t))
    torch.testing.assert_close(law.draw(range(9)).flatten(1), flat.draw(range(9)))
    with pytest.raises(UsageError, match="do not describe one mixture"):
        Spherical(VP, means, stds[:3], weights)


# --- particles -----------------------------------------------------------------------------------


def discrete(solver, grid, mean=0.4, variance=0.36):
    """The law of a few steps on Gaussian data, which is Gaussian, and its posterior given y = 1."""
    law = pl.Gaussian(VP, f64([mean]), f64([variance]))
    plan = solver.plan(VP, grid)
    m, v = moments(plan.folded("x0"), law, 0.0, float(VP.sigma(plan.start[0])) ** 2)
    return law, m, v


SOLVERS = ["ddpm", "euler_maruyama", "dpmpp_2m_sde", "reverse_diffusion", "repeat"]


@pytest.mark.parametrize("name", SOLVERS)
def test_particles_sample_the_posterior_of_what_the_solver_samples(name):
    """Eight steps and a wrong idea of the data's variance: mean, variance and evidence are exact
    all the same. 1500 runs of 32: six standard errors; SMC's own bias, of order 1/32 of the
    posterior's deviation, is below a fifth of it."""
    solver = Repeat("ddpm", 2) if name == "repeat" else solvers.build(name)
    grid = pl.grids.uniform(8, start=0.9, last="denoise")
    law, m, v = discrete(solver, grid)
    y, std = f64([[1.0]]), 0.5
    guide = steer.PiGDM(ONE, y, std, variance=1.5)
    found = Particles(32).sample(law, 1500, guide=guide, solver=solver, grid=grid,
                                 dtype=torch.float64)  # fmt: skip
    gain = v / (v + std**2)
    exact, variance = m + gain * (1.0 - m), v * (1 - gain)
    runs = found.mean[:, 0]
    assert (
        abs(float(runs.mean()) - exact)
        < 6 * float(runs.std()) / 1500**0.5 + 0.2 * variance**0.5 / 32
    )
    assert float(found.x.var()) == pytest.approx(variance, rel=6 * (2 / 1500) ** 0.5 + 2 / 32)
    evidence = found.log_evidence.exp()
    density = torch.distributions.Normal(m, math.sqrt(v + std**2)).log_prob(f64(1.0)).exp()
    assert abs(float(evidence.mean() - density)) < 6 * float(evidence.std()) / 1500**0.5


def test_a_biased_guide_becomes_exact_on_two_modes():
    """The mean of what is free: the guide alone is off, particles are not.

    200 runs of 24, six standard errors and a hundredth for what is of order 1/24.
    """
    means, stds = f64([[-1.0, 1.0], [1.2, -0.4]]), f64([[0.2, 0.2], [0.7, 0.7]])
    law = pl.Mixture(VP, means, stds, f64([0.6, 0.4]))
    operator, y = operators.Dense(f64([[1.0, 0.5]])), f64([[-0.2]])
    guide = steer.PiGDM(operator, y, 0.3, variance=2.0)
    exact = float(posterior(law, operator, y, 0.3).mean[0, 1])
    how = {"grid": pl.grids.log_snr(40, last="denoise"), "dtype": torch.float64}
    alone = pl.sample(law, 1000, solver="ddpm", guide=guide, **how).x[:, 1]
    found = Particles(24).sample(law, 200, guide=guide, **how).mean[:, 1]
    assert abs(float(alone.mean()) - exact) > 0.05 + 6 * float(alone.std()) / 1000**0.5
    assert abs(float(found.mean()) - exact) < 0.01 + 6 * float(found.std()) / 200**0.5


@pytest.mark.parametrize("kind", ["loss", "classifier"])
def test_a_class_is_exact_too(kind):
    """p(x) p(c | x), for a soft class of two modes on a line: E[x] by quadrature."""
    law = pl.Mixture(VP, f64([[-1.0], [1.0]]), f64([[0.4], [0.4]]), f64([0.7, 0.3]))

    def logits(x, t):
        return torch.cat((x * 0, 1.5 * x), 1)

    def wrong(x):
        return torch.nn.functional.softplus(-1.5 * x[:, 0])

    guide = steer.Loss(wrong) if kind == "loss" else steer.Classifier(logits, 1)
    x = torch.linspace(-4, 4, 8001).double()[:, None]
    density = (law.log_prob(x, 0.0) - wrong(x)).exp()
    exact = float((density * x[:, 0]).sum() / density.sum())
    how = {"solver": "dpmpp_2m_sde", "grid": pl.grids.log_snr(60, last="denoise")}
    found = Particles(24).sample(law, 400, guide=guide, **how,
                                 dtype=torch.float64)  # fmt: skip
    runs = found.mean[:, 0]
    assert abs(float(runs.mean()) - exact) < 6 * float(runs.std()) / 400**0.5 + 0.02
    evidence = found.log_evidence.exp()
    z = float((density.sum() * 8 / 8000 - evidence.mean()) / (evidence.std() / 400**0.5))
    assert abs(z) < 6


def test_an_exact_guide_keeps_its_weights_even():
    """Where p̃ is p, weights differ by the steps' size only, and one particle is a sample."""
    law = pl.Gaussian(VP, f64([0.4]), f64([0.36]))
    guide = steer.PiGDM(ONE, f64([[1.0]]), 0.5, variance=0.36)
    found = Particles(16).sample(law, 20, guide=guide, steps=100, dtype=torch.float64)
    assert float(found.weights.max()) < 1.5 / 16 and int(found.resampled.max()) == 0


def how(**rest):
    law = pl.Mixture(VP, f64([[-1.0, 1.0], [1.2, -0.4]]), f64([[0.3, 0.3]] * 2), f64([0.5, 0.5]))
    guide = steer.DPS(operators.Dense(f64([[0.3, 1.0]])), f64([[0.35]]), 0.4)
    return law, {"guide": guide, "steps": 10, "dtype": torch.float64, **rest}


def test_a_run_depends_on_its_own_seed_alone():
    law, told = how()
    whole = Particles(8).sample(law, seeds=[3, 4, 5], **told)
    for i, seed in enumerate((3, 4, 5)):
        alone = Particles(8).sample(law, seeds=[seed], **told)
        torch.testing.assert_close(alone.x[0], whole.x[i], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(alone.log_evidence[0], whole.log_evidence[i])
        assert torch.equal(alone.ancestors[:, 0], whole.ancestors[:, i])


def test_the_ancestry_is_told():
    law, told = how()
    found = Particles(8, threshold=2.0).sample(law, 3, **told)
    assert found.ancestors.shape == (10, 3, 8) == (*found.ess.shape, 8)
    parents = found.ancestors[0, 1]
    for event in found.ancestors[1:]:
        parents = parents[event[1]]
    assert torch.equal(found.origins[1], parents)
    never = Particles(8, threshold=0.0).sample(law, 3, **told)
    assert int(never.resampled.max()) == 0
    assert torch.equal(never.origins, torch.arange(8).expand(3, 8))
    assert bool(((found.ess > 0) & (found.ess <= 1 + 1e-12)).all())
    assert found.stats.nfe == 10 and found.stats.vjps == 10
    told = json.loads(found.receipt.to_json())
    assert told["recipe"]["particles"] == {"n": 8, "threshold": 2.0, "resampling": "systematic"}
    assert told["recipe"]["guide"]["name"] == "dps" and told["recipe"]["solver"]["name"] == "ddim"


@pytest.mark.parametrize("resampling", ["systematic", "multinomial"])
def test_resampling_is_unbiased(resampling):
    """Each particle has n w children on average; systematic ones within one of it, always."""
    share = f64([0.5, 0.3, 0.15, 0.05]).expand(4000, 4)
    from pathline.steer.particles import _Run

    run = object.__new__(_Run)
    run.how, run.seeds = Particles(4, resampling=resampling), tuple(range(4000))
    children = torch.nn.functional.one_hot(run._chosen(share, 1), 4).sum(1).double()
    off = (children.mean(0) - 4 * share[0]) / (children.std(0) / 4000**0.5 + 1e-12)
    assert float(off.abs().max()) < 6
    if resampling == "systematic":
        assert float((children - 4 * share).abs().max()) < 1


def test_guidance_of_a_condition_belongs_to_the_prior():
    """CFG & DPS: the target is the guided model's law times the likelihood."""
    law = pl.Gaussian(VP, f64([0.4]), f64([0.36]))
    model = pl.Denoiser(
        lambda x, t, shift: law.evaluate(x, t[0].double(), {}) + shift, VP, "x0",
        null={"shift": torch.zeros(1, 1).double()}, shape=(1,),
    )  # fmt: skip
    guide = steer.CFG(2.0) & steer.DPS(ONE, f64([[1.0]]), 1.0)
    told = {"steps": 6, "dtype": torch.float64, "shift": torch.full((2, 1), 0.2).double()}
    found = Particles(4).sample(model, 2, guide=guide, **told)
    assert found.stats.network_calls == 12 and found.particles.shape == (2, 4, 1)


def test_what_cannot_be_weighed_is_refused():
    law, told = how()
    dps, clip = told["guide"], steer.Clip(-5.0, 5.0)
    exact = steer.PiGDM(operators.Dense(f64([[0.3, 1.0]])), f64([[0.35]]))
    cases = (
        (lambda: Particles(0), "one particle or more"),
        (lambda: Particles(threshold=-1.0), "a share of particles"),
        (lambda: Particles(resampling="residual"), "unknown way of resampling"),
        (lambda: Particles(2).sample(law, 1, **told | {"guide": clip}), "Clip has none"),
        (lambda: Particles(2).sample(law, 1, **told | {"guide": dps & clip}), "no likelihood"),
        (lambda: Particles(2).sample(law, 1, **told | {"guide": clip & dps}), "no likelihood"),
        (lambda: Particles(2).sample(law, 1, solver="ddim", **told), "a solver that draws noise"),
        (lambda: Particles(2).sample(law, 1, solver="edm", **told), "noise of its own"),
        (lambda: Particles(2).sample(law, 1, solver="dopri5", **told), "has no plan"),
        (lambda: Particles(2).sample(law, 1, **told | {"guide": exact}), "has no likelihood"),
        (lambda: Particles(2).sample(law, 2, seeds=[1], **told), "1 seeds were given"),
        (lambda: Particles(2).sample(pl.VectorField(lambda x, t: x), 1, **told), "on a path"),
        (lambda: posterior(pl.VectorField(lambda x, t: x), ONE, f64([[1.0]]), 0.1), "closed form"),
        (lambda: posterior(law, operators.Dense(f64([[1.0, 0.0]])), f64([[1.0, 2.0]]), 0.1),
         "y has 2"),
        (lambda: posterior(law, ONE, f64([[1.0]]), -1.0), "0 or more"),
    )  # fmt: skip
    for call, words in cases:
        with pytest.raises(UsageError, match=words):
            call()
    assert isinstance(dps, Twist) and not isinstance(clip, Twist)
    lost = steer.Loss(lambda x: x.square().sum(1) * torch.inf)
    with pytest.raises(NonFiniteError, match="take more particles"):
        Particles(2).sample(law, 1, **told | {"guide": lost})

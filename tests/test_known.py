"""What is known or measured of a sample, and classes, against exact posteriors."""

import json

import pytest
import torch
from torch import nn

import pathline as pl
from pathline.core import UsageError, noise
from pathline.paths import VE, CondOT, VPLinear
from pathline.solvers import PredictorCorrector, grids, solvers


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


COVARIANCE = 0.25 * f64([[1.0, 0.9], [0.9, 1.0]])


def law(path):
    return pl.Gaussian(path, f64([0.0, 0.0]), COVARIANCE)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "euler_maruyama", "dopri5", "pc"])
def test_what_is_known_comes_out_as_it_is(solver):
    known = pl.Known(f64([[0.6, 7.0]]), f64([1.0, 0.0]))
    made = law(VPLinear())
    sol = pl.sample(made, 3, solver=solver, steps=4, keep=known, dtype=torch.float64)
    alpha = float(made.path.alpha(made.path.t_min))
    assert (sol.x[:, 0] - alpha * 0.6).abs().max() < 1e-12
    free = pl.sample(made, 3, solver=solver, steps=4, dtype=torch.float64)
    assert (sol.x[:, 1] - free.x[:, 1]).abs().min() > 1e-6
    assert json.loads(json.dumps(dict(sol.receipt.recipe)))["keep"]["share"] == 0.5
    steps = list(pl.steps(made, 3, solver=solver, steps=4, keep=known, dtype=torch.float64))
    assert torch.equal(steps[-1].x, sol.x)
    alone = pl.sample(made, seeds=[2], solver=solver, steps=4, keep=known, dtype=torch.float64)
    assert torch.equal(alone.x, sol.x[2:])


def test_it_is_noised_afresh_at_every_update_and_exactly_as_the_path_says():
    known, path, seen = pl.Known(f64([[0.6, 0.0]]), f64([1.0, 0.0])), VE(), []
    grid = grids.log_snr(5)

    def look(step):
        seen.append(step.x[:, 0])

    pl.sample(
        law(path), 4000, solver="ddim", grid=grid, keep=known, dtype=torch.float64, observe=look
    )
    times = grid.times(path)[1:]
    for x, t in zip(seen[:-1], times, strict=False):
        sigma = float(path.sigma(t))
        assert abs(float(x.mean()) - 0.6) < 4 * sigma / 4000**0.5
        assert float(x.std()) == pytest.approx(sigma, rel=0.05)
    z = [(x - 0.6) / float(path.sigma(t)) for x, t in zip(seen[:-1], times, strict=False)]
    assert abs(float((z[0] * z[1]).mean())) < 4 / 4000**0.5
    assert torch.equal(seen[-1], torch.full_like(seen[-1], 0.6))


def test_corrections_carry_what_is_known_to_what_is_not():
    """The conditional mean is 0.54; without corrections it is missed whatever the steps."""
    known = pl.Known(f64([[0.6, 0.0]]), f64([1.0, 0.0]))
    means = [
        float(
            pl.sample(
                law(VE()),
                2000,
                solver=PredictorCorrector("reverse_diffusion", n=n, norms="batch"),
                grid=grids.log_snr(200),
                keep=known,
                dtype=torch.float64,
            )
            .x[:, 1]
            .mean()
        )
        for n in (0, 4)
    ]
    assert abs(means[0] - 0.54) > 0.1 and abs(means[1] - 0.54) < 0.03


def test_grey_is_the_mean_of_the_channels():
    """Noise pictures: colours are free, and their mean is what was given."""
    made = pl.Gaussian(VPLinear(), torch.zeros(48).double(), torch.ones(48).double())
    shaped = pl.Denoiser(
        lambda x, t: made.path.alpha(t.double()).view(-1, 1, 1, 1) * x, made.path, "x0"
    )  # x̂_0 = α x for N(0, I)
    grey = noise.uniform(range(2), (1, 4, 4), dtype=torch.float64).expand(2, 3, 4, 4)
    x = pl.sample(
        shaped, 2, shape=(3, 4, 4), steps=8, keep=pl.Known.grey(grey), dtype=torch.float64
    ).x
    alpha = float(made.path.alpha(made.path.t_min))
    torch.testing.assert_close(x.mean(1), alpha * grey[:, 0], rtol=0, atol=1e-12)
    assert (x - x.mean(1, keepdim=True)).std() > 0.3


@pytest.mark.parametrize("path", [VPLinear(), CondOT()])
@pytest.mark.parametrize("std", [0.0, 0.3])
def test_a_measurement_adds_its_own_score(path, std):
    """The term is the gradient of log N(α y; A x, σ² A Aᵀ + α² s² I), in every view."""
    a = f64([[1.0, 2.0], [0.5, -1.0]])
    y, t = f64([[0.3, -0.2]]), f64(0.4)
    x = noise.normal(range(3), (2,), dtype=torch.float64)
    plain, guide = law(path), pl.Measured(a, y, std)
    alpha, sigma = path.alpha(t), path.sigma(t)
    at = x.clone().requires_grad_()
    covariance = sigma**2 * a @ a.T + (alpha * std) ** 2 * torch.eye(2).double()
    density = torch.distributions.MultivariateNormal(at @ a.T, covariance)
    (term,) = torch.autograd.grad(density.log_prob(alpha * y).sum(), at)
    guided = guide(plain)(x, t)
    torch.testing.assert_close(guided.score, plain(x, t).score + term, rtol=1e-8, atol=1e-10)
    velocity = plain(x, t).velocity - 0.5 * path.diffusion_squared(t) * term
    torch.testing.assert_close(guided.velocity, velocity, rtol=1e-8, atol=1e-8)


def test_measurements_hold_of_samples():
    """One direction of two, without noise: samples have it, and follow it in the other."""
    a, y = f64([[1.0, 1.0]]), f64([[1.2]])
    x = pl.sample(
        law(VPLinear()),
        2000,
        solver=PredictorCorrector("euler_maruyama", n=1, norms="batch"),
        grid=grids.uniform(200),
        guide=pl.Measured(a, y),
        dtype=torch.float64,
    ).x
    assert (x.sum(1) - 1.2).abs().mean() < 0.02
    assert abs(float(x[:, 0].mean()) - 0.6) < 0.02
    exact = (0.25 * 0.1 / 2) ** 0.5  # the deviation of either, where their sum is known
    assert float(x[:, 0].std()) == pytest.approx(exact, rel=0.25)


class Exact(nn.Module):
    """log p_t(class | x) of a mixture, in closed form."""

    def __init__(self, mixture):
        super().__init__()
        self.mixture = mixture

    def forward(self, x, t):
        _, residual, variance = self.mixture._parts(x, t)
        return self.mixture._log_joint(residual, variance)


@pytest.mark.parametrize("path", [VPLinear(), VE()])
def test_an_exact_classifier_makes_the_class_of_the_mixture(path):
    """Posterior scores of component k are the component's own score."""
    means, stds = f64([[-1.0, 0.5], [1.0, 0.0], [0.0, -1.0]]), f64([[0.3, 0.4]] * 3)
    whole = pl.Mixture(path, means, stds, f64([0.2, 0.3, 0.5]))
    labels = [0, 2, 1, 2]
    guided = pl.Classifier(Exact(whole), labels)(whole)
    x = noise.normal(range(4), (2,), dtype=torch.float64)
    for k, label in enumerate(labels):
        part = pl.Gaussian(path, means[label], stds[label] ** 2)
        ours, exact = guided(x, 0.3).x0[k], part(x, 0.3).x0[k]
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)
    again = pl.sample(guided, 4, steps=60, dtype=torch.float64).x
    alone = [
        pl.sample(
            pl.Gaussian(path, means[c], stds[c] ** 2), seeds=[k], steps=60, dtype=torch.float64
        ).x
        for k, c in enumerate(labels)
    ]
    torch.testing.assert_close(again, torch.cat(alone), rtol=1e-6, atol=1e-6)


def test_gradients_go_through_a_classifier():
    mixture = pl.Mixture(VPLinear(), f64([[-1.0], [1.0]]), f64([[0.5], [0.5]]), f64([0.5, 0.5]))
    guided = pl.Classifier(Exact(mixture), 1, weight=2.0)(mixture)
    x = f64([[0.3], [-0.4]]).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: guided(x, 0.5).x0, (x,))


def test_guides_with_networks_have_receipts():
    made = law(VPLinear())
    for guide in (pl.Measured(f64([[1.0, 1.0]]), f64([[1.0]])), pl.Classifier(Exact(made), [1])):
        assert json.dumps(guide.describe())


def test_bad_input_is_told():
    ones, made = torch.ones(1, 2).double(), law(VPLinear())
    grey = torch.zeros(1, 3, 4, 4)
    told = (
        (lambda: pl.Known(ones, 0.5 * ones), "other than 0 and 1"),
        (lambda: pl.Known(ones, torch.ones(3)), r"mask of shape \(3,\) does not fit"),
        (lambda: pl.Known(ones * torch.nan, ones), "must be finite"),
        (lambda: pl.Known(ones, ones, torch.ones(2, 2)), "not orthonormal"),
        (lambda: pl.Known(ones, ones, torch.eye(3)), "the data have 2 channels"),
        (lambda: pl.Known.grey(grey[:, :1]), "expected grey pictures"),
        (lambda: pl.Known.grey(grey + torch.arange(3).view(3, 1, 1)), "with equal channels"),
        (
            lambda: pl.sample(made, 2, keep=pl.Known(torch.ones(1, 3), torch.ones(3))),
            "known data have the shape",
        ),
        (
            lambda: pl.solve(made, ones, keep=pl.Known(ones, ones), steps=2),
            "give a model, and seeds",
        ),
        (lambda: pl.Measured(torch.ones(2, 2), torch.ones(1, 3)), "do not fit"),
        (lambda: pl.Measured(std=-1.0), "0 or more"),
        (lambda: pl.Measured()(made)(ones, 0.5), "needs the measurements"),
        (lambda: pl.Measured(torch.ones(1, 3), ones[:, :1])(made)(ones, 0.5), "states of 3 el"),
        (lambda: pl.Classifier()(made)(ones, 0.5), "needs a classifier"),
        (lambda: pl.Classifier(lambda x, t: x, 2)(made)(ones, 0.5), "labels go from 0 to 1"),
        (lambda: pl.Classifier(lambda x, t: x, [0, 1])(made)(ones, 0.5), "2 labels were given"),
        (lambda: pl.Measured()(pl.VectorField(lambda x, t: x)), "a model on a path"),
        (lambda: PredictorCorrector(snr=0.0), "snr must be above 0"),
        (lambda: solvers.build("reverse_diffusions"), "reverse_diffusion"),
    )
    for call, words in told:
        with pytest.raises(UsageError, match=words):
            call()

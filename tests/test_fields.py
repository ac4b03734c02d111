"""Views, predictions, denoisers and exact fields, against closed forms."""

import itertools

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import pathline as pl
from pathline.fields import VIEWS, change, convert, problems, target
from pathline.fields.views import row
from pathline.paths import paths

ALL = [pytest.param(entry.build(), id=entry.name) for entry in paths]
GAUSSIAN = [case for case in ALL if case.values[0].kernel.is_gaussian]
PAIRS = list(itertools.product(VIEWS, VIEWS))


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("path", ALL)
@pytest.mark.parametrize(("source", "goal"), PAIRS)
def test_every_view_of_the_truth_becomes_every_other(path, source, goal):
    """With x = α x0 + σ ε, A x0 + B ε of one view must turn into C x0 + D ε of the other."""
    if "score" in (source, goal) and not path.kernel.is_gaussian:
        pytest.skip("it has no score: refused in test_pfgmpp.py")
    x0, eps = draws(5, 2, 3), draws(5, 2, 3, seed=1)
    t = torch.tensor([0.05, 0.2, 0.5, 0.7, 0.9], dtype=torch.float64)
    x = path.noised(x0, eps, t)
    found = convert(path, source, goal, x, target(path, source, x0, eps, t), t)
    torch.testing.assert_close(found, target(path, goal, x0, eps, t), rtol=1e-8, atol=1e-8)


def test_a_view_that_says_nothing_of_another_is_refused():
    x = draws(1, 3)
    with pytest.raises(pl.UsageError, match="x0 cannot be had from eps at t = 1"):
        convert(pl.CondOT(), "eps", "x0", x, x, 1.0)
    p, q = change(pl.CondOT(), "velocity", "x0", 1.0)  # but a flow network does say it
    assert (float(p), float(q)) == (1, -1)


def test_velocity_is_the_flow_of_the_path():
    path, t = pl.paths.SubVP(), torch.tensor(0.3, dtype=torch.float64)
    a, b = row(path, "velocity", t)
    assert float(a) == float(path.d_alpha(t)) and float(b) == float(path.d_sigma(t))


def test_an_unknown_view_gets_the_nearest_names():
    with pytest.raises(pl.UsageError, match="did you mean velocity"):
        pl.Denoiser(lambda x, t: x, pl.CondOT(), view="velocty")
    assert pl.Denoiser(lambda x, t: x, pl.VPLinear(), view="v_prediction").view == "v"


class TestDenoiser:
    def test_the_network_is_told_the_label_and_keeps_its_dtype(self):
        seen = []

        class Network(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.ones((), dtype=torch.bfloat16))

            def forward(self, x, t, **cond):
                seen.append((x.dtype, t, cond))
                return x * self.weight

        model = pl.Denoiser(Network(), pl.VPLinear(), view="eps", label=1000.0)
        prediction = model(draws(2, 3), torch.tensor([0.25, 0.5]), extra=draws(1, 4))
        dtype, label, cond = seen[0]
        assert dtype == torch.bfloat16 and label.tolist() == [250, 500]
        assert cond["extra"].shape == (2, 4) and cond["extra"].dtype == torch.bfloat16
        assert prediction.raw.dtype == torch.float64

    def test_the_scale_multiplies_what_the_network_sees(self):
        model = pl.Denoiser(lambda x, t: x, pl.EDM(), view="x0", scale=lambda t: 1 / (1 + t))
        x = draws(2, 3)
        torch.testing.assert_close(model(x, 0.5).x0, x / 1.5)

    def test_a_condition_of_the_wrong_size_is_refused(self):
        model = pl.Denoiser(lambda x, t, **_: x, pl.CondOT())
        with pytest.raises(pl.UsageError, match="'label' is for 3 samples, and the batch has 2"):
            model(draws(2, 3), 0.5, label=torch.zeros(3))

    @pytest.mark.parametrize("network", [None, 3])
    def test_a_network_must_be_callable(self, network):
        with pytest.raises(pl.UsageError, match="must be callable"):
            pl.Denoiser(network, pl.CondOT())

    def test_a_path_must_be_a_path(self):
        with pytest.raises(pl.UsageError, match="needs a path"):
            pl.Denoiser(lambda x, t: x, "cond_ot")


def law(mixture, t):
    """The mixture at time t, as torch's own distribution."""
    alpha, sigma = mixture.path.alpha(t), mixture.path.sigma(t)
    scale = ((alpha * mixture.stds) ** 2 + sigma**2).sqrt()
    parts = Independent(Normal(alpha * mixture.means, scale), 1)
    return MixtureSameFamily(Categorical(mixture.weights), parts)


@pytest.mark.parametrize("path", GAUSSIAN)
class TestOracles:
    def test_the_mixtures_density_is_torchs_and_its_score_is_the_gradient(self, path):
        mixture, x = problems.m4(path), draws(7, 3).requires_grad_()
        for t in (0.01, 0.4, 0.95):
            log_prob = mixture.log_prob(x, t)
            torch.testing.assert_close(log_prob, law(mixture, t).log_prob(x))
            (score,) = torch.autograd.grad(log_prob.sum(), x)
            torch.testing.assert_close(mixture(x, t).score, score, rtol=1e-7, atol=1e-7)

    def test_a_gaussian_is_a_mixture_of_one(self, path):
        mean, std = draws(3), draws(3, seed=1).abs() + 0.1
        gaussian = pl.Gaussian(path, mean, std**2)
        full = pl.Gaussian(path, mean, torch.diag(std**2))
        one = pl.Mixture(path, mean[None], std[None], torch.ones(1, dtype=torch.float64))
        x, t = draws(4, 3), torch.tensor([0.1, 0.4, 0.7, 0.9], dtype=torch.float64)
        torch.testing.assert_close(gaussian(x, t).x0, one(x, t).x0)
        torch.testing.assert_close(gaussian(x, t).x0, full(x, t).x0)

    def test_a_gaussians_denoiser_is_the_regression_of_data_on_noised_data(self, path):
        """E[x0 | x] = m + Cov(x0, x) Cov(x)⁻¹ (x − E x) with correlated dimensions."""
        root, mean, t = draws(3, 3), draws(3, seed=1), torch.tensor(0.4, dtype=torch.float64)
        covariance = root @ root.T
        alpha, sigma = path.alpha(t), path.sigma(t)
        x = draws(5, 3, seed=2)
        gain = (
            alpha
            * covariance
            @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(3, dtype=torch.float64))
        )
        expected = mean + (x - alpha * mean) @ gain.T
        torch.testing.assert_close(pl.Gaussian(path, mean, covariance)(x, t).x0, expected)

    def test_a_gaussians_flow_solves_its_own_equation(self, path):
        root = draws(3, 3)
        gaussian = pl.Gaussian(path, draws(3, seed=1), root @ root.T)
        x, t = draws(4, 3, seed=2), torch.tensor(0.4005, dtype=torch.float64)  # no table's corner
        h = 1e-6
        slope = (gaussian.flow(x, t, t + h) - gaussian.flow(x, t, t - h)) / (2 * h)
        torch.testing.assert_close(slope, gaussian(x, t).velocity, rtol=1e-6, atol=1e-6)
        back = gaussian.flow(gaussian.flow(x, 0.1, 0.9), 0.9, 0.1)
        torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)

    def test_a_data_set_is_a_mixture_of_points(self, path):
        points = draws(6, 2, 2)
        data = pl.Dataset(path, points)
        x, t = draws(3, 2, 2, seed=1), torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
        narrow = pl.Mixture(
            path, points.flatten(1), torch.full((6, 4), 1e-9), torch.full((6,), 1 / 6)
        )
        torch.testing.assert_close(data(x, t).x0.flatten(1), narrow(x.flatten(1), t).x0)


def test_a_mixture_must_fit_together():
    with pytest.raises(pl.UsageError, match="do not describe one mixture"):
        pl.Mixture(pl.CondOT(), torch.zeros(2, 3), torch.ones(3, 3), torch.ones(2))


def test_a_plain_field_has_only_a_velocity():
    field = pl.VectorField(lambda x, t: -x)
    with pytest.raises(pl.UsageError, match="has no x0"):
        _ = field(draws(2, 2), 0.0).x0


def test_data_of_a_law_follow_it():
    """Mean and covariance of 40 000 draws within 5.5 standard errors, false alarm below 1e-6."""
    n, mixture = 40_000, problems.m4(pl.VPLinear())
    root = torch.tensor([[1.0, 0.0], [0.8, 0.3]], dtype=torch.float64)
    gaussian = pl.Gaussian(pl.VPLinear(), torch.tensor([1.0, -2.0]).double(), root @ root.T)
    w, m = mixture.weights[:, None], mixture.means
    centre = (w * m).sum(0)
    spread = (w[..., None] * (m[:, :, None] * m[:, None])).sum(0) - torch.outer(centre, centre)
    spread = spread + (w * mixture.stds**2).sum(0).diag()
    for law, mean, covariance in [
        (gaussian, gaussian.mean, gaussian.covariance),
        (mixture, centre, spread),
    ]:
        x = law.draw(range(n))
        assert torch.equal(x[7:9], law.draw([7, 8]))
        error = (covariance.diagonal() / n).sqrt()
        assert bool(((x.mean(0) - mean).abs() < 5.5 * error).all())
        scale = covariance.diagonal().sqrt()
        off = ((x.T.cov() - covariance) / torch.outer(scale, scale)).abs().max()
        assert float(off) < 5.5 * (3 / n) ** 0.5  # fourth moments are 3 at most here

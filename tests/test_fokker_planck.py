"""The Fokker-Planck residual against closed forms, potentials, and who cannot be asked."""

import math

import pytest
import torch
from torch import nn

import pathline as pl
from pathline.core import noise
from pathline.fields import FokkerPlanck, potential_of, residuals
from pathline.fields.denoiser import Denoiser
from pathline.fields.fokker_planck import score_of, squared
from pathline.fields.problems import e16, m4
from pathline.fields.trace import Exact, Hutchinson, HutchPP
from pathline.nets import MLP, Potential
from pathline.nets.potential import Baseline
from pathline.paths import EDM, CondOT, OrnsteinUhlenbeck, PFGMpp, VPLinear
from pathline.solvers import sample
from pathline.steer import Clip

OU = OrnsteinUhlenbeck(horizon=4.0)


def drawn(n, dim, index=0):
    return noise.normal(range(n), (dim,), stream="probe", index=index, dtype=torch.float64)


def seeded(make):
    """A module whose weights are always the same, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().double()


def wavy(dim=2):
    """A potential that solves no equation, and its field on OU."""
    net = seeded(lambda: Potential(dim, width=16, depth=2, baseline={"near": 1.2, "far": 0.5}))
    return Denoiser(net, OU, "score", label=OU.horizon, shape=(dim,))


# -- the residual ---------------------------------------------------------------------------------


def test_a_linear_score_s_residual_is_its_closed_form():
    """φ = −a‖x‖²/2 on OU: R = k‖x‖² + d(a/2 − 1), k = a − a²/2 − a'/2, in the path's clock."""
    x, clock = drawn(50, 3), torch.linspace(0.05, 3.9, 50, dtype=torch.float64)

    def a(t):
        return 2 + (OU.horizon * t).sin()

    found = FokkerPlanck(OU).of_potential(
        lambda x, t: -a(t) * x.square().sum(1) / 2, x, clock / OU.horizon
    )
    now, slope = 2 + clock.sin(), clock.cos()
    k = now - now**2 / 2 - slope / 2
    exact = k * x.square().sum(1) + 3 * (now / 2 - 1)
    torch.testing.assert_close(found[:, 0], OU.horizon * exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", [VPLinear(), CondOT(), EDM(sigma_max=3.0), OU])
def test_exact_densities_have_none(path):
    """As potentials and as plain scores, in both clocks: 1e-9 of terms of size 10²."""
    law = m4(path)
    plain = Denoiser(lambda x, t: law(x, t).x0, path, "x0", shape=(3,))
    x = law.draw(range(40))
    t = torch.linspace(path.t_min + 0.05, 0.95 * path.t_max, 40, dtype=torch.float64)
    x = path.noised(x, drawn(40, 3), t)
    for per in ("time", "log_snr"):
        equation = FokkerPlanck(path, per=per)
        assert potential_of(plain) is None
        for model in (law, plain):
            assert float(equation.of(model, x, t).detach().abs().max()) < 1e-9


def test_the_vector_form_is_the_gradient_of_the_scalar_one():
    model, x = wavy(), drawn(20, 2).requires_grad_()
    t = torch.linspace(0.05, 0.9, 20, dtype=torch.float64)
    phi = potential_of(model)
    assert phi is not None
    for per in ("time", "log_snr"):
        equation = FokkerPlanck(OU, per=per)
        scalar = equation.of_potential(phi, x, t)
        (exact,) = torch.autograd.grad(scalar.sum(), x)
        vector = equation.of_score(score_of(model), x.detach(), t)
        torch.testing.assert_close(vector[:, 0], exact, rtol=1e-9, atol=1e-9)


def test_per_log_snr_is_per_unit_of_it():
    """R_λ = R/|λ'|, λ' by differences."""
    model, x, t, h = wavy(), drawn(5, 2), torch.full((5,), 0.3).double(), 1e-6
    slope = (OU.log_snr(0.3 + h) - OU.log_snr(0.3 - h)) / (2 * h)
    each = [FokkerPlanck(OU, per=per).of(model, x, t) for per in ("time", "log_snr")]
    torch.testing.assert_close(each[1], each[0] / slope.abs(), rtol=1e-8, atol=0)


@pytest.mark.parametrize("trace", [Hutchinson(2), Hutchinson(5, "gaussian"), HutchPP(6)])
def test_halves_estimate_the_square_without_bias(trace):
    """The mean of 8000 products within five of its standard errors; one in 10⁶ would not be."""
    law = e16(VPLinear())
    x, t = law.draw([3]), torch.tensor(0.6, dtype=torch.float64)

    def bent(x, t):
        return law.log_prob(x, t) + (x[:, :8] ** 3).sum(1) / 20

    exact = FokkerPlanck(law.path, Exact()).of_potential(bent, x, t)
    n = 8_000
    made = FokkerPlanck(law.path, trace).of_potential(bent, x.expand(n, -1), t, range(n))
    for found, wanted in (
        (made.mean(1), float(exact)),
        (squared(made), float(exact) ** 2),
    ):
        assert found.shape == (n,)
        assert abs(float(found.mean()) - wanted) < 5 * float(found.std()) / math.sqrt(n)
    assert float(made.square().mean()) > float(exact) ** 2 + 5 * float(
        made.square().mean(1).std()
    ) / math.sqrt(n)  # what one estimate squared would say


def test_hutch_pp_is_unbiased():
    """Of a matrix that is not positive, 40000 seeds: within five standard errors, which are 2 %."""
    a = drawn(16, 16, 5)
    a, n, trace = a + a.T, 40_000, HutchPP(6)
    x = torch.zeros(n, 16, dtype=torch.float64)
    with torch.no_grad():
        _, made = trace.of(lambda x: x @ a, x, trace.probes(range(n), (16,), x.dtype, x.device))
    each = made.mean(1)
    off = abs(float(each.mean() - a.trace()))
    assert off < 5 * float(each.std()) / math.sqrt(n) < 0.1 * float(a.norm())


def test_its_gradient_is_that_of_differences():
    """Of E R² and E ‖∇R‖² by one weight, central differences in float64."""
    model, x = wavy(), drawn(8, 2)
    weight = model.network.rest.layers[0][0].weight
    phi = potential_of(model)

    def total(form):
        equation = FokkerPlanck(OU)
        made = (
            equation.of_potential(phi, x, 0.3)
            if form == "scalar"
            else equation.of_score(score_of(model), x, 0.3)
        )
        return squared(made).mean()

    for form in ("scalar", "vector"):
        (slope,) = torch.autograd.grad(total(form), weight)
        h, found = 1e-5, []
        for sign in (1, -1):
            with torch.no_grad():
                weight[3, 1] += sign * h
                found.append(float(total(form)))
                weight[3, 1] -= sign * h
        assert float(slope[3, 1]) == pytest.approx((found[0] - found[1]) / (2 * h), rel=1e-5)


def test_without_gradients_it_is_the_same_and_keeps_no_graph():
    model, x = wavy(), drawn(4, 2)
    kept = FokkerPlanck(OU).of(model, x, 0.2)
    with torch.no_grad():
        plain = FokkerPlanck(OU).of(model, x, 0.2)
    assert kept.requires_grad and not plain.requires_grad
    assert torch.equal(kept.detach(), plain)


# -- by time --------------------------------------------------------------------------------------


def test_residuals_by_time_are_the_closed_form_of_a_wrong_gaussian():
    """∇R = 2k x for s = −a x; R − E R = k (‖x‖² − E‖x‖²), of variance 2 d k² v².

    With 4000 samples one standard error is 1.6 % of the first and 3.5 % of the second.
    """
    a, d, n = 1.7, 2, 4000
    k = a - a**2 / 2
    data = 0.6 * drawn(n, d)
    for network, power in ((lambda x, t: -a * x, 2), (None, 4)):
        field = Denoiser(network, OU, "score") if network else linear(a)
        found = residuals(field, data, [0.1, 0.5])
        v = OU.alpha(found.t) ** 2 * 0.36 + OU.sigma(found.t) ** 2
        exact = 4 * k**2 * d * v if power == 2 else 2 * d * k**2 * v**2
        rate = OU.horizon**2
        torch.testing.assert_close(
            found.mean_square / rate, exact, rtol=0.06 if power == 2 else 0.14, atol=0
        )
        assert found.of_potential == (power == 4)
        assert bool((found.standard_error / found.mean_square < 0.06).all())
        assert bool(found.mean.isnan().all()) == (power == 2)


def linear(a):
    net = Potential(2, width=4, depth=1, baseline={"near": 1 / a, "far": 1 / a}).double()
    nn.init.zeros_(net.rest.layers[-1].weight)
    return Denoiser(net, OU, "score", label=OU.horizon)


def test_residuals_of_a_guided_model_and_of_one_on_the_straight_path():
    law = m4(CondOT())
    model = Denoiser(lambda x, t: law(x, t).x0, CondOT(), "x0", shape=(3,))
    guided = Clip(-100.0, 100.0)(model)
    found = residuals(guided, law.draw(range(16)))
    assert len(found.t) == 10 and float(found.t.max()) < 1  # α = 0 at the end is left out
    assert found.total < 1e-12
    assert found.to_dict()["of"] == "∇R"


# -- who cannot be asked --------------------------------------------------------------------------


def refused(network, says, view="score", dim=2):
    with pytest.raises(pl.UsageError, match=says):
        residuals(Denoiser(network, OU, view), drawn(4, dim), [0.3])


def plain(activation):
    return seeded(lambda: Net(activation))


class Net(nn.Module):
    def __init__(self, activation, embed=False):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), activation, nn.Linear(8, 2))
        self.embed = nn.Embedding(100, 1) if embed else None

    def forward(self, x, t):
        t = t[:, None] if self.embed is None else self.embed((99 * t).long())
        return self.layers(torch.cat((x, t.to(x)), 1))


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (nn.ReLU(), "ReLU"),
        (nn.LeakyReLU(), "LeakyReLU"),
        (nn.ReLU6(), "ReLU6"),
        (nn.PReLU(), "PReLU"),
        (nn.Hardsigmoid(), "Hardsigmoid"),
    ],
)
def test_activations_of_straight_pieces_are_refused(activation, name):
    refused(plain(activation), f"{name}, whose second derivatives vanish.*Softplus or SiLU")


def test_smooth_activations_are_taken():
    for activation in (nn.SiLU(), nn.Softplus(), nn.Tanh()):
        assert residuals(Denoiser(plain(activation), OU, "eps"), drawn(4, 2), [0.3]).total > 0


def test_discrete_times_are_refused():
    refused(seeded(lambda: Net(nn.SiLU(), embed=True)), "∂_t undefined: .*discrete times")
    smooth = plain(nn.SiLU())
    refused(lambda x, t: smooth(x, (99 * t).round() / 99), "∂_t undefined")


def test_a_network_that_ignores_the_time_is_taken():
    """N(0, I) on a path that keeps it: its score is −x at any time, and ∂_t is zero for good."""
    model = Denoiser(lambda x, t: -x, VPLinear(), "score")
    assert residuals(model, drawn(32, 2), [0.2, 0.7]).total < 1e-20


def test_numbers_without_gradients_are_refused():
    smooth = plain(nn.SiLU())
    refused(lambda x, t: smooth(x, t).detach(), "cannot be derived by its state")


def test_many_dimensions_need_a_potential_or_an_estimate():
    net = seeded(lambda: MLP(16, width=8, depth=1, sharpness=3.0))
    refused(net, "up to 8 dimensions; this state has 16.*nets.Potential", dim=16)
    equation = FokkerPlanck(OU, Hutchinson(4))
    x = drawn(4, 16)
    assert residuals(Denoiser(net, OU, "score"), x, [0.3], equation=equation).t.shape == (1,)
    assert residuals(wavy(16), x, [0.3]).of_potential  # estimated by itself


def test_a_network_with_attention_is_looked_at_by_its_products():
    """The vector form derives the score twice; the same attention, without torch's call."""

    class Attends(nn.Module):
        def __init__(self, fused):
            super().__init__()
            self.inner, self.fused = (
                seeded(lambda: MLP(16, width=32, depth=1, sharpness=3.0)),
                fused,
            )

        def forward(self, x, t):
            q = self.inner(x, t).view(len(x), 1, 8, 2)
            if self.fused:
                return nn.functional.scaled_dot_product_attention(q, q, q).reshape(x.shape)
            return ((q @ q.transpose(2, 3) / math.sqrt(2)).softmax(3) @ q).reshape(x.shape)

    x, equation = drawn(4, 16), FokkerPlanck(OU, Hutchinson(4))
    models = (Denoiser(Attends(fused).double(), OU, "score") for fused in (True, False))
    found, exact = (residuals(m, x, [0.3], equation=equation).total for m in models)
    assert found == pytest.approx(exact, rel=1e-10) and exact > 1e-3


def test_other_bad_input_is_told():
    score = score_of(Denoiser(plain(nn.SiLU()), OU, "score"))
    for call, words in (
        (lambda: FokkerPlanck(OU).of_potential(score, drawn(4, 2), 0.3), "of_score, which serves"),
        (lambda: FokkerPlanck(PFGMpp(dof=8.0)), "only Gaussian noise"),
        (lambda: FokkerPlanck(OU, per="sigma"), "choose 'time' or 'log_snr'"),
        (lambda: residuals(pl.VectorField(lambda x, t: -x), drawn(4, 2)), "give a model on a path"),
        (lambda: residuals(m4(CondOT()), drawn(4, 3), [1.0]), "where α or σ vanishes"),
        (lambda: Baseline(near=0.0), "variances are above 0"),
        (lambda: MLP(2, sharpness=0.0), "sharpness"),
        (lambda: OrnsteinUhlenbeck(horizon=0), "horizon and std"),
    ):
        with pytest.raises(pl.UsageError, match=words):
            call()


# -- potentials -----------------------------------------------------------------------------------


def test_a_potential_s_score_is_its_gradient_in_any_mode():
    net, x, t = wavy().network, drawn(6, 2).requires_grad_(), torch.rand(6).double()
    (exact,) = torch.autograd.grad(net.potential(x, t).sum(), x)
    made = net(x, t)
    assert made.requires_grad and torch.equal(made.detach(), exact)
    with torch.no_grad():
        assert torch.equal(net(x, t), exact) and not net(x, t).requires_grad
    with torch.inference_mode():
        assert torch.equal(net(x + 0, t + 0), exact)
    net.requires_grad_(False)
    assert torch.equal(net(x.detach(), t), exact)


def test_a_potential_that_is_its_baseline_samples_gaussian_data():
    """On OU told its own clock the baseline is exact: sampled as the exact denoiser is."""
    net = seeded(lambda: Potential(2, baseline={"near": 0.09, "far": 0.5, "rate": 2.0}))
    nn.init.zeros_(net.rest.layers[-1].weight)
    model = Denoiser(net, OU, "score", label=OU.horizon, shape=(2,))
    law = pl.Gaussian(OU, torch.zeros(2).double(), torch.full((2,), 0.09, dtype=torch.float64))
    with torch.no_grad():
        made, exact = (sample(m, 8, steps=8, dtype=torch.float64) for m in (model, law))
    torch.testing.assert_close(made.x, exact.x, rtol=1e-9, atol=1e-9)
    assert made.stats.vjps == made.stats.nfe == 8 and exact.stats.vjps == 0


def test_sampling_a_potential_can_be_differentiated():
    model, x = wavy(), drawn(2, 2).requires_grad_()

    def end(x):
        return pl.solve(model, x, steps=3).x

    assert torch.autograd.gradcheck(end, (x,), atol=1e-6)


# -- the path -------------------------------------------------------------------------------------


def test_the_ornstein_uhlenbeck_path_is_the_one_of_the_paper():
    """f = −1 and g = 1 in a clock of ten, towards N(0, ½ I); with s = 1 it preserves variance."""
    path, t = OrnsteinUhlenbeck(), torch.linspace(0.01, 1, 7, dtype=torch.float64)
    torch.testing.assert_close(path.drift(t) / 10, torch.full_like(t, -1.0))
    torch.testing.assert_close(path.diffusion_squared(t) / 10, torch.ones_like(t))
    assert float(path.sigma(1.0)) == pytest.approx(math.sqrt(0.5), rel=1e-8)
    vp = OrnsteinUhlenbeck(3.0, std=1.0)
    torch.testing.assert_close(vp.alpha(t) ** 2 + vp.sigma(t) ** 2, torch.ones_like(t))


def test_its_small_times_do_not_cancel():
    import mpmath

    mpmath.mp.dps = 60
    t = mpmath.mpf(1e-9)
    alpha = mpmath.exp(-10 * t)
    sigma = mpmath.sqrt((1 - alpha**2) * mpmath.mpf(OrnsteinUhlenbeck().std) ** 2)
    assert float(OrnsteinUhlenbeck().sigma(1e-9)) == pytest.approx(float(sigma), rel=1e-12)
    level = float(mpmath.log(alpha / sigma))
    assert float(OrnsteinUhlenbeck().log_snr(1e-9)) == pytest.approx(level, rel=1e-13)

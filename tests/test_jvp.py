"""Derivatives of fields, against closed forms, autograd and the flow itself."""

import itertools

import pytest
import torch
from tiny_model import tiny_model

import pathline as pl
from pathline.core import noise
from pathline.fields import problems
from pathline.fields.jvp import diagonal, exact_diagonal, jvp, time_per_log_snr
from pathline.paths import paths

VP = pl.VPLinear()
both = pytest.mark.parametrize("method", ["forward", "difference"])


def starts(n=4, shape=(3,), index=0):
    return noise.normal(range(n), shape, index=index, dtype=torch.float64)


@both
def test_along_state_and_time_of_a_polynomial(method):
    """F = t² x³ has dF = 3 t² x² dx + 2 t x³ dt, with a time for each sample."""
    field = pl.VectorField(lambda x, t: t**2 * x**3)
    x, dx = starts(), starts(index=1)
    t, dt = torch.rand(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value, found = jvp(field, x, t, dx, dt, method=method)
    a, b = t[:, None], dt[:, None]
    torch.testing.assert_close(value, a**2 * x**3)
    exact = 3 * a**2 * x**2 * dx + 2 * a * x**3 * b
    torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-8)  # ε^⅔ of the difference


@both
@pytest.mark.parametrize("view", ["eps", "x0", "v", "score", "velocity"])
@pytest.mark.parametrize("path", ["vp_linear", "cond_ot", "edm", "tabulated_linear"])
def test_gaussian_data_in_every_view(path, view, method):
    """x̂_0 = α c x/(α²c + σ²); its derivative by autograd of that formula, in the same view."""
    path, c = paths.build(path), torch.tensor([0.09, 1.0, 4.0], dtype=torch.float64)
    law, x, dx = pl.Gaussian(path, torch.zeros(3), c), starts(), starts(index=1)
    t, dt = torch.tensor([0.3704, 0.6001], dtype=torch.float64).unbind()

    def told(x, t):
        x0 = path.alpha(t) * c * x / (path.alpha(t) ** 2 * c + path.sigma(t) ** 2)
        return pl.Prediction(x, t, x0, "x0", path).of(view)

    point = (x.requires_grad_(), t.requires_grad_())
    exact = torch.autograd.functional.jvp(told, point, (dx, dt))[1]
    found = jvp(law, x.detach(), t.detach(), dx, dt, view=view, method=method)[1]
    scale = float(exact.abs().max())
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-7 * scale)


def test_the_derivative_along_the_flow_is_the_change_along_the_flow():
    """dε̂/dλ on the probability flow, by a central difference over the flow's closed form."""
    law = pl.Gaussian(VP, torch.tensor([0.7, -0.4]), torch.tensor([0.09, 4.0]).double())
    t, h = torch.tensor(0.4, dtype=torch.float64), 1e-4
    x = starts(shape=(2,))
    dt = time_per_log_snr(VP, t)
    dx = dt * law(x, t).velocity
    _, found = jvp(law, x, t, dx, dt, view="eps")
    ends = [VP.time_of_log_snr(VP.log_snr(t) + step) for step in (h, -h)]
    after, before = (law(law.flow(x, t, end), end).eps for end in ends)
    torch.testing.assert_close(found, (after - before) / (2 * h), rtol=0, atol=1e-7)


def double_model(folder):
    tiny_model(folder, conditional=False)
    model = pl.load(str(folder))
    model.network.double()
    return model


def test_through_attention_and_the_embedding_of_time(tmp_path):
    """A transformer with fused attention; it turns 1000 t into waves, in float32."""
    model, x, t = double_model(tmp_path / "tiny"), starts(2, (3, 8, 8)), 0.3
    dx, h = starts(2, (3, 8, 8), 1), 1e-4
    found = [jvp(model, x, t, dx, 0.0, view="eps", method=m) for m in ("forward", "difference")]
    torch.testing.assert_close(found[0][0], model(x, t).eps)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=1e-8)
    in_time = jvp(model, x, t, torch.zeros_like(x), 1.0, view="eps")[1]
    change = (model(x, t + h).eps - model(x, t - h).eps) / (2 * h)
    largest = float(in_time.abs().max())  # the fastest wave turns by 0.1: right to 0.1²/6
    torch.testing.assert_close(in_time, change, rtol=0, atol=5e-3 * largest)
    both = jvp(model, x, t, dx, 1.0, view="eps")[1]
    torch.testing.assert_close(both, found[0][1] + in_time)
    assert largest > 0.1


def test_labels_between_the_table_s_are_real_numbers():
    """A network that is told n has F = n x, and between the nodes dn/dt = N."""
    path = pl.paths.Tabulated.linear()
    model = pl.Denoiser(lambda x, n: n[:, None] * x, path, view="eps", label=path.label)
    x, t = starts(), torch.tensor(0.31415, dtype=torch.float64)
    _, found = jvp(model, x, t, torch.zeros_like(x), 1.0)
    torch.testing.assert_close(found, 1000 * x)


class Opaque(torch.autograd.Function):
    """A square without a forward-mode derivative."""

    @staticmethod
    def forward(x):
        return x**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass


def test_a_network_without_forward_mode_is_offered_differences():
    field = pl.VectorField(lambda x, t: Opaque.apply(x))
    x, dx = starts(), starts(index=1)
    with pytest.raises(pl.UsageError, match="method='difference'"):
        jvp(field, x, 0.5, dx, 0.0)
    found = jvp(field, x, 0.5, dx, 0.0, method="difference")[1]
    torch.testing.assert_close(found, 2 * x * dx, rtol=0, atol=1e-8)


def test_a_network_that_breaks_says_so_itself():
    field = pl.VectorField(lambda x, t: x @ torch.ones(5, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="size mismatch"):
        jvp(field, starts(), 0.5, starts(), 1.0)


def test_differences_work_with_the_precision_of_the_network():
    """A float32 network: a step for float64 would return noise."""
    network = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    network.requires_grad_(False)
    model = pl.Denoiser(Timeless(network), VP)
    x, dx = starts(), starts(index=1)
    found = [jvp(model, x, 0.5, dx, 0.0, method=m)[1] for m in ("forward", "difference")]
    torch.testing.assert_close(*found, rtol=0, atol=1e-3)


class Timeless(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, t):
        return self.network(x)


MATRIX = torch.tensor([[2.0, 1.0, -1.0], [0.5, -3.0, 0.25], [1.5, 0.0, 0.7]], dtype=torch.float64)


def test_the_estimate_is_exact_where_the_jacobian_is_diagonal():
    field, x = pl.VectorField(lambda x, t: x**3), starts()
    torch.testing.assert_close(diagonal(field, x, 0.5, seeds=range(4)), 3 * x**2)


def test_the_estimate_is_unbiased_with_the_stated_variance():
    """Of v ⊙ M v: the mean is diag M, the variance the sum of the row's other squares."""
    field, x = pl.VectorField(lambda x, t: x @ MATRIX.T), starts(4000)
    found = diagonal(field, x, 0.5, seeds=range(4000))
    variance = MATRIX.square().sum(1) - MATRIX.diagonal().square()
    z = (found.mean(0) - MATRIX.diagonal()) / (variance / 4000).sqrt()
    assert float(z.abs().max()) < 5  # one false alarm in a million
    torch.testing.assert_close(found.var(0), variance, rtol=0.1, atol=0)
    four = diagonal(field, x, 0.5, seeds=range(4000), n_probes=4)
    torch.testing.assert_close(four.var(0), variance / 4, rtol=0.1, atol=0)


def test_a_sample_s_probes_are_its_own():
    field = pl.VectorField(lambda x, t: x @ MATRIX.T)
    together = diagonal(field, starts(3), 0.5, seeds=[7, 8, 9], n_probes=3)
    alone = diagonal(field, starts(1), 0.5, seeds=[9], n_probes=3)
    torch.testing.assert_close(together[2:], alone, rtol=0, atol=1e-15)


def test_all_signs_together_are_the_exact_diagonal():
    """Averaged over all 2³ sign patterns the estimator is its own expectation."""
    field, x = problems.m4(VP), starts(1)
    exact = exact_diagonal(field, x, 0.4)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)), dtype=torch.float64)
    mean = sum(v * jvp(field, x, 0.4, v[None], 0.0)[1] for v in signs) / 8
    torch.testing.assert_close(mean, exact)
    jacobian = torch.autograd.functional.jacobian(lambda x: field(x, 0.4).x0, x)[0, :, 0]
    torch.testing.assert_close(exact[0], jacobian.diagonal())


def test_signs_are_signs():
    v = noise.rademacher(range(100), (50,), dtype=torch.float64)
    assert set(v.flatten().tolist()) == {-1.0, 1.0}
    assert abs(float(v.mean())) < 5 / 5000**0.5
    assert not torch.equal(v, noise.rademacher(range(100), (50,), index=1, dtype=torch.float64))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda f, x: jvp(f, x, 0.5, x, 1.0, method="adjoint"), "choose 'forward' or"),
        (lambda f, x: jvp(f, x, 0.5, x, 1.0, view="eps"), "has no eps"),
        (lambda f, x: diagonal(f, x, 0.5, seeds=range(4), n_probes=0), "at least 1 probe"),
        (lambda f, x: exact_diagonal(f, torch.zeros(1, 2000), 0.5), "more than 1024"),
    ],
)
def test_what_cannot_work_is_refused(call, says):
    with pytest.raises(pl.UsageError, match=says):
        call(pl.VectorField(lambda x, t: x), starts())


def test_nothing_moves_where_nothing_is_moved():
    field, x = pl.VectorField(lambda x, t: t * x), starts()
    assert not jvp(field, x, 0.5, torch.zeros_like(x), 0.0, method="difference")[1].any()

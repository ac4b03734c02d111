"""Operators against dense algebra and torch's own; guides against exact posteriors."""

import json
import math

import pytest
import torch
from torch.nn import functional

import pathline as pl
from pathline import steer
from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.paths import VE, CondOT
from pathline.solvers import solvers
from pathline.steer import Repeat, operators

VP = pl.VPLinear()


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def drawn(n, *shape, index=0):
    return noise.normal(range(n), shape, index=index, dtype=torch.float64)


def cross():
    mask = torch.zeros(8, 8, dtype=torch.float64)
    mask[2:5] = 1
    return mask


# --- operators -----------------------------------------------------------------------------------

OPERATORS = {
    "mask": (operators.Mask(cross()), (1, 8, 8)),
    "pooling": (operators.Pooling(2), (3, 8, 4)),
    "cubic": (operators.Cubic(4), (2, 16, 8)),
    "blur": (operators.Blur(0.6), (1, 8, 6)),
    "luma": (operators.Luma(), (3, 4, 5)),
    "dense": (operators.Dense(drawn(5, 12, index=3), (3, 4)), (3, 4)),
}
each_operator = pytest.mark.parametrize("name", OPERATORS)


def written_out(operator, shape):
    """A as a matrix, column by column."""
    n = math.prod(shape)
    return operator.forward(torch.eye(n, dtype=torch.float64).reshape(n, *shape)).flatten(1).T


def test_every_registered_operator_is_measured():
    assert {entry.name for entry in operators.operators} == set(OPERATORS)


@each_operator
def test_adjoint_and_pseudo_inverse_are_those_of_the_matrix(name):
    operator, shape = OPERATORS[name]
    x, a = drawn(2, *shape), written_out(operator, shape)
    y = operator.forward(x)
    u = drawn(2, *y.shape[1:], index=7)
    torch.testing.assert_close(y.flatten(1), x.flatten(1) @ a.T)
    torch.testing.assert_close(operator.adjoint(u).flatten(1), u.flatten(1) @ a)
    exact = u.flatten(1) @ torch.linalg.pinv(a).T
    torch.testing.assert_close(operator.pinv(u).flatten(1), exact, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(operator.forward(operator.lifted(y)), y, rtol=1e-7, atol=1e-7)
    assert json.dumps(operator.describe())


@each_operator
def test_the_bracket_is_solved(name):
    operator, shape = OPERATORS[name]
    a, r = written_out(operator, shape), operator.forward(drawn(2, *shape))
    inner = f64([0.7, 2.0])[:, None, None] * (a @ a.T) + 0.3 * torch.eye(len(a)).double()
    exact = torch.linalg.solve(inner, r.flatten(1)[..., None])[..., 0]
    weight = f64([0.7, 2.0]).reshape(-1, *[1] * (r.ndim - 1))
    torch.testing.assert_close(operator.solved(r, weight, 0.3).flatten(1), exact)


def test_resizing_is_that_of_torch():
    x = drawn(2, 3, 16, 8)
    small = functional.interpolate(x, scale_factor=0.25, mode="bicubic", antialias=True)
    torch.testing.assert_close(operators.Cubic(4).forward(x), small)
    torch.testing.assert_close(operators.Pooling(4).forward(x), functional.avg_pool2d(x, 4))


def test_blur_is_a_mirrored_gaussian():
    """Against a convolution of the picture with its mirror images around it."""
    x, reach = drawn(2, 1, 8, 8), 2
    off = torch.arange(-reach, reach + 1).double()
    weights = torch.exp(-((off / 0.6) ** 2) / 2)
    weights /= weights.sum()
    wide = torch.cat((x.flip(-1), x, x.flip(-1)), -1)
    wide = torch.cat((wide.flip(-2), wide, wide.flip(-2)), -2)
    made = functional.conv2d(wide, torch.outer(weights, weights)[None, None], padding=reach)
    torch.testing.assert_close(operators.Blur(0.6).forward(x), made[..., 8:16, 8:16])


def test_replacing_the_luma_keeps_the_colours():
    """Y'CbCr: luma is the given one, and B − Y and R − Y are those of before."""
    x, y, luma = drawn(2, 3, 4, 4), drawn(2, 1, 4, 4, index=5), operators.Luma()
    made = x + luma.lifted(y - luma.forward(x))
    torch.testing.assert_close(luma.forward(made), y)
    torch.testing.assert_close(made - y, x - luma.forward(x))


def test_stacked_operators_are_one():
    parts = (operators.Pooling(4), operators.Mask(cross()))
    both, x = operators.Dense.stacked(parts, (1, 8, 8)), drawn(2, 1, 8, 8)
    y = torch.cat([part.forward(x).flatten(1) for part in parts], 1)
    torch.testing.assert_close(both.forward(x), y)
    guide, start = steer.Projection(both, y[:1]), drawn(1, 1, 8, 8, index=4)
    end = guide.projected(start)
    for part in parts:
        torch.testing.assert_close(part.forward(end), part.forward(x[:1]), rtol=1e-9, atol=1e-9)


# --- exact posteriors ----------------------------------------------------------------------------


def gaussian(path, isotropic=False):
    root = drawn(3, 3, index=2)
    covariance = 0.4 * torch.eye(3).double() if isotropic else root @ root.T / 3
    return pl.Gaussian(path, f64([0.5, -0.3, 0.1]), covariance)


def conditioned(law, a, y, std):
    """The posterior of Gaussian data given y = A x + s n, by its textbook formula."""
    inner = a @ law.covariance @ a.T + std**2 * torch.eye(len(a)).double()
    gain = law.covariance @ a.T @ torch.linalg.inv(inner)
    mean = law.mean + gain @ (y - a @ law.mean)
    covariance = law.covariance - gain @ a @ law.covariance
    return pl.Gaussian(law.path, mean, (covariance + covariance.T) / 2)


A, Y = f64([[1.0, 0.5, 0.0], [0.0, -0.4, 1.0]]), f64([[0.7, -0.6]])


@pytest.mark.parametrize("path", [VP, CondOT(), VE()])
@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_moment_matching_is_the_posterior_of_gaussian_data(path, t):
    """x̂_0 of the guided field is that of the exact posterior, whatever the covariance."""
    law, x = gaussian(path), drawn(4, 3) * path.sigma(t)
    guide = steer.MMPS(operators.Dense(A), Y, 0.2, iterations=2)
    made, exact = guide(law)(x, t).x0, conditioned(law, A, Y[0], 0.2)(x, t).x0
    torch.testing.assert_close(made, exact, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("path", [VP, CondOT()])
@pytest.mark.parametrize("std", [0.0, 0.2])
def test_pseudo_inverse_guidance_is_the_posterior_of_isotropic_data(path, std):
    law, x = gaussian(path, isotropic=True), drawn(4, 3)
    guide = steer.PiGDM(operators.Dense(A), Y, std, variance=0.4)
    made, exact = guide(law)(x, 0.4).x0, conditioned(law, A, Y[0], std)(x, 0.4).x0
    torch.testing.assert_close(made, exact, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "ddpm"])
def test_samples_of_an_exact_guide_are_those_of_the_posterior(solver):
    """Mean and covariance of 4000 samples, within five deviations of their error."""
    law = gaussian(VP)
    exact = conditioned(law, A, Y[0], 0.3)
    guide = steer.MMPS(operators.Dense(A), Y, 0.3, iterations=2)
    x = pl.sample(law, 4000, solver=solver, steps=120 if solver == "ddpm" else 40, guide=guide,
                  dtype=torch.float64).x  # fmt: skip
    variance = exact.covariance.diag()
    assert float(((x.mean(0) - exact.mean) / (variance / 4000).sqrt()).abs().max()) < 5
    off = (x.T.cov() - exact.covariance) / torch.sqrt(variance[:, None] * variance) * 4000**0.5
    assert float(off.abs().max()) < 7.5


def test_a_proximal_step_is_the_least_of_its_sum():
    """The gradient of |y − A z|²/s² + λ (α/σ)² |z − x̂_0|² vanishes at what DiffPIR makes."""
    law, x, t, std, balance = gaussian(VP), drawn(4, 3), 0.5, 0.3, 1.7
    plain = law(x, t).x0
    z = steer.DiffPIR(operators.Dense(A), Y, std, balance)(law)(x, t).x0
    ratio = VP.alpha(t) ** 2 / VP.sigma(t) ** 2
    gradient = -(Y - z @ A.T) @ A / std**2 + balance * ratio * (z - plain)
    assert float(gradient.abs().max()) < 1e-10
    projected = steer.Projection(operators.Dense(A), Y)(law)(x, t).x0
    limit = steer.DiffPIR(operators.Dense(A), Y, 0.0)(law)(x, t).x0
    torch.testing.assert_close(limit, projected)


def mixture(path=VP):
    return pl.Mixture(
        path,
        f64([[1.0, 0.2, -0.4], [-0.7, 0.8, 0.3]]),
        f64([[0.5] * 3, [0.4] * 3]),
        f64([0.4, 0.6]),
    )


def covariance_of(law, x, t):
    """Cov[x_0 | x_t = x] of a mixture, from the law of its parts."""
    alpha, residual, variance = law._parts(x, f64(t))
    share = law._log_joint(residual, variance).softmax(1)
    each = law.means + alpha * law.stds**2 / variance * residual
    spread = law.stds**2 * VP.sigma(t) ** 2 / variance
    mean = (share[..., None] * each).sum(1)
    off = each - mean[:, None]
    within = torch.diag_embed((share[..., None] * spread).sum(1))
    return within + torch.einsum("bk,bki,bkj->bij", share, off, off)


@pytest.mark.parametrize("t", [0.2, 0.6])
def test_the_gradient_of_a_loss_is_that_of_the_covariance(t):
    """g = (α/σ²) Cov[x_0 | x_t] ∇V, and x̂_0 moves by −κ g."""
    law, x, weight = mixture(), drawn(4, 3), 1.7
    plain = law(x, t).x0
    moved = steer.Loss(lambda z: z.square().sum(1) / 2, weight)(law)(x, t).x0 - plain
    pulled = torch.einsum("bij,bj->bi", covariance_of(law, x, t), weight * plain)
    g = VP.alpha(t) / VP.sigma(t) ** 2 * pulled
    torch.testing.assert_close(moved, -VP.sigma(t + 1e-3) * g, rtol=1e-8, atol=1e-8)


def test_a_likelihood_of_the_clean_estimate_moves_it_by_the_covariance():
    """DPS: x̂_0 + Cov Aᵀ (y − A x̂_0)/s², in any view and on any path."""
    law, x = mixture(), drawn(4, 3)
    plain = law(x, 0.5).x0
    pull = (Y - plain @ A.T) @ A / 0.3**2
    moved = steer.DPS(operators.Dense(A), Y, 0.3)(law)(x, 0.5).x0 - plain
    exact = torch.einsum("bij,bj->bi", covariance_of(law, x, 0.5), pull)
    torch.testing.assert_close(moved, exact, rtol=1e-8, atol=1e-8)


# --- composition ---------------------------------------------------------------------------------


def quadratic(z):
    return z.square().sum(1) / 2


def test_gradients_that_stand_together_share_one_product_and_add():
    law, x = mixture(), drawn(4, 3)
    loss, dps = steer.Loss(quadratic, 0.7), steer.DPS(operators.Dense(A), Y, 0.5)
    both = (loss & dps)(law)
    plain = law(x, 0.5).x0
    moved = sum(guide(law)(x, 0.5).x0 - plain for guide in (loss, dps))
    torch.testing.assert_close(both(x, 0.5).x0 - plain, moved)
    assert both.vjps == 1
    assert (steer.MMPS(operators.Dense(A), Y, iterations=3) & loss)(law).vjps == 4
    scaled = steer.Loss(quadratic, normalise="rms")
    assert (scaled & dps & loss)(law).vjps == 2
    step = scaled(law)(x, 0.5).x0 - plain
    torch.testing.assert_close(step.square().mean(1).sqrt(), VP.sigma(0.501).expand(4))


def test_a_gradient_is_taken_through_what_was_projected_before_it():
    """V ∘ P: its gradient is that of V at the projected estimate, through P and the model."""
    law, x, t = mixture(), drawn(4, 3).requires_grad_(), 0.5
    put = steer.Inpaint(f64([1.0, 0.0, 0.0]), f64([[0.3, 0.0, 0.0]]))
    made = (put & steer.Loss(quadratic, 2.0))(law)(x, t).x0
    z = put.projected(law(x, t).x0)
    (g,) = torch.autograd.grad(2 * quadratic(z).sum(), x, retain_graph=True)
    torch.testing.assert_close(made, z - VP.sigma(t + 1e-3) * g)


def test_a_loss_acts_in_its_window_only():
    law, x = mixture(), drawn(4, 3)
    guide = steer.Loss(quadratic, window=(0.3, 0.6))
    levels = f64([0.2, 0.4, 0.6, 0.9])
    moved = (guide(law)(x, levels).x0 - law(x, levels).x0).abs().sum(1)
    assert (moved > 1e-3).tolist() == [False, True, True, False]


def test_a_loss_at_the_scale_of_a_score_is_a_likelihood():
    """Half the squared residual over s² is what DPS takes, up to a constant."""
    law, x, dps = mixture(), drawn(4, 3), steer.DPS(operators.Dense(A), Y, 0.4)
    loss = steer.Loss(lambda z: (Y - z @ A.T).square().sum(1) / 2, 1 / 0.4**2, scale="score")
    torch.testing.assert_close(loss(law)(x, 0.5).x0, dps(law)(x, 0.5).x0)


def test_other_ways_of_a_gradient():
    law, x, t = mixture(), drawn(4, 3), 0.5
    plain, kappa = law(x, t).x0, VP.sigma(t + 1e-3)
    made = steer.Loss(quadratic, through="estimate")(law)
    torch.testing.assert_close(made(x, t).x0, plain - kappa / VP.alpha(t) * plain)
    assert made.vjps == 0
    with torch.no_grad():
        noisy = steer.Loss(quadratic, through="state")(law)(x, t).x0
    torch.testing.assert_close(noisy, plain - kappa * x)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "ddpm", "heun", "unipc"])
def test_data_hold_exactly_where_a_grid_ends_in_data(solver):
    y, mask = drawn(1, 3, index=8), f64([1.0, 0.0, 1.0])
    guide = steer.CFG(1.0) & steer.Inpaint(mask, y) & steer.Clip(-5.0, 5.0)
    grid = pl.grids.log_snr(6, last="denoise")
    x = pl.sample(mixture(), 4, solver=solver, grid=grid, guide=guide, dtype=torch.float64).x
    assert torch.equal(x[:, [0, 2]], y[:, [0, 2]].expand(4, 2))


def test_where_there_is_no_signal_nothing_is_moved():
    """CondOT begins at α = 0: the guided solve is finite, whatever the guide."""
    law = mixture(CondOT())
    for guide in (steer.MMPS(operators.Dense(A), Y, 0.3), steer.Loss(quadratic)):
        assert pl.sample(law, 2, solver="heun", steps=4, guide=guide, dtype=torch.float64).ok


# --- repeats -------------------------------------------------------------------------------------


def test_once_is_the_solver_itself():
    for name in ("ddpm", "dpmpp_2m_sde"):
        once = Repeat(name, 1).plan(VP, pl.grids.log_snr(5))
        plain = solvers.build(name).plan(VP, pl.grids.log_snr(5))
        assert once.to_dict()["rows"] == plain.to_dict()["rows"]


def test_a_repeated_plan_is_written_out():
    """DDPM, one step twice: the same step, a forward transition, and the step with fresh noise."""
    grid = pl.grids.times([0.8, 0.5])
    (step,) = solvers.build("ddpm").plan(VP, grid).rows
    first, back, second = Repeat("ddpm", 2).plan(VP, grid).rows
    a, b = (float(v) for v in (VP.alpha(0.8) / VP.alpha(0.5), VP.sigma(0.5)))
    assert first == step and (first.lands, back.lands, second.lands) == (True, False, True)
    assert back.t == 0.8 and back.x == {1: pytest.approx(a)} and not back.f
    assert back.z[1] == pytest.approx((float(VP.sigma(0.8)) ** 2 - (a * b) ** 2) ** 0.5)
    assert (second.x, second.f) == ({2: step.x[0]}, {2: step.f[0]})
    assert second.z == {2: step.z[0]}


def test_repeats_bring_inpainting_to_the_posterior():
    """Two strongly correlated coordinates, one known: exact mean and variance of the other."""
    law = pl.Gaussian(VP, f64([0.0, 0.0]), f64([[1.0, 0.9], [0.9, 1.0]]))
    guide = steer.Inpaint(f64([1.0, 0.0]), f64([[1.0, 0.0]]))
    free = [
        pl.sample(law, 4000, solver=Repeat("ddpm", times), grid=pl.grids.log_snr(60), guide=guide,
                  dtype=torch.float64).x[:, 1]
        for times in (1, 8)
    ]  # fmt: skip
    off = [abs(float(x.mean()) - 0.9) for x in free]
    assert off[1] < off[0] / 3 and off[1] < 0.06
    assert float(free[1].var()) == pytest.approx(0.19, rel=0.25)


def test_repeats_are_refused_with_the_reason():
    grid = pl.grids.log_snr(4)
    cases = (
        (lambda: Repeat(times=0), "once or more"),
        (lambda: Repeat("dopri5"), "has no plan"),
        (lambda: Repeat(window=(0.5, 0.5)), "the lower one first"),
        (lambda: Repeat(window=(2.0, 3.0)).plan(VP, grid), "no step begins in window"),
    )
    for call, words in cases:
        with pytest.raises(UsageError, match=words):
            call()
    with pytest.warns(UserWarning, match="mix poorly"):
        Repeat("ddim", 2)
    with pytest.warns(UserWarning), pytest.raises(UsageError, match="does not evaluate the field"):
        Repeat("unipc", 2).plan(VP, grid)


# --- bad input -----------------------------------------------------------------------------------


class Doubled(operators.Pooling):
    """A down-sampling whose inverse is none."""

    def lifted(self, y):
        return 1.2 * super().lifted(y)


def test_bad_input_is_told():
    law, x = mixture(), drawn(2, 3)
    dense, y = operators.Dense(A), f64([[0.1, 0.2]])
    first, second = f64([1.0, 1.0, 0.0]), f64([[1.0, 1.0, 1.0]])
    put = steer.Inpaint(first, f64([[0.3, -0.2, 0.0]]))
    total = steer.Projection(operators.Dense(second), f64([[2.0]]))
    loss, inpaint = steer.Loss(quadratic), steer.Inpaint(first, drawn(1, 3))
    cases = (
        (lambda: steer.Projection(Doubled(2), drawn(1, 1, 2, 2)), r"no right inverse.* = 0.2 \|y"),
        (lambda: steer.Projection(operators.Mask(first), drawn(1, 3)), "no right inverse"),
        (lambda: steer.Projection(dense, y, 1.5), "from 0"),
        (lambda: steer.Projection(dense, y[:, :1]), "makes 2 measurements"),
        (lambda: steer.DPS(dense, drawn(3, 2))(law)(x, 0.5), "was given y"),
        (lambda: steer.DPS(dense, y, 0.0), "above 0 here"),
        (lambda: steer.PiGDM(dense, y, -0.1), "0 or more"),
        (lambda: steer.PiGDM()(law)(x, 0.5), "needs the measurements"),
        (lambda: steer.MMPS(dense, y, iterations=0), "1 or more"),
        (lambda: steer.DiffPIR(dense, y, balance=0.0), "above 0"),
        (lambda: steer.Inpaint(torch.ones(3), y), "everything is known"),
        (lambda: steer.Inpaint(torch.zeros(3), y), "nothing is known"),
        (lambda: steer.Inpaint(0.5 * torch.ones(3), y), "other than 0 and 1"),
        (lambda: steer.Inpaint(first, drawn(1, 2))(law)(x, 0.5), "have the shape"),
        (lambda: steer.Inpaint()(law)(x, 0.5), "needs both"),
        (lambda: steer.Inpaint(f64([1.0, 0.0]), drawn(1, 3))(law)(x, 0.5), "does not fit"),
        (lambda: steer.Loss()(law)(x, 0.5), "needs a function"),
        (lambda: steer.Loss(lambda z: z.detach().sum(1))(law)(x, 0.5), "without gradients"),
        (lambda: steer.Loss(lambda z: z.sum())(law)(x, 0.5), "one number a sample"),
        (lambda: steer.Loss(quadratic, window=(0.5, 1.5)), "two times of the path"),
        (lambda: steer.Loss(quadratic, through="noise"), "unknown way"),
        (lambda: steer.Loss(quadratic, scale="beta"), "unknown scale"),
        (
            lambda: pl.sample(
                law, 2, grid=[1.0, 0.7, 0.2], guide=steer.Loss(quadratic, window=(0.3, 0.6))
            ),
            "no step begins in it; the grid goes from 1 to 0.2",
        ),
        (lambda: loss & inpaint & loss, "move Inpaint before or behind both"),
        (lambda: put & total, "Projection undoes what Inpaint has put"),
        (lambda: total(put(law)), "undoes"),
        (lambda: operators.Pooling(1), "2 or more"),
        (lambda: operators.Pooling(3).forward(drawn(1, 1, 8, 8)), "does not divide"),
        (lambda: operators.Pooling(2).forward(x), "two axes"),
        (lambda: operators.Blur(0.0), "above 0"),
        (lambda: operators.Luma().forward(x[:, :2]), r"states \(3"),
        (lambda: operators.Dense(f64([1.0])), "two axes"),
        (lambda: dense.forward(drawn(1, 4)), "states of 3 elements"),
    )
    for call, words in cases:
        with pytest.raises(UsageError, match=words):
            call()

"""Paths by table, the separation of data, kinetic energy, and other paths for a model."""

import json
import math
import warnings

import pytest
import torch
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

import pathline as pl
from pathline.core import noise
from pathline.fields import VIEWS, Retimed, estimate_separation, problems, retimed
from pathline.fields.separation import BATCH, posterior_mean, rising
from pathline.paths import (
    Interpolated,
    KineticOptimal,
    PFGMpp,
    Separation,
    Trigonometric,
    Trimmed,
    energy,
    paths,
)
from pathline.paths.cubic import Cubic, limited
from pathline.paths.energy import power
from pathline.paths.kinetic import EXACT
from pathline.paths.separation import gaussian_mmse
from pathline.systems import run
from pathline.systems.kinetic_optimal_energies import two_points

VARIANCES = (1.6, 1.1, 0.3)
TWO = Separation.of(two_points, 64)


def draws(*shape, seed=0):
    return noise.normal(range(seed, seed + shape[0]), shape[1:], dtype=torch.float64)


def line(n=400, start=0.0, end=1.0):
    return torch.linspace(start, end, n, dtype=torch.float64)


def nothing(s):
    """1 − λ of points that are infinitely far apart."""
    return torch.zeros_like(s)


# --- monotone cubics ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "y", [[0, 1, 3, 3, 7, 6], [1, 2, 2.1, 9, 9.5, 20], [3, 1, 1, 0, -5, -5.1], [0, 4, 1, 5, 2, 6]]
)
def test_a_table_without_slopes_is_scipys_pchip(y):
    x = torch.tensor([0, 0.3, 1, 1.1, 2.5, 3], dtype=torch.float64)
    y = torch.tensor(y, dtype=torch.float64)
    ours, theirs = Cubic.pchip(x, y), PchipInterpolator(x.numpy(), y.numpy())
    at = line(301, 0, 3)
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(ours(at), torch.from_numpy(theirs(at.numpy())), **close)
    slopes = torch.from_numpy(theirs(at.numpy(), 1))
    torch.testing.assert_close(ours.slope(at), slopes, rtol=1e-11, atol=1e-11)


def test_a_rising_cubic_is_inverted_and_met_at_its_knots():
    x = torch.tensor([0, 0.01, 0.5, 2, 2.1], dtype=torch.float64)
    y = torch.tensor([0, 3, 3.001, 4, 20], dtype=torch.float64)
    steep = limited(x, y, torch.full_like(x, 1e9))  # as steep as a monotone cubic may be
    for curve in (Cubic.pchip(x, y), Cubic(x, y, steep)):
        at = line(1001, 0, 2.1)
        assert (curve(at).diff() >= -1e-14).all() and torch.equal(curve(x), y)
        torch.testing.assert_close(curve(curve.inverse(curve(at))), curve(at), rtol=1e-12, atol=0)
        at.requires_grad_()
        (slope,) = torch.autograd.grad(curve(at).sum(), at)
        torch.testing.assert_close(curve.slope(at), slope, rtol=1e-10, atol=1e-10)


def test_a_table_of_two_nodes_is_a_line():
    curve = Cubic.pchip(*torch.tensor([[0.0, 2.0], [1.0, 5.0]], dtype=torch.float64))
    torch.testing.assert_close(curve(line(5, 0, 2)), 1 + 2 * line(5, 0, 2))


# --- paths by table -----------------------------------------------------------------------------


def test_an_interpolated_path_meets_its_nodes_and_converges_to_its_source():
    source, t, errors = pl.CondOT(), line(997, 0.001), []
    for n in (9, 17, 33):
        nodes = line(n)
        path = Interpolated.through(
            nodes.tolist(), source.alpha(nodes).tolist(), source.sigma(nodes).tolist()
        )
        torch.testing.assert_close(path.alpha(nodes), source.alpha(nodes), rtol=0, atol=1e-15)
        torch.testing.assert_close(path.sigma(nodes), source.sigma(nodes), rtol=0, atol=1e-15)
        errors.append(float((path.sigma(t) - source.sigma(t)).abs().max()))
    assert errors[0] / errors[1] > 3.5 and errors[1] / errors[2] > 3.5  # the limiter is of order 2
    assert float(path.alpha(1.0)) == 0 and float(path.sigma(0.0)) == 0


def test_the_trigonometric_path_is_the_cosine_path_without_its_offset():
    t, path = line(50, 0.05, 0.95), pl.paths.VPCosine(s=1e-9)
    for a, b in ((path.alpha, Trigonometric().alpha), (path.d_sigma, Trigonometric().d_sigma)):
        torch.testing.assert_close(a(t), b(t), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("path", [KineticOptimal(TWO, 0.1, 0.7), Trimmed(KineticOptimal(TWO))])
def test_tables_survive_a_json_file(path):
    told = json.loads(json.dumps(paths.describe(path)))
    assert paths.rebuild(told) == path and hash(paths.rebuild(told)) == hash(path)
    assert path != paths.rebuild({**told, "name": told["name"]} | _changed(told))


def _changed(told):
    return {"floor": 0.2} if "floor" in told else {"t_max": 0.5}


@pytest.mark.parametrize("path", [Trigonometric(), Interpolated(), KineticOptimal(TWO)])
def test_single_precision_times_get_single_precision_of_double_tables(path):
    t = line(100).float()
    assert path.sigma(t).dtype == torch.float32
    torch.testing.assert_close(path.d_alpha(t), path.d_alpha(t.double()).float(), rtol=0, atol=0)


# --- the family of Song et al. ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "drift", "squared"),
    [
        (pl.VPLinear(), lambda t, b: -b / 2, lambda t, b: b),
        (
            pl.paths.SubVP(),
            lambda t, b: -b / 2,
            lambda t, b: -b * torch.expm1(-0.2 * t - 19.9 * t**2),
        ),
        (pl.VE(), lambda t, b: 0 * t, lambda t, b: 2e-4 * 5000 ** (2 * t) * math.log(5000)),
    ],
    ids=["vp", "sub_vp", "ve"],
)
def test_drift_and_diffusion_are_those_of_the_paper(path, drift, squared):
    """f and g² in closed form, and |(σ²)' − 2 f σ² − g²| ≤ 1e-8 of g's scale, by autograd."""
    t = line(200, path.t_min).requires_grad_()
    beta = 0.1 + 19.9 * t
    f, g2 = drift(t, beta), squared(t, beta)
    torch.testing.assert_close(path.drift(t), f, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(path.diffusion_squared(t), g2, rtol=1e-9, atol=1e-10)
    variance = path.sigma(t) ** 2
    (slope,) = torch.autograd.grad(variance.sum(), t)
    off = (slope - 2 * f * variance - g2).abs()
    assert (off <= 1e-8 * g2.detach().abs().max().clamp(max=1)).all()


def test_priors_are_those_of_the_paper():
    close = pytest.approx
    assert float(pl.VE().sigma(1.0)) == close(50) and float(pl.VE().alpha(1.0)) == 1
    alpha = math.exp(-19.9 / 4 - 0.05)
    assert float(pl.VPLinear().sigma(1.0)) == close(math.sqrt(1 - alpha**2), rel=1e-14)
    assert float(pl.paths.SubVP().sigma(1.0)) == close(1 - alpha**2, rel=1e-14)
    t = line(50, 0.1)
    assert (
        pl.paths.SubVP().sigma(t) <= pl.VPLinear().sigma(t)
    ).all()  # its variance is never larger


# --- the separation of data ---------------------------------------------------------------------


def test_a_table_of_64_scales_is_the_closed_form():
    mmse, s = gaussian_mmse(VARIANCES), torch.logspace(-3, 4, 500, dtype=torch.float64)
    table = Separation.gaussian(VARIANCES, 64)
    exact = (1 - mmse(s) * (1 + s**2)).clamp(min=0)
    psi = torch.atan(1 / s)
    torch.testing.assert_close(table.kappa_squared(psi), exact, rtol=0, atol=2e-4)
    torch.testing.assert_close(table.error(s), mmse(s), rtol=2e-4, atol=0)  # also where λ is 1
    assert (table(s) >= s**2 / (1 + s**2) - 1e-12).all() and (table(s) <= 1).all()


def test_bounds_hold_between_and_beyond_the_nodes():
    s = torch.logspace(-4, 4, 999, dtype=torch.float64)
    rough = Separation((0.1, 0.2, 3.0, 4.0), (0.98, 0.5, 0.0999, 0.0))
    assert (rough(s) >= s**2 / (1 + s**2) - 1e-12).all() and (rough(s) <= 1).all()
    nodes = torch.tensor(rough.scales, dtype=torch.float64)
    torch.testing.assert_close(rough.error(nodes), torch.tensor(rough.mmse, dtype=torch.float64))
    assert float(rough(torch.tensor(0.0))) <= 0.02


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Separation((0.1, 0.1), (0.9, 0.9)), "strictly rising"),
        (lambda: Separation((-1.0, 0.1), (0.9, 0.9)), "positive"),
        (lambda: Separation((0.1, 0.2), (0.9,)), "2 scales and 1 values"),
        (lambda: Separation((1.0, 2.0), (0.9, 0.1)), "normalise the data"),
        (lambda: Separation((0.1, 0.2), (0.2, 0.5)), "λ falls from 0.8 to 0.5.*draws"),
        (lambda: gaussian_mmse([0.0, 0.0]), "at least positive"),
        (lambda: KineticOptimal(TWO, 0.0), "floor of κ"),
        (lambda: KineticOptimal(TWO, scale=-1.0), "scale of the data"),
        (lambda: energy(pl.CondOT(), TWO, scale=0.0), "scale of the data"),
        (lambda: energy(PFGMpp(), TWO), "path.gaussian"),
        (lambda: Trimmed(pl.CondOT(), 0.5, 0.2), "t_min < t_max"),
        (lambda: Interpolated((0.0, 1.0), (0.0,), (1.0, 1.0)), "two nodes"),
        (lambda: Interpolated((0.0, 0.5), (0.0, 1.0), (1.0, 1.0)), "from 0 to 1"),
        (lambda: Interpolated((0.0, 1.0), (0.0, 2.0), (1.0, 1.0)), "rise strictly"),
        (lambda: Interpolated((0.0, 1.0), (0.0, 1.0), (1.0, 0.0)), "radii must be positive"),
        (lambda: KineticOptimal(TWO).alpha(1.2), "from 0 .data. to 1"),
        (lambda: KineticOptimal(TWO, EXACT).d_alpha(1.0), r"no bound .*\[0, 0.99999\]"),
    ],
)
def test_what_cannot_be_is_refused(make, says):
    with pytest.raises(pl.UsageError, match=says):
        make()


# --- kinetic energy -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [pl.CondOT(), pl.VPLinear(), pl.paths.SubVP(), Trigonometric(), pl.EDM()]
)
def test_power_on_gaussian_data_is_that_of_its_flow(path):
    """Each direction is scaled by r = √(α² v + σ²), so E u² = r'² there: another formula."""
    t, c = line(50, 0.02, 0.98), 1.7
    v = torch.tensor(VARIANCES, dtype=torch.float64)[:, None] * c**2
    alpha, sigma = path.alpha(t), path.sigma(t)
    slope = alpha * path.d_alpha(t) * v + sigma * path.d_sigma(t)
    exact = (slope**2 / (alpha**2 * v + sigma**2)).mean(0)
    found = power(path, gaussian_mmse(VARIANCES), t, scale=c)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-12)


def test_energy_integrates_to_the_singular_ends():
    """VP-linear on Gaussian data: ∫ r'² dt by substitution t = u², which is smooth."""
    path, mmse = pl.VPLinear(), gaussian_mmse(VARIANCES)
    u = line(20_001, 1e-5)
    smooth = torch.trapezoid(power(path, mmse, u**2) * 2 * u, u)
    assert energy(path, mmse) == pytest.approx(float(smooth), rel=1e-4)
    assert energy(path, nothing) == math.inf  # single points: σ ~ √t, ∫ dt/t


def test_the_optimum_is_found_by_descent_too():
    """Minimise ∫ ρ'² + ρ² κ² ψ'² over 33 knots with L-BFGS: the energy is 2 − 2 cos Φ."""
    best = KineticOptimal(TWO, EXACT)
    psi = torch.linspace(0, math.pi / 2, 4001, dtype=torch.float64)
    chi = torch.cat((torch.zeros(1), torch.cumulative_trapezoid(best.kappa(psi), psi)))
    table = Cubic.pchip(psi, chi)
    raw = torch.zeros(65, dtype=torch.float64, requires_grad=True)

    def found():
        steps = raw[:33].softmax(0)
        angle = torch.cat((torch.zeros(1), steps.cumsum(0))).clamp(max=1) * math.pi / 2
        radius = torch.cat((torch.ones(1), raw[33:].exp(), torch.ones(1)))
        return 33 * (radius.diff() ** 2 + radius[1:] * radius[:-1] * table(angle).diff() ** 2).sum()

    descent = torch.optim.LBFGS([raw], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        descent.zero_grad()
        value = found()
        value.backward()
        return value

    descent.step(closure)
    assert float(found().detach()) == pytest.approx(2 - 2 * math.cos(best.turn), rel=2e-3)


@pytest.mark.parametrize("mmse", [two_points, gaussian_mmse(VARIANCES)], ids=["points", "gauss"])
@pytest.mark.parametrize("floor", [EXACT, 0.05, 0.4])
def test_the_chord_has_the_energy_it_says(mmse, floor):
    """(1 − f²) KE + f² ∫ α'² + σ'² dt = 2 − 2 cos Φ, and no other path has less."""
    separation = Separation.of(mmse)
    path = KineticOptimal(separation, floor)

    def total(path):
        return (1 - floor**2) * energy(path, separation) + floor**2 * energy(path, nothing)

    assert total(path) == pytest.approx(2 - 2 * math.cos(path.turn), rel=1e-6)
    for other in (pl.CondOT(), Trigonometric(), KineticOptimal(separation, 0.13)):
        assert total(path) < total(other)


def test_data_of_another_scale_get_the_same_path_scaled():
    one, other = KineticOptimal(TWO), KineticOptimal(TWO, scale=3.0)
    t = line(20, 0.01)
    torch.testing.assert_close(other.sigma(t), 3 * one.sigma(t))
    torch.testing.assert_close(other.log_snr(t), one.log_snr(t) - math.log(3))
    torch.testing.assert_close(other.time_of_log_snr(other.log_snr(t)), t)
    assert energy(other, TWO, scale=3.0) == pytest.approx(9 * energy(one, TWO), rel=1e-12)


def test_data_that_need_not_move_get_the_trigonometric_path_and_a_word():
    with pytest.warns(UserWarning, match="need not move"):
        path = KineticOptimal(Separation.gaussian([1.0, 1.0]))
    t = line(20)
    torch.testing.assert_close(path.alpha(t), Trigonometric().alpha(t), rtol=0, atol=1e-8)


# --- measuring the separation -------------------------------------------------------------------


def test_the_posterior_mean_in_blocks_is_the_oracles():
    points, x, s = draws(BATCH + 77, 3), draws(9, 3, seed=5000), 0.8
    path = pl.VE(sigma_min=0.1)
    t = path.time_of_log_snr(math.log(s))
    exact = pl.Dataset(path, points)(x, t).x0
    torch.testing.assert_close(posterior_mean(x, points, s), exact, rtol=1e-11, atol=1e-12)
    far = posterior_mean(100 + x, points, 1e3)  # no overflow, and the nearest point
    nearest = points[torch.cdist(100 + x, points).argmin(1)]
    torch.testing.assert_close(far, nearest)


def test_isotonic_regression_is_scipys():
    values = draws(40)
    theirs = torch.from_numpy(isotonic_regression(values.numpy()).x.copy())
    torch.testing.assert_close(rising(values.tolist()), theirs)


def test_both_estimates_are_the_exact_curve_within_their_errors():
    s = [0.05, 0.3, 1.0, 2.0, 3.0]
    points = torch.tensor([[3.0], [7.0]])  # ±1, scaled by 2 and moved by 5
    found = estimate_separation(points, scales=s, draws=8000)
    exact = 1 - two_points(torch.tensor(s))
    assert ((found.lam - exact).abs() <= 4 * found.mmse_error + 1e-9).all()
    assert ((found.energy - exact).abs() <= 4 * found.energy_error + 1e-9).all()
    assert (found.mmse_error < 0.02).all() and float(found.mmse_error[0]) < 1e-3
    assert (found.std, float(found.mean)) == (2, 5) and found.path().scale == 2


def test_a_denoiser_is_measured_where_its_path_goes():
    law = problems.m4(pl.VPLinear())
    model = pl.Denoiser(lambda x, t: law(x, t).eps, pl.VPLinear())
    data = law.draw(range(4000))
    found = estimate_separation(model, data, draws=2000)
    own = estimate_separation(law, draws=2000)
    assert 40 < len(found.scales) < 64
    error = torch.hypot(found.mmse_error, own.mmse_error[: len(found.lam)])
    torch.testing.assert_close(found.std, own.std, rtol=0.05, atol=0)
    assert ((found.lam - own.lam).abs() < 5 * error + 0.01).all()
    assert (found.gap.abs() <= 5 * torch.hypot(found.mmse_error, found.energy_error) + 0.01).all()


def test_a_worse_denoiser_shows_a_smaller_separation_and_a_gap():
    law = problems.m4(pl.CondOT())
    timid = pl.Denoiser(lambda x, t: 0.8 * law(x, t).x0, pl.CondOT(), view="x0")
    exact, found = (
        estimate_separation(f, law.draw(range(2000)), scales=[0.5, 2.0, 5.0], draws=2000)
        for f in (law, timid)
    )
    assert (found.lam < exact.lam).all() and (found.gap < -5 * found.energy_error).all()


def test_gaussian_data_are_measured_in_closed_form():
    law = pl.Gaussian(pl.VPLinear(), torch.ones(3), 4 * torch.tensor(VARIANCES))
    found = estimate_separation(law)
    torch.testing.assert_close(
        found.mmse, gaussian_mmse(VARIANCES)(found.scales), rtol=1e-6, atol=0
    )
    assert float(found.mmse_error.max()) == 0 and found.std == pytest.approx(2, rel=1e-6)


def test_what_cannot_be_measured_is_refused():
    def refused(says, *args, **how):
        with pytest.raises(pl.UsageError, match=says):
            estimate_separation(*args, **{"draws": 50, **how}).separation  # noqa: B018

    data, law = draws(100, 4), problems.m4(pl.VPLinear())
    refused("mean is 2.* is 5", data + 2, normalise=False)
    refused("no variance", data[:1])
    refused("no variance", data[:, :0])
    refused("no variance", torch.ones(5, 2))
    refused("strictly rising", data, scales=[1.0, 0.5])
    refused("at least 2 draws", data, draws=1)
    refused("does not know its data", pl.Denoiser(lambda x, t: x, pl.CondOT()))
    refused("log-SNRs λ .*trained on -5.02", law, scales=[1e-4, 1.0])
    refused("no path|on a path", pl.VectorField(lambda x, t: x), data)
    wild = pl.Denoiser(lambda x, t: 9 * x, pl.CondOT(), view="x0")
    refused("increase draws", wild, data)
    law = problems.m4(pl.CondOT())
    good = torch.tensor([0.3, 1.0], dtype=torch.float64)
    late = pl.Denoiser(lambda x, t: law(x, t).x0 * good[(t > 0.5).long()][:, None], law.path, "x0")
    refused("λ falls", late, law.draw(range(500)), scales=[0.85, 1.0], draws=2000)
    heavy = pl.Dataset(PFGMpp(dof=8.0), data)
    refused("Gaussian noise", heavy)


# --- other paths for a trained model ------------------------------------------------------------

VP = pl.VPLinear()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("path", [pl.CondOT(), KineticOptimal(TWO, scale=0.8), pl.VE()])
def test_a_model_on_another_path_is_exact_there(view, path):
    law = problems.m4(VP)
    model = pl.Denoiser(lambda x, t: law(x, t).of(view), VP, view=view)
    moved, exact = retimed(model, path, beyond="trim"), problems.m4(path)
    x = draws(6, 3)
    least, most = moved.path.t_min, moved.path.t_max
    for t in (0.5, most, least, line(6, least, most)):
        torch.testing.assert_close(moved(x, t).x0, exact(x, t).x0, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "heun", "ddpm", "dpm_adaptive", "unipc"])
def test_every_kind_of_solver_samples_it_as_an_oracle_of_that_path(solver):
    moved = retimed(problems.m4(VP), KineticOptimal(TWO), beyond="trim")
    exact = problems.m4(moved.path)
    how = {"solver": solver, "seeds": range(4), "dtype": torch.float64}
    one, other = pl.sample(moved, **how), pl.sample(exact, **how)
    torch.testing.assert_close(one.x, other.x, rtol=1e-6, atol=1e-6)
    assert one.stats.nfe == other.stats.nfe


def test_a_receipt_names_the_model_and_the_path_it_was_moved_to():
    model = pl.Denoiser(lambda x, t: x, VP, name="m", shape=(2,))
    told = pl.sample(retimed(model, VP), 1, steps=2).receipt.recipe["model"]
    assert told == {"name": "m", "weights": None, "path": json.loads(json.dumps(VP.describe()))}


def test_conditions_and_guidance_pass_through():
    def network(x, label, shift):
        return x * 0.5 + shift[:, None] + label[:, None]

    null = {"shift": torch.zeros(1)}
    model = pl.Denoiser(network, pl.CondOT(), view="x0", null=null, shape=(2,))
    moved, x = retimed(model, Trigonometric()), draws(3, 2)
    shift = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    t = 0.3
    inner = float(pl.CondOT().time_of_log_snr(Trigonometric().log_snr(t)))
    factor = math.hypot(inner, 1 - inner)
    guided, plain = pl.CFG(3.0)(moved), pl.CFG(3.0)(model)
    for a, b in ((moved, model), (guided, plain), (retimed(plain, Trigonometric()), plain)):
        found, exact = a(x, t, shift=shift).x0, b(x * factor, inner, shift=shift).x0
        torch.testing.assert_close(found, exact)
    assert pl.sample(moved, 3, guide=pl.CFG(3.0), steps=4, shift=shift).ok
    with pytest.raises(pl.UsageError, match="null condition"):
        pl.CFG(3.0)(retimed(problems.m4(VP), VP))


def test_a_path_that_the_model_does_not_cover_is_refused_with_both_ranges():
    model = pl.Denoiser(lambda x, t: x, VP)
    with pytest.raises(pl.UsageError, match=r"from -inf to 6.907.*trained on -5.025 to 4.5"):
        retimed(model, pl.CondOT())
    moved = retimed(model, pl.CondOT(), beyond="trim")
    assert isinstance(moved, Retimed) and 0.01 < moved.path.t_min < moved.path.t_max < 0.994
    with pytest.raises(pl.UsageError, match="stay between"):
        moved(draws(2, 3), 1.0)
    assert retimed(model, VP, beyond="trim").path == VP
    with pytest.raises(pl.UsageError, match="nothing of the path is left"):
        retimed(model, pl.EDM(sigma_min=1e4, sigma_max=1e5), beyond="trim")
    with pytest.raises(pl.UsageError, match="'refuse' or 'trim'"):
        retimed(model, VP, beyond="clip")
    with pytest.raises(pl.UsageError, match="need a path"):
        retimed(pl.VectorField(lambda x, t: x), VP)
    with pytest.raises(pl.UsageError, match="must be a path"):
        retimed(model, "cond_ot")
    with pytest.raises(pl.UsageError, match="law of the noise cannot"):
        retimed(pl.Denoiser(lambda x, t: x, PFGMpp()), pl.EDM())


def test_a_model_of_pfgmpp_keeps_its_noise_on_another_path():
    """Its levels even in log σ: the same states at the same σ, and the same start."""
    law = pl.Dataset(PFGMpp(dof=8.0), draws(20, 3))
    even = Trimmed(PFGMpp(dof=8.0), 0.01, 0.5)
    moved = retimed(law, even)
    assert moved.path.kernel == law.path.kernel and moved.path.gaussian == Trimmed(
        pl.EDM(), 0.01, 0.5
    )
    x = draws(5, 3)
    torch.testing.assert_close(moved(x, 0.2).x0, law(x, 0.2).x0)
    begun = pl.sample(moved, seeds=range(4), steps=1, dtype=torch.float64, trajectory=True)
    drawn = law.path.kernel.draw(range(4), (3,), stream="initial", dtype=torch.float64)
    torch.testing.assert_close(begun.trajectory[0], drawn * 40)


# --- the recipe ---------------------------------------------------------------------------------


def test_the_system_holds_what_is_exact():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # isotropic data say that they need not move
        only = ["chord", "even", "energy-optimal", "ode", "limit-far", "limit-still", "few-points"]
        report = run("kinetic-optimal-paths", only=only)
    assert report.passed and len(report.to_dict()["claims"]) == len(only)

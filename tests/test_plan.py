"""Plans written by hand: every kind of row the floor promises, against closed forms."""

import itertools
import json
import math

import pytest
import torch

import pathline as pl
from pathline.core import noise
from pathline.fields import problems
from pathline.solvers import DEIS, DPM, EDMSampler, UniPC, solvers
from pathline.solvers.deis import coefficients
from pathline.solvers.execute import execute, run
from pathline.solvers.exponential import polynomial_weights
from pathline.solvers.phi import derivative_weights, phi
from pathline.solvers.reference import moments, reference
from pathline.solvers.runge_kutta import Tableau
from pathline.solvers.solver import Writer

VP = pl.VPLinear()
NEAR = pl.grids.times([1.0, 0.5, 0.5 - 2e-16, 0.1])


def starts(n=4, dim=3, index=0):
    return noise.normal(range(n), (dim,), index=index, dtype=torch.float64)


def by_hand(plan, field, given):
    """A second executor, as plain as possible: every state kept, every F evaluated at once."""
    states, slopes = list(given), {}
    for row in plan.rows:
        for k in row.f:
            if k not in slopes:
                slopes[k] = field(states[k], plan.times[k]).of(plan.view)
        states.append(
            sum(a * states[j] for j, a in row.x.items())
            + sum(b * slopes[k] for k, b in row.f.items())
        )
    return states[-1]


@pytest.mark.parametrize("solver", [pl.DPMpp(order=3), pl.RK4(), pl.Heun(view="eps"), pl.DDIM()])
def test_the_executor_forgets_nothing_that_is_needed(solver):
    plan = solver.plan(VP, pl.grids.karras(7))
    mixture = problems.m4(VP)
    torch.testing.assert_close(
        run(plan.folded("x0"), mixture, starts()), by_hand(plan, mixture, [starts()])
    )


def leapfrog(n, end):
    """x_{i+1} = x_{i−1} + 2h F_i: the simplest two-state rule, written by hand."""
    h = end / n
    rows = tuple(pl.solvers.Row((i + 2) * h, {i: 1.0}, {i + 1: 2 * h}) for i in range(n - 1))
    return pl.Plan((0.0, h), rows)


def test_a_two_state_plan_converges_and_is_inverted_exactly():
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, 0.5]], dtype=torch.float64)

    def exact(t):
        return x @ torch.linalg.matrix_exp(t * turn)

    errors = []
    for n in (100, 200):
        plan = leapfrog(n, 3.0)
        given = [x, exact(3.0 / n)]
        states = list(given)
        field = pl.VectorField(lambda x, t: x @ turn)
        for step in execute(plan, field.bind(torch.tensor(plan.times), x, {}), given):
            states.append(step.x)
        errors.append(float((states[-1] - exact(3.0)).abs().max()))
        back = plan.inverse()
        assert back.times == plan.times[::-1]
        first = pl.solve(field, [states[-1], states[-2]], solver=back).x
        torch.testing.assert_close(first, x, rtol=0, atol=1e-13)
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.1)


def test_a_one_state_plan_has_no_exact_inverse_and_says_so():
    with pytest.raises(pl.UsageError, match="cannot be solved for state"):
        pl.DDIM().plan(VP, pl.grids.log_snr(3)).inverse()


def predict_evaluate_correct(n):
    """Euler predicts, the trapezoid corrects, the next step takes F from the prediction."""
    h, rows, at, slope = 1 / n, [], 0, 0
    for i in range(n):
        t = (i + 1) * h
        rows.append(pl.solvers.Row(t, {at: 1.0}, {slope: h}, lands=False))
        predicted = len(rows)
        rows.append(pl.solvers.Row(t, {at: 1.0}, {slope: h / 2, predicted: h / 2}))
        at, slope = len(rows), predicted
    return pl.Plan((0.0,), tuple(rows))


def test_a_corrector_may_use_the_evaluation_of_a_prediction():
    x, errors = starts(), []
    for n in (32, 64):
        plan = predict_evaluate_correct(n)
        assert plan.nfe == n + 1 and plan.steps == n
        end = pl.solve(lambda x, t: -x, x, solver=plan).x
        errors.append(float((end - x * math.exp(-1)).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.1)


def test_coefficients_may_differ_from_element_to_element_and_sample_to_sample():
    rate = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    factor = torch.tensor([[1.0], [0.5], [0.0], [-1.0]], dtype=torch.float64)
    row = pl.solvers.Row(1.0, {0: torch.exp(-rate)}, {0: factor})
    x = starts()
    end = pl.solve(lambda x, t: torch.ones_like(x), x, solver=pl.Plan((0.0,), (row,))).x
    torch.testing.assert_close(end, x * torch.exp(-rate) + factor)


def test_tensor_coefficients_survive_a_file(tmp_path):
    row = pl.solvers.Row(
        1.0, {0: torch.tensor([1.0, 1 / 3], dtype=torch.float64)}, {0: 0.1}, {2: 0.5}
    )
    plan = pl.Plan((0.0,), (row,), recipe={"by": "hand"})
    again = pl.Plan.load(plan.save(tmp_path / "plan.json"))
    assert again.to_dict() == plan.to_dict()
    assert torch.equal(again.rows[0].x[0], row.x[0])


def test_a_row_may_add_a_constant(tmp_path):
    """x' = x/2 + 3 and x'' = x' − (1, 2): in the executor, in the moments, and from a file."""
    mean = torch.tensor([-1.0, -2.0], dtype=torch.float64)
    rows = (
        pl.solvers.Row(0.5, {0: 0.5}, {}, constant=3.0),
        pl.solvers.Row(0.0, {1: 1.0}, {}, constant=mean),
    )
    plan = pl.Plan((1.0,), rows)
    x = starts(4, 2)
    again = pl.Plan.load(plan.save(tmp_path / "plan.json"))
    for made in (plan, again):
        assert torch.equal(run(made, pl.VectorField(lambda x, t: x), x), x * 0.5 + 3.0 + mean)
    law = pl.Gaussian(pl.VPLinear(), *torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    first = pl.Plan((1.0,), rows[:1], "x0", law.path)
    assert moments(first, law, 2.0, 4.0) == pytest.approx((4.0, 1.0))
    assert "+3" in plan.table() and "[2]" in plan.table() and plan.to_dict() == again.to_dict()


def test_rows_that_name_a_draw_share_it():
    rows = (
        pl.solvers.Row(0.5, {0: 1.0}, {}, {7: 2.0}),
        pl.solvers.Row(1.0, {1: 1.0}, {}, {7: -2.0, 3: 1.0}),
    )
    x, seeds = starts(), [4, 5, 6, 7]
    model = pl.VectorField(lambda x, t: x)
    end = pl.solve(model, x, solver=pl.Plan((0.0,), rows), seeds=seeds).x
    fresh = noise.normal(seeds, (3,), stream="step", index=3, dtype=torch.float64)
    torch.testing.assert_close(end, x + fresh)
    with pytest.raises(pl.UsageError, match="needs seeds"):
        pl.solve(model, x, solver=pl.Plan((0.0,), rows))


def test_folding_is_linear_algebra():
    """One step of each view by hand: DDIM for an ε network has the coefficients of its paper."""
    s, t = 0.8, 0.5
    plan = pl.DDIM().plan(VP, pl.grids.times([s, t])).folded("eps")
    (row,) = plan.rows
    ratio = VP.alpha(t) / VP.alpha(s)
    assert row.x[0] == pytest.approx(float(ratio), rel=1e-14)
    assert row.f[0] == pytest.approx(float(VP.sigma(t) - ratio * VP.sigma(s)), rel=1e-13)


def test_order_three_is_the_integral_of_the_parabola():
    """Were x̂₀ a parabola in λ, one row of ++3M would be exact: ∫ e^λ x̂₀ dλ by SciPy."""
    from scipy.integrate import quad

    grid = pl.grids.karras(12)
    plan = pl.DPMpp(order=3).plan(VP, grid)
    times = torch.tensor(plan.times, dtype=torch.float64)
    level, sigma = VP.log_snr(times).tolist(), VP.sigma(times).tolist()

    def x0(at):
        return 0.3 - 0.7 * at + 0.2 * at**2

    for i in range(2, 12):
        row = plan.rows[i]
        integral, _ = quad(lambda at: math.exp(at) * x0(at), level[i], level[i + 1], epsabs=1e-13)
        x = sigma[i + 1] / sigma[i] * 0.8 + sigma[i + 1] * integral
        mine = row.x[i] * 0.8 + sum(b * x0(level[k]) for k, b in row.f.items())
        assert mine == pytest.approx(x, rel=1e-10)


def test_order_one_is_ddim_on_any_grid():
    for grid in (pl.grids.uniform(9), pl.grids.karras(5, last="denoise"), pl.grids.quadratic(1)):
        plans = [s.plan(VP, grid) for s in (pl.DDIM(), pl.DPMpp(order=1), pl.Euler(view="eps"))]
        for row, other, third in zip(*(p.folded("eps").rows for p in plans), strict=True):
            assert dict(row.x) == pytest.approx(dict(other.x), rel=1e-12)
            assert dict(row.f) == pytest.approx(dict(other.f), rel=1e-12, abs=1e-14)
            assert dict(row.f) == pytest.approx(dict(third.f), rel=1e-9, abs=1e-12)


def test_orders_are_lowered_at_the_end_of_few_steps_only():
    def uses(n, **options):
        return [len(r.f) for r in pl.DPMpp(order=3, **options).plan(VP, pl.grids.log_snr(n)).rows]

    assert uses(5) == [1, 2, 3, 2, 1]
    assert uses(5, final="full") == [1, 2, 3, 3, 3]
    assert uses(10) == [1, 2, *[3] * 8]
    assert uses(12, final="lower") == [1, 2, *[3] * 8, 2, 1]
    assert uses(1) == [1] and uses(2) == [1, 1]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("variable", ["t", "rho", "lambda"])
def test_deis_is_exact_where_eps_is_a_polynomial_in_its_variable(order, variable):
    """Against the antiderivative by SciPy's quadrature in ρ, on an uneven grid."""
    from scipy.integrate import quad

    grid = pl.grids.karras(9)
    plan = DEIS(order=order, variable=variable).plan(VP, grid)
    times = torch.tensor(plan.times, dtype=torch.float64)
    alpha = VP.alpha(times).tolist()
    rho = (VP.sigma(times) / VP.alpha(times)).tolist()

    def eps(r):
        u = {"rho": r, "lambda": -math.log(r)}.get(variable)
        if variable == "t":
            u = float(VP.time_of_log_snr(-math.log(r)))
        return sum((0.7 - 0.4 * k) * u**k for k in range(order))

    for i in range(order - 1, 9):
        integral, _ = quad(eps, rho[i], rho[i + 1], epsabs=1e-13, epsrel=1e-12)
        exact = alpha[i + 1] * (0.6 / alpha[i] + integral)
        row = plan.rows[i]
        mine = row.x[i] * 0.6 + sum(b * eps(rho[k]) for k, b in row.f.items())
        assert mine == pytest.approx(exact, rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("variable", ["t", "rho", "lambda"])
def test_the_table_of_deis_is_its_steps(variable):
    grid = pl.grids.quadratic(6, last="denoise")
    psi, c = coefficients(VP, grid, 3, variable)
    assert psi.shape == (5,) and c.shape == (5, 3) and bool((c[0, 1:] == 0).all())
    x, f = torch.tensor([0.7], dtype=torch.float64), []
    for i, t in enumerate(grid.times(VP)[:5]):
        f.insert(0, torch.sin(x + t))
        x = psi[i] * x + sum(a * b for a, b in zip(c[i], f, strict=False))
    field = pl.Denoiser(lambda x, t: torch.sin(x + t[:, None]), VP, "eps")
    end = pl.solve(
        field, torch.tensor([[0.7]], dtype=torch.float64), solver=DEIS(3, variable),
        grid=pl.grids.times(grid.times(VP)[:-1]),
    )  # fmt: skip
    torch.testing.assert_close(end.x[0], x, rtol=1e-13, atol=0)


def test_deis_lowers_its_last_orders_where_it_is_told_to():
    rows = DEIS(4, final="lower").plan(VP, pl.grids.log_snr(6)).rows
    assert [len(row.f) for row in rows] == [1, 2, 3, 3, 2, 1]
    with pytest.warns(UserWarning, match="alternate and grow"):
        DEIS(5)


def test_legacy_is_the_third_order_step_with_half_its_second_derivative():
    """Three steps by hand; below order three it is the midpoint rule."""
    grid = pl.grids.karras(3)
    plan = pl.DPMpp(3, expansion="legacy", final="full").plan(VP, grid)
    levels = Writer(VP, grid.times(VP), denoises=False).levels
    h, h0, h1 = (levels[i + 1].log_snr - levels[i].log_snr for i in (2, 1, 0))
    r0, r1, first = h0 / h, h1 / h, -math.expm1(-h)
    second = 1 - first / h
    third = 0.5 - second / h
    f = [0.3, -1.1, 0.8]  # oldest first
    a, b = (f[2] - f[1]) / r0, (f[1] - f[0]) / r1
    d1, d2 = a + r0 / (r0 + r1) * (a - b), (a - b) / (r0 + r1)  # public code's: without a factor 2
    wanted = levels[3].alpha * (first * f[2] + second * d1 + third * d2)
    assert sum(w * f[k] for k, w in plan.rows[2].f.items()) == pytest.approx(wanted, rel=1e-12)
    few = [pl.DPMpp(2, expansion=e).plan(VP, grid).rows for e in ("legacy", "midpoint")]
    assert few[0] == few[1]


def test_two_independent_codes_of_multistep_in_eps_agree():
    """DEIS in λ by quadrature, and DPM-Solver's φ-functions."""
    grid = pl.grids.karras(9)
    plan = DEIS(order=3, variable="lambda").plan(VP, grid)
    levels = Writer(VP, grid.times(VP), denoises=False).levels
    for i in range(2, 9):
        earlier = [levels[i - 1], levels[i - 2]]
        linear, weights = polynomial_weights("eps", levels[i], levels[i + 1], earlier)
        assert plan.rows[i].x[i] == pytest.approx(linear, rel=1e-13)
        assert list(plan.rows[i].f.values()) == pytest.approx(weights, rel=1e-9, abs=1e-12)


def test_edm_is_the_published_algorithm():
    """Algorithm 2 in σ, as printed, with the same draws."""
    path, seeds, n, churn = pl.EDM(), [3, 4], 6, 1.5
    mixture = problems.m4(path)
    sigma = [80 * t for t in pl.grids.karras(n).times(path)]
    x = 80 * noise.normal(seeds, (3,), dtype=torch.float64)
    for i, (now, after) in enumerate(itertools.pairwise(sigma)):
        hat = now * (1 + min(churn / n, math.sqrt(2) - 1)) if i else now  # none above σ_max
        fresh = noise.normal(seeds, (3,), stream="step", index=i, dtype=torch.float64)
        x = x + math.sqrt(hat**2 - now**2) * fresh
        slope = (x - mixture(x, hat / 80).x0) / hat
        euler = x + (after - hat) * slope
        x = x + (after - hat) * (slope + (euler - mixture(euler, after / 80).x0) / after) / 2
    sampler = EDMSampler(churn=churn)
    mine = pl.sample(
        mixture, seeds=seeds, solver=sampler, grid=pl.grids.karras(n), dtype=torch.float64
    )
    torch.testing.assert_close(mine.x, x)


def test_euler_maruyama_is_the_published_step():
    """x + (f x − g² ∇log p) h + g √|h| z, with the score of the mixture."""
    mixture, x, seeds = problems.m4(VP), starts(2), [0, 1]
    z = noise.normal(seeds, (3,), stream="step", index=0, dtype=torch.float64)
    s, t = torch.tensor(0.7, dtype=torch.float64), 0.6
    g2, h = VP.diffusion_squared(s), t - 0.7
    by_hand = x + (VP.drift(s) * x - g2 * mixture(x, s).score) * h + (-g2 * h).sqrt() * z
    mine = pl.solve(mixture, x, solver="euler_maruyama", grid=[0.7, t], seeds=seeds).x
    torch.testing.assert_close(mine, by_hand)


def test_unipc_one_is_eulers_step_and_the_trapezoid_in_its_coordinates():
    """UniPC-1: DDIM predicts, the mean of both x̂₀ corrects; its last step is DDIM alone."""
    plan = UniPC(order=1).plan(VP, pl.grids.log_snr(12))
    ddim = pl.DDIM().plan(VP, pl.grids.log_snr(12))
    whole = ddim.rows[0].f[0]
    assert dict(plan.rows[0].f) == pytest.approx({0: whole}, rel=1e-12)
    assert dict(plan.rows[1].f) == pytest.approx({0: whole / 2, 1: whole / 2}, rel=1e-12)
    assert plan.nfe == 12 and not plan.rows[0].lands and plan.rows[-1].lands
    assert dict(plan.rows[-1].f).keys() == {len(plan.rows) - 2}


@pytest.mark.parametrize("k", range(4))
def test_phi_is_its_integral(k):
    """φ_k(z) = ∫₀¹ e^{(1−θ)z} θ^{k−1}/(k−1)! dθ, here by its 60-digit series."""
    import mpmath

    mpmath.mp.dps = 60
    for z in (-40.0, -3.0, -1.0, -0.999, -0.3, -1e-9, 0.0, 1e-12, 0.2, 1.0, 1.5, 8.0):
        exact = mpmath.nsum(lambda j, z=z: mpmath.mpf(z) ** j / mpmath.factorial(j + k), [0, 250])
        assert phi(k, z) == pytest.approx(float(exact), rel=2e-14)


def test_derivative_weights_are_exact_on_polynomials():
    offsets = [-0.7, -1.1, -2.5]
    for k in (1, 2, 3):
        weights = derivative_weights(offsets, k)
        for degree in (1, 2, 3):
            found = sum(w * d**degree for w, d in zip(weights, offsets, strict=True))
            exact = math.factorial(degree) if degree == k else 0.0
            assert found == pytest.approx(exact, abs=1e-12)


def test_a_tableau_that_is_inconsistent_is_refused():
    with pytest.raises(ValueError, match="inconsistent"):
        Tableau((0.0, 0.5), ((), (0.4,)), (0.0, 1.0), 2).checked()


def test_the_reference_is_as_good_as_it_says():
    gaussian = pl.Gaussian(
        VP, torch.tensor([0.7, -0.4, 1.5]), torch.tensor([0.09, 1.0, 4.0], dtype=torch.float64)
    )
    x = starts()
    end = reference(gaussian, x, tolerance=1e-11)
    torch.testing.assert_close(end, gaussian.flow(x, 1.0, VP.t_min), rtol=0, atol=1e-10)


def test_the_table_says_what_the_plan_does():
    table = pl.DPMpp(order=2).plan(VP, pl.grids.log_snr(3)).table()
    assert table.count("\n") == 3 and "F: x0;  3 evaluations" in table
    stages = pl.Heun().plan(VP, pl.grids.log_snr(1)).table()
    assert "(stage)" in stages and "2 evaluations" in stages


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: pl.Plan((0.0,), (pl.solvers.Row(1.0, {1: 1.0}, {}),)),
            "row 1 uses x1, which is not made",
        ),
        (
            lambda: pl.Plan((0.0,), (pl.solvers.Row(1.0, {0: math.inf}, {}),)),
            "coefficient inf of x0",
        ),
        (lambda: pl.DPMpp(order=4), "orders 1, 2 and 3; order 4"),
        (lambda: pl.DPMpp(expansion="x"), "choose 'midpoint', 'taylor' or 'legacy'"),
        (lambda: pl.DPMpp(final="x"), "choose 'auto', 'full' or 'lower'"),
        (lambda: pl.DPMpp(order=2.0), "orders 1, 2 and 3; order 2.0"),
        (lambda: DEIS(6), "orders 1 to 5; order 6"),
        (lambda: DEIS(3, final="x"), "choose 'auto', 'full' or 'lower'"),
        (lambda: pl.DDIM(eta=1.5), r"eta must lie in \[0, 1\]"),
        (lambda: pl.DPMpp(eta="1"), "eta must be a number, 0 or more, and is '1'"),
        (lambda: pl.DPMpp(eta=math.nan), "eta must be a number, 0 or more"),
        *(
            (lambda solver=solver: solver.plan(VP, NEAR), r"step 2 moves by .* in λ")
            for solver in (DEIS(), pl.DPMpp(), DPM(), solvers.build("unipc"))
        ),
        (
            lambda: pl.DDIM(eta=1).plan(VP, pl.grids.times([0.2, 0.4])),
            "noise is added towards data only",
        ),
        (lambda: pl.DDIM().plan(pl.CondOT(), pl.grids.times([0.0, 0.4])), "from data itself"),
        (lambda: pl.DPMpp().plan(pl.CondOT(), pl.grids.times([0.0, 0.4])), "from data itself"),
        (lambda: pl.Euler(view="score"), "choose from velocity, eps, x0"),
        (lambda: pl.Plan((0.0,), ()).folded("x0"), "without a path needs a velocity"),
        (lambda: pl.Plan((0.0,), ()).order(), "does not say what compiled it"),
        (lambda: pl.DDIM(eta=1).plan(VP, pl.grids.log_snr(2)).order(), "weak order"),
        (
            lambda: pl.DDIM().plan(pl.CondOT(), pl.grids.uniform(3)).folded("eps"),
            "predicts eps does not tell x0 at t = 1",
        ),
    ],
)
def test_plans_that_cannot_be_are_refused(make, says):
    with pytest.raises(pl.PathlineError, match=says):
        make()


def test_a_solver_of_your_own_needs_no_registration():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Mine(pl.DDIM):
        """DDIM, under another roof."""

    grid = pl.grids.log_snr(3)
    plan = Mine().plan(VP, grid)
    assert plan.rows == pl.DDIM().plan(VP, grid).rows and not plan.recipe


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "cannot read a plan"),
        ("[]", "is not a plan"),
        ('{"plan": 99}', "not a plan of format"),
        ('{"plan": 1, "rows": [{}]}', "is damaged"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(content, says, tmp_path):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(pl.UsageError, match=says):
        pl.Plan.load(tmp_path / "plan.json")


def test_a_plan_is_one_json_object():
    plan = pl.DPMpp(order=2).plan(VP, pl.grids.log_snr(2))
    content = json.loads(json.dumps(plan.to_dict()))
    said = content["recipe"]["solver"]
    assert said["name"] == "dpmpp" and said["expansion"] == "midpoint"  # defaults are told too
    assert content["path"] == {"name": "vp_linear", "beta_min": 0.1, "beta_max": 20.0}
    assert pl.Plan.from_dict(content).to_dict() == plan.to_dict()

"""PFGM++: Student-t noise, its exact denoiser, its flow, and what must be refused."""

import math

import pytest
import torch
from scipy import stats

import pathline as pl
from pathline.adapters import edm
from pathline.core import noise
from pathline.fields import change, convert
from pathline.learn import LogNormalLevels, Matching, Recipe, load_model, train
from pathline.learn.objectives import drawn_noise
from pathline.learn.recipe import build_network
from pathline.learn.run import Run
from pathline.learn.sources import Batch
from pathline.nets import Preconditioned, UNet
from pathline.paths import EDM, PFGMpp, StudentT, VPLinear, bshape, paths
from pathline.solvers import NoiseInjection, grids, sample, solve, solvers
from pathline.solvers.likelihood import log_prob
from pathline.solvers.solve import start
from pathline.speed import DMCMC, ExactLevels
from pathline.systems import run as run_system

POINTS = noise.normal(range(6), (3,), stream="probe", dtype=torch.float64)
KARRAS = grids.karras(18, last="denoise")
HEUN = pl.Heun(view="eps")


def draws(n, dim=3, index=1):
    return noise.normal(range(n), (dim,), stream="probe", index=index, dtype=torch.float64)


class TestNoise:
    @pytest.mark.parametrize("dof", [0.3, 1, 2, 3.7, 64, 1e7])
    def test_chi_square_has_its_law(self, dof):
        """Kolmogorov-Smirnov against SciPy's; 1e-6 is the chance of a false alarm."""
        drawn = noise.chi_square(range(40_000), dof)
        assert stats.kstest(drawn.numpy(), stats.chi2(dof).cdf).pvalue > 1e-6

    @pytest.mark.parametrize("dof", [0.7, 4.0])
    @pytest.mark.parametrize("n", [1, 3, 64])
    def test_the_radius_is_that_of_the_published_beta_recipe(self, n, dof):
        """‖ε‖²/(‖ε‖² + D) ~ Beta(N/2, D/2), and the direction is uniform."""
        eps = StudentT(dof).draw(range(20_000), (n,), dtype=torch.float64)
        squared = eps.square().sum(1)
        beta = (squared / (squared + dof)).numpy()
        assert stats.kstest(beta, stats.beta(n / 2, dof / 2).cdf).pvalue > 1e-6
        direction = (eps / squared.sqrt()[:, None]).mean(0)
        assert direction.abs().max() < 5 / math.sqrt(20_000)  # 5 standard deviations

    def test_a_sample_is_a_function_of_its_seed_alone(self):
        law, seeds = StudentT(2.5), [11, 4, 2**64 - 1, 7]
        together = law.draw(seeds, (3, 2))
        for i, seed in enumerate(seeds):
            assert torch.equal(together[i], law.draw([seed], (3, 2))[0])
        twice = StudentT(5.0).draw(seeds, (3, 2))
        radii = [x.flatten(1).norm(dim=1) for x in (together, twice)]
        assert not torch.allclose(*radii)
        assert not torch.equal(law.draw(seeds, (6,)), law.draw(seeds, (6,), stream="forward"))

    def test_draws_that_are_too_far_are_drawn_anew(self):
        least = float(noise.chi_square(range(1000), 1).median())
        kept = noise.chi_square(range(1000), 1, least=least)
        assert (kept >= least).all() and (kept > least).any()
        law = stats.chi2(1)  # cut off at `least`
        above = lambda x: (law.cdf(x) - law.cdf(least)) / law.sf(least)  # noqa: E731
        assert stats.kstest(kept.numpy(), above).pvalue > 1e-6

    @pytest.mark.parametrize(("n", "dof"), [(1, 0.5), (3, 4), (64, 1000)])
    def test_the_density_is_scipys(self, n, dof):
        eps = 2 * draws(5, n)
        exact = stats.multivariate_t(loc=[0] * n, df=dof).logpdf(eps.numpy())
        assert StudentT(dof).log_prob(eps).numpy() == pytest.approx(exact, rel=1e-10)

    def test_infinite_d_is_the_normal_law(self):
        eps = draws(5)
        exact = stats.multivariate_normal(mean=[0] * 3).logpdf(eps.numpy())
        assert StudentT().log_prob(eps).numpy() == pytest.approx(exact, rel=1e-12)
        assert torch.equal(StudentT().draw([3], (4,)), noise.normal([3], (4,)))
        assert (StudentT(2.0**40).log_prob(eps) - StudentT().log_prob(eps)).abs().max() < 1e-2
        assert PFGMpp(dof=math.inf).kernel == EDM().kernel == StudentT()


class TestDenoiser:
    @pytest.mark.parametrize("dof", [0.5, 1, 4, 64])
    def test_it_is_the_poisson_field(self, dof):
        """(x − x̂_0)/σ = √D E_x/E_r, of charges summed as they stand in N + D dimensions."""
        law, x = pl.Dataset(PFGMpp(dof=dof), POINTS), 2 * draws(8)
        for sigma in (0.2, 1.0, 5.0):
            r = sigma * math.sqrt(dof)
            away = x[:, None] - POINTS
            charge = (away.square().sum(-1) + r**2) ** (-(3 + dof) / 2)
            along = (charge[..., None] * away).sum(1) / (charge.sum(1, keepdim=True) * r)
            eps = law(x, sigma / 80).eps
            torch.testing.assert_close(eps, along * math.sqrt(dof), rtol=1e-12, atol=1e-12)

    def test_its_error_as_d_grows_is_of_order_one_over_d(self):
        x = 2 * draws(50)
        gauss = pl.Dataset(EDM(), POINTS)(x, 1 / 80).x0
        off = [
            float((pl.Dataset(PFGMpp(dof=d), POINTS)(x, 1 / 80).x0 - gauss).abs().max())
            for d in (2.0**12, 2.0**14, 2.0**40)
        ]
        assert off[0] / off[1] == pytest.approx(4, abs=0.1) and off[2] < 1e-9

    def test_its_gradient_of_log_p_is_the_one_with_its_own_weights(self):
        """∇ log p = −E[(N + D)(x − y)/(‖x − y‖² + r²) | x], and is not −ε̂/σ."""
        dof, sigma = 4.0, 0.7
        law, x = pl.Dataset(PFGMpp(dof=dof), POINTS), draws(8).requires_grad_()
        density = law.log_prob(x, sigma / 80)
        parts = [StudentT(dof).log_prob((x - y) / sigma) for y in POINTS]
        mixed = torch.stack(parts).logsumexp(0) - math.log(6) - 3 * math.log(sigma)
        torch.testing.assert_close(density, mixed)
        (gradient,) = torch.autograd.grad(density.sum(), x)
        away = x[:, None] - POINTS
        squared = away.square().sum(-1)
        weight = (-(3 + dof) / 2 * torch.log1p(squared / (dof * sigma**2))).softmax(1)
        factor = weight * (3 + dof) / (squared + dof * sigma**2)
        torch.testing.assert_close(gradient, -(factor[..., None] * away).sum(1))
        assert (gradient + law(x, sigma / 80).eps / sigma).abs().max() > 0.1

    def test_the_flow_carries_the_mixture_of_student_laws(self):
        """The change of variables along dx/dσ = (x − x̂_0)/σ gives the closed-form density."""
        path = PFGMpp(0.3, 20.0, 5.0)
        law = pl.Dataset(path, POINTS)
        x = POINTS[:4] + 0.3 * draws(4)
        found = log_prob(law, x, prior=lambda z: law.log_prob(z, 1.0)).log_prob
        torch.testing.assert_close(found, law.log_prob(x, path.t_min), rtol=0, atol=2e-4)
        own = log_prob(law, x)
        scaled = path.kernel.log_prob(own.z / 20) - 3 * math.log(20)
        torch.testing.assert_close(own.prior, scaled)

    def test_float32_states_get_float64_weights(self):
        path = PFGMpp(dof=2.0**20)
        law, x = pl.Dataset(path, POINTS), draws(8).float()
        torch.testing.assert_close(law(x, 0.01).x0, law(x.double(), 0.01).x0.float())


DETERMINISTIC = [e.name for e in solvers if not e.build().is_stochastic]


class TestSampling:
    @pytest.mark.parametrize("name", DETERMINISTIC)
    def test_every_solver_of_the_flow_is_that_of_edm_bit_for_bit(self, name):
        path = PFGMpp(0.01, 10.0, 8.0)
        law = pl.Dataset(EDM(0.01, 10.0), POINTS)
        both = [pl.Denoiser(lambda x, t: law(x, t[0]).x0, p, "x0") for p in (path, path.gaussian)]
        x = start(path, 1.0, range(4), (3,), torch.float64)
        rule = solvers.build(name)
        grid = grids.karras(1 if rule.is_adaptive else 6)
        ends = [solve(m, x, solver=rule.standard(m.path), grid=grid).x for m in both]
        assert torch.equal(*ends)

    def test_heun_on_karras_levels_is_the_published_loop(self):
        law = pl.Dataset(PFGMpp(dof=8.0), POINTS)
        found = sample(law, 5, solver=HEUN, grid=KARRAS, dtype=torch.float64)
        i = torch.arange(18, dtype=torch.float64)
        ends = [80 ** (1 / 7), 0.002 ** (1 / 7)]
        levels = [*((ends[0] + i / 17 * (ends[1] - ends[0])) ** 7).tolist(), 0.0]
        x = 80 * StudentT(8.0).draw(range(5), (3,), dtype=torch.float64)
        for now, after in zip(levels, levels[1:], strict=False):
            slope = (x - law(x, now / 80).x0) / now
            ahead = x + (after - now) * slope
            if after > 0:
                slope = (slope + (ahead - law(ahead, after / 80).x0) / after) / 2
            x = x + (after - now) * slope
        torch.testing.assert_close(found.x, x, rtol=0, atol=1e-10)
        assert found.stats.nfe == 35

    def test_samples_start_from_the_kernel_and_know_no_batch_mates(self):
        path, seeds = PFGMpp(dof=3.0), [5, 9, 2]
        x = start(path, 1.0, seeds, (2, 4, 4), torch.float64)
        exact = 80 * StudentT(3.0).draw(seeds, (2, 4, 4), dtype=torch.float64)
        torch.testing.assert_close(x, exact, rtol=1e-15, atol=0)
        for i, seed in enumerate(seeds):
            assert torch.equal(x[i], start(path, 1.0, [seed], (2, 4, 4), torch.float64)[0])

    @pytest.mark.parametrize("name", [e.name for e in solvers if e.build().is_stochastic])
    def test_stochastic_solvers_are_refused(self, name):
        law = pl.Dataset(PFGMpp(dof=8.0), POINTS)
        with pytest.raises(pl.UsageError, match="only defined here for D=inf"):
            sample(law, 2, solver=name, steps=4)

    def test_a_plan_with_noise_of_another_path_is_refused_too(self):
        plan = solvers.build("edm").plan(EDM(), KARRAS)
        with pytest.raises(pl.UsageError, match="only defined here for D=inf"):
            sample(pl.Dataset(PFGMpp(dof=8.0), POINTS), 2, solver=plan)
        assert sample(pl.Dataset(PFGMpp(dof=math.inf), POINTS), 2, solver="edm", steps=4).ok

    def test_markov_chains_are_refused(self):
        law = pl.Dataset(PFGMpp(0.01, 10.0, 8.0), POINTS)
        levels = ExactLevels(pl.Dataset(EDM(0.01, 10.0), POINTS), 0.02, 10.0, 20)
        with pytest.raises(pl.UsageError, match="only defined here for D=inf"):
            DMCMC(law, levels, 0.1, n_chains=2)

    def test_there_is_no_score(self):
        path, x = PFGMpp(dof=8.0), draws(2)
        with pytest.raises(pl.UsageError, match="for D=inf alone"):
            convert(path, "x0", "score", x, x, 0.5)
        with pytest.raises(pl.UsageError, match="for D=inf alone"):
            _ = pl.Dataset(path, POINTS)(x, 0.5).score
        assert change(PFGMpp(dof=math.inf), "eps", "score", 0.5)[1] == -1 / 40


class TestNoiseInjection:
    @pytest.mark.parametrize("solver", [HEUN, pl.Euler(), pl.DPMpp(3), solvers.build("unipc")])
    @pytest.mark.parametrize("last", ["stop", "denoise"])
    def test_it_is_what_an_observer_would_do(self, solver, last):
        """The same noise added by hand at every grid point leads to the same end."""
        path, grid = EDM(0.01, 10.0), grids.karras(7, last=last)
        law, seeds, a = pl.Dataset(path, POINTS), range(3), 0.3

        def z(i, t):
            drawn = noise.normal(seeds, (3,), stream="step", index=i, dtype=torch.float64)
            return a * float(path.sigma(t)) * drawn

        def push(step):
            if step.index < 6:
                step.x = step.x + z(step.index + 1, step.t)

        x = start(path, 1.0, seeds, (3,), torch.float64)
        by_hand = solve(law, x + z(0, 1.0), solver=solver, grid=grid, observe=push)
        pushed = NoiseInjection(solver, a)
        found = solve(law, x, solver=pushed, grid=grid, seeds=seeds)
        torch.testing.assert_close(found.x, by_hand.x, rtol=1e-12, atol=1e-12)
        assert found.stats.nfe == by_hand.stats.nfe and found.stats.steps == 7
        alone = solve(law, x[1:2], solver=pushed, grid=grid, seeds=[1])
        torch.testing.assert_close(found.x[1:2], alone.x, rtol=1e-12, atol=1e-12)

    def test_no_noise_is_no_change_and_finite_d_may_be_pushed(self):
        path = PFGMpp(dof=8.0)
        assert NoiseInjection(HEUN, 0.0).plan(path, KARRAS) is HEUN.plan(path, KARRAS)
        law = pl.Dataset(path, POINTS)
        ends = [sample(law, 4, solver=NoiseInjection(HEUN, a), grid=KARRAS).x for a in (0.1, 0.4)]
        assert not torch.equal(*ends)

    def test_each_sample_may_have_its_own_grid(self):
        path = EDM(0.01, 10.0)
        law, x = pl.Dataset(path, POINTS), start(path, 1.0, range(2), (3,), torch.float64)
        solver, own = NoiseInjection(HEUN, 0.2), [grids.karras(5), grids.karras(5, start=0.5)]
        both = solve(law, x, solver=solver, grid=own, seeds=[0, 1]).x
        for i in range(2):
            one = solve(law, x[i : i + 1], solver=solver, grid=own[i], seeds=[i]).x
            torch.testing.assert_close(both[i : i + 1], one, rtol=1e-12, atol=1e-12)

    def test_what_cannot_be_pushed_is_refused(self):
        with pytest.raises(pl.UsageError, match="must not be negative"):
            NoiseInjection(HEUN, -1.0)
        with pytest.raises(pl.UsageError, match="no plan"):
            NoiseInjection(solvers.build("dopri5"), 0.1).plan(EDM(), KARRAS)
        with pytest.raises(pl.UsageError, match="units of a path's"):
            NoiseInjection(pl.Euler(), 0.1).plan(None, grids.uniform(4))
        with pytest.raises(pl.UsageError, match="only defined here for D=inf"):
            NoiseInjection(solvers.build("ddpm"), 0.1).plan(PFGMpp(), KARRAS)


class TestTraining:
    def test_noise_for_training_has_the_kernels_law(self):
        law, shape = StudentT(4.0), (20_000, 2, 3)
        eps = drawn_noise(law, shape, torch.Generator().manual_seed(0))
        beta = eps.double().flatten(1).square().sum(1)
        beta = (beta / (beta + 4)).numpy()
        assert stats.kstest(beta, stats.beta(3, 2).cdf).pvalue > 1e-6
        again = drawn_noise(law, shape, torch.Generator().manual_seed(0))
        assert torch.equal(eps, again) and eps.dtype == torch.float32

    @pytest.mark.parametrize("path", [EDM(), PFGMpp(dof=4.0), VPLinear()])
    def test_edms_weighting(self, path):
        """λ(ρ)‖D − y‖² with λ = (ρ² + σ_d²)/(ρ σ_d)², whatever the network says."""
        t = torch.tensor([0.01, 0.1, 0.7], dtype=torch.float64)
        x0, eps, said = draws(3, 5), draws(3, 5, 2), draws(3, 5, 3)
        rho = (-path.log_snr(t)).exp()
        weight = (rho**2 + 0.25) / (rho * 0.5) ** 2
        exact = weight * (said - x0).square().mean(1)
        for view in ("x0", "eps", "v"):
            p, q = (bshape(c, x0) for c in change(path, "x0", view, t))
            x = path.noised(x0, eps, t)
            matching = Matching(path, view, error=0.5)
            loss = matching.loss(lambda x, t, p=p, q=q: p * x + q * said, x0, eps, t, {})
            torch.testing.assert_close(loss, exact, rtol=1e-9, atol=1e-9)
            assert x.shape == said.shape

    def test_training_levels_are_log_normal(self):
        path = PFGMpp(dof=64.0)
        times = Matching(path, "x0", LogNormalLevels(path, -1.2, 1.2)).draw_times(
            4000, torch.Generator().manual_seed(0)
        )
        levels = path.sigma(times).log().numpy()
        assert stats.kstest(levels, stats.norm(-1.2, 1.2).cdf).statistic < 2 / 4000  # stratified

    def test_preconditioning_is_edms(self):
        """A network whose errors are F's has, in x0, errors of c_out; c_in x has unit size."""
        seen = []

        class Says(torch.nn.Module):
            def forward(self, x, t):
                seen.append((x, t))
                return torch.full_like(x, 0.3)

        x, sigma = 3 * draws(4), torch.tensor([0.01, 0.5, 2.0, 80.0], dtype=torch.float64)
        found, s = Preconditioned(Says(), 0.5)(x, sigma), sigma[:, None]
        total = s**2 + 0.25
        exact = 0.25 / total * x + s * 0.5 / total.sqrt() * 0.3
        torch.testing.assert_close(found, exact)
        torch.testing.assert_close(seen[0][0], x / total.sqrt())
        torch.testing.assert_close(seen[0][1], sigma.log() / 4)

    def test_a_recipe_trains_and_its_model_samples(self, tmp_path):
        class Pictures:
            def batch(self, n, generator):
                return Batch(torch.rand(n, 1, 4, 4, generator=generator) - 0.5, {})

            def held_out(self, n):
                return self.batch(n, torch.Generator().manual_seed(0))

        network = {"class": "UNet", "width": 8, "multipliers": [1, 2], "blocks": 1}
        recipe = Recipe(
            name="poisson",
            steps=3,
            data={},
            batch=4,
            network={**network, "time_scale": 200.0, "sigma_data": 0.3},
            objective={
                "path": "pfgmpp",
                "path_args": {"dof": 16.0, "sigma_max": 20.0},
                "view": "x0",
                "label": "sigma",
                "sigma_mean": -1.2,
                "sigma_std": 1.2,
                "error": 0.3,
            },
        )
        matching = recipe.matching()
        assert matching.path == PFGMpp(0.002, 20.0, 16.0) and matching.error == 0.3
        assert matching.times == LogNormalLevels(matching.path, -1.2, 1.2)
        run, pictures = Run.start(recipe, Pictures()), Pictures().held_out(4)
        pairs = run.pairs(pictures, torch.Generator().manual_seed(7))
        drawn = drawn_noise(StudentT(16.0), (4, 1, 4, 4), torch.Generator().manual_seed(7))
        assert torch.equal(pairs.x, drawn)
        model = load_model(train(recipe, tmp_path, source=Pictures()))
        assert isinstance(model.network, Preconditioned) and model.path == matching.path
        assert isinstance(model.network.network, UNet)
        t = torch.tensor(0.05, dtype=torch.float64)
        x = 0.3 * torch.ones(1, 1, 4, 4)
        exact = model.network(x, torch.tensor([1.0]))  # σ = 20 · 0.05
        torch.testing.assert_close(model(x, t).x0, exact)
        assert sample(model, 2, solver=HEUN, grid=KARRAS).ok

    def test_networks_of_pfgmpps_code_are_read(self):
        model = edm.denoiser(lambda x, sigma: 0 * x, dof=2048, shape=(3, 8, 8))
        assert model.path == PFGMpp(0.002, 80.0, 2048)
        assert isinstance(build_network({"class": "UNet", "width": 8}), UNet)


@pytest.mark.parametrize("dof", [0, -3, math.nan, "many", None, True])
@pytest.mark.parametrize("make", [StudentT, lambda dof: PFGMpp(dof=dof)])
def test_d_must_be_a_positive_number(make, dof):
    with pytest.raises(pl.UsageError, match="D must be a positive number or inf"):
        make(dof)


@pytest.mark.parametrize("levels", [(0.0, 80.0), (-1.0, 80.0), (80.0, 80.0), (90.0, 80.0)])
def test_levels_that_cannot_be_are_refused(levels):
    with pytest.raises(ValueError, match="sigma_min < sigma_max"):
        PFGMpp(*levels)


def test_a_sample_of_another_dimension_is_refused():
    law = pl.Dataset(PFGMpp(), POINTS)
    with pytest.raises(pl.UsageError, match="kernel was built for N=3"):
        law(torch.zeros(2, 1), 0.5)


def test_continuous_oracles_are_refused():
    for make in (pl.Gaussian, lambda p, m, s: pl.Mixture(p, m[None], s[None], torch.ones(1))):
        with pytest.raises(pl.UsageError, match="closed form is for Gaussian noise"):
            make(PFGMpp(), torch.zeros(2), torch.ones(2))


def test_radii_and_infinite_variances_are_warned_of():
    with pytest.warns(UserWarning, match=r"r = σ √D.*= 1000"):
        PFGMpp(0.02, 1000 * math.sqrt(128), 128.0)
    with pytest.warns(UserWarning, match="infinite variance"):
        Matching(PFGMpp(dof=2.0), "x0")


def test_the_system_measures_its_claims():
    report = run_system("pfgmpp", only=["limit", "limit-rate", "field", "sampler", "variance"])
    assert all(claim.passed for claim in report.claims) and len(report.claims) == 5


def test_a_plan_knows_its_order_and_its_path():
    plan = HEUN.plan(PFGMpp(dof=8.0), grids.karras(8))
    assert plan.order() == pytest.approx(2, abs=0.2)
    assert pl.Plan.from_dict(plan.to_dict()).path == PFGMpp(dof=8.0)
    assert paths.build("pfgm", dof=1.0).kernel.dof == 1

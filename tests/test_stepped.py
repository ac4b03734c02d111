"""Stepped solvers one by one: their formulas against others, how they fail, what they refuse."""

import math
import warnings

import pytest
import torch

import pathline as pl
from pathline.core import Status, noise
from pathline.fields import Field, problems
from pathline.solvers import DPM, AdaptiveDPM, AdaptiveRK, PredictorCorrector, solvers
from pathline.solvers.levels import Levels, norms, totals
from pathline.solvers.pairs import PAIRS
from pathline.solvers.phi import phi
from pathline.solvers.tableaux import TABLEAUX

VP = pl.VPLinear()
FLOAT = {"dtype": torch.float64}


def starts(n=16, dim=3):
    return noise.normal(range(n), (dim,), **FLOAT)


class TestAdaptive:
    @pytest.mark.parametrize("view", ["eps", "x0"])
    @pytest.mark.parametrize("order", [2, 3])
    def test_one_accepted_step_is_a_singlestep_dpm_step(self, order, view):
        """An enormous tolerance and first step: a single step, that of the solver with a plan."""
        solver = AdaptiveDPM(order=order, view=view, rtol=1e9, atol=1e9, first=1e9)
        once = pl.solve(problems.m4(VP), starts(), solver=solver)
        plain = pl.solve(problems.m4(VP), starts(), solver=DPM(order, view), steps=1)
        torch.testing.assert_close(once.x, plain.x, rtol=1e-10, atol=1e-10)  # σ/α = 150 there
        assert once.stats.nfe == order and once.stats.steps == 1

    def test_the_error_of_a_step_falls_with_the_order_of_the_pair(self):
        """Halving one step of dx/dt = −x divides its error by 2^(order + 1)."""
        for method, order in (("dopri5", 5), ("bosh3", 3)):
            solver, ends = AdaptiveRK(method=method, rtol=1e9, atol=1e9, first=10.0), []
            for h in (0.2, 0.1):
                x = torch.ones(1, 1, **FLOAT)
                sol = pl.solve(lambda x, t: -x, x, solver=solver, grid=[0.0, h])
                ends.append(abs(float(sol.x) - math.exp(-h)))
            assert math.log2(ends[0] / ends[1]) == pytest.approx(order + 1, abs=0.2)

    def test_evaluations_of_a_first_same_as_last_pair(self):
        """One at the start, one to size the first step, then six for each attempt."""
        solver = AdaptiveRK(rtol=1e-6, atol=1e-6)
        sol = pl.solve(lambda x, t: -x, starts(4), solver=solver, grid=[0.0, 2.0])
        assert sol.nfes == tuple(2 + 6 * (w.steps + w.rejected) for w in sol.stats.walks)

    def test_a_rejected_step_keeps_the_evaluation_it_started_from(self):
        solver = AdaptiveDPM(rtol=1e-3, atol=1e-4)
        sol = pl.solve(problems.m4(VP), starts(), solver=solver)
        assert any(walk.rejected for walk in sol.stats.walks)
        assert sol.nfes == tuple(3 * walk.steps + 2 * walk.rejected for walk in sol.stats.walks)

    def test_stopping_over_does_not_shrink_the_steps_afterwards(self):
        """Two grid points a hair apart force one tiny step, not a new start from it."""
        solver = AdaptiveRK(rtol=1e-6, atol=1e-6)
        plain = pl.solve(lambda x, t: -x, starts(2), solver=solver, grid=[0.0, 4.0])
        grid = [0.0, 2.0, 2.0 + 1e-9, 4.0]
        over = pl.solve(lambda x, t: -x, starts(2), solver=solver, grid=grid)
        assert over.stats.steps <= plain.stats.steps + 3

    def test_what_an_observer_changes_is_gone_on_from(self):
        def kick(step):
            if step.index == 0:
                step.x = step.x + 1

        solver = AdaptiveRK(rtol=1e-9, atol=1e-9)
        x = starts(3)
        sol = pl.solve(lambda x, t: -x, x, solver=solver, grid=[0.0, 1.0, 3.0], observe=kick)
        torch.testing.assert_close(sol.x, (x * math.exp(-1) + 1) * math.exp(-2), rtol=0, atol=1e-7)

    def test_a_step_shows_the_evaluation_it_came_from(self):
        (step,) = pl.steps(problems.m4(VP), 4, solver="dpm_adaptive", shape=(3,), **FLOAT)
        seen = step.prediction
        again = problems.m4(VP)(seen.x, seen.t).eps
        torch.testing.assert_close(seen.eps, again)
        assert bool((seen.t > step.t).all()) and step.x0.shape == (4, 3)

    def test_the_flow_starts_at_pure_noise_too(self):
        """Where α = 0, λ = −∞: in x̂_0 the linear part is exact there."""
        path = pl.CondOT()
        law = pl.Gaussian(path, torch.tensor([1.0], **FLOAT), torch.tensor([0.25], **FLOAT))
        x = starts(8, 1)
        sol = pl.solve(law, x, solver=AdaptiveDPM(view="x0", rtol=1e-6, atol=1e-6))
        torch.testing.assert_close(sol.x, law.flow(x, 1.0, path.t_min), rtol=0, atol=2e-5)
        with pytest.raises(pl.UsageError, match="a solver in ε cannot start"):
            pl.solve(law, x, solver="dpm_adaptive")

    def test_guidance_and_conditions_follow_the_samples_that_are_left(self):
        """Each sample's own condition decides when it is done: the others must not see it."""

        def network(x, t, rate):
            return -rate[:, None] * x

        model = pl.Denoiser(network, pl.CondOT(), view="velocity", null={"rate": torch.zeros(1)})
        rate = torch.tensor([0.1, 3.0, 30.0, 1.0], **FLOAT)
        how = {"solver": AdaptiveRK(rtol=1e-8, atol=1e-8), "grid": [0.0, 1.0], "guide": pl.CFG(1.5)}
        sol = pl.solve(model, torch.ones(4, 2, **FLOAT), **how, rate=rate)
        exact = torch.exp(-1.5 * rate)[:, None].expand(4, 2)
        torch.testing.assert_close(sol.x, exact, rtol=0, atol=1e-6)
        assert len(set(sol.nfes)) == 4
        assert sol.stats.network_calls == 2 * sol.stats.nfe

    def test_gradients_flow_through_the_steps_that_were_taken(self):
        """x e^(−k T): by x and by k, to the tolerance of the solve."""
        x = torch.tensor([[2.0]], **FLOAT, requires_grad=True)
        k = torch.tensor(0.7, **FLOAT, requires_grad=True)
        solver = AdaptiveRK(rtol=1e-10, atol=1e-10)
        end = pl.solve(lambda x, t: -k * x, x, solver=solver, grid=[0.0, 1.5]).x
        d_x, d_k = torch.autograd.grad(end.sum(), (x, k))
        assert float(d_x) == pytest.approx(math.exp(-1.05), abs=1e-8)
        assert float(d_k) == pytest.approx(-3.0 * math.exp(-1.05), abs=1e-8)

    def test_float32_states_stay_float32_and_follow_float64(self):
        ends = [
            pl.sample(problems.m4(VP), 8, solver="dopri5", shape=(3,), dtype=dtype).x
            for dtype in (torch.float32, torch.float64)
        ]
        assert ends[0].dtype == torch.float32
        torch.testing.assert_close(ends[0].double(), ends[1], rtol=2e-4, atol=2e-4)


class TestFailures:
    def test_too_many_steps_is_a_status_of_its_own_sample(self):
        stiff = torch.tensor([[1.0], [1e5]], **FLOAT)
        solver = AdaptiveRK(max_steps=60)
        field = PerSample(stiff)
        x = torch.ones(2, 1, **FLOAT)
        sol = pl.solve(field, x, solver=solver, grid=[0.0, 1.0], on_failure="return")
        assert sol.statuses == [Status.OK, Status.MAX_STEPS]
        assert sum(sol.stats.walks[1]) == 60
        assert sol.receipt.status == ("ok", "max_steps")
        assert float(sol.x[0]) == pytest.approx(math.exp(-1), abs=1e-4)
        with pytest.raises(pl.core.UnfinishedError, match="sample 1: .*at t = 0.0.*allow more"):
            pl.solve(field, x, solver=solver, grid=[0.0, 1.0])

    def test_a_blow_up_ends_where_no_step_is_small_enough(self):
        """dx/dt = x², x = 1/(1 − t): nothing leads past t = 1."""
        x = torch.ones(1, 1, **FLOAT)
        sol = pl.solve(lambda x, t: x**2, x, solver="dopri5", grid=[0.0, 2.0], on_failure="return")
        assert sol.statuses[0] in (Status.STEP_TOO_SMALL, Status.NON_FINITE)

    def test_a_nan_beyond_a_time_names_the_time(self):
        def field(x, t):
            return torch.where(t < 0.5, x / 0, -x)

        with pytest.raises(pl.NonFiniteError, match="field's output is not finite at t = 0.4"):
            pl.solve(field, starts(1), solver="dopri5", grid=[1.0, 0.0])

    def test_a_field_of_another_shape_is_refused(self):
        with pytest.raises(pl.UsageError, match="returned shape"):
            pl.solve(lambda x, t: x[:, :1], starts(), solver="dopri5", grid=[1.0, 0.0])
        with pytest.raises(pl.UsageError, match="view_as_real"):
            pl.solve(lambda x, t: x * 1j, starts(), solver="dopri5", grid=[1.0, 0.0])

    def test_where_one_view_does_not_tell_another_the_grid_is_to_stop_short_of_it(self):
        """ε̂ says nothing of x̂₀ where there is no signal, and x̂₀ nothing of ε̂ at the data."""
        for view, other, grid, said in (
            ("eps", "x0", [1.0, 0.5], "t = 1; start the grid at a smaller t"),
            ("x0", "eps", [0.0, 0.5], "t = 0; let the grid stop short of data, at t_min"),
        ):
            model = pl.Denoiser(lambda x, t: 0 * x, pl.CondOT(), view=view)
            with pytest.raises(pl.UsageError, match=said):
                pl.solve(model, starts(), solver=AdaptiveRK(view=other), grid=grid)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: AdaptiveRK(rtol=-1.0), "must not be negative"),
            (lambda: AdaptiveRK(rtol=0.0, atol=0.0), "one of them above 0"),
            (lambda: AdaptiveRK(rtol=math.nan), "must not be negative"),
            (lambda: AdaptiveRK(first=0.0), "first step must be above 0"),
            (lambda: AdaptiveRK(max_steps=0), "at least 1 step"),
            (lambda: AdaptiveRK(method="dopri6"), "did you mean dopri5"),
            (lambda: AdaptiveRK(view="score"), "choose from velocity"),
            (lambda: AdaptiveDPM(order=1), "orders 2 and 3"),
            (lambda: AdaptiveDPM(view="v"), "predicts 'eps' or 'x0'"),
            (lambda: PredictorCorrector(snr=0.0), "snr must be above 0"),
            (lambda: PredictorCorrector(n=-1), "0 corrections or more"),
            (lambda: PredictorCorrector("reverse_difusion"), "did you mean reverse_diffusion"),
            (lambda: PredictorCorrector("dopri5"), "has no plan"),
            (lambda: PredictorCorrector(corrector="langvin"), "did you mean langevin"),
            (lambda: PredictorCorrector(norms="all"), "choose from batch, sample"),
        ],
    )
    def test_bad_input(self, make, message):
        with pytest.raises(pl.UsageError, match=message):
            make()


class PerSample(Field):
    """dx/dt = −k x with a k for each sample, which only whole batches can tell."""

    path, view = None, "velocity"

    def __init__(self, k):
        self.k = k

    def evaluate(self, x, t, cond):
        return -self.k * x


class TestPredictorCorrector:
    def test_without_corrections_it_is_its_predictor_less_the_last_noise(self):
        grid = pl.grids.uniform(5)
        seen = list(pl.steps(problems.m4(VP), 3, solver="ddpm", grid=grid, shape=(3,), **FLOAT))
        made = pl.sample(
            problems.m4(VP), 3, solver=PredictorCorrector("ddpm", n=0), grid=grid, trajectory=True,
            **FLOAT,
        )  # fmt: skip
        for ours, theirs in zip(made.trajectory[1:-1], seen, strict=False):
            assert torch.equal(ours, theirs.x)
        plan = solvers.build("ddpm").plan(VP, grid)
        (last,) = plan.rows[-1].z.values()
        z = noise.normal(range(3), (3,), stream="step", index=4, **FLOAT)
        torch.testing.assert_close(made.x, seen[-1].x - last * z, rtol=0, atol=1e-13)

    def test_a_correction_is_the_formula(self):
        """One grid step on VE from x: correct at t = 1, then the mean of reverse diffusion."""
        path, snr = pl.VE(), 0.16
        law = problems.m4(path)
        x = starts(4) * 50
        grid = pl.grids.times([1.0, 0.9])
        made = pl.solve(law, x, solver=PredictorCorrector(snr=snr), grid=grid, seeds=range(4)).x
        z = noise.normal(range(4), (3,), stream="corrector", index=0, **FLOAT)
        score = law(x, 1.0).score
        e = 2 * (snr * z.norm(dim=1) / score.norm(dim=1))[:, None] ** 2
        x = x + e * score + (2 * e).sqrt() * z
        gap = path.sigma(1.0) ** 2 - path.sigma(0.9) ** 2
        torch.testing.assert_close(made, x + gap * law(x, 1.0).score, rtol=1e-12, atol=1e-12)

    def test_public_norms_couple_the_batch_and_say_so_by_name(self):
        how = {"grid": pl.grids.uniform(3), "shape": (3,), **FLOAT}
        coupled = PredictorCorrector(norms="batch")
        four = pl.sample(problems.m4(VP), 4, solver=coupled, **how).x
        assert not torch.equal(four[:2], pl.sample(problems.m4(VP), 2, solver=coupled, **how).x)

    def test_langevin_dynamics_keeps_the_law_it_is_in(self):
        """Corrections alone, at a level where N(0, 1 + σ²) is reached, leave it as it is."""
        path = pl.VE(sigma_min=0.9, sigma_max=1.0)
        law = pl.Gaussian(path, torch.zeros(1, **FLOAT), torch.ones(1, **FLOAT))
        x = starts(20_000, 1) * math.sqrt(2)
        solver = PredictorCorrector("none", "annealed", snr=0.2, n=5)
        grid = pl.grids.times([1.0, 0.9999, 0.9998])
        out = pl.solve(law, x, solver=solver, grid=grid, seeds=range(20_000)).x
        assert float(out.var()) == pytest.approx(2, abs=0.1)  # 5 standard errors
        assert float((out - x).square().mean()) > 0.3  # and they have moved

    def test_a_zero_score_is_left_alone_with_a_warning(self):
        model = pl.Denoiser(lambda x, t: torch.zeros_like(x), pl.VE(), view="eps")
        with pytest.warns(UserWarning, match="score was zero"):
            sol = pl.sample(model, 2, solver="pc", steps=3, shape=(2,))
        assert sol.ok
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pl.sample(problems.m4(VP), 2, solver="pc", steps=3)

    def test_the_first_correction_may_come_after_the_first_step(self):
        spent = [
            pl.sample(problems.m4(VP), 2, solver=PredictorCorrector(n=2, first=f), steps=4)
            .stats.nfe
            for f in ("corrector", "predictor")
        ]  # fmt: skip
        assert spent == [4 * 3, 4 + 3 * 2]

    def test_a_chain_needs_seeds(self):
        with pytest.raises(pl.UsageError, match="needs seeds"):
            pl.solve(problems.m4(VP), starts(2), solver="pc", steps=2)

    def test_corrections_towards_noise_are_refused(self):
        with pytest.raises(pl.UsageError, match="towards data only"):
            grid = pl.grids.uniform(3).reverse(VP)
            pl.solve(problems.m4(VP), starts(2), solver="pc", grid=grid, seeds=[0, 1])


class TestParts:
    def test_a_level_has_the_same_bits_wherever_it_stands(self):
        t = torch.linspace(0.01, 1, 37, **FLOAT)
        for path in (VP, pl.paths.VPCosine(), pl.CondOT(), pl.paths.Tabulated.linear()):
            together = torch.stack(Levels.at(path, t))
            for i in range(len(t)):
                assert torch.equal(together[:, i], torch.stack(Levels.at(path, t[i : i + 1]))[:, 0])

    @pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 1023])
    def test_totals_are_sums_and_the_same_alone(self, size):
        x = noise.normal(range(5), (size,), **FLOAT)
        torch.testing.assert_close(totals(x), x.sum(1))
        torch.testing.assert_close(norms(x), x.norm(dim=1))
        assert torch.equal(totals(x)[2:3], totals(x[2:3]))

    @pytest.mark.parametrize("k", [0, 1, 2, 3, 4])
    def test_phi_of_a_tensor_is_phi_of_its_numbers(self, k):
        z = torch.tensor([-8.0, -1.0, -0.3, -1e-9, 0.0, 1e-4, 0.999, 1.0, 5.0], **FLOAT)
        exact = torch.tensor([phi(k, v) for v in z.tolist()], **FLOAT)
        torch.testing.assert_close(phi(k, z), exact, rtol=1e-14, atol=0)

    @pytest.mark.parametrize("name", [*TABLEAUX, *PAIRS])
    def test_a_tableau_keeps_the_order_conditions_of_its_order(self, name):
        """Σ b c^(q−1) = 1/q, Σ b A c = 1/6, Σ b c·A c = 1/8, Σ b A c² = 1/12, Σ b A A c = 1/24."""
        tableau = (TABLEAUX | PAIRS)[name]
        n = len(tableau.c)
        c = torch.tensor(tableau.c, **FLOAT)
        a = torch.zeros(n, n, **FLOAT)
        for i, row in enumerate(tableau.a):
            a[i, :i] = torch.tensor(row, **FLOAT)
        for b, order in ((tableau.b, tableau.order), (tableau.low, tableau.low_order)):
            b = torch.tensor(b, **FLOAT)
            trees = [(q, b @ c ** (q - 1), 1 / q) for q in range(1, order + 1)]
            trees += [(3, b @ a @ c, 1 / 6), (4, b @ (c * (a @ c)), 1 / 8)] if order else []
            trees += [(4, b @ a @ c**2, 1 / 12), (4, b @ a @ a @ c, 1 / 24)] if order else []
            for q, found, wanted in trees:
                assert q > order or float(found) == pytest.approx(wanted, abs=1e-14)

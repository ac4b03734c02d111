"""The driver: solve, sample and steps; what they refuse, and what they report."""

import gc
import math
import weakref

import numpy as np
import pytest
import torch

import pathline as pl
from pathline.core import Status, noise
from pathline.core.receipt import Receipt
from pathline.fields import problems
from pathline.nets.text import check_texts
from pathline.solvers.grids import grids
from pathline.solvers.solve import start
from pathline.solvers.solver import solvers
from pathline.speed import SADA
from pathline.steer import APG

VP = pl.VPLinear()


def mixture():
    return problems.m4(VP)


def x0_network(x, t):
    return 0.5 * x


class TestSample:
    def test_seeds_are_counted_from_the_first_or_given(self):
        model = mixture()
        counted = pl.sample(model, 3, seed=5, shape=(3,), steps=4)
        given = pl.sample(model, seeds=[7, 5], shape=(3,), steps=4)
        assert torch.equal(counted.x[2], given.x[0]) and torch.equal(counted.x[0], given.x[1])
        assert counted.receipt.seeds == (5, 6, 7)

    def test_it_starts_from_the_noise_of_the_path(self):
        model = problems.m4(pl.EDM())
        first = start(model.path, 1.0, [3], (3,), torch.float64)
        assert torch.equal(first, 80 * noise.normal([3], (3,), dtype=torch.float64))
        by_hand = pl.solve(model, first, steps=4)
        drawn = pl.sample(model, seeds=[3], shape=(3,), steps=4, dtype=torch.float64)
        assert torch.equal(by_hand.x, drawn.x)

    def test_samples_have_the_law_of_the_data(self):
        """Mean and covariance of a Gaussian, within five standard errors of 4000 samples."""
        root = torch.tensor([[0.5, 0.0], [0.3, 0.2]], dtype=torch.float64)
        mean = torch.tensor([1.0, -2.0], dtype=torch.float64)
        law = pl.Gaussian(pl.CondOT(), mean, root @ root.T)
        for solver in ("dpmpp_2m", "ddpm"):
            x = pl.sample(law, 4000, solver=solver, steps=200, shape=(2,), dtype=torch.float64).x
            assert ((x.mean(0) - mean).abs() < 5 * 0.5 / math.sqrt(4000)).all()
            assert ((x.T.cov() - root @ root.T).abs() < 5 * 0.3 / math.sqrt(4000)).all()

    def test_the_condition_reaches_the_network_through_encode(self):
        seen = []

        def network(x, t, context):
            seen.append(context)
            return x

        model = pl.Denoiser(
            network, VP, view="v", encode=lambda text: {"context": torch.tensor([[len(text)]])}
        )
        pl.sample(model, 2, shape=(3,), steps=2, text="abc")
        assert [c.tolist() for c in seen] == [[[3], [3]]] * 2

    def test_the_trajectory_has_every_grid_point(self):
        sol = pl.sample(mixture(), 2, shape=(3,), steps=5, trajectory=True)
        assert sol.trajectory.shape == (6, 2, 3) and len(sol.times) == 6
        assert torch.equal(sol.trajectory[-1], sol.x)
        assert torch.equal(sol.trajectory[0], start(VP, 1.0, [0, 1], (3,)))
        assert sol.times[0] == 1 and sol.times[-1] == VP.t_min


class TestSteps:
    def test_watching_changes_nothing(self):
        watched = list(pl.steps(mixture(), 2, shape=(3,), steps=5))
        sol = pl.sample(mixture(), 2, shape=(3,), steps=5, trajectory=True)
        assert [s.t for s in watched] == sol.times[1:].tolist()
        for step, x in zip(watched, sol.trajectory[1:], strict=True):
            assert torch.equal(step.x, x)

    def test_a_step_knows_the_denoised_data_it_came_from(self):
        model, before = mixture(), None
        for step in pl.steps(model, 2, shape=(3,), steps=3, dtype=torch.float64):
            if before is not None:
                torch.testing.assert_close(step.x0, model(before.x, before.t).x0)
            before = step

    def test_a_changed_state_is_what_the_solve_goes_on_from(self):
        replaced = torch.full((2, 3), 0.25)
        for step in pl.steps(mixture(), 2, shape=(3,), solver="ddim", steps=4):
            if step.index == 1:
                step.x = replaced
                after = step.t
        rest = [t for t in pl.grids.log_snr(4).times(VP) if t <= after]
        direct = pl.solve(mixture(), replaced, solver="ddim", grid=rest)
        assert torch.equal(step.x, direct.x)

    def test_observe_may_change_it_too(self):
        def clamp(step):
            step.x = step.x.clamp(-1, 1)

        sol = pl.sample(mixture(), 8, shape=(3,), steps=4, observe=clamp)
        assert sol.x.abs().max() <= 1

    def test_it_stops_where_the_state_is_not_finite(self):
        model = pl.Denoiser(lambda x, t: x / (t > 0.2).float()[:, None], VP, view="x0")
        with pytest.raises(pl.NonFiniteError, match=r"at step \d+ of 6, t = 0\."):
            list(pl.steps(model, 2, shape=(3,), grid="uniform", steps=6))


class TestFailure:
    def network(self, x, t):
        """NaN below t = 0.5 in the samples whose first coordinate is positive."""
        bad = (t < 0.5) & (x[:, 0] > 0)
        return torch.where(bad[:, None], torch.nan, 0.0 * x)

    def test_the_error_names_sample_step_time_and_part(self):
        model = pl.Denoiser(self.network, VP, view="eps")
        x = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [-2.0, 0.0]])
        with pytest.raises(pl.NonFiniteError) as caught:
            pl.solve(model, x, seeds=[8, 9, 10], solver="ddim", grid=pl.grids.uniform(4))
        message = str(caught.value)
        assert "sample 1 (seed 9)" in message and "the field's output" in message
        assert "t = 0.50" in message or "t = 0.25" in message
        assert "step 4 of 4" in message
        statuses = [Status.OK, Status.NON_FINITE, Status.OK]
        assert caught.value.solution.statuses == statuses
        assert caught.value.solution.receipt.status == ("ok", "non_finite", "ok")

    def test_or_the_status_is_returned_and_the_others_are_untouched(self):
        model = pl.Denoiser(self.network, VP, view="eps")
        x = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [-2.0, 0.0]])
        sol = pl.solve(model, x, solver="ddim", steps=4, on_failure="return")
        assert not sol.ok and sol.x[[0, 2]].isfinite().all()
        assert torch.equal(sol.x[[0, 2]], pl.solve(model, x[[0, 2]], solver="ddim", steps=4).x)

    def test_an_infinite_start_is_named_as_such(self):
        x = torch.tensor([[math.inf, 0.0]])
        with pytest.raises(pl.NonFiniteError, match="the state is not finite at t = 1, step 1"):
            pl.solve(pl.Denoiser(x0_network, VP, view="x0"), x, steps=3)


class TestGradients:
    def test_the_caller_decides_the_gradient_mode(self):
        weight = torch.tensor(0.5, requires_grad=True)
        model = pl.Denoiser(lambda x, t: x * weight, VP, view="v")
        assert pl.sample(model, 2, shape=(3,), steps=3).x.requires_grad
        with torch.no_grad():
            assert not pl.sample(model, 2, shape=(3,), steps=3).x.requires_grad
        with torch.inference_mode():
            assert pl.sample(model, 2, shape=(3,), steps=3).x.is_inference()

    def test_a_plan_that_ran_under_inference_mode_still_gives_gradients(self):
        scale = torch.full((3,), 0.5, dtype=torch.float64)  # cast on its way to the state
        plan = pl.Plan((1.0,), (pl.solvers.Row(0.0, {0: scale}, {0: scale}),))
        with torch.inference_mode():
            pl.solve(lambda x, t: x, torch.ones(1, 3), solver=plan)
        x = torch.ones(1, 3, requires_grad=True)
        pl.solve(lambda x, t: x, x, solver=plan).x.sum().backward()
        assert x.grad.tolist() == [[1.0, 1.0, 1.0]]

    def test_states_that_nobody_needs_are_freed_during_the_solve(self):
        alive, most = [], 0

        def network(x, t):
            nonlocal most
            alive.append(weakref.ref(x))
            most = max(most, sum(ref() is not None for ref in alive))
            return x * 0.5

        model = pl.Denoiser(network, VP, view="x0")
        pl.sample(model, 1, shape=(3,), solver=pl.DPMpp(order=3), steps=50)
        assert most <= 4  # the current state, the two of the history, the latest step's

    def test_a_solve_leaves_nothing_behind(self):
        big = torch.zeros(1, 3)
        ref = weakref.ref(big)
        pl.solve(pl.Denoiser(x0_network, VP, view="x0"), big, steps=3)
        del big
        gc.collect()
        assert ref() is None


class TestReceipts:
    def test_a_receipt_survives_json_and_has_the_recipe(self):
        sol = pl.sample(
            mixture(), 2, shape=(3,), solver=pl.DPMpp(order=3), grid=pl.grids.karras(6), seed=3
        )
        receipt = Receipt.from_json(sol.receipt.to_json())
        assert receipt == sol.receipt
        assert receipt.recipe["solver"] == solvers.describe(pl.DPMpp(order=3))
        assert receipt.recipe["grid"] == grids.describe(pl.grids.karras(6))
        assert receipt.nfe == 6 and receipt.seeds == (3, 4) and receipt.status == ("ok", "ok")

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "not a Pathline receipt"),
            ("[1]", "not a Pathline receipt"),
            ('{"a": 1}', "not a Pathline receipt"),
            ('{"receipt": 99}', "format 99"),
            ('{"receipt": 1}', "damaged"),
        ],
    )
    def test_what_is_no_receipt_is_refused(self, text, says):
        from pathline.core import ReceiptError

        with pytest.raises(ReceiptError, match=says):
            Receipt.from_json(text)


def solves(**options):
    options = {"x": torch.zeros(2, 3), "steps": 3, **options}
    model = options.pop("model", pl.Denoiser(x0_network, VP, view="x0"))
    return lambda: pl.solve(model, options.pop("x"), **options)


def samples(model=None, **options):
    model = pl.Denoiser(x0_network, VP, view="x0", shape=(3,)) if model is None else model
    return lambda: pl.sample(model, **options)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (solves(solver="dpmp"), "unknown solver 'dpmp': did you mean dpmpp"),
        (solves(solver="DPM++ 2M Karras"), "take solver 'dpmpp_2m' on grid 'karras'"),
        (solves(solver="DPM++ 2M", grid="karas"), "unknown grid 'karas': did you mean karras"),
        (solves(steps=0), "at least 1 step, and was asked for 0"),
        (solves(grid=[1.0, 0.5, 0.6], steps=None), "must move one way at every step"),
        (solves(grid=pl.grids.karras(4)), "steps=3 and a grid of 4 steps"),
        (solves(x=torch.zeros(3)), r"\(batch, \*state\), and is \(3,\)"),
        (solves(x=torch.zeros(2, 3, dtype=torch.int64)), "torch.int64"),
        (solves(x=[torch.zeros(1, 3), torch.zeros(1, 3)]), "starts from 1 states, not 2"),
        (solves(x=np.zeros((2, 3)), seed=0), r"\(batch, \*state\), and is ndarray"),
        (solves(x=torch.zeros(()), seed=0), r"\(batch, \*state\), and is \(\)"),
        (solves(x=3, seed=0), r"\(batch, \*state\), and is int"),
        (
            solves(model=pl.Denoiser(lambda x, t: (x, None), VP)),
            "returned a tuple, not a tensor: wrap the network",
        ),
        (solves(seeds=[1]), "1 seeds were given for 2 samples"),
        (solves(color="red", model=problems.m4(VP)), "takes no condition, and was given color"),
        (solves(solver=pl.DDIM(eta=1.0)), "needs seeds, one a sample"),
        (
            solves(model=pl.Denoiser(lambda x, t: x[:, :1], VP)),
            r"returned shape \(2, 1\) for a state of \(2, 3\)",
        ),
        (
            solves(model=pl.Denoiser(lambda x, t: torch.cat((x, x), 1), VP)),
            "also predicts a variance",
        ),
        (
            solves(model=pl.Denoiser(x0_network, VP, shape=(4,))),
            r"takes samples of \(4,\), not \(3,\)",
        ),
        (
            solves(model=pl.Denoiser(torch.nn.Linear(3, 3, device="meta"), VP)),
            "network is on meta and the state on cpu",
        ),
        (solves(solver=pl.DPMpp), r"DPMpp is no solver: give one, DPMpp\(\)"),
        (solves(solver=3), "3 is no solver: give one"),
        (solves(grid=pl.grids.uniform), "uniform is no grid: give its times"),
        (solves(guide=3.0), r"guide=3.0 is no guide: give one, guide=CFG\(3.0\)"),
        (solves(guide=pl.CFG), r"guide=CFG is no guide: give one, guide=CFG\(4.0\)"),
        (solves(guide=lambda field: 3), "the guide returned a int, and not a field"),
        (solves(speed="sada"), "from pathline.speed import SADA"),
        (solves(speed=SADA), r"speed=SADA is no policy: give one, speed=SADA\(\)"),
        (solves(keep=3), r"keep=3 keeps nothing: give one, keep=Known\(y, mask\)"),
        (lambda: pl.Denoiser(x0_network, VP, label="999"), "give a factor, label=999.0"),
        (lambda: check_texts(3), "text=3 is no text: give words"),
        (samples(shape=(3,), device="gpu"), "no device 'gpu' here; give"),
        (
            samples(shape=(3,), dtype="float64"),
            "dtype='float64' is no dtype .* dtype=torch.float64",
        ),
        (samples(shape=(3,), dtype=float), "is no dtype of torch: give one"),
        (samples(n=2.5), "n=2.5 is no whole number of samples"),
        (samples(seeds=3), "seeds=3 is no list"),
        (samples(shape=(3,), grid=pl.grids.uniform(5, 0.5, 0.9)), "the grid rises from t = 0.5"),
        (samples(shape=(3,), grid=[0.5, 0.9], solver="dopri5"), "take encode"),
        (samples(n=0), "at least 1 sample"),
        (samples(n=3, seeds=[1, 2]), "2 seeds were given for 3 samples"),
        (samples(seeds=[]), "list of seeds is empty"),
        (samples(seed=-1), "seed -1 is not an integer"),
        (samples(pl.Denoiser(x0_network, VP)), "does not know the shape"),
        (samples(pl.VectorField(x0_network)), "needs a model on a path"),
        (samples(x0_network), "needs a model on a path"),
        (samples(guide=pl.CFG(3.0)), "no null condition"),
        (samples(solver=pl.DDIM().plan(VP, pl.grids.log_snr(3)), steps=4), "has its own grid"),
    ],
)
def test_what_cannot_work_is_refused_at_the_door(call, says):
    with pytest.raises(pl.UsageError, match=says):
        call()


@pytest.mark.parametrize("guide", [pl.CFG, APG])
@pytest.mark.parametrize("weight", ["4", math.nan, math.inf, None, True, torch.ones(2)])
def test_a_weight_is_a_finite_number(guide, weight):
    with pytest.raises(pl.UsageError, match=f"the weight of {guide.__name__} is a finite number"):
        guide(weight)
    assert guide(np.float64(4)).weight == guide(4).weight == 4


class TestGuidance:
    def model(self, null_length=2):
        def network(x, t, context):
            return x * 0.1 + context.sum(1, keepdim=True)

        null = {"context": torch.zeros(1, null_length)}
        return pl.Denoiser(network, VP, view="eps", null=null, shape=(3,))

    def test_it_is_the_published_combination_in_every_view(self):
        model, cond = self.model(), torch.tensor([[1.0, 2.0]])
        guided = pl.CFG(2.5)(model)
        x, t = torch.randn(4, 3), torch.tensor(0.4)
        free = model(x, t, context=torch.zeros(1, 2))
        bound = model(x, t, context=cond)
        for view in ("eps", "x0", "v", "score", "velocity"):
            expected = free.of(view) + 2.5 * (bound.of(view) - free.of(view))
            found = guided(x, t, context=cond).of(view)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    def test_both_halves_share_one_call_and_the_cost_is_declared(self):
        batches = []

        def network(x, t, context):
            batches.append(len(x))
            return x

        model = pl.Denoiser(network, VP, view="v", null={"context": torch.zeros(1, 2)})
        sol = pl.sample(model, 3, shape=(3,), steps=4, guide=pl.CFG(2.0), context=torch.ones(1, 2))
        assert batches == [6] * 4 and sol.stats.nfe == 4 and sol.stats.network_calls == 8

    def test_conditions_that_do_not_fit_together_take_two_calls(self):
        x, cond = torch.randn(4, 3), torch.tensor([[1.0, 2.0]])
        joined = pl.CFG(2.5)(self.model())(x, 0.4, context=cond).raw
        apart = pl.CFG(2.5)(self.model(null_length=5))(x, 0.4, context=cond).raw
        torch.testing.assert_close(joined, apart)

    def test_weight_one_is_no_guidance_and_costs_nothing(self):
        model = self.model()
        assert pl.CFG(1.0)(model) is model

    def test_weight_zero_is_the_null_condition(self):
        model = self.model()
        x, cond = torch.randn(4, 3), torch.tensor([[1.0, 2.0]])
        free = model(x, 0.4, context=torch.zeros(1, 2)).raw
        torch.testing.assert_close(pl.CFG(0.0)(model)(x, 0.4, context=cond).raw, free)

    def test_guidance_needs_something_to_guide_to(self):
        with pytest.raises(pl.UsageError, match="nothing to guide to"):
            pl.sample(self.model(), 2, guide=pl.CFG(2.0))

    def test_per_sample_times_work_too(self):
        guided, cond = pl.CFG(2.0)(self.model()), torch.tensor([[1.0, 2.0]])
        x, t = torch.randn(3, 3), torch.tensor([0.2, 0.5, 0.8])
        together = guided(x, t, context=cond).x0
        for i in range(3):
            alone = guided(x[i : i + 1], t[i : i + 1], context=cond).x0
            torch.testing.assert_close(together[i], alone[0])

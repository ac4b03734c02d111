"""Plans for a batch whose samples start from noise levels of their own."""

import json

import pytest
import torch

import pathline as pl
from pathline.core import noise
from pathline.fields import problems
from pathline.solvers import EDMSampler, solvers
from pathline.solvers.grids import grids
from pathline.solvers.reference import moments

SOLVERS = {entry.name: entry.build() for entry in solvers}
GRIDS = [entry.name for entry in grids if entry.name != "times"]
VP = pl.VPLinear()
LEVELS = [0.9, 0.37, 1.0, 0.02, 0.37]
SEEDS = [5, 1, 9, 0, 3]

every = pytest.mark.parametrize("name", SOLVERS)


def starts(n=5, dim=3):
    return noise.normal(range(n), (dim,), dtype=torch.float64)


def network(x, t):
    """Anything smooth, from rounded operations only: the same bits in every batch."""
    return x / (1 + t.reshape(-1, *[1] * (x.ndim - 1)) + x * x)


def ready(name, path):
    """The solver on its own, where it needs no statistics of a model."""
    return SOLVERS[name].standard(path)


@every
@pytest.mark.parametrize("path", [VP, pl.EDM()], ids=["vp", "edm"])
@pytest.mark.parametrize("last", ["stop", "denoise"])
def test_each_sample_is_bitwise_what_it_is_alone_from_its_own_level(name, path, last):
    """Alone means alone in its batch, and with the solver's ordinary plan from that level."""
    model, x = pl.Denoiser(network, path, view="x0"), starts()
    grid = pl.grids.log_snr(4, last=last)
    solver = ready(name, path)
    together = pl.solve(model, x, solver=solver, grid=grid, start=LEVELS, seeds=SEEDS)
    for i, t in enumerate(LEVELS):
        one, seeds = x[i : i + 1], SEEDS[i : i + 1]
        stacked = pl.solve(model, one, solver=solver, grid=grid, start=[t], seeds=seeds)
        assert torch.equal(together.x[i], stacked.x[0])
        plain = pl.solve(model, one, solver=solver, grid=grid, start=t, seeds=seeds)
        torch.testing.assert_close(together.x[i], plain.x[0], rtol=1e-13, atol=1e-13)
        assert together.nfes[i] == plain.stats.nfe


@every
def test_the_exact_denoiser_takes_each_sample_from_its_level(name):
    """With a field whose own mathematics sees all levels at once, to rounding."""
    mixture, x, solver = problems.m4(VP), starts(), ready(name, VP)
    for view in ("x0", "eps", "velocity"):
        model = pl.Denoiser(lambda x, t, view=view: mixture(x, t).of(view), VP, view=view)
        end = pl.solve(model, x, solver=solver, grid="karras", steps=5, start=LEVELS, seeds=SEEDS).x
        for i, t in enumerate(LEVELS):
            alone = pl.solve(
                mixture,
                x[i, None],
                solver=solver,
                grid="karras",
                steps=5,
                start=t,
                seeds=[SEEDS[i]],
            )
            torch.testing.assert_close(end[i], alone.x[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_every_grid_can_start_where_each_sample_is(grid, n):
    model, x = pl.Denoiser(network, VP, view="x0"), starts()
    sol = pl.solve(model, x, solver="heun", grid=grid, steps=n, start=LEVELS, trajectory=True)
    assert sol.times.shape == (n + 1, 5) and sol.times[0].tolist() == LEVELS
    assert sol.t == VP.t_min and sol.stats.nfe == 2 * n
    for i, t in enumerate(LEVELS):
        assert sol.times[:, i].tolist() == list(grids.build(grid, n=n, start=t).times(VP))


def test_levels_may_be_a_tensor_and_samples_images():
    model, x = pl.Denoiser(network, VP, view="x0"), noise.normal(range(5), (2, 3, 3))
    t = torch.tensor(LEVELS, dtype=torch.float64)
    end = pl.solve(model, x, solver="dpmpp_2m", steps=4, start=t).x
    assert end.shape == x.shape and end.dtype == torch.float32
    flat = pl.solve(model, x.flatten(1), solver="dpmpp_2m", steps=4, start=t).x
    assert torch.equal(end.flatten(1), flat)


def test_each_sample_may_have_its_whole_grid():
    """To different ends, there and back again: encoding to levels of their own is the same call."""
    law = pl.Gaussian(VP, torch.zeros(3).double(), torch.tensor([0.3, 1.0, 2.0]).double())
    x = law.flow(starts(3), 1.0, VP.t_min)
    levels = [0.2, 0.5, 0.8]
    up = [pl.grids.log_snr(40, start=VP.t_min, end=t) for t in levels]
    noisy = pl.solve(law, x, solver="dpmpp_3m", grid=up)
    assert noisy.t.tolist() == levels
    for i, t in enumerate(levels):
        exact = law.flow(x[i, None], VP.t_min, t)
        torch.testing.assert_close(noisy.x[i, None], exact, rtol=1e-3, atol=1e-3)
    back = pl.solve(law, noisy.x, solver="dpmpp_3m", grid=[g.reverse() for g in up]).x
    torch.testing.assert_close(back, x, rtol=1e-3, atol=1e-3)


def test_a_stacked_plan_is_a_plan(tmp_path):
    """It is saved and read, printed, folded and observed like the others."""
    gs = [pl.grids.karras(3, start=t) for t in LEVELS]
    plan = EDMSampler(churn=3).plan(VP, gs)
    again = pl.Plan.load(plan.save(tmp_path / "plan.json"))
    assert again.to_dict() == plan.to_dict() and again.batch == 5
    model = pl.Denoiser(network, VP, view="v")
    seen = []
    ends = [pl.solve(model, starts(), solver=p, seeds=SEEDS) for p in (plan, again)]
    pl.solve(model, starts(), solver=plan, seeds=SEEDS, observe=lambda s: seen.append(s.x0))
    assert torch.equal(ends[0].x, ends[1].x) and len(seen) == 3
    assert "0.02 … 1" in plan.table() or "…" in plan.table()
    json.loads(ends[0].receipt.to_json())


def test_a_row_that_only_some_levels_need_does_nothing_at_the_others():
    """EDM adds noise inside a window of levels; below and above it samples go on as they are."""
    edm, x = pl.EDM(), starts(3)
    window = EDMSampler(churn=30, low=0.5, high=5.0)
    model = pl.Denoiser(network, edm, view="x0", label=0.01)
    levels = [40 / 80, 2 / 80, 0.3 / 80]
    end = pl.solve(model, x, solver=window, grid="karras", steps=3, start=levels, seeds=[0, 1, 2])
    calm = EDMSampler(churn=0)
    alone = pl.solve(model, x[2:], solver=calm, grid="karras", steps=3, start=levels[2])
    assert torch.equal(end.x[2:], alone.x)
    assert end.stats.nfe == alone.stats.nfe == 6


def test_plans_of_any_origin_can_be_stacked():
    scale = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    plans = [
        pl.Plan((1.0,), (pl.solvers.Row(0.0, {0: float(s)}, {0: scale * s}, constant=0.5 * s),))
        for s in (1.0, 2.0)
    ]
    x = starts(3)
    stacked = pl.Plan.stacked([plans[1], plans[0], plans[1]])
    end = pl.solve(lambda x, t: torch.ones_like(x), x, solver=stacked).x
    s = torch.tensor([[2.0], [1.0], [2.0]], dtype=torch.float64)
    torch.testing.assert_close(end, x * s + scale * s + 0.5 * s, rtol=1e-15, atol=1e-15)


def test_gradients_flow_through_levels_of_their_own():
    """Also where the plan was made in inference mode."""
    with torch.inference_mode():
        pl.solve(lambda x, t: -x * t, starts(), solver="heun",
                 grid=[pl.grids.uniform(3, t, 0.0) for t in LEVELS])  # fmt: skip
    x = starts().requires_grad_()
    grid = [pl.grids.uniform(3, t, 0.0) for t in LEVELS]
    assert torch.autograd.gradcheck(
        lambda x: pl.solve(lambda x, t: -x * x * t, x, solver="heun", grid=grid).x, x
    )


def two(*levels, **rest):
    return lambda: pl.solve(
        problems.m4(VP), starts(2), start=levels, **{"solver": "heun", "steps": 3, **rest}
    )


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (two(0.5, VP.t_min), "cannot begin at t = 0.001"),
        (two(0.5, 1e-5), "is there already needs no solve"),
        (two(0.5, 1.5), "path time runs from 0"),
        (two(0.5, float("nan")), "cannot begin at t = nan"),
        (two(0.5), "for 1 samples, and the state has 2"),
        (two(0.5, 0.4, grid=pl.grids.times([1, 0.5, 0.1]), steps=None), "has its own start"),
        (two(0.5, 0.4, grid=[pl.grids.karras(3)] * 2), "leave start out"),
        (two(0.5, 0.4, solver=pl.Heun().plan(VP, pl.grids.karras(3))), "leave grid, steps and"),
        (lambda: pl.Plan.stacked([]), "no plans to stack"),
        (
            lambda: pl.Heun().plan(VP, [pl.grids.karras(3), pl.grids.karras(4)]),
            "must have the same rows",
        ),
        (
            lambda: pl.Plan.stacked(
                [pl.Heun().plan(p, pl.grids.karras(3)) for p in (VP, pl.CondOT())]
            ),
            "of one view and path",
        ),
        (
            lambda: moments(pl.Heun().plan(VP, [pl.grids.karras(3)]), problems.m4(VP), 0.0, 1.0),
            "for a batch",
        ),
        (lambda: pl.Heun().plan(VP, [pl.grids.karras(3)]).order(), "on one grid"),
        (
            lambda: pl.Plan.stacked([pl.Heun().plan(VP, [pl.grids.karras(3)])]),
            "stacked already",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(call, says):
    with pytest.raises(pl.UsageError, match=says):
        call()

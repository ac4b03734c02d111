"""CODE's parts against closed forms: the interval, the walk, the depths, and what is refused."""

import math

import pytest
import torch

import pathline as pl
from pathline import edit
from pathline.core import UsageError, noise
from pathline.edit.code import CAP
from pathline.paths import VE, CondOT, PFGMpp, VPLinear
from pathline.solvers import grids, solve
from pathline.solvers.langevin import AnnealedBlocks
from pathline.steer import DynamicThreshold
from pathline.systems import run


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def law(path=None, n=4, variance=0.3):
    return pl.Gaussian(path or VPLinear(), f64([0.0] * n), f64([variance] * n))


# ---------------------------------------------------------------------------------------- interval


@pytest.mark.parametrize("path", [VPLinear(), VE(), CondOT()])
@pytest.mark.parametrize("t", [0.005, 0.3, 0.9])
def test_the_interval_is_of_the_paths_own_scales(path, t):
    """Not of the number of the grid point, as in the published helper."""
    bound = edit.Confidence(1.7, (-1.0, 3.0)).bound(path, t)
    assert float(bound) == pytest.approx(3 * float(path.alpha(t)) + 1.7 * float(path.sigma(t)))
    x = f64([[0.0, 100.0, -100.0, float(bound)]])
    clipped, share = edit.Confidence(1.7, (-1.0, 3.0))(x, path, t)
    assert torch.equal(clipped, torch.stack([x[0, 0], bound, -bound, bound])[None])
    assert share.tolist() == [0.5]


def test_coverage_is_of_a_normal():
    assert edit.Confidence(1.0).coverage == pytest.approx(0.682689, abs=1e-6)
    assert edit.Confidence(1.7).coverage == pytest.approx(0.910869, abs=1e-6)


def test_data_themselves_are_not_clipped_and_all_states_after_them_are():
    model, y = law(), f64([[1.4, -1.2, 0.0, 0.5]])
    made = edit.code(model, y, depth=6, n=0, steps=10, jitter=0.0, keep=True)
    assert torch.equal(made.latents[0], y)
    times = grids.uniform(10).times(model.path)[::-1]
    for index, z in enumerate(made.latents[1:], 1):
        bound = float(edit.Confidence(1.7).bound(model.path, times[index]))
        assert z.abs().max() <= bound
    assert made.log.clipped.shape == (6, 1)
    assert made.log.clipped[0] > 0


def test_a_larger_range_of_data_is_wider_and_thresholds_follow():
    model, y = law(variance=3.0), f64([[2.0, -2.5, 0.0, 0.5]])
    made = edit.code(model, y, depth=6, n=0, steps=10, jitter=0.0, data_range=(-3.0, 3.0))
    assert made.log.clipped.max() == 0
    with pytest.raises(UsageError, match=r"±2\.5.*scale them"):
        edit.code(model, y, depth=6, n=0, steps=10)


# -------------------------------------------------------------------------------------- thresholds


def test_the_threshold_is_of_each_sample_and_bounded():
    """clip(x̂_0, ±q)/q with q the quantile in [1, 1.3]."""
    wide = torch.linspace(-2, 2, 101).double()[None]
    tight = torch.linspace(-1.2, 1.2, 101).double()[None]

    class Said(pl.Field):
        path, view = VPLinear(), "x0"

        def evaluate(self, x, t, cond):
            return x

    field = edit.THRESHOLD(Said())
    both = field(torch.cat((wide, tight)), 0.5).x0
    assert (both[0] - wide[0].clamp(-1.3, 1.3) / 1.3).abs().max() < 1e-12
    q = float(torch.quantile(tight.abs().float(), 0.98))
    assert (both[1] - tight[0].clamp(-q, q) / q).abs().max() < 1e-6
    assert torch.equal(field(tight, 0.5).x0[0], both[1])
    with pytest.raises(UsageError, match="at least the limit"):
        DynamicThreshold(0.98, 1.0, 0.5)


# -------------------------------------------------------------------------------------------- walk


def test_a_walk_without_noise_contracts_as_its_steps_say():
    """x Π_b (1 − e_b/v)^(n_b + 1): each block ends with a step without noise."""
    v, e, x = 0.7, 0.02, f64([[1.0, -2.0]])
    walk = AnnealedBlocks(10, blocks=4, decay=0.5, heat=0.0)
    assert [walk.share(b) for b in range(4)] == [(0, 3), (3, 3), (6, 2), (8, 2)]
    ran = walk.run(lambda z: -z / v, x, e, 1.0, seeds=[0])
    rate = math.prod((1 - e * 0.5**b / v) ** (n + 1) for b, n in enumerate((3, 3, 2, 2)))
    assert (ran.x - rate * x).abs().max() < 1e-14
    assert ran.evaluations == 14
    assert float(ran.before) == pytest.approx(float(x.norm()) / v)


def test_noise_is_the_root_of_twice_the_step():
    x, e = torch.zeros(2, 3).double(), 0.02
    ran = AnnealedBlocks(6, blocks=2, decay=0.5).run(lambda z: 0 * z, x, e, 1.0, seeds=[4, 5],
                                                     level=7)  # fmt: skip
    total = torch.zeros_like(x)
    for k in range(6):
        z = noise.normal([4, 5], (3,), stream="corrector", index=(7 << 20) + k,
                         dtype=torch.float64)  # fmt: skip
        total += (2 * e * 0.5 ** (k // 3)) ** 0.5 * z
    assert (ran.x - total).abs().max() < 1e-14


def test_a_walk_leaves_its_law_where_it_is():
    """Unadjusted steps have the variance v/(1 − e/2v); four standard errors."""
    v, e, n = 0.8, 0.05, 4000
    x = v**0.5 * noise.normal(range(n), (2,), dtype=torch.float64)
    walk = AnnealedBlocks(60, blocks=1)
    made = walk.run(lambda z: -z / v, x, e, 1.0, seeds=range(n)).x / (1 - e / v)
    expected = v / (1 - e / (2 * v))
    start = v + (expected - v) * (1 - (1 - e / v) ** 120)
    assert abs(float(made.var()) / start - 1) < 4 / n**0.5


def test_a_state_that_runs_away_is_begun_again_with_a_quarter_of_the_step():
    """e = 2.4 v overshoots more at every step; a quarter of it contracts."""
    v = f64([[1.0], [100.0]])
    x = 3 * torch.ones(2, 5).double()
    walk = AnnealedBlocks(60, blocks=1)
    both = walk.run(lambda z: -z / v, x, 2.4, 1.0, seeds=[0, 1])
    assert both.restarts.tolist() == [1, 0]
    assert both.x.abs().max() < 60
    for k in range(2):  # neither knows of the other
        alone = walk.run(lambda z, k=k: -z / v[k : k + 1], x[k : k + 1], 2.4, 1.0, seeds=[k])
        assert torch.equal(alone.x[0], both.x[k])
    unguarded = AnnealedBlocks(60, blocks=1, growth=0).run(
        lambda z: -z / v, x, 2.4, 1.0, seeds=[0, 1]
    )
    assert unguarded.x[0].abs().max() > 1e6


def test_a_quiet_state_grows_to_its_noise_and_is_left_alone():
    """From 0 the norm of the score rises for many steps in a row, up to √n/σ."""
    x = torch.zeros(1, 4000).double()
    ran = AnnealedBlocks(60, blocks=1).run(lambda z: -z, x, 0.01, 1.0, seeds=[0])
    assert ran.restarts.tolist() == [0]
    assert ran.after > 20


@pytest.mark.parametrize("how", [{"n": -1}, {"blocks": 0}, {"decay": 0.0}, {"heat": -1.0},
                                 {"n": 2**20}])  # fmt: skip
def test_walks_that_cannot_be(how):
    with pytest.raises(UsageError):
        AnnealedBlocks(**how)


# -------------------------------------------------------------------------------------------- CODE


def test_encoding_evaluates_each_step_where_it_begins():
    """x_{i+1} = α_{i+1} x̂_0(x_i, t_i) + σ_{i+1} ε̂(x_i, t_i)."""
    model, y = law(), f64([[0.9, -1.0, 0.0, 0.5]])
    made = edit.code(model, y, depth=3, n=0, eta=None, threshold=None, steps=10, jitter=0.0,
                     keep=True)  # fmt: skip
    times = grids.uniform(10).times(model.path)[::-1]
    for i in range(3):
        seen = model(made.latents[i], f64(times[i]))
        stepped = model.path.noised(seen.x0, seen.eps, f64(times[i + 1]))
        assert (made.latents[i + 1] - stepped).abs().max() < 1e-13


def test_without_steps_or_clipping_it_is_the_flow_there_and_back():
    """Its error is of order one in the steps of DDIM, and rounding with an exact inverter."""
    model, y = law(), f64([[0.9, -1.0, 0.0, 0.5]])
    how = {"n": 0, "eta": None, "threshold": None, "jitter": 0.0, "check": True}
    made, fine = (edit.code(model, y, depth=n, steps=n, **how) for n in (50, 100))
    assert torch.equal((made.x[:, 0] - y).abs().amax(1), made.error)
    assert float(fine.error / made.error) == pytest.approx(0.5, abs=0.05)
    assert edit.code(model, y, depth=50, steps=50, solver=pl.BDIA(), **how).error < 1e-12
    assert made.log == edit.CodeLog(None, ())


def test_where_the_way_down_begins_and_what_it_costs():
    model, y = law(), f64([[0.9, -1.0, 0.0, 0.5]])
    how = {"depth": 6, "n": 8, "steps": 10, "threshold": None}
    clipped = edit.code(model, y, **how)
    assert clipped.nfe == 6 + 6 + 8 + 4
    bare = edit.code(model, y, eta=None, **how)
    assert bare.nfe == 5 + 5 + 8 + 4
    (log,) = clipped.log.depths
    times = grids.uniform(10).times(model.path)[::-1]
    assert (log.index, log.t) == (5, times[5])
    assert log.eps == pytest.approx(1e-3 * float(model.path.sigma(times[5])) ** 2)
    assert log.before.shape == log.after.shape == (1,)


def test_a_walk_at_a_depth_is_the_walk_of_its_score():
    """By hand: up to L − 1, the blocks, and down."""
    model, y = law(), f64([[0.9, -1.0, 0.0, 0.5]])
    made = edit.code(model, y, depth=6, n=8, eta=None, threshold=None, steps=10, jitter=0.0, seed=3)
    times = grids.uniform(10).times(model.path)[::-1]
    z = solve(model, y, solver="ddim", grid=times[:6]).x
    sigma = float(model.path.sigma(times[5]))
    walk = AnnealedBlocks(8)
    z = walk.run(
        lambda x: model(x, f64(times[5])).score, z, 1e-3 * sigma**2, sigma, seeds=[3], level=5
    ).x
    exact = solve(model, z, solver="ddim", grid=times[5::-1]).x
    assert (made.x[:, 0] - exact).abs().max() < 1e-12


def test_long_walks_forget_the_input_and_no_walk_keeps_it():
    model, y = law(n=2), torch.full((400, 2), 1.0).double()
    how = {"depth": 40, "steps": 80, "eta": None, "threshold": None}
    far = edit.code(model, y, eps_rel=0.05, n=400, **how).x[:, 0]
    near = edit.code(model, y, eps_rel=1e-6, n=4, **how).x[:, 0]
    assert abs(float(far.mean())) < 4 * (0.3 / 800) ** 0.5 + 0.02
    assert (near - 1).abs().max() < 0.25


def test_answers_share_the_way_up_and_nothing_else():
    model, y = law(), f64([[0.9, -1.0, 0.0, 0.5], [0.1, 0.2, 0.3, 0.4]])
    how = {"depth": 6, "n": 8, "steps": 10}
    made = edit.code(model, y, samples=3, seed=20, **how)
    assert made.x.shape == (2, 3, 4)
    assert len(made.code[0]) == 2
    alone = edit.code(model, y[1:], samples=3, seed=23, **how)
    assert torch.equal(alone.x[0], made.x[1])
    assert (made.x[0, 0] - made.x[0, 1]).abs().min() > 1e-6
    assert made.receipt.seeds == tuple(range(20, 26))


def test_depths_are_spaced_from_the_least_to_the_last_but_one():
    assert edit.Evenly(1, 5).depths(80) == (79,)
    assert edit.Evenly(4, 10).depths(80) == (79, 56, 33, 10)
    model, y = law(), f64([[0.9, -1.0, 0.0, 0.5]])
    made = edit.code(model, y, depth=8, at=edit.Evenly(3, 1), n=4, steps=10)
    assert [each.index for each in made.log.depths] == [7, 4, 1]
    chosen = edit.code(model, y, depth=8, at=(2, 7), n=4, steps=10)
    assert [each.index for each in chosen.log.depths] == [7, 2]


def test_published_steps_grow_towards_data_and_are_capped():
    sigma = [0.01, 0.5, 0.8, 1.0]
    assert edit.StepSizes(1e-4).at(199, 200, 1.0, 1.0) == pytest.approx(1e-4)
    assert edit.StepSizes(1e-4).at(0, 200, 1.0, 1.0) == pytest.approx(1e-2)
    assert edit.StepSizes(1e-4, "sigma").at(1, 3, sigma[1], sigma[3]) == pytest.approx(2e-4)
    assert edit.StepSizes(1e-4, "flat").at(1, 3, sigma[1], sigma[3]) == 1e-4
    model, y = law(), f64([[0.9, -1.0, 0.0, 0.5]])
    made = edit.code(model, y, depth=8, at=(1, 7), n=4, steps=10, eps=edit.StepSizes(1e-3))
    deep, shallow = made.log.depths
    assert deep.eps == pytest.approx(1e-3 * 100 ** (1 - 7 / 9))
    level = float(model.path.sigma(shallow.t))
    assert shallow.eps == pytest.approx(min(CAP * level**2, 1e-3 * 100 ** (1 - 1 / 9)))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"depth": 0}, "from 1"),
        ({"depth": 11}, r"to 10 \(noise\)"),
        ({"depth": 5, "at": (6,)}, "not deeper"),
        ({"depth": 5, "at": edit.Evenly(2, 6)}, "deeper than L"),
        ({"eps_rel": 0.0}, "longer than 0"),
        ({"eps_rel": -1.0}, "longer than 0"),
        ({"eps_rel": 0.06}, r"grid point 7, where σ = 0\.996, is above its cap.*= 0\.0496"),
        ({"eps": edit.StepSizes(1.0)}, "above its cap"),
        ({"eta": 0.0}, "η > 0"),
        ({"eta": -1.0}, "η > 0"),
        ({"data_range": None}, "data_range"),
        ({"data_range": (1.0, -1.0)}, "both finite"),
        ({"jitter": -0.1}, "0 or more"),
        ({"solver": "bdia"}, "way up is changed"),
        ({"solver": "ddpm"}, "draws noise"),
        ({"samples": 0}, "one answer"),
    ],
)
def test_what_is_refused(how, said):
    with pytest.raises(UsageError, match=said):
        edit.code(law(), torch.zeros(1, 4).double(), **{"depth": 8, "steps": 10, "n": 4} | how)


def test_data_of_another_scale_are_refused():
    with pytest.raises(UsageError, match="pixels / 127.5"):
        edit.code(law(), torch.full((1, 4), 1.6).double(), depth=3)
    edit.code(law(), torch.full((1, 4), 1.5).double(), depth=3, n=0, steps=5, jitter=0.0)


def test_steps_and_schedules_that_cannot_be():
    for make in (lambda: edit.StepSizes(0.0), lambda: edit.StepSizes(1e-4, "steep"),
                 lambda: edit.Evenly(0), lambda: edit.Evenly(2, 0)):  # fmt: skip
        with pytest.raises(UsageError):
            make()


def test_a_model_that_has_only_conditions_asks_for_one():
    def said(x, t, context):
        return x

    model = pl.Denoiser(said, VPLinear(), encode=lambda text: {"context": torch.zeros(1, 1)})
    with pytest.raises(UsageError, match="say what the picture shows"):
        edit.code(model, torch.zeros(1, 4), depth=3)


def test_noise_that_is_not_gaussian_has_no_interval():
    path = PFGMpp(dof=4.0)
    points = pl.Dataset(path, torch.randn(5, 4, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(UsageError, match="Gaussian noise"):
        edit.code(points, torch.zeros(1, 4), depth=3, n=0, steps=5)


def test_the_system_holds_what_costs_little():
    only = ["clip-realism", "clip-input", "no-clip", "coverage", "coverage-zero", "round-trip-bdia"]
    report = run("code-editing", only=only)
    assert [m.claim.id for m in report.claims if not m.passed] == []

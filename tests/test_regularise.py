"""The Fokker-Planck penalty in training: by configuration, to the bit, and what it refuses."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from pathline.core.errors import UsageError
from pathline.fields.fokker_planck import squared
from pathline.learn import Recipe, load_model, read_recipe, train
from pathline.learn.objectives import EarlyTimes, Matching
from pathline.learn.recipe import Watch
from pathline.learn.regularise import FokkerPlanckPenalty, regularisers
from pathline.learn.run import Run
from pathline.nets import MLP, NETWORKS
from pathline.paths import OrnsteinUhlenbeck

pytest.importorskip("lightning_fabric", reason="it comes with the extra pathline[train]")

PENALTY = {"kind": "fokker_planck", "weight": 0.01, "points": 16, "warmup": 4}
RECIPE = Recipe(
    name="rings",
    steps=24,
    batch=32,
    warmup=4,
    data={"source": "rings", "n": 512},
    network={"class": "Potential", "dim": 2, "width": 16, "depth": 2},
    objective={"path": "ou", "view": "score", "error": "eps", "label": 10.0, "time_power": 2.0},
    regulariser=PENALTY,
    watch=Watch(every=0, export=1e9),
)
MLP_RECIPE = replace(
    RECIPE, network={"class": "MLP", "dim": 2, "width": 16, "depth": 2, "sharpness": 5.0}
)


def told(**options):
    return {**PENALTY, **options}


def state(folder):
    return torch.load(folder / "state.pt", weights_only=True)


def same(one, other):
    a, b = state(one), state(other)
    flat = [
        [*s["network"].values(), *s["average"]]
        + [m for p in s["optimizer"]["state"].values() for m in p.values()]
        for s in (a, b)
    ]
    return a["step"] == b["step"] and all(map(torch.equal, *flat))


# -- by configuration ------------------------------------------------------------------------------


def test_a_recipe_with_a_penalty_is_read(tmp_path):
    (tmp_path / "c.toml").write_text(
        'name = "r"\nsteps = 9\ndata = { source = "rings" }\n'
        'network = { class = "Potential", dim = 2, baseline = { near = 1.1, far = 0.5 } }\n'
        'objective = { path = "ou", path_args = { horizon = 5.0 }, view = "score", label = 5.0 }\n'
        '[regulariser]\nkind = "fokker_planck"\nweight = 0.1\npoints = 100\nwarmup = 50\n'
        "box = 3.5\n"
        'trace = { kind = "hutchinson", n = 4 }\n'
    )
    made = read_recipe(tmp_path / "c.toml").penalty()
    assert isinstance(made, FokkerPlanckPenalty)
    assert (made.weight, made.points, made.warmup, made.box) == (0.1, 100, 50, 3.5)
    assert made.estimator().n == 4
    assert replace(RECIPE, regulariser=None).penalty() is None
    assert "regulariser" not in repr(replace(RECIPE, regulariser=None).fingerprint)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"regulariser": told(box=3.5, every=2)},
        {"regulariser": told(trace={"kind": "hutchinson", "n": 2})},
        {"network": MLP_RECIPE.network},  # ∇R of a plain score
        {
            "network": MLP_RECIPE.network,
            "objective": {"path": "cond_ot", "view": "velocity"},
            "regulariser": told(per="log_snr"),
        },
        {
            "network": MLP_RECIPE.network,
            "objective": {"path": "edm", "view": "x0", "label": "sigma", "error": 0.5},
        },
    ],
)
def test_a_run_goes_on_bitwise_with_any_penalty_path_and_view(change, tmp_path):
    recipe = replace(RECIPE, **change)
    train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "stopped", until=7)
    train(recipe, tmp_path / "stopped")
    assert same(tmp_path / "whole", tmp_path / "stopped")
    rows = state(tmp_path / "whole")["journal"]
    assert rows[-1]["penalty"] > 0 and rows[-1]["loss"] > 0
    found = load_model(tmp_path / "whole" / "model").details["training"]["residual"]
    potential = recipe.network["class"] == "Potential"
    assert found["of"] == ("R" if potential else "∇R") and len(found["t"]) == 10


def test_without_a_penalty_a_run_is_what_it_was(tmp_path):
    """The batches, noise and times are those of a run with one, and no column is filled."""
    with_one, without = (Run.start(r) for r in (RECIPE, replace(RECIPE, regulariser=None)))
    for step in (0, 1, 9):
        a, b = with_one.exercises.at(step), without.exercises.at(step)
        assert all(torch.equal(getattr(a, k), getattr(b, k)) for k in ("x0", "x1", "t"))
        assert b.points is None and (a.points is None) == (step == 0)  # warming up from 0
    train(replace(RECIPE, regulariser=None, steps=2), tmp_path)
    assert state(tmp_path)["journal"][-1]["penalty"] is None
    assert "residual" not in load_model(tmp_path / "model").details["training"]


def test_parts_of_a_batch_make_the_update_of_the_whole(tmp_path):
    """To rounding; with clip = 1 no sample is cut, and the parts' means are the whole's."""
    whole = replace(RECIPE, regulariser=told(clip=1.0))
    for name, parts in (("one", 1), ("four", 4)):
        train(replace(whole, accumulate=parts), tmp_path / name)
    a, b = (state(tmp_path / name)["network"] for name in ("one", "four"))
    for key, value in a.items():
        torch.testing.assert_close(value, b[key], rtol=0, atol=2e-5)  # Adam divides tiny gradients


def test_a_step_adds_the_weighted_residual_and_follows_its_gradient():
    """One step of the whole against the gradient worked out here, float32 rounding apart."""
    run = Run.start(replace(RECIPE, decay=0.0, clip=1e9, regulariser=told(warmup=0, clip=1.0)))
    whole = run.exercises.at(0)
    matching, parameters = run.recipe.matching(), list(run.network.parameters())
    parameters = [p for p in parameters if p.numel() > 1]  # φ's own constant is no one's business
    loss = run.loss(run.network, whole)
    equation = run.regulariser.equation(matching)
    at = whole.points
    made = equation.of_potential(lambda x, t: run.network.potential(x, 10 * t), at.x, at.t)
    total = loss + 0.01 * squared(made).mean()
    exact = torch.autograd.grad(total, parameters)
    length = torch.stack([g.norm() for g in exact]).norm()
    said, norm, added = run.advance()
    assert float(said) == pytest.approx(float(loss.detach()), rel=1e-6)
    assert float(added) == pytest.approx(0.01 * float(squared(made).mean().detach()), rel=1e-5)
    assert float(norm) == pytest.approx(float(length), rel=1e-4)


def test_a_step_lowers_the_residual_where_it_looked():
    """Weighed a million times as much as the regression, at a rate that is small for it."""
    heavy = told(weight=1e6, warmup=0, points=64)
    run = Run.start(replace(RECIPE, warmup=0, rate=1e-4, decay=0.0, clip=1e9, regulariser=heavy))
    points = run.exercises.at(0).points

    def penalty():
        return float(run.regulariser.loss(run.recipe.matching(), run.network, points).detach())

    before = penalty()
    run.advance()
    assert penalty() < before


# -- weights and points ----------------------------------------------------------------------------


def test_the_weight_rises_and_counts_for_the_steps_between():
    made = FokkerPlanckPenalty(0.5, warmup=10, every=2)
    assert [made.weight_at(k) for k in (0, 1, 2, 10, 11, 12)] == [0, 0, 0.2, 1.0, 0, 1.0]
    assert FokkerPlanckPenalty(0.5).weight_at(0) == 0.5 and FokkerPlanckPenalty(0).weight_at(9) == 0


def test_points_are_told_the_condition_of_their_data():
    matching = Matching(OrnsteinUhlenbeck(), "score")
    x0, label = torch.arange(6.0)[:, None].expand(6, 2) * 100, torch.arange(6)
    generator = torch.Generator().manual_seed(0)
    made = FokkerPlanckPenalty(1.0, points=9).draw(matching, x0, {"label": label}, generator)
    assert made.cond["label"].tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2]
    exact = matching.path.alpha(made.t)[:, None] * 100 * made.cond["label"][:, None]
    assert float((made.x - exact).abs().max()) < 5  # noise of deviation at most √½
    part = made.part(2, 3)
    assert torch.equal(part.x, made.x[6:]) and part.cond["label"].tolist() == [0, 1, 2]


def test_large_residuals_are_cut_at_the_quantile():
    """Of 100 values 0 … 99 squared, clip = 0.9 takes those above the quantile down to it."""
    matching = Matching(OrnsteinUhlenbeck(1.0), "score")

    class Known(nn.Module):  # φ = c t x₀², and R follows from it
        def potential(self, x, t):
            return x[:, 0] * t

        def forward(self, x, t):
            return torch.stack((t, 0 * t), 1)

    x = torch.zeros(100, 2)
    x[:, 0] = torch.arange(100.0)
    t = torch.zeros(100, dtype=torch.float64) + 1e-9
    made = FokkerPlanckPenalty(1.0, points=100, clip=0.9)
    at = made.draw(matching, x, {}, torch.Generator().manual_seed(0))
    at = replace(at, x=x, t=t)
    r = x[:, 0] - 2  # ∂_t φ + d f + f x·∇φ − …, at t → 0
    most = r.square().quantile(0.9)
    exact = r.square().clamp(max=float(most)).mean()
    assert float(made.loss(matching, Known(), at).detach()) == pytest.approx(float(exact), rel=1e-5)


def test_early_times_are_beta_s():
    from scipy.stats import beta

    u = torch.linspace(0.001, 0.999, 99, dtype=torch.float64)
    for power in (1.0, 2.0, 3.5):
        exact = torch.from_numpy(beta(1, power).ppf(u.numpy()))
        torch.testing.assert_close(EarlyTimes(power).quantile(u), exact, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("power", "mean"), [(None, 1 / 3), (1.0, 1 / 2), (3.0, 1 / 4)])
def test_its_times_have_the_objective_s_law_or_their_own(power, mean):
    """Beta(1, a) has the mean 1/(1 + a); a thousand stratified draws know it to 1e-4."""
    matching = Matching(OrnsteinUhlenbeck(5.0), "score", EarlyTimes(2.0))
    made = FokkerPlanckPenalty(1.0, points=1000, box=1.0, time_power=power)
    at = made.draw(matching, torch.zeros(8, 2), {}, torch.Generator().manual_seed(0))
    low, high = matching.path.t_min, matching.path.t_max
    assert float((at.t - low).mean() / (high - low)) == pytest.approx(mean, abs=2e-4)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"regulariser": told(weight=-0.1)}, "at least 0, not -0.1"),
        ({"regulariser": told(points=0)}, "points ≥ 1"),
        ({"regulariser": told(clip=0.0)}, "quantile in"),
        ({"regulariser": told(box=-1.0)}, "half the side"),
        ({"regulariser": told(per="sigma")}, "'time' or 'log_snr'"),
        ({"regulariser": told(time_power=0.0)}, "the power of the times"),
        ({"regulariser": told(kind="foker_planck")}, "did you mean fokker_planck"),
        ({"regulariser": told(wieght=1.0)}, "takes no 'wieght'"),
        ({"regulariser": told(trace={"kind": "hutch"})}, "unknown trace 'hutch'"),
        ({"regulariser": told(trace={"kind": "exact", "n": 3})}, "does not take these values"),
        ({"regulariser": told(points=15), "accumulate": 2}, "cannot be shared by 2 parts"),
        ({"coupling": {"kind": "exact_ot"}}, "the coupling 'exact_ot' changes that"),
        ({"start": {"source": "moons"}}, "a start at other data changes that"),
        ({"objective": {"path": "ou", "view": "score", "bridge": 0.1}}, "bridge = 0.1 adds noise"),
        ({"objective": {"path": "cond_ot", "view": "score"}}, 'take per = "log_snr"'),
        ({"objective": {"path": "pfgmpp", "view": "x0"}}, "only Gaussian noise"),
        (
            {"data": {"source": "digits"}, "network": {"class": "UNet", "channels": 1}},
            "8 dimension",
        ),
        ({"objective": {**RECIPE.objective, "time_power": 0.0}}, "power of the times"),
    ],
)
def test_what_cannot_work_is_refused_before_training(change, says):
    with pytest.raises(UsageError, match=says):
        Run.start(replace(RECIPE, **change))


def test_shards_are_refused():
    with pytest.raises(UsageError, match="'fsdp' has it in shards: use 'ddp'"):
        RECIPE.penalty(2, "fsdp")


def test_a_network_of_straight_pieces_or_discrete_times_is_refused(monkeypatch):
    class Kinked(MLP):
        def __init__(self, dim):
            super().__init__(dim, width=8, depth=1)
            self.layers[0][1] = nn.ReLU()

    class Discrete(MLP):
        def forward(self, x, t):
            return super().forward(x, (10 * t).round())

    for made, says in ((Kinked, "use Softplus or SiLU"), (Discrete, "∂_t undefined")):
        monkeypatch.setitem(NETWORKS, "Mine", made)
        with pytest.raises(UsageError, match=says):
            Run.start(replace(RECIPE, network={"class": "Mine", "dim": 2}))


def test_a_box_that_misses_the_data_is_warned_of():
    with pytest.warns(
        UserWarning, match=r"the box \[−1.5, 1.5\]\^2 misses [1-9]\d\.\d% of the noised"
    ):
        Run.start(replace(RECIPE, regulariser=told(box=1.5)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Run.start(replace(RECIPE, regulariser=told(box=3.5)))


def test_every_regulariser_is_told_of():
    assert [entry.name for entry in regularisers] == ["fokker_planck"]
    assert all(entry.about and entry.paper for entry in regularisers)

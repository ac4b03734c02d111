"""Models of series: gradients, resumption, what they read; a short training that learns."""

import math
import warnings

import pytest
import torch

import pathline as pl
from pathline.domains import series as s
from pathline.domains.series.training import _Running
from pathline.nets.vector_fields import OwnNoise

TIMES = torch.linspace(0, 1, 10, dtype=torch.float64)


@pytest.fixture(scope="module")
def parts():
    values, labels = s.frequencies(range(90), 12)
    return s.prepared((values[:60], labels[:60]), (values[60:], labels[60:]), classes=3,
                      missing=0.3)  # fmt: skip


def model(kind="lnsde", **how):
    torch.manual_seed(0)
    return s.StableClassifier(kind, 2, 3, hidden=8, **how).eval()


# -- sets


def test_a_set_is_scaled_by_its_training_part(parts):
    train = torch.cat((parts.train.values, parts.train.values[:0]))
    seen = train[train.isfinite().all(2)]
    assert len(parts.train) + len(parts.valid) == 60 and len(parts.test) == 30
    present = train[..., 0][train[..., 0].isfinite()]
    assert float(present.mean()) == pytest.approx(0, abs=1e-6) and len(seen)
    assert train.isnan().double().mean().item() == pytest.approx(3 / 12)


def test_parts_of_a_set_keep_what_was_made(parts):
    knots = parts.test.knots
    part = parts.test[torch.tensor([3, 1])]
    assert torch.equal(part.knots, knots[:, [3, 1]])
    torch.testing.assert_close(part.knots[-1], part.control.value(1.0, side="left"))
    torch.testing.assert_close(part.knots[:, :, 0], part.times[:, None].float().expand(12, 2))


def test_spirals_turn_as_their_label_says():
    values, labels = s.spirals(range(20), 200)
    x, y = values.unbind(2)
    turn = (x[:, :-1] * y[:, 1:] - y[:, :-1] * x[:, 1:]).sum(1)
    assert torch.equal((turn > 0).long(), labels)


def test_sets_that_cannot_be_are_refused(parts):
    values, labels = parts.test.values, parts.test.labels
    with pytest.raises(pl.UsageError, match="labels are 0 to 1"):
        s.Series(parts.test.times, values, labels, 2)
    with pytest.raises(pl.UsageError, match="pass"):
        s.Series(60 * parts.test.times, values, labels, 3)
    with pytest.raises(pl.UsageError, match="30 values, 29 labels, of length 12"):
        s.Series(parts.test.times, values, labels[:-1], 3)
    empty = values.clone()
    empty[4, :, 1] = math.nan
    with pytest.raises(pl.UsageError, match="of sample 4 has no value"):
        s.Series(parts.test.times, empty, labels, 3).control  # noqa: B018


# -- classifiers


@pytest.mark.parametrize("kind", ["lsde", "lnsde", "gsde", "naive"])
@pytest.mark.parametrize("variant", ["runtime", "pure"])
def test_a_path_is_euler_maruyama(parts, kind, variant):
    """Against a loop over the same Brownian increments (in the logarithm for the pure GSDE)."""
    net, part = model(kind, variant=variant), parts.test[:4]
    with torch.no_grad():
        made = net.path(part, range(4))
    z = net.first(part.knots[0])
    z = torch.nn.functional.softplus(z) + 1e-4 if kind == "gsde" else z
    driven = net.sde.along(part.times, part.knots)
    steps = pl.solve(
        pl.fields.SDE(lambda x, t: 0 * x, lambda x, t: 1 + 0 * x, noise="additive"),
        torch.zeros(4, 8), solver="ito_euler", grid=part.times.tolist(), seeds=range(4),
        trajectory=True,
    ).trajectory  # fmt: skip
    logs = kind == "gsde" and variant == "pure"
    for k, t in enumerate(part.times[:-1]):
        h, dw = float(part.times[k + 1] - t), steps[k + 1] - steps[k]
        if logs:
            y = z.abs().log()
            sigma = driven.log_diffusion(y, t)
            z = z.sign() * (y + h * driven.log_drift(y, z.sign(), t) + sigma * dw).exp()
        else:
            z = z + h * driven.drift(z, t) + driven.diffusion(z, t) * dw
    torch.testing.assert_close(made[-1], z.detach(), rtol=1e-4, atol=1e-5)


def test_the_middle_matters_unless_the_path_is_not_read(parts):
    for kind, reads in (("lsde", True), ("naive", False)):
        values = parts.test.values[:4].clone().requires_grad_()
        part = s.Series(parts.test.times, values, parts.test.labels[:4], 3)
        out = model(kind)(part, range(4)).square().sum()
        (slope,) = torch.autograd.grad(out, values)
        assert bool((slope[:, 6] != 0).any()) == reads


def test_steps_that_pass_observations_over_are_told(parts):
    with pytest.warns(UserWarning, match=r"larger than the smallest gap of the data, 0\.09"):
        model(step=0.5)(parts.test, range(len(parts.test)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fine = model(step=1 / 22)
        assert len(fine.path(parts.test, range(len(parts.test)))) == 23


def test_numbers_of_the_diffusion_that_were_lost_are_told(parts):
    with pytest.warns(UserWarning, match=r"\d+ numbers of the diffusion were NaN, .*'sqrt' left"):
        model("lsde", noise="sqrt", allow_unstable=True)(parts.test, range(len(parts.test)))


@pytest.mark.parametrize("make", [
    lambda: s.CDEClassifier(2, 3), lambda: s.GRUClassifier(2, 3), lambda: model("gsde")
])  # fmt: skip
def test_samples_do_not_see_each_other(parts, make):
    torch.manual_seed(0)
    net = make().eval()
    alone = net(parts.test[3:4], [3])
    torch.testing.assert_close(net(parts.test, range(30))[3:4], alone, rtol=1e-4, atol=1e-5)


def test_a_gru_sees_what_is_missing(parts):
    net = s.GRUClassifier(2, 3)
    other = parts.test.values.clone()
    at = other[0, :, 0].isfinite().nonzero()[1]
    other[0, at, 0] = math.nan
    changed = s.Series(parts.test.times, other, parts.test.labels, 3)
    assert not torch.equal(net(parts.test)[0], net(changed)[0])
    assert torch.equal(net(parts.test)[1:], net(changed)[1:])


# -- training


def test_a_training_that_was_cut_short_goes_on_to_the_bit(parts, tmp_path):
    how = s.Fit(iterations=6, batch=16, every=3)
    torch.manual_seed(0)
    whole = s.fit(model(), parts.train, parts.valid, how)
    cut = _Running(model(), parts.train, parts.valid, how, s.Classes())
    for _ in range(3):
        cut.advance()
    cut.look()
    cut.save(tmp_path / "state.pt")
    rest = s.fit(model(), parts.train, parts.valid, how, state=tmp_path / "state.pt")
    for a, b in zip(whole.parameters(), rest.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_cde_learns_which_way_a_spiral_turns():
    """68 spirals and 60 steps are enough for nine in ten; from the start alone nobody can."""
    sets = [s.spirals(range(first, first + 80), 16) for first in (0, 1000)]
    parts = s.prepared(*sets, classes=2, missing=0.3)
    torch.manual_seed(0)
    net = s.CDEClassifier(2, 2, width=32)
    s.fit(net, parts.train, parts.valid, s.Fit(iterations=60, batch=64, rate=2e-2))
    assert s.accuracy(net, parts.test, passes=1) > 0.85


# -- generative models


def test_the_bound_of_a_latent_sde_is_the_sum_of_its_parts_and_ignores_gaps():
    torch.manual_seed(0)
    net = s.LatentSDE(2, latent=3, context=8, hidden=16, noise=0.5, substeps=2).double()
    values = torch.randn(6, 10, 2, dtype=torch.float64)
    values[:, 4:6, 1] = math.nan
    bound = net.elbo(TIMES, values)
    assert float(bound.start.detach()) > 0 and float(bound.path.detach()) > 0
    torch.testing.assert_close(
        bound.total(0.5), bound.log_likelihood - 0.5 * (bound.start + bound.path)
    )
    bound.total().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())
    assert net.sample(TIMES, 4, seed=1).shape == (4, 10, 2)


def test_where_the_posterior_is_the_prior_the_bound_has_no_divergence():
    torch.manual_seed(0)
    net = s.LatentSDE(1, latent=2, context=4, hidden=8, noise=1.0).double()
    with torch.no_grad():
        for p in net.first.parameters():
            p.zero_()  # q(z_0) = p(z_0) = N(0, 1)
        for a, b in zip(net.posterior.parameters(), net.prior.parameters(), strict=True):
            a.zero_()
            a[tuple(slice(n) for n in b.shape)] = b
    bound = net.elbo(TIMES, torch.zeros(5, 10, 1, dtype=torch.float64))
    assert float(bound.start.detach()) == 0
    assert float(bound.path.detach()) == pytest.approx(0, abs=1e-24)


def test_diagonal_noise_is_each_number_s_own():
    torch.manual_seed(0)
    net, x = OwnNoise(3).double(), torch.randn(4, 3, dtype=torch.float64)
    slope = torch.func.vmap(torch.func.jacrev(lambda z: net(z[None], 0.0)[0]))(x)
    slope = slope.detach()
    assert float((slope - torch.diag_embed(slope.diagonal(dim1=1, dim2=2))).abs().max()) == 0
    assert float(net(1e3 * x, 0.0).detach().min()) >= 0.01


def players(**how):
    torch.manual_seed(0)
    return s.Generator(1, hidden=4, width=8, **how).double(), s.Discriminator(
        1, hidden=4, width=8, **how).double()  # fmt: skip


def test_the_judge_s_gradient_reaches_the_generator():
    generator, judge = players()
    judge(TIMES, generator(TIMES, 8)).mean().backward()
    grads = [p.grad for p in generator.parameters()]
    assert all(g is not None and float(g.abs().max()) > 0 for g in grads[:-1])
    with pytest.raises(pl.UsageError, match="paths of 1 channels"):
        judge(TIMES, torch.zeros(2, 10, 3).double())


def test_the_judge_can_be_differentiated_by_its_exact_inverse():
    paths = torch.randn(8, 10, 1, dtype=torch.float64)
    found = []
    for how in ("direct", "reversible"):
        judge, x = players(adjoint=how)[1], paths.clone().requires_grad_()
        score = judge(TIMES, x).sum()
        found.append(torch.autograd.grad(score, [x, *judge.parameters()]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_each_player_improves_against_one_that_stands_still():
    """And the judge's layers stay within their bounds."""
    real = 1 + 0.05 * torch.randn(64, 10, 1, dtype=torch.float64)
    real[:, 3, 0] = math.nan
    gaps = []
    generator, judge = players()
    s.play(generator, judge, TIMES, real, s.Game(6, 32, rates=(1e-12, 0.5), faster=1.0),
           watch=lambda step, gap: gaps.append(gap))  # fmt: skip
    assert gaps[-1] > gaps[0]
    widest = [float((m.weight.abs() * m.out_features).detach().max()) for m in judge.modules()
              if isinstance(m, torch.nn.Linear)]  # fmt: skip
    assert max(widest) <= 1 + 1e-12
    before = judge(TIMES, generator(TIMES, 64)).mean()
    s.play(generator, judge, TIMES, real, s.Game(6, 32, rates=(0.5, 1e-12), faster=1.0))
    assert float((judge(TIMES, generator(TIMES, 64)).mean() - before).detach()) > 0

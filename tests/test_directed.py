"""Subspaces, pseudo-labels, rates and reward-directed models, against closed forms."""

import json
import math
import warnings

import pytest
import torch

import pathline as pl
from pathline.core import noise
from pathline.core.errors import CheckpointError, UsageError
from pathline.fields import Subspace
from pathline.learn import (
    Directed,
    Labels,
    PseudoLabelled,
    fit_regressor,
    fit_ridge,
    measure_rate,
    pseudo_labels,
    train_directed,
)
from pathline.learn.labels import encode_value
from pathline.nets import SubspaceScore
from pathline.steer import LookAhead, slope_of

VP = pl.VPLinear()


def drawn(n, *shape, index=0):
    return noise.normal(range(n), shape, index=index, dtype=torch.float64)


def rows(n=400, whole=12, dim=3):
    support = Subspace.drawn(whole, dim)
    return support, support.lifted(drawn(n, dim))


# --- subspaces and Gaussians on them ------------------------------------------------------------


def test_a_singular_gaussian_is_data_on_a_subspace():
    """Its score splits: that of z along A, −x/σ² off it; draws are on it, and x̂_0 always."""
    support, _ = rows()
    variances = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    law, latent = support.gaussian(VP, variances), pl.Gaussian(VP, torch.zeros(3), variances)
    x, t = drawn(6, 12), 0.3
    sigma = float(VP.sigma(t))
    inside = latent(support.latent(x), t).score @ support.basis.T
    outside = -(x - support.projected(x)) / sigma**2
    torch.testing.assert_close(law(x, t).score, inside + outside, rtol=1e-9, atol=1e-9)
    # off by the square root of what eigh leaves of zero, 1e-16
    assert float(support.off(law.draw(range(50))).max()) < 1e-7
    assert float(support.off(law(x, t).x0).max()) < 1e-12
    assert law.draw(range(50)).isfinite().all()


def test_a_gaussian_given_a_measurement_is_the_ratio_of_densities():
    """log p(x | y) − log p(x) = log p(y | x) + const, for any x: Bayes, with no algebra of ours."""
    c = drawn(4, 4)
    law = pl.Gaussian(VP, drawn(1, 4, index=1)[0], c @ c.T + 0.1 * torch.eye(4).double())
    a, y, s = drawn(2, 4, index=2), torch.tensor([0.4, -1.0]).double(), 0.3
    posterior, x = law.given(a, y, s), drawn(5, 4, index=5)
    gain = posterior.log_prob(x, 0.0) - law.log_prob(x, 0.0)
    likelihood = -(y - x @ a.T).square().sum(1) / (2 * s**2)
    torch.testing.assert_close(gain - likelihood, (gain - likelihood)[:1].expand(5))


def test_gaussians_keep_gradients_in_their_covariance_and_refuse_what_is_none():
    c = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    law, x = pl.Gaussian(VP, torch.zeros(2).double(), c), drawn(3, 2)
    for _ in range(2):  # a kept decomposition would have lost its graph
        (made,) = torch.autograd.grad(law(x, 0.4).x0.sum(), c)
    alpha, sigma = VP.alpha(0.4), VP.sigma(0.4)
    wanted = (alpha * sigma**2 / (alpha**2 * c + sigma**2) ** 2 * x).sum(0)
    torch.testing.assert_close(made, wanted)
    with pytest.raises(UsageError, match="no negative variance"):
        pl.Gaussian(VP, torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]))(x, 0.4)
    with pytest.raises(UsageError, match="needs noise on it"):
        law.given(torch.ones(2), 1.0, 0.0)
    with pytest.raises(UsageError, match=r"these are \(2, 2\) and \(4, 4\): flatten"):
        pl.Gaussian(VP, torch.zeros(2, 2), torch.eye(4))


def test_a_gaussian_used_in_inference_mode_first_still_has_gradients():
    law, x = pl.Gaussian(VP, torch.zeros(2), torch.ones(2)), torch.ones(1, 2)
    with torch.inference_mode():
        law(x, 0.4)
    at = x.clone().requires_grad_()
    law(at, 0.4).x0.sum().backward()
    assert torch.equal(at.grad, VP.alpha(0.4).float().expand(1, 2))


def test_the_off_support_ratio_is_each_sample_s_own():
    support, x = rows(2)
    normal = torch.linalg.qr(torch.cat((support.basis, drawn(12, 9)), 1)).Q[:, 3]
    size = x.norm(dim=1, keepdim=True)
    away = torch.stack((x[0] + 0.5 * size[0] * normal, x[1] - 0.25 * size[1] * normal))
    torch.testing.assert_close(support.off(away), torch.tensor([0.5, 0.25]).double())
    moved = Subspace(support.basis, normal)  # an affine one
    torch.testing.assert_close(moved.off(away + normal), support.off(away))
    # of opposite vectors the mean is on the subspace, and the ratio must not see that
    both = torch.stack((away[0], 2 * x[0] - away[0]))
    assert float(support.off(both).mean()) == pytest.approx(0.5)


def test_subspaces_are_found_and_told_apart():
    support, x = rows()
    found = Subspace.of(x + 1.0)
    assert found.dim == 3 and found.gap(support) < 1e-7
    torch.testing.assert_close(found.projected(x + 1.0), x + 1.0)
    turned = Subspace(torch.linalg.qr(support.basis @ drawn(3, 3)).Q)
    assert turned.gap(support) < 1e-12
    other = Subspace(torch.eye(12).double()[:, :3])
    a, b = (s.basis @ s.basis.T for s in (support, other))
    assert other.gap(support) == pytest.approx(float((a - b).norm()), rel=1e-12)


def test_no_structure_is_said():
    flat = drawn(400, 12)
    cases = (
        (lambda: Subspace.of(flat), "no low-dimensional structure found: 99%"),
        (lambda: Subspace.of(flat, 12), "no low-dimensional structure found: dim=12"),
        (lambda: Subspace.of(flat[:3], 5), "no low-dimensional structure found"),
        (lambda: Subspace.of(torch.ones(5, 4)), "no low-dimensional structure found"),
        (lambda: Subspace(torch.eye(3)), "no low-dimensional structure"),
        (lambda: Subspace(torch.ones(3, 2)), "orthonormal"),
        (lambda: Subspace.drawn(8, 2).off(flat), "one of R.8"),
    )
    for call, words in cases:
        with pytest.raises(UsageError, match=words):
            call()


# --- the network --------------------------------------------------------------------------------


def test_the_encoder_decoder_has_the_score_of_a_subspace():
    """Off span V it is −x/σ² exactly, trained or not, and V is orthonormal after any update."""
    torch.manual_seed(0)
    net = SubspaceScore(12, 3).double()
    with torch.no_grad():
        net.frame.add_(0.3 * torch.randn(12, 3))
    model, x, t = pl.Denoiser(net, VP, "x0", shape=(12,)), drawn(5, 12), 0.4
    support = Subspace(net.basis.detach())
    torch.testing.assert_close(net.basis.T @ net.basis, torch.eye(3).double(), rtol=0, atol=1e-12)
    score, sigma = model(x, t).score, float(VP.sigma(t))
    outside = score - support.projected(score)
    wanted = -(x - support.projected(x)) / sigma**2
    torch.testing.assert_close(outside, wanted, rtol=1e-9, atol=1e-9)
    assert net.basis.requires_grad


def test_the_encoder_decoder_is_told_a_value_or_none():
    net = SubspaceScore(6, 2, label_width=8, label_mean=1.0, label_std=2.0)
    x, t = torch.randn(3, 6), torch.tensor(0.5)
    told, same = net(x, t, torch.tensor([1.0, 3.0, math.nan])), net(x, t)
    assert torch.equal(told[2], same[2]) and not torch.equal(told[0], same[0])
    with pytest.raises(UsageError, match="told no value"):
        SubspaceScore(6, 2)(x, t, torch.ones(3))
    with pytest.raises(UsageError, match="0 < latent < dim"):
        SubspaceScore(6, 6)
    with pytest.raises(UsageError, match="is even"):
        SubspaceScore(6, 2, label_width=3)
    with pytest.raises(UsageError, match=r"states \(batch, 6\)"):
        net(torch.randn(3, 5), t)


# --- regressions and pseudo-labels --------------------------------------------------------------


def test_ridge_is_its_formula_and_its_choice_the_best_of_what_was_left_out():
    support, x = rows(60)
    theta = support.basis @ torch.tensor([1.0, -2.0, 0.5]).double()
    y = x @ theta + 0.5 * drawn(60, index=9)
    square = x.T @ x + 3.0 * torch.eye(12).double()
    exact = torch.linalg.solve(square, x.T @ y)
    torch.testing.assert_close(fit_ridge(x, y, 3.0).theta, exact, rtol=1e-9, atol=1e-9)
    fresh = support.lifted(drawn(2000, 3, index=4))
    chosen = fit_ridge(x, y)

    def risk(ridge):
        return float((ridge(fresh) - fresh @ theta).square().mean())

    risks = [risk(fit_ridge(x, y, 10.0**k)) for k in range(-4, 5)]
    # the least risk is at λ = d s²/|θ|² = 0.14; folds of 12 choose one that is little worse
    assert risk(chosen) < 2 * min(risks) and risk(chosen) < 0.1 * max(risks)
    moved = fit_ridge(x + 5.0, y + 7.0, 3.0, center=torch.full((12,), 5.0), offset=7.0)
    torch.testing.assert_close(moved(x + 5.0), fit_ridge(x, y, 3.0)(x) + 7.0)


def test_a_network_learns_what_no_line_can_and_its_slope_is_there():
    x = 2 * noise.uniform(range(400), (2,), dtype=torch.float64) - 1
    y = x[:, 0].square() - x[:, 1]
    made = fit_regressor(x, y, epochs=40, rate=1e-2)
    left = float((made(x) - y).square().mean() / y.var())
    line = fit_ridge(x, y, 1e-4, center=x.mean(0), offset=float(y.mean()))
    # a line explains none of the square, a fifth of the variance; the network nearly all
    assert left < 0.02 < 0.15 < float((line(x) - y).square().mean() / y.var())
    assert slope_of(made)(x).shape == x.shape
    assert torch.equal(made(x), fit_regressor(x, y, epochs=40, rate=1e-2)(x))


def test_pseudo_labels_are_the_regression_with_noise():
    _, x = rows(4000)
    y = pseudo_labels(lambda x: 2 * x[:, 0], x, 0.3)
    off = y - 2 * x[:, 0]
    # five standard errors of mean and deviation of 4000 draws
    assert abs(float(off.mean())) < 5 * 0.3 / math.sqrt(4000)
    assert float(off.std()) == pytest.approx(0.3, rel=5 / math.sqrt(2 * 4000))
    source = PseudoLabelled(x, 2 * x[:, 0], 0.3, null_share=0.25)
    batch = source.batch(2000, torch.Generator().manual_seed(0))
    dropped = float(batch.cond["y"].isnan().float().mean())
    assert dropped == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / 2000))
    assert source.is_dropped and len(source.held_out(1000).x0) == 128


def test_bad_labels_are_refused_by_the_name_of_the_column():
    x, y = drawn(5, 3), drawn(5)
    cases = (
        (lambda: fit_ridge(x[:0], y[:0]), "column 'y' is empty: there are no labelled rows"),
        (lambda: fit_ridge(x, torch.ones(5)), "column 'y' is constant"),
        (lambda: fit_ridge(x, y / 0), "column 'y' .*not finite"),
        (lambda: fit_ridge(x / 0, y), "column 'x' .*not finite"),
        (lambda: fit_ridge(x, y[:4]), "column 'y' has the shape"),
        (lambda: fit_ridge(x, y, -1.0), "λ is 0 or more"),
        (lambda: fit_regressor(x, torch.ones(5)), "column 'y' is constant"),
        (lambda: Labels.of(x, y).beyond(math.nan), "target 'a' is nan"),
        (lambda: pseudo_labels(lambda x: x[:, 0], x, 0.0), "the law of data given one has no"),
        (lambda: PseudoLabelled(x, y, 0.1), "5 points and 5 labels"),
        (lambda: encode_value(), "told a value, as in y=0.5, and got no value"),
        (lambda: encode_value(y="high"), "is no number"),
        (lambda: encode_value(y=math.inf), "not finite"),
        (lambda: encode_value(y=1.0, text="a"), "got text"),
    )
    for call, words in cases:
        with pytest.raises(UsageError, match=words):
            call()


def test_targets_far_from_the_labels_are_told():
    labels = Labels(0.0, 1.0, -2.0, 2.0, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert labels.beyond(5.9) == pytest.approx(3.9) and labels.beyond(-1.0) == 0
    with pytest.warns(UserWarning, match=r"extrapolating by 5\.0 sd"):
        assert labels.beyond(7.0) == pytest.approx(5.0)


# --- reward-directed models ---------------------------------------------------------------------


def test_a_guided_gaussian_proposes_what_the_closed_form_says():
    """x | ŷ = a has the mean reward a θᵀCθ/(θᵀCθ + ν²) for f̂ = θ·x, in the data's own units."""
    support, x = rows(2000)
    theta = support.basis @ torch.tensor([1.0, 0.0, 0.0]).double()
    y = x @ theta
    inner = support.gaussian(VP, torch.full((3,), 0.25))  # of (x − 1)/2
    model = Directed(
        inner, lambda x: (x - 1.0) @ theta, Labels.of(x, y), guide=LookAhead(std=0.5),
        support=Subspace(support.basis, torch.ones(12).double()), center=torch.ones(12), scale=2.0,
    )  # fmt: skip
    made = model.propose(
        1.5, 2000, truth=lambda x: (x - 1.0) @ theta, steps=30, dtype=torch.float64
    )
    # variance of the reward is 4 · 0.25 = 1; five standard errors of 2000 draws, and 1 % of steps
    rho, error = 1 / (1 + 0.25), 5 * math.sqrt(0.2 / 2000)
    assert made.reward == pytest.approx(1.5 * rho, abs=error + 0.01)
    assert made.estimate == pytest.approx(made.reward) and made.gap == abs(1.5 - made.reward)
    assert made.off < 0.05 and made.beyond == 0  # early stop: noise of the path's first level
    unknown = model.propose(1.5, 4, steps=5, dtype=torch.float64)
    assert math.isnan(unknown.reward) and unknown.gap == abs(1.5 - unknown.estimate)


def test_a_directed_model_is_trained_saved_and_asked(tmp_path):
    pytest.importorskip("lightning_fabric")
    support, x = rows(600, 6, 2)
    labels = Labels.of(x, x[:, 0])
    how = {"noise": 0.1, "dim": 2, "steps": 40, "null_share": 0.1, "network": {"width": 8}}
    made = train_directed(x, lambda x: x[:, 0], labels, tmp_path, **how)
    assert made.model.details["condition"] == "y" and made.model.is_conditional
    proposal = made.propose(0.5, 8, truth=lambda x: x[:, 0], steps=4)
    assert proposal.x.shape == (8, 6) and proposal.x.isfinite().all()
    again = train_directed(x, lambda x: x[:, 0], labels, tmp_path, **how)  # nothing left to do
    assert torch.equal(again.propose(0.5, 8, steps=4).x, proposal.x)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["network"]["class"] == "SubspaceScore" and config["dropped"]
    with pytest.raises(CheckpointError, match="another configuration"):
        train_directed(x, lambda x: x[:, 0], labels, tmp_path, **how | {"noise": 0.2})
    with pytest.raises(UsageError, match="no density"):
        train_directed(x, lambda x: x[:, 0], labels, tmp_path, **how | {"noise": 0.0})
    with pytest.raises(UsageError, match="no low-dimensional structure"):
        train_directed(drawn(600, 6), lambda x: x[:, 0], labels, tmp_path, noise=0.1)


# --- rates --------------------------------------------------------------------------------------


def test_a_power_law_has_its_exponent():
    rate = measure_rate(lambda n, seed: (1 + seed) * n**-0.25, (10, 40, 160), seeds=3)
    assert rate.slope == pytest.approx(-0.25) and rate.slope_error == pytest.approx(0, abs=1e-12)
    assert math.isnan(measure_rate(lambda n, seed: 1 / n, (10, 20), seeds=1).slope_error)


def test_too_few_rows_are_dropped_and_reported():
    asked = []

    def measure(n, seed):
        asked.append(n)
        return 1 / n

    rate = measure_rate(measure, (4, 7, 8, 32), seeds=2, dim=4)
    assert rate.dropped == (4, 7) and rate.sizes == (8, 32) and set(asked) == {8, 32}
    assert "4 dropped: fewer rows" in rate.table and "slope -1.000" in rate.table
    with pytest.raises(UsageError, match=r"two sizes .*\(4, 7 are below 2d = 8\)"):
        measure_rate(measure, (4, 7, 8), dim=4)
    with pytest.raises(UsageError, match="no logarithm"):
        measure_rate(lambda n, seed: 0.0, (8, 16))


def test_a_rate_that_is_cut_short_goes_on(tmp_path):
    kept, asked = tmp_path / "rate.json", []

    def measure(n, seed):
        asked.append((n, seed))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return 1 / n + seed

    with pytest.raises(KeyboardInterrupt):
        measure_rate(measure, (8, 16), seeds=2, keep=kept)
    rate = measure_rate(measure, (8, 16), seeds=2, keep=kept)
    assert len(asked) == 5 and rate.errors.tolist() == [[1 / 8, 1 + 1 / 8], [1 / 16, 1 + 1 / 16]]
    kept.write_text("nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        measure_rate(measure, (8, 16), seeds=2, keep=kept)


# --- the system ---------------------------------------------------------------------------------


def test_the_system_asks_what_its_specification_asks():
    from pathline.systems import systems

    claims = {claim.id: claim for claim in systems.build("diffusion-overview").claims}
    asked = {
        "look-ahead": 0.04,
        "look-ahead-spread": 0.06,
        "look-ahead-support": 1e-3,
        "naive-leaves": 10.0,
        "climb": 5.0,
        "climb-support": 1e-3,
        "naive-climb": 0.03,
        "alg-1": 6.0,
        "alg-2": 9.5,
        "pseudo-labels": 0.98,
        "pseudo-labels-support": 1e-6,
        "subspace-rate": -0.5,
        "distance-2": 1.0,
        "ambient": 0.02,
        "trained-subspace": 0.15,
        "trained-support": 0.05,
    }
    assert {name: claims[name].threshold for name in asked} == asked
    tolerances = [claims[name].tolerance for name in ("alg-1", "subspace-rate", "distance-8")]
    assert tolerances == [1.0, 0.03, 0.2]
    needing = {name for name, claim in claims.items() if claim.needs == "training"}
    assert needing == {"trained-subspace", "trained-support"}


def test_the_system_s_closed_forms_hold():
    from pathline import systems

    quick = ["pseudo-labels", "pseudo-labels-linear", "pseudo-labels-support"]
    assert systems.run("diffusion-overview", only=quick).passed


@pytest.mark.slow
def test_the_system_holds():
    from pathline import systems

    assert systems.run("diffusion-overview").passed

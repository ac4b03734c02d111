"""The learned noise levels: what the network begins with, learns, keeps and refuses."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import pathline as pl
from pathline.core import noise
from pathline.core.errors import CheckpointError
from pathline.fields import problems
from pathline.learn.noise_classifier import (
    NoiseClassifier,
    NoiseLesson,
    load_noise_classifier,
    train_noise_classifier,
)
from pathline.nets.small_cnn import SmallCNN
from pathline.speed import DMCMC, Beginning, level_table
from pathline.systems.distances import sliced

LESSON = NoiseLesson(
    sigma_min=0.05,
    sigma_max=20.0,
    levels=40,
    widths=(4, 8),
    parts=2,
    updates=80,
    batch=64,
    rate=2e-2,
)


def pictures(n=256, std=0.5):
    """Pixels that are independent normals: the level follows from their mean square alone."""
    return std * noise.normal(range(n), (1, 12, 12))


def trained(out, lesson=LESSON):
    return train_noise_classifier(out, lesson, pictures())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("levels"))


def test_the_network_begins_as_a_normal_law_of_the_log_size():
    """softmax of −(log ĉ − log σ_k)²/(2 · 0.5²), exactly: what it learns comes on top."""
    table = level_table(0.05, 20.0, 30).log()
    x = pictures(7) * torch.logspace(-1, 1, 7)[:, None, None, None]
    size = x.square().mean((1, 2, 3)).log() / 2
    exact = (-((size[:, None] - table) ** 2) / (2 * 0.25)).softmax(1)
    torch.testing.assert_close(SmallCNN(table)(x).softmax(1), exact.float(), rtol=1e-4, atol=1e-6)


def test_the_network_sees_noise_of_any_size(folder):
    """Far above the data the convolutions see the same, and the law moves with the size."""
    net = load_noise_classifier(folder).network
    seen = []
    net.levels.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    for size in (1e3, 1e4):
        assert net(size * pictures(3)).isfinite().all()
    torch.testing.assert_close(*seen, rtol=1e-4, atol=1e-5)
    assert net(0 * pictures(3)).isfinite().all()


def test_it_learns_the_level_to_what_the_data_tell(folder):
    """To a level: they are 0.15 apart, and 144 normal pixels tell log √(σ² + s²) to 0.06."""
    levels = load_noise_classifier(folder)
    for sigma in (1.0, 3.0, 10.0):
        x = pictures(500) + sigma * noise.normal(range(500), (1, 12, 12), stream="probe")
        error = (levels.estimate(x) / sigma).log().abs().median()
        assert float(error) < 0.15
    assert torch.equal(levels.sigmas, LESSON.table()) and levels.sigmas[0] == 20
    assert levels.data_rms == pytest.approx(0.5, rel=0.02)


def test_training_goes_on_where_it_was_stopped(folder, tmp_path, monkeypatch):
    """Bitwise, after an interruption in the second part; and a whole run is not run again."""
    from pathline.learn import noise_classifier

    original = noise_classifier._part

    def interrupted(lesson, images, network, optimizer, part):
        if part == 1:
            raise KeyboardInterrupt
        return original(lesson, images, network, optimizer, part)

    monkeypatch.setattr(noise_classifier, "_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path)
    monkeypatch.setattr(noise_classifier, "_part", original)
    again = load_noise_classifier(trained(tmp_path)).network.state_dict()
    whole = load_noise_classifier(folder).network.state_dict()
    assert all(torch.equal(again[k], whole[k]) for k in whole)
    monkeypatch.setattr(noise_classifier, "_part", None)
    trained(tmp_path)
    with pytest.raises(CheckpointError, match="another lesson"):
        trained(tmp_path, replace(LESSON, rate=1e-3))


def test_the_loss_is_the_cross_entropy_and_falls(folder):
    config = json.loads((folder / "config.json").read_text())
    first, second = config["training"]["loss"]
    assert second < first and config["levels"] == [0.05, 20.0, 40]
    levels = load_noise_classifier(folder)
    sigmas = levels.sigmas.float()
    x = pictures(40) + sigmas[:, None, None, None] * noise.normal(range(40), (1, 12, 12), index=3)
    loss = F.nll_loss(levels.log_posterior(x), torch.arange(40))
    assert float(loss) == pytest.approx(second, rel=0.25)


def test_chains_walk_on_learned_levels(folder):
    """End to end on data of which everything is known: normal pixels of standard deviation 0.5."""
    path = pl.EDM(0.02, 40.0)

    def network(x, t):
        variance = (40 * t.reshape(-1, 1, 1, 1)) ** 2
        return x * 0.25 / (0.25 + variance)

    model = pl.Denoiser(network, path, view="x0", shape=(1, 12, 12))
    sampler = DMCMC(model, load_noise_classifier(folder), 0.05, n_chains=20)
    done = sampler.sample(60)
    assert done.ledger.running == 9
    # five evaluations from about σ = 1, then x̂_0 at the lowest level
    assert float(done.x.std()) == pytest.approx(0.5, rel=0.15)


def test_a_model_of_data_of_another_scale_is_refused(folder):
    """Data in [0, 1] instead of [−1, 1]: σ would be off by two."""
    path = pl.EDM(0.02, 40.0)

    def network(x, t):
        variance = (40 * t.reshape(-1, 1, 1, 1)) ** 2
        return x * 0.0625 / (0.0625 + variance)

    model = pl.Denoiser(network, path, view="x0", shape=(1, 12, 12))
    sampler = DMCMC(model, load_noise_classifier(folder), 0.05, 20, beginning=Beginning(burn_in=()))
    with pytest.raises(pl.UsageError, match="scaled to"):
        sampler.sample(20)


def test_levels_of_another_table_are_refused(folder):
    model = pl.Denoiser(lambda x, t: x, pl.EDM(0.1, 10.0), view="x0", shape=(1, 12, 12))
    with pytest.raises(pl.UsageError, match="level table runs from σ = 0.05"):
        DMCMC(model, load_noise_classifier(folder), 0.05)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda out: load_noise_classifier(out / "none"), pl.UsageError, "no model folder"),
        (lambda out: load_noise_classifier("fashion-classifier"), CheckpointError, "format"),
        (
            lambda out: train_noise_classifier(out, LESSON, torch.zeros(3, 12, 12)),
            pl.UsageError,
            "images are",
        ),
        (lambda out: SmallCNN(torch.zeros(3), widths=()), pl.UsageError, "at least one width"),
        (
            lambda out: SmallCNN(torch.zeros(3))(torch.zeros(2, 3, 12, 12)),
            pl.UsageError,
            "reads images",
        ),
        (
            lambda out: train_noise_classifier(out, replace(LESSON, sigma_min=30.0), pictures(4)),
            pl.UsageError,
            "0 < sigma_min < sigma_max",
        ),
    ],
)
def test_what_cannot_work_is_refused(call, error, says, tmp_path):
    with pytest.raises(error, match=says):
        call(tmp_path)


def test_weights_that_do_not_fit_are_refused(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["network"]["widths"] = [4, 16]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="do not fit"):
        load_noise_classifier(tmp_path)


# --- what the claims lean on ---------------------------------------------------------------------


def test_the_sliced_distance_of_shifted_points_is_the_shift():
    """Along a direction u all quantiles move by s · u."""
    x = noise.normal(range(500), (2,), dtype=torch.float64)
    shift = torch.tensor([3.0, -1.0], dtype=torch.float64)
    ways = noise.normal(range(64), (2,), stream="probe", index=3, dtype=torch.float64)
    ways = ways / ways.norm(dim=1, keepdim=True)
    exact = (ways @ shift).square().mean().sqrt()
    assert sliced(x, x + shift) == pytest.approx(float(exact), rel=1e-9)
    assert sliced(x, x.flip(0)) == pytest.approx(0, abs=1e-12)


def test_a_mixture_draws_its_own_data():
    """Shares and means of 20 000 draws of E16 within five standard errors; seeds alone count."""
    law = problems.e16(pl.EDM())
    x = law.draw(range(20000))
    share = torch.bincount(torch.cdist(x, law.means).argmin(1), minlength=6) / 20000
    assert float((share - law.weights).abs().max()) < 5 * (0.3 * 0.7 / 20000) ** 0.5
    mean = law.weights @ law.means
    variance = law.weights @ (law.means**2 + law.stds**2) - mean**2
    assert float(((x.mean(0) - mean) / (variance / 20000).sqrt()).abs().max()) < 5
    assert torch.equal(law.draw([7]), x[7:8])
    torch.testing.assert_close(law.means.mean(0), 0 * mean, rtol=0, atol=1e-14)


def test_a_classifier_is_its_network_and_its_table():
    table = level_table(0.1, 10.0, 10)
    made = NoiseClassifier(SmallCNN(table.log(), widths=(4,)), (0.1, 10.0, 10), 0.3)
    assert torch.equal(made.sigmas, table) and made.data_rms == 0.3
    logits = made.log_posterior(pictures(3).double())
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(3))

"""A classifier of noisy images against the posterior of two, and what it makes of a model."""

import json
from dataclasses import replace

import pytest
import torch

import pathline as pl
from pathline.core import UsageError
from pathline.core.errors import CheckpointError
from pathline.learn.noisy_classes import (
    ClassLesson,
    Labelled,
    labelled,
    load_noisy_classes,
    train_noisy_classes,
)
from pathline.learn.sources import Points
from pathline.nets.noisy_classifier import NoisyClassifier
from pathline.paths import PFGMpp

IMAGE = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(2, 2)[None, None] / 2
"""The one class is this image, and the other its negative."""
LESSON = ClassLesson(span=(-3.0, 3.0), widths=(16,), parts=3, updates=150, batch=128, rate=5e-3)


@pytest.fixture(scope="module")
def two():
    images = Points(torch.cat((IMAGE, -IMAGE)), torch.cat((IMAGE, -IMAGE)))
    numbers = torch.tensor([0, 1])
    return Labelled(images, numbers, numbers, ("plus", "minus"))


@pytest.fixture(scope="module")
def trained(two, tmp_path_factory):
    out = tmp_path_factory.mktemp("classes")
    train_noisy_classes(out, two, LESSON)
    return out


def posterior(x, alpha, sigma):
    """log p(plus | x)/p(minus | x) = 2 α ⟨x, image⟩/σ², for images ± and as likely."""
    return torch.sigmoid(2 * alpha * (x * IMAGE).sum((1, 2, 3)) / sigma**2)


@pytest.mark.parametrize("path", [pl.VPLinear(), pl.CondOT()])
def test_it_learns_the_posterior_at_every_level_and_on_every_path(trained, path):
    """Probabilities within 0.1 in the mean, after 450 updates; guessing errs by 0.25 and more."""
    logits = load_noisy_classes(trained / "model").on(path)
    generator = torch.Generator().manual_seed(0)
    for log_snr in (-1.0, 0.0, 2.0):
        t = path.time_of_log_snr(log_snr)
        alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
        signs = torch.arange(400)[:, None, None, None] % 2 * 2.0 - 1
        x = alpha * signs * IMAGE + sigma * torch.randn(400, 1, 4, 4, generator=generator)
        with torch.no_grad():
            found = logits(x, t.expand(400)).softmax(1)[:, 0]
        assert (found - posterior(x, alpha, sigma)).abs().mean() < 0.1


def test_paths_are_one_to_it(trained):
    """A state of one path is a multiple of another's at the same λ, and says the same."""
    known = load_noisy_classes(trained / "model")
    x, log_snr = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(1)), 0.7
    said = []
    for path in (pl.VPLinear(), pl.CondOT(), pl.VE()):
        t = path.time_of_log_snr(log_snr)
        size = float(torch.hypot(path.alpha(t), path.sigma(t)))
        said.append(known.on(path)(size * x, t.expand(5)))
    torch.testing.assert_close(said[0], said[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(said[0], said[2], rtol=1e-4, atol=1e-4)


def test_it_makes_a_model_one_of_classes(trained):
    """The exact denoiser of both images was never told of classes; guided, it makes the asked."""
    known, path = load_noisy_classes(trained / "model"), pl.VPLinear()
    law = pl.Dataset(path, torch.cat((IMAGE, -IMAGE)).double())
    labels = [known.label(name) for name in ("plus", "minus")] * 20
    guide = pl.Classifier(known.on(path), labels, weight=2.0)
    made = pl.sample(law, 40, solver="dpmpp_2m", steps=20, guide=guide, shape=(1, 4, 4)).x
    plain = pl.sample(law, 40, solver="dpmpp_2m", steps=20, shape=(1, 4, 4)).x
    signs = 1 - 2 * torch.tensor(labels)
    right, chance = (((x * IMAGE).sum((1, 2, 3)).sign() == signs).sum() for x in (made, plain))
    assert right >= 38 and 8 <= chance <= 32  # 40 coins are outside with 1e-4
    assert json.dumps(guide.describe())
    assert guide.describe()["network"] == str(trained / "model")


def test_a_training_that_is_cut_short_goes_on_to_the_same_bits(two, tmp_path, monkeypatch):
    from pathline.learn import noisy_classes

    short, whole = replace(LESSON, updates=5), tmp_path / "whole"
    train_noisy_classes(whole, two, short)
    real, calls = noisy_classes._part, []

    def cut(*args):
        calls.append(args[-1])
        if calls == [0, 1]:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(noisy_classes, "_part", cut)
    with pytest.raises(KeyboardInterrupt):
        train_noisy_classes(tmp_path / "cut", two, short)
    train_noisy_classes(tmp_path / "cut", two, short)
    assert calls == [0, 1, 1, 2]
    files = [folder / "model" / "model.safetensors" for folder in (tmp_path / "cut", whole)]
    assert files[0].read_bytes() == files[1].read_bytes()
    with pytest.raises(CheckpointError, match="of another lesson"):
        train_noisy_classes(tmp_path / "cut", two, replace(short, seed=1))


def test_the_digits_have_their_classes():
    data = labelled("digits")
    assert data.classes[7] == "7" and len(data.labels) == 1500 and len(data.test_labels) == 297
    drawn = data.images.at(torch.arange(1500), torch.Generator().manual_seed(0))
    cells = ((drawn + 1) * 17 / 2).floor()
    assert torch.equal(cells, ((data.images.points + 1) * 17 / 2).floor())  # each in its own cell


def test_bad_input_is_told(trained):
    known = load_noisy_classes(trained / "model")
    told = (
        (lambda: known.on(PFGMpp(dof=8.0)), "knows Gaussian noise.*D=8"),
        (lambda: known.label("pluss"), "did you mean plus"),
        (lambda: labelled("digts"), "did you mean digits"),
        (lambda: ClassLesson(span=(1.0, 1.0)), "from a lower λ to a higher"),
        (lambda: NoisyClassifier(widths=(12,)), "multiples of 8"),
        (lambda: known.network(torch.zeros(1, 3, 4, 4), torch.zeros(1)), "reads images"),
        (lambda: load_noisy_classes("fashion-levels"), "format"),
    )
    for call, words in told:
        with pytest.raises((UsageError, CheckpointError), match=words):
            call()

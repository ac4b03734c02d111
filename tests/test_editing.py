"""Edits by noise and by words, in closed form: Gaussian data of independent elements."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import pathline as pl
from pathline import edit
from pathline.core import UsageError, noise
from pathline.edit.inverter import Way
from pathline.paths import EDM, VE, CondOT, VPLinear
from pathline.solvers import grids, solve

MEAN, VARIANCE = 0.3, 0.25
CLASSES = torch.tensor(
    [0.5, -1.0, 0.1], dtype=torch.float64
)  # the mean of each class, the null last


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def law(path, n=2):
    return pl.Gaussian(path, f64([MEAN] * n), f64([VARIANCE] * n))


def classes(path=None):
    """A denoiser told a class, exact, whose elements know nothing of each other."""
    path = path or VPLinear()

    def said(x, t, cls):
        t = t.double()[:, None]
        m, (a, s) = CLASSES[cls][:, None], (path.alpha(t), path.sigma(t))
        return m + a * VARIANCE / (a**2 * VARIANCE + s**2) * (x - a * m)

    return pl.Denoiser(said, path, view="x0", null={"cls": torch.tensor([2])})


def one(k, n):
    return {"cls": torch.full((n,), k)}


def kept(path, steps, strength):
    """The gain of posterior sampling from the level that a strength begins at."""
    times = grids.uniform(steps).times(path)
    t = f64(times[-int(steps * strength + 1e-9) - 1])
    a, s = float(path.alpha(t)), float(path.sigma(t))
    gain = a * VARIANCE / (a**2 * VARIANCE + s**2)
    return a, s, gain


# ------------------------------------------------------------------------------------------ SDEdit


@pytest.mark.parametrize("path", [VPLinear(), VE(), CondOT()])
def test_sdedit_has_the_law_of_noising_and_sampling_the_posterior(path):
    """x_0 given x_s ~ N(α y, σ²): mean m + gα(y − m), variance g²σ² + Cσ²/(α²C + σ²)."""
    n, strength = 4000, 0.4
    y = f64([[1.3, -0.7]])
    made = edit.sdedit(law(path), y, strength=strength, steps=200, samples=n).x[0]
    a, s, gain = kept(path, 200, strength)
    mean = MEAN + gain * a * (y[0] - MEAN)
    variance = gain**2 * s**2 + VARIANCE * s**2 / (a**2 * VARIANCE + s**2)
    # four standard errors, and the bias of 80 ancestral steps (order one)
    assert (made.mean(0) - mean).abs().max() < 4 * (variance / n) ** 0.5 + 0.01
    assert (made.var(0) / variance - 1).abs().max() < 4 * (2 / n) ** 0.5 + 0.03


@pytest.mark.parametrize("path", [VPLinear(), EDM(), CondOT()])
def test_any_deterministic_solver_carries_the_noised_state_along_the_flow(path):
    y, seeds = f64([[1.3, -0.7], [0.2, 0.4]]), [5, 6]
    made = edit.sdedit(
        law(path), y, strength=0.5, solver="dpmpp_3m", grid="log_snr", steps=200, seeds=seeds
    )
    times = grids.log_snr(200).times(path)
    z = noise.normal(seeds, (2,), stream="initial", dtype=torch.float64)
    start = path.noised(y, z, f64(times[100]))
    exact = law(path).flow(start, times[100], times[-1])
    assert (made.x[:, 0] - exact).abs().max() < 2e-3
    assert made.nfe == 100


def test_a_mask_keeps_to_the_bit_and_a_full_one_changes_nothing():
    model, y = law(VPLinear(), 3), f64([[1.0, -0.5, 0.7], [0.1, 0.2, 0.3]])
    how = {"strength": 0.6, "steps": 10, "samples": 2, "seed": 3}
    free = edit.sdedit(model, y, **how).x
    made = edit.sdedit(model, y, mask=f64([1.0, 0.0, 1.0]), **how).x
    assert torch.equal(made[..., 1], y[:, None, 1].expand(2, 2))
    assert torch.equal(made[..., ::2], free[..., ::2])  # elements are independent here
    assert torch.equal(edit.sdedit(model, y, mask=torch.ones(3), **how).x, free)


def test_a_map_of_change_gives_each_element_a_strength_of_its_own():
    """Half of strength 0.8 is strength 0.4, in law."""
    n, y = 4000, f64([[1.3, -0.7]])
    how = {"steps": 100, "samples": n}
    made = edit.sdedit(law(VPLinear()), y, strength=0.8, mask=f64([0.5, 1.0]), **how).x[0]
    for k, strength in enumerate((0.4, 0.8)):
        a, s, gain = kept(VPLinear(), 100, strength)
        variance = gain**2 * s**2 + VARIANCE * s**2 / (a**2 * VARIANCE + s**2)
        mean = MEAN + gain * a * (y[0, k] - MEAN)
        assert abs(made[:, k].mean() - mean) < 4 * (variance / n) ** 0.5 + 0.02
        assert abs(made[:, k].var() / variance - 1) < 4 * (2 / n) ** 0.5 + 0.05


def test_rounds_contract_one_after_the_other_with_fresh_noise():
    n, y = 4000, f64([[1.3, -0.7]])
    made = edit.sdedit(law(VPLinear()), y, strength=(0.4, 0.3), steps=100, samples=n)
    (a, _, g), (b, _, h) = (kept(VPLinear(), 100, s) for s in (0.4, 0.3))
    mean = MEAN + g * a * h * b * (y[0] - MEAN)
    assert (made.x[0].mean(0) - mean).abs().max() < 4 * (VARIANCE / n) ** 0.5 + 0.02
    assert made.nfe == 70
    assert made.x[0].var(0).min() > 0.5 * VARIANCE  # one noise twice would cancel or add up


def test_answers_are_functions_of_their_seed_alone():
    model, y = law(CondOT()), f64([[1.0, -0.5], [0.1, 0.2]])
    together = edit.sdedit(model, y, strength=0.5, steps=8, samples=3, seed=10).x
    alone = edit.sdedit(model, y[1:], strength=0.5, steps=8, seeds=[14]).x
    assert torch.equal(alone[0, 0], together[1, 1])


def test_grids_that_end_in_data_and_guides_are_as_of_a_solve():
    model, y = classes(), torch.zeros(2, 3, dtype=torch.float64)
    grid = grids.uniform(10, last="denoise")
    how = {"guide": pl.CFG(3.0), **one(0, 2)}
    made = edit.sdedit(model, y, strength=0.4, grid=grid, seeds=[1, 2], **how)
    times = grid.times(model.path)
    z = noise.normal([1, 2], (3,), stream="initial", dtype=torch.float64)
    start = model.path.noised(y, z, f64(times[6]))
    part = grids.times(times[6:-1], last="denoise")
    again = solve(model, start, solver="ddpm", grid=part, seeds=[1, 2], **how)
    assert torch.equal(made.x[:, 0], again.x)
    assert made.receipt.recipe["strength"] == [0.4]
    json.dumps(made.receipt.recipe)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"strength": 0.0}, r"\(0, 1\], not 0"),
        ({"strength": 1.5}, r"\(0, 1\], not 1.5"),
        ({"strength": ()}, "none were given"),
        ({"strength": 0.01}, "less than one step"),
        ({"samples": 0}, "one answer at least"),
        ({"seeds": [1, 2, 3]}, "give 2"),
        ({"mask": f64([2.0, 0.0])}, "from 0"),
        ({"mask": torch.ones(3)}, "does not fit"),
        ({"grid": (0.1, 0.9)}, "must fall"),
    ],
)
def test_what_sdedit_refuses(how, said):
    with pytest.raises(UsageError, match=said):
        edit.sdedit(law(VPLinear()), torch.zeros(2, 2).double(), **how)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.zeros(2, 3).double(), r"takes data of \(2,\)"),
        (torch.zeros(2, 2, dtype=torch.int64), "floating"),
        (f64([[float("nan"), 0.0]]), "not finite"),
    ],
)
def test_what_is_no_picture_is_refused_by_all(x, said):
    model = law(VPLinear())
    for call in (
        lambda: edit.sdedit(model, x),
        lambda: edit.code(model, x),
        lambda: edit.latent_edit(model, x, lambda z: z.x, depth=3),
        lambda: edit.text_edit(model, x, {}, {}),
    ):
        with pytest.raises(UsageError, match=said):
            call()


def test_a_field_without_a_path_is_refused():
    with pytest.raises(UsageError, match="on a path"):
        edit.sdedit(pl.VectorField(lambda x, t: -x), torch.zeros(1, 2))


# -------------------------------------------------------------------------------------- text edits

METHODS = {
    "bdia": pl.BDIA(0.96),
    "reversible": "reversible",
    "edict": edit.EDICT(),
    "fixed point": edit.FixedPoint(),
    "ddim": "ddim",
    "ddim inversion": edit.ddim_inversion(),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_text_edit_is_encoding_and_decoding_under_another_text(name):
    model, x = classes(), 0.5 + 0.5 * noise.normal(range(3), (4,), dtype=torch.float64)
    method, how = METHODS[name], {"steps": 12, "grid": None}
    guide = pl.CFG(2.0)
    made = edit.text_edit(model, x, one(0, 3), one(1, 3), solver=method, guide=guide, **how)
    code = pl.encode(model, x, solver=method, steps=12, **one(0, 3))
    again = pl.decode(model, code, guide=guide, **one(1, 3))
    assert torch.equal(made.x[:, 0], again.x)
    assert torch.equal(made.error, code.error)
    assert torch.equal(made.rms, code.rms)
    assert all(torch.equal(a, b) for a, b in zip(made.code, code.states, strict=True))
    assert (made.x[:, 0].mean() - x.mean()) < -0.5  # from 0.5 towards −1 and beyond


def test_an_edit_is_damped_unless_it_is_said_otherwise():
    model, x = classes(), 0.5 + 0.5 * noise.normal(range(3), (4,), dtype=torch.float64)
    usual = edit.text_edit(model, x, one(0, 3), one(1, 3), steps=12).x
    assert torch.equal(usual, edit.text_edit(model, x, one(0, 3), one(1, 3), steps=12,
                                             solver=pl.BDIA(0.96)).x)  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_a_mask_confines_the_edit(name):
    """Outside all is kept to the bit; inside, as elements are independent, all is edited."""
    model, x = classes(), 0.5 + 0.5 * noise.normal(range(3), (4,), dtype=torch.float64)
    how = {"solver": METHODS[name], "steps": 12, "guide": pl.CFG(2.0)}
    mask = f64([1.0, 0.0, 1.0, 0.5])
    whole = edit.text_edit(model, x, one(0, 3), one(1, 3), **how).x
    made = edit.text_edit(model, x, one(0, 3), one(1, 3), mask=mask, **how).x
    assert torch.equal(made[:, 0, 1], x[:, 1])
    assert (made[..., ::2] - whole[..., ::2]).abs().max() < 1e-12
    lower, upper = torch.minimum(whole[:, 0, 3], x[:, 3]), torch.maximum(whole[:, 0, 3], x[:, 3])
    off = 0.3 if name in ("ddim", "ddim inversion") else 1e-9  # of their round trips
    assert bool(((made[:, 0, 3] > lower - off) & (made[:, 0, 3] < upper + off)).all())


def test_words_are_the_models_own_condition():
    model = pl.Denoiser(lambda x, t: x, VPLinear(), details={"condition": "label"})
    assert edit.edited.as_condition(model, "cat") == {"label": "cat"}
    assert edit.edited.as_condition(law(VPLinear()), ("cat", "dog")) == {"text": ["cat", "dog"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": {}}, "what the picture shows"),
        ({"target": {}}, "what the picture shows"),
        ({"strength": 0.0}, "strength"),
        ({"steps": 0}, "at least one step"),
        ({"mask": torch.full((4,), -1.0)}, "from 0"),
        ({"solver": "ddpm"}, "draws noise"),
    ],
)
def test_what_text_edits_refuse(change, said):
    how = {"source": one(0, 3), "target": one(1, 3), "steps": 6} | change
    source, target = how.pop("source"), how.pop("target")
    with pytest.raises(UsageError, match=said):
        edit.text_edit(classes(), torch.zeros(3, 4).double(), source, target, **how)


# ------------------------------------------------------------------------------------- latent edits


def test_an_action_acts_at_its_depths_and_the_flow_does_the_rest():
    model, x = law(VPLinear()), f64([[1.3, -0.7], [0.2, 0.4]])
    seen = []

    def act(latent):
        seen.append((latent.index, latent.t))
        return latent.x + 0.1 * latent.index

    made = edit.latent_edit(model, x, act, depth=6, at=(2, 5), steps=10, keep=True)
    times = grids.uniform(10).times(model.path)[::-1]
    assert seen == [(5, times[5]), (2, times[2])]
    up = solve(model, x, solver="ddim", grid=times[:7], trajectory=True)
    assert torch.equal(torch.stack(made.latents), up.trajectory)
    state = solve(model, up.x, solver="ddim", grid=times[6:4:-1]).x + 0.5
    state = solve(model, state, solver="ddim", grid=times[5:1:-1]).x + 0.2
    state = solve(model, state, solver="ddim", grid=times[2::-1]).x
    assert (made.x[:, 0] - state).abs().max() < 1e-14
    assert torch.equal(made.code[0], up.x)
    assert made.nfe == 12


def test_the_score_of_a_latent_is_that_of_the_noised_law():
    model, x = law(VPLinear()), f64([[1.3, -0.7]])

    def act(latent):
        a, s = latent.alpha, latent.sigma
        score = -(latent.x - a * MEAN) / (a**2 * VARIANCE + s**2)
        assert (latent.score() - score).abs().max() < 1e-10
        return edit.Acted(latent.x, "seen")

    made = edit.latent_edit(model, x, act, depth=4, steps=10, check=True)
    assert made.log.acts == {4: "seen"}
    assert made.nfe == 9
    assert torch.equal((made.x[:, 0] - x).abs().amax(1), made.error)


@pytest.mark.parametrize("name", ["bdia", "edict", "fixed point"])
def test_exact_inverters_carry_latents_too(name):
    model, x = law(VPLinear()), f64([[1.3, -0.7]])
    how = {"depth": 10, "solver": METHODS[name] or "bdia", "steps": 10}
    made = edit.latent_edit(model, x, lambda z: z.x, at=(10, 9, 4), check=True, **how)
    assert made.error.max() < 1e-10
    assert (made.x[:, 0] - x).abs().max() < 1e-10
    moved = edit.latent_edit(model, x, lambda z: z.x + 0.1, at=(10, 9), **how)
    assert (moved.x[:, 0] - x).abs().min() > 1e-4
    if name != "fixed point":
        with pytest.raises(UsageError, match="way up is changed"):
            edit.latent_edit(model, x, lambda z: z.x, rise=lambda z: z.x, **how)


def test_the_way_down_may_have_another_condition_and_several_answers():
    model, x = classes(), 0.5 + 0.5 * noise.normal(range(2), (3,), dtype=torch.float64)

    def drawn(latent):
        z = noise.normal(latent.seeds, (3,), stream="corrector", dtype=torch.float64)
        return latent.x + 0.1 * z

    how = {"depth": 8, "steps": 10, "target": {"cls": torch.tensor([1, 0])}}
    made = edit.latent_edit(model, x, drawn, samples=3, seed=4, **how, **one(0, 2)).x
    assert made.shape == (2, 3, 3)
    alone = edit.latent_edit(
        model, x[1:], drawn, seeds=[8], depth=8, steps=10, target=one(0, 1), **one(0, 1)
    )
    assert (alone.x[0, 0] - made[1, 1]).abs().max() < 1e-14
    assert made[0].mean() < made[1].mean() - 0.5


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"depth": 0}, "from 1"),
        ({"depth": 11}, r"to 10 \(noise\)"),
        ({"depth": 5, "at": (6,)}, "L = 5"),
        ({"depth": 5, "at": (-1,)}, "not on the way"),
        ({"depth": 5, "solver": "ddpm"}, "draws noise"),
        ({"depth": 5, "act": lambda z: z.x[:, :1]}, "returned"),
        ({"depth": 5, "act": lambda z: None}, "NoneType"),
    ],
)
def test_what_latent_edits_refuse(how, said):
    act = how.pop("act", lambda z: z.x)
    with pytest.raises(UsageError, match=said):
        edit.latent_edit(law(VPLinear()), torch.zeros(1, 2).double(), act, steps=10, **how)


# ---------------------------------------------------------------------------- null-text inversion


class Told(nn.Module):
    """A linear network that hears an embedding, so that a null one can be optimised."""

    def forward(self, x, t, context):
        return 0.5 * x + context.mean(1) * (1 - 0.5 * t[:, None])


def told():
    return pl.Denoiser(
        Told().double(), VPLinear(), view="x0", null={"context": torch.zeros(1, 2, 3).double()}
    )


def test_optimised_null_embeddings_lead_back_under_guidance():
    model = told()
    x = noise.normal(range(2), (3,), dtype=torch.float64)
    source = {"context": 0.4 * noise.normal([8, 9], (2, 3), dtype=torch.float64)}
    how = {"weight": 4.0, "grid": grids.log_snr(10, start=0.9)}
    made = edit.null_text(model, x, source, rounds=60, rate=0.05, **how)
    plain = edit.null_text(model, x, source, rounds=0, **how)
    assert made.left.shape == (10, 2)
    back = [pl.decode(model, m.code, guide=m.guide, **source).x for m in (made, plain)]
    off, before = ((b - x).abs().max() for b in back)
    assert off < 0.02 < 0.2 < before
    # without a round, the guide is classifier-free guidance itself
    usual = pl.decode(model, plain.code, guide=pl.CFG(4.0), **source).x
    assert (usual - back[1]).abs().max() < 1e-12
    # the distance told is that of the steps that decoding makes
    assert ((back[0] - x).square().mean(1) - made.left[-1]).abs().max() < 1e-10
    # a picture's embeddings are its own
    alone = edit.null_text(model, x[1:], {"context": source["context"][1:]}, rounds=60, rate=0.05,
                           **how)  # fmt: skip
    assert (alone.guide.nulls[3]["context"] - made.guide.nulls[3]["context"][1:]).abs().max() < 1e-9


def test_the_edit_by_null_text_is_a_text_edit_with_its_guide():
    model, x = told(), noise.normal(range(2), (3,), dtype=torch.float64)
    source, target = ({"context": torch.full((2, 2, 3), v).double()} for v in (0.2, -0.2))
    grid = grids.log_snr(8, start=0.9)
    made = edit.null_text(model, x, source, weight=3.0, grid=grid)
    one_way = pl.decode(model, made.code, guide=made.guide, **target).x
    other = edit.text_edit(
        model, x, source, target, solver=edit.ddim_inversion(), grid=grid, guide=made.guide
    )
    assert (one_way - other.x[:, 0]).abs().max() < 1e-12


def test_what_null_text_refuses():
    x = torch.zeros(1, 3).double()
    with pytest.raises(UsageError, match="means no text"):
        edit.null_text(classes(), x, one(0, 1))
    with pytest.raises(UsageError, match="α is 0"):
        model = pl.Denoiser(Told().double(), CondOT(), null={"context": torch.zeros(1, 2, 3)})
        edit.null_text(model, x, {"context": torch.zeros(1, 2, 3).double()}, grid=(1.0, 0.5, 0.1))
    with pytest.raises(UsageError, match="before other guides"):
        edit.NullEmbeddings(3.0, (0.5,), ({},))(law(VPLinear()))


def test_every_inverter_tells_where_its_states_lie():
    way = Way(law(VPLinear()), grids.log_snr(8).times(VPLinear())[::-1], {})
    x = f64([[1.3, -0.7]])
    for method in (edit.BySolver(), edit.BySolver("reversible"), edit.EDICT(), edit.FixedPoint()):
        seen = {}

        def watch(index, states, seen=seen):
            seen[index] = states
            return states

        states = method.invert(way, x).states
        assert len(method.places(way)) == len(states)
        method.regenerate(way, states, watch)
        assert sorted(seen) == list(range(min(method.places(way))))


def test_the_examples_of_the_documentation_run():
    page = (Path(__file__).resolve().parent.parent / "docs" / "editing.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "docs/editing.md", "exec"), {})

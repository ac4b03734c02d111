"""DiffEditor: geometry, tasks, windows and the driver, held to what they must be exactly."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import pathline as pl
from pathline.core import noise
from pathline.core.errors import NonFiniteError, UsageError
from pathline.edit import FixedPoint, Way, ddim_inversion
from pathline.edit.diff_editor import Bank, DiffEditor, Heard, diff_edit, invert
from pathline.edit.diff_run import Run
from pathline.edit.diff_schedule import Planned, schedule
from pathline.edit.diff_tasks import Appearance, Drag, Move, Paste, Resize, task_of
from pathline.edit.geometry import Warp, as_mask, box, moved, on_grid, patch, placed
from pathline.edit.trajectory import Trajectory, trajectory
from pathline.fields import Spherical
from pathline.nets import DiT
from pathline.nets.image_prompt import ImagePrompt
from pathline.nets.kv_bank import Concatenate
from pathline.solvers import grids
from pathline.steer.features import Patches

VP = pl.VPLinear()


def drawn(*shape, seed=0):
    return noise.normal([seed], shape, dtype=torch.float64)[0]


def block(rows, columns, size=(8, 10)):
    mask = torch.zeros(size)
    mask[slice(*rows), slice(*columns)] = 1
    return mask


MASK = block((1, 4), (2, 4))

# geometry


def test_whole_shifts_are_rolls_in_masks_noise_and_features():
    x = drawn(1, 2, 8, 10)
    warp = placed(as_mask(MASK), 3, 2, 1.0)
    target = moved(as_mask(MASK), warp)
    assert torch.equal(target, torch.roll(MASK == 1, (2, 3), (0, 1)))
    for made in (warp.nearest(x), warp.bilinear(x)):
        assert torch.equal(made[..., target], torch.roll(x, (2, 3), (2, 3))[..., target])


def test_features_are_resized_as_torch_does_it():
    """Independent: `grid_sample` at the same places, border outside."""
    x, warp = drawn(1, 2, 8, 10), Warp((8, 10), (3.5, 4.0), (1.25, -0.5), 1.6)
    ys, xs = (warp._sources(axis) for axis in (0, 1))
    grid = torch.stack(torch.meshgrid(ys / 7 * 2 - 1, xs / 9 * 2 - 1, indexing="ij")[::-1], -1)
    wanted = F.grid_sample(x, grid[None], padding_mode="border", align_corners=True)
    torch.testing.assert_close(warp.bilinear(x), wanted, rtol=0, atol=1e-12)


def test_an_object_grows_about_its_own_centre():
    mask = as_mask(block((3, 5), (4, 6)))
    made = moved(mask, placed(mask, 0, 0, 2.0))
    assert box(made) == (2, 5, 3, 6) and int(made.sum()) == 16
    less = moved(mask, placed(mask, 0, 0, 0.5))
    assert int(less.sum()) == 1


@pytest.mark.parametrize("move", [(7, 0, 1.0), (0, -2, 1.0), (0, 0, 4.0), (100, 100, 1.0)])
def test_an_object_that_leaves_the_picture_is_refused(move):
    mask = as_mask(MASK)
    with pytest.raises(UsageError, match="leaves the picture: .* pixel counts must match"):
        moved(mask, placed(mask, *move))


def test_points_are_kept_inside_by_the_width_and_the_height():
    """The published helper cuts x off at the height."""
    assert box(patch((9, 0), (4, 12))) == (0, 2, 8, 10)
    assert box(patch((11, 3), (4, 12))) == (1, 3, 9, 11)
    assert box(patch((2, 9), (12, 4))) == (8, 10, 1, 3)


def test_masks_are_refused_with_the_reason():
    for mask, said in (
        (torch.zeros(4, 4), "is empty"),
        (torch.ones(4, 4), "covers 100% of the picture"),
        (torch.full((4, 4), 0.5), "values other than 0 and 1"),
        (torch.ones(4), r"is \(height, width\), not \(4,\)"),
    ):
        with pytest.raises(UsageError, match=said):
            Move(mask)
    with pytest.raises(UsageError, match="too small to be seen on a grid of 4 × 5"):
        on_grid(as_mask(block((0, 1), (0, 1))), (4, 5))
    assert torch.equal(on_grid(as_mask(block((2, 4), (4, 8))), (4, 5)),
                       block((1, 2), (2, 4), (4, 5)) == 1)  # fmt: skip


# windows


def test_the_windows_are_those_of_the_paper():
    made = schedule(50, guides=True, travel=3, eta=0.4)
    assert [s.q for s in made if s.guided] == [*range(10), *range(10, 30, 2)]
    assert [s.q for s in made if s.repeats == 3] == [22, 24, 26, 28]
    assert [s.q for s in made if s.eta] == [*range(11, 20)]
    assert [s.q for s in made if s.prompted] == [*range(10, 20)]
    assert [s.q for s in made if s.banked] == [*range(5, 50)]
    short = schedule(50, guides=True, travel=3, eta=0.4, last_banked=35)
    assert [s.q for s in short if s.banked] == [*range(5, 36)]
    assert all(s.repeats == 1 for s in schedule(50, guides=False, travel=3, eta=0.4))


def test_the_windows_scale_and_few_steps_are_warned_of():
    made = schedule(100, guides=True, travel=2, eta=0.4)
    assert [s.q for s in made if s.eta] == [*range(21, 40)]
    assert max(s.q for s in made if s.guided) == 58
    with pytest.warns(UserWarning, match="N = 10 leaves some of them"):
        schedule(10, guides=True, travel=1, eta=0.0)
    with pytest.raises(UsageError, match="N = 0 steps"):
        schedule(0, guides=True, travel=1, eta=0.0)


# tasks


def test_arguments_of_another_task_are_refused():
    with pytest.raises(UsageError, match="unknown task 'mvoe': did you mean move"):
        task_of("mvoe", mask=MASK)
    with pytest.raises(UsageError, match="'drag' takes points, mask, size, and was given dx"):
        task_of("drag", points=(((1, 1), (2, 2)),), dx=3)
    with pytest.raises(UsageError, match="the task 'appearance' needs reference_mask"):
        task_of("appearance", mask=MASK)
    assert task_of("move", mask=MASK, dx=2, background=None).dx == 2


def test_numbers_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match="scale=0"):
        Move(MASK, scale=0)
    with pytest.raises(UsageError, match="scale=-1"):
        Paste(MASK, scale=-1)
    with pytest.raises(UsageError, match="nothing is dragged"):
        Drag(())
    with pytest.raises(UsageError, match=r"a point is \(x, y\)"):
        Drag((((1, 2, 3), (1, 2)),))
    with pytest.raises(UsageError, match=r"the point \(10, 1\) lies outside the picture, whose x"):
        Drag((((10, 1), (2, 2)),), MASK).laid((8, 10), (8, 10))
    with pytest.raises(UsageError, match="leaves the picture"):
        Move(MASK, dx=9).laid((8, 10), (8, 10))


def test_regions_of_a_move_and_its_first_state():
    laid = Move(MASK, dx=1).laid((8, 10), (8, 10))
    old = MASK == 1
    new = torch.roll(old, 1, 1)
    assert torch.equal(laid.regions["vacated"], old & ~new)
    assert torch.equal(laid.regions["kept"], ~(old | new)) and torch.equal(laid.region, new)
    z = drawn(1, 2, 8, 10)
    assert torch.equal(laid.begin([z]), torch.where(new, torch.roll(z, 1, 3), z))
    kinds = [(type(t).__name__, t.weight) for t in laid.outside.terms]
    assert kinds == [("Attract", 3.0), ("Repel", 0.1), ("Attract", 0.8)]
    assert [t.weight for t in laid.inside.terms] == [2.0]
    same = Move(MASK).laid((8, 10), (8, 10))  # nothing is vacated: its two terms are gone
    assert [type(t).__name__ for t in same.outside.terms] == ["Attract"]


def test_a_move_that_is_done_has_the_least_energy():
    laid = Move(MASK, dx=3, dy=2, scale=1.5).laid((8, 10), (8, 10))
    f = drawn(1, 5, 8, 10) + 1
    views = [view([[f]]) for view in laid.views]
    done = torch.where(laid.region, views[1][0], f)
    assert float(laid.inside([done], views)) == pytest.approx(2.0 / 5)
    assert float(laid.inside([f], views)) > 2.0 / 5


def test_what_is_vacated_may_start_from_the_noise_of_the_target():
    z = drawn(1, 2, 8, 10)
    made = Move(MASK, dx=3, dy=2, fill="swap").laid((8, 10), (8, 10)).begin([z])
    old = MASK == 1
    new = torch.roll(old, (2, 3), (0, 1))
    assert torch.equal(made[..., new], z[..., old]) and torch.equal(made[..., old], z[..., new])
    assert torch.equal(made[..., ~(old | new)], z[..., ~(old | new)])
    warp = Warp((8, 10), (3.5, 4.0), (1.25, -0.5), 1.6)
    forth, back = warp._sources(0), warp.back
    torch.testing.assert_close(  # the inverse of s is its own formula with c + d, −d, 1/scale
        back.centre[0] + (forth - back.centre[0] - back.shift[0]) / back.scale,
        torch.arange(8, dtype=torch.float64))  # fmt: skip
    with pytest.raises(UsageError, match="unknown filling 'blur'"):
        Move(MASK, fill="blur")


def test_resize_is_a_move_to_the_same_place():
    task = Resize(MASK, 1.5)
    assert (task.dx, task.dy, task.scale) == (0, 0, 1.5)


def test_patches_of_a_drag_are_copied_and_what_the_origin_has_left_is_repelled():
    points = (((2, 2), (4, 2)),)
    laid = Drag(points, block((0, 6), (0, 8))).laid((8, 10), (8, 10))
    z = drawn(1, 2, 8, 10)
    made = laid.begin([z])
    assert torch.equal(made[..., 1:4, 3:6], z[..., 1:4, 1:4])
    attract, repel = laid.inside.terms
    assert attract.weight == 4.0 and attract.safe and int(repel.here.sum()) == 6
    free = Drag(points, size=(8, 10)).laid((8, 10), (8, 10))
    assert not free.outside.terms and bool(free.region.all())
    assert Drag(points).tuning.eta_sde == 0.2 and isinstance(free.reuse, Concatenate)


def test_appearance_compares_means_and_paste_pixels():
    shown = block((4, 7), (5, 9))
    looks = Appearance(MASK, shown).laid((8, 10), (8, 10))
    base, other = drawn(1, 5, 8, 10), drawn(1, 5, 8, 10, seed=1)
    views = [view([[base], [other]]) for view in looks.views]
    mean = other[..., shown == 1].mean(-1)
    flat = torch.where(MASK == 1, mean[..., None, None], base)
    assert float(looks.inside([flat], views)) == pytest.approx(3.5 / 5)
    paste = Paste(shown, dx=-4, dy=-3).laid((8, 10), (8, 10))
    views = [view([[base], [other]]) for view in paste.views]
    target = torch.roll(shown == 1, (-3, -4), (0, 1))
    rolled = torch.roll(other, (-3, -4), (2, 3))
    assert torch.equal(paste.region, target)
    assert float(paste.inside([rolled], views)) == pytest.approx(4.0 / 5)
    assert torch.equal(paste.begin([base, other]), torch.where(target, rolled, base))


# trajectories


def law():
    points = torch.zeros(30, 1, 6, 6, dtype=torch.float64) - 1
    for i in range(30):
        points[i, 0, i % 5 : i % 5 + 2, i // 6 : i // 6 + 2] = 1
    stds = torch.full((30,), 0.1, dtype=torch.float64)
    return Spherical(VP, points, stds, torch.full_like(stds, 1 / 30))


GRID = grids.uniform(20)
EXACT = DiffEditor(steps=20, grid=GRID, features=Patches(), strength=40.0, kappa=1.0, eta_sde=0.0,
                   travel=1, inverter=FixedPoint(rounds=5))  # fmt: skip
PICTURE = law().means[7:8] + 0.1 * drawn(1, 1, 6, 6)
OBJECT = (law().means[7, 0] > 0).double()


def test_a_trajectory_solves_each_step_of_ddim():
    way = Way(law(), GRID.times(VP)[::-1], {})
    made = trajectory(FixedPoint(rounds=200), way, PICTURE)
    assert made.states[0] is PICTURE and len(made.states) == 21 and made.nfe >= 20
    alpha, sigma = way.levels
    for i in range(1, 21):
        eps = law()(made.states[i], way.times[i]).eps
        ratio = alpha[i] / alpha[i - 1]
        wanted = ratio * made.states[i - 1] + (sigma[i] - ratio * sigma[i - 1]) * eps
        torch.testing.assert_close(made.states[i], wanted, rtol=0, atol=1e-9)  # of its tolerance


def test_a_trajectory_that_lacks_a_level_is_refused():
    whole = invert(law(), PICTURE, editor=EXACT)
    with pytest.raises(UsageError, match="20 states and 21 times: a level is missing"):
        Trajectory(whole.states[1:], whole.times, 0)
    other = invert(law(), PICTURE, editor=replace(EXACT, steps=25, grid=grids.uniform(25)))
    with pytest.raises(UsageError, match="has no state at t = .* invert on the grid of the edit"):
        diff_edit(law(), PICTURE, Move(OBJECT), editor=EXACT, inverted=(other,))
    with pytest.raises(UsageError, match="1 pictures need as many trajectories, and 2"):
        diff_edit(law(), PICTURE, Move(OBJECT), editor=EXACT, inverted=(whole, whole))
    with pytest.raises(UsageError, match="codes of BySolver are 2 states"):
        trajectory(pl.edit.BySolver(pl.BDIA()), Way(law(), GRID.times(VP)[::-1], {}), PICTURE)


# the driver


def test_a_move_by_nothing_returns_the_reconstruction():
    still = diff_edit(law(), PICTURE, Move(OBJECT), editor=replace(EXACT, strength=0.0))
    assert torch.equal(still.x, still.reconstruction)
    guided = diff_edit(law(), PICTURE, Move(OBJECT), editor=EXACT)
    off = (guided.x - guided.reconstruction).square().mean().sqrt()
    assert float(off) < 1e-6  # the energies are least where nothing moves: their slope is rounding
    assert [s.q for s in guided.steps if s.guided] == [0, 1, 2, 3, 4, 6, 8, 10]  # 50 q/20 < 30


class Spying(Patches):
    """Patches that keep where they were asked."""

    seen: list = []

    def maps(self, field, look, x, *, to_the_end=False):
        Spying.seen.append((float(look(x).t), x.detach().clone(), torch.is_grad_enabled()))
        return super().maps(field, look, x, to_the_end=to_the_end)


def test_reference_and_current_features_are_of_one_level():
    """Off by one, the first similarity would not be 1 and the level's state another."""
    whole = invert(law(), PICTURE, editor=EXACT)
    Spying.seen = []
    edited = diff_edit(law(), PICTURE, Move(OBJECT), editor=replace(EXACT, features=Spying()),
                       inverted=(whole,))  # fmt: skip
    guided = [s for s in edited.steps if s.guided]
    references, current = Spying.seen[::2], Spying.seen[1::2]
    for step, ref, now in zip(guided, references, current, strict=True):
        assert ref[0] == now[0] == step.t and now[2] and not ref[2]
        assert torch.equal(ref[1], whole.at(step.t))
    assert guided[0].edit == pytest.approx(2 / 5) and guided[0].content == pytest.approx(3 / 5)


def test_a_guided_step_moves_the_clean_estimate_alone():
    task = Move(OBJECT, dx=1)
    run = Run(law(), [PICTURE], task, EXACT, 0, ({}, None))
    z, (t, u) = run.z, run.times[:2]
    g, _ = run._pull(0)
    assert g.abs().max() > 0
    run._step(Planned(0, True, 1, 0.0, False, False))
    (a, b), (s, r) = ([float(f(v)) for v in (t, u)] for f in (VP.alpha, VP.sigma))
    eps = law()(z, t).eps
    wanted = b * (z - s * (eps + g)) / a + r * eps  # the direction has the unguided noise
    torch.testing.assert_close(run.z, wanted, rtol=0, atol=1e-9 / a)


def test_time_travel_goes_back_by_one_deterministic_step():
    run = Run(law(), [PICTURE], Move(OBJECT, dx=1), EXACT, 0, ({}, None))
    z, (t, u) = run.z, run.times[:2]
    (a, b), (s, r) = ([float(f(v)) for v in (t, u)] for f in (VP.alpha, VP.sigma))
    run._step(Planned(0, False, 2, 0.0, False, False))
    low = b * law()(z, t).x0 + r * law()(z, t).eps
    back = a / b * low + (s - a / b * r) * law()(low, u).eps
    wanted = b * law()(back, t).x0 + r * law()(back, t).eps
    torch.testing.assert_close(run.z, wanted, rtol=0, atol=1e-8)


def test_noise_is_drawn_inside_alone_and_follows_the_seed():
    task = Move(OBJECT, dx=1)
    runs = [Run(law(), [PICTURE], task, replace(EXACT, eta_sde=0.4), seed, ({}, None))
            for seed in (0, 0, 1)]  # fmt: skip
    quiet = Run(law(), [PICTURE], task, EXACT, 0, ({}, None))
    for run in (*runs, quiet):
        run.z = quiet.trajectories[0].states[10].clone()
    reports = [run._step(Planned(10, False, 1, 0.4, False, False)) for run in runs]
    quiet._step(Planned(10, False, 1, 0.0, False, False))
    m = quiet.laid.region
    assert torch.equal(runs[0].z, runs[1].z) and not torch.equal(runs[0].z, runs[2].z)
    assert torch.equal(runs[0].z[..., ~m], quiet.z[..., ~m])
    (a, b), (s, r) = ([float(f(v)) for v in quiet.times[10:12]] for f in (VP.alpha, VP.sigma))
    size = 0.4 * r / s * (1 - (a / b) ** 2) ** 0.5
    drawn_ = noise.normal([0], (1, 6, 6), stream="step", index=0, dtype=torch.float64)
    assert reports[0].noise == pytest.approx(size * float(drawn_[..., m].square().mean().sqrt()))


def test_energies_fall_and_the_evaluations_are_counted():
    evaluations = 0

    class Counted(Spherical):
        def evaluate(self, x, t, cond):
            nonlocal evaluations
            evaluations += 1
            return super().evaluate(x, t, cond)

    base = law()
    counted = Counted(base.path, base.means, base.stds, base.weights)
    seen = []
    edited = diff_edit(counted, PICTURE, Move(OBJECT, dx=2), editor=replace(EXACT, travel=3),
                       observe=seen.append)  # fmt: skip
    assert edited.nfe == evaluations and [s.q for s in seen] == list(range(20))
    guided = [s for s in edited.steps if s.guided]
    assert edited.vjps == 2 * sum(s.repeats for s in guided)
    nearest = (base.means - edited.x).square().flatten(1).sum(1).argmin()
    assert int(nearest) == 22  # the square at the same row, two columns further
    told = edited.to_dict()
    assert told["travelled"] == [10] and told["stochastic"] == []
    assert edited.receipt.recipe["diff_edit"]["task"]["dx"] == 2


def test_what_the_driver_refuses():
    still = Move(OBJECT)
    with pytest.raises(UsageError, match="Paste takes from another picture"):
        diff_edit(law(), PICTURE, Paste(OBJECT), editor=EXACT)
    with pytest.raises(UsageError, match="a reference was given: leave it out"):
        diff_edit(law(), PICTURE, still, reference=PICTURE, editor=EXACT)
    with pytest.raises(UsageError, match="takes one picture"):
        diff_edit(law(), PICTURE[0], still, editor=EXACT)
    with pytest.raises(UsageError, match=r"shape \(1, 1, 6, 6\), and one of \(1, 1, 6, 5\)"):
        diff_edit(law(), PICTURE[..., :5], still, editor=EXACT)
    with pytest.raises(UsageError, match="give features=Patches"):
        diff_edit(law(), PICTURE, still)
    with pytest.raises(UsageError, match="its times must fall"):
        diff_edit(law(), PICTURE, still, editor=replace(EXACT, grid=GRID.reverse(VP)))
    with pytest.raises(UsageError, match="has no way back"):
        last = grids.uniform(20, last="denoise")
        diff_edit(law(), PICTURE, still, editor=replace(EXACT, grid=last))
    with pytest.raises(UsageError, match="the grid has 20 steps, and steps=50"):
        DiffEditor(grid=GRID)
    with pytest.raises(UsageError, match="there is none"):
        diff_edit(law(), PICTURE, still, editor=EXACT, reference_cond={})


def test_an_edit_that_overflows_names_the_step():
    with pytest.raises(NonFiniteError, match=r"not finite after step \d, which was guided"):
        diff_edit(law(), PICTURE, Move(OBJECT, dx=1), editor=replace(EXACT, strength=1e308))


def tiny_model():
    network = DiT(channels=3, size=8, patch=2, width=16, depth=2, heads=2, context_width=5)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    null = {"context": torch.zeros(1, 1, 5), "mask": torch.ones(1, 1, dtype=torch.bool)}
    return pl.Denoiser(network.eval(), pl.CondOT(), "velocity", null=null, shape=(3, 8, 8))


TOLD = {"context": drawn(1, 2, 5).float(), "mask": torch.ones(1, 2, dtype=torch.bool)}
SMALL = DiffEditor(steps=20, inverter=ddim_inversion(), travel=2, guidance=2.0)
HERE, THERE = block((1, 4), (1, 4), (8, 8)), block((4, 7), (4, 7), (8, 8))


@pytest.mark.parametrize("task", [
    Move(HERE, dx=2), Resize(HERE, 1.5), Drag((((2, 2), (5, 5)),), block((0, 7), (0, 7), (8, 8))),
    Drag((((2, 2), (5, 5)),)), Appearance(HERE, THERE), Paste(THERE, dx=-2),
], ids=["move", "resize", "drag", "landmarks", "appearance", "paste"])  # fmt: skip
def test_every_task_runs_on_a_network_and_repeats_itself(task):
    model, x = tiny_model(), drawn(1, 3, 8, 8).float().clamp(-1, 1)
    other = x.flip(3) if task.needs_reference else None
    one = diff_edit(model, x, task, reference=other, editor=SMALL, seed=3, **TOLD)
    again = diff_edit(model, x, task, reference=other, editor=SMALL, seed=3, **TOLD)
    assert torch.equal(one.x, again.x)
    assert one.x.dtype == x.dtype and bool(one.x.isfinite().all())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.network.modules())
    assert [s.q for s in one.steps if s.banked][0] == 2


def test_a_prompt_is_heard_in_its_window():
    model, x = tiny_model(), drawn(1, 3, 8, 8).float()
    prompt = ImagePrompt.of(model.network, tokens=4)
    torch.nn.init.normal_(prompt.value[0].weight)
    heard = Heard(prompt, drawn(1, 3, 4).float(), 0.5)
    plain = replace(SMALL, bank=None, eta_sde=0.0)
    without = diff_edit(model, x, Move(HERE, dx=2), editor=plain, **TOLD)
    made = diff_edit(model, x, Move(HERE, dx=2), editor=replace(plain, heard=heard), **TOLD)
    assert [s.q for s in made.steps if s.prompted] == [4, 5, 6, 7]
    assert torch.equal(made.steps[4].x0, without.steps[4].x0) is False
    assert torch.equal(made.steps[3].x0, without.steps[3].x0)


def test_a_network_of_half_precision_has_energies_of_float32():
    model, x = tiny_model(), drawn(1, 3, 8, 8).float().clamp(-1, 1)
    model.network.to(torch.bfloat16)
    made = diff_edit(model, x, Move(HERE, dx=2), editor=replace(SMALL, strength=1e5), **TOLD)
    assert made.x.dtype == torch.float32 and bool(made.x.isfinite().all())


def test_named_layers_of_bank_and_features_are_checked():
    model, x = tiny_model(), drawn(1, 3, 8, 8).float()
    with pytest.raises(UsageError, match=r"no layer 'up.1' in DiT; choose from blocks.0, blocks.1"):
        features = type(SMALL.features)(("up.1",))
        diff_edit(model, x, Move(HERE), editor=replace(SMALL, features=features))
    with pytest.raises(UsageError, match="no attention 'up.1' in DiT; choose from blocks.0.att"):
        diff_edit(model, x, Move(HERE), editor=replace(SMALL, bank=Bank(("up.1",))), **TOLD)


def test_an_edit_works_in_inference_mode_and_keeps_no_graph():
    base = law()
    with torch.inference_mode():
        made = diff_edit(base, PICTURE, Move(OBJECT, dx=1), editor=EXACT)
    assert not made.x.requires_grad
    assert torch.equal(made.x, diff_edit(law(), PICTURE, Move(OBJECT, dx=1), editor=EXACT).x)


@pytest.mark.slow
def test_the_examples_of_the_page_run():
    page = (Path(__file__).resolve().parents[1] / "docs/diff-editor.md").read_text(encoding="utf-8")
    model = replace(tiny_model(), encode=lambda text: TOLD)
    names = {
        "pl": pl, "model": model, "picture": drawn(1, 3, 8, 8).float().clamp(-1, 1),
        "warm": lambda x: x.flatten(1).square().sum(1),
        "cold": lambda x: x.flatten(1).abs().sum(1),
    }  # fmt: skip
    names["mask"] = block((2, 6), (4, 12), (16, 32))  # of another size than the state
    for code in re.findall(r"```python\n(.*?)```", page, re.S):
        if "pl.sample" in code:
            names["mask"] = HERE
        exec(compile(code, "docs/diff-editor.md", "exec"), names)
    assert names["edited"].regions["vacated"].any()

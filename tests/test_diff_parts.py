"""Features, attention from outside, energies and regions: the parts that DiffEditor is made of."""

import pytest
import tiny_diffusers as tiny
import torch
import torch.nn.functional as F

import pathline as pl
from pathline.adapters import diffusers as adapter
from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.fields import Gaussian
from pathline.nets import DiT, UNet
from pathline.nets.attention import attending, cross_attentions, self_attentions
from pathline.nets.features import as_map, checked_layers, feature_layers, features
from pathline.nets.image_prompt import ImagePrompt, Resampler
from pathline.nets.kv_bank import Assemble, Concatenate, Kept, Replace, bank_layers, record, replay
from pathline.solvers import DDIM, DPMpp, grids, solve
from pathline.steer import CFG, Loss
from pathline.steer.energy import Attract, Energy, Repel, attraction, separated, slope
from pathline.steer.features import Layers, Patches
from pathline.steer.regional import Regional, RegionalLoss, by_pixel

ROUNDING = 1e-12


def stirred(network, seed=0):
    """Random weights everywhere: fresh networks of ours are the zero function."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return network.double().eval()


def dit(**changes):
    sizes = dict(channels=3, size=8, patch=2, width=16, depth=2, heads=2, context_width=5)
    return stirred(DiT(**sizes | changes))


def unet():
    return stirred(UNet(3, width=8, multipliers=(1, 2), blocks=1, attention=(1,), classes=4))


def drawn(*shape, seed=0):
    return noise.normal([seed], shape, dtype=torch.float64)[0]


X, T = drawn(1, 3, 8, 8), torch.tensor([0.4], dtype=torch.float64)


def test_layers_are_found_by_the_names_that_networks_give_them():
    assert feature_layers(unet()) == ("middle.1", "up.0", "up.1")
    assert feature_layers(dit()) == ("blocks.0", "blocks.1")
    assert feature_layers(tiny.unet()) == ("mid_block", "up_blocks.0", "up_blocks.1")
    assert feature_layers(tiny.text_unet()) == feature_layers(tiny.unet())
    assert feature_layers(tiny.dit()) == ("transformer_blocks.0",)
    assert feature_layers(tiny.flux()) == ("transformer_blocks.0", "single_transformer_blocks.0")


def test_features_are_what_a_layer_says_and_the_rest_is_not_computed():
    network, ran = unet(), []
    network.up[1].register_forward_hook(lambda *_: ran.append("up.1"))
    said = features(network, lambda: network(X, T), ["middle.1", "up.0"])
    assert not ran
    wanted = {}
    network.up[0].register_forward_hook(lambda m, i, o: wanted.update(up=o))
    network(X, T)
    assert torch.equal(said["up.0"], wanted["up"]) and ran == ["up.1"]


@pytest.mark.parametrize("network", [unet(), dit()])
def test_features_have_gradients(network):
    name = feature_layers(network)[-1]
    x = X.clone().requires_grad_()
    weights = drawn(1, 3, 8, 8, seed=3)

    def read(at):
        return features(network, lambda: network(at, T), [name])[name].square().sum()

    (found,) = torch.autograd.grad(read(x), x)
    h = 1e-5
    with torch.no_grad():
        wanted = (read(X + h * weights) - read(X - h * weights)) / (2 * h)
    # a central difference is off by h² times a third derivative, and by rounding over h
    torch.testing.assert_close((found * weights).sum(), wanted, rtol=1e-6, atol=1e-8)


def test_an_unknown_layer_is_refused_with_a_list():
    with pytest.raises(UsageError, match=r"no layer 'up.7' in UNet; choose from middle.1, up.0"):
        checked_layers(unet(), ["up.7"])
    with pytest.raises(UsageError, match="no blocks were found in Linear"):
        checked_layers(torch.nn.Linear(2, 2), None)
    with pytest.raises(UsageError, match="did not come by down.0.resample"):
        network = unet()
        features(network, lambda: network.stem(X), ["down.0.resample"])


def hooks_of(network):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def test_nothing_is_left_behind_when_a_pass_raises():
    network = dit()
    with pytest.raises(UsageError, match="unconditional|condition") as caught:
        features(network, lambda: (_ for _ in ()).throw(UsageError("a condition is missing")))
    del caught
    attention = F.scaled_dot_product_attention
    with pytest.raises(ValueError, match="of our own"), record(network):
        network(X, T)
        raise ValueError("of our own")
    with pytest.raises(RuntimeError), record(network):
        network(X[:, :2], T)
    assert hooks_of(network) == 0 and F.scaled_dot_product_attention is attention
    assert torch.equal(network(X, T), network(X, T))


def test_features_of_a_denoiser_know_its_condition_label_and_scale():
    network = dit()
    null = {"context": torch.zeros(1, 3, 5).double(), "mask": torch.ones(1, 3, dtype=torch.bool)}
    model = pl.Denoiser(network, pl.CondOT(), "velocity", label=0.5, scale=lambda t: 1 + t,
                        null=null)  # fmt: skip
    told = {"context": drawn(1, 3, 5), "mask": torch.ones(1, 3, dtype=torch.bool)}
    source = Layers(("blocks.1",))
    (found,) = source.maps(model, lambda x: model(x, 0.4, **told), X)
    direct = features(network, lambda: network(1.4 * X, 0.5 * T, **told), ["blocks.1"])["blocks.1"]
    assert torch.equal(found, as_map("", direct, (8, 8)))
    assert found.shape == (1, 16, 4, 4)
    both = source.maps(CFG(2.0)(model), lambda x: CFG(2.0)(model)(x, 0.4, **told), X)[0]
    assert len(both) == 2  # one call of twice the batch
    with pytest.raises(UsageError, match="features=Patches"):
        source.check(pl.Denoiser(lambda x, t: x, pl.CondOT(), "velocity"))


def test_tokens_are_laid_on_the_grid_of_patches():
    tokens = torch.arange(8.0).reshape(1, 8, 1)
    assert torch.equal(as_map("b", tokens, (4, 8))[0, 0], torch.arange(8.0).reshape(2, 4))
    text = torch.zeros(1, 5, 1)
    assert as_map("b", (text, tokens), (4, 8)).shape == (1, 1, 2, 4)
    with pytest.raises(UsageError, match="the layer 'b' says"):
        as_map("b", text, (4, 8))


def test_attentions_are_found():
    assert self_attentions(dit()) == ("blocks.0.attention", "blocks.1.attention")
    assert cross_attentions(dit()) == ("blocks.0.cross", "blocks.1.cross")
    assert bank_layers(unet()) == ("up.0.stages.0.attention",)
    network = tiny.text_unet()
    assert all(name.endswith("attn1") for name in bank_layers(network))
    assert all(name.startswith("up_blocks") for name in bank_layers(network))
    assert all(name.endswith("attn2") for name in cross_attentions(network))
    with pytest.raises(UsageError, match="has no attention"):
        bank_layers(torch.nn.Linear(1, 1))
    with pytest.raises(UsageError, match=r"choose from blocks.0.attention"):
        bank_layers(dit(), ["blocks.9.attention"])


def their_call(network):
    told = drawn(1, 3, 8, seed=5)
    return lambda x: network(x, timestep=T * 999, encoder_hidden_states=told).sample


NETWORKS = {
    "unet": (unet, lambda n: lambda x: n(x, T), X),
    "dit": (dit, lambda n: lambda x: n(x, T), X),
    "diffusers": (tiny.text_unet, their_call, drawn(1, 4, 8, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_bank_of_the_same_pass_changes_nothing(name):
    """In its place bitwise; behind it, softmax over doubled keys is the same mean of values."""
    make, calling, x = NETWORKS[name]
    network = make()
    call = calling(network)
    with record(network) as kept:
        plain = call(x)
    assert torch.equal(plain, call(x)) and set(kept) == set(bank_layers(network))
    with replay(network, kept, Replace()):
        assert torch.equal(call(x), plain)
    with replay(network, kept, Concatenate()):
        assert (call(x) - plain).abs().max() < ROUNDING * plain.abs().max() * 100
    other = x + 0.5
    with replay(network, kept, Replace()):
        assert (call(other) - call(x)).abs().max() > 0
        seen = call(other)
    assert not torch.equal(seen, call(other))  # gone outside


@torch.no_grad()
def test_a_bank_is_replayed_to_a_batch_of_guidance_and_refuses_others():
    network = dit()
    with record(network) as kept:
        network(X, T)
    with replay(network, kept, Replace()):
        both = network(torch.cat((X, X)), T)
    assert torch.equal(both[0], both[1])
    two = {name: Kept(*(torch.cat((a, a)) for a in each)) for name, each in kept.items()}
    with pytest.raises(UsageError, match="a bank of 2 samples"), replay(network, two, Replace()):
        network(X, T)
    short = {name: Kept(*(a[:, :, :3] for a in each)) for name, each in kept.items()}
    with pytest.raises(UsageError, match="same size"), replay(network, short, Replace()):
        network(X, T)
    with pytest.raises(UsageError, match="bank is empty"), replay(network, {}, Replace()):
        pass


@torch.no_grad()
def test_assembled_banks_are_the_tokens_inside_the_masks():
    network, pictures = dit(depth=1), torch.cat((X, X + 1))
    with record(network) as kept:
        network(pictures, T)
    (name,) = kept
    left = torch.zeros(8, 8, dtype=torch.bool)
    left[:, :4] = True
    seen = {}

    def answer(call):
        seen["wanted"] = F.scaled_dot_product_attention(
            call.q,
            torch.cat((kept[name].k[:1, :, tokens], kept[name].k[1:, :, ~tokens]), 2),
            torch.cat((kept[name].v[:1, :, tokens], kept[name].v[1:, :, ~tokens]), 2),
        )
        seen["found"] = Assemble(torch.stack((left, ~left)))(call, kept[name])()
        return call()

    tokens = left[::2, ::2].flatten()
    with attending(network, [name], answer):
        network(X, T)
    assert torch.equal(seen["found"], seen["wanted"])
    three = Assemble(torch.stack((left, left, left)))
    with pytest.raises(UsageError, match="3 masks, and"), replay(network, kept, three):
        network(X, T)


def test_an_attention_without_the_call_is_told_of():
    class OldAttention(torch.nn.Module):
        def forward(self, x):
            return (x @ x.mT).softmax(-1) @ x

    network = torch.nn.Sequential(OldAttention())
    with pytest.raises(UsageError, match=r"does not call torch's\s+scaled_dot"), record(network):
        network(X[0])


def test_an_untrained_image_prompt_changes_nothing_and_a_trained_one_is_the_formula():
    network = dit()
    prompt = ImagePrompt.of(network, tokens=6).double()
    tokens, told = drawn(1, 4, 6, seed=2), {"context": drawn(1, 3, 5, seed=9)}
    plain = network(X, T, **told)
    with prompt.heard(network, tokens, 0.7):
        assert torch.equal(network(X, T, **told), plain)
    stirred(prompt, 1)
    seen = []

    def answer(call):
        seen.append(call)
        return call()

    with attending(network, ["blocks.0.cross"], answer):
        network(X, T, **told)
    first = seen[0]
    k, v = (m(tokens).unflatten(-1, (2, -1)).transpose(1, 2)
            for m in (prompt.key[0], prompt.value[0]))  # fmt: skip
    wanted = first() + 0.7 * ((first.q @ k.mT / 8**0.5).softmax(-1) @ v)
    caught = {}
    network.blocks[0].cross.out.register_forward_pre_hook(lambda m, i: caught.update(h=i[0]))
    with prompt.heard(network, tokens, 0.7):
        loss = network(torch.cat((X, X)), T, **{k: torch.cat((v, v)) for k, v in told.items()})
    torch.testing.assert_close(
        caught["h"][:1], wanted.transpose(1, 2).flatten(2), rtol=1e-10, atol=1e-12
    )
    loss.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in prompt.parameters())
    with prompt.heard(network, tokens, 0.0):
        assert torch.equal(network(X, T, **told), plain)
    said = r"takes tokens \(batch, n, 6\)"
    with pytest.raises(UsageError, match=said), prompt.heard(network, tokens[..., :3]):
        pass
    with pytest.raises(UsageError, match="has no attention of this kind"):
        ImagePrompt.of(unet(), 6)


def test_image_prompts_are_heard_by_networks_of_diffusers():
    network = tiny.text_unet()
    prompt = stirred(ImagePrompt.of(network, tokens=6))
    call, x = their_call(network), drawn(1, 4, 8, 8)
    with torch.no_grad(), prompt.heard(network, drawn(1, 2, 6), 0.5):
        heard = call(x)
    assert (heard - call(x)).abs().max() > 0


def test_a_resampler_takes_any_number_of_features_in_any_order():
    made = stirred(Resampler(width=6, out=8, inner=12, depth=2, tokens=4, heads=3))
    given = drawn(2, 10, 6)
    mixed = given[:, torch.randperm(10, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(made(given), made(mixed), rtol=1e-9, atol=1e-10)
    assert made(given[:, :3]).shape == (2, 4, 8)
    with pytest.raises(UsageError, match=r"takes features \(batch, n, 6\)"):
        made(given[..., :2])
    with pytest.raises(UsageError, match="multiple of its heads"):
        Resampler(6, 8, inner=10, heads=3)


HALF = torch.zeros(8, 8, dtype=torch.bool)
HALF[:, :4] = True


def test_the_denominator_is_held_and_the_safe_form_has_no_pole():
    s = torch.tensor([-1.0, -0.2501, -0.25, -0.2499, -0.2, 1.0], dtype=torch.float64)
    torch.testing.assert_close(
        attraction(s), torch.tensor([5.0, 5.0, 5.0, 5.0, 5.0, 0.2], dtype=torch.float64)
    )
    assert attraction(s, safe=True).max() == 1.0


def test_terms_refuse_masks_that_cannot_be_paired():
    less = HALF.clone()
    less[0, 0] = False
    with pytest.raises(UsageError, match="32 pixels cannot be paired with 31"):
        Attract(1.0, HALF, less)
    Attract(1.0, HALF, less, pooled=True)
    with pytest.raises(UsageError, match="mask is empty"):
        Repel(1.0, HALF & ~HALF)
    with pytest.raises(UsageError, match="on one grid"):
        Attract(1.0, HALF, HALF[:4])
    with pytest.raises(UsageError, match="0 or more"):
        Attract(-1.0, HALF)
    with pytest.raises(UsageError, match="bring them to one grid"):
        Energy((Attract(1.0, HALF),))([X[..., :4]], [[X[..., :4]]])


def test_energies_of_half_precision_are_taken_in_float32():
    """Scaled by 10³, as in the public code, half precision would overflow."""
    x = X.half().requires_grad_()
    maps = [200 * x]  # squares are beyond half precision's 65504
    energy = Energy((Attract(1e3, HALF), Repel(1e3, ~HALF)))
    value = energy(maps, [[200 * (X + drawn(1, 3, 8, 8, seed=4)).half()]])
    assert value.dtype == torch.float32 and value.isfinite().all()
    assert slope(value, x).isfinite().all()


def test_a_term_never_acts_in_the_other_ones_region():
    x = X.clone().requires_grad_()
    blurred = F.avg_pool2d(x, 3, 1, 1)  # every feature sees across the border
    ref = [[drawn(1, 3, 8, 8, seed=8)]]
    inside, outside = Attract(4.0, HALF)([blurred], ref), Attract(6.0, ~HALF)([blurred], ref)
    first, second = slope(inside, x, again=True), slope(outside, x, again=True)
    assert first[..., ~HALF].abs().max() > 0 and second[..., HALF].abs().max() > 0
    made = separated(inside, outside, x, HALF)
    assert torch.equal(made, torch.where(HALF, first, second))
    nothing = Energy()([x], ref)
    assert torch.equal(separated(nothing, nothing, x, HALF), torch.zeros_like(x))


VP = pl.VPLinear()


def gaussian():
    return Gaussian(VP, torch.zeros(6, dtype=torch.float64), torch.linspace(0.1, 1, 6).double())


IN = torch.tensor([1, 1, 0, 0, 0, 1], dtype=torch.bool)
START = drawn(2, 6, seed=3)


@pytest.mark.parametrize("rules", [(DDIM(0.4), DDIM()), (DPMpp(2, eta=1.0), DPMpp(3)),
                                   ("heun", "heun")], ids=str)  # fmt: skip
def test_one_step_is_each_regions_own_bit_for_bit(rules):
    grid = grids.times((0.6, 0.5))
    how = {"grid": grid, "seeds": (0, 1)}
    made = solve(gaussian(), START, solver=Regional(*rules, IN), **how).x
    inside, outside = (solve(gaussian(), START, solver=rule, **how).x for rule in rules)
    assert torch.equal(made, torch.where(IN, inside, outside))


@pytest.mark.parametrize("name", ["dpmpp_3m", "heun", "ddpm", "unipc"])
def test_two_regions_of_one_rule_are_that_rule(name):
    how = {"grid": grids.log_snr(8, last="denoise"), "seeds": (0, 1)}
    made = solve(gaussian(), START, solver=Regional(name, name, IN), **how)
    plain = solve(gaussian(), START, solver=name, **how)
    torch.testing.assert_close(made.x, plain.x, rtol=0, atol=ROUNDING)


def test_regions_of_two_masks_are_two_solvers():
    """A frozen solver without fields of its own would equal every other one, and share its plan."""
    grid = grids.times((0.6, 0.5))
    one, two = (Regional(DDIM(1.0), DDIM(), m) for m in (IN, ~IN))
    assert one != two and one.plan(VP, grid) is not two.plan(VP, grid)


def test_the_amount_of_noise_may_differ_by_pixel():
    eta = torch.tensor([0.0, 0.3, 1.0, 0.3, 0.0, 1.0], dtype=torch.float64)
    how = {"grid": grids.times((0.6, 0.5)), "seeds": (0, 1)}
    made = solve(gaussian(), START, solver=by_pixel(eta), **how).x
    for value in (0.0, 0.3, 1.0):
        plain = solve(gaussian(), START, solver=DDIM(value), **how).x
        assert torch.equal(made[:, eta == value], plain[:, eta == value])
    with pytest.raises(UsageError, match="η takes 20 values"):
        by_pixel(torch.linspace(0, 1, 20))


def test_what_regions_refuse():
    with pytest.raises(UsageError, match="values other than 0 and 1"):
        Regional(DDIM(), DDIM(), torch.tensor([0.5]))
    with pytest.raises(UsageError, match="predicts x0 and .* solvers of one prediction"):
        Regional(DDIM(), "euler", IN)
    with pytest.raises(UsageError, match="has no plan"):
        Regional("dopri5", DDIM(), IN)


def test_a_loss_of_two_regions_is_each_ones_own():
    model = pl.Denoiser(lambda x, t: torch.tanh(x + x.roll(1, 1)), VP, "x0")
    first, second = (lambda x: x.square().sum(1)), (lambda x: (x - 1).abs().sum(1))
    x = drawn(2, 6, seed=7)
    made = RegionalLoss(first, second, IN, 0.3)(model)(x, 0.5).x0
    alone = [Loss(v, 0.3, scale="score")(model)(x, 0.5).x0 for v in (first, second)]
    torch.testing.assert_close(made, torch.where(IN, *alone), rtol=0, atol=ROUNDING)
    none = RegionalLoss(first, None, IN, 0.3)(model)(x, 0.5).x0
    torch.testing.assert_close(none[:, ~IN], model(x, 0.5).x0[:, ~IN], rtol=0, atol=ROUNDING)


def test_patches_of_the_estimate_stand_around_their_pixel():
    law = pl.Denoiser(lambda x, t: x, VP, "x0")
    (found,) = Patches(offset=0.0, outside=-1.0).maps(law, lambda x: law(x, 0.5), X)
    assert torch.equal(found[0, 4::9], X[0])  # the middle of each 3 × 3
    assert torch.equal(found[0, 0, 1:, 1:], X[0, 0, :-1, :-1])
    assert bool((found[0, 0, 0] == -1).all())


def test_adapters_of_diffusers_have_layers_too():
    scheduler = tiny.diffusers.DDIMScheduler()
    model = adapter.denoiser(tiny.unet(), scheduler)
    maps = Layers().maps(model, lambda x: model(x, 0.5), drawn(1, 3, 8, 8))
    assert [tuple(m.shape[2:]) for m in maps] == [(4, 4), (8, 8), (8, 8)]

"""A network with a class embedding and low-rank changes: the pretrained one until it is taught."""

import pytest
import torch
from torch import nn

import pathline as pl
from pathline.core.errors import CheckpointError, UsageError
from pathline.learn import (
    ClassPrior,
    ControlLesson,
    SoftControl,
    Surgery,
    adapt,
    load_control,
    save_control,
    train_control,
)
from pathline.learn.adapt import attention_layers
from pathline.nets import MLP, DiT, UNet
from pathline.solvers import grids
from pathline.steer import CFG, Control

pytest.importorskip("peft", reason='it comes with the extra "pathline[lora]"')

X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y, C = torch.tensor([0, 1, 2, 3]), torch.tensor([1, 2, 3, 4])


def filled(network, scale=0.1):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for p in network.parameters():
            nn.init.normal_(p, std=scale)
    return network


def unet():
    return filled(UNet(width=8, multipliers=(1, 2), blocks=1, classes=10, heads=2))


def model(network=None):
    null = {"label": torch.tensor([10])}
    return pl.Denoiser(
        network or unet(), pl.VPLinear(), "eps", label=1000.0, null=null, shape=(1, 8, 8)
    )


def stirred(adapted):
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for p in adapted.network.taught().values():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
        adapted.network.classes.weight[3] = 0
    return adapted


def test_an_untaught_network_is_the_pretrained_one_to_the_last_bit_and_shares_its_weights():
    base = model()
    before = {k: v.clone() for k, v in base.network.state_dict().items()}
    made = adapt(base, Surgery(3, "mass"))
    assert torch.equal(made(X, 0.5, label=C, mass=Y).raw, base(X, 0.5, label=C).raw)
    assert made.network.network.stem.weight.data_ptr() == base.network.stem.weight.data_ptr()
    stirred(made)
    assert all(torch.equal(v, before[k]) for k, v in base.network.state_dict().items())
    assert all(p.requires_grad for p in base.network.parameters())  # as they were


def test_class_k_is_the_pretrained_model_sample_by_sample():
    base = model()
    made = stirred(adapt(base, Surgery(3, "mass")))
    moved = (made(X, 0.5, label=C, mass=Y).raw - base(X, 0.5, label=C).raw).flatten(1).abs()
    assert torch.equal(moved.amax(1) > 1e-3, torch.tensor([True, True, True, False]))
    assert float(moved[3].detach().max()) < 1e-6  # convolutions of another batch round as they like
    assert torch.equal(made(X, 0.5, label=C).raw, base(X, 0.5, label=C).raw)
    alone = made(X[1:2], 0.5, label=C[1:2], mass=Y[1:2]).raw
    torch.testing.assert_close(alone, made(X, 0.5, label=C, mass=Y).raw[1:2])


def test_only_what_was_put_in_has_gradients_and_the_null_row_has_none():
    made = adapt(model(), Surgery(3, "mass"))
    made(X, 0.5, label=C, mass=Y).raw.square().sum().backward()
    with_gradients = {n for n, p in made.network.named_parameters() if p.grad is not None}
    assert with_gradients == set(made.network.taught())
    rows = made.network.classes.weight.grad.abs().sum(1)
    assert torch.equal(rows > 0, torch.tensor([True, True, True, False]))


@pytest.mark.parametrize(
    ("network", "layers"),
    [
        (unet(), ["middle.0.attention.inside", "middle.0.attention.out"]),
        (
            DiT(1, 8, 4, 32, 1, 2),
            [f"blocks.0.attention.{n}" for n in ("query", "key_value", "out")],
        ),
    ],
)
def test_attention_is_found(network, layers):
    assert attention_layers(network) == layers


def test_a_transformer_with_text_is_adapted_and_guided_inside():
    """CFG acts on both models, and the class is told to its null condition, too."""
    network = filled(DiT(1, 8, 4, 32, 1, 2, context_width=6), 0.2)
    context, mask = network.null_context(1, 2)
    null = {"context": context.detach(), "mask": mask}
    base = pl.Denoiser(network, pl.VPLinear(), "eps", null=null, shape=(1, 8, 8))
    made = stirred(adapt(base, Surgery(3)))
    told = {"context": torch.randn(4, 2, 6), "mask": torch.ones(4, 2, dtype=torch.bool)}
    guide = Control(made, {"label": Y}, weight=0.5, inside=CFG(2.0))
    found = guide(base)(X, 0.5, **told).raw
    free = {k: v.expand(4, *v.shape[1:]) for k, v in null.items()}
    better, worse = (made(X, 0.5, label=Y, **c).raw for c in (told, free))
    plain = CFG(2.0)(base)(X, 0.5, **told).raw
    torch.testing.assert_close(found, (plain + worse + 2 * (better - worse)) / 2,
                               rtol=1e-4, atol=1e-5)  # fmt: skip


def test_a_control_is_taught_kept_and_loaded(tmp_path):
    """A reward for brightness makes it brighter; what is kept has no pretrained weight in it."""
    base = model(filled(UNet(width=8, multipliers=(1, 2), blocks=1, classes=10, heads=2), 0.05))
    made = adapt(base, Surgery(2, "mass"))

    def reward(x, label, mass):
        return torch.where(mass == 1, 1.0, -1.0) * x.flatten(1).mean(1)

    objective = SoftControl(reward, 20.0, grid=grids.log_snr(3), truncate="random")
    asked = ClassPrior(2, "mass", lambda n, g: {"label": torch.randint(10, (n,), generator=g)})
    lesson = ControlLesson(6, batch=8, rate=1e-2, part=3)
    train_control(objective, base, Control(made), asked, lesson)
    means = [
        float(pl.sample(base, 8, solver="ddpm", grid=grids.log_snr(3), label=torch.arange(8),
                        guide=Control(made, {"mass": k})).x.mean())
        for k in (0, 1)
    ]  # fmt: skip
    assert means[1] > means[0]
    folder = save_control(tmp_path / "control", made)
    again = load_control(folder, base)
    assert torch.equal(again(X, 0.5, label=C, mass=1).raw, made(X, 0.5, label=C, mass=1).raw)
    assert not any("stem" in name for name in again.network.taught())
    other = UNet(width=16, multipliers=(1, 2), blocks=1, classes=10, heads=2)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_control(folder, model(other))


def test_bad_surgery_is_refused_with_the_way_out():
    base = model()
    mlp = pl.Denoiser(MLP(2), pl.VPLinear(), shape=(2,))
    made = adapt(base, Surgery(3, "mass"))
    cases = (
        (lambda: adapt(base, Surgery(3)), "give the control's embedding a second name"),
        (lambda: adapt(mlp, Surgery(3)), "no attention was found"),
        (lambda: adapt(mlp, Surgery(3, targets=("layers.1",))), "Surgery\\(time="),
        (lambda: adapt(pl.Denoiser(lambda x, t: x, pl.VPLinear()), Surgery(3)), "nn.Module"),
        (lambda: Surgery(0), "at least 1 class"),
        (lambda: made(X, 0.5, label=C, mass=4), "goes from 0 to 2, or is 3 for no control"),
        (lambda: save_control("nowhere", base), "was not adapted"),
    )
    for call, words in cases:
        with pytest.raises(UsageError, match=words):
            call()

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pathline.core.errors import UsageError
from pathline.fields import convert
from pathline.nets import UNet
from pathline.paths import Tabulated

SIZES = {"channels": 2, "width": 8, "multipliers": (1, 2, 2), "blocks": 2, "heads": 2, "groups": 4}


def trained_like(**more):
    """A network whose weights are all in play, in float64."""
    torch.manual_seed(0)
    net = UNet(**{**SIZES, "classes": 3, **more}).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


@pytest.fixture(scope="module")
def net():
    return trained_like()


def inputs(batch=4, side=8):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 2, side, side, generator=generator, dtype=torch.float64)
    t = 999 * torch.rand(batch, generator=generator, dtype=torch.float64)
    return x, t, torch.tensor([0, 1, 2, 3])[:batch]


def test_an_untrained_network_is_exactly_zero():
    x, t, label = inputs()
    assert torch.equal(UNet(**SIZES, classes=3).double()(x, t, label), torch.zeros_like(x))


def test_a_network_that_says_the_noise_starts_as_its_closest_guess():
    """ε̂ = (1 − α) x at first, with DDPM's α computed here in NumPy, at labels and between two.

    Its table is in float32, so log α, which is above −5.1, errs by less than 3e-7, and α by 1e-7.
    """
    x, _, label = inputs()
    net = UNet(**SIZES, classes=3, betas=(1e-4, 0.02, 1000)).double()
    log_alphas = 0.5 * np.log(1 - np.linspace(1e-4, 0.02, 1000)).cumsum()
    for t, log_alpha in (
        (0.0, log_alphas[0]),
        (500.0, log_alphas[500]),
        (500.25, 0.75 * log_alphas[500] + 0.25 * log_alphas[501]),
        (999.0, log_alphas[999]),
    ):
        said = net(x, torch.tensor(t).double(), label)
        torch.testing.assert_close(said, (1 - np.exp(log_alpha)) * x, rtol=0, atol=1e-6)


def test_errors_of_the_network_do_not_grow_near_pure_noise():
    """Its x̂_0 errs by σ times what F errs, at every time: α of ε̂'s error over α of the path."""
    x, _, label = inputs()
    path, net = Tabulated.linear(), trained_like(betas=(1e-4, 0.02, 1000))
    other = trained_like(betas=(1e-4, 0.02, 1000))
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        other.out.bias += 0.01
    for time_ in (0.001, 0.5, 1.0):
        t = torch.tensor(time_).double()
        x0 = [convert(path, "eps", "x0", x, n(x, path.label(t), label), t) for n in (net, other)]
        torch.testing.assert_close(
            x0[0] - x0[1], torch.full_like(x, 0.01 * float(path.sigma(t))), rtol=1e-5, atol=0
        )


def test_every_block_starts_as_the_identity():
    """Also those that attend; blocks that change the width start as their shortcut."""
    net = UNet(**SIZES)
    h, features = torch.randn(3, 8, 4, 4), torch.randn(3, 32)
    for stage in net.down[0].stages:
        assert torch.equal(stage(h, features), h)
    wide = torch.randn(3, 16, 4, 4)
    for stage in net.middle:
        assert torch.equal(stage(wide, features), wide)
    assert net.middle[0].attention is not None
    both = torch.cat([wide, wide], dim=1)
    stage = net.up[0].stages[0]
    assert torch.equal(stage(both, features), stage.skip(both))


def test_every_parameter_gets_a_gradient(net):
    x, t, label = inputs()
    net(x, t, label).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())
    assert net.label.weight.grad.abs().sum(1).min() > 0, "the null class too"
    net.zero_grad()


def test_no_label_is_the_null_class(net):
    x, t, _ = inputs()
    null = torch.full((4,), 3)
    assert torch.equal(net(x, t), net(x, t, null))
    assert torch.equal(net(x, t), net(x, t, torch.tensor(3)))


def test_the_label_and_the_time_are_heard(net):
    x, t, label = inputs()
    assert (net(x, t, label) - net(x, t, label.flip(0))).abs().amax((1, 2, 3)).min() > 1e-3
    assert (net(x, t, label) - net(x, t.flip(0), label)).abs().amax((1, 2, 3)).min() > 1e-3


def test_rows_do_not_see_each_other(net):
    """A permuted batch gives the permuted answer, and a row alone gives its own.

    Sums may run in another order for another batch size: units in the last place of float64.
    """
    x, t, label = inputs()
    said, order = net(x, t, label), torch.tensor([2, 0, 3, 1])
    close = {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(net(x[order], t[order], label[order]), said[order], **close)
    torch.testing.assert_close(net(x[1:2], t[1:2], label[1:2]), said[1:2], **close)
    nan = x.clone()
    nan[0] = torch.nan
    torch.testing.assert_close(net(nan, t, label)[1:], said[1:], **close)


def test_one_time_is_that_time_for_all(net):
    x, _, label = inputs()
    t = torch.tensor(431.5, dtype=torch.float64)
    assert torch.equal(net(x, t, label), net(x, t.expand(4), label))


def test_it_is_neither_flipped_nor_shifted_with_its_input(net):
    """What is not claimed: free kernels see left and right, zero padding sees the border."""
    x, t, label = inputs()
    said = net(x, t, label)
    assert (net(x.flip(-1), t, label).flip(-1) - said).abs().max() > 1e-2
    assert (net(x.roll(4, -1), t, label).roll(-4, -1) - said).abs().max() > 1e-2


def test_gradients_are_those_of_its_values():
    net = trained_like(multipliers=(1, 2), blocks=1, attention=(1,))
    x, t, label = inputs(batch=1, side=2)
    assert torch.autograd.gradcheck(lambda x: net(x, t, label), x.requires_grad_())


def test_the_memory_format_of_its_input_changes_nothing(net):
    x, t, label = inputs()
    said = net(x.to(memory_format=torch.channels_last), t, label)
    assert torch.equal(said, net(x, t, label))


def test_weights_come_back_bitwise(net, tmp_path):
    x, t, label = inputs()
    state = {name: weight.contiguous() for name, weight in net.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    again = UNet(**SIZES, classes=3).double()
    again.load_state_dict(load_file(tmp_path / "w.safetensors"))
    assert torch.equal(again(x, t, label), net(x, t, label))


@pytest.mark.parametrize(("height", "width"), [(28, 28), (4, 12)])
def test_it_takes_any_sides_that_it_can_halve(height, width):
    """28 → 14 → 7 needs no padding: the shapes of what was kept fit, or `torch.cat` would fail."""
    net = trained_like().float()
    assert torch.isfinite(net(torch.randn(1, 2, height, width), torch.tensor(3.0))).all()


@pytest.mark.parametrize("shape", [(1, 2, 30, 28), (1, 2, 28, 7), (2, 28, 28)])
def test_other_sides_are_refused(net, shape):
    with pytest.raises(UsageError, match=r"halves images 2 times: .* sides that 4 divides, not \("):
        net(torch.zeros(shape).double(), torch.tensor(0.0))


def test_a_label_for_a_network_without_classes_is_refused():
    with pytest.raises(UsageError, match="without classes; give it no label"):
        UNet(**SIZES)(torch.zeros(1, 2, 8, 8), torch.tensor(0.0), torch.tensor([1]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"width": 10}, "multiple of its groups"),
        ({"heads": 3}, "of its heads"),
        ({"multipliers": ()}, "a multiplier of at least 1"),
        ({"blocks": 0}, "a block on each"),
        ({"attention": (3,)}, "no level 3"),
        ({"betas": (1e-4, 0.02)}, r"betas are \(first, last, n\)"),
        ({"betas": (0.02, 1e-4, 1000)}, "first ≤ last"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, says):
    with pytest.raises(UsageError, match=says):
        UNet(**{**SIZES, **change})


@pytest.mark.slow
def test_it_compiles_without_a_break():
    """No branch depends on data: one graph, whatever the values."""
    net = trained_like(multipliers=(1, 2), blocks=1).float()
    x, t, label = (v.float() if v.is_floating_point() else v for v in inputs())
    compiled = torch.compile(net, fullgraph=True)
    # another order of sums in float32, over about ten layers
    torch.testing.assert_close(compiled(x, t, label), net(x, t, label), rtol=1e-3, atol=1e-3)

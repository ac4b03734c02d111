"""Stable neural SDEs: their formulas, written out; what they read; what theory asks of a drift."""

import math

import pytest
import torch

import pathline as pl
from pathline.fields.probes import layer_bound, probe
from pathline.fields.stable_sde import CLASSES, NOISES, StableSDE, logarithm

TIMES = torch.linspace(0, 1, 5, dtype=torch.float64)


def made(kind, **how):
    torch.manual_seed(0)
    net = StableSDE(kind, 4, 3, **how).double()
    x = torch.randn(5, 6, 3, dtype=torch.float64)
    return net, net.along(TIMES, x), x, torch.randn(6, 4, dtype=torch.float64)


def written_out(net, x, z, t):
    """The public code's network, line by line (neuralsde.py); LSDE without time."""
    waves = torch.stack((t.sin(), t.cos())).expand(len(z), 2)
    e = net.embed(z)
    if net.kind != "lsde":
        e = e + waves @ net.embed_time.weight.T  # one linear layer of (t̂, z)
    u = net.joined(torch.cat((e, net.embed_control(x)), 1) if net.kind != "naive" else e)
    a = net.rest(u)
    noise = net.noise_net(torch.cat((waves, z), 1) if net.kind == "naive" else waves)
    return a, noise


@pytest.mark.parametrize("kind", list(CLASSES))
@pytest.mark.parametrize("variant", ["runtime", "pure"])
def test_drift_and_diffusion_are_the_formulas(kind, variant):
    net, driven, x, z = made(kind, variant=variant, depth=3)
    a, n = written_out(net, x[2], z, TIMES[2])
    m = n * z if kind in ("lnsde", "gsde") else n.expand_as(z)
    if variant == "pure":
        drift, diffusion = (z * a if kind == "gsde" else a), m
    else:
        drift = torch.tanh(a * z.tanh() if kind == "gsde" else a)
        diffusion = torch.tanh(net.theta.sigmoid() * m)
    torch.testing.assert_close(driven.drift(z, TIMES[2]), drift)
    torch.testing.assert_close(driven.diffusion(z, TIMES[2]), diffusion)


@pytest.mark.parametrize("kind", list(CLASSES))
def test_who_reads_the_data_path(kind):
    net, driven, x, z = made(kind)
    x.requires_grad_()
    out = net.along(TIMES, x).drift(z, TIMES[1]).sum()
    found = torch.autograd.grad(out, x, allow_unused=True)[0]
    assert (found is None) == (kind == "naive")
    if found is not None:
        assert bool((found[1] != 0).any()) and not bool((found[[0, 2, 3, 4]] != 0).any())


def test_a_geometric_drift_vanishes_with_the_state_and_the_logarithm_is_ito_s():
    net, driven, x, z = made("gsde", variant="pure")
    assert float(driven.drift(torch.zeros_like(z), TIMES[1]).detach().abs().max()) == 0
    y, sign = logarithm(z)
    sigma = driven.log_diffusion(y, TIMES[1])
    torch.testing.assert_close(sign * y.exp(), z)
    ito = driven.drift(z, TIMES[1]) / z - (driven.diffusion(z, TIMES[1]) / z) ** 2 / 2
    torch.testing.assert_close(driven.log_drift(y, sign, TIMES[1]), ito)
    torch.testing.assert_close(sigma, driven.diffusion(z, TIMES[1]) / z)
    with pytest.raises(pl.UsageError, match="starts at 0 stays there"):
        logarithm(torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("noise", list(NOISES))
def test_every_noise_can_be_asked_for(noise):
    net, driven, x, z = made("lsde", noise=noise, allow_unstable=True, variant="pure")
    g = driven.diffusion(z, TIMES[3])
    assert g.shape == z.shape
    closed = {"none": 0 * z, "constant": 1 + 0 * z, "time": TIMES[3] + 0 * z, "state": z,
              "sqrt": z.sqrt(), "cube": z**3, "sigmoid": z.sigmoid(), "relu": z.relu()}  # fmt: skip
    if noise in closed:
        torch.testing.assert_close(g, closed[noise], equal_nan=True)


def test_numbers_that_are_lost_are_counted():
    net, driven, x, z = made("lsde", noise="sqrt", allow_unstable=True)
    g = driven.diffusion(z, TIMES[0])
    assert bool(g.isfinite().all()) and driven.lost == int((z < 0).sum()) > 0


def test_what_cannot_be_is_refused():
    with pytest.raises(pl.UsageError, match="allow_unstable=True"):
        StableSDE("lsde", 4, 3, noise="cube")
    with pytest.raises(pl.UsageError, match="did you mean lnsde"):
        StableSDE("lnsd", 4, 3)
    with pytest.raises(pl.UsageError, match="unknown input"):
        StableSDE("lsde", 4, 3, reads="nothing")
    with pytest.raises(pl.UsageError, match="channels= is 1 or more"):
        StableSDE("lsde", 4, 0)
    net, driven, x, z = made("lsde")
    with pytest.raises(pl.UsageError, match=r"a data path \(5, batch, 3\)"):
        net.along(TIMES, x[..., :2])
    with pytest.raises(pl.UsageError, match="none of the 5 times"):
        driven.drift(z, 0.1)
    with pytest.raises(pl.UsageError, match="pure"):
        driven.log_drift(z, z.sign(), 0.0)


# -- probes


def test_a_linear_drift_is_known_exactly():
    a = torch.tensor([[-1.0, 3.0], [0.0, -2.0]], dtype=torch.float64)
    found = probe(lambda x: x @ a.T, torch.randn(5, 2, dtype=torch.float64))
    assert found.lipschitz == pytest.approx(float(torch.linalg.matrix_norm(a, 2)))
    assert found.dissipativity == pytest.approx(-(-1.5 + math.sqrt(0.25 + 2.25)))
    assert found.contraction(2.0) == pytest.approx(math.exp(-2 * found.dissipativity))


def test_the_worst_place_of_a_drift():
    """−1.5 z + 0.5 tanh z is steepest far out (1.5) and pulls least at 0 (1)."""
    z = torch.linspace(-20, 20, 401, dtype=torch.float64)[:, None]
    found = probe(lambda x: -1.5 * x + 0.5 * x.tanh(), z)
    assert found.dissipativity == pytest.approx(1.0) and found.lipschitz == pytest.approx(1.5)


def test_no_probe_finds_more_than_the_layers_allow():
    net, driven, x, z = made("lsde", variant="pure")
    points = torch.randn(300, 4, dtype=torch.float64)
    found = probe(net.rest, points)
    assert 0 < found.lipschitz <= layer_bound(net.rest)
    with pytest.raises(pl.UsageError, match="slope of a GELU"):
        layer_bound(torch.nn.GELU())

"""Networks of differential equations: bounds that they promise, and where they start."""

import pytest
import torch

import pathline as pl
from pathline.nets.vector_fields import (
    CDENet,
    Hybrid,
    LipSwish,
    NoiseNet,
    ODENet,
    augmented,
    clip_weights,
)


def test_slopes_are_bounded_by_the_scale():
    torch.manual_seed(0)
    f = ODENet(3, timed=True)
    with torch.no_grad():
        f.scale.fill_(0.5)
    assert float(f(100 * torch.randn(64, 3), 0.3).detach().abs().max()) <= 0.5
    assert not torch.equal(f(torch.ones(1, 3), 0.0), f(torch.ones(1, 3), 1.0))


def test_lipswish_has_no_slope_above_one():
    x = torch.linspace(-10, 10, 20001, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(LipSwish()(x).sum(), x)
    assert 0.99 < float(slope.abs().max()) <= 1.0


def test_clipped_layers_do_not_multiply_distances():
    """‖W‖ from the largest entry to the sum is at most 1 where every |w| ≤ 1/out."""
    torch.manual_seed(0)
    net = NoiseNet(4, width=8)
    with torch.no_grad():
        for p in net.layers.parameters():
            p.mul_(30)
    clip_weights(net)
    x, y = torch.randn(2, 256, 4).double()
    apart = (net.double()(x, 0.5) - net(y, 0.5)).abs().sum(1)
    assert bool((apart <= (x - y).abs().sum(1) + 1e-12).all())


def test_a_hybrid_starts_at_what_is_known():
    torch.manual_seed(0)
    net = Hybrid(lambda x, t: -x, 2)
    x = torch.randn(100, 2)
    assert float((net(x, 0.0) + x).detach().abs().max()) < 0.02


def test_a_control_s_response_is_a_matrix_of_bounded_numbers():
    made = CDENet(5, 3)(10 * torch.randn(7, 5), 0.0)
    assert made.shape == (7, 5, 3) and float(made.detach().abs().max()) <= 1


def test_a_diffusion_with_a_floor_is_nowhere_zero():
    torch.manual_seed(0)
    net = NoiseNet(3, floor=0.1)
    assert float(net(torch.randn(500, 3), 0.2).detach().min()) >= 0.1
    assert NoiseNet(3, 2)(torch.randn(5, 3), 0.2).shape == (5, 3, 2)


def test_a_flow_with_room_turns_a_line_around():
    """x → −x takes a half turn in the plane; on the line it would have to cross 0."""
    turn = torch.tensor([[0.0, torch.pi], [-torch.pi, 0.0]], dtype=torch.float64)
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    made = augmented(x, 1)
    assert torch.equal(made[:, :1], x) and not made[:, 1].any()
    end = pl.solve(lambda z, t: z @ turn, made, solver="rk4", grid=[k / 64 for k in range(65)]).x
    torch.testing.assert_close(end[:, :1], -x, rtol=1e-6, atol=1e-6)
    with pytest.raises(pl.UsageError, match="1 zero or more"):
        augmented(x, 0)


@pytest.mark.parametrize("net", [ODENet(2), CDENet(2, 3), NoiseNet(2), Hybrid(lambda x, t: x, 2)])
def test_another_shape_is_refused(net):
    with pytest.raises(pl.UsageError, match=r"reads states \(batch, 2\)"):
        net(torch.zeros(4, 3), 0.0)

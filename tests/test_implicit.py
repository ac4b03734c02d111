"""Layers that solve an equation: the gradient is an unrolled loop's, and failures are told."""

import pytest
import torch
from torch import nn

import pathline as pl
from pathline.nets.implicit import DEQ, FixedPoint, NotConverged, TanhLayer, solve_fixed_point


def made(backward="fixed_point", **how):
    torch.manual_seed(0)
    net = DEQ(TanhLayer(8, 3), 8, FixedPoint(1e-13, backward=backward, **how)).double()
    return net, torch.randn(16, 3, dtype=torch.float64)


def gradients(net, z):
    return torch.autograd.grad(z.square().sum() + z[:, 0].sum(), list(net.parameters()))


@pytest.mark.parametrize("backward", ["linear", "fixed_point", "gmres"])
def test_the_gradient_is_that_of_four_hundred_steps(backward):
    """0.9⁴⁰⁰ is below rounding, so the loop is at the fixed point, and so is its gradient."""
    net, x = made(backward)
    z = torch.zeros(16, 8, dtype=torch.float64)
    for _ in range(400):
        z = net.layer(z, x)
    found = net(x)
    assert float((found - z).detach().abs().max()) < 1e-12
    pairs = zip(gradients(net, found), gradients(net, z), strict=True)
    assert max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs) < 1e-10


def test_the_gradient_with_respect_to_the_input():
    net, x = made()
    assert torch.autograd.gradcheck(net, (x[:3].requires_grad_(),), atol=1e-7)


def test_anderson_needs_fewer_steps_and_a_linear_map_no_more_than_its_dimension():
    net, x = made()
    runs = [
        solve_fixed_point(lambda z: net.layer(z, x), torch.zeros(16, 8).double(), FixedPoint(
            1e-10, memory=m, max_steps=500)) for m in (1, 5)
    ]  # fmt: skip
    assert all(run.converged for run in runs) and runs[1].steps < runs[0].steps
    a = torch.randn(4, 4, dtype=torch.float64) / 4
    b = torch.randn(2, 4, dtype=torch.float64)
    found = solve_fixed_point(lambda z: z @ a.T + b, torch.zeros_like(b), FixedPoint(memory=6))
    exact = torch.linalg.solve(torch.eye(4) - a, b.T).T
    assert float((found.z - exact).abs().max()) < 1e-9 and found.steps <= 10


def test_what_did_not_converge_is_not_differentiated():
    class Turn(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(3.0))

        def forward(self, z, x):
            return torch.sin(self.gain * 4 * z) + x

    net = DEQ(Turn(), 1, FixedPoint(1e-8, max_steps=20))
    x = torch.linspace(0, 3, 32)[:, None]
    with pytest.raises(NotConverged, match="after 20 steps the residual is") as caught:
        net(x)
    assert caught.value.residual > 1e-8
    loose = DEQ(Turn(), 1, FixedPoint(1e-8, max_steps=20, on_failure="warn"))
    with pytest.warns(UserWarning, match="no gradient"):
        assert not loose(x).requires_grad
    with torch.no_grad(), pytest.warns(UserWarning, match="not found"):
        net(x)


def test_a_backward_pass_that_fails_is_told():
    net, x = made("fixed_point", max_steps=60)
    object.__setattr__(net.how, "max_steps", 60)
    z = net(x)
    object.__setattr__(net.how, "max_steps", 2)
    with pytest.raises(NotConverged, match="linear equation of the gradient"):
        z.sum().backward()


def test_one_sample_does_not_change_another():
    net, x = made()
    assert float((net(x)[:3] - net(x[:3])).detach().abs().max()) < 1e-12


def test_float32_has_a_tolerance_of_its_own():
    torch.manual_seed(0)
    net = DEQ(TanhLayer(8, 3), 8)
    net(torch.randn(4, 3)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("how", [{"backward": "luck"}, {"max_steps": 0}, {"tolerance": 0.0},
                                 {"memory": 0}, {"on_failure": "hide"}])  # fmt: skip
def test_what_cannot_be_is_refused(how):
    with pytest.raises(pl.UsageError):
        FixedPoint(**how)
    with pytest.raises(pl.UsageError, match="contraction"):
        TanhLayer(4, 2, norm=1.0)

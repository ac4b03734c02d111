"""Gradients of CDEs by every adjoint: a linear control's slope depends on the side of a knot."""

import pytest
import torch

import pathline as pl
from pathline.fields import CDE
from pathline.paths import controls

TIMES = torch.linspace(0, 1, 8, dtype=torch.float64)


def gradient(solver, adjoint, kind):
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 6).double()
    x = torch.randn(4, 8, 1, dtype=torch.float64).requires_grad_()
    control = kind(controls.with_time(x, TIMES), TIMES)
    field = CDE(lambda z, t: net(z).tanh().unflatten(1, (3, 2)), control)
    z = torch.ones(4, 3, dtype=torch.float64)
    end = pl.solve(field, z, solver=solver, grid=TIMES.tolist(), adjoint=adjoint).x
    return torch.autograd.grad(end.square().sum(), [x, *net.parameters()])


@pytest.mark.parametrize("kind", [controls.linear, controls.hermite])
@pytest.mark.parametrize(("solver", "adjoint"), [
    ("heun", "checkpoint"), ("reversible_heun", "checkpoint"), ("reversible_heun", "reversible"),
])  # fmt: skip
def test_steps_that_are_taken_again_see_the_same_side_of_a_knot(solver, adjoint, kind):
    pairs = zip(gradient(solver, adjoint, kind), gradient(solver, "direct", kind), strict=True)
    for again, direct in pairs:
        torch.testing.assert_close(again, direct, rtol=1e-10, atol=1e-10)

"""torchdiffeq's functions on our solvers, beside the library itself and closed forms."""

import math

import pytest
import torch

import pathline as pl
from pathline.adapters import torchdiffeq as ours

F = torch.float64


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[-0.3, 1.0], [-1.0, -0.2]], dtype=F))

    def forward(self, t, y):
        return torch.tanh(y @ self.weight.T) * (1 + torch.cos(t))


def loss_and_gradients(library, name, t, **how):
    net = Net()
    y0 = torch.tensor([[1.0, 0.5], [0.3, -0.7]], dtype=F, requires_grad=True)
    t = t.clone().requires_grad_()
    y = getattr(library, name)(net, y0, t, **how)
    assert y.shape == (len(t), 2, 2) and torch.equal(y[0], y0)
    found = torch.autograd.grad((y**2).sum(), [y0, t, net.weight])
    return y.detach(), torch.cat([g.flatten() for g in found])


TIMES = {
    "forwards": torch.tensor([0.0, 0.4, 1.1, 2.0], dtype=F),
    "backwards": torch.tensor([2.0, 1.9, 0.5], dtype=F),
}


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
def test_states_and_gradients_are_those_of_torchdiffeq(name, times):
    theirs = pytest.importorskip("torchdiffeq")
    how = {"rtol": 1e-9, "atol": 1e-10}
    y, found = loss_and_gradients(ours, name, TIMES[times], **how)
    exact, wanted = loss_and_gradients(theirs, name, TIMES[times], **how)
    torch.testing.assert_close(y, exact, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4", "heun2", "heun3"])
def test_fixed_methods_are_those_of_torchdiffeq(method):
    theirs = pytest.importorskip("torchdiffeq")
    t = torch.linspace(0, 1, 3, dtype=F)
    how = {"method": method, "options": {"step_size": 0.125}}
    y, _ = loss_and_gradients(ours, "odeint", t, **how)
    exact, _ = loss_and_gradients(theirs, "odeint", t, **how)
    torch.testing.assert_close(y, exact, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("method", [*ours.ADAPTIVE, "scipy_solver"])
def test_every_adaptive_method_solves_tuples_of_any_shape(method):
    tolerance = 1e-4 if method in ("adaptive_heun", "fehlberg2") else 1e-8
    y0 = (torch.tensor(1.0, dtype=F), torch.ones(2, 1, dtype=F))
    t = torch.tensor([0.0, 0.7, 1.0], dtype=F)
    a, b = ours.odeint(lambda t, y: (-y[0], 2 * t * y[1]), y0, t, method=method,
                       rtol=tolerance, atol=tolerance)  # fmt: skip
    # errors of steps add up; fehlberg2's estimate is a 512th of a change of slope (torchdiffeq, at
    # this tolerance: 1.3e-2)
    far = (200 if method == "fehlberg2" else 100) * tolerance
    torch.testing.assert_close(a, torch.exp(-t), rtol=far, atol=0)
    torch.testing.assert_close(b[:, 1, 0], torch.exp(t * t), rtol=far, atol=0)


class Fall(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.g = torch.nn.Parameter(torch.tensor(8.0, dtype=F))

    def forward(self, t, y):
        return y[1], -self.g * torch.ones_like(y[1])


@pytest.mark.parametrize("interface", [ours.odeint, ours.odeint_adjoint])
def test_an_event_has_its_time_and_the_gradient_of_it(interface):
    """t* = √(2h/g), v = −√(2gh): by h and by g."""
    fall, h = Fall(), torch.tensor([10.0], dtype=F, requires_grad=True)
    start, zero = (h, torch.zeros(1, dtype=F)), torch.tensor(0.0, dtype=F)
    how = {"rtol": 1e-9, "atol": 1e-9, "odeint_interface": interface}
    t, (_, v) = ours.odeint_event(fall, start, zero, event_fn=lambda t, y: y[0], **how)
    assert float(t.detach()) == pytest.approx(math.sqrt(2.5), abs=1e-9)
    assert float(v[-1].detach()) == pytest.approx(-math.sqrt(160), abs=1e-8)
    by_h, by_g = torch.autograd.grad(t, [h, fall.g], retain_graph=True)
    assert float(by_h) == pytest.approx(1 / (8 * math.sqrt(2.5)), abs=1e-8)
    assert float(by_g) == pytest.approx(-math.sqrt(2.5) / 16, abs=1e-8)
    by_h, by_g = torch.autograd.grad(v[-1], [h, fall.g])
    assert float(by_h) == pytest.approx(-8 / math.sqrt(160), abs=1e-7)
    assert float(by_g) == pytest.approx(-10 / math.sqrt(160), abs=1e-7)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"method": "dopri6"}, "did you mean dopri"),
        ({"options": {"max_num_step": 3}}, "did you mean max_num_steps"),
        ({"options": {"norm": max}}, "norm of your own"),
        ({"t": torch.tensor([0.0, 1.0, 0.5])}, r"t\[1\] = 1 is followed by 0.5"),
        ({"t": torch.tensor([0, 1])}, "floating tensor of times"),
        ({"options": {"max_num_steps": 3}, "rtol": 1e-12}, "given up"),
    ],
)
def test_bad_input(how, message):
    how = {"t": torch.tensor([0.0, 10.0]), **how}
    with pytest.raises(pl.core.errors.PathlineError, match=message):
        ours.odeint(lambda t, y: torch.sin(9 * y), torch.ones(1, dtype=F), **how)

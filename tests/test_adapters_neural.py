"""torchsde's and torchcde's calls: the same numbers where both sides do the same."""

import warnings

import pytest
import torch

from pathline.adapters import torchcde as our_cde
from pathline.adapters import torchsde as our_sde
from pathline.core.errors import UsageError

TIMES = torch.linspace(0, 1, 5, dtype=torch.float64)


class Equation(torch.nn.Module):
    def __init__(self, noise_type, sde_type):
        super().__init__()
        torch.manual_seed(0)
        self.noise_type, self.sde_type = noise_type, sde_type
        self.a, self.b = torch.nn.Linear(3, 3).double(), torch.nn.Linear(3, 6).double()

    def f(self, t, y):
        return torch.tanh(self.a(y)) + 0.1 * t

    def h(self, t, y):
        return -y

    def g(self, t, y):
        if self.noise_type == "diagonal":
            return 0.3 + 0.2 * torch.sigmoid(y)
        if self.noise_type == "additive":
            return (0.3 + 0.1 * t) * torch.ones(len(y), 3, 2, dtype=y.dtype)
        if self.noise_type == "scalar":
            return 0.3 * torch.sin(y).unsqueeze(-1)
        return 0.3 * torch.tanh(self.b(y)).unflatten(-1, (3, 2))


def start():
    torch.manual_seed(1)
    return torch.randn(6, 3, dtype=torch.float64)


def interval(torchsde, noise):
    size = (6, {"diagonal": 3, "scalar": 1}.get(noise, 2))
    return torchsde.BrownianInterval(
        0.0, 1.0, size=size, dtype=torch.float64, levy_area_approximation="space-time", entropy=5
    )


SAME = [("ito", "euler"), *(("stratonovich", m) for m in ("midpoint", "heun", "euler_heun",
                                                           "reversible_heun"))]  # fmt: skip


@pytest.mark.parametrize("noise", ["diagonal", "additive", "scalar", "general"])
def test_the_same_methods_on_the_same_path_give_the_same_numbers(noise):
    torchsde = pytest.importorskip("torchsde")
    more = [("ito", "srk"), ("ito", "milstein")] if noise == "additive" else []
    for sde_type, method in (*SAME, *more):
        sde, bm = Equation(noise, sde_type), interval(torchsde, noise)
        theirs = torchsde.sdeint(sde, start(), TIMES, bm=bm, method=method, dt=1 / 8)
        ours = our_sde.sdeint(sde, start(), TIMES, bm=bm, method=method, dt=1 / 8)
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() < 1e-12, (sde_type, method)


def test_methods_of_one_order_come_close():
    """Milstein by derivatives there, by stages here; two methods of Rößler: errors of order h."""
    torchsde = pytest.importorskip("torchsde")
    for method in ("milstein", "srk"):
        sde, bm = Equation("diagonal", "ito"), interval(torchsde, "diagonal")
        theirs = torchsde.sdeint(sde, start(), TIMES, bm=bm, method=method, dt=1 / 64)
        ours = our_sde.sdeint(sde, start(), TIMES, bm=bm, method=method, dt=1 / 64)
        assert (ours - theirs).abs().max() < 1e-3


def test_one_method_that_torchsde_does_not_have_is_closer_on_its_path():
    torchsde = pytest.importorskip("torchsde")
    sde, bm = Equation("diagonal", "stratonovich"), interval(torchsde, "diagonal")
    exact = torchsde.sdeint(sde, start(), TIMES, bm=bm, method="heun", dt=2**-12)
    errors = [(our_sde.sdeint(sde, start(), TIMES, bm=bm, method=method, dt=1 / 16) - exact).norm()
              for method in ("heun", "slow_rk")]  # fmt: skip
    assert errors[1] < 0.3 * errors[0]


def test_the_adjoint_is_the_gradient_of_torchsdes_own_steps():
    torchsde = pytest.importorskip("torchsde")
    for method in ("reversible_heun", "midpoint"):
        found = []
        for call in (torchsde.sdeint, our_sde.sdeint, our_sde.sdeint_adjoint):
            sde, bm = Equation("general", "stratonovich"), interval(torchsde, "general")
            ys = call(sde, start(), TIMES, bm=bm, method=method, dt=1 / 8)
            found.append(torch.autograd.grad(ys.square().sum(), list(sde.parameters())))
        for mine in found[1:]:
            for a, b in zip(found[0], mine, strict=True):
                assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("noise", ["diagonal", "general"])
def test_log_ratios_are_torchsdes(noise):
    torchsde = pytest.importorskip("torchsde")
    sde, size = Equation(noise, "ito"), (6, 4 if noise == "diagonal" else 2)
    bm = torchsde.BrownianInterval(0.0, 1.0, size=size, dtype=torch.float64, entropy=5)
    options = {"bm": bm, "method": "euler", "dt": 1 / 8, "logqp": True}
    (theirs, ratio), (ours, told) = (
        call(sde, start(), TIMES, **options) for call in (torchsde.sdeint, our_sde.sdeint)
    )
    assert (ours - theirs).abs().max() < 1e-12
    assert told.shape == ratio.shape and (told - ratio).abs().max() < 1e-10


def test_noise_is_new_at_every_call_and_follows_torchs_generator():
    sde, ends = Equation("diagonal", "ito"), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        ends.append(our_sde.sdeint(sde, start().clone(), TIMES, dt=0.1))
        torch.manual_seed(seed)
        start()  # the state's own draws
    torch.manual_seed(0)
    first, second = (our_sde.sdeint(sde, torch.ones(2, 3).double(), TIMES, dt=0.1) for _ in "ab")
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(first, our_sde.sdeint(sde, torch.ones(2, 3).double(), TIMES, dt=0.1))


def test_our_interval_drives_both_and_names_may_be_others():
    class Renamed(Equation):
        def drift(self, t, y):
            return 2 * self.f(t, y)

    bm = our_sde.BrownianInterval(0.0, 1.0, (6, 3), dtype=torch.float64, entropy=3)
    sde = Renamed("diagonal", "ito")
    first = our_sde.sdeint(sde, start(), TIMES, bm=bm, method="euler", dt=0.25)
    other = our_sde.sdeint(
        sde, start(), TIMES, bm=bm, method="euler", dt=0.25, names={"drift": "drift"}
    )
    y, w = start(), bm(0.0, 0.25)
    zero = torch.zeros((), dtype=torch.float64)
    assert torch.allclose(first[1], y + 0.25 * sde.f(zero, y) + sde.g(zero, y) * w)
    assert torch.allclose(other[1] - first[1], 0.25 * sde.f(zero, y))
    adapted = our_sde.sdeint(
        sde, start(), TIMES, bm=bm, adaptive=True, rtol=0.02, atol=0.02, dt=0.1
    )
    fine = our_sde.sdeint(sde, start(), TIMES, bm=bm, method="milstein", dt=1 / 512)
    assert (adapted - fine).abs().max() < 0.1


@pytest.mark.parametrize(
    ("options", "said"),
    [({"method": "rk9"}, "torchsde method"), ({"dt": 0.0}, "a step is above 0"),
     ({"extra": True}, "no hidden state"), ({"bm": 3}, "bm is a Brownian motion"),
     ({"method": "midpoint"}, "Stratonovich")],
)  # fmt: skip
def test_what_cannot_work_is_refused(options, said):
    with pytest.raises(UsageError, match=said):
        our_sde.sdeint(Equation("diagonal", "ito"), start(), TIMES, **options)


def observed(missing):
    torch.manual_seed(2)
    clock = torch.arange(7.0, dtype=torch.float64).expand(2, 3, 7).unsqueeze(-1)
    x = torch.cat((clock, torch.randn(2, 3, 7, 2, dtype=torch.float64)), -1)
    if missing:
        x[0, 1, 3, 1] = x[1, 2, 0, 2] = x[1, 0, 6, 1] = float("nan")
    return x


COEFFICIENTS = ("linear_interpolation_coeffs", "natural_cubic_coeffs",
                "hermite_cubic_coefficients_with_backward_differences")  # fmt: skip


@pytest.mark.parametrize("name", COEFFICIENTS)
@pytest.mark.parametrize("missing", [False, True])
def test_coefficients_and_paths_are_torchcdes(name, missing):
    torchcde = pytest.importorskip("torchcde")
    theirs, ours = (getattr(m, name)(observed(missing)) for m in (torchcde, our_cde))
    assert ours.shape == theirs.shape and (ours - theirs).abs().max() < 1e-12
    kind = "LinearInterpolation" if "linear" in name else "CubicSpline"
    peer, path = (getattr(m, kind)(theirs) for m in (torchcde, our_cde))
    t = torch.tensor([0.0, 1.3, 2.0, 6.0], dtype=torch.float64)
    assert (path.evaluate(t) - peer.evaluate(t)).abs().max() < 1e-12
    assert (path.derivative(t) - peer.derivative(t)).abs().max() < 1e-12
    assert torch.equal(path.interval, peer.interval)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if "linear" in name:
            theirs, ours = (getattr(m, name)(observed(missing), rectilinear=0)
                            for m in (torchcde, our_cde))  # fmt: skip
            assert (ours - theirs).abs().max() < 1e-12


class Pull(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layer = torch.nn.Linear(4, 12).double()

    def forward(self, t, z):
        return torch.tanh(self.layer(z) + 0.1 * t).unflatten(-1, (4, 3))


def test_cdeint_gives_torchcdes_states_and_gradients():
    torchcde = pytest.importorskip("torchcde")
    z, t = torch.ones(2, 3, 4, dtype=torch.float64), torch.tensor([0.0, 2.5, 6.0]).double()
    coefficients = our_cde.natural_cubic_coeffs(observed(False))
    options = {"method": "rk4", "options": {"step_size": 0.25}}
    found = []
    for module, adjoint in ((torchcde, False), (our_cde, False), (our_cde, True)):
        pull = Pull()
        path = module.CubicSpline(coefficients)
        ys = module.cdeint(path, pull, z, t, adjoint=adjoint, **options)
        found.append((ys, torch.autograd.grad(ys.sin().sum(), list(pull.parameters()))))
    for ys, gradients in found[1:]:
        assert ys.shape == (2, 3, 3, 4) and (ys - found[0][0]).abs().max() < 1e-12
        for a, b in zip(gradients, found[0][1], strict=True):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)
    adapted = our_cde.cdeint(our_cde.CubicSpline(coefficients), Pull(), z, t, rtol=1e-8, atol=1e-8)
    theirs = torchcde.cdeint(torchcde.CubicSpline(coefficients), Pull(), z, t, adjoint=False,
                             method="dopri5", rtol=1e-8, atol=1e-8)  # fmt: skip
    assert (adapted - theirs).abs().max() < 1e-5  # both within some tolerances of the solution


def test_a_foreign_control_will_do():
    class Ramp:
        def derivative(self, t):
            return torch.ones(2, 3, 3, dtype=torch.float64)

    z, t = torch.ones(2, 3, 4, dtype=torch.float64), torch.tensor([0.0, 1.0]).double()
    path = our_cde.LinearInterpolation(
        torch.arange(2.0).double().reshape(1, 1, 2, 1).expand(2, 3, 2, 3)
    )
    ends = [
        our_cde.cdeint(p, Pull(), z, t, method="rk4", options={"step_size": 0.1})
        for p in (Ramp(), path)
    ]
    assert torch.allclose(*ends, rtol=1e-12)
    with pytest.raises(UsageError, match="unknown method"):
        our_cde.cdeint(path, Pull(), z, t, method="rk9")

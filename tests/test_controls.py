"""Control paths and controlled equations: knots, slopes, causality, and exact solutions."""

import warnings

import numpy as np
import pytest
import torch

import pathline as pl
from pathline.core.errors import UsageError
from pathline.fields import CDE, LogODE
from pathline.paths import controls

TIMES = torch.tensor([0.0, 0.5, 1.2, 2.0, 2.3, 3.0], dtype=torch.float64)
KINDS = (controls.linear, controls.hermite, controls.natural)


def series(batch=3, channels=2):
    torch.manual_seed(0)
    return torch.randn(batch, len(TIMES), channels, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_hits_its_knots_from_both_sides(kind):
    x = series()
    path = kind(x, TIMES)
    for i, t in enumerate(TIMES):
        for side in ("left", "right"):
            assert (path.value(t, side) - x[:, i]).abs().max() < 1e-12
    each = torch.stack((TIMES[1], TIMES[3], TIMES[4] + 0.1))
    together = path.value(each)
    for i in range(3):
        assert (together[i] - path.value(each[i])[i]).abs().max() < 1e-15


@pytest.mark.parametrize("kind", KINDS)
def test_the_derivative_is_that_of_the_value(kind):
    path, h = kind(series(), TIMES), 1e-5
    for t in (0.2, 0.9, 2.17, 2.8):
        quotient = (path.value(t + h) - path.value(t - h)) / (2 * h)
        assert (path.derivative(t) - quotient).abs().max() < 1e-8  # h² times the third one


def test_hermite_slopes_are_the_chord_before_and_its_own():
    x, path = series(), controls.hermite(series(), TIMES)
    chords = x.diff(dim=1) / TIMES.diff()[:, None]
    for i in range(len(TIMES) - 1):
        before = chords[:, max(i - 1, 0)]
        assert (path.derivative(TIMES[i], "right") - before).abs().max() < 1e-12
        assert (path.derivative(TIMES[i + 1], "left") - chords[:, i]).abs().max() < 1e-12


def test_hermite_is_local_and_rectilinear_is_causal():
    x, moved = series(), series()
    moved[:, 4] += 1
    first, second = controls.hermite(x, TIMES), controls.hermite(moved, TIMES)
    for t in np.linspace(0, 2.0, 20):  # before the knot that precedes the change
        assert torch.equal(first.value(t), second.value(t))
    clocks = TIMES.expand(3, -1).unsqueeze(-1)
    first, second = (controls.rectilinear(torch.cat((clocks, v), -1)) for v in (x, moved))
    for s in np.linspace(0, 7, 50):  # time 4 is reached at knot 7, its value after it
        assert torch.equal(first.value(s), second.value(s))
    assert not torch.equal(first.value(7.5), second.value(7.5))
    assert len(first.times) == 2 * len(TIMES) - 1 and first.has_time


def test_natural_splines_are_scipys():
    interpolate = pytest.importorskip("scipy.interpolate")
    x = series()
    x[0, 2, 0] = x[0, 3, 0] = x[1, 1, 1] = float("nan")
    path = controls.natural(x, TIMES)
    for sample, channel in ((0, 0), (1, 1), (2, 0)):
        seen = ~x[sample, :, channel].isnan()
        spline = interpolate.CubicSpline(TIMES[seen], x[sample, seen, channel], bc_type="natural")
        for t in np.linspace(0, 3, 40):
            assert float(path.value(t)[sample, channel]) == pytest.approx(
                float(spline(t)), abs=1e-12
            )


def test_missing_values_lie_on_chords_and_ends_stay():
    nan = float("nan")
    x = torch.tensor([nan, 1.0, nan, nan, 4.0, nan], dtype=torch.float64).reshape(1, 6, 1)
    made = controls.filled(x, TIMES).flatten()
    wanted = 1 + 3 * (TIMES[2:4] - 0.5) / (2.3 - 0.5)
    assert torch.allclose(made, torch.cat((torch.tensor([1.0, 1.0]).double(), wanted,
                                           torch.tensor([4.0, 4.0]).double())))  # fmt: skip
    counted = controls.with_counts(x)
    assert counted[0, :, 1].tolist() == [0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_go_through_coefficients(kind):
    x = series(1, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: kind(v, TIMES).derivative(1.7), (x,))


def matrix():
    torch.manual_seed(1)
    return 0.2 * torch.randn(4, 4, dtype=torch.float64)


def driven(path):
    return CDE(lambda z, t: (z @ matrix().T).unsqueeze(-1), path, warns=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", ["rk4", "tsit5"])
def test_a_linear_equation_on_one_channel_is_an_exponential(kind, solver):
    """dz = A z dX is exp(A (X − X₀)) z₀; steps end on knots, and jumps are seen from both sides."""
    x, z = series(3, 1), torch.ones(3, 4, dtype=torch.float64)
    rise = x[:, -1, 0] - x[:, 0, 0]
    exact = torch.stack(
        [torch.linalg.matrix_exp(matrix() * r) @ v for r, v in zip(rise, z, strict=True)]
    )
    if solver == "rk4":
        parts = zip(TIMES.tolist()[:-1], TIMES.tolist()[1:], strict=True)
        grid = sorted({float(t) for a, b in parts for t in np.linspace(a, b, 97)})
        sol = pl.solve(driven(kind(x, TIMES)), z, solver=solver, grid=grid)
    else:
        made = pl.solvers.AdaptiveRK(method="tsit5", rtol=1e-12, atol=1e-12)
        sol = pl.solve(driven(kind(x, TIMES)), z, solver=made, grid=[0.0, 3.0])
    assert (sol.x - exact).abs().max() < 1e-9


def test_how_fast_a_path_without_time_is_walked_along_does_not_matter():
    x, z = series(3, 2), torch.ones(3, 4, dtype=torch.float64)
    a = torch.stack((matrix(), matrix().T), -1)
    ends = []
    for times in (TIMES, TIMES**2 + TIMES):
        path = controls.linear(x, times)
        with pytest.warns(UserWarning, match="no channel of the control rises with time"):
            cde = CDE(lambda z, t: torch.tanh(torch.einsum("hkc,bk->bhc", a, z)), path)
        parts = zip(times.tolist()[:-1], times.tolist()[1:], strict=True)
        grid = sorted({float(t) for p, q in parts for t in np.linspace(p, q, 33)})
        ends.append(pl.solve(cde, z, solver="rk4", grid=grid).x)
    assert (ends[0] - ends[1]).abs().max() < 1e-8


def test_log_odes_of_depth_two_converge_faster_than_increments():
    """A smooth path in windows: halving them gains 4 with increments, 16 with areas."""
    t = torch.linspace(0, 3, 97, dtype=torch.float64)
    x = torch.stack((1.5 * torch.cos(2 * t), torch.sin(3 * t)), -1).expand(2, -1, -1)
    a, z = torch.stack((matrix(), matrix().T), -1), torch.ones(2, 4, dtype=torch.float64)

    def f(z, t=None):
        return torch.tanh(torch.einsum("hkc,bk->bhc", a, z))

    def end(field, n):
        return pl.solve(field, z, solver="rk4", grid=pl.grids.uniform(n, start=0.0, end=3.0)).x

    exact = end(CDE(f, controls.linear(x, t), warns=False), 96 * 4)
    errors = {}
    for depth in (1, 2):
        for size in (8, 4):
            path = controls.windows(x, t, size=size, depth=depth)
            field = LogODE(f, path, 2) if depth == 2 else CDE(f, path, warns=False)
            errors[depth, size] = float((end(field, 96 // size * 8) - exact).abs().max())
    assert errors[1, 8] / errors[1, 4] > 3.3
    assert errors[2, 8] / errors[2, 4] > 10
    assert errors[2, 4] < errors[1, 4] / 20


def test_the_area_of_a_loop_is_what_is_inside():
    angle = torch.linspace(0, 2 * np.pi, 2001, dtype=torch.float64)
    loop = torch.stack((torch.cos(angle), torch.sin(angle)), -1)[None]
    assert controls.log_signature(loop)[0].tolist() == pytest.approx([0, 0, np.pi], abs=1e-5)


def test_a_batch_of_a_control_is_its_rows():
    path, rows = controls.hermite(series(), TIMES), torch.tensor([2, 0])
    assert torch.equal(path[rows].value(1.1), path.value(1.1)[rows])
    assert path.to(torch.float32).derivative(1.1).dtype == torch.float32


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: controls.linear(empty(), TIMES), "channel 1 of sample 2 has no value"),
        (lambda: controls.linear(series(), TIMES.flip(0)), r"t\[0\] = 3 is followed by 2.3"),
        (lambda: controls.hermite(series(), TIMES.floor()), "followed by 0"),
        (lambda: controls.linear(series(), TIMES[:-1]), "5,.* times were given for 6"),
        (lambda: controls.linear(series()[:, 0], TIMES), "batch, length, channels"),
        (lambda: controls.rectilinear(series()), "does not increase everywhere"),
        (lambda: controls.windows(series(), TIMES, size=2, depth=3), "depth 1 or 2"),
        (lambda: LogODE(torch.sin, controls.linear(series(), TIMES), 2), "has 3 entries"),
        (lambda: pl.solve(driven(controls.linear(series(2, 1), TIMES)), torch.ones(3, 4).double(),
                          solver="rk4", grid=[0.0, 1.0]), "of 2 samples and the state of 3"),
        (lambda: pl.solve(CDE(lambda z, t: z, controls.linear(series(), TIMES), warns=False),
                          torch.ones(3, 4).double(), solver="rk4", grid=[0.0, 1.0]),
         r"\(3, 4, 2\)"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(ask, said):
    with pytest.raises(UsageError, match=said):
        ask()


def empty():
    x = series()
    x[2, :, 1] = float("nan")
    return x


def test_a_causal_path_asks_for_what_it_cannot_know():
    x = torch.cat((TIMES.expand(3, -1).unsqueeze(-1), series()), -1)
    x[:, 0, 1] = float("nan")
    with pytest.warns(UserWarning, match="give fill="):
        assert torch.equal(controls.rectilinear(x).value(0.0)[:, 1], x[:, 1, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(
            controls.rectilinear(x, fill=0.0).value(0.0)[:, 1], torch.zeros(3).double()
        )

"""DPM-Solver-v3: its tables against closed forms and SciPy, its steps against other solvers."""

import json
import math
from dataclasses import replace

import pytest
import torch
from scipy.integrate import quad
from scipy.interpolate import CubicSpline
from test_cli import assert_refused, done
from tiny_model import tiny_model

import pathline as pl
from pathline.core import noise
from pathline.core.images import read_receipt
from pathline.core.tensors import write_tensors
from pathline.fields import problems
from pathline.solvers import DPMv3, EMSTable, calibrate, ems, solvers
from pathline.solvers.antiderivative import antiderivative
from pathline.solvers.calibrate import _Run, scale_and_bias
from pathline.solvers.execute import run
from pathline.solvers.order import fitted_slope
from pathline.solvers.reference import moments, reference

VP, OT = pl.VPLinear(), pl.CondOT()
MEAN = torch.tensor([0.7, -0.4, 1.5], dtype=torch.float64)
STD = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)
LAW = pl.Gaussian(VP, MEAN, STD**2)


def starts(n=16, shape=(3,), index=0):
    return noise.normal(range(n), shape, index=index, dtype=torch.float64)


def data(n=8):
    return MEAN + STD * starts(n, index=3)


def rmse(a, b):
    return float((a - b).square().mean().sqrt())


def from_noise(solver, field=LAW, n=1, grid=pl.grids.log_snr):
    x = starts() * float(field.path.sigma(field.path.t_max))
    return pl.solve(field, x, solver=solver, grid=grid(n)).x


# --- integrals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 40])
def test_the_spline_is_scipy_s(n):
    x = torch.linspace(0, 2, n, dtype=torch.float64)
    values = torch.stack((x.exp() * (3 * x).sin(), 1 / (1 + x)), 1)
    exact = CubicSpline(x, values).antiderivative()(x) if n > 2 else None
    if n == 2:
        exact = torch.stack((0 * values[0], values[0] + values[1]))
    found = antiderivative(values, float(x[1]))
    torch.testing.assert_close(found, torch.as_tensor(exact), rtol=0, atol=1e-14)


def test_the_trapezoid_is_the_trapezoid():
    values = starts(9, (2, 2))
    found = antiderivative(values, 0.3, "trapezoid")
    torch.testing.assert_close(found[1:], torch.cumulative_trapezoid(values, dx=0.3, dim=0))


@pytest.mark.parametrize(("start", "end"), [(60, 85), (85, 60), (0, 7), (113, 120)])
def test_the_integrals_of_a_step_are_those_of_their_definitions(start, end):
    """Against SciPy's quadrature of nested closed forms, l = cos λ, s = λ/4, b = sin 2λ."""
    nodes = ems.node_levels(VP, 120)
    table = EMSTable(VP, nodes, nodes.cos(), nodes / 4, (2 * nodes).sin())
    a, b, older = (float(nodes[i]) for i in (start, end, start + 3))

    def linear(v):
        return math.sin(v) - math.sin(a)

    def scale(v):
        return (v * v - a * a) / 8

    def drift(v):
        return quad(lambda r: math.exp(-scale(r)) * math.sin(2 * r), a, v, epsabs=1e-13)[0]

    def growth(v):
        return math.exp(linear(v) + scale(v))

    found = table.integrals(start, end, [start, start + 3], 3)
    exact = [
        quad(lambda v, k=k: growth(v) * (v - a) ** k / math.factorial(k), a, b, epsabs=1e-13)[0]
        for k in range(3)
    ]
    near = {"rel": 2e-5, "abs": 2e-6}  # spacing 0.1: h⁴ is 1e-4, and a spline's constant is small
    assert float(found.decay) == pytest.approx(math.exp(-linear(b)), **near)
    assert [float(w) for w in found.weights] == pytest.approx(exact, **near)
    bias = quad(lambda v: growth(v) * drift(v), a, b, epsabs=1e-11)[0]
    assert float(found.bias) == pytest.approx(bias, **near)
    assert float(found.offset[start]) == 0 and float(found.growth[start]) == 1
    assert float(found.offset[start + 3]) == pytest.approx(drift(older), **near)
    assert float(found.growth[start + 3]) == pytest.approx(math.exp(-scale(older)), **near)


# --- calibration --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [VP, OT, pl.EDM()], ids=["vp", "ot", "edm"])
@pytest.mark.parametrize("diagonal", ["exact", "hutchinson"])
def test_gaussian_data_have_their_closed_statistics(path, diagonal):
    """l exactly; s = 0 by the safeguard, for f does not vary; b but for the slope of l, O(h²)."""
    law, errors = replace(LAW, path=path), []
    for n in (20, 40):
        table = calibrate(law, data(), n, diagonal=diagonal)
        closed = EMSTable.gaussian(path, MEAN, STD, n)
        torch.testing.assert_close(table.l, closed.l, rtol=0, atol=1e-12)
        assert not table.s.any() and table.n_samples == 8
        errors.append(rmse(table.b, closed.b))
    assert 1.7 < math.log2(errors[0] / errors[1]) < 2.3


def test_the_statistics_do_not_depend_on_the_batch_or_the_view():
    field = problems.m4(VP)
    model = pl.Denoiser(lambda x, t: field(x, t).velocity, VP, view="velocity")
    made = [
        calibrate(f, data(), 6, n_probes=2, batch=batch) for f in (field, model) for batch in (8, 3)
    ]
    for other in made[1:]:
        for name in "lsb":
            torch.testing.assert_close(getattr(other, name), getattr(made[0], name))


def test_forward_mode_and_differences_agree():
    field = problems.m4(VP)
    made = [calibrate(field, data(32), 8, method=m) for m in ("forward", "difference")]
    for name in "lsb":
        a, b = (getattr(table, name) for table in made)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_shared_numbers_are_those_of_one_element_that_takes_every_place():
    """Elements of one law: sharing n elements is having n times the data."""
    one = pl.Gaussian(VP, *torch.tensor([[0.5], [0.3]], dtype=torch.float64))
    table = calibrate(one, one.draw(range(64)), 20, numbers="shared")
    closed = EMSTable.gaussian(VP, 0.5, 0.3**0.5, 20)
    assert table.shape == () and not table.s.any()
    torch.testing.assert_close(table.l, closed.l, rtol=0, atol=1e-12)
    mixed = calibrate(problems.m4(VP), data(), 20)
    shared = calibrate(problems.m4(VP), data(), 20, numbers="shared")
    torch.testing.assert_close(shared.l, mixed.l.mean(1))
    x = pl.sample(problems.m4(VP), 4, solver=DPMv3(table=shared), steps=5).x
    assert x.shape == (4, 3) and bool(x.isfinite().all())


def test_s_and_b_are_the_least_squares_fit():
    """Of f' on f, element by element, by lstsq."""
    f, d = starts(50), starts(50, index=1)
    means = torch.stack((f.mean(0), d.mean(0), (f * f).mean(0), (f * d).mean(0)))[None]
    s, b = scale_and_bias(means)
    for i in range(3):
        columns = torch.stack((f[:, i], torch.ones(50, dtype=torch.float64)), 1)
        exact = torch.linalg.lstsq(columns, d[:, i : i + 1]).solution[:, 0]
        torch.testing.assert_close(torch.stack((s[0, i], b[0, i])), exact)


def test_the_derivative_of_f_is_the_change_of_f_along_the_flow():
    """E f' of the second pass, by differences of E f over two nodes that the flow connects.

    With l constant in λ, dl/dλ = 0 and f is a function of the state alone.
    """
    field, h, c = problems.m4(VP), 1e-3, 0.3
    levels = torch.tensor([0.5 - h, 0.5, 0.5 + h], dtype=torch.float64)
    run_ = _Run(field, VP, data(4), levels, 0, 0, "forward", None, {})
    constant = torch.full((3, 3), c, dtype=torch.float64)
    found = run_.moments(1, constant, torch.zeros_like(constant))[1]
    times = VP.time_of_log_snr(levels).tolist()
    [(x, *_)] = run_.batches(torch.tensor(times[1], dtype=torch.float64))
    ends = []
    for goal in (0, 2):
        grid = pl.grids.times([times[1], times[goal]])
        end = pl.solve(field, x, solver="rk4", grid=grid).x
        eps = field(end, times[goal]).eps
        alpha, sigma = float(VP.alpha(times[goal])), float(VP.sigma(times[goal]))
        ends.append(((sigma * eps - c * end) / alpha).mean(0))
    torch.testing.assert_close(found, (ends[1] - ends[0]) / (2 * h), rtol=0, atol=1e-5)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("calls", [6, 14, 23])  # in either pass, after three that check time
def test_a_calibration_goes_on_to_the_same_bits(calls, tmp_path, monkeypatch):
    field, x0, file = problems.m4(VP), data(), tmp_path / "part.safetensors"
    whole, left = calibrate(field, x0, 6), [calls]

    class Network(torch.nn.Module):
        def forward(self, x, t):
            left[0] -= 1
            if left[0] == 0:
                raise Interrupted
            return field.evaluate(x, t[0].double(), {})

    def again(**rest):
        model = pl.Denoiser(Network(), VP, view="x0")
        return calibrate(model, x0, 6, resume=file, **rest)

    with pytest.raises(Interrupted):
        again()
    assert file.exists()
    with pytest.raises(pl.UsageError, match="another calibration"):
        again(seed=1)
    resumed, before = again(), left[0]
    for name in "lsb":
        torch.testing.assert_close(getattr(resumed, name), getattr(whole, name), rtol=0, atol=1e-12)
    assert again() == resumed and left[0] == before  # nothing is measured twice


class Scaled(torch.nn.Module):
    """x̂_0 = s x/(1 + σ²) + c, with a weight s and a buffer c."""

    def __init__(self, scale, buffer=0.0):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale, dtype=torch.float64))
        shift = torch.tensor(buffer, dtype=torch.float64)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, x, t):
        return self.scale * x / (1 + VP.sigma(t.double())[:, None] ** 2) + self.shift


def test_a_calibration_never_goes_on_from_another_network_s(tmp_path):
    """Weights, buffers and layers of an own module tell it apart; a function cannot be told."""
    file, x0 = tmp_path / "part.safetensors", data()
    first = pl.Denoiser(Scaled(0.5), VP, view="x0")
    table = calibrate(first, x0, 6, resume=file)
    assert calibrate(pl.Denoiser(Scaled(0.5), VP, view="x0"), x0, 6, resume=file) == table
    for other in (Scaled(0.6), Scaled(0.5, 1.0), torch.nn.Sequential(Scaled(0.5))):
        with pytest.raises(pl.UsageError, match="of another calibration"):
            calibrate(pl.Denoiser(other, VP, view="x0"), x0, 6, resume=file)
    for how in ({"view": "eps"}, {"label": 2.0}, {"scale": torch.sqrt}):
        with pytest.raises(pl.UsageError, match="of another calibration"):
            calibrate(pl.Denoiser(Scaled(0.5), VP, **{"view": "x0"} | how), x0, 6, resume=file)
    for opaque in (pl.Denoiser(lambda x, t: 0.5 * x, VP, view="x0"), LAW):
        with pytest.raises(pl.UsageError, match="Make it an nn.Module, or leave resume out"):
            calibrate(opaque, x0, 6, resume=tmp_path / "none.safetensors")
    assert not (tmp_path / "none.safetensors").exists()


def test_what_is_not_finite_is_told_with_its_node_and_not_kept(tmp_path):
    """At the node where it was found; mended, the same call measures that node and all after it."""
    levels = torch.linspace(*VP.log_snr_range(), 7, dtype=torch.float64)
    bad, broken = float(VP.time_of_log_snr(levels[2])), [True]

    class Network(Scaled):
        def forward(self, x, t):
            out = super().forward(x, t)
            return out * math.nan if broken[0] and abs(float(t[0]) - bad) < 1e-6 else out

    model, file = pl.Denoiser(Network(0.5), VP, view="x0"), tmp_path / "part.safetensors"
    says = f"first pass: .* at node 3 of 7, λ = {float(levels[2]):.6g}, t = {bad:.6g}"
    for _ in range(2):
        with pytest.raises(pl.PathlineError, match=says):
            calibrate(model, data(), 6, resume=file)
    broken[0] = False
    whole = calibrate(pl.Denoiser(Scaled(0.5), VP, view="x0"), data(), 6)
    assert calibrate(model, data(), 6, resume=file) == whole


@pytest.mark.parametrize("method", ["forward", "difference"])
@pytest.mark.parametrize("whole", [lambda n: n.round(), lambda n: n.round().long()])
def test_a_network_that_is_told_times_in_jumps_is_refused(method, whole):
    """Its derivative in time is zero; the same network told real numbers has its own."""
    path = pl.paths.Tabulated.linear()

    def made(label):
        return pl.Denoiser(lambda x, n: n[:, None] / 1000 * x, path, view="eps", label=label)

    inside = pl.Denoiser(lambda x, n: whole(n)[:, None] / 1000 * x, path, label=path.label)
    for jumps in (made(lambda t: whole(path.label(t))), inside):
        with pytest.raises(pl.UsageError, match="told times in jumps"):
            calibrate(jumps, data(), 6, method=method)
    assert calibrate(made(path.label), data(), 6, method=method).s.any()
    still = pl.Denoiser(lambda x, n: 0.5 * x, path, view="eps", label=lambda t: t.round())
    calibrate(still, data(), 6, method=method)  # time says nothing to it, so nothing is missing
    scaled = pl.Denoiser(lambda x, n: 0.5 * x, path, label=0.0, scale=lambda t: 1 + t)
    calibrate(scaled, data(), 6, method=method)  # moved by its scale, and told nothing


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_table_of_labels_is_refused_by_differences_too(dtype):
    """In float32 they span ten labels, and leave the table at its ends."""
    table = torch.nn.Embedding(1000, 3, dtype=dtype)
    torch.nn.init.normal_(table.weight, generator=torch.Generator().manual_seed(0))

    class Looked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = table

        def forward(self, x, n):
            return torch.tanh(x + self.table(n))

    model = pl.Denoiser(Looked(), OT, "velocity", label=lambda t: (999 * t).round().long())
    with pytest.raises(pl.UsageError, match="told times in jumps"):
        calibrate(model, data(), 6, method="difference")


def test_conditions_go_with_their_samples():
    """A model that is told its data's mean: with it, f of Gaussian data does not vary."""
    means = torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None]

    def network(x, t, mean):
        alpha, sigma = VP.alpha(t)[:, None], VP.sigma(t)[:, None]
        return mean + alpha * (x - alpha * mean) / (alpha**2 + sigma**2)

    model = pl.Denoiser(network, VP, view="x0")
    x0 = means + starts(6, (1,))
    parts = [calibrate(model, x0, 5, mean=means, batch=b) for b in (6, 4)]
    for name in "lsb":
        torch.testing.assert_close(getattr(parts[0], name), getattr(parts[1], name))
    shifted = calibrate(model, x0, 5, mean=torch.tensor([[0.5]], dtype=torch.float64))
    closed = EMSTable.gaussian(VP, torch.tensor([0.5]), torch.ones(1), 5)
    torch.testing.assert_close(shifted.l, closed.l)
    assert not shifted.s.any()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: calibrate(LAW, data(1)), "at least 2 data"),
        (lambda: calibrate(LAW, data().long()), "floating"),
        (lambda: calibrate(LAW, starts(4, (2,))), "takes samples of"),
        (lambda: calibrate(LAW, data() * math.nan), "not finite"),
        (lambda: calibrate(LAW, data(), 2), "3 intervals or more"),
        (lambda: calibrate(LAW, data(), ends=(1.0, -1.0)), "rising"),
        (lambda: calibrate(LAW, data(), diagonal="trace"), "choose 'hutchinson' or 'exact'"),
        (lambda: calibrate(LAW, data(), n_probes=0), "at least 1 probe"),
        (lambda: calibrate(LAW, data(), batch=0), "at least 1 sample, and 0 were asked"),
        (lambda: calibrate(LAW, data(), batch=-1), "at least 1 sample, and -1 were asked"),
        (lambda: calibrate(LAW, data(), numbers="few"), "choose 'each' or 'shared'"),
        (lambda: calibrate(LAW, data(), text="a dog"), "takes no condition"),
        (lambda: calibrate(pl.VectorField(lambda x, t: x), data()), "measured on a path"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(call, says):
    with pytest.raises(pl.UsageError, match=says):
        call()


# --- tables -------------------------------------------------------------------------------------


def test_a_table_is_saved_and_loaded_whole(tmp_path):
    table = calibrate(problems.m4(VP), data(), 6)
    again = EMSTable.load(table.save(tmp_path / "ems.safetensors"))
    assert again == table and hash(again) == hash(table) and again is not table
    for name in ("log_snr", "l", "s", "b"):
        assert torch.equal(getattr(again, name), getattr(table, name))
    assert (again.path, again.n_samples, again.quadrature) == (VP, 8, "spline")


@pytest.mark.parametrize(
    "change", [{"n_samples": 9}, {"weights": "x"}, {"path": pl.paths.VPCosine()}]
)
def test_tables_that_differ_in_anything_are_different(change):
    table = EMSTable.gaussian(VP, n=10)
    assert replace(table, **change) != table
    assert replace(table, l=table.l + 1e-15) != table
    assert replace(table, quadrature="trapezoid") != table


def spoiled(**change):
    table = EMSTable.gaussian(VP, MEAN, STD, 8)
    return replace(table, **{k: v(getattr(table, k)) for k, v in change.items()})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"s": lambda v: v.where(v.cumsum(0) >= 0, 0) * math.nan}, "s is not finite"),
        ({"b": lambda v: v[:-1]}, "do not fit together"),
        ({"l": lambda v: v[:, :2]}, "do not fit together"),
        ({"log_snr": lambda v: v.flip(0)}, "rise in even steps"),
        ({"log_snr": lambda v: v**3}, "rise in even steps"),
        ({"log_snr": lambda v: v[:2]}, "at least 4 nodes"),
        ({"quadrature": lambda v: "simpson"}, "choose 'spline' or 'trapezoid'"),
    ],
)
def test_a_table_that_cannot_be_is_refused(change, says):
    with pytest.raises(pl.UsageError, match=says):
        spoiled(**change)


def test_files_that_are_no_tables_are_refused(tmp_path):
    text, other = tmp_path / "text.safetensors", tmp_path / "other.safetensors"
    text.write_text("no tensors")
    write_tensors(other, {"x": torch.zeros(2)}, {"format": "something"})
    part = write_tensors(
        tmp_path / "part.safetensors", {"l": torch.zeros(2)}, {"format": ems.FORMAT}
    )
    for file, says in [(text, "cannot be read"), (other, "its format"), (part, "it lacks")]:
        with pytest.raises(pl.UsageError, match=says):
            EMSTable.load(file)
    with pytest.raises(pl.UsageError, match="cannot be read"):
        EMSTable.load(tmp_path / "nowhere.safetensors")


# --- steps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [VP, pl.paths.VPCosine(), pl.EDM()], ids=["vp", "cosine", "edm"])
def test_gaussian_data_are_sampled_in_one_step(path):
    """f is deterministic, so first order is exact; with a fine table to its splines' error."""
    law = replace(LAW, path=path)
    x = starts() * float(path.sigma(path.t_max))
    exact = law.flow(x, path.t_max, path.t_min)
    solver = DPMv3(1, EMSTable.gaussian(path, MEAN, STD, 960), corrector="none")
    end = pl.solve(law, x, solver=solver, steps=1).x
    assert rmse(end, exact) < 1e-9 and rmse(pl.solve(law, x, solver="ddim", steps=1).x, exact) > 0.1


def test_and_back_in_one():
    solver = DPMv3(1, EMSTable.gaussian(VP, MEAN, STD, 480), corrector="none")
    x, grid = data(), pl.grids.log_snr(1)
    there = pl.solve(LAW, x, solver=solver, grid=grid.reverse(VP)).x
    torch.testing.assert_close(there, LAW.flow(x, VP.t_min, 1.0), rtol=0, atol=1e-8)
    torch.testing.assert_close(pl.solve(LAW, there, solver=solver, grid=grid).x, x)


def test_gaussian_error_falls_with_the_square_of_the_spacing():
    """A measured table errs in the slope of l alone."""
    exact = LAW.flow(starts() * float(VP.sigma(1.0)), 1.0, VP.t_min)
    errors = []
    for n in (60, 120):
        table = calibrate(LAW, data(), n, diagonal="exact")
        errors.append(rmse(from_noise(DPMv3(1, table, corrector="none")), exact))
    assert 1.8 < math.log2(errors[0] / errors[1]) < 2.2


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("grid", [pl.grids.log_snr, pl.grids.karras])
def test_constant_tables_are_the_solvers_of_the_two_predictions(order, grid):
    """(1, 0, 0) is DPM-Solver++, (0, −1, 0) DPM-Solver in ε̂: λAB of DEIS; on the same nodes."""
    field = problems.m4(VP)
    tables = [EMSTable.constant(VP, *c, n=2560) for c in ((1.0, 0.0), (0.0, -1.0))]
    ours = [DPMv3(order, t, corrector="none", final="full") for t in tables]
    nodes = pl.grids.times(ours[0].plan(VP, grid(16)).grid)
    for solver, other in zip(
        ours,
        [
            pl.DPMpp(order, expansion="taylor", final="full"),
            solvers.build("deis_lambda", order=order),
        ],
        strict=True,
    ):
        ends = [from_noise(s, field, 16, lambda n: nodes) for s in (solver, other)]
        torch.testing.assert_close(*ends, rtol=0, atol=1e-11)


def test_the_paper_s_trapezoid_has_a_floor():
    field = problems.m4(VP)
    table = replace(EMSTable.constant(VP, 1.0, 0.0, n=640), quadrature="trapezoid")
    solver = DPMv3(2, table, corrector="none", final="full")
    other = pl.DPMpp(2, expansion="taylor", final="full")
    off = rmse(*(from_noise(s, field, 20) for s in (solver, other)))
    assert 1e-6 < off < 1e-3


CLAIMED = [
    (1, "full", "none", 1),
    (2, "full", "none", 2),
    (3, "full", "none", 3),
    (1, "full", "higher", 2),
    (2, "full", "higher", 3),
    (3, "full", "higher", 4),
    (3, "full", "pseudo", 2),
    (3, "pseudo", "none", 2),
    (3, "pseudo", "higher", 3),
    (2, "full", "same", 2),
    (1, "full", "pseudo", 2),
]


@pytest.mark.parametrize(("order", "derivatives", "corrector", "claimed"), CLAIMED)
def test_orders(order, derivatives, corrector, claimed):
    """Over 80 to 320 steps on M4, with the statistics of one Gaussian of its mean and spread."""
    solver = DPMv3(order, ROUGH, derivatives, corrector)
    assert solver.convergence == claimed
    field, x, steps = problems.m4(VP), starts(), (80, 160, 320)
    errors = [
        rmse(run(solver.plan(VP, pl.grids.log_snr(n)).folded("x0"), field, x), ends())
        for n in steps
    ]
    assert fitted_slope(steps, errors) == pytest.approx(claimed, abs=0.2)


ROUGH = EMSTable.gaussian(VP, torch.tensor([0.1, 0.1, -0.2]), torch.tensor([1.0, 0.9, 0.9]), 640)


def ends(cache={}):  # noqa: B006 - the reference is computed once
    if not cache:
        cache["x"] = reference(problems.m4(VP), starts())
    return cache["x"]


def test_first_order_is_its_equation():
    """x_t/α_t = A (x_s/α_s − U − E_0 f), with the integrals of SciPy for a closed-form table."""
    mean, field = 0.5, problems.m4(VP)
    table = EMSTable.gaussian(VP, mean, 2.0, 480)
    nodes = [100, 300]
    s, t = (float(table.log_snr[i]) for i in nodes)
    times = VP.time_of_log_snr(table.log_snr[nodes]).tolist()

    def l(v):  # noqa: E743
        return 1 / (1 + 4 * math.exp(2 * v))

    def b(v):
        return 2 * l(v) * (1 - l(v)) * mean

    def exponent(v):
        return quad(l, s, v)[0]

    start, end = (float(VP.alpha(v)) for v in times)
    x = starts()
    f = (1 - l(s)) * x / start - field(x, times[0]).x0
    first = quad(lambda v: math.exp(exponent(v)), s, t)[0]
    bias = quad(lambda v: math.exp(exponent(v)) * quad(b, s, v)[0], s, t)[0]
    exact = end * math.exp(-exponent(t)) * (x / start - bias - first * f)
    solver = DPMv3(1, table, corrector="none")
    found = pl.solve(field, x, solver=solver, grid=pl.grids.times(times)).x
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-7)


def test_the_corrector_keeps_what_was_evaluated():
    """One evaluation a step, at the prediction; its F goes on, the corrected state is the base."""
    plan = DPMv3(2, ROUGH).plan(VP, pl.grids.log_snr(4))
    assert plan.nfe == plan.steps == 4
    stages = [i for i, row in enumerate(plan.rows, 1) if not row.lands]
    assert stages == [1, 3, 5] and plan.evaluated == (0, 1, 3, 5)
    assert set(plan.rows[4].f) == {1, 3} and set(plan.rows[4].x) == {1, 3, 4}


def test_the_window_chooses_where_it_corrects():
    grid = pl.grids.uniform(10)
    for window in ((0.0, 1.0), (0.0, 0.5), (0.4, 0.7)):
        plan = DPMv3(2, ROUGH, window=window).plan(VP, grid)
        inner = plan.grid[1:-1]
        predicted = [row.t for row in plan.rows if not row.lands]
        assert predicted == [t for t in inner if window[0] <= t <= window[1]]


@pytest.mark.parametrize(
    ("final", "n", "last"), [("auto", 9, 1), ("auto", 10, 3), ("lower", 10, 1), ("full", 9, 3)]
)
def test_the_last_steps_of_few_are_of_lower_order(final, n, last):
    plan = DPMv3(3, ROUGH, corrector="none", final=final).plan(VP, pl.grids.log_snr(n))
    assert len(plan.rows[-1].f) == last and [len(r.f) for r in plan.rows[:4]] == [1, 2, 3, 3]


def test_the_grid_is_moved_to_the_table_s_nodes():
    table = EMSTable.gaussian(VP, n=50)
    plan = DPMv3(table=table).plan(VP, pl.grids.karras(7))
    wanted = VP.log_snr(torch.tensor(pl.grids.karras(7).times(VP), dtype=torch.float64))
    found = VP.log_snr(torch.tensor(plan.grid, dtype=torch.float64))
    assert float((found - wanted).abs().max()) <= table.spacing / 2 + 1e-9
    position = (found - table.log_snr[0]) / table.spacing
    torch.testing.assert_close(position, position.round(), rtol=0, atol=1e-9)
    assert (plan.grid[0], plan.grid[-1]) == (VP.t_max, VP.t_min)


def test_pure_noise_is_the_first_node():
    """On the straight path λ is −∞ at t = 1; the table begins at λ = −7."""
    table = EMSTable.gaussian(OT, MEAN, STD, 480)
    plan = DPMv3(1, table, corrector="none").plan(OT, pl.grids.log_snr(4))
    assert plan.grid[0] == pytest.approx(1 / (1 + math.exp(-7)), abs=1e-12)
    x = pl.sample(replace(LAW, path=OT), 2000, solver=plan, dtype=torch.float64).x
    torch.testing.assert_close(x.mean(0), MEAN, rtol=0, atol=0.2)
    torch.testing.assert_close(x.std(0), STD, rtol=0.1, atol=0)


def test_one_number_for_all_elements_is_the_same_as_that_number_for_each():
    """And, being a number, can be followed in law."""
    field, grid = problems.m4(VP), pl.grids.log_snr(6)
    one = EMSTable.gaussian(VP, 0.3, 1.2, 60)
    ones = torch.ones(3, dtype=torch.float64)
    each = EMSTable.gaussian(VP, 0.3 * ones, 1.2 * ones, 60)
    x = starts()
    made = [pl.solve(field, x, solver=DPMv3(table=t), grid=grid).x for t in (one, each)]
    torch.testing.assert_close(*made, rtol=0, atol=1e-13)
    law = pl.Gaussian(VP, torch.tensor([0.3]), torch.tensor([1.44]))
    plan = DPMv3(1, one, corrector="none").plan(VP, pl.grids.log_snr(1))
    before = float(VP.sigma(1.0)) ** 2
    mean, variance = moments(plan, law, 0.0, before)
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    zero, unit = law.flow(x, 1.0, VP.t_min)[:, 0].tolist()
    assert (mean, variance) == pytest.approx((zero, before * (unit - zero) ** 2), rel=1e-6)


def test_samples_may_start_from_levels_of_their_own():
    field, x, levels = problems.m4(VP), starts(4), [0.9, 0.5, 0.9, 0.3]
    how = {"solver": DPMv3(table=ROUGH), "grid": "log_snr", "steps": 4}
    together = pl.solve(field, x, start=levels, **how).x
    for i, level in enumerate(levels):
        alone = pl.solve(field, x[i : i + 1], start=level, **how).x
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-14)


INSIDE = DPMv3(
    table=replace(EMSTable.gaussian(OT), log_snr=torch.linspace(-2, 6.9, 241, dtype=torch.float64))
)
"""Statistics that begin inside the path, where there is signal already."""


def test_a_grid_within_a_table_that_begins_inside_the_path_is_served():
    plan = INSIDE.plan(OT, pl.grids.times([0.85, 0.5, 0.2]))
    assert plan.nfe == 2 and plan.grid[0] == pytest.approx(0.85, abs=2e-3)  # the nearest node


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: DPMv3(4), "orders 1, 2 and 3"),
        (lambda: DPMv3(derivatives="half"), "choose 'full' or 'pseudo'"),
        (lambda: DPMv3(corrector="best"), "choose higher, same"),
        (lambda: DPMv3(final="low"), "choose 'auto', 'full'"),
        (lambda: DPMv3(window=(0.5, 0.2)), "two rising times"),
        (lambda: DPMv3(window=0.5), "two rising times"),
        (lambda: DPMv3(window="ab"), "two rising times"),
        (lambda: INSIDE.plan(OT, pl.grids.uniform(4)), "from λ = -2 to 6.9"),
        (lambda: from_noise(DPMv3(), n=3), "pathline tune"),
        (lambda: DPMv3().plan(VP, pl.grids.log_snr(3)), "pathline tune"),
        (lambda: from_noise(DPMv3(table=EMSTable.gaussian(OT)), n=3), "measured on CondOT"),
        (lambda: DPMv3(table=ROUGH).plan(OT, pl.grids.log_snr(3)), "measured on VPLinear"),
        (lambda: DPMv3(table=ROUGH).plan(VP, pl.grids.log_snr(3, end=1e-5)), "were measured from"),
        (
            lambda: DPMv3(table=EMSTable.gaussian(VP, n=9)).plan(VP, pl.grids.log_snr(10)),
            "fall on one node",
        ),
        (
            lambda: from_noise(DPMv3(table=EMSTable.gaussian(VP, torch.zeros(2))), n=3),
            "for states of",
        ),
    ],
)
def test_what_cannot_work_is_refused(made, says):
    with pytest.raises(pl.UsageError, match=says):
        made()


def test_a_corrector_that_does_nothing_is_warned_of():
    with pytest.warns(UserWarning, match="does nothing"):
        DPMv3(1, corrector="same")


# --- beside a model -----------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A model folder with statistics (of random weights the measured ones are beyond all use)."""
    tiny_model(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    statistics(tmp_path).save(tmp_path / "tiny" / ems.FILE)
    return tmp_path


def statistics(folder, mean=0.0):
    weights = pl.load(str(folder / "tiny")).details["weights"]["sha256"]
    made = EMSTable.gaussian(OT, torch.full((3, 8, 8), mean), torch.rand(3, 8, 8) + 0.5, 60)
    return replace(made, weights=weights)


def test_a_network_is_calibrated_as_it_is(here):
    """In float32, with attention, told nothing; by both derivatives."""
    model, x0 = pl.load("tiny"), starts(4, (3, 8, 8)).float()
    made = [calibrate(model, x0, 3, ends=(-1, 1), method=m) for m in ("forward", "difference")]
    assert made[0].weights == model.details["weights"]["sha256"] and made[0].shape == (3, 8, 8)
    torch.testing.assert_close(made[0].l, made[1].l, rtol=0, atol=1e-2)


def test_by_name_with_the_statistics_beside_the_weights(here):
    model = pl.load("tiny")
    table = EMSTable.load(here / "tiny" / ems.FILE)
    assert table.weights == model.details["weights"]["sha256"] and table.shape == (3, 8, 8)
    sol = pl.sample(model, 2, solver="dpm-solver-v3", steps=4)
    assert torch.equal(sol.x, pl.sample(model, 2, solver=DPMv3(table=table), steps=4).x)
    assert sol.stats.nfe == 4
    assert json.loads(sol.receipt.to_json())["recipe"]["solver"]["table"] == table.checksum
    guided = pl.sample(model, 2, solver="dpm_v3", steps=4, guide=pl.CFG(2.0), text="a dog")
    assert guided.ok and not torch.equal(guided.x, sol.x)


def test_a_picture_made_with_it_is_replayed(here):
    done(
        "sample", "tiny", "a dog", "--solver", "dpm-solver-v3", "--steps", 3, "-n", 2, "-o", "a.png"
    )
    assert read_receipt("a.png").recipe["solver"]["name"] == "dpm_v3"
    assert "identical" in done("replay", "a.png", "-o", "b.png")
    statistics(here, 0.1).save(here / "tiny" / ems.FILE)
    assert_refused(here, ("replay", "a.png"), "not those that were asked for")
    (here / "tiny" / ems.FILE).unlink()
    assert_refused(here, ("replay", "a.png"), "pathline tune")


def test_statistics_of_other_weights_are_refused(here):
    tiny_model(here / "tiny", seed=1)
    with pytest.raises(pl.UsageError, match="other weights"):
        pl.sample(pl.load("tiny"), solver="dpm_v3", steps=3)


def test_a_plan_from_a_model_s_table_tells_its_order(here):
    """With standard statistics, since the model's are of another shape."""
    solver = DPMv3().tuned(pl.load("tiny"), (3, 8, 8))
    plan = pl.Plan.load(solver.plan(OT, pl.grids.log_snr(4)).save(here / "plan.json"))
    assert plan.order() == pytest.approx(4, abs=0.3)
    assert solvers.rebuild(solvers.describe(solver)).tuned(pl.load("tiny"), (3, 8, 8)) == solver

"""Grids: exact ends, their spacing, reversal and refusals."""

import math

import numpy as np
import pytest
import torch

import pathline as pl
from pathline.paths import paths
from pathline.solvers.grids import grids

PATHS = [entry.build() for entry in paths]
TABLE = pl.paths.Tabulated.linear()
SPACED = [entry.name for entry in grids if entry.name != "times"]


@pytest.mark.parametrize("name", SPACED)
@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("n", [1, 2, 3, 50])
def test_ends_are_assigned_and_the_rest_lies_between(name, path, n):
    times = grids.build(name, n=n).times(path)
    assert len(times) == n + 1 and times[0] == path.t_max and times[-1] == path.t_min
    assert list(times) == sorted(times, reverse=True)
    ending = grids.build(name, n=n, last="denoise").times(path)
    assert len(ending) == n + 1 and ending[-1] == 0
    assert ending[-2] == (path.t_min if n > 1 else path.t_max)


@pytest.mark.parametrize("name", SPACED)
def test_the_reverse_visits_the_same_times(name):
    path, grid = pl.VPLinear(), grids.build(name, n=7)
    back = grid.reverse(path)
    assert back.times(path)[::-1] == pytest.approx(grid.times(path), rel=1e-12)
    assert back.reverse(path).times(path) == grid.times(path)


def test_each_grid_is_uniform_in_its_own_coordinate():
    path = pl.paths.SubVP()

    def steps(grid, of):
        return of(torch.tensor(grid.times(path), dtype=torch.float64)).diff()

    for grid, of in [
        (pl.grids.uniform(9), lambda t: t),
        (pl.grids.quadratic(9), torch.sqrt),
        (pl.grids.log_snr(9), path.log_snr),
        (pl.grids.karras(9, rho=5), lambda t: (path.sigma(t) / path.alpha(t)) ** (1 / 5)),
    ]:
        h = steps(grid, of)
        torch.testing.assert_close(h, h.mean().expand(9), rtol=1e-9, atol=0)


def test_the_focused_grid_is_even_in_the_middle_and_takes_one_step_to_each_end():
    level = pl.CondOT().log_snr(torch.tensor(pl.grids.focused(10).times(pl.CondOT())[1:]).double())
    inside = level[:-1]
    edge = math.log(10) + 0.5
    torch.testing.assert_close(inside, torch.linspace(-edge, edge, 9).double())
    wider = torch.tensor(pl.grids.focused(10, margin=1.0).times(pl.CondOT()), dtype=torch.float64)
    levels = pl.CondOT().log_snr(wider[1:-1])
    torch.testing.assert_close(levels, torch.linspace(-edge - 0.5, edge + 0.5, 9).double())
    short = pl.VPLinear()  # its λ ends at −5.02: with 200 steps there is nothing beyond the edge
    many = pl.grids.focused(200).times(short)
    assert many == pytest.approx(pl.grids.log_snr(200).times(short), rel=1e-9)


def test_karras_is_the_published_ladder():
    """σ_i = (σ_max^{1/ρ} + i/(n−1) (σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ, then 0."""
    n, ends = 6, (80.0 ** (1 / 7), 0.002 ** (1 / 7))
    ladder = [(ends[0] + i / (n - 1) * (ends[1] - ends[0])) ** 7 for i in range(n)]
    times = pl.grids.karras(n, last="denoise").times(pl.EDM())
    assert [80 * t for t in times] == pytest.approx([*ladder, 0.0], rel=1e-12)
    same = pl.grids.sigmas([*ladder, 0.0], pl.EDM())
    assert same.times(pl.EDM()) == pytest.approx(times, rel=1e-12)


def test_your_own_times_are_a_grid_like_any_other():
    grid = pl.grids.times([1, 0.5, 0.1])
    assert grid.n == 2 and grid.times(pl.CondOT()) == (1.0, 0.5, 0.1)
    assert grid.reverse().times() == (0.1, 0.5, 1.0)
    assert grid.resized(4).times() == (1.0, 0.75, 0.5, 0.3, 0.1)
    ending = pl.grids.times([1, 0.5], last="denoise")
    assert ending.n == 2 and ending.times() == (1.0, 0.5, 0.0)
    assert grids.rebuild(grids.describe(grid)) == grid


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: pl.grids.uniform(2.5), "a whole number of steps, and was asked for 2.5"),
        (lambda: pl.grids.uniform("5"), "a whole number of steps, and was asked for '5'"),
        (lambda: pl.grids.uniform(0), "at least 1 step, and was asked for 0"),
        (lambda: pl.grids.uniform(3, last="zero"), "choose 'stop' or 'denoise'"),
        (lambda: pl.grids.times([0.5]), "at least two times"),
        (lambda: pl.grids.times(["a", "b"]), "times are numbers, in one row"),
        (lambda: pl.grids.times([[1.0, 0.5], [0.5, 0.1]]), "times are numbers, in one row"),
        (lambda: pl.grids.Power(3, power=0.0), "power must be a positive number, and is 0.0"),
        (lambda: pl.grids.karras(3, rho=math.nan), "rho must be a positive number"),
        (lambda: pl.grids.quadratic(3, end=-0.1), "needs t ≥ 0"),
        (lambda: pl.grids.whole(pl.grids.log_snr(3), pl.VPLinear()), "a Tabulated path"),
        (lambda: pl.grids.whole(pl.grids.log_snr(1001), TABLE), "there are 1000"),
        (lambda: pl.grids.times([1.0, 0.5, 0.7]).times(), "step 2 goes from t = 0.5 to t = 0.7"),
        (lambda: pl.grids.times([1.0, 0.5, 0.5]).times(), "step 2"),
        (lambda: pl.grids.times([1.0, float("nan")]).times(), "not finite"),
        (lambda: pl.grids.times([2.0, 0.5]).times(pl.CondOT()), "runs from 0"),
        (lambda: pl.grids.uniform(3).times(), "its own start and end"),
        (lambda: pl.grids.log_snr(3, 1.0, 0.1).times(), "log-SNR grid needs a path"),
        (lambda: pl.grids.karras(3, end=0.0).times(pl.EDM()), "log-SNR at t = 0 is infinite"),
        (lambda: pl.grids.uniform(3, last="denoise").reverse(pl.EDM()), "has no reverse"),
        (lambda: pl.grids.sigmas([1.0, -2.0], pl.EDM()), "must be positive"),
        (lambda: grids.build("karas", n=3), "did you mean karras"),
        (lambda: grids.build("karras", n=3, rh=7), "takes no 'rh'; it takes n, start"),
    ],
)
def test_grids_that_cannot_be_are_refused(make, says):
    with pytest.raises(pl.UsageError, match=says):
        make()


def test_numbers_of_steps_are_numpys_too():
    assert pl.grids.log_snr(np.int64(5)) == pl.grids.log_snr(5)


@pytest.mark.parametrize("name", SPACED)
@pytest.mark.parametrize("last", ["stop", "denoise"])
def test_whole_labels_are_whole_fall_and_lie_next_to_the_grids_own(name, last):
    grid = grids.build(name, n=20, last=last)
    moved = pl.grids.whole(grid, TABLE)
    assert moved.last == last and moved.n == 20
    inner = moved.times(TABLE)[: None if last == "stop" else -1]
    labels = [float(TABLE.label(t)) for t in inner]
    assert labels == sorted(set(labels), reverse=True)
    assert all(abs(label - round(label)) < 1e-9 for label in labels)
    if name == "uniform":
        own = [float(TABLE.label(t)) for t in grid.times(TABLE)[: len(inner)]]
        assert max(abs(a - b) for a, b in zip(labels, own, strict=True)) <= 0.5 + 1e-9


def test_a_network_that_takes_whole_labels_only_is_told_them():
    """An embedding table is one; a label that is rounded to an integer dtype stays one."""
    heard, table = [], torch.nn.Embedding(1000, 3)

    def network(x, n):
        heard.append(n)
        return 0.1 * table(n).to(x)

    model = pl.Denoiser(network, TABLE, "eps", label=lambda t: TABLE.label(t).round().long())
    with torch.no_grad():
        pl.solve(model, torch.zeros(2, 3), solver="deis",
                 grid=pl.grids.whole(pl.grids.quadratic(10), TABLE))  # fmt: skip
    assert [n.dtype for n in heard] == [torch.int64] * 10 and heard[0].tolist() == [999, 999]

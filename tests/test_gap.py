"""ODE and SDE of one model: the bound, one grid for both, distances of histograms."""

import math

import pytest
import torch

from pathline.core import UsageError, noise
from pathline.fields import Denoiser, Gaussian
from pathline.paths import OrnsteinUhlenbeck, VPLinear
from pathline.solvers import grids, sample
from pathline.solvers.gap import check_same_way, fine_end, gap_bound, ode_and_sde

OU = OrnsteinUhlenbeck(horizon=4.0)


def normal(n, dim, index=0, scale=1.0):
    return scale * noise.normal(range(n), (dim,), stream="data", index=index, dtype=torch.float64)


# -- bound -----------------------------------------------------------------------------------------


def test_the_bound_of_constant_rates_is_its_closed_form():
    """∫_0^τ e^{L (τ − r)} c dr = c (e^{Lτ} − 1)/L; the trapezoid errs by (L h)²/12, relatively."""
    n, rate, off = 2001, 1.7, 0.3
    times = torch.linspace(1.0, 0.2, n, dtype=torch.float64)
    ones = torch.ones_like(times)
    found = gap_bound(OU, times, rate * ones, off * ones)
    source = OU.horizon / 2 * off  # g² = T where s² = ½
    exact = source * math.expm1(rate * 0.8) / rate
    assert found == pytest.approx(exact, rel=2 * (rate * 0.8 / (n - 1)) ** 2 / 12)


def linear(factor):
    """Gaussian data N(0, 0.04), and a score that is `factor` times too steep."""

    def score(x, t):
        v = 0.04 * OU.alpha(t) ** 2 + OU.sigma(t) ** 2
        return -factor * x / v[:, None].to(x)

    return Denoiser(score, OU, "score", shape=(2,))


def test_sampling_both_ways_ends_in_the_laws_of_the_moments():
    """dV = −T (2 (1 − a) V + 1) dt and −T (2 − a) V dt, by 200000 Euler steps of their own.

    The sampler's 600 steps have a h = 1.3 · 22 · 4/600 at most, where they err by a few per cent;
    deviations of 4000 numbers are good to 1/√8000 = 1.1 %, which is allowed four times.
    """
    times = torch.linspace(1, 2e-3, 200_001, dtype=torch.float64)
    v = [float(OU.sigma(1.0)) ** 2] * 2
    a = 1.3 / (0.04 * OU.alpha(times) ** 2 + OU.sigma(times) ** 2)
    h = float(times[0] - times[1]) * OU.horizon
    for k in a.tolist()[:-1]:
        v = [v[0] + h * (2 * (1 - k) * v[0] + 1), v[1] + h * (2 - k) * v[1]]
    with torch.no_grad():
        ode, sde = ode_and_sde(
            linear(1.3), range(2000), grids.uniform(600, 1.0, 2e-3), dtype=torch.float64
        )
    start = noise.normal(range(2000), (2,), dtype=torch.float64)
    assert float((ode.x / start).mean()) == pytest.approx(math.sqrt(v[1]), rel=0.03)
    assert float(sde.x.std()) == pytest.approx(math.sqrt(v[0]), rel=0.03 + 0.045)


def test_one_grid_for_both():
    grid = fine_end(400)
    times = grid.times(OU)
    assert len(times) == 491 and times[0] == 1.0 and times[-1] == 0.0
    steps = [a - b for a, b in zip(times, times[1:], strict=False)]
    assert steps[:390] == pytest.approx([1 / 400] * 390)
    assert steps[390:] == pytest.approx([1 / 4000] * 100)
    ode, sde = ode_and_sde(linear(1.0), range(3), fine_end(20))
    check_same_way(ode, sde)
    assert not torch.equal(ode.x, sde.x)
    assert ode.receipt.seeds == sde.receipt.seeds == (0, 1, 2)


def test_other_grids_and_ends_are_refused():
    model = linear(1.0)
    ode = sample(model, 2, solver="euler", grid=grids.uniform(8))
    for grid, says in (
        (grids.uniform(8, end=0.01), "the ODE ends at t = 0.00025, the SDE at t = 0.01"),
        (grids.uniform(9), "the ODE takes 8 steps, the SDE 9"),
        (grids.quadratic(8), "different times"),
    ):
        sde = sample(model, 2, solver="euler_maruyama", grid=grid)
        with pytest.raises(UsageError, match=says):
            check_same_way(ode, sde)


def test_bad_input_is_told():
    t = torch.linspace(1, 0.1, 5, dtype=torch.float64)
    for call, words in (
        (lambda: gap_bound(OU, t.flip(0), t, t), "fall from noise to data"),
        (lambda: gap_bound(OU, t, t[:4], t), "5 times need as many"),
        (lambda: fine_end(10, 10), "some, but not all"),
    ):
        with pytest.raises(UsageError, match=words):
            call()


# -- histograms ------------------------------------------------------------------------------------

pytest.importorskip("ot", reason="it comes with the extra pathline[ot]")

from pathline.learn.quality.histogram import Histograms, compare_ways  # noqa: E402


def test_moved_points_are_as_far_as_their_cells():
    """Two points moved by three and four cells: the mean of squares, by hand; 1 outside is told."""
    grid = Histograms(bins=80)  # cells of 0.1
    x = torch.tensor([[0.05, 0.05], [2.05, 1.05]])
    y = x + torch.tensor([[0.3, 0.0], [0.0, 0.4]])
    found = grid.distance(x, torch.cat((y, torch.tensor([[9.0, 0.0]]))))
    assert found.w2 == pytest.approx(math.sqrt((0.09 + 0.16) / 2), rel=1e-9)
    assert found.outside == (0, 1)


def test_two_gaussians_and_the_swap():
    """Half a cell and two per cent, the specification's; the same to the bit the other way."""
    x, y = normal(4000, 2, scale=0.5), normal(4000, 2, 1, scale=0.5) + torch.tensor([0.5, 0.0])
    there, back = Histograms().distance(x, y), Histograms().distance(y, x)
    assert abs(there.w2 - 0.5) <= 0.01 + 1 / 16
    assert there.w2 == back.w2
    assert Histograms().distance(x, x.flip(0)).w2 == 0.0


def test_distances_are_those_of_exact_transport():
    """One sample a cell at its centre: what `wasserstein` says of the points."""
    from pathline.learn.couplings import wasserstein

    grid = Histograms(bins=16, box=4.0)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    cells = torch.cartesian_prod(torch.arange(16), torch.arange(16))[order].double()
    x, y = (cells[i * 40 : (i + 1) * 40] * 0.5 - 3.75 for i in (0, 1))
    assert grid.distance(x, y).w2 == pytest.approx(wasserstein(x, y), rel=1e-9)


def test_a_model_s_two_ways_beside_data_and_their_floor():
    law = Gaussian(VPLinear(), torch.zeros(2).double(), torch.full((2,), 0.25).double())
    with torch.no_grad():
        ode, sde = ode_and_sde(law, range(500), fine_end(60), dtype=torch.float64)
    data, *more = (normal(500, 2, k, 0.5) for k in range(4))
    grid = Histograms(bins=16)
    made = compare_ways(ode, sde, data, more, grid)
    floors = [
        grid.distance(a, b).w2 for a, b in ((data, more[0]), *zip(more, more[1:], strict=False))
    ]
    assert made.floor == pytest.approx(sum(floors) / 3)
    assert made.ode_sde == grid.distance(ode.x, sde.x).w2
    assert made.excess == made.ode_sde - made.floor and abs(made.excess) < 2 * made.floor
    assert made.outside == (0, 0, 0) and made.to_dict()["n"] == 500
    with pytest.raises(UsageError, match="equal numbers.*500 of ODE, 500 of SDE, 400 of data"):
        compare_ways(ode, sde, data[:400], more)
    with pytest.raises(UsageError, match="further data for the floor"):
        compare_ways(ode, sde, data, [])


def test_histograms_refuse_what_they_cannot_count():
    x = normal(5, 2)
    for call, words in (
        (lambda: Histograms(bins=0), "bins ≥ 1"),
        (lambda: Histograms().distance(x, x + 100), "none of the 5 points lies in the box"),
        (lambda: Histograms().distance(normal(5, 4), normal(5, 4)), "dim ≤ 3"),
    ):
        with pytest.raises(UsageError, match=words):
            call()

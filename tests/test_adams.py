"""Adams' methods in the clock of the straight path, and the grid that is even in it."""

import math

import pytest
import torch

import pathline as pl
from pathline.fields import problems
from pathline.paths import CondOT
from pathline.solvers import Adams, grids
from pathline.solvers.adams import adams_weights
from pathline.solvers.order import fitted_slope
from pathline.systems.convergence import Convergence

VP = pl.VPLinear()


def test_the_weights_integrate_polynomials_exactly():
    nodes = [0.9, 0.8, 0.55, 0.3]
    for degree in range(4):
        made = sum(
            w * u**degree for w, u in zip(adams_weights(nodes, 0.9, 0.2), nodes, strict=True)
        )
        exact = (0.2 ** (degree + 1) - 0.9 ** (degree + 1)) / (degree + 1)
        assert made == pytest.approx(exact, abs=1e-15)


def test_even_steps_have_the_weights_of_bashforth_and_moulton():
    def weights(corrector):
        plan = Adams(3, corrector).plan(CondOT(), grids.uniform(8))
        return [sorted(row.f.items(), reverse=True) for row in plan.rows if row.lands]

    h = -(CondOT().t_max - CondOT().t_min) / 8
    bashforth = [w / h for _, w in weights("none")[4]]
    assert bashforth == pytest.approx([23 / 12, -16 / 12, 5 / 12], abs=1e-12)
    moulton = [w / h for _, w in weights("free")[4]]
    assert moulton == pytest.approx([9 / 24, 19 / 24, -5 / 24, 1 / 24], abs=1e-12)


def test_order_one_is_euler_on_the_straight_path():
    a, b = (
        pl.sample(
            problems.m4(CondOT()), 4, solver=s, grid="uniform", steps=7, dtype=torch.float64
        ).x
        for s in (Adams(1), "euler")
    )
    torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_with_its_corrector_it_converges_with_order_four():
    """As for `LATE` in the contract suite."""
    made = Convergence(problems.m4(VP), {"ABM": Adams(3, "free")}, steps=(320, 640, 1280))
    assert fitted_slope(made.steps, list(made.errors["ABM"].values())) == pytest.approx(4, abs=0.1)


def test_the_corrector_costs_nothing():
    assert [Adams(3, "free").plan(VP, grids.straight(n)).nfe for n in (1, 2, 9)] == [1, 2, 9]


CLOCKS = {
    "straight": lambda r: r / (1 + r),
    "decay_time": lambda r: torch.log((1 - 0.9 * r / (1 + r)).clamp(min=0)) / math.log(0.1),
    "vp_time": lambda r: torch.log1p(r**2).sqrt(),
    "cosine_time": torch.atan,
}


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("path", [VP, CondOT(), pl.EDM(), pl.VE()])
def test_grids_are_even_in_their_clock(path, clock):
    t = torch.tensor(getattr(grids, clock)(9).times(path), dtype=torch.float64)
    alpha, sigma = path.alpha(t), path.sigma(t)
    u = CLOCKS[clock]((sigma / alpha).clamp(max=math.exp(7)))
    torch.testing.assert_close(u.diff(), u.diff().mean().expand(9), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"order": 5}, "orders 1 to 4"), ({"corrector": "paid"}, "'none' or 'free'")],
)
def test_what_there_is_not_is_refused(wrong, says):
    with pytest.raises(pl.UsageError, match=says):
        Adams(**wrong)


@pytest.mark.parametrize("shift", [0.5, 2.0, 3.0])
def test_a_shifted_grid_is_that_of_stable_diffusion_3(shift):
    """On the straight path from pure noise, t = s u / (1 + (s − 1) u) at even u (Eq. 23)."""
    first, last = 0.999, 0.01
    found = torch.tensor(grids.straight(8, first, last, shift=shift).times(CondOT())).double()
    ends = [t / (shift - (shift - 1) * t) for t in (first, last)]
    u = torch.linspace(*ends, 9, dtype=torch.float64)
    torch.testing.assert_close(found, shift * u / (1 + (shift - 1) * u), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shift", [0.0, -1.0, math.inf, math.nan])
def test_a_shift_is_positive(shift):
    with pytest.raises(pl.UsageError, match="positive number"):
        grids.straight(8, shift=shift)


def test_a_clock_that_there_is_not_is_refused():
    with pytest.raises(pl.UsageError, match="straight, decay, vp, cosine|did you mean"):
        grids.Along(3, clock="vb")


def test_a_plain_equation_has_no_such_clock():
    with pytest.raises(pl.UsageError, match="needs a path"):
        pl.solve(lambda x, t: -x, torch.ones(1, 2), solver="adams", grid=[0.0, 1.0])

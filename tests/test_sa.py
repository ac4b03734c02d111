"""SA-Solver: what of it has other names, and what is refused. The contract has the rest."""

import pytest

import pathline as pl
from pathline.solvers import SA, UniPC, grids

VP = pl.VPLinear()


def rows(solver, n=12):
    return solver.plan(VP, grids.log_snr(n)).to_dict()["rows"]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_its_predictor_is_the_stochastic_multistep_solver(order):
    assert rows(SA(order, corrector=0)) == rows(pl.DPMpp(order, "taylor", eta=1.0))


def test_without_noise_it_is_the_predictor_corrector_of_the_flow():
    """Where two points are left, at the start, UniPC takes the midpoint: rows from the third on."""
    mine, other = rows(SA(3, corrector=4, tau=0.0)), rows(UniPC(3))
    assert mine[4:] == other[4:] and mine[:1] == other[:1]


def test_predictor_and_corrector_share_the_noise_of_their_step():
    made = rows(SA())
    for predicted, corrected in zip(made[:-1:2], made[1:-1:2], strict=True):
        assert predicted["z"] == corrected["z"] != {} and predicted["t"] == corrected["t"]
        assert not predicted["lands"] and corrected["lands"]
    assert len({draw for row in made for draw in row["z"]}) == 12


def test_noise_is_added_between_two_levels_only():
    plan = SA(low=0.1, high=2.0).plan(VP, grids.log_snr(12))
    for row in plan.rows:
        (start,) = (plan.times[k] for k in row.x)
        ratio = float(VP.sigma(start) / VP.alpha(start))
        assert bool(row.z) == (0.1 <= ratio <= 2.0)


@pytest.mark.parametrize(
    "wrong,says",
    [
        ({"order": 5}, "SA has orders 1 to 4; order 5 was asked for"),
        ({"corrector": 1}, "choose 2 to 4 points, or 0 for no corrector"),
        ({"tau": -0.5}, "eta must be a number, 0 or more"),
        ({"low": 2.0, "high": 1.0}, "0 ≤ low ≤ high is needed"),
        ({"final": "no"}, "choose 'auto', 'full' or 'lower'"),
    ],
)
def test_what_it_cannot_be_is_refused(wrong, says):
    with pytest.raises(pl.UsageError, match=says):
        SA(**wrong)

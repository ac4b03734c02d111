"""Plans that remember evaluations, and fields that jump on the way."""

import warnings

import pytest
import torch

import pathline as pl
from pathline import steer
from pathline.fields import problems, retimed
from pathline.solvers import solvers
from pathline.solvers.history import remembered
from pathline.solvers.order import fitted_slope

VP = pl.VPLinear()
ALL = problems.m4(VP)
SOME = pl.Mixture(VP, ALL.means[:2], ALL.stds[:2], ALL.weights[:2] * (1 / ALL.weights[:2].sum()))
ON = {"on": torch.ones(4)}


def two_laws(x, t, on):
    """All of M4 for 0, two of its components for 1."""
    everything = ALL.evaluate(x, t, {})
    return everything + on.reshape(-1, 1) * (SOME.evaluate(x, t, {}) - everything)


MODEL = pl.Denoiser(two_laws, VP, "x0", shape=(3,), null={"on": torch.zeros(1)})
WORSE = pl.Denoiser(two_laws, VP, "x0", shape=(3,), null=MODEL.null)
JUMPS = {
    "cfg": pl.CFG(3.0, interval=(0.25, 0.7)),
    "apg": steer.APG(3.0, interval=(0.5, 3.0), of="sigma"),
    "autoguidance": steer.Autoguidance(2.0, interval=(0.25, 0.7), worse=WORSE),
    "loss": steer.Loss(lambda x: x.square().sum(1), 0.1, window=(0.0, 0.6)),
    "both": pl.CFG(3.0, interval=(0.25, 0.7)) & steer.Clip(-3.0, 3.0),
}
ONE_STEP = [
    "ddim", "ddpm", "euler", "heun", "rk4", "kutta3", "ssprk3", "rho_rk", "dpm", "dpm_2s",
    "dpm_fast", "dpmpp_2s", "dpmpp_3s", "euler_maruyama", "reverse_diffusion", "edm", "repeat",
    "bdia", "bdia_edm", "bdia_dpmpp_2s", "reversible",
]  # fmt: skip
MULTISTEP = [
    "dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "deis", "deis_rho", "deis_lambda", "ipndm", "adams",
    "adams_pc", "unipc", "unipc_3", "sa", "usf", "dpm_v3", "bdia_dpmpp_2m", "bdia_edm_reuse",
]  # fmt: skip


def said(model=MODEL, **how):
    """Return the warnings of sampling."""
    how = {"shape": (3,), "dtype": torch.float64, "steps": 8, **how, **ON}
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        pl.sample(model, 4, **how)
    return [str(warning.message) for warning in found]


@pytest.mark.parametrize("name", [*ONE_STEP, *MULTISTEP])
def test_what_a_plan_remembers_is_read_off_its_rows(name):
    plan = solvers.build(name).standard(VP).plan(VP, pl.grids.log_snr(12))
    assert any(remembered(plan)) == (name in MULTISTEP)


@pytest.mark.parametrize("guide", JUMPS.values(), ids=JUMPS)
@pytest.mark.parametrize("solver", ["deis", "dpmpp", "unipc"])
def test_memory_across_a_jump_is_warned_of_once(solver, guide):
    (message,) = said(solver=solver, guide=guide)
    assert "switched on or off between t = " in message and f"and {solver} goes on" in message
    assert "dpmpp_2s with a grid point at each switch" in message


def test_every_wrapping_of_a_model_tells_of_its_jumps():
    moved = retimed(MODEL, pl.paths.VPCosine(), beyond="trim")
    for model, more in [
        (moved, {}),
        (MODEL, {"guide": steer.Control(WORSE, weight=0.5, inside=JUMPS["cfg"])}),
        (MODEL, {"solver": "pc", "grid": pl.grids.log_snr(8), "steps": None}),
    ]:
        how = {"guide": JUMPS["cfg"], **more}
        assert len(said(model, **how)) == (how.get("solver") != "pc"), more


@pytest.mark.parametrize(
    "how",
    [
        {"solver": "dpm_2s", "guide": JUMPS["cfg"]},
        {"solver": "heun", "guide": JUMPS["loss"]},
        {"solver": "deis", "guide": pl.CFG(3.0)},
        {"solver": "deis", "guide": pl.CFG(3.0, interval=(0.0, 1.0))},
        {"solver": "deis", "guide": pl.CFG(1.0, interval=(0.2, 0.7))},
        {"solver": "deis", "steps": 1, "guide": JUMPS["cfg"]},
    ],
    ids=("singlestep", "stages", "constant", "whole", "weightless", "one step"),
)
def test_nothing_is_said_where_nothing_is_mixed(how):
    assert said(**how) == []


def test_the_way_out_keeps_its_order_and_memory_does_not():
    """Against fine solves of the three pieces, each without a jump."""
    x, on = pl.core.noise.normal(range(4), (3,), dtype=torch.float64), ON
    ends, guide = (1.0, 0.7, 0.25, VP.t_min), JUMPS["cfg"]

    def pieces(n):
        """As many steps in each, even in log-SNR."""
        made = [pl.grids.log_snr(n, a, b).times(VP) for a, b in zip(ends, ends[1:], strict=False)]
        return [made[0], *(times[1:] for times in made[1:])]

    exact = x
    for start, end, inside in zip(ends, ends[1:], [None, pl.CFG(3.0), None], strict=False):
        fine = pl.grids.log_snr(100, start, end)
        exact = pl.solve(MODEL, exact, solver="dpmpp_3s", grid=fine, guide=inside, **on).x

    def slope(solver):
        counts, errors = (8, 16, 32), []
        for n in counts:
            grid = [t for piece in pieces(n) for t in piece]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = pl.solve(MODEL, x, solver=solver, grid=grid, guide=guide, **on).x
            errors.append(float((made - exact).square().mean().sqrt()))
        return fitted_slope(counts, errors)

    assert slope("dpmpp_2s") == pytest.approx(2, abs=0.3)
    assert slope("dpmpp_2m") < 1.4 and slope("deis") < 1.4

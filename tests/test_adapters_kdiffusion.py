"""Our solvers as samplers of k-diffusion: its call, its levels, its own samplers beside them."""

import math
from itertools import pairwise

import pytest
import torch

import pathline as pl
from pathline.adapters import kdiffusion
from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.fields.problems import m4
from pathline.solvers import DPMpp, Euler, Heun, Stepped, solvers

LAW = m4(pl.EDM())
X = 80.0 * noise.normal(range(4), (3,), dtype=torch.float64)


def model(x, sigma, **told):
    assert sigma.shape == (len(x),)
    return LAW(x, sigma / 80.0).x0


def sigmas(n=9, last=0.0):
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    levels = (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    return torch.cat((levels, levels.new_tensor([last]))) if last is not None else levels


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("sample_euler", Euler()),
        ("sample_heun", Heun()),
        ("sample_dpmpp_2m", DPMpp(2, final="full")),
    ],
)
@pytest.mark.parametrize("last", [0.0, None])
def test_their_samplers_do_the_same(k_diffusion, name, solver, last):
    theirs = getattr(k_diffusion, name)(model, X, sigmas(last=last), disable=True)
    ours = kdiffusion.sampler(solver)(model, X, sigmas(last=last), disable=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", list(kdiffusion.SAMPLERS))
def test_every_solver_has_their_call_and_is_a_solve(name):
    """Beside `solve` on the same levels; without a step to data where that makes no difference."""
    name = name.removeprefix("sample_")
    known, settings = kdiffusion.THEIRS.get(name, (name, {}))
    solver, name = solvers.build(known, **settings), f"sample_{name}"
    path = pl.EDM(0.002, 80.0)
    times = (sigmas(last=None) / 80.0).tolist()
    ours = kdiffusion.SAMPLERS[name](model, X, sigmas(last=None), disable=True, seeds=range(4))
    law = m4(path)
    plain = pl.solve(law, X, solver=solver, grid=times, seeds=range(4))
    torch.testing.assert_close(ours, plain.x, rtol=1e-7, atol=1e-7)


def test_stepped_solvers_are_not_there():
    stepped = {e.name for e in solvers if isinstance(e.build(), Stepped)}
    assert stepped and not {f"sample_{name}" for name in stepped} & set(kdiffusion.SAMPLERS)
    with pytest.raises(UsageError, match="chooses its steps while it runs"):
        kdiffusion.sampler("dopri5")


def test_what_needs_statistics_is_there_by_name_alone():
    assert "sample_dpm_v3" not in kdiffusion.SAMPLERS
    with pytest.raises(UsageError, match="table=..."):
        kdiffusion.sample_dpm_v3(model, X, sigmas(), disable=True)


def test_callbacks_and_arguments_are_theirs(k_diffusion):
    seen, theirs = [], []
    extra = {"extra_args": {"cond": 1}, "disable": True}
    kdiffusion.sample_dpmpp_2m(model, X, sigmas(), callback=seen.append, **extra)
    k_diffusion.sample_dpmpp_2m(model, X, sigmas(), callback=theirs.append, **extra)
    assert [set(s) for s in seen] == [set(s) for s in theirs]
    for a, b in zip(seen, theirs, strict=True):
        assert a["i"] == b["i"]
        torch.testing.assert_close(a["sigma"], b["sigma"].to(a["sigma"]))
    torch.testing.assert_close(seen[0]["denoised"], theirs[0]["denoised"])


class Churn:
    """The noise of k-diffusion's step i, drawn once a step as it does, for our draw in it."""

    def __init__(self, levels):
        torch.manual_seed(0)
        self.drawn = [torch.randn_like(X) for _ in levels[1:]]
        self.levels = levels.tolist()
        torch.manual_seed(0)

    def __call__(self, sigma, sigma_next):
        return self.drawn[self.levels.index(pytest.approx(float(sigma)))]


CHURN = {"s_churn": 4.0, "s_tmin": 0.01, "s_tmax": 79.0, "s_noise": 1.003}
"""Without the first step, at our path's highest level, and the last, to data: ours adds none there.
"""


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        ("edm", "heun", CHURN),
        ("edm", "heun", {"s_churn": 0.0}),
        ("heun", "heun", {}),
        ("euler", "euler", {}),
        ("dpm_2", "dpm_2", {}),
        ("euler_ancestral", "euler_ancestral", {}),
        ("euler_ancestral", "euler_ancestral", {"eta": 0.5}),
        ("lms", "lms", {}),
        ("lms", "lms", {"order": 2}),
    ],
)
@pytest.mark.parametrize("last", [0.0, None])
def test_callbacks_are_theirs(k_diffusion, ours, theirs, options, last):
    """Every entry at every step: the evaluation that ends EDM's step does not begin the next."""
    levels, seen, told = sigmas(last=last), [], []
    random = Churn(levels)
    random_options = {"noise_sampler": random} if ours in ("edm", "euler_ancestral") else {}
    end = getattr(kdiffusion, f"sample_{ours}")(
        model, X, levels, callback=seen.append, disable=True, **random_options, **options
    )
    if theirs == "euler_ancestral":
        options = options | random_options
    exact = getattr(k_diffusion, f"sample_{theirs}")(
        model, X, levels, callback=told.append, disable=True, **options
    )
    assert [s["i"] for s in seen] == [s["i"] for s in told] == list(range(len(levels) - 1))
    for a, b in zip(seen, told, strict=True):
        for key in ("x", "sigma", "sigma_hat", "denoised"):
            torch.testing.assert_close(a[key], b[key], rtol=1e-12, atol=1e-12)
    slack = 1e-4 if theirs == "lms" and last == 0.0 else 1e-12  # to data: x̂_0, not a polynomial
    torch.testing.assert_close(end, exact, rtol=slack, atol=slack)


@pytest.mark.parametrize("name", ["ddim", "unipc_3", "dpmpp_3m", "dpmpp_2s", "sa", "rk4"])
def test_every_step_is_told_once(name):
    seen = []
    run = getattr(kdiffusion, f"sample_{name}")
    run(model, X, sigmas(), callback=seen.append, disable=True, seeds=range(4))
    assert [s["i"] for s in seen] == list(range(9))
    for s in seen:
        assert float(s["sigma_hat"]) == pytest.approx(float(s["sigma"]), rel=1e-12)


def test_neutral_options_are_taken_and_others_refused():
    neutral = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": math.inf, "s_noise": 1.0}
    for run in (kdiffusion.sample_heun, kdiffusion.sampler(Heun()), kdiffusion.sample_dpm_2):
        plain = run(model, X, sigmas(), disable=True)
        assert torch.equal(run(model, X, sigmas(), disable=True, **neutral), plain)
        with pytest.raises(UsageError, match="has no s_noise.*s_noise=0.9; leave it at 1"):
            run(model, X, sigmas(), disable=True, s_noise=0.9)


def test_what_is_not_there_is_no_attribute():
    assert not hasattr(kdiffusion, "sample_dpm_adaptive")
    assert getattr(kdiffusion, "sample_dopri5", None) is None
    with pytest.raises(AttributeError, match="chooses its steps while it runs"):
        _ = kdiffusion.sample_dpm_adaptive


@pytest.mark.parametrize("name", [e.name for e in solvers if not isinstance(e.build(), Stepped)])
def test_a_noise_sampler_is_asked_once_for_each_step(k_diffusion, name):
    """Or refused: of a Brownian path, no interval has two draws, and none of no length has one."""
    if not solvers.build(name).is_stochastic:
        return
    tree = k_diffusion.BrownianTreeNoiseSampler(X, 0.002, 80.0, seed=1)
    run, asked = getattr(kdiffusion, f"sample_{name}"), []

    def noise_sampler(sigma, sigma_next):
        asked.append((float(sigma), float(sigma_next)))
        return tree(sigma, sigma_next)

    try:
        end = run(model, X, sigmas(last=None), disable=True, noise_sampler=noise_sampler)
    except UsageError as refused:
        assert name == "repeat" and "draws 2 times between" in str(refused)
        return
    assert bool(end.isfinite().all())
    assert all(a > b for a, b in asked) and asked == sorted(asked, reverse=True)
    assert all(b >= c - 1e-12 for (_, b), (c, _) in pairwise(asked))  # they do not overlap


def test_a_brownian_path_drives_both_noises_of_a_step(k_diffusion):
    """k-diffusion asks for the whole step after its half; ours for the halves, which make it up."""
    levels, ends = sigmas(last=None), []
    for run in (kdiffusion.sample_dpmpp_sde, k_diffusion.sample_dpmpp_sde):
        tree = k_diffusion.BrownianTreeNoiseSampler(X, 0.002, 80.0, seed=1)
        ends.append(run(model, X, levels, disable=True, noise_sampler=tree))
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)


def test_noise_comes_from_seeds_or_their_sampler():
    run = kdiffusion.sample_dpmpp_2m_sde
    one, same, other = (
        run(model, X, sigmas(), disable=True, seeds=s)
        for s in ([1, 2, 3, 4],) * 2 + ([5, 6, 7, 8],)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
    asked = []

    def still(sigma, sigma_next):
        asked.append((float(sigma), float(sigma_next)))
        return torch.zeros_like(X)

    run(model, X, sigmas(), disable=True, noise_sampler=still)
    levels = sigmas().tolist()
    assert asked == [
        (pytest.approx(a), pytest.approx(b)) for a, b in zip(levels, levels[1:], strict=False) if b
    ]


@pytest.mark.parametrize(
    ("levels", "says"),
    [([80.0], "at least two"), ([1.0, 2.0, 1.5], "must fall"), ([2.0, -1.0], "must fall")],
)
def test_levels_that_lead_nowhere_are_refused(levels, says):
    with pytest.raises(UsageError, match=says):
        kdiffusion.sample_ddim(model, X, levels)

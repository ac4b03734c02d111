"""Our solvers as samplers of k-diffusion: its call, its levels, its own samplers beside them."""

import pytest
import torch

import pathline as pl
from pathline.adapters import kdiffusion
from pathline.bench.peers import Absent, k_diffusion_sampling
from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.fields.problems import m4
from pathline.solvers import DPMpp, Euler, Heun, Stepped, solvers

LAW = m4(pl.EDM())
X = 80.0 * noise.normal(range(4), (3,), dtype=torch.float64)


@pytest.fixture(scope="module")
def own():
    try:
        return k_diffusion_sampling()
    except Absent as reason:
        pytest.skip(str(reason))


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
def test_their_samplers_do_the_same(own, name, solver, last):
    theirs = getattr(own, name)(model, X, sigmas(last=last), disable=True)
    ours = kdiffusion.sampler(solver)(model, X, sigmas(last=last), disable=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", list(kdiffusion.SAMPLERS))
def test_every_solver_has_their_call_and_is_a_solve(name):
    """Beside `solve` on the same levels; without a step to data where that makes no difference."""
    solver = solvers.build(name.removeprefix("sample_"))
    path = pl.EDM(0.002, 80.0)
    times = (sigmas(last=None) / 80.0).tolist()
    try:
        ours = kdiffusion.SAMPLERS[name](model, X, sigmas(last=None), disable=True, seeds=range(4))
    except UsageError as refused:
        assert "statistics" in str(refused)  # v3 has none of this model
        return
    law = m4(path)
    plain = pl.solve(law, X, solver=solver, grid=times, seeds=range(4))
    torch.testing.assert_close(ours, plain.x, rtol=1e-7, atol=1e-7)


def test_stepped_solvers_are_not_there():
    stepped = {e.name for e in solvers if isinstance(e.build(), Stepped)}
    assert stepped and not {f"sample_{name}" for name in stepped} & set(kdiffusion.SAMPLERS)
    with pytest.raises(UsageError, match="chooses its steps while it runs"):
        kdiffusion.sampler("dopri5")


def test_callbacks_and_arguments_are_theirs(own):
    seen, theirs = [], []
    extra = {"extra_args": {"cond": 1}, "disable": True}
    kdiffusion.sample_dpmpp_2m(model, X, sigmas(), callback=seen.append, **extra)
    own.sample_dpmpp_2m(model, X, sigmas(), callback=theirs.append, **extra)
    assert [set(s) for s in seen] == [set(s) for s in theirs]
    for a, b in zip(seen, theirs, strict=True):
        assert a["i"] == b["i"]
        torch.testing.assert_close(a["sigma"], b["sigma"].to(a["sigma"]))
    torch.testing.assert_close(seen[0]["denoised"], theirs[0]["denoised"])


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

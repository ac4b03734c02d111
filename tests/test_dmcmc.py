"""Denoising MCMC: kernels against closed forms, chains that resume exactly, evaluations counted."""

import math
from dataclasses import replace

import pytest
import torch

import pathline as pl
from pathline.core import noise
from pathline.fields import problems
from pathline.solvers import EDMSampler, Heun
from pathline.speed import (
    DMCMC,
    MALA,
    Beginning,
    Chain,
    ExactLevels,
    Langevin,
    NoiseLevels,
    level_table,
)
from pathline.speed.diagnostics import drift, effective_sample_size
from pathline.speed.kernels import Target
from pathline.speed.levels import check_scale
from pathline.speed.settings import plain
from pathline.steer import Autoguidance

EDM = pl.EDM(0.01, 20.0)
QUICK = Beginning(solver=Heun(view="eps"), grid=pl.grids.karras(4, last="denoise"), burn_in=())


def draws(*shape, stream="initial", index=0):
    return noise.normal(range(shape[0]), shape[1:], stream=stream, index=index, dtype=torch.float64)


def sampler(path=EDM, kernel=0.1, **rest):
    law = problems.m4(path)
    levels = ExactLevels(law, 0.02, 10.0, 60)
    return DMCMC(law, levels, kernel, **{"n_chains": 4, "beginning": QUICK, **rest})


def run(made, n=12, **rest):
    return made.sample(n, dtype=torch.float64, **rest)


# --- noise levels --------------------------------------------------------------------------------


def test_the_table_falls_from_the_largest_level_evenly_in_log_sigma():
    table = level_table(0.01, 50.0, 1000)
    assert table[0] == 50 and table[-1] == pytest.approx(0.01 * 5000**1e-3)
    steps = table.log().diff()
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-9, atol=1e-12)
    assert steps[0] < 0


def test_drawn_levels_follow_the_posterior():
    """With evenly spread u every level is drawn in proportion, to within one of 4000."""
    levels = ExactLevels(problems.m4(EDM), 0.02, 10.0, 30)
    x = draws(1, 3)
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    drawn = levels.drawn(x.expand(4000, 3), u)
    exact = levels.log_posterior(x)[0].softmax(0)
    counts = torch.bincount(drawn, minlength=30)
    assert float((counts - 4000 * exact).abs().max()) <= 1


def test_the_posterior_is_bayes_rule():
    """Against the densities of torch's own mixture at every level."""
    law = problems.m4(EDM)
    levels = ExactLevels(law, 0.02, 10.0, 30)
    x = draws(5, 3)
    density = torch.stack([law.log_prob(x, s / 20.0) for s in levels.sigmas], 1)
    torch.testing.assert_close(levels.log_posterior(x).softmax(1), density.softmax(1))
    sigma = levels.sigmas[[3, 9, 12, 20, 29]]
    for path in (EDM, pl.VPLinear()):
        same = ExactLevels(problems.m4(path), 0.02, 10.0, 30).log_prob(x, sigma)
        exact = density[torch.arange(5), [3, 9, 12, 20, 29]]
        torch.testing.assert_close(same, exact, rtol=1e-9, atol=1e-9)


# --- kernels -------------------------------------------------------------------------------------


def at_level(law, sigma, n):
    sigma = torch.full((n,), sigma, dtype=torch.float64)
    t = law.path.time_of_log_snr(-sigma.log())
    return Target(sigma, lambda x: law(x, t).score, lambda x: law.log_prob(x, t))


@pytest.mark.parametrize("ratio", [0.5, 1.0, 4.0])
def test_langevin_raises_the_noise_around_one_datum_by_eta_squared_over_four_sigma_squared(ratio):
    """σ² → σ²(1 − η/2σ²)² + η = σ² + η²/4σ², in 4096 dimensions (1 %: 4 standard errors)."""
    sigma, eta = 0.7, 0.49 / ratio
    law = pl.Dataset(EDM, draws(1, 4096, index=7))
    x = law.points + sigma * draws(16, 4096)
    moved = Langevin(eta).move(at_level(law, sigma, 16), x, draws(16, 4096, index=1), x[:, 0]).x
    squared = (moved - law.points).square().mean()
    assert float(squared) == pytest.approx(sigma**2 + eta**2 / (4 * sigma**2), rel=0.01)


def test_mala_accepts_by_the_ratio_of_target_and_proposal():
    """Recomputed with torch's distributions: p(x') q(x | x') / p(x) q(x' | x)."""
    law, n, eta = problems.m4(EDM), 200, 1.2
    at = at_level(law, 0.4, n)
    x, z, u = draws(n, 3), draws(n, 3, index=1), (torch.arange(n, dtype=torch.float64) + 0.5) / n
    moved = MALA(eta, guard=None).move(at, x, z, u)

    def proposal(a):
        mean = a + eta / 2 * at.score(a)
        spread = torch.tensor(math.sqrt(eta), dtype=torch.float64)
        return torch.distributions.Independent(torch.distributions.Normal(mean, spread), 1)

    new = x + eta / 2 * at.score(x) + math.sqrt(eta) * z
    ratio = at.log_prob(new) + proposal(new).log_prob(x)
    ratio = ratio - at.log_prob(x) - proposal(x).log_prob(new)
    expected = u.log() < ratio
    assert torch.equal(moved.accepted, expected) and 0 < int(expected.sum()) < n
    torch.testing.assert_close(moved.x, torch.where(expected[:, None], new, x))


def test_mala_leaves_the_law_as_it_is_and_langevin_does_not():
    """Variance of a Gaussian after 60 moves of 4000 samples; the standard error is 2.2 %."""
    law = pl.Gaussian(EDM, torch.zeros(1).double(), torch.tensor([0.09], dtype=torch.float64))
    n, sigma = 4000, 0.4
    ends = {}
    for kernel in (MALA(0.3, guard=None), Langevin(0.3, guard=None)):
        x = draws(n, 1) * 0.5
        for i in range(60):
            u = noise.uniform(range(n), (1,), stream="choice", index=i, dtype=torch.float64)[:, 0]
            x = kernel.move(at_level(law, sigma, n), x, draws(n, 1, index=i + 1), u).x
        ends[type(kernel)] = float(x.var())
    assert ends[MALA] == pytest.approx(0.25, rel=0.09)
    assert ends[Langevin] == pytest.approx(0.25 / (1 - 0.3 / (4 * 0.25)), rel=0.09)  # AR(1)


def test_the_guard_cuts_steps_that_would_diverge():
    sigma = torch.tensor([1.0, 0.1, 0.01], dtype=torch.float64)
    assert Langevin(0.05).step_size(sigma).tolist() == pytest.approx([0.05, 0.02, 0.0002])
    assert Langevin(0.05, guard=None).step_size(sigma).tolist() == pytest.approx([0.05] * 3)
    assert Langevin(0.4, 0.08).step_size(sigma)[2] == pytest.approx(0.4 * (0.01**2 + 0.08**2))


# --- chains --------------------------------------------------------------------------------------


def same(a, b):
    return torch.equal(a.x, b.x) and torch.equal(a.sigma, b.sigma) and torch.equal(a.trace, b.trace)


@pytest.mark.parametrize(
    "made",
    [
        sampler(),
        sampler(kernel=MALA(0.4, 0.5), choice="drawn"),
        sampler(solver=EDMSampler(churn=5), grid=pl.grids.karras(3)),
    ],
    ids=["langevin", "mala", "stochastic"],
)
def test_chains_resume_exactly(made, tmp_path):
    """In one call, in several, from a file, and from a folder of a run that was cut short."""
    whole = run(made)
    first = run(made, 4)
    file = first.chain.save(tmp_path / "chain.safetensors")
    rest = run(made, 8, chain=Chain.load(file))
    assert torch.equal(whole.x, torch.cat((first.x, rest.x)))
    assert torch.equal(whole.trace, torch.cat((first.trace, rest.trace)))
    run(made, 4, save=tmp_path / "run")
    again = run(made, save=tmp_path / "run")
    assert same(again, whole) and again.ledger == whole.ledger
    assert same(run(made, save=tmp_path / "run"), whole)  # everything is there: nothing is done


def test_a_chain_does_not_depend_on_the_others():
    """Nor on how many there are; each is its seed."""
    few, many = run(sampler(n_chains=2), 6, seed=1), run(sampler(n_chains=4), 12)
    picked = many.x.reshape(3, 4, 3)[:, 1:3].reshape(6, 3)
    torch.testing.assert_close(few.x, picked, rtol=1e-9, atol=1e-9)
    assert torch.equal(few.trace, many.trace[:, 1:3])


def test_a_model_on_any_path_gives_the_same_chain():
    """Only σ/α is seen: the same data on VP-linear and on EDM's path of the same range."""
    vp = pl.VPLinear()
    low = float(vp.sigma(vp.t_min) / vp.alpha(vp.t_min))
    ends = [
        run(DMCMC(law, ExactLevels(law, 0.05, 10.0, 60), 0.1, n_chains=4, beginning=QUICK))
        for law in (problems.m4(vp), problems.m4(pl.EDM(low, 20.0)))
    ]
    torch.testing.assert_close(ends[0].x, ends[1].x, rtol=1e-7, atol=1e-7)
    assert torch.equal(ends[0].trace, ends[1].trace)


@pytest.mark.parametrize(
    ("kernel", "rest", "walking", "denoising", "closing"),
    [
        (0.1, {}, 3, 5, 1),
        (MALA(0.1), {"n_skip": 2}, 4, 5, 1),
        (0.1, {"solver": "dpmpp_2m", "grid": pl.grids.log_snr(4), "closing": 0}, 3, 4, 0),
    ],
)
def test_every_evaluation_is_in_the_ledger(kernel, rest, walking, denoising, closing):
    law, calls = problems.m4(EDM), []

    def network(x, t):
        calls.append(len(x))
        return law(x, t).x0

    model = pl.Denoiser(network, EDM, view="x0", shape=(3,))
    made = DMCMC(model, ExactLevels(law, 0.02, 10.0, 60), kernel, 4, beginning=Beginning(), **rest)
    done = run(made, 8)
    assert done.ledger.walking == walking and done.ledger.closing == closing
    assert done.ledger.denoising == denoising
    started = 37 + 20 * made._kernel.nfe
    assert done.chain.nfe == started and done.ledger.starting == started / 2
    assert sum(calls) == 8 * done.ledger.total


def test_states_at_the_lowest_level_are_only_denoised_once():
    """The grid ends at σ = 1, above most levels: those samples are x̂_0 of the state they have."""
    law = problems.m4(EDM)
    made = sampler(grid=pl.grids.karras(3, end=1 / 20), solver="heun", n_chains=8)
    done = run(made, 8)
    low = done.sigma <= 1
    assert 0 < int(low.sum()) < 8
    assert done.ledger.denoising == 6 * float((~low).double().mean())
    # again by hand: the state with the smallest σ of the window, x̂_0 at the closing level
    chain = made.begin(dtype=torch.float64)
    x, level = chain.x, chain.level
    for _ in range(3):
        chain = made.walk(chain, 1).chain
        lower = chain.level > level
        x, level = torch.where(lower[:, None], chain.x, x), torch.where(lower, chain.level, level)
    closed = law(x, made.levels.sigmas[-1] / 20).x0
    torch.testing.assert_close(done.x[low], closed[low], rtol=1e-12, atol=1e-12)
    assert torch.equal(done.sigma, made.levels.sigmas[level])


def test_the_chain_goes_on_from_its_own_state_and_not_from_the_denoised_one():
    made = sampler()
    begun = made.begin(dtype=torch.float64)
    done = run(made, 4, chain=begun)
    assert torch.equal(done.chain.x, made.walk(begun, 3).chain.x)


def test_a_chain_that_is_lost_begins_anew_and_the_others_do_not_notice():
    made = sampler()
    begun = made.begin(dtype=torch.float64)
    lost = Chain(**{**vars(begun), "stuck": torch.tensor([0, 51, 0, 50])})
    kept, anew = run(made, 4, chain=begun), run(made, 4, chain=lost)
    moved = (kept.x != anew.x).any(1)
    assert moved.tolist() == [False, True, False, False]
    assert anew.chain.stuck[1] < 51


def test_exact_draws_are_denoised_to_the_law_of_the_data_whatever_selects_them():
    """Moments of M4 within four standard errors, from all levels and from the low ones alone."""
    law, n = problems.m4(EDM), 3000
    table = level_table(0.02, 10.0, 40)
    u = noise.uniform(range(n), (2,), stream="choice", dtype=torch.float64)
    which = (u[:, 0].contiguous()[:, None] > law.weights.cumsum(0)).sum(1)
    x0 = law.means[which] + law.stds[which] * draws(n, 3)
    sigma = table[(u[:, 1] * 40).long()]
    x = x0 + sigma[:, None] * draws(n, 3, index=1)
    end = pl.solve(law, x, solver="dpmpp_3m", grid=pl.grids.log_snr(40), start=sigma / 20.0).x
    mean = law.weights @ law.means
    second = law.weights @ (law.means**2 + law.stds**2) - mean**2
    for chosen in (end, end[sigma < 0.5]):
        error = chosen.std(0) / len(chosen) ** 0.5
        assert float(((chosen.mean(0) - mean).abs() / error).max()) < 4
        squared = (chosen - mean) ** 2
        error = squared.std(0) / len(chosen) ** 0.5
        assert float(((squared.mean(0) - second).abs() / error).max()) < 4


def test_images_conditions_and_guides_pass_through():
    """A conditional model: the chain of one class stays with it, and so do restarted chains."""
    path = pl.EDM(0.01, 20.0)
    centres = torch.tensor([-2.0, 2.0])

    def network(x, t, label):
        centre = centres[label].reshape(-1, 1, 1, 1)
        level = (t.reshape(-1, 1, 1, 1) * 20) ** 2
        return (x * 0.01 + centre * level) / (0.01 + level)

    model = pl.Denoiser(
        network, path, view="x0", shape=(1, 4, 4), null={"label": torch.tensor([0])},
        encode=lambda label: {"label": torch.as_tensor(label).reshape(-1)},
    )  # fmt: skip
    point = pl.Gaussian(path, torch.full((16,), 2.0), torch.full((16,), 0.01))

    class Flat(NoiseLevels):
        sigmas = level_table(0.02, 10.0, 60)

        def log_posterior(self, x):
            return point.log_prob_noised(x.flatten(1), self.sigmas)

    made = DMCMC(model, Flat(), 0.02, n_chains=4, beginning=QUICK)
    done = made.sample(8, label=1)
    assert done.x.shape == (8, 1, 4, 4) and done.x.dtype == torch.float32
    assert float((done.x - 2).abs().max()) < 0.6
    with pytest.raises(pl.UsageError, match="begun with cond"):
        made.sample(4, chain=done.chain, label=0)
    guided = DMCMC(model, Flat(), 0.02, n_chains=4, beginning=QUICK, guide=pl.CFG(1.5))
    assert float((guided.sample(4, label=1).x - 2).mean()) > 1.5  # 1.5 × (2 + 2) − 2 = 4


# --- folders, restarts and parts ------------------------------------------------------------------


class ByLabel(torch.nn.Module):
    """x̂_0 of N(c, 0.01) data, c from a table that is told with every chain."""

    def forward(self, x, t, c):
        asked.append(len(x))
        assert len(c) == len(x)
        level = (t.reshape(-1, 1) * 20) ** 2
        return (x * 0.01 + c * level) / (0.01 + level)


asked: list[int] = []


def labelled(**rest):
    null = {"c": torch.zeros(1, 3, dtype=torch.float64)}
    model = pl.Denoiser(ByLabel(), EDM, view="x0", label=20.0, shape=(3,), null=null)
    return DMCMC(model, sampler().levels, 0.1, **{"n_chains": 4, "beginning": QUICK, **rest})


CENTRES = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
OTHER = {
    "seed": lambda run, save: run(sampler(), save=save, seed=5),
    "kernel": lambda run, save: run(sampler(kernel=MALA(0.1)), save=save),
    "n_skip": lambda run, save: run(sampler(n_skip=2), save=save),
    "choice": lambda run, save: run(sampler(choice="drawn"), save=save),
    "solver": lambda run, save: run(sampler(solver="dpmpp_2m"), save=save),
    "grid": lambda run, save: run(sampler(grid=pl.grids.karras(4)), save=save),
    "closing": lambda run, save: run(sampler(closing=0), save=save),
    "beginning": lambda run, save: run(sampler(beginning=replace(QUICK, kick=1.0)), save=save),
}


@pytest.mark.parametrize(("name", "call"), OTHER.items(), ids=OTHER.keys())
def test_a_folder_of_another_call_is_refused(name, call, tmp_path):
    first = run(sampler(), 4, save=tmp_path)
    with pytest.raises(pl.UsageError, match=f"begun with {name} "):
        call(run, tmp_path)
    assert torch.equal(run(sampler(), 4, save=tmp_path).x, first.x)


def test_a_folder_of_another_condition_or_guide_is_refused(tmp_path):
    """By what is in it: tensors of more than a thousand elements look alike when written."""
    many = torch.zeros(4, 1000, dtype=torch.float64)
    other = many.clone()
    other[2, 500] = 1
    assert repr(many) == repr(other) and plain(many) != plain(other)
    assert plain({"c": many}) == plain({"c": many.clone()})
    first = run(labelled(), 8, save=tmp_path, c=CENTRES)
    assert same(run(labelled(), 8, save=tmp_path, c=CENTRES.clone()), first)
    with pytest.raises(pl.UsageError, match="begun with cond"):
        run(labelled(), 8, save=tmp_path, c=CENTRES + 1e-9)
    with pytest.raises(pl.UsageError, match="begun with guide null, and not with"):
        run(labelled(guide=pl.CFG(2.0)), 8, save=tmp_path, c=CENTRES)


def test_a_chain_that_begins_anew_does_as_at_first_and_is_paid_for():
    """Generated, kicked and burned in, by hand; every call of the network is in the ledger."""
    beginning = replace(QUICK, burn_in=((2, None), (1, MALA(0.1))))
    made = labelled(beginning=beginning, closing=0)
    begun = made.begin(dtype=torch.float64, c=CENTRES)
    lost = replace(begun, stuck=torch.tensor([51, 0, 60, 51]), sweeps=7)
    asked.clear()
    done = run(made, 4, chain=lost, c=CENTRES)
    total = begun.nfe + sum(asked) / 4
    assert done.chain.nfe == begun.nfe + 3 / 4 * (7 + 2 + 2)
    assert done.ledger.total == pytest.approx(total, rel=1e-12)
    # by hand: one chain alone, generation and kick number 8, and a burn-in with noise of its own
    alone = labelled(n_chains=1, beginning=beginning, closing=0, n_skip=1)
    c = CENTRES[2:3]
    z, kick = (
        noise.normal([2], (3,), stream=stream, index=8, dtype=torch.float64)
        for stream in ("initial", "forward")
    )
    start = float(EDM.time_of_log_snr(-made.levels.sigmas[0].log()))
    how = {"solver": beginning.solver, "grid": beginning.grid, "start": start}
    x = pl.solve(made.model, z * 10.0, **how, c=c).x + 0.5 * kick
    (seed,) = noise.derived_seeds([2], 8)
    chain = alone.begin_at(x, seed=seed, c=c)
    chain = alone.walk(chain, 2, c=c).chain
    chain = replace(alone, kernel=MALA(0.1)).walk(chain, 1, c=c).chain
    chain = replace(chain, seeds=(2,), sweeps=7)
    chain = alone.walk(chain, 3, c=c).chain
    torch.testing.assert_close(done.chain.x[2:3], chain.x, rtol=1e-9, atol=1e-9)


GUIDES = {
    "none": lambda rows: None,
    "worse": lambda rows: Autoguidance(1.5, worse=labelled().model),
    "measured": lambda rows: pl.Measured(torch.eye(1, 3).double(), CENTRES[rows, :1], 0.5),
}


@pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES.keys())
@pytest.mark.parametrize("solver", ["heun", "tsit5"])
def test_some_of_the_chains_are_denoised_as_all_are(guide, solver):
    """The grid ends at σ = 0.4, below which a chain is not denoised: parts of the conditions."""
    grid = pl.grids.log_snr(1, end=0.4 / 20)
    told = labelled(solver=solver, grid=grid, n_skip=1, guide=guide([0, 1, 2, 3]))
    made = replace(told, kernel=0.02)
    x = CENTRES + torch.tensor([9.0, 0.02, 0.8, 0.05])[:, None] * draws(4, 3)
    together = run(made, 4, chain=made.begin_at(x, c=CENTRES), c=CENTRES)
    assert 0 < int((together.sigma > 0.4).sum()) < 4
    spent = []
    for s in range(4):
        alone = replace(made, n_chains=1, guide=guide([s]))
        c = CENTRES[s : s + 1]
        one = run(alone, 1, chain=alone.begin_at(x[s : s + 1], seed=s, c=c), c=c)
        torch.testing.assert_close(one.x[0], together.x[s], rtol=1e-8, atol=1e-8)
        spent.append(one.ledger.denoising)
    assert together.ledger.denoising == sum(spent) / 4
    assert solver == "heun" or len(set(spent)) > 2


# --- diagnostics ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_the_effective_sample_size_of_an_autoregression(rho):
    """n (1 − ρ)/(1 + ρ) for AR(1); its standard error is about 5 % here."""
    n, chains = 2000, 20
    z = noise.normal(range(chains), (n,), dtype=torch.float64).T
    states = [z[0]]
    for i in range(1, n):
        states.append(rho * states[-1] + math.sqrt(1 - rho**2) * z[i])
    said = effective_sample_size(torch.stack(states))
    assert said == pytest.approx(n * chains * (1 - rho) / (1 + rho), rel=0.2)


def test_a_rising_trace_is_told():
    flat = noise.normal(range(10), (80,), dtype=torch.float64).T
    rising = flat + torch.linspace(0, 3, 80)[:, None]
    assert abs(drift(flat)) < 4 and drift(rising) > 10
    law = pl.Gaussian(EDM, torch.zeros(32).double(), torch.full((32,), 0.01).double())
    levels = ExactLevels(law, 0.02, 10.0, 60)
    made = DMCMC(law, levels, Langevin(0.8, 0.1), 16, 40, "drawn", beginning=QUICK)
    with pytest.warns(UserWarning, match="levels of the chains are rising"):
        run(made, 16)


def test_samples_of_few_chains_are_warned_about_and_say_what_they_are_worth():
    with pytest.warns(UserWarning, match="resemble each other"):
        done = run(sampler(n_chains=2, n_skip=1), 2 * 51)
    assert 1 <= done.effective_samples(done.x[:, 0]) <= 102
    assert 1 <= done.effective_levels <= 102
    made = sampler(n_chains=2, n_skip=1)
    chain = replace(made.begin(dtype=torch.float64), rounds=50)
    with pytest.warns(UserWarning, match="51 outputs of each of 2 chains") as said:
        run(made, 2, chain=chain)
    assert said[0].filename == __file__


# --- what cannot work ----------------------------------------------------------------------------


class Learned(NoiseLevels):
    """Levels that remember how large the data were that they were learned from."""

    sigmas = level_table(0.02, 10.0, 60)
    data_rms = 0.2

    def log_posterior(self, x):
        return problems.m4(EDM).log_prob_noised(x, self.sigmas)


def test_data_even_in_another_range_are_told_by_their_deviation():
    """Even in [−1, 1] and in [0, 1] data have a root mean square of 0.577; one is about 0.5."""
    u = noise.uniform(range(4000), (3,), stream="choice", dtype=torch.float64)
    assert abs(float(u.square().mean().sqrt() / (2 * u - 1).square().mean().sqrt()) - 1) < 0.02

    class Even(Learned):
        data_rms, data_deviation = 3**-0.5, 3**-0.5

    check_scale(Even(), 2 * u - 1)
    check_scale(Learned(), 0.2 * (2 * u - 1) * 3**0.5)  # of an old file, which does not say it
    with pytest.raises(pl.UsageError, match="standard deviation of 0.28"):
        check_scale(Even(), u)


def broken(x, t):
    return torch.where(t.reshape(-1, 1) < 0.05, x / 0, x * 0)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: ExactLevels(problems.m4(EDM), 50.0, 0.01), "0 < sigma_min < sigma_max"),
        (lambda: ExactLevels(problems.m4(EDM), n=1), "at least 2 noise levels"),
        (lambda: Langevin(0.0), "eta must be positive"),
        (lambda: MALA(0.1, -1.0), "width must not be negative"),
        (lambda: sampler(n_skip=0), "n_chains and n_skip must be at least 1"),
        (lambda: sampler(n_chains=0), "n_chains and n_skip must be at least 1"),
        (lambda: sampler(choice="best"), "choose 'most_likely' or 'drawn'"),
        (lambda: sampler(closing=-1.0), "closing must not be negative"),
        (lambda: sampler(n_skip=2.5), "whole numbers; they are 4 and 2.5"),
        (lambda: DMCMC(problems.m4(EDM), None, 0.1), "levels=None: give what tells the noise"),
        (lambda: sampler(closing=10.1), "above the largest level, 10"),
        (lambda: sampler(closing=math.nan), "closing must not be negative"),
        (lambda: sampler(kernel=-0.1), "eta must be positive"),
        (lambda: sampler(kernel=math.nan), "eta must be positive"),
        (lambda: sampler(kernel="mala"), r"kernel='mala' is no move: give one, Langevin"),
        (lambda: sampler(kernel=MALA), r"is no move: give one"),
        (lambda: level_table(0.01, math.inf, 5), "both finite"),
        (lambda: sampler().begin_at(draws(4, 5)), r"states of \(4, 3\).* these are \(4, 5\)"),
        (lambda: sampler().begin_at(draws(3, 3)), r"states of \(4, 3\).* these are \(3, 3\)"),
        (lambda: sampler().sample(0), "at least 1 sample"),
        (lambda: sampler(path=pl.EDM(0.1, 5.0)), "use levels made for this model"),
        (
            lambda: DMCMC(pl.VectorField(lambda x, t: x), sampler().levels, 0.1),
            "need a path",
        ),
        (
            lambda: DMCMC(pl.Denoiser(lambda x, t: x, EDM), sampler().levels, 0.1).sample(4),
            "does not know the shape",
        ),
        (lambda: run(sampler(grid=pl.grids.times([1, 0.5, 0.01]))), "has its own start"),
        (
            lambda: run(DMCMC(problems.m4(EDM), Learned(), 0.1, beginning=QUICK)),
            "root mean square",
        ),
        (
            lambda: run(
                DMCMC(problems.m4(EDM), Learned(), MALA(0.1), beginning=Beginning(burn_in=()))
            ),
            "root mean square",
        ),
        (lambda: run(sampler(), 4, chain=sampler(n_chains=3).begin()), "3 chains, not 4"),
        (lambda: Chain.load("nowhere.safetensors"), "cannot read chains"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(call, says):
    with pytest.raises(pl.UsageError, match=says):
        call()


def test_a_density_is_needed_for_mala(monkeypatch):
    monkeypatch.setattr(Learned, "data_rms", None)
    with pytest.raises(pl.UsageError, match="MALA needs the density"):
        run(DMCMC(problems.m4(EDM), Learned(), MALA(0.1), 2, beginning=QUICK))


def test_a_chain_that_leaves_the_numbers_is_named():
    model = pl.Denoiser(broken, EDM, view="x0", label=20.0, shape=(3,))
    made = DMCMC(model, sampler().levels, 0.1, n_chains=2, beginning=QUICK)
    begun = sampler(n_chains=2).begin(dtype=torch.float64)
    bad = Chain(**{**vars(begun), "x": begun.x / 0})
    with pytest.raises(pl.PathlineError, match="not finite after sweep 3"):
        run(made, 2, chain=bad)


def test_a_file_of_something_else_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(pl.UsageError, match="holds no chains"):
        Chain.load(tmp_path / "other.safetensors")
    made = sampler()
    done = run(made, 4, save=tmp_path / "run")
    with pytest.raises(pl.UsageError, match="chains of its own"):
        run(made, 4, chain=done.chain, save=tmp_path / "run")

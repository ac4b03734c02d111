"""One request of a pipeline, under way: copied, saved, told its own timesteps, given its noise."""

import copy
import pickle

import numpy as np
import pytest
import torch

from pathline.core import UsageError, noise
from pathline.solvers import execute

diffusers = pytest.importorskip("diffusers", reason='needs pip install "pathline[diffusers]"')

from pathline.adapters import diffusers_scheduler  # noqa: E402
from pathline.adapters.diffusers import Scheduler  # noqa: E402

BASE = diffusers.DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
FLOW = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
X = noise.normal(range(2), (3, 4, 4), dtype=torch.float64)


def net(x, t):
    phase = torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1, 1, 1) / 700
    return (0.5 * x + 0.3 * (2 * x + phase).sin()).to(x.dtype)


def walk(scheduler, x, timesteps, **arguments):
    for t in timesteps:
        x = scheduler.step(net(x, t), t, x, **arguments).prev_sample
    return x


def made(base=BASE, n=6, **choice):
    scheduler = Scheduler.from_config(base, **choice)
    scheduler.set_timesteps(n)
    return scheduler


# Copies and pickles


def by_its_dict(scheduler):
    """As `StableDiffusionPanoramaPipeline` copies it."""
    other = Scheduler.from_config(scheduler.config)
    other.__dict__.update(copy.deepcopy(scheduler.__dict__))
    return other


WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "dict": by_its_dict,
    "pickle": lambda scheduler: pickle.loads(pickle.dumps(scheduler)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("solver", ["ddim", "dpmpp_3m", "unipc_3", "heun", "dpmpp_2m_sde"])
def test_a_request_under_way_goes_on_from_a_copy(solver, way):
    whole = made(solver=solver)
    timesteps = whole.timesteps
    end = walk(whole, X, timesteps)
    for at in range(len(timesteps)):
        first = made(solver=solver)
        x = walk(first, X, timesteps[:at])
        second = WAYS[way](first)
        assert torch.equal(walk(second, x, timesteps[at:]), end)
        assert torch.equal(walk(first, x, timesteps[at:]), end)
        assert second.step_index == first.step_index == len(timesteps)


def test_a_request_with_a_generator_is_copied_without_it():
    scheduler, random = made(solver="dpmpp_2m_sde"), torch.Generator().manual_seed(1)
    timesteps = scheduler.timesteps
    x = walk(scheduler, X, timesteps[:3], generator=random)
    state = random.get_state()
    other = pickle.loads(pickle.dumps(scheduler))
    ends = [
        walk(s, x, timesteps[3:], generator=torch.Generator().manual_seed(2))
        for s in (scheduler, other, copy.deepcopy(other))
    ]
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], x)
    assert torch.equal(random.get_state(), state)


# Noise


def test_noise_is_made_once_a_request(monkeypatch):
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return execute.drawing(*arguments)

    monkeypatch.setattr(diffusers_scheduler, "drawing", counted)
    scheduler = made(solver="dpmpp_2m_sde", n=10)
    end = walk(scheduler, X, scheduler.timesteps)
    assert len(calls) == 1
    scheduler.set_timesteps(10)
    assert torch.equal(walk(scheduler, X, scheduler.timesteps), end) and len(calls) == 2


@pytest.mark.parametrize("seed", [0, None])
def test_without_a_seed_torchs_generator_rules(seed):
    """Pipelines of flows hand no generator to `step`: with a seed, requests share their noise."""
    scheduler, ends = made(FLOW, solver="dpmpp_2m_sde", seed=seed), []
    for told in (1, 1, 2):
        torch.manual_seed(told)
        scheduler.set_timesteps(6)
        ends.append(walk(scheduler, X, scheduler.timesteps))
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2]) == (seed == 0)
    state = torch.get_rng_state()
    still = made(FLOW, solver="ddim", seed=seed)
    walk(still, X, still.timesteps)
    assert torch.equal(torch.get_rng_state(), state)


# What a step returns


@pytest.mark.parametrize("base", [BASE, FLOW], ids=["epsilon", "flow"])
def test_a_tuple_has_the_data_as_well(base):
    scheduler = made(base, solver="dpmpp_3m")
    other, t = copy.copy(scheduler), scheduler.timesteps[0]
    told = scheduler.step(net(X, t), t, X)
    state, x0 = other.step(net(X, t), t, X, return_dict=False)
    assert torch.equal(state, told.prev_sample) and torch.equal(x0, told.pred_original_sample)
    assert set(told.keys()) == {"prev_sample", "pred_original_sample"}


# Timesteps and levels together, as CogView4 and GLM-Image pass them


MOVED = {"use_dynamic_shifting": True, "time_shift_type": "linear"}


def pair(n, whole=True):
    """What the pipeline of CogView4 passes by default."""
    timesteps = np.linspace(1000, 1, n)
    timesteps = timesteps.astype(np.int64).astype(np.float32) if whole else timesteps
    return {"timesteps": timesteps, "sigmas": timesteps / 1000}


@pytest.mark.parametrize("config, mu", [({"shift": 3.0}, None), (MOVED, 2.5)])
def test_levels_are_shifted_and_the_timesteps_are_told(config, mu):
    base = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    scheduler = Scheduler.from_config(base, solver="euler")
    for both in (pair(9), {"timesteps": [990.0, 400.0, 70.0], "sigmas": [1.0, 0.6, 0.2]}):
        base.set_timesteps(**both, mu=mu)
        scheduler.set_timesteps(**both, mu=mu)
        torch.testing.assert_close(scheduler.timesteps, base.timesteps, rtol=1e-6, atol=0)
        torch.testing.assert_close(scheduler.sigmas, base.sigmas, rtol=1e-6, atol=1e-7)
        theirs = X.float()
        for t in base.timesteps:
            theirs = base.step(net(theirs, t), t, theirs).prev_sample
        end = walk(scheduler, X.float(), scheduler.timesteps)
        torch.testing.assert_close(end, theirs, rtol=1e-5, atol=1e-5)
        noisy = scheduler.add_noise(X, 0 * X, scheduler.timesteps[1])
        torch.testing.assert_close(noisy, X * (1 - float(base.sigmas[1])), rtol=1e-5, atol=0)


def test_between_the_levels_the_timestep_is_that_before_the_shift():
    """Heun evaluates at the levels, RK4 in the middle of them; a chosen grid has its own."""
    shift, both = 2.5, pair(9, whole=False)
    for choice in ({"solver": "rk4"}, {"solver": "euler", "grid": "uniform"}):
        base = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler = Scheduler.from_config(base, **choice)
        scheduler.set_timesteps(**(both if "grid" not in choice else pair(9)))
        s = scheduler.sigmas[:-1].double()
        before = s / (shift - (shift - 1) * s)
        told = scheduler.timesteps.double()
        torch.testing.assert_close(told, 1000 * before, rtol=1e-5, atol=1e-3)
    even = torch.linspace(1, 1e-3, 9)
    torch.testing.assert_close(scheduler.sigmas[:-1], even, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "both, message",
    [
        ({"timesteps": [900.0, 100.0], "sigmas": [1.0, 0.5, 0.2]}, "2 timesteps and 3 sigmas"),
        ({"timesteps": [100.0, 900.0], "sigmas": [1.0, 0.5]}, "fall together"),
    ],
)
def test_timesteps_and_levels_that_contradict_each_other_are_refused(both, message):
    with pytest.raises(UsageError, match=message):
        Scheduler.from_config(FLOW).set_timesteps(**both)

"""Solvers that leave the house: in pipelines of diffusers, and as samplers of k-diffusion.

Both are compared with `pathline.solve`, to the last bit where the arithmetic is the same, and with
the other library's own where those are right.
"""

import copy
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import pathline as pl
from pathline.core import UsageError, noise
from pathline.core.errors import PathlineError
from pathline.solvers import SolverSchedule, StepChoice, Stepped, UniPC, grids, solvers
from pathline.solvers.dpm_v3 import DPMv3
from pathline.solvers.ems import EMSTable

diffusers = pytest.importorskip("diffusers", reason='needs pip install "pathline[diffusers]"')

import tiny_diffusers as tiny  # noqa: E402

from pathline.adapters.diffusers import Scheduler, denoiser, grid  # noqa: E402

TABLE = dict(timestep_spacing="trailing", clip_sample=False)
BUILT = {entry.name: entry.build() for entry in solvers}
SOLVERS = {name: solver for name, solver in BUILT.items() if not isinstance(solver, Stepped)}
every = pytest.mark.parametrize("name", SOLVERS)


@pytest.fixture(autouse=True)
def fixed_draws():
    torch.manual_seed(0)


class Network(torch.nn.Module):
    """A smooth network of diffusers' signature, whose output moves with state and timestep."""

    config = {"in_channels": 3, "sample_size": 4}

    def forward(self, sample, timestep):
        phase = torch.as_tensor(timestep, dtype=torch.float64).reshape(-1, 1, 1, 1) / 700
        return (0.5 * sample + 0.3 * (2 * sample + phase).sin()).to(sample.dtype)


def loop(scheduler, network, x, timesteps=None, **arguments):
    """Every state of a pipeline's loop."""
    states = [x]
    for t in scheduler.timesteps if timesteps is None else timesteps:
        fed = (
            x if not hasattr(scheduler, "scale_model_input") else scheduler.scale_model_input(x, t)
        )
        x = scheduler.step(network(fed, t), t, x, return_dict=False, **arguments)[0]
        states.append(x)
    return torch.stack(states)


def told(solver, path):
    """A solver as standard problems measure it."""
    return solver.standard(path)


# A scheduler of diffusers: the plan, step by step


TRAINED = {
    "epsilon": diffusers.DDIMScheduler(**TABLE),
    "sample": diffusers.DDIMScheduler(prediction_type="sample", **TABLE),
    "v_prediction": diffusers.DDIMScheduler(prediction_type="v_prediction", **TABLE),
    "zero SNR": diffusers.DDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, **TABLE
    ),
    "flow": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "EDM": diffusers.EDMEulerScheduler(),
}


def begun(base, network, n, batch=2, **choice):
    """A scheduler ready for n steps, our model of the same network, and a state to begin with."""
    config = {**base.config, "_class_name": type(base).__name__}
    scheduler, model = Scheduler.from_config(config, **choice), denoiser(network, base)
    scheduler.set_timesteps(n)
    x = noise.normal(range(batch), (3, 4, 4), dtype=torch.float64) * scheduler.init_noise_sigma
    return scheduler, model, x


@every
@pytest.mark.parametrize("n", [1, 2, 6])
@pytest.mark.parametrize("trained", TRAINED)
def test_a_pipeline_loop_is_a_solve(name, n, trained):
    base, network = TRAINED[trained], Network()
    solver = told(SOLVERS[name], denoiser(network, base).path)
    try:
        scheduler, model, x = begun(base, network, n, solver=solver, seed=5)
    except PathlineError as refused:  # as by `solve`: ε̂ at α = 0, levels without statistics
        state, way = noise.normal(range(2), (3, 4, 4)), grid(base, n)
        with pytest.raises(type(refused), match=re.escape(str(refused))):
            pl.solve(denoiser(network, base), state, solver=solver, grid=way, seeds=[5, 6])
        return
    ours = pl.solve(model, x, solver=solver, grid=grid(base, n), seeds=[5, 6])
    end = loop(scheduler, network, x)[-1]
    # labels are told in float32 at most, and EDM's network sees log σ: all else is the same
    torch.testing.assert_close(end, ours.x, rtol=1e-5, atol=1e-6 * float(ours.x.abs().max()))
    assert len(scheduler.timesteps) == ours.stats.nfe == scheduler.step_index
    assert len(scheduler.sigmas) == ours.stats.nfe + 1 and scheduler.sigmas[-1] == 0


@every
def test_on_whole_labels_the_loop_is_a_solve_bit_for_bit(name):
    base, network = TRAINED["epsilon"], Network()
    solver = told(SOLVERS[name], denoiser(network, base).path)
    scheduler, model, x = begun(base, network, 6, solver=solver)
    if scheduler.timesteps.is_floating_point():
        pytest.skip("evaluates between the labels")
    way = grid(base, 6)
    ours = pl.solve(model, x, solver=solver, grid=way, seeds=[0, 1])
    # the middle of an ancestral step is the level of its end, but for a rounding of the label
    exact = set(scheduler._course.times.tolist()) <= set(way.times(model.path))
    end, tolerance = loop(scheduler, network, x)[-1], 0 if exact else 1e-13
    torch.testing.assert_close(end, ours.x, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", [entry.name for entry in grids.grids if entry.name != "times"])
@pytest.mark.parametrize("trained", ["epsilon", "flow", "EDM"])
def test_every_grid_runs_in_a_pipeline(kind, trained):
    base, network = TRAINED[trained], Network()
    scheduler, model, x = begun(base, network, 7, solver="dpmpp_3m", grid=kind)
    made = grids.grids.build(kind, n=7, last="denoise")
    ours = pl.solve(model, x, solver="dpmpp_3m", grid=made).x
    end = loop(scheduler, network, x)[-1]
    torch.testing.assert_close(end, ours, rtol=1e-5, atol=1e-6 * float(ours.abs().max()))
    assert scheduler.num_inference_steps == len(scheduler.timesteps) == 7


def test_a_name_ends_where_the_config_ends_and_a_grid_where_it_says():
    config = dict(diffusers.DDIMScheduler(set_alpha_to_one=False).config)
    stops = Scheduler.from_config(config, grid="log_snr")
    stops.set_timesteps(5)
    assert stops.sigmas[-1] > 0 and len(stops.sigmas) == 6
    ends = Scheduler.from_config(config, grid=pl.grids.log_snr(9, last="denoise"))
    ends.set_timesteps(5)
    assert ends.sigmas[-1] == 0 and len(ends.sigmas) == 6


@pytest.mark.parametrize("trained", TRAINED)
def test_the_data_that_a_step_saw_are_in_its_output(trained):
    base, network = TRAINED[trained], Network()
    scheduler, model, x = begun(base, network, 4, solver="heun")
    times = iter(scheduler._course.times.tolist())
    for t in scheduler.timesteps:
        out = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x)
        x0 = model(x, next(times)).x0
        scale = float(x0.abs().max())
        torch.testing.assert_close(out.pred_original_sample, x0, rtol=1e-5, atol=1e-5 * scale)
        x = out.prev_sample


def test_half_precision_states_are_stepped_in_single():
    base, network = TRAINED["flow"], Network()
    scheduler, _, x = begun(base, network, 4, solver="euler")
    t, half = scheduler.timesteps[0], x.bfloat16()
    out = network(half, t)
    stepped, _ = scheduler.step(out, t, half, return_dict=False)
    exact = half.float() + float(scheduler.sigmas[1] - scheduler.sigmas[0]) * out.float()
    assert torch.equal(stepped, exact.bfloat16())


def test_a_learned_variance_is_left_out():
    base, network = TRAINED["epsilon"], Network()
    scheduler, _, x = begun(base, network, 4)
    plain, t = copy.copy(scheduler), scheduler.timesteps[0]
    out = network(x, t)
    both = scheduler.step(torch.cat((out, out.exp()), 1), t, x).prev_sample
    assert torch.equal(both, plain.step(out, t, x).prev_sample)


def test_a_pipeline_may_change_the_state_between_steps():
    """Masks and callbacks do: what `step` is given is what it goes on from."""
    base, network = TRAINED["epsilon"], Network()
    scheduler, model, x = begun(base, network, 5, solver="dpmpp_3m")

    def halve(step):
        if step.index < 4:
            step.x = step.x * 0.5

    ours = pl.solve(model, x, solver="dpmpp_3m", grid=grid(base, 5), observe=halve).x
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(network(x, t), t, x).prev_sample * (0.5 if i < 4 else 1.0)
    assert torch.equal(x, ours)


# Beside the library's own schedulers


def drive(base, network, x, n, **arguments):
    base.set_timesteps(n)
    return loop(base, network, x, **arguments)


class Deaf(Network):
    """A network that ignores the timestep: theirs are rounded on noise-level grids."""

    def forward(self, sample, timestep):
        return super().forward(sample, 300)


PEERS = {
    "DDIM": ("DDIMScheduler", TABLE, pl.DDIM()),
    "++2M": ("DPMSolverMultistepScheduler", {}, pl.DPMpp(order=2, final="full")),
    "++2M, Karras": (
        "DPMSolverMultistepScheduler",
        {"use_karras_sigmas": True},
        pl.DPMpp(order=2, final="full"),
    ),
    "++2M, exponential": (
        "DPMSolverMultistepScheduler",
        {"use_exponential_sigmas": True},
        pl.DPMpp(order=2, final="full"),
    ),
    "++2M, heun": (
        "DPMSolverMultistepScheduler",
        {"solver_type": "heun"},
        pl.DPMpp(order=2, final="full", expansion="taylor"),
    ),
    "++2M, v": (
        "DPMSolverMultistepScheduler",
        {
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "beta_schedule": "scaled_linear",  # of the linear one theirs rises again at the end
        },
        pl.DPMpp(order=2, final="full"),
    ),
    "EDM Euler": ("EDMEulerScheduler", {}, pl.Euler()),
    "EDM ++2M": ("EDMDPMSolverMultistepScheduler", {}, pl.DPMpp(order=2, final="full")),
    "flow Euler": ("FlowMatchEulerDiscreteScheduler", {}, pl.Euler()),
    "flow Heun": ("FlowMatchHeunDiscreteScheduler", {}, pl.Heun()),
}


@pytest.mark.parametrize("peer", PEERS)
def test_step_by_step_with_the_librarys_own(peer):
    name, config, solver = PEERS[peer]
    trailing = {} if "EDM" in name or "Flow" in name else {"timestep_spacing": "trailing"}
    base = getattr(diffusers, name)(**trailing | config)
    network = Deaf() if "Karras" in peer or "exponential" in peer else Network()
    n = 10
    scheduler = Scheduler.from_config(base.config, solver=solver, trained_as=name)
    x = noise.normal(range(2), (3, 4, 4))
    if name.startswith("Flow"):  # their own spacing ends at 1/1000, or shifts twice
        base.set_timesteps(n)
        scheduler.set_timesteps(sigmas=base.sigmas[:1].tolist() + base.sigmas[1::2].tolist()) if (
            "Heun" in name
        ) else scheduler.set_timesteps(sigmas=base.sigmas.tolist())
        torch.testing.assert_close(scheduler.timesteps, base.timesteps, rtol=1e-6, atol=1e-4)
    else:
        base.set_timesteps(n)
        scheduler.set_timesteps(n)
        x = x * float(scheduler.init_noise_sigma)
    ours, theirs = loop(scheduler, network, x), loop(base, network, x)
    tiny.agree(ours, theirs, 16 * tiny.SINGLE)


@pytest.mark.parametrize("name, solver", [("Heun", pl.Heun(view="eps")), ("Euler", pl.DDIM())])
def test_step_by_step_with_schedulers_whose_state_is_scaled(name, solver):
    """Theirs is x/α, σ-scaled; ours stays as the network knows it."""
    base = getattr(diffusers, f"{name}DiscreteScheduler")(timestep_spacing="trailing")
    scheduler = Scheduler.from_config(base.config, solver=solver)
    base.set_timesteps(10)
    scheduler.set_timesteps(10)
    assert scheduler.timesteps.tolist() == base.timesteps.tolist()
    x = noise.normal(range(2), (3, 4, 4))
    alpha = 1 / (base.sigmas**2 + 1).sqrt()
    theirs = loop(base, Network(), x / alpha[0])
    ours = loop(scheduler, Network(), x)
    of_state = [0, *range(1, len(alpha))] if name == "Euler" else None
    scale = alpha[of_state] if of_state else 1 / (scheduler.sigmas**2 + 1).sqrt()
    tiny.agree(ours, theirs * scale.reshape(-1, 1, 1, 1, 1), 32 * tiny.SINGLE)


@pytest.mark.parametrize(
    "name, solver, arguments",
    [
        ("DDIMScheduler", pl.DDIM(eta=1.0), {"eta": 1.0}),
        ("DPMSolverMultistepScheduler", pl.DPMpp(order=2, eta=1.0, final="full"), {}),
    ],
)
def test_stochastic_solvers_draw_from_the_pipelines_generator(name, solver, arguments):
    config = TABLE if name.startswith("DDIM") else {"algorithm_type": "sde-dpmsolver++"}
    base = getattr(diffusers, name)(**{"timestep_spacing": "trailing"} | config)
    scheduler = Scheduler.from_config(base.config, solver=solver)
    base.set_timesteps(10)
    scheduler.set_timesteps(10)
    x = noise.normal(range(2), (3, 4, 4))
    draws = [torch.Generator().manual_seed(7) for _ in range(3)]
    theirs = loop(base, Network(), x, generator=draws[0], **arguments)
    ours = loop(scheduler, Network(), x, generator=draws[1])
    tiny.agree(ours, theirs, 16 * tiny.SINGLE)
    torch.randn(x.shape, generator=draws[1])  # theirs draws for its last step, times 0
    assert torch.equal(draws[0].get_state(), draws[1].get_state())
    scheduler.set_timesteps(10)
    each = [torch.Generator().manual_seed(s) for s in (7, 8)]
    alone = torch.Generator().manual_seed(8)
    together = loop(scheduler, Network(), x, generator=each)[-1]
    scheduler.set_timesteps(10)
    assert torch.allclose(loop(scheduler, Network(), x[1:], generator=alone)[-1], together[1:])


# Requests


def test_interleaved_copies_do_not_disturb_each_other():
    base, network = TRAINED["epsilon"], Network()
    scheduler, _, x = begun(base, network, 6, solver="unipc_3")
    whole = loop(copy.copy(scheduler), network, x)
    other = -0.7 * x
    another = loop(copy.deepcopy(scheduler), network, other)
    for split in range(6):
        first, y = copy.copy(scheduler), x
        for t in first.timesteps[:split]:
            y = first.step(network(y, t), t, y).prev_sample
        second, third, z = copy.copy(first), copy.deepcopy(scheduler), other
        y2 = y
        for i, t in enumerate(first.timesteps):
            if i >= split:
                y = first.step(network(y, t), t, y).prev_sample
                y2 = second.step(network(y2, t), t, y2).prev_sample
            z = third.step(network(z, t), t, z).prev_sample
        assert torch.equal(y, whole[-1]) and torch.equal(y2, y) and torch.equal(z, another[-1])


def test_set_timesteps_forgets_the_request_before():
    base, network = TRAINED["epsilon"], Network()
    scheduler, _, x = begun(base, network, 6, solver="dpmpp_3m")
    whole = loop(scheduler, network, x)
    for n in (3, 6):
        scheduler.set_timesteps(n)
        for t in scheduler.timesteps[:2]:
            scheduler.step(network(x, t), t, x)
    scheduler.set_timesteps(6)
    assert torch.equal(loop(scheduler, network, x), whole)
    with pytest.raises(UsageError, match="all 6 timesteps are taken"):
        scheduler.step(x, scheduler.timesteps[-1], x)


def test_a_step_of_another_request_is_noticed():
    base, network = TRAINED["epsilon"], Network()
    scheduler, _, x = begun(base, network, 6)
    first, second = scheduler.timesteps[:2]
    scheduler.step(x, first, x)
    with pytest.raises(UsageError, match="one request at a time"):
        scheduler.step(x, first, x)
    scheduler.step(x, int(second), x)


RESTARTED = [pl.DDIM(), pl.DPMpp(order=3), UniPC(), pl.Heun(), pl.RK4(), pl.DPMpp(eta=1.0)]


@pytest.mark.parametrize("says_where", [True, False])
@pytest.mark.parametrize("solver", RESTARTED, ids=lambda s: type(s).__name__)
def test_image_to_image_begins_anew_at_the_level_of_its_timestep(solver, says_where):
    base, network = TRAINED["epsilon"], Network()
    scheduler, model, x0 = begun(base, network, 10, solver=solver)
    begin = 4 * scheduler.order
    timesteps, eps = scheduler.timesteps[begin:], torch.randn_like(x0)
    x = scheduler.add_noise(x0, eps, timesteps[:1])
    if says_where:
        scheduler.set_begin_index(begin)
    times = grid(base, 10).times(model.path)
    assert torch.allclose(x, model.path.noised(x0, eps, times[4]))
    rest = pl.grids.times(times[4:-1], last="denoise")
    ours = pl.solve(model, x, solver=solver, grid=rest, seeds=[0, 1]).x
    end = loop(scheduler, network, x, timesteps)[-1]
    torch.testing.assert_close(end, ours, rtol=1e-6, atol=1e-6)
    assert scheduler.step_index == len(scheduler.timesteps)


def test_noise_is_added_at_the_level_of_a_timestep():
    x0, eps = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    for name in ("epsilon", "flow", "EDM"):
        base = TRAINED[name]
        scheduler = Scheduler.from_config(base.config, trained_as=type(base).__name__)
        scheduler.set_timesteps(8)
        t = scheduler.timesteps[[2, 5]]
        if name == "epsilon":
            theirs = base.add_noise(x0, eps, t)
            wanted = base.get_velocity(x0, eps, t)
            torch.testing.assert_close(scheduler.get_velocity(x0, eps, t), wanted)
            torch.testing.assert_close(scheduler.alphas_cumprod, base.alphas_cumprod)
        elif name == "flow":
            s = scheduler.sigmas[[2, 5]].reshape(2, 1, 1, 1)
            theirs = (1 - s) * x0 + s * eps
        else:
            theirs = x0 + scheduler.sigmas[[2, 5]].reshape(2, 1, 1, 1) * eps
        torch.testing.assert_close(scheduler.add_noise(x0, eps, t), theirs, rtol=1e-5, atol=1e-5)
        assert torch.equal(
            scheduler.scale_noise(x0, t, eps), scheduler.add_noise(x0, eps, t)
        ) and not hasattr(scheduler, "nothing")


def test_timesteps_and_levels_of_ones_own():
    base, network = TRAINED["epsilon"], Network()
    scheduler, model, x = begun(base, network, 5, solver="dpmpp_2m")
    own = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]  # diffusers.schedulers.AysSchedules
    scheduler.set_timesteps(timesteps=own)
    assert scheduler.timesteps.tolist() == own and scheduler.num_inference_steps == 10
    rest = pl.grids.times([(k + 1) / 1000 for k in own], last="denoise")
    ours = pl.solve(model, x, solver="dpmpp_2m", grid=rest).x
    torch.testing.assert_close(loop(scheduler, network, x)[-1], ours, rtol=1e-12, atol=1e-12)
    levels = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0]
    latent = Scheduler.from_config(
        base.config, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
    )
    latent.set_timesteps(sigmas=levels)
    torch.testing.assert_close(latent.sigmas, torch.tensor(levels), rtol=1e-4, atol=0)
    assert latent.timesteps[0] == 999


def test_a_flow_pipeline_passes_its_ladder_and_the_chosen_grid_holds():
    config = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).config
    theirs = diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)
    ladder = np.linspace(1, 1 / 8, 8)
    theirs.set_timesteps(sigmas=ladder, mu=0.9)
    default = Scheduler.from_config(config)
    default.set_timesteps(sigmas=ladder, mu=0.9)
    torch.testing.assert_close(default.sigmas, theirs.sigmas)
    chosen = Scheduler.from_config(config, grid="uniform")
    chosen.set_timesteps(sigmas=ladder, mu=0.9)
    even = torch.linspace(1, 1e-3, 8)
    torch.testing.assert_close(chosen.sigmas, torch.cat((even, torch.zeros(1))))
    own = [1.0, 0.7, 0.2]
    chosen.set_timesteps(sigmas=own, mu=0.9)
    theirs.set_timesteps(sigmas=own, mu=0.9)
    torch.testing.assert_close(chosen.sigmas, theirs.sigmas)


@pytest.mark.parametrize("n", [10, 25, 60])
@pytest.mark.parametrize("solver", ["dpmpp_3m", "heun", "unipc"])
def test_whole_labels_are_the_levels_that_the_solver_steps_at(solver, n):
    """Where a grid is denser than the labels (Karras near data), its points give way."""
    base, network = TRAINED["epsilon"], Network()
    scheduler, model, x = begun(base, network, n, solver=solver, grid="karras", labels="whole")
    labels = scheduler.timesteps
    assert labels.dtype == torch.int64
    points = labels.unique(sorted=True).flip(0)
    assert len(points) == n and points[0] == 999
    exact = grids.grids.build("karras", n=n, last="denoise").times(model.path)[:-1]
    apart = (torch.tensor(exact) * 1000 - 1 - points).abs()
    assert (apart <= 0.5 + 1e-6).sum() >= n - 10  # only the last few had to move
    made = pl.grids.times(((points.double() + 1) / 1000).tolist(), last="denoise")
    ours = pl.solve(model, x, solver=solver, grid=made).x
    torch.testing.assert_close(loop(scheduler, network, x)[-1], ours, rtol=1e-5, atol=1e-5)


# Its config


@pytest.mark.parametrize(
    "choice",
    [
        {"solver": "dpmpp_3m", "grid": "karras", "seed": 3},
        {"solver": pl.DPMpp(order=2, eta=0.5), "grid": pl.grids.karras(9, rho=5.0)},
        {"solver": {"name": "heun", "view": "eps"}, "grid": [1.0, 0.6, 0.2, 0.05, 0.01, 0.001]},
        {"solver": "dpmpp_2m", "grid": "log_snr", "labels": "whole"},
    ],
)
def test_it_is_saved_and_loaded(choice, tmp_path):
    base, network = TRAINED["epsilon"], Network()
    scheduler, _, x = begun(base, network, 5, **choice)
    scheduler.save_pretrained(tmp_path)
    again = Scheduler.from_pretrained(tmp_path)
    assert again.config.solver == scheduler.config.solver
    again.set_timesteps(5)
    assert torch.equal(loop(again, network, x), loop(scheduler, network, x))
    third = Scheduler.from_config(again.config, seed=4)
    assert third.config.grid == scheduler.config.grid and third.config.seed == 4
    assert third.config.trained_as == "DDIMScheduler"
    json.loads(scheduler.to_json_string())


def test_a_plan_runs_and_is_saved_with_its_own_grid(tmp_path):
    base, network = TRAINED["epsilon"], Network()
    plan = pl.DPMpp(order=3).plan(denoiser(network, base).path, pl.grids.log_snr(5))
    scheduler, model, x = begun(base, network, 5, solver=plan)
    ours = pl.solve(model, x, solver=plan).x
    end = loop(scheduler, network, x)[-1]
    torch.testing.assert_close(end, ours, rtol=1e-6, atol=1e-6)
    scheduler.save_pretrained(tmp_path)
    again = Scheduler.from_pretrained(tmp_path)
    again.set_timesteps(5)
    torch.testing.assert_close(loop(again, network, x)[-1], end, rtol=1e-6, atol=1e-6)
    heun = Scheduler.from_config(base.config, solver=pl.Heun().plan(model.path, grid(base, 4)))
    heun.set_timesteps(4)
    assert heun.order == 2 and len(heun.timesteps) == 7


def test_a_schedule_runs_and_is_saved(tmp_path):
    base, network = TRAINED["epsilon"], Network()
    path = denoiser(network, base).path
    made = SolverSchedule(path, (1.0, 0.7, 0.4, 0.1), (StepChoice(order=1), *[StepChoice()] * 2))
    scheduler, model, x = begun(base, network, 3, solver=made)
    ours = pl.solve(model, x, solver=made).x
    torch.testing.assert_close(loop(scheduler, network, x)[-1], ours, rtol=1e-6, atol=1e-6)
    scheduler.save_pretrained(tmp_path)
    again = Scheduler.from_pretrained(tmp_path)
    again.set_timesteps(3)
    assert torch.equal(
        loop(again, network, x), loop(begun(base, network, 3, solver=made)[0], network, x)
    )


def test_statistics_of_dpm_solver_v3_are_saved_with_it(tmp_path):
    base, network = TRAINED["epsilon"], Network()
    path = denoiser(network, base).path
    solver = DPMv3(table=EMSTable.gaussian(path, n=200))
    scheduler, _, x = begun(base, network, 5, solver=solver)
    scheduler.save_pretrained(tmp_path)
    again = Scheduler.from_pretrained(tmp_path)
    again.set_timesteps(5)
    assert torch.equal(loop(again, network, x), loop(scheduler, network, x))
    (tmp_path / "ems.safetensors").unlink()
    with pytest.raises(UsageError, match="needs the model's statistics"):
        Scheduler.from_pretrained(tmp_path).set_timesteps(5)
    wide = replace(solver, table=EMSTable.gaussian(path, torch.zeros(3, 4, 4), n=200))
    scheduler, _, x = begun(base, network, 5, solver=wide)
    with pytest.raises(UsageError, match=r"states of \(3, 4, 4\), and these are \(3, 4, 2\)"):
        scheduler.step(x[..., :2], scheduler.timesteps[0], x[..., :2])


def test_the_way_back_and_the_other_direction():
    """Another scheduler is made of its config, and our adapters read it as the one it replaced."""
    base = diffusers.PNDMScheduler(beta_schedule="scaled_linear", steps_offset=1)
    ours = Scheduler.from_config(base, solver="dpmpp_3m")
    back = diffusers.DDIMScheduler.from_config(ours.config)
    assert back.config.beta_schedule == "scaled_linear" and back.config.steps_offset == 1
    model = denoiser(tiny.unet(), ours)
    assert model.path == denoiser(tiny.unet(), base).path
    flow = Scheduler.from_config(TRAINED["flow"], solver="heun")
    assert denoiser(tiny.unet(), flow).path == pl.CondOT()
    assert grid(flow, 5) == grid(TRAINED["flow"], 5)


# What is refused


@pytest.mark.parametrize(
    "choice, message",
    [
        ({"solver": "dpmpp_2n"}, "did you mean dpmpp_2"),
        ({"solver": pl.DPMpp}, "fixed grid.*the class DPMpp"),
        ({"solver": lambda x: x}, "a function"),
        ({"solver": "dopri5"}, "AdaptiveRK chooses its steps while it runs"),
        ({"solver": {"order": 2}}, "has a 'name', and this has order"),
        ({"grid": "karass"}, "did you mean karras"),
        ({"grid": 7}, "grid= takes.*int"),
        ({"labels": "int"}, "choose 'real' or 'whole'"),
        ({"seed": -1}, "seed -1"),
        ({"solvr": "ddim"}, "did you mean solver"),
        ({"prediction_type": "epsilom"}, "did you mean epsilon"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(choice, message):
    with pytest.raises(UsageError, match=message):
        Scheduler.from_config(TRAINED["epsilon"].config, **choice)


PLAN = pl.DPMpp().plan(pl.paths.Tabulated.linear(), pl.grids.log_snr(5))


@pytest.mark.parametrize(
    "choice, arguments, message",
    [
        ({}, {}, "needs num_inference_steps, timesteps or sigmas"),
        ({}, {"timesteps": [900, 100], "sigmas": [3.0, 0.0]}, "not both"),
        ({}, {"timesteps": 900}, "lists of one number or more"),
        ({}, {"timesteps": [100, 900]}, "one way at every step"),
        ({}, {"sigmas": [3.0, -1.0]}, "must be positive"),
        ({}, {"num_inference_steps": 1001}, "too few"),
        ({"grid": [1.0, 0.5, 0.1]}, {"num_inference_steps": 9}, "2 steps of its own and 9"),
        ({"labels": "whole", "solver": "rk4"}, {"num_inference_steps": 9}, "between the points"),
        ({"solver": PLAN}, {"num_inference_steps": 5}, "compiled for another path"),
        ({"solver": "dpm_v3"}, {"num_inference_steps": 5}, "statistics"),
    ],
)
def test_a_request_that_cannot_be_is_refused(choice, arguments, message):
    scheduler = Scheduler.from_config(TRAINED["epsilon"].config, **choice)
    with pytest.raises(UsageError, match=message):
        scheduler.set_timesteps(**arguments)


def test_a_plan_has_its_own_grid():
    base = TRAINED["epsilon"]
    path = denoiser(Network(), base).path
    plan = pl.DPMpp(order=3).plan(path, pl.grids.log_snr(5))
    scheduler = Scheduler.from_config(base.config, solver=plan)
    for arguments in ({"num_inference_steps": 7}, {"timesteps": [900, 20]}):
        with pytest.raises(UsageError, match="of 5 steps.*num_inference_steps=5 and no grid"):
            scheduler.set_timesteps(**arguments)
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(3)
    x, t = torch.randn(1, 3, 4, 4), scheduler.timesteps[3]
    with pytest.raises(UsageError, match="cannot begin at timestep number 3"):
        scheduler.step(x, t, x)


def test_what_is_not_ready_says_so():
    base = TRAINED["epsilon"]
    scheduler, x = Scheduler.from_config(base.config, solver="dpm_fast"), torch.randn(1, 3, 4, 4)
    with pytest.raises(UsageError, match="call set_timesteps first"):
        scheduler.step(x, 999, x)
    with pytest.raises(UsageError, match=r"Scheduler.from_config\(pipe.scheduler.config"):
        Scheduler()
    scheduler.set_timesteps(9)
    with pytest.raises(UsageError, match="none of the 9 timesteps"):
        scheduler.step(x, 777, x)
    scheduler.set_begin_index(1)
    with pytest.raises(UsageError, match="inside one of its steps"):
        scheduler.step(x, scheduler.timesteps[1], x)
    with pytest.raises(UsageError, match="network returned shape|field returned shape"):
        scheduler.set_timesteps(9)
        scheduler.step(x[..., :2], 999, x)

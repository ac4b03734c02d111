"""Configs of diffusers' schedulers, beside what the library makes of them itself."""

import numpy as np
import pytest
import torch

import pathline as pl
from pathline.adapters import schedulers
from pathline.core import UsageError

diffusers = pytest.importorskip("diffusers", reason='needs pip install "pathline[diffusers]"')

from pathline.adapters.diffusers import Scheduler, denoiser, grid  # noqa: E402

Flow = diffusers.FlowMatchEulerDiscreteScheduler
DPM = diffusers.DPMSolverMultistepScheduler
FAMILIES = "DPMSolverMultistep", "UniPCMultistep", "DEISMultistep", "DDIM"


def made(base, **choice):
    return Scheduler.from_config(base, **{"solver": "euler"} | choice)


# Flows


FLOWS = {
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "terminal": {"shift_terminal": 0.02},
    "all": {"shift": 3.0, "shift_terminal": 0.1, "use_karras_sigmas": True},
    "moving": {"use_dynamic_shifting": True, "shift_terminal": 0.02},
    "linear": {
        "use_dynamic_shifting": True,
        "time_shift_type": "linear",
        "use_exponential_sigmas": True,
    },
}


@pytest.mark.parametrize("n", [2, 9])
@pytest.mark.parametrize("flow", FLOWS)
def test_a_flow_is_shifted_stretched_and_spaced_as_theirs(flow, n):
    base, own = Flow(**FLOWS[flow]), [1.0, 0.8, 0.35, 0.1]
    mu, ours = 0.9 if base.config.use_dynamic_shifting else None, made(base)
    for ladder in (np.linspace(1, 1 / n, n), own):
        base.set_timesteps(sigmas=ladder, mu=mu)
        ours.set_timesteps(sigmas=ladder, mu=mu)
        torch.testing.assert_close(ours.sigmas, base.sigmas, rtol=0, atol=1e-6)
        torch.testing.assert_close(ours.timesteps, base.timesteps, rtol=0, atol=1e-3)
    base.set_timesteps(sigmas=np.linspace(1, 1 / n, n), mu=mu)
    plain = torch.tensor(grid(base, n, mu=mu).times(pl.CondOT()))
    torch.testing.assert_close(plain.float(), base.sigmas, rtol=0, atol=1e-6)


def test_one_level_is_neither_stretched_nor_spaced():
    for config in FLOWS.values():
        ours = made(Flow(**config))
        ours.set_timesteps(1, mu=0.9)
        assert ours.sigmas.tolist() == [1.0, 0.0]


UNIPC = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


@pytest.mark.parametrize(
    "base, key",
    [
        (Flow(use_beta_sigmas=True), "use_beta_sigmas"),
        (diffusers.UniPCMultistepScheduler(**UNIPC, use_karras_sigmas=True), "use_karras_sigmas"),
        (diffusers.UniPCMultistepScheduler(**UNIPC, final_sigmas_type="sigma_min"), "final_sigmas"),
    ],
    ids=lambda told: told if isinstance(told, str) else "",
)
def test_what_is_not_known_of_a_flow_is_refused_with_levels_too(base, key):
    for asked in ({"num_inference_steps": 5}, {"sigmas": [1.0, 0.7, 0.2]}):
        with pytest.raises(UsageError, match=key):
            made(base).set_timesteps(**asked)
    chosen = made(base, grid="uniform")
    chosen.set_timesteps(5)
    assert len(chosen.sigmas) == 6


def test_unipc_stretches_a_flow_as_theirs():
    base = diffusers.UniPCMultistepScheduler(**UNIPC, flow_shift=3.0, shift_terminal=0.1)
    ours, ladder = made(base), [1.0, 0.6, 0.2]
    base.set_timesteps(sigmas=np.array(ladder))
    ours.set_timesteps(sigmas=ladder)
    torch.testing.assert_close(ours.sigmas, base.sigmas, rtol=0, atol=2e-6)  # theirs: 1 − 10⁻⁶


# Continuous time


@pytest.mark.parametrize("flag", ["use_karras_sigmas", "use_exponential_sigmas"])
def test_the_continuous_euler_scheduler_is_spaced_as_it_says(flag):
    levels = {"sigma_min": 0.002, "sigma_max": 700.0, "prediction_type": "v_prediction"}
    base = diffusers.EulerDiscreteScheduler(timestep_type="continuous", **levels, **{flag: True})
    ours = made(base)
    base.set_timesteps(12)
    ours.set_timesteps(12)
    torch.testing.assert_close(ours.sigmas, base.sigmas, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.timesteps, base.timesteps, rtol=0, atol=1e-6)
    with pytest.raises(UsageError, match="from a table of β"):
        made(base, **{flag: False}).set_timesteps(12)


def test_continuous_time_with_eps_is_discrete_as_theirs():
    base = diffusers.EulerDiscreteScheduler(timestep_type="continuous")
    ours = made(base)
    base.set_timesteps(10)
    ours.set_timesteps(10)
    assert ours.timesteps.tolist() == base.timesteps.tolist()
    with pytest.raises(UsageError, match="interpolation_type='log_linear'"):
        made(base, interpolation_type="log_linear").set_timesteps(10)


# Tables


@pytest.mark.parametrize("name", ["DDIM", "DPM"])
@pytest.mark.parametrize("rescales", [False, True])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_table_is_shifted_before_it_is_rescaled(name, shift, rescales):
    config = {"snr_shift_scale": shift, "rescale_betas_zero_snr": rescales}
    base = getattr(diffusers, f"CogVideoX{name}Scheduler")(
        prediction_type="v_prediction", timestep_spacing="trailing", **config
    )
    ours = made(base)
    table = torch.tensor(ours._training.path.alphas_cumprod, dtype=torch.float64)
    last = len(table) - 1 if rescales else None  # theirs is 0 there, and λ infinite
    torch.testing.assert_close(table[:last], base.alphas_cumprod[:last], rtol=1e-12, atol=0)
    base.set_timesteps(20)
    ours.set_timesteps(20)
    assert ours.timesteps.tolist() == base.timesteps.tolist()


def test_a_shift_of_the_snr_divides_it():
    base = diffusers.DDIMScheduler()
    ratios = [
        torch.tensor(denoiser(Told(), {**base.config, **more}).path.alphas_cumprod).double()
        for more in ({}, {"snr_shift_scale": 4.0})
    ]
    plain, shifted = (a / (1 - a) for a in ratios)
    torch.testing.assert_close(shifted, plain / 4, rtol=1e-3, atol=0)  # float32: 1 − ᾱ of 10⁻⁴


class Told(torch.nn.Module):
    config = {"in_channels": 3, "sample_size": 4}

    def forward(self, sample, timestep):
        return sample


# Whose a config is


COSINE = {
    **{"sigma_min": 0.3, "sigma_max": 500, "sigma_data": 1.0, "sigma_schedule": "exponential"},
    **{"num_train_timesteps": 1000, "solver_order": 2, "prediction_type": "v_prediction"},
    **{"rho": 7.0, "solver_type": "midpoint", "lower_order_final": True, "euler_at_final": False},
    "final_sigmas_type": "zero",
}
"""What CosineDPMSolverMultistepScheduler has by default; to make one it wants torchsde."""


@pytest.mark.parametrize(
    "base, message",
    [
        (COSINE, "scales its network"),
        (diffusers.DDIMInverseScheduler(), "pathline.encode"),
        (diffusers.DPMSolverMultistepInverseScheduler(), "pathline.encode"),
    ],
)
def test_what_is_no_scheduler_of_ours_is_refused(base, message):
    for ask in (made, lambda base: grid(base, 5)):
        with pytest.raises(UsageError, match=message):
            if ask is made or "encode" in message:
                ask(base)
            else:
                denoiser(Told(), base)


@pytest.mark.parametrize("name", ["EDMEuler", "EDMDPMSolverMultistep"])
def test_edm_without_a_name_is_still_read(name):
    base = getattr(diffusers, f"{name}Scheduler")()
    plain = {k: v for k, v in base.config.items() if not k.startswith("_")}
    assert denoiser(Told(), plain).path == pl.EDM(0.002, 80.0)


def test_there_and_back_is_as_if_we_had_not_been_there():
    """Values nobody chose stay so; and of another scheduler's config, our own keys are nobody's."""
    pndm = diffusers.PNDMScheduler(beta_schedule="scaled_linear")
    ours = made(pndm.config, grid="karras", labels="whole", seed=7)
    via, straight = DPM.from_config(ours.config), DPM.from_config(pndm.config)
    via.set_timesteps(10)
    straight.set_timesteps(10)
    assert via.timesteps.tolist() == straight.timesteps.tolist()
    changed = DPM.from_config(made(pndm, timestep_spacing="trailing").config)
    assert changed.config.timestep_spacing == "trailing"
    assert straight.config.timestep_spacing == "linspace"
    fresh = made(straight)
    for again in (made(via), made(via.config)):
        for key in schedulers.OWN:
            assert again.config[key] == fresh.config[key]
        again.set_timesteps(10)
        fresh.set_timesteps(10)
        assert again.timesteps.tolist() == fresh.timesteps.tolist()


# As many steps as labels


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("family", FAMILIES)
def test_as_many_steps_as_labels(family, spacing):
    config = {"num_train_timesteps": 100, "timestep_spacing": spacing}
    base = getattr(diffusers, f"{family}Scheduler")(**config)
    ours = made(base)
    ours.set_timesteps(100)
    labels = ours.timesteps.double()
    assert labels[0] == 99 and bool((labels.diff() < -0.9).all()) and len(labels) >= 99
    ours.set_timesteps(99)
    base.set_timesteps(99)
    assert ours.timesteps.tolist() == base.timesteps.tolist()[: len(ours.timesteps)]


def test_one_level_that_is_the_last_is_no_step():
    base = DPM(use_karras_sigmas=True, final_sigmas_type="sigma_min")
    with pytest.raises(UsageError, match="1 of them is no step"):
        grid(base, 1)
    assert grid(base, 2).n == 1

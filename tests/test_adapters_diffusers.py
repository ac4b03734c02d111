"""Models of diffusers: small ones with random weights, against the library's own schedulers.

Their tables are float32 and ours are the same numbers in float64. Where a scheduler lets us, its
table is lifted to float64 before it steps, so that nothing but the formulas is compared.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pathline as pl
from pathline.adapters.diffusers import denoiser, grid
from pathline.core import UsageError

diffusers = pytest.importorskip("diffusers", reason='needs pip install "pathline[diffusers]"')

from tiny_diffusers import (  # noqa: E402
    SINGLE,
    agree,
    dit,
    flux,
    lifted,
    noise,
    sd3,
    text_unet,
    their_states,
    unet,
)


@pytest.fixture(autouse=True)
def fixed_weights():
    torch.manual_seed(0)


# The path, view and label


@pytest.mark.parametrize("n", [10, 257, 1000])
@pytest.mark.parametrize(
    "schedule, rescale, prediction",
    [
        ("linear", False, "epsilon"),
        ("scaled_linear", False, "epsilon"),
        ("squaredcos_cap_v2", False, "sample"),
        ("sigmoid", False, "epsilon"),
        ("scaled_linear", True, "v_prediction"),
        ("linear", True, "sample"),
    ],
)
def test_the_path_is_the_table_of_the_model(schedule, rescale, prediction, n):
    scheduler = diffusers.DDPMScheduler(
        n, beta_schedule=schedule, rescale_betas_zero_snr=rescale, prediction_type=prediction
    )
    model = denoiser(unet(), scheduler)
    theirs = scheduler.alphas_cumprod.tolist()
    if rescale:  # where λ does not exist, the number that diffusers' own multistep solvers take
        assert theirs[-1] == 0
        theirs[-1] = 2.0**-24 if theirs[-2] > 2.0**-24 else theirs[-2] / 2
    assert model.path.alphas_cumprod == tuple(theirs)
    nodes = model.path.time_of_label(torch.arange(n, dtype=torch.float64))
    again = model.path.alpha(nodes) ** 2
    torch.testing.assert_close(again, torch.tensor(theirs, dtype=torch.float64), rtol=1e-12, atol=0)


def test_trained_betas_and_json_say_the_same_as_the_scheduler():
    betas = torch.linspace(1e-3, 0.3, 17).tolist()
    scheduler = diffusers.DDIMScheduler(trained_betas=betas, num_train_timesteps=17)
    config = json.loads(scheduler.to_json_string())
    network = unet()
    for told in (scheduler, scheduler.config, config):
        model = denoiser(network, told)
        assert model.path.alphas_cumprod == tuple(scheduler.alphas_cumprod.tolist())
        assert grid(told, 4).times(model.path) == grid(scheduler, 4).times(model.path)


@pytest.mark.parametrize("n", [49, 100, 1000, 4000])
def test_the_label_is_the_integer_timestep_at_every_node(n):
    model = denoiser(unet(), diffusers.DDPMScheduler(n, beta_schedule="squaredcos_cap_v2"))
    labels = torch.arange(n)
    nodes = model.path.time_of_label(labels.double())
    assert torch.equal(model.labels(nodes).float(), labels.float())


@pytest.mark.parametrize(
    "prediction, view", [("epsilon", "eps"), ("sample", "x0"), ("v_prediction", "v")]
)
def test_the_view_is_the_prediction_type(prediction, view):
    scheduler = diffusers.DDIMScheduler(prediction_type=prediction, clip_sample=False)
    network = unet()
    model = denoiser(network, scheduler)
    assert model.view == view
    x, t = noise(2, 3, 8, 8), 700
    theirs = lifted(scheduler, 10).step(network(x, t).sample, t, x).pred_original_sample
    agree(model(x, model.path.time_of_label(t)).x0, theirs)


def test_a_half_network_is_told_the_time_in_single_precision():
    heard = []

    class Listener(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones((), dtype=torch.bfloat16))

        def forward(self, sample, timestep):
            heard.append(timestep)
            return sample * self.weight

    model = denoiser(Listener(), diffusers.DDIMScheduler())
    out = model(torch.randn(2, 3, 8, 8), model.path.time_of_label(999)).raw
    assert heard[0].tolist() == [999.0, 999.0] and out.dtype == torch.float32


# Grids


@pytest.mark.parametrize("n", [1, 7, 10, 20, 50])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(
    "name",
    ["DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"],
)
def test_the_grid_visits_the_timesteps_of_the_scheduler(name, spacing, n):
    scheduler = getattr(diffusers, name)(timestep_spacing=spacing)
    path = denoiser(unet(), scheduler).path
    times = grid(scheduler, n).times(path)
    scheduler.set_timesteps(n)
    assert path.label(torch.tensor(times[:-1])).round().tolist() == scheduler.timesteps.tolist()
    assert len(times) == n + 1 and times[-1] == 0


def test_a_grid_ends_at_the_last_level_where_the_scheduler_does():
    config = dict(set_alpha_to_one=False, steps_offset=1)
    scheduler = diffusers.DDIMScheduler(**config)  # as Stable Diffusion 1 has it
    made = grid(scheduler, 20)
    path = denoiser(unet(), scheduler).path
    assert made.last == "stop" and path.label(torch.tensor(made.times(path)))[-2:].tolist() == [
        1,
        0,
    ]


@pytest.mark.parametrize("flag", ["use_karras_sigmas", "use_exponential_sigmas", "use_lu_lambdas"])
def test_noise_level_grids_are_the_schedulers_in_full_precision(flag):
    scheduler = diffusers.DPMSolverMultistepScheduler(**{flag: True})
    path = denoiser(unet(), scheduler).path
    times = torch.tensor(grid(scheduler, 12).times(path))
    scheduler.set_timesteps(12)
    ratios = (path.sigma(times) / path.alpha(times)).float()
    torch.testing.assert_close(ratios, scheduler.sigmas, rtol=1e-5, atol=0)  # from float32 tables


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_flow_grid_is_shifted_once(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    times = grid(scheduler, 8).times(pl.CondOT())
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8))
    torch.testing.assert_close(torch.tensor(times).float(), scheduler.sigmas, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_the_flow_grid_shifts_by_the_size_of_the_image(kind):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type=kind
    )
    times = grid(scheduler, 8, mu=0.9).times(pl.CondOT())
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8), mu=0.9)
    torch.testing.assert_close(torch.tensor(times).float(), scheduler.sigmas, rtol=1e-6, atol=0)


# Steps


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_ddim_step_by_step(prediction, spacing):
    scheduler = diffusers.DDIMScheduler(
        prediction_type=prediction, timestep_spacing=spacing, clip_sample=False
    )
    network, x = unet(), noise(2, 3, 8, 8)
    model = denoiser(network, scheduler)
    with torch.no_grad():
        ours = pl.solve(model, x, solver=pl.DDIM(), grid=grid(scheduler, 10), trajectory=True)
        theirs = their_states(lifted(scheduler, 10), x, lambda x, t: network(x, t).sample)
    agree(ours.trajectory, theirs)


def test_ddim_down_to_the_first_label():
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", set_alpha_to_one=False, steps_offset=1, clip_sample=False
    )
    network, x = unet(), noise(2, 3, 8, 8)
    model = denoiser(network, scheduler)
    with torch.no_grad():
        ours = pl.solve(model, x, solver=pl.DDIM(), grid=grid(scheduler, 10), trajectory=True)
        theirs = their_states(lifted(scheduler, 10), x, lambda x, t: network(x, t).sample)
    agree(ours.trajectory, theirs)


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_dpmpp_2m_step_by_step(prediction, spacing):
    """They are right at order 2 (at order 3 they have half of the second derivative)."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type=prediction, timestep_spacing=spacing
    )
    network, x = unet(), noise(2, 3, 8, 8)
    model = denoiser(network, scheduler)
    solver = pl.DPMpp(order=2, final="full")
    with torch.no_grad():
        ours = pl.solve(model, x, solver=solver, grid=grid(scheduler, 12), trajectory=True)
        theirs = their_states(lifted(scheduler, 12), x, lambda x, t: network(x, t).sample)
    agree(ours.trajectory, theirs, SINGLE)


def test_zero_terminal_snr_step_by_step():
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    network, x = unet(), noise(2, 3, 8, 8)
    model = denoiser(network, scheduler)
    with torch.no_grad():
        ours = pl.solve(
            model,
            x,
            solver=pl.DPMpp(order=2, final="full"),
            grid=grid(scheduler, 12),
            trajectory=True,
        )
        theirs = their_states(lifted(scheduler, 12), x, lambda x, t: network(x, t).sample)
    agree(ours.trajectory, theirs, SINGLE)


def test_an_euler_discrete_model_is_a_tabulated_one_in_disguise():
    """Its state is x/α, and an Euler step there is one of DDIM; it keeps its state in float32."""
    scheduler = diffusers.EulerDiscreteScheduler(timestep_spacing="trailing")
    network, x = unet(), noise(2, 3, 8, 8)
    model = denoiser(network, scheduler)
    made = grid(scheduler, 10)
    times = torch.tensor(made.times(model.path))
    scheduler.set_timesteps(10)
    alpha = model.path.alpha(times)[:, None, None, None, None]
    with torch.no_grad():
        ours = pl.solve(model, x, solver=pl.DDIM(), grid=made, trajectory=True).trajectory / alpha

        def predict(x, t):
            return network(scheduler.scale_model_input(x, t), t).sample

        theirs = their_states(scheduler, x / alpha[0], predict)
    agree(ours, theirs, tolerance=SINGLE)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["karras", "exponential"])
def test_edm_step_by_step(spacing, prediction):
    scheduler = diffusers.EDMEulerScheduler(sigma_schedule=spacing, prediction_type=prediction)
    network, x = unet(), 80 * noise(2, 3, 8, 8)
    model = denoiser(network, scheduler)
    assert model.path == pl.EDM(0.002, 80.0) and model.view == "x0"
    made = grid(scheduler, 10)
    scheduler.set_timesteps(10)
    levels = 80 * torch.tensor(made.times(model.path))
    torch.testing.assert_close(levels.float(), scheduler.sigmas, rtol=1e-5, atol=0)
    with torch.no_grad():
        ours = pl.solve(model, x, solver=pl.Euler(), grid=made, trajectory=True).trajectory

        def predict(x, t):
            return network(scheduler.scale_model_input(x, t), t).sample

        theirs = their_states(scheduler, x, predict)
    agree(ours, theirs, tolerance=SINGLE)


def test_the_continuous_euler_scheduler_is_edm_with_unit_data():
    scheduler = diffusers.EulerDiscreteScheduler(
        timestep_type="continuous", prediction_type="v_prediction", sigma_min=0.002, sigma_max=700.0
    )
    network = unet()
    model = denoiser(network, scheduler)
    x, sigma = 3 * noise(2, 3, 8, 8), torch.tensor(5.0, dtype=torch.float64)
    scheduler.timesteps, scheduler.sigmas = (sigma.log() / 4)[None], torch.stack((sigma, 0 * sigma))
    scheduler.num_inference_steps = 1
    label = scheduler.timesteps[0]
    out = network(scheduler.scale_model_input(x, label), label).sample
    theirs = scheduler.step(out, label, x).pred_original_sample
    agree(model(x, sigma / 700).x0, theirs, tolerance=SINGLE)


def test_flow_euler_step_by_step_with_sd3():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    network, x = sd3(), noise(2, 4, 8, 8)
    model = denoiser(network, scheduler)
    assert model.path == pl.CondOT() and model.view == "velocity"
    cond = dict(encoder_hidden_states=noise(2, 5, 16), pooled_projections=noise(2, 12))
    made = grid(scheduler, 8)
    with torch.no_grad():
        ours = pl.solve(model, x, solver=pl.Euler(), grid=made, trajectory=True, **cond)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8))

        def predict(x, t):
            return network(x, timestep=t.expand(2), **cond).sample

        theirs = their_states(scheduler, x, predict)
    agree(ours.trajectory, theirs, tolerance=SINGLE)


@pytest.mark.parametrize("guided", [False, True])
def test_flow_euler_step_by_step_with_flux(guided):
    """The state is an image; packing, places and the time divided by 1000 are the pipeline's."""
    pipeline = pytest.importorskip("diffusers.pipelines.flux.pipeline_flux").FluxPipeline
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    network, x = flux(guidance_embeds=guided), noise(2, 4, 8, 6)
    model = denoiser(network, scheduler)
    cond = dict(encoder_hidden_states=noise(2, 5, 16), pooled_projections=noise(2, 12))
    told = cond | ({"guidance": 3.5} if guided else {})
    made = grid(scheduler, 8, mu=0.7)
    with torch.no_grad():
        ours = pl.solve(model, x, solver=pl.Euler(), grid=made, trajectory=True, **told)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8), mu=0.7)
        places = pipeline._prepare_latent_image_ids(2, 4, 3, "cpu", torch.float64)
        guidance = torch.full((2,), 3.5, dtype=torch.float64) if guided else None

        def predict(packed, t):
            return network(
                packed,
                timestep=t.expand(2) / 1000,
                guidance=guidance,
                img_ids=places,
                txt_ids=torch.zeros(5, 3, dtype=torch.float64),
                **cond,
            ).sample

        packed = their_states(scheduler, pipeline._pack_latents(x, 2, 4, 8, 6), predict)
    theirs = torch.stack([pipeline._unpack_latents(p, 64, 48, 8) for p in packed])
    agree(ours.trajectory, theirs, tolerance=SINGLE)


# Conditions and guidance


def test_guided_text_unet_is_the_pipeline_loop():
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    network, x = text_unet(), noise(2, 4, 8, 8)
    empty, prompt = noise(1, 5, 8), noise(1, 5, 8)
    model = denoiser(network, scheduler, null={"encoder_hidden_states": empty})
    made, guide = grid(scheduler, 10), pl.CFG(3.0)
    with torch.no_grad():
        ours = pl.solve(
            model,
            x,
            solver="ddim",
            grid=made,
            guide=guide,
            trajectory=True,
            encoder_hidden_states=prompt,
        )

        def predict(x, t):
            free = network(x, t, empty.expand(2, -1, -1)).sample
            return free + 3 * (network(x, t, prompt.expand(2, -1, -1)).sample - free)

        theirs = their_states(lifted(scheduler, 10), x, predict)
    agree(ours.trajectory, theirs)
    assert ours.stats.network_calls == 20


def test_guided_dit_knows_its_null_class_and_drops_the_variance():
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    network, x = dit(), noise(2, 4, 8, 8)
    model = denoiser(network, scheduler)
    with torch.no_grad():
        ours = pl.solve(
            model,
            x,
            solver="ddim",
            grid=grid(scheduler, 5),
            guide=pl.CFG(2.0),
            trajectory=True,
            class_labels=[3, 7],
        )

        def predict(x, t):
            def at(labels):
                out = network(x, t.expand(2), class_labels=torch.tensor(labels)).sample
                return out.chunk(2, dim=1)[0]

            return at([10, 10]) + 2 * (at([3, 7]) - at([10, 10]))

        theirs = their_states(lifted(scheduler, 5), x, predict)
    agree(ours.trajectory, theirs)


def test_added_conditions_go_by_their_own_names():
    network = text_unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 6 + 10,
    )
    model = denoiser(network, diffusers.DDIMScheduler())
    x, t = noise(2, 4, 8, 8), model.path.time_of_label(300)
    text, added = noise(2, 5, 8), {"text_embeds": noise(2, 10), "time_ids": noise(2, 6)}
    theirs = network(x, 300, text, added_cond_kwargs=added).sample
    agree(model(x, t, encoder_hidden_states=text, **added).raw, theirs)
    agree(model(x, t, encoder_hidden_states=text, added_cond_kwargs=added).raw, theirs)
    with pytest.raises(UsageError, match="cannot do without text_embeds, time_ids"):
        model(x, t, encoder_hidden_states=text)


def test_own_words_are_encoded_first():
    words = {"apple": noise(1, 5, 8)}
    network = text_unet()
    model = denoiser(
        network,
        diffusers.DDIMScheduler(),
        encode=lambda text: {"encoder_hidden_states": words[text]},
    )
    x = noise(2, 4, 8, 8)
    theirs = network(x, 10, words["apple"].expand(2, -1, -1)).sample
    agree(model(x, model.path.time_of_label(10), text="apple").raw, theirs)


def test_a_pipeline_in_three_lines_samples_and_signs():
    model = denoiser(unet().float(), diffusers.DDPMScheduler())
    with torch.no_grad():
        sol = pl.sample(model, seeds=[3, 4], steps=3)
    assert sol.x.shape == (2, 3, 8, 8) and sol.ok
    assert sol.receipt.recipe["model"]["name"] == "UNet2DModel"


def test_a_compiled_network_is_read_through():
    network = text_unet()
    model = denoiser(torch.compile(network), diffusers.DDIMScheduler())
    assert model.name == "UNet2DConditionModel" and model.shape == (4, 8, 8)
    with pytest.raises(UsageError, match="unknown condition 'prompt'"):
        model.condition({"prompt": "an apple"}, 1)


# What is refused


@pytest.mark.parametrize(
    "config, message",
    [
        ({"prediction_type": "epsilom"}, "did you mean epsilon"),
        ({"beta_schedule": "cosine"}, "unknown beta_schedule"),
        ({"beta_end": None}, "lacks beta_end"),
        ({"rescale_betas_zero_snr": True}, "tells nothing of the data"),
        ({"sigma_data": 0.5, "sigma_max": None}, "lacks sigma_min, sigma_max"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused(config, message):
    plain = dict(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, num_train_timesteps=1000)
    with pytest.raises(UsageError, match=message):
        denoiser(unet(), plain | config)


@pytest.mark.parametrize(
    "scheduler, message",
    [
        ({}, "does not say how its model was trained"),
        ("ddim", "is of type str"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "inverts σ"),
        ({"_class_name": "CosineDPMSolverMultistepScheduler", "sigma_data": 1.0}, "not known here"),
    ],
)
def test_a_scheduler_of_another_kind_is_refused(scheduler, message):
    with pytest.raises(UsageError, match=message):
        denoiser(unet(), scheduler)


def test_a_network_of_another_kind_is_refused():
    with pytest.raises(UsageError, match="takes no `timestep`"):
        denoiser(nn.Linear(3, 3), diffusers.DDIMScheduler())


@pytest.mark.parametrize(
    "network, cond, message",
    [
        (text_unet, {"encoder_hidden_state": 0}, "did you mean encoder_hidden_states"),
        (text_unet, {}, "cannot do without encoder_hidden_states"),
        (
            text_unet,
            {"encoder_hidden_states": 0, "class_labels": 1},
            "unknown condition 'class_labels'",
        ),
        (
            text_unet,
            {"encoder_hidden_states": 0, "text_embeds": 1},
            "unknown condition 'text_embeds'",
        ),
        (dit, {}, "cannot do without class_labels"),
        (unet, {"class_labels": 1}, "unknown condition"),
        (sd3, {"encoder_hidden_states": 0}, "cannot do without pooled_projections"),
        (lambda: flux(guidance_embeds=True), {"guidance": 3.5}, "encoder_hidden_states, pooled"),
        (flux, {"guidance": 3.5}, "unknown condition 'guidance'"),
    ],
)
def test_a_wrong_or_missing_condition_is_named(network, cond, message):
    model = denoiser(network(), diffusers.DDIMScheduler())
    channels = 3 if network is unet else 4
    with pytest.raises(UsageError, match=message):
        model(noise(1, channels, 8, 8), 0.5, **cond)


def test_flux_needs_even_sides():
    model = denoiser(flux(), diffusers.FlowMatchEulerDiscreteScheduler())
    cond = dict(encoder_hidden_states=noise(1, 5, 16), pooled_projections=noise(1, 12))
    with pytest.raises(UsageError, match="7 × 8 is not even"):
        model(noise(1, 4, 7, 8), 0.5, **cond)


@pytest.mark.parametrize(
    "config, n, arguments, message",
    [
        ({}, 0, {}, "at least 1 step"),
        ({}, 1001, {}, "too few"),
        ({}, 5, {"mu": 1.0}, "leave mu out"),
        ({"timestep_spacing": "uniform"}, 5, {}, "unknown timestep_spacing"),
        ({"timestep_spacing": None}, 5, {}, "lacks timestep_spacing"),
        ({"use_beta_sigmas": True}, 5, {}, "use_beta_sigmas"),
        ({"steps_offset": 900}, 5, {}, "too few"),
        ({"prediction_type": "flow_prediction"}, 5, {"mu": 1.0}, "leave mu out"),
        ({"prediction_type": "flow_prediction", "use_dynamic_shifting": True}, 5, {}, "pass mu"),
    ],
)
def test_a_grid_that_cannot_be_made_is_refused(config, n, arguments, message):
    scheduler = dict(diffusers.DDIMScheduler().config)
    with pytest.raises(UsageError, match=message):
        grid(scheduler | config, n, **arguments)


# The page


def test_the_page_runs_and_prints_what_it_says(capsys):
    text = (Path(__file__).parents[1] / "docs/diffusers.md").read_text(encoding="utf-8")
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(compile(code, "docs/diffusers.md", "exec"), names)
    assert capsys.readouterr().out == text.split("```\n")[2]
    assert torch.isfinite(names["same"].x).all()

"""Real pipelines of diffusers, small and with random weights, stepped by our scheduler."""

import copy

import pytest
import torch

from pathline.solvers import DPMpp, Euler, UniPC

diffusers = pytest.importorskip("diffusers", reason='needs pip install "pathline[diffusers]"')
pytest.importorskip("transformers", reason="pipelines of diffusers import it")

import tiny_diffusers as tiny  # noqa: E402

from pathline.adapters.diffusers import Scheduler  # noqa: E402

STEPS = 5


def vae(channels=4):
    return diffusers.AutoencoderKL(
        block_out_channels=(4,),
        norm_num_groups=2,
        latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
    ).double()


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return make()


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


DDIM = diffusers.DDIMScheduler(
    timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=False
)
TEXT = {"prompt_embeds": drawn(1, 7, 8), "negative_prompt_embeds": drawn(1, 7, 8)}


def stable_diffusion():
    pipe = diffusers.StableDiffusionPipeline(
        vae(), None, None, seeded(tiny.text_unet), DDIM, None, None, requires_safety_checker=False
    )
    return pipe, {**TEXT, "latents": drawn(1, 4, 8, 8), "guidance_scale": 3.0}


def image_to_image():
    pipe = diffusers.StableDiffusionImg2ImgPipeline(
        seeded(vae), None, None, seeded(tiny.text_unet), DDIM, None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    return pipe, {**TEXT, "image": drawn(1, 4, 8, 8), "strength": 0.6, "guidance_scale": 3.0}


def sdxl():
    unet = seeded(
        lambda: tiny.text_unet(
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + 5,
        )
    )
    pipe = diffusers.StableDiffusionXLPipeline(
        vae(), None, None, None, None, unet, DDIM, add_watermarker=False
    )
    pooled = {"pooled_prompt_embeds": drawn(1, 5), "negative_pooled_prompt_embeds": drawn(1, 5)}
    return pipe, {**TEXT, **pooled, "latents": drawn(1, 4, 8, 8), "guidance_scale": 3.0}


FLOW = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
MOVING = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def sd3():
    pipe = diffusers.StableDiffusion3Pipeline(
        seeded(tiny.sd3), FLOW, vae(), None, None, None, None, None, None
    )
    text = {
        "prompt_embeds": drawn(1, 7, 16),
        "negative_prompt_embeds": drawn(1, 7, 16),
        "pooled_prompt_embeds": drawn(1, 12),
        "negative_pooled_prompt_embeds": drawn(1, 12),
    }
    return pipe, {**text, "latents": drawn(1, 4, 8, 8), "guidance_scale": 3.0}


def flux():
    network = seeded(tiny.flux)
    pipe = diffusers.FluxPipeline(MOVING, vae(4), None, None, None, None, network)
    joint, pooled = network.config.joint_attention_dim, network.config.pooled_projection_dim
    text = {"prompt_embeds": drawn(1, 7, joint), "pooled_prompt_embeds": drawn(1, pooled)}
    return pipe, {**text, "latents": drawn(1, 16, 16), "height": 8, "width": 8}


PIPES = {f.__name__: f for f in (stable_diffusion, image_to_image, sdxl, sd3, flux)}


def run(pipe, arguments, scheduler, steps=STEPS):
    pipe.scheduler = scheduler
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        return pipe(
            **arguments, num_inference_steps=steps, output_type="latent", generator=generator
        )[0]


@pytest.mark.parametrize("name", PIPES)
def test_first_order_is_the_librarys_own(name):
    """DDIM of ours beside DDIM of theirs; Euler beside FlowMatchEuler, whatever shifts the grid."""
    pipe, arguments = PIPES[name]()
    own = pipe.scheduler
    solver = Euler() if "Flow" in type(own).__name__ else "ddim"
    if name == "sd3":  # without levels of one's own, theirs shifts the last one twice
        arguments["sigmas"] = torch.linspace(1, 1 / STEPS, STEPS).tolist()
    theirs = run(pipe, arguments, copy.deepcopy(own))
    ours = run(pipe, arguments, Scheduler.from_config(own.config, solver=solver))
    tiny.agree(ours, theirs, tiny.SINGLE)


@pytest.mark.parametrize("name", ["stable_diffusion", "image_to_image", "sdxl"])
@pytest.mark.parametrize("peer", ["DPMSolver", "UniPC"])
def test_second_order_is_the_librarys_own(name, peer):
    pipe, arguments = PIPES[name]()
    own = getattr(diffusers, f"{peer}MultistepScheduler")(timestep_spacing="trailing")
    solver = DPMpp(2, final="full") if peer == "DPMSolver" else UniPC(2, final="full")
    theirs = run(pipe, arguments, own)
    made = Scheduler.from_config(own.config, solver=solver)
    ours = run(pipe, arguments, made)
    tiny.agree(ours, theirs, tiny.SINGLE)


@pytest.mark.parametrize("name", PIPES)
@pytest.mark.parametrize("solver", ["dpmpp_2m", "unipc_3", "dpmpp_2s", "dpmpp_2m_sde"])
def test_any_solver_runs_and_converges_to_one_picture(name, solver):
    """Multistep, corrected, with stages, with noise; those without noise agree at many steps."""
    pipe, arguments = PIPES[name]()
    config = pipe.scheduler.config
    few = run(pipe, arguments, Scheduler.from_config(config, solver=solver))
    assert bool(few.isfinite().all())
    if solver in ("unipc_3", "dpmpp_2s"):
        ends = [
            run(pipe, arguments, Scheduler.from_config(config, solver=s), 60)
            for s in (solver, "dpmpp_2m")
        ]
        assert (ends[0] - ends[1]).norm() < 0.02 * ends[1].norm()


def test_copies_serve_requests_of_their_own():
    pipe, arguments = stable_diffusion()
    ours = Scheduler.from_config(DDIM.config, solver="dpmpp_2m")
    one = run(pipe, arguments, ours)
    assert torch.equal(one, run(pipe, arguments, ours))
    assert torch.equal(one, run(pipe, arguments, copy.deepcopy(ours)))


# Pipelines that copy their scheduler, or bring timesteps and levels


@pytest.mark.parametrize("peer", ["DDIM", "DPMSolverMultistep"])
def test_views_of_a_panorama_have_copies_of_their_own(peer):
    """It copies the scheduler's `__dict__` in the middle of a request, for each view."""
    pipe, arguments = stable_diffusion()
    parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    pipe = diffusers.StableDiffusionPanoramaPipeline(**parts, requires_safety_checker=False)
    pipe.get_views = lambda *_, **__: [(0, 8, 0, 6), (0, 8, 2, 8)]
    config = {**DDIM.config, "set_alpha_to_one": True}
    own = getattr(diffusers, f"{peer}Scheduler").from_config(config)
    solver = "ddim" if peer == "DDIM" else DPMpp(2, final="full")
    arguments |= {"height": 8, "width": 8}
    theirs = run(pipe, arguments, own)
    ours = run(pipe, arguments, Scheduler.from_config(own.config, solver=solver))
    tiny.agree(ours, theirs, tiny.SINGLE)


@pytest.mark.parametrize("shape", ["exponential", "linear"])
def test_cogview_brings_timesteps_and_levels(shape):
    """Its network is told timesteps that the shift of the levels does not move."""
    own = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type=shape, base_shift=0.25, max_shift=0.75
    )
    network = seeded(
        lambda: diffusers.CogView4Transformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            text_embed_dim=16,
            time_embed_dim=8,
            condition_dim=4,
        ).double()
    )
    pipe = diffusers.CogView4Pipeline(None, None, vae(), network, own)
    text = {"prompt_embeds": drawn(1, 7, 16), "negative_prompt_embeds": drawn(1, 7, 16)}
    arguments = {**text, "latents": drawn(1, 4, 16, 16), "height": 16, "width": 16}
    theirs = run(pipe, arguments, copy.deepcopy(own))
    ours = Scheduler.from_config(own.config, solver="euler")
    tiny.agree(run(pipe, arguments, ours), theirs, tiny.SINGLE)
    assert ours.timesteps.tolist() == [1000.0, 750.0, 500.0, 250.0, 1.0]
    chosen = Scheduler.from_config(own.config, solver="dpmpp_2m", grid="uniform")
    assert bool(run(pipe, arguments, chosen).isfinite().all()) and len(chosen.timesteps) == STEPS


# Pipelines that begin elsewhere, stop elsewhere, or touch the state


def other(kind, name, drop=()):
    """Another pipeline of the same parts."""
    pipe, arguments = PIPES[name]()
    parts = {k: v for k, v in pipe.components.items() if k not in drop}
    arguments = {k: v for k, v in arguments.items() if k != "latents"}
    return kind(**parts), {**arguments, "image": drawn(1, 4, 8, 8), "strength": 0.6}


def flux_image_to_image():
    return other(diffusers.FluxImg2ImgPipeline, "flux", drop=("image_encoder", "feature_extractor"))


def inpainting():
    pipe = diffusers.StableDiffusionInpaintPipeline(
        seeded(vae), None, None, seeded(tiny.text_unet), DDIM, None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    image = {"image": drawn(1, 3, 8, 8).clamp(-1, 1), "mask_image": mask, "strength": 0.8}
    return pipe, {**TEXT, **image, "height": 8, "width": 8, "guidance_scale": 3.0}


@pytest.mark.parametrize("make", [flux_image_to_image, inpainting])
def test_starts_of_ones_own_are_the_librarys(make):
    pipe, arguments = make()
    own = pipe.scheduler
    solver = Euler() if "Flow" in type(own).__name__ else "ddim"
    theirs = run(pipe, arguments, copy.deepcopy(own), 10)
    tiny.agree(
        run(pipe, arguments, Scheduler.from_config(own.config, solver=solver), 10),
        theirs,
        tiny.SINGLE,
    )


def test_image_to_image_of_sd3_is_the_librarys():
    pipe, arguments = other(diffusers.StableDiffusion3Img2ImgPipeline, "sd3")
    arguments["sigmas"] = torch.linspace(1, 1 / 10, 10).tolist()
    theirs = run(pipe, arguments, copy.deepcopy(FLOW), 10)
    ours = run(pipe, arguments, Scheduler.from_config(FLOW.config, solver="euler"), 10)
    tiny.agree(ours, theirs, tiny.SINGLE)


@pytest.mark.parametrize("solver", ["heun", "dpmpp_2s", "rk4"])
def test_strength_counts_steps_where_a_step_is_several_calls(solver):
    """The same image with one call a step, at its own strength: it converges to that."""
    pipe, arguments = image_to_image()
    exact = run(pipe, arguments, Scheduler.from_config(DDIM.config, solver="dpmpp_3m"), 100)
    made = run(pipe, arguments, Scheduler.from_config(DDIM.config, solver=solver), 100)
    assert (made - exact).norm() < 5e-3 * exact.norm()


def test_a_pipeline_that_counts_timesteps_may_begin_at_the_call_that_ends_a_step():
    """Flux brings levels, and then takes every call for a step: strength 0.6 of 79 or 81 calls.

    At 81 it begins inside a step, half a step away from where the other begins.
    """
    pipe, arguments = flux_image_to_image()
    exact = run(pipe, arguments, Scheduler.from_config(MOVING.config, solver="unipc_3"), 100)
    for n, bound in ((40, 0.005), (41, 0.02)):
        made = run(pipe, arguments, Scheduler.from_config(MOVING.config, solver="heun"), n)
        assert (made - exact).norm() < bound * exact.norm()


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2s"])
def test_a_refiner_goes_on_where_the_first_model_stops(solver):
    pipe, arguments = sdxl()
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline(**pipe.components, add_watermarker=False)
    ours = Scheduler.from_config({**DDIM.config, "set_alpha_to_one": True}, solver=solver)
    whole = run(pipe, arguments, ours, 10)
    half = run(pipe, {**arguments, "denoising_end": 0.6}, copy.copy(ours), 10)
    del arguments["latents"]
    rest = {**arguments, "image": half, "denoising_start": 0.6}
    assert torch.equal(run(refiner, rest, copy.copy(ours), 10), whole)


def test_a_pipeline_is_saved_and_loaded_with_it(tmp_path):
    pipe, arguments = stable_diffusion()
    ours = Scheduler.from_config(DDIM.config, solver="unipc_3", grid="karras")
    picture = run(pipe, arguments, ours)
    pipe.save_pretrained(tmp_path)
    absent = "text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder"
    again = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path, torch_dtype=torch.float64, **dict.fromkeys(absent)
    )
    assert type(again.scheduler) is Scheduler
    assert torch.equal(run(again, arguments, again.scheduler), picture)

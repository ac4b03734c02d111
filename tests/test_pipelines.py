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
    if solver == "dpmpp_2s" and name == "image_to_image":
        pytest.skip("its strength counts timesteps, and two of them make a step")
    few = run(pipe, arguments, Scheduler.from_config(config, solver=solver))
    assert bool(few.isfinite().all())
    if solver in ("unipc_3", "dpmpp_2s") and name != "image_to_image":
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

"""Small networks of diffusers with random weights, and the loop over one of its schedulers."""

import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason='needs pip install "pathline[diffusers]"')

EXACT = 1e-11
"""Float64 roundings of a dozen steps, through 1/α ≤ 160 and a network of slope about one."""
SINGLE = 2.0**-20
"""Sixteen float32 roundings of the largest state: some schedulers step in float32 whatever comes,
about ten times here, and the network amplifies what they have rounded off by no more than a few."""


def unet(**changes):
    config = dict(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    return diffusers.UNet2DModel(**config | changes).double().eval()


def text_unet(**changes):
    config = dict(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    return diffusers.UNet2DConditionModel(**config | changes).double().eval()


def dit(**changes):
    config = dict(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        num_embeds_ada_norm=10,
    )
    return diffusers.DiTTransformer2DModel(**config | changes).double().eval()


def sd3():
    return (
        diffusers.SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pooled_projection_dim=12,
            pos_embed_max_size=8,
        )
        .double()
        .eval()
    )


def flux(**changes):
    config = dict(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=12,
        axes_dims_rope=(2, 2, 4),
    )
    return diffusers.FluxTransformer2DModel(**config | changes).double().eval()


def noise(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def their_states(scheduler, x, predict):
    """Every state of a diffusers loop; predict(x, timestep) is the network."""
    states = [x]
    for t in scheduler.timesteps:
        x = scheduler.step(predict(x, t), t, x, return_dict=False)[0]
        states.append(x)
    return torch.stack(states)


def lifted(scheduler, n, **arguments):
    """A scheduler ready for n steps, its table in float64."""
    scheduler.set_timesteps(n, **arguments)
    if hasattr(scheduler, "alphas_cumprod"):
        levels = scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
        if hasattr(scheduler, "final_alpha_cumprod"):
            ends_at_data = scheduler.config.set_alpha_to_one
            scheduler.final_alpha_cumprod = torch.ones(()).double() if ends_at_data else levels[0]
        if hasattr(scheduler, "sigmas"):
            ratios = ((1 - levels) / levels).sqrt()[scheduler.timesteps]
            scheduler.sigmas = torch.cat((ratios, ratios.new_zeros(1)))
    return scheduler


def agree(ours, theirs, tolerance=EXACT):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()

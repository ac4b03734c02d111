"""Steered Diffusion on the shipped emoji model: colours from luma, detail from a small picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from pathline.data import emoji
from pathline.fields import Denoiser
from pathline.learn import load_model
from pathline.solvers import grids, sample
from pathline.steer import Projection, operators
from pathline.steer.operators import Operator

FACTOR = 4
STEPS = 20


def held_out(n: int) -> Tensor:
    """Return n held-out emoji, even over the list, in [−1, 1], (n, 3, 32, 32)."""
    data = emoji.load()
    found = data.where("held_out")
    picked = found[:: len(found) // n][:n]
    return torch.from_numpy(data.images[picked]).permute(0, 3, 1, 2).float() / 127.5 - 1


def psnr(x: Tensor, y: Tensor) -> float:
    """Return the mean peak signal-to-noise ratio of pictures in [−1, 1], in dB."""
    error = (x.clamp(-1, 1) - y).square().flatten(1).mean(1)
    return float((10 * torch.log10(4 / error)).mean())


@dataclass(frozen=True)
class OnEmoji:
    """What projections do there, without a text; computed when first asked for, and once.

    Args:
        n: held-out pictures.
        name: of the model, or its folder.
    """

    n: int = 16
    name: str = "emoji"

    @cached_property
    def model(self) -> Denoiser:
        """The model."""
        return load_model(self.name)

    @cached_property
    def truth(self) -> Tensor:
        """The pictures."""
        return held_out(self.n)

    def restored(self, operator: Operator) -> Tensor:
        """Return pictures of which A is that of the truth."""
        guide = Projection(operator, operator.forward(self.truth))
        grid = grids.log_snr(STEPS, last="denoise")
        with torch.no_grad():
            return sample(self.model, self.n, solver="ddpm", grid=grid, guide=guide).x

    @property
    def luma_residual(self) -> float:
        """By how much the luma of coloured pictures is off, at most."""
        luma = operators.Luma()
        return float((luma.forward(self.restored(luma) - self.truth)).abs().max())

    @property
    def gain(self) -> float:
        """PSNR above that of cubic interpolation, in dB."""
        cubic = operators.Cubic(FACTOR)
        usual = F.interpolate(cubic.forward(self.truth), scale_factor=FACTOR, mode="bicubic")
        return psnr(self.restored(cubic), self.truth) - psnr(usual, self.truth)

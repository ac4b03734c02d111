"""Likelihood of pictures: bits per dimension of images of L = 256 levels under a real density.

    P(pixels) = ∫ p(x) dx over the cell of the pixels = E_u p(x(u)) (2/L)^d,   u ~ U[0, 1)^d
    x(u) = 2 (pixels + u)/L − 1

So log p at one u bounds log P from below, on average, and the log of the mean over several draws
does more tightly: a dequantisation that needs no network of its own.

Papers: Theis et al. 2016 (arXiv:1511.01844); Ho et al. 2019 (arXiv:1902.00275), Eq. 12, with the
uniform law for q.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.core.progress import track
from pathline.fields import Denoiser
from pathline.solvers.likelihood import log_prob

__all__ = ["Bits", "bits_per_dim", "dequantised"]

LEVELS = 256


@dataclass(frozen=True)
class Bits:
    """How many bits a picture costs, per dimension.

    Args:
        bits: an upper bound on −log₂ P(pixels)/d, (batch,).
        standard_error: of `bits`, from the probes of the trace alone, (batch,); zero if exact.
        nfe: evaluations of the field, the most of any picture, over all draws.
    """

    bits: Tensor
    standard_error: Tensor
    nfe: int

    def mean(self) -> tuple[float, float]:
        """Return the mean over pictures and its standard error, by their spread (NaN for one)."""
        n = len(self.bits)
        error = float(self.bits.std()) / math.sqrt(n) if n > 1 else math.nan
        return float(self.bits.mean()), error


def dequantised(
    pixels: Tensor, seeds: Sequence[int], draw: int = 0, levels: int = LEVELS
) -> Tensor:
    """Return pixels as points of their cells in [−1, 1]^d, uniformly.

    Args:
        pixels: (batch, channels, height, width) uint8.
        seeds: one a picture.
        draw: the number of the draw.
        levels: L; pixels go from 0 to L − 1.

    Returns:
        float64, of the same shape.

    Raises:
        UsageError: the pixels are no uint8 numbers below L.
    """
    if pixels.dtype != torch.uint8:
        raise UsageError(
            f"pixels are whole numbers from 0 to {levels - 1}, uint8, not {pixels.dtype}."
        )
    if pixels.numel() and (most := int(pixels.max())) >= levels:
        raise UsageError(f"pixels of {levels} levels end at {levels - 1}, and these at {most}.")
    u = noise.uniform(seeds, pixels.shape[1:], stream="data", index=draw, dtype=torch.float64)
    return (pixels.double() + u.to(pixels.device)) * (2 / levels) - 1


def bits_per_dim(
    model: Denoiser,
    pixels: Tensor,
    *,
    draws: int = 1,
    levels: int = LEVELS,
    seeds: Sequence[int] | None = None,
    batch: int = 16,
    **how: Any,
) -> Bits:
    """Return how many bits per dimension pictures cost under a model.

    Args:
        model: a denoiser of pictures in [−1, 1].
        pixels: (n, channels, height, width) uint8.
        draws: dequantisations a picture; more bound its probability more tightly.
        levels: L; pixels go from 0 to L − 1.
        seeds: of dequantisation and probes, one a picture; 0, 1, … if None.
        batch: pictures that run together.
        how: what `log_prob` takes: solver, steps, trace, guide, the condition.

    Raises:
        UsageError: no draws; pixels that are none; as `log_prob`.

    Cost: `draws` calls of `log_prob`.
    """
    if draws < 1:
        raise UsageError(f"at least 1 dequantisation is needed, and {draws} were asked for.")
    seeds = range(len(pixels)) if seeds is None else seeds
    logs: list[Tensor] = []
    errors: list[Tensor] = []
    nfe = 0
    parts = [slice(i, i + batch) for i in range(0, len(pixels), batch)]
    for part in track(parts, "likelihood"):
        drawn = [
            log_prob(
                model,
                dequantised(pixels[part], seeds[part], k, levels),
                seeds=noise.derived_seeds(seeds[part], k),
                **how,
            )
            for k in range(draws)
        ]
        log = torch.stack([each.log_prob for each in drawn])
        error = torch.stack([each.standard_error for each in drawn])
        logs.append(log.logsumexp(0) - math.log(draws))
        errors.append((log.softmax(0) * error).square().sum(0).sqrt())
        nfe = max(nfe, sum(each.stats.nfe for each in drawn))
    per_bit = pixels[0].numel() * math.log(2)
    bits = -torch.cat(logs) / per_bit + math.log2(levels / 2)
    return Bits(bits, torch.cat(errors) / per_bit, nfe)

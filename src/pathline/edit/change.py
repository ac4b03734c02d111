"""Masks of edits: what stays as it was, put back after every update at the noise of the moment.

    x ← m_t ⊙ x + (1 − m_t) ⊙ (α_t y + σ_t z),   m_t = 1 where the edit has begun

A mask of 0 and 1 keeps what is outside to the bit. Values between are a map of change: an entry of
value m is let go when the share m of the way is left, so that it changes as an edit of a lower
strength would.

Papers: Avrahami et al. 2022 (arXiv:2111.14818), blended diffusion; Levin & Fried 2023
(arXiv:2306.00950) for maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.paths import GaussianPath, Time, as_time, bshape

__all__ = ["ChangeMap", "check_mask"]


def check_mask(mask: Tensor, x: Tensor) -> Tensor:
    """Return a mask like the data.

    Raises:
        UsageError: values outside [0, 1], or a shape that does not broadcast to the data's.
    """
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise UsageError("a mask has values from 0 (stays) to 1 (is edited).")
    try:
        return mask.to(x).expand_as(x)
    except RuntimeError:
        raise UsageError(
            f"a mask of shape {tuple(mask.shape)} does not fit data of shape {tuple(x.shape)}."
        ) from None


@dataclass(frozen=True, eq=False)
class ChangeMap:
    """What stays of data, and until when; `solve(..., keep=ChangeMap(...))`.

    Args:
        y: the data, (batch, *state).
        mask: 1 where they are edited, 0 where they stay, between for a part of the way; like y.
        times: the grid of the solve, from noise to data.
    """

    y: Tensor
    mask: Tensor
    times: Sequence[float]

    def __call__(
        self,
        x: Tensor,
        path: GaussianPath,
        t: Time,
        seeds: Sequence[int],
        draw: int,
        is_last: bool,
    ) -> Tensor:
        """Return the state with what stays put back; without noise after the last update."""
        if is_last:
            return torch.where(self.mask == 0, self.y.to(x), x)
        grid = torch.tensor(self.times, dtype=torch.float64)
        at = as_time(t).to(grid)
        left = (grid <= at[..., None] + 1e-12).sum(-1).sub(1).double() / (len(grid) - 1)
        z = noise.normal(
            seeds, x.shape[1:], stream="forward", index=draw, dtype=x.dtype, device=x.device
        )
        alpha, sigma = (bshape(c(as_time(t)), x) for c in (path.alpha, path.sigma))
        stays = (self.mask == 0) | (self.mask < bshape(left, x))
        return torch.where(stays, alpha * self.y.to(x) + sigma * z, x)

    def describe(self) -> dict[str, Any]:
        """Return what a receipt says of it: how much is edited, not the data."""
        return {"name": "change", "edited": float(self.mask.double().mean())}

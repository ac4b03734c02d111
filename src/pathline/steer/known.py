"""What is known of a sample: put back after every update, at the level of noise of the moment.

    Bᵀ x ← m ⊙ (α_t Bᵀ y + σ_t Bᵀ z) + (1 − m) ⊙ Bᵀ x,   z fresh at every update

m marks the known coordinates in an orthonormal basis B of the channels: pixels themselves
(inpainting), or the grey part of colours (colourisation). It stands behind any solver
(`solve(..., keep=Known(...))`); with Langevin corrections between the steps (`pc`) what is known
reaches what is not, without them the result stays biased however many steps there are.

Paper: Song et al. 2021 (arXiv:2011.13456), Sec. 5 and App. I.2-I.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.paths import GaussianPath, Time, as_time, bshape

GREY_WITHIN = 1e-4
"""Channels of a grey picture may differ by this."""


@dataclass(frozen=True, eq=False)
class Known:
    """The coordinates that are known, and their values.

    Args:
        y: (batch, *state) or one sample's, (1, *state): the data; what is not known is not looked
            at, but must be finite.
        mask: 1 where y is known and 0 elsewhere, of a shape that broadcasts to the state's.
        basis: (channels, channels) orthonormal columns, along the first axis of a state; None for
            the coordinates as they are.

    Raises:
        UsageError: a mask that is not 0 and 1, or does not fit; a basis that is not orthonormal.
    """

    y: Tensor
    mask: Tensor
    basis: Tensor | None = None

    def __post_init__(self) -> None:
        if not bool(((self.mask == 0) | (self.mask == 1)).all()):
            raise UsageError("the mask has values other than 0 and 1; 1 is what is known.")
        try:
            shape = torch.broadcast_shapes(self.mask.shape, self.y.shape)
        except RuntimeError:
            shape = None
        if shape != self.y.shape:
            raise UsageError(
                f"a mask of shape {tuple(self.mask.shape)} does not fit data of shape "
                f"{tuple(self.y.shape)}."
            )
        if not bool(self.y.isfinite().all()):
            raise UsageError("the known data must be finite, where they are not known too.")
        if self.basis is not None:
            n = self.y.shape[1]
            if self.basis.shape != (n, n):
                raise UsageError(
                    f"the basis is {tuple(self.basis.shape)}, and the data have {n} channels."
                )
            gram = self.basis.double().T @ self.basis.double()
            if (gram - torch.eye(n).to(gram)).abs().max() > 1e-5:
                raise UsageError("the columns of the basis are not orthonormal.")

    @classmethod
    def grey(cls, picture: Tensor) -> Known:
        """Return what a grey picture tells of a coloured one: the mean of its channels.

        Args:
            picture: (batch, 3, height, width) with equal channels.

        Raises:
            UsageError: it is no such picture.
        """
        if picture.ndim != 4 or picture.shape[1] != 3:
            raise UsageError(
                f"expected grey pictures (batch, 3, height, width), and got {tuple(picture.shape)}."
            )
        if (picture - picture[:, :1]).abs().max() > GREY_WITHIN:
            raise UsageError("expected a grey image with equal channels.")
        mask = torch.tensor([1.0, 0.0, 0.0]).to(picture)[:, None, None]
        return cls(picture, mask, torch.tensor(_GREY_FIRST, dtype=picture.dtype))

    def __call__(
        self,
        x: Tensor,
        path: GaussianPath,
        t: Time,
        seeds: Sequence[int],
        draw: int,
        is_last: bool,
    ) -> Tensor:
        """Return the state with what is known put back; without noise after the last update.

        Args:
            x: (batch, *state).
            path: of the model.
            t: () or (batch,).
            seeds: one a sample.
            draw: how many updates were before.
            is_last: whether this is the result.
        """
        if self.y.shape[1:] != x.shape[1:] or len(self.y) not in (1, len(x)):
            raise UsageError(
                f"the known data have the shape {tuple(self.y.shape)}, and the samples "
                f"{tuple(x.shape)}."
            )
        alpha, sigma = (bshape(c(as_time(t)), x) for c in (path.alpha, path.sigma))
        y = alpha * self.y.to(x)
        if not is_last:
            shape = tuple(x.shape[1:])
            y = y + sigma * noise.normal(
                seeds, shape, stream="forward", index=draw, dtype=x.dtype, device=x.device
            )
        at, y = self._turned(x), self._turned(y)
        return self._turned(torch.lerp(at, y, self.mask.to(x)), back=True)

    def _turned(self, x: Tensor, back: bool = False) -> Tensor:
        if self.basis is None:
            return x
        return torch.einsum("cd,bd...->bc..." if back else "dc,bd...->bc...", self._basis.to(x), x)

    @cached_property
    def _basis(self) -> Tensor:
        """The basis, orthonormal to rounding: what is put back and forth must not drift."""
        assert self.basis is not None
        q, r = torch.linalg.qr(self.basis.double())
        return q * r.diagonal().sign()

    def describe(self) -> dict[str, Any]:
        """Return what a receipt says of it: how much is known, not the data."""
        share = float(self.mask.double().mean())
        return {"name": "known", "share": share, "in a basis": self.basis is not None}


_GREY_FIRST = [
    [1 / math.sqrt(3), -2 / math.sqrt(6), 0.0],
    [1 / math.sqrt(3), 1 / math.sqrt(6), 1 / math.sqrt(2)],
    [1 / math.sqrt(3), 1 / math.sqrt(6), -1 / math.sqrt(2)],
]
"""Columns: grey, and two directions of colour."""

"""An explicit attempt as one function of tensors, for `torch.compile`: field, stages and error.

Between the kernels of a small field an eager step spends its time in Python; as one function it is
a few kernels. Rounding differs from the eager step, as of every compiled sum, so the same tolerance
holds and the bits do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pathline.solvers.pairs import Pair

Attempt = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]


def attempt_of(pair: Pair, field: Callable[..., Tensor]) -> Attempt:
    """Return attempt(x, first, h, times, rtol, atol, cond) → (x_1, error, last, h k of stages).

    Args:
        pair: the method.
        field: f(x, t, **cond).
    """

    def attempt(  # noqa: PLR0913 - tensors of one compiled function
        x: Tensor,
        first: Tensor,
        h: Tensor,
        times: Tensor,
        rtol: float,
        atol: float,
        cond: dict[str, Any],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        stages, f, argument = [first * h], first, x
        for i, row in enumerate(pair.a[1:]):
            argument = _sum(x, row, stages)
            f = field(argument, times[i], **cond)
            stages.append(f * h)
        end = argument if pair.ends_with_last else _sum(x, pair.b, stages)
        unit = torch.maximum(x.abs(), end.abs()) * rtol + atol
        error = _rms(_sum(None, pair.error, stages) / unit)
        if pair.coarse:
            both = error.square() + 0.01 * _rms(_sum(None, pair.coarse, stages) / unit).square()
            both = both.sqrt()
            known = both != 0
            error = torch.where(known, error.square() / torch.where(known, both, 1.0), error)
        return end, error, f, torch.stack(stages)

    return attempt


def _sum(x: Tensor | None, weights: tuple[float, ...], parts: list[Tensor]) -> Tensor:
    for w, part in zip(weights, parts, strict=False):
        if w:
            x = part * w if x is None else x + part * w
    assert x is not None
    return x


def _rms(x: Tensor) -> Tensor:
    return x.flatten(1).square().mean(1).sqrt()

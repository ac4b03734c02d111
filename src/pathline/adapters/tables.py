"""The table of a scheduler: the levels ᾱ_n that its models were trained at.

In float32 and rounded as the library rounds, for that is what the models saw.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pathline.core.errors import UsageError, unknown

if TYPE_CHECKING:
    from pathline.adapters.schedulers import Scheduler

_SHIFTED = "CogVideoX"
"""The family whose table is shifted by `snr_shift_scale`, and of float64 if scaled linear."""

LOWEST_LEVEL = 2.0**-24
"""ᾱ at the last label after rescaling to zero terminal SNR: the library's own, so that λ exists.

Where the label before has no more, as with 1000 linear β, it is half of that instead: the library's
own table rises again there.
"""


def _cosine(n: int, start: float, end: float, dtype: torch.dtype) -> Tensor:
    def level(k: int) -> float:
        return math.cos((k / n + 0.008) / 1.008 * math.pi / 2) ** 2

    return torch.tensor([min(1 - level(k + 1) / level(k), 0.999) for k in range(n)], dtype=dtype)


def _linear(n: int, start: float, end: float, dtype: torch.dtype) -> Tensor:
    return torch.linspace(start, end, n, dtype=dtype)


def _scaled_linear(n: int, start: float, end: float, dtype: torch.dtype) -> Tensor:
    return _linear(n, start**0.5, end**0.5, dtype) ** 2


def _sigmoid(n: int, start: float, end: float, dtype: torch.dtype) -> Tensor:
    return _linear(n, -6, 6, dtype).sigmoid() * (end - start) + start


BETAS: dict[str, Callable[[int, float, float, torch.dtype], Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "sigmoid": _sigmoid,
    "squaredcos_cap_v2": _cosine,
}
"""β_0 … β_{N−1}, by `beta_schedule`."""


def levels(scheduler: Scheduler) -> tuple[float, ...]:
    """Return ᾱ_0 … ᾱ_{N−1}."""
    table = torch.cumprod(1 - _betas(scheduler), 0)
    shift = scheduler.says("snr_shift_scale", 3.0 if scheduler.kind.startswith(_SHIFTED) else 1.0)
    if shift != 1.0:  # divides the SNR
        table = table / (shift + (1 - shift) * table)
    if scheduler.says("rescale_betas_zero_snr"):
        if scheduler.says("prediction_type", "epsilon") == "epsilon":
            raise UsageError(
                f"{scheduler.kind} rescales to zero terminal SNR, where ε tells nothing of the "
                "data; the prediction_type of such a model is 'v_prediction' or 'sample'."
            )
        table = _rescaled(table)
    return tuple(table.tolist())


def _betas(scheduler: Scheduler) -> Tensor:
    trained = scheduler.says("trained_betas")
    if trained is not None:
        return torch.as_tensor(trained, dtype=torch.float32)
    keys = "beta_schedule", "num_train_timesteps", "beta_start", "beta_end"
    schedule, n, start, end = scheduler.need(*keys)
    if schedule not in BETAS:
        raise unknown(f"beta_schedule of {scheduler.kind}", str(schedule), BETAS)
    is_wide = schedule == "scaled_linear" and scheduler.kind.startswith(_SHIFTED)
    return BETAS[schedule](n, start, end, torch.float64 if is_wide else torch.float32)


def _rescaled(levels: Tensor) -> Tensor:
    """Shift and stretch √ᾱ until the last one is zero (arXiv:2305.08891, Alg. 1)."""
    root = levels.sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    squares = root**2
    ratios = torch.cat((squares[:1], squares[1:] / squares[:-1]))
    levels = torch.cumprod(1 - (1 - ratios), 0)  # by way of β, for the same rounding
    before = float(levels[-2])
    levels[-1] = LOWEST_LEVEL if before > LOWEST_LEVEL else before / 2
    return levels

"""Attention on a CPU, as a training step wants it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["attention_by_products"]


@contextmanager
def attention_by_products(device: torch.device) -> Generator[None]:
    """On a CPU, attend by products of matrices in the network's own precision.

    For 64 tokens in bfloat16 that is four times as fast, there and back, as the fused kernel.
    """
    if device.type != "cpu":
        yield
        return
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)

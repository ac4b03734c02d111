"""LoRA: small trainable matrices beside the frozen ones of a trained network.

    W x  →  W x + (s/r) B A x,      A (r, in), B (out, r), B = 0 at the start

So the model begins as it was, and what is trained and stored is a few percent of it.

Paper: Hu et al. 2021 (arXiv:2106.09685); the matrices are those of the library peft.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pathline.core.errors import MissingExtra, UsageError
from pathline.fields import Denoiser

__all__ = ["adapted", "adapters_of", "with_low_ranks"]


def adapted(
    model: Denoiser,
    rank: int = 4,
    scale: int | None = None,
    layers: Sequence[str] | None = None,
    seed: int = 0,
) -> Denoiser:
    """Return a copy of a model with LoRA beside its layers; all else in it is frozen.

    Args:
        model: a denoiser whose network is an `nn.Module`.
        rank: r.
        scale: s, a whole number; 2 r if None, so that a change counts twice.
        layers: names of linear layers and convolutions, or the ends of names ("query", "out");
            every linear layer if None.
        seed: of A.

    Raises:
        UsageError: no module; a rank below 1; no such layer.
        MissingExtra: peft is not installed.
    """
    if not isinstance(model.network, nn.Module):
        raise UsageError("LoRA goes into an nn.Module, and this network is a plain function.")
    if rank < 1:
        raise UsageError(f"rank={rank}: at least 1.")
    network = deepcopy(model.network).requires_grad_(False)
    chosen = _chosen(network, layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = with_low_ranks(network, chosen, rank, 2 * rank if scale is None else scale)
    return replace(model, network=network)


def with_low_ranks(network: nn.Module, layers: Sequence[str], rank: int, scale: float) -> nn.Module:
    """Put (s/r) B A beside the named layers of a network, in place, and return it.

    Raises:
        MissingExtra: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtra("peft", "lora", "to adapt a network") from error
    alpha: Any = scale  # peft takes fractions, and says int
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(layers))
    return inject_adapter_in_model(config, network)


def adapters_of(model: Denoiser) -> dict[str, Tensor]:
    """Return the trainable matrices of an adapted model, by name."""
    if not isinstance(model.network, nn.Module):
        return {}
    return {name: p for name, p in model.network.named_parameters() if p.requires_grad}


def _chosen(network: nn.Module, layers: Sequence[str] | None) -> list[str]:
    names = [n for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and n]
    if layers is None:
        return [n for n in names if isinstance(network.get_submodule(n), nn.Linear)]
    found = [n for n in names if any(n == end or n.endswith(f".{end}") for end in layers)]
    if not found:
        raise UsageError(
            f"no layer of this network is called {', '.join(layers)}; it has "
            f"{', '.join(names[:6])} …"
        )
    return found

"""A bank of keys and values: what self-attention saw in one pass, seen again in another.

    record   (k, v) of every layer are kept
    Replace  K, V ← K_bank, V_bank                     the picture attends to what there was
    Concatenate  K ← [K; K_bank], V ← [V; V_bank]      to both
    Assemble  K ← [K_0[m_0]; K_1[m_1]] …               to parts of several pictures

Queries stay those of the pass under way, so its shapes and places are its own, while textures and
colours come from the bank.

Papers: Cao et al. 2023 (MasaCtrl, arXiv:2304.08465); Mou et al. 2024 (arXiv:2402.02583), Sec. 3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathline.core.errors import UsageError
from pathline.nets.attention import Attending, attending, checked_attentions, self_attentions
from pathline.nets.features import UPS

__all__ = ["Assemble", "Concatenate", "Kept", "Replace", "Reuse", "bank_layers", "record", "replay"]


class Kept(NamedTuple):
    """Keys and values of a layer, (batch, heads, tokens, width) each."""

    k: Tensor
    v: Tensor


def bank_layers(network: nn.Module, names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the self-attentions to keep: on the way up of a U-Net if there are any, else all.

    Raises:
        UsageError: there is no such layer, or no self-attention at all.
    """
    every = self_attentions(network)
    upper = tuple(name for name in every if set(name.split(".")) & set(UPS))
    return checked_attentions(network, names, upper or every)


@contextmanager
def record(network: nn.Module, layers: Sequence[str] | None = None) -> Generator[dict[str, Kept]]:
    """Keep keys and values of the passes inside the `with` block; of the last one if several.

    Args:
        network: any of ours, or of diffusers.
        layers: those of `bank_layers` if None.

    Example:
        >>> from pathline.nets import DiT
        >>> net = DiT(channels=1, size=8, patch=4, width=32, depth=1, heads=2)
        >>> with record(net) as kept:
        ...     _ = net(torch.randn(3, 1, 8, 8), torch.tensor(0.5))
        >>> kept["blocks.0.attention"].k.shape
        torch.Size([3, 2, 4, 16])
    """
    kept: dict[str, Kept] = {}

    def answer(call: Attending) -> Tensor:
        kept[call.name] = Kept(call.k.detach(), call.v.detach())
        return call()

    with attending(network, bank_layers(network, layers), answer):
        yield kept


class Reuse(ABC):
    """How keys and values of a bank are used in a pass; a frozen value."""

    @abstractmethod
    def __call__(self, call: Attending, kept: Kept) -> Attending:
        """Return the call with other keys and values."""


@dataclass(frozen=True)
class Replace(Reuse):
    """The bank's in place of the pass's own."""

    def __call__(self, call: Attending, kept: Kept) -> Attending:
        k, v = _repeated(call, kept)
        if k.shape != call.k.shape:
            raise UsageError(
                f"{call.name}: the bank has keys of shape {tuple(k.shape)}, and the pass of "
                f"{tuple(call.k.shape)}: record it on a state of the same size."
            )
        return call.to(k, v, call.mask)


@dataclass(frozen=True)
class Concatenate(Reuse):
    """The bank's behind the pass's own."""

    def __call__(self, call: Attending, kept: Kept) -> Attending:
        k, v = _repeated(call, kept)
        more = k.shape[2]
        k, v = torch.cat((call.k, k), 2), torch.cat((call.v, v), 2)
        mask = call.mask
        if mask is not None:
            mask = F.pad(mask, (0, more), value=True if mask.dtype == torch.bool else 0.0)
        return call.to(k, v, mask)


@dataclass(frozen=True, eq=False)
class Assemble(Reuse):
    """The tokens of several pictures, each inside a mask of its own.

    Args:
        masks: (pictures, height, width); the bank holds as many samples, in this order. A mask
            that no token's patch fills by half leaves the token out.
    """

    masks: Tensor

    def __call__(self, call: Attending, kept: Kept) -> Attending:
        if len(kept.k) != len(self.masks):
            raise UsageError(
                f"{call.name}: {len(self.masks)} masks, and the bank has {len(kept.k)} pictures."
            )
        seen = [_tokens(mask, kept.k.shape[2], call.name) for mask in self.masks]
        k = torch.cat([each[:, s] for each, s in zip(kept.k, seen, strict=True)], 1)
        v = torch.cat([each[:, s] for each, s in zip(kept.v, seen, strict=True)], 1)
        if not k.shape[1]:
            raise UsageError(f"{call.name}: no token lies inside any of the masks.")
        batch = len(call.q)
        return call.to(
            k.to(call.k).expand(batch, -1, -1, -1), v.to(call.v).expand(batch, -1, -1, -1)
        )


@contextmanager
def replay(network: nn.Module, kept: Mapping[str, Kept], reuse: Reuse) -> Generator[None]:
    """Use a bank in the passes inside the `with` block.

    A pass of a multiple of the bank's samples (guidance) sees it repeated.

    Args:
        network: the one that the bank was recorded of.
        kept: what `record` gave.
        reuse: how.

    Raises:
        UsageError: the bank is empty, or does not fit the pass.
    """
    if not kept:
        raise UsageError("the bank is empty: record a pass of the network first.")
    layers = checked_attentions(network, tuple(kept), self_attentions(network))
    with attending(network, layers, lambda call: reuse(call, kept[call.name])()):
        yield


def _repeated(call: Attending, kept: Kept) -> Kept:
    times, rest = divmod(len(call.k), len(kept.k))
    if rest or not times:
        raise UsageError(
            f"{call.name}: a bank of {len(kept.k)} samples does not serve a batch of "
            f"{len(call.k)}: record it with one sample, or with those of the batch."
        )
    return Kept(*(each.to(call.k).repeat(times, 1, 1, 1) for each in kept))


def _tokens(mask: Tensor, tokens: int, name: str) -> Tensor:
    """Return which tokens a mask fills by half at least, (tokens,) bool."""
    height, width = mask.shape
    for patch in range(1, min(height, width) + 1):
        rows, columns = height // patch, width // patch
        if (rows * patch, columns * patch) == (height, width) and rows * columns == tokens:
            filled = F.avg_pool2d(mask[None, None].float(), patch)
            return (filled >= 0.5).flatten()
    raise UsageError(f"{name}: {tokens} tokens do not lie on a grid of a {height} × {width} mask.")

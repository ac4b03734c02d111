"""A transformer that computes some of its tokens, and takes the others from an earlier pass.

    block(h) = scatter(cache, kept, block(gather(h, kept)))

Each block runs attention, cross-attention and MLP on the kept tokens only, which see each other
and nobody else; the other tokens are what that block last said of them, and the rows of kept
tokens are refreshed. With all tokens kept it is the network itself.

A network can do so if it is *prunable*: `blocks` is a `ModuleList` whose modules map tokens
(batch, tokens, width), and whatever else, to tokens, and take `real=`, (batch, tokens) bool, for
the tokens that may be attended to. `token_grid` says how they lie in the picture.

Paper: Jiang et al. 2025 (SADA, arXiv:2507.17135).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from pathline.core.errors import UsageError

__all__ = ["TokenCache", "is_prunable"]


def is_prunable(network: object) -> bool:
    """Whether the tokens of a network can be pruned."""
    return isinstance(network, nn.Module) and isinstance(
        getattr(network, "blocks", None), nn.ModuleList
    )


class TokenCache(nn.Module):
    """A prunable network with what its blocks last said; for one solve.

    The network is shared, not copied, and is left as it is. A call with a multiple of the samples
    that were announced (guidance) keeps a cache for each of the multiples.

    Args:
        network: prunable.
        batch: samples of the solve.

    Example:
        >>> from pathline.nets import DiT
        >>> net = TokenCache(DiT(channels=1, size=8, patch=4, width=32, depth=2, heads=2), batch=1)
        >>> x, t = torch.randn(1, 1, 8, 8), torch.tensor(0.5)
        >>> net.aim([0], None)
        >>> whole = net(x, t)
        >>> net.aim([0], torch.tensor([[True, False, True, False]]))
        >>> torch.equal(net(x, t), whole)
        True
    """

    def __init__(self, network: nn.Module, batch: int) -> None:
        super().__init__()
        self._target = _Target(batch)
        twin = copy.copy(network)
        modules = {**network._modules}  # the twin's own table, with the same modules in it
        blocks: Any = network.blocks
        modules["blocks"] = nn.ModuleList(_Cached(block, self._target) for block in blocks)
        object.__setattr__(twin, "_modules", modules)
        self.network = twin

    def aim(self, rows: list[int], keep: Tensor | None, listened: list[int] | None = None) -> None:
        """Say whom the next calls are for, until the next time.

        Args:
            rows: the samples that are called with, in the order of the batch.
            keep: (rows, tokens) bool, which tokens to compute; None for all.
            listened: those of them whose caches are refreshed; None for all.
        """
        self._target.set(rows, keep, rows if listened is None else listened)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Call the network."""
        self._target.call(len(x))
        return self.network(x, *args, **kwargs)


class _Target:
    """Which rows of the caches a call reads and writes, and which tokens."""

    def __init__(self, batch: int) -> None:
        self.batch, self.rows = batch, torch.arange(batch)
        self.listened = self.rows
        self.keep: Tensor | None = None
        self.kept: tuple[Tensor, Tensor | None] | None = None
        self.calls, self.copies = 0, 1

    def set(self, rows: list[int], keep: Tensor | None, listened: list[int]) -> None:
        self.rows, self.listened = torch.tensor(rows), torch.tensor(listened)
        self.keep, self.calls = keep, 0

    def call(self, n: int) -> None:
        """Begin a call of n samples: a multiple of the rows, or another call for the same rows."""
        self.copies = n // len(self.rows)
        self.calls += self.copies
        self.kept = None
        if self.keep is not None:
            counts = self.keep.sum(1)
            order = self.keep.int().argsort(dim=1, descending=True, stable=True)
            order = order[:, : int(counts.max())]
            real = self.keep.gather(1, order)
            even = bool((counts == counts[0]).all())
            self.kept = order.repeat(self.copies, 1), None if even else real.repeat(self.copies, 1)

    @property
    def slots(self) -> range:
        """Which copies of the batch this call is about."""
        return range(self.calls - self.copies, self.calls)


class _Cached(nn.Module):
    """A block that remembers its output."""

    def __init__(self, block: nn.Module, target: _Target) -> None:
        super().__init__()
        self.block = block
        self._target, self._cache = target, dict[int, Tensor]()

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        kept = self._target.kept
        if kept is None:
            out = self.block(x, *args)
        else:
            index, real = kept
            index = index.to(x.device)
            rows = index[..., None].expand(-1, -1, x.shape[-1])
            real = None if real is None else real.to(x.device)
            new = self.block(x.gather(1, rows), *args, real=real)
            old = self._read(x)
            if real is not None:  # what pads a sample's tokens keeps what it was
                new = torch.where(real[..., None], new, old.gather(1, rows))
            out = old.scatter(1, rows, new)
        self._write(out)
        return out

    def _read(self, like: Tensor) -> Tensor:
        target, rows = self._target, self._target.rows.to(like.device)
        known = all(slot in self._cache for slot in target.slots)
        if not known and target.keep is not None and not bool(target.keep.all()):
            raise UsageError(
                "tokens come from a cache that has none yet: call once with all of them, "
                "aim(rows, None), and again whenever guidance begins to make more calls."
            )
        return torch.cat([self._slot(slot, like)[rows] for slot in target.slots])

    def _write(self, out: Tensor) -> None:
        target = self._target
        for slot, part in zip(target.slots, out.chunk(target.copies), strict=True):
            if len(target.listened) == target.batch:
                self._cache[slot] = part
            else:
                whom = target.listened.to(part.device)
                if len(target.rows) != len(whom):
                    part = part[whom]  # of the whole batch
                self._cache[slot] = self._slot(slot, out).index_copy(0, whom, part)

    def _slot(self, slot: int, like: Tensor) -> Tensor:
        """Return a cache; where there is none yet, NaN: whose tokens were never all computed."""
        known = self._cache.get(slot)
        unknown = (self._target.batch, *like.shape[1:])
        return like.new_full(unknown, torch.nan) if known is None else known

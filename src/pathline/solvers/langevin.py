"""Annealed Langevin blocks at one noise level, with a guard against divergence.

    x ← x + e g(x) + √(2e) z,     g = ∇log p_t,   e smaller from block to block

and after each block one step without noise, x ← x + e g(x). As the steps go on at a fixed level the
state forgets where it came from and becomes a draw of p_t; with e → 0 it stays. Unadjusted steps
have a bias: the variance of N(0, v) becomes v/(1 − e/(2v)).

Paper: van Delft et al. 2024 (arXiv:2408.12418), whose blocks these are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.paths import bshape
from pathline.solvers.corrector import langevin
from pathline.solvers.levels import norms

__all__ = ["AnnealedBlocks", "Ran"]

Score = Callable[[Tensor], Tensor]
RESTARTS = 3
"""How often a block is begun again at most, each time with a quarter of the step."""
QUARTER = 0.25
MOST_STEPS = 2**20 // (RESTARTS + 1)


class Ran(NamedTuple):
    """What came of the blocks at one level.

    Args:
        x: (batch, *state).
        before: the norm of the score at the start, (batch,).
        after: the same before the last step, (batch,).
        restarts: blocks that were begun again with a quarter of the step, (batch,) int64.
        evaluations: of the score.
    """

    x: Tensor
    before: Tensor
    after: Tensor
    restarts: Tensor
    evaluations: int


@dataclass(frozen=True)
class AnnealedBlocks:
    """Langevin steps in blocks, each with a smaller step than the one before.

    The guard: a score whose norm grows for so many steps in a row, and is above what noise alone
    would have (√n/σ), belongs to a state that runs away. The block is then begun again for that
    sample with a quarter of the step, three times at most. (A state that is too quiet also has a
    growing score, up to that norm, and is left alone.)

    Args:
        n: steps, shared among the blocks.
        blocks: A.
        decay: what e is multiplied with from block to block.
        growth: how many growing steps in a row are too many; 0 for no guard.
        heat: a factor of the noise: 0 climbs the likelihood.

    Cost: n + blocks evaluations, and those of the blocks that are begun again.
    """

    n: int = 200
    blocks: int = 4
    decay: float = 0.8
    growth: int = 20
    heat: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.n < MOST_STEPS or self.blocks < 1 or self.growth < 0:
            raise UsageError(
                f"{self.n} steps in {self.blocks} blocks, a guard of {self.growth}: from 0 to "
                f"{MOST_STEPS - 1} steps in at least one block, and 0 for no guard."
            )
        if not 0 < self.decay <= 1:
            raise UsageError(f"decay={self.decay}: steps shrink by a factor in (0, 1].")
        if not self.heat >= 0:
            raise UsageError(f"heat={self.heat}: noise has a factor of 0 or more.")

    def run(
        self,
        score: Score,
        x: Tensor,
        size: float,
        sigma: float,
        *,
        seeds: Sequence[int],
        level: int = 0,
    ) -> Ran:
        """Run the blocks.

        Args:
            score: g(x), (batch, *state) → the same.
            x: where to begin.
            size: e of the first block.
            sigma: the noise of the level, for the guard.
            seeds: one a sample.
            level: a number of its own for each level at which these seeds draw, below 2^12.

        Raises:
            UsageError: e is not above 0.
        """
        if not size > 0:
            raise UsageError(f"ε = {size:g}: a Langevin step is longer than 0.")
        restarts = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        if not self.n:
            none = x.new_full((len(x),), torch.nan)
            return Ran(x, none, none, restarts, 0)
        walk = _Walk(self, score, x[0].numel() ** 0.5 / sigma, tuple(seeds), level)
        e = torch.full((len(x),), size, dtype=torch.float64, device=x.device)
        before, after = None, x.new_empty(0)
        for block in range(self.blocks):
            found = walk.block(block, 0, x, e)
            for attempt in range(1, RESTARTS + 1):
                if not bool(found.ran_away.any()):
                    break
                e = torch.where(found.ran_away, e * QUARTER, e)
                restarts = restarts + found.ran_away
                found = found.mended(walk.block(block, attempt, x, e))
            x, after = found.x, found.after
            before = found.before if before is None else before
            e = e * self.decay
        assert before is not None
        return Ran(x, before, after, restarts, walk.evaluations)

    def share(self, block: int) -> tuple[int, int]:
        """Return the first step of a block, and how many it has."""
        whole, more = divmod(self.n, self.blocks)
        return block * whole + min(block, more), whole + (block < more)


class _Found(NamedTuple):
    """What came of a block; each (batch, …)."""

    x: Tensor
    before: Tensor
    after: Tensor
    ran_away: Tensor

    def mended(self, again: _Found) -> _Found:
        """Return it with the samples that ran away as they came out of another attempt."""
        away = self.ran_away
        x = torch.where(bshape(away, self.x) > 0, again.x, self.x)
        after = torch.where(away, again.after, self.after)
        return _Found(x, self.before, after, away & again.ran_away)


class _Walk:
    """The blocks of one run; counts evaluations."""

    def __init__(
        self,
        how: AnnealedBlocks,
        score: Score,
        limit: float,
        seeds: tuple[int, ...],
        level: int,
    ) -> None:
        self._how, self._score, self._limit = how, score, limit
        self._seeds, self._level, self.evaluations = seeds, level, 0

    def block(self, number: int, attempt: int, x: Tensor, e: Tensor) -> _Found:
        """Run a block from x with steps e, (batch,)."""
        how = self._how
        first, n = how.share(number)
        before, last = None, torch.full((len(x),), torch.inf, device=x.device, dtype=x.dtype)
        grown = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        longest = grown
        for k in range(first + attempt * how.n, first + attempt * how.n + n):
            g, norm = self._scored(x)
            before = norm if before is None else before
            grown = torch.where((norm > last) & (norm > self._limit), grown + 1, 0)
            longest, last = torch.maximum(longest, grown), norm
            x = langevin(x, g, e, how.heat * self._noise(k, x))
        g, norm = self._scored(x)
        x = x + bshape(e, x) * g
        away = longest >= how.growth if how.growth else longest < 0
        return _Found(x, norm if before is None else before, norm, away | ~norm.isfinite())

    def _scored(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.evaluations += 1
        g = self._score(x)
        return g, norms(g)

    def _noise(self, k: int, like: Tensor) -> Tensor:
        index = (self._level << 20) + k
        return noise.normal(
            self._seeds, like.shape[1:], stream="corrector", index=index, dtype=like.dtype,
            device=like.device,
        )  # fmt: skip

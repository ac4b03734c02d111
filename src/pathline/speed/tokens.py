"""Which tokens of a transformer an evaluation computes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.core.warned import warn
from pathline.fields import Field
from pathline.fields.denoiser import denoiser_in, with_network
from pathline.nets.token_cache import TokenCache, is_prunable
from pathline.solvers.evaluate import Call
from pathline.speed.sada import Tokens


class TokenChoice:
    """Chooses tokens, and evaluates a field whose network computes no others.

    Args:
        settings: how many.
        field: the field of the solve, with the cache in its network's place.
        cache: that.
        grid: (height, width) in tokens.
        seeds: one a sample.
    """

    def __init__(
        self,
        settings: Tokens,
        field: Field,
        cache: TokenCache,
        grid: tuple[int, int],
        seeds: Sequence[int],
    ) -> None:
        self.field, self._settings, self._cache = field, settings, cache
        self._grid, self._seeds = grid, seeds

    @classmethod
    def of(cls, settings: Tokens | None, call: Call) -> TokenChoice | None:
        """Return a choice of tokens for a solve; None if there is nothing to choose.

        A network that cannot be pruned is warned about, and all of it is computed. One that was
        compiled is evaluated as it was before.

        Raises:
            UsageError: nobody says how the tokens lie, or they do not divide the state.
        """
        if settings is None:
            return None
        denoiser = denoiser_in(call.field)
        network = call.field if denoiser is None else denoiser.network
        network = getattr(network, "uncompiled", network)  # how many tokens there are varies
        if not isinstance(network, nn.Module) or not is_prunable(network):
            warn(
                f"{type(network).__name__} has no prunable blocks (pathline.nets.token_cache says "
                "what they are); all of its tokens are computed."
            )
            return None
        grid = settings.grid or getattr(network, "token_grid", None)
        if grid is None:
            raise UsageError(
                "the network does not say how its tokens lie: give Tokens(grid=(height, width))."
            )
        _check_grid(grid, call.x)
        cache = TokenCache(network, len(call.x))
        seeds = call.seeds if isinstance(call.seeds, tuple) else range(len(call.x))
        return cls(settings, with_network(call.field, cache), cache, grid, seeds)

    def aim(self, rows: list[int], keep: Tensor | None, alone: bool) -> None:
        """Say which samples and tokens the next evaluation is about.

        Args:
            rows: the samples.
            keep: everyone's tokens, (batch, tokens) bool; None for all tokens.
            alone: whether they come alone, or among the whole batch.
        """
        at = rows if alone else list(range(len(self._seeds)))
        self._cache.aim(at, None if keep is None else keep[at], rows)

    def kept(self, i: int, kappa: Tensor) -> Tensor:
        """Return the tokens that evaluation i has to compute, (batch, tokens) bool.

        Args:
            i: which evaluation.
            kappa: (batch, channels, height, width).
        """
        score = F.adaptive_avg_pool2d(kappa.mean(1, keepdim=True), self._grid).flatten(1)
        n, most = (score >= 0).sum(1, keepdim=True), self._settings.most
        if self._settings.by == "random":
            draws = noise.uniform(self._seeds, score.shape[1:], stream="probe", index=i + 2**16)
            score = draws.to(score.device)
        rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        chosen = rank < (n if most is None else n.clamp(max=most))
        return chosen | self._in_windows(i).to(score.device)

    def _in_windows(self, i: int) -> Tensor:
        """Return one token of every window, (batch, tokens) bool, a function of the seed and i."""
        (height, width), side = self._grid, self._settings.window
        down, right = math.ceil(height / side), math.ceil(width / side)
        draws = noise.uniform(
            self._seeds, (down, right, 2), stream="probe", index=i, dtype=torch.float64
        )
        keep = torch.zeros(len(draws), height, width, dtype=torch.bool)
        top, left = side * torch.arange(down)[:, None], side * torch.arange(right)[None]
        rows = top + (draws[..., 0] * (height - top).clamp(max=side)).long()
        columns = left + (draws[..., 1] * (width - left).clamp(max=side)).long()
        keep[torch.arange(len(draws))[:, None, None], rows, columns] = True
        return keep.flatten(1)


def _check_grid(grid: tuple[int, int], x: Tensor) -> None:
    if x.ndim != 4 or x.shape[2] % grid[0] or x.shape[3] % grid[1]:
        raise UsageError(
            f"states of shape {tuple(x.shape[1:])} cannot be divided into {grid[0]} × {grid[1]} "
            "tokens; give Tokens(grid=(height, width))."
        )

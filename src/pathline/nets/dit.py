"""A diffusion transformer: patches attend to each other and to the tokens of a condition.

    h ← h + g₁ · SelfAttention((1 + s₁) · norm(h) + b₁)
    h ← h + CrossAttention(norm(h), context)
    h ← h + g₂ · MLP((1 + s₂) · norm(h) + b₂)

The six modulations (b, s, g) are one projection of (time, mean of the condition), shared by all
blocks, plus a learned offset of each block. Gates and last projections start at zero: an untrained
network is exactly the zero function.

Paper: Peebles & Xie 2023 (DiT, adaLN-Zero); Chen et al. 2024 (PixArt-α: adaLN-single and
cross-attention).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathline.core.errors import UsageError

__all__ = ["DiT", "sinusoids"]


def sinusoids(t: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Return cosines and sines of `t` at geometrically spaced frequencies.

    Args:
        t: (batch,), positions or time labels.
        width: an even number of features.
        max_period: 2π times this is the longest wave, nearly.

    Returns:
        (batch, width) in float32.
    """
    half = width // 2
    steps = torch.arange(half, device=t.device) / half
    angle = t.float()[:, None] * torch.exp(-math.log(max_period) * steps)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class DiT(nn.Module):
    """A transformer over image patches, modulated by time, attending to condition tokens.

    Choose it for images up to about 64 × 64 with a sequence of tokens (text) as the condition.

    Args:
        channels: of the images, which are (batch, channels, size, size).
        size: side of an image.
        patch: side of a patch; the network sees (size/patch)² tokens.
        width: features of a token.
        depth: number of blocks.
        heads: of each attention.
        mlp_ratio: width of the hidden layer of a block over `width`.
        context_width: features of a condition token; None builds an unconditional network.
        time_scale: what time labels are multiplied with; 1000 suits labels in [0, 1].

    Raises:
        UsageError: sizes that do not divide each other.

    Example:
        >>> net = DiT(channels=1, size=8, patch=4, width=32, depth=1, heads=2)
        >>> net(torch.randn(3, 1, 8, 8), torch.tensor(0.5)).abs().max().item()
        0.0
    """

    def __init__(  # noqa: PLR0913 (a size each; all can be named)
        self,
        channels: int = 3,
        size: int = 32,
        patch: int = 4,
        width: int = 256,
        depth: int = 6,
        heads: int = 4,
        *,
        mlp_ratio: float = 4.0,
        context_width: int | None = None,
        time_scale: float = 1000.0,
    ) -> None:
        super().__init__()
        _check_sizes(size, patch, width, heads)
        self.patch, self.width, self.time_scale = patch, width, time_scale
        self.embed = nn.Linear(channels * patch * patch, width)
        self.positions: Tensor
        self.register_buffer("positions", _positions(size // patch, width), persistent=False)
        self.time = _two_layers(width)
        self.modulation = nn.Linear(width, 6 * width)
        attends = context_width is not None
        blocks = [_Block(width, heads, mlp_ratio, attends) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.last_modulation = nn.Linear(width, 2 * width)
        self.unembed = nn.Linear(width, channels * patch * patch)
        self.null = nn.Parameter(torch.randn(1, context_width) * 0.5) if attends else None
        self.context = _Condition(context_width, width) if context_width is not None else None
        self.pooled = _two_layers(width) if attends else None
        _initialise(self)
        _silence([self.modulation, self.last_modulation, self.unembed])
        _silence([block.cross.out for block in blocks if block.cross is not None])

    @property
    def token_grid(self) -> tuple[int, int]:
        """How its tokens lie in the picture: (height, width)."""
        side = math.isqrt(len(self.positions))
        return side, side

    @property
    def is_conditional(self) -> bool:
        """Whether the network attends to condition tokens."""
        return self.null is not None

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        drop: Tensor | None = None,
    ) -> Tensor:
        """Return the network's output at `x`.

        Args:
            x: (batch, channels, size, size).
            t: (batch,) or (), the time label.
            context: (batch, length, context_width), condition tokens; None is the learned null.
            mask: (batch, length) bool, True where a token is real; None is everywhere.
            drop: (batch,) bool, True where the learned null takes the condition's place.

        Returns:
            (batch, channels, size, size).
        """
        waves = sinusoids(t.expand(x.shape[0]) * self.time_scale, self.width)
        features = self.time(waves.to(x.dtype))
        tokens, mask = self._read(x, context, mask, drop)
        if tokens is not None and self.pooled is not None:
            features = features + self.pooled(_mean(tokens, mask))
        features = F.silu(features)
        modulation = self.modulation(features).unflatten(-1, (6, self.width))
        h = self.embed(_to_patches(x, self.patch)) + self.positions
        for block in self.blocks:
            h = block(h, modulation, tokens, mask)
        shift, scale = self.last_modulation(features)[:, None].chunk(2, dim=-1)
        return _from_patches(self.unembed(self.norm(h) * (1 + scale) + shift), self.patch)

    def null_context(self, batch: int, length: int = 1) -> tuple[Tensor, Tensor]:
        """Return the learned null condition, one real token and padding.

        Returns:
            context (batch, length, context_width) and mask (batch, length).

        Raises:
            UsageError: the network is unconditional.
        """
        if self.null is None:
            raise UsageError("this DiT has no condition, and so no null; give it a context_width.")
        context = F.pad(self.null, (0, 0, 0, length - 1)).expand(batch, -1, -1)
        mask = torch.arange(length, device=context.device) < 1
        return context, mask.expand(batch, -1)

    def _read(
        self, x: Tensor, context: Tensor | None, mask: Tensor | None, drop: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the condition as tokens (batch, length, width) with their mask."""
        if self.context is None:
            if context is not None:
                raise UsageError("this DiT is unconditional (context_width=None); give no context.")
            return None, None
        if context is None:
            context, mask = self.null_context(len(x))
        elif drop is not None:
            null, null_mask = self.null_context(len(x), context.shape[1])
            mask = torch.ones_like(null_mask) if mask is None else mask
            context = torch.where(drop[:, None, None], null.to(context.dtype), context)
            mask = torch.where(drop[:, None], null_mask, mask)
        return self.context(context), mask


class _Condition(nn.Sequential):
    """Condition tokens to tokens of the network's width."""

    def __init__(self, context_width: int, width: int) -> None:
        super().__init__(nn.Linear(context_width, width), nn.LayerNorm(width))


class _Attention(nn.Module):
    """Attention from `x` to `context`, or to itself; queries and keys are normalised."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.query_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.key_norm = nn.RMSNorm(width // heads, eps=1e-6)

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        k, v = self.key_value(x if context is None else context).chunk(2, dim=-1)
        q, k, v = (self._split(a) for a in (self.query(x), k, v))
        q, k = _normalised(self.query_norm, q), _normalised(self.key_norm, k)
        attend = None if mask is None else mask[:, None, None, :]
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=attend)
        return self.out(h.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to (batch, heads, tokens, width/heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _normalised(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """Normalise in the precision of the weights, whatever `x` came in (mixed precision)."""
    return norm(x.to(norm.weight.dtype)).to(x.dtype)


class _Block(nn.Module):
    """Self-attention, cross-attention and an MLP, each added to the stream."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, attends: bool) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = _Attention(width, heads)
        self.cross = _Attention(width, heads) if attends else None
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width)
        )
        self.offset = nn.Parameter(torch.zeros(6, width))

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        context: Tensor | None,
        mask: Tensor | None,
        real: Tensor | None = None,
    ) -> Tensor:
        # x (batch, tokens, width), modulation (batch, 6, width), context (batch, length, width);
        # real (batch, tokens): which tokens may be attended to, where some are padding
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            (modulation + self.offset).unsqueeze(2).unbind(1)
        )
        x = x + gate1 * self.attention(self.norm(x) * (1 + scale1) + shift1, mask=real)
        if self.cross is not None:
            x = x + self.cross(self.norm(x), context, mask)
        return x + gate2 * self.mlp(self.norm(x) * (1 + scale2) + shift2)


def _check_sizes(size: int, patch: int, width: int, heads: int) -> None:
    if size % patch:
        raise UsageError(f"a DiT's size must be a multiple of its patch; they are {size}, {patch}.")
    if width % 4 or width % heads:
        raise UsageError(
            f"a DiT's width must be a multiple of 4 and of its heads; they are {width}, {heads}."
        )


def _two_layers(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)


def _silence(layers: list[nn.Linear]) -> None:
    """Make layers start at zero."""
    for layer in layers:
        nn.init.zeros_(layer.weight)


def _positions(side: int, width: int) -> Tensor:
    """Return the 2-D sine-cosine embedding of a side × side grid, (side², width)."""
    axes = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.cat([sinusoids(a.reshape(-1), width // 2, max_period=100.0) for a in axes], dim=-1)


def _mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean of the real tokens, (batch, width)."""
    if mask is None:
        return tokens.mean(1)
    weight = mask[..., None].to(tokens.dtype)
    return (tokens * weight).sum(1) / weight.sum(1)


def _to_patches(x: Tensor, p: int) -> Tensor:
    """(batch, channels, H, W) to (batch, H/p · W/p, channels · p²)."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // p, p, width // p, p)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * p * p)


def _from_patches(tokens: Tensor, p: int) -> Tensor:
    """Undo `_to_patches`, for square images."""
    batch, count, features = tokens.shape
    side, channels = math.isqrt(count), features // (p * p)
    x = tokens.reshape(batch, side, side, channels, p, p)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, side * p, side * p)

"""A convolutional U-Net: down to a coarse view of the image and back, told the time and a class.

    h ← h + conv₂(silu((1 + s) · norm(conv₁(silu(norm(h)))) + b)),   (s, b) = W silu(time + class)

What each level computes on the way down is set beside what comes up. The last convolution of every
block, the projections of attention and the output start at zero: an untrained network is exactly
the zero function. Its last class means "no class", so guidance needs no second network.

A network that says the noise can be told the table of a discrete-time model. It then says

    ε̂ = (1 − α_n) x + α_n F(x, n),   α_n² = Π_{k ≤ n} (1 − β_k)

where F is all of the above. Near pure noise ε is x but for a part of size α_n, and x̂_0 is that part
over α_n: an error of one percent in ε̂ would be one of 160 percent in x̂_0. F is of size one
everywhere: it goes from ε, where there is little noise, to ε − x_0 where there is nothing else.

Paper: Ronneberger et al. 2015 (U-Net); Ho et al. 2020 (DDPM); Dhariwal & Nichol 2021 (scale-shift).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathline.core.errors import UsageError
from pathline.nets.dit import sinusoids

__all__ = ["UNet"]


class UNet(nn.Module):
    """A U-Net over images, told the time and, if it has classes, a class.

    Choose it for small images without text; a `DiT` attends to tokens. Rows of a batch do not see
    each other. The borders are padded with zeros and the kernels are free, so it is equivariant
    neither to shifts nor to flips.

    Args:
        channels: of the images, (batch, channels, height, width).
        width: features at full resolution, a multiple of `groups`.
        multipliers: of `width`, one a level; each level halves the image.
        blocks: residual blocks a level, on either way.
        attention: the levels that attend to themselves; 0 is full resolution. The middle always
            does.
        classes: number of classes; None builds a network that is told none.
        heads: of each attention.
        groups: of the normalisations.
        time_scale: what time labels are multiplied with; 1 suits labels in 0 … 999.
        betas: (first, last, n), the ends and the length of a linear table of β: the network says
            the noise at labels 0 … n − 1, real-valued ones too. None says F.

    Raises:
        UsageError: sizes that do not divide each other.

    Example:
        >>> net = UNet(width=8, multipliers=(1, 2), blocks=1, classes=10)
        >>> x, t = torch.randn(3, 1, 28, 28), torch.tensor(999.0)
        >>> net(x, t, torch.tensor([0, 1, 10])).abs().max().item()
        0.0
    """

    def __init__(  # noqa: PLR0913 (a size each; all can be named)
        self,
        channels: int = 1,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        blocks: int = 2,
        attention: Sequence[int] = (),
        *,
        classes: int | None = None,
        heads: int = 4,
        groups: int = 8,
        time_scale: float = 1.0,
        betas: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        _check_levels(multipliers, blocks, attention)
        _check_widths(width, multipliers, heads, groups)
        self.width, self.classes, self.time_scale = width, classes, time_scale
        self.multiple = 2 ** (len(multipliers) - 1)
        embedding = 4 * width
        self.time = nn.Sequential(
            nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.label = None if classes is None else nn.Embedding(classes + 1, embedding)
        self.stem = nn.Conv2d(channels, width, 3, padding=1)

        def stage(inner: int, out: int, attends: bool) -> nn.Module:
            return _Stage(inner, out, embedding, groups, heads if attends else None)

        widths = [width * m for m in multipliers]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, out in enumerate(widths):
            attends = level in attention
            halve = _Halve(widths[level - 1], out) if level else nn.Identity()
            below = widths[level + 1 :]
            double = _Double(below[0], out) if below else nn.Identity()
            self.down.append(_Down(halve, [stage(out, out, attends) for _ in range(blocks)]))
            self.up.insert(0, _Up(double, [stage(2 * out, out, attends) for _ in range(blocks)]))
        last = widths[-1]
        self.middle = nn.ModuleList([stage(last, last, True), stage(last, last, False)])
        self.norm = nn.GroupNorm(groups, width)
        self.out = _silenced(nn.Conv2d(width, channels, 3, padding=1))
        self.log_alphas: Tensor | None
        self.register_buffer("log_alphas", _log_alphas(betas), persistent=False)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the network's output at `x`.

        Args:
            x: (batch, channels, height, width); the sides are multiples of `multiple`.
            t: (batch,) or (), the time label.
            label: (batch,) or () int64, the class; `classes`, or None, means none.

        Returns:
            (batch, channels, height, width).

        Raises:
            UsageError: sides it cannot halve, or a class for a network without classes.
        """
        self._check(x, label)
        waves = sinusoids(t.expand(len(x)) * self.time_scale, self.width)
        features = self.time(waves.to(x.dtype))
        if self.classes is not None and self.label is not None:
            told = t.new_full((), self.classes, dtype=torch.long) if label is None else label
            features = features + self.label(told.expand(len(x)))
        features = F.silu(features)
        h = self.stem(x.contiguous(memory_format=torch.channels_last))
        kept: list[list[Tensor]] = []
        for level in self.down:
            kept.append(level(h, features))
            h = kept[-1][-1]
        for stage in self.middle:
            h = stage(h, features)
        for level in self.up:
            h = level(h, features, kept.pop())
        said = self.out(F.silu(self.norm(h)))
        return said if self.log_alphas is None else _as_noise(said, x, t, self.log_alphas)

    def _check(self, x: Tensor, label: Tensor | None) -> None:
        sides = tuple(x.shape[2:])
        if len(sides) != 2 or any(side % self.multiple for side in sides):
            raise UsageError(
                f"this UNet halves images {len(self.down) - 1} times: it takes (batch, channels, "
                f"height, width) with sides that {self.multiple} divides, not {tuple(x.shape)}."
            )
        if label is not None and self.label is None:
            raise UsageError("this UNet was built without classes; give it no label.")


def _as_noise(said: Tensor, x: Tensor, label: Tensor, log_alphas: Tensor) -> Tensor:
    """Return (1 − α) x + α F at a label; between two labels log α is a line."""
    left = label.floor().clamp(0, len(log_alphas) - 2).long()
    start, end = log_alphas[left], log_alphas[left + 1]
    alpha = torch.lerp(start, end, (label - left).to(start.dtype)).exp()[..., None, None, None]
    return torch.lerp(x, said.to(x.dtype), alpha.to(x.dtype))


def _log_alphas(betas: Sequence[float] | None) -> Tensor | None:
    """Return log α_0 … log α_{n−1}, in float32."""
    if betas is None:
        return None
    if len(betas) != 3 or not 0 < betas[0] <= betas[1] < 1 or betas[2] < 2:
        raise UsageError(
            "a UNet's betas are (first, last, n) with 0 < first ≤ last < 1 and n ≥ 2; they are "
            f"{tuple(betas)}."
        )
    table = torch.linspace(betas[0], betas[1], int(betas[2]), dtype=torch.float64)
    return (0.5 * torch.cumsum(torch.log1p(-table), 0)).float()


class _Down(nn.Module):
    """A level on the way down: half the sides, then its stages."""

    def __init__(self, resample: nn.Module, stages: list[nn.Module]) -> None:
        super().__init__()
        self.resample = resample
        self.stages = nn.ModuleList(stages)

    def forward(self, h: Tensor, features: Tensor) -> list[Tensor]:
        h = self.resample(h)
        return [h := stage(h, features) for stage in self.stages]


class _Up(nn.Module):
    """A level on the way up: twice the sides, then its stages beside what `_Down` had there."""

    def __init__(self, resample: nn.Module, stages: list[nn.Module]) -> None:
        super().__init__()
        self.resample = resample
        self.stages = nn.ModuleList(stages)

    def forward(self, h: Tensor, features: Tensor, kept: list[Tensor]) -> Tensor:
        h = self.resample(h)
        for stage, beside in zip(self.stages, reversed(kept), strict=True):
            h = stage(torch.cat([h, beside], dim=1), features)
        return h


class _Halve(nn.Conv2d):
    """Half the sides, by a strided convolution."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(width, out, 3, stride=2, padding=1)


class _Double(nn.Conv2d):
    """Twice the sides: each pixel four times, then a convolution."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(width, out, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.interpolate(input, scale_factor=2.0, mode="nearest"))


class _Stage(nn.Module):
    """A residual block that is told the features of time and class, and perhaps attention."""

    def __init__(
        self, width: int, out: int, embedding: int, groups: int, heads: int | None
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width)
        self.conv1 = nn.Conv2d(width, out, 3, padding=1)
        self.tell = nn.Linear(embedding, 2 * out)
        self.norm2 = nn.GroupNorm(groups, out)
        self.conv2 = _silenced(nn.Conv2d(out, out, 3, padding=1))
        self.skip = nn.Identity() if width == out else nn.Conv2d(width, out, 1)
        self.attention = None if heads is None else _Attention(out, groups, heads)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        # x (batch, width, height, width), features (batch, embedding)
        scale, shift = self.tell(features)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        h = self.skip(x) + h
        return h if self.attention is None else h + self.attention(h)


class _Attention(nn.Module):
    """Attention of the pixels to each other."""

    def __init__(self, width: int, groups: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, width)
        self.inside = nn.Linear(width, 3 * width)
        self.out = _silenced(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        # (batch, pixels, 3 width) to three of (batch, heads, pixels, width/heads)
        q, k, v = self.inside(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(h).transpose(1, 2).reshape(x.shape)


_Layer = TypeVar("_Layer", nn.Conv2d, nn.Linear)


def _silenced(layer: _Layer) -> _Layer:
    """Make a layer start at zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _check_levels(multipliers: Sequence[int], blocks: int, attention: Sequence[int]) -> None:
    if not multipliers or min(multipliers) < 1 or blocks < 1:
        raise UsageError(
            "a UNet needs a multiplier of at least 1 for each level and a block on each; they are "
            f"{tuple(multipliers)} and {blocks}."
        )
    for level in attention:
        if not 0 <= level < len(multipliers):
            raise UsageError(
                f"there is no level {level} to attend: levels are 0 to {len(multipliers) - 1}."
            )


def _check_widths(width: int, multipliers: Sequence[int], heads: int, groups: int) -> None:
    if width % 2 or width % groups or any(width * m % heads for m in multipliers):
        raise UsageError(
            "a UNet's width must be even and a multiple of its groups, and each level's of its "
            f"heads; width {width}, groups {groups}, heads {heads}."
        )

"""Control paths: observations of a series made into a path X(t) that a CDE is driven by.

On [t_i, t_{i+1}], with s = t − t_i, every kind is a polynomial X = a + s (b + s (c + s d)):

    linear        chords; missing values lie on the chord between their neighbours
    hermite       cubics that begin with the slope of the chord before and end with their own: C¹,
                  and causal but for one interval (backward differences, arXiv:2106.11028)
    natural       the natural cubic spline: C², smooth, and every value moves all of it
    rectilinear   first in time, then in value: what is seen before t_k does not know x_k
    windows       log-signatures of windows, of depth 1 or 2, joined up (arXiv:2009.08295)

Coefficients are made once for a data set; `control[rows]` are those of a batch.

Paper: Kidger, Morrill, Foster & Lyons 2020 (arXiv:2005.08926); Morrill et al. 2021 for both others.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pathline.core.errors import UsageError


@dataclass(frozen=True, eq=False)
class Control:
    """A piecewise polynomial path, one for each sample.

    Args:
        times: (length,) float64, the knots.
        coefficients: (batch, length − 1, degree + 1, channels), those of 1, s, s², s³.
    """

    times: Tensor
    coefficients: Tensor

    @property
    def channels(self) -> int:
        """The number of channels."""
        return self.coefficients.shape[-1]

    @property
    def start(self) -> float:
        """The time of the first knot."""
        return float(self.times[0])

    @property
    def end(self) -> float:
        """The time of the last knot."""
        return float(self.times[-1])

    @property
    def jumps(self) -> tuple[float, ...]:
        """The times at which the derivative jumps: inner knots, where pieces are straight."""
        straight = self.coefficients.shape[2] <= 2
        return tuple(self.times[1:-1].tolist()) if straight else ()

    @property
    def smallest_gap(self) -> float:
        """The smallest time between knots, the usual fixed step."""
        return float(self.times.diff().min())

    @cached_property
    def has_time(self) -> bool:
        """Whether some channel rises with time in every sample, so that X knows how fast it is."""
        rises = self.coefficients[:, :, 0].detach().diff(dim=1)
        last = self.value(self.end, side="left") - self.coefficients[:, -1, 0]
        rises = torch.cat((rises, last.detach()[:, None]), 1)
        return bool(((rises >= 0).all(1) & (rises > 0).any(1)).all(0).any())

    def __len__(self) -> int:
        return len(self.coefficients)

    def __getitem__(self, rows: Tensor | slice) -> Control:
        """Return the control of some samples."""
        return Control(self.times, self.coefficients[rows])

    def to(self, where: torch.device | torch.dtype | str) -> Control:
        """Return the control on another device or in another precision (times stay float64)."""
        made = self.coefficients.to(where)  # pyright: ignore[reportCallIssue, reportArgumentType]
        return Control(self.times.to(made.device), made)

    def value(self, t: Tensor | float, side: str = "right") -> Tensor:
        """Return X(t), (batch, channels).

        Args:
            t: () or (batch,); outside of the knots the outermost pieces go on.
            side: whose piece counts at a knot, of the time after it or before it.
        """
        s, piece = self.pieces(t, side)
        total = piece[:, -1]
        for k in range(piece.shape[1] - 2, -1, -1):
            total = piece[:, k] + s * total
        return total

    def derivative(self, t: Tensor | float, side: str = "right") -> Tensor:
        """Return dX/dt, (batch, channels); arguments as for `value`."""
        s, piece = self.pieces(t, side)
        degree = piece.shape[1] - 1
        total = degree * piece[:, -1]
        for k in range(degree - 1, 0, -1):
            total = k * piece[:, k] + s * total
        return total

    def pieces(self, t: Tensor | float, side: str = "right") -> tuple[Tensor, Tensor]:
        """Return t − t_i, and the coefficients of the piece of t, (batch, degree + 1, channels)."""
        t = torch.as_tensor(t, dtype=torch.float64, device=self.times.device)
        index = torch.searchsorted(self.times, t.detach().contiguous(), right=side == "right") - 1
        index = index.clamp(0, len(self.times) - 2)
        s = (t - self.times[index]).to(self.coefficients.dtype)
        if not t.ndim:
            return s, self.coefficients[:, int(index)]
        return s[:, None], self.coefficients[torch.arange(len(self), device=index.device), index]


def linear(x: Tensor, times: Tensor | None = None) -> Control:
    """Return the path of straight lines through observations.

    Args:
        x: (batch, length, channels); NaN is missing. Gradients flow through.
        times: (length,), increasing; 0, 1, 2 … if None.

    Raises:
        UsageError: times that do not increase or have another length; a channel without any value.
    """
    x, times = _checked(x, times)
    x = filled(x, times)
    return Control(times, torch.stack((x[:, :-1], _chords(x, times)), 2))


def hermite(x: Tensor, times: Tensor | None = None) -> Control:
    """Return cubic Hermite splines with backward differences; arguments as for `linear`."""
    x, times = _checked(x, times)
    x = filled(x, times)
    own = _chords(x, times)
    before = torch.cat((own[:, :1], own[:, :-1]), 1)
    delta = times.diff().to(x)[:, None]
    bend = (own - before) / delta  # c = 2 (Δ − b)/δ and d = −(Δ − b)/δ², from the ends' slopes
    return Control(times, torch.stack((x[:, :-1], before, 2 * bend, -bend / delta), 2))


def natural(x: Tensor, times: Tensor | None = None) -> Control:
    """Return natural cubic splines through what was observed; arguments as for `linear`.

    A missing first or last value is the nearest one that was observed.
    """
    x, times = _checked(x, times)
    batch, length, channels = x.shape
    ends = filled(x, times)[:, [0, -1]]
    x = torch.cat((ends[:, :1], x[:, 1:-1], ends[:, 1:]), 1)
    rows = x.transpose(1, 2).reshape(-1, length)
    masks, which = torch.unique(~rows.isnan(), dim=0, return_inverse=True)
    made = rows.new_zeros(len(rows), length - 1, 4)
    for i, mask in enumerate(masks):
        at = (which == i).nonzero()[:, 0]
        made = made.index_put((at,), _natural(rows[at], times, mask))
    shaped = made.reshape(batch, channels, length - 1, 4).permute(0, 2, 3, 1)
    return Control(times, shaped.contiguous())


def rectilinear(x: Tensor, *, time_channel: int = 0, fill: float | None = None) -> Control:
    """Return the causal path that goes first in time, then in value, on the knots 0, 1 … 2 L − 2.

    Args:
        x: (batch, length, channels), time among the channels; NaN is missing, and is what was seen
            last.
        time_channel: which channel is time.
        fill: what a channel is before it is seen for the first time.

    Raises:
        UsageError: missing or not increasing times; a channel without any value.
    """
    x, _ = _checked(x, None)
    clock = x[:, :, time_channel]
    if bool(clock.isnan().any()) or bool((clock.diff(dim=1) <= 0).any()):
        raise UsageError(f"channel {time_channel} is to be time, and does not increase everywhere.")
    if bool(x[:, 0].isnan().any()):
        if fill is None:
            channel = int(x[:, 0].isnan().any(0).nonzero()[0])
            warnings.warn(
                f"channel {channel} begins with missing values, and a causal path cannot know "
                "them: the first value that is seen later is taken; give fill=… to keep the path "
                "causal.",
                stacklevel=2,
            )
        else:
            first = torch.where(x[:, :1].isnan(), torch.full_like(x[:, :1], fill), x[:, :1])
            x = torch.cat((first, x[:, 1:]), 1)
    x = _carried(x)
    ahead = x[:, :-1].clone()
    ahead[:, :, time_channel] = x[:, 1:, time_channel]
    pairs = torch.stack((x[:, :-1], ahead), 2).flatten(1, 2)
    return linear(torch.cat((pairs, x[:, -1:]), 1))


def windows(x: Tensor, times: Tensor | None = None, *, size: int, depth: int = 2) -> Control:
    """Return the log-signature path: straight over each window, by the log-signature of the window.

    A CDE that is driven by it sees, with `size` times fewer knots, what the path did inside of each
    window, up to this depth (a neural rough differential equation). Channels: the increments, then
    for depth 2 the areas A_jk = ½ ∫ X_j dX_k − X_k dX_j of all pairs j < k.

    Args:
        x, times: as for `linear`.
        size: how many observations a window goes forward; the last one may be shorter.
        depth: 1 or 2.

    Raises:
        UsageError: as `linear`; a size below 1, another depth.
    """
    if size < 1 or depth not in (1, 2):
        raise UsageError(f"windows have size ≥ 1 and depth 1 or 2, not {size} and {depth}.")
    x, times = _checked(x, times)
    x = filled(x, times)
    edges = sorted({*range(0, x.shape[1], size), x.shape[1] - 1})
    signatures = [
        log_signature(x[:, a : b + 1], depth) for a, b in zip(edges, edges[1:], strict=False)
    ]
    rises = torch.stack(signatures, 1)
    at = torch.cat((torch.zeros_like(rises[:, :1]), rises.cumsum(1)), 1)
    at = torch.cat((at[:, :, : x.shape[2]] + x[:, :1], at[:, :, x.shape[2] :]), 2)
    return linear(at, times[edges])


def log_signature(x: Tensor, depth: int = 2) -> Tensor:
    """Return the log-signature of straight lines through x, (batch, length, c): (batch, c + pairs).

    >>> square = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]])
    >>> log_signature(square)  # goes nowhere, around an area of 1
    tensor([[0., 0., 1.]])
    """
    rise = x[:, -1] - x[:, 0]
    if depth == 1:
        return rise
    steps = x.diff(dim=1)
    middle = (x[:, :-1] + x[:, 1:]) / 2 - x[:, :1]
    mixed = 0.5 * torch.einsum("bli,blj->bij", middle, steps)
    j, k = torch.triu_indices(x.shape[2], x.shape[2], 1, device=x.device)
    return torch.cat((rise, (mixed - mixed.mT)[:, j, k]), 1)


def with_time(x: Tensor, times: Tensor) -> Tensor:
    """Return observations with time as channel 0, (batch, length, channels + 1)."""
    clock = times.to(x).expand(len(x), -1).unsqueeze(-1)
    return torch.cat((clock, x), -1)


def with_counts(x: Tensor) -> Tensor:
    """Return observations with, as further channels, how often each was observed so far.

    So a CDE sees what is missing: (batch, length, 2 · channels).
    """
    seen = (~x.isnan()).to(x.dtype).cumsum(1)
    return torch.cat((x, seen), -1)


def filled(x: Tensor, times: Tensor) -> Tensor:
    """Return observations with missing ones on the chord of their neighbours; ends stay flat.

    Raises:
        UsageError: a channel of a sample has no value at all.
    """
    missing = x.isnan()
    if not bool(missing.any()):
        return x
    _check_seen(missing)
    length = x.shape[1]
    place = torch.arange(length, device=x.device)[None, :, None].expand(x.shape)
    before = torch.where(missing, -1, place).cummax(1).values
    after = (
        length - 1 - torch.where(missing, -1, length - 1 - place).flip(1).cummax(1).values.flip(1)
    )
    before, after = (
        torch.where(before < 0, after, before),
        torch.where(after >= length, before, after),
    )
    known, t = x.nan_to_num(), times.to(x)
    low, high = known.gather(1, before), known.gather(1, after)
    width = (t[after] - t[before]).clamp(min=torch.finfo(x.dtype).tiny)
    share = (t[place] - t[before]) / width
    return torch.where(missing, low + share * (high - low), known)


def _carried(x: Tensor) -> Tensor:
    """Return observations with missing ones as they were last seen (at the start: first seen)."""
    missing = x.isnan()
    if not bool(missing.any()):
        return x
    _check_seen(missing)
    place = torch.arange(x.shape[1], device=x.device)[None, :, None].expand(x.shape)
    before = torch.where(missing, -1, place).cummax(1).values
    first = torch.where(missing, x.shape[1], place).amin(1, keepdim=True)
    return x.nan_to_num().gather(1, torch.where(before < 0, first, before))


def _natural(y: Tensor, times: Tensor, mask: Tensor) -> Tensor:
    """Return the coefficients of natural splines through the same knots, (rows, length − 1, 4)."""
    at = mask.nonzero()[:, 0]
    t, seen = times.to(y)[at], y[:, at]
    bend = _second_derivatives(seen, t)
    delta = t.diff()
    a, b = seen[:, :-1], seen.diff(dim=1) / delta - delta * (2 * bend[:, :-1] + bend[:, 1:]) / 6
    spline = torch.stack((a, b, bend[:, :-1] / 2, bend.diff(dim=1) / (6 * delta)), 2)
    starts = times.to(y)[:-1]
    inside = torch.searchsorted(at, torch.arange(len(starts), device=at.device), right=True) - 1
    s = starts - t[inside]  # the piece that a knot lies on, written from that knot on
    a, b, c, d = (spline[:, inside, k] for k in range(4))
    moved = (a + s * (b + s * (c + s * d)), b + s * (2 * c + 3 * s * d), c + 3 * s * d, d)
    return torch.stack(moved, 2)


def _second_derivatives(y: Tensor, t: Tensor) -> Tensor:
    """Return X'' of the natural spline at its knots, (rows, length); zero at both ends."""
    n = len(t)
    if n < 3:
        return torch.zeros_like(y)
    delta = t.diff()
    slopes = y.diff(dim=1) / delta
    right = 6 * slopes.diff(dim=1)
    main, side = 2 * (delta[:-1] + delta[1:]), delta[1:-1]
    matrix = torch.diag(main) + torch.diag(side, 1) + torch.diag(side, -1)
    inner = torch.linalg.solve(matrix, right.T).T
    zero = torch.zeros_like(y[:, :1])
    return torch.cat((zero, inner, zero), 1)


def _chords(x: Tensor, times: Tensor) -> Tensor:
    return x.diff(dim=1) / times.diff().to(x)[:, None]


def _checked(x: Tensor, times: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return observations and their times, float64."""
    if x.ndim != 3 or not x.is_floating_point():
        raise UsageError(
            f"observations are floating (batch, length, channels), and these are {tuple(x.shape)} "
            f"{x.dtype}."
        )
    if x.shape[1] < 2:
        raise UsageError(f"a path needs two observations or more, and has {x.shape[1]}.")
    if times is None:
        return x, torch.arange(x.shape[1], dtype=torch.float64, device=x.device)
    times = torch.as_tensor(times, dtype=torch.float64, device=x.device)
    if times.shape != x.shape[1:2]:
        raise UsageError(f"{tuple(times.shape)} times were given for {x.shape[1]} observations.")
    if bool(times.isnan().any()) or not bool((times.diff() > 0).all()):
        wrong = (~(times.diff() > 0)).nonzero()
        where = int(wrong[0]) if len(wrong) else 0
        raise UsageError(
            f"times must increase, and t[{where}] = {float(times[where]):g} is followed by "
            f"{float(times[where + 1]):g}; sort them, and join observations of one time."
        )
    _check_seen(x.isnan())
    return x, times


def _check_seen(missing: Tensor) -> None:
    empty = missing.all(1)
    if bool(empty.any()):
        sample, channel = empty.nonzero()[0].tolist()
        raise UsageError(
            f"channel {channel} of sample {sample} has no value at all: leave the channel out, or "
            "fill it (a constant tells nothing, and harms nothing)."
        )

"""Series with gaps: what a benchmark takes away, and how what is left is scaled.

A missing value is NaN. Everything here keeps it so: nothing is filled in before a model or a
control path decides how.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError

__all__ = [
    "Scaler",
    "check_labels",
    "check_times",
    "drop",
    "onto_grid",
    "split",
    "stretch",
    "unit_times",
]


def drop(values: Tensor, rate: float, *, seed: int = 0, together: bool = False) -> Tensor:
    """Take away a share of what was observed, at random, and return what is left.

    Of each channel of each series with n observations ⌊rate n⌋ are lost, which ones depends on the
    seed and the number of the series alone.

    Args:
        values: (n, length, channels), NaN where nothing was observed.
        rate: the share, from 0 up to 1 without 1: one observation of each channel always stays.
        seed: of the choice.
        together: whether all channels are lost at the same times, as a sensor that is off loses
            them. Independent gaps, the default, are harder.

    Raises:
        UsageError: a rate that is not in [0, 1); other shapes.
    """
    check_series(values)
    if not 0 <= rate < 1:
        raise UsageError(f"a missing rate is in [0, 1), and {rate} was given.")
    n, length, channels = values.shape
    seeds = noise.derived_seeds([seed], 0)[0]
    each = [(seeds + i) % 2**64 for i in range(n)]
    shape = (length, 1 if together else channels)
    draws = noise.uniform(each, shape, stream="data", dtype=torch.float64).to(values.device)
    present = values.isfinite()
    seen = present.any(2, keepdim=True) if together else present
    # those that were never observed come last, so ranks count observations
    order = torch.where(seen, draws, draws + 2).argsort(1)
    ranks = torch.empty_like(order).scatter_(
        1, order, torch.arange(length, device=values.device)[None, :, None].expand_as(order)
    )
    lost = ranks < (rate * seen.sum(1, keepdim=True)).floor()
    return values.masked_fill(lost.expand_as(values), math.nan)


@dataclass(frozen=True)
class Scaler:
    """A mean and a deviation for each channel, of the observed values of the training series.

    Args:
        mean: (channels,).
        std: (channels,), 1 where a channel never changes.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, values: Tensor) -> Scaler:
        """Return the scaler of these series; only what was observed counts.

        Args:
            values: (n, length, channels) of the training part, NaN where nothing was observed.

        Raises:
            UsageError: a channel that was never observed; the message has its number.
        """
        check_series(values)
        present = values.isfinite()
        counts = present.sum((0, 1))
        if bool((counts == 0).any()):
            missing = int((counts == 0).nonzero()[0])
            raise UsageError(f"channel {missing} has no observation in any training series.")
        mean = values.nan_to_num().sum((0, 1)) / counts
        off = torch.where(present, values - mean, 0.0)
        std = (off.square().sum((0, 1)) / counts).sqrt()
        return cls(mean, torch.where(std > 0, std, 1.0))

    def __call__(self, values: Tensor) -> Tensor:
        """Return (values − mean)/std; NaN stays."""
        return (values - self.mean) / self.std

    def inverse(self, values: Tensor) -> Tensor:
        """Return values in their own units."""
        return values * self.std + self.mean


def stretch(values: Tensor, lengths: Tensor, length: int | None = None) -> Tensor:
    """Return series of one length: each is interpolated on [0, 1], its own beginning and end.

    To be done before `drop`; what is missing between two observations would spread otherwise.

    Args:
        values: (n, longest, channels), each series complete up to its length.
        lengths: (n,).
        length: that of the result; the longest if None.

    Raises:
        UsageError: a gap within a series, lengths that do not fit.
    """
    check_series(values)
    longest = values.shape[1]
    if len(lengths) != len(values) or not bool(((lengths > 1) & (lengths <= longest)).all()):
        raise UsageError(f"lengths are one a series, each from 2 to {longest}.")
    made = list[Tensor]()
    for i, n in enumerate(lengths.tolist()):
        series = values[i, :n]
        if not bool(series.isfinite().all()):
            raise UsageError(f"series {i} has a gap: stretch before values are dropped.")
        at = torch.linspace(0, n - 1, length or longest, dtype=torch.float64)
        left = at.floor().long().clamp(max=n - 2)
        share = (at - left)[:, None].to(series)
        made.append(torch.lerp(series[left], series[left + 1], share))
    return torch.stack(made)


def onto_grid(values: Tensor, when: Tensor, length: int, *, end: float | None = None) -> Tensor:
    """Return series whose times are their own on one even grid, each value at the nearest time.

    What falls on one time of the grid is averaged, a channel at a time; all else is NaN.

    Args:
        values: (n, visits, channels), NaN where nothing was observed.
        when: (n, visits), the times from 0; NaN where there was no visit.
        length: of the grid, two or more.
        end: its last time; the latest of all visits if None.

    Raises:
        UsageError: a time below 0 or after the end; the message has the series.
    """
    check_series(values)
    last = float(when.nan_to_num().max()) if end is None else end
    wrong = (when < 0) | (when > last)
    if when.shape != values.shape[:2] or length < 2 or bool(wrong.any()):
        where = "" if not wrong.any() else f" (series {int(wrong.nonzero()[0, 0])} has another)"
        raise UsageError(
            f"times are (n, visits) from 0 to {last:g}{where}, on a grid of 2 times or more."
        )
    seen = values.isfinite() & when.isfinite()[..., None]
    place = (when.nan_to_num() / last * (length - 1)).round().long()[..., None].expand_as(values)
    empty = values.new_zeros(len(values), length, values.shape[2])
    total = empty.scatter_add(1, place, torch.where(seen, values, 0.0))
    count = empty.scatter_add(1, place, seen.to(values))
    return torch.where(count > 0, total / count, math.nan)


def unit_times(length: int) -> Tensor:
    """Return even times from 0 to 1, (length,) float64."""
    if length < 2:
        raise UsageError(f"a series has two times or more, not {length}.")
    return torch.linspace(0, 1, length, dtype=torch.float64)


def split(
    labels: Tensor, shares: Sequence[float] = (0.7, 0.15, 0.15), *, seed: int = 0
) -> tuple[Tensor, ...]:
    """Return the numbers of the samples of each part, each with its share of every class.

    Args:
        labels: (n,).
        shares: of the parts; they sum to 1.
        seed: of the order.

    Raises:
        UsageError: shares that do not sum to 1, or a class too small for every part to have one.
    """
    if abs(sum(shares) - 1) > 1e-9 or min(shares) <= 0:
        raise UsageError(f"shares are above 0 and sum to 1, unlike {list(shares)}.")
    parts: list[list[Tensor]] = [[] for _ in shares]
    generator = torch.Generator().manual_seed(seed)
    for k in labels.unique().tolist():
        rows = (labels == k).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        if len(rows) < len(shares):
            raise UsageError(
                f"class {k} has {len(rows)} series, and there are {len(shares)} parts."
            )
        ends = [round(sum(shares[: i + 1]) * len(rows)) for i in range(len(shares))]
        for i, (a, b) in enumerate(zip([0, *ends], ends, strict=False)):
            parts[i].append(rows[a:b])
    return tuple(torch.cat(part).sort().values for part in parts)


def check_series(values: Tensor) -> None:
    """Refuse what is not (n, length, channels)."""
    if values.ndim != 3 or not values.is_floating_point():
        raise UsageError(
            f"series are numbers (n, length, channels), and {tuple(values.shape)} of "
            f"{values.dtype} was given."
        )


def check_times(times: Tensor, *, unit: bool = True) -> None:
    """Refuse times that are no times: NaN, not increasing or, if asked, not from [0, 1].

    Raises:
        UsageError: says where.
    """
    if times.ndim != 1 or len(times) < 2:
        raise UsageError(f"times are (length,) with two or more, not {tuple(times.shape)}.")
    if not bool(times.isfinite().all()):
        raise UsageError(f"time {int((~times.isfinite()).nonzero()[0])} is not finite.")
    steps = times.diff()
    if bool((steps <= 0).any()):
        i = int((steps <= 0).nonzero()[0])
        raise UsageError(
            f"times increase, and t[{i}] = {float(times[i]):g} is followed by "
            f"{float(times[i + 1]):g}; sort them and merge what was observed at one time."
        )
    if unit and not (times[0] >= 0 and times[-1] <= 1):
        raise UsageError(
            f"times run from {float(times[0]):g} to {float(times[-1]):g}, and networks read sin t "
            "and cos t for t in [0, 1]: pass (t − t[0])/(t[-1] − t[0])."
        )


def check_labels(labels: Tensor, classes: int) -> None:
    """Refuse labels that are not integers from 0 to classes − 1.

    Raises:
        UsageError: says which one.
    """
    if labels.is_floating_point() or labels.ndim != 1:
        raise UsageError(f"labels are integers (n,), not {tuple(labels.shape)} of {labels.dtype}.")
    wrong = (labels < 0) | (labels >= classes)
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        raise UsageError(f"labels are 0 to {classes - 1}, and that of series {i} is {labels[i]}.")

"""Series with gaps, as models read them: scaled, on [0, 1], with their control path.

`Series` are labelled; what is to be filled in or foretold is in `gaps`. What a benchmark does to a
complete set, in this order: series of unequal length are stretched to one; observations are
dropped, each channel by itself; values are scaled by what is left of the training part. The
coefficients of the control are made once for a set.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.data import timeseries
from pathline.data.irregular import (
    Scaler,
    check_labels,
    check_series,
    check_times,
    drop,
    split,
    stretch,
    unit_times,
)
from pathline.paths import controls
from pathline.paths.controls import Control

__all__ = ["Observed", "Parts", "Series", "archive", "prepared"]


@dataclass(frozen=True, eq=False)
class Observed:
    """What was seen of series at common times.

    Args:
        times: (length,) float64, increasing in [0, 1].
        values: (n, length, channels), scaled; NaN is missing.

    Raises:
        UsageError: times that are none, numbers that do not fit.
    """

    times: Tensor
    values: Tensor

    by_row: ClassVar[tuple[str, ...]] = ("values",)
    """The fields that have a row for each series."""

    def __post_init__(self) -> None:
        check_series(self.values)
        check_times(self.times)
        n, length, _ = self.values.shape
        counts = {name: len(getattr(self, name)) for name in self.by_row}
        if len(self.times) != length or set(counts.values()) != {n}:
            found = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise UsageError(
                f"every series has a row of each, and every value a time; there are {found}, of "
                f"length {length}, and {len(self.times)} times."
            )

    def __len__(self) -> int:
        return len(self.values)

    @property
    def channels(self) -> int:
        """Without time."""
        return self.values.shape[2]

    @cached_property
    def control(self) -> Control:
        """The control path: time first, Hermite cubics with backward differences.

        Raises:
            UsageError: a series that has no observation of a channel.
        """
        return controls.hermite(controls.with_time(self.values, self.times), self.times)

    @cached_property
    def knots(self) -> Tensor:
        """The control at the times, (length, n, 1 + channels)."""
        ends = [self.control.value(t) for t in self.times[:-1]]
        return torch.stack([*ends, self.control.value(self.times[-1], side="left")])

    def __getitem__(self, rows: Tensor | slice) -> Self:
        """Return some of the series; what was made of the set is not made again."""
        part = replace(self, **{name: getattr(self, name)[rows] for name in self.by_row})
        if "control" in self.__dict__:
            part.__dict__["control"] = self.control[rows]
        if "knots" in self.__dict__:
            part.__dict__["knots"] = self.knots[:, rows]
        return part


@dataclass(frozen=True, eq=False)
class Series(Observed):
    """Labelled series.

    Args:
        times, values: as of `Observed`.
        labels: (n,) int64, from 0 to classes − 1.
        classes: how many.

    Raises:
        UsageError: times that are none, labels out of range, numbers that do not fit.
    """

    labels: Tensor
    classes: int

    by_row = "values", "labels"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_labels(self.labels, self.classes)


def check_channels(series: Observed, channels: int) -> None:
    """Refuse series of other channels than a model reads."""
    if series.channels != channels:
        raise UsageError(
            f"the model reads series of {channels} channels, and these have {series.channels}."
        )


S = TypeVar("S", bound=Observed)


class Parts(NamedTuple, Generic[S]):
    """A set for training, one that chooses, and one that measures."""

    train: S
    valid: S
    test: S


def prepared(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    classes: int,
    missing: float = 0.0,
    seed: int = 0,
    valid: float = 0.15,
) -> Parts[Series]:
    """Drop observations, scale by what is left of the training part, and set some of it aside.

    Args:
        train, test: (values (n, length, channels), labels (n,)).
        classes: how many.
        missing: the share of each channel's observations that is lost.
        seed: of what is lost, and of the split.
        valid: the share of the training part that chooses.
    """
    times = unit_times(train[0].shape[1])
    kept, chosen = split(train[1], (1 - valid, valid), seed=seed)
    left = drop(train[0], missing, seed=seed), drop(test[0], missing, seed=seed + 1)
    scaler = Scaler.fit(left[0][kept])

    def made(values: Tensor, labels: Tensor) -> Series:
        return Series(times, scaler(values).float(), labels, classes)

    return Parts(
        made(left[0][kept], train[1][kept]),
        made(left[0][chosen], train[1][chosen]),
        made(left[1], test[1]),
    )


def archive(
    name: str, *, missing: float = 0.0, seed: int = 0, joined: bool = True
) -> Parts[Series]:
    """Return a set of the UCR and UEA archives (`pathline.data.timeseries.SETS`).

    Args:
        name: of the set.
        missing: the share of observations that is lost.
        seed: of what is lost, and of the splits.
        joined: whether training and test parts are joined and split 70/15/15, as the benchmark
            does; else they stay as the archive has them.

    Raises:
        UsageError: no set has this name.
        FetchError: the package cannot be fetched.
    """
    data = timeseries.load(name)
    longest = max(data.train_values.shape[1], data.test_values.shape[1])
    both: list[tuple[Tensor, Tensor]] = []
    for values, lengths, labels in (
        (data.train_values, data.train_lengths, data.train_labels),
        (data.test_values, data.test_lengths, data.test_labels),
    ):
        at = stretch(torch.from_numpy(values), torch.from_numpy(lengths), longest)
        both.append((at, torch.from_numpy(labels)))
    if joined:
        values, labels = (torch.cat([pair[i] for pair in both]) for i in range(2))
        first, last = split(labels, (0.85, 0.15), seed=seed)
        both = [(values[first], labels[first]), (values[last], labels[last])]
        share = 0.15 / 0.85
    else:
        share = 0.15
    return prepared(*both, classes=len(data.classes), missing=missing, seed=seed, valid=share)

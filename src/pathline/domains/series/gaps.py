"""What is not there of a series: gaps that are to be filled in, and values that are still to come.

Both are series of which a part is seen and all that is known is the goal. Whole times are hidden,
as a patient who stays at home or a sensor that is off hides them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pathline.core.errors import UsageError
from pathline.data import liver
from pathline.data.irregular import Scaler, check_series, drop, onto_grid, split, unit_times
from pathline.domains.series.series import Observed, Parts
from pathline.domains.series.training import averaged

__all__ = ["Gapped", "Squares", "ahead", "error", "gapped", "patients", "started"]


@dataclass(frozen=True, eq=False)
class Gapped(Observed):
    """Series of which a part is seen, and all that is known of them.

    Args:
        times, values: what is seen, as of `Observed`.
        goals: (n, length, channels), scaled; NaN where nothing is known.

    Raises:
        UsageError: times that are none, numbers that do not fit.
    """

    goals: Tensor

    by_row = "values", "goals"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.goals.shape != self.values.shape:
            raise UsageError(
                f"goals are values at the same times, {tuple(self.values.shape)}, and not "
                f"{tuple(self.goals.shape)}."
            )

    @property
    def asked(self) -> Tensor:
        """Which goals are not seen, (n, length, channels): those that count."""
        return self.goals.isfinite() & ~self.values.isfinite()


def started(values: Tensor) -> Tensor:
    """Return scaled series in which each channel that was never seen begins at 0, the mean.

    A control path needs one value of each channel of each series.
    """
    unseen = ~values.isfinite().any(1)
    made = values.clone()
    made[:, 0] = torch.where(unseen, 0.0, made[:, 0])
    return made


def gapped(
    times: Tensor, values: Tensor, seen: Tensor, *, seed: int = 0, groups: Tensor | None = None,
    shares: Sequence[float] = (0.7, 0.15, 0.15),
) -> Parts[Gapped]:  # fmt: skip
    """Return series with goals in three parts, scaled by what is seen of the training part.

    Args:
        times: (length,) in [0, 1].
        values: (n, length, channels), all that is known, in any units; NaN for the rest.
        seen: the same with NaN for what is hidden.
        seed: of the split.
        groups: (n,), numbers of what series were cut from: one's pieces stay in one part.
        shares: of the parts.
    """
    whose = torch.arange(len(values)) if groups is None else groups
    names = whose.unique()
    told = split(torch.zeros(len(names), dtype=torch.long), shares, seed=seed)
    rows = [torch.isin(whose, names[each]).nonzero()[:, 0] for each in told]
    scaler = Scaler.fit(seen[rows[0]])

    def made(which: Tensor) -> Gapped:
        shown = started(scaler(seen[which])).float()
        return Gapped(times, shown, scaler(values[which]).float())

    return Parts(*map(made, rows))


def ahead(
    values: Tensor, steps: int, *, missing: float = 0.0, seed: int = 0,
    groups: Tensor | None = None,
) -> Parts[Gapped]:  # fmt: skip
    """Return series whose last steps are to be foretold.

    Args:
        values: (n, length, channels), complete.
        steps: how many values at the end are the goal.
        missing: the share of the times before them that is lost, all channels at once.
        seed: of what is lost, and of the split.
        groups: as for `gapped`.

    Raises:
        UsageError: steps that leave fewer than two times to see.
    """
    check_series(values)
    length = values.shape[1]
    if not 1 <= steps <= length - 2:
        raise UsageError(f"of {length} times 1 to {length - 2} can be foretold, not {steps}.")
    window = drop(values[:, : length - steps], missing, seed=seed, together=True)
    seen = torch.cat((window, torch.full_like(values[:, length - steps :], math.nan)), 1)
    return gapped(unit_times(length), values, seen, seed=seed, groups=groups)


def patients(
    *, observed: float = 0.5, length: int = 64, visits: int = 4, seed: int = 0
) -> Parts[Gapped]:
    """Return the visits of patients with a liver disease, some of which are to be filled in.

    What spans decades is read as its logarithm. Times are the nearest of an even grid.

    Args:
        observed: the share of each patient's visits that is seen; the rest is asked.
        length: times of the grid over fourteen years.
        visits: the fewest of a patient who is in the set.
        seed: of what is seen, and of the split.

    Raises:
        FetchError: the package cannot be fetched.
    """
    data = liver.load()
    days, values = torch.from_numpy(data.days), torch.from_numpy(data.values)
    kept = days.isfinite().sum(1) >= visits
    spread = torch.tensor([name in SKEWED for name in liver.VARIABLES])
    values = torch.where(spread, values.log(), values)
    grid = onto_grid(values[kept], days[kept], length)
    seen = drop(grid, 1 - observed, seed=seed, together=True)
    return gapped(unit_times(length), grid, seen, seed=seed)


SKEWED = "bili", "chol", "alk.phos", "ast", "platelet", "protime"


@dataclass(frozen=True)
class Squares:
    """The mean square of what a model says less the goals, in training of all, then of the asked.

    A model is called with (series, seeds) and says (n, length, channels).
    """

    def loss(self, model: nn.Module, series: Gapped, seeds: Sequence[int], step: int) -> Tensor:
        del step
        return _square(model(series, seeds), series.goals, series.goals.isfinite())

    def look(self, model: nn.Module, series: Gapped, seed: int) -> float:
        return error(model, series, passes=1, seed=seed)


def error(model: Any, series: Gapped, *, passes: int = 5, seed: int = 0) -> float:
    """Return the mean square error of what was asked, in units of the training part's variance.

    Args:
        model: of (series, seeds), says (n, length, channels).
        series: what is measured.
        passes: of fresh noise, of which the mean is taken.
        seed: of the noise.
    """
    said = averaged(model, model, series, passes=passes, seed=seed)
    return float(_square(said, series.goals, series.asked))


def _square(said: Tensor, goals: Tensor, which: Tensor) -> Tensor:
    off = torch.where(which, said - goals.nan_to_num(), 0.0)
    return off.square().sum() / which.sum().clamp(min=1)

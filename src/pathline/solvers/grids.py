"""Grids: at which times a solve stops over, as immutable values.

A grid is a recipe, `times(path)`, so the same grid serves every path and every solver, and one
that the user writes down himself is as good as any. Generation runs from `path.t_max` (noise) to
`path.t_min`; `start` and `end` override that, and end > start integrates the other way.

What happens at the end is a policy with a name, not a flag of a solver:

    last="stop"      n steps, the last one ends at t_min
    last="denoise"   n − 1 steps to t_min, then one to data itself, x = x̂_0

The end points are assigned, never accumulated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pathline.core.errors import UsageError, unknown
from pathline.paths import GaussianPath, Tabulated
from pathline.solvers.grid import (
    Grid,
    Last,
    Spaced,
    check_last,
    check_positive,
    check_reversible,
    check_times,
    grids,
    linspace,
    log_snr_at,
)


@grids.register("uniform", aliases=("time", "linear", "uniform_t"))
@dataclass(frozen=True)
class Uniform(Spaced):
    """Uniform in path time."""

    def _between(
        self, path: GaussianPath | None, start: float, end: float, n: int
    ) -> Sequence[float]:
        return linspace((start, end), n).tolist()


@grids.register(
    "power",
    aliases=("time_power",),
    paper="arXiv:2204.13902, Sec. 4",
    variants={"quadratic": ({"power": 2.0}, ("time_quadratic",))},
)
@dataclass(frozen=True)
class Power(Spaced):
    """Uniform in t^(1/power): denser towards data; 2 is the quadratic grid of DDIM and DEIS."""

    power: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("power", self.power)
        for t in (self.start, self.end):
            if t is not None and t < 0:
                raise UsageError(f"t^(1/power) needs t ≥ 0; the grid was to run to t = {t:g}.")

    def _between(
        self, path: GaussianPath | None, start: float, end: float, n: int
    ) -> Sequence[float]:
        ends = (start ** (1 / self.power), end ** (1 / self.power))
        return (linspace(ends, n) ** self.power).tolist()


@grids.register("log_snr", aliases=("logsnr", "lambda"), paper="arXiv:2206.00927, Sec. 3.4")
@dataclass(frozen=True)
class LogSNR(Spaced):
    """Uniform in the half log-SNR λ."""

    def _between(
        self, path: GaussianPath | None, start: float, end: float, n: int
    ) -> Sequence[float]:
        ends = (log_snr_at(path, start, "log-SNR"), log_snr_at(path, end, "log-SNR"))
        assert path is not None
        return path.time_of_log_snr(linspace(ends, n)).tolist()


@grids.register("focused", aliases=("log_snr_focused",))
@dataclass(frozen=True)
class Focused(Spaced):
    """Uniform in λ where the picture forms, |λ| ≤ log n + margin, with one step to each end.

    Little is decided between pure noise and −log n, and little is left between log n and data;
    even steps up to both ends would spend half of ten out there. A margin of ½ suits smooth fields
    and six evaluations or fewer; 1 a network with guidance, which still draws at low noise.

    Args:
        margin: how far beyond log n the even steps reach.
    """

    margin: float = 0.5

    def _between(
        self, path: GaussianPath | None, start: float, end: float, n: int
    ) -> Sequence[float]:
        first, last = (log_snr_at(path, t, "focused") for t in (start, end))
        assert path is not None
        way = math.copysign(1.0, last - first)
        edge = way * (math.log(n) + self.margin)
        outer = [first] if n > 2 and way * first < -abs(edge) < way * last else []
        inner = [last] if n > 2 and way * first < abs(edge) < way * last else []
        ends = (-edge if outer else first, edge if inner else last)
        middle = linspace(ends, n - len(outer) - len(inner)).tolist()
        levels = torch.tensor([*outer, *middle, *inner], dtype=torch.float64)
        return path.time_of_log_snr(levels).tolist()


Clock = Literal["straight", "decay", "vp", "cosine"]

_LEFT = 0.1
"""The share of its first speed that the decaying time still has at the end."""

_CLOCKS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "straight": (lambda r: 1 / (1 + 1 / r), lambda u: u / (1 - u)),
    "decay": (
        lambda r: -torch.log1p((_LEFT - 1) / (1 + 1 / r)),
        lambda v: 1 / ((1 - _LEFT) / -torch.expm1(-v) - 1),
    ),
    "vp": (lambda r: r.square().log1p().sqrt(), lambda u: u.square().expm1().sqrt()),
    "cosine": (torch.atan, torch.tan),
}
"""The time of a path as a function of r = σ/α, and back."""


@grids.register(
    "straight",
    aliases=("rectified", "flow_time"),
    variants={
        "shifted": ({"shift": 2.0}, ()),
        "shifted_3": ({"shift": 3.0}, ("sd3",)),
        "decay_time": ({"clock": "decay"}, ("azula_decay",)),
        "vp_time": ({"clock": "vp"}, ("vp_linear_time",)),
        "cosine_time": ({"clock": "cosine"}, ()),
    },
)
@dataclass(frozen=True)
class Along(Spaced):
    """Uniform in the time of a usual path, whatever the model's own.

    Args:
        clock: with r = σ/α, u = r/(1 + r) of the straight path ("straight"), −log(1 − 0.9 u) of the
            same at a speed that decays to a tenth (azula's "decay"), √log(1 + r²) of VP with a β
            that rises from 0 ("vp"), or arctan r of the cosine path ("cosine").
        shift: divides r first: above 1 for more steps at high noise, where guidance bends most
            (Esser et al. 2024, arXiv:2403.03206, Eq. 23).
    """

    clock: Clock = "straight"
    shift: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("shift", self.shift)
        if self.clock not in _CLOCKS:
            raise unknown("clock", self.clock, _CLOCKS)

    def _between(
        self, path: GaussianPath | None, start: float, end: float, n: int
    ) -> Sequence[float]:
        levels = [log_snr_at(path, t, "path-time") for t in (start, end)]
        assert path is not None
        there, back = _CLOCKS[self.clock]
        ratios = torch.tensor(levels, dtype=torch.float64).neg().exp()
        first, last = there(ratios / self.shift).tolist()
        found = self.shift * back(linspace((first, last), n))
        return path.time_of_log_snr(-found.log()).tolist()


@grids.register("karras", aliases=("edm_grid",), paper="arXiv:2206.00364, Eq. 5")
@dataclass(frozen=True)
class Karras(Spaced):
    """Uniform in (σ/α)^(1/ρ); ρ = 7 spends its steps at low noise."""

    rho: float = 7.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("rho", self.rho)

    def _between(
        self, path: GaussianPath | None, start: float, end: float, n: int
    ) -> Sequence[float]:
        ratios = [log_snr_at(path, t, "Karras") for t in (start, end)]
        assert path is not None
        ladder = linspace((math.exp(-ratios[0] / self.rho), math.exp(-ratios[1] / self.rho)), n)
        return path.time_of_log_snr(-self.rho * ladder.log()).tolist()


@grids.register("times", aliases=("custom",))
@dataclass(frozen=True)
class Times(Grid):
    """The user's own times, as they are.

    Args:
        values: at least two times, strictly falling or strictly rising; one before "denoise".
    """

    values: tuple[float, ...] = ()
    last: Last = "stop"

    def __post_init__(self) -> None:
        check_last(self.last)
        if self.n < 1:
            raise UsageError(f"a grid needs at least two times, and was given {list(self.values)}.")
        try:
            object.__setattr__(self, "values", tuple(float(t) for t in self.values))
        except (TypeError, ValueError) as error:
            raise UsageError(f"a grid's times are numbers, in one row: {error}.") from error

    @property
    def n(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.values) - (self.last == "stop")

    def times(self, path: GaussianPath | None = None) -> tuple[float, ...]:
        times = self.values if self.last == "stop" else (*self.values, 0.0)
        check_times(times, path)
        return times

    def reverse(self, path: GaussianPath | None = None) -> Grid:
        check_reversible(self)
        return Times(self.values[::-1])

    def resized(self, n: int) -> Grid:
        """Return n steps whose density follows the user's (linear between his times)."""
        position = np.linspace(0, len(self.values) - 1, n + 1 - (self.last == "denoise"))
        values = np.interp(position, np.arange(len(self.values)), self.values)
        return Times(tuple(values.tolist()), self.last)


def uniform(
    n: int, start: float | None = None, end: float | None = None, last: Last = "stop"
) -> Grid:
    """Return the grid that is uniform in path time."""
    return Uniform(n, start, end, last)


def quadratic(
    n: int, start: float | None = None, end: float | None = None, last: Last = "stop"
) -> Grid:
    """Return the grid that is uniform in √t."""
    return Power(n, start, end, last)


def log_snr(
    n: int, start: float | None = None, end: float | None = None, last: Last = "stop"
) -> Grid:
    """Return the grid that is uniform in the half log-SNR."""
    return LogSNR(n, start, end, last)


def focused(
    n: int,
    start: float | None = None,
    end: float | None = None,
    last: Last = "stop",
    *,
    margin: float = 0.5,
) -> Grid:
    """Return the grid for few evaluations: even in λ in the middle, one step to each end."""
    return Focused(n, start, end, last, margin=margin)


def straight(
    n: int,
    start: float | None = None,
    end: float | None = None,
    last: Last = "stop",
    *,
    shift: float = 1.0,
) -> Grid:
    """Return the grid that is uniform in the time of the straight path, shifted to high noise."""
    return Along(n, start, end, last, shift=shift)


def decay_time(
    n: int, start: float | None = None, end: float | None = None, last: Last = "stop"
) -> Grid:
    """Return the grid of the straight path at a speed that decays: fine at high noise."""
    return Along(n, start, end, last, clock="decay")


def vp_time(
    n: int, start: float | None = None, end: float | None = None, last: Last = "stop"
) -> Grid:
    """Return the grid that is uniform in the time of VP with a β that rises from 0."""
    return Along(n, start, end, last, clock="vp")


def cosine_time(
    n: int, start: float | None = None, end: float | None = None, last: Last = "stop"
) -> Grid:
    """Return the grid that is uniform in the time of the cosine path."""
    return Along(n, start, end, last, clock="cosine")


def karras(
    n: int,
    start: float | None = None,
    end: float | None = None,
    last: Last = "stop",
    *,
    rho: float = 7.0,
) -> Grid:
    """Return the grid of EDM, uniform in (σ/α)^(1/ρ)."""
    return Karras(n, start, end, last, rho=rho)


def times(values: Sequence[float], last: Last = "stop") -> Grid:
    """Return the user's own times as a grid."""
    return Times(tuple(values), last)


def sigmas(values: Sequence[float], path: GaussianPath, last: Last = "stop") -> Grid:
    """Return the grid of these noise-to-signal ratios σ/α on `path`; a closing 0 means "denoise".

    Raises:
        UsageError: a ratio is not positive.
    """
    ratios = [float(s) for s in values]
    if ratios and ratios[-1] == 0:
        ratios, last = ratios[:-1], "denoise"
    if not all(s > 0 for s in ratios):
        raise UsageError(f"noise levels must be positive, and are {ratios}.")
    log_ratio = torch.tensor(ratios, dtype=torch.float64).log()
    return Times(tuple(path.time_of_log_snr(-log_ratio).tolist()), last)


def whole(grid: Grid, path: GaussianPath) -> Grid:
    """Return the grid moved to the whole labels of a discrete-time model, no two the same.

    The solver then steps at the very levels that the network was trained at, and tells it whole
    numbers. Where a grid has more points than labels, as Karras' has near data, its points give way
    towards noise.

    Args:
        grid: from noise to data.
        path: a `Tabulated` one.

    Raises:
        UsageError: a path without labels, more steps than labels, or a grid towards noise.
    """
    if not isinstance(path, Tabulated):
        raise UsageError(
            "whole labels are those of a model trained at whole timesteps: a Tabulated path."
        )
    times = grid.times(path)
    inner = times[:-1] if grid.last == "denoise" else times
    n = len(path.alphas_cumprod)
    if len(inner) > n:
        raise UsageError(f"{len(inner)} levels at whole labels were asked for; there are {n}.")
    if inner[0] < inner[-1]:
        raise UsageError("whole labels are for generation, from noise to data.")
    lowest, labels = 0, list[int]()
    for t in reversed(inner):
        labels.append(max(lowest, round(float(path.label(t)))))
        lowest = labels[-1] + 1
    highest, settled = n - 1, list[int]()
    for label in reversed(labels):
        settled.append(min(highest, label))
        highest = settled[-1] - 1
    return Times(tuple(float(path.time_of_label(k)) for k in settled), grid.last)

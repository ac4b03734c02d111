"""A path between two of its times: where a model was trained, or a solve is to stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from pathline.core.errors import UsageError
from pathline.paths.flow import CondOT
from pathline.paths.path import GaussianPath, Time, paths
from pathline.paths.student import StudentT


@paths.register("trimmed", aliases=("between",))
@dataclass(frozen=True)
class Trimmed(GaussianPath):
    """A path whose generation runs between two times of its own; nothing else of it changes.

    Args:
        inner: the path, or what `paths.describe` said of it.
        t_min: where generation ends, above 0.
        t_max: where it starts.
    """

    inner: GaussianPath = CondOT()
    t_min: float = 1e-3  # pyright: ignore[reportIncompatibleMethodOverride]
    t_max: float = 0.99  # pyright: ignore[reportIncompatibleMethodOverride]

    def __post_init__(self) -> None:
        if isinstance(self.inner, Mapping):
            told = cast("Mapping[str, Any]", self.inner)
            object.__setattr__(self, "inner", paths.rebuild(told))
        if not 0 < self.t_min < self.t_max <= 1:
            raise UsageError(
                f"0 < t_min < t_max ≤ 1 is needed; they are {self.t_min}, {self.t_max}."
            )

    @property
    def kernel(self) -> StudentT:
        """The inner path's."""
        return self.inner.kernel

    @property
    def gaussian(self) -> Trimmed:
        """The same of the inner path."""
        return Trimmed(self.inner.gaussian, self.t_min, self.t_max)

    def alpha(self, t: Time) -> Tensor:
        return self.inner.alpha(t)

    def sigma(self, t: Time) -> Tensor:
        return self.inner.sigma(t)

    def d_alpha(self, t: Time) -> Tensor:
        return self.inner.d_alpha(t)

    def d_sigma(self, t: Time) -> Tensor:
        return self.inner.d_sigma(t)

    def log_snr(self, t: Time) -> Tensor:
        return self.inner.log_snr(t)

    def time_of_log_snr(self, log_snr: Time) -> Tensor:
        return self.inner.time_of_log_snr(log_snr)

"""Paths in polar form: an angle between data and noise, and a radius.

    α = ρ cos ψ,   σ = c ρ sin ψ,   ψ from 0 (data) to π/2 (noise)

Any Gaussian path can be written so. The angle alone decides the log-SNR, λ = −log(c tan ψ), and so
what a network sees; the radius only scales the state. Both may be tables: `Interpolated` is a path
through nodes that were measured, drawn or learned.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.paths.cubic import Cubic
from pathline.paths.path import GaussianPath, Time, as_time, hash_once, paths

QUARTER = math.pi / 2


@dataclass(frozen=True)
class Polar(GaussianPath):
    """What paths in polar form share. Angles and radii are float64, whatever the times are.

    Times must lie in [0, 1]; on a GPU that is not checked, for it would wait for the device.
    """

    scale = 1.0
    """c, the standard deviation of the noise at ψ = π/2 and ρ = 1."""

    @abstractmethod
    def angle(self, t: Time) -> Tensor:
        """ψ_t, rising."""

    @abstractmethod
    def d_angle(self, t: Time) -> Tensor:
        """dψ/dt."""

    @abstractmethod
    def radius(self, t: Time) -> Tensor:
        """ρ_t."""

    @abstractmethod
    def d_radius(self, t: Time) -> Tensor:
        """dρ/dt."""

    @abstractmethod
    def time_of_angle(self, angle: Tensor) -> Tensor:
        """The time at which ψ_t has this value."""

    def alpha(self, t: Time) -> Tensor:
        return (self.radius(t) * (QUARTER - self.angle(t)).sin()).to(as_time(t).dtype)

    def sigma(self, t: Time) -> Tensor:
        return (self.scale * self.radius(t) * self.angle(t).sin()).to(as_time(t).dtype)

    def d_alpha(self, t: Time) -> Tensor:
        turned = self.radius(t) * self.angle(t).sin() * self.d_angle(t)
        slope = self.d_radius(t) * (QUARTER - self.angle(t)).sin() - turned
        return slope.to(as_time(t).dtype)

    def d_sigma(self, t: Time) -> Tensor:
        turned = self.radius(t) * (QUARTER - self.angle(t)).sin() * self.d_angle(t)
        slope = self.d_radius(t) * self.angle(t).sin() + turned
        return (self.scale * slope).to(as_time(t).dtype)

    def time_of_log_snr(self, log_snr: Time) -> Tensor:
        log_snr = as_time(log_snr)
        angle = torch.atan((-log_snr.double()).exp() / self.scale)
        return self.time_of_angle(angle).to(log_snr.dtype)


def inside(t: Time) -> Tensor:
    """Return path times in float64.

    Raises:
        UsageError: one is outside [0, 1].
    """
    t = as_time(t).double()
    if t.device.type == "cpu" and bool(((t < 0) | (t > 1)).any()):
        off = t[(t < 0) | (t > 1)].flatten()[0]
        raise UsageError(f"path time runs from 0 (data) to 1 (noise), and t = {off:.6g} was asked.")
    return t


@paths.register("trigonometric", aliases=("gvp", "vp_trigonometric"), paper="arXiv:2209.15571")
@dataclass(frozen=True)
class Trigonometric(Polar):
    """The path that turns evenly at radius 1: α = cos(πt/2), σ = sin(πt/2).

    It is the cosine path without its offset, and the one of no kinetic energy for isotropic
    Gaussian data.
    """

    def angle(self, t: Time) -> Tensor:
        return QUARTER * inside(t)

    def d_angle(self, t: Time) -> Tensor:
        return torch.full_like(inside(t), QUARTER)

    def radius(self, t: Time) -> Tensor:
        return torch.ones_like(inside(t))

    def d_radius(self, t: Time) -> Tensor:
        return torch.zeros_like(inside(t))

    def time_of_angle(self, angle: Tensor) -> Tensor:
        return angle / QUARTER


@paths.register("interpolated", aliases=("table", "learned"))
@dataclass(frozen=True)
class Interpolated(Polar):
    """A path through a table of angles and radii: a schedule that was measured or learned.

    Between nodes both are monotone cubics of t, so α and σ have continuous derivatives, and those
    returned are exactly the derivatives of what is interpolated.

    Args:
        times: nodes, rising from 0 to 1.
        angles: ψ at each, rising strictly, within [0, π/2].
        radii: ρ at each, positive.
    """

    times: tuple[float, ...] = field(default=(0.0, 0.25, 0.5, 0.75, 1.0), repr=False)
    angles: tuple[float, ...] = field(default=(0.0, 0.3, 0.75, 1.2, QUARTER), repr=False)
    radii: tuple[float, ...] = field(default=(1.0, 0.8, 0.7, 0.8, 1.0), repr=False)

    def __post_init__(self) -> None:
        n = len(self.times)
        if n < 2 or len(self.angles) != n or len(self.radii) != n:
            raise UsageError(
                f"a table needs at least two nodes, each with an angle and a radius; it has {n} "
                f"times, {len(self.angles)} angles and {len(self.radii)} radii."
            )
        if not _rising(self.times) or (self.times[0], self.times[-1]) != (0, 1):
            raise UsageError(f"a table's times must rise from 0 to 1; they are {self.times}.")
        if not _rising(self.angles) or not 0 <= self.angles[0] < self.angles[-1] <= QUARTER:
            raise UsageError(
                "a table's angles ψ = arctan(σ/α) must rise strictly within [0, π/2], from data "
                f"to noise; they are {self.angles}."
            )
        if not all(0 < radius < math.inf for radius in self.radii):
            raise UsageError(f"a table's radii must be positive; they are {self.radii}.")

    __hash__ = hash_once

    @classmethod
    def through(
        cls, times: Sequence[float], alpha: Sequence[float], sigma: Sequence[float]
    ) -> Interpolated:
        """Return the path through values of α and σ."""
        pairs = list(zip(alpha, sigma, strict=True))
        angles = tuple(QUARTER if a == 0 else math.atan2(s, a) for a, s in pairs)
        return cls(tuple(times), angles, tuple(math.hypot(a, s) for a, s in pairs))

    @cached_property
    def _tables(self) -> tuple[Cubic, Cubic]:
        times, *values = (
            torch.tensor(v, dtype=torch.float64) for v in (self.times, self.angles, self.radii)
        )
        return Cubic.pchip(times, values[0]), Cubic.pchip(times, values[1])

    def angle(self, t: Time) -> Tensor:
        return self._tables[0](inside(t))

    def d_angle(self, t: Time) -> Tensor:
        return self._tables[0].slope(inside(t))

    def radius(self, t: Time) -> Tensor:
        return self._tables[1](inside(t))

    def d_radius(self, t: Time) -> Tensor:
        return self._tables[1].slope(inside(t))

    def time_of_angle(self, angle: Tensor) -> Tensor:
        return self._tables[0].inverse(angle)


def _rising(values: Sequence[float]) -> bool:
    return all(a < b for a, b in zip(values, values[1:], strict=False))

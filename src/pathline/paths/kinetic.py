"""The kinetic optimal path: of all Gaussian paths the one whose particles move least.

In polar form (α = ρ cos ψ, σ = ρ sin ψ) the kinetic energy of a path is

    KE = ∫ ρ'² + ρ² κ(ψ)² ψ'² dt,

the energy of a curve in a flat plane with polar coordinates ρ and χ = ∫_0^ψ κ. So the best path is
the straight chord from (1, 0) to (cos Φ, sin Φ), Φ = χ(π/2), at constant speed:

    KE = 2 − 2 cos Φ,   tan χ = t sin Φ/(1 − t + t cos Φ),   ρ² χ' = sin Φ

Points that are far apart have κ = 1, and the chord is the straight path of flow matching, of energy
2; isotropic Gaussian data have κ = 0, and need not move.

Paper: Shaul et al. 2023 (arXiv:2306.06626); the chord is our derivation (docs/paths.md).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.paths.cubic import Cubic, limited
from pathline.paths.path import Time, as_time, hash_once, paths
from pathline.paths.polar import QUARTER, Polar, inside
from pathline.paths.separation import Separation

EXACT = 1e-4
"""The least floor of κ, with which the path is the optimum but for 1e-4 in χ."""

_NODES = 4001
_STILL = 1e-6
"""A turn Φ below which data are isotropic Gaussian, to rounding."""


@paths.register("kinetic_optimal", aliases=("ko",), paper="arXiv:2306.06626")
@dataclass(frozen=True)
class KineticOptimal(Polar):
    """The path of least kinetic energy for data of a given separation function.

    Choose it for few steps of a Runge-Kutta method in path time. Exponential solvers (DDIM,
    DPM-Solver) see only the log-SNR of a path, and gain nothing from its scaling.

    Where the data look Gaussian (all noise, and data with a density) κ vanishes and the optimum
    turns infinitely fast, so that steps of a Runge-Kutta method overshoot there. The floor f puts
    f² + (1 − f²) κ² for κ²: the path then minimises (1 − f²) KE + f² ∫ α'² + σ'² dt, for 2 to 5 %
    more kinetic energy. At f = 1 it is the straight path.

    Args:
        separation: of the data (`fields.separation.estimate(...).separation`, or in closed form).
        floor: f, the least κ, from 1e-4 (the optimum itself, for study) to 1.
        scale: c, the standard deviation of the data; σ is c at t = 1.
    """

    separation: Separation = Separation.gaussian((1.8, 0.2), 64)
    floor: float = 0.05
    scale: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.separation, Mapping):
            told = cast("Mapping[str, Any]", self.separation)
            object.__setattr__(self, "separation", Separation.rebuilt(told))
        if not EXACT <= self.floor <= 1:
            raise UsageError(f"the floor of κ must lie in [{EXACT:g}, 1], and is {self.floor}.")
        if not 0 < self.scale < math.inf:
            raise UsageError(f"the scale of the data must be positive, and is {self.scale}.")
        if self._is_still:
            warnings.warn(
                "the data are told from noise no better than isotropic Gaussian ones, which need "
                "not move at all; the path is the trigonometric one, of no kinetic energy.",
                stacklevel=3,
            )

    __hash__ = hash_once

    @property
    def is_exact(self) -> bool:
        """Whether it is the optimum itself, whose velocity has no bound at the noise end."""
        return self.floor <= EXACT

    @property
    def t_max(self) -> float:
        """1; a little less for the optimum itself, whose derivatives have no bound there."""
        return 1 - 1e-5 if self.is_exact else 1.0

    @property
    def turn(self) -> float:
        """Φ, the angle of the chord; the energy of the optimum is 2 − 2 cos Φ, times scale²."""
        return float(self._table.x[-1])

    def kappa(self, psi: Tensor) -> Tensor:
        """κ(ψ), not below the floor."""
        least = EXACT if self._is_still else self.floor
        return (least**2 + (1 - least**2) * self.separation.kappa_squared(psi)).sqrt()

    @cached_property
    def _is_still(self) -> bool:
        ends = _angles()
        squared = self.separation.kappa_squared((ends[:-1] + ends[1:]) / 2)
        return float((squared.sqrt() * ends.diff()).sum()) < _STILL

    @cached_property
    def _table(self) -> Cubic:
        """ψ over χ: Simpson's rule for χ, and dψ/dχ = 1/κ."""
        psi = _angles()
        ends, middle = self.kappa(psi), self.kappa((psi[:-1] + psi[1:]) / 2)
        parts = psi.diff() * (ends[:-1] + 4 * middle + ends[1:]) / 6
        chi = torch.cat((parts.new_zeros(1), parts.cumsum(0)))
        return Cubic(chi, psi, limited(chi, psi, 1 / ends))

    def _chord(self, t: Time) -> tuple[Tensor, Tensor, Tensor]:
        """Return t, and the place on the chord in the plane, from the data's end."""
        t = inside(t)
        return t, (1 - t) + t * math.cos(self.turn), t * math.sin(self.turn)

    def _chi(self, t: Time) -> Tensor:
        t, along, across = self._chord(t)
        return torch.where(t == 1, self.turn, torch.atan2(across, along))

    def angle(self, t: Time) -> Tensor:
        return self._table(self._chi(t))

    def d_angle(self, t: Time) -> Tensor:
        t = inside(t)
        if self.is_exact and t.device.type == "cpu" and bool((t == 1).any()):
            raise UsageError(
                "the velocity of the kinetic optimal path has no bound at the noise end, t = 1: "
                f"derivatives are given on [0, {self.t_max:g}]; to sample, keep floor=0.05."
            )
        return self._table.slope(self._chi(t)) * math.sin(self.turn) / self.radius(t) ** 2

    def radius(self, t: Time) -> Tensor:
        _, along, across = self._chord(t)
        return torch.hypot(along, across)

    def d_radius(self, t: Time) -> Tensor:
        _, along, across = self._chord(t)
        cosine, sine = math.cos(self.turn), math.sin(self.turn)
        return (along * (cosine - 1) + across * sine) / torch.hypot(along, across)

    def time_of_angle(self, angle: Tensor) -> Tensor:
        chi = self._table.inverse(as_time(angle)).clamp(0, self.turn)
        here, there = chi.sin(), (self.turn - chi).sin()
        return here / (here + there)


def _angles() -> Tensor:
    """Nodes from 0 to π/2, dense at both ends, where κ may vanish."""
    u = torch.linspace(0, QUARTER, _NODES, dtype=torch.float64)
    angles = QUARTER * u.sin() ** 2
    angles[-1] = QUARTER
    return angles

"""The path of PFGM++: EDM's, with Student-t noise."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

from pathline.paths.flow import EDM
from pathline.paths.path import paths
from pathline.paths.student import StudentT

LOOKS_LIKE_RADIUS = 1e4
"""Noise levels above this are likely to be radii r = σ √D."""


@paths.register("pfgmpp", aliases=("pfgm", "poisson_flow"), paper="arXiv:2302.04265, Sec. 4")
@dataclass(frozen=True)
class PFGMpp(EDM):
    """EDM's path with Student-t noise of D degrees of freedom: x_t = x_0 + σ_t ε, σ_t = σ_max t.

    What is tuned for a diffusion model (σ_min, σ_max, training levels, grid) stays; levels are σ,
    and never r = σ √D. A smaller D forgives more (errors of the network, coarse steps, noise), a
    larger one is sharper; D = 1 is the Poisson flow and D = ∞ is EDM.

    Args:
        sigma_min: as for `EDM`.
        sigma_max: as for `EDM`.
        dof: D, the degrees of freedom; below 8 the noise has tails that small data do not bear.
    """

    dof: float = 128.0

    def __post_init__(self) -> None:
        super().__post_init__()
        StudentT(self.dof)  # refuses what is no number of degrees of freedom
        if not math.isinf(self.dof) and self.sigma_max > LOOKS_LIKE_RADIUS:
            warnings.warn(
                f"sigma_max = {self.sigma_max:g} looks like a radius r = σ √D; levels are σ, which "
                f"would be r/√{self.dof:g} = {self.sigma_max / math.sqrt(self.dof):.6g}.",
                stacklevel=3,
            )

    @property
    def kernel(self) -> StudentT:
        return StudentT(self.dof)

    @property
    def gaussian(self) -> EDM:
        return EDM(self.sigma_min, self.sigma_max)

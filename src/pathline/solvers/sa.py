"""SA-Solver: stochastic Adams methods, a predictor and a corrector that share their noise.

It is the exponential rule of the reverse SDE with τ² of its noise, through several x̂_0: its
predictor is SDE-DPM-Solver++ of that order, its corrector UniPC's with the noise of the step.

Paper: Xue et al. 2023 (arXiv:2309.05019), Alg. 1; their τ² is η of `exponential`. In the public
code order 2 has another weight, off by O(h³); here every order integrates its polynomial exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pathline.core.errors import UsageError
from pathline.fields.views import View
from pathline.solvers.corrected import Corrected, write_corrected
from pathline.solvers.exponential import Final, check_eta
from pathline.solvers.solver import Level, Solver, Writer, check_order, solvers

MOST = 4
"""The highest order of either."""


@solvers.register("sa", aliases=("SA-Solver", "sa_solver"), paper="arXiv:2309.05019, Alg. 1")
@dataclass(frozen=True)
class SA(Solver):
    """SA-Solver: SDE-DPM-Solver++ of any order, and a corrector with the same noise.

    Choose it with twenty steps or more, where fresh noise mends what a network gets wrong; below
    that, and for the same picture from the same noise, take a solver without noise.

    Args:
        order: x̂_0 that the predictor's polynomial goes through, 1 to 4.
        corrector: those of the corrector's, the one at the end of the step among them, 2 to 4; 0
            for no corrector.
        tau: how much noise: 1 is the reverse SDE, 0 the probability flow.
        low: the smallest σ/α at which noise is added.
        high: the largest; None for no limit.
        final: as for DPMpp.
    """

    order: int = 3  # pyright: ignore[reportIncompatibleMethodOverride]
    corrector: int = 3
    tau: float = 1.0
    low: float = 0.0
    high: float | None = None
    final: Final = "auto"

    def __post_init__(self) -> None:
        check_order("SA", self.order, range(1, MOST + 1))
        if self.corrector not in (0, *range(2, MOST + 1)):
            raise UsageError(
                f"corrector={self.corrector}: choose 2 to {MOST} points, or 0 for no corrector."
            )
        if self.final not in ("auto", "full", "lower"):
            raise UsageError(f"final={self.final!r}: choose 'auto', 'full' or 'lower'.")
        check_eta(self.tau)
        if not 0 <= self.low <= self._highest:
            raise UsageError(f"0 ≤ low ≤ high is needed; they are {self.low} and {self.high}.")

    @property
    def _highest(self) -> float:
        return math.inf if self.high is None else self.high

    @property
    def convergence(self) -> int:
        order = min(self.corrector, self.order + 1) if self.corrector else self.order
        return min(order, 2) if self.tau else order

    @property
    def view(self) -> View:
        return "x0"

    @property
    def is_stochastic(self) -> bool:
        return self.tau > 0

    def write(self, to: Writer) -> None:
        rule = Corrected("x0", self.order, self.corrector, self.final, "taylor", self._eta)
        write_corrected(to, rule)

    def _eta(self, s: Level) -> float:
        rho = s.sigma / s.alpha if s.alpha else math.inf
        return self.tau**2 if self.low <= rho <= self._highest else 0.0

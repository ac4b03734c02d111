"""UniPC: a predictor, and a corrector that costs no evaluation.

The predictor of order p reaches t; F is evaluated there, as the next step needs anyway; the
corrector repeats the step from s with F_t among the points of its polynomial, and the next step
goes on from the corrected state with the value that is already known.

Paper: Zhao et al. 2023 (arXiv:2302.04867). With B(h) = e^h − 1 and three points or more the linear
system of the paper is that of the interpolating polynomial; with two it takes the midpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

from pathline.core.errors import UsageError
from pathline.fields.views import View
from pathline.solvers.corrected import Corrected, write_corrected
from pathline.solvers.exponential import Final
from pathline.solvers.solver import Solver, Writer, check_order, solvers


@solvers.register(
    "unipc",
    aliases=("unipc_2", "UniPC-2"),
    paper="arXiv:2302.04867",
    variants={"unipc_3": ({"order": 3}, ("UniPC-3",))},
)
@dataclass(frozen=True)
class UniPC(Solver):
    """UniPC-p: DPM-Solver's predictor of order p, corrected to order p + 1 at no extra evaluation.

    Args:
        order: p, the order of the predictor: 1, 2 or 3.
        view: "x0" (for guidance) or "eps".
        final: as for DPMpp.
    """

    order: int = 2  # pyright: ignore[reportIncompatibleMethodOverride]
    view: View = "x0"  # pyright: ignore[reportIncompatibleMethodOverride]
    final: Final = "auto"

    def __post_init__(self) -> None:
        check_order("UniPC", self.order, (1, 2, 3))
        if self.view not in ("eps", "x0"):
            raise UsageError(f"view={self.view!r}: UniPC predicts 'eps' or 'x0'.")
        if self.final not in ("auto", "full", "lower"):
            raise UsageError(f"final={self.final!r}: choose 'auto', 'full' or 'lower'.")

    @property
    def convergence(self) -> int:
        return self.order + 1

    def write(self, to: Writer) -> None:
        write_corrected(to, Corrected(self.view, self.order, self.order + 1, self.final))

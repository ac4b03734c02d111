"""Classification by a neural CDE: dz = F(z) dX, driven by the interpolated series.

Paper: Kidger, Morrill, Foster & Lyons 2020 (arXiv:2005.08926).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pathline.domains.series.series import Observed, check_channels
from pathline.fields import CDE
from pathline.nets.vector_fields import CDENet
from pathline.solvers import Solver, solve

__all__ = ["CDEClassifier"]


class CDEClassifier(nn.Module):
    """A classifier of series by a neural CDE.

    Args:
        channels: of the series, without time.
        classes: how many.
        hidden: numbers in a state.
        width: of the network of the response.
        solver: any, by name or value; steps go from knot to knot.
        is_driven: whether the path is read; else the logits come of the first value alone, which
            shows what the path is worth.
    """

    penalised: Sequence[nn.Parameter] = ()

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        hidden: int = 8,
        width: int = 128,
        solver: Solver | str = "heun",
        is_driven: bool = True,
    ) -> None:
        super().__init__()
        self.first = nn.Linear(1 + channels, hidden)
        self.response = CDENet(hidden, 1 + channels, width)
        self.last = nn.Linear(hidden, classes)
        self.solver, self.is_driven = solver, is_driven

    def forward(self, series: Observed, seeds: Sequence[int] = ()) -> Tensor:
        """Return logits, (n, classes).

        Args:
            series: n of them.
            seeds: not used.
        """
        del seeds
        check_channels(series, self.first.in_features - 1)
        control = series.control.to(self.first.weight.dtype)
        z = self.first(control.value(control.start))
        if self.is_driven:
            z = self.states(series, z)
        return self.last(z)

    def states(self, series: Observed, z: Tensor) -> Tensor:
        """Return the state at the end, (n, hidden)."""
        control = series.control.to(z.dtype)
        field = CDE(self.response, control)
        grid = series.times.tolist()
        return solve(field, z, solver=self.solver, grid=grid, adjoint="direct").x

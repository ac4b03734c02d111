"""Reversible Heun: a rule of two states that one evaluation a step carries, exactly invertible.

    ŷ' = 2y − ŷ + h f(ŷ) + g(ŷ) ΔW
    y' = y + ½ h (f(ŷ) + f(ŷ')) + ½ (g(ŷ) + g(ŷ')) ΔW  =  ½ (ŷ + ŷ' + h f(ŷ') + g(ŷ') ΔW)

The second form of the second row follows from the first row. In it each row can be solved for the
state that it uses for the last time: y' for ŷ, then ŷ' for y. So the steps can be taken back to
rounding, whatever the field, and the reversible adjoint needs no memory.

Paper: Kidger, Foster, Li & Lyons 2021 (arXiv:2105.13493), Alg. 1 and 2.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pathline.fields.sde import Integral
from pathline.solvers.plan import Plan
from pathline.solvers.solver import Writer, solvers
from pathline.solvers.stochastic import Stochastic

APART = 0.1
"""More than such a share of their size the two states should never differ."""


@solvers.register("reversible_heun", aliases=("revheun",), paper="arXiv:2105.13493, Alg. 1")
@dataclass(frozen=True)
class ReversibleHeun(Stochastic):
    """Reversible Heun, for Stratonovich and ordinary equations: order two, strong ½, additive 1.

    Choose it to train neural SDEs with the exact gradient in the memory of one step
    (adjoint="reversible"). Not for decaying or stiff problems: ŷ − y grows where λh leaves [−i, i].
    """

    integrals: ClassVar[tuple[Integral, ...]] = ("stratonovich",)

    @property
    def order(self) -> int:
        return 2

    def evaluations(self, n: int) -> int:
        return n + 1 if n else 0

    def write(self, to: Writer) -> None:
        y = hat = 0
        for i, (s, t) in enumerate(to.intervals()):
            h = t.t - s.t
            x = {y: 1.0} if y == hat else {y: 2.0, hat: -1.0}
            g = self.products(i, {(hat, "w"): 1.0})
            new = to.write(t.t, x, {hat: h}, g=g, lands=False)
            g = self.products(i, {(new, "w"): 0.5})
            y = to.write(t.t, {hat: 0.5, new: 0.5}, {new: h / 2}, g=g)
            hat = new


def warn_of_parting(plan: Plan, y: Tensor, hat: Tensor | None) -> None:
    """Warn if a plan is of this rule and its two states, which should be one, have come apart.

    Args:
        plan: that was run.
        y: where it ended, (batch, *state).
        hat: the state at which it evaluated last.
    """
    if plan.recipe.get("solver", {}).get("name") != "reversible_heun" or hat is None:
        return
    y = y.detach()
    size, apart = (float(each.norm()) for each in (y, hat.detach() - y))
    if apart > APART * size:
        warnings.warn(
            "reversible Heun's two states, which should be one, differ by "
            f"{apart / size if size else 1:.2g} of their size: the steps are too long, or the "
            "problem decays, where they part ever farther; take more steps, or solver='heun'.",
            stacklevel=4,
        )

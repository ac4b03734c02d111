"""Reversible Heun: a rule of two states that one evaluation a step carries, exactly invertible.

    ŷ' = 2y − ŷ + h f(ŷ) + g(ŷ) ΔW
    y' = y + ½ h (f(ŷ) + f(ŷ')) + ½ (g(ŷ) + g(ŷ')) ΔW  =  ½ (ŷ + ŷ' + h f(ŷ') + g(ŷ') ΔW)

The second form of the second row follows from the first row. In it each row can be solved for the
state that it uses for the last time: y' for ŷ, then ŷ' for y. So the steps can be taken back to
rounding, whatever the field, and the reversible adjoint needs no memory.

Paper: Kidger, Foster, Li & Lyons 2021 (arXiv:2105.13493), Alg. 1 and 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pathline.fields.sde import Integral
from pathline.solvers.solver import Writer, solvers
from pathline.solvers.stochastic import Stochastic


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

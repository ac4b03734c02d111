"""Regions: one solver here and another there, one loss here and another there.

    x_t = m ⊙ A(x_s) + (1 − m) ⊙ B(x_s)

Both rules start from the same state and share its evaluation, so it costs nothing but arithmetic.
With A the stochastic and B the deterministic form of one rule, noise is drawn where something may
be invented, and everything else follows the flow bit for bit. In the region every step keeps the
marginals that A keeps; the field, which sees the whole state, is not told.

Works for anything with a spatial mask: pictures, fields of a PDE, times of a trajectory.

Paper: Mou et al. 2024 (DiffEditor, arXiv:2402.02583), Sec. 3.2 (regional SDE, regional gradients).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields import View
from pathline.solvers import DDIM, Solver
from pathline.solvers.plan import Row
from pathline.solvers.solve import as_solver
from pathline.solvers.solver import Writer
from pathline.solvers.stepped import Stepped
from pathline.steer.estimate import Estimate, Steering
from pathline.steer.repeat import groups

__all__ = ["Regional", "RegionalLoss", "by_pixel"]

MOST_LEVELS = 16


@dataclass(frozen=True, eq=False)
class Regional(Solver):
    """One solver inside a mask and another outside, on the same evaluations.

    Args:
        inside: any solver with a plan, or its name: DDIM(0.4).
        outside: another one that predicts the same (both in x̂_0, say): DDIM().
        mask: bool, or 0 and 1, broadcasts to a state; 1 is inside.

    Raises:
        UsageError: a solver without a plan, solvers of two views, a mask with other values.

    Cost: the evaluations of both, those at grid points shared; two fused updates more a step.

    Example:
        >>> from pathline.paths import VPLinear
        >>> from pathline.solvers import grids
        >>> rule = Regional(DDIM(1.0), DDIM(), torch.tensor([True, False]))
        >>> plan = rule.plan(VPLinear(), grids.log_snr(4))
        >>> plan.nfe, plan.steps, plan.is_stochastic
        (4, 4, True)
    """

    inside: Solver | str
    outside: Solver | str
    mask: Tensor = field(repr=False)

    def __eq__(self, other: object) -> bool:
        return self is other  # a solver's own would not look at the mask

    def __hash__(self) -> int:
        return id(self)

    def __post_init__(self) -> None:
        for name in ("inside", "outside"):
            object.__setattr__(self, name, as_solver(getattr(self, name)))
        for rule in self.rules:
            if isinstance(rule, Stepped):
                raise UsageError(f"{type(rule).__name__} has no plan to take rows from.")
        a, b = self.rules
        if a.view != b.view:
            raise UsageError(
                f"{type(a).__name__} predicts {a.view} and {type(b).__name__} {b.view}: two "
                "regions need solvers of one prediction, which share its evaluations."
            )
        if not bool(((self.mask == 0) | (self.mask == 1)).all()):
            raise UsageError("the mask of regions has values other than 0 and 1; 1 is inside.")

    @property
    def rules(self) -> tuple[Solver, Solver]:
        """The solver inside, and the one outside."""
        assert isinstance(self.inside, Solver) and isinstance(self.outside, Solver)
        return self.inside, self.outside

    @property
    def order(self) -> int:
        return min(rule.order for rule in self.rules)

    @property
    def convergence(self) -> int:
        return min(rule.convergence for rule in self.rules)

    @property
    def view(self) -> View:
        return self.rules[0].view

    @property
    def is_stochastic(self) -> bool:
        return any(rule.is_stochastic for rule in self.rules)

    @property
    def is_exact_on_points(self) -> bool:
        return all(rule.is_exact_on_points for rule in self.rules)

    @property
    def nfe_per_step(self) -> int:
        return sum(rule.nfe_per_step for rule in self.rules) - 1

    def write(self, to: Writer) -> None:
        written = [Writer(to.path, to.times, to.denoises, to.alike) for _ in self.rules]
        for rule, writer in zip(self.rules, written, strict=True):
            rule.write(writer)
        if written[0].times != written[1].times:
            raise UsageError("the two solvers of a region stop over at different times.")
        if written[0].times != to.times:
            to.move(written[0].times[:-1] if to.denoises else written[0].times)
        mask = self.mask.to("cpu", torch.float64)
        copies = [_Copy(to) for _ in self.rules]
        for steps in zip(*(groups(writer.rows) for writer in written), strict=True):
            ends = [copy.write(rows) for copy, rows in zip(copies, steps, strict=True)]
            blended = {ends[0]: mask, ends[1]: 1 - mask}
            landed = to.write(float(steps[0][-1].t), blended, {})
            for copy in copies:
                copy.land(landed)


class _Copy:
    """Copies the rows of one solver into the plan of both, whose states have other numbers."""

    def __init__(self, to: Writer) -> None:
        self._to, self._old, self._new = to, 0, {0: 0}

    def write(self, rows: Sequence[Row]) -> int:
        """Write a step's rows, and return the number of the state that it ends at."""
        for row in rows:
            x, f = ({self._new[k]: c for k, c in terms.items()} for terms in (row.x, row.f))
            self._old += 1
            self._new[self._old] = self._to.write(
                float(row.t), x, f, dict(row.z), lands=False, constant=row.constant
            )
        return self._new[self._old]

    def land(self, number: int) -> None:
        """Go on from the state of both regions."""
        self._new[self._old] = number


def by_pixel(eta: Tensor) -> Solver:
    """Return DDIM with an amount of noise for each place of a state.

    Args:
        eta: in [0, 1], broadcasts to a state; at most 16 different values.

    Raises:
        UsageError: more values, or values outside [0, 1].

    Example:
        >>> by_pixel(torch.tensor([0.0, 0.4])).is_stochastic
        True
    """
    values = sorted(set(eta.double().flatten().tolist()))
    if len(values) > MOST_LEVELS:
        raise UsageError(
            f"η takes {len(values)} values, and {MOST_LEVELS} regions are written at most: round "
            "the map, (eta * 15).round() / 15."
        )
    rule: Solver = DDIM(values[0])
    for value in values[1:]:
        rule = Regional(DDIM(value), rule, eta.double() == value)
    return rule


@dataclass(frozen=True, eq=False)
class RegionalLoss(Steering):
    """Steers by one loss of the clean estimate inside a mask, and by another outside.

        Δx̂_0 = −κ (m ⊙ Jᵀ∇V_in + (1 − m) ⊙ Jᵀ∇V_out),   κ = λ σ²/α

    Each loss sees the whole estimate, and moves its own region alone.

    Args:
        inside: V of the inside: (batch, *state) → (batch,), differentiable, of clean data.
        outside: V of the outside; None for nothing.
        mask: bool, or 0 and 1, broadcasts to a state; 1 is inside.
        weight: λ; 0 is none.

    Cost: two vector-Jacobian products through the model.
    """

    inside: Callable[[Tensor], Tensor]
    outside: Callable[[Tensor], Tensor] | None
    mask: Tensor = field(repr=False)
    weight: float = 1.0

    def __eq__(self, other: object) -> bool:
        return self is other  # a guide's own would not look at losses and mask

    def __hash__(self) -> int:
        return id(self)

    @property
    def is_none(self) -> bool:
        return self.weight == 0

    @property
    def is_score(self) -> bool:
        return True

    @property
    def vjps(self) -> int:
        return 2

    @property
    def shares(self) -> bool:
        return False

    def stepped(self, now: Estimate) -> Tensor:
        slopes = [
            torch.zeros_like(now.x) if loss is None else now.pulled(now.slope(loss), again=True)
            for loss in (self.inside, self.outside)
        ]
        made = torch.where(self.mask.to(now.x.device) == 1, *slopes)
        return -self.weight * now.gain * made

    def describe(self) -> dict[str, Any]:
        """Return what a receipt says of it: all but the functions, and how large the inside is."""
        share = float((self.mask == 1).double().mean())
        return {"name": "regional_loss", "weight": self.weight, "share": share}

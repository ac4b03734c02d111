"""A probe of robustness: how much does a sampler forgive?

    before each step   x ← x + a σ_t z,   z ~ N(0, I)                     ("controlled noise")

Errors of a network, of coarse steps and of quantised weights push a state off its way; noise of a
known size does so on purpose. What a solver then ends at, against a, is how much it forgives.

Paper: Xu et al. 2023 (arXiv:2302.04265), Sec. 5.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields import Field, View
from pathline.paths import GaussianPath, Time
from pathline.solvers.grids import Grid
from pathline.solvers.plan import Coefficient, Plan, Row, Terms
from pathline.solvers.solver import Solver, Writer


@dataclass(frozen=True)
class NoiseInjection(Solver):
    """Any solver with a plan, pushed off its way before each of its steps.

    The closing step to data is one of them; what lands there is left as it is. On a path of
    finite D it may be used too: it pretends to no SDE.

    Args:
        solver: which.
        amount: a, the size of the noise in units of σ_t.

    Cost: no evaluations.

    Example: `pl.sample(model, 16, solver=NoiseInjection(pl.Heun(view="eps"), 0.2), grid="karras")`
    """

    solver: Solver
    amount: float

    def __post_init__(self) -> None:
        if not self.amount >= 0:
            raise UsageError(f"the amount of noise must not be negative, and is {self.amount}.")

    @property
    def order(self) -> int:
        return self.solver.order

    @property
    def view(self) -> View:
        return self.solver.view

    @property
    def needs_path(self) -> bool:
        return True  # σ_t is the path's

    @property
    def is_stochastic(self) -> bool:
        return self.amount > 0 or self.solver.is_stochastic

    @property
    def nfe_per_step(self) -> int:
        return self.solver.nfe_per_step

    def write(self, to: Writer) -> None:
        self.solver.write(to)

    def tuned(self, field: Field, shape: Sequence[int]) -> Solver:
        return replace(self, solver=self.solver.tuned(field, shape))

    def plan(self, path: GaussianPath | None, grid: Grid | Sequence[Grid]) -> Plan:
        if path is None:
            raise UsageError("noise is injected in units of a path's σ, and this field has none.")
        return _pushed(self.solver.plan(path, grid), self.amount)


@lru_cache(maxsize=64)
def _pushed(plan: Plan, amount: float) -> Plan:
    """Return the plan in which noise is added to the state at every grid point but the last."""
    return replace(plan, rows=tuple(_rows(plan, amount)), recipe={}) if amount else plan


def _rows(plan: Plan, amount: float) -> Iterator[Row]:
    given, draw = len(plan.start), 1 + max((d for row in plan.rows for d in row.z), default=-1)
    renamed = list(range(given))  # state of the plan → state that later rows name instead
    made, pushed = given, set(plan.landings[:-1])

    def named(terms: Terms) -> dict[int, Coefficient]:
        return {renamed[k]: c for k, c in terms.items()}

    for number, t in enumerate(plan.times):
        if number >= given:
            row = plan.rows[number - given]
            yield replace(row, x=named(row.x), f=named(row.f))
            renamed.append(made)
            made += 1
        if number in pushed:
            yield Row(t, {renamed[number]: 1.0}, {}, {draw: amount * _sigma(plan, t)}, lands=False)
            renamed[number] = made
            made, draw = made + 1, draw + 1


def _sigma(plan: Plan, t: Time) -> Coefficient:
    """Return σ_t; where samples have times of their own, each as if it were alone."""
    assert plan.path is not None
    if not isinstance(t, Tensor):
        return float(plan.path.sigma(t))
    return torch.stack([plan.path.sigma(each) for each in t])

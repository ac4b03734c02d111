"""The continuous adjoint: the gradient of the flow itself, as a differential equation.

On a path the flow is a plain integral in three forms, w = x/s as a function of a clock u
(`solvers.runge_kutta`; "eps" is the exponential-integrator form, "velocity" the raw one):

    dw/du = F(s w, t(u)),      b = dL/dw = s dL/dx

    db/du = −(∂F/∂w)ᵀ b,       dL/dθ = ∫ (∂F/∂θ)ᵀ b du from the start to the end of the solve

It is integrated from the end back to the start, on the grid of the solve, all products of a stage
from one backward pass. dL/dθ feeds nothing back, so it is no part of the state: each product is
added with the weight that its slope has in the end.

Paper: Pan et al. 2023 (arXiv:2307.10711), Eqs. 7-9; our b is their a, and "eps" their (y, ρ).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from pathline.core.errors import GradientError, UsageError, unknown
from pathline.fields import Field, change
from pathline.solvers.adaptive_rk import AdaptiveRK
from pathline.solvers.adjoints.adjoint import Adjoint, Cost, Gradients, Pass, adjoints, through
from pathline.solvers.adjoints.flow import Clocked, Form, Products
from pathline.solvers.adjoints.integrate import Goal, adaptively, first_trouble, on_grid, told
from pathline.solvers.adjoints.probe import cosine
from pathline.solvers.adjoints.segments import (
    Found,
    Loop,
    Record,
    Stretcher,
    Totals,
    Walk,
    autocast,
)
from pathline.solvers.adjoints.sources import check_steady, sources
from pathline.solvers.plan import Plan
from pathline.solvers.runge_kutta import RK, RungeKutta
from pathline.solvers.solver import Solver, solvers

States = Literal["recompute", "stored"]

ALIKE = 0.9
"""The least cosine between the continuous gradient and the solver's own that goes unremarked."""


@adjoints.register("continuous", aliases=("adjoint_dpm", "ode"), paper="arXiv:2307.10711, Eqs. 7-9")
@dataclass(frozen=True)
class Continuous(Adjoint):
    """The gradient of the flow, by its adjoint equation, with no activation and no state kept.

    Choose it for many steps of a good solver where even the states are too many, or for the flow's
    own gradient; with few steps it is not the gradient of what the solver did, and can point
    elsewhere (first-order methods do): a probe of a few samples warns. `Checkpoint` is exact at
    the same cost, in the memory of one state a step.

    Args:
        solver: a Runge-Kutta method, or a name of one ("midpoint", "rk4"), for the way back;
            `AdaptiveRK(...)` chooses steps of its own. None is the method of the solve, or the
            classical one of its order.
        form: the coordinates, "eps", "x0" or "velocity" (raw); None is "eps" where the grid allows
            it, and "velocity" elsewhere, as for a plain differential equation.
        states: "recompute" carries the state back by the same method; "stored" puts back the ones
            that the solve stopped over at.
        probe: how many samples are also differentiated by checkpointing, to compare directions; 0
            for none. Where a guide or condition belongs to the whole batch, that is all of it.

    Raises:
        UsageError: a stochastic solver, dropout or batch norm in training mode, several states at
            the start, a clock that vanishes on the grid, a method that has no tableau.
        GradientError: a NaN or an infinity on the way back; says at which step and log-SNR.

    Cost: backward one evaluation and one product a stage of the method, and the probe's. Keeps the
    final state; with "stored" one a step.
    """

    solver: RungeKutta | AdaptiveRK | str | None = None
    form: Form | None = None
    states: States = "recompute"
    probe: int = 4

    def __post_init__(self) -> None:
        if self.form is not None and self.form not in get_args(Form):
            raise unknown("form", self.form, get_args(Form))
        if self.states not in get_args(States):
            raise unknown("choice of states", self.states, get_args(States))
        if self.probe < 0:
            raise UsageError(f"probe={self.probe}: a number of samples, 0 or more.")
        if isinstance(self.solver, str):
            object.__setattr__(self, "solver", solvers.build(self.solver))
        if self.solver is not None and not isinstance(self.solver, RungeKutta | AdaptiveRK):
            raise UsageError(
                f"solver={self.solver}: the way back takes a Runge-Kutta method, for example "
                "'rk4', or AdaptiveRK(...)."
            )

    def check(self, loop: Loop) -> None:
        super().check(loop)
        plan = loop.plan
        if loop.shown:
            raise UsageError(
                "adjoint='continuous' starts from the final state, and trajectory=True asks for "
                "others: use adjoint='checkpoint' or 'direct', or solve from time to time."
            )
        if plan.is_stochastic:
            raise UsageError(
                f"{_named(plan)} draws noise, and the continuous adjoint is one of a flow: use a "
                "deterministic solver, or adjoint='checkpoint'."
            )
        if plan.batch is not None or len(plan.start) > 1:
            what = "grids of each sample's own" if plan.batch else "plans from several states"
            raise UsageError(f"adjoint='continuous' has no {what}: use adjoint='checkpoint'.")

    def cost(self, plan: Plan) -> Cost:
        rule, closes = self.rule(_solver_of(plan)), _closes(plan)
        if isinstance(rule, AdaptiveRK):
            raise UsageError("an adaptive way back chooses its steps while it runs.")
        stages, n = len(rule.tableau.b), plan.steps - closes
        stored = plan.steps if self.states == "stored" else int(closes)
        nfe = stages * n + closes
        return Cost(nfe, nfe, 2 * (stages + 2) + stored, 1)

    def prepared(self, found: Found) -> Pass:
        return _Planned(found, self)

    def walked(self, walk: Walk) -> Tensor:
        solver = walk.course.solver
        if not isinstance(solver, AdaptiveRK):
            raise UsageError(
                f"adjoint='continuous' integrates back by a Runge-Kutta method, and {walk.solver} "
                "is none, or draws noise: use dopri5, a solver with a plan, or adjoint='direct'."
            )
        if not torch.is_grad_enabled():
            return walk.run()
        if walk.course.batch is not None or walk.course.denoises:
            raise UsageError(
                "adjoint='continuous' with an adaptive solver takes one grid for all samples that "
                "ends with last='stop'."
            )
        check_steady((walk.field, walk.cond), self.name)
        t = walk.course.instants[0].to(walk.x.device)
        f = walk.field.bind(t[None], walk.x.detach(), walk.cond)(0, walk.x)
        if not f.requires_grad:
            return walk.run()
        found = sources((walk.field, walk.cond), [f], [walk.x])
        del f
        work = _Walked(walk, found.tensors, found.keeps_graph, self)
        return through(work, (walk.x,), found.tensors)

    def rule(self, forward: Solver | None) -> RungeKutta | AdaptiveRK:
        """Return the method of the way back, in the clock of the form."""
        chosen = self.solver if isinstance(self.solver, Solver) else forward
        if isinstance(chosen, RungeKutta | AdaptiveRK):
            return replace(chosen, view="velocity")
        order = 4 if chosen is None else min(max(chosen.order, 1), 4)
        return RK(method=("euler", "midpoint", "kutta3", "rk4")[order - 1])

    def clocked(self, field: Field, times: Sequence[float]) -> tuple[Clocked, Sequence[float]]:
        """Return the field in its form, and the clock at these times.

        Raises:
            UsageError: the form needs a path, or its clock vanishes on the grid.
        """
        if self.form is not None:
            made = Clocked(field, self.form)
            if self.form != "velocity" and field.path is None:
                raise UsageError(f"form={self.form!r} needs a path, and this field has none.")
            return made, made.clocks(times)
        if field.path is not None:
            try:
                made = Clocked(field, "eps")
                return made, made.clocks(times)
            except UsageError:
                pass
        made = Clocked(field, "velocity")
        return made, made.clocks(times)


def _named(plan: Plan) -> str:
    solver = plan.recipe.get("solver", {})
    return str(solver.get("name", "this plan"))


def _solver_of(plan: Plan) -> Solver | None:
    """Return the solver that a plan was compiled from, where the plan tells it."""
    told = plan.recipe.get("solver")
    return solvers.rebuild(told) if told else None


def _closes(plan: Plan) -> bool:
    """Whether the last row is the step to data, x = x̂_0, which is no step of the flow."""
    if plan.path is None or plan.times[-1] != 0 or plan.landings[-1] != len(plan.times) - 1:
        return False
    row, before = plan.rows[-1], len(plan.times) - 2
    p, q = (float(c) for c in change(plan.path, plan.view, "x0", plan.times[before]))
    x, f = (float(row.x.get(before, 0.0)), float(row.f.get(before, 0.0)))
    return set(row.f) == {before} and math.isclose(x, p, abs_tol=1e-9) and math.isclose(f, q)


class _Flowing(Pass):
    """What passes by the adjoint equation share."""

    def __init__(self, how: Continuous, record: Record) -> None:
        self.how, self.record = how, record

    def carried(
        self, goal: Goal, rule: RungeKutta | AdaptiveRK, end: Tensor, cotangent: Tensor, x: Tensor
    ) -> tuple[Tensor, Totals]:
        """Return the gradient at the start x, and those of the sources.

        Raises:
            GradientError: something is not finite.
        """
        run = adaptively if isinstance(rule, AdaptiveRK) else on_grid
        totals = Totals(goal.products.sources)
        start, gradient = run(rule, goal, end, cotangent, totals)  # type: ignore[arg-type]
        made = [gradient, *(total for total in totals.total if total is not None)]
        if not bool(torch.stack([(g * 0).sum().isfinite() for g in made]).all()):
            raise GradientError(self._trouble(goal, rule, end, cotangent))
        if goal.stored is None:
            off = (start - x).norm() / x.norm().clamp(min=1e-30)
            self.record.drift = float(off)
        return gradient, totals

    def _trouble(
        self, goal: Goal, rule: RungeKutta | AdaptiveRK, end: Tensor, cotangent: Tensor
    ) -> str:
        """Run once more, looking at everything, and say where it first went wrong."""
        if not bool(cotangent.isfinite().all()):
            return "the gradient of the loss is not finite where the sample ends; look at the loss."
        fixed = rule if isinstance(rule, RungeKutta) else RK(method="rk4")
        step = first_trouble(fixed, goal, end, cotangent)
        where = "in the gradients of the sources" if step is None else told(goal, step)
        return (
            f"the adjoint is not finite {where}; look at the network's output and derivatives "
            "there, its dtype, and the guidance weight."
        )

    def again(self) -> Tensor:
        raise UsageError(
            "adjoint='continuous' has no derivatives of its gradient: use adjoint='checkpoint' or "
            "'direct'."
        )


class _Planned(_Flowing):
    """A solve by a plan, differentiated by the adjoint equation."""

    def __init__(self, found: Found, how: Continuous) -> None:
        loop = found.loop
        super().__init__(how, loop.record)
        self._found, self._loop = found, loop
        self._stretcher = Stretcher(found)
        self._closes = _closes(loop.plan)
        times = [float(t) for t in loop.plan.grid]
        self._times = times[:-1] if self._closes else times
        self._rule = how.rule(_solver_of(loop.plan))
        self._clocked, self._clocks = how.clocked(loop.call.field, self._times)
        self._states = list[Tensor]()

    def forward(self) -> Tensor:
        stretcher = self._stretcher
        live, n = stretcher.start(), len(stretcher.steps)
        for i in range(n):
            if self.how.states == "stored" or (self._closes and i == n - 1):
                self._states.append(live["x", self._loop.plan.landings[i]])
            live = stretcher.advance(i, live, self._loop.evaluator)
        return stretcher.result(live)

    def backward(self, cotangent: Tensor, result: Tensor) -> Gradients:
        loop, found = self._loop, self._found
        last, asked = Totals(found.sources), cotangent
        end, b = self._closing(cotangent, last) if self._closes else (result.detach(), cotangent)
        if len(self._times) < 2:
            return [b], last.cast()
        products = Products(loop.call.field, loop.call.cond, found.sources, found.keeps_graph,
                            self.record, self._stretcher.mode)  # fmt: skip
        stored = self._states if self.how.states == "stored" else None
        goal = Goal(self._clocked, products, self._clocks, self._times, stored)
        gradient, totals = self.carried(goal, self._rule, end, b, loop.given[0].detach())
        last.add(totals.total)
        if self.how.probe:
            self.record.cosine = cosine(found, asked, gradient, self.how.probe)
            _remark(self.record.cosine)
        return [gradient.to(cotangent.dtype)], last.cast()

    def _closing(self, cotangent: Tensor, totals: Totals) -> tuple[Tensor, Tensor]:
        """Return the state before the step to data, and the exact pull through that step."""
        number = len(self._stretcher.steps) - 1
        key, end = ("x", self._loop.plan.landings[number]), self._states[-1]
        made = {("x", self._stretcher.steps[-1][-1].number): cotangent}
        return end, self._stretcher.pulled(number, {key: end}, made, totals)[key]


class _Walked(_Flowing):
    """An adaptive solve, differentiated by an adaptive one the other way."""

    def __init__(
        self, walk: Walk, sources: Sequence[Tensor], keeps_graph: bool, how: Continuous
    ) -> None:
        super().__init__(how, walk.record)
        self._walk, self._times = walk, [float(t) for t in walk.course.grid]
        mode = autocast(walk.x.device)
        self._products = Products(walk.field, walk.cond, sources, keeps_graph, walk.record, mode)
        self._clocked, self._clocks = how.clocked(walk.field, self._times)

    def forward(self) -> Tensor:
        return self._walk.run()

    def backward(self, cotangent: Tensor, result: Tensor) -> Gradients:
        goal = Goal(self._clocked, self._products, self._clocks, self._times, None)
        solver = self._walk.course.solver
        rule = self.how.rule(solver)
        gradient, totals = self.carried(
            goal, rule, result.detach(), cotangent, self._walk.x.detach()
        )
        return [gradient.to(cotangent.dtype)], totals.cast()


def _remark(alike: float) -> None:
    """Warn where the continuous gradient is none of what the solver did."""
    if alike < ALIKE:
        warnings.warn(
            f"the continuous adjoint and the gradient of the solver itself have a cosine of "
            f"{alike:.2f}: with these steps the adjoint equation is not solved, though the sample "
            "may be fine. Take more steps, a method of higher order (Continuous(solver='rk4')), "
            "states='stored', or adjoint='checkpoint'.",
            stacklevel=2,
        )

"""The field as a stepped solver asks for it: at a time of each sample's own, in its own view."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields import Condition, View, change
from pathline.paths import bshape
from pathline.solvers.evaluate import Watched, check_output
from pathline.solvers.executors import inner_of
from pathline.solvers.folding import untold
from pathline.solvers.levels import steady
from pathline.solvers.pace import Numbers
from pathline.solvers.stepped import Problem

Times = tuple[Tensor, ...]


class Slope:
    """Evaluates the field for some samples of a solve, each at its own time.

    Args:
        problem: the solve.
        view: what is asked for.
        way: the sign of dt/d(clock) of each sample, (batch,): clocks run forwards.
    """

    def __init__(self, problem: Problem, view: View, way: Numbers) -> None:
        self._problem: Problem = problem
        self._view: View = view
        self.all_ways, self.way = way, way
        self.inner = inner_of(problem.field)
        self._is_plain = self.inner is not None and view == "velocity"
        self._changes = problem.field.view != view
        self._cond: Condition = problem.cond
        self._rows: Tensor | None = None
        self._checked = False
        if self._changes and problem.course.path is None:
            raise UsageError(
                f"a field without a path has no {view}, only its {problem.field.view}."
            )
        some = torch.arange(min(1, len(problem.x)))
        self.splits = problem.field.part(problem.cond, some) is not None
        """Whether some samples can be evaluated without the others."""

    @property
    def problem(self) -> Problem:
        """The solve."""
        return self._problem

    def turn(self, way: Numbers) -> None:
        """Be told the ways of all samples."""
        self.way = self.all_ways = way

    def fused(
        self, key: Hashable, make: Callable[[Callable[..., Tensor]], Callable[..., Any]]
    ) -> Callable[..., Any] | None:
        """Return a function that contains the field, compiled, if the solve is."""
        executor, inner = self._problem.executor, self.inner
        if executor is None or inner is None or not self._is_plain or self._rows is not None:
            return None
        return executor.fused(key, inner.function, lambda: make(inner.function))

    @property
    def cond(self) -> Condition:
        """The condition of the samples that are asked for."""
        return self._cond

    def narrow(self, rows: Tensor | None) -> None:
        """Ask for these samples from now on; for all if None."""
        self.way = self.all_ways if rows is None else self.all_ways[rows.numpy()]
        part = None if rows is None else self._problem.field.part(self._problem.cond, rows)
        self._cond = self._problem.cond if part is None else part
        self._rows = None if rows is None or part is not None else rows.to(self._problem.x.device)

    def times(self, clocks: Numbers, like: Tensor) -> Times:
        """Return times, from clocks (k, n), as `__call__` takes them: made ready at once."""
        told = torch.from_numpy(clocks * self.way)
        if told.device != like.device:
            told = told.to(like.device)
        if self._is_plain:
            told = told.to(like.dtype).view(*told.shape, *[1] * (like.ndim - 1))
        return told.unbind()

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the field, (n, *state), at a time that `times` has made ready."""
        f = self._raw(x, t) if self._rows is None else self._among(self._rows, x, t)
        if not self._checked:
            check_output(f, x)
            self._checked = True
        if not self._changes:
            return f
        p, q = self._change(t)
        return bshape(p, x) * x + bshape(q, x) * f

    def jacobian(self, x: Tensor, t: Tensor) -> Tensor | None:
        """Return ∂f/∂x, (n, *state, *state), where the field has its own and all are asked."""
        field = self.inner
        if field is None or field.jacobian is None or self._rows is not None:
            return None
        return field.jacobian(x, t, **self._cond)

    def look(self, part: str, value: Tensor, t: Tensor) -> None:
        """Show what a solver has made of the field to who looks for what is not finite."""
        if isinstance(self._problem.field, Watched):
            self._problem.field.look(part, value, t)

    def _raw(self, x: Tensor, t: Tensor) -> Tensor:
        field = self._problem.field
        if self._is_plain:
            assert self.inner is not None
            return self.inner.function(x, t, **self._cond)
        return field.bind(t[None], x, self._cond)(0, x)

    def _among(self, rows: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Evaluate whole batches: the others are there, and not listened to."""
        whole = self._problem.x
        filled = x[:1].expand_as(whole).index_put((rows,), x)
        times = t[:1].expand(len(whole), *t.shape[1:]).index_put((rows,), t)
        return self._raw(filled, times)[rows]

    def _change(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (p, q) with the solver's view = p x + q F, each (n,)."""
        source, path = self._problem.field.view, self._problem.course.path
        goal = self._view
        assert path is not None

        def part(k: int) -> Callable[[Tensor], Tensor]:
            return lambda s: change(path, source, goal, s)[k]

        p, q = steady(part(0), t), steady(part(1), t)
        known = (p + q).isfinite()
        if not bool(known.all()):
            raise untold(path, source, goal, float(t[~known][0]))
        return p, q

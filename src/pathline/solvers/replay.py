"""Steps of an adaptive solve that are taken again, as they were."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathline.solvers.pace import Flags, Numbers, Reach
from pathline.solvers.slope import Slope
from pathline.solvers.stepped import Problem, Tally
from pathline.solvers.trial import Rows, chosen

if TYPE_CHECKING:
    from pathline.solvers.adjoints.segments import Walk


class Took(NamedTuple):
    """What was taken of an attempt.

    Args:
        rows: which samples of the batch, (n,).
        x: the states at its start, (n, *state).
        begin: where the field was asked for them, on the clock.
        reach: how far it went.
        taken: whose step was taken.
        way: the sign of dt/d(clock) of all samples.
    """

    rows: Rows
    x: Tensor
    begin: Numbers
    reach: Reach
    taken: Flags
    way: Numbers


class Replay:
    """Takes steps again, with a graph where the caller has one.

    Args:
        walk: the solve that they are of.
    """

    def __init__(self, walk: Walk) -> None:
        from pathline.solvers.adaptive import Adaptive

        solver = walk.course.solver
        assert isinstance(solver, Adaptive)
        batch = len(walk.x)
        problem = Problem(walk.course, walk.field, walk.x.detach(), walk.cond, None, Tally(batch))
        self._slope = Slope(problem, solver.view, np.ones(batch))
        self._stepper = solver.stepper(walk.course, self._slope)
        self._stepper.graph = True
        self.evaluations = self._stepper.evaluations + 1

    def __call__(self, x: Tensor, took: Took) -> Tensor:
        """Return where a step leads from x, and x where it was not taken."""
        self._slope.turn(took.way)
        whole = len(took.rows) == len(took.way)
        self._slope.narrow(None if whole else torch.from_numpy(took.rows))
        reach = took.reach._replace(size=np.where(took.taken, took.reach.size, 0.0))
        (t,) = self._slope.times(took.begin[None], x)
        trial = self._stepper.attempt(x, self._slope(x, t), reach)
        if took.taken.all():
            return trial.x
        return chosen(torch.from_numpy(took.taken).to(x.device), trial.x, x)

"""Adaptive solvers: the difference of two results decides how far the next step goes.

Each sample has its own step size, status and count. Between grid points it takes as many steps as
it needs; the last one lands on the point exactly. A sample that is done, or has failed, is not
evaluated again where the field can be asked for the others alone, and is left as it is elsewhere.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pathline.core.errors import UsageError
from pathline.fields import Field
from pathline.solvers.execute import Step
from pathline.solvers.pace import Control
from pathline.solvers.slope import Slope
from pathline.solvers.solver import Solver
from pathline.solvers.stepped import Course, Problem, Stepped, closing
from pathline.solvers.trial import Stepper
from pathline.solvers.walk import Walk


@dataclass(frozen=True)
class Adaptive(Stepped):
    """What adaptive solvers share.

    Args:
        rtol: relative tolerance of one step.
        atol: absolute tolerance of one step.
        first: the first step, on the solver's clock; None lets the solver choose it.
        max_steps: attempts after which a sample is given up.
        control: how an error becomes a step size (`Control`, or its numbers).
        jumps: times at which the field jumps: steps end there, and begin anew behind.
    """

    rtol: float = 1e-3
    atol: float = 1e-6
    first: float | None = None
    max_steps: int = 10_000
    control: Control = Control()
    jumps: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not (self.rtol >= 0 and self.atol >= 0 and 0 < self.rtol + self.atol < math.inf):
            raise UsageError(
                "rtol and atol must not be negative, and one of them above 0; they are "
                f"{self.rtol} and {self.atol}."
            )
        if self.first is not None and not 0 < self.first < math.inf:
            raise UsageError(f"the first step must be above 0, and is {self.first}.")
        if self.max_steps < 1:
            raise UsageError(f"at least 1 step is needed; max_steps={self.max_steps}.")
        object.__setattr__(self, "control", Control(*self.control))
        object.__setattr__(self, "jumps", tuple(float(t) for t in self.jumps))
        self.control.check()

    @property
    def is_adaptive(self) -> bool:
        return True

    def tuned(self, field: Field, shape: Sequence[int]) -> Solver:
        """Return the solver with the jumps that the field tells of (a CDE's, at its knots)."""
        made = super().tuned(field, shape)
        told: tuple[float, ...] = getattr(field, "jumps", ())
        return replace(self, jumps=told) if told and not self.jumps else made

    @property
    @abstractmethod
    def error_order(self) -> int:
        """The power of h with which the estimated error falls."""

    @property
    def shares(self) -> bool:
        """Whether the whole batch takes the same steps."""
        return False

    @abstractmethod
    def stepper(self, course: Course, slope: Slope) -> Stepper:
        """Return the method, bound to one solve."""

    def march(self, problem: Problem) -> Iterator[Step]:
        course, walk = problem.course, Walk(self, problem)
        ends = course.grid[1 : -1 if course.denoises else None]
        for index, end in enumerate(ends):
            walk.to(end)
            step = Step(index, end, walk.x, walk.seen)
            yield step
            walk.resume(step.x)
        if course.denoises:
            x = closing(problem, walk.x, (problem.tally.status == 0).nonzero()[:, 0])
            yield Step(len(ends), 0.0, x, walk.seen)


__all__ = ["Adaptive", "Control"]

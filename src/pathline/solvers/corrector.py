"""Predictor-corrector samplers: Langevin steps between the steps of any solver with a plan.

At a grid point the score g = ∇log p_t(x) is known, so Langevin dynamics at fixed t pulls the state
back to its marginal:

    x ← x + e g + √(2e) z
    langevin   e = 2a (r ‖z‖/‖g‖)²       a signal-to-noise ratio of r
    annealed   e = 2a (r σ_t)²           the same for the norms that are expected

with a = (α_s/α_t)² over the coming step s → t (1 − β of VP, 1 on VE). The last step is taken
without its noise, and is not corrected.

Paper: Song et al. 2021 (arXiv:2011.13456, Alg. 2-5); Song & Ermon 2019 (arXiv:1907.05600) for
annealed Langevin dynamics, which is this with a predictor that stays where it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Literal, get_args

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError, unknown
from pathline.fields import Evaluate, View, change
from pathline.paths import GaussianPath, bshape
from pathline.solvers.evaluate import Evaluator
from pathline.solvers.execute import Execution, Step, combined, drawing
from pathline.solvers.exponential import check_start
from pathline.solvers.grids import Grid
from pathline.solvers.levels import norms
from pathline.solvers.plan import Plan
from pathline.solvers.solver import Solver, Writer, solvers
from pathline.solvers.stepped import Problem, Stepped

Corrector = Literal["langevin", "annealed"]
Norms = Literal["sample", "batch"]
First = Literal["corrector", "predictor"]


@dataclass(frozen=True)
class Stay(Solver):
    """The predictor that stays where it is, as the level of noise falls."""

    @property
    def order(self) -> int:
        return 0

    @property
    def view(self) -> View:
        return "score"

    def write(self, to: Writer) -> None:
        for i, (_, t) in enumerate(to.intervals()):
            to.write(t.t, {i: 1.0}, {})


@solvers.register(
    "pc",
    aliases=("predictor_corrector",),
    paper="arXiv:2011.13456, Alg. 2 and 3",
    variants={
        "pc_ancestral": ({"predictor": "ddpm"}, ()),
        "annealed_langevin": (
            {"predictor": "none", "corrector": "annealed", "n": 5},
            ("ald", "ncsn"),
        ),
    },
)
@dataclass(frozen=True)
class PredictorCorrector(Stepped):
    """A step of any solver, and Langevin corrections at each grid point.

    Choose it where a network's score is better than the steps that you can afford are exact:
    corrections cost one evaluation each. On VE `reverse_diffusion` is the usual predictor, on VP
    `euler_maruyama`.

    Args:
        predictor: the name of any solver with a plan, or "none" (annealed Langevin dynamics).
        corrector: "langevin" scales each step by norms; "annealed" by σ_t alone.
        snr: r, the signal-to-noise ratio of a correction.
        n: corrections at each grid point; 0 is the predictor alone.
        norms: "sample" for each sample's own; "batch" for their mean, as in public code: then a
            sample depends on the others of its batch. In few dimensions the norm of one sample
            is no guide: use "annealed" there.
        first: whether the first thing that happens is a correction or a step.
    """

    predictor: str = "reverse_diffusion"
    corrector: Corrector = "langevin"
    snr: float = 0.16
    n: int = 1
    norms: Norms = "sample"
    first: First = "corrector"

    def __post_init__(self) -> None:
        if isinstance(self._predictor, Stepped):
            raise UsageError(f"the predictor {self.predictor!r} has no plan; choose one that has.")
        if not self.snr > 0:
            raise UsageError(f"snr must be above 0, and is {self.snr}.")
        if self.n < 0:
            raise UsageError(f"n={self.n}: 0 corrections or more are made at each grid point.")
        for value, choices in (
            (self.corrector, Corrector),
            (self.norms, Norms),
            (self.first, First),
        ):
            if value not in get_args(choices):
                raise unknown("choice", value, get_args(choices))

    @property
    def _predictor(self) -> Solver:
        return Stay() if self.predictor == "none" else solvers.build(self.predictor)

    @property
    def order(self) -> int:
        return self._predictor.order

    @property
    def view(self) -> View:
        return "score"

    @property
    def is_stochastic(self) -> bool:
        return True

    @property
    def nfe_per_step(self) -> int:
        stays = self.predictor == "none"
        return self.n + (0 if stays else self._predictor.nfe_per_step)

    def check(self, path: GaussianPath | None, grid: Grid) -> None:
        assert path is not None
        check_start("eps", list(Writer(path, grid.times(path), False).intervals())[:1], eta=1.0)
        self._plan(path, grid)

    def _plan(self, path: GaussianPath | None, grid: Grid | Sequence[Grid]) -> Plan:
        return _without_last_noise(self._predictor.plan(path, grid))

    def march(self, problem: Problem) -> Iterator[Step]:
        course, field, x, cond, seeds, tally, keep = problem[:7]
        if seeds is None:
            raise UsageError("a stochastic solver needs seeds, one a sample.")
        plan = self._plan(course.path, course.ends).folded(field.view)
        called = Evaluator(field, plan, x, cond)

        def evaluate(k: int, state: Tensor) -> Tensor:
            tally.nfe += 1
            return called(k, state)

        correct = _Correct(self, plan, problem, evaluate)
        if self.first == "corrector":
            x = correct(0, 0, x)
        execution, index = Execution(plan, evaluate, [x], combined, drawing(plan, seeds, x)), 0
        for row in execution.program:
            x = execution.advance(row)
            if not row.lands:
                continue
            index += 1
            tally.steps += 1
            if index < course.steps:
                if keep is not None and self.n:
                    x = keep(x, row.t)
                x = correct(index, row.number, x)
            step = Step(index - 1, row.t, x, execution.latest)
            yield step
            execution.replace(row, step.x)
        correct.warn()


def langevin(x: Tensor, score: Tensor, size: Tensor, z: Tensor) -> Tensor:
    """Return x + e g + √(2e) z, a step of unadjusted Langevin dynamics.

    Args:
        x: (batch, *state).
        score: g, (batch, *state).
        size: e, (batch,).
        z: standard normal, (batch, *state).
    """
    return x + bshape(size, x) * score + bshape((2 * size).sqrt(), x) * z


class _Correct:
    """The corrections of one solve."""

    def __init__(
        self,
        solver: PredictorCorrector,
        plan: Plan,
        problem: Problem,
        evaluate: Evaluate,
    ) -> None:
        path, view, course = plan.path, plan.view, problem.course
        assert path is not None
        alpha, sigma = course.tabulated(path.alpha), course.tabulated(path.sigma)
        unit = 2 * (alpha[:-1] / alpha[1:]) ** 2  # 2a of each step
        to_score = partial(change, path, view, "score")
        p, q = (course.tabulated(lambda t, k=k: to_score(t)[k])[:-1] for k in (0, 1))
        self.table = torch.stack((p, q, unit, sigma[:-1]), 1).to(problem.x.device)
        self.solver, self.evaluate, self.times = solver, evaluate, course.grid
        self.seeds, self.keep = tuple(problem.seeds or ()), problem.keep
        self.idle: Tensor | None = None

    def __call__(self, index: int, number: int, x: Tensor) -> Tensor:
        """Return the state at a grid point, corrected.

        Args:
            index: which grid point, 0 the start.
            number: of the state in the plan.
            x: the state.
        """
        p, q = (bshape(c, x) for c in self.table[index, :2])
        for k in range(index * self.solver.n, (index + 1) * self.solver.n):
            f = self.evaluate(number, x)
            score = p * x + q * f
            z = noise.normal(
                self.seeds, x.shape[1:], stream="corrector", index=k, dtype=x.dtype, device=x.device
            )
            size = self._size(index, score, z)
            x = langevin(x, score, size, z)
            if self.keep is not None:
                x = self.keep(x, self.times[index])
        return x

    def _size(self, index: int, score: Tensor, z: Tensor) -> Tensor:
        """Return e, (batch,); 0 where there is no score to follow."""
        solver, (_, _, factor, sigma) = self.solver, self.table[index]
        if solver.corrector == "annealed":
            return (factor * (solver.snr * sigma) ** 2).expand(len(z))
        signal, noisy = norms(score), norms(z)
        if solver.norms == "batch":
            signal, noisy = (v.mean().expand(len(z)) for v in (signal, noisy))
        idle = signal == 0
        self.idle = idle if self.idle is None else self.idle | idle
        size = factor * (solver.snr * noisy / signal.masked_fill(idle, 1.0)) ** 2
        return size.masked_fill(idle, 0.0)

    def warn(self) -> None:
        """Say it, once, if a score was zero."""
        if self.idle is not None and bool(self.idle.any()):
            warnings.warn(
                "the score was zero somewhere, where the corrector has no direction: "
                "those corrections were left out.",
                stacklevel=2,
            )


@lru_cache(maxsize=64)
def _without_last_noise(plan: Plan) -> Plan:
    """Return the plan whose last row lands on its mean."""
    *rows, last = plan.rows
    return replace(plan, rows=(*rows, replace(last, z={})))

"""A plan as a pipeline of diffusers walks it: one network call a timestep.

The times of the evaluations, in the words of a network, are the timesteps; several evaluations at
one time (Heun's corrector, a stage of Runge-Kutta) repeat it, as the library's own Heun does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pathline.adapters.driven import suffix, waiting
from pathline.adapters.schedulers import Training
from pathline.core.errors import UsageError
from pathline.fields.views import change
from pathline.paths import CondOT, GaussianPath, Tabulated, bshape
from pathline.solvers import Grid, Plan, Solver, grids


@dataclass(frozen=True)
class Paired:
    """What a flow's network is told at the levels of a request that brings timesteps for them.

    Such pipelines tell the level before its shift. Between the levels, and to 0 at data, the
    timestep is linear in that.

    Args:
        shift: of the levels.
        levels: rising, of the request, the shift taken back.
        timesteps: what is told there.
    """

    shift: float
    levels: tuple[float, ...]
    timesteps: tuple[float, ...]

    def __call__(self, t: Tensor) -> Tensor:
        """Return the timesteps of these times."""
        return _interpolated(unshifted(t, self.shift), self.levels, self.timesteps)

    def time(self, timestep: Tensor) -> Tensor:
        """Return the times at which these timesteps are told."""
        return unshifted(_interpolated(timestep, self.timesteps, self.levels), 1 / self.shift)


def unshifted(t: Tensor, shift: float) -> Tensor:
    """Return the times that a shift moves to t."""
    return t / (shift - (shift - 1) * t)


def _interpolated(x: Tensor, xs: Sequence[float], ys: Sequence[float]) -> Tensor:
    return torch.as_tensor(np.interp(x.numpy(), xs, ys), dtype=x.dtype)


@dataclass(frozen=True)
class Course:
    """A plan, and what the network is told at each evaluation.

    Args:
        training: how the network was trained.
        plan: in the network's view, beginning at its first evaluation.
        solver: what compiled it; None for a plan that was given.
        grid: what it was compiled for.
    """

    training: Training
    plan: Plan
    solver: Solver | None = None
    grid: Grid | None = None

    @classmethod
    def compiled(cls, training: Training, solver: Solver, grid: Grid) -> Course:
        """Compile a solver for a grid."""
        made = cls.of(training, solver.plan(training.path, grid))
        return replace(made, solver=solver, grid=grid)

    @classmethod
    def of(cls, training: Training, plan: Plan) -> Course:
        """Take a plan.

        Raises:
            UsageError: it is for another path or for one batch, or starts from several states.
        """
        if plan.path != training.path:
            raise UsageError("the plan was compiled for another path than this scheduler's model.")
        if len(plan.start) != 1 or plan.batch is not None:
            raise UsageError(
                f"a pipeline has one state, the same way for every sample; this plan starts from "
                f"{len(plan.start)}" + ("." if plan.batch is None else f" and is for {plan.batch}.")
            )
        return cls(training, suffix(plan, 0).folded(training.view))

    @property
    def path(self) -> GaussianPath:
        """The path of the model."""
        return self.training.path

    @cached_property
    def times(self) -> Tensor:
        """The times of the evaluations, float64."""
        return self.plan.instants[list(self.plan.evaluated)]

    @cached_property
    def labels(self) -> Tensor:
        """What the network is told at each of them: whole numbers where all are, else float32."""
        labels = told(self.training, self.times)
        whole = labels.round()
        if isinstance(self.path, Tabulated) and bool(((labels - whole).abs() < 1e-6).all()):
            return whole.long()
        return labels.float()

    @cached_property
    def sigmas(self) -> Tensor:
        """The noise levels of the evaluations and of the end: σ/α, or σ on a flow; float32."""
        times = torch.cat((self.times, self.plan.instants[-1:]))
        sigma, at_data = self.path.sigma(times), times == 0
        if not isinstance(self.path, CondOT):
            sigma = sigma / self.path.alpha(times)
        return sigma.masked_fill(at_data, 0.0).float()

    @cached_property
    def denoised(self) -> list[tuple[float, float]]:
        """(p, q) of x̂_0 = p x + q F at each evaluation, F being the plan's."""
        p, q = change(self.path, self.plan.view, "x0", self.times)
        return list(zip(p.tolist(), q.tolist(), strict=True))

    @cached_property
    def preconditioning(self) -> list[tuple[float, float, float]] | None:
        """(c, a, b) of EDM's networks: fed c x, they tell x̂_0 = a x + b F; None for the others."""
        if self.training.precondition is None:
            return None
        data, sign = self.training.precondition
        sigma = self.path.sigma(self.times)
        c = (sigma**2 + data**2).rsqrt()
        columns = c, (data * c) ** 2, sign * data * sigma * c
        return list(zip(*(column.tolist() for column in columns), strict=True))

    @property
    def calls_per_step(self) -> int:
        """Network calls between two grid points; 1 if that differs from step to step."""
        landings = set(self.plan.landings)
        places = [i for i, k in enumerate(self.plan.evaluated) if k in landings]
        gaps = {b - a for a, b in pairwise(places)}
        return gaps.pop() if len(gaps) == 1 else 1

    def starting(self, turn: int) -> Course:
        """Return the rest of the course from this evaluation on: the same timesteps, that is.

        One-step methods go on with the same rows. A method with memory is compiled anew on the rest
        of the grid, for what it would remember has not happened.

        Raises:
            UsageError: it cannot be begun there.
        """
        if not turn:
            return self
        try:
            return replace(self, plan=suffix(self.plan, turn))
        except UsageError:
            return self._restarted(turn)

    def _restarted(self, turn: int) -> Course:
        t = float(self.times[turn])
        if self.solver is None or self.grid is None:
            raise UsageError(
                f"this plan cannot begin at timestep number {turn}: its rows look back beyond it. "
                "Give the solver instead of the plan, or start at the beginning (strength=1)."
            )
        grid = remaining(self.grid, self.path, t)
        made = Course.compiled(self.training, self.solver, grid)
        rest = self.labels[turn:]
        if _are_same(made.labels, rest):
            return made
        if _are_same(made.labels, rest[1:]) and rest[0] == rest[1]:  # the call that ends a step
            return replace(made, plan=waiting(made.plan))
        raise UsageError(
            f"{type(self.solver).__name__} cannot begin at timestep number {turn}: that is "
            "inside one of its steps. Take a solver with one call a step, or another strength."
        )


def _are_same(labels: Tensor, others: Tensor) -> bool:
    a, b = labels.double(), others.double()
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-3, rtol=1e-5)


def remaining(grid: Grid, path: GaussianPath, start: float) -> Grid:
    """Return the grid of a course that begins at this time: its later points, after the start."""
    times = grid.times(path)
    way = times[-1] - times[0]
    inner = times[:-1] if grid.last == "denoise" else times
    close = 1e-9 * abs(way)
    later = [t for t in inner if (t - start) * way > 0 and abs(t - start) > close]
    return grids.times([start, *later], last=grid.last)


# What a network is told, and back


def told(training: Training, t: Tensor) -> Tensor:
    """Return the labels of these times, in the dtype of t."""
    label = training.label
    labels = label(t) if callable(label) else t * label
    return labels if training.precondition is None else labels.log() / 4


def time_of(training: Training, label: Tensor) -> Tensor:
    """Return the times at which a network is told these labels."""
    path, factor = training.path, training.label
    if isinstance(factor, Paired):
        return factor.time(label)
    if training.precondition is not None:
        return path.time_of_log_snr(-4 * label)
    if isinstance(path, Tabulated):
        return path.time_of_label(label)
    return label / cast("float", factor)


def is_same(label: float, given: float) -> bool:
    """Whether a timestep is this label, told in half precision perhaps."""
    return abs(label - given) <= 0.01 * max(abs(label), 0.01)


def predicted(output: Tensor, x: Tensor) -> Tensor:
    """Return the prediction in the state's dtype, without a learned variance."""
    if output.ndim == x.ndim and output.shape[1] == 2 * x.shape[1]:
        output = output[:, : x.shape[1]]
    return output.to(x.dtype)


def noised(training: Training, x0: Tensor, eps: Tensor, label: Tensor) -> Tensor:
    """Return α x_0 + σ ε at the times of these labels, () or (batch,)."""
    return training.path.noised(x0, eps, _exact_time_of(training, label))


def velocity(training: Training, x0: Tensor, eps: Tensor, label: Tensor) -> Tensor:
    """Return what a network of v-prediction is trained to say, α ε − σ x_0."""
    t = _exact_time_of(training, label)
    return bshape(training.path.alpha(t), x0) * eps - bshape(training.path.sigma(t), x0) * x0


def _exact_time_of(training: Training, label: Tensor) -> Tensor:
    """Return times on the CPU: not every device has float64."""
    return time_of(training, label.to("cpu", torch.float64))


# Grids


def is_whole_ladder(timesteps: Sequence[float]) -> bool:
    """Whether timesteps are N … 1, or the first n of n + 1 such, cut to whole numbers.

    That is what pipelines that bring timesteps with their levels pass by default.
    """
    n, top = len(timesteps), timesteps[0]
    made = np.linspace(top, 1, n), np.linspace(top, 1, n + 1)[:-1]
    return any(np.array_equal(np.trunc(ladder), timesteps) for ladder in made)


def is_even(ladder: Any) -> bool:
    """Whether levels are 1, 1 − 1/n, …, 1/n: what pipelines of flow models pass by default."""
    given = torch.as_tensor(ladder, dtype=torch.float64)
    n = len(given)
    return torch.allclose(given, 1 - torch.arange(n, dtype=torch.float64) / n, atol=1e-6, rtol=0)

"""Metrics of a sampler: how far its samples are from where they should be, or from a reference set.

`Endpoint` compares with the converged solution from the same noise, sample by sample, and needs
few samples; the others compare sets, and tell no more than their samples do.

    RMSE²   = mean (x − x*)²                         paired
    SW²     = mean_θ ∫ |F_x,θ⁻¹(u) − F_y,θ⁻¹(u)|² du  sliced Wasserstein, over directions θ
    NPE     = |E ∫ ‖dx/dt‖² dt / W₂² − 1|             how much longer than need be the ways are
    Fréchet = ‖μ − ν‖² + tr(A + B − 2 (A B)^½)       of an encoder's features
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.fields import Condition, Evaluate, Field, Halves
from pathline.solvers.evaluate import Call, Evaluator
from pathline.solvers.execute import complete
from pathline.solvers.plan import Plan
from pathline.solvers.schedule import SolverSchedule
from pathline.solvers.thinned import ThinnedEvaluator, ThinnedGuidance
from pathline.solvers.unified import Constant, frozen_constant

DIRECTIONS = 128

V = TypeVar("V")


MOST_REMEMBERED = 64
"""Evaluations in memory: those of a few schedules of few steps."""


class Memory:
    """Evaluations of one batch under one condition, by time and state; the oldest are dropped."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, float, tuple[int, ...]], Any] = {}

    def over(
        self, evaluate: Callable[[int, Tensor], V], plan: Plan, what: str = ""
    ) -> Callable[[int, Tensor], V]:
        """Return `evaluate`, asked only for what is not in memory; `what` tells several apart."""

        def remembered(k: int, x: Tensor) -> V:
            key = (what, float(plan.instants[k]), _digest(x))
            value = self._known.pop(key, None)
            self._known[key] = value = evaluate(k, x) if value is None else value
            while len(self._known) > MOST_REMEMBERED:
                del self._known[next(iter(self._known))]
            return value

        return remembered


_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _digest(x: Tensor) -> tuple[int, ...]:
    """Return 128 bits of a state, made where it is: two sums of its bits times random numbers.

    Integers wrap around, so the order of summation does not matter.
    """
    bits = x.detach().contiguous().view(_BITS[x.element_size()]).flatten().long()
    return tuple((bits * _multipliers(len(bits), x.device)).sum(1).tolist())


@lru_cache(maxsize=4)
def _multipliers(n: int, device: torch.device) -> Tensor:
    most = torch.iinfo(torch.int64).max
    drawn = torch.randint(most, (2, n), generator=torch.Generator().manual_seed(0))
    return (2 * drawn + 1).to(device)


@dataclass(frozen=True)
class Endpoint:
    """Root mean square error to given ends, from given starts; a metric for a search.

    Args:
        field: what is integrated, guided if it is to be.
        starts: (n, *state).
        ends: (n, *state), where they should arrive; many steps of a good solver.
        cond: the condition as `field.condition` returns it.
        memory: of what was evaluated; None evaluates all anew. See `remembering`.
    """

    field: Field
    starts: Tensor
    ends: Tensor
    cond: Condition = dataclasses.field(default_factory=dict)
    memory: Memory | None = None

    def __post_init__(self) -> None:
        if self.starts.shape != self.ends.shape:
            raise UsageError(
                f"{tuple(self.starts.shape)} starts and {tuple(self.ends.shape)} ends do not pair."
            )

    def first(self, n: int) -> Endpoint:
        """Return the metric on the first n samples alone."""
        return self._part(slice(n))

    def parts(self, n: int) -> list[Endpoint]:
        """Return the metric in parts of n samples."""
        return [self._part(slice(i, i + n)) for i in range(0, len(self.starts), n)]

    def chosen(self, rows: Tensor) -> Endpoint:
        """Return the metric on the samples of these numbers, (m,)."""
        return self._part(rows)

    def _part(self, part: slice | Tensor) -> Endpoint:
        n = len(self.starts)
        cond = {k: v[part] if _is_of(v, n) else v for k, v in self.cond.items()}
        memory = None if self.memory is None else Memory()
        starts, ends = self.starts[part], self.ends[part]
        return replace(self, starts=starts, ends=ends, cond=cond, memory=memory)

    def remembering(self) -> Endpoint:
        """Return the metric with a memory: what begins alike is evaluated once.

        All candidates evaluate at the start, and those that differ in a late step differ late. The
        same state at the same time is answered from memory, to the same bits.
        """
        return replace(self, memory=Memory())

    def mean(self) -> Constant:
        """Return the mean of the ends, one number for each of the first axis (a colour, say)."""
        mean = self.ends.double().transpose(0, 1).flatten(1).mean(1)
        return frozen_constant(mean.reshape(-1, *[1] * (self.ends.ndim - 2)).tolist())

    def samples(self, how: Plan | SolverSchedule) -> Tensor:
        """Return where a plan or schedule takes the starts, without gradients."""
        plan = how.plan(self.field.path) if isinstance(how, SolverSchedule) else how
        plan = plan.folded(self.field.view)
        speed = how.speed if isinstance(how, SolverSchedule) else None
        with torch.no_grad():
            return complete(plan, self._evaluator(plan, speed), [self.starts])

    def _evaluator(self, plan: Plan, speed: ThinnedGuidance | None) -> Evaluate:
        """Return what evaluates a plan, or halves of it, asking the memory first."""
        if speed is None:
            evaluate = Evaluator(self.field, plan, self.starts, self.cond)
            return evaluate if self.memory is None else self.memory.over(evaluate, plan)
        call, memory = Call(self.field, plan, self.starts, self.cond), self.memory

        def remembered(halves: Halves) -> Halves:
            assert memory is not None
            both = memory.over(halves.both, plan, f"both {speed.heads}")
            better = memory.over(halves.better, plan, f"better {speed.heads}")
            return halves._replace(both=both, better=better)

        return ThinnedEvaluator(speed, call, None if memory is None else remembered)

    def residuals(self, how: Plan | SolverSchedule) -> Tensor:
        """Return the error of every number of every sample, (n, numbers) in float64."""
        return (self.samples(how) - self.ends).double().flatten(1)

    def errors(self, how: Plan | SolverSchedule) -> Tensor:
        """Return each sample's mean square error, (n,)."""
        return self.residuals(how).square().mean(1)

    def typical(self, how: Plan | SolverSchedule) -> float:
        """Return the mean of the samples' root mean square errors: what few outliers weigh less in.

        On networks a sample in ten ends elsewhere whatever few steps do; a search that squares
        their errors learns them by heart.
        """
        return float(self.errors(how).sqrt().mean())

    def __call__(self, how: Plan | SolverSchedule) -> float:
        """Return the root mean square error over all samples."""
        return float(self.errors(how).mean().sqrt())


def _is_of(value: Any, n: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == n


def sliced_wasserstein(x: Tensor, y: Tensor, directions: int = DIRECTIONS, seed: int = 0) -> float:
    """Return the sliced Wasserstein-2 distance of two sets, (n, *state) and (m, *state).

    The directions are the same at every call. Sets of different sizes are compared at the
    quantiles of the larger one.
    """
    a, b = (each.detach().double().flatten(1) for each in (x, y))
    if a.shape[1] != b.shape[1]:
        raise UsageError(f"states of {a.shape[1]} and {b.shape[1]} numbers cannot be compared.")
    seeds = range(seed, seed + directions)
    theta = noise.normal(seeds, (a.shape[1],), stream="probe", dtype=torch.float64, device=a.device)
    theta = theta / theta.norm(dim=1, keepdim=True)
    n = max(len(a), len(b))
    u = (torch.arange(n, dtype=torch.float64, device=a.device) + 0.5) / n
    at_a, at_b = (_quantiles((each @ theta.T).sort(0).values, u) for each in (a, b))
    return float((at_a - at_b).square().mean().sqrt())


def _quantiles(ranked: Tensor, u: Tensor) -> Tensor:
    """Return the empirical quantiles (a step function) of each column."""
    return ranked[(u * len(ranked)).long().clamp(max=len(ranked) - 1)]


def path_energy(trajectory: Tensor, times: Tensor) -> float:
    """Return E ∫ ‖dx/dt‖² dt of the polygons through the states of a solve.

    Of exact states it is a lower bound, whose error falls with the square of the step.

    Args:
        trajectory: (n, batch, *state), as `solve(..., trajectory=True)` keeps it.
        times: (n,), in either direction.
    """
    if len(trajectory) != len(times) or len(times) < 2 or times.ndim != 1:
        raise UsageError(
            f"a path needs a time for each of at least two states; there are {len(trajectory)} "
            f"states and times {tuple(times.shape)}."
        )
    squared = trajectory.double().diff(dim=0).flatten(2).square().sum(2).mean(1)
    return float((squared / times.double().diff().abs().to(squared)).sum())


def normalised_path_energy(trajectory: Tensor, times: Tensor, wasserstein_squared: float) -> float:
    """Return |energy − W₂²|/W₂²: 0 for the straight flow of optimal transport, in unit time.

    By Benamou and Brenier no flow between the two laws takes less than W₂²/(duration).

    Args:
        trajectory, times: as `path_energy`.
        wasserstein_squared: the squared Wasserstein-2 distance of the laws at both ends.

    Paper: Tong et al. 2023 (arXiv:2302.00482).
    """
    if not 0 < wasserstein_squared < math.inf:
        raise UsageError(f"the squared distance must be above 0; it is {wasserstein_squared!r}.")
    return abs(path_energy(trajectory, times) / wasserstein_squared - 1)


def frechet(x: Tensor, y: Tensor, encoder: Callable[[Tensor], Tensor] | None = None) -> float:
    """Return the squared Fréchet distance of two sets of features, in float64.

    Args:
        x, y: samples for the encoder, or features (n, d) without one.
        encoder: samples → features, (n, d).
    """
    with torch.no_grad():
        a, b = (each if encoder is None else encoder(each) for each in (x, y))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise UsageError(
            f"features must be two sets (n, d) with n ≥ 2, and are {tuple(a.shape)} and "
            f"{tuple(b.shape)}."
        )
    a, b = a.double(), b.double()
    ca, cb = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(b.shape[1], -1)
    root = _root(ca)
    cross = torch.linalg.eigvalsh(root @ cb @ root).clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + ca.trace() + cb.trace() - 2 * cross)


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T

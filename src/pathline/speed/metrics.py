"""Metrics of a sampler: how far its samples are from where they should be, or from a reference set.

`Endpoint` compares with the converged solution from the same noise, sample by sample, and needs
few samples; the others compare sets, and tell no more than their samples do.

    RMSE²   = mean (x − x*)²                         paired
    SW²     = mean_θ ∫ |F_x,θ⁻¹(u) − F_y,θ⁻¹(u)|² du  sliced Wasserstein, over directions θ
    Fréchet = ‖μ − ν‖² + tr(A + B − 2 (A B)^½)       of an encoder's features
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.fields import Condition, Field
from pathline.solvers.evaluate import Evaluator
from pathline.solvers.execute import complete
from pathline.solvers.plan import Plan
from pathline.solvers.schedule import SolverSchedule
from pathline.solvers.unified import Constant, frozen_constant

DIRECTIONS = 128


@dataclass(frozen=True)
class Endpoint:
    """Root mean square error to given ends, from given starts; a metric for a search.

    Args:
        field: what is integrated, guided if it is to be.
        starts: (n, *state).
        ends: (n, *state), where they should arrive; many steps of a good solver.
        cond: the condition as `field.condition` returns it.
    """

    field: Field
    starts: Tensor
    ends: Tensor
    cond: Condition = dataclasses.field(default_factory=dict)

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

    def _part(self, part: slice) -> Endpoint:
        n = len(self.starts)
        cond = {k: v[part] if _is_of(v, n) else v for k, v in self.cond.items()}
        return replace(self, starts=self.starts[part], ends=self.ends[part], cond=cond)

    def mean(self) -> Constant:
        """Return the mean of the ends, one number for each of the first axis (a colour, say)."""
        mean = self.ends.double().transpose(0, 1).flatten(1).mean(1)
        return frozen_constant(mean.reshape(-1, *[1] * (self.ends.ndim - 2)).tolist())

    def samples(self, how: Plan | SolverSchedule) -> Tensor:
        """Return where a plan or schedule takes the starts, without gradients."""
        plan = how.plan(self.field.path) if isinstance(how, SolverSchedule) else how
        plan = plan.folded(self.field.view)
        with torch.no_grad():
            evaluate = Evaluator(self.field, plan, self.starts, self.cond)
            return complete(plan, evaluate, [self.starts])

    def errors(self, how: Plan | SolverSchedule) -> Tensor:
        """Return each sample's mean square error, (n,)."""
        return (self.samples(how) - self.ends).double().square().flatten(1).mean(1)

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

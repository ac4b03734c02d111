"""Likelihood: the log-density of data under a flow, by the instantaneous change of variables.

    log p_0(x) = log p_1(x_1) + ∫_0^1 div u(x_t, t) dt,    dx/dt = u from x_0 = x

State and log-density are integrated as one state of d + K numbers, K the estimates of the
divergence, so that an adaptive solver watches both. The K estimates use one probe each for the
whole solve: their mean is unbiased, and their spread is the standard error that is reported.

Papers: Chen et al. 2018 (arXiv:1806.07366); Grathwohl et al. 2019 (arXiv:1810.01367); Song et al.
2021 (arXiv:2011.13456), Sec. 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.core.solution import Stats
from pathline.fields import Condition, Field, View, convert
from pathline.fields.denoiser import source_of
from pathline.fields.trace import Exact, Hutchinson, Trace
from pathline.paths import GaussianPath
from pathline.solvers.adaptive_rk import AdaptiveRK
from pathline.solvers.grids import Grid, Times
from pathline.solvers.solve import (
    AnyField,
    Guide,
    OnFailure,
    as_field,
    as_grid,
    as_solver,
    solve,
)
from pathline.solvers.solver import Solver

LogProb = Callable[[Tensor], Tensor]

EXACT_UP_TO = 64
"""Elements of a state whose divergence is exact unless the caller says otherwise."""

PROBES = 8
"""Of larger states."""


@dataclass(frozen=True)
class Likelihood:
    """The log-density of samples, and where the flow took them.

    Args:
        log_prob: in nats, (batch,).
        standard_error: of `log_prob`, by the spread over probes, (batch,): zero where the trace is
            exact, NaN with a single probe. It does not know of the solver's own error.
        x: the samples, (batch, *state).
        z: the states at the noise end, (batch, *state).
        prior: the log-density of z there, (batch,).
        stats: what it cost.
    """

    log_prob: Tensor
    standard_error: Tensor
    x: Tensor = field(repr=False)
    z: Tensor = field(repr=False)
    prior: Tensor = field(repr=False)
    stats: Stats = field(repr=False)

    def bits_per_dim(self, low: float = -1.0, high: float = 1.0, levels: int = 256) -> Tensor:
        """Return −log₂ of the probability of a quantised sample, per dimension, (batch,).

        A density on [low, high]^d, of samples that were dequantised over cells of width
        (high − low)/levels, bounds it from above: −log p/(d ln 2) + log₂(levels/(high − low)).

        Args:
            low, high: the range of the samples.
            levels: how many values an element can have.

        Raises:
            UsageError: samples outside the range.
        """
        least, most = (float(v) for v in self.x.aminmax())
        if least < low or most > high:
            raise UsageError(
                f"the samples go from {least:.4g} to {most:.4g}, and the range is from {low:g} to "
                f"{high:g}: dequantise and scale first."
            )
        d = self.z[0].numel()
        return -self.log_prob / (d * math.log(2)) + math.log2(levels / (high - low))


def log_prob(  # noqa: PLR0913 - keyword-only: each is one idea of the house
    model: AnyField,
    x: Tensor,
    *,
    solver: Solver | str | None = None,
    grid: Grid | str | Sequence[float] | None = None,
    steps: int | None = None,
    trace: Trace | None = None,
    seeds: Sequence[int] | None = None,
    prior: LogProb | None = None,
    guide: Guide | None = None,
    on_failure: OnFailure = "raise",
    **cond: Any,
) -> Likelihood:
    """Return log p(x) under a model's probability flow, or any flow whose end has a known density.

    Differentiable in x and in the parameters where gradients are enabled.

    Args:
        model: a denoiser, or f(x, t, **cond) → dx/dt.
        x: (batch, *state) floating, data at the grid's end next to data (t_min). Give float64 for
            tolerances below 1e-5: a float32 network is called in its own precision.
        solver: any deterministic one; Dormand-Prince with rtol = atol = 1e-5 if None.
        grid, steps: as for `solve`, of a generation from noise to data, and run the other way. An
            adaptive solver needs none.
        trace: of the Jacobian; exact up to `EXACT_UP_TO` elements and `Hutchinson(PROBES)` beyond
            if None.
        seeds: of the probes, one a sample; 0, 1, … if None.
        prior: z (batch, *state) → its log-density, (batch,); the path's noise at t_max if None.
        guide: a function from field to field.
        on_failure, cond: as for `solve`.

    Raises:
        UsageError: a stochastic solver; no path and no prior or times; seeds that do not fit.
        NonFiniteError: as `solve`.

    Cost: the evaluations of the solve, each with a backward sweep for every product of the trace;
    one evaluation more where gradients are enabled, to see whether there is anything to keep.

    Example:
        >>> import torch
        >>> from pathline.fields import Gaussian
        >>> from pathline.paths import VPLinear
        >>> law = Gaussian(VPLinear(), torch.zeros(2).double(), torch.ones(2).double())
        >>> x = torch.zeros(1, 2, dtype=torch.float64)
        >>> f"{log_prob(law, x).log_prob.item():.3f}"  # −log 2π
        '-1.838'
    """
    if not x.is_floating_point():
        raise UsageError(
            f"a density is one of real numbers, and these are {x.dtype}: dequantise and scale "
            "pictures first (pathline.learn.likelihood.bits_per_dim)."
        )
    if prior is None and (source := source_of(model)) is not None:
        raise UsageError(
            f"this model begins at other data ({source}), not at noise: pass their log-density as "
            "prior=."
        )
    flow = as_field(model) if guide is None else guide(as_field(model))
    rule = AdaptiveRK() if solver is None else as_solver(solver)
    if rule.is_stochastic:
        raise UsageError(f"{rule} draws noise, and a likelihood needs a deterministic flow.")
    seeds = range(len(x)) if seeds is None else seeds
    if len(seeds) != len(x):
        raise UsageError(f"{len(seeds)} seeds were given for {len(x)} samples.")
    shape = tuple(x.shape[1:])
    how = trace or (Exact() if math.prod(shape) <= EXACT_UP_TO else Hutchinson(PROBES))
    probes = how.probes(seeds, shape, x.dtype, x.device)
    both = Flow(flow, how, shape, probes, flow.condition(cond, len(x)))
    path = flow.path
    back = _backwards(path, rule, grid, steps)
    begin = torch.cat((x.flatten(1), x.new_zeros(len(x), how.estimates)), 1)
    with torch.set_grad_enabled(both.needs_gradients(begin, back.values[0])):
        sol = solve(both, begin, solver=rule, grid=back, on_failure=on_failure)
    z, changes = both.split(sol.x)
    at_end = _prior(path, back.values[-1], z) if prior is None else prior(z)
    k = how.estimates
    spread = changes.std(1) / math.sqrt(k) if k > 1 else changes[:, 0] * math.nan
    error = torch.zeros_like(at_end) if how.is_exact else spread
    return Likelihood(at_end + changes.mean(1), error, x, z, at_end, sol.stats)


@dataclass(frozen=True)
class Flow(Field):
    """A flow with the logarithm of its volume: (x, ℓ_1 … ℓ_K) → (u, estimates of div u).

    The state is flat, (batch, d + K).

    Args:
        inner: the field.
        trace: how the divergence is worked out.
        state: the shape of one sample of x.
        probes: of each sample, (batch, probes, *state).
        prepared: the condition, as `inner.condition` returned it.
    """

    inner: Field
    trace: Trace
    state: tuple[int, ...]
    probes: Tensor
    prepared: Condition
    path: GaussianPath | None = field(default=None, init=False)
    view: View = field(default="velocity", init=False)

    @property
    def calls(self) -> int:
        return self.inner.calls

    def calls_at(self, times: Tensor) -> int:
        return self.inner.calls_at(times)

    def piece(self, times: Tensor) -> Tensor:
        return self.inner.piece(times)

    @property
    def vjps(self) -> int:
        return self.inner.vjps

    @property
    def device(self) -> torch.device | None:
        return self.inner.device

    def condition(self, cond: Condition, batch: int) -> Condition:
        del cond, batch
        return {"prepared": self.prepared, "probes": self.probes}

    def part(self, cond: Condition, rows: Tensor) -> Condition | None:
        inner = self.inner.part(cond["prepared"], rows)
        probes = cond["probes"][rows.to(self.probes.device)]
        return None if inner is None else {"prepared": inner, "probes": probes}

    def needs_gradients(self, state: Tensor, t: float) -> bool:
        """Whether anything here can be differentiated: else a solve need not keep its way."""
        if not torch.is_grad_enabled() or state.requires_grad:
            return torch.is_grad_enabled()
        at = torch.tensor(t, dtype=torch.float64, device=state.device)
        return self.inner.evaluate(self.split(state)[0], at, self.prepared).requires_grad

    def split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return x, (batch, *state), and the K changes of the log-density, (batch, K)."""
        x, changes = state.split((state.shape[1] - self.trace.estimates, self.trace.estimates), 1)
        return x.reshape(len(x), *self.state), changes

    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        at, _ = self.split(x)

        def velocity(x: Tensor) -> Tensor:
            said = self.inner.evaluate(x, t, cond["prepared"])
            if self.inner.path is None:
                return said
            return convert(self.inner.path, self.inner.view, "velocity", x, said, t)

        u, divergence = self.trace.of(velocity, at, cond["probes"])
        return torch.cat((u.flatten(1), divergence), 1)


def _backwards(
    path: GaussianPath | None,
    solver: Solver,
    grid: Grid | str | Sequence[float] | None,
    steps: int | None,
) -> Times:
    """Return the times from data to noise: those of a generation, the other way."""
    if grid is None and solver.is_adaptive and path is not None:
        return Times((path.t_min, path.t_max))
    if path is None and (grid is None or isinstance(grid, str)):
        raise UsageError(
            "an equation of your own has no times of its own: give grid=[...], from the end with "
            "the known density to that of the data."
        )
    return Times(as_grid(grid, steps).reverse(path).times(path))


def _prior(path: GaussianPath | None, t: float, z: Tensor) -> Tensor:
    """Return the log-density of the noise σ_t ε, (batch,)."""
    if path is None:
        raise UsageError("an equation of your own needs prior=, the log-density where it begins.")
    sigma = path.sigma(t).to(z)
    return path.kernel.log_prob(z / sigma) - z[0].numel() * sigma.log()

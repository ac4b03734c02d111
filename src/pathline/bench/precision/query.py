"""What a sampler may ask of a problem, and how often it did.

Libraries scale the state differently: x = s x_0 + s r ε with the same noise-to-signal ratio r = σ/α
as ours, and s = 1 (VE), (1 + r²)^−½ (VP) or the model's own α. Whatever a library calls a time, it
is r that decides at which time of the model's path the network is asked, never a rounded label.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pathline.bench.peers import Absent
from pathline.bench.precision.problems import Problem, rehearsal
from pathline.fields.views import convert
from pathline.solvers import grids, solve

LIBRARY = Literal["pathline", "diffusers", "k-diffusion", "azula"]

EARLY = -6.0
"""A sampler may begin at this λ or below, where next to nothing is decided yet."""


class Ended(NamedTuple):
    """Where a sampler came out: the state, as the model scales it, and the time; 0 is data."""

    x: Tensor
    t: float


class Query:
    """A problem, and how often its field was asked.

    Args:
        problem: whose field it is.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, self.path, self.calls = problem, problem.path, 0

    def start(self, t: float) -> Tensor:
        """Return the state to start from at time t, at or near t_max.

        A library that cannot begin at α = 0 is given the converged flow at its own first level, at
        no cost, so that all start from the same noise.

        Raises:
            Absent: the sampler begins where something is decided already.
        """
        t_max = self.path.t_max
        if abs(t - t_max) < 1e-6:
            return self.problem.x
        if t < t_max - 1e-3 and float(self.path.log_snr(t)) > EARLY:
            raise Absent(f"begins at t = {t:.3g}, not with noise")
        known, key = self.problem.starts, round(t, 9)
        if key not in known:
            way = grids.times([t_max, (t_max + t) / 2, t])
            known[key] = solve(self.problem.field, self.problem.x, solver="rk4", grid=way).x
        return known[key]

    def denoised(self, x: Tensor, t: float) -> Tensor:
        """Return x̂_0 at state x, as the model scales it, and time t."""
        self.calls += 1
        at = torch.tensor([t], dtype=torch.float64)
        field = self.problem.field
        raw = field.bind(at, x, {})(0, x)
        return convert(self.path, field.view, "x0", x, raw, at[0])

    def time(self, ratio: float) -> float:
        """Return the time at which σ/α is `ratio`; 0 for none."""
        if ratio <= 0:
            return 0.0
        if math.isinf(ratio):
            return self.path.t_max
        t = float(self.path.time_of_log_snr(torch.tensor(-math.log(ratio), dtype=torch.float64)))
        return min(t, self.path.t_max)

    def alpha(self, t: float) -> float:
        """Return α_t."""
        return float(self.path.alpha(t))

    def begin(self, ratio: float, scale: float) -> Tensor:
        """Return the state to start from at this ratio, in another scale."""
        t = self.time(ratio)
        return self.start(t) * (scale / self.alpha(t))

    def ask(self, x: Tensor, ratio: float, scale: float) -> Tensor:
        """Return x̂_0 at a state in another scale."""
        t = self.time(ratio)
        return self.denoised(x * (self.alpha(t) / scale), t)

    def end(self, x: Tensor, ratio: float, scale: float) -> Ended:
        """Return where a state in another scale is."""
        t = self.time(ratio)
        return Ended(x / scale if t == 0 else x * (self.alpha(t) / scale), t)

    @cached_property
    def span(self) -> tuple[float, float]:
        """σ/α at t_min and, bounded where α vanishes, at t_max."""
        first, last = self.path.log_snr_range()
        return math.exp(-last), math.exp(-first)


@dataclass(frozen=True)
class Contestant:
    """A sampler on a grid.

    Args:
        by: whose it is.
        sampler: which one, with what it does not do by default.
        grid: on which grid.
        run: n → the end of a run of n steps.
        calls: n → the evaluations of n steps, if that is known; else they are counted.
        same: n → equal for those who do exactly the same.
        is_tuned: whether it was made for the model, and for some counts only.
    """

    by: str
    sampler: str
    grid: str
    run: Callable[[Query, int], Ended]
    calls: Callable[[int], int] | None = None
    same: Callable[[int], str] | None = None
    is_tuned: bool = False

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from the others."""
        return self.by, self.sampler, self.grid


class Rehearsal:
    """How many evaluations a contestant takes for n steps, found out where they cost nothing.

    Args:
        problem: what will be measured.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = rehearsal(problem)
        self.calls = lru_cache(maxsize=None)(self._calls)

    def _calls(self, contestant: Contestant, n: int) -> int:
        if contestant.calls is not None:
            return contestant.calls(n)
        query = Query(self.problem)
        contestant.run(query, n)
        return query.calls

    def steps_for(self, contestant: Contestant, nfe: int) -> int | None:
        """Return the number of steps that takes exactly so many evaluations; None if none does."""
        low, high = 1, nfe + 1
        while low <= high:
            n = (low + high) // 2
            calls = self._or_fewer(contestant, n)
            if calls == nfe:
                return n
            low, high = (n + 1, high) if calls < nfe else (low, n - 1)
        return None

    def _or_fewer(self, contestant: Contestant, n: int) -> int:
        """Count; a sampler that cannot take so few steps is asked for more."""
        try:
            return self.calls(contestant, n)
        except Absent:
            raise
        except Exception:
            if n > 3:
                raise
            return 0

"""Rules that can be run back exactly: any solver's step, plus what an older state knows better.

Let F be the step of a solver from grid point i, and B a guess, from the same state and the same
evaluations, of a state that was passed earlier. Where the guess is off, so is the step, and

    x_new = F(x_i) + γ (x_old − B(x_i)),   0 < γ ≤ 1

carries that over. The row has x_old in one place, and no evaluation there: it can be solved for it,
x_old = B(x_i) + (x_new − F(x_i))/γ, to rounding, whatever the field is (`Plan.inverse`).

On a smooth field it is a linear multistep rule with the roots 1 and, for one step back, −γ: what
is off by δ is off by δ γⁿ after n steps, and by δ γ⁻ⁿ after n steps of the way back. γ = 1 is
symmetric: it grows nowhere and is damped nowhere. With a solver of order 1 its leading error is the
solver's times (1 − γ)/(1 + γ), and γ = 1 is of order 2.

Paper: Zhang, Lewis & Kleijn 2024 (arXiv:2307.10829).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from pathline.core.errors import UsageError
from pathline.fields.field import Field
from pathline.fields.views import View, change
from pathline.paths import GaussianPath
from pathline.solvers.adams import adams_weights
from pathline.solvers.blocks import Block, blocks, write_with_memory
from pathline.solvers.exponential import DDIM, DPMpp, linear_part, polynomial_weights
from pathline.solvers.grids import LogSNR, Uniform
from pathline.solvers.plan import Row
from pathline.solvers.runge_kutta import Heun
from pathline.solvers.singlestep import DPM
from pathline.solvers.solver import Level, Solver, Writer, solvers
from pathline.solvers.stepped import Stepped

PROBE = 16
"""Steps of the grid on which a solver shows how far back it reaches."""


def check_gamma(gamma: float) -> None:
    """Refuse a γ with which a rule cannot be run back, or grows."""
    if gamma == 0:
        raise UsageError("not invertible: gamma must be > 0 (gamma = 0 is the solver itself).")
    if not 0 < gamma <= 1:
        raise UsageError(f"gamma must lie in (0, 1], and is {gamma}.")


def as_plain_solver(solver: Solver | Mapping[str, Any] | str) -> Solver:
    """Return the solver of a name or a description, or the solver itself.

    Raises:
        UsageError: it draws noise, or chooses its own steps, and so cannot be run back.
    """
    made = solvers.build(solver) if isinstance(solver, str) else solver
    made = solvers.rebuild(made) if isinstance(made, Mapping) else made
    if isinstance(made, Stepped):
        raise UsageError(f"{type(made).__name__} has no fixed grid, so no way back: take another.")
    if made.is_stochastic:
        raise UsageError(
            f"{type(made).__name__} draws noise, which no way back recovers: take eta=0."
        )
    return made


class Forward(NamedTuple):
    """A solver's own steps on a grid: their blocks, and the levels that they go through."""

    steps: list[Block]
    levels: list[Level]
    writer: Writer


def forward(solver: Solver, path: GaussianPath | None, times: Sequence[float]) -> Forward:
    """Write a solver's own steps on these times."""
    writer = Writer(path, tuple(times), denoises=False)
    solver.write(writer)
    steps = blocks(writer.rows)
    levels = writer.at([writer.times[0], *(float(s.landing.t) for s in steps)])
    return Forward(steps, levels, writer)


def reach(steps: Sequence[Block]) -> int:
    """Return how many grid points the steps use, their own start included."""
    return 1 + max((i - min(step.points, default=i) for i, step in enumerate(steps)), default=0)


@dataclass(frozen=True)
class Bidirectional(Solver):
    """What `BDIA` and `Reversible` share: another solver, and γ.

    Args:
        gamma: γ, in (0, 1].
        solver: whose step it is; a solver, its name, or its description.
    """

    gamma: float = 1.0
    solver: Solver = field(default_factory=DDIM)

    def __post_init__(self) -> None:
        check_gamma(self.gamma)
        object.__setattr__(self, "solver", as_plain_solver(self.solver))

    @property
    def order(self) -> int:
        return self.solver.order

    @property
    def view(self) -> View:
        return self.solver.view

    @property
    def needs_path(self) -> bool:
        return self.solver.needs_path

    @property
    def is_exact_on_points(self) -> bool:
        return self.solver.is_exact_on_points

    @property
    def nfe_per_step(self) -> int:
        return self.evaluations(PROBE + 1) - self.evaluations(PROBE)

    def evaluations(self, n: int) -> int:
        return _evaluations(self, n) if n else 0

    def tuned(self, field: Field, shape: Sequence[int]) -> Solver:
        return replace(self, solver=self.solver.tuned(field, shape))

    def standard(self, path: GaussianPath | None) -> Solver:
        return replace(self, solver=self.solver.standard(path))

    def write(self, to: Writer) -> None:
        times = to.times[:-1] if to.denoises else to.times
        own = forward(self.solver, to.path, times)
        if own.writer.times != tuple(times):
            to.move(own.writer.times)
        lag = self.lag(own)
        write_with_memory(to, own.steps, self.guesses(own, lag), self.factors(own, lag))

    def factors(self, own: Forward, lag: int) -> list[float]:
        """Return γ of every step but the first `lag`."""
        return [self.gamma] * max(len(own.steps) - lag, 0)

    @abstractmethod
    def lag(self, own: Forward) -> int:
        """Return how many grid points before the start of a step the older state lies."""

    @abstractmethod
    def guesses(self, own: Forward, lag: int) -> list[Block]:
        """Return B of every step but the first `lag`."""


@lru_cache(maxsize=256)
def _evaluations(solver: Bidirectional, n: int) -> int:
    from pathline.paths import VPLinear

    path = VPLinear()
    return solver.standard(path).plan(path, LogSNR(n)).nfe


Back = Literal["same", "euler", "reuse"]


@solvers.register(
    "bdia",
    aliases=("bdia_ddim",),
    paper="arXiv:2307.10829",
    variants={
        "bdia_edm": ({"solver": Heun(view="eps")}, ("BDIA-EDM",)),
        "bdia_edm_reuse": (
            {"solver": Heun(view="eps"), "gamma": 0.5, "back": "reuse"},
            (),
        ),
        "bdia_dpmpp_2s": ({"solver": DPM(order=2, view="x0")}, ()),
        "bdia_dpmpp_2m": (
            {"solver": DPMpp(order=2), "gamma": 0.5, "back": "reuse"},
            ("BDIA-DPM-Solver++",),
        ),
    },
)
@dataclass(frozen=True)
class BDIA(Bidirectional):
    """BDIA: DDIM that can be run back exactly, at its own price of one evaluation a step.

        x_{i−1} = F(x_i) + γ (x_{i+1} − B(x_i)),   F and B one step either way from x_i

    Choose γ = 1 to invert, 0.96 to edit, 0.5 to sample in 20 steps or less.

    Args:
        gamma: γ, in (0, 1]; what is off grows like γ^−n on the way back.
        solver: the one-step rule that F is: DDIM, Heun in ε̂ (EDM), DPM-Solver++ 2S; with
            back="reuse" also multistep ones.
        back: B by the "same" rule; by "euler", at no evaluation of its own and of order 1; or by
            the trapezoid that needs the older evaluation again, "reuse": the most accurate, for
            sampling alone, since the older state can then not be solved for.
    """

    back: Back = "same"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.back not in ("same", "euler", "reuse"):
            raise UsageError(f"back={self.back!r}: choose 'same', 'euler' or 'reuse'.")

    @property
    def convergence(self) -> int:
        p = self.solver.convergence
        if self.back == "euler":
            return 2 if p == self.gamma == 1 else 1
        return p + 1 if self.back == "same" and self.gamma == 1 and p % 2 else p

    def lag(self, own: Forward) -> int:
        if self.back == "same" and _lag(self.solver, own) > 1:
            raise UsageError(
                f"{type(self.solver).__name__} is no one-step rule of fixed order: use "
                "Reversible(solver), or back='reuse' to sample."
            )
        return 1

    def guesses(self, own: Forward, lag: int) -> list[Block]:
        if self.back == "same":
            return _back_steps(self.solver, own) or []
        levels, found = own.levels, list[Block]()
        for i in range(1, len(own.steps)):
            linear, weight = _constant_part(self.view, levels[i], levels[i - 1])
            f = {i: weight} if self.back == "euler" else {i: weight / 2, i - 1: weight / 2}
            found.append(Block((), Row(levels[i - 1].t, {i: linear}, f)))
        return found


def _constant_part(view: View, s: Level, t: Level) -> tuple[float, float]:
    """Return L and c of x_t = L x_s + c F for constant F."""
    return (1.0, t.t - s.t) if view == "velocity" else linear_part(view, s, t)


def _back_steps(solver: Solver, own: Forward) -> list[Block] | None:
    """Return the solver's step from each inner grid point to the one before; None if it has none.

    A one-step rule may be written on any times: t_1 t_0 t_2 t_1 t_3 t_2 …, of which every second
    step is wanted.
    """
    stages = {len(step.stages) for step in own.steps}
    if reach(own.steps) > 1 or len(stages) > 1:
        return None
    times = [level.t for level in own.levels]
    ways = [t for i in range(1, len(own.steps)) for t in (times[i], times[i - 1])]
    steps = forward(solver, own.writer.path, ways).steps if ways else []
    if len(steps) != max(len(ways) - 1, 0) or {len(s.stages) for s in steps} - stages:
        return None
    return [step.moved(1 - i // 2) for i, step in enumerate(steps) if i % 2 == 0]


@solvers.register("reversible", paper="arXiv:2307.10829; arXiv:2410.11648")
@dataclass(frozen=True)
class Reversible(Bidirectional):
    """Any deterministic solver on a fixed grid, made so that it can be run back exactly.

    A one-step rule remembers one older state, and B is the same rule one step back: from s to
    2s − 1 evaluations a step. A multistep rule that reaches over k grid points remembers the one
    before these, and B is the polynomial through its last evaluations, of the order of the rule,
    integrated back to there: no evaluation more, but for predictions that were not evaluated again
    (UniPC), one. The order is kept.

    Args:
        gamma: γ, as for BDIA.
        solver: any, with a plan and without noise.

    Where there is a path, the older state of a multistep rule counts for less by the factor
    min(1, σ_new/σ_old), by which the flow towards data contracts: what parasitic roots carry along
    then shrinks as the flow does, also in a few large steps.

    Example: how many states the way back starts from.
        >>> from pathline.paths import VPLinear
        >>> from pathline.solvers.reversal import remembered
        >>> rules = ("heun", "dpmpp_2m", "unipc_3")
        >>> [remembered(Reversible(solver=r).plan(VPLinear(), LogSNR(20))) for r in rules]
        [2, 3, 5]
    """

    gamma: float = 1.0
    solver: Solver = field(default_factory=Heun)

    @property
    def convergence(self) -> int:
        return self.solver.convergence

    def lag(self, own: Forward) -> int:
        return _lag(self.solver, own)

    def factors(self, own: Forward, lag: int) -> list[float]:
        if lag == 1 or own.writer.path is None:
            return super().factors(own, lag)
        pairs = zip(own.levels[lag + 1 :], own.levels, strict=False)
        return [self.gamma * min(1.0, new.sigma / old.sigma) for new, old in pairs]

    def guesses(self, own: Forward, lag: int) -> list[Block]:
        found = _back_steps(self.solver, own) if lag == 1 else None
        if found is not None:
            return found
        return [_polynomial_back(self.view, own, i, lag) for i in range(lag, len(own.steps))]


def _lag(solver: Solver, own: Forward) -> int:
    """Return how far back a rule must remember: 1 for a one-step rule."""
    return _probed(solver, own.writer.path, own.levels[0].t, own.levels[-1].t)


@lru_cache(maxsize=256)
def _probed(solver: Solver, path: GaussianPath | None, start: float, end: float) -> int:
    """Return it as it shows on a grid that is long enough."""
    if start == end:
        return 1
    grid = Uniform(PROBE, start, end) if path is None else LogSNR(PROBE, start, end)
    own = forward(solver, path, grid.times(path))
    if _back_steps(solver, own) is not None:
        return 1
    return max(reach(own.steps), solver.convergence)


def _polynomial_back(view: View, own: Forward, i: int, lag: int) -> Block:
    """Return the step from grid point i to the one `lag` before, by the last `lag` evaluations."""
    known = range(i, i - lag, -1)
    levels, path = own.levels, own.writer.path
    s, older, others = levels[i], levels[i - lag], [levels[k] for k in known[1:]]
    if path is None:
        weights = adams_weights([levels[k].t for k in known], s.t, older.t)
        return Block((), Row(older.t, {i: 1.0}, dict(zip(known, weights, strict=True))))
    own_view: View = view if view in ("x0", "eps") else "x0"
    linear, weights = polynomial_weights(own_view, s, older, others)
    x, f = {i: linear}, dict[int, float]()
    for k, weight in zip(known, weights, strict=True):
        p, q = (float(c) for c in change(path, view, own_view, levels[k].t))
        f[k] = weight * q
        x[k] = x.get(k, 0.0) + weight * p
    return Block((), Row(older.t, x, f))

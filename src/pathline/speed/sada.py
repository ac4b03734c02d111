"""SADA: each trajectory says where its next evaluation can be replaced by a prediction.

    step-wise   x̂_0 = (x̂_{i+1} − σ ε̂)/α, ε̂ the last real one      where the criterion is negative
    Lagrange    x̂_0 = Σ_a ℓ_a(t) x̂_0(t_a), t_a the last real ones    late: all but every k-th
    tokens      of a transformer, those that are unstable              where nothing is skipped

The criteria are in `criteria`, the extrapolants in `extrapolate`. Predictions are made from real
evaluations only: what a prediction said is never extrapolated from, because that is unstable when
several steps in a row are skipped.

Paper: Jiang et al. 2025 (SADA, arXiv:2507.17135). The public code averages κ over the batch; here
each sample decides for itself unless `granularity="batch"`. Flow models extrapolate the velocity,
over two nodes in place of the step-wise rule; the evaluation after that is real, because no
criterion can be asked about a slope that was laid on a line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

from pathline.core.errors import UsageError
from pathline.core.warned import warn
from pathline.paths import CondOT
from pathline.solvers import Plan
from pathline.solvers.evaluate import Call, Evaluator, Speed
from pathline.speed.criteria import Criterion, Rule
from pathline.speed.policy import check_span, span_of, speeds, times_of

Granularity = Literal["per_sample", "batch"]
Carried = Literal["auto", "x0", "velocity"]

UNEVEN = 4.0
"""Steps that differ more than this many times are not extrapolated over without a warning."""

FEWEST = 8
"""Evaluations below which there is nothing to predict from."""


@dataclass(frozen=True)
class Tokens:
    """Which tokens of a transformer are computed where a step is not skipped.

    Those with κ ≥ 0, and one at random in every window, so that no part goes without for long.
    The evaluation after a skip computes all of them (as the paper has it), and so do those of
    Lagrange's cadence: beside skipping there is next to nothing left to prune, and a warning says
    so. To prune instead, `SADA(max_interval=0, lagrange_step=None, tokens=Tokens(refresh=4))`.
    A compiled network is not while its tokens are chosen: their number is another each time.

    Args:
        most: how many unstable ones at most, those of largest κ first; None for all of them.
        window: side of the windows, in tokens.
        refresh: after how many evaluations since the last skip all tokens are computed again; None
            is SADA's max_interval.
        by: "criterion", or "random": as many at random, which the criterion has to beat.
        grid: (height, width) in tokens, for a network that does not say it.
    """

    most: int | None = None
    window: int = 3
    refresh: int | None = None
    by: Literal["criterion", "random"] = "criterion"
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        most = 0 if self.most is None else self.most
        refresh = 1 if self.refresh is None else self.refresh
        is_whole = all(isinstance(n, int) for n in (self.window, most, refresh))  # pyright: ignore[reportUnnecessaryIsInstance]
        if not is_whole or self.window < 1 or most < 0 or refresh < 1:
            raise UsageError(
                "tokens need a window and a refresh of at least 1, and most ≥ 0, whole numbers; "
                f"they are {self.window}, {self.refresh} and {self.most}."
            )
        if self.by not in ("criterion", "random"):
            raise UsageError(f"by={self.by!r}: choose 'criterion' or 'random'.")
        if self.grid is not None:
            object.__setattr__(self, "grid", tuple(self.grid))
            if len(self.grid) != 2 or min(self.grid) < 1:
                raise UsageError(f"grid={self.grid}: give (height, width) in tokens, 1 or more.")

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return asdict(self)


class Limits(NamedTuple):
    """Where what happens, in evaluations: skipping from `first` to `end`, Lagrange from `late`."""

    first: int
    end: int
    late: int


@speeds.register("sada", paper="arXiv:2507.17135")
@dataclass(frozen=True)
class SADA(Speed):
    """Skip evaluations where the trajectory is stable; about twice as fast at fifty steps.

    Choose it where many steps are spent already; with fewer than twenty there is little to skip.

    Args:
        acc_range: where it may skip, as fractions of the evaluations or as their numbers (10, 47).
        max_interval: how many in a row it may skip.
        lagrange_step: from where on a fixed cadence is kept, as a fraction or as a number; None
            for nowhere.
        every: that cadence.
        nodes: how many real evaluations its polynomial goes through.
        criterion: "ddim", "paper", "released" or "magnitude".
        weights: of the extrapolant: "paper", or the "released" code's.
        limit: τ of "magnitude".
        granularity: "per_sample", or one decision for the "batch".
        carry: what is predicted: "x0", "velocity", or "auto": the velocity on the straight path.
        tokens: which tokens are computed where nothing is skipped; None for all.
        force: also under stochastic solvers, where the criterion means nothing.
    """

    acc_range: tuple[float, float] = (0.2, 0.94)
    max_interval: int = 4
    lagrange_step: float | None = 0.4
    every: int = 4
    nodes: int = 3
    criterion: Criterion = "ddim"
    weights: Rule = "paper"
    limit: float = 0.05
    granularity: Granularity = "per_sample"
    carry: Carried = "auto"
    tokens: Tokens | Mapping[str, Any] | None = None
    force: bool = False

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                choices = ", ".join(map(repr, get_args(kind)))
                raise UsageError(f"{name}={getattr(self, name)!r}: choose from {choices}.")
        self._check_numbers()
        check_span("acc_range", self.acc_range)
        if isinstance(self.tokens, Mapping):
            object.__setattr__(self, "tokens", Tokens(**self.tokens))
        elif not isinstance(self.tokens, Tokens | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"tokens={self.tokens!r}: give Tokens(), or leave it out.")

    def _check_numbers(self) -> None:
        counts = (self.every, self.nodes, self.max_interval)
        is_whole = all(isinstance(n, int) for n in counts)  # pyright: ignore[reportUnnecessaryIsInstance]
        if not is_whole or self.every < 1 or self.nodes < 1 or self.max_interval < 0:
            raise UsageError(
                "SADA needs every ≥ 1, at least 1 node and max_interval ≥ 0, whole numbers; they "
                f"are {self.every}, {self.nodes} and {self.max_interval}."
            )
        late = self.lagrange_step
        for name, value in (("limit", self.limit), ("lagrange_step", 0 if late is None else late)):
            if not value >= 0:
                raise UsageError(f"{name} must not be negative, and is {value:g}.")
        if isinstance(late, int) and late % self.every:
            raise UsageError(
                f"lagrange_step={late} must be a multiple of every={self.every}, so that the "
                "cadence begins with a real evaluation."
            )

    def limits(self, n: int) -> Limits:
        """Return where what happens among n evaluations.

        Raises:
            UsageError: they are too few, or a range lies outside of them.
        """
        if n < FEWEST:
            raise UsageError(
                f"SADA needs at least {FEWEST} evaluations to predict any, and the plan has {n}; "
                "take more steps, or leave speed out."
            )
        first, end = span_of(self.acc_range, n)
        late = n if self.lagrange_step is None else self.lagrange_step
        if not isinstance(late, int):
            late = self.every * round(late * n / self.every)
        if not 0 <= late <= n:
            raise UsageError(f"lagrange_step={self.lagrange_step} lies outside of 0 … {n}.")
        return Limits(max(first, 3), end, late)

    @property
    def pruned(self) -> Tokens | None:
        """Which tokens are computed, if not all."""
        return self.tokens if isinstance(self.tokens, Tokens) else None

    @property
    def cycle(self) -> int:
        """After how many evaluations since the last skip all tokens are computed again."""
        refresh = None if self.pruned is None else self.pruned.refresh
        return max(self.max_interval, 1) if refresh is None else refresh

    def carried(self, plan: Plan) -> Literal["x0", "velocity"]:
        """Return what is predicted on the path of a plan."""
        if self.carry == "auto":
            return "velocity" if isinstance(plan.path, CondOT) else "x0"
        return self.carry

    def thinned(self, plan: Plan) -> Plan:
        """Return the plan as it is, if it suits; what is left out depends on the data."""
        self.limits(plan.nfe)
        if plan.path is None:
            raise UsageError(
                "SADA needs a model on a path (a Denoiser); for an equation of your own use an "
                "adaptive step size or Cadence."
            )
        if plan.is_stochastic and not self.force:
            raise UsageError(
                "SADA's criterion assumes an ODE, and this solver adds noise: use eta=0 (or "
                "churn=0), or SADA(force=True) to try it all the same."
            )
        _warn_if_uneven(times_of(plan))
        return plan

    def evaluator(self, call: Call) -> Evaluator:
        from pathline.speed.running import Run

        return Run(self, call)

    def describe(self) -> dict[str, Any]:
        return speeds.describe(self)


def _warn_if_uneven(times: Sequence[float]) -> None:
    """Say it where steps grow or shrink so much that nothing follows from the last ones."""
    steps = [h for h in (abs(b - a) for a, b in pairwise(times)) if h > 0][1:-1]
    uneven = max(steps, default=1.0) / min(steps, default=1.0)
    if uneven > UNEVEN:
        warn(
            f"SADA extrapolates in time, and the steps of this grid differ {uneven:.0f}-fold: "
            "there it is worse than fewer plain steps. Use grid='uniform'."
        )


_CHOICES = {"criterion": Criterion, "weights": Rule, "granularity": Granularity, "carry": Carried}

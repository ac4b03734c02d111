"""The unified step: every choice that an exponential solver makes, made anew at each step.

    x_t = L x_s + c Σ_{k<p} h^{k+1} φ_{k+1}(z) D^(k),   D^(0) = F_s,  h = λ_t − λ_s

A step chooses what F is (x̂_0 or ε̂), how many derivatives it uses (order p), from which visited
point it starts, from how many points each derivative is estimated,

    D^(k) = Σ_i a_i (F_i − F_s),   Σ_i a_i δ_i^q/q! = 1[q = k],   q = 1 … m_k,   δ_i = λ_i − λ_s

how the slope is weighed, R(h) D^(1), and whether x_t is corrected with F_t among the points. DDIM,
DPM-Solver, DPM-Solver++, UniPC and λ-DEIS are lists of such choices.

Paper: Liu et al. 2023 (arXiv:2312.07243). An estimate from m_k points errs by O(δ^{m_k+1−k}).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields.views import View, change
from pathline.solvers.exponential import (
    check_distances,
    check_start,
    expansion_weights,
    linear_part,
    scale_and_argument,
)
from pathline.solvers.phi import phi
from pathline.solvers.plan import Coefficient
from pathline.solvers.solver import Level, Solver, Writer, solvers

Prediction = Literal["x0", "eps"]
Corrector = Literal["none", "pseudo", "implicit"]
Scaling = Literal["bh1", "bh2", "exp+", "exp-"]
Constant = float | tuple[Any, ...]
"""A number, or numbers in (nested) tuples, that broadcast against one sample."""

MOST_ORDER = 4


@dataclass(frozen=True)
class StepChoice:
    """What one step does.

    Args:
        prediction: what is taken for nearly constant, x̂_0 or ε̂.
        order: p, from 1 to 4; p − 1 derivatives are used.
        start: from which visited point the step starts: −1 the newest, −2 the one before.
        points: m_1 … m_{p−1}, from how many points besides the start each derivative is estimated,
            newest first; () is p − 1 for each. More smooths, fewer follows the newest.
        scale: how the first derivative is weighed: a number κ is R = 1 + κh; "bh1" and "bh2" are
            those of UniPC ("bh2" turns order 2 into the midpoint form), "exp±" 1 ± ½(e^z − 1).
        corrector: after F_t is known, "pseudo" repeats the step with it and keeps it (no cost);
            "implicit" also evaluates anew at the corrected state (one evaluation).
        nudges: by how much the weights of evaluations besides the start's are raised at its cost,
            newest first, in units of the weight that order 1 has. They cost order two and more.
        corrector_nudges: the same for the corrector, whose newest is F_t.
        gains: by how much the state, and what order 1 adds to it, are magnified: (0, 0) keeps the
            step consistent, and others, found for a model and few steps, do not converge.
    """

    prediction: Prediction = "x0"
    order: int = 2
    start: int = -1
    points: tuple[int, ...] = ()
    scale: float | Scaling = 0.0
    corrector: Corrector = "none"
    nudges: tuple[float, ...] = ()
    corrector_nudges: tuple[float, ...] = ()
    gains: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_name("prediction", self.prediction, get_args(Prediction))
        _check_name("corrector", self.corrector, get_args(Corrector))
        if not _is_whole(self.order) or not 1 <= self.order <= MOST_ORDER:
            raise UsageError(f"order={self.order!r}: choose from 1 to {MOST_ORDER}.")
        if not _is_whole(self.start) or self.start >= 0:
            raise UsageError(
                f"start={self.start!r} refers to the future; −1 is the newest point that has been "
                "visited, −2 the one before."
            )
        object.__setattr__(self, "points", tuple(self.points))
        self._check_points()
        for name in ("nudges", "corrector_nudges", "gains"):
            numbers = tuple(map(float, getattr(self, name)))
            object.__setattr__(self, name, numbers)
            if not all(map(math.isfinite, numbers)):
                raise UsageError(f"{name}={list(numbers)} must be finite numbers.")
        if len(self.gains) not in (0, 2):
            raise UsageError(f"gains={list(self.gains)}: give two, of the state and of the rest.")
        if isinstance(self.scale, str):
            _check_name("scale", self.scale, get_args(Scaling))
        elif isinstance(self.scale, bool) or not math.isfinite(self.scale):
            raise UsageError(f"scale={self.scale!r} must be a finite number or a name.")

    def _check_points(self) -> None:
        if self.points and len(self.points) != self.order - 1:
            raise UsageError(
                f"order {self.order} estimates {self.order - 1} derivatives, and points="
                f"{list(self.points)} has {len(self.points)} counts."
            )
        for k, m in enumerate(self.points, 1):
            if not _is_whole(m) or m < k:
                raise UsageError(f"derivative {k} needs at least {k} points, and was given {m!r}.")

    @property
    def counts(self) -> tuple[int, ...]:
        """How many points each derivative is estimated from."""
        return self.points or (self.order - 1,) * (self.order - 1)

    @property
    def convergence(self) -> int:
        """The order of convergence of a solver that takes such steps only."""
        order = min([self.order, *(m + 1 for m in self.counts)])
        if self.scale != 0:
            order = min(order, 2)
        if any(self.nudges):
            order = 1
        if any(self.gains):
            return 0
        corrects = self.corrector != "none"
        return 1 if corrects and any(self.corrector_nudges) else order + corrects

    def needs(self) -> int:
        """How many points must have been visited before the step, its start included."""
        points = len(self.nudges), len(self.corrector_nudges) - 1, *self.counts
        return max(-self.start, 1 + max(points))

    def clipped(self, visited: int) -> StepChoice:
        """Return the choice as far as so many visited points allow it."""
        if self.needs() <= visited:
            return self
        order = min(self.order, visited)
        points = tuple(min(m, visited - 1) for m in self.points[: order - 1])
        nudges, again = self.nudges[: visited - 1], self.corrector_nudges[:visited]
        return replace(
            self,
            order=order,
            points=points,
            start=max(self.start, -visited),
            nudges=nudges,
            corrector_nudges=again,
        )

    def uncorrected(self) -> StepChoice:
        """Return the choice without its corrector."""
        return replace(self, corrector="none")

    def describe(self) -> dict[str, Any]:
        """Return the choice as JSON values."""
        told = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {k: v for k, v in told.items() if v or not k.endswith(("nudges", "gains"))}

    @classmethod
    def of(cls, content: Any) -> StepChoice:
        """Return a choice from itself or from what `describe` wrote.

        Raises:
            UsageError: it is neither, or cannot be.
        """
        if isinstance(content, StepChoice):
            return content
        known = [f.name for f in fields(cls)]
        if not isinstance(content, Mapping) or not set(content) <= set(known):
            raise UsageError(f"a step has {', '.join(known)}; this one is {content!r}.")
        return cls(**content)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_name(what: str, name: Any, known: Sequence[str]) -> None:
    if name not in known:
        raise UsageError(f"{what}={name!r}: choose {', '.join(map(repr, known))}.")


def slope_factor(choice: StepChoice, s: Level, t: Level) -> float | None:
    """Return the factor R(h) c h φ_2(z) of h D^(1); None where it is not scaled."""
    if choice.scale == 0:
        return None
    h = t.log_snr - s.log_snr
    c, z = scale_and_argument(choice.prediction, s, t)
    if choice.scale == "bh2":
        return linear_part(choice.prediction, s, t)[1] / 2
    if choice.scale == "bh1":
        return c * h / 2
    if isinstance(choice.scale, str):
        ratio = 1 + math.copysign(0.5, 1 if choice.scale == "exp+" else -1) * math.expm1(z)
    else:
        ratio = 1 + choice.scale * h
    return ratio * c * h * phi(2, z)


GUESSED = -1
"""The number of a state whose x̂_0 is not evaluated but known."""


class Known(NamedTuple):
    """An evaluation: where it is on the path, and at which state."""

    level: Level
    number: int


class _Sums:
    """The coefficients of a row under construction."""

    def __init__(self) -> None:
        self.x: dict[int, Coefficient] = {}
        self.f: dict[int, Coefficient] = {}
        self.constant: Coefficient = 0.0

    def add_x(self, number: int, a: float) -> None:
        """Add a times a state."""
        if a:
            self.x[number] = self.x.get(number, 0.0) + a

    def add_f(self, number: int, b: float) -> None:
        """Add b times an evaluation."""
        self.f[number] = self.f.get(number, 0.0) + b


@solvers.register("usf", aliases=("unified", "USF"), paper="arXiv:2312.07243")
@dataclass(frozen=True)
class Unified(Solver):
    """The unified solver: step i takes choice i, and the last choice serves all further steps.

    A choice is clipped to the points that have been visited, and the last step is not corrected,
    so it runs on any grid. For lists found by search, or your own, see `SolverSchedule`.

    Args:
        choices: one a step.
        guess: x̂_0 at the first point, where nothing but noise is seen: evaluated there (None), or
            taken to be this number, or numbers for each element (a data mean); saves an evaluation.
    """

    choices: tuple[StepChoice, ...] = (StepChoice(),)
    guess: Constant | None = None

    def __post_init__(self) -> None:
        choices = tuple(StepChoice.of(choice) for choice in self.choices)
        if not choices:
            raise UsageError("the unified solver needs at least one choice.")
        object.__setattr__(self, "choices", choices)
        if self.guess is not None:
            object.__setattr__(self, "guess", frozen_constant(self.guess))

    @property
    def order(self) -> int:
        return self.choices[-1].order

    @property
    def convergence(self) -> int:
        return self.choices[-1].convergence

    @property
    def view(self) -> View:
        return "eps" if all(c.prediction == "eps" for c in self.choices) else "x0"

    @property
    def nfe_per_step(self) -> int:
        return 2 if self.choices[-1].corrector == "implicit" else 1

    def choice(self, i: int) -> StepChoice:
        """Return what step i does, given that it has visited i + 1 points."""
        return self.choices[min(i, len(self.choices) - 1)].clipped(i + 1)

    def write(self, to: Writer) -> None:
        _Writing(self, to).write()


class _Writing:
    """The rule at work on one grid: which states and evaluations there are so far."""

    def __init__(self, rule: Unified, to: Writer) -> None:
        self.rule, self.to = rule, to
        self.steps = list(to.intervals())
        self.at = [0]  # the state at each visited point
        self.known = [Known(to.levels[0], 0 if rule.guess is None else GUESSED)]
        self.guess = _as_coefficient(0.0 if rule.guess is None else rule.guess)

    def write(self) -> None:
        check_distances(self.steps)
        last = len(self.steps) - 1
        for i, (_, t) in enumerate(self.steps):
            choice = self.rule.choice(i)
            origin = i + 1 + choice.start
            if origin == 0:
                check_start(choice.prediction, self.steps)
            corrects = choice.corrector != "none" and i < last
            reached = Known(t, self._row(choice, origin, t, lands=not corrects))
            state = reached.number
            if corrects:
                state = self._row(choice, origin, t, reached)
                reached = Known(t, state) if choice.corrector == "implicit" else reached
            self.at.append(state)
            self.known.append(reached)

    def _row(
        self,
        choice: StepChoice,
        origin: int,
        t: Level,
        predicted: Known | None = None,
        *,
        lands: bool = True,
    ) -> int:
        """Write the step from visited point `origin` to t; with F there, as its correction."""
        start = self.known[origin]
        others = [k for i, k in reversed(list(enumerate(self.known))) if i != origin]
        counts, slope = choice.counts, slope_factor(choice, start.level, t)
        nudges = choice.nudges if predicted is None else choice.corrector_nudges
        if predicted is not None:
            others = [predicted, *others]
            counts = (choice.order,) * choice.order
            slope = slope if choice.order == 1 else None  # it would cost order three and more
        used = others[: max(len(nudges), *counts, 0)]
        levels = [k.level for k in used]
        view: View = choice.prediction
        linear, weights = expansion_weights(
            view, start.level, t, levels, counts=counts, slope=slope
        )
        unit = linear_part(view, start.level, t)[1]
        for i, nudge in enumerate(nudges, 1):
            weights[i] += nudge * unit
            weights[0] -= nudge * unit
        if choice.gains and predicted is None:
            linear *= 1 + choice.gains[0]
            weights[0] += choice.gains[1] * unit
        terms = _Sums()
        terms.add_x(self.at[origin], linear)
        for each, weight in zip((start, *used), weights, strict=True):
            self._add(terms, each, weight, view)
        return self.to.write(t.t, terms.x, terms.f, lands=lands, constant=terms.constant)

    def _add(self, terms: _Sums, known: Known, weight: float, view: View) -> None:
        """Add weight × F, in the plan's view; the guess is known without an evaluation."""
        if known.number == GUESSED:
            a = 0.0 if view == "x0" else 1 / known.level.sigma
            b = 1.0 if view == "x0" else -known.level.alpha / known.level.sigma
            terms.add_x(0, weight * a)
            terms.constant = terms.constant + weight * b * self.guess
            return
        assert self.to.path is not None
        p, q = (float(c) for c in change(self.to.path, self.rule.view, view, known.level.t))
        terms.add_x(known.number, weight * p)
        terms.add_f(known.number, weight * q)


def frozen_constant(value: Any) -> Constant:
    """Return a number, or nested lists of numbers as nested tuples of floats.

    Raises:
        UsageError: it has something else in it, or is ragged.
    """
    try:
        tensor = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the guess must be numbers: {error}.") from error
    if not bool(torch.isfinite(tensor).all()):
        raise UsageError("the guess must be finite numbers.")
    return _nested(tensor.tolist())


def _nested(value: Any) -> Any:
    return tuple(map(_nested, value)) if isinstance(value, list) else float(value)


def _as_coefficient(value: Constant) -> float | Tensor:
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, tuple) else value

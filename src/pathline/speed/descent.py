"""Descent: the numbers of a schedule, its inner times and slopes, moved to where errors are least.

What a population search finds by chance, least squares finds by slope: the errors of n samples
are n·d numbers, and a schedule of few steps has a dozen that can be changed. The mean error
Σ_i |r_i| falls by Levenberg and Marquardt's method with weights w_i = 1/|r_i|, derivatives being
taken by differences,

    (JᵀWJ + μ diag JᵀWJ) Δ = −JᵀWr,   r = x(θ) − x*,   θ = (λ_1 … λ_{n−1}, R_2 − 1 … R_n − 1)

where R scales a step's first derivative (`StepChoice.scale`, R = 1 + κh); for a closer fit the
weights of all evaluations, and of the state, move in every row (`StepChoice.nudges`, `gains`): then
it is any linear method there is. Ratios of thinned guidance move too. A corrector has no numbers of
its own: what it could add, the weights of the next row can. It needs no gradient of the network;
and as a number moves only what comes after it, `Endpoint.remembering` saves two thirds.

Papers: Liu et al. 2023 (arXiv:2312.07243); all weights free: Shaul et al. 2024 (arXiv:2403.01329).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pathline.core.errors import PathlineError
from pathline.core.files import write_atomically
from pathline.core.progress import progress
from pathline.solvers.exponential import NEAREST, scale_and_argument
from pathline.solvers.phi import phi
from pathline.solvers.schedule import SolverSchedule
from pathline.solvers.solver import Level, Writer
from pathline.solvers.unified import slope_factor
from pathline.speed.metrics import Endpoint

DIFFERENCE = 5e-3
"""Of a λ or of R: float32 networks round at 1e-6, and curvature is felt from 0.1 on."""

MOST = 0.6
"""A number moves no farther at once."""

FIRST, LEAST = 1e-2, 1e-4
"""μ at the beginning, and its least."""

FACTOR, TRIES = 5.0, 4
"""μ grows so where a move does not help, and so often."""

SIZES = 1.0, 2.0, 4.0
"""A move that helps is tried in these sizes, until a larger one helps no more."""

GAIN = 0.005
"""The descent ends when it gains no larger share of the error."""


Freedom = Literal["slopes", "weights"]


class Where(NamedTuple):
    """A number in a step: the field's name, and its place there; "ratios" are by evaluation."""

    name: str
    place: int


@dataclass(frozen=True)
class Descent:
    """Where a descent stands.

    Args:
        schedule: the best so far.
        score: the mean error of its samples; +∞ before it was measured.
        mu: the damping.
        tries: schedules that were run.
        is_done: nothing more is gained.
        power: p of (mean_i |r_i|^p)^(1/p), the score: 1 is the mean of errors, 2 least squares.
        rounds: that were made.
    """

    schedule: SolverSchedule
    score: float = float("inf")
    mu: float = FIRST
    tries: int = 0
    is_done: bool = False
    power: float = 1.0
    rounds: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return vars(self) | {"schedule": self.schedule.to_dict()}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Descent:
        """Read what `to_dict` wrote."""
        return cls(SolverSchedule.from_dict(content.pop("schedule")), **content)


def descend(
    bench: Endpoint,
    begin: Descent,
    tries: int,
    freedom: Freedom = "slopes",
    *,
    file: str | Path | None = None,
    what: str = "descending",
) -> Descent:
    """Move times and slopes of a schedule to where its error is least.

    Args:
        bench: what measures; its noise must not change.
        begin: where to begin, `Descent(schedule)`; its choices stay.
        tries: schedules that may be run in all; a round, once begun, is ended.
        freedom: what moves besides times: one slope a step, or the weights of all evaluations in
            each row and of its state, n(n + 3)/2 numbers, with which one fits a model closer.
        file: what an interrupted descent goes on from; None keeps nothing.
        what: is going on, for the progress bar.

    Cost: a round runs as many schedules as there are numbers, and two to twelve.
    """
    at = max(begin, _kept(file) or begin, key=lambda each: each.tries)
    bench = bench.remembering()
    with progress() as bar:
        task = bar.add_task(what, total=tries, completed=at.tries)
        while not at.is_done and at.tries < tries:
            at = _round(bench, at, freedom)
            bar.update(task, completed=min(at.tries, tries))
            if file is not None:
                write_atomically(file, json.dumps(at.to_dict()))
    return at


def _kept(file: str | Path | None) -> Descent | None:
    try:
        return None if file is None else Descent.from_dict(json.loads(Path(file).read_text()))
    except (OSError, ValueError, TypeError, KeyError, PathlineError):
        return None


def _round(bench: Endpoint, at: Descent, freedom: Freedom) -> Descent:
    """Return where one move leads."""
    numbers = Numbers.of(at.schedule, freedom)
    here = bench.residuals(at.schedule)
    score = _size(here, at.power)
    hessian, gradient = _normal_equations(bench, numbers, here, at.power)
    tries, mu, rounds = at.tries + 1 + numbers.n, at.mu, at.rounds + 1
    for _ in range(TRIES):
        damping = mu * (hessian.diag() + 1e-9 * hessian.trace() + 1e-300)
        move = -torch.linalg.solve(hessian + damping.diag(), gradient)
        move = move * min(1.0, MOST / max(float(move.abs().max()), 1e-300))
        best = (score, at.schedule)
        for size in SIZES:  # weights that follow the errors make the first move a cautious one
            moved = numbers.moved(size * move)
            tries += 1
            found = math.inf if moved is None else _size(bench.residuals(moved), at.power)
            if moved is None or found >= best[0]:
                break
            best = found, moved
        if best[0] < score:
            is_done = best[0] > score * (1 - GAIN)
            mu = max(mu / FACTOR, LEAST)
            return Descent(best[1], best[0], mu, tries, is_done, at.power, rounds)
        mu *= FACTOR
    return Descent(at.schedule, score, mu, tries, True, at.power, rounds)


def _normal_equations(
    bench: Endpoint, numbers: Numbers, here: Tensor, power: float
) -> tuple[Tensor, Tensor]:
    """Return JᵀWJ and JᵀWr, on the CPU."""
    weight = _each(here).clamp(min=1e-300) ** (power - 2)
    weight = (weight / weight.sum())[:, None]
    slopes = torch.stack([_slope(bench, numbers, i, here) for i in range(numbers.n)])
    flat = slopes.flatten(1)
    return (flat @ (slopes * weight).flatten(1).T).cpu(), (flat @ (here * weight).flatten()).cpu()


def _each(residuals: Tensor) -> Tensor:
    """Return the root mean square of each sample."""
    return residuals.square().mean(1).sqrt()


def _size(residuals: Tensor, power: float) -> float:
    """Return the mean of the samples' errors, of this power; +∞ where it is no number."""
    size = float((_each(residuals) ** power).mean() ** (1 / power))
    return size if math.isfinite(size) else math.inf


def _slope(bench: Endpoint, numbers: Numbers, i: int, here: Tensor) -> Tensor:
    """Return ∂r/∂θ_i by a difference, towards either side; zero where neither can be."""
    for side in (DIFFERENCE, -DIFFERENCE):
        move = torch.zeros(numbers.n, dtype=torch.float64)
        move[i] = side
        moved = numbers.moved(move)
        if moved is not None:
            slope = (bench.residuals(moved) - here) / side
            return torch.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)
    return torch.zeros_like(here)


@dataclass(frozen=True)
class Numbers:
    """The numbers of a schedule that may move: λ of its inner times, and what weighs evaluations.

    Args:
        schedule: whose.
        levels: λ at all its times.
        weighs: for each further number, its step, and where it stands in the step.
        ratios: R − 1 by step, for those steps that have a slope.
    """

    schedule: SolverSchedule
    levels: Sequence[float]
    weighs: Sequence[tuple[int, Where]]
    ratios: dict[int, float]

    @classmethod
    def of(cls, schedule: SolverSchedule, freedom: Freedom = "slopes") -> Numbers:
        """Return the numbers as they are."""
        levels = Writer(schedule.path, schedule.times, denoises=False).levels
        ratios = {
            i: _ratio(choice, levels[i + 1 + choice.start], levels[i + 1]) - 1
            for i, choice in enumerate(schedule.choices)
            if choice.order > 1
        }
        weighs: list[tuple[int, Where]] = [(i, Where("scale", 0)) for i in ratios]
        if freedom == "weights":
            weighs = list(_nudges(schedule))
        weighs += [(i, Where("ratios", 0)) for i, r in enumerate(schedule.ratios) if r is not None]
        return cls(schedule, [level.log_snr for level in levels], weighs, ratios)

    @property
    def n(self) -> int:
        """How many there are."""
        return len(self.levels) - 2 + len(self.weighs)

    def moved(self, by: Tensor) -> SolverSchedule | None:
        """Return the schedule with its numbers moved; None if its times were no longer in order."""
        inner = len(self.levels) - 2
        levels = torch.tensor(self.levels, dtype=torch.float64)
        levels[1:-1] += by[:inner]
        if bool((levels.diff() < 2 * NEAREST).any()):
            return None
        path, old = self.schedule.path, self.schedule.times
        at = path.time_of_log_snr(levels[1:-1]).tolist()
        inside = (t if m else o for t, m, o in zip(at, by, old[1:], strict=False))
        choices = list(self.schedule.choices)
        moves = dict(zip(self.weighs, by[inner:].tolist(), strict=True))
        for i, ratio in self.ratios.items():  # R stays where h moves
            h = float(levels[i + 1] - levels[i + 1 + choices[i].start])
            ratio += moves.pop((i, Where("scale", 0)), 0.0)
            choices[i] = replace(choices[i], scale=float(ratio / h))
        ratios = list(self.schedule.ratios)
        for (i, (name, k)), move in moves.items():
            if name == "ratios":
                ratios[i] = (ratios[i] or 0.0) + move
                continue
            numbers = list(getattr(choices[i], name))
            numbers += [0.0] * (max(k + 1, 2 if name == "gains" else 0) - len(numbers))
            numbers[k] += move
            choices[i] = replace(choices[i], **{name: tuple(numbers)})
        try:
            times = (old[0], *inside, old[-1])
            return replace(self.schedule, times=times, choices=tuple(choices), ratios=tuple(ratios))
        except PathlineError:  # two times became one
            return None


def _nudges(schedule: SolverSchedule) -> Iterator[tuple[int, Where]]:
    """Yield the steps and places of all nudges that there may be."""
    for i in range(len(schedule.choices)):
        yield from ((i, Where("nudges", k)) for k in range(i))
        yield from ((i, Where("gains", k)) for k in range(2))


def _ratio(choice: Any, s: Level, t: Level) -> float:
    """Return R of a step: what its first derivative is scaled by."""
    factor = slope_factor(choice, s, t)
    if factor is None:
        return 1.0
    h = t.log_snr - s.log_snr
    c, z = scale_and_argument(choice.prediction, s, t)
    return factor / (c * h * phi(2, z))

"""Schedules: times and each step's choices, as one value that people can save and share.

A `SolverSchedule` is a grid and a unified solver that belong together: what a search finds, or a
person writes, for one path and one number of evaluations. It compiles to a plan like any solver;
every exponential solver of the library is such a list (`SolverSchedule.of`).

Paper: Liu et al. 2023 (arXiv:2312.07243).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from pathlib import Path
from typing import Any

from pathline.core.errors import UsageError
from pathline.core.files import write_atomically
from pathline.paths import GaussianPath, paths
from pathline.solvers.deis import DEIS
from pathline.solvers.exponential import DDIM, DPMpp, linear_part, lowered
from pathline.solvers.grids import Grid, Last, Times, check_times
from pathline.solvers.plan import Plan
from pathline.solvers.singlestep import DPM
from pathline.solvers.solver import Solver, Writer
from pathline.solvers.thinned import ThinnedGuidance, checked_ratios
from pathline.solvers.unified import Constant, Scaling, StepChoice, Unified, frozen_constant
from pathline.solvers.unipc import UniPC

FORMAT = 1


@dataclass(frozen=True)
class SolverSchedule:
    """Times, and what each step between them does, for one path.

    Args:
        path: the path that it is for.
        times: n + 1 times, strictly falling; n without the one of data if `last` is "denoise".
        choices: one a step (the closing step to data has none to make).
        guess: x̂_0 at the first time, if it is taken for known; see `Unified`.
        last: "stop", or "denoise" for a closing step to data, x = x̂_0.
        about: what else is worth keeping, as plain values: the model, the score, how it was found.
        ratios: for guided sampling alone: of each evaluation None, or how the difference of its two
            halves is guessed from the last one; see `ThinnedGuidance`. () evaluates both always.
        null_start: whether the unconditional half of the first one is known too.
        heads: the digest of what is added to the network's last layer at the first evaluations.

    Raises:
        UsageError: the times do not fall or leave the path, or a step needs points that do not
            exist; the message names the step.
    """

    path: GaussianPath
    times: tuple[float, ...]
    choices: tuple[StepChoice, ...]
    guess: Constant | None = None
    last: Last = "stop"
    about: Mapping[str, Any] = field(default_factory=dict, compare=False)
    ratios: tuple[float | None, ...] = ()
    null_start: bool = False
    heads: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", tuple(float(t) for t in self.times))
        object.__setattr__(self, "choices", tuple(_choices(self.choices)))
        if self.guess is not None:
            object.__setattr__(self, "guess", frozen_constant(self.guess))
        self._check_times()
        for i, choice in enumerate(self.choices, 1):
            _check_choice(choice, i, len(self.choices))
        object.__setattr__(self, "ratios", checked_ratios(self.ratios))
        if self.ratios and len(self.ratios) != self.plan().nfe:
            raise UsageError(
                f"{len(self.ratios)} ratios were given for {self.plan().nfe} evaluations."
            )
        if (self.null_start or self.heads) and not self.ratios:
            raise UsageError("null_start and heads are for schedules with ratios.")

    def _check_times(self) -> None:
        if len(self.times) != len(self.choices) + 1:
            raise UsageError(
                f"{len(self.choices)} steps go between {len(self.choices) + 1} times, and "
                f"{len(self.times)} were given."
            )
        if not self.choices:
            raise UsageError("a schedule needs at least one step.")
        check_times(self.grid.times(self.path), self.path)
        if self.times[1] > self.times[0]:
            raise UsageError(
                f"the times of a schedule fall, and step 1 goes from t = {self.times[0]:.6g} to "
                f"t = {self.times[1]:.6g}."
            )

    @property
    def grid(self) -> Grid:
        """Its times as a grid."""
        return Times(self.times, self.last)

    @property
    def solver(self) -> Unified:
        """Its choices as a solver."""
        return Unified(self.choices, self.guess)

    def plan(self, path: GaussianPath | None = None) -> Plan:
        """Compile the schedule.

        Args:
            path: of the model that it is to run with; None for its own.

        Raises:
            UsageError: it was made for another path.
        """
        if path is not None and path != self.path:
            raise UsageError(
                f"the schedule was made for the path {self.path}, and the model is on {path}."
            )
        return self.solver.plan(self.path, self.grid)

    @property
    def nfe(self) -> int:
        """Evaluations of the field: one a step, one more for each implicit corrector.

        An analytic first point saves one, and so does each evaluation that no step uses. With
        `ratios` it is guided evaluations, of two halves each, that cost as much.
        """
        speed = self.speed
        return self.plan().nfe if speed is None else speed.evaluations

    @property
    def speed(self) -> ThinnedGuidance | None:
        """What leaves halves of guided evaluations out; None where all are made."""
        if not self.ratios:
            return None
        return ThinnedGuidance(self.ratios, self.null_start, self.heads)

    @classmethod
    def of(cls, solver: Solver, path: GaussianPath, grid: Grid) -> SolverSchedule:
        """Return the schedule that a solver follows on a grid.

        Args:
            solver: DDIM, DPMpp, DPM, UniPC, DEIS in λ, or the unified one; deterministic.
            path: the path.
            grid: its steps; a solver with stages visits them as further times.

        Raises:
            UsageError: the solver is not a list of such choices.
        """
        if solver.is_stochastic:
            raise UsageError(f"{solver} draws noise, and the steps of a schedule do not.")
        plan = solver.plan(path, grid)
        steps = grid.n - (grid.last == "denoise")
        choices = tuple(_recipe(solver, steps))
        rows = [row for row in plan.rows if row.lands or isinstance(solver, DPM)]
        times = [float(t) for t in (plan.start[0], *(row.t for row in rows))][: len(choices) + 1]
        guess = solver.guess if isinstance(solver, Unified) else None
        return cls(path, tuple(times), choices, guess, grid.last)

    @classmethod
    def linear(
        cls, path: GaussianPath, times: Sequence[float], rows: Sequence[Sequence[float]]
    ) -> SolverSchedule:
        """Return the schedule of given rows: any explicit linear method of one evaluation a step.

            x_{i+1} = a x_i + Σ_j b_j x̂_0(x_j, t_j),   j = i, i − 1, …, 0

        Args:
            path: what it is for.
            times: n + 1, falling.
            rows: for step i the i + 2 numbers (a, b_i, b_{i−1}, …, b_0).

        Raises:
            UsageError: a row of another length; else as the class says.
        """
        levels = Writer(path, tuple(times), denoises=False).levels
        choices = list[StepChoice]()
        for i, (row, s, t) in enumerate(zip(rows, levels, levels[1:], strict=False)):
            if len(row) != i + 2:
                raise UsageError(f"step {i + 1} has {i + 2} coefficients, and {len(row)} came.")
            (a, *b), (ratio, unit) = row, linear_part("x0", s, t)
            gains = a / ratio - 1, sum(b) / unit - 1
            nudges = tuple(each / unit for each in b[1:])
            choices.append(StepChoice(order=1, nudges=nudges, gains=gains))
        return cls(path, tuple(times), tuple(choices))

    def to_dict(self) -> dict[str, Any]:
        """Return the schedule as plain JSON values."""
        return {
            "schedule": FORMAT,
            "path": paths.describe(self.path),
            "times": list(self.times),
            "last": self.last,
            "guess": self.guess,
            "choices": [choice.describe() for choice in self.choices],
            **({"ratios": list(self.ratios), "null_start": self.null_start} if self.ratios else {}),
            **({"heads": self.heads} if self.heads else {}),
            "about": dict(self.about),
        }

    @classmethod
    def from_dict(cls, content: Any) -> SolverSchedule:
        """Read what `to_dict` wrote.

        Raises:
            UsageError: it is not a schedule of this format, or a step of it cannot be.
        """
        if not isinstance(content, Mapping) or content.get("schedule") != FORMAT:
            raise UsageError(f"this is not a solver schedule of format {FORMAT}.")
        try:
            return cls(
                paths.rebuild(content["path"]),
                tuple(content["times"]),
                tuple(content["choices"]),
                content["guess"],
                content["last"],
                content["about"],
                tuple(content.get("ratios", ())),
                bool(content.get("null_start", False)),
                str(content.get("heads", "")),
            )
        except UsageError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"the schedule is damaged: {error}.") from error

    def save(self, file: str | Path) -> Path:
        """Write the schedule as JSON."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
        return write_atomically(file, text + "\n")

    @classmethod
    def load(cls, file: str | Path) -> SolverSchedule:
        """Read a schedule that `save` wrote.

        Raises:
            UsageError: the file cannot be read, or is not a schedule.
        """
        try:
            content = json.loads(Path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read a schedule from {file}: {error}.") from error
        try:
            return cls.from_dict(content)
        except UsageError as error:
            raise UsageError(f"{file}: {error}") from error


def _choices(contents: Sequence[Any]) -> Iterator[StepChoice]:
    """Yield the choices; what one of them refuses is told with its step."""
    for i, content in enumerate(contents, 1):
        try:
            yield StepChoice.of(content)
        except (TypeError, ValueError) as error:  # a UsageError is one of the latter
            raise UsageError(f"step {i}: {error}") from error


def _check_choice(choice: StepChoice, i: int, n: int) -> None:
    """Refuse a step that needs what does not exist."""
    if choice.start < -i:
        raise UsageError(
            f"step {i} starts {-choice.start} points back, and {i} have been visited by then."
        )
    if max(len(choice.nudges), len(choice.corrector_nudges) - 1) > i - 1:
        raise UsageError(
            f"step {i} nudges {max(len(choice.nudges), len(choice.corrector_nudges) - 1)} earlier "
            f"evaluations besides its start's, and there are {i - 1}."
        )
    if max(choice.counts, default=0) > i - 1:
        raise UsageError(
            f"step {i} of order {choice.order} needs {max(choice.counts)} earlier points besides "
            f"its start, and there are {i - 1}; lower its order or its points."
        )
    if i == n and choice.corrector != "none":
        raise UsageError(
            f"step {i} is the last, where a corrector would need an evaluation for itself; leave "
            "it out."
        )


@singledispatch
def _recipe(solver: Solver, n: int) -> Iterator[StepChoice]:
    """Yield the choices that a solver makes in n steps of a grid."""
    raise UsageError(
        f"{solver} is not a list of exponential steps; choose DDIM, DPMpp, DPM, UniPC or DEIS in λ."
    )


@_recipe.register
def _ddim(solver: DDIM, n: int) -> Iterator[StepChoice]:
    return (StepChoice(order=1) for _ in range(n))


@_recipe.register
def _dpmpp(solver: DPMpp, n: int) -> Iterator[StepChoice]:
    for i in range(n):
        order = lowered(solver.order, i, n, solver.final)
        yield StepChoice(order=order, scale=_scale(order, solver.expansion))


@_recipe.register
def _unipc(solver: UniPC, n: int) -> Iterator[StepChoice]:
    for i in range(n):
        order = lowered(solver.order, i, n, solver.final)
        corrector = "pseudo" if i < n - 1 else "none"
        scale: float | Scaling = "bh2" if order < 3 else 0.0
        yield StepChoice(_prediction(solver), order, scale=scale, corrector=corrector)


@_recipe.register
def _deis(solver: DEIS, n: int) -> Iterator[StepChoice]:
    if solver.variable != "lambda":
        raise UsageError(f"DEIS in {solver.variable} is not exponential; choose variable='lambda'.")
    for i in range(n):
        yield StepChoice("eps", order=min(solver.order, i + 1))


@_recipe.register
def _dpm(solver: DPM, n: int) -> Iterator[StepChoice]:
    for order in solver.orders(n):
        yield from _stages(solver, order)


def _stages(solver: DPM, order: int) -> Iterator[StepChoice]:
    """Yield the stages of a singlestep of this order as steps of their own."""
    view = _prediction(solver)
    for stage in range(1, order):
        yield StepChoice(view, stage, start=-stage)
    if order == 3 and solver.expansion == "midpoint":
        yield StepChoice(view, 2, start=-3)  # through the newer of the two stages alone
    else:
        yield StepChoice(view, order, start=-order, scale=_scale(order, solver.expansion))


@_recipe.register
def _unified(solver: Unified, n: int) -> Iterator[StepChoice]:
    for i in range(n):
        choice = solver.choice(i)
        yield choice if i < n - 1 else choice.uncorrected()


def _scale(order: int, expansion: str) -> float | Scaling:
    return "bh2" if order == 2 and expansion == "midpoint" else 0.0


def _prediction(solver: DPM | UniPC) -> Any:
    return solver.view

"""Formulas for what a network has learned: searched for, chosen, and given back to the equation.

    search      a population of trees, whose constants are fitted by Levenberg-Marquardt: the least
                loss of every length (pyoperon's multi-objective search)
    choose      the formula at which log loss falls most for every node that is added
    fine_tune   its constants, through the solver, on the data themselves
    rounded     to 0.01, simplified

Paper: Cranmer et al. 2020 (arXiv:2006.11287); Kidger 2022 (arXiv:2202.02435), Sec. 6.1; the search
is Burlacu, Kronberger & Kommenda 2020 (Operon).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pathline.core.errors import MissingExtra, UsageError
from pathline.core.progress import track
from pathline.learn.expression import Expression

__all__ = ["Candidate", "Formulas", "Search", "choose", "fine_tune", "refine", "search"]


@dataclass(frozen=True)
class Candidate:
    """A formula on the Pareto front.

    Args:
        expression: simplified.
        loss: mean of squares.
        score: by how much log loss falls for each node more than the one before it.
    """

    expression: Expression
    loss: float
    score: float

    @property
    def nodes(self) -> int:
        """Its complexity."""
        return self.expression.nodes


@dataclass(frozen=True)
class Search:
    """How formulas are searched for.

    Args:
        operators: of +, −, *, / and the functions of `expression.FUNCTIONS`.
        longest: nodes of a tree, at most.
        population: trees in a generation.
        evaluations: trees that are tried, in all.
        refinements: steps by which each new tree's constants are fitted.
        seed: of all choices.
    """

    operators: tuple[str, ...] = ("+", "-", "*", "/")
    longest: int = 13
    population: int = 500
    evaluations: int = 60_000
    refinements: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.operators:
            if name not in _SYMBOLS:
                raise UsageError(f"operator {name!r} is none of {', '.join(_SYMBOLS)}.")


_SYMBOLS = {"+": "add", "-": "sub", "*": "mul", "/": "div", "sin": "sin", "cos": "cos",
            "tan": "tan", "tanh": "tanh", "exp": "exp", "log": "log", "sqrt": "sqrt"}  # fmt: skip


def search(
    x: Tensor, y: Tensor, names: Sequence[str], how: Search | None = None
) -> tuple[Candidate, ...]:
    """Return the formulas that are the best of their length, the shortest first.

    Args:
        x: (n, variables).
        y: (n,), what is to be said.
        names: of the variables.
        how: what may be used, and how long is searched.

    Raises:
        MissingExtra: pyoperon is not installed.
        UsageError: numbers that are not finite, or shapes that do not fit.
    """
    how, names = how or Search(), tuple(names)
    x, y = x.detach().double().cpu(), y.detach().double().cpu()
    if x.ndim != 2 or x.shape != (len(y), len(names)) or y.ndim != 1:
        raise UsageError(
            f"{len(names)} variables and one value for each of n points are (n, {len(names)}) and "
            f"(n,); given were {tuple(x.shape)} and {tuple(y.shape)}."
        )
    if not bool(x.isfinite().all() and y.isfinite().all()):
        raise UsageError("points and values must be finite.")
    made = {text: Expression(text, names).simplified() for text in _found(x, y, names, how)}
    fitted = [refine(each, x, y) for each in made.values()]
    constant = Expression(repr(float(y.mean())), names)
    losses = [(each, _loss(each, x, y)) for each in [constant, *fitted]]
    return _front(losses, floor=1e-12 * float(y.var()))


def _found(x: Tensor, y: Tensor, names: Sequence[str], how: Search) -> list[str]:
    """Return the formulas that Operon finds, in our names."""
    try:
        from pyoperon.sklearn import SymbolicRegressor
    except ImportError as error:
        raise MissingExtra("pyoperon", "symbolic", "to search for formulas") from error
    machine: Any = SymbolicRegressor(
        allowed_symbols=",".join([*(_SYMBOLS[o] for o in how.operators), "constant", "variable"]),
        objectives=["r2", "length"],
        max_length=how.longest,
        max_depth=6,
        population_size=how.population,
        generations=10**6,
        max_evaluations=how.evaluations,
        optimizer_iterations=how.refinements,
        n_threads=1,
        random_state=how.seed,
    )
    machine.fit(x.numpy(), y.numpy())
    renamed = {f"X{i + 1}": f"_{i}_" for i in range(len(names))}
    texts = [machine.get_model_string(each["tree"], 12) for each in machine.pareto_front_]
    for old, new in renamed.items():
        texts = [_renamed(text, old, new) for text in texts]
    for i, name in enumerate(names):
        texts = [text.replace(f"_{i}_", name) for text in texts]
    return texts


def _renamed(text: str, old: str, new: str) -> str:
    import re

    return re.sub(rf"\b{old}\b", new, text)


def _front(losses: Sequence[tuple[Expression, float]], floor: float) -> tuple[Candidate, ...]:
    """Return those than which none shorter is as good, with scores."""
    front = list[Candidate]()
    for each, loss in sorted(losses, key=lambda pair: (pair[0].nodes, pair[1])):
        if not math.isfinite(loss):
            continue
        if front and (each.nodes == front[-1].nodes or loss >= front[-1].loss):
            continue
        score = 0.0
        if front:
            fall = math.log(max(front[-1].loss, floor)) - math.log(max(loss, floor))
            score = fall / (each.nodes - front[-1].nodes)
        front.append(Candidate(each, loss, score))
    return tuple(front)


def choose(front: Sequence[Candidate], slack: float = math.inf) -> Candidate:
    """Return the formula of the best score: the steepest fall of log loss for each added node.

    Args:
        front: from `search`.
        slack: how many times the least loss a formula may have. Where values come of a network,
            long formulas also fit its errors, and a small slack would leave none but these.
    """
    if not front:
        raise UsageError("there is no formula to choose from.")
    least = min(each.loss for each in front)
    good = [each for each in front if each.loss <= slack * least + 1e-24]
    return max(good, key=lambda each: each.score)


def refine(expression: Expression, x: Tensor, y: Tensor, steps: int = 50) -> Expression:
    """Return the formula with constants that fit best, by L-BFGS in float64; never worse ones.

    Args:
        x: (n, variables).
        y: (n,).
        steps: of L-BFGS, at most.
    """
    if not expression.constants:
        return expression
    x, y = x.double(), y.double()
    unit = y.var().clamp_min(1e-30)

    def loss(c: Tensor) -> Tensor:
        return (expression(x, c) - y).square().mean() / unit

    c = _least(loss, torch.tensor(expression.constants, dtype=torch.float64), steps)
    better = expression.with_constants(c.tolist())
    return better if _loss(better, x, y) <= _loss(expression, x, y) else expression


def _least(loss: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Tensor:
    """Return where a function of a few numbers is least, from a start."""
    c = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [c], max_iter=steps, tolerance_grad=1e-14, tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(c)
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(closure)  # pyright: ignore[reportArgumentType]
    return c.detach() if bool(c.isfinite().all()) else start


def _loss(expression: Expression, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((expression(x) - y).square().mean())


class Formulas(nn.Module):
    """The right-hand side of a differential equation made of formulas, one a component.

    Its constants are parameters: called with (x, t), it is integrated and trained like a network.

    Args:
        expressions: dx_i/dt, all of the same variables, the components of the state.
    """

    def __init__(self, expressions: Sequence[Expression]) -> None:
        super().__init__()
        names = {each.names for each in expressions}
        if len(names) != 1 or len(next(iter(names))) != len(expressions):
            raise UsageError("there is one formula for each component, of all of them.")
        self.expressions = tuple(expressions)
        self.constants = nn.ParameterList(
            torch.tensor(each.constants, dtype=torch.float64) for each in expressions
        )

    def forward(self, x: Tensor, t: Tensor | float) -> Tensor:
        del t
        pairs = zip(self.expressions, self.constants, strict=True)
        return torch.stack([each(x, c) for each, c in pairs], 1)

    def read(self) -> tuple[Expression, ...]:
        """Return the formulas with the constants as they are now."""
        pairs = zip(self.expressions, self.constants, strict=True)
        return tuple(each.with_constants(c.tolist()) for each, c in pairs)


def fine_tune(
    formulas: Formulas, loss: Callable[[Formulas], Tensor], *, rounds: int = 5, steps: int = 10
) -> Formulas:
    """Fit all constants together to a loss that goes through the solver, in place.

    Args:
        formulas: the right-hand side.
        loss: of it, a number with a gradient; lower is better.
        rounds: of L-BFGS, each with a fresh memory.
        steps: of a round.
    """
    for _ in track(range(rounds), "constants through the solver"):
        optimiser = torch.optim.LBFGS(
            list(formulas.parameters()), max_iter=steps, tolerance_grad=1e-12,
            tolerance_change=1e-15, line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure(optimiser: Any = optimiser) -> Tensor:
            optimiser.zero_grad()
            value = loss(formulas)
            value.backward()
            return value

        optimiser.step(closure)  # pyright: ignore[reportArgumentType]
    return formulas

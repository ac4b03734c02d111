"""Stochastic equations: time beside torchsde, and diffrax where it is installed.

Everybody gets as many steps as his strong error asks for: the distance at the end from the solution
along the very path that he has drawn, which geometric Brownian motion has in closed form and a
network along a path of many steps. Of each library the fastest of its methods counts, of torchsde
once with the path that `sdeint` makes and once with one that was made for a known step.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pathline.bench.report import Bar, Report, Row
from pathline.bench.timing import Run, interleaved
from pathline.core.brownian import Brownian
from pathline.core.errors import MissingExtra, PathlineError
from pathline.core.progress import track
from pathline.fields import SDE
from pathline.solvers import grids, solve

AT_MOST = 0.5
"""The bar: of torchsde's time."""

LADDER = (8, 16, 32, 64)
DRIFT, NOISE = 0.5, 0.5

ABOUT = (
    "What a batch of sample paths costs whose strong error is the same: processor time in "
    "milliseconds, one thread."
)

NOTES = (
    "Of each library the fastest of its methods is shown, with the steps that it took. Ours draws "
    "its noise in float64 by a counter, so a sample is the same in any batch; torchsde and diffrax "
    "draw in the state's precision.",
    "The gradient is that of the sum of squares at the end with respect to all weights: reversible "
    "Heun and its exact adjoint on both sides, with as many steps as that problem needs.",
    "torchsde.sdeint is the call as its documentation has it, which makes the path by itself; the "
    "other one is given a BrownianInterval that was made for the step. The bar is for both.",
)


@dataclass(frozen=True, eq=False)
class Problem:
    """An equation.

    Args:
        name: in the table.
        sde: as we have it; the diffusion is diagonal.
        module: as torchsde has it.
        x: the states at the start, (batch, d).
        error: how near everybody comes, in root mean square.
        methods: torchsde's names of the methods.
    """

    name: str
    sde: SDE
    module: Any
    x: Tensor
    error: float
    methods: Sequence[str]

    @property
    def is_learned(self) -> bool:
        """Whether it has weights."""
        return bool(list(self.module.parameters()))


class Contestant(NamedTuple):
    """Who takes part.

    Args:
        family: the library.
        name: the method.
        error: a number of steps → the strong error.
        run: a number of steps → nothing; what is timed.
    """

    family: str
    name: str
    error: Callable[[int], float]
    run: Callable[[int], object]


class _Motion(nn.Module):
    """Geometric Brownian motion, for torchsde."""

    noise_type, sde_type = "diagonal", "ito"

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        del t
        return DRIFT * y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        del t
        return NOISE * y


class _Network(nn.Module):
    """A neural SDE, of Stratonovich's kind."""

    noise_type, sde_type = "diagonal", "stratonovich"

    def __init__(self, d: int = 8, width: int = 32) -> None:
        super().__init__()
        self.drift = nn.Sequential(nn.Linear(d, width), nn.Tanh(), nn.Linear(width, d), nn.Tanh())
        self.scale = nn.Parameter(torch.linspace(0.2, 0.6, d))

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        del t
        return self.drift(y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        del t
        return self.scale * torch.sin(y) + 0.2


def _turned(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, t: function(t, x)


def problems() -> Iterator[Problem]:
    """Yield what is solved."""
    made = _Motion()
    sde = SDE(_turned(made.f), _turned(made.g), noise="diagonal", sde_type="ito")
    x = torch.ones(256, 8, dtype=torch.float64)
    yield Problem("geometric", sde, made, x, 2e-2, ("euler", "milstein", "srk"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = _Network().double()
        x = torch.randn(256, 8, dtype=torch.float64)
    sde = SDE(_turned(net.f), _turned(net.g), noise="diagonal", sde_type="stratonovich")
    methods = ("midpoint", "heun", "euler_heun", "reversible_heun")
    yield Problem("network", sde, net, x, 2e-2, methods)


OURS, CALL, JAX = "pathline", "torchsde.sdeint", "diffrax"
PEER = "torchsde with a path for the step"
NAMES = {"euler": "euler_maruyama"}
REFERENCE, PEER_REFERENCE = 512, 256


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).square().mean().sqrt())


def _exact(problem: Problem, w: Tensor) -> Tensor:
    return problem.x * torch.exp(DRIFT - 0.5 * NOISE**2 + NOISE * w)


@torch.no_grad()
def our_error(problem: Problem, method: str, n: int) -> float:
    """Return our strong error, along one path for all numbers of steps."""
    seeds, shape = tuple(range(len(problem.x))), tuple(problem.x.shape[1:])
    path = Brownian(0.0, 1.0, seeds, shape, depth=9, has_area=method == "srk")
    sde = problem.sde.driven(path)
    found = solve(sde, problem.x, solver=NAMES.get(method, method), grid=_grid(n)).x
    if problem.name == "geometric":
        return _error(found, _exact(problem, path(0.0, 1.0)))
    fine = solve(sde, problem.x, solver="heun", grid=_grid(REFERENCE)).x
    return _error(found, fine)


@torch.no_grad()
def our_run(problem: Problem, method: str, n: int) -> Tensor:
    """Draw our sample paths."""
    solver = NAMES.get(method, method)
    return solve(problem.sde, problem.x, solver=solver, grid=_grid(n), seed=0).x


def our_gradient(problem: Problem, n: int) -> Sequence[Tensor]:
    """Return our gradient by the reversible adjoint."""
    weights = list(problem.module.parameters())
    with torch.enable_grad():
        sol = solve(problem.sde, problem.x, solver="reversible_heun", grid=_grid(n), seed=0,
                    adjoint="reversible")  # fmt: skip
        return torch.autograd.grad(sol.x.square().sum(), weights)


def _grid(n: int) -> grids.Grid:
    return grids.uniform(n, start=0.0, end=1.0)


def _interval(problem: Problem, method: str, step: float | None) -> Any:
    torchsde: Any = import_module("torchsde")
    area = "space-time" if method == "srk" else "none"
    return torchsde.BrownianInterval(
        0.0, 1.0, size=tuple(problem.x.shape), dtype=problem.x.dtype, dt=step,
        levy_area_approximation=area, entropy=0,
    )  # fmt: skip


@torch.no_grad()
def their_error(problem: Problem, method: str, n: int) -> float:
    """Return torchsde's strong error along the path that it draws."""
    sdeint: Any = import_module("torchsde").sdeint
    ends = _ends(problem)
    if problem.name == "geometric":
        bm = _interval(problem, method, 1 / n)
        found = sdeint(problem.module, problem.x, ends, bm=bm, method=method, dt=1 / n)[-1]
        return _error(found, _exact(problem, bm(0.0, 1.0)))
    bm, fine = their_reference(problem)
    found = sdeint(problem.module, problem.x, ends, bm=bm, method=method, dt=1 / n)[-1]
    return _error(found, fine)


@lru_cache(maxsize=2)
@torch.no_grad()
def their_reference(problem: Problem) -> tuple[Any, Tensor]:
    """Return a path of torchsde's, and where many steps of Heun's method lead along it."""
    sdeint: Any = import_module("torchsde").sdeint
    step = 1 / PEER_REFERENCE
    bm = _interval(problem, "heun", step)
    end = sdeint(problem.module, problem.x, _ends(problem), bm=bm, method="heun", dt=step)[-1]
    return bm, end


@torch.no_grad()
def their_run(problem: Problem, method: str, told: bool, n: int) -> Tensor:
    """Draw torchsde's sample paths."""
    sdeint: Any = import_module("torchsde").sdeint
    bm = _interval(problem, method, 1 / n) if told else None
    return sdeint(problem.module, problem.x, _ends(problem), bm=bm, method=method, dt=1 / n)[-1]


def their_gradient(problem: Problem, n: int, told: bool = False) -> Sequence[Tensor]:
    """Return torchsde's gradient by its reversible adjoint."""
    adjoint: Any = import_module("torchsde").sdeint_adjoint
    weights = list(problem.module.parameters())
    bm = _interval(problem, "reversible_heun", 1 / n) if told else None
    with torch.enable_grad():
        end = adjoint(
            problem.module,
            problem.x,
            _ends(problem),
            bm=bm,
            dt=1 / n,
            method="reversible_heun",
            adjoint_method="adjoint_reversible_heun",
        )[-1]
        return torch.autograd.grad(end.square().sum(), weights)


def _ends(problem: Problem) -> Tensor:
    return torch.tensor([0.0, 1.0], dtype=problem.x.dtype)


def contestants(problem: Problem) -> Iterator[Contestant]:
    """Yield who takes part."""
    for method in problem.methods:
        error, run = partial(our_error, problem, method), partial(our_run, problem, method)
        yield Contestant(OURS, NAMES.get(method, method), error, run)
        error = partial(their_error, problem, method)
        yield Contestant(CALL, method, error, partial(their_run, problem, method, False))
        yield Contestant(PEER, method, error, partial(their_run, problem, method, True))
    if find_spec(JAX) is not None and problem.name == "geometric":
        from pathline.bench.sde_diffrax import METHODS, error_of, run_of

        for method in METHODS:
            yield Contestant(JAX, method, error_of(problem.x, method), run_of(problem.x, method))


def fitted(who: Contestant, bound: float) -> int | None:
    """Return the fewest steps of the ladder with which a contestant is near enough."""
    return next((n for n in LADDER if who.error(n) <= bound), None)


def sde(rounds: int = 3) -> Report:
    """Measure what sample paths and gradients cost, beside torchsde and diffrax.

    Args:
        rounds: how often everybody runs; the median of each one's times is reported.

    Raises:
        MissingExtra: torchsde is not installed.
    """
    if find_spec("torchsde") is None:
        raise MissingExtra("torchsde", "bench", "as the other side of bench sde")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    )
    rows, bars = list[Row](), list[Bar]()
    try:
        for problem in problems():
            table, ratios = _measured(problem, rounds)
            rows += table
            bars += ratios
    finally:
        torch.set_num_threads(threads)
    settings = {"batch": 256, "state": 8, "dtype": "float64", "threads": 1, "rounds": rounds,
                "strong error": 2e-2}  # fmt: skip
    return Report("sde", ABOUT, rows, bars, settings, NOTES)


def _measured(problem: Problem, rounds: int) -> tuple[list[Row], list[Bar]]:
    found: dict[str, tuple[Contestant, int]] = {}
    steps: dict[tuple[str, str], int | None] = {}
    for who in track(list(contestants(problem)), f"{problem.name}: steps"):
        key = (who.family.split()[0].split(".")[0], who.name)
        if key not in steps:
            steps[key] = fitted(who, problem.error)
        n = steps[key]
        if n is not None:
            found[f"{problem.name}: {who.family}, {who.name}, {n} steps"] = (who, n)
    families = {who.family for who, _ in found.values()}
    if not {OURS, CALL, PEER} <= families:
        raise PathlineError("nobody has come near the solution; the ladder is too short.")
    runs = {name: Run(partial(who.run, n)) for name, (who, n) in found.items()}
    if problem.is_learned:
        n = next(n for who, n in found.values() if "reversible" in who.name and who.family == OURS)
        told = partial(their_gradient, told=True)
        for family, gradient in ((OURS, our_gradient), (CALL, their_gradient), (PEER, told)):
            who = Contestant(family, "gradient", lambda _: 0.0, partial(gradient, problem))
            name = f"{problem.name}: {family}, gradient by reversible Heun, {n} steps"
            found[name], runs[name] = (who, n), Run(partial(gradient, problem, n))
    gc.collect()
    seconds = interleaved(runs, track(range(rounds), f"{problem.name}: time"), repeats=1)
    return _told(problem, found, seconds)


def _told(
    problem: Problem, found: dict[str, tuple[Contestant, int]], seconds: dict[str, float]
) -> tuple[list[Row], list[Bar]]:
    rows, bars = list[Row](), list[Bar]()
    kinds = ("paths", "gradient") if problem.is_learned else ("paths",)
    for kind in kinds:
        mine = {name: who for name, (who, _) in found.items()
                if (who.name == "gradient") == (kind == "gradient")}  # fmt: skip
        best = dict[str, str]()
        for name in sorted(mine, key=seconds.__getitem__):
            best.setdefault(mine[name].family, name)
        for family in (OURS, CALL, PEER, JAX):
            if family in best:
                rows.append(Row("ms", best[family], 1e3 * seconds[best[family]]))
        for family in (CALL, PEER):
            if family in best:
                ratio = seconds[best[OURS]] / seconds[best[family]]
                bars.append(Bar(f"{problem.name}: {kind}, ours / {family}", ratio, AT_MOST))
        if JAX in best:
            text = f"{problem.name}: {kind}, ours / diffrax's"
            bars.append(Bar(text, seconds[best[OURS]] / seconds[best[JAX]]))
    return rows, bars

"""Stochastic equations: time beside torchsde, and diffrax where it is installed.

Everybody gets as many steps as a strong error asks for: the root mean square distance at the end
from the solution along the very path that he has drawn, which geometric Brownian motion has in
closed form and a network along a path of many steps. A gradient's error is that of the gradient
with respect to each sample's own start. Of each library the fastest of its methods counts, of
torchsde once with the path that `sdeint` makes and once with one that was made for a known step.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
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

LEVELS = (2e-2, 2e-3, 5e-4)
"""Strong errors; a gradient's are relative to its own root mean square."""

LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
REFERENCE = 4096
DRIFT, NOISE = 0.5, 0.5

ABOUT = (
    "What a batch of sample paths costs whose strong error is the same: processor time in "
    "milliseconds, one thread."
)

NOTES = (
    "Of each library the fastest of its methods is shown, with the fewest steps of a ladder "
    f"({', '.join(map(str, LADDER))}) that come within the error. Ours draws its noise in float64 "
    "by a counter, so a sample is the same in any batch; torchsde and diffrax draw in the state's "
    "precision.",
    "A gradient is that of the sum of squares at the end with respect to the starts and all "
    "weights, through the steps or by reversible Heun's exact adjoint, whichever is faster; memory "
    "is not compared. Its error is that of the part for the starts, relative to its size.",
    "torchsde.sdeint is the call as its documentation has it, which makes the path by itself; the "
    "other one is given a BrownianInterval that was made for the step. The bar is for both. "
    "torchsde takes each equation as it is given; for its srk on the network's Itô form somebody "
    "has to derive the correction of the drift, and those times are told without a bar. Ours takes "
    "either form and converts by itself (`sde.stratonovich()`, in these times).",
)


@dataclass(frozen=True, eq=False)
class Problem:
    """An equation.

    Args:
        name: in the table.
        sde: as we have it; the diffusion is diagonal.
        module: as torchsde has it.
        x: the states at the start, (batch, d).
        ours, theirs: names of the methods.
        by_hand: the same process in Itô's form, for torchsde.
    """

    name: str
    sde: SDE
    module: Any
    x: Tensor
    ours: Sequence[str]
    theirs: Sequence[str]
    by_hand: Any = None

    @property
    def is_learned(self) -> bool:
        """Whether it has weights, and no closed form."""
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


class _ByHand(nn.Module):
    """The same process as an Itô equation, the correction worked out on paper."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, net: _Network) -> None:
        super().__init__()
        self.net = net

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net.f(t, y) + 0.5 * self.net.scale * torch.cos(y) * self.net.g(t, y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net.g(t, y)


def _turned(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, t: function(t, x)


def problems() -> Iterator[Problem]:
    """Yield what is solved."""
    made = _Motion()
    sde = SDE(_turned(made.f), _turned(made.g), noise="diagonal", sde_type="ito")
    x = torch.ones(256, 8, dtype=torch.float64)
    ours = ("euler_maruyama", "milstein", "srk", "slow_rk")
    yield Problem("geometric", sde, made, x, ours, ("euler", "milstein", "srk"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = _Network().double()
        x = torch.randn(256, 8, dtype=torch.float64)
    sde = SDE(_turned(net.f), _turned(net.g), noise="diagonal", sde_type="stratonovich")
    methods = ("midpoint", "heun", "euler_heun", "reversible_heun")
    yield Problem("network", sde, net, x, (*methods, "slow_rk"), methods, _ByHand(net))


OURS, CALL, HAND, JAX = "pathline", "torchsde.sdeint", "torchsde on Itô by hand", "diffrax"
PEER = "torchsde with a path for the step"


def rms(x: Tensor) -> float:
    """Return the root mean square."""
    return float(x.square().mean().sqrt())


def exact(problem: Problem, w: Tensor) -> Tensor:
    """Return where geometric Brownian motion ends, given W there."""
    return problem.x * torch.exp(DRIFT - 0.5 * NOISE**2 + NOISE * w)


def _form(problem: Problem, method: str) -> SDE:
    return problem.sde.stratonovich() if method == "slow_rk" else problem.sde


def _grid(n: int) -> grids.Grid:
    return grids.uniform(n, start=0.0, end=1.0)


@cache
def _path(problem: Problem) -> Brownian:
    return Brownian(0.0, 1.0, tuple(range(len(problem.x))), tuple(problem.x.shape[1:]), depth=12,
                    has_area=True)  # fmt: skip


@cache
@torch.no_grad()
def _reference(problem: Problem) -> Tensor:
    path = _path(problem)
    if not problem.is_learned:
        return exact(problem, path(0.0, 1.0))
    return solve(problem.sde.driven(path), problem.x, solver="slow_rk", grid=_grid(512)).x


@torch.no_grad()
def our_error(problem: Problem, method: str, n: int) -> float:
    """Return our strong error, along one path for all numbers of steps."""
    sde = _form(problem, method).driven(_path(problem))
    return rms(solve(sde, problem.x, solver=method, grid=_grid(n)).x - _reference(problem))


@torch.no_grad()
def our_run(problem: Problem, method: str, n: int) -> Tensor:
    """Draw our sample paths."""
    return solve(_form(problem, method), problem.x, solver=method, grid=_grid(n), seed=0).x


def our_gradient(
    problem: Problem, method: str, n: int, path: Brownian | None = None
) -> Sequence[Tensor]:
    """Return our gradient, by the reversible adjoint or through the steps."""
    adjoint = "reversible" if method == "reversible_heun" else "direct"
    x, sde = problem.x.clone().requires_grad_(), _form(problem, method)
    with torch.enable_grad():
        sol = solve(sde if path is None else sde.driven(path), x, solver=method, grid=_grid(n),
                    seed=0 if path is None else None, adjoint=adjoint)  # fmt: skip
        return torch.autograd.grad(sol.x.square().sum(), [x, *problem.module.parameters()])


@cache
def _gradient_reference(problem: Problem) -> Tensor:
    return our_gradient(problem, "slow_rk", 512, _path(problem))[0]


def our_gradient_error(problem: Problem, method: str, n: int) -> float:
    """Return the relative error of our gradient for the starts."""
    right = _gradient_reference(problem)
    return rms(our_gradient(problem, method, n, _path(problem))[0] - right) / rms(right)


def contestants(problem: Problem) -> Iterator[Contestant]:
    """Yield who draws sample paths."""
    from pathline.bench import sde_torchsde as peer

    for method in problem.ours:
        error, run = partial(our_error, problem, method), partial(our_run, problem, method)
        yield Contestant(OURS, method, error, run)
    yield from _theirs(problem, peer.error, peer.run)
    if find_spec(JAX) is not None and not problem.is_learned:
        from pathline.bench.sde_diffrax import METHODS, error_of, run_of

        for method in METHODS:
            yield Contestant(JAX, method, error_of(problem.x, method), run_of(problem.x, method))


def differentiators(problem: Problem) -> Iterator[Contestant]:
    """Yield who takes gradients."""
    from pathline.bench import sde_torchsde as peer

    for method in ("heun", "reversible_heun", "slow_rk"):
        error = partial(our_gradient_error, problem, method)
        yield Contestant(OURS, method, error, partial(our_gradient, problem, method))
    yield from _theirs(problem, peer.gradient_error, peer.gradient)


def _theirs(
    problem: Problem, error: Callable[..., float], run: Callable[..., object]
) -> Iterator[Contestant]:
    """Yield torchsde's methods, both ways of calling each; and its srk on the form by hand."""
    ways = [(family, method, told) for method in problem.theirs
            for family, told in ((CALL, False), (PEER, True))]  # fmt: skip
    if problem.by_hand is not None:
        ways.append((HAND, "srk", True))
    for family, method, told in ways:
        yield Contestant(
            family, method, partial(error, problem, method), partial(run, problem, method, told)
        )


def fitted(errors: Callable[[int], float], bound: float) -> int | None:
    """Return the fewest steps of the ladder with which a contestant is near enough."""
    return next((n for n in LADDER if errors(n) <= bound), None)


def sde(rounds: int = 5) -> Report:
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
            kinds = {"paths": contestants(problem)}
            if problem.is_learned:
                kinds["gradient"] = differentiators(problem)
            for kind, who in kinds.items():
                table, ratios = _measured(f"{problem.name}, {kind}", list(who), rounds)
                rows += table
                bars += ratios
    finally:
        torch.set_num_threads(threads)
    settings = {"batch": 256, "state": 8, "dtype": "float64", "threads": 1, "rounds": rounds,
                "strong errors": ", ".join(f"{level:g}" for level in LEVELS)}  # fmt: skip
    return Report("sde", ABOUT, rows, bars, settings, NOTES)


def _measured(
    name: str, everybody: Sequence[Contestant], rounds: int
) -> tuple[list[Row], list[Bar]]:
    rows, bars = list[Row](), list[Bar]()
    errors = {who: cache(who.error) for who in everybody}
    for level in LEVELS:
        steps = dict[Contestant, int]()
        for who in track(everybody, f"{name}: steps for {level:g}"):
            n = fitted(errors[who], level)
            if n is not None:
                steps[who] = n
        if not {OURS, CALL, PEER} <= {who.family for who in steps}:
            raise PathlineError("nobody has come near the solution; the ladder is too short.")
        gc.collect()
        runs = {who: Run(partial(who.run, n)) for who, n in steps.items()}
        seconds = interleaved(runs, track(range(rounds), f"{name}: time to {level:g}"), repeats=1)
        table, ratios = _told(f"{name} to {level:g}", steps, seconds)
        rows += table
        bars += ratios
    return rows, bars


def _told(
    name: str, steps: dict[Contestant, int], seconds: dict[Contestant, float]
) -> tuple[list[Row], list[Bar]]:
    best = dict[str, Contestant]()
    for who in sorted(steps, key=seconds.__getitem__):
        best.setdefault(who.family, who)
    rows, bars = list[Row](), list[Bar]()
    for family in (OURS, CALL, PEER, HAND, JAX):
        who = best.get(family)
        if who is None:
            continue
        by = f"{name}: {family}, {who.name}, {steps[who]} steps"
        rows.append(Row("ms", by, 1e3 * seconds[who]))
        if family != OURS:
            ratio = seconds[best[OURS]] / seconds[who]
            limit = AT_MOST if family in (CALL, PEER) else None
            bars.append(Bar(f"{name}: ours / {family}", ratio, limit))
    return rows, bars

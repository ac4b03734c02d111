"""Adaptive solves of many samples: time to one accuracy, beside torchdiffeq, torchode and diffrax.

Two problems: a batch of van der Pol oscillators, and a neural ODE. Everybody solves at tolerances a
quarter of a decade apart, his error is measured against DOP853 at 1e-11, and the time of the
loosest tolerance whose root mean square error is within the target counts. Ours take Tsitouras' and
Dormand and Prince's pair; so does torchode, torchdiffeq its default, diffrax Tsitouras'.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from importlib import metadata
from importlib.util import find_spec
from statistics import median
from time import process_time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathline.bench.peers import Absent, installed
from pathline.bench.report import Bar, Report, Row
from pathline.bench.timing import Run, interleaved
from pathline.core.progress import track
from pathline.solvers import AdaptiveRK, solve
from pathline.solvers.executors import Compiled

TARGET = 1e-5
"""The root mean square error that everybody comes to."""

TOLERANCES = tuple(10.0 ** (-k / 4) for k in range(12, 36))
ABOUT = (
    "Processor time in milliseconds of a batched adaptive solve whose root mean square error is at "
    "most 1e-5, one thread."
)
NOTES = (
    "Everybody has the loosest tolerance, of 4 a decade, that comes to this error. diffrax is JAX, "
    "compiled before it is timed, and vectorised over samples by vmap; XLA runs on threads of its "
    "own, so its time is that of the whole process, and everybody else's that of one thread.",
    "compiled: `executor='compile'`, after the first solve.",
)


class Problem(NamedTuple):
    """What is solved: f(x) of a batch, in torch, and in JAX of one sample.

    Args:
        name: in the table.
        x: (batch, *state).
        end: from 0 to this time.
        torch: f(x) → dx/dt.
        jax: the same of one sample, given jax.numpy.
    """

    name: str
    x: Tensor
    end: float
    torch: Callable[[Tensor], Tensor]
    jax: Callable[[Any], Callable[[Any], Any]]


def problems() -> list[Problem]:
    """Return both problems."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(256, 2, dtype=torch.float64, generator=draw) * 2
    mu = 5.0

    def oscillate(x: Tensor) -> Tensor:
        a, b = x[:, 0], x[:, 1]
        return torch.stack((b, mu * (1 - a * a) * b - a), 1)

    def oscillate_one(jnp: Any) -> Callable[[Any], Any]:
        return lambda y: jnp.stack((y[1], mu * (1 - y[0] * y[0]) * y[1] - y[0]))

    first = torch.randn(64, 32, dtype=torch.float64, generator=draw) / 32**0.5
    last = torch.randn(32, 64, dtype=torch.float64, generator=draw) / 64**0.5 * 2

    def network(x: Tensor) -> Tensor:
        return torch.tanh(x @ first.T) @ last.T

    def network_one(jnp: Any) -> Callable[[Any], Any]:
        a, b = jnp.asarray(first.numpy()), jnp.asarray(last.numpy())
        return lambda y: b @ jnp.tanh(a @ y)

    states = torch.randn(128, 32, dtype=torch.float64, generator=draw)
    return [
        Problem("van der Pol", x, 10.0, oscillate, oscillate_one),
        Problem("neural ODE", states, 5.0, network, network_one),
    ]


Solve = Callable[[float], Callable[[], Tensor]]
"""From a tolerance to what solves, and returns the states at the end."""


def ours(problem: Problem, method: str, executor: Any = "eager") -> Solve:
    """Return our solve."""

    def at(tolerance: float) -> Callable[[], Tensor]:
        solver = AdaptiveRK(tolerance, tolerance, method=method)
        field = problem.torch

        def function(x: Tensor, t: Tensor) -> Tensor:
            del t
            return field(x)

        ends = [0.0, problem.end]
        return lambda: solve(function, problem.x, solver=solver, grid=ends, executor=executor).x

    return at


def torchdiffeq(problem: Problem) -> Solve:
    """Return torchdiffeq's solve."""
    odeint = installed("torchdiffeq").odeint
    ends = torch.tensor([0.0, problem.end], dtype=torch.float64)

    def at(tolerance: float) -> Callable[[], Tensor]:
        return lambda: odeint(lambda t, y: problem.torch(y), problem.x, ends, rtol=tolerance,
                              atol=tolerance)[-1]  # fmt: skip

    return at


def torchode(problem: Problem, method: str) -> Solve:
    """Return torchode's solve, with the controller that its documentation shows."""
    to = installed("torchode")
    n = len(problem.x)
    term = to.ODETerm(lambda t, y: problem.torch(y))
    rule = getattr(to, method)(term=term)
    zero = torch.zeros(n, dtype=torch.float64)

    def at(tolerance: float) -> Callable[[], Tensor]:
        control = to.IntegralController(atol=tolerance, rtol=tolerance, term=term)
        solver = to.AutoDiffAdjoint(rule, control)
        start = to.InitialValueProblem(y0=problem.x, t_start=zero, t_end=zero + problem.end)
        return lambda: solver.solve(start).ys[:, -1]

    return at


def diffrax(problem: Problem) -> Solve:
    """Return diffrax' solve, a sample each by vmap, compiled."""
    dfx, jax = installed("diffrax"), importlib.import_module("jax")
    jax.config.update("jax_enable_x64", True)
    field = problem.jax(jax.numpy)
    term, start = dfx.ODETerm(lambda t, y, _: field(y)), jax.numpy.asarray(problem.x.numpy())

    def at(tolerance: float) -> Callable[[], Tensor]:
        def one(y: Any) -> Any:
            control = dfx.PIDController(rtol=tolerance, atol=tolerance)
            return dfx.diffeqsolve(term, dfx.Tsit5(), 0.0, problem.end, None, y, max_steps=100_000,
                                   stepsize_controller=control).ys[-1]  # fmt: skip

        run = jax.jit(jax.vmap(one))

        def call() -> Tensor:
            made = run(start).block_until_ready()
            return torch.from_numpy(importlib.import_module("numpy").array(made))

        return call

    return at


def contestants(problem: Problem, compiled: bool) -> dict[str, Callable[[], Solve]]:
    """Return who takes part."""
    mine: dict[str, Callable[[], Solve]] = {
        "pathline tsit5": lambda: ours(problem, "tsit5"),
        "pathline dopri5": lambda: ours(problem, "dopri5"),
    }
    if compiled:
        mine["pathline tsit5, compiled"] = lambda: ours(problem, "tsit5", Compiled())
    return {
        **mine,
        "torchdiffeq dopri5": lambda: torchdiffeq(problem),
        "torchode tsit5": lambda: torchode(problem, "Tsit5"),
        "torchode dopri5": lambda: torchode(problem, "Dopri5"),
        "diffrax tsit5": lambda: diffrax(problem),
    }


def ode(rounds: int = 5, compiled: bool = True) -> Report:
    """Time batched adaptive solves at one measured accuracy, beside other libraries.

    Args:
        rounds: how often everybody runs; the median counts.
        compiled: whether our compiled path takes part (its first solve takes a while).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows, bars = list[Row](), list[Bar]()
    try:
        with torch.no_grad():
            for problem in problems():
                times = _measured(problem, rounds, compiled, rows)
                bars += _bars(problem.name, times)
    finally:
        torch.set_num_threads(threads)
    settings = {"error": TARGET, "dtype": "float64", "threads": 1, "rounds": rounds,
                "van der Pol": "256 samples, μ = 5, t ≤ 10",
                "neural ODE": "128 samples, 32-64-32 tanh, t ≤ 5",
                "peers": _versions()}  # fmt: skip
    return Report("ode", ABOUT, rows, bars, settings, NOTES)


def _versions() -> str:
    """Return which peers are installed, with their versions."""
    names = "torchdiffeq", "torchode", "diffrax", "jax"
    known = {name: find_spec(name) for name in names}
    return ", ".join(f"{name} {metadata.version(name)}" for name, spec in known.items() if spec)


def _measured(problem: Problem, rounds: int, compiled: bool, rows: list[Row]) -> dict[str, float]:
    """Time everybody on a problem, and write down the rows."""
    exact = ours(problem, "dop853")(1e-11)()
    runs: dict[str, Run] = {}
    for name, make in contestants(problem, compiled).items():
        try:
            tolerance = _fitted(make(), exact)
        except Absent as why:
            rows.append(Row(problem.name, name, None, str(why)))
            continue
        if tolerance is None:
            rows.append(Row(problem.name, name, None, f"comes to no error of {TARGET:g}"))
        else:
            runs[name] = Run(make()(tolerance))
    elsewhere = {name: runs.pop(name) for name in list(runs) if name.startswith("diffrax")}
    clock = track(range(rounds), f"ode, {problem.name}")
    times = {name: 1e3 * t for name, t in interleaved(runs, clock, repeats=1).items()}
    times |= {name: 1e3 * _process_time(run, rounds) for name, run in elsewhere.items()}
    rows += [Row(problem.name, name, time) for name, time in times.items()]
    return times


def _process_time(run: Run, rounds: int) -> float:
    """Return the processor time of all threads, the median of some rounds after a first one."""
    run.call()
    times: list[float] = []
    for _ in range(rounds):
        start = process_time()
        run.call()
        times.append(process_time() - start)
    return median(times)


def _fitted(solver: Solve, exact: Tensor) -> float | None:
    """Return the loosest tolerance whose error is within the target, by halving."""

    def suits(index: int) -> bool:
        error = (solver(TOLERANCES[index])() - exact).square().mean().sqrt()
        return float(error) <= TARGET

    low, high = 0, len(TOLERANCES) - 1
    if not suits(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if suits(middle) else (middle + 1, high)
    return TOLERANCES[high]


def _bars(name: str, times: Mapping[str, float]) -> list[Bar]:
    """Hold our faster eager pair against everybody's faster one."""

    def best(prefix: str) -> float | None:
        found = [t for who, t in times.items() if who.startswith(prefix) and "compiled" not in who]
        return min(found, default=None)

    mine = best("pathline")
    assert mine is not None
    limits = {"torchdiffeq": 1 / 2, "torchode": 1 / 1.3, "diffrax": None}
    return [
        Bar(f"{name}: pathline / {peer}", mine / theirs, limit)
        for peer, limit in limits.items()
        if (theirs := best(peer)) is not None
    ]

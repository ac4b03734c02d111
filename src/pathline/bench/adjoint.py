"""Gradients through a solve: time and memory of every adjoint, beside torchdiffeq's.

One field, one loss, one reference. Everybody gets as many steps as his gradient (in the noise and
in the weights) needs to come within the same error of the flow's own, and is timed there: that is
what a step, a solver and an adjoint are worth together. torchdiffeq gets the raw form in t and the
plain integral in σ/α, its fixed-grid RK4 on the grid that ours has, and its default, Dormand-Prince
at whatever tolerance does; the best of them counts.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pathline.bench.report import Bar, Report, Row
from pathline.bench.timing import Run, interleaved
from pathline.core import noise
from pathline.core.errors import MissingExtra, PathlineError
from pathline.core.progress import track
from pathline.fields import Denoiser, Field, Mixture, change
from pathline.paths import VPLinear, bshape
from pathline.solvers import grids, solve
from pathline.solvers.adjoints import Adjoint, Checkpoint, Continuous
from pathline.solvers.adjoints.meter import peak_bytes

PATH = VPLinear()
ERROR = 1e-3
"""How near everybody's gradient comes to the flow's, relative."""

TOGETHER = 4
"""Steps that our checkpointing takes again at a time."""

AT_MOST = 0.5
"""The bar: of the time of torchdiffeq's best adjoint."""

LADDER = (6, 7, 8, 9, 10, 11, 12, 13, 15, 17, 20, 24, 28, 34, 40, 48, 57, 68, 80, 95, 113, 134, 160)
TOLERANCES = tuple(10.0 ** (-k / 2) for k in range(4, 20))
REFERENCE = 1000

ABOUT = (
    "What a gradient costs that is within 1e-3 of the flow's: processor time in milliseconds, the "
    "most bytes of tensors alive at one time, evaluations on both ways."
)


class Problem(NamedTuple):
    """A field, where it starts, and what asks for gradients.

    Args:
        name: in the table.
        field: on `PATH`, in float64.
        x: (batch, *state).
        weights: its parameters.
    """

    name: str
    field: Field
    x: Tensor
    weights: tuple[Tensor, ...]


class Contestant(NamedTuple):
    """Who takes part.

    Args:
        name: in the table.
        gradients: a number of steps, or a tolerance → the gradients, and evaluations made.
        ladder: of these, the cheapest first.
    """

    name: str
    gradients: Callable[[Any], tuple[list[Tensor], int]]
    ladder: Sequence[Any]


def problems() -> Iterator[Problem]:
    """Yield what is differentiated: an exact denoiser, and a network that was trained on it."""
    means = torch.tensor([[-0.5, 0.3], [0.6, -0.2], [0.1, 0.8]], dtype=torch.float64)
    stds = torch.full((3, 2), 0.15, dtype=torch.float64)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    law = Mixture(PATH, means.requires_grad_(), stds, weights)
    x = noise.normal(range(64), (2,), dtype=torch.float64)
    yield Problem("mixture", law, x, (means,))
    net = _trained(Mixture(PATH, means.detach(), stds, weights))
    model = Denoiser(net, PATH, "eps", shape=(2,))
    yield Problem("network", model, x, tuple(net.parameters()))


class _Net(nn.Module):
    """ε̂ of a state and its time."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        layers = [nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        told = torch.stack((t, (6 * t).sin()), 1).to(x)
        return self.layers(torch.cat((x, told), 1))


def _trained(law: Mixture, updates: int = 600) -> _Net:
    """Return a network that was fitted to the exact ε̂ for a few seconds."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        net = _Net().double()
        optimizer = torch.optim.Adam(net.parameters(), 2e-3)
        for i in track(range(updates), "training the network"):
            t = torch.rand(256, dtype=torch.float64).clamp(min=1e-3)
            x = PATH.noised(
                law.draw(range(i * 256, i * 256 + 256)), torch.randn(256, 2).double(), t
            )
            loss = (net(x, t) - law(x, t).eps).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net


def loss(x: Tensor) -> Tensor:
    """Return what is differentiated, ()."""
    return (x - 0.3).square().sum() / 2


def ours(problem: Problem, solver: str, adjoint: Adjoint | str, n: int) -> tuple[list[Tensor], int]:
    """Return our gradients with n steps, and the evaluations that were made."""
    x = problem.x.clone().requires_grad_()
    with torch.enable_grad():
        sol = solve(problem.field, x, solver=solver, grid=grids.log_snr(n), adjoint=adjoint)
        found = torch.autograd.grad(loss(sol.x), [x, *problem.weights])
    return list(found), sol.stats.nfe + sol.backward.nfe


class _Raw(nn.Module):
    """The field as torchdiffeq is told it: dx/dt."""

    form = "velocity"

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem, self.nfe = problem, 0
        self.means = nn.ParameterList([w for w in problem.weights if isinstance(w, nn.Parameter)])

    def time(self, u: Tensor) -> Tensor:
        return u

    def scale(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def clock(self, t: Tensor) -> Tensor:
        return t

    def forward(self, u: Tensor, w: Tensor) -> Tensor:
        self.nfe += 1
        t, field = self.time(u.detach()), self.problem.field
        x = bshape(self.scale(t), w) * w
        p, q = change(PATH, field.view, self.form, t)  # type: ignore[arg-type]
        return p * x + q * field.evaluate(x, t, {})


class _Rho(_Raw):
    """And as a plain integral: dy/dρ = ε̂."""

    form = "eps"

    def time(self, u: Tensor) -> Tensor:
        return PATH.time_of_log_snr(-u.log())

    def scale(self, t: Tensor) -> Tensor:
        return PATH.alpha(t)

    def clock(self, t: Tensor) -> Tensor:
        return PATH.sigma(t) / PATH.alpha(t)


def theirs(problem: Problem, kind: type[_Raw], method: str, how: float) -> tuple[list[Tensor], int]:
    """Return torchdiffeq's gradients by its adjoint; `how` is a number of steps or a tolerance."""
    odeint_adjoint: Any = import_module("torchdiffeq").odeint_adjoint

    func, x = kind(problem), problem.x.clone().requires_grad_()
    times = torch.tensor(grids.log_snr(int(how) if method == "rk4" else 2).times(PATH))
    nodes = func.clock(times.double())
    nodes = nodes if method == "rk4" else nodes[[0, -1]]
    tolerances = {} if method == "rk4" else {"rtol": how, "atol": how}
    scale = func.scale(times.double())
    with torch.enable_grad():
        w = odeint_adjoint(func, x / scale[0], nodes, method=method,
                           adjoint_params=problem.weights, **tolerances)  # fmt: skip
        end: Tensor = w[-1] * scale[-1]  # type: ignore[index]
        found = torch.autograd.grad(loss(end), [x, *problem.weights])
    return list(found), func.nfe


DIRECT, CHECKPOINT, CONTINUOUS = "pathline, direct", "pathline, checkpoint", "pathline, continuous"
PEER = "torchdiffeq, adjoint"
SOLVERS = ("rk4", "dpmpp_3m", "unipc_3", "deis_rho", "kutta3")


def contestants(problem: Problem) -> Iterator[tuple[str, Contestant]]:
    """Yield who takes part, by the family of whom the best counts."""
    adjoints = ((DIRECT, "direct"), (CHECKPOINT, Checkpoint(together=TOGETHER)))
    for family, adjoint in adjoints:
        for solver in SOLVERS:
            run = partial(ours, problem, solver, adjoint)
            yield family, Contestant(f"{family}, {solver}", run, LADDER)
    for form in ("eps", "velocity"):
        run = partial(ours, problem, "rk4", Continuous("rk4", form, probe=0))  # type: ignore[arg-type]
        yield CONTINUOUS, Contestant(f"{CONTINUOUS}, rk4, {form}", run, LADDER)
    for kind in (_Rho, _Raw):
        for method, ladder in (("rk4", LADDER), ("dopri5", TOLERANCES)):
            run = partial(theirs, problem, kind, method)
            yield PEER, Contestant(f"{PEER}, {method}, {kind.form}", run, ladder)


class Fit(NamedTuple):
    """How much a contestant needs, and what comes of it."""

    who: Contestant
    how: Any
    error: float
    nfe: int


def fitted(who: Contestant, exact: Sequence[Tensor]) -> Fit | None:
    """Return the first of the ladder from which on the error is kept; None if none does."""
    before: Fit | None = None
    for how in who.ladder:
        try:
            found, nfe = who.gradients(how)
        except AssertionError:  # torchdiffeq's, where no step is small enough
            before = None
            continue
        error = max(
            float((a - b).norm() / b.norm())
            for a, b in ((found[0], exact[0]), (_flat(found[1:]), _flat(exact[1:])))
        )
        if error > ERROR:
            before = None
            continue
        if before is not None:
            return before
        before = Fit(who, how, error, nfe)
    return before


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def adjoint(rounds: int = 7) -> Report:
    """Measure what a gradient costs by every adjoint, beside torchdiffeq's.

    Args:
        rounds: how often everybody runs; the median of each one's times is reported.

    Raises:
        MissingExtra: torchdiffeq is not installed.
    """
    if find_spec("torchdiffeq") is None:
        raise MissingExtra("torchdiffeq", "bench", "as the other side of bench adjoint")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows, bars = list[Row](), list[Bar]()
    try:
        for problem in problems():
            table, ratios = _measured(problem, rounds)
            rows += table
            bars += ratios
    finally:
        torch.set_num_threads(threads)
    settings = {"error": ERROR, "samples": 64, "dtype": "float64", "threads": 1, "rounds": rounds,
                "reference": f"rk4, {REFERENCE} steps, checkpointed"}  # fmt: skip
    return Report("adjoint", ABOUT, rows, bars, settings, NOTES)


NOTES = (
    "Of each family the fastest is shown, with the solver, the form and the steps or the tolerance "
    "that it took. Ours without the probe that compares directions.",
    "Bytes are those of tensors that operations have returned: states, slopes and activations on "
    "both sides, and not what an operation allocates inside itself.",
)


def _measured(problem: Problem, rounds: int) -> tuple[list[Row], list[Bar]]:
    exact, _ = ours(problem, "rk4", Checkpoint(memory=64), REFERENCE)
    fits: dict[str, list[Fit]] = {}
    who = list(contestants(problem))
    for family, contestant in track(who, f"{problem.name}: steps"):
        fit = fitted(contestant, exact)
        if fit is not None:
            fits.setdefault(family, []).append(fit)
    if PEER not in fits or CHECKPOINT not in fits:
        raise PathlineError("nobody has come near the reference; the ladder is too short.")
    runs = {fit.who.name: Run(partial(fit.who.gradients, fit.how)) for each in fits.values()
            for fit in each}  # fmt: skip
    gc.collect()
    seconds = interleaved(runs, track(range(rounds), f"{problem.name}: time"), repeats=1)
    best = {family: min(each, key=lambda fit: seconds[fit.who.name])
            for family, each in fits.items()}  # fmt: skip
    rows = [row for fit in best.values() for row in _rows(problem, fit, seconds)]
    times = {family: seconds[fit.who.name] for family, fit in best.items()}
    return rows, list(_bars(problem, times))


def _rows(problem: Problem, fit: Fit, seconds: Mapping[str, float]) -> Iterator[Row]:
    how = f"{fit.how} steps" if isinstance(fit.how, int) else f"tolerance {fit.how:.1g}"
    by = f"{problem.name}: {fit.who.name}, {how}"
    kept = peak_bytes(partial(fit.who.gradients, fit.how))
    yield Row("ms", by, 1e3 * seconds[fit.who.name])
    yield Row("kB", by, kept / 1e3)
    yield Row("evaluations", by, float(fit.nfe))
    yield Row("error, millionths", by, 1e6 * fit.error)


def _bars(problem: Problem, times: Mapping[str, float]) -> Iterator[Bar]:
    theirs = times[PEER]
    bounded = min(t for family, t in times.items() if family in (CHECKPOINT, CONTINUOUS))
    yield Bar(f"{problem.name}: our fastest adjoint / torchdiffeq's", bounded / theirs, AT_MOST)
    for family, t in times.items():
        if family != PEER:
            yield Bar(f"{problem.name}: {family} / torchdiffeq's", t / theirs)

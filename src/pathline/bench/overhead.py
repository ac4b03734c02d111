"""What a step costs outside the network, beside the bare arithmetic and other libraries.

The network is a function that returns a fixed tensor at once, so that all the time is overhead.
Everybody gets the same state, as many steps, and does what its users do. Ours is a whole
`pathline.solve`, with its checks, status and receipt; its plan comes from the cache, as in any
program that solves twice, and in a second row it is compiled anew each time. diffusers is its
`step` in a loop, without and with `set_timesteps`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathline.adapters import schedulers
from pathline.bench import bare
from pathline.bench.peers import Absent, Case, Peer, azula, diffusers_steps, k_diffusion
from pathline.bench.report import Bar, Report, Row
from pathline.bench.timing import Run, interleaved
from pathline.core.errors import UsageError
from pathline.core.progress import track
from pathline.fields import Denoiser, View
from pathline.paths import CondOT, GaussianPath
from pathline.solvers import DDIM, DPMpp, Euler, Grid, Heun, Plan, Solver, grids, solve
from pathline.steer import CFG

SHAPE = 16, 3, 32, 32
WEIGHT = 4.0

BARE, OURS, COMPILING = "bare arithmetic", "pathline", "pathline, compiling"
DIFFUSERS, PREPARING = "diffusers", "diffusers, set_timesteps"
GUIDED = ", guided"

TO_BARE, TO_DIFFUSERS = 2.0, 0.2
"""The bars: at most twice the bare arithmetic, at most a fifth of a scheduler of diffusers."""

HELD_TO_DIFFUSERS = "DDIM", "++2M", "++3M", "Heun"
"""Where the second bar holds; `NOTES` says why not elsewhere."""

ABOUT = (
    "Microseconds a step outside the network, by the thread's own clock. "
    "A step of Heun has two evaluations."
)
NOTES = (
    "The flow Euler scheduler of diffusers is a single line: a fifth of it would be less than the "
    "bare arithmetic. Guidance is no scheduler's and costs everybody much the same. Both ratios "
    "are told, and held to nothing.",
    "DDIM is what azula and k-diffusion call Euler. k-diffusion draws noise at every step of its "
    "Euler and Heun, and multiplies it by nothing.",
)

TABLE = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "num_train_timesteps": 1000,
    "timestep_spacing": "trailing",
}


class Method(NamedTuple):
    """A method, on a problem that the libraries share.

    Args:
        solver: ours.
        path: of the model.
        view: what the network says.
        grid: n → the grid of n steps.
        bare: the lean loop, made from the compiled plan.
        scheduler: of diffusers, by name, with its arguments.
        peers: others who have the method.
    """

    solver: Solver
    path: GaussianPath
    view: View
    grid: Callable[[int], Grid]
    bare: Callable[[Plan, Case], bare.Loop]
    scheduler: tuple[str, dict[str, Any]]
    peers: Mapping[str, Peer]


def methods() -> dict[str, Method]:
    """Return what is measured, by name."""
    path = schedulers.training(schedulers.read(TABLE)).path

    def trailing(n: int) -> Grid:
        return schedulers.grid(TABLE, n)

    def straight(n: int) -> Grid:
        return grids.uniform(n, start=1.0, end=0.0)

    def multistep(order: int) -> Method:
        solver = DPMpp(order=order, final="full")
        config = {"solver_order": order, "timestep_spacing": "trailing"}
        scheduler = "DPMSolverMultistepScheduler", config
        peers = {"azula": azula("xEABSampler", order=order)}
        if order == 2:
            peers["k-diffusion"] = k_diffusion("sample_dpmpp_2m")
        return Method(solver, path, "eps", trailing, bare.multistep, scheduler, peers)

    ddim = "DDIMScheduler", {"timestep_spacing": "trailing", "clip_sample": False}
    euler, heun = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"
    first = {"azula": azula("EulerSampler"), "k-diffusion": k_diffusion("sample_euler")}
    second = {"azula": azula("HeunSampler"), "k-diffusion": k_diffusion("sample_heun")}
    flow = CondOT()
    return {
        "DDIM": Method(DDIM(), path, "eps", trailing, bare.ddim, ddim, first),
        "++2M": multistep(2),
        "++3M": multistep(3),
        "Euler": Method(Euler(), flow, "velocity", straight, bare.euler, (euler, {}), {}),
        "Heun": Method(Heun(), flow, "velocity", straight, bare.heun, (heun, {}), second),
    }


def ours(method: Method, case: Case, *, compiling: bool = False) -> Run:
    """Return a whole `pathline.solve`; if `compiling`, on a grid that it has never seen."""
    network, guide = case.network, None
    cond: dict[str, Any] = {}
    if case.weight is not None:
        guide, cond = CFG(case.weight), {"context": torch.ones(len(case.x), 1)}
    model = Denoiser(
        lambda x, t, context=None: network(x),
        method.path,
        view=method.view,
        label=1000.0,
        null={"context": torch.zeros(1, 1)},
    )
    made, fresh = method.grid(case.steps), count(1)
    first, *others = made.times(method.path)
    if made.last == "denoise":
        others.pop()

    def run() -> Tensor:
        grid = made
        if compiling:
            grid = grids.times([first - next(fresh) * 1e-12, *others], made.last)
        return solve(model, case.x, solver=method.solver, grid=grid, guide=guide, **cond).x

    return Run(run)


def contestants(method: Method, case: Case) -> Iterator[tuple[str, Run | Absent]]:
    """Yield who takes part, with what to run, or why not."""
    plan = method.solver.plan(method.path, method.grid(case.steps))
    name, config = method.scheduler
    suffix = "" if case.weight is None else GUIDED
    yield BARE + suffix, Run(method.bare(plan, case))
    yield OURS + suffix, ours(method, case)
    peers = {DIFFUSERS + suffix: diffusers_steps(name, **config)}
    if case.weight is None:
        yield COMPILING, ours(method, case, compiling=True)
        peers[PREPARING] = diffusers_steps(name, prepares=True, **config)
        peers |= method.peers
    for by, build in peers.items():
        try:
            yield by, build(case)
        except Absent as reason:
            yield by, reason


def overhead(steps: int = 50, rounds: int = 25) -> Report:
    """Measure the microseconds that a step costs outside the network.

    Args:
        steps: steps a solve, at least 3; 50 are what the pipelines of diffusers take by default.
        rounds: how often everybody runs; the median over the rounds is reported.

    Raises:
        UsageError: too few steps or rounds.
    """
    if steps < 3 or rounds < 1:
        raise UsageError(f"at least 3 steps and 1 round are needed, not {steps} and {rounds}.")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            runs, rows = _everybody(steps)
            seconds = interleaved(runs, track(range(rounds), "overhead"))
    finally:
        torch.set_num_threads(threads)
    besides = (seconds.pop(ONCE_OURS) - seconds.pop(ONCE_BARE)) * 1e6
    costs = {key: s * 1e6 / steps for key, s in seconds.items()}
    rows += [Row(what, by, cost) for (what, by), cost in costs.items()]
    settings = {"state": "×".join(map(str, SHAPE)), "dtype": "float32", "threads": 1}
    settings |= {"steps": steps, "rounds": rounds, "guidance": WEIGHT}
    note = (
        f"A solve costs {besides:.0f} µs more than bare arithmetic before it takes a second step "
        f"(checks, status, receipt): {besides / steps:.1f} µs of each number of pathline here, "
        f"{besides / 20:.1f} at 20 steps."
    )
    return Report("overhead", ABOUT, rows, list(_bars(costs)), settings, (note, *NOTES))


ONCE_OURS, ONCE_BARE = ("DDIM", "pathline, once"), ("DDIM", "bare, once")


def _everybody(steps: int) -> tuple[dict[tuple[str, str], Run], list[Row]]:
    """Return what is timed, by method and library, and a row for each that cannot be."""
    runs: dict[tuple[str, str], Run] = {}
    rows: list[Row] = []
    for case in _cases(steps):
        for what, method in methods().items():
            for by, run in contestants(method, case):
                if isinstance(run, Absent):
                    rows.append(Row(what, by, None, str(run)))
                else:
                    runs[what, by] = run
    ddim, once = methods()["DDIM"], next(_cases(1))
    runs[ONCE_OURS] = ours(ddim, once)
    runs[ONCE_BARE] = Run(ddim.bare(ddim.solver.plan(ddim.path, ddim.grid(1)), once))
    return runs, rows


def _cases(steps: int) -> Iterator[Case]:
    """Yield the problem without and with guidance; its networks cost nothing."""
    batch, *shape = SHAPE
    generator = torch.Generator().manual_seed(0)
    x, answer = (torch.randn(SHAPE, generator=generator) for _ in range(2))
    both = torch.randn(2 * batch, *shape, generator=generator)
    yield Case(x, lambda x: answer, steps)
    yield Case(x, lambda x: both, steps, WEIGHT)


def _bars(costs: Mapping[tuple[str, str], float]) -> Iterator[Bar]:
    for other, limit in ((BARE, TO_BARE), (DIFFUSERS, TO_DIFFUSERS)):
        for suffix in ("", GUIDED):
            for what in dict.fromkeys(what for what, _ in costs):
                if (what, other + suffix) in costs:
                    ratio = costs[what, OURS + suffix] / costs[what, other + suffix]
                    held = other == BARE or (not suffix and what in HELD_TO_DIFFUSERS)
                    yield Bar(f"{what}{suffix}: pathline / {other}", ratio, limit if held else None)

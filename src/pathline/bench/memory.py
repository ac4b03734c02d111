"""`pathline bench memory`: what gradients keep, against the number of steps; counted, not timed.

The bytes of all tensors alive at one time, states included, on the way out and back of one solve:
a small network, 64 samples of 64 numbers, float64. Heun's method makes two evaluations a step;
`bdia`, which can be inverted exactly, one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pathline.bench.report import Bar, Report, Row
from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.core.progress import track
from pathline.fields import Denoiser
from pathline.paths import VPLinear
from pathline.solvers import grids, solve
from pathline.solvers.adjoints import Adjoint, Checkpoint, Continuous, Direct, Reversible
from pathline.solvers.adjoints.meter import peak_bytes

COUNTS = 10, 50, 100, 200
"""Steps."""

CONSTANT = 1.05
"""The most that the bytes of what is called constant may differ by, as a ratio."""

SIZE = 64

ADJOINTS: Mapping[str, tuple[str, Adjoint]] = {
    "direct": ("heun", Direct()),
    "checkpoint": ("heun", Checkpoint()),
    "checkpoint, memory=20": ("heun", Checkpoint(memory=20)),
    "checkpoint, memory=10": ("heun", Checkpoint(memory=10)),
    "checkpoint, memory=5": ("heun", Checkpoint(memory=5)),
    "continuous": ("heun", Continuous()),
    "continuous, states stored": ("heun", Continuous(states="stored")),
    "reversible, bdia": ("bdia", Reversible()),
}
"""What is measured, by its name in the table: the solver, and the adjoint."""

HELD = "continuous", "reversible, bdia"
"""What is held to being constant. Checkpointing with `memory=` is, too, but only from as many steps
on as it keeps states."""


def memory(nfe: Sequence[int] | None = None) -> Report:
    """Count the bytes that every adjoint keeps, against the number of steps.

    Args:
        nfe: numbers of steps, two or more; `COUNTS` if None.

    Raises:
        UsageError: fewer than two, or a number below one.

    Cost: half a minute on a quiet core.
    """
    counts = sorted(set(COUNTS if nfe is None else nfe))
    if len(counts) < 2 or counts[0] < 1:
        raise UsageError(f"a law needs two numbers of steps, from 1 on; {counts} were given.")
    found = {
        name: [kept(*how, n) for n in counts] for name, how in track(ADJOINTS.items(), "memory")
    }
    rows = [
        Row(f"{n} steps", name, each / 1e3)
        for name, sizes in found.items()
        for n, each in zip(counts, sizes, strict=True)
    ]
    bars = [
        Bar(f"{name}: the most of these over the least", max(each) / min(each),
            CONSTANT if name in HELD else None)
        for name, each in found.items()
    ]  # fmt: skip
    settings = {"samples": SIZE, "numbers of each": SIZE, "dtype": "float64"}
    return Report("memory", ABOUT, rows, bars, settings, NOTES)


ABOUT = "The most bytes of tensors alive at one time in a solve and its way back, in thousands."

NOTES = (
    "A state is 33 kB. The network keeps one number for each of the state's; one that keeps a "
    "hundred makes `direct` grow that much faster, and what the others keep a step no larger.",
    "Bytes are those of tensors that operations have returned, and not what an operation allocates "
    "inside itself.",
)


def kept(solver: str, adjoint: Adjoint, n: int) -> int:
    """Return the most bytes that are alive at one time, with n steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Linear(SIZE, SIZE).double()
    x = noise.normal(range(SIZE), (SIZE,), dtype=torch.float64)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(net(x))

    model, grid = Denoiser(network, VPLinear(), "eps"), grids.log_snr(n)

    def run() -> None:
        with torch.enable_grad():
            start = x.clone().requires_grad_()
            sol = solve(model, start, solver=solver, grid=grid, adjoint=adjoint)
            torch.autograd.grad(sol.x.square().sum(), [start, *net.parameters()])

    return peak_bytes(run)

"""What the demonstration measures: the same noise under several solvers, beside what is converged.

The error of a result is its root mean square distance to the converged solution from the same
noise, over all samples, pixels and channels; pixels run from −1 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pathline.cli.request import Request, samples
from pathline.core.solution import Solution
from pathline.fields import Denoiser, Mixture
from pathline.paths import CondOT
from pathline.solvers import Step, solve
from pathline.solvers.grids import Grid, focused, log_snr
from pathline.solvers.solver import Solver, solvers
from pathline.steer import CFG

Points = Sequence[tuple[float, float]]
"""A curve of error against evaluations."""

SOLVERS: Mapping[str, str] = {"euler": "Euler", "dpmpp_2m": "DPM-Solver++ 2M", "unipc": "UniPC"}
"""The solvers that are compared, and what people call them."""

SHOWN = (5, 10, 20)
"""Evaluations at which pictures are shown."""

FEW = 10
"""Evaluations in the picture of the README."""

PLOTTED = (*SHOWN, 40)
CONVERGED = "dpmpp_2m", 128
GUIDANCE = 3.0
GALLERY = 10

PROMPTS = (
    "red heart", "smiling face", "automobile", "green apple", "cat face", "full moon",
    "blue circle", "clock", "strawberry", "dog", "house", "fish",
)  # fmt: skip
"""What the gallery draws, each in the same six seeds."""

COMPARED = PROMPTS[:6]
"""What the solvers are compared on, one prompt a seed."""

SEEDS = tuple(range(6))


@dataclass(frozen=True)
class Made:
    """A request and what came of it."""

    request: Request
    solutions: list[Solution] = field(repr=False)

    @property
    def x(self) -> Tensor:
        """The samples, (n, *state)."""
        return samples(self.solutions)

    @property
    def nfe(self) -> int:
        """Evaluations of the field, for each sample."""
        return self.solutions[0].stats.nfe


def rms(a: Tensor, b: Tensor) -> float:
    """Return the root mean square difference."""
    return float((a - b).square().mean().sqrt())


def grid_for(solver: Solver, evaluations: int) -> Grid:
    """Return the grid on which a solver makes at most this many evaluations."""
    return focused(max(1, evaluations // solver.nfe_per_step), margin=1.0)


@dataclass(frozen=True)
class Agenda:
    """The requests of the demonstration, by what they are for."""

    gallery: Mapping[str, Request]
    runs: Mapping[tuple[str, int], Request]
    converged: Request
    halfway: Request

    @property
    def n_steps(self) -> int:
        """Steps of all of them."""
        every = (*self.gallery.values(), *self.runs.values(), self.converged, self.halfway)
        return sum(request.n_steps for request in every)

    def run(self, observe: Callable[[Step], None]) -> Study:
        """Run all requests, without gradients."""

        def made(request: Request) -> Made:
            return Made(request, list(request.run(observe)))

        return Study(
            {prompt: made(request) for prompt, request in self.gallery.items()},
            {key: made(request) for key, request in self.runs.items()},
            made(self.converged),
            made(self.halfway),
        )


def planned(model: Denoiser, source: str) -> Agenda:
    """Return what is to be run: prompts, solvers and evaluations, all under the same seeds."""

    def request(name: str, evaluations: int, text: str | tuple[str, ...]) -> Request:
        solver = solvers.build(name)
        grid, guide = grid_for(solver, evaluations), CFG(GUIDANCE)
        told = text if isinstance(text, str) else list(text)
        return Request(model, source, solver, grid, guide, {"text": told}, SEEDS)

    name, n = CONVERGED
    return Agenda(
        {prompt: request("dpmpp_2m", GALLERY, prompt) for prompt in PROMPTS},
        {(s, e): request(s, e, COMPARED) for s in SOLVERS for e in PLOTTED},
        request(name, n, COMPARED),
        request(name, n // 2, COMPARED),
    )


@dataclass(frozen=True)
class Study:
    """The measurements on a model: what an `Agenda` asked for, made."""

    gallery: Mapping[str, Made]
    runs: Mapping[tuple[str, int], Made]
    converged: Made
    halfway: Made

    @property
    def name(self) -> str:
        """The model's name."""
        return self.converged.request.model.name or "given"

    def error(self, solver: str, evaluations: int) -> float:
        """Return the error of a solver at so many evaluations."""
        return rms(self.runs[solver, evaluations].x, self.converged.x)

    @property
    def doubt(self) -> float:
        """How far the converged solution moved when its evaluations were doubled."""
        return rms(self.halfway.x, self.converged.x)

    def curves(self) -> Mapping[str, Points]:
        """Return error against evaluations for each solver."""
        return {
            title: [(self.runs[name, n].nfe, self.error(name, n)) for n in PLOTTED]
            for name, title in SOLVERS.items()
        }


@dataclass(frozen=True)
class Flow:
    """The exact field of a one-dimensional mixture, under the same solvers.

    Args:
        law: the mixture.
        exact: its paths from the quantiles of the noise, converged, with the whole trajectory.
        paths: solver → what it makes of `FEW` evaluations, with the whole trajectory.
        errors: solver's title → its errors on the focused grid.
    """

    law: Mixture
    exact: Solution
    paths: Mapping[str, Solution]
    errors: Mapping[str, Points]

    def error(self, solver: str) -> float:
        """Return the error of a solver at `FEW` evaluations."""
        return rms(self.paths[solver].x, self.exact.x)


def measured_flow(n: int = 15) -> Flow:
    """Return n paths of the mixture under every solver, in float64; well under a second."""
    law, start = mixture(), torch.special.ndtri((_float64(range(n)) + 0.5) / n)[:, None]
    exact = solve(law, start, solver="rk4", grid=log_snr(400), trajectory=True)

    def run(name: str, evaluations: int) -> Solution:
        solver = solvers.build(name)
        grid = grid_for(solver, evaluations)
        return solve(law, start, solver=solver, grid=grid, trajectory=True)

    def curve(name: str) -> Points:
        runs = [run(name, n) for n in (*PLOTTED, 80, 160)]
        return [(solution.stats.nfe, rms(solution.x, exact.x)) for solution in runs]

    paths = {name: run(name, FEW) for name in SOLVERS}
    return Flow(law, exact, paths, {title: curve(name) for name, title in SOLVERS.items()})


def mixture() -> Mixture:
    """Return three separate Gaussians on the line: paths have to decide."""
    means, stds = _float64([-1.7, -0.35, 1.45]), _float64([0.16, 0.12, 0.2])
    return Mixture(CondOT(), means[:, None], stds[:, None], _float64([0.35, 0.25, 0.4]))


def _float64(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)

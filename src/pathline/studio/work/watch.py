"""Watch: a solve step by step, in pictures; and in the plane beside the exact flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError, unknown
from pathline.core.images import Pixels
from pathline.fields import Denoiser, Mixture
from pathline.fields.problems import eight_gaussians, m9
from pathline.paths import EDM, CondOT, GaussianPath, VPLinear
from pathline.solvers import RK4, Grid, Solver, grids, solve, steps
from pathline.solvers.solve import start
from pathline.studio import jobs, views
from pathline.studio.limits import Limits
from pathline.studio.shelf import Shelf
from pathline.studio.work.recipe import Recipe, Typed, recipe, seeds, solver_of

SHOWN = 9
"""Pictures of a strip."""
SAMPLES = 4
"""Samples of a strip: each is two rows."""
PARTICLES = 200
"""Ways in the plane."""
EXACT = 128
"""Steps of RK4 that stand for the exact flow of a mixture; half as many judge it."""


@dataclass(frozen=True)
class Frames:
    """What a solve passed through.

    Args:
        name: what ran.
        times: of the states, the start first.
        states: (frames, n, *state), scaled by 1/√(α² + σ²), so that noise and data look alike.
        estimates: (frames − 1, n, *state): x̂_0 that each step was made from.
    """

    name: str
    times: list[float]
    states: Tensor
    estimates: Tensor

    def strip(self) -> Pixels:
        """Return states above estimates, sample by sample, at some of the times."""
        rows: list[Tensor] = []
        kept = views.spread(len(self.states), SHOWN)
        for i in range(self.states.shape[1]):
            rows.append(self.states[kept, i])
            rows.append(self.estimates[[max(k - 1, 0) for k in kept], i])
        return views.sheet(torch.cat(rows), columns=len(kept), width=72)

    def frames(self) -> list[Pixels]:
        """Return the frames of an animation: states in a row, estimates under them."""
        n = self.states.shape[1]
        return [
            views.sheet(torch.cat((x, self.estimates[max(k - 1, 0)])), columns=n, width=120)
            for k, x in enumerate(self.states)
        ]


@dataclass(frozen=True)
class Watching:
    """A solve of a model that is watched."""

    model: Denoiser
    how: Recipe
    seeds: tuple[int, ...]

    def run(self) -> Frames:
        """Solve; to be called in a job."""
        jobs.expect(self.how.calls)
        how, path = self.how, self.model.path
        times, states, estimates = [0.0], list[Tensor](), list[Tensor]()
        with torch.no_grad():
            run = steps(
                self.model, seeds=self.seeds, solver=how.solver, grid=how.grid, guide=how.guide,
                speed=how.speed, **how.cond,
            )  # fmt: skip
            for step in run:
                jobs.tick(0)
                if not states:
                    begun = step.prediction
                    times[0] = float(begun.t.double().mean())
                    states.append(_alike(path, times[0], begun.x))
                times.append(float(torch.as_tensor(step.t).double().mean()))
                states.append(_alike(path, times[-1], step.x))
                estimates.append(step.x0)
        return Frames(how.name, times, torch.stack(states), torch.stack(estimates))


def _alike(path: GaussianPath, t: float, x: Tensor) -> Tensor:
    at = torch.tensor(t, dtype=torch.float64)
    scale = float((path.alpha(at) ** 2 + path.sigma(at) ** 2).sqrt())
    return x / max(scale, 1.0) if t > 0 else x


def asked(  # noqa: PLR0913 - what the page has
    shelf: Shelf, model: Any, prompt: Any, typed: Typed, seed: Any, n: Any, limits: Limits
) -> Watching:  # fmt: skip
    """Return what was asked for.

    Raises:
        UsageError: it cannot be, or is too much.
    """
    drawn = seeds(seed, n, limits)
    if len(drawn) > SAMPLES:
        raise UsageError(f"{len(drawn)} samples do not fit on a strip; {SAMPLES} do.")
    denoiser = shelf.model(model)
    made = recipe(denoiser, typed, prompt, limits)
    limits.count("this", made.calls * len(drawn) * (2 if made.guide is not None else 1))
    return Watching(denoiser, made, drawn)


PROBLEMS = {"eight Gaussians": eight_gaussians, "nine Gaussians (M9)": m9}
PATHS: dict[str, GaussianPath] = {"cond_ot": CondOT(), "vp_linear": VPLinear(), "edm": EDM()}


@dataclass(frozen=True)
class Plane:
    """Ways of particles under a solver, and under the exact flow.

    Args:
        name: what ran.
        ways, exact: (states, n, 2), in coordinates in which data and noise are of one size.
        data: (m, 2), drawn from the mixture.
        error: root mean square distance of the ends; None for a solver that draws noise.
        uncertain: of the exact flow, as Richardson estimates it.
        nfe: evaluations.
    """

    name: str
    ways: Tensor
    exact: Tensor
    data: Tensor
    error: float | None
    uncertain: float
    nfe: int


@dataclass(frozen=True)
class PlaneWays:
    """Particles in the plane that are watched."""

    law: Mixture
    solver: Solver
    grid: Grid
    seeds: tuple[int, ...]
    name: str

    def run(self) -> Plane:
        """Solve; to be called in a job."""
        jobs.expect(self.grid.n + EXACT + EXACT // 2)
        law, double = self.law, torch.float64
        x = start(law.path, law.path.t_max, self.seeds, (2,), double)
        how: dict[str, Any] = {"trajectory": True, "observe": lambda _: jobs.tick()}
        with torch.no_grad():
            fine, coarse = (
                solve(law, x, solver=RK4(), grid=grids.log_snr(n), **how)
                for n in (EXACT, EXACT // 2)
            )
            made = solve(law, x, solver=self.solver, grid=self.grid, seeds=self.seeds, **how)
        off = float((fine.x - coarse.x).square().mean().sqrt()) / 15
        error = float((made.x - fine.x).square().mean().sqrt())
        return Plane(
            self.name,
            self._alike(made.trajectory, made.times),
            self._alike(fine.trajectory, fine.times),
            law.draw(range(2000)),
            None if self.solver.is_stochastic else error,
            off,
            made.stats.nfe,
        )

    def _alike(self, states: Tensor | None, times: Tensor | None) -> Tensor:
        assert states is not None and times is not None  # they were asked for
        path = self.law.path
        at = times.double()
        scale = (path.alpha(at) ** 2 + path.sigma(at) ** 2).sqrt().clamp(min=1)
        scale = scale.reshape(len(states), -1, 1)
        return states / scale


def asked_plane(
    problem: Any, path: Any, typed: Typed, seed: Any, n: Any, limits: Limits
) -> PlaneWays:
    """Return what was asked for in the plane.

    Raises:
        UsageError: it cannot be, or is too much.
    """
    if problem not in PROBLEMS:
        raise unknown("problem", str(problem)[:80], PROBLEMS)
    if path not in PATHS:
        raise unknown("path", str(path)[:80], PATHS)
    solver, grid, name = solver_of(typed, limits)
    first = limits.whole("seed", seed, 0, 2**31 - 1)
    count = limits.whole("n", n, 1, PARTICLES)
    drawn = tuple(range(first, first + count))
    return PlaneWays(PROBLEMS[problem](PATHS[path]), solver, grid, drawn, name)

"""Flows in the plane, trained with one coupling or another: what claims of W-CFM read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from time import process_time
from typing import Any

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.solution import Solution
from pathline.data.fetch import cache_folder
from pathline.fields import Denoiser
from pathline.fields.problems import eight_gaussians, moons
from pathline.learn import Recipe, Watch, load_model, train
from pathline.learn.couplings import wasserstein
from pathline.learn.run import Run
from pathline.paths import CondOT
from pathline.solvers import grids, solve
from pathline.speed import normalised_path_energy

N = 2000
"""Points that a flow is measured on; each starts from a fresh draw."""
FRESH = range(1_000_000, 1_000_000 + N)
WIDE: Mapping[str, Any] = {"radius": 5.0, "std": 0.1**0.5}
"""The eight Gaussians of the usual benchmark, as a source for the moons."""

Table = Mapping[str, Any] | None


def recipe(coupling: Table, to_moons: bool = False) -> Recipe:
    """Return how a flow to the eight Gaussians is trained, or from them to the moons."""
    return Recipe(
        name="moons" if to_moons else "eight-gaussians",
        steps=4000,
        batch=256,
        rate=2e-3,
        warmup=100,
        decay=0.0,
        data={"source": "moons" if to_moons else "eight_gaussians"},
        start={"source": "eight_gaussians", **WIDE} if to_moons else None,
        network={"class": "MLP", "dim": 2},
        objective={"path": "cond_ot", "view": "velocity"},
        coupling=coupling,
        watch=Watch(every=15.0),
    )


@dataclass(frozen=True)
class Flow:
    """A trained flow and what becomes of `FRESH` starts; computed when asked for, and once."""

    coupling: Table
    to_moons: bool = False

    @cached_property
    def model(self) -> Denoiser:
        """The flow; one that was trained before is taken up where it was left."""
        how = recipe(self.coupling, self.to_moons)
        return load_model(train(how, cache_folder() / "weighted-cfm" / how.fingerprint[:16]))

    @cached_property
    def starts(self) -> Tensor:
        """Fresh draws of the source, (n, 2)."""
        law = eight_gaussians(CondOT(), **WIDE)
        return law.draw(FRESH) if self.to_moons else noise.normal(FRESH, (2,), dtype=torch.float64)

    @cached_property
    def data(self) -> Tensor:
        """Fresh data, (n, 2)."""
        return moons(FRESH) if self.to_moons else eight_gaussians(CondOT()).draw(FRESH)

    @cached_property
    def fine(self) -> Solution:
        """A hundred Euler steps, with every state."""
        return self._solve(100, trajectory=True)

    @cached_property
    def coarse(self) -> Tensor:
        """The end of five Euler steps."""
        return self._solve(5).x

    @property
    def npe(self) -> float:
        """Return how much longer than need be its ways are."""
        squared = wasserstein(self.starts, self.data) ** 2
        assert self.fine.trajectory is not None and self.fine.times is not None
        return normalised_path_energy(self.fine.trajectory, self.fine.times, squared)

    @property
    def drift(self) -> float:
        """Return how far five steps end from a hundred, root mean square."""
        return float((self.coarse - self.fine.x).square().sum(1).mean().sqrt())

    def off(self, ends: Tensor) -> float:
        """Return the Wasserstein-2 distance of samples to as many data."""
        return wasserstein(ends, self.data)

    @property
    def mode_error(self) -> float:
        """Return the total variation between the modes' shares and one eighth each."""
        mode = torch.cdist(self.fine.x, eight_gaussians(CondOT()).means).argmin(1)
        return float((mode.bincount(minlength=8) / N - 1 / 8).abs().sum() / 2)

    def _solve(self, steps: int, trajectory: bool = False) -> Solution:
        model, grid = self.model, grids.uniform(steps, start=1.0, end=0.0)
        with torch.no_grad():
            return solve(model, self.starts, solver="euler", grid=grid, trajectory=trajectory)


@dataclass(frozen=True)
class Flows:
    """All flows, by coupling."""

    to_gaussians: Mapping[str, Flow] = field(
        default_factory=lambda: {
            "I": Flow(None),
            "W": Flow({"kind": "gibbs"}),
            "OT": Flow({"kind": "exact_ot"}),
        }
    )
    to_moons: Mapping[float, Flow] = field(
        default_factory=lambda: {
            eps: Flow({"kind": "gibbs", "eps": eps}, True) for eps in (5.0, 2.0, 1.0, 0.5)
        }
    )
    plain_to_moons: Flow = field(default_factory=lambda: Flow(None, True))

    @cached_property
    def step_seconds(self) -> Mapping[str, float]:
        """Processor time of an update by coupling: the least of twelve turns of thirty each."""
        runs = {name: Run.start(recipe(f.coupling)) for name, f in self.to_gaussians.items()}
        spent: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(12):
            for name, run in runs.items():
                began = process_time()
                for _ in range(30):
                    run.advance()
                spent[name].append((process_time() - began) / 30)
        return {name: min(turns) for name, turns in spent.items()}

    def step_ratio(self, other: str) -> float:
        """Return the time of a weighted update over that of another coupling's."""
        return self.step_seconds["W"] / self.step_seconds[other]

    def bias_grows(self) -> float:
        """Return the least growth of the moons' distance when ε falls: 5, 2, 1, 0.5."""
        off = [flow.off(flow.fine.x) for flow in self.to_moons.values()]
        return min(b / a for a, b in zip(off, off[1:], strict=False))

    def drift_left(self) -> float:
        """Return the drift at ε = 0.5 over that of independent pairs."""
        return self.to_moons[0.5].drift / self.plain_to_moons.drift

"""Samples on M9 with its exact denoiser: what claims of kinetic-optimal-paths read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from pathline.core import noise
from pathline.fields import Denoiser, estimate_separation, retimed
from pathline.fields.problems import m9
from pathline.learn.couplings import wasserstein
from pathline.paths import (
    CondOT,
    GaussianPath,
    KineticOptimal,
    Separation,
    Trigonometric,
    VPLinear,
    energy,
)
from pathline.paths.kinetic import EXACT
from pathline.solvers import DDIM, DPMpp, Euler, Heun, Solver, grids, sample, solve
from pathline.systems.kinetic_optimal_trained import Trained
from pathline.systems.system import Plot

OTHERS: Mapping[str, GaussianPath] = {
    "VP-cosine": Trigonometric(),
    "VP-linear": VPLinear(),
    "straight": CondOT(),
}
STEPS = (4, 8, 16)
STARTS = range(3000)


@dataclass(frozen=True)
class Samples:
    """Distances of samples on some paths to where the flow leads; each is computed once."""

    kept: dict[tuple[str, int], float] = field(default_factory=dict)

    @cached_property
    def separation(self) -> Separation:
        """λ of M9, with its exact denoiser."""
        return estimate_separation(m9(CondOT()), draws=20_480).separation

    @cached_property
    def paths(self) -> Mapping[str, GaussianPath]:
        """The paths that are compared on M9."""
        return {
            "kinetic optimal": KineticOptimal(self.separation),
            "no floor": KineticOptimal(self.separation, EXACT),
            **OTHERS,
        }

    @cached_property
    def exact(self) -> Tensor:
        """Where the flow takes the starts."""
        grid = grids.log_snr(200, last="denoise")
        return self._end("straight", DPMpp(3), grid)

    def _end(self, name: str, solver: Solver, grid: grids.Grid) -> Tensor:
        law = m9(self.paths[name])
        return sample(law, seeds=STARTS, solver=solver, grid=grid, dtype=torch.float64).x

    def error(self, name: str, n: int, solver: Solver = Euler()) -> float:  # noqa: B008
        """Return the W2 distance of n steps, even in path time, to where the flow leads."""
        key = f"{name} {type(solver).__name__}", n
        if key not in self.kept:
            ends = (self.paths[name].t_max, 1 / n if isinstance(solver, DDIM) else 0.0)
            last = "denoise" if isinstance(solver, DDIM) else "stop"
            end = self._end(name, solver, grids.uniform(n, *ends, last))
            self.kept[key] = wasserstein(end, self.exact)
        return self.kept[key]

    def ratio(self, n: int, name: str = "kinetic optimal", solver: Solver = Euler()) -> float:  # noqa: B008
        """Return the error on one path over that of the best other one."""
        return self.error(name, n, solver) / min(self.error(k, n, solver) for k in OTHERS)

    def floor_needed(self, n: int = 8) -> float:
        """Return the error on the optimum itself over the largest of the others.

        Its first slope σ' is a difference over 1e-5; at t = 1 the denoiser says 0, the mean, and
        the other half of the slope is lost.
        """
        path = self.paths["no floor"]
        ends = path.sigma(torch.tensor([1.0, 1 - 1e-5], dtype=torch.float64))
        x = noise.normal(STARTS, (2,), dtype=torch.float64) * ends[0]
        x = x * (1 + float(ends.diff()) / 1e-5 / n)
        grid = grids.uniform(n - 1, 1 - 1 / n, 0.0)
        off = wasserstein(solve(m9(path), x, solver=Euler(), grid=grid).x, self.exact)
        return off / max(self.error(name, n) for name in OTHERS)

    def floor_cost(self) -> float:
        """Return the energy that the floor costs, relative."""
        floored, optimum = (
            energy(self.paths[name], self.separation) for name in ("kinetic optimal", "no floor")
        )
        return floored / optimum - 1

    def transfer_off(self) -> float:
        """Return how far modes' masses are from the law's, for a VP model on the optimal path."""
        law, path = m9(VPLinear()), self.paths["kinetic optimal"]
        model = Denoiser(lambda x, t: law(x, t).eps, VPLinear(), shape=(2,))
        moved = retimed(model, path, beyond="trim")
        x = sample(moved, 10_000, solver=Heun(), grid=grids.uniform(64), dtype=torch.float64).x
        nearest = torch.cdist(x, law.means).argmin(1)
        return float((nearest.bincount(minlength=9) / len(x) - 1 / 9).abs().max())

    @cached_property
    def trained(self) -> Trained:
        """Networks on these paths."""
        kept = {name: path for name, path in self.paths.items() if name != "no floor"}
        return Trained(kept, STARTS, self.exact)

    def plots(self) -> tuple[Plot, ...]:
        """Return W2 against steps for the paths."""
        names = ("kinetic optimal", *OTHERS)
        curves = {k: tuple((float(n), self.error(k, n)) for n in STEPS) for k in names}
        return (Plot("Euler on M9, even in path time", "steps", "Wasserstein-2", curves),)

"""A network's own endpoint: how far a solver of few steps is from where many steps lead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pathline.fields import Denoiser
from pathline.solvers import DPMpp, Grid, Solver, grids, sample


@dataclass(frozen=True)
class Endpoint:
    """Where ++3M of many steps takes a model's noise, and the errors of others there.

    Args:
        model: a network.
        seeds: of the samples.
        steps: of the reference.
        cond: the condition, one for all or one a sample.
    """

    model: Denoiser
    seeds: Sequence[int] = range(64)
    steps: int = 200
    cond: tuple[tuple[str, Any], ...] = ()

    @cached_property
    def exact(self) -> Tensor:
        """The end of the way, (batch, *state)."""
        return self._end(DPMpp(3), grids.log_snr(self.steps))

    def error(self, solver: Solver, grid: Grid) -> float:
        """Return the mean squared distance of a solver's samples from it."""
        return float((self._end(solver, grid) - self.exact).square().mean())

    def _end(self, solver: Solver, grid: Grid) -> Tensor:
        with torch.no_grad():
            told = dict(self.cond)
            return sample(self.model, seeds=self.seeds, solver=solver, grid=grid, **told).x

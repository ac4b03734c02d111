"""What runs of particles come to: weighted samples, the evidence, and who came of whom."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pathline.core.receipt import Receipt
from pathline.core.solution import Stats


@dataclass(frozen=True, eq=False)
class Population:
    """What runs of particles came to.

    Args:
        x: one particle of each run, drawn by its weights, (runs, *state).
        particles: all of them, (runs, particles, *state).
        weights: of each, summing to one in a run, (runs, particles) float64.
        log_evidence: an estimate of log p(y) of each run, (runs,) float64; exp of it is unbiased.
        ess: the effective share of particles before each weighing's resampling, (events, runs).
        ancestors: whom each particle came from at each weighing, (events, runs, particles).
        stats: what a particle cost.
        receipt: what is needed to make it again, but for the guide's data.
    """

    x: Tensor
    particles: Tensor = field(repr=False)
    weights: Tensor = field(repr=False)
    log_evidence: Tensor
    ess: Tensor = field(repr=False)
    ancestors: Tensor = field(repr=False)
    stats: Stats
    receipt: Receipt

    @property
    def mean(self) -> Tensor:
        """The posterior mean by the weights, (runs, *state)."""
        share = self.weights.to(self.particles)
        return torch.einsum("rk,rk...->r...", share, self.particles)

    @property
    def even(self) -> Tensor:
        """The particles with equal weights: each about as often as it weighs, (runs, n, *state)."""
        runs, n = self.weights.shape
        at = (torch.arange(n, device=self.weights.device, dtype=torch.float64) + 0.5) / n
        edges = self.weights.cumsum(1)
        edges = edges / edges[:, -1:]
        which = torch.searchsorted(edges, at.expand(runs, n).contiguous()).clamp(max=n - 1)
        return self.particles[torch.arange(runs, device=which.device)[:, None], which]

    @property
    def origins(self) -> Tensor:
        """Which particle at the start each one comes from, (runs, particles)."""
        runs, n = self.weights.shape
        made = torch.arange(n, device=self.weights.device).expand(runs, n)
        for parents in self.ancestors.flip(0):
            made = parents.gather(1, made)
        return made

    def told(self) -> dict[str, Any]:
        """Return what a receipt tells of it, one entry a run: plain values, without the states."""
        return {
            "log_evidence": self.log_evidence.tolist(),
            "resampled": self.resampled.tolist(),
            "least_share": self.ess.amin(0).tolist() if len(self.ess) else [1.0] * len(self.x),
            "origins": self.origins.tolist(),
        }

    @property
    def resampled(self) -> Tensor:
        """How often each run was resampled, (runs,)."""
        own = torch.arange(self.weights.shape[1], device=self.weights.device)
        return (self.ancestors != own).any(2).sum(0)

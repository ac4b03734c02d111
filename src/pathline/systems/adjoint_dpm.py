"""AdjointDPM: the gradient of a loss on the finished sample, in memory that does not grow.

Measured on a mixture of three modes in two dimensions with its exact denoiser, VP, batches of 64
starts, a quadratic loss and the modes' means as parameters, against RK4 of 2000 steps.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from pathline.core import noise
from pathline.fields import Denoiser, Mixture
from pathline.paths import VPLinear
from pathline.solvers import AdaptiveRK, Grid, Solver, grids, solve, solvers
from pathline.solvers.adjoints import Adjoint, Checkpoint, Continuous, Record
from pathline.solvers.adjoints.flow import Form
from pathline.solvers.adjoints.meter import saved
from pathline.solvers.runge_kutta import Euler
from pathline.systems.adjoint_dpm_tasks import audit, inversion, tuning
from pathline.systems.adjoint_dpm_unet import checkpoint_off, continuous_off
from pathline.systems.system import Claim, Plot, System, register

PATH = VPLinear()
TARGET = torch.tensor([0.3, 0.1], dtype=torch.float64)


class Found(NamedTuple):
    """Gradients in the noise and in each start's own means, and what the way back said."""

    noise: Tensor
    means: Tensor
    record: Record


def three_modes(n: int) -> tuple[Denoiser, Tensor]:
    """Return the mixture, and n copies of its means that ask for gradients: one for each start.

    So the gradient in the means of any batch of starts is a sum.
    """
    means = torch.tensor([[-0.5, 0.3], [0.6, -0.2], [0.1, 0.8]], dtype=torch.float64)
    each = means.repeat(n, 1, 1).requires_grad_()
    stds = torch.full((3, 2), 0.15, dtype=torch.float64)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)

    def denoised(x: Tensor, t: Tensor, means: Tensor) -> Tensor:
        def of(x: Tensor, t: Tensor, means: Tensor) -> Tensor:
            return Mixture(PATH, means, stds, weights).evaluate(x[None], t, {})[0]

        return torch.vmap(of)(x, t, means)

    return Denoiser(denoised, PATH, "x0", shape=(2,)), each


@dataclass(frozen=True)
class Experiment:
    """What the claims read.

    Args:
        n: starts of a batch.
        batches: of which the median counts: near a border between modes gradients have no bound,
            and one start in a batch decides.
        exact_steps: of the reference.
    """

    n: int = 64
    batches: int = 16
    exact_steps: int = 2000

    def gradients(
        self, solver: Solver | str, grid: Grid, adjoint: Adjoint | str, batches: int = 1
    ) -> Found:
        """Return the gradients of a quadratic loss of each sample."""
        count = self.n * batches
        law, means = three_modes(count)
        x = noise.normal(range(count), (2,), dtype=torch.float64).requires_grad_()
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the cosine is read off the record
            sol = solve(law, x, solver=solver, grid=grid, adjoint=adjoint, means=means)
            in_noise, in_means = torch.autograd.grad(
                (sol.x - TARGET).square().sum() / 2, [x, means]
            )
        return Found(in_noise, in_means, sol.backward)

    @cached_property
    def exact(self) -> Found:
        """The flow's own, converged."""
        grid = grids.log_snr(self.exact_steps)
        return self.gradients("rk4", grid, Checkpoint(memory=64), self.batches)

    @cache  # noqa: B019 - lives as long as the run
    def errors(self, n: int, form: Form = "eps", grid: str = "log_snr") -> tuple[float, float]:
        """Return the median errors of the continuous adjoint by RK4, in noise and means."""
        made = grids.grids.build(grid, n=n)
        found = self.gradients("rk4", made, Continuous("rk4", form, probe=0), self.batches)
        pairs = zip(found[:2], self.exact[:2], strict=True)
        in_noise, in_means = ([p.split(self.n) for p in pair] for pair in pairs)
        return (
            median(_off(a, b) for a, b in zip(*in_noise, strict=True)),
            median(_off(a.sum(0), b.sum(0)) for a, b in zip(*in_means, strict=True)),
        )

    def order(self) -> float:
        """Return the lower of both orders between 50 and 100 steps."""
        pairs = zip(self.errors(50), self.errors(100), strict=True)
        return min(math.log2(a / b) for a, b in pairs)

    def unlike(self) -> float:
        """Return the largest relative difference of checkpointing and autograd, all solvers."""
        worst = 0.0
        for entry in solvers:
            solver = entry.build()
            if solver.is_adaptive or solver.is_stochastic or entry.name == "dpm_v3":
                continue
            for grid in (grids.log_snr(7), grids.uniform(6), grids.karras(6, last="denoise")):
                one, other = (self.gradients(solver, grid, how) for how in ("direct", "checkpoint"))
                worst = max(worst, _off(other.noise, one.noise), _off(other.means, one.means))
        return worst

    def growth(self, adjoint: Adjoint | str) -> float:
        """Return the most bytes of activations kept at 200 steps over those at 20."""
        kept: list[int] = []
        for n in (20, 200):
            with saved() as gauge:
                self.gradients("rk4", grids.log_snr(n), adjoint)
            kept.append(gauge.peak)
        return kept[1] / kept[0]

    @cached_property
    def few(self) -> Found:
        """Euler's adjoint in (y, ρ) at 10 steps, every sample probed."""
        how = Continuous(probe=self.n)
        return self.gradients(Euler(view="eps"), grids.log_snr(10), how)

    def few_off(self) -> float:
        """Return its relative error."""
        return _off(self.few.noise, self.exact.noise[: self.n])

    def adaptive(self, form: Form) -> int:
        """Return the evaluations that Dormand-Prince at 1e-5 makes on the way back."""
        solver = AdaptiveRK(1e-5, 1e-5)
        return self.gradients(solver, grids.times([1.0, 1e-3]), Continuous(form=form)).record.nfe

    def plots(self) -> Sequence[Plot]:
        """Return the errors of the forms against steps."""
        forms: tuple[Form, ...] = ("eps", "x0", "velocity")
        curves = {
            f"{form}, in the {what}": tuple((n, self.errors(n, form)[i]) for n in (20, 50, 100))
            for form in forms
            for i, what in enumerate(("noise", "means"))
        }
        return (Plot("The continuous adjoint", "steps of RK4", "relative error", curves),)


def _off(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def _noise(n: int, threshold: float) -> Claim:
    return Claim(f"noise-{n}", f"RK4, {n} steps in (y, ρ): error of dL/dx_T, median of 16 batches",
                 lambda e: e.errors(n)[0], threshold, headline=True)  # fmt: skip


def _means(n: int, threshold: float) -> Claim:
    return Claim(f"means-{n}", f"and of dL/d(means), {n} steps, likewise", lambda e: e.errors(n)[1],
                 threshold, headline=True)  # fmt: skip


CLAIMS = (
    _noise(20, 2e-2), _noise(50, 3e-4), _noise(100, 1.5e-5),
    _means(20, 2e-2), _means(50, 3e-4), _means(100, 1.5e-5),
    Claim("order", "the order of both between 50 and 100 steps", Experiment.order, 3.5, "higher",
          headline=True),
    Claim("exact", "checkpointing is autograd, relative, for every solver and grid",
          Experiment.unlike, 1e-10),
    Claim("memory-checkpoint", "activations kept at 200 steps over those at 20: checkpointing",
          lambda e: e.growth("checkpoint"), 1.1),
    Claim("memory-continuous", "the continuous adjoint",
          lambda e: e.growth(Continuous(probe=0)), 1.1),
    Claim("memory-direct", "and autograd", lambda e: e.growth("direct"), 8.0, "higher"),
    Claim("unet", "a conditional U-Net under guidance: checkpointing against central differences, "
          "in noise, condition and weights", lambda e: checkpoint_off(), 1e-5),
    Claim("unet-continuous", "and the continuous adjoint, RK4 of 50 steps, against autograd",
          lambda e: continuous_off(), 1e-2),
    Claim("few", "Euler's adjoint of 10 steps: its relative error", Experiment.few_off, 1.0,
          "higher"),
    Claim("few-seen", "the library sees it: the least cosine with the solver's own gradient",
          lambda e: e.few.record.cosine, 0.9),
    Claim("raw", "the raw form at 50 steps of RK4 (told, not compared: dL/dx_T)",
          lambda e: e.errors(50, "velocity")[0], 3e-4),
    Claim("adaptive", "Dormand-Prince at 1e-5 both ways: evaluations on the way back, in (y, ρ)",
          lambda e: e.adaptive("eps"), 2000),
    Claim("adaptive-raw", "and in the raw form", lambda e: e.adaptive("velocity"), 2000),
    Claim("attack", "pictures of fashion whose class is lost when the noise moves against the "
          "classifier by 0.1 at most, over those lost to a random move of the same size",
          lambda e: audit().attacked / max(audit().random, 1.0), 3.0, "higher", needs="training"),
    Claim("inversion", "a text embedding fitted to one picture of emoji: the loss falls in 50 "
          "iterations by a factor of", lambda e: inversion(), 10.0, "higher", needs="training"),
    Claim("lora", "LoRA on emoji: a loss of the mean colour falls by a factor of",
          lambda e: tuning()[0], 5.0, "higher", needs="training"),
    Claim("lora-variety", "with mean distance between samples over that before",
          lambda e: tuning()[1], 0.7, "higher", needs="training"),
)  # fmt: skip

register(System(
    slug="adjoint-dpm",
    title="AdjointDPM",
    paper="Pan et al. 2023, arXiv:2307.10711",
    summary="Gradients of a loss on the finished sample in noise, condition and weights, in the "
            "memory of one evaluation.",
    experiment=Experiment,
    claims=CLAIMS,
    plots=Experiment.plots,
))  # fmt: skip

"""Kinetic optimal paths: the schedule follows from how well the data can be told from noise.

Energies are measured where λ is known exactly (two points ±1 in one dimension, Gaussian data) and
on drawn points; samples on M9 (`fields.problems.m9`) with its exact denoiser and with trained ones,
3000 starts, Euler steps even in path time, by the exact Wasserstein-2 distance to where the flow
leads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from pathline.paths import CondOT, Trigonometric, energy
from pathline.paths.separation import gaussian_mmse
from pathline.solvers import DDIM
from pathline.systems.kinetic_optimal_energies import Energies, two_points
from pathline.systems.kinetic_optimal_m9 import Samples
from pathline.systems.system import Claim, Plot, System, register


@dataclass(frozen=True)
class Experiment:
    """What the claims read."""

    energies: Energies = field(default_factory=Energies)
    samples: Samples = field(default_factory=Samples)

    def plots(self) -> Sequence[Plot]:
        """Return what the samples show."""
        return self.samples.plots()


CLAIMS = (
    Claim("chord", "two points ±1: the energy of α and σ is 2 − 2 cos Φ, relative",
          lambda e: e.energies.chord_off(), 1e-4, headline=True),
    Claim("even", "and is spent evenly (deviation over mean)", lambda e: e.energies.unevenness(),
          1e-3, headline=True),
    Claim("energy-optimal", "it is 0.45912 ± 0.0001, where the best of the others has 0.869",
          lambda e: energy(e.energies.optimum, two_points), 0.45912, "equal", 1e-4, headline=True),
    Claim("energy-straight", "that of the straight path is 0.9824 ± 0.0001",
          lambda e: energy(CondOT(), two_points), 0.98240, "equal", 1e-4),
    Claim("energy-cosine", "and that of VP-cosine 0.86895 ± 0.0001",
          lambda e: energy(Trigonometric(), two_points), 0.86895, "equal", 1e-4),
    Claim("monte-carlo", "the formula is E‖u‖² of two million draws, within 0.5 %",
          lambda e: e.energies.monte_carlo_off(), 0.005),
    Claim("ode", "the chord solves the ODE of the angle (largest difference, t in [0.02, 0.98])",
          lambda e: e.energies.ode_off(), 1e-7),
    Claim("limit-far", "for λ ≡ 1 it is the straight path", lambda e: e.energies.limit_off(), 1e-6),
    Claim("limit-still", "for isotropic Gaussian data it costs nothing",
          lambda e: e.energies.still(), 1e-8),
    Claim("limit-straight", "where the straight path costs 2 − π/2, 0.429204 ± 0.0001",
          lambda e: energy(CondOT(), gaussian_mmse([1.0])), 2 - math.pi / 2, "equal", 1e-4),
    Claim("few-points", "64 points in 1024 dimensions are told apart at s = 0.2: λ ≥ 0.98",
          lambda e: e.energies.dimensions[-1][0], 0.98, "higher"),
    Claim("few-points-turn", "and their path is nearly the straight one: Φ ≥ 0.93 π/2",
          lambda e: e.energies.dimensions[-1][1], 0.93, "higher"),
    Claim("dimensions", "Φ rises with the dimension, 16 to 1024 (least increase of Φ/(π/2))",
          lambda e: e.energies.least_rise(), 0.0, "higher"),
    *(Claim(f"euler-{n}", f"{n} Euler steps on it err by at most 0.8 of the best other path's (W2)",
            lambda e, n=n: e.samples.ratio(n), 0.8) for n in (8, 16)),
    Claim("limit-floor", "honest limit: without the floor, its first slope a difference over 1e-5, "
          "8 steps err more than on every other path (ratio to the worst)",
          lambda e: e.samples.floor_needed(), 1.0, "higher"),
    Claim("limit-ddim", "honest limit: with DDIM, which sees only the log-SNR, it does not win",
          lambda e: e.samples.ratio(8, solver=DDIM()), 1.0, "higher"),
    Claim("energy-floor", "on M9 the floor costs at most 5 % of energy",
          lambda e: e.samples.floor_cost(), 0.05),
    Claim("transfer", "a VP model sampled on it has each mode's mass within 0.02",
          lambda e: e.samples.transfer_off(), 0.02),
    Claim("trained", "networks trained alike on each path: after 8 Euler steps that of this one is "
          "no farther from the law than the best other one", lambda e: e.samples.trained.ratio(
          "kinetic optimal", 8), 1.0, needs="training"),
    Claim("trained-moved", "a network trained on VP-linear: 8 Euler steps on this path end no "
          "farther from its own flow than on its own (ratio)", lambda e: e.samples.trained.gain(
          "VP-linear", "kinetic optimal", 8), 1.0, needs="training"),
    Claim("trained-transfer", "and its flow gives each mode the same mass on both, within 0.02",
          lambda e: e.samples.trained.mass_off("VP-linear", "kinetic optimal"), 0.02,
          needs="training"),
)  # fmt: skip

register(System(
    slug="kinetic-optimal-paths",
    title="Kinetic optimal paths",
    paper="Shaul et al. 2023, arXiv:2306.06626",
    summary="The noise schedule of least kinetic energy, from one measured function of the data.",
    experiment=Experiment,
    claims=CLAIMS,
    plots=Experiment.plots,
))  # fmt: skip

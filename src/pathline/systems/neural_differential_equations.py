"""Neural differential equations: networks inside of ODEs, CDEs and SDEs, and what integrates them.

Reversible solvers and exact gradients, Brownian motion that can be asked again, control paths, step
control, events and implicit layers are measured against closed forms; three models are trained.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pathline.systems import nde_numerics as numerics
from pathline.systems.nde_trained import Trained
from pathline.systems.system import Claim, Plot, System, register


@dataclass(frozen=True)
class Experiment:
    """What the claims read."""

    trained: Trained = field(default_factory=Trained)


COUNTS = (10, 100, 1000, 10_000)
ORDERS = {"euler_maruyama": 0.5, "milstein": 1.0, "srk": 1.5, "heun": 1.0, "reversible_heun": 1.0}
"""On noise of one motion, which commutes; in general the last two have ½."""


def control_ratio(which: int) -> float:
    """Return steps taken (0) or rejected (1) by the PI control over those of the integral one."""
    pi, plain = numerics.van_der_pol(0.3, 0.4), numerics.van_der_pol(1.0, 0.0)
    return pi[which] / plain[which]


def plots(experiment: Experiment) -> tuple[Plot, ...]:
    """Return the gap between the continuous adjoint and backpropagation."""
    del experiment
    gaps = [(float(n), numerics.continuous_off(n)) for n in (10, 20, 40, 80)]
    return (Plot("The continuous adjoint of Heun", "steps", "off, relatively", {"gap": gaps}),)


CLAIMS = (
    Claim("round-trip", "reversible Heun on a neural ODE, forward and back, 10 to 10 000 steps: "
          "the start is missed, relatively, by", lambda e: numerics.round_trip(0, COUNTS), 1e-12,
          headline=True),
    Claim("round-trip-sde", "on a neural SDE with three motions, as many steps",
          lambda e: numerics.round_trip(1, COUNTS), 1e-12, headline=True),
    Claim("reversible-gradient", "its gradient in the memory of one step is that of "
          "backpropagation, ODE", lambda e: numerics.reversible_off(0), 1e-12, headline=True),
    Claim("reversible-gradient-sde", "and SDE", lambda e: numerics.reversible_off(1), 1e-12,
          headline=True),
    Claim("continuous-off", "the continuous adjoint differs from it: 10 steps of Heun, at least",
          lambda e: numerics.continuous_off(10), 1e-6, "higher", headline=True),
    Claim("continuous-falls", "by which halved steps divide that: 8 ± 2",
          lambda e: numerics.continuous_off(10) / numerics.continuous_off(20), 8.0, "equal", 2.0,
          headline=True),
    Claim("order-reversible", "reversible Heun on a rotation: halved steps divide the error by "
          "4 ± 0.2", lambda e: numerics.turning_error("reversible_heun", 40)
          / numerics.turning_error("reversible_heun", 80), 4.0, "equal", 0.2),
    Claim("order-tsit5", "Tsit5: by at least 2⁵ less a tenth",
          lambda e: numerics.turning_error(numerics.tsit5(), 8)
          / numerics.turning_error(numerics.tsit5(), 16), 28.8, "higher"),
    Claim("dense", "and inside of steps", lambda e: numerics.interpolant_falls(), 28.0, "higher"),
    *(Claim(f"strong-{solver}".replace("_", "-"), f"strong order of {solver} on geometric Brownian "
            f"motion: {order:g} ± 0.1", lambda e, s=solver: numerics.strong_order(s), order,
            "equal", 0.1) for solver, order in ORDERS.items()),
    Claim("brownian-again", "a Brownian motion's answers asked again, alone and in another order: "
          "so many differ", lambda e: numerics.asked_again(), 0.0, "equal"),
    Claim("brownian-sum", "increments add up to", lambda e: numerics.additivity_off(), 1e-12),
    Claim("brownian-join", "areas of adjoining intervals join to",
          lambda e: numerics.join_off(), 1e-12),
    Claim("brownian-variance", "variance t − s of increments, 20 000 paths: off by so many "
          "standard errors", lambda e: numerics.variance_off(False), 3.0),
    Claim("brownian-area", "variance (t − s)/12 of areas",
          lambda e: numerics.variance_off(True), 3.0),
    Claim("brownian-correlation", "correlation of increment and area",
          lambda e: numerics.area_correlation(), 0.03),
    Claim("hermite-knots", "a Hermite path misses its knots by", lambda e: numerics.knots_off(),
          1e-12),
    Claim("hermite-slopes", "and the chord before each knot, its slope there, by",
          lambda e: numerics.slopes_off(), 1e-12),
    Claim("hermite-local", "a change of x_k moves it before t_(k−1) by",
          lambda e: numerics.hermite_influence(), 0.0, "equal"),
    Claim("rectilinear-causal", "and a rectilinear path before t_k by",
          lambda e: numerics.rectilinear_influence(), 0.0, "equal"),
    Claim("cde-time", "a CDE whose control has no time, walked along at another pace: differs by",
          lambda e: numerics.reparametrisation_off(), 1e-8),
    Claim("cde-exponential", "dz = A z dX is off expm(A ΔX) z by",
          lambda e: numerics.exponential_off(), 1e-9),
    Claim("pid-rejected", "Van der Pol, μ = 30: rejected steps of PI control over those of "
          "integral control", lambda e: control_ratio(1), 0.4),
    Claim("pid-taken", "and steps taken", lambda e: control_ratio(0), 1.1),
    Claim("event-time", "a ball falls 10 m at g = 8: lands at 1.5811388 ± 1e-08 s, less what was "
          "measured", lambda e: abs(numerics.fall()[0] - 2.5**0.5), 1e-8),
    Claim("event-speed", "with −12.6491106 m/s, off by",
          lambda e: abs(numerics.fall()[1] + 160**0.5), 1e-8),
    Claim("event-gradient", "and the time depends on the height by 1/(g t*), off by",
          lambda e: abs(numerics.fall()[2] - 1 / (8 * 2.5**0.5)), 1e-6),
    Claim("deq", "the implicit gradient of a DEQ is off that of 400 unrolled iterations by",
          lambda e: numerics.implicit_off(), 1e-10),
    Claim("path-kl", "divergence 0.57796 of two Ornstein-Uhlenbeck laws: off by so many standard "
          "errors", lambda e: numerics.kl_off(), 3.0),
    Claim("cde-accuracy", "a CDE tells left from right spirals, 30 % missing: accuracy",
          lambda e: e.trained.spirals["cde"], 0.95, "higher", needs="training"),
    Claim("cde-start-only", "the same network fed the first value alone",
          lambda e: e.trained.spirals["start"], 0.7, needs="training"),
    Claim("ude-interaction", "what a network adds to Lotka-Volterra is off the true interaction, "
          "on the box that was visited, by", lambda e: e.trained.predators["interaction"], 0.1,
          needs="training"),
    Claim("ude-visited", "and on the states that were visited (the box has corners beyond), "
          "by", lambda e: e.trained.predators["visited"], 0.1, needs="training"),
    Claim("ude-terms", "of {1, x, y, x², xy, y²} regression chooses xy and so many others",
          lambda e: e.trained.predators["others"], 0.0, "equal", needs="training"),
    Claim("ude-extrapolation", "tuned through the solver on t ≤ 3: error from 3 to 9",
          lambda e: e.trained.predators["extrapolation"], 0.02, needs="training"),
    Claim("node-extrapolation", "where a neural ODE without the known part has",
          lambda e: e.trained.predators["plain"], 0.1, "higher", needs="training"),
    Claim("symbolic", "right-hand sides y/(1 + y) and −x/(1 + x) that are recovered of two",
          lambda e: e.trained.formulas["recovered"], 2.0, "equal", needs="training"),
)  # fmt: skip

register(System(
    slug="neural-differential-equations",
    title="Neural differential equations",
    paper="Kidger 2022, arXiv:2202.02435",
    summary="Networks inside of differential equations: exact gradients, irregular series, noise.",
    experiment=Experiment,
    claims=CLAIMS,
    plots=plots,
))  # fmt: skip

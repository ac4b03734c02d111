"""Weighted CFM: random pairs of noise and data, weighted by how close their ends are.

The weights make flows straighter for the price of plain flow matching, and tilt the laws at both
ends: claims measure what is gained and what is paid, on finite samples against Sinkhorn's plans and
on flows that are trained in the plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pathline.fields.problems import eight_gaussians, moons
from pathline.learn import choose_eps
from pathline.paths import CondOT
from pathline.systems.system import Claim, Plot, System, register
from pathline.systems.weighted_cfm_flows import WIDE, Flows
from pathline.systems.weighted_cfm_plans import BATCHES, EPS, Coarse, Plans, field_difference
from pathline.systems.weighted_cfm_plans import ring_errors as ring


@dataclass(frozen=True)
class Experiment:
    """What the claims read."""

    plans: Plans = field(default_factory=Plans)
    coarse: Coarse = field(default_factory=Coarse)
    flows: Flows = field(default_factory=Flows)

    def gain(self, what: str) -> float:
        """Return a trained weighted flow's number over that of independent pairs."""
        weighted, plain = (self.flows.to_gaussians[name] for name in ("W", "I"))
        if what == "npe":
            return weighted.npe / plain.npe
        return weighted.off(weighted.coarse) / plain.off(plain.coarse)

    def plots(self) -> Sequence[Plot]:
        """Return the bias by temperature, and the errors of batches."""
        biases = {"W-CFM": list(zip(EPS, self.plans.biases, strict=True))}
        found = {"minibatch entropic plan": self.coarse.minibatch, "W-CFM": self.coarse.weighted}
        errors = {name: list(zip(BATCHES, off, strict=True)) for name, off in found.items()}
        return (
            Plot("Bias of the weights", "temperature", "total variation", biases),
            Plot("Quadrant to mode", "batch", "total variation", errors),
        )


def temperature_for_moons() -> float:
    """Return the temperature that the rule chooses from eight Gaussians to the moons."""
    return choose_eps(eight_gaussians(CondOT(), **WIDE).draw(range(1000)), moons(range(1000, 2000)))


CLAIMS = (
    Claim("entropic", "the weights of 300 × 300 pairs are the entropic plan between their own "
          "marginals, for ε from 0.5 to 20, to", lambda e: e.plans.own_plan_error(), 1e-12,
          headline=True),
    Claim("bias", "at ε = 2 they are this far from the one with uniform marginals (total "
          "variation)", lambda e: e.plans.biases[2], 0.1),
    Claim("bias-falls", "and ever nearer the larger ε: ratio of one to the next",
          lambda e: e.plans.bias_falls(), 1.0),
    Claim("symmetric-marginals", "on two circles nothing is tilted, for every ε",
          lambda e: ring()[0], 1e-12),
    Claim("symmetric-plan", "and the weights are the entropic plan", lambda e: ring()[1], 1e-10),
    Claim("cost", "at ε = 1 random pairs cost more than entropic ones, and those more than optimal "
          "ones, by", lambda e: e.plans.cost_gap(), 0.0, "higher"),
    Claim("tilt-told", "where weighted pairs cost less than entropic ones the diagnosis says that "
          "it is tilt", lambda e: e.plans.tilt_told(), 0.05, "higher"),
    Claim("population", "the field of the weighted loss is that of the plain one under the "
          "entropic plan of the tilted laws, with bridge noise 0.05",
          lambda e: field_difference(), 1e-10),
    Claim("rule-moons", "from eight Gaussians to moons, where small temperatures harm, the rule "
          "chooses none below 2", lambda e: temperature_for_moons(), 2.0, "higher"),
    Claim("minibatch", "with four times the batch the coarse minibatch plan is nearer to the "
          "entropic one by", lambda e: e.coarse.least_fall(), 2.5, "higher"),
    Claim("batch-free", "the weighted one does not depend on the batch",
          lambda e: e.coarse.dependence(), 0.01),
    Claim("balanced", "the balanced one, with the sample's potentials, is the entropic plan at any "
          "batch", lambda e: max(e.coarse.balanced), 0.01),
    Claim("step-time", "a weighted update takes this much of a plain one's processor time",
          lambda e: e.flows.step_ratio("I"), 1.2),
    Claim("step-time-ot", "and this much of one with exact transport (batch 256)",
          lambda e: e.flows.step_ratio("OT"), 0.5),
    Claim("npe", "trained to eight Gaussians at the chosen temperature, the excess of the paths' "
          "energy over that of independent pairs", lambda e: e.gain("npe"), 0.5,
          headline=True, needs="training"),
    Claim("five-steps", "the distance to the data after five Euler steps, likewise",
          lambda e: e.gain("five"), 1.0, needs="training"),
    Claim("modes", "total variation of the modes' shares",
          lambda e: e.flows.to_gaussians["W"].mode_error, 0.05, needs="training"),
    Claim("moons-bias", "to the moons each smaller ε of 5, 2, 1, 0.5 ends farther from the data: "
          "least ratio", lambda e: e.flows.bias_grows(), 1.0, "higher", needs="training"),
    Claim("moons-straight", "while at ε = 0.5 five steps differ less from a hundred: share of what "
          "independent pairs have", lambda e: e.flows.drift_left(), 0.25, needs="training"),
)  # fmt: skip

register(System(
    slug="weighted-cfm",
    title="Weighted CFM",
    paper="Calvo-Ordoñez et al. 2025, arXiv:2507.22270",
    summary="Straighter flows at the price of plain training: pairs count by how near they are.",
    experiment=Experiment,
    claims=CLAIMS,
    plots=Experiment.plots,
))  # fmt: skip

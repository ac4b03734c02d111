"""Stable neural SDEs: Langevin-type, with linear noise, geometric; and the naive one beside them.

Contraction, exponents and signs are measured on closed forms; what they are worth where half of
a series is missing, on trained classifiers (`pathline run stable-neural-sde --train`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pathline.systems import stable_sde_measures as measures
from pathline.systems.stable_sde_trained import Trained, write
from pathline.systems.system import Claim, Plot, System, register


@dataclass(frozen=True)
class Experiment:
    """What the claims read."""

    trained: Trained = field(default_factory=Trained)


def crossing(sigma: float, h: float) -> Callable[[Any], float]:
    """Return what measures the share of paths that cross 0 over what was expected."""
    return lambda e: measures.crossed(sigma, h) / measures.CROSSINGS[sigma, h]


def plots(experiment: Experiment) -> tuple[Plot, ...]:
    """Return accuracies over what is left of a series, once all were trained."""
    curves = experiment.trained.curves()
    return (Plot("Three frequencies", "share observed", "accuracy", curves),) if curves else ()


def _accuracy(kind: str, missing: float = 0.5) -> Callable[[Experiment], float]:
    return lambda e: e.trained.frequencies(kind, missing)


CLASSES: Mapping[str, tuple[str, float]] = {
    "lnsde": ("with linear noise", 0.9), "gsde": ("geometric", 0.9), "lsde": ("Langevin", 0.6),
}  # fmt: skip

CLAIMS = (
    *(Claim(f"accuracy-{kind}", f"three frequencies, 50 % missing: test accuracy, {what}",
            _accuracy(kind), bound, "higher", headline=True, needs="training")
      for kind, (what, bound) in CLASSES.items()),
    Claim("accuracy-naive", "and of a naive neural SDE, where chance is 0.33", _accuracy("naive"),
          0.45, headline=True, needs="training"),
    Claim("robust", "from 0 to 70 % missing, each trained: the best class loses",
          lambda e: e.trained.loss_of_the_best(), 0.1, needs="training"),
    Claim("archive", "three sets of the archive, 50 % missing: mean accuracy with linear noise "
          "above the naive one's", lambda e: e.trained.ahead_on_the_archive(), 0.1, "higher",
          needs="training"),
    Claim("contraction", "two states under one noise, drift −1.5 z + 0.5 tanh z: their distance at "
          "T = 5 over e^(−m T), m from a probe, at most", lambda e: measures.contraction_ratio(),
          1.01),
    Claim("lyapunov", "dz = 0.5 z dt + 1.5 z dW has the exponent -0.625 ± 0.05",
          lambda e: measures.exponent(), -0.625, "equal", 0.05),
    Claim("variance", "dz = −z dt + 0.7 dW has the variance 0.245 ± 0.0049",
          lambda e: measures.invariant_variance(), 0.245, "equal", 0.0049),
    Claim("log-signs", "signs that the geometric class changes in its logarithm",
          lambda e: measures.log_scheme_changes(), 0.0, "equal"),
    Claim("log-zero", "how far it moves from 0", lambda e: measures.zero_moves(), 0.0, "equal"),
    *(Claim(f"crossing-{sigma:g}-{h:g}", f"σ = {sigma:g}, h = {h:g}: paths that Euler takes across "
            f"0 over {share:g}, 1 ± 0.3", crossing(sigma, h), 1.0, "equal", 0.3)
      for (sigma, h), share in measures.CROSSINGS.items()),
    Claim("sqrt", "dz = −z dt + √z dW: share of paths that become NaN",
          lambda e: measures.broken("sqrt")[0], 1.0, "equal"),
    Claim("cube", "dz = −z dt + z³ dW: share of paths beyond 10⁶: 0.055 ± 0.045",
          lambda e: measures.broken("cube")[1], 0.055, "equal", 0.045),
    Claim("state", "and with 0.8 z", lambda e: sum(measures.broken("state", sigma=0.8)), 0.0,
          "equal"),
    Claim("reads-naive", "slope of the naive net's logits in the observation in the middle",
          lambda e: measures.influence("naive"), 0.0, "equal"),
    Claim("reads-stable", "and of the three classes', the least",
          lambda e: min(map(measures.influence, measures.STABLE)), 1e-6, "higher"),
)  # fmt: skip

register(System(
    slug="stable-neural-sde",
    title="Stable neural SDEs",
    paper="Oh, Lim & Kim 2024, arXiv:2402.14989",
    summary="Neural SDEs that stay put and read the data all along: irregular series classified.",
    experiment=Experiment,
    claims=CLAIMS,
    plots=plots,
    tables=write,
))  # fmt: skip

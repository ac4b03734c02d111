"""Reward-directed diffusion and optimisation by sampling: designs that score high and stay real.

Everything but the last claims is measured with exact denoisers of Gaussian data on a subspace:
guidance against the conditional law in closed form, searches against the optimum on the subspace,
errors against the number of data. The last ones train a conditional encoder-decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pathline.systems.diffusion_overview_guided import Guided
from pathline.systems.diffusion_overview_learned import Learned
from pathline.systems.diffusion_overview_rates import DIMS, Rates
from pathline.systems.system import Claim, Plot, System, register


@dataclass(frozen=True)
class Experiment:
    """What the claims read."""

    guided: Guided = field(default_factory=Guided)
    learned: Learned = field(default_factory=Learned)
    rates: Rates = field(default_factory=Rates)

    def plots(self) -> Sequence[Plot]:
        """Return how errors fall with the number of data, and rewards rise with rounds."""
        subspaces = {"D = 32": self.rates.subspace, "D = 128": self.rates.subspace_wide}
        laws = {f"D = {whole}, d = {d}": r for (whole, d), r in self.rates.laws.items()}
        searches = {"Alg. 1": self.guided.climb, "Alg. 2": self.guided.tuned}
        missing = {
            name: [(k + 1.0, 10 - float(mean)) for k, mean in enumerate(search.means)]
            for name, search in searches.items()
        }
        tables = {
            "Error of the subspace": subspaces,
            "Distance to the nearest of n data": laws,
        }
        return (
            Plot("Reward below the optimum", "round", "10 − mean of f", missing),
            *(
                Plot(title, "n", "error", {
                    name: list(zip(r.sizes, r.means.tolist(), strict=True))
                    for name, r in found.items()
                })
                for title, found in tables.items()
            ),
        )  # fmt: skip


CLAIMS = (
    Claim("look-ahead", "N(0, 1) on 16 of 64 dimensions, a reward nine times as much off as on "
          "them, 200 ancestral steps: guided to 0.1, 0.3 and 1 the mean reward is the conditional "
          "law's, relative", lambda e: e.guided.mean_off(), 0.04, headline=True),
    Claim("look-ahead-spread", "and so is its deviation", lambda e: e.guided.spread_off(), 0.06,
          headline=True),
    Claim("look-ahead-support", "and no sample leaves the subspace: mean off-support ratio",
          lambda e: e.guided.leaves(), 1e-3, headline=True),
    Claim("naive-leaves", "the naive gradient's ratio over that, at every target",
          lambda e: e.guided.naive_leaves(), 10.0, "higher", headline=True),
    Claim("climb", "60 rounds of look-ahead search for the most of 10 − (θ·x − 3)² reach",
          lambda e: float(e.guided.climb.means[60]), 5.0, "higher"),
    Claim("climb-support", "on the subspace: off-support ratio of every round",
          lambda e: float(e.guided.climb.off[:61].max()), 1e-3),
    Claim("naive-climb", "12 rounds with the naive gradient are off it by",
          lambda e: float(e.guided.naive.off[-1]), 0.03, "higher"),
    Claim("alg-1", "held to the data's mean, the search settles at 6 ± 1 (last ten of 150 rounds)",
          lambda e: e.guided.settled(), 6.0, "equal", 1.0),
    Claim("alg-2", "with a mean that moves to the samples by 5 % a round it reaches, after as many",
          lambda e: float(e.guided.tuned.means[-1]), 9.5, "higher"),
    Claim("alg-2-support", "on the subspace, too: off-support ratio",
          lambda e: float(e.guided.tuned.off.max()), 1e-3),
    Claim("regression", "a ridge (λ = 1) on 50, 200 and 1000 labels with noise 0.1 errs on the "
          "subspace as its closed form says (root mean square of 64 draws, relative)",
          lambda e: e.learned.regression_off(), 0.15),
    Claim("regression-specified", "0.054, 0.0135 and 0.0062 are draws of it: deviations off the "
          "mean", lambda e: e.learned.specified_off(), 3.0),
    Claim("pseudo-labels", "asked for reward 1, the Gaussian of data and pseudo-labels has a true "
          "mean reward of", lambda e: e.learned.reached(1.0), 0.98, "higher"),
    Claim("pseudo-labels-linear", "what it lacks of a grows in proportion to a, from 0.5 to 8 "
          "(spread of the shares)", lambda e: e.learned.linear_off(), 1e-6),
    Claim("pseudo-labels-support", "and it is on the subspace", lambda e:
          e.learned.conditional_off(), 1e-6),
    Claim("guided-ridge", "without any conditional model: look-ahead guidance by the ridge, "
          "asked for 1, has a true mean reward of", lambda e: e.learned.guided(), 0.96, "higher"),
    Claim("subspace-rate", "principal components of n noisy rows (D = 32, d = 4) err as n to the "
          "-0.5 ± 0.03", lambda e: e.rates.subspace.slope, -0.5, "equal", 0.03),
    Claim("subspace-rate-wide", "and so in 128 dimensions: as n to the -0.5 ± 0.03",
          lambda e: e.rates.subspace_wide.slope, -0.5, "equal", 0.03),
    *(Claim(f"distance-{d}", f"the distance of fresh points to n data on {d} of 64 dimensions "
            f"falls as n to the −1/{d}: the exponent over that is 1 ± 0.2",
            lambda e, d=d: e.rates.law_off(d), 1.0, "equal", 0.2) for d in DIMS),
    Claim("ambient", "in 128 dimensions the exponents differ from these by at most",
          lambda e: e.rates.ambient(), 0.02),
    Claim("sampled", "to samples of the finite-data denoiser it falls likewise (d = 2): exponent "
          "over −1/2, 1 ± 0.2", lambda e: e.rates.sampled.slope * -2, 1.0, "equal", 0.2),
    Claim("trained-subspace", "an encoder-decoder trained on 6400 pseudo-labelled rows finds the "
          "subspace to", lambda e: e.learned.gap(), 0.15, needs="training"),
    Claim("trained-support", "and its samples at rewards up to two deviations above the mean have "
          "an off-support ratio of", lambda e: e.learned.proposed_off(), 0.05, needs="training"),
)  # fmt: skip

register(System(
    slug="diffusion-overview",
    title="Diffusion overview",
    paper="Chen et al. 2024, arXiv:2404.07771",
    summary="Designs that score high and stay among the data: guidance and search by sampling.",
    experiment=Experiment,
    claims=CLAIMS,
    plots=Experiment.plots,
))  # fmt: skip

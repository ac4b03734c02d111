"""CTRL: a new control for a pretrained model, by reinforcement learning from labelled clean data.

On a line every law of a chain can be summed up, so claims of theory are exact there, and what was
learned is judged without drawing a sample; on digits a network is adapted and its pictures counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pathline.systems.ctrl_digits import Digits
from pathline.systems.ctrl_learned import Independence, Learned
from pathline.systems.ctrl_oracle import STEPS, Accounting, Oracle
from pathline.systems.system import Claim, Plot, System, register


@dataclass(frozen=True)
class Experiment:
    """What the claims read."""

    oracle: Oracle = field(default_factory=Oracle)
    accounting: Accounting = field(default_factory=Accounting)
    learned: Learned = field(default_factory=Learned)
    independence: Independence = field(default_factory=Independence)
    digits: Digits = field(default_factory=Digits)

    def missed(self) -> float:
        """Return the most that the best chain misses: all steps at γ = 1, 50 at 5 and 10."""
        return max(*(self.oracle.missed(n)[0] for n in STEPS), *self.oracle.missed(50)[1:])

    def warned(self) -> float:
        """Return how many of two chains are judged rightly: eta = 1 is silent, 0.3 warns."""
        return float(not self.oracle.memory(50, 1.0)[1]) + float(self.oracle.memory(50, 0.3)[1])

    def beats_naive(self) -> float:
        """Return what the learned control misses, over what naive guidance does."""
        return self.learned.true / self.oracle.naive(20)

    def digits_kept(self) -> float:
        """Return right digits under control, over those of the pretrained model."""
        return self.digits.controlled[1] / self.digits.pretrained[1]

    def plots(self) -> Sequence[Plot]:
        """Return what chains miss by their steps."""
        curves = {
            "best Gaussian policy": [(n, self.oracle.by_means(n)) for n in STEPS],
            "best policy": [(n, self.oracle.missed(n)[0]) for n in STEPS],
            "best policy, eta = 0.3": [(n, self.oracle.missed(n, 0.3)[0]) for n in STEPS],
        }
        return (Plot("How far the controlled law is off", "steps", "total variation", curves),)


CLAIMS = (
    Claim("exact", "the best chain with eta = 1 ends in p_pre p̂^γ/Z, for 20, 50, 200 steps at γ = "
          "1 and 50 at 5 and 10 (total variation)", Experiment.missed, 1e-3, headline=True),
    Claim("objective", "its reward less its divergence is E[V_T], to",
          lambda e: e.oracle.gaps()[0], 1e-8),
    Claim("log-z", "and log Z, to", lambda e: e.oracle.gaps()[1], 1e-3),
    Claim("memory-20", "with eta = 0.3 starts are remembered: 20 steps miss it by 0.176 ± 0.0005",
          lambda e: e.oracle.missed(20, 0.3)[0], 0.176, "equal", 0.0005),
    Claim("memory-50", "50 steps by 0.143 ± 0.0005",
          lambda e: e.oracle.missed(50, 0.3)[0], 0.143, "equal", 0.0005),
    Claim("memory-200", "200 steps by 0.126 ± 0.0005",
          lambda e: e.oracle.missed(200, 0.3)[0], 0.126, "equal", 0.0005),
    Claim("memory-half", "and a start at t = 0.5 with eta = 1 by 0.0195 ± 0.0005",
          lambda e: e.oracle.missed(50, 1.0, 0.5)[0], 0.0195, "equal", 0.0005),
    Claim("spread", "the value of the start spreads (5–95 %) with eta = 1, 50 steps",
          lambda e: e.oracle.memory(50, 1.0)[0], 0.1),
    Claim("spread-0.3", "and with eta = 0.3", lambda e: e.oracle.memory(50, 0.3)[0], 3.0, "higher"),
    Claim("warned", "of which the second brings a warning, the first none",
          Experiment.warned, 2.0, "equal"),
    Claim("gaussian", "what a chain of shifted means misses, times its steps",
          lambda e: max(n * e.oracle.by_means(n) for n in STEPS), 1.2),
    Claim("accounting", "the divergence summed along rollouts is the log-ratio of trajectories, in "
          "standard errors", lambda e: e.accounting.off(), 3.0),
    Claim("idle", "a control that starts at zero costs", lambda e: e.accounting.idle()[0], 0.0,
          "equal"),
    Claim("idle-samples", "and changes so many samples", lambda e: e.accounting.idle()[1], 0.0,
          "equal"),
    Claim("learned", "taught on the line, a control misses, on 60 bins", lambda e: e.learned.true,
          0.1, needs="training"),
    Claim("naive", "over what guidance by the clean classifier at x_t misses",
          Experiment.beats_naive, 0.5, needs="training"),
    Claim("few", "from 50 labels, over what a conditional model of these 50 misses",
          lambda e: e.learned.few / e.learned.guided, 1.0, needs="training"),
    Claim("pairs", "where y is independent of c given x, pairs miss as much as triples, to",
          lambda e: abs(e.independence.gap(False)), 0.03, needs="training"),
    Claim("pairs-dependent", "where it is not, they miss more by",
          lambda e: e.independence.gap(True), 0.05, "higher", needs="training"),
    Claim("flagged", "which residuals tell: their chance if it were independent",
          lambda e: e.independence.test(True).chance, 1e-3, needs="training"),
    Claim("not-flagged", "and if it is", lambda e: e.independence.test(False).chance, 1e-3,
          "higher", needs="training"),
    Claim("digits", "digits are drawn with the ink that was asked for, one of three",
          lambda e: e.digits.controlled[0], 0.75, "higher", needs="training"),
    Claim("digits-kept", "and are read as well as those of the pretrained model",
          Experiment.digits_kept, 0.9, "higher", needs="training"),
)  # fmt: skip

register(System(
    slug="ctrl",
    title="CTRL",
    paper="Zhao et al. 2024, arXiv:2406.12120",
    summary="A new control for a pretrained model, from clean labelled data and a reward.",
    experiment=Experiment,
    claims=CLAIMS,
    plots=Experiment.plots,
))  # fmt: skip

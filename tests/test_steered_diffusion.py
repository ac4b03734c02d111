"""System steered-diffusion: its thresholds, what costs little, and that its detectors detect."""

import pytest
import torch

from pathline import systems
from pathline.steer import Inpaint, Repeat, posterior
from pathline.steer.repeat import _Copy

pytest.importorskip("sklearn", reason='it comes with the extra "pathline[data]"')

from pathline.systems.steered_digits import centre, judge, law, left, log_hole, pixels
from pathline.systems.steered_measures import GRID, Experiment

ASKED = {
    "one-pass": (-0.75, "lower"), "two": (0.2, "higher"), "four": (-0.55, "higher"),
    "eight": (-0.45, "higher"), "monotone": (0.0, "higher"), "confidence": (0.05, "lower"),
    "known": (1e-12, "lower"), "pooled": (1e-10, "lower"), "error": (0.0, "higher"),
    "clean-density": (0.0, "higher"), "clean-error": (1.0, "lower"),
    "clean-residual": (0.03, "lower"), "gradient": (1e-8, "lower"),
    "both-known": (1e-12, "lower"), "both-class": (2.0, "higher"),
    "emoji-luma": (1e-3, "lower"), "emoji-resolution": (0.5, "higher"),
}  # fmt: skip
"""The thresholds of the specification; "both-class" is ours there, too."""


def test_the_claims_are_those_of_the_specification():
    claims = systems.systems.build("steered-diffusion").claims
    assert {c.id: (c.threshold, c.better) for c in claims} == ASKED
    headline = [claim.id for claim in claims if claim.headline]
    assert headline == ["one-pass", "two", "four", "eight"]
    assert all(claim.needs is None for claim in claims)


def test_what_costs_little_holds():
    quick = ["pooled", "clean-density", "clean-error", "clean-residual", "gradient"]
    report = systems.run("steered-diffusion", only=quick)
    assert [m for m in report.claims if not m.passed] == []


@pytest.mark.slow
def test_everything_on_digits_holds():
    report = systems.run("steered-diffusion", only=[k for k in ASKED if "emoji" not in k])
    assert [m for m in report.claims if not m.passed] == []


def test_the_score_of_a_hole_is_that_of_bayes():
    """log p(hole | rest) = log p(x) − log p(rest), by the components given the rest."""
    x = pixels()[0][:5]
    found = posterior(law(), centre(), centre().forward(x), 0.0)
    hidden = ~centre().mask.flatten().bool()
    normal = torch.distributions.Normal(law().means.flatten(1)[:, hidden], law().stds[:, None])
    each = normal.log_prob(x.flatten(1)[:, None, hidden]).sum(2)  # round: free of the rest
    exact = (found.shares.log() + each).logsumexp(1) / 16
    torch.testing.assert_close(log_hole(x, centre()), exact)


def test_the_classifier_knows_digits_that_it_has_not_seen():
    x, labels = (part[-297:] for part in pixels())
    assert float((judge()(x).argmax(1) == labels).double().mean()) > 0.9
    assert float(left().mask.mean()) == 0.5


@pytest.mark.slow
def test_a_wrong_scale_of_the_noise_between_visits_is_seen(monkeypatch):
    """β instead of √β: samples become too sure, by more than the claim allows."""
    right = _Copy._back

    def wrong(self, s, t):
        made = right(self, s, t)
        z = self._to.rows[-1].z
        for draw in z:
            z[draw] = z[draw] ** 2
        return made

    monkeypatch.setattr(_Copy, "_back", wrong)
    e = Experiment(draws=1)
    plan = Repeat("ddpm", 8, window=(0.0, 0.999)).plan(law().path, GRID)
    import pathline as pl

    guide = Inpaint(centre().mask, e.truth)
    x = pl.sample(law(), len(e.truth), solver=plan, guide=guide, dtype=torch.float64).x
    assert float(log_hole(x, centre()).mean()) > e.score(0) + 0.05

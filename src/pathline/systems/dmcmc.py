"""Denoising MCMC: chains that stay near the data, and a short way to denoise from where they are.

Measured on E16 (`fields.problems.e16`), σ from 0.01 to 50, exact score and exact q(σ | x) on 250
levels, 400 chains and ten outputs of each. SW is the sliced 2-Wasserstein distance to 8000 true
samples, RMS the distance to the nearest centre (0.080 for the data). Nine evaluations are three
sweeps, five of EDM's Heun and one closing; a chain's start (57) is shared by its outputs.

What the paper does not say: EDM's Heun is poor at ten evaluations, and multistep solvers from pure
noise are better there than the chains, and independent ("limit-multistep").
"""

from __future__ import annotations

from itertools import pairwise

from pathline.core import noise
from pathline.learn.noise_classifier import fashion_images, load_noise_classifier
from pathline.speed import Langevin
from pathline.systems.dmcmc_e16 import WIDTH, Experiment, level_spread
from pathline.systems.dmcmc_fashion import frechet_ratio
from pathline.systems.system import Claim, Plot, System, register


def learned_levels() -> float:
    """Return the largest median of |log σ̂/σ| over σ, on 1000 test images of Fashion-MNIST."""
    levels, images, errors = load_noise_classifier(), fashion_images("test")[:1000], []
    for sigma in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0):
        z = noise.normal(range(1000), images.shape[1:], stream="probe")
        errors.append(float((levels.estimate(images + sigma * z) / sigma).log().abs().median()))
    return max(errors)


CLAIMS = (
    Claim("sw-9", "SW of DLG at 9 evaluations is at most 0.3 of KAR1's at 10, η = 0.02 and 0.05",
          lambda e: e.worst("SW", 10), 0.3, headline=True),
    Claim("rms-9", "RMS of DLG at 9 evaluations is at most 1.1 of KAR1's at 14",
          lambda e: e.worst("RMS", 14), 1.1, headline=True),
    Claim("limit-20", "honest limit: at 20 evaluations KAR1's SW is smaller than DLG's at 9, for "
          "chains mix slowly between components", lambda e: e.worst("SW", 20), 1.0, "higher"),
    Claim("limit-start", "honest limit: the start, shared by ten outputs only, makes 9 evaluations "
          "14.7; KAR1's SW is smaller at 16", lambda e: e.worst("SW", 16), 1.0, "higher"),
    Claim("limit-multistep", "honest limit: DEIS from pure noise has the smaller SW, at 10 "
          "evaluations", Experiment.multistep, 1.0),
    Claim("exactness", "(x, σ) from π and 200 steps give every moment up to order 2 of the data "
          "within 4 standard errors, also from σ < 0.5 alone", Experiment.moments_off, 4.0),
    Claim("mala-levels", "with MALA and drawn levels σ keeps its prior over 4000 sweeps (total "
          "variation on ten bins)", lambda e: level_spread(e.adjusted), 0.1, headline=True),
    Claim("mala-accepts", "and accepts its moves", lambda e: float(e.adjusted.accepted.mean()),
          0.8, "higher"),
    Claim("unadjusted", "the same without the Metropolis test runs away to σ_max",
          lambda e: level_spread(e.walk(Langevin(0.4, WIDTH), "drawn", 1000)), 0.3, "higher"),
    Claim("constant-step", "a constant step (0.05) empties the low levels",
          lambda e: level_spread(e.walk(Langevin(0.05), "drawn", 1000)), 0.2, "higher"),
    Claim("most-likely", "the most likely level, with steps that scale, is off but does not run "
          "away: at most 0.2",
          lambda e: level_spread(e.walk(Langevin(0.4, WIDTH), "most_likely", 1000)), 0.2),
    Claim("noise-drift", "a Langevin step around one datum turns σ² into σ² + η²/4σ², σ²/η = 0.5, "
          "1, 4", Experiment.drift_error, 0.01),
    Claim("level-estimate", "the exact most likely level errs by at most 1.4 of 1/√(2d) (RMS of "
          "log σ̂/σ), σ = 0.2 … 5", Experiment.map_error, 1.4),
    Claim("learned-levels", "the shipped classifier errs by at most 0.15 (median |log σ̂/σ|), "
          "σ = 0.1 … 10, Fashion-MNIST", lambda e: learned_levels(), 0.15),
    Claim("mixing", "larger steps change component more often (least increase of the share of "
          "chains, η = 0.02, 0.05, 0.1, 0.3)",
          lambda e: min(b - a for a, b in pairwise(e.changed)), 0.05, "higher"),
    Claim("start-level", "and denoise from higher levels (least ratio of median σ)",
          lambda e: min(b / a for a, b in pairwise(e.medians)), 1.0, "higher"),
    Claim("integrators", "with chains, the paper's six integrators beat themselves from pure noise "
          "at as many evaluations or more, 9 to 13 (largest ratio of SW)",
          Experiment.integrators, 1.0),
    Claim("fashion", "feature Fréchet distance at 9 evaluations is at most 0.8 of KAR1's at 10, "
          "5000 samples of Fashion-MNIST", lambda e: frechet_ratio(), 0.8, needs="training"),
)  # fmt: skip


def plots(e: Experiment) -> tuple[Plot, ...]:
    """Return SW against evaluations: KAR1 from pure noise, and DLG with and without its start."""
    chains = e.chains[0.02]
    curves = {
        "KAR1 from noise": [(n, e.sw(x)) for n, x in e.plain.items()],
        "DLG, η = 0.02": [(chains.ledger.running, e.sw(chains.x))],
        "with its start": [(chains.ledger.total, e.sw(chains.x))],
    }
    return (Plot("Denoising MCMC on E16", "evaluations a sample", "sliced distance", curves),)


register(System(
    slug="dmcmc",
    title="Denoising MCMC",
    paper="Kim & Ye 2022, arXiv:2209.14593",
    summary="Many samples of one condition at about ten evaluations each, from chains near data.",
    experiment=Experiment,
    claims=CLAIMS,
    plots=plots,
))  # fmt: skip

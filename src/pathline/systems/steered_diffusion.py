"""Steered Diffusion: one unconditional model is an inpainter, an upscaler, a class generator.

Everything is measured on digits as a mixture of 40 round Gaussians, whose posteriors are exact, and
on the shipped emoji model. The hole is the central 4 × 4 of 8 × 8 pixels; 100 steps even in t,
ancestral noise.
"""

from __future__ import annotations

from itertools import pairwise

from pathline.systems.steered_measures import REPEATS, Experiment, gradient_error
from pathline.systems.system import Claim, Plot, System, register

CLAIMS = (
    Claim("one-pass", "one pass that puts the known pixels in is a poor sample: mean log p(hole | "
          "rest), nats a pixel", lambda e: e.score(1), -0.75, headline=True),
    Claim("two", "two visits of each level gain so much", lambda e: e.score(2) - e.score(1), 0.2,
          "higher", headline=True),
    Claim("four", "with four it is", lambda e: e.score(4), -0.55, "higher", headline=True),
    Claim("eight", "with eight it is", lambda e: e.score(8), -0.45, "higher", headline=True),
    Claim("monotone", "and every doubling gains (the least gain)", lambda e: min(
        e.score(b) - e.score(a) for a, b in pairwise(REPEATS)), 0.0, "higher"),
    Claim("confidence", "four and eight visits are not surer than exact draws: so much above them",
          lambda e: max(e.score(4), e.score(8)) - e.score(0), 0.05),
    Claim("known", "the known pixels are kept (largest difference)",
          lambda e: e.known_residual, 1e-12),
    Claim("pooled", "2 × 2 means are kept, by the true pseudo-inverse",
          lambda e: e.pooled_residual, 1e-10),
    Claim("error", "the error of the hole falls with every doubling (the least fall)",
          lambda e: min(e.error(a) - e.error(b) for a, b in pairwise(REPEATS)), 0.0, "higher"),
    Claim("clean-density", "a loss of the clean estimate makes likelier digits than one of the "
          "noisy state, 2 × 2 means and λ = 30: mean log p a pixel, difference",
          lambda e: e.pooled("model")[0] - e.pooled("state")[0], 0.0, "higher"),
    Claim("clean-error", "and nearer ones: ratio of mean square errors",
          lambda e: e.pooled("model")[1] / e.pooled("state")[1], 1.0),
    Claim("clean-residual", "at a residual of both of at most, rms",
          lambda e: max(e.pooled("model")[2], e.pooled("state")[2]), 0.03),
    Claim("gradient", "the gradient by autograd is (α/σ²) Cov[x_0 | x_t] ∇V, relatively",
          lambda e: gradient_error(), 1e-8),
    Claim("both-known", "with a left half and a class, the half is kept",
          lambda e: e.both_residual, 1e-12),
    Claim("both-class", "and the share of the class is so many times that without it",
          lambda e: e.share(e.both) / e.share(e.half), 2.0, "higher"),
    Claim("emoji-luma", "emoji are coloured at the luma that was given (largest difference)",
          lambda e: e.emoji.luma_residual, 1e-3),
    Claim("emoji-resolution", "held-out emoji made four times smaller are restored better than by "
          "cubic interpolation, dB of PSNR", lambda e: e.emoji.gain, 0.5, "higher"),
)  # fmt: skip


def plots(e: Experiment) -> tuple[Plot, ...]:
    """Return how far inpainting is from the exact posterior, against visits."""
    gaps = tuple((float(k), e.score(0) - e.score(k)) for k in REPEATS)
    errors = tuple((float(k), e.error(k)) for k in REPEATS)
    curves = {"log p below the exact posterior": [p for p in gaps if p[1] > 0], "error": errors}
    return (Plot("Holes of digits", "visits of each level", "nats a pixel", curves),)


register(System(
    slug="steered-diffusion",
    title="Steered Diffusion",
    paper="Nair et al. 2023, arXiv:2310.00224",
    summary="Any frozen network or known operator steers an unconditional model, through its clean "
            "estimate.",
    experiment=Experiment,
    claims=CLAIMS,
    plots=plots,
))  # fmt: skip

"""SADA on the shipped text-to-emoji transformer: fifty steps of ++2M with guidance."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from statistics import pstdev

import torch
from torch import Tensor

from pathline.core.solution import Solution
from pathline.fields import Denoiser
from pathline.learn import load_model
from pathline.learn.quality.features import Lite0
from pathline.learn.quality.perceptual import perceptual_distance
from pathline.learn.quality.reference import to_uint8
from pathline.solvers import grids, sample
from pathline.solvers.evaluate import Speed
from pathline.speed import SADA, Cadence, Tokens
from pathline.steer import CFG

PROMPTS = (
    "red apple", "dog", "rocket", "red heart", "smiling face", "automobile", "green apple", "pizza",
)  # fmt: skip
STEPS = 50


@dataclass(frozen=True)
class OnEmoji:
    """What SADA costs and changes there; computed when first asked for, and once."""

    @cached_property
    def model(self) -> Denoiser:
        """The shipped model."""
        return load_model("emoji")

    @cached_property
    def judge(self) -> Lite0:
        """What looks at the pictures."""
        return Lite0()

    @cached_property
    def base(self) -> Tensor:
        """The pictures of fifty steps."""
        return self._drawn(None).x

    @cached_property
    def fast(self) -> Solution:
        """What SADA makes of them."""
        return self._drawn(SADA())

    def _drawn(self, speed: Speed | None) -> Solution:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "SADA's criterion")  # tokens hang on κ, skips do not
            return sample(
                self.model,
                len(PROMPTS),
                solver="dpmpp_2m",
                grid=grids.uniform(STEPS),
                guide=CFG(3.0),
                speed=speed,
                text=list(PROMPTS),
            )

    def _apart(self, drawn: Solution) -> float:
        """Return the mean perceptual distance to the pictures of fifty steps."""
        pixels = to_uint8(drawn.x), to_uint8(self.base)
        return float(perceptual_distance(self.judge, *pixels).mean())

    @property
    def nfe(self) -> float:
        """SADA's mean evaluations."""
        return sum(self.fast.nfes) / len(self.fast.nfes)

    @property
    def saved(self) -> float:
        """Fifty over SADA's evaluations."""
        return STEPS / self.nfe

    @cached_property
    def distance(self) -> float:
        """SADA's perceptual distance to fifty steps."""
        return self._apart(self.fast)

    @property
    def spread(self) -> float:
        """The standard deviation of what prompts took."""
        return pstdev(self.fast.nfes)

    @cached_property
    def cadence_ratio(self) -> float:
        """SADA's distance over the least of fixed cadences with as many evaluations."""
        every = STEPS / self.nfe
        ways = (Cadence(every, nodes=n, carry="velocity") for n in (1, 2, 3))
        return self.distance / min(self._apart(self._drawn(way)) for way in ways)

    @cached_property
    def token_ratio(self) -> float:
        """The distance with tokens chosen by κ over that of as many chosen at random."""
        chosen, random = (
            self._apart(
                self._drawn(
                    SADA(max_interval=0, lagrange_step=None, tokens=Tokens(by=by, refresh=4))
                )
            )
            for by in ("criterion", "random")
        )
        return chosen / random

"""What CODE is measured on: handwritten digits under a mixture in closed form, and their damage."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pathline.core import noise
from pathline.fields import Spherical
from pathline.paths import VPLinear
from pathline.systems.steered_digits import pixels

COMPONENTS = 60
LEAST = 0.01
"""What every variance is at least: the fit adds it to those that it finds."""
TRAINED = 1500
BLOCK = 3
FIRST = 2
"""Row and column of the pixels where a block begins: it is in the middle, where the digit is."""


@dataclass(frozen=True)
class Digits:
    """A mixture fitted to 1500 digits, and 200 others.

    The digits were written by different people one after the other, so they are shuffled first.

    Args:
        n: how many of the others.
        order: the seed of the shuffling.
    """

    n: int = 200
    order: int = 0

    @cached_property
    def _shuffled(self) -> Tensor:
        x, _ = pixels()
        keys = noise.uniform([self.order], (len(x),), stream="choice", dtype=torch.float64)[0]
        return x[keys.argsort()]

    @cached_property
    def law(self) -> Spherical:
        """The mixture."""
        from sklearn.mixture import GaussianMixture

        x = self._shuffled[:TRAINED]
        fit = GaussianMixture(
            COMPONENTS, covariance_type="spherical", reg_covar=LEAST, random_state=0
        )
        fit.fit(x.flatten(1).numpy())
        means, variances, weights = (
            torch.from_numpy(a) for a in (fit.means_, fit.covariances_, fit.weights_)
        )
        return Spherical(VPLinear(), means.reshape(-1, *x.shape[1:]), variances.sqrt(), weights)

    @cached_property
    def clean(self) -> Tensor:
        """Digits that the mixture has not seen, (n, 1, 8, 8)."""
        return self._shuffled[TRAINED : TRAINED + self.n]

    @cached_property
    def damaged(self) -> dict[str, Tensor]:
        """The same digits with a block replaced, under noise, and with less contrast."""
        x, seeds = self.clean, range(self.n)
        z = noise.normal(seeds, x.shape[1:], stream="data", index=9, dtype=torch.float64)
        return {
            "mask": self._blocked(x),
            "noise": (x + 0.5 * z).clamp(-1.5, 1.5),
            "contrast": 0.3 * x + 0.2,
            "fog": 0.5 * x + 0.5,
        }

    def _blocked(self, x: Tensor) -> Tensor:
        """Return pictures with 3 × 3 pixels in the middle replaced by one random value of each."""
        u = noise.uniform(range(self.n), (1,), stream="choice", index=1, dtype=torch.float64)
        made, block = x.clone(), slice(FIRST, FIRST + BLOCK)
        made[..., block, block] = (2 * u - 1)[:, :, None, None]
        return made

    def realism(self, x: Tensor) -> float:
        """Return the mean log-density of pictures under the mixture, nats a dimension."""
        at = torch.zeros((), dtype=torch.float64)
        return float(self.law.log_prob(x, at).mean()) / x[0].numel()

    @cached_property
    def typical(self) -> float:
        """The realism of the mixture's own draws."""
        return self.realism(self.law.draw(range(2000)))

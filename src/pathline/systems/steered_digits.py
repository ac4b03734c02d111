"""Handwritten digits as a law in closed form: a mixture of 40 round Gaussians."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pathline.core import noise
from pathline.data import digits
from pathline.fields import Spherical
from pathline.paths import VPLinear
from pathline.steer import operators

COMPONENTS = 40
SHAPE = (1, 8, 8)
CLASSES = len(digits.CLASSES)


@cache
def pixels() -> tuple[Tensor, Tensor]:
    """Return all digits in [−1, 1], (n, 1, 8, 8) float64, and their classes; test data last."""
    data = digits.load()
    images = [torch.from_numpy(a) for a in (data.train_images, data.test_images)]
    labels = [torch.from_numpy(a) for a in (data.train_labels, data.test_labels)]
    x = torch.cat(images).double() / ((digits.LEVELS - 1) / 2) - 1
    return x[:, None], torch.cat(labels).long()


@cache
def law() -> Spherical:
    """Return the mixture, fitted by expectation maximisation (scikit-learn's, from one seed)."""
    from sklearn.mixture import GaussianMixture

    x, _ = pixels()
    fit = GaussianMixture(COMPONENTS, covariance_type="spherical", random_state=0)
    fit.fit(x.flatten(1).numpy())
    means, variances, weights = (
        torch.from_numpy(a) for a in (fit.means_, fit.covariances_, fit.weights_)
    )
    return Spherical(VPLinear(), means.reshape(-1, *SHAPE), variances.sqrt(), weights)


def centre() -> operators.Mask:
    """Return the mask that hides the central 4 × 4 pixels."""
    mask = torch.ones(SHAPE, dtype=torch.float64)
    mask[:, 2:6, 2:6] = 0
    return operators.Mask(mask)


def left() -> operators.Mask:
    """Return the mask of the left half."""
    mask = torch.zeros(SHAPE, dtype=torch.float64)
    mask[..., :4] = 1
    return operators.Mask(mask)


def log_hole(x: Tensor, mask: operators.Mask) -> Tensor:
    """Return log p(hidden | known)/hidden, nats a pixel, (batch,)."""
    known = mask.mask.flatten().bool()
    whole, flat = law(), x.flatten(1)
    marginal = Spherical(whole.path, whole.means.flatten(1)[:, known], whole.stds, whole.weights)
    at = torch.zeros((), dtype=torch.float64)
    return (whole.log_prob(x, at) - marginal.log_prob(flat[:, known], at)) / int((~known).sum())


class Judge(torch.nn.Module):
    """A classifier of clean digits, trained on first use in a second or two, and frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(64, 64), torch.nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (batch, 10)."""
        return self.second(F.silu(self.first(x.flatten(1))))


@cache
def judge() -> Judge:
    """Return the classifier: it has seen the first 1500 digits, with a little noise on them."""
    x, labels = (part[: -digits.HELD_OUT] for part in pixels())
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        network = Judge().double()
        rate = torch.optim.Adam(network.parameters(), lr=1e-2, weight_decay=1e-4)
        for update in range(200):
            z = noise.normal([update], x.shape, stream="data", dtype=torch.float64)[0]
            loss = F.cross_entropy(network(x + 0.3 * z), labels)
            rate.zero_grad()
            loss.backward()
            rate.step()
    return network.eval().requires_grad_(False)

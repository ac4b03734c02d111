"""Calibration: are a classifier's probabilities frequencies?

A reward that is a logarithm of a probability takes the probability at its word, so a classifier
that is too sure makes a control that is too strong. One number mends most of it: logits over a
temperature T.

Paper: Guo et al. 2017 (arXiv:1706.04599).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pathline.core.errors import UsageError

__all__ = ["Calibrated", "best_temperature", "calibration_error", "warn_if_uncalibrated"]

MOST_ERROR = 0.1
"""Calibration error on held-out data above which a classifier is no reward."""


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error: |accuracy − confidence|, averaged over bins.

    Args:
        logits: (n, classes).
        labels: (n,) int64.
        bins: even ones, of the probability of the likeliest class.

    Raises:
        UsageError: no samples, or labels that are no classes.

    Example: always 75 % sure, and right half the time.
        >>> logits = torch.tensor([[0.0, 1.0986]]).expand(4, 2)
        >>> round(calibration_error(logits, torch.tensor([0, 1, 0, 1])), 3)
        0.25
    """
    _check(logits, labels)
    sure, said = logits.double().softmax(1).max(1)
    hits = (said == labels).double()
    which = (sure * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, which.cpu(), (hits - sure).cpu())
    return float(gaps.abs().sum() / len(labels))


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the T at which softmax(logits/T) gives the labels the highest likelihood.

    The mean of −log p is convex in 1/T; its root is bracketed and halved, in 1/T from 1e-3 to 1e3.
    Where all data are classified rightly none is highest, and T = 1.

    Args:
        logits: (n, classes), of held-out data.
        labels: (n,) int64.

    Raises:
        UsageError: no samples, or labels that are no classes.
    """
    _check(logits, labels)
    given = logits.double()
    if bool((given.argmax(1) == labels).all()):
        return 1.0
    own = given.gather(1, labels[:, None])[:, 0]

    def slope(inverse: float) -> float:  # d/dβ of −log p: E_p[ℓ] − ℓ_y
        return float(((given * (inverse * given).softmax(1)).sum(1) - own).mean())

    low, high = 1e-3, 1e3
    for _ in range(100):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / (low * high) ** 0.5


class Calibrated(nn.Module):
    """A classifier whose logits are divided by a temperature.

    Args:
        network: (x, ...) → logits (batch, classes).
        temperature: T.
        error: its calibration error on held-out data; None if nobody measured it.
    """

    def __init__(
        self, network: nn.Module | Callable[..., Tensor], temperature: float = 1.0,
        error: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise UsageError(f"a temperature is a finite number above 0; it is {temperature}.")
        self.network, self.temperature, self.error = network, temperature, error

    @classmethod
    def fitted(cls, network: nn.Module, logits: Tensor, labels: Tensor) -> Calibrated:
        """Return a classifier at the best temperature for held-out logits; warns if that fails.

        Raises:
            UsageError: no samples, or labels that are no classes.
        """
        temperature = best_temperature(logits, labels)
        error = calibration_error(logits / temperature, labels)
        warn_if_uncalibrated(error)
        return cls(network, temperature, error)

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        """Return calibrated logits, (batch, classes)."""
        return self.network(x, *more) / self.temperature


def warn_if_uncalibrated(error: float) -> None:
    """Warn if a calibration error is above 0.1."""
    if error > MOST_ERROR:
        warnings.warn(
            f"the classifier is not calibrated: its calibration error on held-out data is "
            f"{error:.3f}, above {MOST_ERROR}, and its log-probabilities are the reward. Fit a "
            "temperature on held-out logits (learn.Calibrated.fitted), or train it on more data.",
            stacklevel=3,
        )


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise UsageError(
            f"logits (n, classes) and labels (n,) are needed, n ≥ 1; they are "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    if bool((labels < 0).any()) or bool((labels >= logits.shape[1]).any()):
        raise UsageError(f"labels go from 0 to {logits.shape[1] - 1}.")

"""Digits: 1797 grey images of 8 × 8 pixels, written by hand, from scikit-learn's wheel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from pathline.core.errors import MissingExtra

__all__ = ["CLASSES", "LEVELS", "DigitsData", "load"]

CLASSES = tuple("0123456789")
LEVELS = 17
"""Pixels are counts from 0 to 16."""
HELD_OUT = 297
"""The last ones."""


@dataclass(frozen=True)
class DigitsData:
    """The data set in memory.

    Args:
        train_images: (1500, 8, 8) uint8, from 0 to 16.
        train_labels: (1500,) uint8.
        test_images: (297, 8, 8) uint8.
        test_labels: (297,) uint8.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load() -> DigitsData:
    """Return the data set.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra("scikit-learn", "data", "for the digits") from error
    pixels, classes = cast(Any, load_digits(return_X_y=True))
    images, labels = pixels.astype(np.uint8).reshape(-1, 8, 8), classes.astype(np.uint8)
    return DigitsData(
        images[:-HELD_OUT], labels[:-HELD_OUT], images[-HELD_OUT:], labels[-HELD_OUT:]
    )

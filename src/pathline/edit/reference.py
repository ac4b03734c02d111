"""Noise drawn towards a reference: a hook ε̂ → ε̂' for any sampler or inverter.

    ε̂' = ε̂ + λ r/‖r‖,   r = x_ref − ε̂                     residual="noise", as published
    ε̂' = ε̂ − (α/σ) λ r/‖r‖,   r = x_ref − x̂_0              residual="x0", ours

The norm runs over one sample, so the correction has the length λ (in x̂_0, with "x0") whatever r is.
A length in R^n says little by itself: ρ = λ/√n is per entry, and is told beside it.

Paper: Li et al. 2025 (arXiv:2506.02560). That "noise" compares data with a noise is the paper's.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields import Condition, Evaluate, Field, Prediction, View
from pathline.paths import bshape
from pathline.steer.guide import Guided

__all__ = ["Corrected", "Reference"]

Residual = Literal["noise", "x0"]
MOST_SPREAD = 5.0
"""A reference that spreads more is hardly in the units of a path's data."""


@dataclass(frozen=True)
class Reference:
    """How far, and by which residual, noise is drawn towards a reference.

    Args:
        rho: ρ, the length of the correction per entry, in [0, 1].
        length: λ = ρ √n, instead of ρ.
        residual: "noise" (published) or "x0".
    """

    rho: float | None = None
    length: float | None = None
    residual: Residual = "noise"

    def __post_init__(self) -> None:
        if (self.rho is None) == (self.length is None):
            raise UsageError("give rho (per entry) or length (λ = ρ √n), one of them.")
        if self.residual not in ("noise", "x0"):
            raise UsageError(f"residual={self.residual!r}: choose 'noise' or 'x0'.")
        for name, value in (("rho", self.rho), ("length", self.length)):
            if value is not None and not value >= 0:
                raise UsageError(
                    f"{name}={value}: the correction has a length, which is not negative; λ is "
                    "the whole length in R^n, ρ = λ/√n that of one entry."
                )
        if self.rho is not None:
            _check_rho(self.rho, None)

    def lengths(self, n: int) -> tuple[float, float]:
        """Return λ and ρ for samples of n entries.

        Raises:
            UsageError: ρ is above 1.
        """
        rho = self.length / n**0.5 if self.length is not None else self.rho
        assert rho is not None
        _check_rho(rho, n)
        return rho * n**0.5, rho

    def __call__(self, field: Field, reference: Tensor) -> Corrected:
        """Return the field whose noise is drawn towards a reference, (batch, *state)."""
        if field.path is None:
            raise UsageError("noise is corrected on a path, and this field has none.")
        if (spread := float(reference.detach().std())) > MOST_SPREAD:
            warnings.warn(
                f"the reference has a standard deviation of {spread:.3g}: is it scaled as the "
                "path's data are (about 1)?",
                stacklevel=2,
            )
        return Corrected(field, reference, self.lengths(reference[0].numel())[0], self.residual)


def _check_rho(rho: float, n: int | None) -> None:
    if rho > 1:
        entries = "" if n is None else f" (n = {n})"
        raise UsageError(
            f"ρ = {rho:g} is above 1: the correction would be longer than the noise itself. λ is a "
            f"length in R^n and ρ = λ/√n{entries}; the published λ = 1 at n = 16384 is ρ = 0.008."
        )


@dataclass(frozen=True)
class Corrected(Guided):
    """A field whose noise is drawn towards a reference.

    Args:
        inner: the field.
        reference: (batch, *state).
        length: λ.
        residual: as for `Reference`.
    """

    reference: Tensor
    length: float
    residual: Residual

    @property
    def view(self) -> View:  # pyright: ignore[reportIncompatibleVariableOverride]
        """ε̂, whatever the inner field is."""
        return "eps"

    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.bind(t.reshape(1, *t.shape), x, cond)(0, x)

    def bind(self, times: Tensor, x: Tensor, cond: Condition) -> Evaluate:
        if self.reference.shape != x.shape:
            raise UsageError(
                f"the reference has the shape {tuple(self.reference.shape)}, and the state "
                f"{tuple(x.shape)}: one reference a sample, in the space of the state."
            )
        inner, instants = self.inner.bind(times, x, cond), times.unbind()

        def evaluate(k: int, state: Tensor) -> Tensor:
            seen = Prediction(state, instants[k], inner(k, state), self.inner.view, self.path)
            return self._moved(seen, instants[k])

        return evaluate

    def _moved(self, seen: Prediction, t: Tensor) -> Tensor:
        if self.residual == "noise":
            return seen.eps + self.length * _unit(self.reference - seen.eps)
        assert self.path is not None
        ratio: Any = bshape(self.path.alpha(t) / self.path.sigma(t), seen.eps)
        return seen.eps - ratio * self.length * _unit(self.reference - seen.x0)


def _unit(r: Tensor) -> Tensor:
    """Return r/‖r‖ of each sample; 0 where r is."""
    norm = torch.linalg.vector_norm(r.flatten(1), dim=1)
    return r / bshape(norm.masked_fill(norm == 0, 1.0), r)

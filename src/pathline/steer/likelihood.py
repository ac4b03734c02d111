"""Guidance by a likelihood: the score of the posterior is that of the prior, and one term more.

    ∇ log p_t(x | y) = ∇ log p_t(x) + w ∇ log p_t(y | x)

Every view is linear in the score, so the term enters each with the factor of the change of view.

Paper: Song et al. 2021 (arXiv:2011.13456), Sec. 5, Eq. 14.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields import Condition, Field, change
from pathline.paths import bshape
from pathline.steer.guide import Guide, Guided


@dataclass(frozen=True)
class Likelihood(Guide):
    """A guide that adds the gradient of a log-likelihood, `term`, to the score."""

    @abstractmethod
    def term(self, x: Tensor, t: Tensor, field: Field) -> Tensor:
        """Return ∇ log p_t(y | x), (batch, *state).

        Args:
            x: (batch, *state).
            t: () or (batch,).
            field: what is guided.
        """

    def __call__(self, field: Field) -> Field:
        if field.path is None:
            raise UsageError("a likelihood guides a model on a path, and this field has none.")
        return _Posterior(field, self)


@dataclass(frozen=True)
class _Posterior(Guided):
    """F + q ∇ log p_t(y | x), where F = p x + q s in terms of the score s."""

    guide: Likelihood

    @property
    def calls(self) -> int:
        return self.inner.calls

    def part(self, cond: Condition, rows: Tensor) -> Condition | None:
        return None  # what is measured belongs to the whole batch

    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        assert self.path is not None
        _, q = change(self.path, "score", self.view, t)
        return self.inner.evaluate(x, t, cond) + bshape(q, x) * self.guide.term(x, t, self.inner)


def gradient(log_likelihood: Tensor, x: Tensor, further: bool) -> Tensor:
    """Return ∇ of each sample's log-likelihood, (batch,), in its state."""
    return torch.autograd.grad(log_likelihood.sum(), x, create_graph=further)[0]

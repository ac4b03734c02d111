"""Guidance by a likelihood: the score of the posterior is that of the prior, and one term more.

    ∇ log p_t(x | y) = ∇ log p_t(x) + w ∇ log p_t(y | x)

Every view is linear in the score, so the term enters each with the factor of the change of view;
the clean estimate moves by σ²/α times the term.

Paper: Song et al. 2021 (arXiv:2011.13456), Sec. 5, Eq. 14.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from pathline.steer.estimate import Correction, Estimate


@dataclass(frozen=True)
class Likelihood(Correction):
    """A guide that adds the gradient of a log-likelihood of the state, `term`, to the score."""

    @property
    def is_score(self) -> bool:
        return True

    @abstractmethod
    def term(self, now: Estimate) -> Tensor:
        """Return ∇ log p_t(y | x), (batch, *state)."""

    def corrected(self, now: Estimate) -> Tensor:
        return now.x0 + now.gain * self.term(now)


def gradient(log_likelihood: Tensor, x: Tensor, further: bool) -> Tensor:
    """Return ∇ of each sample's log-likelihood, (batch,), in its state."""
    return torch.autograd.grad(log_likelihood.sum(), x, create_graph=further)[0]

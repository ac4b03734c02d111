"""Classifier guidance: a class from a model that was never told of classes.

    ∇ log p_t(x | y) = ∇ log p_t(x) + w ∇ log p_t(y | x)

The classifier must have been trained on noisy inputs, along the same path as the model.

Papers: Song et al. 2021 (arXiv:2011.13456), App. I.1; Dhariwal & Nichol 2021 (arXiv:2105.05233).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.paths import GaussianPath, Time, as_time
from pathline.steer.estimate import Estimate, differentiable
from pathline.steer.guide import guides
from pathline.steer.likelihood import Likelihood, gradient

Logits = Callable[[Tensor, Tensor], Tensor]


@guides.register("classifier", paper="arXiv:2011.13456, App. I.1")
@dataclass(frozen=True)
class Classifier(Likelihood):
    """Guidance by a noise-aware classifier.

    Args:
        network: (x (batch, *state), t (batch,)) → logits (batch, classes), of noisy x at time t.
        labels: the class of every sample, or one for all.
        weight: w; above 1 sharpens the class at the cost of variety, and 0 is none.

    Cost: one gradient of the classifier an evaluation; none through the model.

    Raises:
        UsageError: no network; labels that do not fit the batch or the classes.
    """

    network: Logits | None = field(default=None, compare=False)
    labels: int | Sequence[int] = 0
    weight: float = 1.0

    def describe(self) -> dict[str, Any]:
        """Return what a receipt says of it: where the network is from, if it knows that."""
        labels = self.labels if isinstance(self.labels, int) else list(self.labels)
        told = {"name": "classifier", "labels": labels, "weight": self.weight}
        folder = getattr(self.network, "folder", None)
        return told if folder is None else told | {"network": folder}

    def log_prob(self, x: Tensor, t: Time) -> Tensor:
        """Return log p_t(y | x), (batch,)."""
        if self.network is None:
            raise UsageError("Classifier(network=...) needs a classifier of noisy states.")
        at = as_time(t).to(x.device, torch.promote_types(x.dtype, torch.float32))
        logits = self.network(x, at.expand(len(x)))
        labels = torch.as_tensor(self.labels, device=x.device)
        if labels.ndim and len(labels) != len(x):
            raise UsageError(f"{len(labels)} labels were given for {len(x)} samples.")
        if bool((labels < 0).any()) or bool((labels >= logits.shape[1]).any()):
            raise UsageError(
                f"labels go from 0 to {logits.shape[1] - 1}, and {self.labels} were given."
            )
        picked = labels.expand(len(x))[:, None]
        return logits.log_softmax(1).gather(1, picked)[:, 0]

    @property
    def is_none(self) -> bool:
        return self.weight == 0

    def log_twist(self, now: Estimate) -> Tensor:
        """Return w log p_t(y | x), (batch,): what particles are weighed by on their way."""
        return self.weight * self.log_prob(now.x.detach(), now.t)

    def log_likelihood(self, x0: Tensor, path: GaussianPath) -> Tensor:
        """Return w log p(y | x0), (batch,), of the classifier at its least noise."""
        return self.weight * self.log_prob(x0, path.t_min)

    def term(self, now: Estimate) -> Tensor:
        further = torch.is_grad_enabled() and now.x.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            at = now.x if further else differentiable(now.x).detach().requires_grad_()
            return self.weight * gradient(self.log_prob(at, now.t), at, further)

"""Traces of Jacobians: the divergence of a field, the Laplacian of a potential.

    exact         tr J = Σ_i e_iᵀ J e_i                              d products
    Hutchinson    tr J ≈ mean of vᵀ J v,  E v vᵀ = I                  n products
    Hutch++       tr J ≈ tr Qᵀ J Q + mean of gᵀ P J P g,  P = I − Q Qᵀ  n products, a third for Q

All are unbiased. With ±1 the variance of Hutchinson's is 2 (‖S‖² − Σ S_ii²), S = (J + Jᵀ)/2, and
with Gaussians 2 ‖S‖²; Hutch++ takes out the largest part of J first, which pays where a few
directions carry most of it. A product vᵀ J is one backward sweep, so any network will do.

Probes are drawn once and reused wherever the trace is asked for again: along an integration the
estimate is then a smooth function of time, as adaptive solvers need.

Papers: Hutchinson 1990; Grathwohl et al. 2019 (arXiv:1810.01367); Meyer et al. 2021
(arXiv:2010.09649).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.core.tensors import plain_attention

Function = Callable[[Tensor], Tensor]
Law = Literal["rademacher", "gaussian"]

MOST_ELEMENTS = 4096
"""Elements up to which an exact trace agrees to take one product each."""


@dataclass(frozen=True)
class Trace(ABC):
    """A way to work out tr ∂f/∂x for each sample of a batch."""

    @property
    def is_exact(self) -> bool:
        """Whether there is nothing random about it."""
        return False

    @property
    @abstractmethod
    def estimates(self) -> int:
        """How many estimates a sample gets; their mean is the trace, their spread its error."""

    @abstractmethod
    def probes(
        self, seeds: Sequence[int], shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Return the probes of each sample, (batch, probes, *shape), a function of its seed."""

    @abstractmethod
    def of(self, f: Function, x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
        """Return f(x), (batch, *shape), and estimates of the trace of ∂f/∂x, (batch, estimates).

        Differentiable once more where gradients are enabled. f must treat samples alone.

        Args:
            f: (batch, *shape) → (batch, *shape).
            x: (batch, *shape).
            probes: as `probes` returned them.
        """


@dataclass(frozen=True)
class Exact(Trace):
    """Every diagonal element, one product each."""

    @property
    def is_exact(self) -> bool:
        return True

    @property
    def estimates(self) -> int:
        return 1

    def probes(
        self, seeds: Sequence[int], shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        size = torch.Size(shape).numel()
        if size > MOST_ELEMENTS:
            raise UsageError(
                f"an exact trace takes one product for each of {size} elements; more than "
                f"{MOST_ELEMENTS} are refused: estimate it, with Hutchinson(n)."
            )
        return torch.empty(len(seeds), 0, *shape, dtype=dtype, device=device)

    def of(self, f: Function, x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
        y, product = _products(f, x)
        total = y.new_zeros(len(y))
        for i in range(x[0].numel()):
            e = torch.zeros_like(y).flatten(1)
            e[:, i] = 1
            total = total + product(e.view_as(y)).flatten(1)[:, i]
        return y, total[:, None]


@dataclass(frozen=True)
class Hutchinson(Trace):
    """The mean of vᵀ J v over random v.

    Args:
        n: probes a sample; with one nothing is known of the error.
        law: "rademacher" (±1, the smaller variance) or "gaussian".

    Raises:
        UsageError: no probes, or another law.
    """

    n: int = 1
    law: Law = "rademacher"

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UsageError(f"at least 1 probe is needed, and {self.n} were asked for.")
        if self.law not in ("rademacher", "gaussian"):
            raise UsageError(f"law={self.law!r}: choose 'rademacher' or 'gaussian'.")

    @property
    def estimates(self) -> int:
        return self.n

    def probes(
        self, seeds: Sequence[int], shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        return _drawn(self.law, range(self.n), seeds, shape, dtype, device)

    def of(self, f: Function, x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
        y, product = _products(f, x)
        return y, torch.stack([_dot(product(v), v) for v in probes.unbind(1)], 1)


@dataclass(frozen=True)
class HutchPP(Trace):
    """The part of J in a random range exactly, and Hutchinson's estimate of the rest.

    Args:
        n: products a sample: a third finds the range, a third takes its trace, a third estimates.

    Raises:
        UsageError: fewer than three products.
    """

    n: int = 6

    def __post_init__(self) -> None:
        if self.n < 3:
            raise UsageError(f"Hutch++ needs 3 products at least, and was given {self.n}.")

    @property
    def rank(self) -> int:
        """Directions that are treated exactly."""
        return self.n // 3

    @property
    def estimates(self) -> int:
        return self.n - 2 * self.rank

    def probes(
        self, seeds: Sequence[int], shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        size = torch.Size(shape).numel()
        if self.rank > size:
            raise UsageError(
                f"Hutch++ with {self.n} products treats {self.rank} directions exactly, and a "
                f"state has {size}: use Exact()."
            )
        own = range(self.rank), range(self.rank, self.rank + self.estimates)  # else they correlate
        sketch = _drawn("gaussian", own[0], seeds, shape, dtype, device)  # never parallel
        rest = _drawn("rademacher", own[1], seeds, shape, dtype, device)
        return torch.cat((sketch, rest), 1)

    def of(self, f: Function, x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
        y, product = _products(f, x)

        def columns(vectors: Tensor) -> Tensor:  # (batch, d, k) → Jᵀ of it
            made = [product(v.reshape(y.shape)).flatten(1) for v in vectors.unbind(2)]
            return torch.stack(made, 2)

        flat = probes.flatten(2).transpose(1, 2)
        sketch, rest = flat.split((self.rank, self.estimates), 2)
        q = torch.linalg.qr(columns(sketch))[0]
        inside = (q * columns(q)).sum((1, 2))
        outside = rest - q @ (q.transpose(1, 2) @ rest)
        beyond = (outside * columns(outside)).sum(1)
        return y, inside[:, None] + beyond


def _products(f: Function, x: Tensor) -> tuple[Tensor, Function]:
    """Return f(x), and v ↦ vᵀ ∂f/∂x; with gradients of their own where these are enabled."""
    further = torch.is_grad_enabled()
    with torch.enable_grad(), plain_attention() if further else nullcontext():
        at = x if further and x.requires_grad else x.detach().requires_grad_()
        y = f(at)

    def product(v: Tensor) -> Tensor:
        if not y.requires_grad:  # f does not look at x
            return torch.zeros_like(v)
        return torch.autograd.grad(
            y,
            at,
            v,
            retain_graph=True,
            create_graph=further,
            allow_unused=True,
            materialize_grads=True,
        )[0]

    return (y if further else y.detach()), product


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _drawn(
    law: Law,
    draws: Sequence[int],
    seeds: Sequence[int],
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    draw = noise.rademacher if law == "rademacher" else noise.normal
    made = (draw(seeds, shape, stream="probe", index=k, dtype=dtype, device=device) for k in draws)
    return torch.stack(list(made), 1)

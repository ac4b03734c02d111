"""Energies of masked features: what an edit asks for, as a number that gradients lower.

    S(a, b) = mean_p cos(a_p, b_p),   S⁺ = (S + 1)/2
    attraction  w/(1 + 4 S)           current features at one place shall be those of another
    repulsion   w S⁺                  they shall not

Pixels are paired in raster order inside two masks of equal counts, or by the means of both. An
energy of two regions is differentiated twice, and each gradient kept in its own region alone:

    g = m ⊙ ∇_x E_inside + (1 − m) ⊙ ∇_x E_outside

so a term never acts where the other one rules, though every feature sees the whole picture.

w/(1 + 4 S) has a pole at S = −1/4, beyond which it would reward the opposite: the denominator is
held at 0.2 or more. With S⁺ ("safe") there is no pole. Features of half precision are raised to
float32: an energy that is scaled by 10³ overflows there.

Papers: Mou et al. 2023 (DragonDiffusion, arXiv:2307.02421), Eq. 6-9; Mou et al. 2024 (DiffEditor,
arXiv:2402.02583), Eq. 5-8.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pathline.core.errors import UsageError

__all__ = ["Attract", "Energy", "Repel", "Term", "attraction", "separated", "similarity"]

LEAST = 0.2
"""What 1 + 4 S is held above."""

Maps = Sequence[Tensor]
"""One map of features a level, (batch, features, height, width) each, all on one grid."""


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Return S, the mean cosine of paired pixels, (batch,), of a and b, (batch, features, n)."""
    return torch.nn.functional.cosine_similarity(a, b, dim=1).mean(1)


def attraction(s: Tensor, *, safe: bool = False) -> Tensor:
    """Return 1/(1 + 4 S), its denominator held at 0.2; with `safe`, 1/(1 + 4 S⁺).

    Example:
        >>> s = torch.tensor([-1.0, -0.25, 0.0, 1.0])
        >>> attraction(s), attraction(s, safe=True)
        (tensor([5.0000, 5.0000, 1.0000, 0.2000]), tensor([1.0000, 0.4000, 0.3333, 0.2000]))
    """
    return 1 / (1 + 4 * (positive(s) if safe else s)).clamp(min=LEAST)


def positive(s: Tensor) -> Tensor:
    """Return S⁺ = (S + 1)/2, in [0, 1]."""
    return (s + 1) / 2


@dataclass(frozen=True, eq=False)
class Term(ABC):
    """One sentence of an edit: these features here, and those there.

    Args:
        weight: w, 0 or more.
        here: (height, width) bool, which pixels of the current features.
        there: which of the reference's; as many, unless pooled. None is the same ones.
        picture: which reference, by number.
        pooled: whether means are compared, and not pixel by pixel.

    Raises:
        UsageError: an empty mask, masks of other sizes, other counts of pixels that are paired.
    """

    weight: float
    here: Tensor
    there: Tensor | None = None
    picture: int = 0
    pooled: bool = False

    def __post_init__(self) -> None:
        there = self.here if self.there is None else self.there
        for mask in (self.here, there):
            if mask.dtype != torch.bool or mask.ndim != 2 or mask.shape != self.here.shape:
                raise UsageError(
                    "the masks of a term are (height, width), bool, on one grid; they are "
                    f"{tuple(self.here.shape)} and {tuple(there.shape)}."
                )
        n, m = int(self.here.sum()), int(there.sum())
        if not n or not m:
            raise UsageError("a term whose mask is empty says nothing: leave it out.")
        if n != m and not self.pooled:
            raise UsageError(
                f"{n} pixels cannot be paired with {m}: masks in raster order need equal counts; "
                "a mask was resized, or cut off at the frame. Compare means (pooled=True), or "
                "move the mask by whole pixels."
            )
        if self.weight < 0:
            raise UsageError(f"weight={self.weight}: 0 or more; attract or repel say the sign.")

    def compared(self, current: Tensor, reference: Tensor) -> Tensor:
        """Return S of one level, (batch,); the reference's gradient is stopped."""
        there = self.here if self.there is None else self.there
        a, b = read(current, self.here), read(reference.detach(), there)
        if self.pooled:
            a, b = a.mean(2, keepdim=True), b.mean(2, keepdim=True)
        return similarity(a, b)

    def __call__(self, current: Maps, references: Sequence[Maps]) -> Tensor:
        """Return the energy, summed over levels, (batch,)."""
        found = references[self.picture]
        energies = [
            self.weight * self.energy(self.compared(a, b))
            for a, b in zip(current, found, strict=True)
        ]
        return torch.stack(energies).sum(0)

    @abstractmethod
    def energy(self, s: Tensor) -> Tensor:
        """Return the energy of weight 1 at S."""


@dataclass(frozen=True, eq=False)
class Attract(Term):
    """Features here shall be those there: w/(1 + 4 S), or with S⁺ if safe."""

    safe: bool = False

    def energy(self, s: Tensor) -> Tensor:
        return attraction(s, safe=self.safe)


@dataclass(frozen=True, eq=False)
class Repel(Term):
    """Features here shall not be those there: w S⁺."""

    def energy(self, s: Tensor) -> Tensor:
        return positive(s)


@dataclass(frozen=True)
class Energy:
    """A sum of terms; sums add with +, and an empty one is 0.

    Example:
        >>> mask = torch.eye(2, dtype=torch.bool)
        >>> f = torch.ones(1, 3, 2, 2)
        >>> (Energy((Attract(4.0, mask),)) + Energy((Repel(0.5, mask),)))([f], [[f]])
        tensor([1.3000])
    """

    terms: tuple[Term, ...] = ()

    def __add__(self, other: Energy) -> Energy:
        return Energy((*self.terms, *other.terms))

    def __call__(self, current: Maps, references: Sequence[Maps]) -> Tensor:
        """Return the energy, (batch,), a function of the current features for autograd.

        Args:
            current: a map a level, (batch, features, height, width); half precision is raised.
            references: maps of each picture, (1 or batch, …).

        Raises:
            UsageError: features on another grid than the masks.
        """
        current = [_raised(each) for each in current]
        references = [[_raised(each) for each in maps] for maps in references]
        if not self.terms:
            return current[0].new_zeros(len(current[0]))
        return torch.stack([term(current, references) for term in self.terms]).sum(0)


def read(features: Tensor, mask: Tensor) -> Tensor:
    """Return the pixels inside a mask in raster order, (batch, features, n)."""
    if features.shape[2:] != mask.shape:
        raise UsageError(
            f"the features are {tuple(features.shape[2:])} and the mask {tuple(mask.shape)}: bring "
            "them to one grid."
        )
    return features[:, :, mask.to(features.device)]


def separated(inside: Tensor, outside: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """Return m ⊙ ∇_x inside + (1 − m) ⊙ ∇_x outside, (batch, *state): two backward passes.

    Args:
        inside: (batch,), a function of x for autograd; what does not depend on x pulls at nothing.
        outside: the same.
        x: (batch, *state).
        mask: bool, broadcasts to a state; True is inside.

    Cost: a backward pass through what made each energy.
    """
    return torch.where(mask.to(x.device), slope(inside, x, again=True), slope(outside, x))


def slope(energy: Tensor, x: Tensor, *, again: bool = False) -> Tensor:
    """Return ∇_x of a sum of energies, 0 where x has no part in them; the graph stays if again."""
    if not energy.requires_grad:
        return torch.zeros_like(x)
    (made,) = torch.autograd.grad(energy.sum(), x, retain_graph=again, allow_unused=True)
    return torch.zeros_like(x) if made is None else made


def _raised(features: Tensor) -> Tensor:
    return features.to(torch.promote_types(features.dtype, torch.float32))

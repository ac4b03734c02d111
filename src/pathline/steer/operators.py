"""Linear operators that data are seen through: y = A x_0 + s n, with A, Aᵀ, A⁺ and (a A Aᵀ + b)⁻¹.

    Mask      y = m ⊙ x                      inpainting, observed cells, boundary values
    Pooling   means of s × s blocks          super-resolution
    Cubic     cubic down-sampling            super-resolution; A⁺ is the true one, no up-sampling
    Blur      Gaussian, mirrored at edges    deblurring
    Luma      0.299 R + 0.587 G + 0.114 B    colourisation
    Dense     any matrix                     everything that is small

All of them have a closed spectrum, so projections and posteriors cost about as much as A itself.
A⁺ = Aᵀ(A Aᵀ)⁻¹ up to directions that A does not see; cubic up-sampling is no such inverse.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.core.registry import Registry

operators: Registry[Operator] = Registry("operator")
"""Every linear operator, by name."""

SEEN = 1e-10
"""Singular values below this share of the largest are taken for 0."""

LUMA = (0.299, 0.587, 0.114)
"""Of red, green and blue: ITU-R BT.601."""


class Operator(ABC):
    """A linear map A of states, (batch, *state), to measurements, (batch, *measured)."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return A x.

        Raises:
            UsageError: the state does not fit.
        """

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Return Aᵀ y."""

    @abstractmethod
    def solved(self, r: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
        """Return (a A Aᵀ + b I)⁻¹ r; 0 along directions where the bracket is 0.

        Args:
            r: (batch, *measured).
            a: not negative, a number or shaped to multiply r.
            b: as a.
        """

    def pinv(self, y: Tensor) -> Tensor:
        """Return A⁺ y, the smallest x with A x = y (nearest to y, if there is none)."""
        return self.adjoint(self.solved(y, 1.0, 0.0))

    def lifted(self, y: Tensor) -> Tensor:
        """Return what a projection adds for a residual y: A⁺ y, or another right inverse."""
        return self.pinv(y)

    def measurements(self, y: Tensor) -> int:
        """Return how many of y's elements, (batch, *measured), tell anything: the rank of A."""
        return y[0].numel()

    def describe(self) -> dict[str, Any]:
        """Return what a receipt says of it."""
        return operators.describe(self)


def fits(shape: Sequence[int], state: Sequence[int]) -> bool:
    """Whether a shape broadcasts to that of a state, and no further."""
    pairs = zip(reversed(shape), reversed(state), strict=False)
    return len(shape) <= len(state) and all(a in (1, b) for a, b in pairs)


def _divided(r: Tensor, by: Tensor | float) -> Tensor:
    """Return r/by, and 0 where `by` is 0."""
    by = torch.as_tensor(by, dtype=r.dtype, device=r.device)
    return torch.where(by == 0, 0.0, r / torch.where(by == 0, 1.0, by))


@operators.register("mask", aliases=("inpainting",))
@dataclass(frozen=True, eq=False)
class Mask(Operator):
    """What is known: y = m ⊙ x, with 0 where nothing is.

    Args:
        mask: 1 where x is known and 0 elsewhere, of a shape that broadcasts to the state's.

    Raises:
        UsageError: other values; nothing is known, or everything.
    """

    mask: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        if not bool(((self.mask == 0) | (self.mask == 1)).all()):
            raise UsageError("the mask has values other than 0 and 1; 1 is what is known.")
        if bool((self.mask == self.mask.flatten()[0]).all()):
            whole = "everything" if bool(self.mask.flatten()[0]) else "nothing"
            raise UsageError(f"by this mask {whole} is known, so there is nothing to find.")

    def forward(self, x: Tensor) -> Tensor:
        return self._like(x) * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self._like(y) * y

    def solved(self, r: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
        return _divided(r, a * self._like(r) + b)

    def measurements(self, y: Tensor) -> int:
        return int(self._like(y).expand(y.shape)[0].sum())

    def _like(self, x: Tensor) -> Tensor:
        if not fits(self.mask.shape, x.shape):
            raise UsageError(
                f"a mask of shape {tuple(self.mask.shape)} does not fit a state of "
                f"{tuple(x.shape)}."
            )
        return self.mask.to(x)

    def describe(self) -> dict[str, Any]:
        """Return what a receipt says of it: how much is known."""
        return {"name": "mask", "share": float(self.mask.double().mean())}


@operators.register("luma", aliases=("grey", "colour"))
@dataclass(frozen=True)
class Luma(Operator):
    """The luma of pictures (batch, 3, height, width), which have their channels first.

    A projection replaces the luma and keeps both differences of colour, so it adds a residual to
    all three channels alike; that is a right inverse of A, and not A⁺.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 2 or x.shape[1] != 3:
            raise UsageError(f"luma is of states (3, …), and these are {tuple(x.shape[1:])}.")
        return (self._weights(x) * x).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._weights(y) * y

    def solved(self, r: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
        return _divided(r, a * sum(w * w for w in LUMA) + b)

    def lifted(self, y: Tensor) -> Tensor:
        return y.expand(len(y), 3, *y.shape[2:])

    @staticmethod
    def _weights(x: Tensor) -> Tensor:
        weights = torch.tensor(LUMA, dtype=torch.float64)
        return weights.to(x).reshape(3, *[1] * (x.ndim - 2))


@operators.register("dense", aliases=("matrix",))
@dataclass(frozen=True, eq=False)
class Dense(Operator):
    """Any matrix, of states in the order of their elements.

    Args:
        matrix: (measurements, elements).
        shape: of a state; None for flat ones.

    Cost: one singular value decomposition.
    """

    matrix: Tensor = field(repr=False)
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.matrix.ndim != 2:
            raise UsageError(f"a matrix has two axes, and this has shape {self.matrix.shape}.")

    @classmethod
    def stacked(cls, parts: Sequence[Operator], shape: Sequence[int]) -> Dense:
        """Return several operators as one: their measurements, flat, one after the other.

        Args:
            parts: operators of states of this shape.
            shape: of a state; small, for the matrix is written out.
        """
        n = int(torch.Size(shape).numel())
        units = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
        rows = torch.cat([part.forward(units).flatten(1) for part in parts], 1).T
        return cls(rows, tuple(shape))

    @cached_property
    def _svd(self) -> tuple[Tensor, Tensor]:
        u, values, _ = torch.linalg.svd(self.matrix.double(), full_matrices=True)
        squares = torch.zeros(len(self.matrix), dtype=torch.float64)
        squares[: len(values)] = torch.where(values > SEEN * values[0], values, 0.0) ** 2
        return u, squares

    def forward(self, x: Tensor) -> Tensor:
        if x[0].numel() != self.matrix.shape[1]:
            raise UsageError(
                f"a matrix for states of {self.matrix.shape[1]} elements, and these have "
                f"{x[0].numel()}."
            )
        return x.flatten(1) @ self.matrix.to(x).T

    def adjoint(self, y: Tensor) -> Tensor:
        x = self._fitting(y) @ self.matrix.to(y)
        return x if self.shape is None else x.reshape(len(x), *self.shape)

    def solved(self, r: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
        u, squares = (each.to(r) for each in self._svd)
        return _divided(self._fitting(r) @ u, a * squares + b) @ u.T

    def measurements(self, y: Tensor) -> int:
        return int(self._svd[1].count_nonzero())

    def _fitting(self, y: Tensor) -> Tensor:
        if y.ndim != 2 or y.shape[1] != len(self.matrix):
            raise UsageError(
                f"the matrix makes {len(self.matrix)} measurements, and y is {tuple(y.shape)}."
            )
        return y

    def describe(self) -> dict[str, Any]:
        """Return what a receipt says of it: its size."""
        return {"name": "dense", "measurements": len(self.matrix)}


class Separable(Operator):
    """One matrix along each of the last two axes: A = R_h ⊗ R_w."""

    @abstractmethod
    def seen(self, n: int) -> int:
        """Return how many measurements an axis of n elements has.

        Raises:
            UsageError: the axis does not fit.
        """

    @abstractmethod
    def size(self, n: int) -> int:
        """Return how many elements an axis of n measurements has."""

    @abstractmethod
    def rows(self, n: int) -> Tensor:
        """Return the matrix of an axis of n elements, (seen(n), n) float64."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 3:
            raise UsageError(f"pictures have two axes at least, and these are {tuple(x.shape)}.")
        high, wide = (self._axis(x, n)[0] for n in x.shape[-2:])
        return high @ x @ wide.T

    def adjoint(self, y: Tensor) -> Tensor:
        high, wide = (self._axis(y, self.size(n))[0] for n in y.shape[-2:])
        return high.T @ y @ wide

    def solved(self, r: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
        (_, u, s), (_, v, w) = (self._axis(r, self.size(n)) for n in r.shape[-2:])
        squares = s[:, None] * w
        squares = torch.where(squares > SEEN * squares.max(), squares, 0.0) ** 2
        return u @ _divided(u.T @ r @ v, a * squares + b) @ v.T

    def _axis(self, like: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
        rows, u, values = _factored(self, n)
        return rows.to(like), u.to(like), values.to(like)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _factored(operator: Separable, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the matrix of an axis, its left vectors and its singular values."""
    operator.seen(n)
    rows = operator.rows(n)
    u, values, _ = torch.linalg.svd(rows, full_matrices=False)
    return rows, u, values


@operators.register("pooling", aliases=("mean",))
@dataclass(frozen=True)
class Pooling(Separable):
    """Means of blocks of `factor` × `factor` elements.

    Args:
        factor: the side of a block, 2 or more; it divides the picture's.
    """

    factor: int = 2

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    def seen(self, n: int) -> int:
        return _divides(self.factor, n)

    def size(self, n: int) -> int:
        return n * self.factor

    def rows(self, n: int) -> Tensor:
        block = torch.full((1, self.factor), 1 / self.factor, dtype=torch.float64)
        return torch.kron(torch.eye(n // self.factor, dtype=torch.float64), block)


@operators.register("cubic", aliases=("bicubic",))
@dataclass(frozen=True)
class Cubic(Separable):
    """Cubic down-sampling as pictures are made smaller: Keys' kernel, widened by the factor.

    Rows are cut off at the edges and sum to 1, as in Pillow and in torch with antialias=True.

    Args:
        factor: how many times smaller, 2 or more; it divides the picture's side.
    """

    factor: int = 4

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    def seen(self, n: int) -> int:
        return _divides(self.factor, n)

    def size(self, n: int) -> int:
        return n * self.factor

    def rows(self, n: int) -> Tensor:
        at = (torch.arange(n // self.factor, dtype=torch.float64) + 0.5) * self.factor - 0.5
        weights = _keys((torch.arange(n, dtype=torch.float64) - at[:, None]) / self.factor)
        return weights / weights.sum(1, keepdim=True)


@operators.register("blur", aliases=("gaussian_blur",))
@dataclass(frozen=True)
class Blur(Separable):
    """Gaussian blur, cut off at four deviations, mirrored at the edges.

    It damps fine detail so much that A⁺ amplifies any noise of y: use guides with std above 0.

    Args:
        std: in elements.
    """

    std: float = 1.0

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise UsageError(f"Blur({self.std}): the deviation is above 0.")

    def seen(self, n: int) -> int:
        return n

    def size(self, n: int) -> int:
        return n

    def rows(self, n: int) -> Tensor:
        reach = max(1, round(4 * self.std))
        off = torch.arange(-reach, reach + 1)
        weights = torch.exp(-((off / self.std) ** 2).double() / 2)
        weights = weights / weights.sum()
        rows = torch.zeros(n, n, dtype=torch.float64)
        at = (torch.arange(n)[:, None] + off) % (2 * n)
        at = torch.where(at >= n, 2 * n - 1 - at, at)
        return rows.scatter_add_(1, at, weights.expand(n, -1).contiguous())


def _keys(x: Tensor) -> Tensor:
    """Keys' cubic kernel with a = −½ (1981)."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _check_factor(factor: int) -> None:
    if factor < 2:
        raise UsageError(f"factor={factor}: a picture is made 2 or more times smaller.")


def _divides(factor: int, n: int) -> int:
    if n % factor:
        raise UsageError(f"factor {factor} does not divide a side of {n} elements.")
    return n // factor

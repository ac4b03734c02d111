"""Empirical model statistics: three curves of λ that DPM-Solver-v3 knows of a model.

With N = σ ε̂ − l x and f = N/α the probability flow is

    d(x/α)/dλ = −l x/α − f,      df/dλ ≈ s f + b

l makes f depend on x as little as possible, s and b make it as predictable as possible; all three
are one number an element and a λ. A step s → t needs, with L = ∫l and S = ∫s from node s on,

    A = e^−L(t)     E_k = ∫ e^{L+S} (λ − λ_s)^k/k! dλ     B̂(λ) = ∫_s^λ e^−S b     U = ∫ e^{L+S} B̂ dλ

and each older f as it looks from s, g_i = e^{S_s − S_i} f_i − B̂(λ_i). Everything is integrated over
the nodes around the step, with exponents relative to its start, so nothing cancels or overflows.

Paper: Zheng et al. 2023 (arXiv:2310.13268), Eq. 5, 8 and 11; App. C for the tables.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.core.tensors import read_tensors, write_tensors
from pathline.paths import GaussianPath, paths
from pathline.solvers.antiderivative import Quadrature, antiderivative

FILE = "ems.safetensors"
"""The file beside a model's weights."""

FORMAT = "pathline-ems-1"

_MARGIN = 12
"""Nodes around a step that its splines see too: what lies beyond weighs 0.27^12 = 1e-7 of the
spline's own error."""


class Integrals(NamedTuple):
    """What a step from one node to another needs; tensors are (*state).

    Args:
        decay: A.
        weights: E_0, E_1, …
        bias: U.
        growth: node i → e^{S_s − S_i}.
        offset: node i → B̂(λ_i).
    """

    decay: Tensor
    weights: list[Tensor]
    bias: Tensor
    growth: dict[int, Tensor]
    offset: dict[int, Tensor]


@dataclass(frozen=True, eq=False)
class EMSTable:
    """The statistics of a model; equal to another table if every number in it is.

    Args:
        path: that they were measured on.
        log_snr: (n + 1,), the nodes, rising evenly.
        l: (n + 1, *state), the linear part; *state may be empty: one number for all elements.
        s: as l, the growth of f.
        b: as l, the drift of f.
        n_samples: data they were averaged over; 0 for a closed form.
        weights: the checksum of the network's weights; "" if it is unknown.
        quadrature: how they are integrated, "spline" or "trapezoid" (the paper's).

    Raises:
        UsageError: shapes that do not fit, nodes that are not even, numbers that are not finite.
    """

    path: GaussianPath
    log_snr: Tensor
    l: Tensor  # noqa: E741 - the paper's letter
    s: Tensor
    b: Tensor
    n_samples: int = 0
    weights: str = ""
    quadrature: Quadrature = "spline"

    def __post_init__(self) -> None:
        for name in ("log_snr", "l", "s", "b"):
            value = getattr(self, name).detach().to("cpu", torch.float64)
            object.__setattr__(self, name, value)
            if not bool(torch.isfinite(value).all()):
                raise UsageError(f"the table's {name} is not finite everywhere; calibrate again.")
        if self.quadrature not in ("spline", "trapezoid"):
            raise UsageError(f"quadrature={self.quadrature!r}: choose 'spline' or 'trapezoid'.")
        if self.log_snr.ndim != 1 or len(self.log_snr) < 4:
            raise UsageError(f"a table needs at least 4 nodes; it has {tuple(self.log_snr.shape)}.")
        if {v.shape for v in (self.l, self.s, self.b)} != {(len(self.log_snr), *self.shape)}:
            shapes = [tuple(v.shape) for v in (self.log_snr, self.l, self.s, self.b)]
            raise UsageError(f"log_snr, l, s and b do not fit together: {shapes}.")
        steps = self.log_snr.diff()
        if self.spacing <= 0 or float((steps - self.spacing).abs().max()) > 1e-6 * self.spacing:
            raise UsageError("the table's log-SNR nodes must rise in even steps.")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EMSTable) and self.checksum == other.checksum

    def __hash__(self) -> int:
        return hash(self.checksum)

    def __repr__(self) -> str:
        shape, n = "×".join(map(str, self.shape)) or "scalar", len(self.log_snr) - 1
        return f"EMSTable({self.path}, n={n}, {shape}, {self.checksum[:12]}…)"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one state; () for a table that serves every element alike."""
        return tuple(self.l.shape[1:])

    def check_shape(self, shape: Sequence[int]) -> None:
        """Refuse states of another shape.

        Raises:
            UsageError: they are of another one, and the table does not serve every element alike.
        """
        if self.shape not in ((), tuple(shape)):
            raise UsageError(
                f"the statistics are for states of {self.shape}, and these are {tuple(shape)}."
            )

    @cached_property
    def spacing(self) -> float:
        """The distance of two nodes."""
        return float(self.log_snr[-1] - self.log_snr[0]) / (len(self.log_snr) - 1)

    @cached_property
    def checksum(self) -> str:
        """The SHA-256 of all that the table says."""
        told = [paths.describe(self.path), self.n_samples, self.weights, self.quadrature]
        digest = hashlib.sha256(json.dumps([*told, list(self.shape)]).encode())
        for value in (self.log_snr, self.l, self.s, self.b):
            digest.update(value.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def describe(self) -> str:
        """Return the checksum: what a receipt says of the table."""
        return self.checksum

    @classmethod
    def gaussian(
        cls,
        path: GaussianPath,
        mean: Tensor | float = 0.0,
        std: Tensor | float = 1.0,
        n: int = 240,
    ) -> EMSTable:
        """Return the exact statistics of data whose elements are independent Gaussians.

            l = σ²/(α² std² + σ²),   f = −l mean,   s = 0,   b = 2 l (1 − l) mean

        Args:
            path: any path.
            mean: a number, or (*state).
            std: as `mean`, positive.
            n: intervals between the nodes, from the start of generation to its end.
        """
        m, c = (torch.as_tensor(v, dtype=torch.float64) for v in (mean, std))
        m, c = torch.broadcast_tensors(m, c)
        nodes = node_levels(path, n)
        level = nodes.reshape(-1, *[1] * m.ndim)
        linear = torch.sigmoid(-2 * (level + c.log()))
        return cls(path, nodes, linear, torch.zeros_like(linear), 2 * linear * (1 - linear) * m)

    @classmethod
    def constant(
        cls,
        path: GaussianPath,
        l: float,  # noqa: E741 - the paper's letter
        s: float,
        b: float = 0.0,
        n: int = 240,
    ) -> EMSTable:
        """Return the table of three constants: (0, −1, 0) holds ε̂, (1, 0, 0) x̂_0 over a step."""
        nodes = node_levels(path, n)
        values = [torch.full_like(nodes, v) for v in (l, s, b)]
        return cls(path, nodes, values[0], values[1], values[2])

    def nearest(self, log_snr: float) -> int:
        """Return the number of the node nearest to a λ.

        Raises:
            UsageError: it lies outside the table.
        """
        first, last = float(self.log_snr[0]), float(self.log_snr[-1])
        position = (log_snr - first) / self.spacing
        node = round(position) if math.isfinite(position) else -1
        if not 0 <= node < len(self.log_snr):
            raise UsageError(
                f"the grid visits λ = {log_snr:.4g}, and the statistics were measured from "
                f"λ = {first:.4g} to {last:.4g}; start and end the grid there."
            )
        return node

    @cached_property
    def _exponents(self) -> tuple[Tensor, Tensor]:
        """∫l and ∫s from the first node to every node."""
        h, how = self.spacing, self.quadrature
        return antiderivative(self.l, h, how), antiderivative(self.s, h, how)

    def integrals(self, start: int, end: int, others: Sequence[int], order: int) -> Integrals:
        """Return what the step from node `start` to node `end` needs.

        Args:
            start, end: nodes, in either direction.
            others: further nodes at which f is known.
            order: how many of the E_k.
        """
        involved = (start, end, *others)
        low = max(min(involved) - _MARGIN, 0)
        near, at = slice(low, max(involved) + _MARGIN + 1), start - low
        linear, scale = (v[near] - v[start] for v in self._exponents)
        distance = (self.log_snr[near] - self.log_snr[start]).reshape(-1, *[1] * len(self.shape))
        drift = self._integrated((-scale).exp() * self.b[near], at)
        growth = (linear + scale).exp()
        powers = [growth * distance**k / math.factorial(k) for k in range(order)]
        *weights, bias = self._integrated(torch.stack([*powers, growth * drift], 1), at)[end - low]
        return Integrals(
            (-linear[end - low]).exp(),
            list(weights),
            bias,
            {i: (-scale[i - low]).exp() for i in others},
            {i: drift[i - low] for i in others},
        )

    def _integrated(self, values: Tensor, at: int) -> Tensor:
        """Return the antiderivative that is zero at node `at`."""
        total = antiderivative(values, self.spacing, self.quadrature)
        return total - total[at]

    def save(self, path: str | Path) -> Path:
        """Write the table, in float64, whole."""
        header = {
            "format": FORMAT,
            "path": paths.describe(self.path),
            "n_samples": self.n_samples,
            "weights": self.weights,
            "quadrature": self.quadrature,
        }
        return write_tensors(
            path, {n: getattr(self, n) for n in ("log_snr", "l", "s", "b")}, header
        )

    @classmethod
    def load(cls, path: str | Path) -> EMSTable:
        """Read a table that `save` wrote.

        Raises:
            UsageError: the file cannot be read, is no table, or holds numbers that are not finite.
        """
        header, tensors = read_tensors(path)
        if header.get("format") != FORMAT:
            raise UsageError(f"{path} is no table of statistics: its format is not {FORMAT}.")
        try:
            return cls(
                paths.rebuild(header["path"]),
                **{n: tensors[n] for n in ("log_snr", "l", "s", "b")},
                n_samples=header["n_samples"],
                weights=header["weights"],
                quadrature=header["quadrature"],
            )
        except KeyError as error:
            raise UsageError(f"{path} is damaged: it lacks {error}.") from error


def node_levels(path: GaussianPath, n: int, ends: tuple[float, float] | None = None) -> Tensor:
    """Return n + 1 even λ from the start of generation to its end, or between two others."""
    first, last = path.log_snr_range() if ends is None else ends
    if n < 3 or not first < last:
        raise UsageError(
            f"a table needs 3 intervals or more of rising λ; {n} from {first:g} to {last:g}."
        )
    return torch.linspace(first, last, n + 1, dtype=torch.float64)


def table_of(details: Mapping[str, Any]) -> EMSTable | None:
    """Return the statistics that a model's details tell of, under "ems": a table, or its file."""
    known = details.get("ems")
    if known is None or isinstance(known, EMSTable):
        return known
    file = Path(known)
    try:
        stamp = file.stat().st_mtime_ns
    except OSError as error:
        raise UsageError(f"the statistics {file} cannot be read: {error.strerror}.") from error
    return _loaded(str(file), stamp)


@lru_cache(maxsize=8)
def _loaded(file: str, stamp: int) -> EMSTable:
    del stamp  # a file that is written anew is read anew
    return EMSTable.load(file)

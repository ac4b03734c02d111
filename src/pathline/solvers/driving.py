"""What drives a stochastic equation: functionals of a Brownian motion over the steps of a plan.

The rows of a plan name them (`plan.Functional`), and they are made here, from a path that is given
or from seeds alone. Iterated integrals of a motion with several channels need its Lévy area A:

    ∫∫ ∘dW_j ∘dW_k = ½ W_j W_k + A_jk        Itô: less ½ ℓ where j = k

A `Brownian` has it from its leaves. From seeds it is drawn with the variance and the correlations
that it has given W and H, A = H W' − W H' + ξ, ξ_jk ~ N(0, ℓ²/12), so laws come out at first order.

Paper: Kloeden & Platen 1992, Sec. 5.3 and 10.3; Davie 2014 (arXiv:1409.7570) for A given W and H.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.bridge import Piece
from pathline.core.brownian import Brownian
from pathline.core.errors import UsageError
from pathline.core.refined import Refined
from pathline.solvers.plan import Coefficient, Functional, Plan

AHEAD = 2**15
"""Numbers that are drawn at once: for small states, the motion over many steps."""

Weighed = tuple[tuple[Functional, Coefficient], ...]
"""Functionals of the Brownian motion, and what each is multiplied with."""

_AREAS = ("h", "ij", "ij_ito")
_CONSTANT = ("one", "unit")


class Source:
    """Makes the functionals that a plan names, each (batch, channels) or (batch, *state).

    Args:
        plan: with legs.
        seeds: one a sample, or the path.
        like: the state.

    Raises:
        UsageError: a path of other times, samples, channels or device, or without the area needed.
    """

    def __init__(self, plan: Plan, seeds: Sequence[int] | Brownian, like: Tensor) -> None:
        kinds = {product.kind for row in plan.rows for product in row.g}
        self._legs, self._has_area = plan.legs, not kinds.isdisjoint(_AREAS)
        self._like, self._seeds, self._made = like, seeds, dict[Functional, Tensor]()
        self._refined: Refined | None = None
        self._block: tuple[int, int] = (0, 0)
        if isinstance(seeds, Brownian):
            _check_path(seeds, plan, like, self._has_area)
        else:
            self._keys = noise.keys(seeds, like.device)

    def __call__(self, asked: int | Functional) -> Tensor:
        """Return a functional over its leg."""
        assert isinstance(asked, Functional)
        if asked.kind in _CONSTANT:
            return self._constant(asked)
        first, stop = self._block
        if not first <= asked.leg < stop:
            self._made.clear()
            first = self._advance(asked)
        key = asked._replace(leg=0)
        if key not in self._made:
            self._made[key] = self._functional(asked).to(self._like.dtype)
        return self._made[key][asked.leg - first]

    def _constant(self, asked: Functional) -> Tensor:
        n = asked.channels
        if asked.kind == "one":
            return self._like.new_ones((1, n) if n else (1,) * self._like.ndim)
        return torch.eye(n, dtype=self._like.dtype, device=self._like.device)[asked.channel][None]

    def _advance(self, asked: Functional) -> int:
        """Make the motion around a leg, and return the number of the first leg that is there."""
        shape = self._shape(asked)
        if isinstance(self._seeds, Brownian):
            first, piece = asked.leg, self._over(self._seeds, asked.leg, shape)
        else:
            if self._refined is None:
                edges = [self._legs[0][0], *(t for _, t in self._legs)]
                self._refined = Refined(self._keys, shape, edges, self._has_area, AHEAD)
            first, piece = self._refined.block(asked.leg)
        self._piece = piece
        self._block = first, first + len(piece.w)
        return first

    def _over(self, path: Brownian, leg: int, shape: tuple[int, ...]) -> Piece:
        if path.shape != shape:
            raise UsageError(
                f"the Brownian path has shape {path.shape}, and this diffusion needs {shape}: one "
                "motion an element for diagonal noise, (m,) for m channels."
            )
        n = max(1, AHEAD // max(len(path) * math.prod(shape), 1))
        legs = self._legs[leg : leg + n]
        return path.over([legs[0][0], *(t for _, t in legs)])

    def _shape(self, asked: Functional) -> tuple[int, ...]:
        return (asked.channels,) if asked.channels else tuple(self._like.shape[1:])

    def _functional(self, asked: Functional) -> Tensor:
        """Return a functional over all legs of the block."""
        w, h = self._piece
        if asked.kind == "w":
            return w
        if asked.kind == "h":
            assert h is not None
            return h
        if asked.kind == "ww":
            return 0.5 * w * w
        if asked.kind == "ww_ito":
            return 0.5 * (w * w - self._lengths(w))
        if asked.kind == "www_ito":
            return w * (w * w - 3 * self._lengths(w)) / 6
        return self._iterated(asked, w)

    def _lengths(self, w: Tensor) -> Tensor:
        legs = self._legs[slice(*self._block)]
        lengths = torch.tensor([abs(t - s) for s, t in legs], dtype=w.dtype, device=w.device)
        return lengths.reshape(-1, *[1] * (w.ndim - 1))

    def _iterated(self, asked: Functional, w: Tensor) -> Tensor:
        """Return ∫∫ dW_j dW_k for every k, (legs, batch, m)."""
        key = Functional("ij", -1, -1, asked.channels)  # the whole matrix, kept for its other rows
        if key not in self._made:
            areas = self._areas(w)
            self._made[key] = 0.5 * w.unsqueeze(-1) * w.unsqueeze(-2) + areas
        row = self._made[key][:, :, asked.channel]
        if asked.kind == "ij":
            return row
        unit = torch.eye(asked.channels, dtype=w.dtype, device=w.device)[asked.channel]
        return row - 0.5 * self._lengths(w) * unit

    def _areas(self, w: Tensor) -> Tensor:
        """Return the Lévy area of every leg of the block, (legs, batch, m, m)."""
        legs = range(*self._block)
        if isinstance(self._seeds, Brownian):
            return self._seeds.levy_areas(
                [self._legs[legs[0]][0], *(self._legs[i][1] for i in legs)]
            )
        h, m = self._piece.h, w.shape[-1]
        assert h is not None
        above = torch.triu_indices(m, m, 1, device=w.device)
        xi = noise.normals(self._keys, (above.shape[1],), legs, stream="step", dtype=torch.float64)
        mixed = h.unsqueeze(-1) * w.unsqueeze(-2)
        mixed[..., above[0], above[1]] += xi * (self._lengths(w) / math.sqrt(12))
        return mixed - mixed.mT


def _check_path(path: Brownian, plan: Plan, like: Tensor, has_area: bool) -> None:
    """Refuse a path that cannot drive a plan."""
    times = [t for leg in plan.legs for t in leg]
    slack = 1e-9 * (path.end - path.start)
    if min(times) < path.start - slack or max(times) > path.end + slack:
        raise UsageError(
            f"the solve goes from t = {times[0]:g} to {times[-1]:g}, outside of the Brownian "
            f"path's span [{path.start:g}, {path.end:g}]; make one that covers it."
        )
    if len(path) != len(like):
        raise UsageError(f"the Brownian path is of {len(path)} samples, the state of {len(like)}.")
    if has_area and not path.has_area:
        raise UsageError("this solver needs the area H: make the path with has_area=True.")
    if torch.device(path.device) != like.device:
        raise UsageError(f"the Brownian path is on {path.device}, the state on {like.device}.")


def times_noise(
    g: Tensor, weighed: Weighed, draw: Callable[[Functional], Tensor], ndim: int
) -> Tensor:
    """Return the product of a diffusion with a sum of functionals, (batch, *state).

    Args:
        g: (batch, *state) for one motion an element, (batch, *state, m) for m channels.
        weighed: functionals, and what each is multiplied with.
        draw: what makes them.
        ndim: of the state.
    """
    channels = 0 if g.ndim == ndim else g.shape[-1]
    total = None
    for functional, c in weighed:
        term = draw(functional._replace(channels=channels))
        term = term if not isinstance(c, Tensor) and c == 1 else term * c
        total = term if total is None else total + term
    assert total is not None
    if not channels:
        return g * total
    spread = total.reshape(len(total), *[1] * (ndim - 1), channels)
    return (g * spread).sum(-1) if channels > 1 else (g * spread).squeeze(-1)

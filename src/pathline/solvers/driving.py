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
from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import NamedTuple

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


class Weighed(NamedTuple):
    """What the diffusion at a state is multiplied with: Σ c w.

    Args:
        terms: functionals of the Brownian motion, and the coefficient of each.
        slot: which of the sums over its leg it is; legs of one kind have the same ones.
    """

    terms: tuple[tuple[Functional, Coefficient], ...]
    slot: int


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
        self._like, self._seeds = like, seeds
        self._made = dict[tuple[str, int, int], Tensor]()
        self._over_legs = dict[tuple[str, int, int], Sequence[Tensor]]()
        self._sums = _sums(plan)
        self._refined: Refined | None = None
        self._block: tuple[int, int] = (0, 0)
        if isinstance(seeds, Brownian):
            _check_path(seeds, plan, like, self._has_area)
        else:
            self._keys = noise.keys(seeds, like.device)

    def __call__(self, asked: int | Functional) -> Tensor:
        """Return a functional over its leg."""
        assert isinstance(asked, Functional)
        kind, leg, channel, channels = asked
        if kind in _CONSTANT:
            return self._constant(asked)
        self._come(leg, channels)
        key = kind, channel, channels
        if key not in self._over_legs:
            self._over_legs[key] = self._functional(asked).to(self._like.dtype).unbind()
        return self._over_legs[key][leg - self._block[0]]

    def sum(self, asked: Weighed, channels: int) -> tuple[Tensor | None, float]:
        """Return Σ c w as a tensor (None is 1) and a number that it is multiplied with.

        Sums of several functionals are made over all legs of the block at once.

        Args:
            asked: the sum.
            channels: of the motion; 0 for one of each element.
        """
        functional, c = asked.terms[0]
        if len(asked.terms) == 1 and not isinstance(c, Tensor):
            if functional.kind == "one" and not channels:
                return None, c
            return self(_of(functional, channels)), c
        leg, key = functional.leg, ("sum", asked.slot, channels)
        weights = self._sums.get(asked.slot)
        if weights is None:
            each = [self(_of(f, channels)) * c for f, c in asked.terms]
            return reduce(torch.add, each), 1.0
        self._come(leg, channels)
        if key not in self._over_legs:
            weights = weights[slice(*self._block)]
            w = [self._functional(_of(f, channels)) for f, _ in asked.terms]
            shape = (-1, *[1] * (w[0].ndim - 1))
            columns = [c.reshape(shape) for c in weights.to(w[0].device).unbind(1)]
            total = reduce(torch.add, (v * c for v, c in zip(w, columns, strict=True)))
            self._over_legs[key] = total.to(self._like.dtype).unbind()
        return self._over_legs[key][leg - self._block[0]], 1.0

    def _come(self, leg: int, channels: int) -> None:
        """Have the motion over a leg ready."""
        first, stop = self._block
        if not first <= leg < stop:
            self._made.clear()
            self._over_legs.clear()
            self._advance(leg, channels)

    def _constant(self, asked: Functional) -> Tensor:
        n = asked.channels
        if asked.kind == "one":
            return self._like.new_ones((1, n) if n else (1,) * self._like.ndim)
        return torch.eye(n, dtype=self._like.dtype, device=self._like.device)[asked.channel][None]

    def _advance(self, leg: int, channels: int) -> None:
        """Make the motion around a leg."""
        shape = (channels,) if channels else tuple(self._like.shape[1:])
        if isinstance(self._seeds, Brownian):
            first, piece = leg, self._over(self._seeds, leg, shape)
        else:
            if self._refined is None:
                edges = [self._legs[0][0], *(t for _, t in self._legs)]
                self._refined = Refined(self._keys, shape, edges, self._has_area, AHEAD)
            first, piece = self._refined.block(leg)
        self._piece = piece
        self._block = first, first + len(piece.w)

    def _over(self, path: Brownian, leg: int, shape: tuple[int, ...]) -> Piece:
        if path.shape != shape:
            raise UsageError(
                f"the Brownian path has shape {path.shape}, and this diffusion needs {shape}: one "
                "motion an element for diagonal noise, (m,) for m channels."
            )
        n = max(1, AHEAD // max(len(path) * math.prod(shape), 1))
        legs = self._legs[leg : leg + n]
        return path.over([legs[0][0], *(t for _, t in legs)])

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
        key = "ij", -1, asked.channels  # the whole matrix, kept for its other rows
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


def _of(functional: Functional, channels: int) -> Functional:
    """Return the functional of a motion with so many channels."""
    same = functional.channels == channels
    return functional if same else functional._replace(channels=channels)


def products(plan: Plan) -> list[tuple[tuple[int, Weighed], ...]]:
    """Return what each row multiplies diffusions with: the number of a state, and its sum."""
    slots, made = dict[int, int](), list[tuple[tuple[int, Weighed], ...]]()
    for row in plan.rows:
        found: dict[int, list[tuple[Functional, Coefficient]]] = {}
        for product, c in row.g.items():
            found.setdefault(product.state, []).append((product.functional, c))
        sums = list[tuple[int, Weighed]]()
        for k in sorted(found):
            leg = found[k][0][0].leg
            slots[leg] = slot = slots.get(leg, -1) + 1
            sums.append((k, Weighed(tuple(found[k]), slot)))
        made.append(tuple(sums))
    return made


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept must also serve a solve with gradients
def _sums(plan: Plan) -> dict[int, Tensor]:
    """Return the coefficients of each slot's sum over every leg, (legs, terms) float64.

    Left out are slots that not all legs fill with the same functionals, and those with constants or
    with a coefficient for each sample.
    """
    slots = dict[int, dict[int, Weighed]]()
    for row in products(plan):
        for _, by in row:
            slots.setdefault(by.slot, {})[by.terms[0][0].leg] = by
    found = dict[int, Tensor]()
    for slot, each in slots.items():
        kinds = {tuple((f.kind, f.channel, f.leg - leg) for f, _ in by.terms)
                 for leg, by in each.items()}  # fmt: skip
        plain = [c for by in each.values() for _, c in by.terms if not isinstance(c, Tensor)]
        if len(kinds) != 1 or len(each) != len(plan.legs):
            continue
        (one,) = kinds
        varies = all(kind not in _CONSTANT and not away for kind, _, away in one)
        if varies and len(plain) == len(one) * len(each):
            rows = [[c for _, c in each[leg].terms] for leg in range(len(each))]
            found[slot] = torch.tensor(rows, dtype=torch.float64)
    return found


def product_pulled(v: Tensor, g: Tensor, by: Weighed, source: Source) -> Tensor:
    """Return the cotangent of g that v, (batch, *state), the one of g·Σ c w, brings; like g."""
    channels = 0 if g.ndim == v.ndim else g.shape[-1]
    total, c = source.sum(by, channels)
    scaled = v if c == 1 else v * c
    if total is None:
        return scaled
    if not channels:
        return scaled * total
    return scaled.unsqueeze(-1) * total.reshape(len(total), *[1] * (v.ndim - 1), channels)


def plus_product(x: Tensor, g: Tensor, by: Weighed, source: Source) -> Tensor:
    """Return x + g·Σ c w, (batch, *state).

    Args:
        x: (batch, *state).
        g: (batch, *state) for one motion an element, (batch, *state, m) for m channels.
        by: the sum.
        source: what makes functionals.
    """
    channels = 0 if g.ndim == x.ndim else g.shape[-1]
    total, c = source.sum(by, channels)
    if total is None:
        return torch.add(x, g, alpha=c)
    if not channels:
        return torch.addcmul(x, g, total, value=c)
    spread = total.reshape(len(total), *[1] * (x.ndim - 1), channels)
    return torch.add(x, (g * spread).sum(-1) if channels > 1 else (g * spread).squeeze(-1), alpha=c)

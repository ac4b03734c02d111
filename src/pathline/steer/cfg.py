"""Classifier-free guidance, and its projected form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields import Field, change
from pathline.paths import bshape
from pathline.steer.contrast import Contrast, Contrasted, Unconditioned
from pathline.steer.guide import guides


@guides.register("cfg", aliases=("classifier_free", "guidance"), paper="arXiv:2207.12598, Eq. 6")
@dataclass(frozen=True)
class CFG(Contrast):
    """Classifier-free guidance: F = F_∅ + w (F_c − F_∅), the same in every view.

    Both evaluations share one call of the network on a batch of twice the size.

    Args:
        weight: w; 1 means none, and costs nothing.
        interval: where there is guidance, (low, high); None for everywhere. In the middle of the
            path it does most of its good; at much noise it costs variety.
        of: what the interval is of: the time t, or the noise σ/α.
        rescale: φ, how far each sample's guided output is brought back to the standard deviation
            of F_c (in the model's own view, as Lin et al. have it); 0 for not at all.

    Cost: two calls of the network where there is guidance, one elsewhere.

    Papers: Ho & Salimans 2022; Kynkäänniemi et al. 2024 (arXiv:2404.07724) for the interval; Lin
    et al. 2023 (arXiv:2305.08891), Sec. 3.4, for φ.
    """

    rescale: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_weight("CFG", self.weight)
        if not 0 <= self.rescale <= 1:
            raise UsageError(f"rescale={self.rescale}: φ is from 0 (none) to 1.")

    def contrasted(self, field: Field) -> Contrasted:
        return Unconditioned.of(field, self)

    def mixed(self, worse: Tensor, better: Tensor, x: Tensor, t: Tensor, field: Field) -> Tensor:
        made = torch.lerp(worse, better, self.weight)
        if not self.rescale:
            return made
        ratio = _deviation(better) / _deviation(made)
        return made * (1 + self.rescale * (ratio - 1))


@guides.register("apg", paper="arXiv:2410.02416, Alg. 1")
@dataclass(frozen=True)
class APG(Contrast):
    """Adaptive projected guidance: of the step D = x̂_c − x̂_∅, what only brightens is damped.

        x̂_0 = x̂_c + (w − 1)(D_⊥ + η D_∥),   D_∥ the part of D along x̂_c, |D| ≤ r

    Choose it where CFG saturates colours. The paper's momentum is left out: it remembers earlier
    evaluations, and a field has no memory (a solver may evaluate it anywhere, in any order).

    Args:
        weight: w; 1 means none, and costs nothing.
        interval, of: as `CFG`.
        parallel: η; 1 leaves D as it is, and with radius=None gives CFG.
        radius: r, the most that |D| may be; None for no limit.

    Cost: two calls of the network where there is guidance, one elsewhere.
    """

    parallel: float = 0.0
    radius: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_weight("APG", self.weight)
        if self.radius is not None and not self.radius > 0:
            raise UsageError(f"radius={self.radius}: |D| is limited by a number above 0, or None.")

    def contrasted(self, field: Field) -> Contrasted:
        if field.path is None:
            raise UsageError("APG projects x̂_0, and a field without a path has none.")
        return Unconditioned.of(field, self)

    def mixed(self, worse: Tensor, better: Tensor, x: Tensor, t: Tensor, field: Field) -> Tensor:
        assert field.path is not None
        p, q = (bshape(c, x) for c in change(field.path, field.view, "x0", t))
        clean, step = p * x + q * better, q * (better - worse)
        if self.radius is not None:
            step = step * (self.radius / _norm(step)).clamp(max=1)
        along = clean * (_dot(step, clean) / _dot(clean, clean))
        step = step + (self.parallel - 1) * along
        return better + (self.weight - 1) * step / q


def _check_weight(guide: str, weight: object) -> None:
    """Refuse a weight that is no finite number."""
    if isinstance(weight, Real) and not isinstance(weight, bool) and math.isfinite(weight):
        return
    raise UsageError(
        f"the weight of {guide} is a finite number, and {weight!r} was given: {guide}(4.0), "
        "for example; 1 adds nothing."
    )


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))


def _norm(a: Tensor) -> Tensor:
    return _dot(a, a).sqrt().clamp(min=torch.finfo(a.dtype).tiny)


def _deviation(a: Tensor) -> Tensor:
    return a.flatten(1).std(1, correction=0).reshape(-1, *[1] * (a.ndim - 1))

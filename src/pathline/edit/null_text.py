"""Null-text inversion: one null embedding a step, so that guidance leads back to the picture.

DDIM inversion without guidance gives pivots z*_0 … z*_N. From the noise end down, the embedding ∅_i
that means "no text" is optimised until the guided step lands on the pivot:

    ∅_i = argmin mean (z*_{i−1} − D(z_i; c, ∅_i))²,   D one guided DDIM step

The embeddings are a guide: whoever decodes with it under the source gets the picture back, and
under another text an edit that keeps it. It is what BDIA and DCI, which optimise nothing, are
compared with.

Paper: Mokady et al. 2023 (arXiv:2211.09794), with the rates and tolerances of its code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.edit.edited import as_condition, check_picture
from pathline.edit.encode import Code
from pathline.edit.fixed_point import ddim_inversion
from pathline.edit.inverter import Way
from pathline.edit.text_edit import Said
from pathline.edit.ways import check_function, fingerprint, receipt_of, rising, way_of
from pathline.fields import Condition, Denoiser, Evaluate, Field, Prediction
from pathline.paths import bshape
from pathline.solvers import Grid
from pathline.steer import CFG, Guide
from pathline.steer.guide import Guided

__all__ = ["NullEmbeddings", "NullText", "null_text"]


@dataclass(frozen=True, eq=False)
class NullEmbeddings(Guide):
    """Classifier-free guidance whose null condition is another one at every grid point.

    Args:
        weight: w.
        times: where each null condition belongs; elsewhere the nearest one is taken.
        nulls: the network's keyword arguments, (batch, …) each.
    """

    weight: float
    times: tuple[float, ...]
    nulls: tuple[Mapping[str, Any], ...] = field(repr=False)

    @property
    def chooses_evaluations(self) -> bool:
        return True

    def __call__(self, field: Field) -> Field:
        if not isinstance(field, Denoiser):
            raise UsageError("optimised null embeddings take the model itself, before other guides")
        if self.weight == 1:
            return field
        parts = tuple(CFG(self.weight)(replace(field, null=dict(n))) for n in self.nulls)
        return _Embedded(field, self.times, parts)

    def describe(self) -> dict[str, Any]:
        return {"name": "null_text", "weight": self.weight, "n": len(self.nulls)}


@dataclass(frozen=True)
class _Embedded(Guided):
    """A field that is guided away from another null condition at every time."""

    times: tuple[float, ...]
    parts: tuple[Field, ...]

    @property
    def calls(self) -> int:
        return self.parts[0].calls

    def condition(self, cond: Condition, batch: int) -> Condition:
        return self.parts[0].condition(cond, batch)

    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.bind(t.reshape(1, *t.shape), x, cond)(0, x)

    def bind(self, times: Tensor, x: Tensor, cond: Condition) -> Evaluate:
        if times.ndim > 1:
            raise UsageError("null embeddings belong to times that all samples share.")
        own = torch.tensor(self.times, dtype=torch.float64)
        nearest = (times.cpu()[:, None] - own).abs().argmin(1).tolist()
        bound = [self.parts[i].bind(times[k : k + 1], x, cond) for k, i in enumerate(nearest)]
        return lambda k, state: bound[k](0, state)


class NullText(NamedTuple):
    """What null-text inversion found.

    Args:
        code: of the pictures, by DDIM inversion.
        guide: the optimised embeddings: `decode(model, code, guide=guide, text=...)`.
        left: the mean square distance from each pivot, data last, (steps, batch).
        evaluations: of the network, in pictures; as many backward passes as inner rounds.
    """

    code: Code
    guide: NullEmbeddings
    left: Tensor
    evaluations: int


def null_text(  # noqa: PLR0913 - keyword-only: each is one idea of the house
    model: Denoiser,
    x: Tensor,
    source: Said,
    *,
    weight: float = 7.5,
    rounds: int = 10,
    rate: float = 1e-2,
    grid: Grid | str | Sequence[float] | None = None,
    steps: int | None = None,
    strength: float = 1.0,
) -> NullText:
    """Return the code of pictures, and null embeddings that lead back from it under guidance.

    Args:
        model: a denoiser with a null condition of embeddings.
        x: data, (batch, *state).
        source: what they show.
        weight: w of the guidance to come.
        rounds: of Adam at each step, at most.
        rate: of Adam at the first step; it falls by a hundredth of itself a step.
        grid, steps, strength: as for `encode`.

    Raises:
        UsageError: no null condition that could be optimised; a grid that begins where α is 0.

    Cost: a step takes 2 evaluations, and for each round another one and its backward pass.
    """
    check_picture(model, x)
    start = _embedded(model, len(x))
    told = as_condition(model, source)
    way = way_of(model, None, rising(model, grid, steps, strength), told)
    if way.levels.alpha[-1] == 0:
        raise UsageError(f"α is 0 at t = {way.times[-1]:g}: end the grid at a smaller t.")
    check_function(model)
    method, pivots = ddim_inversion(), [x]

    def keep(index: int, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        pivots.append(states[0])
        return states

    with torch.no_grad():
        found = method.invert(way, x, keep)
    run = _Run(way, model, weight, rounds, rate, x)
    nulls, left = list[Mapping[str, Any]](), list[Tensor]()
    z, null = found.states[0].detach(), start
    for i in range(way.n, 0, -1):
        z, null, lost = run.step(i, z, pivots[i - 1].detach(), null)
        nulls.append(null)
        left.append(lost)
    made_with = fingerprint(way, method, x.dtype)
    receipt = receipt_of(way, made_with, told, found.states[0], found.nfe)
    code = Code(found.states, way.times, method, made_with, x.dtype, nfe=found.nfe, receipt=receipt)
    guide = NullEmbeddings(weight, way.times[:0:-1], tuple(nulls))
    return NullText(code, guide, torch.stack(left), found.nfe + run.evaluations)


def _embedded(model: Field, batch: int) -> dict[str, Any]:
    """Return the null condition for every picture, to begin with."""
    null = model.null if isinstance(model, Denoiser) else None
    if null is None or not any(_is_embedding(v) for v in null.values()):
        raise UsageError(
            "null-text inversion optimises the embedding that means no text, and this model has "
            "none (Denoiser(..., null={...}) with a floating tensor)."
        )
    return {
        k: v.expand(batch, *v.shape[1:]) if isinstance(v, Tensor) and v.ndim else v
        for k, v in null.items()
    }


def _is_embedding(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


class _Run:
    """The optimisation, step by step; counts evaluations."""

    def __init__(
        self, way: Way, model: Denoiser, weight: float, rounds: int, rate: float, x: Tensor
    ) -> None:
        self._way, self._model, self._weight = way, model, weight
        self._rounds, self._rate, self.evaluations = rounds, rate, 0
        self._cond = model.condition(way.cond, len(x))

    def _eps(self, i: int, z: Tensor, cond: Condition) -> Tensor:
        self.evaluations += 1
        t = torch.tensor(self._way.times[i], dtype=torch.float64, device=z.device)
        raw = self._model.evaluate(z, t, cond)
        return Prediction(z, t, raw, self._model.view, self._model.path).eps

    def step(
        self, i: int, z: Tensor, pivot: Tensor, null: Mapping[str, Any]
    ) -> tuple[Tensor, Mapping[str, Any], Tensor]:
        """Return the state at i − 1, the null condition of the step, and what is left, (batch,)."""
        alpha, sigma = self._way.levels
        a = alpha[i - 1] / alpha[i]
        b, j = sigma[i - 1] - a * sigma[i], self._way.n - i
        with torch.no_grad():
            bound = self._eps(i, z, self._cond)

        def landing(free: Tensor) -> Tensor:
            return a * z + b * torch.lerp(free, bound, self._weight)

        names = [k for k, v in null.items() if _is_embedding(v)]
        best = dict(null)
        adam = [(torch.zeros_like(best[k]), torch.zeros_like(best[k])) for k in names]
        with torch.enable_grad():
            for number in range(1, self._rounds + 1):
                at = {k: best[k].detach().requires_grad_() for k in names}
                free = self._eps(i, z, {**best, **at})
                left = (pivot - landing(free)).square().flatten(1).mean(1)
                going = left.detach() > 1e-5 + 2e-5 * j
                if not bool(going.any()):
                    break
                slopes = torch.autograd.grad(left.sum(), list(at.values()))
                rate = self._rate * max(1 - j / 100, 0.0)
                for name, slope, moments in zip(names, slopes, adam, strict=True):
                    moved = _adam(best[name].detach(), slope, moments, rate, number)
                    best[name] = torch.where(bshape(going, moved) > 0, moved, best[name])
        with torch.no_grad():
            made = landing(self._eps(i, z, best))
        return made, best, (pivot - made).square().flatten(1).mean(1)


def _adam(
    at: Tensor, slope: Tensor, moments: tuple[Tensor, Tensor], rate: float, number: int
) -> Tensor:
    """Return a tensor after a step of Adam, whose moments are changed."""
    first, second = moments
    first.mul_(0.9).add_(slope, alpha=0.1)
    second.mul_(0.999).addcmul_(slope, slope, value=0.001)
    size = (second / (1 - 0.999**number)).sqrt() + 1e-8
    return at - rate * (first / (1 - 0.9**number)) / size

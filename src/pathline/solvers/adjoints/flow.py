"""The flow as a plain integral, with its products: what the continuous adjoint integrates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields import Condition, Field, change
from pathline.paths import GaussianPath
from pathline.solvers.adjoints.segments import Record
from pathline.solvers.adjoints.sources import check_all_known, gradients
from pathline.solvers.runge_kutta import COORDINATES
from pathline.solvers.solver import Level

Form = Literal["eps", "x0", "velocity"]
"""The coordinates: (x/α, σ/α), (x/σ, α/σ) or (x, t)."""


class Point(NamedTuple):
    """Where F is evaluated: w = x/s, F = p x + q f with the field f in its own view."""

    t: Tensor
    scale: float
    p: float
    q: float


class Clocked:
    """A field in the coordinates of a form.

    Args:
        field: what is integrated.
        form: the coordinates; those of a path need one.
    """

    def __init__(self, field: Field, form: Form) -> None:
        self.field = field
        self.form: Form = form
        self.path: GaussianPath | None = None if form == "velocity" else field.path

    def clocks(self, times: Sequence[float]) -> tuple[float, ...]:
        """Return the clock at these times.

        Raises:
            UsageError: it is zero or infinite somewhere; the message says at which time.
        """
        levels = self._levels(torch.tensor(times, dtype=torch.float64))
        clocks = tuple(float(u) for u in COORDINATES[self.form].clock(levels).tolist())
        for i, (u, t) in enumerate(zip(clocks, times, strict=True)):
            if self.form != "velocity" and not 0 < u < math.inf:
                name = "σ/α" if self.form == "eps" else "α/σ"
                raise UsageError(
                    f"the form {self.form!r} has the clock {name}, which is {u:g} at grid point "
                    f"{i}, t = {t:g}: let the grid stay where α and σ are above 0, or use "
                    "form='velocity'."
                )
        return clocks

    def points(self, clocks: Sequence[float], known: Mapping[float, float]) -> list[Point]:
        """Return the points of the flow at these clocks; `known` are times of some of them."""
        u = torch.tensor(clocks, dtype=torch.float64)
        t = u if self.path is None else self.path.time_of_log_snr(self._log_snr(u))
        t = torch.tensor(
            [known.get(c, s) for c, s in zip(clocks, t.tolist(), strict=True)], dtype=torch.float64
        )
        scale = torch.ones_like(t) * COORDINATES[self.form].scale(self._levels(t))
        p, q = torch.zeros_like(t), torch.ones_like(t)
        if self.field.path is not None:
            p, q = change(self.field.path, self.field.view, self.form, t)
        columns = [c.tolist() for c in (scale, p, q)]
        rows = zip(t.unbind(), *columns, strict=True)
        return [self._checked(Point(*row)) for row in rows]

    def _checked(self, point: Point) -> Point:
        if not (math.isfinite(point.p) and math.isfinite(point.q)):
            raise UsageError(
                f"a field that says {self.field.view} does not tell {self.form} at "
                f"t = {float(point.t):.6g}; use another form, or a grid that avoids this time."
            )
        return point

    def _levels(self, t: Tensor) -> Level:
        """Return α, σ and t, as tensors in the place of numbers."""
        if self.path is None:
            return Level(t, t, t, t)  # type: ignore[arg-type]
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        return Level(t, alpha, sigma, t)  # type: ignore[arg-type]

    def _log_snr(self, u: Tensor) -> Tensor:
        return u.log() if self.form == "x0" else -u.log()


class Products:
    """Evaluates the field at points of the flow, with its vector-Jacobian products.

    Args:
        field: what is integrated.
        cond: as its `condition` returned it.
        sources: who asks for gradients.
        keeps_graph: whether part of an evaluation's graph outlives it.
        record: counts.
        mode: the autocast mode.
    """

    def __init__(
        self,
        field: Field,
        cond: Condition,
        sources: Sequence[Tensor],
        keeps_graph: bool,
        record: Record,
        mode: AbstractContextManager[object],
    ) -> None:  # fmt: skip
        self.field, self.cond, self.sources = field, cond, sources
        self.keeps_graph, self.record, self.mode = keeps_graph, record, mode

    def __call__(
        self, at: Point, w: Tensor, b: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Sequence[Tensor | None]]:
        """Return F, (∂F/∂w)ᵀ b and (∂F/∂θ)ᵀ b of every source.

        Args:
            at: the point.
            w: x/s, (batch, *state).
            b: the cotangent of w.
            dtype: of the state x.
        """
        x = (at.scale * w).to(dtype).detach().requires_grad_()
        with torch.enable_grad(), self.mode:
            f = self.field.bind(at.t.to(x.device)[None], x.detach(), self.cond)(0, x)
        self.record.nfe += 1
        made = at.p * x.detach() + at.q * f.detach()
        back = at.p * b
        if not f.requires_grad:
            return made, at.scale * back, [None] * len(self.sources)
        self.record.vjps += 1
        inputs = [x, *self.sources]
        check_all_known([f], inputs, f"at t = {float(at.t):.6g}")
        found = gradients([f], inputs, [(at.q * b).to(f.dtype)], self.keeps_graph)
        through = found[0]
        pulled = back if through is None else back + through.to(b.dtype)
        return made, at.scale * pulled, found[1:]

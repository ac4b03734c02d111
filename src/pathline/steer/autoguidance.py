"""Autoguidance: a bad version of the model is what a good one is led away from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields import Condition, Evaluate, Field
from pathline.fields.denoiser import denoiser_in
from pathline.steer.contrast import Contrast, Contrasted, said_in
from pathline.steer.guide import guides


@guides.register("autoguidance", paper="arXiv:2406.02507, Eq. 3")
@dataclass(frozen=True)
class Autoguidance(Contrast):
    """Guidance by a worse model: F = F_bad + w (F − F_bad), both with the condition.

    It sharpens without making samples alike, and needs no null condition. The worse model is the
    same one trained for a shorter time, or smaller; it may say another view than the good one.

    Args:
        weight: w; 1 means none, and costs nothing.
        interval, of: as `CFG`.
        worse: a model on the same path.

    Raises:
        UsageError: the worse model is missing, on another path, or of another shape.

    Cost: a call of each network where there is guidance, one elsewhere.
    """

    worse: Field | None = field(default=None, compare=False)

    def contrasted(self, field: Field) -> Contrasted:
        worse = self.worse
        if worse is None:
            raise UsageError("Autoguidance(worse=...) needs the worse model.")
        if worse.path != field.path or field.path is None:
            raise UsageError(
                f"both models must be on one path; they are on {field.path} and {worse.path}."
            )
        if None not in (worse.shape, field.shape) and worse.shape != field.shape:
            raise UsageError(f"the worse model takes {worse.shape}, and the good {field.shape}.")
        return _Both(field, self, worse)

    def describe(self) -> dict[str, Any]:
        """Return what a receipt says of it: all but the model, which is named."""
        worse = denoiser_in(self.worse)
        told = None if worse is None else {
            "name": worse.name, "weights": worse.details.get("weights")
        }  # fmt: skip
        interval = None if self.interval is None else list(self.interval)
        about = {"name": "autoguidance", "weight": self.weight, "interval": interval}
        return {**about, "of": self.of, "worse": told}


@dataclass(frozen=True)
class _Both(Contrasted):
    """The worse model against the good one, in the view of the good one."""

    worse: Field

    @property
    def calls(self) -> int:
        return self.inner.calls + self.worse.calls

    def condition(self, cond: Condition, batch: int) -> Condition:
        inner, worse = (f.condition(cond, batch) for f in (self.inner, self.worse))
        return {"better": inner, "worse": worse}

    def part(self, cond: Condition, rows: Tensor) -> Condition | None:
        better = self.inner.part(cond["better"], rows)
        worse = self.worse.part(cond["worse"], rows)
        return None if better is None or worse is None else {"better": better, "worse": worse}

    def better(self, times: Tensor, x: Tensor, cond: Condition) -> Evaluate:
        return self.inner.bind(times, x, cond["better"])

    def pair(self, times: Tensor, x: Tensor, cond: Condition) -> Any:
        better = self.better(times, x, cond)
        worse = said_in(self.inner.view, self.worse, times, x, cond["worse"])
        return lambda k, state: (worse(k, state), better(k, state))

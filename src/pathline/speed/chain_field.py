"""The field of a set of chains: each with its condition, already in the network's words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pathline.fields import Condition, Evaluate, Field, Unscaled
from pathline.paths import GaussianPath


@dataclass(frozen=True)
class Conditioned(Field):
    """A field that knows the condition of each chain.

    Args:
        inner: what is evaluated.
        told: the condition of all `batch` chains, as `inner.condition` returned it.
        batch: how many chains that is about.
        rows: the chains that this is the field of, where `inner` takes only whole batches; None
            is all of them.
    """

    inner: Unscaled
    told: Condition
    batch: int
    rows: Tensor | None = None

    @property
    def path(self) -> GaussianPath:  # type: ignore[override]
        return self.inner.path

    @property
    def view(self) -> Literal["x0"]:  # type: ignore[override]
        return "x0"

    @property
    def calls(self) -> int:
        return self.inner.calls

    def calls_at(self, times: Tensor) -> int:
        return self.inner.calls_at(times)

    def piece(self, times: Tensor) -> Tensor:
        return self.inner.piece(times)

    @property
    def vjps(self) -> int:
        return self.inner.vjps

    def of(self, chains: Tensor) -> Conditioned:
        """Return the field of these chains alone."""
        part = self.inner.part(self.told, chains)
        if part is None:
            return Conditioned(self.inner, self.told, self.batch, chains)
        return Conditioned(self.inner, part, len(chains))

    def condition(self, cond: Condition, batch: int) -> Condition:
        """Return what the chains are told; nobody else tells them anything."""
        super().condition(cond, batch)
        return self.told

    def part(self, cond: Condition, rows: Tensor) -> Condition | None:
        return self.inner.part(cond, rows) if self.rows is None else None

    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        if self.rows is None:
            return self.inner.evaluate(x, t, cond)
        at, times = self.rows.to(x.device), self._among(t) if t.ndim else t
        return self.inner.evaluate(self._among(x), times, cond)[at]

    def bind(self, times: Tensor, x: Tensor, cond: Condition) -> Evaluate:
        if self.rows is None:
            return self.inner.bind(times, x, cond)
        at = self.rows.to(x.device)
        times = self._among(times.T).T if times.ndim > 1 else times
        inner = self.inner.bind(times, self._among(x), cond)
        return lambda k, state: inner(k, self._among(state))[at]

    def _among(self, x: Tensor) -> Tensor:
        """Return a whole batch with these chains in their places; nobody listens to the others."""
        assert self.rows is not None
        return x[:1].expand(self.batch, *x.shape[1:]).index_put((self.rows.to(x.device),), x)

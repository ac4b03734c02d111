"""SADA in one solve: what it remembers, what it decides, and what it says afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields import Condition
from pathline.solvers.evaluate import Call, Evaluator, check_output
from pathline.speed.criteria import CRITERIA, Moment
from pathline.speed.memory import Memory
from pathline.speed.policy import calls_of
from pathline.speed.sada import SADA
from pathline.speed.tokens import TokenChoice

Regime = Literal["real", "tokens", "step", "lagrange"]
REPLACED = ("step", "lagrange")

TELLING = (0.02, 0.98)
"""Outside of these shares of stable decisions, a criterion does not tell steps apart."""


@dataclass(frozen=True)
class Skipped:
    """What SADA did.

    Args:
        regimes: for each evaluation of the plan, for each sample: "real", "tokens" (real, with some
            tokens from the cache), or replaced: "step" or "lagrange".
        criterion: mean κ before each evaluation, (evaluations, batch) float64; NaN where it was
            not asked.
        tokens: share of the tokens that were computed, (evaluations, batch); 0 where replaced.
    """

    regimes: tuple[tuple[Regime, ...], ...]
    criterion: Tensor
    tokens: Tensor

    @property
    def steps(self) -> tuple[tuple[int, ...], ...]:
        """For each sample, the evaluations that were left out."""
        each = zip(*self.regimes, strict=True)
        return tuple(tuple(i for i, r in enumerate(of) if r in REPLACED) for of in each)

    @property
    def n_decisions(self) -> int:
        """How often the criterion was asked."""
        return int((~self.criterion.isnan()).sum())

    @property
    def stable(self) -> float:
        """Share of the criterion's answers that were "stable"; NaN if it was never asked."""
        asked = self.criterion[~self.criterion.isnan()]
        return float((asked < 0).double().mean())


@dataclass(frozen=True)
class _Decision:
    """What becomes of one evaluation, for each sample, and what that was decided on."""

    regimes: list[Regime]
    moment: Moment | None = None
    kappa: Tensor | None = None

    @property
    def real(self) -> list[int]:
        """The samples that are evaluated."""
        return [s for s, regime in enumerate(self.regimes) if regime not in REPLACED]


class Run(Evaluator):
    """Evaluates a plan for SADA: some of it really, the rest from what it remembers.

    Args:
        policy: how.
        call: what is solved.
    """

    __slots__ = (
        "_call", "_in_a_row", "_last_skip", "_limits", "_log", "_memory", "_policy", "_position",
        "_spent", "_tokens",
    )  # fmt: skip

    def __init__(self, policy: SADA, call: Call) -> None:
        plan, batch = call.plan, len(call.x)
        self._tokens = TokenChoice.of(policy.pruned, call)
        if self._tokens is not None:
            call = call._replace(field=self._tokens.field)
        super().__init__(call.field, plan, call.x, call.cond)
        calls = calls_of(plan)
        self._call, self._policy, self._limits = call, policy, policy.limits(len(calls))
        self._position = {k: i for i, k in enumerate(calls)}
        self._memory = Memory(plan, policy.carried(plan), policy.nodes)
        self._in_a_row, self._last_skip, self._spent = [0] * batch, [-1] * batch, [0] * batch
        self._log: list[tuple[tuple[Regime, ...], Tensor, Tensor]] = []

    def __call__(self, k: int, x: Tensor) -> Tensor:
        """Return the field at state number k, or what stands for it, for each sample."""
        if x.shape != self._call.x.shape:
            raise UsageError(
                f"the state was {tuple(self._call.x.shape)} and is now {tuple(x.shape)}: what SADA "
                "remembers belongs to the samples that it began with."
            )
        i = self._position[k]
        decision = self._decide(i, x)
        regimes, real = decision.regimes, decision.real
        far = [regime == "lagrange" for regime in regimes]
        f = x if len(real) == len(x) else self._memory.predicted(i, x, far, decision.moment)
        shares = [0.0] * len(x)
        for rows, keep in self._passes(i, real, decision.kappa):
            f = self._evaluated(k, x, f, rows, keep)
            for s, share in zip(rows, self._kept(rows, keep), strict=True):
                regimes[s] = "real" if keep is None else "tokens"
                shares[s] = share
        self._memory.push(i, x, f, [r not in REPLACED for r in regimes])
        self._note(i, decision, shares)
        return f

    @property
    def per_sample(self) -> tuple[int, ...]:
        return tuple(self._spent)

    def report(self) -> Skipped:
        """Return what was left out, and warn if the criterion did not tell steps apart."""
        none = torch.zeros(0, len(self._spent), dtype=torch.float64)
        regimes, criterion, tokens = zip(*self._log, strict=True) if self._log else ((), (), ())
        report = Skipped(
            tuple(regimes),
            torch.stack(list(criterion)) if criterion else none,
            torch.stack(list(tokens)) if tokens else none,
        )
        low, high = TELLING
        if report.n_decisions >= 1 / low and not low <= report.stable <= high:
            warnings.warn(
                f"SADA's criterion {self._policy.criterion!r} called {report.stable:.1%} of "
                f"{report.n_decisions} steps stable: it does not tell them apart here, and "
                "max_interval alone decides; another criterion may.",
                stacklevel=2,
            )
        return report

    def _decide(self, i: int, x: Tensor) -> _Decision:
        """Decide about evaluation i."""
        policy, (first, end, late), batch = self._policy, self._limits, len(x)
        if not first < i < end or not self._memory.has_slopes:
            return _Decision(["real"] * batch)
        scheduled = [i >= late and ready for ready in self._memory.has_nodes()]
        skips, moment, kappa = [i % policy.every != 0] * batch, None, None
        if not all(scheduled):
            moment = self._memory.moment(i, x, policy.weights, policy.limit)
            kappa = CRITERIA[policy.criterion](moment).detach()
            stable = (self._mean(kappa) < 0).tolist()
            skips = [a if on else b for on, a, b in zip(scheduled, skips, stable, strict=True)]
        regimes: list[Regime] = [
            "real" if not skip or row >= policy.max_interval else "lagrange" if on else "step"
            for on, skip, row in zip(scheduled, skips, self._in_a_row, strict=True)
        ]
        return _Decision(regimes, moment, kappa)

    def _mean(self, kappa: Tensor) -> Tensor:
        """Return mean κ of each sample, or of the batch for each, (batch,) float64 on the CPU."""
        mean = kappa.flatten(1).mean(1).double().cpu()
        return mean if self._policy.granularity == "per_sample" else mean.mean().expand(len(mean))

    def _passes(
        self, i: int, real: list[int], kappa: Tensor | None
    ) -> list[tuple[list[int], Tensor | None]]:
        """Return which samples go through the network together, and the tokens they keep."""
        if self._tokens is None or kappa is None:
            return [(real, None)] if real else []
        cycle = self._policy.cycle
        whole = [s for s in real if (i - self._last_skip[s] - 1) % cycle == 0]
        parts = [s for s in real if s not in whole]
        keep = self._tokens.kept(i, kappa)[parts] if parts else None
        return [(rows, tokens) for rows, tokens in ((whole, None), (parts, keep)) if rows]

    def _evaluated(
        self, k: int, x: Tensor, f: Tensor, rows: list[int], keep: Tensor | None
    ) -> Tensor:
        """Return f with the field itself in these rows."""
        if self._tokens is not None:
            self._tokens.aim(rows, keep)
        if len(rows) == len(x):
            fresh = self._bound(k, x)
        else:
            at = torch.tensor(rows, device=x.device)
            t = self._call.plan.instants[k].to(x.device)
            cond = _part(self._call.cond, at, len(x))
            fresh = f.index_copy(0, at, self._call.field.evaluate(x[at], t, cond))
        check_output(fresh, x)
        for s in rows:
            self._spent[s] += 1
        self.n = max(self._spent)
        return fresh

    def _kept(self, rows: list[int], keep: Tensor | None) -> list[float]:
        return [1.0] * len(rows) if keep is None else keep.double().mean(1).tolist()

    def _note(self, i: int, decision: _Decision, shares: Sequence[float]) -> None:
        """Count what was skipped, and write it down."""
        for s, regime in enumerate(decision.regimes):
            if regime in REPLACED:
                self._in_a_row[s] += 1
                self._last_skip[s] = i
            else:
                self._in_a_row[s] = 0
        share = torch.tensor(shares, dtype=torch.float64)
        kappa = torch.full_like(share, torch.nan)
        if decision.kappa is not None:
            kappa = self._mean(decision.kappa)
        self._log.append((tuple(decision.regimes), kappa, share))


def _part(cond: Condition, rows: Tensor, batch: int) -> Condition:
    """Return the condition of these samples."""

    def of(value: Any) -> Any:
        batched = isinstance(value, Tensor) and value.ndim > 0 and len(value) == batch
        return value[rows.to(value.device)] if batched else value

    return {name: of(value) for name, value in cond.items()}

"""SADA in one solve: what it remembers, what it decides, and what it says afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.core.warned import warn
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
    def computed(self) -> float:
        """Share of the tokens of real evaluations that were computed; NaN if there were none."""
        return float(self.tokens[self.tokens > 0].mean())

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
        "_call", "_in_a_row", "_kinds", "_last_kind", "_last_skip", "_limits", "_log", "_made",
        "_memory", "_policy", "_position", "_splits", "_tokens",
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
        self._in_a_row, self._last_skip = [0] * batch, [-1] * batch
        self._made: list[list[int]] = [[] for _ in range(batch)]
        self._splits = call.field.part(call.cond, torch.arange(batch)) is not None
        self._kinds = call.field.piece(plan.instants).tolist()
        self._last_kind = [-1] * batch
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
        whole = self._whole(k, i, decision)
        for rows, keep in self._passes(i, real, whole, decision.kappa):
            f = self._evaluated(k, x, f, rows, keep)
            for s in rows:
                regimes[s] = "real" if s in whole else "tokens"
                shares[s] = 1.0 if s in whole or keep is None else float(keep[s].double().mean())
        self._memory.push(i, x, f, [r not in REPLACED for r in regimes])
        self._note(i, decision, shares)
        return f

    @property
    def per_sample(self) -> tuple[int, ...]:
        return tuple(map(len, self._made))

    @property
    def network_calls(self) -> int:
        """Network calls of the dearest sample, each of its evaluations at its own time."""
        plan, field = self._call.plan, self._call.field
        return max(field.calls_at(plan.instants[made]) if made else 0 for made in self._made)

    def report(self) -> Skipped:
        """Return what was left out, and warn if the criterion did not tell steps apart."""
        none = torch.zeros(0, len(self._made), dtype=torch.float64)
        regimes, criterion, tokens = zip(*self._log, strict=True) if self._log else ((), (), ())
        report = Skipped(
            tuple(regimes),
            torch.stack(list(criterion)) if criterion else none,
            torch.stack(list(tokens)) if tokens else none,
        )
        low, high = TELLING
        if report.n_decisions >= 1 / low and not low <= report.stable <= high:
            warn(
                f"SADA's criterion {self._policy.criterion!r} called {report.stable:.1%} of "
                f"{report.n_decisions} steps stable: it does not tell them apart here, and "
                "max_interval alone decides; another criterion may."
            )
        if self._tokens is not None and report.computed > high:
            warn(
                f"Tokens left {1 - report.computed:.1%} of the tokens out: the evaluation after a "
                "skip computes all of them, and so do those that follow Lagrange's cadence. To "
                "prune instead of skipping, SADA(max_interval=0, lagrange_step=None, "
                "tokens=Tokens(refresh=4))."
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
            kappa[self._on_a_line()] = torch.nan  # and NaN is not negative
            stable = (self._mean(kappa) < 0).tolist()
            skips = [a if on else b for on, a, b in zip(scheduled, skips, stable, strict=True)]
        regimes: list[Regime] = [
            "real" if not skip or row >= policy.max_interval else "lagrange" if on else "step"
            for on, skip, row in zip(scheduled, skips, self._in_a_row, strict=True)
        ]
        return _Decision(regimes, moment, kappa)

    def _on_a_line(self) -> list[int]:
        """Return the samples whose last velocity was laid on the line through two real ones.

        It bends nowhere: Δ²y is zero in exact arithmetic, with a sign that is rounding, or what an
        older prediction has missed, with the wrong sign. No criterion can be asked about it, in
        whatever precision; the next evaluation is real.
        """
        if self._memory.carry != "velocity" or not self._log:
            return []
        return [s for s, regime in enumerate(self._log[-1][0]) if regime == "step"]

    def _mean(self, kappa: Tensor) -> Tensor:
        """Return mean κ of each sample, or of the batch for each, (batch,) float64 on the CPU."""
        mean = kappa.flatten(1).mean(1).double().cpu()
        return mean if self._policy.granularity == "per_sample" else mean.mean().expand(len(mean))

    def _whole(self, k: int, i: int, decision: _Decision) -> list[int]:
        """Return the samples all of whose tokens are computed, if they are evaluated.

        That is all of them without a choice of tokens; else in turn, and where the field has jumped
        since a sample's last evaluation: what its caches hold are then another field's tokens.
        """
        kappa, everyone = decision.kappa, range(len(self._made))
        if self._tokens is None or kappa is None:
            return list(everyone)
        lost = kappa.flatten(1)[:, 0].isnan().tolist()
        cycle, kind = self._policy.cycle, self._kinds[k]
        due = [(i - last - 1) % cycle == 0 for last in self._last_skip]
        return [s for s in everyone if lost[s] or due[s] or self._last_kind[s] != kind]

    def _passes(
        self, i: int, real: list[int], whole: list[int], kappa: Tensor | None
    ) -> list[tuple[list[int], Tensor | None]]:
        """Return which samples go through the network together, and the tokens of everyone."""
        if not set(real) - set(whole) or self._tokens is None or kappa is None:
            return [(real, None)] if real else []
        keep = self._tokens.kept(i, kappa)
        keep[whole] = True
        if not self._splits:
            return [(real, keep)]
        parts = [s for s in real if s not in whole]
        full = [s for s in real if s in whole]
        return [(rows, tokens) for rows, tokens in ((full, None), (parts, keep)) if rows]

    def _evaluated(
        self, k: int, x: Tensor, f: Tensor, rows: list[int], keep: Tensor | None
    ) -> Tensor:
        """Return f with the field itself in these rows."""
        at = torch.tensor(rows)
        if self._tokens is not None:
            self._tokens.aim(rows, keep, self._splits)
        if len(rows) == len(x):
            fresh = self._bound(k, x)
        elif self._splits:
            part = self._call.field.part(self._call.cond, at)
            assert part is not None
            t, at = self._call.plan.instants[k].to(x.device), at.to(x.device)
            fresh = f.index_copy(0, at, self._call.field.evaluate(x[at], t, part))
        else:  # only whole batches: the others are there, and not listened to
            at = at.to(x.device)
            fresh = f.index_copy(0, at, self._bound(k, x)[at])
        check_output(fresh, x)
        for s in rows:
            self._made[s].append(k)
            self._last_kind[s] = self._kinds[k]
        self.n = max(map(len, self._made))
        return fresh

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

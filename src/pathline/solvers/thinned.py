"""Guidance whose unconditional half is not evaluated every time.

Guidance moves by the difference of two evaluations, d = x̂_c − x̂_∅ of the data. It shrinks from
step to step, and what is left of it points the same way: where x̂_∅ is left out,

    d_k ≈ ρ_k d_last

and each evaluation costs half. ρ = 0 is guidance in an interval; numbers that were found for a
model are better. At pure noise x̂_∅ is known without asking (`null_start`). What the first
evaluations say can be corrected by heads on the network (`heads`).

Paper: Castillo et al. 2023 (arXiv:2312.12487), where x̂_∅ is an affine function of all that was
evaluated before; here it is this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pathline.core.errors import UsageError
from pathline.core.tensors import on_device
from pathline.fields import Field, Halves
from pathline.fields.views import change
from pathline.solvers.evaluate import Call, Evaluator, Speed, check_output
from pathline.solvers.headed import Headed, with_heads
from pathline.solvers.heads import heads_of
from pathline.solvers.null_start import NullStart, null_start_of

NAME = "thinned_guidance"


@dataclass(frozen=True)
class ThinnedGuidance(Speed):
    """Leave out the unconditional half of some guided evaluations.

    Args:
        ratios: ρ_k of each evaluation of the plan; None where both halves are evaluated. The first
            has nothing before it, so it is None.
        null_start: whether the unconditional half of the first evaluation, at pure noise, is the
            one that was measured beside the model (`solvers.null_start`).
        heads: the digest of what is added to the network's last layer at the first evaluations; see
            `solvers.heads`. "" adds nothing.

    Raises:
        UsageError: ratios that are no numbers, or one where nothing has been evaluated.
    """

    ratios: tuple[float | None, ...]
    null_start: bool = False
    heads: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratios", checked_ratios(self.ratios))

    @property
    def halves(self) -> int:
        """Evaluations of the network, a guided evaluation being two."""
        made = sum(2 if ratio is None else 1 for ratio in self.ratios)
        return made - self.null_start

    @property
    def evaluations(self) -> int:
        """Guided evaluations, of two halves each, that cost as much."""
        return -(-self.halves // 2)

    def calls(self, field: Field) -> int:
        return self.halves * field.calls // 2

    def evaluator(self, call: Call) -> Evaluator:
        return ThinnedEvaluator(self, call)

    @property
    def looks_at_data(self) -> bool:
        return False  # which halves are left out is known beforehand

    def describe(self) -> dict[str, Any]:
        told = {"name": NAME, "ratios": list(self.ratios), "null_start": self.null_start}
        return told | ({"heads": self.heads} if self.heads else {})


def checked_ratios(ratios: Any) -> tuple[float | None, ...]:
    """Return ratios as a tuple, if they can be."""
    try:
        made = tuple(None if ratio is None else float(ratio) for ratio in ratios)
    except (TypeError, ValueError) as error:
        raise UsageError(f"ratios are numbers, or None for both halves: {ratios!r}.") from error
    if made and made[0] is not None:
        raise UsageError("the first evaluation has no difference before it: its ratio is None.")
    if any(ratio is not None and not abs(ratio) < float("inf") for ratio in made):
        raise UsageError(f"ratios must be finite numbers: {list(made)}.")
    return made


class ThinnedEvaluator(Evaluator):
    """Evaluates one half or both, as the policy says.

    Args:
        policy: which.
        call: what is solved.
        also: what the field's halves go through before they are asked; None changes nothing.
    """

    __slots__ = ("_headed", "_last", "_null", "_p", "_policy", "_q", "halves")

    def __init__(
        self,
        policy: ThinnedGuidance,
        call: Call,
        also: Callable[[Halves], Halves] | None = None,
    ) -> None:
        plan, x, path = call.plan, call.x, call.field.path
        if len(policy.ratios) != plan.nfe:
            raise UsageError(
                f"{len(policy.ratios)} ratios were given for {plan.nfe} evaluations; give one each."
            )
        if plan.instants.ndim > 1:
            raise UsageError("guidance is thinned on one grid for all samples.")
        super().__init__(call.field, plan, x, call.cond)
        field = call.field
        self._headed: Headed | None = None
        if policy.heads:
            field, self._headed = with_heads(field, heads_of(field, policy.heads))
        halves = field.halves(on_device(plan.instants, x.device), x, call.cond)
        if halves is None or path is None:
            raise UsageError(
                "there is no unconditional half to leave out: this is for guidance of a model on a "
                "path at all times, guide=CFG(weight)."
            )
        self.halves = halves if also is None else also(halves)
        self._policy = policy
        self._last: tuple[Tensor, float] | None = None
        p, q = change(path, "x0", call.field.view, plan.instants)  # view = p x + q x̂_0
        self._p, self._q = p.tolist(), q.tolist()
        self._null: NullStart | None = null_start_of(call.field) if policy.null_start else None
        begins = float(plan.instants[plan.evaluated[0]]) if plan.evaluated else path.t_max
        if self._null is not None and abs(begins - path.t_max) > 1e-9:
            raise UsageError("what the model says of pure noise is known at t_max alone.")

    @property
    def policy(self) -> ThinnedGuidance:
        return self._policy

    def __call__(self, k: int, x: Tensor) -> Tensor:
        ratio = self._policy.ratios[self.n]
        if self._headed is not None:
            self._headed.now = self.n
        if ratio is None and (self.n or self._null is None):
            worse, better = self.halves.both(k, x)
        else:
            better = self.halves.better(k, x)
            worse = self._start(k, x) if ratio is None else better - self._difference(k, ratio)
        if not self.n:
            check_output(better, x)
        if ratio is None:
            self._last = better - worse, self._q[k]
        self.n += 1
        return self.halves.mixed(k, x, worse, better)

    def _start(self, k: int, x: Tensor) -> Tensor:
        assert self._null is not None
        return self._p[k] * x + self._q[k] * self._null(x)

    def _difference(self, k: int, ratio: float) -> Tensor:
        """Return ρ d_last, in the field's view."""
        assert self._last is not None
        last, unit = self._last
        return last * (ratio * self._q[k] / unit)

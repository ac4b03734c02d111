"""Control by a reward: teach a sampler to reach what is rewarded, and to stay near what it was.

    max  E[γ r(x_0)] − KL(P^θ ‖ P^pre)

over the trajectories of a stochastic plan. Each of its rows is a Gaussian step whose mean the
control moves, so the divergence is a sum over steps, both models evaluated where the controlled
chain is:

    KL = Σ_i E ‖Σ_k b_ik (F_θ − F_pre)(x_k)‖² / (2 s_i²)

With r = log p̂(y | x_0, c) the best control samples p_pre(x | c) p̂(y | x, c)^γ, if the chain's end
does not remember its start: with eta = 1 on a whole schedule it does not (`learn.measure_memory`).
States are functions of the weights and of given noise, so the gradient is that of the
reparametrised rollout, and flows through the states from step to step.

Paper: Zhao et al. 2024 (arXiv:2406.12120), Sec. 4 and 5. Its time runs the other way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pathline.core.errors import UsageError, unknown
from pathline.fields import Field
from pathline.solvers import DDIM, Grid, Plan, Solver, grids
from pathline.solvers.execute import Draw, Execution, combined, drawing
from pathline.solvers.grids import grids as known_grids
from pathline.solvers.plan import Coefficient, Row
from pathline.solvers.solve import start
from pathline.solvers.solver import solvers
from pathline.steer.control import Control, Pair, Shift

__all__ = ["NOTHING", "Noise", "Question", "Rollout", "SoftControl", "noise_unit"]

Reduction = Literal["sum", "mean"]
Adjoint = Literal["checkpoint", "direct"]
Truncation = int | Literal["random"] | None
AnyControl = Control | Shift
Reward = Callable[..., Tensor]
"""r(x_0 (batch, *state), **words) → (batch,), told all that the model and the control are told."""


class Question(NamedTuple):
    """What a batch is asked for.

    Args:
        cond: what both models are told, in the user's words.
        told: what the control is told besides ({"label": y}).
    """

    cond: Mapping[str, Any]
    told: Mapping[str, Any]


NOTHING = Question({}, {})
"""What is asked for where there is nothing to choose."""


class Noise(NamedTuple):
    """All that is random in a batch of trajectories.

    Args:
        x: where they start, (batch, *state).
        draw: z_d, (batch, *state).
        generator: of random truncation.
    """

    x: Tensor
    draw: Draw
    generator: torch.Generator | None = None


class Rollout(NamedTuple):
    """What came of a batch of controlled trajectories.

    Args:
        x: their ends, (batch, *state).
        reward: of each, (batch,), without γ.
        divergence: of each, (batch,): its mean is the KL, reduced over the state as was asked.
        loss: what is minimised, a number.
    """

    x: Tensor
    reward: Tensor
    divergence: Tensor
    loss: Tensor


@dataclass(frozen=True)
class SoftControl:
    """The objective of learned control, for any model on a path and any stochastic one-noise plan.

    Args:
        reward: r(x_0, **words); `ClassReward` makes one of a classifier. Decode inside, where
            the model is of latents.
        strength: γ, relative to the divergence as it is reduced (see `gamma`).
        solver: with noise in every step.
        grid: of the rollouts; one that stops at t_min has noise in its last step too.
        kl_reduction: "sum" over the state, as the theory has it; or "mean", as public code has it.
        floor: the deviation that the divergence of a last step without noise is measured in; None
            drops it, and then that step may do what it likes.
        truncate: evaluations, counted from the noise, through which no gradient of the networks
            goes (that through the states does); "random" draws the number anew for each, from 0
            to n, as the paper's code does. Biased, and cheaper.
        adjoint: "checkpoint" keeps the states alone and evaluates once more on the way back;
            "direct" keeps all that the network computed.

    Raises:
        UsageError: γ below 0 or not finite; an unknown reduction or adjoint.

    Cost: two evaluations a step (one network call each), and once more with checkpoints.

    Example: a reward of γ for each unit of x moves N(0, 1) to N(γ, 1); nothing is learned here yet.
        >>> from pathline.fields import Gaussian
        >>> from pathline.paths import VPLinear
        >>> law = Gaussian(VPLinear(), torch.zeros(1), torch.ones(1))
        >>> objective = SoftControl(lambda x: x[:, 0], strength=2.0)
        >>> idle = Shift(lambda x, t: torch.zeros_like(x))
        >>> objective.rollout(law, idle, range(8)).divergence.sum().item()
        0.0
    """

    reward: Reward
    strength: float = 1.0
    solver: Solver = field(default_factory=lambda: DDIM(eta=1.0))
    grid: Grid = field(default_factory=lambda: grids.log_snr(20))
    kl_reduction: Reduction = "sum"
    floor: float | None = 1e-4
    truncate: Truncation = None
    adjoint: Adjoint = "checkpoint"

    def __post_init__(self) -> None:
        if not 0 <= self.strength < math.inf:
            raise UsageError(
                f"the strength γ is a finite number ≥ 0, 1 for Bayes' rule; it is {self.strength}."
            )
        if self.kl_reduction not in ("sum", "mean"):
            raise unknown("kl_reduction", self.kl_reduction, ("sum", "mean"))
        if self.adjoint not in ("checkpoint", "direct"):
            raise unknown("adjoint", self.adjoint, ("checkpoint", "direct"))
        if self.truncate not in (None, "random") and not isinstance(self.truncate, int):
            raise UsageError(f"truncate is a number of evaluations, 'random' or None: not "
                             f"{self.truncate!r}.")  # fmt: skip

    def gamma(self, size: int) -> float:
        """Return γ relative to the divergence summed over a state of this many numbers.

        c_r = 0.1 and c_kl = 0.01 of the paper's code are strength=10 with kl_reduction="mean", that
        is γ = 10 · size.
        """
        return self.strength * (size if self.kl_reduction == "mean" else 1)

    def plan(self, model: Field) -> Plan:
        """Return the plan of the rollouts, in the model's view.

        Raises:
            UsageError: some step that evaluates the model draws no noise of its own.
        """
        plan = self.solver.plan(model.path, self.grid).folded(model.view)
        if not plan.is_stochastic:
            raise UsageError(
                "KL to the pretrained chain is infinite for a deterministic sampler; use eta>0."
            )
        draws = [d for row in plan.rows for d in row.z]
        silent = [i for i, row in enumerate(plan.rows[:-1], 1) if row.f and not row.z]
        if silent or len(set(draws)) != len(draws):
            raise UsageError(
                f"steps {silent or 'that share noise'} of {type(self.solver).__name__} evaluate "
                "the model and draw no noise of their own, so the KL to the pretrained chain is "
                "infinite or unknown; use DDIM(eta=1), DPMpp(eta=1) or EulerMaruyama()."
            )
        return plan

    def rollout(
        self, model: Field, control: AnyControl, seeds: Sequence[int], question: Question = NOTHING
    ) -> Rollout:
        """Run the controlled chain from seeds, and return what came of it.

        Args:
            model: the pretrained one.
            control: a guide, at its trained strength; what it is told is taken from the question.
            seeds: one a sample.
            question: what is asked for.

        Raises:
            UsageError: as `plan`; a reward that is not one number a sample.
        """
        plan, device = self.plan(model), model.device or "cpu"
        assert model.path is not None
        x = start(model.path, plan.start[-1], seeds, model.shape or (), device=device)
        random = torch.Generator().manual_seed(seeds[0] % 2**63)
        return self.run(model, control, Noise(x, drawing(plan, seeds, x), random), question)

    def run(
        self, model: Field, control: AnyControl, noise: Noise, question: Question = NOTHING
    ) -> Rollout:
        """Run the controlled chain on given noise; gradients are the caller's.

        Args:
            model, control, question: as `rollout`.
            noise: all that is random.

        Raises:
            UsageError: as `rollout`.
        """
        plan, x = self.plan(model), noise.x
        asked = replace(control, told=question.told or control.told)
        field = asked.controlled(model)
        cond = field.condition(question.cond, len(x))
        pair = field.pair(plan.instants.to(x.device), x, cond)
        evaluate = _Evaluations(self, pair, plan.nfe, noise.generator)
        chain = Execution(plan, evaluate, [x], combined, noise.draw)
        divergence = x.new_zeros(len(x))
        for row, made in zip(plan.rows, chain.program, strict=True):
            x = chain.advance(made)
            if row.f and (row.z or self.floor is not None):
                divergence = divergence + self._divergence(row, evaluate.moves)
        reward = self.reward(x, **{**question.cond, **question.told})
        if reward.shape != (len(x),):
            raise UsageError(
                f"a reward is one number a sample, ({len(x)},), and is {tuple(reward.shape)}."
            )
        loss = divergence.mean() - self.strength * reward.mean()
        return Rollout(x, reward, divergence, loss)

    def describe(self) -> dict[str, Any]:
        """Return what decides a training, but the reward, as plain values."""
        about = {name: getattr(self, name) for name in
                 ("strength", "kl_reduction", "floor", "truncate")}  # fmt: skip
        return about | {
            "solver": solvers.describe(self.solver), "grid": known_grids.describe(self.grid)
        }  # fmt: skip

    def _divergence(self, row: Row, moves: Mapping[int, Tensor]) -> Tensor:
        """Return ‖Σ b_k ΔF_k‖²/(2 s²) of a row, (batch,), reduced over the state."""
        moved = torch.stack([_scale(b, moves[k]) * moves[k] for k, b in row.f.items()]).sum(0)
        std = _deviation(row)
        scale = self.floor if std is None else _scale(std, moved)
        assert scale is not None
        squared = (moved / scale).flatten(1).square() / 2
        return squared.sum(1) if self.kl_reduction == "sum" else squared.mean(1)


class _Evaluations:
    """The controlled evaluations of a rollout, and how far each is from the pretrained one."""

    def __init__(
        self, how: SoftControl, pair: Pair, n: int, generator: torch.Generator | None
    ) -> None:
        self._how, self._pair, self._n, self._generator = how, pair, n, generator
        self.moves: dict[int, Tensor] = {}

    def __call__(self, k: int, x: Tensor) -> Tensor:
        if len(self.moves) < self._cut():
            with torch.no_grad():
                free, controlled = self._pair(k, x)
        elif self._how.adjoint == "checkpoint" and torch.is_grad_enabled():
            free, controlled = checkpoint(self._pair, k, x, use_reentrant=False)
        else:
            free, controlled = self._pair(k, x)
        self.moves[k] = controlled - free
        return controlled

    def _cut(self) -> int:
        if self._how.truncate == "random":
            return int(torch.randint(self._n + 1, (), generator=self._generator))
        return int(self._how.truncate or 0)


def noise_unit(plan: Plan) -> Callable[[Tensor], Tensor]:
    """Return u(t) of `Shift(unit=...)` by which a shift of 1 moves a step by its own deviation.

    u = s_i/|b_i|, b_i the weight of ε̂ in row i, at the plan's times; between them log u is a line
    in t. With it a step's divergence is half the square of what the network says.

    Raises:
        UsageError: a row that draws no noise, or does not look at ε̂.
    """
    rows = plan.folded("eps").rows
    pairs = [(row.f.get(i), _deviation(row)) for i, row in enumerate(rows)]
    if any(b is None or isinstance(b, Tensor) or not b or not isinstance(s, float)
           for b, s in pairs):  # fmt: skip
        raise UsageError("a shift in units of the noise needs a plan with noise in every step.")
    known = [math.log(s / abs(b)) for b, s in pairs]  # type: ignore[operator, arg-type]
    order = sorted(zip([float(t) for t in plan.times], known, strict=False))
    times, logs = (torch.tensor(column, dtype=torch.float64) for column in zip(*order, strict=True))

    def unit(t: Tensor) -> Tensor:
        at = t.double().cpu().contiguous()
        right = torch.searchsorted(times, at).clamp(1, len(times) - 1)
        left = right - 1
        share = ((at - times[left]) / (times[right] - times[left])).clamp(0, 1)
        return torch.lerp(logs[left], logs[right], share).exp().to(t.device)

    return unit


def _deviation(row: Row) -> Coefficient | None:
    """Return the standard deviation of a row's noise; None if it draws none."""
    if not row.z:
        return None
    if len(row.z) == 1:
        (c,) = row.z.values()
        return c
    return sum(c**2 for c in row.z.values()) ** 0.5  # type: ignore[return-value]


def _scale(c: Coefficient, x: Tensor) -> Coefficient:
    """Return a coefficient, ready to multiply a state."""
    return c.to(x) if isinstance(c, Tensor) else c

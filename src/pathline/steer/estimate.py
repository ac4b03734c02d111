"""Steering by the clean estimate: guides that act on x̂_0, all on one evaluation of the model.

    x̂_0 = E[x_0 | x_t]  →  x̃_0,      F̃ = F + (x̃_0 − x̂_0)/q      where x̂_0 = p x + q F

A *correction* maps x̂_0 to x̃_0 (a projection onto data, a clipping). A *pull* adds Jᵀu with a
cotangent u of its own and the Jacobian J = ∂x̂_0/∂x = (α/σ²) Cov[x_0 | x_t] of the model: pulls
that stand together see the same estimate and share one vector-Jacobian product. A likelihood of
the clean estimate moves it by

    Δx̂_0 = (σ²/α) ∇_x log p(y | x̂_0(x)) = (σ²/α) Jᵀ ∇_{x̂_0} log p(y | x̂_0),

which is exact where log p_t(y | x) is known. Where α = 0 a state says nothing of the data, σ²/α
has no value, and nothing is moved.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pathline.core.errors import UsageError
from pathline.fields import Condition, Evaluate, Field, change
from pathline.paths import GaussianPath, bshape
from pathline.steer.guide import Guide, Guided, check_steady, named


@dataclass(frozen=True)
class Estimate:
    """What a guide is shown: a state, and the clean estimate as the guides before have left it.

    Args:
        x: the state, (batch, *state).
        t: () or (batch,), float64.
        x0: the estimate, (batch, *state); a function of x for autograd where there are pulls.
        path: the model's.
        further: whether the caller differentiates through what a guide returns.
    """

    x: Tensor
    t: Tensor
    x0: Tensor
    path: GaussianPath
    further: bool = False

    @cached_property
    def alpha(self) -> Tensor:
        """The scale of the data, α_t, ready to multiply a state."""
        return bshape(self.path.alpha(self.t), self.x)

    @cached_property
    def sigma(self) -> Tensor:
        """The scale of the noise, σ_t, ready to multiply a state."""
        return bshape(self.path.sigma(self.t), self.x)

    @cached_property
    def gain(self) -> Tensor:
        """The factor σ²/α of a score in x̂_0, ready to multiply a state; 0 where α = 0."""
        gain = self.path.sigma(self.t) ** 2 / self.path.alpha(self.t)
        return bshape(gain.nan_to_num(0.0, 0.0, 0.0), self.x)

    def within(self, window: tuple[float, float]) -> Tensor:
        """Return 1 for times in [low, high] and 0 elsewhere, ready to multiply a state."""
        low, high = window
        return bshape(((self.t >= low) & (self.t <= high)).double(), self.x)

    def pulled(self, cotangent: Tensor, again: bool = False) -> Tensor:
        """Return Jᵀ u, (batch, *state): one vector-Jacobian product through the model.

        Args:
            cotangent: u, (batch, *state).
            again: whether there will be another one.
        """
        (made,) = torch.autograd.grad(
            self.x0, self.x, cotangent, retain_graph=again or self.further,
            create_graph=self.further,
        )  # fmt: skip
        return made

    def slope(self, of: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the gradient of a function of x̂_0, (batch,), in x̂_0: no pass through the model.

        Raises:
            UsageError: it returns something else, or cannot be differentiated.
        """
        return self.linearised(of)[1]

    def linearised(self, of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Return the value of a function of x̂_0, (batch,), and its gradient as `slope` does."""
        with torch.inference_mode(False), torch.enable_grad():
            at = self.x0 if self.further else differentiable(self.x0).detach().requires_grad_()
            value = of(at)
            if value.shape != (len(at),):
                raise UsageError(
                    f"a loss returns one number a sample, ({len(at)},), not {tuple(value.shape)}."
                )
            if not value.requires_grad:
                raise UsageError(
                    "the loss cannot be differentiated: it was made without gradients."
                )
            (made,) = torch.autograd.grad(value.sum(), at, create_graph=self.further)
        return (value if self.further else value.detach()), made


@dataclass(frozen=True)
class Steering(Guide):
    """A guide that acts on the clean estimate: a correction of it, or a pull."""

    @property
    def is_score(self) -> bool:
        """Whether what it adds is a score, which Gaussian noise alone has."""
        return False

    def __call__(self, field: Field) -> Field:
        if field.path is None:
            raise UsageError(
                f"{named(self)} guides a model on a path, and this field has none; give a Denoiser."
            )
        if self.is_none:
            return field
        check_steady(self)
        if self.is_score and not field.path.kernel.is_gaussian:
            raise UsageError(
                f"{named(self)} adds to the score, and −ε̂/σ is the gradient of log p_t for D=inf "
                f"alone; the noise of this path has D={field.path.kernel.dof:g}."
            )
        if isinstance(field, Steered):
            check_together((*field.guides, self))
            return replace(field, guides=(*field.guides, self))
        return Steered(field, (self,))

    @property
    def vjps(self) -> int:
        """Vector-Jacobian products an evaluation; above 0, it is a pull."""
        return 0

    @property
    def shares(self) -> bool:
        """Whether the last product of a pull can be that of others too: Jᵀ(u + v)."""
        return True

    @property
    def acts(self) -> tuple[float, float]:
        """The times between which it does anything, (low, high)."""
        return (0.0, 1.0)

    def check_times(self, times: Tensor) -> None:
        """Refuse the times of a grid, (n,) or (n, batch), if the guide would do nothing at any."""

    def corrected(self, now: Estimate) -> Tensor:
        """Return x̃_0, (batch, *state); what a correction does."""
        raise NotImplementedError

    def cotangent(self, now: Estimate) -> Tensor:
        """Return u, (batch, *state), with the factor that makes Jᵀu a step of x̂_0: of a pull."""
        raise NotImplementedError

    def finished(self, step: Tensor, now: Estimate) -> Tensor:
        """Return the step of x̂_0 made of Jᵀu, for a pull that does not share it."""
        del now
        return step

    def stepped(self, now: Estimate) -> Tensor:
        """Return the step of x̂_0 of a pull that does not share its last product."""
        return self.finished(now.pulled(self.cotangent(now), again=True), now)


@dataclass(frozen=True)
class Correction(Steering):
    """A guide that maps x̂_0 to another one, without the model's Jacobian."""

    @abstractmethod
    def corrected(self, now: Estimate) -> Tensor:
        """Return x̃_0, (batch, *state)."""


class Exact(Correction):
    """A correction after which data hold exactly."""

    @property
    @abstractmethod
    def is_exact(self) -> bool:
        """Whether they do: at full strength."""

    @abstractmethod
    def data(self) -> Tensor:
        """Return a state, (batch, *state), of which the data hold."""

    @abstractmethod
    def projected(self, x0: Tensor) -> Tensor:
        """Return x0, (batch, *state), with the data in it.

        Raises:
            UsageError: the data are missing, or do not fit.
        """

    @abstractmethod
    def off(self, x0: Tensor) -> float:
        """Return how far the data are from holding of x0, relative to them."""

    def corrected(self, now: Estimate) -> Tensor:
        return self.projected(now.x0)


OFF = 1e-3
"""By how much of them data may be missed where they are put exactly."""


@dataclass(frozen=True)
class Pull(Steering):
    """A guide that adds Jᵀ u to x̂_0."""

    @property
    def is_score(self) -> bool:
        return True

    @property
    def vjps(self) -> int:
        return 1

    @abstractmethod
    def cotangent(self, now: Estimate) -> Tensor:
        """Return u, (batch, *state), with the factor that makes Jᵀ u a step of x̂_0."""


class Look(NamedTuple):
    """One evaluation: what the model said, what guides made of it, and what else was asked."""

    raw: Tensor
    guided: Tensor
    told: Tensor | None

    @property
    def detached(self) -> Look:
        """The same, without what gradients need."""
        told = None if self.told is None else self.told.detach()
        return Look(self.raw.detach(), self.guided.detach(), told)


Told = Callable[[Estimate], Tensor]


@dataclass(frozen=True)
class Steered(Guided):
    """A field whose clean estimate is steered by guides, in their order, on one evaluation."""

    guides: tuple[Steering, ...] = ()

    @property
    def vjps(self) -> int:
        shared = sum(guide.vjps > 0 and guide.shares for guide in self.guides)
        each = sum(guide.vjps for guide in self.guides)
        return self.inner.vjps + each - max(shared - 1, 0)

    def piece(self, times: Tensor) -> Tensor:
        piece = self.inner.piece(times)
        for guide in self.guides:
            low, high = guide.acts
            piece = 2 * piece + ((times >= low) & (times <= high)).long()
        return piece

    def part(self, cond: Condition, rows: Tensor) -> Condition | None:
        return None  # what guides know belongs to the whole batch

    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.bind(t.reshape(1, *t.shape), x, cond)(0, x)

    def bind(self, times: Tensor, x: Tensor, cond: Condition) -> Evaluate:
        look = self.looking(times, x, cond)
        return lambda k, state: look(k, state).guided

    def looking(
        self, times: Tensor, x: Tensor, cond: Condition, told: Told | None = None
    ) -> Callable[[int, Tensor], Look]:
        """Return what `bind` does, with all that one evaluation knows.

        Args:
            times, x, cond: as of `bind`.
            told: what else is asked of the estimate before guides change it, (batch,).
        """
        path = self.path
        assert path is not None
        if len(times) > 1:  # a stepped solver asks one time after the other
            for guide in self.guides:
                guide.check_times(times)
        pulls = any(guide.vjps for guide in self.guides)
        with torch.inference_mode(False):  # what is kept must serve gradients
            times, cond = differentiable(times), {k: differentiable(v) for k, v in cond.items()}
            bound = self.inner.bind(times, differentiable(x), cond)
            p, q = (c.nan_to_num(0.0, 0.0, 0.0) for c in change(path, self.view, "x0", times))
            back = torch.where(q == 0, 0.0, 1 / q)
            steps = list(zip(times, p, q, back, strict=True))

        def look(k: int, state: Tensor) -> Look:
            t, *change = steps[k]
            line = _Line(*(bshape(c, state) for c in change))
            how = self._pulled if pulls else self._corrected
            return how(lambda at: bound(k, at), Estimate(state, t, state, path), line, told)

        return look

    def _corrected(
        self, evaluate: Callable[[Tensor], Tensor], now: Estimate, line: _Line, told: Told | None
    ) -> Look:
        raw = evaluate(now.x)
        before = line.p * now.x + line.q * raw
        further = torch.is_grad_enabled() and before.requires_grad
        now = replace(now, x0=before, further=further)
        said = None if told is None else told(now)
        return Look(raw, raw + (self._walked(now).x0 - before) * line.back, said)

    def _pulled(
        self, evaluate: Callable[[Tensor], Tensor], now: Estimate, line: _Line, told: Told | None
    ) -> Look:
        x = now.x
        further = torch.is_grad_enabled() and (x.requires_grad or is_trained(self.inner))
        with torch.inference_mode(False), torch.enable_grad():
            at = differentiable(x)
            at = at if further and at.requires_grad else at.detach().requires_grad_()
            raw = evaluate(at)
            before = line.p * at + line.q * raw
            now = replace(now, x=at, x0=before, further=further)
            said = None if told is None else told(now)
            look = Look(raw, raw + (self._walked(now).x0 - before) * line.back, said)
        return look if further else look.detached

    def _walked(self, now: Estimate) -> Estimate:
        """Return the estimate after all guides; pulls, which stand together, share a product."""
        left = list(self.guides)
        while left:
            if not left[0].vjps:
                now = replace(now, x0=left.pop(0).corrected(now))
                continue
            n = next((i for i, guide in enumerate(left) if not guide.vjps), len(left))
            now, left = replace(now, x0=now.x0 + _together(left[:n], now)), left[n:]
        return now


def _together(pulls: Sequence[Steering], now: Estimate) -> Tensor:
    """Return the steps of x̂_0 of all pulls, at one estimate."""
    alone = [pull for pull in pulls if not pull.shares]
    shared = [pull.cotangent(now) for pull in pulls if pull.shares]
    steps = [pull.stepped(now) for pull in alone]
    if shared:
        steps.append(now.pulled(torch.stack(shared).sum(0)))
    return torch.stack(steps).sum(0)


@dataclass(frozen=True)
class _Line:
    """x̂_0 = p x + q F, and 1/q: 0 where a state says nothing of the data."""

    p: Tensor
    q: Tensor
    back: Tensor


def check_together(guides: Sequence[Guide]) -> None:
    """Refuse guides that cannot act one after the other.

    Raises:
        UsageError: pulls that stand apart; a projection that undoes an earlier one.
    """
    guides = [guide for guide in guides if isinstance(guide, Steering) and not guide.is_none]
    pulls = [i for i, guide in enumerate(guides) if guide.vjps]
    among = guides[pulls[0] : pulls[-1]] if pulls else []
    between = [guide for guide in among if not guide.vjps]
    if between:
        raise UsageError(
            f"{named(guides[pulls[0]])} and {named(guides[pulls[-1]])} take gradients through the "
            f"model, which are taken together; move {named(between[0])} before or behind both."
        )
    exact = [guide for guide in guides if isinstance(guide, Exact) and guide.is_exact]
    for before, after in combinations(exact, 2):
        off = before.off(after.projected(before.data()))
        if off > OFF:
            raise UsageError(
                f"{named(after)} undoes what {named(before)} has put exactly: {off:.2g} of it is "
                "off afterwards. Make one operator of both (operators.Dense.stacked), or give one "
                "of them strength below 1."
            )


def differentiable(value: Any) -> Any:
    """Return a tensor that autograd may keep: one of inference mode is copied."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def is_trained(field: Field) -> bool:
    """Whether the parameters of a network in the field ask for gradients."""
    parts = [value for value in vars(field).values() if isinstance(value, Field | nn.Module)]
    return any(
        any(p.requires_grad for p in part.parameters())
        if isinstance(part, nn.Module)
        else is_trained(part)
        for part in parts
    )

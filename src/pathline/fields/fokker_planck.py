"""The Fokker-Planck equation of a path, and by how much a model misses it.

Noise turns data into densities p_t that obey, for φ = log p_t and s = ∇φ,

    R  = ∂_t φ + d f + f x·∇φ − ½g² (Δφ + ‖∇φ‖²) = 0
    ∇R = ∂_t s + ∇(f x·s − ½g² (div s + ‖s‖²)) = 0

along dx = f x dt + g dW. A learned score that misses it is not the score of the law that it itself
samples, and then the reverse SDE and the probability flow end in different laws. The first form
needs a potential; the second serves any score network, in few dimensions.

A potential is free up to a constant of each time, c(t), and R then contains c'(t): look at
R − E[R | t]. Neither form says whether the score is that of the *data*: every solution of the
equation has R = 0.

Where the trace is estimated, R comes as two independent halves, whose product estimates R² without
bias; the square of one estimate is too large by its variance.

Paper: Deveney et al. 2023 (arXiv:2311.15996), Eq. 8; Lai et al. 2022 (arXiv:2210.04296) for ∇R.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.core.tensors import plain_attention
from pathline.fields.denoiser import Denoiser, dtype_of
from pathline.fields.field import Condition, Field, Prediction
from pathline.fields.trace import Exact, Hutchinson, Trace
from pathline.paths import GaussianPath, Time, as_time, bshape

__all__ = ["FokkerPlanck", "potential_of", "score_of", "squared"]

Function = Callable[[Tensor, Tensor], Tensor]
Clock = Literal["time", "log_snr"]

EXACT_UP_TO = 8
"""Elements of a state whose Laplacian is exact unless the caller says otherwise."""
PROBES = 4
"""Of larger states."""


def potential_of(field: Field, cond: Condition | None = None) -> Function | None:
    """Return φ(x, t), (batch,), of a field that has one; None of any other.

    The exact densities have theirs; a denoiser has one if its network says `potential(x, label)`,
    whose gradient is its score.

    Args:
        field: any.
        cond: as `field.condition` returned it.
    """
    exact = getattr(field, "log_prob", None)
    if exact is not None:
        return exact
    if not isinstance(field, Denoiser) or field.view != "score" or field.scale is not None:
        return None
    said = getattr(field.network, "potential", None)
    if said is None:
        return None
    told = dict(cond or {})

    def potential(x: Tensor, t: Tensor) -> Tensor:
        dtype = dtype_of(field.network, x.dtype)
        label = field.labels(t).to(x.device, torch.promote_types(dtype, torch.float32))
        return said(x.to(dtype), label, **told).to(x.dtype)

    return potential


@dataclass(frozen=True)
class FokkerPlanck:
    """The equation of one path.

    Args:
        path: its f and g.
        trace: of the Laplacian; exact up to `EXACT_UP_TO` elements and `Hutchinson(PROBES)` beyond
            if None.
        per: R per unit of path "time", or per unit of "log_snr": R/|λ'|, which stays bounded at
            both ends and is needed where α vanishes.

    Example: R of a Gaussian's exact log-density, and with t² added.
        >>> from pathline.fields import Gaussian
        >>> from pathline.paths import VPLinear
        >>> law = Gaussian(VPLinear(), torch.zeros(2).double(), torch.ones(2).double() / 4)
        >>> x = torch.ones(1, 2, dtype=torch.float64)
        >>> equation = FokkerPlanck(law.path)
        >>> bool(equation.of_potential(law.log_prob, x, 0.5).abs() < 1e-12)
        True
        >>> equation.of_potential(lambda x, t: law.log_prob(x, t) + t**2, x, 0.5).item()
        1.0
    """

    path: GaussianPath
    trace: Trace | None = None
    per: Clock = "time"

    def __post_init__(self) -> None:
        if not self.path.kernel.is_gaussian:
            raise UsageError(
                "only Gaussian noise comes from a diffusion with a Fokker-Planck equation, and "
                f"this path's has D={self.path.kernel.dof:g}."
            )
        if self.per not in get_args(Clock):
            raise UsageError(f"per={self.per!r}: choose 'time' or 'log_snr'.")

    def of_potential(
        self, phi: Function, x: Tensor, t: Time, seeds: Sequence[int] | None = None
    ) -> Tensor:
        """Return R, (batch, 1) where it is exact, or two independent estimates, (batch, 2).

        Differentiable in the parameters of φ, and in x, where gradients are enabled.

        Args:
            phi: (x (batch, *state), t (batch,) float64) → (batch,), each sample alone.
            x: (batch, *state).
            t: () or (batch,).
            seeds: of the probes, one a sample; 0, 1, … if None.

        Raises:
            UsageError: φ is not a number a sample, or cannot be derived by x and t.

        Cost: φ, a backward sweep, and one more for every product of the trace; about four times a
        plain step where its gradient is then taken.
        """
        further = torch.is_grad_enabled()
        at, time = _leaves(x, t, further)
        with torch.enable_grad():
            with plain_attention():
                value = phi(at, time)
            if value.shape != (len(x),):
                raise UsageError(
                    f"a potential says one number a sample, ({len(x)},), and this one says "
                    f"{tuple(value.shape)}; for a score network use of_score, which serves up to "
                    f"{EXACT_UP_TO} dimensions."
                )
            score, slope = _derived(value, at, time)
            divergence = self._halves(score, at, seeds)
            drift, half = self._coefficients(time, at)
            along = (at * score).flatten(1).sum(1)
            squared = score.square().flatten(1).sum(1)
            moved = self._clock(time.detach()).to(at) * slope
            still = moved + drift * (at[0].numel() + along) - half * squared
            found = still[:, None] - half[:, None] * divergence
        return found if further else found.detach()

    def of_score(
        self, score: Function, x: Tensor, t: Time, seeds: Sequence[int] | None = None
    ) -> Tensor:
        """Return ∇R, (batch, 1, *state) where it is exact, or two estimates, (batch, 2, *state).

        Args:
            score: (x (batch, *state), t (batch,) float64) → (batch, *state), each sample alone.
            x, t, seeds: as for `of_potential`.

        Raises:
            UsageError: more than eight dimensions and no trace that estimates; a score that cannot
                be derived by x.

        Cost: the score, five backward sweeps, and one more for every product of the trace; third
        derivatives of the network where its gradient is then taken.
        """
        self.check_size(x)
        further = torch.is_grad_enabled()
        at, time = _leaves(x, t, further)
        with torch.enable_grad():
            with plain_attention():
                s = score(at, time)
            _check_derived(s)
            divergence = self._halves(s, at, seeds)
            drift, half = self._coefficients(time, at)
            along, squared = ((v * s).flatten(1).sum(1) for v in (at, s))
            still = drift * along - half * squared
            flux = still[:, None] - half[:, None] * divergence
            moved = _time_derivative(s, time)
            ways = [_gradient(part.sum(), at, further) for part in flux.unbind(1)]
            clock = bshape(self._clock(time.detach()), at)
            found = torch.stack([clock * moved + way for way in ways], 1)
        return found if further else found.detach()

    def of(
        self,
        model: Field,
        x: Tensor,
        t: Time,
        seeds: Sequence[int] | None = None,
        cond: Condition | None = None,
    ) -> Tensor:
        """Return R of a model that has a potential, else ∇R of its score.

        Args:
            model: any on a path.
            x, t, seeds: as for `of_potential`.
            cond: as `model.condition` returned it.
        """
        phi = potential_of(model, cond)
        if phi is not None:
            return self.of_potential(phi, x, t, seeds)
        return self.of_score(score_of(model, cond), x, t, seeds)

    def check_size(self, x: Tensor) -> None:
        """Refuse a state of too many dimensions for an exact ∇R."""
        size = x[0].numel()
        if size > EXACT_UP_TO and (self.trace is None or self.trace.is_exact):
            raise UsageError(
                f"without a potential the residual is a gradient of a divergence, and is worked "
                f"out for up to {EXACT_UP_TO} dimensions; this state has {size}. Train a potential "
                "(nets.Potential), or estimate the divergence, with trace=Hutchinson(4)."
            )

    def _halves(self, score: Tensor, x: Tensor, seeds: Sequence[int] | None) -> Tensor:
        """Return the divergence of the score, (batch, 1), or two estimates of it, (batch, 2)."""
        size = x[0].numel()
        how = self.trace or (Exact() if size <= EXACT_UP_TO else Hutchinson(PROBES))
        seeds = range(len(x)) if seeds is None else seeds
        probes = how.probes(seeds, x.shape[1:], x.dtype, x.device)
        _, made = how.of(lambda _: score, x, probes)  # x is the leaf that the score was taken at
        if how.estimates == 1:
            return made
        return torch.stack([part.mean(1) for part in made.tensor_split(2, 1)], 1)

    def _coefficients(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return f and ½g² at (batch,) times, in the dtype of x, and in the clock asked for."""
        t = t.detach()
        clock = self._clock(t)
        drift, half = self.path.drift(t) * clock, self.path.diffusion_squared(t) * clock / 2
        if not bool((drift.isfinite() & half.isfinite()).all()):
            raise UsageError(
                "the Fokker-Planck equation has no finite coefficients where α or σ vanishes: "
                f"keep to times inside ({self.path.t_min:g}, {self.path.t_max:g})."
            )
        return drift.to(x), half.to(x)

    def _clock(self, t: Tensor) -> Tensor:
        """Return what R is multiplied with: 1, or 1/|λ'|."""
        if self.per == "time":
            return torch.ones_like(t)
        path = self.path
        return 1 / (path.d_sigma(t) / path.sigma(t) - path.d_alpha(t) / path.alpha(t))


def squared(residual: Tensor) -> Tensor:
    """Return R², or ‖∇R‖², of each sample, (batch,), without bias.

    Args:
        residual: (batch, 1 or 2, *state), as `FokkerPlanck` returns it.
    """
    return (residual[:, 0] * residual[:, -1]).reshape(len(residual), -1).sum(1)


def _leaves(x: Tensor, t: Time, further: bool) -> tuple[Tensor, Tensor]:
    """Return x and (batch,) times that can be derived by."""
    at = x if further and x.requires_grad else x.detach().requires_grad_()
    time = as_time(t).detach().to(x.device).expand(len(x)).clone()
    return at, time.requires_grad_()


def _derived(value: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return ∇φ and ∂_t φ, from one backward sweep."""
    _check_derived(value)
    by_x, by_t = torch.autograd.grad(
        value.sum(), (x, t), create_graph=True, allow_unused=True, materialize_grads=True
    )
    return by_x, by_t.to(x)


def _time_derivative(s: Tensor, t: Tensor) -> Tensor:
    """Return ∂_t s, each sample by its own time, (batch, *state), from two backward sweeps."""
    v = torch.zeros_like(s, requires_grad=True)
    (along,) = torch.autograd.grad(
        s, t, v, create_graph=True, allow_unused=True, materialize_grads=True
    )
    if not along.requires_grad:  # s knows nothing of the time
        return torch.zeros_like(s)
    return _gradient(along.sum(), v, True)


def _gradient(value: Tensor, x: Tensor, further: bool) -> Tensor:
    return torch.autograd.grad(
        value,
        x,
        create_graph=further,
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )[0]


def _check_derived(value: Tensor) -> None:
    if not value.requires_grad:
        raise UsageError(
            "the model's output cannot be derived by its input: it was computed without gradients "
            "(no_grad, detach, or numbers from elsewhere)."
        )


def score_of(model: Field, cond: Condition | None = None) -> Function:
    """Return s(x, t), (batch, *state), of a model on a path."""
    if model.path is None:
        raise UsageError("an equation of your own has no score: a path says what is a density.")

    def score(x: Tensor, t: Tensor) -> Tensor:
        raw = model.evaluate(x, t, cond or {})
        return Prediction(x, t, raw, model.view, model.path).score

    return score

"""By how much any model misses the Fokker-Planck equation, at each time; and who cannot be asked.

Second derivatives are asked of a network that was made to be evaluated. Two kinds answer zero and
mean "never thought of": kinked activations (ReLU and its relatives), and networks that look their
time up in a table. Both are refused here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.fields.field import Condition, Field
from pathline.fields.fokker_planck import FokkerPlanck, potential_of, squared

__all__ = ["Residuals", "check_derivable", "residuals"]

TIMES = 10
"""At which a model is looked at unless the caller says which."""

_KINKED = {
    "HardshrinkBackward0": "Hardshrink",
    "HardsigmoidBackward0": "Hardsigmoid",
    "HardtanhBackward0": "Hardtanh or ReLU6",
    "LeakyReluBackward0": "LeakyReLU",
    "PreluKernelBackward0": "PReLU",
    "ReluBackward0": "ReLU",
    "RreluWithNoiseBackward0": "RReLU",
    "SoftshrinkBackward0": "Softshrink",
    "ThresholdBackward0": "Threshold",
}
"""Activations made of straight pieces, by what autograd calls them."""


@dataclass(frozen=True)
class Residuals:
    """The residual of a model's Fokker-Planck equation, by time.

    Args:
        t: the times, (times,).
        mean: E[R | t], (times,): the constant c'(t) of a potential, which means nothing. NaN for a
            score network, whose ∇R has none.
        mean_square: E (R − E[R | t])², or E ‖∇R‖² for a score network, (times,).
        standard_error: of `mean_square`, by the spread over samples, (times,).
        of_potential: whether R was measured, and not ∇R.
    """

    t: Tensor
    mean: Tensor
    mean_square: Tensor
    standard_error: Tensor
    of_potential: bool

    @property
    def total(self) -> float:
        """The mean of `mean_square` over the times."""
        return float(self.mean_square.mean())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: "of" ("R" or "∇R"), "t" and "mean_square"."""
        rounded = [float(f"{v:.4g}") for v in self.mean_square.tolist()]
        return {
            "of": "R" if self.of_potential else "∇R",
            "t": [float(f"{t:.6g}") for t in self.t.tolist()],
            "mean_square": rounded,
        }


def residuals(
    model: Field,
    x0: Tensor,
    times: Sequence[float] | None = None,
    *,
    equation: FokkerPlanck | None = None,
    seed: int = 0,
    **cond: Any,
) -> Residuals:
    """Return by how much a model misses its path's Fokker-Planck equation, on noised data.

    R of a model that has a potential (the exact densities; `nets.Potential`), else ∇R of its score:
    its cost is that of third derivatives, for up to eight dimensions unless the trace is estimated.

    Args:
        model: any on a path, guided or not.
        x0: (batch, *state), data; noised anew for every time.
        times: in path time; ten even ones if None.
        equation: of another trace or clock than the path's plain one.
        seed: of the noise and the probes; sample i has seed + i.
        cond: the condition, in the user's words.

    Raises:
        UsageError: no path; a network that cannot be derived twice; times where α or σ vanishes.

    Example:
        >>> from pathline.fields import Mixture
        >>> from pathline.paths import CondOT
        >>> means = torch.tensor([[1.0, 0.0], [-1.0, 0.5]], dtype=torch.float64)
        >>> law = Mixture(CondOT(), means, means * 0 + 0.4, means[:, 0] * 0 + 0.5)
        >>> residuals(law, law.draw(range(64)), [0.1, 0.5, 0.9]).total < 1e-20
        True
    """
    if model.path is None:
        raise UsageError("an equation of your own has no densities: give a model on a path.")
    equation = equation or FokkerPlanck(model.path)
    path, told, seeds = model.path, model.condition(cond, len(x0)), range(seed, seed + len(x0))
    check_derivable(model, equation, x0, told)
    if times is None:
        inner = 1 if float(path.alpha(path.t_max)) == 0 else 0
        times = torch.linspace(path.t_min, path.t_max, TIMES + inner).tolist()[:TIMES]
    rows: list[Tensor] = []
    for k, t in enumerate(times):
        eps = noise.normal(seeds, x0.shape[1:], stream="forward", index=k, dtype=x0.dtype)
        made = equation.of(model, path.noised(x0, eps.to(x0.device), t), t, seeds, told).detach()
        rows.append(_summary(made, potential_of(model, told) is not None))
    mean, square, error = torch.stack(rows).unbind(1)
    instants = torch.tensor(list(times), dtype=torch.float64)
    return Residuals(instants, mean, square, error, potential_of(model, told) is not None)


def _summary(made: Tensor, of_potential: bool) -> Tensor:
    """Return the mean of R, of its square about the mean, and the standard error of that, (3,)."""
    made = made.double().cpu()
    mean = made.mean() if of_potential else made.new_tensor(math.nan)
    each = squared(made - mean if of_potential else made)
    return torch.stack((mean, each.mean(), each.std() / math.sqrt(len(each))))


def check_derivable(
    model: Field, equation: FokkerPlanck, x: Tensor, cond: Condition | None = None
) -> None:
    """Refuse a model whose derivatives are not there, or are not what they seem.

    Args:
        model: any on a path.
        equation: that it is to be held to.
        x: (batch, *state), a few states.
        cond: as `model.condition` returned it.

    Raises:
        UsageError: activations of straight pieces; a network that knows discrete times only; one
            that was computed without gradients; too many dimensions for a model without potential.
    """
    phi = potential_of(model, cond)
    if phi is None:
        equation.check_size(x)

    def said(x: Tensor, t: Tensor) -> Tensor:
        return model.evaluate(x, t, cond or {}) if phi is None else phi(x, t)

    path = equation.path
    low, high = path.t_min, path.t_max
    t, later = (torch.full((len(x),), low + (high - low) * u).double() for u in (0.37, 0.61))
    at = x.detach().clone().requires_grad_()
    t, later = t.to(x.device).requires_grad_(), later.to(x.device)
    with torch.enable_grad():
        value, other = said(at, t), said(at, later)
    by_x, by_t = _sensitive(value, at, t)
    if not by_x:
        raise UsageError(
            "the model's output cannot be derived by its state: it was computed without gradients "
            "(no_grad, detach, or numbers from elsewhere)."
        )
    if (kinked := _kinks(value)) is not None:
        raise UsageError(
            f"the network has {kinked}, whose second derivatives vanish, so that its residual says "
            "nothing: use Softplus or SiLU."
        )
    if not by_t and not torch.equal(value, other):
        raise UsageError(
            "∂_t undefined: the network is told discrete times (a table of embeddings, or rounded "
            "labels), and the Fokker-Planck equation needs its derivative by the time. Train one "
            "with a continuous label."
        )


def _sensitive(value: Tensor, x: Tensor, t: Tensor) -> tuple[bool, bool]:
    """Return whether a value can be derived by x and by t, with something other than zero."""
    if not value.requires_grad:
        return False, False
    each = torch.autograd.grad(value.sum(), (x, t), retain_graph=True, allow_unused=True)
    by_x, by_t = cast("tuple[Tensor | None, Tensor | None]", each)
    return by_x is not None, by_t is not None and bool(by_t.any())


def _kinks(value: Tensor) -> str | None:
    """Return the first activation of straight pieces in what made a value, by its usual name."""
    left, seen = [value.grad_fn], set[Any]()
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() in _KINKED:
            return _KINKED[node.name()]
        left += [before for before, _ in node.next_functions]
    return None

"""A stochastic plan as a Markov chain on a lattice of states, in one or two dimensions, exactly.

    p(x_{i+1} | x_i) = N(m_i(x_i), s_i² I),   m_i(x) = a_i x + b_i F(x, t_i) + constant

A plan of one step has this form, so on a lattice everything that is an expectation over chains can
be summed up instead of sampled: the law of its end, and the values of any reward there
(`SoftValues`). It is the ground truth of what is learned from rollouts.

The sums are exact for a Markov chain on the lattice. That chain is the plan's to rounding where
s_i is not below the spacing h (the trapezoidal rule on a Gaussian errs by 2 exp(−2π² s²/h²)). Below
h, and where no noise is drawn, a state is shared between its neighbours so that the mean is kept:
that adds at most h²/4 to the variance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields import Condition, Field
from pathline.paths import GaussianPath, Time, as_time
from pathline.solvers.plan import Plan, Row

MOST_POINTS = 20_000
BORDER = 1e-5
"""Mass on the outermost points that is too much: the lattice cuts the law off."""


@dataclass(frozen=True, eq=False)
class LatticeChain:
    """A chain of Gaussian steps on a lattice.

    Args:
        axes: the coordinates of each dimension, rising and evenly spaced, (m_d,) float64; the
            points are their product, n = Π m_d, the last dimension running fastest.
        means: m_i of every point, (steps, n, dim).
        stds: s_i, (steps,); 0 for a step without noise.

    Cost: O(steps · n²) for a pass in one dimension, O(steps · n^1.5) each axis in two.
    """

    axes: tuple[Tensor, ...]
    means: Tensor
    stds: tuple[float, ...]

    def __post_init__(self) -> None:
        n = math.prod(len(axis) for axis in self.axes)
        if not 1 <= len(self.axes) <= 2 or min(len(axis) for axis in self.axes) < 2:
            raise UsageError(
                "a lattice has one or two axes of at least two points; these have "
                f"{[len(axis) for axis in self.axes]}."
            )
        if n > MOST_POINTS:
            raise UsageError(
                f"a lattice of {n} points has too many chances of a step; take {MOST_POINTS} at "
                "most, and one or two dimensions."
            )
        if self.means.shape != (len(self.stds), n, len(self.axes)):
            raise UsageError(
                f"{len(self.stds)} steps on {n} points need means "
                f"{(len(self.stds), n, len(self.axes))}, not {tuple(self.means.shape)}."
            )

    @classmethod
    def of(
        cls, plan: Plan, field: Field, axes: Sequence[Tensor], cond: Condition | None = None
    ) -> LatticeChain:
        """Return the chain that a plan makes of a field.

        Args:
            plan: of a one-step solver, with noise or without.
            field: the model, guided or not, of states (dim,).
            axes: as the class's.
            cond: the condition, in the user's words, the same for every state.

        Raises:
            UsageError: the plan remembers more than one state, or has coefficients an element.

        Cost: an evaluation of the field at all points, each step.
        """
        plan = plan.folded(field.view)
        axes = tuple(axis.double() for axis in axes)
        points = _points(axes)
        told = field.condition(cond or {}, len(points))
        f, means = field.bind(plan.instants.to(points.device), points, told), []
        for i, row in enumerate(plan.rows):
            _check(row, i, plan)
            mean = row.x.get(i, 0.0) * points
            if i in row.f:
                mean = mean + row.f[i] * f(i, points).detach()
            means.append(mean + row.constant)
        stds = tuple(math.hypot(*map(float, row.z.values())) for row in plan.rows)
        return cls(axes, torch.stack(means), stds)

    @cached_property
    def points(self) -> Tensor:
        """All states, (n, dim)."""
        return _points(self.axes)

    @property
    def steps(self) -> int:
        """How many steps the chain takes."""
        return len(self.stds)

    @property
    def volume(self) -> float:
        """The volume of a cell, by which a mass is divided to make a density."""
        return math.prod(float(axis[1] - axis[0]) for axis in self.axes)

    def noise(self, path: GaussianPath, t: Time) -> Tensor:
        """Return the law of the noise at time t that a solve starts from, masses (n,)."""
        variance = path.sigma(as_time(t)) ** 2
        return torch.softmax(-self.points.square().sum(1) / (2 * variance), 0)

    def moved(self, means: Tensor) -> LatticeChain:
        """Return the chain with other means and the same noise."""
        return replace(self, means=means)

    def expected(self, step: int, values: Tensor) -> Tensor:
        """Return E[f(x') | x] over a step, (n, k), of functions f on the points, (n, k)."""
        first, *rest = self._factors(step)
        if not rest:
            return first @ values
        shape = [len(axis) for axis in self.axes]
        inner = (first @ values.reshape(shape[0], -1)).reshape(len(first), shape[1], -1)
        return torch.einsum("xb,xbk->xk", rest[0], inner)

    def pushed(self, step: int, masses: Tensor) -> Tensor:
        """Return the laws after a step, (n, k), of laws before it, (n, k)."""
        first, *rest = self._factors(step)
        if not rest:
            return first.T @ masses
        columns = [(first.T @ (p[:, None] * rest[0])).flatten() for p in masses.unbind(1)]
        return torch.stack(columns, 1)

    def end(self, start: Tensor) -> Tensor:
        """Return the law of the chain's end, masses (n,), from that of its start.

        Raises:
            UsageError: the lattice cuts the law off.
        """
        law = start[:, None]
        for step in range(self.steps):
            law = self.pushed(step, law)
        self.check_inside(start, law[:, 0])
        return law[:, 0]

    def divergence(self, other: LatticeChain, start: Tensor) -> float:
        """Return KL(this chain ‖ another with the same noise), over all of their steps, in nats.

        Σ_i E ‖m_i − m'_i‖²/(2 s_i²), the expectation over this chain.

        Raises:
            UsageError: where one of them draws no noise, the means differ: then it is infinite.
        """
        law, total = start[:, None], 0.0
        for step, (s, mean, theirs) in enumerate(
            zip(self.stds, self.means, other.means, strict=True)
        ):
            squared = (mean - theirs).square().sum(1)
            if not s and float(squared.max()) > 0:
                raise UsageError(f"step {step + 1} has no noise, so other means cost infinitely.")
            total += float(law[:, 0] @ squared) / (2 * s * s) if s else 0.0
            law = self.pushed(step, law)
        return total

    def check_inside(self, *laws: Tensor) -> None:
        """Refuse laws that reach the border.

        Raises:
            UsageError: more than a hundred-thousandth is there.
        """
        for law in laws:
            shape = [len(axis) for axis in self.axes]
            inside = law.reshape(shape)[(slice(1, -1),) * len(shape)]
            lost = float(law.sum() - inside.sum())
            if lost > BORDER:
                raise UsageError(
                    f"{lost:.2g} of the mass is on the border of the lattice; take wider axes."
                )

    def _factors(self, step: int) -> list[Tensor]:
        """Return the chances of each coordinate of the next state, (n, m_d) an axis."""
        return [
            _chances(axis, mean, self.stds[step])
            for axis, mean in zip(self.axes, self.means[step].unbind(1), strict=True)
        ]


def _points(axes: Sequence[Tensor]) -> Tensor:
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))


def _check(row: Row, i: int, plan: Plan) -> None:
    """Refuse a row that is no Gaussian step from the state before."""
    coefficients = (*row.x.values(), *row.f.values(), *row.z.values(), row.constant)
    if {*row.x, *row.f} - {i} or len(plan.start) > 1:
        raise UsageError(
            "only a plan whose every state is made from the one before is a Markov chain; this "
            f"one uses {sorted({*row.x, *row.f})} for state {i + 1}. Take DDIM(eta=1), "
            "EulerMaruyama or ReverseDiffusion."
        )
    if any(isinstance(c, Tensor) for c in coefficients):
        raise UsageError("a chain on a lattice has one number a coefficient, and no tensors.")


def _chances(axis: Tensor, mean: Tensor, std: float) -> Tensor:
    """Return the chances of the points of an axis from each mean, (n, m), rows summing to one."""
    h = float(axis[1] - axis[0])
    inside = mean.clamp(float(axis[0]), float(axis[-1]))  # what would leave stays at the border
    offset = axis - inside[:, None]
    if std < h:
        return _shared(offset / h, std / h)
    made = offset.div_(std).square_().mul_(-0.5).exp_()
    return made.div_(made.sum(1, keepdim=True))


def _shared(u: Tensor, s: float) -> Tensor:
    """Return E hat(u + s z), hat(u) = max(0, 1 − |u|): a narrow Gaussian in linear elements.

    The second difference of E max(0, u + s z) = s φ(u/s) + u Φ(u/s).
    """

    def ramp(u: Tensor) -> Tensor:
        if not s:
            return u.clamp(min=0)
        bell = (-(u / s).square() / 2).exp() / math.sqrt(2 * math.pi)
        return s * bell + u * torch.special.ndtr(u / s)

    made = (ramp(u + 1) - 2 * ramp(u) + ramp(u - 1)).clamp_(min=0)
    return made.div_(made.sum(1, keepdim=True))


def backwards(chain: LatticeChain) -> Iterator[int]:
    """Yield the numbers of the steps, the last one first."""
    yield from reversed(range(chain.steps))

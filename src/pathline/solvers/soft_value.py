"""Soft values: what a chain has still to expect of a reward, and the best way to tilt it.

    V_end = r,   V_i(x) = log E[exp V_{i+1}(x') | x]
    p*(x' | x) = p(x' | x) exp(V_{i+1}(x') − V_i(x))

p* maximises E[r(end)] − KL(p* ‖ p), the divergence taken over whole trajectories, and the maximum
is E[V_start]. Its end has the law ∝ p_end exp r if V_start is constant, that is, if the end of the
chain is independent of its start ("memoryless"); otherwise every start keeps its share, and the
law of the end is biased. How far V_start spreads says by how much.

Here the sums are taken on a lattice, exactly. It is the ground truth of learned control, of
reward-guided generation and of particle methods.

Paper: Uehara et al. 2024 (arXiv:2402.15194); Zhao et al. 2024 (arXiv:2406.12120).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.solvers.lattice import LatticeChain, backwards

SPREAD = 0.1
"""The 5–95 % spread of V_start, in nats, above which the law of the end is said to be biased."""

DEPTH = 690.0
"""Nats below the best value that count: exp of less is no number."""


@dataclass(frozen=True, eq=False)
class SoftValues:
    """The values of a reward along a chain, and the policy that they make.

    Rewards may have columns: then everything has, and the work is shared.

    Args:
        chain: the chain.
        values: V_i, the first at the start, (steps + 1, n, k).
        means: E[x' | x] under the policy, (steps, n, dim, k).
        divergences: KL(p*(· | x) ‖ p(· | x)) of every step, (steps, n, k).

    Example: a fair coin's worth of reward, on a step that forgets where it was.
        >>> axis = torch.linspace(-6, 6, 241, dtype=torch.float64)
        >>> chain = LatticeChain((axis,), torch.zeros(1, 241, 1, dtype=torch.float64), (1.0,))
        >>> soft = SoftValues.of(chain, axis)  # E exp z = exp(1/2), and the mean moves to 1
        >>> round(float(soft.values[0, 0, 0]), 4), round(float(soft.means[0, 0, 0, 0]), 4)
        (0.5, 1.0)
    """

    chain: LatticeChain
    values: Tensor
    means: Tensor
    divergences: Tensor

    @classmethod
    def of(cls, chain: LatticeChain, reward: Tensor) -> SoftValues:
        """Return the values of a reward of the end, r = γ log p(y | x) for instance.

        Args:
            chain: the chain.
            reward: (n,), or (n, k) for k of them at once; more than 690 nats below the best count
                as no less.

        Raises:
            UsageError: a reward of another shape, or one that is not finite.
        """
        n = len(chain.points)
        value = (reward if reward.ndim == 2 else reward[:, None]).double()
        if len(value) != n or not bool(torch.isfinite(value).all()):
            raise UsageError(
                f"a reward is a finite number for each of the {n} points; it is "
                f"{tuple(reward.shape)}, {int(torch.isfinite(reward).sum())} of them finite."
            )
        values, means, divergences = [value], [], []
        for step in backwards(chain):
            top = values[-1].max(0).values
            above = (values[-1] - top).clamp(min=-DEPTH)
            weight, k = above.exp(), value.shape[1]
            moments = [weight * x[:, None] for x in chain.points.unbind(1)]
            sums = chain.expected(step, torch.cat((weight, weight * above, *moments), 1))
            total, tilted, *firsts = sums.split(k, 1)
            divergences.append(tilted / total - total.log())
            means.append(torch.stack([first / total for first in firsts], 1))
            values.append(total.log() + top)
        order = (torch.stack(each[::-1]) for each in (values, means, divergences))
        return cls(chain, *order)

    @property
    def start_value(self) -> Tensor:
        """V at the start, (n, k)."""
        return self.values[0]

    def laws(self, start: Tensor) -> list[Tensor]:
        """Return the laws of the controlled chain at every step, (n, k) each, the start's first."""
        laws = [start[:, None].expand_as(self.values[0])]
        for step in range(self.chain.steps):
            here, there = self.values[step], self.values[step + 1]
            top = there.max(0).values
            lifted = (there - top).clamp(min=-DEPTH)
            share = laws[-1] * (top - here).exp()
            laws.append(lifted.exp() * self.chain.pushed(step, share))
        return laws

    def end(self, start: Tensor) -> Tensor:
        """Return the law of the controlled chain's end, masses (n, k).

        Raises:
            UsageError: the lattice cuts the law off.
        """
        made = self.laws(start)[-1]
        self.chain.check_inside(start, *made.unbind(1))
        return made

    def objective(self, start: Tensor) -> Tensor:
        """Return E[r(end)] − KL of the policy, (k,), step by step along its own laws.

        It is E[V_start], which nothing in the sum knows.
        """
        laws = self.laws(start)
        reward = (laws[-1] * self.values[-1]).sum(0)
        costs = [(p * d).sum(0) for p, d in zip(laws, self.divergences, strict=False)]
        return reward - torch.stack(costs).sum(0)

    def target(self, start: Tensor) -> tuple[Tensor, Tensor]:
        """Return the law ∝ p_end exp r, masses (n, k), and log E[exp r], (k,)."""
        above = self.chain.end(start).clamp(min=1e-300).log()[:, None] + self.values[-1]
        return above.softmax(0), above.logsumexp(0)

    def gaussian(self, column: int = 0) -> LatticeChain:
        """Return the chain with the policy's means and the noise as it was.

        It is what a network that moves means can say of the policy; the rest falls with the step.
        """
        return self.chain.moved(self.means[..., column])

    def memory(self, start: Tensor) -> Tensor:
        """Return the 5–95 % spread of V_start over the start, (k,); warns where it is above 0.1."""
        spreads = [spread(v, start) for v in self.values[0].unbind(1)]
        warn_of_memory(max(spreads))
        return torch.tensor(spreads, dtype=torch.float64)


def spread(values: Tensor, weights: Tensor | None = None) -> float:
    """Return the distance of the 5 % and the 95 % quantile.

    Args:
        values: (n,).
        weights: (n,), of each value; None for alike.
    """
    rising, order = values.double().sort()
    mass = torch.ones_like(rising) if weights is None else weights.double()[order]
    share = mass.cumsum(0) / mass.sum()
    low, high = (rising[int((share < q).sum())] for q in (0.05, 0.95))
    return float(high - low)


def warn_of_memory(found: float) -> None:
    """Warn if values at the start spread by more than 0.1 nats."""
    if found > SPREAD:
        warnings.warn(
            f"the value of the start spreads by {found:.2g} nats (5–95 %), more than {SPREAD}: "
            "samples remember the noise they begin at, and the law of the end is biased. Use "
            "eta=1 and a grid from t_max to t_min.",
            stacklevel=3,
        )

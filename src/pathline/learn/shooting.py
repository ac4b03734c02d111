"""Right-hand sides fitted to trajectories: multiple shooting from the data's own states.

A whole trajectory from its first state is a hard goal: far from the truth, a network that stays at
the mean is the nearest minimum. Short pieces that each begin at a state of the data have no such.

    loss = mean over pieces and their times of ‖x(t; x_data(t_0)) − x_data(t)‖²

Paper: Bock 1981; Rackauckas et al. 2020 (arXiv:2001.04385); Kidger 2022 (arXiv:2202.02435), 2.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pathline.core.errors import UsageError
from pathline.core.progress import track
from pathline.fields import VectorField
from pathline.learn.run import step_generator
from pathline.solvers import Solver, solve

__all__ = ["Pieces", "Shooting", "fit_trajectories", "pieces", "sparse_regression", "whole"]


@dataclass(frozen=True)
class Pieces:
    """Parts of trajectories, each from a state of the data.

    Args:
        starts: (n, dim).
        begins: (n,), the times at which they start.
        grid: (length + 1,), times from there; the first is 0.
        goals: (length, n, dim), the data at the times after the first.
    """

    starts: Tensor
    begins: Tensor
    grid: Tensor
    goals: Tensor

    def __len__(self) -> int:
        return len(self.starts)

    def rows(self, index: Tensor) -> Pieces:
        """Return some of them."""
        return Pieces(self.starts[index], self.begins[index], self.grid, self.goals[:, index])


def pieces(times: Tensor, states: Tensor, length: int) -> Pieces:
    """Return all pieces of so many steps, one from each state that has as many after it.

    Args:
        times: (steps,), even.
        states: (batch, steps, dim).
        length: steps of a piece; steps − 1 is the whole trajectory.

    Raises:
        UsageError: uneven times for pieces that begin at several, a length out of range.
    """
    n = len(times)
    if states.ndim != 3 or states.shape[1] != n or not 1 <= length < n:
        raise UsageError(
            f"trajectories are (batch, {n}, dim) with pieces of 1 to {n - 1} steps; given were "
            f"{tuple(states.shape)} and {length}."
        )
    gaps = times.diff()
    if length < n - 1 and not torch.allclose(gaps, gaps[:1].expand_as(gaps)):
        raise UsageError("pieces of one grid need even times; take whole trajectories instead.")
    firsts = range(n - length)
    goals = torch.stack([states[:, k + 1 : k + 1 + length] for k in firsts])
    return Pieces(
        torch.cat([states[:, k] for k in firsts]),
        torch.cat([times[k].expand(len(states)) for k in firsts]),
        times[: length + 1] - times[0],
        goals.flatten(0, 1).transpose(0, 1),
    )


def whole(times: Tensor, states: Tensor) -> Pieces:
    """Return each trajectory as one piece."""
    return pieces(times, states, len(times) - 1)


@dataclass(frozen=True)
class Shooting:
    """How a right-hand side is fitted.

    Args:
        length: steps of a piece.
        iterations: steps of Adam.
        rate: of Adam, which falls to nothing along a cosine.
        batch: pieces in a step; all if None.
        solver: from state to state of the data; any of order four takes one step between them.
        seed: of the batches.
    """

    length: int = 5
    iterations: int = 1500
    rate: float = 3e-3
    batch: int | None = None
    solver: Solver | str = "rk4"
    seed: int = 0

    def error(self, net: Callable[[Tensor, Tensor], Tensor], part: Pieces) -> Tensor:
        """Return the mean square error of pieces, with a gradient."""
        begins = part.begins[:, None]
        field = VectorField(lambda x, t: net(x, begins + t))
        made = solve(field, part.starts, solver=self.solver, grid=part.grid.tolist(),
                     trajectory=True, adjoint="direct").trajectory  # fmt: skip
        assert made is not None
        return (made[1:] - part.goals).square().mean()


def fit_trajectories(
    net: nn.Module, times: Tensor, states: Tensor, how: Shooting | None = None
) -> nn.Module:
    """Fit a right-hand side f(x, t) to trajectories, in place.

    Args:
        net: called with (x (batch, dim), t (batch, 1)).
        times: (steps,).
        states: (batch, steps, dim), complete.
        how: pieces, steps and rates.

    Raises:
        UsageError: as for `pieces`.
    """
    how = how or Shooting()
    parts = pieces(times, states, how.length)
    optimiser = torch.optim.Adam(net.parameters(), how.rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, how.iterations)
    for step in track(range(how.iterations), "trajectories"):
        part = parts
        if how.batch is not None and how.batch < len(parts):
            generator = step_generator(how.seed, step)
            part = parts.rows(torch.randperm(len(parts), generator=generator)[: how.batch])
        optimiser.zero_grad()
        how.error(net, part).backward()
        optimiser.step()
        falling.step()
    return net


def sparse_regression(
    terms: Tensor, values: Tensor, *, threshold: float = 0.1, rounds: int = 10
) -> Tensor:
    """Return coefficients of few terms: least squares, again and again without the small ones.

    Args:
        terms: (n, k), each column a candidate.
        values: (n, outputs).
        threshold: a coefficient below this share of the largest of its output is none.
        rounds: at most.

    Returns:
        (k, outputs), exact zeros where a term is not used.

    Paper: Brunton, Proctor & Kutz 2016 (arXiv:1509.03580).
    """
    scale = terms.square().mean(0).sqrt().clamp_min(torch.finfo(terms.dtype).tiny)
    unit = terms / scale
    used = torch.ones(terms.shape[1], values.shape[1], dtype=torch.bool)
    found = torch.zeros_like(used, dtype=terms.dtype)
    for _ in range(rounds):
        found = torch.zeros_like(found)
        for j in range(values.shape[1]):
            columns = unit[:, used[:, j]]
            found[used[:, j], j] = torch.linalg.lstsq(columns, values[:, j : j + 1]).solution[:, 0]
        kept = found.abs() >= threshold * found.abs().amax(0)
        if bool((kept == used).all()):
            break
        used = kept
    return found / scale[:, None]

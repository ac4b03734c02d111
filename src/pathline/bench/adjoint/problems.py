"""What is differentiated: an exact denoiser, and a network that was trained on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pathline.core import noise
from pathline.core.errors import PathlineError
from pathline.core.progress import track
from pathline.fields import Denoiser, Field, Mixture
from pathline.paths import VPLinear
from pathline.solvers import Solver, grids, solve
from pathline.solvers.adjoints import Adjoint, Checkpoint
from pathline.solvers.runge_kutta import RK4

PATH = VPLinear()
SAMPLES = 64
REFERENCE = 320
"""Steps of the reference: RK4 in (x/α, σ/α)."""

SURE = 1 / 20
"""The most that the reference may be off, as a share of the error that is asked for."""


class Problem(NamedTuple):
    """A field, where it starts, and what asks for gradients.

    Args:
        name: in the table.
        field: on `PATH`, in float64.
        x: (batch, *state).
        weights: its parameters.
    """

    name: str
    field: Field
    x: Tensor
    weights: tuple[Tensor, ...]


class Found(NamedTuple):
    """Gradients in the noise and in the weights, and how many evaluations were made for them."""

    noise: Tensor
    weights: tuple[Tensor, ...]
    nfe: int

    def off(self, exact: Found) -> float:
        """Return the larger of both relative errors."""
        pairs = (self.noise, exact.noise), (_flat(self.weights), _flat(exact.weights))
        return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def problems(updates: int = 600, samples: int = SAMPLES) -> Iterator[Problem]:
    """Yield them.

    Args:
        updates: of the network's training; a few seconds.
        samples: of a batch.
    """
    means = torch.tensor([[-0.5, 0.3], [0.6, -0.2], [0.1, 0.8]], dtype=torch.float64)
    stds = torch.full((3, 2), 0.15, dtype=torch.float64)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    law = Mixture(PATH, means.requires_grad_(), stds, weights)
    x = noise.normal(range(samples), (2,), dtype=torch.float64)
    yield Problem("mixture", law, x, (means,))
    net = _trained(Mixture(PATH, means.detach(), stds, weights), updates)
    model = Denoiser(net, PATH, "eps", shape=(2,))
    yield Problem("network", model, x, tuple(net.parameters()))


class _Net(nn.Module):
    """ε̂ of a state and its time."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        layers = [nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        told = torch.stack((t, (6 * t).sin()), 1).to(x)
        return self.layers(torch.cat((x, told), 1))


def _trained(law: Mixture, updates: int) -> _Net:
    """Return a network that was fitted to the exact ε̂ for a few seconds."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        net = _Net().double()
        optimizer = torch.optim.Adam(net.parameters(), 2e-3)
        for i in track(range(updates), "training the network"):
            t = torch.rand(256, dtype=torch.float64).clamp(min=1e-3)
            data = law.draw(range(i * 256, i * 256 + 256))
            x = PATH.noised(data, torch.randn(256, 2).double(), t)
            loss = (net(x, t) - law(x, t).eps).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net


def loss(x: Tensor) -> Tensor:
    """Return what is differentiated, ()."""
    return (x - 0.3).square().sum() / 2


def ours(problem: Problem, solver: Solver | str, adjoint: Adjoint | str, n: int) -> Found:
    """Return our gradients with n steps."""
    x = problem.x.clone().requires_grad_()
    with torch.enable_grad():
        sol = solve(problem.field, x, solver=solver, grid=grids.log_snr(n), adjoint=adjoint)
        first, *others = torch.autograd.grad(loss(sol.x), [x, *problem.weights])
    return Found(first, tuple(others), sol.stats.nfe + sol.backward.nfe)


def reference(problem: Problem, error: float, n: int = REFERENCE) -> tuple[Found, float]:
    """Return the flow's gradient, and how far it is from that of half as many steps.

    Of a method of order four the one with all steps is fifteen times nearer than that.

    Raises:
        PathlineError: it is farther than `SURE` of the error that is asked for.
    """
    how = RK4(view="eps"), Checkpoint(together=8)
    half, whole = (ours(problem, *how, steps) for steps in (n // 2, n))
    off = half.off(whole)
    if not off <= SURE * error:
        raise PathlineError(
            f"{problem.name}: the reference of {n} steps differs from that of {n // 2} by "
            f"{off:.1g}, which is too much to judge errors of {error:g} by; take more steps."
        )
    return whole, off


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])

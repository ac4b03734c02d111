"""The ODE-SDE gap: one model sampled both ways, and how far apart the two laws can be.

With the score of the law that it samples, a model ends in one law by the reverse SDE, p, and by the
probability flow, q. The SDE's own flow differs from q's by ½g² (s − ∇log p), so with a one-sided
Lipschitz constant L(r) of q's drift, in time that runs towards data from 0 to τ,

    W2(p_τ, q_τ) ≤ ∫_0^τ exp(∫_r^τ L) · ½g² (E_{p_r} ‖s − ∇log p_r‖²)^½ dr

which is an equality for a linear score that is too steep, or too flat, all the time.

Paper: Deveney et al. 2023 (arXiv:2311.15996), Thm. 1, in our own form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.core.solution import Solution
from pathline.fields import Field
from pathline.paths import GaussianPath
from pathline.solvers.grids import Grid, Times
from pathline.solvers.sde import EulerMaruyama
from pathline.solvers.solve import sample

__all__ = ["check_same_way", "fine_end", "gap_bound", "ode_and_sde"]


def ode_and_sde(
    model: Field, seeds: Sequence[int], grid: Grid, **rest: Any
) -> tuple[Solution, Solution]:
    """Sample a model by the probability flow and by the reverse SDE, from the same noise.

    Euler's method and Euler-Maruyama on one grid: what differs is the noise and half of the score.

    Args:
        model: any on a path.
        seeds: one a sample.
        grid: of both; `fine_end` resolves the end, where the score is steep.
        rest: as for `sample`, the condition included.

    Returns:
        What the flow ends in, and what the SDE ends in.
    """
    ways = (EulerMaruyama(eta=eta) for eta in (0.0, 1.0))
    ode, sde = (sample(model, seeds=seeds, solver=way, grid=grid, **rest) for way in ways)
    return ode, sde


def fine_end(n: int, coarse: int = 10, finer: int = 10) -> Grid:
    """Return n even steps from t = 1 to data, the last of them split; the very last is x = x̂_0.

    Args:
        n: even steps.
        coarse: of these, how many at the end are split.
        finer: into how many each.

    Example:
        >>> fine_end(400).n
        490
    """
    if not 0 < coarse < n or finer < 1:
        raise UsageError(
            f"of n steps some, but not all, are split: n = {n}, coarse = {coarse}, finer = {finer}."
        )
    even = [1 - k / n for k in range(n - coarse)]
    m = coarse * finer
    split = [coarse / n * (1 - k / m) for k in range(m)]
    return Times((*even, *split), last="denoise")


def check_same_way(ode: Solution, sde: Solution) -> None:
    """Refuse to compare two solves that did not stop over at the same times.

    Their difference would be one of discretisations, and at the end one of noise levels.

    Raises:
        UsageError: another start, another end (t_min) or other times between; no receipts.
    """
    if ode.receipt is None or sde.receipt is None:
        raise UsageError("solutions without receipts do not say on which grid they were made.")
    a, b = ode.receipt.grid, sde.receipt.grid
    if a == b:
        return
    if a[-1] != b[-1]:
        what = f"the ODE ends at t = {a[-1]}, the SDE at t = {b[-1]}"
    elif len(a) != len(b):
        what = f"the ODE takes {len(a) - 1} steps, the SDE {len(b) - 1}"
    else:
        what = "they stop over at different times"
    raise UsageError(f"ODE and SDE are compared on one grid to one t_min, and {what}.")


def gap_bound(path: GaussianPath, times: Tensor, lipschitz: Tensor, mismatch: Tensor) -> float:
    """Return what the Wasserstein-2 distance between the SDE's and the ODE's law is at most.

    Args:
        path: the path.
        times: (n,) float64, falling, from where both begin in one law to where they are compared.
        lipschitz: (n,), the one-sided constant of the probability flow of the learned score, of
            time that runs towards data: the largest eigenvalue of its symmetrised Jacobian.
        mismatch: (n,), (E ‖s − ∇log p‖²)^½ under the law p of the SDE at each time.

    Cost: two trapezoidal sums; their error falls as 1/n².

    Example: no mismatch, no gap.
        >>> from pathline.paths import VPLinear
        >>> t = torch.linspace(1, 0.001, 100, dtype=torch.float64)
        >>> gap_bound(VPLinear(), t, t, 0 * t)
        0.0
    """
    times = times.double()
    if times.ndim != 1 or len(times) < 2 or not bool((times.diff() < 0).all()):
        raise UsageError("times of a bound are at least two, and fall from noise to data.")
    if lipschitz.shape != times.shape or mismatch.shape != times.shape:
        raise UsageError(
            f"{len(times)} times need as many constants and mismatches, not "
            f"{tuple(lipschitz.shape)} and {tuple(mismatch.shape)}."
        )
    steps = -times.diff()
    grown = _running(lipschitz.double(), steps)
    source = path.diffusion_squared(times) / 2 * mismatch.double()
    return float(_running((grown[-1] - grown).exp() * source, steps)[-1])


def _running(values: Tensor, steps: Tensor) -> Tensor:
    """Return the integral up to each time, by trapezoids, (n,)."""
    pieces = (values[1:] + values[:-1]) / 2 * steps
    return torch.cat((values.new_zeros(1), pieces.cumsum(0)))

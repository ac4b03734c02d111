"""How a chain of Denoising MCMC begins: from noise, with a kick, and sweeps thrown away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pathline.core import noise
from pathline.solvers import EDMSampler, grids, solve
from pathline.solvers.solve import AnyGrid, AnySolver
from pathline.speed.chain_field import Conditioned
from pathline.speed.kernels import Kernel


@dataclass(frozen=True)
class Beginning:
    """How a chain begins: a whole generation from noise, a kick, and sweeps that are thrown away.

    Args:
        solver: for the generation.
        grid: its grid.
        kick: standard deviation of the noise that is added to the generated data.
        burn_in: (sweeps, kernel) in order; None is the chain's own kernel.
    """

    solver: AnySolver = EDMSampler(churn=80, low=0.05, high=1, scale=1.007)
    grid: AnyGrid = grids.karras(19, last="denoise")
    kick: float = 0.5
    burn_in: tuple[tuple[int, Kernel | None], ...] = ((20, None),)

    def generated(
        self, field: Conditioned, seeds: Sequence[int], like: Tensor, sigma: Tensor, index: int
    ) -> tuple[Tensor, int]:
        """Generate data from noise at a level; return them, and the evaluations of all together.

        Args:
            field: of the chains.
            seeds: one a chain.
            like: (chains, *state), for shape, dtype and device.
            sigma: the level, ().
            index: which of the generations with these seeds it is.
        """
        z = _normal(seeds, like, "initial", index)
        start = float(field.path.time_of_log_snr(-sigma.log()))
        solution = solve(
            field,
            z * float(sigma),
            solver=self.solver,
            grid=self.grid,
            start=min(start, 1.0),
            seeds=noise.derived_seeds(seeds, index),
        )
        return solution.x, sum(solution.nfes)

    def kicked(self, x: Tensor, seeds: Sequence[int], index: int) -> Tensor:
        """Return the data with the kick, (chains, *state)."""
        return x + self.kick * _normal(seeds, x, "forward", index)


def _normal(seeds: Sequence[int], like: Tensor, stream: str, index: int) -> Tensor:
    shape, dtype, device = like.shape[1:], like.dtype, like.device
    return noise.normal(seeds, shape, stream=stream, index=index, dtype=dtype, device=device)

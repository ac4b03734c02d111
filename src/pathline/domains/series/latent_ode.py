"""A latent ODE: a series as noisy looks at a hidden flow, all of which its start decides.

    z_0 ~ N(m(x), s(x)²),   dz/dt = f(z, t),   x_i = ℓ(z(t_i)) + noise;   p(z_0) = N(0, I)

m and s are said by a GRU that runs backwards over the series. Once z_0 is known, so is the series
at any time, between its observations and after them.

Paper: Chen et al. 2018 (arXiv:1806.07366), Sec. 5; Rubanova, Chen & Duvenaud 2019
(arXiv:1907.03907).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pathline.core import noise as draws
from pathline.core.errors import UsageError
from pathline.data.irregular import check_series, check_times
from pathline.domains.series.latent import Elbo, backwards, log_likelihood, reader, start_kl
from pathline.learn.solve_costs import Costed, Plain, SolveCost
from pathline.nets.vector_fields import ODENet, layers
from pathline.solvers import AdaptiveRK, Solver
from pathline.solvers.how import as_solver

__all__ = ["LatentODE"]


class LatentODE(nn.Module):
    """A generative model of series with gaps, whose latent path is a neural ODE's.

    Args:
        channels: of the series.
        latent: numbers of the hidden state.
        context: what the encoder hands over.
        hidden: width of the right-hand side and the readout.
        noise: deviation of an observation from the readout.
        solver: any; an adaptive one steps over the times of the series, others from one to the
            next.
        cost: what of the solve `fit_latent` shall price: `Heuristics()`, `Local("unbiased")`.

    Raises:
        UsageError: noise that is not above 0.

    Example:
        >>> model = LatentODE(1, latent=2, context=8, hidden=8)
        >>> times = torch.linspace(0, 1, 5, dtype=torch.float64)
        >>> model.said(times[:3], torch.zeros(4, 3, 1), times).shape
        torch.Size([4, 5, 1])
    """

    def __init__(  # noqa: PLR0913 - keyword-only
        self,
        channels: int,
        *,
        latent: int = 4,
        context: int = 64,
        hidden: int = 64,
        noise: float = 0.1,
        solver: Solver | str = AdaptiveRK(method="tsit5", rtol=1e-4, atol=1e-4),  # noqa: B008
        cost: SolveCost = Plain(),  # noqa: B008
    ) -> None:
        super().__init__()
        if not noise > 0:
            raise UsageError(f"noise is above 0, not {noise}.")
        self.channels, self.latent, self.noise = channels, latent, noise
        self.solver, self.cost = as_solver(solver), cost
        self.encoder = reader(channels, context)
        self.first = nn.Linear(context, 2 * latent)
        self.flow = ODENet(latent, hidden, timed=True)
        self.readout = layers((latent, hidden, channels), nn.Softplus)

    def posterior(self, times: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and log deviations of z_0, each (batch, latent)."""
        check_series(values)
        check_times(times, unit=False)
        mean, log_std = self.first(backwards(self.encoder, times, values)[:, 0]).chunk(2, 1)
        return mean, log_std

    def elbo(self, times: Tensor, values: Tensor, *, seed: int = 0) -> Elbo:
        """Return the parts of the bound, from one draw of z_0 for each series.

        Args:
            times: (length,) float64, increasing.
            values: (batch, length, channels), NaN where nothing was observed.
            seed: of the draws: series i has seed + i.
        """
        mean, log_std = self.posterior(times, values)
        eps = draws.normal(range(seed, seed + len(values)), (self.latent,), dtype=values.dtype)
        made = self._flowed(mean + log_std.exp() * eps, times, seed)
        said, zero = self._read(made), torch.zeros_like(mean[0])
        fits = log_likelihood(values, said, self.noise)
        kl = start_kl(mean, log_std, zero, zero)
        return Elbo(fits.mean(), kl.mean(), kl.new_zeros(()), made.cost)

    def said(self, times: Tensor, values: Tensor, to: Tensor) -> Tensor:
        """Return what the means say of series at other times, (batch, to, channels).

        Args:
            times: (length,), of the observations.
            values: (batch, length, channels), NaN where nothing was observed.
            to: times to say, increasing, none before the first of `times`.
        """
        mean, _ = self.posterior(times, values)
        if float(to[0]) < float(times[0]):
            raise UsageError(
                f"the latent path begins at t = {float(times[0]):g}, and t = {float(to[0]):g} is "
                "asked."
            )
        begins = float(to[0]) == float(times[0])
        made = self._read(self._flowed(mean, to if begins else torch.cat((times[:1], to)), 0))
        return made if begins else made[:, 1:]

    def sample(self, times: Tensor, n: int, *, seed: int = 0) -> Tensor:
        """Return series of the prior, without the noise of observation, (n, length, channels)."""
        check_times(times, unit=False)
        z = draws.normal(range(seed, seed + n), (self.latent,), dtype=self.first.weight.dtype)
        return self._read(self._flowed(z, times, seed))

    def _flowed(self, z: Tensor, times: Tensor, seed: int) -> Costed:
        """Return the latent path at the times, and what it cost."""
        every, field = times.tolist(), self.flow
        if self.solver.is_adaptive:
            return self.cost.solve(field, z, solver=self.solver, grid=(every[0], every[-1]),
                                   save=every, seed=seed, adjoint="direct")  # fmt: skip
        return self.cost.solve(field, z, solver=self.solver, grid=every, trajectory=True,
                               seed=seed, adjoint="direct")  # fmt: skip

    def _read(self, made: Costed) -> Tensor:
        path = made.solution.trajectory
        assert path is not None
        return self.readout(path).transpose(0, 1)

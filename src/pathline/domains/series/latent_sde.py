"""A latent SDE: series as noisy looks at a hidden process that nobody saw.

    prior        dz = h(z, t) dt + σ(z) dW                z_0 ~ N(m, s²)
    posterior    dz = f(z, t, context) dt + σ(z) dW       z_0 ~ N(m(context), s(context)²)
    ELBO = Σ_i log N(x_i; ℓ(z(t_i)), noise²) − KL(q(z_0) ‖ p(z_0)) − E ∫ ½ ‖(f − h)/σ‖² dt

The context at t is what a GRU has seen that ran backwards over the data from the end to the next
observation after t. Missing values cost nothing.

Paper: Li, Wong, Chen & Duvenaud 2020 (arXiv:2001.01328), Sec. 5.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.data.irregular import check_series, check_times
from pathline.domains.series.latent import Elbo, backwards, log_likelihood, reader, start_kl
from pathline.fields import SDE
from pathline.learn.path_laws import with_path_kl
from pathline.nets.vector_fields import OwnNoise, layers, with_time
from pathline.solvers import solve

__all__ = ["LatentSDE"]


class LatentSDE(nn.Module):
    """A generative model of series with gaps.

    Args:
        channels: of the series.
        latent: numbers of the hidden process.
        context: what the encoder hands over at each time.
        hidden: width of the drifts.
        noise: deviation of an observation from the readout.
        substeps: steps of Euler-Maruyama between two times.
    """

    def __init__(
        self,
        channels: int,
        *,
        latent: int = 4,
        context: int = 64,
        hidden: int = 128,
        noise: float = 0.01,
        substeps: int = 1,
    ) -> None:
        super().__init__()
        if not noise > 0 or substeps < 1:
            raise UsageError(f"noise is above 0 and substeps at least 1, not {noise}, {substeps}.")
        self.channels, self.latent, self.noise, self.substeps = channels, latent, noise, substeps
        self.encoder = reader(channels, context)
        self.first = nn.Linear(context, 2 * latent)
        self.first_mean = nn.Parameter(torch.zeros(latent))
        self.first_log_std = nn.Parameter(torch.zeros(latent))
        self.prior = layers((latent + 1, hidden, hidden, latent), nn.Softplus)
        self.posterior = layers((latent + 1 + context, hidden, hidden, latent), nn.Softplus)
        self.diffusion = OwnNoise(latent)
        self.readout = nn.Linear(latent, channels)

    def contexts(self, times: Tensor, values: Tensor) -> Tensor:
        """Return what the encoder has seen from the end to each time, (batch, length, context)."""
        return backwards(self.encoder, times, values)

    def elbo(self, times: Tensor, values: Tensor, *, seed: int = 0) -> Elbo:
        """Return the parts of the bound, from one path of the posterior for each series.

        Args:
            times: (length,) float64, increasing.
            values: (batch, length, channels), NaN where nothing was observed.
            seed: of the paths: series i has seed + i.
        """
        check_series(values)
        check_times(times, unit=False)
        contexts = self.contexts(times, values)
        mean, log_std = self.first(contexts[:, 0]).chunk(2, 1)
        seeds = range(seed, seed + len(values))
        eps = noise.normal(seeds, (self.latent,), dtype=values.dtype)
        z = mean + log_std.exp() * eps
        grid = self._grid(times)
        knots = times[1:].contiguous()

        def posterior(z: Tensor, t: Tensor) -> Tensor:
            nearest = int(torch.searchsorted(knots, torch.as_tensor(t), right=True))
            context = contexts[:, min(nearest + 1, len(times) - 1)]
            return self.posterior(torch.cat((with_time(z, t), context), 1))

        sde = with_path_kl(posterior, self._prior, self._diffusion)
        start = torch.cat((z, torch.zeros_like(z[:, :1])), 1)
        path = solve(sde, start, solver="ito_euler", grid=grid, seeds=seeds, trajectory=True,
                     adjoint="direct").trajectory  # fmt: skip
        assert path is not None
        at = path[:: self.substeps]
        said = self.readout(at[..., :-1]).transpose(0, 1)
        fits = log_likelihood(values, said, self.noise)
        kl = start_kl(mean, log_std, self.first_mean, self.first_log_std)
        return Elbo(fits.mean(), kl.mean(), at[-1, :, -1].mean(), kl.new_zeros(()))

    def sample(self, times: Tensor, n: int, *, seed: int = 0) -> Tensor:
        """Return series of the prior, without the noise of observation, (n, length, channels)."""
        check_times(times, unit=False)
        seeds = range(seed, seed + n)
        eps = noise.normal(seeds, (self.latent,), dtype=self.first_mean.dtype)
        z = self.first_mean + self.first_log_std.exp() * eps
        sde = SDE(self._prior, self._diffusion, noise="diagonal", sde_type="ito")
        path = solve(sde, z, solver="ito_euler", grid=self._grid(times), seeds=seeds,
                     trajectory=True, adjoint="direct").trajectory  # fmt: skip
        assert path is not None
        return self.readout(path[:: self.substeps]).transpose(0, 1)

    def _prior(self, z: Tensor, t: Tensor) -> Tensor:
        return self.prior(with_time(z, t))

    def _diffusion(self, z: Tensor, t: Tensor) -> Tensor:
        return self.diffusion(z, t)

    def _grid(self, times: Tensor) -> list[float]:
        steps = torch.arange(self.substeps, dtype=torch.float64) / self.substeps
        inner = times[:-1, None] + times.diff()[:, None] * steps
        return [*inner.flatten().tolist(), float(times[-1])]

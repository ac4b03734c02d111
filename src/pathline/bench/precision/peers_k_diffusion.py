"""The samplers of k-diffusion, on its own grids.

They know one coordinate, σ, and one prediction, x̂_0. A model on another path is told to them in
either of two ways: x/α with σ/α for σ, or, on the straight path, x itself with t for σ, as is usual
for flow models: both keep dx/dσ = (x − x̂_0)/σ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pathline.bench.peers import k_diffusion_sampling
from pathline.bench.precision.query import Contestant, Ended, Query
from pathline.paths import CondOT, GaussianPath

NAME = "k-diffusion"

SAMPLERS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("euler", "sample_euler", {}),
    ("heun", "sample_heun", {}),
    ("dpm_2", "sample_dpm_2", {}),
    ("lms", "sample_lms", {}),
    ("lms order=2", "sample_lms", {"order": 2}),
    ("dpmpp_2s η=0", "sample_dpmpp_2s_ancestral", {"eta": 0.0}),
    ("dpmpp_2m", "sample_dpmpp_2m", {}),
    ("dpmpp_sde η=0", "sample_dpmpp_sde", {"eta": 0.0}),
    ("dpmpp_2m_sde η=0 midpoint", "sample_dpmpp_2m_sde", {"eta": 0.0}),
    ("dpmpp_2m_sde η=0 heun", "sample_dpmpp_2m_sde", {"eta": 0.0, "solver_type": "heun"}),
    ("dpmpp_3m_sde η=0", "sample_dpmpp_3m_sde", {"eta": 0.0}),
)
"""Without noise; those that are only sold as stochastic have η = 0."""

Sigmas = Callable[[Query, int], Tensor]


@dataclass(frozen=True)
class Sampled:
    """A sampler on a grid.

    Args:
        name: of the function.
        arguments: beside model, state and σ.
        sigmas: n → n + 1 noise levels.
        straight: whether σ is t; else σ/α.
    """

    name: str
    arguments: dict[str, Any]
    sigmas: Sigmas
    straight: bool

    def run(self, query: Query, n: int) -> Ended:
        """Return where n steps end."""
        sampling, sigmas = k_diffusion_sampling(), self.sigmas(query, n).double()
        arguments = dict(self.arguments)
        if "eta" in arguments:  # nothing is drawn; without this a Brownian tree is built
            arguments["noise_sampler"] = _no_noise
        model, x = _model(query, self.straight), _begin(query, float(sigmas[0]), self.straight)
        levels = sigmas.to(x)
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            end = getattr(sampling, self.name)(model, x, levels, disable=True, **arguments)
        return _end(query, end, float(sigmas[-1]), self.straight)


@dataclass(frozen=True)
class Fast:
    """sample_dpm_fast, which is told the evaluations and makes its own grid, even in log σ."""

    straight: bool

    def run(self, query: Query, n: int) -> Ended:
        """Return where n evaluations end."""
        low, high = _ends(query, self.straight)
        model, x = _model(query, self.straight), _begin(query, high, self.straight)
        sample = k_diffusion_sampling().sample_dpm_fast
        return _end(query, sample(model, x, low, high, n, disable=True), low, self.straight)


def _no_noise(*_: Any) -> float:
    return 0.0


def _model(query: Query, straight: bool) -> Callable[..., Tensor]:
    def denoised(x: Tensor, sigma: Tensor) -> Tensor:
        level = float(sigma.flatten()[0].double())
        return query.denoised(x, min(level, 1.0)) if straight else query.ask(x, level, 1.0)

    return denoised


def _begin(query: Query, sigma: float, straight: bool) -> Tensor:
    return query.start(sigma) if straight else query.begin(sigma, 1.0)


def _end(query: Query, x: Tensor, sigma: float, straight: bool) -> Ended:
    return Ended(x, sigma) if straight else query.end(x, sigma, 1.0)


def _ends(query: Query, straight: bool) -> tuple[float, float]:
    return (query.path.t_min, query.path.t_max) if straight else query.span


def _grids(straight: bool) -> Iterator[tuple[str, Sigmas]]:
    """Yield the library's grids, each with its closing zero and, stopping before it, without."""

    def karras(query: Query, n: int) -> Tensor:
        return k_diffusion_sampling().get_sigmas_karras(n, *_ends(query, straight))

    def exponential(query: Query, n: int) -> Tensor:
        return k_diffusion_sampling().get_sigmas_exponential(n, *_ends(query, straight))

    def quadratic(query: Query, n: int) -> Tensor:
        return k_diffusion_sampling().get_sigmas_polyexponential(
            n, *_ends(query, straight), rho=2.0
        )

    def own(query: Query, n: int) -> Tensor:
        """Even in the model's time, as DiscreteSchedule.get_sigmas and get_sigmas_vp are."""
        path, first = query.path, query.time(query.span[1])
        if straight:
            return torch.linspace(1, 0, n + 1, dtype=torch.float64)
        t = torch.linspace(first, path.t_min, n, dtype=torch.float64)
        return torch.cat(((-path.log_snr(t)).exp(), torch.zeros(1)))

    made = {"karras": karras, "exponential": exponential, "polyexponential ρ=2": quadratic}
    for name, sigmas in made.items():
        yield f"{name}, 0", sigmas
        yield name, lambda query, n, sigmas=sigmas: sigmas(query, n + 1)[:-1]
    yield "model, 0", own


def contestants(path: GaussianPath) -> Iterator[Contestant]:
    """Yield the samplers, without noise, on their grids."""
    for straight in (False, True) if isinstance(path, CondOT) else (False,):
        where = " in t" if straight else ""
        for label, name, arguments in SAMPLERS:
            for grid, sigmas in _grids(straight):
                how = Sampled(name, arguments, sigmas, straight)
                yield Contestant(NAME, label, grid + where, how.run)
        yield Contestant(NAME, "dpm_fast", f"exponential{where}", Fast(straight).run)

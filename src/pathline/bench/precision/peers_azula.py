"""The samplers of azula: even steps in the time of one of its schedules.

A schedule says α and σ; a model trained on one path may be sampled on another, if both run between
the same σ/α. So each of azula's schedules is fitted to the ends of the model's path, and is a grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pathline.bench.peers import installed
from pathline.bench.precision.query import Contestant, Ended, Query

NAME = "azula"

SAMPLERS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("Euler", "EulerSampler", {}),
    ("DDIM", "DDIMSampler", {}),
    ("Heun", "HeunSampler", {}),
    ("Itô η=0", "ItoSampler", {"eta": 0.0}),
    *(
        (f"{name} {order}", f"{name}Sampler", {"order": order})
        for name in ("zAB", "vAB", "zEAB", "xEAB", "REAB")
        for order in (2, 3)
    ),
)

Make = Callable[[Any, float, float], Any]


def _between(name: str) -> Make:
    """A schedule that goes from α = 1, σ = r_min to σ/α = r_max, by its `alpha_min`."""

    def make(noise: Any, low: float, high: float) -> Any:
        if name in ("VPSchedule", "CosineSchedule"):
            least = ((1 + low**2) / (1 + high**2)) ** 0.5
        else:
            least = 1 / high
        return getattr(noise, name)(alpha_min=least, sigma_min=low)

    return make


SCHEDULES: dict[str, Make] = {
    "VE": lambda noise, low, high: noise.VESchedule(low, high),
    "VP": _between("VPSchedule"),
    "cosine": _between("CosineSchedule"),
    "rectified": _between("RectifiedSchedule"),
    "decay": _between("DecaySchedule"),
}


@dataclass(frozen=True)
class Sampled:
    """A sampler on a schedule.

    Args:
        name: of the class.
        arguments: of it.
        schedule: makes the schedule.
    """

    name: str
    arguments: dict[str, Any]
    schedule: Make

    def run(self, query: Query, n: int) -> Ended:
        """Return where n steps end."""
        denoise, noise = installed("azula.denoise"), installed("azula.noise")
        made = self.schedule(noise, *query.span)

        def level(t: float) -> tuple[float, float]:
            alpha, sigma = made(torch.tensor(t, dtype=torch.float64))
            return float(sigma / alpha), float(alpha)

        class Denoiser(denoise.Denoiser):
            schedule = made

            def forward(self, x: Tensor, t: Tensor) -> Any:
                return denoise.DiracPosterior(mean=query.ask(x, *level(float(t))))

        sampler = getattr(installed("azula.sample"), self.name)(
            Denoiser(), steps=n, silent=True, dtype=torch.float64, **self.arguments
        )
        return query.end(sampler(query.begin(*level(1.0))), *level(0.0))


def contestants() -> Iterator[Contestant]:
    """Yield the samplers, without noise, on its schedules."""
    for label, name, arguments in SAMPLERS:
        for grid, schedule in SCHEDULES.items():
            yield Contestant(NAME, label, grid, Sampled(name, arguments, schedule).run)

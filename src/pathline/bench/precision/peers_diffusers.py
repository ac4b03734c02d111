"""The samplers of diffusers: `scheduler.step` in a loop, as its pipelines call it.

A scheduler is given the model's own path as a table of 1000 β, so its grids lie on that path. What
it is told is worked out from x̂_0 at the very noise level that the step assumes: pipelines tell the
network a rounded label, up to a fifth off, and are spared that here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from pathline.bench.peers import Absent, installed
from pathline.bench.precision.query import Contestant, Ended, Query
from pathline.paths import CondOT, GaussianPath, Tabulated

NAME = "diffusers"
LABELS = 1000

Scale = Literal["vp", "ve", "flow"]


@lru_cache(maxsize=8)
def table(path: GaussianPath) -> tuple[float, ...]:
    """Return β_0 … β_999 with the model's σ/α at 1000 even times."""
    if isinstance(path, Tabulated):
        levels = torch.tensor(path.alphas_cumprod, dtype=torch.float64)
    else:
        first, _ = path.log_snr_range()
        last = float(path.time_of_log_snr(torch.tensor(first, dtype=torch.float64)))
        t = torch.linspace(path.t_min, min(last, path.t_max), LABELS, dtype=torch.float64)
        levels = torch.sigmoid(2 * path.log_snr(t))  # ᾱ = 1/(1 + (σ/α)²)
    before = torch.cat((levels.new_ones(1), levels[:-1]))
    return tuple((1 - levels / before).tolist())


@dataclass(frozen=True)
class Scheduled:
    """A scheduler, with its settings.

    Args:
        name: of the class.
        config: its settings.
        scale: how it scales the state.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    scale: Scale = "vp"

    def run(self, query: Query, n: int) -> Ended:
        """Return where n steps end."""
        scheduler = self.made(query)
        scheduler.set_timesteps(n)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        scheduler.is_scale_input_called = True  # the state is scaled here
        level = _Levels(self, scheduler)
        x = level.begin(query, level.now(scheduler.timesteps[0]))
        for t in scheduler.timesteps:
            sigma = level.now(t)
            x0 = level.ask(query, x, sigma)
            x = scheduler.step(level.said(x, x0, sigma), t, x, return_dict=False)[0]
        return level.end(query, x)

    def made(self, query: Query) -> Any:
        """Return a new scheduler."""
        make, config = getattr(installed("diffusers"), self.name), dict(self.config)
        if self.name.startswith("EDM"):
            low, high = query.span
            return make(sigma_min=low, sigma_max=high, **config)
        if self.name.startswith("FlowMatch"):
            return make(**config)
        return make(trained_betas=list(table(query.path)), **config)


class _Levels:
    """What a scheduler's σ mean, and what it is to be told there."""

    def __init__(self, how: Scheduled, scheduler: Any) -> None:
        self.how, self.scheduler = how, scheduler

    def now(self, t: Any) -> float:
        """Return σ of the coming step, as the scheduler has it."""
        s = self.scheduler
        if not hasattr(s, "sigmas"):
            level = float(s.alphas_cumprod[int(t)].double())
            return math.sqrt((1 - level) / level)
        index = s.step_index or 0
        if hasattr(s, "sigmas_interpol") and not s.state_in_first_order:
            return float(s.sigmas_interpol[index].double())
        return float(s.sigmas[index].double())

    def scale(self, ratio: float) -> float:
        """Return the factor of x_0 in the state."""
        return (1 + ratio**2) ** -0.5 if self.how.scale == "vp" else 1.0

    def begin(self, query: Query, sigma: float) -> Tensor:
        """Return the state to start from."""
        if self.how.scale == "flow":
            return query.start(sigma)
        return query.begin(sigma, self.scale(sigma))

    def ask(self, query: Query, x: Tensor, sigma: float) -> Tensor:
        """Return x̂_0."""
        if self.how.scale == "flow":
            return query.denoised(x, sigma)
        return query.ask(x, sigma, self.scale(sigma))

    def said(self, x: Tensor, x0: Tensor, sigma: float) -> Tensor:
        """Return x̂_0 as what the scheduler takes for the network's output."""
        if self.how.name.startswith("EDM"):
            data = self.scheduler.config.sigma_data
            both = sigma**2 + data**2
            return (x0 - data**2 / both * x) / (sigma * data / math.sqrt(both))
        scale = self.scale(sigma)
        return (x - (1.0 if self.how.scale == "flow" else scale) * x0) / (
            sigma if self.how.scale == "flow" else sigma * scale
        )

    def end(self, query: Query, x: Tensor) -> Ended:
        """Return where the last state is."""
        s = self.scheduler
        if not hasattr(s, "sigmas"):  # DDIM and PNDM end at label 0, if they are told so
            level = float(s.alphas_cumprod[0].double())
            last = math.sqrt((1 - level) / level)
        else:
            last = float(s.sigmas[-1].double())
        if self.how.scale == "flow":
            return Ended(x, last)
        return query.end(x, last, self.scale(last))


@dataclass(frozen=True)
class Improved:
    """IPNDM, which has a path of its own: its levels are given to it.

    Args:
        spacing: "exponential" or "linspace" (even in the model's time).
    """

    spacing: str

    def run(self, query: Query, n: int) -> Ended:
        """Return where n steps end."""
        low, high = query.span
        if self.spacing == "exponential":
            ratios = torch.linspace(math.log(high), math.log(low), n + 1, dtype=torch.float64).exp()
        else:
            t = torch.linspace(query.time(high), query.path.t_min, n + 1, dtype=torch.float64)
            ratios = (-query.path.log_snr(t)).exp()
        sigmas = ratios / (1 + ratios**2).sqrt()
        scheduler = installed("diffusers").IPNDMScheduler(trained_betas=sigmas.tolist())
        scheduler.set_timesteps(n)
        scheduler.set_begin_index(0)
        scales = [float(a) for a in scheduler.alphas.double()]
        found = [float(b) / a for a, b in zip(scales, scheduler.betas.double(), strict=True)]
        x = query.begin(found[0], scales[0])
        for t in scheduler.timesteps:
            i = scheduler.step_index or 0
            x0 = query.ask(x, found[i], scales[i])
            eps = (x - scales[i] * x0) / (found[i] * scales[i])
            x = scheduler.step(eps, t, x, return_dict=False)[0]
        return query.end(x, found[-1], scales[-1])


SPACED = {
    "linspace": {"timestep_spacing": "linspace"},
    "trailing": {"timestep_spacing": "trailing"},
}
SIGMAS = {
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}
FLOW = {
    f"flow, shift {shift:g}": {
        "use_flow_sigmas": True,
        "prediction_type": "flow_prediction",
        "flow_shift": shift,
    }
    for shift in (1.0, 3.0)
}

MULTI, SINGLE = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
PLUS, OLD = {"algorithm_type": "dpmsolver++"}, {"algorithm_type": "dpmsolver"}
SIGMA_MIN = {"final_sigmas_type": "sigma_min"}


FAMILIES: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("DPM++ 1", MULTI, {**PLUS, "solver_order": 1}),
    ("DPM++ 2M midpoint", MULTI, {**PLUS, "solver_order": 2}),
    ("DPM++ 2M heun", MULTI, {**PLUS, "solver_order": 2, "solver_type": "heun"}),
    ("DPM++ 3M", MULTI, {**PLUS, "solver_order": 3}),
    ("DPM++ 2S", SINGLE, {**PLUS, "solver_order": 2, "lower_order_final": True}),
    ("DPM++ 3S", SINGLE, {**PLUS, "solver_order": 3, "lower_order_final": True}),
    ("UniPC 2 bh2", "UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh2"}),
    ("UniPC 3 bh2", "UniPCMultistepScheduler", {"solver_order": 3, "solver_type": "bh2"}),
    ("DEIS 2", "DEISMultistepScheduler", {"solver_order": 2}),
    ("DEIS 3", "DEISMultistepScheduler", {"solver_order": 3}),
    ("SA-Solver 2, τ = 0", "SASolverScheduler", {"tau_func": lambda _: 0.0}),
)
"""The multistep family, which shares its grids. (use_lu_lambdas is the exponential grid again.)"""

TO_SIGMA_MIN: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("DPM 2M", MULTI, {**OLD, "solver_order": 2}),
    ("DPM 3M", MULTI, {**OLD, "solver_order": 3}),
    ("UniPC 2 bh1", "UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh1"}),
    ("UniPC 3 bh1", "UniPCMultistepScheduler", {"solver_order": 3, "solver_type": "bh1"}),
)
"""Those that refuse σ = 0 or make a NaN of it. On the Karras and exponential grids, which hold
σ_min already, they would take it twice and make a NaN again."""

EXPLODING = ("EulerDiscrete", "HeunDiscrete", "KDPM2Discrete", "LMSDiscrete")


def contestants(path: GaussianPath) -> Iterator[Contestant]:
    """Yield the deterministic samplers on their grids."""
    for label, scheduled, grid in _scheduled(path):
        yield Contestant(NAME, label, grid, scheduled.run)
    for spacing in ("linspace", "exponential"):
        yield Contestant(NAME, "IPNDM", spacing, Improved(spacing).run)


def _scheduled(path: GaussianPath) -> Iterator[tuple[str, Scheduled, str]]:
    straight = isinstance(path, CondOT)
    yield from _multistep(straight)
    yield from _to_sigma_min()
    yield from _exploding()
    yield from _edm()
    yield from _labelled()
    if straight:
        yield from _flow_matching()


def _multistep(straight: bool) -> Iterator[tuple[str, Scheduled, str]]:
    for label, name, config in FAMILIES:
        spaced = {"linspace": {}} if name == SINGLE else SPACED
        for grid, more in {**spaced, **SIGMAS}.items():
            yield label, Scheduled(name, {**config, **more}), grid
        for grid, more in FLOW.items() if straight else ():
            yield label, Scheduled(name, {**config, **more}, "flow"), grid


def _to_sigma_min() -> Iterator[tuple[str, Scheduled, str]]:
    for label, name, config in TO_SIGMA_MIN:
        for grid, more in SPACED.items():
            yield label, Scheduled(name, {**config, **SIGMA_MIN, **more}), grid


def _exploding() -> Iterator[tuple[str, Scheduled, str]]:
    for name in EXPLODING:
        for grid, more in {**SPACED, **SIGMAS}.items():
            yield name.removesuffix("Discrete"), Scheduled(f"{name}Scheduler", more, "ve"), grid


def _edm() -> Iterator[tuple[str, Scheduled, str]]:
    for schedule in ("karras", "exponential"):
        config = {"sigma_schedule": schedule}
        yield "EDM Euler", Scheduled("EDMEulerScheduler", config, "ve"), schedule
        for order in (2, 3):
            more = {**config, "solver_order": order}
            name = "EDMDPMSolverMultistepScheduler"
            yield f"EDM DPM++ {order}M", Scheduled(name, more, "ve"), schedule


def _labelled() -> Iterator[tuple[str, Scheduled, str]]:
    trailing = {**SPACED["trailing"], "set_alpha_to_one": False}
    yield "DDIM", Scheduled("DDIMScheduler", {**trailing, "clip_sample": False}), "trailing"
    plms = {**trailing, "skip_prk_steps": True}
    yield "PNDM (PLMS)", Scheduled("PNDMScheduler", plms), "trailing"
    yield "PNDM (PRK)", Scheduled("PNDMScheduler", trailing), "trailing"


def _flow_matching() -> Iterator[tuple[str, Scheduled, str]]:
    name = "FlowMatchEulerDiscreteScheduler"
    for shift in (1.0, 3.0):
        config, grid = {"shift": shift}, f"shift {shift:g}"
        yield "FlowMatchEuler", Scheduled(name, config, "flow"), grid
        heun = "FlowMatchHeunDiscreteScheduler"
        yield "FlowMatchHeun", Scheduled(heun, config, "flow"), grid
    for grid, more in SIGMAS.items():
        yield "FlowMatchEuler", Scheduled(name, more, "flow"), grid


__all__ = ["Absent", "Improved", "Scheduled", "contestants", "table"]

"""What a scheduler of diffusers says: how its model was trained, and which times to visit.

The library is not imported. A scheduler is read through its config, and a config, as it stands in
`scheduler_config.json`, will do as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.core.errors import UsageError, unknown
from pathline.fields import View
from pathline.fields.denoiser import Label
from pathline.paths import EDM, CondOT, GaussianPath, Tabulated
from pathline.solvers import Grid, grids

PREDICTIONS: dict[str, View] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
"""What the network of a tabulated model returns, by `prediction_type`."""

KEYS = (
    *("beta_schedule", "beta_start", "beta_end", "trained_betas", "num_train_timesteps"),
    *("prediction_type", "rescale_betas_zero_snr", "timestep_spacing", "steps_offset"),
    *("set_alpha_to_one", "final_sigmas_type", "use_karras_sigmas", "use_exponential_sigmas"),
    *("use_lu_lambdas", "shift", "flow_shift", "use_dynamic_shifting", "time_shift_type"),
    *("sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "rho", "timestep_type"),
)
"""What is read of a config."""

UNNAMED = "this config"
"""The kind of a config that does not say whose it is."""

_LIFTED = "DDIM", "PNDM", "LCM", "TCD"
"""Families whose end is `set_alpha_to_one`; configs of others inherit that key and ignore it."""

_ENDS_AT_A_LEVEL = "DEIS", "SASolver"
"""Families whose end is the least noisy level whatever is configured."""

LOWEST_LEVEL = 2.0**-24
"""ᾱ at the last label after rescaling to zero terminal SNR: the library's own, so that λ exists.

Where the label before has no more, as with 1000 linear β, it is half of that instead: the library's
own table rises again there.
"""


@dataclass(frozen=True)
class Scheduler:
    """A scheduler's class name and config."""

    kind: str
    config: Mapping[str, Any]

    def says(self, key: str, default: Any = None) -> Any:
        """Return what the config says; a default if it is silent or says None."""
        value = self.config.get(key)
        return default if value is None else value

    def need(self, *keys: str) -> list[Any]:
        """Return what the config says of these keys, or refuse, naming those that lack."""
        missing = [key for key in keys if self.config.get(key) is None]
        if missing:
            raise UsageError(f"the config of {self.kind} lacks {', '.join(missing)}.")
        return [self.config[key] for key in keys]

    @property
    def is_flow(self) -> bool:
        """Whether its models are trained by flow matching."""
        predicts_flow = self.says("prediction_type") == "flow_prediction"
        only_shifts = "shift" in self.config and "beta_schedule" not in self.config
        return predicts_flow or only_shifts or "FlowMatch" in self.kind

    @property
    def is_preconditioned(self) -> bool:
        """Whether its models see σ itself, by EDM's scalings."""
        return "sigma_data" in self.config or self.says("timestep_type") == "continuous"

    @property
    def counts_the_end(self) -> bool:
        """Whether its labels are spaced with the end among them, as multistep families do."""
        if self.kind == UNNAMED:  # else keys of earlier owners of the config may be left in it
            return bool({"solver_order", "predictor_order"} & self.config.keys())
        families = "DPMSolverMulti", "DPMSolverSingle", "DEIS", "UniPC", "SASolver"
        return self.kind.startswith(families)

    @property
    def ends_at_data(self) -> bool:
        """Whether its last step lands on data, and not on the least noisy level."""
        ends, lifts = self.says("final_sigmas_type", "zero") == "zero", "set_alpha_to_one"
        if self.kind == UNNAMED:
            is_silent = self.counts_the_end and "final_sigmas_type" not in self.config
            return ends and not is_silent and self.says(lifts, True)
        if self.kind.startswith(_ENDS_AT_A_LEVEL):
            return False
        return self.says(lifts, True) if self.kind.startswith(_LIFTED) else ends


@dataclass(frozen=True)
class Training:
    """How a model was trained.

    Args:
        path: how its data became noise.
        view: what its network says, after the preconditioning.
        label: how its network is told the time.
        precondition: EDM's σ_data and the sign of the network's part in x̂_0, if it has them.
    """

    path: GaussianPath
    view: View
    label: Label
    precondition: tuple[float, float] | None = None


def read(scheduler: Any) -> Scheduler:
    """Return the class name and config of a scheduler, or of its config."""
    config = scheduler if isinstance(scheduler, Mapping) else getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        raise UsageError(
            "a scheduler of diffusers or its config (a dict) is needed, and this is of type "
            f"{type(scheduler).__name__}."
        )
    named = config.get("_class_name", UNNAMED)
    kind = str(named if config is scheduler else type(scheduler).__name__)
    if kind in (UNNAMED, "Scheduler"):  # the latter is ours, and says whose place it took
        kind = str(config.get("trained_as", UNNAMED))
    return Scheduler(kind, config)


def training(scheduler: Scheduler) -> Training:
    """Return how the models of a scheduler were trained.

    Raises:
        UsageError: the config lacks something, contradicts itself, or is of a kind not known here.
    """
    if scheduler.is_flow:
        if scheduler.says("invert_sigmas"):
            raise UsageError(f"{scheduler.kind} inverts σ: its network counts from noise to data.")
        return Training(CondOT(), "velocity", float(scheduler.says("num_train_timesteps", 1000)))
    if scheduler.is_preconditioned:
        return _preconditioned(scheduler)
    if {"beta_schedule", "trained_betas"} & scheduler.config.keys():
        view = _view(scheduler, PREDICTIONS)
        path = Tabulated(_levels(scheduler), _lowest(scheduler, view))
        return Training(path, view, path.label)
    raise UsageError(
        f"{scheduler.kind} does not say how its model was trained: no beta_schedule, no sigma_data "
        "and no flow. Use pathline.Denoiser(network, path, view=...)."
    )


def _view(scheduler: Scheduler, known: Mapping[str, View]) -> View:
    """Return what the network predicts; configs older than the key mean ε."""
    given = scheduler.says("prediction_type", "epsilon")
    if given not in known:
        raise unknown(f"prediction_type of {scheduler.kind}", str(given), known)
    return known[given]


def _lowest(scheduler: Scheduler, view: View) -> float:
    """Return the λ where generation starts: what the config says, else what the view needs."""
    clipped = float(scheduler.says("lambda_min_clipped", -math.inf))
    return clipped if math.isfinite(clipped) or view != "eps" else Tabulated.lowest


def _preconditioned(scheduler: Scheduler) -> Training:
    """EDM's schedulers, and the continuous Euler one, which has σ_data = 1."""
    if not scheduler.kind.startswith(("EDM", "Euler", UNNAMED)):
        raise UsageError(f"{scheduler.kind} scales its network in a way that is not known here.")
    view = _view(scheduler, {"epsilon": "eps", "v_prediction": "v"})
    path = EDM(*scheduler.need("sigma_min", "sigma_max"))
    scale = scheduler.says("sigma_data", 1.0), -1.0 if view == "v" else 1.0
    return Training(path, "x0", path.sigma, scale)


# The table, in float32 and rounded as the library rounds: the levels the model was trained at


def _cosine(n: int, start: float, end: float) -> Tensor:
    def level(k: int) -> float:
        return math.cos((k / n + 0.008) / 1.008 * math.pi / 2) ** 2

    return torch.tensor([min(1 - level(k + 1) / level(k), 0.999) for k in range(n)])


def _linspace(start: float, end: float, n: int) -> Tensor:
    return torch.linspace(start, end, n, dtype=torch.float32)


BETAS: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": lambda n, start, end: _linspace(start, end, n),
    "scaled_linear": lambda n, start, end: _linspace(start**0.5, end**0.5, n) ** 2,
    "sigmoid": lambda n, start, end: _linspace(-6, 6, n).sigmoid() * (end - start) + start,
    "squaredcos_cap_v2": _cosine,
}
"""β_0 … β_{N−1}, by `beta_schedule`."""


def _levels(scheduler: Scheduler) -> tuple[float, ...]:
    """Return ᾱ_0 … ᾱ_{N−1}."""
    if scheduler.says("snr_shift_scale", 1.0) != 1.0:
        raise UsageError(f"{scheduler.kind} shifts its table by snr_shift_scale: not known here.")
    levels = torch.cumprod(1 - _betas(scheduler), 0)
    if scheduler.says("rescale_betas_zero_snr"):
        if scheduler.says("prediction_type", "epsilon") == "epsilon":
            raise UsageError(
                f"{scheduler.kind} rescales to zero terminal SNR, where ε tells nothing of the "
                "data; the prediction_type of such a model is 'v_prediction' or 'sample'."
            )
        levels = _rescaled(levels)
    return tuple(levels.tolist())


def _betas(scheduler: Scheduler) -> Tensor:
    trained = scheduler.says("trained_betas")
    if trained is not None:
        return torch.as_tensor(trained, dtype=torch.float32)
    keys = "beta_schedule", "num_train_timesteps", "beta_start", "beta_end"
    schedule, n, start, end = scheduler.need(*keys)
    if schedule not in BETAS:
        raise unknown(f"beta_schedule of {scheduler.kind}", str(schedule), BETAS)
    return BETAS[schedule](n, start, end)


def _rescaled(levels: Tensor) -> Tensor:
    """Shift and stretch √ᾱ until the last one is zero (arXiv:2305.08891, Alg. 1)."""
    root = levels.sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    squares = root**2
    ratios = torch.cat((squares[:1], squares[1:] / squares[:-1]))
    levels = torch.cumprod(1 - (1 - ratios), 0)  # by way of β, for the same rounding
    before = float(levels[-2])
    levels[-1] = LOWEST_LEVEL if before > LOWEST_LEVEL else before / 2
    return levels


# Grids


def grid(scheduler: Any, n: int, *, mu: float | None = None) -> Grid:
    """Return the grid of n steps that a scheduler is configured for, as an immutable value.

    Tabulated models: the labels of `timestep_spacing`, or the Karras or log-SNR grid that its
    flags ask for. Flow models: 1, 1 − 1/n, …, 1/n, 0, shifted once. The end follows the scheduler
    too: a step to data (last="denoise"), or the model's least noisy level.

    Args:
        scheduler: a scheduler of diffusers, or its config.
        n: steps.
        mu: the logarithm of the shift, for a scheduler that shifts by the size of the image.

    Raises:
        UsageError: a spacing that is not known here; write the times with `pathline.grids.times`.
    """
    if n < 1:
        raise UsageError(f"a grid needs at least 1 step, and was asked for {n}.")
    scheduler = read(scheduler)
    for key in ("use_beta_sigmas", "shift_terminal"):
        if scheduler.says(key):
            raise UsageError(f"{key} is not known here; write the times with pathline.grids.times.")
    if scheduler.is_flow:
        return _shifted(scheduler, n, mu)
    if mu is not None:
        raise UsageError(f"{scheduler.kind} does not shift its times; leave mu out.")
    spacing = _spacing(scheduler)
    return _labelled(scheduler, n) if spacing is None else _spaced(scheduler, n, spacing)


def _spacing(scheduler: Scheduler) -> str | None:
    """Return the σ spacing that a scheduler asks for, if it does."""
    if scheduler.is_preconditioned:
        return scheduler.says("sigma_schedule", "karras")
    return next((spacing for flag, spacing in _FLAGS.items() if scheduler.says(flag)), None)


_FLAGS = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_lu_lambdas": "exponential",
}


def _shifted(scheduler: Scheduler, n: int, mu: float | None) -> Grid:
    uniform = [1 - k / n for k in range(n)]
    return grids.times(shifted(scheduler, uniform, mu), last="denoise")


def shifted(scheduler: Scheduler, ladder: Sequence[float], mu: float | None) -> list[float]:
    """Return the times of a flow scheduler, shifted once: t ← s t/(1 + (s − 1) t).

    Args:
        scheduler: of a flow model.
        ladder: the times before the shift.
        mu: as for `grid`.

    Paper: arXiv:2403.03206, Eq. 23.
    """
    shift = scheduler.says("shift", scheduler.says("flow_shift", 1.0))
    if scheduler.says("use_dynamic_shifting"):
        if mu is None:
            raise UsageError(f"{scheduler.kind} shifts by the size of the image: pass mu=....")
        shift = mu if scheduler.says("time_shift_type") == "linear" else math.exp(mu)
    elif mu is not None:
        raise UsageError(f"{scheduler.kind} shifts by {shift}, whatever the image; leave mu out.")
    return [shift * t / (1 + (shift - 1) * t) for t in ladder]


def _spaced(scheduler: Scheduler, n: int, spacing: str) -> Grid:
    """n levels and then data; where the last step stays on the last level, n − 1 steps."""
    last = "denoise" if scheduler.ends_at_data else "stop"
    steps = n if scheduler.ends_at_data else n - 1
    if spacing == "exponential":
        return grids.log_snr(steps, last=last)
    return grids.karras(steps, last=last, rho=scheduler.says("rho", 7.0))


def _labelled(scheduler: Scheduler, n: int) -> Grid:
    if scheduler.kind == "DPMSolverSinglestepScheduler":  # has no choice, and no key for it
        spacing = "linspace"
    else:
        (spacing,) = scheduler.need("timestep_spacing")
    total = len(_levels(scheduler))
    labels = _labels(scheduler, spacing, total, n)
    if spacing == "leading":
        labels = [label + scheduler.says("steps_offset", 0) for label in labels]
    if n > total or labels[0] >= total:
        raise UsageError(f"{scheduler.kind} has labels 0 to {total - 1}, too few for this grid.")
    if not scheduler.ends_at_data and labels[-1]:
        labels = [*labels, 0.0]
    last = "denoise" if scheduler.ends_at_data else "stop"
    return grids.times([(label + 1) / total for label in labels], last)


def _labels(scheduler: Scheduler, spacing: str, total: int, n: int) -> Sequence[float]:
    """Return the n labels of a spacing, rounded; the multistep family counts the end as well."""
    points = n + scheduler.counts_the_end
    match spacing:
        case "linspace":
            labels = np.linspace(0, total - 1, points)[::-1][:n]
        case "leading":
            labels = np.arange(points)[::-1][:n] * (total // points)
        case "trailing":
            labels = np.arange(total, 0, -total / n)[:n] - 1
        case _:
            raise unknown("timestep_spacing", spacing, ("linspace", "leading", "trailing"))
    return labels.round().tolist()

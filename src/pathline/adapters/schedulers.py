"""What a scheduler of diffusers says: how its model was trained, and which times to visit.

The library is not imported. A scheduler is read through its config, and a config, as it stands in
`scheduler_config.json`, will do as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pathline.adapters.tables import levels
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
    *("use_lu_lambdas", "use_beta_sigmas", "interpolation_type", "snr_shift_scale"),
    *("shift", "shift_terminal", "flow_shift", "use_dynamic_shifting", "time_shift_type"),
    *("sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "rho", "timestep_type"),
)
"""What is read of a config."""

OWN = "solver", "grid", "labels", "seed", "trained_as"
"""The keys of our own scheduler in a config; the others say how the model was trained."""

UNNAMED = "this config"
"""The kind of a config that does not say whose it is."""

_LIFTED = "DDIM", "PNDM", "LCM", "TCD", "CogVideoX"
"""Families whose end is `set_alpha_to_one`; configs of others inherit that key and ignore it."""

_ENDS_AT_A_LEVEL = "DEIS", "SASolver"
"""Families whose end is the least noisy level whatever is configured."""


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
        is_continuous = self.says("timestep_type") == "continuous"
        return "sigma_data" in self.config or (
            is_continuous and self.says("prediction_type") == "v_prediction"
        )

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
    """Return the class name and config of a scheduler, or of its config.

    A config that came to another scheduler by way of ours still has our keys: they are left out.
    """
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
    else:
        config = {k: v for k, v in config.items() if k not in OWN}
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
        path = Tabulated(levels(scheduler), _lowest(scheduler, view))
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
    keys = scheduler.config.keys()
    is_cosine = (
        scheduler.kind == UNNAMED and "solver_order" in keys and "algorithm_type" not in keys
    )
    if is_cosine or not scheduler.kind.startswith(("EDM", "Euler", UNNAMED)):
        raise UsageError(f"{scheduler.kind} scales its network in a way that is not known here.")
    view = _view(scheduler, {"epsilon": "eps", "v_prediction": "v"})
    path = EDM(*scheduler.need("sigma_min", "sigma_max"))
    scale = scheduler.says("sigma_data", 1.0), -1.0 if view == "v" else 1.0
    return Training(path, "x0", path.sigma, scale)


def check_generates(scheduler: Scheduler) -> None:
    """Refuse a scheduler whose course goes from data to noise."""
    if "Inverse" in scheduler.kind:
        raise UsageError(
            f"{scheduler.kind} goes from data to noise. pathline.encode does that, with any "
            "solver; or take the scheduler that generates, and a grid's reverse()."
        )


# Grids


def grid(scheduler: Any, n: int, *, mu: float | None = None) -> Grid:
    """Return the grid of n steps that a scheduler is configured for, as an immutable value.

    Tabulated models: the labels of `timestep_spacing`, or the Karras or log-SNR grid that its
    flags ask for. Flow models: 1, 1 − 1/n, …, 1/n, 0, shifted once, then stretched and spaced as
    `shift_terminal` and the flags say. The end follows the scheduler too: a step to data
    (last="denoise"), or the model's least noisy level.

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
    check_generates(scheduler)
    if scheduler.is_flow:
        uniform = [1 - k / n for k in range(n)]
        return grids.times(flow_times(scheduler, uniform, mu), last="denoise")
    for key in ("use_beta_sigmas", "shift_terminal"):
        if scheduler.says(key):
            raise UsageError(f"{key} is not known here; write the times with pathline.grids.times.")
    if mu is not None:
        raise UsageError(f"{scheduler.kind} does not shift its times; leave mu out.")
    spacing = _spacing(scheduler)
    return _labelled(scheduler, n) if spacing is None else _spaced(scheduler, n, spacing)


def _spacing(scheduler: Scheduler) -> str | None:
    """Return the spacing of noise levels that a scheduler asks for, if it does."""
    asked = next((spacing for flag, spacing in _FLAGS.items() if scheduler.says(flag)), None)
    if "sigma_data" in scheduler.config:
        return scheduler.says("sigma_schedule", "karras")
    if asked is None and scheduler.is_preconditioned:
        raise UsageError(
            f"{scheduler.kind} takes its levels from a table of β that a continuous model does not "
            "have; set use_karras_sigmas, or write the times with pathline.grids.times."
        )
    return asked


_FLAGS = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_lu_lambdas": "exponential",
}


def flow_times(scheduler: Scheduler, ladder: Sequence[float], mu: float | None) -> list[float]:
    """Return the times of a flow scheduler: a ladder shifted, stretched and spaced as it says.

        t ← s t/(1 + (s − 1) t),    1 − t ← (1 − t)(1 − t_end)/(1 − t_last),    t_1 … t_last spaced

    Args:
        scheduler: of a flow model.
        ladder: the times before that, falling to the last one above data.
        mu: as for `grid`.

    Raises:
        UsageError: a spacing that is not known here.

    Paper: arXiv:2403.03206, Eq. 23, for the shift.
    """
    _check_flow(scheduler)
    shift = flow_shift(scheduler, mu)
    times = [shift * t / (1 + (shift - 1) * t) for t in ladder]
    end = scheduler.says("shift_terminal")
    if end and times[-1] < 1:
        stretch = (1 - end) / (1 - times[-1])
        times = [1 - (1 - t) * stretch for t in times]
    spacing, n = _spacing(scheduler), len(times)
    if spacing is None or n == 1:
        return times
    if spacing == "exponential":
        return np.geomspace(times[0], times[-1], n).tolist()
    return (np.linspace(times[0] ** (1 / 7), times[-1] ** (1 / 7), n) ** 7).tolist()


def flow_shift(scheduler: Scheduler, mu: float | None) -> float:
    """Return the s by which a flow scheduler shifts its times."""
    shift = scheduler.says("shift", scheduler.says("flow_shift", 1.0))
    if scheduler.says("use_dynamic_shifting"):
        if mu is None:
            raise UsageError(f"{scheduler.kind} shifts by the size of the image: pass mu=....")
        return mu if scheduler.says("time_shift_type") == "linear" else math.exp(mu)
    if mu is not None:
        raise UsageError(f"{scheduler.kind} shifts by {shift}, whatever the image; leave mu out.")
    return shift


def _check_flow(scheduler: Scheduler) -> None:
    """Refuse spacings of a flow that are not known here.

    Those of the multistep families come from a table of β, whatever the flow.
    """
    is_of_flows = "beta_schedule" not in scheduler.config or "FlowMatch" in scheduler.kind
    flags = ("use_beta_sigmas",) if is_of_flows else ("use_beta_sigmas", *_FLAGS)
    for flag in flags:
        if scheduler.says(flag):
            raise UsageError(
                f"{scheduler.kind} spaces the levels of a flow by {flag}, which is not known here; "
                f"turn it off ({flag}=False), or choose a grid of Pathline's."
            )
    if not is_of_flows and scheduler.says("final_sigmas_type", "zero") != "zero":
        raise UsageError(
            f"{scheduler.kind} ends a flow before data (final_sigmas_type="
            f"{scheduler.says('final_sigmas_type')!r}), which is not known here; set it to 'zero'."
        )


def _spaced(scheduler: Scheduler, n: int, spacing: str) -> Grid:
    """n levels and then data; where the last step stays on the last level, n − 1 steps."""
    last = "denoise" if scheduler.ends_at_data else "stop"
    steps = n if scheduler.ends_at_data else n - 1
    if not steps:
        raise UsageError(
            f"{scheduler.kind} ends on its least noisy level, and that is one of its levels: 1 of "
            "them is no step. Ask for 2 or more, or for final_sigmas_type='zero'."
        )
    if spacing == "exponential":
        return grids.log_snr(steps, last=last)
    return grids.karras(steps, last=last, rho=scheduler.says("rho", 7.0))


def _labelled(scheduler: Scheduler, n: int) -> Grid:
    if scheduler.kind == "DPMSolverSinglestepScheduler":  # has no choice, and no key for it
        spacing = "linspace"
    else:
        (spacing,) = scheduler.need("timestep_spacing")
    between = scheduler.says("interpolation_type", "linear")
    if between != "linear" and scheduler.kind.startswith(("Euler", UNNAMED)):
        raise UsageError(
            f"interpolation_type={between!r} is not known here; choose a grid of Pathline's "
            "(log_snr), or write the times with pathline.grids.times."
        )
    total = len(levels(scheduler))
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
    """Return the n labels of a spacing; the multistep family counts the end as well.

    Rounded, unless that would make one of two, where n labels and the end are more than all.
    """
    points = n + scheduler.counts_the_end
    match spacing:
        case "linspace":
            labels = np.linspace(0, total - 1, points)[::-1][:n]
        case "leading":
            step = total // points if points <= total else (total - 1) / n
            labels = np.arange(points)[::-1][:n] * step
        case "trailing":
            labels = np.arange(total, 0, -total / n)[:n] - 1
        case _:
            raise unknown("timestep_spacing", spacing, ("linspace", "leading", "trailing"))
    return (labels.round() if points <= total else labels).tolist()

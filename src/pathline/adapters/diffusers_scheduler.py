"""A scheduler of diffusers that steps with any solver of ours, on any grid.

A pipeline of diffusers owns the loop: it asks its scheduler for timesteps, calls the network at
each, and hands the output to `step`. `Scheduler` answers with the rows of a compiled plan, so every
solver that has a plan runs in every such pipeline, with what the pipeline does around it (guidance,
masks, control networks, callbacks).

    pipe.scheduler = Scheduler.from_config(pipe.scheduler.config, solver="dpmpp_3m", grid="karras")

The state is the network's own: variance-preserving for tables of β (initial noise of variance one,
as DDIM has it), x_t = (1 − t) x_0 + t ε for flows, x_0 + σ ε for EDM's networks.
"""

# The library's exports and its config, a dict with attributes, are not typed:
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from pathline.adapters import schedulers
from pathline.adapters.choice import (
    Choice,
    Levels,
    as_solver,
    plain_grid,
    plain_solver,
    save_table,
    table_in,
    with_table,
)
from pathline.adapters.course import Course, is_same, noised, predicted, velocity
from pathline.adapters.driven import Driven
from pathline.core.errors import MissingExtra, UsageError, unknown
from pathline.core.noise import check_seeds
from pathline.paths import Tabulated
from pathline.paths.flow import Exploding
from pathline.solvers import Grid, Plan, Solver, SolverSchedule
from pathline.solvers.execute import Draw, drawing

try:
    from diffusers import ConfigMixin, SchedulerMixin
    from diffusers.utils import BaseOutput
    from diffusers.utils.torch_utils import randn_tensor
except ImportError as error:
    raise MissingExtra("diffusers", "diffusers", "for a scheduler of its pipelines") from error

Labels = Literal["real", "whole"]
Generators = torch.Generator | list[torch.Generator] | None


@dataclass
class SchedulerOutput(BaseOutput):
    """What a step returns.

    Args:
        prev_sample: the next state that the network sees; after the last step, the result.
        pred_original_sample: the data that the network saw in this state, x̂_0.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class Scheduler(SchedulerMixin, ConfigMixin):
    """Any solver of Pathline, as a scheduler of diffusers; made by `from_config`.

    Multi-stage solvers repeat timesteps as the library's Heun does: a network call is a timestep.
    One scheduler serves one request at a time, from `set_timesteps` to the last `step`; copies
    (`copy.copy`, `copy.deepcopy`) share nothing that changes.

    Args:
        solver: a name, a `Solver`, or a `SolverSchedule` or `Plan` with its own grid.
        grid: a name, a `Grid` or times; None for the grid that the config is for. A name ends as
            the config does: on data, or on the least noisy level (set_alpha_to_one=False, …).
        labels: "real" tells the network the solver's levels as they are, as timesteps like 523.4;
            "whole" moves the grid to whole timesteps.
        seed: of the noise of stochastic solvers, for requests without a generator; sample i has
            the seed `seed + i`. None draws seeds from torch's generator at each request.
        training: how the model was trained, in the words of the scheduler it came with.

    Raises:
        UsageError: an unknown name, a solver without a plan, a training that cannot be read.
    """

    config_name = "scheduler_config.json"

    def __init__(
        self,
        solver: Solver | SolverSchedule | Plan | str | Mapping[str, Any] = "dpmpp_2m",
        grid: Grid | str | Levels | Mapping[str, Any] = None,
        labels: Labels = "real",
        seed: int | None = 0,
        **training: Any,
    ) -> None:
        if labels not in ("real", "whole"):
            raise UsageError(f"labels={labels!r}: choose 'real' or 'whole'.")
        check_seeds([] if seed is None else [seed])
        if not training:
            raise UsageError(
                "a scheduler needs to know how its model was trained: "
                "Scheduler.from_config(pipe.scheduler.config, solver=...)."
            )
        told = {"solver": plain_solver(solver), "grid": plain_grid(grid)}
        training["_class_name"] = Scheduler.__name__  # whose it is, when others hand it on
        self.register_to_config(**told, labels=labels, seed=seed, **training)
        is_made = isinstance(solver, Solver)  # and may hold statistics, more than a config tells
        self._solver = solver if is_made else as_solver(told["solver"])
        scheduler = schedulers.read(self)
        schedulers.check_generates(scheduler)
        self._training = schedulers.training(scheduler)
        self.order = self._solver.nfe_per_step if isinstance(self._solver, Solver) else 1
        self.timesteps = torch.empty(0)
        self.sigmas = torch.empty(0)
        self.num_inference_steps: int | None = None
        self._course: Course | None = None
        self._restart()

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **changes: Any
    ) -> Any:
        """Return a scheduler for the models of another one.

        Args:
            config: the config of a scheduler (or the scheduler itself).
            return_unused_kwargs: return (scheduler, {}), as the library's loaders expect.
            changes: solver, grid, labels, seed; or other values of the config's own keys.

        Raises:
            UsageError: a key that nobody reads.
        """
        told = schedulers.read(config)
        content = {k: v for k, v in told.config.items() if not k.startswith("_")}
        defaults = set(told.config.get("_use_default_values", ())) - changes.keys()
        if told.kind != schedulers.UNNAMED:
            content["trained_as"] = told.kind
        for name in changes:
            if name not in schedulers.OWN and name not in content and name not in schedulers.KEYS:
                raise unknown("key of a scheduler", name, [*schedulers.OWN, *schedulers.KEYS])
        if defaults:  # which another scheduler then replaces by its own
            content["_use_default_values"] = sorted(defaults)
        made = cls(**{**content, **changes})
        return (made, {}) if return_unused_kwargs else made

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str] | None = None,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **changes: Any,
    ) -> Any:
        """Load what `save_pretrained` wrote; the library's own arguments go on to it."""
        where = pretrained_model_name_or_path
        made = super().from_pretrained(where, subfolder, return_unused_kwargs, **changes)
        scheduler = made[0] if isinstance(made, tuple) else made
        if where is not None:
            scheduler._solver = with_table(scheduler._solver, Path(where, subfolder or ""))
        return made

    def save_pretrained(
        self, save_directory: str | PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write the config, and beside it the statistics of a solver that has some."""
        if isinstance(self._solver, Solver):
            save_table(self._solver, Path(save_directory))
        super().save_pretrained(save_directory, push_to_hub, **kwargs)

    # What pipelines ask before the loop

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Levels = None,
        sigmas: Levels = None,
        mu: float | None = None,
    ) -> None:
        """Begin a request: compile the plan, and forget the request before.

        Args:
            num_inference_steps: steps of the grid, the one to data included.
            device: where the timesteps go.
            timesteps: labels of your own, instead of a number of steps and of the chosen grid;
                on a flow, with sigmas, what the network is told at these.
            sigmas: noise levels of your own, σ/α falling, closed by 0; on a flow before the shift.
            mu: the logarithm of the shift, for flow models that shift by the size of the image.

        Raises:
            UsageError: arguments that contradict each other, or a plan's own grid.
        """
        told = schedulers.read(self)
        is_whole = self.config.labels == "whole"
        choice = Choice(told, self._training, self._solver, self.config.grid, is_whole)
        course, self.num_inference_steps = choice.course(num_inference_steps, timesteps, sigmas, mu)
        self._course = course
        self.timesteps, self.sigmas = course.labels.to(device), course.sigmas
        brings = timesteps is not None or sigmas is not None  # and counts its steps in timesteps
        self.order = 1 if brings else self._calls_per_step(course)
        self._restart()

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the noise that a request begins with."""
        path = self._training.path
        if not isinstance(path, Exploding):
            return 1.0
        return path.sigma_max if self._course is None else float(self._course.sigmas[0])

    @property
    def step_index(self) -> int | None:
        """How many timesteps have been taken, counted from the first of all; None before."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The first timestep of the request, if the pipeline said it."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin the request at this timestep: image to image, refiners."""
        self._restart()
        self._begin_index = begin_index

    def index_for_timestep(
        self, timestep: Tensor | float, schedule_timesteps: Tensor | None = None
    ) -> int:
        """Return the number of a timestep; of those that repeat, where a step begins: the last.

        The first is 0 however often it comes: some solvers return to where they began.

        Raises:
            UsageError: it is not one of them.
        """
        among = self.timesteps if schedule_timesteps is None else schedule_timesteps
        given, labels = float(timestep), among.tolist()
        nearest = min((abs(label - given) for label in labels), default=math.inf)
        found = [i for i, label in enumerate(labels) if abs(label - given) == nearest]
        if not found or not is_same(labels[found[-1]], given):
            raise UsageError(
                f"{given:g} is none of the {len(among)} timesteps; call set_timesteps first, and "
                "pass the timesteps as they are."
            )
        return found[-1] if found[0] else 0

    # What pipelines ask in it

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        """Return what the network is fed: the state, or c x for EDM's networks."""
        course = self._known_course()
        if course.preconditioning is None:
            return sample
        c, _, _ = course.preconditioning[self._upcoming(timestep)]
        return sample * c

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, Tensor]:
        """Take the network's output, and return the state that it sees next.

        Args:
            model_output: (batch, *state), or with twice the channels: the second half, a learned
                variance, is left out.
            timestep: the one that the network was called with.
            sample: the state that it was called with, before `scale_model_input`.
            generator: of the noise of stochastic solvers; counter-based noise if None.
            return_dict: whether to return a `SchedulerOutput`, or (prev_sample, x̂_0).

        Raises:
            UsageError: no request is under way, or it is another timestep's turn.
        """
        course, i = self._known_course(), self._upcoming(timestep)
        self._check_turn(course, i, timestep)
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        f = predicted(model_output, x)
        if course.preconditioning is not None:
            _, a, b = course.preconditioning[i]
            f = a * x + b * f
        if self._run is None:
            table = table_in(self._solver)
            if table is not None:
                table.check_shape(x.shape[1:])
            self._run = Driven(course.starting(i).plan, x)
        state = self._run.push(f, x, self._draw(generator, x)).to(sample.dtype)
        self._step_index = i + 1
        p, q = course.denoised[i]
        x0 = torch.add(p * x, f, alpha=q).to(sample.dtype)
        return SchedulerOutput(state, x0) if return_dict else (state, x0)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return α x_0 + σ ε at these timesteps, () or (batch,)."""
        return noised(self._trained, original_samples, noise, timesteps)

    def scale_noise(
        self, sample: Tensor, timestep: Tensor | float, noise: Tensor | None = None
    ) -> Tensor:
        """Return the same as `add_noise`, under the name it has for flow models."""
        if noise is None:
            raise UsageError("scale_noise needs the noise.")
        return self.add_noise(sample, noise, torch.as_tensor(timestep))

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return α ε − σ x_0, what a network of v-prediction is trained to say."""
        return velocity(self._trained, sample, noise, timesteps)

    @property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ_n of the model, for those who look at it; a flow has none."""
        path = self._training.path
        if not isinstance(path, Tabulated):
            raise AttributeError(f"models of {self.config.trained_as} have no alphas_cumprod.")
        return torch.tensor(path.alphas_cumprod)

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    # One request

    def _restart(self) -> None:
        self._run: Driven | None = None
        self._noise: tuple[tuple[Any, ...], Draw] | None = None
        self._step_index: int | None = None
        self._begin_index: int | None = None

    @property
    def _trained(self) -> schedulers.Training:
        """How the model was trained, in the words of the request if it brings its own."""
        return self._training if self._course is None else self._course.training

    def _calls_per_step(self, course: Course) -> int:
        known = isinstance(self._solver, Solver)
        return self._solver.nfe_per_step if known else course.calls_per_step

    def _known_course(self) -> Course:
        if self._course is None:
            raise UsageError("no request is under way: call set_timesteps first.")
        return self._course

    def _upcoming(self, timestep: Tensor | float | None) -> int:
        """Return the number of the timestep whose turn it is."""
        if self._step_index is not None:
            return self._step_index
        if self._begin_index is not None:
            return self._begin_index
        return 0 if timestep is None else self.index_for_timestep(timestep)

    def _check_turn(self, course: Course, i: int, timestep: Tensor | float) -> None:
        """Refuse a step out of turn; a timestep on a GPU is believed, for looking would wait."""
        n = len(course.labels)
        if not 0 <= i < n:
            raise UsageError(f"all {n} timesteps are taken: call set_timesteps for a new request.")
        if isinstance(timestep, Tensor) and timestep.device.type != "cpu":
            return
        given, turn = torch.as_tensor(timestep, dtype=torch.float64), float(course.labels[i])
        if not all(is_same(turn, float(t)) for t in given.flatten()):
            raise UsageError(
                f"it is the turn of timestep {turn:g} and step was called with {given.tolist()}: "
                "one scheduler serves one request at a time; use a copy of it for each."
            )

    def _draw(self, generator: Generators, x: Tensor) -> Draw:
        """Return where the noise comes from; made once a request, for it draws many steps ahead."""
        if generator is not None:
            return partial(_drawn, generator, x)
        kind = x.shape, x.dtype, x.device
        if self._noise is None or self._noise[0] != kind:
            assert self._run is not None
            plan = self._run.plan
            seeds = self._seeds(len(x)) if plan.is_stochastic else None
            self._noise = kind, drawing(plan, seeds, x)
        return self._noise[1]

    def _seeds(self, n: int) -> Sequence[int]:
        first = self.config.seed
        return torch.randint(2**63 - 1, (n,)).tolist() if first is None else range(first, first + n)

    def __copy__(self) -> Self:
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._run = None if self._run is None else self._run.copy()
        other._noise = copy.deepcopy(self._noise)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()  # the rest is never changed, only replaced


def _drawn(generator: Generators, x: Tensor, _: object) -> Tensor:
    return randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)

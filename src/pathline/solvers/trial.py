"""What makes one step of every sample: `Stepper` is the rule, `Trial` what came of an attempt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathline.paths import Time
from pathline.solvers.pace import Flags, Numbers, Reach
from pathline.solvers.slope import Slope
from pathline.solvers.stepped import each

Rows = NDArray[np.int64]


@dataclass
class Trial:
    """What one attempt has made of the samples.

    Args:
        x: the states that it would lead to, (n, *state); good until the next attempt.
        error: the estimate, in units of the tolerance, (n,); with a graph where steps have one.
        last: the field at the end of the step, where a stage has it.
        stages: h k_i of each stage, (s, n, *state) or a list; good until the next attempt.
        stiffness: |f(x) − f(x')| / |x − x'| of two states at the end of the step, (n,); where the
            method has two such stages and somebody asked.
    """

    x: Tensor
    error: Tensor
    last: Tensor | None
    stages: Tensor | list[Tensor]
    stiffness: Tensor | None = None


class Stepper(ABC):
    """A method, bound to one solve.

    It is told where the samples of the batch go, and which of them are under way (`narrow`); all
    other calls are about these alone.
    """

    evaluations: int
    """Of the field, in an attempt."""
    extra: int = 0
    """More of them, where the inside of a step is asked for."""
    narrows: bool = False
    """Whether samples that wait must be left out of its attempts."""

    def __init__(self, slope: Slope, rtol: float, atol: float) -> None:
        self.slope, self.rtol, self.atol = slope, rtol, atol
        self.graph = False
        self.wants_stiffness = False
        self.shares = False

    def clocks(self, t: Time) -> Numbers:
        """Return what the clock of each sample shows at a grid point, before its way is told."""
        return each(t, len(self.slope.way)).numpy()

    def aim(self, t: Time) -> None:
        """Be told the next grid point."""
        del t

    def narrow(self, rows: Tensor | None) -> None:
        """Be told which samples are under way; None for all."""
        del rows

    def here(self, clocks: Numbers, x: Tensor) -> Tensor:
        """Return the times where the samples stand, as the slope takes them."""
        (t,) = self.slope.times(clocks[None], x)
        return t

    def time(self, clocks: Numbers, rows: Rows) -> Numbers:
        """Return the times of clocks of some samples of the batch."""
        return clocks * self.slope.all_ways[rows]

    def took(self, taken: Flags, x: Tensor, first: Tensor) -> None:
        """Be told whose step was taken, and from where."""
        del taken, x, first

    def moved(self, x: Tensor) -> None:
        """Be told that somebody has put all samples elsewhere."""
        del x

    @property
    def seen(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """The state, time and field that each sample's last step came from, if it is kept."""
        return None

    @abstractmethod
    def opening(self, x: Tensor, first: Tensor, reach: Reach) -> Numbers:
        """Estimate the size of the first steps.

        Args:
            x: the states.
            first: the field there.
            reach: the whole way to the next grid point.

        Cost: an evaluation, or none (`opens`).
        """

    opens: int = 1
    """Evaluations of `opening`."""

    @abstractmethod
    def attempt(self, x: Tensor, first: Tensor, reach: Reach) -> Trial:
        """Try the step of every sample.

        Args:
            x: (n, *state).
            first: the field there.
            reach: how far.
        """

    def complete(self, x: Tensor, trial: Trial, reach: Reach) -> list[Tensor]:
        """Return all stages that `between` needs, of all samples; evaluates what is left out."""
        del x, reach
        return list(trial.stages)

    @abstractmethod
    def between(
        self, theta: Tensor, x: Tensor, x1: Tensor, trial: Trial, rows: Tensor, reach: Reach
    ) -> Tensor:
        """Return states inside a step, (m, *state).

        Args:
            theta: the part of the step, (m,) float64.
            x: the states at its start, (n, *state).
            x1: at its end.
            trial: what it was made of.
            rows: which samples, (m,), with repetition.
            reach: how far it went.
        """

    def numbers(self, values: Tensor) -> Numbers:
        """Return a number of each sample on the host; one of all where the batch is one."""
        made = values.detach().to("cpu", torch.float64).numpy()
        if self.shares:
            made = np.full_like(made, np.sqrt(np.mean(np.square(made))))
        return made

    def own(self, values: Tensor) -> Numbers:
        """Return the sum of each sample on the host: not finite where something in it is not."""
        return values.detach().flatten(1).sum(1).double().cpu().numpy()

    def unit(self, x: Tensor, x1: Tensor) -> Tensor:
        """Return what an error is compared with, (n, *state)."""
        unit = torch.maximum(x.abs(), x1.abs())
        if self.graph:
            return unit * self.rtol + self.atol
        return unit.mul_(self.rtol).add_(self.atol)


@torch.no_grad()
def opening(stepper: Stepper, x: Tensor, first: Tensor, reach: Reach, order: int) -> Numbers:
    """Take a step of 1 % of the state's size, and see how much the slope has changed.

    Source: Hairer, Nørsett & Wanner, Solving Ordinary Differential Equations I, Sec. II.4.

    Cost: an evaluation.
    """
    unit = x.abs().mul(stepper.rtol).add(stepper.atol)
    size, slope = stepper.numbers(rms(x / unit)), stepper.numbers(rms(first / unit))
    with np.errstate(all="ignore"):
        guess = np.where((size < 1e-5) | (slope < 1e-5), 1e-6, 0.01 * size / slope)
    probe = np.minimum(np.nan_to_num(guess, nan=1e-6), reach.size)
    h = lifted(probe * stepper.slope.way, x)
    (t,) = stepper.slope.times((reach.start + probe)[None], x)
    bend = stepper.numbers(rms((stepper.slope(x + h * first, t) - first) / unit))
    with np.errstate(all="ignore"):
        steepest = np.maximum(slope, bend / probe)
        sized = np.power(0.01 / np.maximum(steepest, 1e-15), 1 / (order + 1))
    sized = np.where(steepest <= 1e-15, np.maximum(guess * 1e-3, 1e-6), sized)
    made = np.minimum(100 * guess, sized)
    return np.where(np.isfinite(made), made, 1e-6)


def rms(x: Tensor) -> Tensor:
    """Return the root mean square of each sample, (n,); the same bits in any batch."""
    flat = x.flatten(1)
    if x.device.type != "cpu":
        return totals_of_squares(flat)
    return torch.linalg.vector_norm(flat, dim=1) / max(flat.shape[1], 1) ** 0.5


def totals_of_squares(flat: Tensor) -> Tensor:
    """Return the same where a reduction may depend on the batch, as it does on a GPU."""
    from pathline.solvers.levels import totals

    return (totals(flat.square()) / max(flat.shape[1], 1)).sqrt()


def lifted(values: Numbers, like: Tensor) -> Tensor:
    """Return a number for each sample, (n, 1, …), in the dtype and on the device of a state."""
    made = torch.from_numpy(values)
    if made.dtype != like.dtype or made.device != like.device:
        made = made.to(device=like.device, dtype=like.dtype)
    return made.view(-1, *[1] * (like.ndim - 1))


def chosen(taken: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Return the new states of those whose step was taken, and the old ones of the others."""
    return torch.where(taken.view(-1, *[1] * (old.ndim - 1)), new, old)

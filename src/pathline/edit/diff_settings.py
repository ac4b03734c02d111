"""How an edit of DiffEditor is made, and what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pathline.core.errors import UsageError
from pathline.core.receipt import Receipt
from pathline.edit.diff_task import Task, Tuning
from pathline.edit.fixed_point import FixedPoint
from pathline.edit.inverter import Inverter
from pathline.fields import Field
from pathline.nets.image_prompt import ImagePrompt
from pathline.solvers import Grid, grids
from pathline.steer.features import FeatureSource, Layers

__all__ = ["Bank", "DiffEditor", "DiffEdited", "Heard", "StepReport"]

END = 0.98
"""Where the noisiest state lies if α is 0 at the noise end, which g is divided by."""


@dataclass(frozen=True)
class Bank:
    """Keys and values of the reference's self-attention, used in the edit.

    Args:
        layers: names; None for those on the way up of a U-Net, or all of a transformer.
    """

    layers: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False)
class Heard:
    """An image prompt and what it says.

    Args:
        prompt: of the network's cross-attentions, trained.
        tokens: (1, n, width).
        share: ρ.
    """

    prompt: ImagePrompt
    tokens: Tensor
    share: float = 0.1


@dataclass(frozen=True)
class DiffEditor:
    """How an edit is made; None takes what the public code takes for the task.

    Args:
        steps: N.
        grid: from noise to data; None is even in t.
        strength: η; gradients are multiplied by η κ, and 0 is no guidance at all.
        kappa: κ.
        guidance: w, of the condition; has no part without one.
        eta_sde: of the noise inside the region, in its window.
        eta_kept: of the noise outside.
        travel: visits of a step in the window of time travel; 1 is none.
        features: what says features.
        upscale: the features' grid over the state's.
        inverter: finds the states of a picture; of one state a level.
        bank: keys and values of the reference; None for none.
        heard: an image prompt; None for none.
    """

    steps: int = 50
    grid: Grid | None = None
    strength: float | None = None
    kappa: float | None = None
    guidance: float | None = None
    eta_sde: float | None = None
    eta_kept: float = 0.0
    travel: int = 3
    features: FeatureSource = field(default_factory=Layers)
    upscale: int = 1
    inverter: Inverter = field(default_factory=lambda: FixedPoint(rounds=5))
    bank: Bank | None = field(default_factory=Bank)
    heard: Heard | None = None

    def __post_init__(self) -> None:
        if self.upscale < 1:
            raise UsageError(
                f"upscale={self.upscale}: the features' grid is 1 or more times finer."
            )
        if self.grid is not None and self.grid.n != self.steps:
            raise UsageError(
                f"the grid has {self.grid.n} steps, and steps={self.steps}: say it once, or alike."
            )

    def tuned(self, task: Task) -> Tuning:
        """Return the numbers of a task, those that were given in place of the usual ones."""
        own = {"strength": self.strength, "kappa": self.kappa, "guidance": self.guidance,
               "eta_sde": self.eta_sde}  # fmt: skip
        return task.tuning._replace(**{k: v for k, v in own.items() if v is not None})

    def falling(self, field: Field) -> tuple[float, ...]:
        """Return the times, from noise to data.

        Raises:
            UsageError: a field without a path, a grid that ends in data itself, or rises.
        """
        if field.path is None:
            raise UsageError("an edit needs a model on a path: give a Denoiser.")
        path = field.path
        start = END if float(path.alpha(path.t_max)) == 0 else None
        grid = self.grid or grids.uniform(self.steps, start=start)
        if grid.last == "denoise":
            raise UsageError("a last step to data itself has no way back: take last='stop'.")
        times = grid.times(path)
        if times[0] < times[-1]:
            raise UsageError(
                "give the grid of generation, from noise to data: its times must fall."
            )
        return times


@dataclass(frozen=True, eq=False)
class StepReport:
    """What one step did.

    Args:
        q: its number, 0 is the noisiest.
        n: how many there are.
        t: the time that it began at.
        guided, repeats, eta, banked, prompted: as planned.
        edit: the energy inside the region, before the first visit's step; None without guidance.
        content: the one outside.
        pull: the root mean square of g.
        noise: the root mean square of the noise that was added inside the region.
        x0: (1, *state), the clean estimate that the step began with.
    """

    q: int
    n: int
    t: float
    guided: bool
    repeats: int
    eta: float
    banked: bool
    prompted: bool
    edit: float | None
    content: float | None
    pull: float
    noise: float
    x0: Tensor = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return all but the estimate, as plain values."""
        return {k: v for k, v in vars(self).items() if k != "x0"}


@dataclass(frozen=True, eq=False)
class DiffEdited:
    """An edited picture, and how it came about.

    Args:
        x: (1, *state).
        reconstruction: (1, *state): what inversion and DDIM alone make of the picture.
        regions: masks by name, (height, width) bool on the state's grid.
        steps: what each did.
        nfe: evaluations of the field, all told.
        vjps: backward passes.
        receipt: what it was made with.
    """

    x: Tensor
    reconstruction: Tensor
    regions: Mapping[str, Tensor]
    steps: tuple[StepReport, ...]
    nfe: int
    vjps: int
    receipt: Receipt

    def to_dict(self) -> dict[str, Any]:
        """Return all but the tensors, as plain values."""
        return {
            "nfe": self.nfe,
            "vjps": self.vjps,
            "regions": {name: int(mask.sum()) for name, mask in self.regions.items()},
            "guided": [s.q for s in self.steps if s.guided],
            "travelled": [s.q for s in self.steps if s.repeats > 1],
            "stochastic": [s.q for s in self.steps if s.eta],
            "steps": [step.to_dict() for step in self.steps],
        }

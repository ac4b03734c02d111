"""Reward-directed generation: "something like the data, of which the reward is a".

    1. a regression f̂ on the few labelled data           `fit_ridge`, `fit_regressor`
    2. labels for all data, ŷ = f̂(x) + ν ξ               `PseudoLabelled`
    3. a conditional model of (x, ŷ)                      `train_directed`
    4. samples at y = a, and what became of them          `Directed.propose`

Without step 3 a model that was never told of rewards serves as well: `Directed(model, f̂, ...,
guide=LookAhead())` guides it to a by the gradient of f̂, exactly where data are Gaussian and f̂ is
linear.

What a sample lacks of a has three parts: the regressor's error on the data's subspace, the shift of
the samples away from the data as a grows, and what the model puts off the subspace. `Proposal` says
the estimated reward, the true one where it is known, and the off-support ratio.

Paper: Yuan et al. 2023 (arXiv:2307.07055); Chen et al. 2024 (arXiv:2404.07771), Sec. 5.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields import Field, Subspace
from pathline.learn.checkpoint import load_model
from pathline.learn.pseudolabel import Labels, PseudoLabelled, check_noise
from pathline.learn.recipe import Recipe, Watch
from pathline.learn.trainer import train
from pathline.solvers import sample
from pathline.steer import Targeted

__all__ = ["Directed", "Proposal", "directed_recipe", "train_directed"]

Reward = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Proposal:
    """Samples that were asked to have a reward, and what can be said of them.

    Args:
        x: (n, *state), in the units of the data.
        target: a.
        estimate: the mean of f̂.
        reward: the mean of the true reward; NaN where nobody gave it.
        off: the mean off-support ratio; NaN where no subspace was given.
        beyond: by how many deviations a lies outside of the labelled rewards.
    """

    x: Tensor
    target: float
    estimate: float
    reward: float
    off: float
    beyond: float

    @property
    def gap(self) -> float:
        """How far the true reward is from a; the estimated one, where that is not known."""
        known = self.estimate if math.isnan(self.reward) else self.reward
        return abs(self.target - known)


@dataclass(frozen=True, eq=False)
class Directed:
    """A model of data that can be asked for a reward.

    Args:
        model: of the data less `center` over `scale`; told y, or guided.
        estimate: f̂, (batch, *state) → (batch,), of data in their own units, differentiable where
            the model is guided.
        labels: what f̂ was fitted to.
        guide: how a model that is not told y is guided: `LookAhead(std=ν)`; None tells it y.
        support: the data's subspace, in their own units.
        center: subtracted from the data for the model, broadcast to a sample; 0 for nothing.
        scale: that they are divided by then.
    """

    model: Field
    estimate: Reward
    labels: Labels
    guide: Targeted | None = None
    support: Subspace | None = None
    center: Tensor | float = 0.0
    scale: float = 1.0

    def propose(
        self, a: float, n: int = 1, *, truth: Reward | None = None, seed: int = 0, **how: Any
    ) -> Proposal:
        """Return n samples with reward a.

        Warns where a lies more than 4 deviations outside of the labelled rewards.

        Args:
            a: the target.
            n: how many.
            truth: the true reward, where it is known: (batch, *state) → (batch,).
            seed: of the first sample.
            how: `solver`, `grid`, `steps`, `dtype`, `shape` of `pathline.sample`; a guide only
                where the model is told y.

        Raises:
            UsageError: a target that is not finite; the rest as `pathline.sample`.
        """
        beyond = self.labels.beyond(a)
        if self.guide is None:
            how["y"] = a
        else:
            how["guide"] = replace(self.guide, reward=lambda z: self.estimate(self._own(z)), y=a)
        with torch.no_grad():
            x = self._own(sample(self.model, n, seed=seed, **how).x)
            off = math.nan if self.support is None else float(self.support.off(x).mean())
            true = math.nan if truth is None else float(truth(x).mean())
            return Proposal(x, a, float(self.estimate(x).mean()), true, off, beyond)

    def _own(self, z: Tensor) -> Tensor:
        """Return the model's data in their own units."""
        center = self.center
        return self.scale * z + (center.to(z) if isinstance(center, Tensor) else center)


def directed_recipe(
    source: PseudoLabelled, dim: int, steps: int = 3000, seed: int = 0, **network: Any
) -> Recipe:
    """Return how a conditional model of pseudo-labelled data on a subspace is trained.

    Args:
        source: the data, normalised, (n, D), and their labels.
        dim: d of the subspace.
        steps: updates of 256 data.
        seed: of the training.
        network: `width`, `depth` and `label_width` of `SubspaceScore`.
    """
    labels = source.labels.double()
    data = hashlib.sha256(source.points.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
    table = {
        "class": "SubspaceScore",
        "dim": source.points.shape[1],
        "latent": dim,
        "label_width": 16,
        "label_mean": float(labels.mean()),
        "label_std": math.hypot(float(labels.std()), source.noise),
        **network,
    }
    return Recipe(
        name="directed",
        steps=steps,
        batch=256,
        seed=seed,
        rate=2e-3,
        warmup=100,
        decay=0.0,
        data={"source": "pseudo_labelled", "sha256": data, "noise": source.noise},
        network=table,
        objective={"path": "vp_linear", "view": "x0"},
        watch=Watch(every=15.0),
    )


def train_directed(  # noqa: PLR0913 - keyword-only: what is given, what is learned, where it goes
    x: Tensor,
    estimate: Reward,
    labels: Labels,
    out: str | Path,
    *,
    noise: float,
    dim: int | None = None,
    steps: int = 3000,
    null_share: float = 0.0,
    seed: int = 0,
    network: Mapping[str, Any] | None = None,
) -> Directed:
    """Label data, train a conditional model of them, and return it, ready to be asked.

    Data are centred and divided by their deviation along the subspace. A run that was cut short
    goes on from `out`.

    Args:
        x: all data, (n, D).
        estimate: f̂, (batch, D) → (batch,).
        labels: what it was fitted to (`Labels.of`).
        out: the folder of the run.
        noise: ν, in units of the reward.
        dim: d; None finds it by 99 % of the variance.
        steps: of training.
        null_share: how many labels are dropped: 0.1 if classifier-free guidance is wanted.
        seed: of the training.
        network: options of `SubspaceScore`.

    Raises:
        UsageError: data without low-dimensional structure; ν that is not above 0.
        CheckpointError: the state in `out` is of another run.
    """
    check_noise(noise)
    if x.ndim != 2:
        raise UsageError(f"data are rows (n, D), and were given as {tuple(x.shape)}.")
    support = Subspace.of(x, dim)
    center = x.double().mean(0)
    scale = float(support.latent(x.double()).square().mean().sqrt())
    with torch.no_grad():
        labelled = estimate(x)
    z = ((x.double() - center) / scale).float()
    source = PseudoLabelled(z, labelled, noise, null_share)
    recipe = directed_recipe(source, support.dim, steps, seed, **(network or {}))
    model = load_model(train(recipe, out, source=source))
    return Directed(model, estimate, labels, None, support, center, scale)

"""Optimisation by sampling: designs that score high and stay among the data.

    Alg. 1   g_i = ∇f(z_i),  y_i = g_i · z_i + δ,  z_i ← a sample guided to g_i · x = y_i
    Alg. 2   besides, after every round, the model learns from the newest batch

A model of data is the feasible set: guidance that goes through it never leaves what it knows. With
a model of N(μ, Σ), Alg. 1 comes to rest where f gains δ a round as fast as the prior takes it back:
near the maximiser of f less a quadratic around μ, of the shape of Σ. Alg. 2 moves the centre with
the samples, so the quadratic goes, and what is left is the maximiser of f among the data.

Only f and its gradient at the current samples are asked for, once a round and sample.

Paper: Guo et al. 2024 (arXiv:2404.14743), Alg. 1 and 2; Chen et al. 2024 (arXiv:2404.07771).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pathline.core.errors import CheckpointError, UsageError
from pathline.core.progress import progress
from pathline.core.tensors import read_tensors, write_tensors
from pathline.fields import Field, Subspace
from pathline.solvers import grids, sample
from pathline.solvers.solve import AnyGrid, AnySolver
from pathline.steer.guide import Guide
from pathline.steer.reward import LookAhead, Targeted

FORMAT = "pathline-search-1"
EVERY = 15.0
"""Seconds between two states on disk."""


class Learner(Protocol):
    """What a model learns from the samples of a round (Alg. 2); all that changes is its memory."""

    def begin(self, model: Field) -> Mapping[str, Tensor]:
        """Return the memory at the start."""
        ...

    def field(self, model: Field, memory: Mapping[str, Tensor]) -> Field:
        """Return the model as it is with this memory."""
        ...

    def learned(
        self, model: Field, memory: Mapping[str, Tensor], x: Tensor, step: int
    ) -> Mapping[str, Tensor]:
        """Return the memory after the batch x, (batch, *state), of round `step`."""
        ...


@dataclass(frozen=True, eq=False)
class Search:
    """A search under way, or over: it can be kept, and gone on with.

    Args:
        x: the samples of the newest round, (batch, *state).
        rewards: f of every sample of every round, (1 + rounds, batch).
        off: mean off-support ratio of every round, (1 + rounds,); NaN where no subspace was given.
        best: the samples of the round with the highest mean reward, (batch, *state).
        memory: what the learner knows.
    """

    x: Tensor
    rewards: Tensor
    off: Tensor
    best: Tensor
    memory: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        """How many rounds were made; the unconditional batch is none."""
        return len(self.rewards) - 1

    @property
    def means(self) -> Tensor:
        """The mean reward of every round, (1 + rounds,)."""
        return self.rewards.mean(1)

    @property
    def best_round(self) -> int:
        """The round with the highest mean reward."""
        return int(self.means.argmax())

    def has_settled(self, patience: int) -> bool:
        """Whether the mean reward has not risen for so many rounds."""
        return self.rounds - self.best_round >= patience


@dataclass(frozen=True, eq=False)
class Optimiser:
    """Maximises f by sampling from a model of the data.

    Args:
        model: any field on a path that can be sampled: a denoiser, an oracle, a guided model.
        reward: f: (batch, *state) → (batch,), of clean data; it need not be differentiable.
        slope: ∇f: (batch, *state) → (batch, *state), where autograd cannot find it: your own, or
            that of a fitted regressor (`slope_of`).
        guide: how samples are asked to score: `LookAhead` or `Naive` with their s and weight.
        rise: δ above 0, how much better each round is asked to be, in units of the reward. Large
            ones settle higher, and ask for what the data do not have.
        n: samples a round.
        learner: makes it Alg. 2: what the model learns from each round.
        since: the first round that is learned from.
        also: a guide that acts first (CFG).
        solver, grid: of the samples; ancestral, 200 steps of which the last is to x̂_0.
        support: the subspace that the off-support ratio is taken of.
        patience: rounds without a higher mean reward after which it stops.
        seed: of the noise; a round's samples have seeds of their own.
        dtype: of the samples.
        cond: the condition, in the user's words.

    Raises:
        UsageError: δ, n or patience that cannot work.

    Cost: a round is n samples of the guided model, and n values and gradients of f.

    Example: the largest sum of two numbers that are N(0, 1), each little beyond what is likely.
        >>> import torch, pathline as pl
        >>> law = pl.Gaussian(pl.VPLinear(), torch.zeros(2), torch.ones(2))
        >>> climb = Optimiser(law, lambda x: x.sum(1), grid=grids.uniform(20, last="denoise"))
        >>> search = climb.run(10)
        >>> search.rounds, bool(search.means[-1] > search.means[0] + 1)
        (10, True)
    """

    model: Field
    reward: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor] | None = None
    guide: Targeted = field(default_factory=LookAhead)
    rise: float = 0.2
    n: int = 32
    learner: Learner | None = None
    since: int = 0
    also: Guide | None = None
    solver: AnySolver = "ddpm"
    grid: AnyGrid = grids.uniform(200, last="denoise")
    support: Subspace | None = None
    patience: int = 50
    seed: int = 0
    dtype: torch.dtype | None = None
    cond: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.rise < math.inf:
            raise UsageError(
                f"rise={self.rise}: δ is what every round is asked to gain, a finite number above "
                "0; at 0 or below nothing is asked for, and the samples fall back to the prior."
            )
        if self.n < 1 or self.patience < 1:
            raise UsageError(f"n={self.n}, patience={self.patience}: each is at least 1.")

    def begin(self) -> Search:
        """Return round 0: a batch of the model as it is."""
        memory = {} if self.learner is None else dict(self.learner.begin(self.model))
        with torch.no_grad():  # a round is no function to be differentiated: f gives the direction
            x = sample(self.model, seeds=self._seeds(0), **self._how(), **self.cond).x
        return self._seen(x, None, memory)

    def advanced(self, search: Search) -> Search:
        """Return the search after one more round.

        Raises:
            UsageError: f has no gradient and none was given; it returns no number a sample.
        """
        step, z = search.rounds + 1, search.x
        g = self.slopes(z)
        target = (g * z).flatten(1).sum(1) + self.rise
        towards = replace(self.guide, reward=lambda x0: (g * x0).flatten(1).sum(1), y=target)
        guide = towards if self.also is None else self.also & towards
        model = self.current(search)
        with torch.no_grad():
            x = sample(
                model, seeds=self._seeds(step), guide=guide, **self._how(), **self.cond
            ).x  # fmt: skip
        memory = search.memory
        if self.learner is not None and step >= self.since:
            memory = dict(self.learner.learned(self.model, memory, x, step))
        return self._seen(x, search, memory)

    def current(self, search: Search) -> Field:
        """Return the model with what it has learned so far."""
        return self.model if self.learner is None else self.learner.field(self.model, search.memory)

    def run(self, rounds: int, keep: str | Path | None = None) -> Search:
        """Search, until so many rounds are made in all or the mean reward has settled.

        Args:
            rounds: at most so many, those that were kept included.
            keep: a file; the search is kept in it every few seconds and at the end, however it
                ends, and goes on from it: what is kept repeats and loses nothing.

        Raises:
            CheckpointError: the file is of another search.
            UsageError: as `advanced`; the file cannot be written.
        """
        path = None if keep is None else Path(keep)
        search = self._restored(path) if path is not None and path.exists() else self.begin()
        written = time.monotonic()
        try:
            with progress() as bar:
                task = bar.add_task("optimising", total=rounds, completed=search.rounds)
                while search.rounds < rounds and not search.has_settled(self.patience):
                    search = self.advanced(search)
                    bar.update(task, completed=search.rounds, description=_told(search))
                    if path is not None and time.monotonic() - written > EVERY:
                        self._keep(path, search)
                        written = time.monotonic()
        finally:
            if path is not None:
                self._keep(path, search)
        return search

    def slopes(self, z: Tensor) -> Tensor:
        """Return ∇f at each sample, (batch, *state).

        Raises:
            UsageError: f cannot be differentiated and no gradient was given, or it does not fit.
        """
        g = slope_of(self.reward)(z) if self.slope is None else self.slope(z).detach()
        if g.shape != z.shape:
            raise UsageError(f"a gradient is of the samples' shape {tuple(z.shape)}; this one is "
                             f"{tuple(g.shape)}.")  # fmt: skip
        if not bool(g.isfinite().all()):
            raise UsageError(
                "the gradient of the reward is not finite at the newest samples; the reward cannot "
                "be followed from there."
            )
        return g.to(z)

    def _seen(self, x: Tensor, before: Search | None, memory: Mapping[str, Tensor]) -> Search:
        """Return the search with a new batch, scored."""
        with torch.no_grad():
            value = self.reward(x)
            off = x.new_full((1,), math.nan) if self.support is None else self._off(x)
        if value.shape != (len(x),):
            raise UsageError(
                f"a reward is one number a sample, ({len(x)},), not {tuple(value.shape)}."
            )
        if not bool(value.isfinite().all()):
            raise UsageError(
                f"the reward is not finite at {int((~value.isfinite()).sum())} of {len(x)} samples "
                f"of round {0 if before is None else before.rounds + 1}."
            )
        rewards, off = value[None].double(), off.double()
        if before is None:
            return Search(x, rewards, off, x, memory)
        rewards = torch.cat((before.rewards, rewards))
        is_best = rewards[-1].mean() > before.means.max()
        best = x if bool(is_best) else before.best
        return Search(x, rewards, torch.cat((before.off, off)), best, memory)

    def _off(self, x: Tensor) -> Tensor:
        assert self.support is not None
        return self.support.off(x).mean()[None]

    def _how(self) -> dict[str, Any]:
        return {"solver": self.solver, "grid": self.grid, "dtype": self.dtype}

    def _seeds(self, step: int) -> range:
        first = self.seed + step * self.n
        return range(first, first + self.n)

    def _header(self) -> dict[str, Any]:
        """Return what a kept search must agree on; the model and f are the caller's to repeat."""
        names = ("rise", "n", "since", "seed")
        return {
            "format": FORMAT,
            "guide": self.guide.describe() | {"y": None},
            "learner": None if self.learner is None else repr(self.learner),
            **{name: getattr(self, name) for name in names},
        }

    def _keep(self, path: Path, search: Search) -> None:
        told = {name: getattr(search, name) for name in ("x", "rewards", "off")}
        told["best"] = search.best.clone()  # a file has no tensor twice, and it may be x
        memory = {f"memory.{name}": value for name, value in search.memory.items()}
        write_tensors(path, {**told, **memory}, self._header())

    def _restored(self, path: Path) -> Search:
        header, tensors = read_tensors(path)
        wanted = self._header()
        if header.get("format") != FORMAT or header != wanted:
            other = [name for name in wanted if header.get(name) != wanted[name]]
            raise CheckpointError(
                f"{path} holds another search (its {', '.join(other)} differ); choose another "
                "file, or remove it."
            )
        memory = {
            k.removeprefix("memory."): v for k, v in tensors.items() if k.startswith("memory.")
        }
        device = self.model.device or "cpu"
        x, rewards, off, best = (tensors[name] for name in ("x", "rewards", "off", "best"))
        return Search(x.to(device), rewards, off, best.to(device), memory)


def slope_of(reward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the gradient of a reward as a function, (batch, *state) → (batch, *state).

    Args:
        reward: (batch, *state) → (batch,): a fitted regressor, say, where f has no gradient.

    Raises:
        UsageError: when it is called, for a reward that autograd cannot differentiate.
    """

    def slope(z: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            at = z.clone().detach().requires_grad_()
            value = reward(at)
            if not isinstance(value, Tensor) or not value.requires_grad:
                raise UsageError(
                    "the reward has no gradient: supply slope=, or let the library fit a regressor "
                    "to scored data (learn.fit_ridge, learn.fit_regressor) and give slope="
                    "slope_of(regressor)."
                )
            (made,) = torch.autograd.grad(value.sum(), at, allow_unused=True)
        return torch.zeros_like(at.detach()) if made is None else made

    return slope


def _told(search: Search) -> str:
    return f"optimising: mean reward {float(search.means[-1]):.4g}"

"""A training run in memory, and on disk.

Everything a step needs is a pure function of the recipe and the step's number: the batch, the
noise, the times and the learning rate. So the state on disk is the weights, their average, the
optimiser's moments, the mean weight of the pairs and the step number, and a resumed run is bitwise
the run that never stopped.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pathline.core.errors import CheckpointError, MissingExtra, UsageError
from pathline.core.files import write_atomically
from pathline.learn.ahead import Ahead
from pathline.learn.attention import attention_by_products
from pathline.learn.averages import Profile, exponent
from pathline.learn.couplings import (
    Coupling,
    Diagnosis,
    Independent,
    Pairs,
    Weighing,
    diagnose,
)
from pathline.learn.exercise import Exercise
from pathline.learn.journal import Journal, Row
from pathline.learn.learning_rate import learning_rate
from pathline.learn.recipe import Recipe, build_network
from pathline.learn.regularise import Regulariser
from pathline.learn.sharding import Strategy, fabric_strategy, like, loaded_moments, whole
from pathline.learn.sources import Batch, Source, classes_of, starts
from pathline.learn.steadied import check_reference, steadied

__all__ = ["Run", "read_state", "step_generator"]

PROBE = 1000
"""Samples that a coupling is fitted to and diagnosed on."""

AHEAD = 8
"""Batches that are drawn while a GPU computes."""

BETAS = 0.9, 0.99
"""What AdamW keeps of its moments where the recipe says nothing."""


def step_generator(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """Return the generator of all that is random in a step, the same whenever it is asked for."""
    digest = hashlib.sha256(f"{seed}:{step}:{rank}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@dataclass
class Run:
    """What changes from step to step.

    Args:
        recipe: what is trained.
        source: where batches come from.
        start_source: where the flow begins; None is noise.
        coupling: how the two are paired, fitted to a sample of them where it must be.
        fabric: Lightning's, which knows devices and precision.
        network: the weights.
        forward: the network as it is trained: compiled, in the recipe's precision.
        optimizer: AdamW.
        average: of each parameter over the steps.
        profiles: the recipe's further averages.
        step: how many updates were made.
        journal: what they cost.
        weighing: the mean weight of the pairs so far.
        regulariser: what is added to the loss, if anything.
        exercises: of each step; on a GPU they are drawn while it computes.
    """

    recipe: Recipe
    source: Source
    start_source: Source | None
    coupling: Coupling
    fabric: Any
    network: nn.Module
    forward: Any
    optimizer: Any
    average: list[Tensor]
    profiles: list[list[Tensor]]
    step: int = 0
    journal: Journal = field(default_factory=Journal)
    weighing: Weighing = field(default_factory=Weighing)
    regulariser: Regulariser | None = None
    exercises: Ahead[Exercise] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        is_gpu = self.fabric.device.type == "cuda"
        self.exercises = Ahead(self._draw, AHEAD if is_gpu else 0)

    @classmethod
    def start(
        cls,
        recipe: Recipe,
        source: Source | None = None,
        devices: int = 1,
        strategy: Strategy = "ddp",
    ) -> Run:
        """Return the run at step 0, with the weights of the recipe's seed.

        With several devices each is a process of its own, which runs this program from its
        beginning; every one draws the whole batch and learns from its share.

        Raises:
            UsageError: the recipe cannot work, or the batch cannot be shared; an unknown strategy.
            MissingExtra: lightning_fabric is not installed.
        """
        if devices < 1 or recipe.batch % (devices * recipe.accumulate):
            raise UsageError(
                f"a batch of {recipe.batch} cannot be shared by {devices} devices in "
                f"{recipe.accumulate} parts each."
            )
        fabric = _fabric().Fabric(
            accelerator="auto",
            devices=devices,
            precision=recipe.precision,
            **fabric_strategy(strategy, devices),
        )
        fabric.launch()
        network = build_network(recipe.network, recipe.seed)
        matching, coupling = recipe.matching(), recipe.pairing()  # refuse what cannot work
        is_plain = isinstance(coupling, Independent) and not (recipe.start or matching.bridge)
        check_reference(recipe.objective, is_plain)
        regulariser = recipe.penalty(devices * recipe.accumulate, strategy)
        source = source or recipe.source()
        start_source = recipe.start_source()
        if coupling.is_weighted:
            coupling = coupling.fitted(*_probe(recipe, source, start_source))
        network.to(fabric.device).train()
        if regulariser is not None:
            batch = source.batch(PROBE, step_generator(recipe.seed, -2))
            regulariser.check(matching, network, *fabric.to_device((batch.x0, dict(batch.cond))))
        forward = fabric.setup_module(
            _compiled(network, fabric.device) if recipe.compiled else network
        )
        groups = _parameter_groups(network, recipe.decay)  # of shards, where there are some
        is_gpu = fabric.device.type == "cuda"
        betas = recipe.betas or BETAS
        optimizer = torch.optim.AdamW(groups, lr=recipe.rate, betas=betas, fused=is_gpu)
        optimizer = fabric.setup_optimizers(optimizer)
        average, *profiles = (
            [p.detach().clone() for p in network.parameters()] for _ in (None, *recipe.averages)
        )
        made = recipe, source, start_source, coupling, fabric, network, forward, optimizer
        return cls(*made, average, profiles, regulariser=regulariser)

    @property
    def writes(self) -> bool:
        """Whether it is for this process to write files."""
        return self.fabric.global_rank == 0

    def advance(self) -> tuple[Tensor, ...] | None:
        """Make one update; return the loss, and the gradient's norm before it was clipped.

        With a regulariser also what it added, on average, to the loss. A batch in which the weights
        leave less than two pairs is not learned from: None.
        """
        recipe = self.recipe
        drawn = self.exercises.at(self.step)
        if drawn.log_weight is not None:
            before, self.weighing = self.weighing, self.weighing.after(drawn.log_weight)
            if self.weighing.skipped > before.skipped:
                self.step += 1
                return None
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, self.step)
        share = drawn.part(self.fabric.global_rank, self.fabric.world_size)
        losses: list[Tensor] = []
        for k in range(recipe.accumulate):
            is_inside, part = k + 1 < recipe.accumulate, share.part(k, recipe.accumulate)
            with self.fabric.no_backward_sync(self.forward, enabled=is_inside):
                with attention_by_products(self.fabric.device):
                    loss = self.loss(self.forward, part)
                    added = self.penalty(part).to(loss)
                self.fabric.backward((loss + added) / recipe.accumulate)
            losses.append(torch.stack((loss, added)).detach())
        means = torch.stack(losses).mean(0)
        if self.fabric.world_size > 1:
            means = self.fabric.all_reduce(means, reduce_op="mean")
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self._update_average()
        loss, added = means.unbind()
        noted = loss, whole(norm.detach()), added
        return noted if self.regulariser is not None else noted[:2]

    def pairs(self, batch: Batch, generator: torch.Generator) -> Pairs:
        """Return the data of a batch, each with where its path begins, from `generator`."""
        law = self.recipe.matching().path.kernel
        x, source_labels = starts(self.start_source, batch, generator, law)
        if not self.coupling.needs_classes:
            return self.coupling.pair(x, batch.x0, generator)
        labels = classes_of(batch.cond)
        return self.coupling.pair(
            x, batch.x0, generator, labels=labels, source_labels=source_labels
        )

    def exercise(
        self, pairs: Pairs, cond: Mapping[str, Any], generator: torch.Generator
    ) -> Exercise:
        """Return a batch with times and bridge noise from `generator`, on the CPU."""
        matching = self.recipe.matching()
        t = matching.draw_times(len(pairs.y), generator)
        xi = torch.randn(pairs.y.shape, generator=generator) if matching.bridge else None
        log_weight = pairs.log_weight if self.coupling.is_weighted else None
        return Exercise(pairs.y, pairs.x, t, xi, log_weight, cond)

    def _draw(self, step: int) -> Exercise:
        """Return the exercise of a step; it depends on nothing else."""
        generator = step_generator(self.recipe.seed, step)
        batch = self.source.batch(self.recipe.batch, generator)
        drawn = self.exercise(self.pairs(batch, generator), batch.cond, generator)
        if n := self.recipe.objective.get("reference", 0):
            others = self.source.batch(n, generator).x0
            drawn = steadied(drawn, self.recipe.matching().path, others)
        if self.regulariser is not None and self.regulariser.weight_at(step):
            at = self.regulariser.draw(self.recipe.matching(), batch.x0, batch.cond, generator)
            drawn = replace(drawn, points=at)
        return drawn.pinned() if self.fabric.device.type == "cuda" else drawn

    def loss(self, network: nn.Module, part: Exercise) -> Tensor:
        """Return the mean loss of a part of a batch."""
        x0, x1, t, xi, cond = self.fabric.to_device(
            (part.x0, part.x1, part.t, part.xi, dict(part.cond))
        )
        losses = self.recipe.matching().loss(network, x0, x1, t, cond, xi)
        if part.log_weight is not None:
            losses = losses * self.weighing.weights(part.log_weight).to(losses)
        return losses.mean()

    def penalty(self, part: Exercise) -> Tensor:
        """Return what the regulariser adds to the loss of a part of a batch, ()."""
        if self.regulariser is None or part.points is None:
            return torch.zeros((), device=self.fabric.device)
        at = part.points.to(self.fabric.device)
        return self.regulariser.added(self.recipe.matching(), self.network, at, self.step)

    @torch.no_grad()
    def held_out_loss(self, n: int = 128) -> float:
        """Return the averaged weights' loss on held-out samples; noise and times never change."""
        batch, generator = self.source.held_out(n), step_generator(0, -1)
        pairs = self.pairs(batch, generator)
        with self.fabric.autocast():
            averaged = self.network_of(self.averaged_state())
            drawn = self.exercise(pairs, batch.cond, generator)
            return self.loss(averaged, drawn).item()

    def diagnosis(self) -> Diagnosis:
        """Return what the coupling does to a sample of the source and of the data."""
        x, y, _ = _probe(self.recipe, self.source, self.start_source)
        return diagnose(self.coupling, x, y)

    def averaged_state(self) -> dict[str, Tensor]:
        """Return the averaged weights, as a state of the network; every process must ask."""
        return whole(self.network.state_dict()) | self.named(self.average)

    def named(self, average: list[Tensor]) -> dict[str, Tensor]:
        """Return an average of the parameters by their names; every process must ask."""
        names = [name for name, _ in self.network.named_parameters()]
        return dict(zip(names, whole(average), strict=True))

    def network_of(self, state: Mapping[str, Tensor]) -> nn.Module:
        """Return a network of the recipe's with the weights of a state, to be evaluated."""
        network = build_network(self.recipe.network).to(self.fabric.device)
        network.load_state_dict(state)
        return network.eval().requires_grad_(False)

    def save(self, path: Path) -> None:
        """Write the state, whole; every process has a part in it, and the first one writes.

        Raises:
            UsageError: the place cannot be written to.
        """
        state: dict[str, Any] = {
            "recipe": self.recipe.fingerprint,
            "step": self.step,
            "network": whole(self.network.state_dict()),
            "average": whole(self.average),
            "profiles": whole(self.profiles),
            "optimizer": whole(self.optimizer.state_dict()),
            "weighing": asdict(self.weighing),
            "journal": [asdict(row) for row in self.journal.rows],
        }
        if self.writes:
            write_atomically(path, lambda temporary: torch.save(state, temporary))

    def restore(self, path: Path) -> None:
        """Take up the state in a file.

        Raises:
            CheckpointError: it is damaged, or of another recipe.
        """
        state = read_state(path, self.fabric.device)
        if state.get("recipe") != self.recipe.fingerprint:
            raise CheckpointError(
                f"{path} is of another configuration; choose another folder, or remove it."
            )
        here = self.network.state_dict()
        self.network.load_state_dict({k: like(here[k], v) for k, v in state["network"].items()})
        self.optimizer.load_state_dict(loaded_moments(self.optimizer, state["optimizer"]))
        self.average, *self.profiles = (
            [like(p, kept) for p, kept in zip(self.average, each, strict=True)]
            for each in (state["average"], *state["profiles"])
        )
        self.step = state["step"]
        self.weighing = Weighing(**state.get("weighing", {}))
        self.journal = Journal([Row(**row) for row in state["journal"]])

    @torch.no_grad()
    def _update_average(self) -> None:
        keep = min(self.recipe.ema, self.step / (9 + self.step))  # follows closely at first
        _lerp(self.average, self.network.parameters(), 1 - keep)
        for profile, kept in zip(self.profile_now, self.profiles, strict=True):
            _lerp(kept, self.network.parameters(), 1 - profile.keeps())

    @property
    def profile_now(self) -> list[Profile]:
        """What the further averages are at this step."""
        return [Profile(float(self.step), exponent(width)) for width in self.recipe.averages]


def _lerp(averages: list[Tensor], weights: Iterable[Tensor], share: float) -> None:
    """Move averages by a share of the way to the weights, in place: one kernel for all on a GPU."""
    lerp: Any = torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage]
    lerp(averages, list(weights), share)


def read_state(path: Path, device: torch.device) -> Mapping[str, Any]:
    """Return a training state.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises whatever the damaged bytes lead it to
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}); remove it to begin again."
        ) from error


def _probe(
    recipe: Recipe, source: Source, start_source: Source | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return a sample of the source and of the data, and their classes, always the same ones."""
    generator = step_generator(recipe.seed, -2)
    batch = source.batch(PROBE, generator)
    labels = classes_of(batch.cond) if recipe.pairing().needs_classes else None
    law = recipe.matching().path.kernel
    return starts(start_source, batch, generator, law)[0], batch.x0, labels


def _parameter_groups(network: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Return groups for the optimiser: matrices decay; biases and scales do not."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": decay},
        {"params": others, "weight_decay": 0.0},
    ]


def _compiled(network: nn.Module, device: torch.device) -> Any:
    """Compile; on a CPU, without the patterns that would put the fused attention back."""
    options: dict[str, Any] | None = {"pattern_matcher": False} if device.type == "cpu" else None
    return torch.compile(network, options=options)


def _fabric() -> Any:
    try:
        return importlib.import_module("lightning_fabric")
    except ImportError as error:
        raise MissingExtra("lightning_fabric", "train", "to train") from error

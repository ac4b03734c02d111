"""CTRL on a line, learned: from the true classifier, from labels, and from 50 of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pathline.core import noise
from pathline.core.progress import track
from pathline.fields import Denoiser, Mixture
from pathline.learn import (
    ClassReward,
    ControlLesson,
    FitLesson,
    Labelled,
    Matching,
    Question,
    SoftControl,
    fit_classifier,
    noise_unit,
    residual_test,
    train_control,
)
from pathline.learn.independence import Residual
from pathline.learn.run import step_generator
from pathline.paths import VPLinear
from pathline.solvers import LatticeChain, grids
from pathline.steer import CFG, Shift
from pathline.systems.ctrl_oracle import MIDDLE, Network, Oracle, line, log_chance

N = 20
DRAWS = 4
LAWS = line(), line((0.2, 0.3, 0.5))
"""What is generated under c = 0 and c = 1."""
MOVED = -0.9
"""Where the classes part under c = 1, in the case in which y depends on c given x."""


class Asked:
    """Asks for y = 1, under a c that is drawn, where there is one."""

    def __init__(self, has_c: bool = False) -> None:
        self.has_c = has_c

    def draw(self, n: int, generator: torch.Generator) -> Question:
        """Return what a batch is asked for."""
        y = torch.ones(n, dtype=torch.long)
        if not self.has_c:
            return Question({}, {"y": y})
        c = torch.randint(2, (n,), generator=generator)
        return Question({"c": c}, {"y": y, "told": c})


class Small(nn.Module):
    """A classifier of a line into two: one layer of 32."""

    def __init__(self, has_c: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1 + has_c, 32), nn.SiLU(), nn.Linear(32, 2))

    def forward(self, x: Tensor, *c: Tensor) -> Tensor:
        """Return logits, (batch, 2)."""
        more = [each.to(x)[:, None].expand(len(x), 1) for each in c]
        return self.layers(torch.cat((x, *more), 1).float())


@dataclass(frozen=True)
class Learned:
    """Controls that were taught, and how far the laws of their chains are from what was aimed at.

    Chains are taught by samples and judged by sums: no sample is drawn to measure.
    """

    oracle: Oracle = field(default_factory=lambda: Oracle(steps=(N,), strengths=(1.0,)))
    updates: int = 600

    @cached_property
    def true(self) -> float:
        """What the control of the true classifier misses, on 60 bins."""
        return self._missed(self.control(lambda x, y: log_chance(x[:, 0])))

    @cached_property
    def few(self) -> float:
        """What controls of 50 labels miss, on 60 bins, the mean over some draws of these."""
        found = [
            self._missed(self.control(ClassReward(fitted(data), y="y"), self.updates // 2))
            for data in track(self.fifties, "controls of 50 labels")
        ]
        return sum(found) / len(found)

    @cached_property
    def guided(self) -> float:
        """What conditional models of the same labels miss, each at the best of five weights."""
        found = [self._guided(data) for data in track(self.fifties, "models of 50 labels")]
        return sum(found) / len(found)

    def _guided(self, data: Labelled) -> float:
        model, told = conditional(data), {"y": torch.tensor([1])}
        fields = [CFG(w)(model) if w != 1 else model for w in (1.0, 1.25, 1.5, 2.0, 3.0)]
        chains = (LatticeChain.of(self.plan, f, (self.oracle.axis,), told) for f in fields)
        return min(self.oracle.binned(c.end(self.oracle.start), self.target) for c in chains)

    @property
    def plan(self) -> Any:
        """Twenty DDIM steps, even in t."""
        return self.oracle.plan(N)

    @cached_property
    def target(self) -> Tensor:
        """The law that is aimed at."""
        return self.oracle.target(N)[0][:, 0]

    @property
    def fifties(self) -> list[Labelled]:
        """Fifty labelled data, drawn several times."""
        return [labelled(self.law, range(1000 * k, 1000 * k + 50)) for k in range(DRAWS)]

    def control(self, reward: Callable[..., Tensor], updates: int | None = None) -> Shift:
        """Return the control that a reward has taught."""
        return taught(self.oracle.law, reward, Asked(), updates or self.updates)

    @property
    def objective(self) -> float:
        """E[log p̂] − KL of the control of the true classifier, summed up."""
        reward = log_chance(self.oracle.axis)
        chain = self.oracle.chain(N, self.control(lambda x, y: log_chance(x[:, 0]))(self.law))
        bare = self.oracle.chain(N)
        start = self.oracle.start
        return float(chain.end(start) @ reward) - chain.divergence(bare, start)

    @property
    def law(self) -> Mixture:
        """What is generated."""
        return self.oracle.law

    def _missed(self, control: Shift) -> float:
        told = Shift(control.network, {"y": torch.tensor([1])}, unit=control.unit)
        end = self.oracle.chain(N, told(self.law)).end(self.oracle.start)
        return self.oracle.binned(end, self.target)


@dataclass(frozen=True)
class Independence:
    """Pairs (x, y) against triples (c, x, y), where y depends on c given x, or does not.

    Args:
        updates: of each control.
        data: labelled ones.
    """

    updates: int = 300
    data: int = 2000
    oracle: Oracle = field(default_factory=lambda: Oracle(points=601, steps=(N,), strengths=(1.0,)))

    def data_of(self, depends: bool, seed: int = 0) -> Labelled:
        """Return triples."""
        seeds = range(seed, seed + self.data)
        c = (noise.uniform(seeds, (1,), stream="choice", dtype=torch.float64)[:, 0] < 0.5).long()
        x = torch.where(c[:, None] == 1, LAWS[1].draw(seeds), LAWS[0].draw(seeds))
        chance = torch.where(c == 1, *(log_chance(x[:, 0], m).exp()
                                       for m in (middle(1, depends), MIDDLE)))  # fmt: skip
        return Labelled(x.float(), coins(x, chance, seed), 2, c)

    def test(self, depends: bool) -> Residual:
        """Return the test of what the classifier of pairs leaves over, on new data."""
        held = self.data_of(depends, seed=10**6)
        assert held.c is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return residual_test(self.classifier(depends, False)(held.x), held.y, held.c)

    @cache  # noqa: B019 - lives as long as the run
    def classifier(self, depends: bool, by_triples: bool) -> nn.Module:
        """Return the classifier of pairs, or of triples."""
        return fitted(self.data_of(depends), by_triples)

    @cache  # noqa: B019 - lives as long as the run
    def missed(self, depends: bool, by_triples: bool) -> float:
        """Return what a control of pairs or of triples misses, the mean over c."""
        reward = ClassReward(
            self.classifier(depends, by_triples), y="y", c="c" if by_triples else None
        )
        model = by_class()
        control = taught(model, reward, Asked(has_c=True), self.updates)
        found = []
        for c in (0, 1):
            axis, told = (self.oracle.axis,), {"c": torch.tensor([c])}
            ends = {"y": torch.tensor([1]), "told": torch.tensor([c])}
            field = Shift(control.network, ends, unit=control.unit)(model)
            chain = LatticeChain.of(self.oracle.plan(N), field, axis, told)
            bare = LatticeChain.of(self.oracle.plan(N), LAWS[c], axis)
            aim = bare.end(self.oracle.start) * log_chance(axis[0], middle(c, depends)).exp()
            found.append(self.oracle.binned(chain.end(self.oracle.start), aim / aim.sum()))
        return sum(found) / 2

    def gap(self, depends: bool) -> float:
        """Return what pairs miss, less what triples do."""
        return self.missed(depends, False) - self.missed(depends, True)


def middle(c: int, depends: bool) -> float:
    """Return where the classes part."""
    return MOVED if depends and c == 1 else MIDDLE


def labelled(law: Mixture, seeds: range) -> Labelled:
    """Return labelled data of a law."""
    x = law.draw(seeds)
    return Labelled(x.float(), coins(x, log_chance(x[:, 0]).exp(), seeds[0]), 2)


def coins(x: Tensor, chance: Tensor, seed: int = 0) -> Tensor:
    """Return y = 1 with these chances, (n,) int64."""
    seeds = range(seed, seed + len(x))
    u = noise.uniform(seeds, (1,), stream="choice", index=1, dtype=torch.float64)[:, 0]
    return (u < chance).long()


def fitted(data: Labelled, by_triples: bool = False) -> nn.Module:
    """Return the classifier of labelled data on a line."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Small(by_triples)
    lesson = FitLesson(epochs=60 if len(data) > 100 else 150)
    return fit_classifier(network, data, lesson, is_conditional=by_triples)


def by_class() -> Denoiser:
    """Return the exact model of x given c."""

    def network(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        said = [law.evaluate(x, t.double(), {}) for law in LAWS]
        return torch.where(c[:, None] == 1, said[1], said[0])

    return Denoiser(network, VPLinear(), "x0", shape=(1,))


def taught(model: Any, reward: Callable[..., Tensor], asked: Asked, updates: int) -> Shift:
    """Return the control that a reward teaches in 20 steps, in units of their noise."""
    objective = SoftControl(reward, grid=grids.uniform(N), adjoint="direct")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network(told=1 + asked.has_c)
    control = Shift(network, unit=noise_unit(objective.plan(model)))
    how = ControlLesson(updates, batch=512, rate=5e-3, last_rate=1e-3, decay=0.0, part=50)
    train_control(objective, model, control, asked, how)
    network.requires_grad_(False)
    return control


def conditional(data: Labelled, updates: int = 3000) -> Denoiser:
    """Return a model that is told the class, trained on labelled data alone; a sixth untold."""
    matching = Matching(VPLinear(), "eps")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network(told=1)
        nn.init.kaiming_uniform_(network.last.weight)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for update in range(updates):
        generator = step_generator(0, update)
        rows = torch.randint(len(data), (256,), generator=generator)
        dropped = torch.rand(256, generator=generator) < 1 / 6
        told: Mapping[str, Any] = {"y": data.y[rows].masked_fill(dropped, -1)}
        eps = torch.randn(256, 1, generator=generator)
        loss = matching.loss(network, data.x[rows], eps, matching.draw_times(256, generator), told)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    network.requires_grad_(False)
    return Denoiser(network, VPLinear(), "eps", null={"y": torch.tensor([-1])}, shape=(1,))

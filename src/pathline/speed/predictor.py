"""A ranker of schedules: which of several is likely to be better, learned from those scored.

Per step the time (sinusoidal, 128 → 64 → 64), embeddings of order, prediction, corrector and point
counts, and the numbers κ and h; an LSTM over the steps; the mean of its normalised outputs; an MLP
to one number. Only ranks are learned, from pairs with scores more than a margin apart:

    L = mean max(0, 1 − sgn(s_a − s_b) (p_a − p_b))

A filter, not an oracle: the system usf-s3 measures Kendall's τ on unseen schedules after 600 scored
ones. Whether a search gains by it is not measured, so `Search` filters every second child only.

Paper: Liu et al. 2023 (arXiv:2306.08860, OMS-DPM, whose predictor this is; arXiv:2312.07243).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pathline.core.errors import UsageError
from pathline.solvers.schedule import SolverSchedule
from pathline.solvers.unified import MOST_ORDER

TIME_WIDTH, HIDDEN, EMBEDDING, MLP = 128, 128, 16, 200
_PREDICTIONS = ("x0", "eps")
_CORRECTORS = ("none", "pseudo", "implicit")
_MOST_POINTS = 8


class Encoded(NamedTuple):
    """Schedules as tensors, padded to the longest: (n, steps, …)."""

    times: Tensor
    names: Tensor
    numbers: Tensor
    lengths: Tensor


def encoded(schedules: Sequence[SolverSchedule]) -> Encoded:
    """Return what the network sees of schedules."""
    longest = max(len(s.choices) for s in schedules)
    times = torch.zeros(len(schedules), longest)
    names = torch.zeros(len(schedules), longest, 5, dtype=torch.long)
    numbers = torch.zeros(len(schedules), longest, 2)
    for n, schedule in enumerate(schedules):
        at = torch.tensor(schedule.times, dtype=torch.float64)
        level = schedule.path.log_snr(at).clamp(min=schedule.path.log_snr_range()[0])
        for i, choice in enumerate(schedule.choices):
            known = i == 0 and schedule.guess is not None
            times[n, i] = schedule.times[i + 1]
            names[n, i] = torch.tensor([
                choice.order,
                _PREDICTIONS.index(choice.prediction),
                _CORRECTORS.index(choice.corrector),
                min(choice.counts[0], _MOST_POINTS) if choice.counts else 0,
                int(known),
            ])  # fmt: skip
            kappa = choice.scale if not isinstance(choice.scale, str) else 0.5
            numbers[n, i] = torch.tensor([kappa, float(level[i + 1] - level[i])])
    return Encoded(times, names, numbers, torch.tensor([len(s.choices) for s in schedules]))


class RankNetwork(nn.Module):
    """Schedules → one number each, (n,)."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(TIME_WIDTH, 64), nn.SiLU(), nn.Linear(64, 64))
        sizes = (MOST_ORDER + 1, len(_PREDICTIONS), len(_CORRECTORS), _MOST_POINTS + 1, 2)
        self.names = nn.ModuleList(nn.Embedding(size, EMBEDDING) for size in sizes)
        width = 64 + EMBEDDING * len(sizes) + 2
        self.steps = nn.LSTM(width, HIDDEN, batch_first=True)
        layers: list[nn.Module] = []
        for inner in (HIDDEN, MLP, MLP):
            layers += [nn.Linear(inner, MLP), nn.ReLU()]
        self.head = nn.Sequential(*layers, nn.Linear(MLP, 1))

    def forward(self, seen: Encoded) -> Tensor:
        half = TIME_WIDTH // 2
        rates = torch.exp(-math.log(1e4) * torch.arange(half) / half)
        angle = 1000 * seen.times[..., None] * rates
        steps = [self.time(torch.cat((angle.sin(), angle.cos()), -1))]
        steps += [table(seen.names[..., i]) for i, table in enumerate(self.names)]
        out, _ = self.steps(torch.cat((*steps, seen.numbers), -1))
        out = nn.functional.normalize(out, dim=-1)
        valid = torch.arange(out.shape[1]) < seen.lengths[:, None]
        mean = (out * valid[..., None]).sum(1) / seen.lengths[:, None]
        return self.head(nn.functional.normalize(mean, dim=-1)).squeeze(-1)


@dataclass(frozen=True, eq=False)
class Predictor:
    """A `search.Ranker` of schedules.

    Args:
        epochs: passes over the scored schedules; the paper's code has 1000.
        batch: schedules a step of training.
        rate: of Adam.
        margin: pairs whose scores differ by less say nothing; as a share of the scores' spread.
        seed: of weights and batches.
        network: what has been learned; None before.
    """

    epochs: int = 100
    batch: int = 512
    rate: float = 1e-3
    margin: float = 0.25
    seed: int = 0
    network: RankNetwork | None = field(default=None, repr=False)

    def fitted(self, candidates: Sequence[SolverSchedule], scores: Sequence[float]) -> Predictor:
        """Return a predictor that has learned from scored schedules, anew.

        Raises:
            UsageError: fewer than two, or a score that is not finite.

        Cost: seconds to a minute on one core, for hundreds of schedules.
        """
        if len(candidates) < 2 or len(candidates) != len(scores):
            raise UsageError(
                f"a predictor learns from two scored schedules or more, and was given "
                f"{len(candidates)} with {len(scores)} scores."
            )
        if not all(map(math.isfinite, scores)):
            raise UsageError("a predictor learns from finite scores; leave out what failed.")
        generator = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(self.seed)  # layers draw their weights from torch's own stream
            network = RankNetwork()
            seen, worth = encoded(candidates), _ranks(scores)
            optimizer = torch.optim.Adam(network.parameters(), self.rate)
            for _ in range(self.epochs):
                order = torch.randperm(len(candidates), generator=generator)
                for chosen in order.split(self.batch):
                    pairs = self._pairs(worth[chosen], generator)
                    loss = _loss(network(Encoded(*(t[chosen] for t in seen))), *pairs)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
        return replace(self, network=network.eval())

    def _pairs(self, worth: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return two numbers of schedules and the sign of their difference, for clear pairs."""
        n = len(worth)
        a, b = torch.randint(n, (2, 2 * n), generator=generator)
        gap = worth[a] - worth[b]
        clear = gap.abs() > self.margin
        return a[clear], b[clear], gap[clear].sign()

    def __call__(self, candidates: Sequence[SolverSchedule]) -> list[float]:
        """Return a number for each schedule; lower is thought better."""
        if self.network is None:
            raise UsageError("the predictor has not learned anything yet; use fitted(...) first.")
        with torch.no_grad():
            return self.network(encoded(candidates)).tolist()


def _loss(guess: Tensor, a: Tensor, b: Tensor, sign: Tensor) -> Tensor:
    """Return the hinge loss of ranks; zero where no pair is clear."""
    return (1 - sign * (guess[a] - guess[b])).clamp(min=0).sum() / max(len(sign), 1)


def _ranks(scores: Sequence[float]) -> Tensor:
    """Return log scores in units of their standard deviation: errors span decades."""
    logs = torch.tensor(scores, dtype=torch.float64).clamp(min=1e-300).log()
    return ((logs - logs.mean()) / logs.std().clamp(min=1e-12)).float()


def kendall(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Kendall's τ: concordant pairs less discordant ones, over all pairs.

    >>> kendall([1, 2, 3], [1, 2, 3]), kendall([1, 2, 3], [3, 2, 1])
    (1.0, -1.0)
    """
    x, y = (torch.tensor(each, dtype=torch.float64) for each in (a, b))
    agree = (x[:, None] - x).sign() * (y[:, None] - y).sign()
    return float(agree.sum() / (len(x) * (len(x) - 1)))

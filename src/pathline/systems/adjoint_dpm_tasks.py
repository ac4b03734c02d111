"""What AdjointDPM is for, on the shipped models: an audit, an inversion and a fine-tuning."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pathline.core import noise
from pathline.fields import Denoiser
from pathline.learn import load_model
from pathline.learn.classify import load_classifier
from pathline.learn.lora import adapted
from pathline.solvers import grids, solve
from pathline.solvers.solve import start
from pathline.steer import CFG, Adam, Steepest, descend

WITHIN = 0.1
"""How far a coordinate of the noise may move."""

GRID = grids.log_snr(8)


class Audit(NamedTuple):
    """Pictures whose class a classifier loses.

    Args:
        correct: how many it knew at first.
        attacked: how many of these it loses when the noise is moved against it.
        random: how many when the noise is moved as far at random, on average.
    """

    correct: int
    attacked: int
    random: float


@cache
def audit(n: int = 20, batch: int = 10, iterations: int = 10, draws: int = 3) -> Audit:
    """Move the noise of pictures of `fashion` until its classifier says another class."""
    model, judge = load_model("fashion"), load_classifier()
    found = [_audited(model, judge, range(i, i + batch), iterations, draws)
             for i in range(0, n, batch)]  # fmt: skip
    columns = zip(*found, strict=True)
    correct, attacked, random = (sum(column) for column in columns)
    return Audit(int(correct), int(attacked), float(random))


def _audited(
    model: Denoiser, judge: torch.nn.Module, seeds: range, iterations: int, draws: int
) -> Audit:
    labels = torch.tensor([seed % 10 for seed in seeds])
    x = _noise(model, seeds)

    def said(noise: Tensor) -> Tensor:
        with torch.no_grad():
            made = solve(model, noise, grid=GRID, label=labels)
        return judge(made.x).argmax(1)

    knew = said(x) == labels
    found = descend(
        model, x, lambda x: -F.cross_entropy(judge(x), labels, reduction="sum"),
        iterations=iterations, update=Steepest(0.05), within=WITHIN, grid=GRID, label=labels,
    )  # fmt: skip
    size = (found.noise - x).flatten(1).norm(dim=1)
    lost = [knew & (said(x + _shaken(x, size, seeds, draw)) != labels) for draw in range(draws)]
    attacked = int((knew & (said(found.noise) != labels)).sum())
    return Audit(int(knew.sum()), attacked, float(torch.stack(lost).sum()) / draws)


def _shaken(x: Tensor, size: Tensor, seeds: range, draw: int) -> Tensor:
    """Return a random change of the same length as the other, and within the same bounds."""
    z = noise.normal(seeds, x.shape[1:], stream="probe", index=draw, dtype=x.dtype)
    for _ in range(20):  # what is cut off at the bounds is made up for by the rest
        z = z * (size / z.flatten(1).norm(dim=1)).reshape(-1, 1, 1, 1)
        z = z.clamp(-WITHIN, WITHIN)
    return z


@cache
def inversion(iterations: int = 50) -> float:
    """Return by what the loss falls while a text embedding is fitted to one picture of `emoji`."""
    model, guide = load_model("emoji"), CFG(2.0)
    x = _noise(model, range(1))
    with torch.no_grad():
        picture = solve(model, x, grid=GRID, guide=guide, text="a red apple").x
    found = descend(
        model, x, lambda x: (x - picture).square().mean(), wrt="condition",
        iterations=iterations, update=Adam(0.1), grid=GRID, guide=guide, text="a picture",
    )  # fmt: skip
    return found.losses[0] / min(found.losses)


@cache
def tuning(iterations: int = 20, batch: int = 4) -> tuple[float, float]:
    """Return by what a loss of colour falls under LoRA on `emoji`, and what is left of variety."""
    model = adapted(load_model("emoji"), rank=4)
    x, colour = _noise(model, range(batch)), torch.tensor([0.6, -0.2, -0.2])[:, None, None]
    texts = ["a red apple", "a dog", "a house", "a smiling face"][:batch]

    def loss(x: Tensor) -> Tensor:
        return (x.mean((2, 3), keepdim=True) - colour).square().mean()

    with torch.no_grad():
        before = solve(model, x, grid=GRID, text=texts).x
    found = descend(model, x, loss, wrt="weights", iterations=iterations, update=Adam(2e-3),
                     grid=GRID, text=texts)  # fmt: skip
    return found.losses[0] / found.losses[-1], _spread(found.x) / _spread(before)


def _spread(x: Tensor) -> float:
    """Return the mean distance of two samples."""
    return float(torch.pdist(x.flatten(1)).mean())


def _noise(model: Denoiser, seeds: range) -> Tensor:
    assert model.shape is not None
    return start(model.path, GRID.times(model.path)[0], seeds, model.shape)

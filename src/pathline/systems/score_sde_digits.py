"""Score SDE on trained networks: one small U-Net of digits for each path."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from pathline.core.progress import track
from pathline.data import digits
from pathline.data.fetch import cache_folder
from pathline.fields import Denoiser
from pathline.learn import Recipe, load_model, train
from pathline.learn.likelihood import bits_per_dim
from pathline.solvers import grids, sample
from pathline.solvers.corrector import PredictorCorrector
from pathline.speed.metrics import frechet

STEPS = 50
SAMPLES, BATCH = 2000, 250


def recipe(path: str) -> Recipe:
    """Return how a path is trained: the same network, times and batches for each."""
    return Recipe(
        name=f"digits-{path}",
        steps=6000,
        batch=64,
        rate=1e-3,
        ema=0.999,
        data={"source": "digits"},
        network={"class": "UNet", "width": 24, "multipliers": [1, 2], "blocks": 1,
                 "time_scale": 1000.0},
        objective={"path": path, "view": "eps"},
    )  # fmt: skip


@cache
def model(path: str) -> Denoiser:
    """Return the model of a path, trained on first use; a run that was cut short goes on."""
    how = recipe(path)
    return load_model(train(how, cache_folder() / "score-sde" / how.fingerprint[:16]))


@cache
def bits(path: str) -> float:
    """Return the bits per dimension of the held-out digits."""
    pixels = torch.from_numpy(digits.load().test_images)[:, None]
    trained = model(path)
    with torch.no_grad():
        found = bits_per_dim(trained, pixels, levels=digits.LEVELS, batch=99)
    return found.mean()[0]


@cache
def distance(path: str, corrections: int) -> float:
    """Return the Fréchet distance, of pixels, between all digits and samples of 50 steps."""
    data = digits.load()
    real = torch.cat([torch.from_numpy(a) for a in (data.train_images, data.test_images)])
    real = (real.flatten(1).double() + 0.5) * (2 / digits.LEVELS) - 1
    how, grid = PredictorCorrector("reverse_diffusion", n=corrections), grids.uniform(STEPS)
    trained = model(path)
    with torch.no_grad():
        parts: list[Tensor] = [
            sample(trained, seeds=range(i, i + BATCH), solver=how, grid=grid).x
            for i in track(range(0, SAMPLES, BATCH), f"sampling, {path}", SAMPLES // BATCH)
        ]
    return frechet(torch.cat(parts).flatten(1), real)

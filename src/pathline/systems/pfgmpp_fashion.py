"""PFGM++ on trained networks: Fashion-MNIST at half its size, one small U-Net for each D."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from pathline.core.progress import track
from pathline.data import fashion
from pathline.data.fetch import cache_folder
from pathline.fields import Denoiser
from pathline.learn import Recipe, Watch, load_classifier, load_model, train
from pathline.learn.quality.distances import frechet
from pathline.learn.quality.features import embed
from pathline.learn.quality.reference import to_uint8
from pathline.learn.sources import Points
from pathline.nets.classifier import Features
from pathline.solvers import Grid, NoiseInjection, Solver, sample

SIGMA_DATA = 0.5
BATCH = 250


def recipe(dof: float, steps: int = 3000) -> Recipe:
    """Return EDM's training, with noise of D degrees of freedom."""
    return Recipe(
        name=f"pfgmpp-{dof:g}",
        steps=steps,
        batch=32,
        data={},
        network={
            "class": "UNet",
            "width": 16,
            "multipliers": [1, 2],
            "blocks": 1,
            "time_scale": 200.0,
            "sigma_data": SIGMA_DATA,
        },
        objective={
            "path": "edm" if math.isinf(dof) else "pfgmpp",
            "path_args": {} if math.isinf(dof) else {"dof": dof},
            "view": "x0",
            "label": "sigma",
            "sigma_mean": -1.2,
            "sigma_std": 1.2,
            "error": SIGMA_DATA,
        },
        watch=Watch(every=15.0),
    )


def pictures(split: str) -> Tensor:
    """Return Fashion-MNIST at 14 × 14, (n, 1, 14, 14) in [−1, 1]."""
    data = fashion.load()
    pixels = data.train_images if split == "train" else data.test_images
    return avg_pool2d(torch.from_numpy(pixels)[:, None].float() / 127.5 - 1, 2)


def model(dof: float) -> Denoiser:
    """Return the model of this D, trained on first use; a run that was cut short goes on."""
    source, how = Points(pictures("train"), pictures("test")), recipe(dof)
    folder = cache_folder() / "pfgmpp" / how.fingerprint[:16]
    return load_model(train(how, folder, source=source))


def distances(
    solver: Solver, grid: Grid, *, dofs: Sequence[float], amounts: Sequence[float], n: int = 2000
) -> dict[tuple[float, float], float]:
    """Return Fréchet distances to the test images, by D and by the noise that is injected.

    Features are those of the shipped classifier, of pictures drawn at twice their size.
    """
    judge = Features(load_classifier())

    def seen(x: Tensor) -> Tensor:
        large = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return embed(judge, to_uint8(large))

    real, found = seen(pictures("test")), {}
    for dof in dofs:
        network = model(dof)
        for amount in amounts:
            pushed = NoiseInjection(solver, amount)
            with torch.no_grad():
                parts = [
                    sample(network, seeds=range(i, i + BATCH), solver=pushed, grid=grid).x
                    for i in track(range(0, n, BATCH), f"sampling, D = {dof:g}", n // BATCH)
                ]
            found[dof, amount] = frechet(seen(torch.cat(parts)), real)
    return found

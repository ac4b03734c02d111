"""Denoising MCMC on a trained network: class-conditional Fashion-MNIST, one class a chain."""

from __future__ import annotations

import torch
from torch import Tensor

from pathline.data import fashion
from pathline.data.fetch import cache_folder
from pathline.fields import Denoiser, Unscaled
from pathline.learn import load_classifier, load_model, model_names, train
from pathline.learn.noise_classifier import load_noise_classifier
from pathline.learn.quality.distances import frechet
from pathline.learn.quality.features import embed
from pathline.learn.quality.reference import to_uint8
from pathline.nets.classifier import Features
from pathline.solvers import Heun, grids, sample
from pathline.speed import DMCMC

ETAS = (0.02, 0.05, 0.1, 0.3)
"""Steps that are tried, in units of the data's mean square."""


@torch.no_grad()
def frechet_ratio(model: Denoiser | None = None, n: int = 5000, trial: int = 1000) -> float:
    """Return the Fréchet distance of DLG at nine evaluations over that of KAR1 at ten.

    The step is the best of `ETAS` on `trial` samples. Features are those of the shipped classifier,
    the reference the test images.

    Args:
        model: class-conditional; None is the shipped one, or trains it (a quarter of an hour).
        n: samples of each.
        trial: samples for the choice of the step.
    """
    model = model or _model()
    network = Features(load_classifier())
    real = embed(network, torch.from_numpy(fashion.load().test_images)[:, None])

    def distance(x: Tensor) -> float:
        return frechet(embed(network, to_uint8(x)), real)

    def chains(eta: float, n: int) -> Tensor:
        return _chains(model, eta, n)

    best = min(ETAS, key=lambda eta: distance(chains(eta, trial)))
    return distance(chains(best, n)) / distance(_plain(model, n))


def _model() -> Denoiser:
    if "fashion" in model_names():
        return load_model("fashion")
    return load_model(train("fashion", cache_folder() / "dmcmc-fashion"))


def _labels(n: int) -> list[str]:
    return [fashion.CLASSES[i % len(fashion.CLASSES)] for i in range(n)]


def _chains(model: Denoiser, eta: float, n: int) -> Tensor:
    levels = load_noise_classifier()
    sampler = DMCMC(model, levels, eta * levels.rms**2, n_chains=250)
    return sampler.sample(n, label=_labels(250)).x


def _plain(model: Denoiser, n: int, batch: int = 250) -> Tensor:
    """Return samples of EDM's Heun from pure noise: nine evaluations and a closing one."""
    parts: list[Tensor] = []
    grid = grids.karras(5, last="denoise")
    for first in range(0, n, batch):
        labels, seeds = _labels(batch), range(first, first + batch)
        x = sample(model, seeds=seeds, solver=Heun(view="eps"), grid=grid, label=labels).x
        t, prepared = torch.tensor(model.path.t_min), model.condition({"label": labels}, batch)
        parts.append(Unscaled(model).evaluate(x, t, prepared))
    return torch.cat(parts)[:n]

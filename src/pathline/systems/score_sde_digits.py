"""Score SDE on trained networks: one small U-Net of digits for each path, and classifiers.

Two classifiers of one kind: one that knows every level of noise guides, and one that knows nearly
none, trained from another seed, judges: its features are what the Fréchet distance is taken of.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from pathline.core.progress import track
from pathline.data import digits
from pathline.data.fetch import cache_folder
from pathline.fields import Denoiser
from pathline.fields.trace import Hutchinson
from pathline.learn import Recipe, Watch, load_model, train
from pathline.learn.likelihood import bits_per_dim
from pathline.learn.noisy_classes import (
    ClassLesson,
    NoisyClasses,
    labelled,
    load_noisy_classes,
    train_noisy_classes,
)
from pathline.solvers import grids, sample
from pathline.solvers.corrector import PredictorCorrector
from pathline.speed.metrics import frechet
from pathline.steer import Classifier

STEPS = 50
SNR = 0.08
"""r of the corrections; 0.16 does as little good here."""
SAMPLES, BATCH = 2000, 250
LESSONS = {"guide": ClassLesson(), "judge": ClassLesson(span=(3.0, 5.0), seed=1)}


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
        watch=Watch(every=15.0),
    )  # fmt: skip


@cache
def model(path: str) -> Denoiser:
    """Return the model of a path, trained on first use; a run that was cut short goes on."""
    how = recipe(path)
    return load_model(train(how, cache_folder() / "score-sde" / how.fingerprint[:16]))


@cache
def classifier(what: str) -> NoisyClasses:
    """Return the classifier that guides, or the one that judges; trained on first use."""
    folder = cache_folder() / "score-sde" / f"classes-{what}"
    return load_noisy_classes(train_noisy_classes(folder, "digits", LESSONS[what]))


@cache
def bits(path: str) -> float:
    """Return the bits per dimension of the held-out digits.

    A few probes are enough: what they leave open on a picture averages out over three hundred.
    """
    pixels = torch.from_numpy(digits.load().test_images)[:, None]
    trained = model(path)
    with torch.no_grad():
        found = bits_per_dim(trained, pixels, levels=digits.LEVELS, batch=99, trace=Hutchinson(4))
    return found.mean()[0]


@cache
def distance(path: str, corrections: int) -> float:
    """Return the Fréchet distance, of the judge's features, between digits and samples."""
    known, judge = labelled("digits").images, classifier("judge")
    made = samples(path, PredictorCorrector("reverse_diffusion", snr=SNR, n=corrections))
    with torch.no_grad():
        real = judge.features(torch.cat((known.points, known.test_points)))
        return frechet(judge.features(made), real)


def samples(path: str, how: PredictorCorrector) -> Tensor:
    """Return samples of a model after `STEPS` steps."""
    trained, parts = model(path), range(0, SAMPLES, BATCH)
    with torch.no_grad():
        made = [
            sample(trained, seeds=range(i, i + BATCH), solver=how, grid=grids.uniform(STEPS)).x
            for i in track(parts, f"sampling, {path}", len(parts))
        ]
    return torch.cat(made)


@cache
def share_of_class(path: str, weight: float, n: int = 500) -> float:
    """Return how many samples are of the class that was asked for, as the judge sees them.

    The model was never told of classes; the other classifier guides with this weight.
    """
    wanted = torch.arange(n) % len(digits.CLASSES)
    trained = model(path)
    guide = Classifier(classifier("guide").on(trained.path), wanted.tolist(), weight)
    with torch.no_grad():
        made = sample(trained, n, solver="dpmpp_2m", steps=25, guide=guide).x
        said = classifier("judge").classify(made)
    return float((said == wanted).double().mean())

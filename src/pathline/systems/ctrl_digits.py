"""CTRL on digits: a model of digits by class is taught to draw them thin, middling or bold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from pathline.data import digits
from pathline.data.fetch import cache_folder
from pathline.fields import Denoiser
from pathline.learn import (
    ClassPrior,
    ClassReward,
    ControlLesson,
    FitLesson,
    Labelled,
    Recipe,
    SoftControl,
    Surgery,
    adapt,
    fit_classifier,
    load_model,
    train,
    train_control,
)
from pathline.learn.calibrate import Calibrated
from pathline.learn.sources import LabelledImages
from pathline.nets.classifier import Classifier
from pathline.solvers import DDIM, grids, sample
from pathline.steer import Control

THIRDS = 3
NAME = "mass"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def recipe(steps: int) -> Recipe:
    """Return how the model of digits by class is trained."""
    return Recipe(
        name="digits-by-class",
        steps=steps,
        batch=64,
        rate=1e-3,
        ema=0.999,
        data={"source": "digit_classes"},
        network={"class": "UNet", "width": 16, "multipliers": [1, 2], "blocks": 1, "classes": 10,
                 "time_scale": 1000.0},
        objective={"path": "vp_linear", "view": "eps"},
    )  # fmt: skip


def by_class() -> LabelledImages:
    """Return the digits by class, counts of 0 to 16 stretched to 0 to 255."""
    data = digits.load()
    train, test = (
        (torch.from_numpy(images)[:, None].float() * (255 / (digits.LEVELS - 1))).round().byte()
        for images in (data.train_images, data.test_images)
    )
    labels = [torch.from_numpy(a).long() for a in (data.train_labels, data.test_labels)]
    return LabelledImages(train, labels[0], test, labels[1], digits.CLASSES)


@dataclass(frozen=True)
class Digits:
    """The control of ink, and what becomes of the digits.

    Args:
        steps: of the pretrained model's training.
        updates: of the control.
        strength: γ; 1 is Bayes' rule, more is learned faster.
        samples: that are judged.
    """

    steps: int = 4000
    updates: int = 200
    strength: float = 4.0
    samples: int = 600

    @cached_property
    def data(self) -> Labelled:
        """All training digits, with their third of ink and their class."""
        loaded = digits.load()
        x = scaled(torch.from_numpy(loaded.train_images))
        classes = torch.from_numpy(loaded.train_labels).long()
        return Labelled(x, torch.bucketize(ink(x), self.edges(x)), THIRDS, classes)

    @cached_property
    def model(self) -> Denoiser:
        """The pretrained model; a training that was cut short goes on."""
        how = recipe(self.steps)
        folder = cache_folder() / "ctrl" / how.fingerprint[:16]
        model = load_model(train(how, folder, source=by_class()))
        return model.to(DEVICE)

    @cached_property
    def classifier(self) -> Calibrated:
        """Of ink, from pairs: y is a function of x."""
        return _fitted(self.data, THIRDS).to(DEVICE)

    @cached_property
    def reader(self) -> Calibrated:
        """Of digits; the control never sees it."""
        assert self.data.c is not None
        return _fitted(Labelled(self.data.x, self.data.c, 10), 10, seed=1)

    @cached_property
    def objective(self) -> SoftControl:
        """What is to be reached in 20 steps."""
        reward = ClassReward(self.classifier, y=NAME)
        return SoftControl(reward, self.strength, grid=grids.log_snr(20), truncate="random",
                           adjoint="direct")  # fmt: skip

    @cached_property
    def control(self) -> Control:
        """The control, taught on first use; one that was cut short goes on."""
        control = Control(adapt(self.model, Surgery(THIRDS, NAME)))
        asked = ClassPrior(THIRDS, NAME, lambda n, g: {
            "label": torch.randint(10, (n,), generator=g)})  # fmt: skip
        lesson = ControlLesson(self.updates, batch=128, rate=3e-3, embedding_rate=3e-2, part=10)
        folder = cache_folder() / "ctrl" / f"control-{self.steps}-{self.updates}-{self.strength:g}"
        train_control(self.objective, self.model, control, asked, lesson, folder)
        return control

    def edges(self, x: Tensor) -> Tensor:
        """Return the ink that parts the thirds of these images."""
        return ink(x).quantile(torch.tensor([1 / 3, 2 / 3]))

    def judged(self, weight: float) -> tuple[float, float]:
        """Return how often the ink is what was asked for, and the digit, of controlled samples.

        The ink is weighed, not classified; the digit is read by a classifier of its own.
        """
        number = torch.arange(self.samples)
        asked, label = number % THIRDS, number // THIRDS % 10
        control = replace(self.control, told={NAME: asked}, weight=weight)
        reader = self.reader  # fitted before gradients are off
        with torch.no_grad():
            x = sample(self.model, seeds=range(self.samples), solver=DDIM(eta=1.0),
                       grid=self.objective.grid, guide=control, label=label).x.cpu()  # fmt: skip
            third = torch.bucketize(ink(x), self.edges(self.data.x))
            read = reader(x).argmax(1)
        return float((third == asked).double().mean()), float((read == label).double().mean())

    @cached_property
    def controlled(self) -> tuple[float, float]:
        """Right ink and right digits, of the control as it was taught."""
        return self.judged(1.0)

    @cached_property
    def pretrained(self) -> tuple[float, float]:
        """The same of the pretrained model, which is not told of ink."""
        return self.judged(0.0)


def ink(x: Tensor) -> Tensor:
    """Return the mean of the pixels, (n,)."""
    return x.flatten(1).mean(1)


def scaled(pixels: Tensor) -> Tensor:
    """Return counts from 0 to 16 as images (n, 1, 8, 8) in [−1, 1]."""
    return pixels[:, None].float() / 8 - 1


def _fitted(data: Labelled, classes: int, seed: int = 0) -> Calibrated:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Classifier(1, classes, (16, 32))
    return fit_classifier(network, data, FitLesson(epochs=20, rate=3e-3, seed=seed))

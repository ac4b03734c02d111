"""Inverse problems: digits, whose posterior is exact, and held-out emoji, whose truth is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from pathline.core import noise
from pathline.fields import Field, Spherical, retimed
from pathline.paths import EDM, GaussianPath
from pathline.speed.metrics import sliced_wasserstein
from pathline.steer import operators, posterior
from pathline.steer.operators import Operator
from pathline.systems.steered_digits import CLASSES, centre, law, pixels

STD = 0.2
"""Of the noise of measurements of digits, whose pixels run from −1 to 1."""

DRAWS = 64
"""Samples of each digit's posterior."""

EXACT = 1000
"""Exact draws of it that they are held against."""

Judge = Callable[[Tensor], Mapping[str, float]]


@dataclass(frozen=True, eq=False)
class Problem:
    """A model, what was measured, and who judges samples of the posterior.

    Args:
        name: what it is called.
        about: one sentence.
        field: the prior.
        operator: A.
        y: (pictures, *measured), with noise.
        std: of the noise.
        variance: of the data, which ΠGDM wants to know.
        draws: samples of each picture.
        judge: samples (pictures · draws, *shape), picture by picture → measures.
        dtype: of the state.
        floor: the distance of as many exact draws.
    """

    name: str
    about: str
    field: Field
    operator: Operator
    y: Tensor
    std: float
    variance: float
    draws: int
    judge: Judge
    dtype: torch.dtype = torch.float64
    floor: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a state."""
        assert self.field.shape is not None
        return self.field.shape

    @property
    def path(self) -> GaussianPath:
        """The prior's."""
        assert self.field.path is not None
        return self.field.path

    @property
    def each(self) -> Tensor:
        """The measurements of each sample, (pictures · draws, *measured)."""
        return self.y.repeat_interleave(self.draws, 0)

    @cached_property
    def plain(self) -> Field:
        """The prior on a path that only adds noise, for those who scale states in other ways."""
        return retimed(self.field, EDM(sigma_max=2000.0), beyond="trim")

    def denoised(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return x̂_0 of x = α x_0 + σ ε, differentiable."""
        path = self.plain.path
        assert path is not None
        ratio = (sigma / alpha).double().reshape(-1)[0]
        t = (ratio / 2000.0).clamp(path.t_min, path.t_max)
        return self.plain(x / alpha.to(x), t).x0


def _distance(x: Tensor, exact: Tensor) -> float:
    """Return the mean sliced Wasserstein distance, in thousandths, over pictures."""
    pairs = zip(x, exact, strict=True)
    each = [sliced_wasserstein(a.flatten(1), b.flatten(1)) for a, b in pairs]
    return 1000 * sum(each) / len(each)


def against(exact: Tensor) -> Judge:
    """Return a judge that holds samples against exact draws, (pictures, many, *shape).

    "off" is how far their mean is from the exact one, root mean square, and "spread" how large
    their variance is, both in hundredths of the exact posterior's.
    """
    mean, variance = exact.mean(1), exact.flatten(2).var(1).mean(1)

    def judge(x: Tensor) -> Mapping[str, float]:
        x = x.unflatten(0, (len(exact), -1))
        off = (x.mean(1) - mean).flatten(1).square().mean(1).sqrt() / variance.sqrt()
        spread = x.flatten(2).var(1).mean(1) / variance
        told = {"off": 100 * float(off.mean()), "spread": 100 * float(spread.mean())}
        return {"distance": _distance(x, exact), **told}

    return judge


def digits(n: int = 5) -> list[Problem]:
    """Return two problems of digits: means of 2 × 2 pixels, and a hole of 4 × 4, with noise."""
    x = pixels()[0][:: len(pixels()[0]) // n][:n]
    kinds = {
        "digits, 2 × 2 means": operators.Pooling(2),
        "digits, a hole": centre(),
    }  # fmt: skip
    made: list[Problem] = []
    for number, (name, operator) in enumerate(kinds.items()):
        clean = operator.forward(x)
        z = noise.normal(range(n), clean.shape[1:], stream="probe", index=number, dtype=x.dtype)
        y = clean + STD * z
        if isinstance(operator, operators.Mask):
            y = operator.forward(y)
        many = posterior(law(), operator, y.repeat_interleave(EXACT, 0), STD)
        exact = many.draw(range(n * EXACT)).unflatten(0, (n, EXACT))
        about = "Sliced Wasserstein distance to the exact posterior, in thousandths."
        judge = against(exact)
        others = posterior(law(), operator, y.repeat_interleave(DRAWS, 0), STD)
        floor = judge(others.draw(range(10**6, 10**6 + n * DRAWS)))["distance"]
        how = (law(), operator, y, STD, 0.4, DRAWS, judge)
        made.append(Problem(name, about, *how, floor=floor))
    return made


@dataclass(frozen=True, eq=False)
class Classes:
    """Digits of a class: the mixture's components are given to classes, so all of it is exact.

    Args:
        labels: the class of every component, (components,).
    """

    labels: Tensor

    def logits(self, x: Tensor, t: Tensor) -> Tensor:
        """Return log p_t(class, x), (batch, classes): a classifier of noisy digits."""
        joint = law().log_joint(x, t.double())
        hidden = torch.nn.functional.one_hot(self.labels, CLASSES).T.bool()[:, None]
        return torch.where(hidden, joint, -torch.inf).logsumexp(2).T

    def exact(self, label: int, n: int) -> Tensor:
        """Return digits of the class, drawn exactly."""
        own, whole = self.labels == label, law()
        weights = whole.weights[own] / whole.weights[own].sum()
        part = Spherical(whole.path, whole.means[own], whole.stds[own], weights)
        return part.draw(range(n))


@cache
def classes() -> Classes:
    """Return the classes: each component belongs to the one that most of its digits have."""
    x, labels = pixels()
    share = law().log_joint(x, torch.zeros((), dtype=torch.float64)).softmax(1)
    votes = share.T @ torch.nn.functional.one_hot(labels, CLASSES).double()
    return Classes(votes.argmax(1))


def emoji(n: int = 4) -> list[Problem]:
    """Return two problems of held-out emoji: a hidden middle, and four times fewer pixels."""
    from pathline.learn import load_model
    from pathline.systems.steered_emoji import held_out, psnr

    model, x = load_model("emoji"), held_out(n)
    hole = torch.ones(1, *x.shape[2:])
    hole[..., 8:24, 8:24] = 0
    made: list[Problem] = []
    for name, operator in (
        ("emoji, a hole", operators.Mask(hole)),
        ("emoji, 4 × 4", operators.Cubic(4)),
    ):

        def judge(made: Tensor) -> Mapping[str, float]:
            return {"distance": psnr(made, x)}

        about = "PSNR to the held-out picture, in dB: more is nearer."
        y = operator.forward(x)
        made.append(Problem(name, about, model, operator, y, 0.02, 0.5, 1, judge, torch.float32))
    return made

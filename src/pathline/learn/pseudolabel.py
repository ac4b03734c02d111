"""Rewards of few data, put on many: a regression on the labelled ones labels all.

    θ̂ = (Xᵀ X + λ 1)⁻¹ Xᵀ y          on the labelled data
    ŷ = f̂(x) + ν ξ                    on all of them, ξ ~ N(0, 1)

A model of (x, ŷ) is then asked for x at a reward. Without ν the law of x given ŷ would lie on a
level set of f̂ and have no density: its score grows without bound as t → 0.

Paper: Yuan et al. 2023 (arXiv:2307.07055), Alg. 1; Chen et al. 2024 (arXiv:2404.07771), Sec. 5.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pathline.core import noise as draws
from pathline.core.errors import UsageError
from pathline.core.progress import track
from pathline.learn.run import step_generator
from pathline.learn.sources import Batch

__all__ = [
    "Labels",
    "PseudoLabelled",
    "Regressor",
    "Ridge",
    "fit_regressor",
    "fit_ridge",
    "pseudo_labels",
]

PENALTIES: tuple[float, ...] = tuple(10.0 ** (k / 2) for k in range(-8, 9))
"""What λ is chosen from."""

FAR = 4.0
"""Deviations of the labels beyond which a target is told to be extrapolation."""


@dataclass(frozen=True)
class Labels:
    """What is known of the labelled rewards.

    Args:
        mean: of them.
        std: their deviation.
        low: the least.
        high: the most.
        n: how many there are.
    """

    mean: float
    std: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Labels:
        """Return what labels y, (m,), of data x, (m, *state), amount to.

        Raises:
            UsageError: no labelled rows, another number of them, labels that are constant or not
                finite; names the column.
        """
        if y.ndim != 1 or len(y) != len(x):
            raise UsageError(
                f"column 'y' has the shape {tuple(y.shape)} beside {len(x)} labelled rows of "
                "column 'x'; one number a row is needed."
            )
        if not len(y):
            raise UsageError("column 'y' is empty: there are no labelled rows to learn from.")
        bad = int((~y.isfinite()).sum())
        if bad or not bool(x.isfinite().all()):
            name = "y" if bad else "x"
            raise UsageError(f"column '{name}' of the labelled rows is not finite everywhere.")
        y = y.double()
        low, high = float(y.min()), float(y.max())
        if low == high:
            raise UsageError(
                f"column 'y' is constant ({low:g}): every labelled row has one reward, which says "
                "nothing of where it rises."
            )
        return cls(float(y.mean()), float(y.std()), low, high, len(y))

    def beyond(self, a: float) -> float:
        """Return by how many deviations a target lies outside of the labels; 0 inside.

        Warns where it is more than 4.

        Raises:
            UsageError: a target that is not finite.
        """
        if not math.isfinite(a):
            raise UsageError(f"target 'a' is {a}: a finite reward is needed.")
        far = max(a - self.high, self.low - a, 0.0) / self.std
        if far > FAR:
            warnings.warn(
                f"target a = {a:g}: extrapolating by {far:.1f} sd beyond the labelled rewards "
                f"({self.low:g} to {self.high:g}); the regressor's error grows with that, and the "
                "samples' reward need not be what it says.",
                stacklevel=3,
            )
        return far


@dataclass(frozen=True, eq=False)
class Ridge:
    """A linear reward, f̂(x) = offset + θ · (x − center), differentiable.

    Args:
        theta: θ, (D,).
        penalty: the λ it was fitted with.
        center: (D,); None is 0.
        offset: the reward there.
    """

    theta: Tensor
    penalty: float
    center: Tensor | None = None
    offset: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Return the reward of every sample, (batch,)."""
        flat = x.flatten(1)
        flat = flat if self.center is None else flat - self.center.to(flat)
        return self.offset + flat @ self.theta.to(flat)


def fit_ridge(
    x: Tensor,
    y: Tensor,
    penalty: float | None = None,
    *,
    center: Tensor | None = None,
    offset: float = 0.0,
    folds: int = 5,
) -> Ridge:
    """Return the ridge regression of y on x, θ̂ = (Xᵀ X + λ 1)⁻¹ Xᵀ y.

    Args:
        x: labelled data, (m, *state).
        y: their rewards, (m,).
        penalty: λ ≥ 0; None chooses it of `PENALTIES` by the error on folds that are left out.
        center: what is subtracted from x; None is 0. For data that are not centred, their mean.
        offset: what is subtracted from y; then, its mean.
        folds: of the choice; at most m.

    Raises:
        UsageError: labels that cannot be learned from (`Labels.of`); a negative λ.

    Cost: a singular value decomposition of x, and one for each fold.

    Example:
        >>> x = torch.eye(3, dtype=torch.float64)
        >>> fit_ridge(x, torch.tensor([2.0, 4.0, 6.0]).double(), penalty=1.0).theta.tolist()
        [1.0, 2.0, 3.0]
    """
    Labels.of(x, y)
    if penalty is not None and penalty < 0:
        raise UsageError(f"penalty={penalty}: λ is 0 or more, or None to have it chosen.")
    flat = x.flatten(1).double()
    flat = flat if center is None else flat - center.double()
    wanted = y.double() - offset
    penalty = _chosen(flat, wanted, min(folds, len(y))) if penalty is None else penalty
    (theta,) = _ridges(flat, wanted, (penalty,))
    return Ridge(theta, penalty, center, offset)


def _chosen(x: Tensor, y: Tensor, folds: int) -> float:
    """Return the λ with the least squared error on what was left out."""
    if folds < 2:
        raise UsageError("λ is chosen on what is left out, which takes two rows; give penalty=.")
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    error = torch.zeros(len(PENALTIES), dtype=torch.float64)
    for k in range(folds):
        out, kept = order[k::folds], torch.cat([order[j::folds] for j in range(folds) if j != k])
        said = x[out] @ _ridges(x[kept], y[kept], PENALTIES).T
        error += (said - y[out, None]).square().sum(0)
    return PENALTIES[int(error.argmin())]


def _ridges(x: Tensor, y: Tensor, penalties: tuple[float, ...]) -> Tensor:
    """Return θ̂ for every λ, (penalties, D); for λ = 0 that of least norm."""
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    size = s.square() + torch.tensor(penalties, dtype=x.dtype)[:, None]
    seen = s > 1e-12 * s[0]
    return torch.where(seen, s * (u.T @ y) / size, 0.0) @ v


class Regressor(nn.Module):
    """A network as a reward: standardised outside of it, in the units of the data.

    Args:
        network: (batch, *state) → (batch, 1) or (batch,).
        mean, std: of the labels.
    """

    def __init__(self, network: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.network, self.mean, self.std = network, mean, std

    def forward(self, x: Tensor) -> Tensor:
        """Return the reward of every sample, (batch,)."""
        weight = next(self.network.parameters())
        return self.mean + self.std * self.network(x.to(weight.dtype)).reshape(len(x)).to(x.dtype)


def fit_regressor(  # noqa: PLR0913 - keyword-only: how long, how fast, and from where
    x: Tensor,
    y: Tensor,
    network: nn.Module | None = None,
    *,
    epochs: int = 100,
    rate: float = 1e-3,
    batch: int = 64,
    seed: int = 0,
) -> Regressor:
    """Return a network fitted to labelled data, by least squares and Adam.

    Args:
        x: (m, *state).
        y: (m,).
        network: (batch, *state) → (batch, 1), trained in place; None is one of three layers.
        epochs: passes over the data.
        rate: of Adam; it falls to zero along a cosine.
        batch: data an update.
        seed: of the order, and of the default network's weights.

    Raises:
        UsageError: labels that cannot be learned from (`Labels.of`).
    """
    labels, m = Labels.of(x, y), len(y)
    network = _layers(x[0].numel(), seed) if network is None else network
    made = Regressor(network, labels.mean, labels.std)
    x, y = x.float(), y.float()
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    network.train()
    for epoch in track(range(epochs), "fitting the reward"):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 + math.cos(math.pi * epoch / epochs)) / 2
        for rows in torch.randperm(m, generator=step_generator(seed, epoch)).split(batch):
            with torch.enable_grad():
                loss = ((made(x[rows]) - y[rows]) / labels.std).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return made.eval().requires_grad_(False)


def _layers(dim: int, seed: int, width: int = 64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(dim, width), nn.SELU(), nn.Linear(width, width), nn.SELU(),
            nn.Linear(width, 1),
        )  # fmt: skip


def pseudo_labels(
    reward: Callable[[Tensor], Tensor], x: Tensor, noise: float, seed: int = 0
) -> Tensor:
    """Return ŷ = f̂(x) + ν ξ, (n,).

    Args:
        reward: f̂.
        x: data, (n, *state).
        noise: ν above 0.
        seed: of ξ.

    Raises:
        UsageError: ν that is not above 0.
    """
    check_noise(noise)
    with torch.no_grad():
        said = reward(x)
    return said + noise * draws.normal([seed], (len(x),), stream="data", dtype=said.dtype)[0]


def check_noise(noise: float) -> None:
    """Refuse pseudo-labels without noise."""
    if not 0 < noise < math.inf:
        raise UsageError(
            f"noise={noise}: without noise on the pseudo-labels the law of data given one has no "
            "density, and its score grows without bound as t → 0; take a small ν > 0, such as a "
            "tenth of the labels' deviation."
        )


@dataclass(frozen=True)
class PseudoLabelled:
    """A source of training batches: data with noisy labels, which the network is told as y.

    Args:
        points: (n, *state).
        labels: f̂ of each, (n,).
        noise: ν; ξ is drawn anew for every batch.
        null_share: how many are shown without label (y = NaN), for guidance: 0.1 is usual.
        n_held_out: points at the end that are not trained on.
    """

    points: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    noise: float
    null_share: float = 0.0
    n_held_out: int = 128

    def __post_init__(self) -> None:
        check_noise(self.noise)
        if not self.n_held_out < len(self.points) == len(self.labels):
            raise UsageError(
                f"{len(self.points)} points and {len(self.labels)} labels, of which "
                f"{self.n_held_out} are held out: give as many labels as points, and more points."
            )

    @property
    def is_dropped(self) -> bool:
        """Whether the network learns data without label, too."""
        return self.null_share > 0

    def batch(self, n: int, generator: torch.Generator) -> Batch:
        """Return n points, each as likely as any other, with labels."""
        whole = len(self.points) - self.n_held_out
        chosen = torch.randint(whole, (n,), generator=generator)
        xi = torch.randn(n, generator=generator)
        dropped = torch.rand(n, generator=generator) < self.null_share
        y = (self.labels[chosen].float() + self.noise * xi).masked_fill(dropped, math.nan)
        return Batch(self.points[chosen].float(), {"y": y})

    def held_out(self, n: int) -> Batch:
        """Return at most n points that are not trained on, with their labels."""
        kept = min(n, self.n_held_out)
        start = len(self.points) - self.n_held_out
        rows = slice(start, start + kept)
        return Batch(self.points[rows].float(), {"y": self.labels[rows].float()})

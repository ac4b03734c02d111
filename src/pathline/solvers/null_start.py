"""What a model says of pure noise when it is told nothing: known without asking it.

At t_max the state has next to no data in it. Without a condition a network then says little more
than the mean of all data, and what it adds is nearly linear in the noise,

    x̂_0(x, t_max, ∅) ≈ μ + (x L) R,   L (d, r), R (r, d)

which no condition changes: measured once, it stands for the unconditional half of the first guided
evaluation of every sample. It is fitted by ridge regression, whose penalty a part of the noises
chooses that the fit has not seen, and cut to the r directions in which it varies most.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.core.progress import track
from pathline.core.tensors import on_device, read_tensors, write_tensors
from pathline.fields import Denoiser, Field
from pathline.fields.denoiser import denoiser_in, repeated
from pathline.fields.views import change
from pathline.paths import bshape

FILE = "null.safetensors"
"""The file beside a model's weights."""

FORMAT = "pathline-null-1"

RANK, NOISES, BATCH = 32, 4096, 64
STREAM = "probe"
HELD = 8
"""One of so many noises chooses the penalty."""

PENALTIES = 30.0, 100.0, 300.0, 1000.0, 3000.0
"""In units of the noise's variance; a state has as many degrees of freedom as elements."""


@dataclass(frozen=True, eq=False)
class NullStart:
    """x̂_0 at pure noise without a condition, as a function of the noise.

    Args:
        mean: μ, (*state).
        left: L, (d, r).
        right: R, (r, d).
        error: root mean square of what it leaves, on noises that it was not fitted to.
        spread: the same of the mean alone.
        weights: the checksum of the network's weights; "" if it is unknown.
    """

    mean: Tensor
    left: Tensor
    right: Tensor
    error: float
    spread: float
    weights: str = ""

    def __call__(self, x: Tensor) -> Tensor:
        """Return x̂_0, like x, (batch, *state)."""
        tables = self.mean, self.left, self.right
        mean, left, right = (on_device(each, x.device).to(x.dtype) for each in tables)
        return mean + ((x.flatten(1) @ left) @ right).reshape(x.shape)

    def save(self, file: str | Path) -> Path:
        """Write it into a file."""
        told = {"error": self.error, "spread": self.spread, "weights": self.weights}
        tensors = {"mean": self.mean, "left": self.left, "right": self.right}
        return write_tensors(file, tensors, {"format": FORMAT, **told})

    @classmethod
    def load(cls, file: str | Path) -> NullStart:
        """Read what `save` wrote.

        Raises:
            UsageError: the file cannot be read, or is none.
        """
        header, tensors = read_tensors(file)
        if header.get("format") != FORMAT:
            raise UsageError(f"{file} is no table of what a model says of pure noise.")
        told = (header["error"], header["spread"], header["weights"])
        return cls(tensors["mean"], tensors["left"], tensors["right"], *told)


def null_start_of(field: Field) -> NullStart:
    """Return the table of a model, which is beside it, or in its details under "null_start".

    Raises:
        UsageError: there is none, or it is of other weights.
    """
    model = denoiser_in(field)
    details = {} if model is None else model.details
    made = details.get("null_start")
    if isinstance(made, NullStart):
        return made
    file = Path(str(details.get("folder"))) / FILE
    if not file.is_file():
        raise UsageError(
            "what the model says of pure noise without a condition is not known; measure it: "
            "pathline tune MODEL --guidance W --thin"
        )
    found = _loaded(file, file.stat().st_mtime_ns)
    weights = details.get("weights", {}).get("sha256")
    if found.weights and weights and found.weights != weights:
        raise UsageError(f"{file} is of other weights than the model's; measure it anew.")
    return found


@lru_cache(maxsize=8)
def _loaded(file: Path, stamp: int) -> NullStart:
    del stamp
    return NullStart.load(file)


def measured_null_start(
    model: Denoiser, n: int = NOISES, rank: int = RANK, seed: int = 0
) -> NullStart:
    """Return what a model says of pure noise without a condition.

    Args:
        model: also trained without a condition.
        n: noises.
        rank: r; directions beyond it are left to the mean.
        seed: of the first noise.

    Raises:
        UsageError: the model has no null condition, or does not know the shape of a sample.

    Cost: n evaluations, and an n × n system of equations.
    """
    if model.null is None or model.shape is None:
        raise UsageError("this needs a model with a null condition that knows its samples' shape.")
    x, said = (torch.cat(each) for each in zip(*_said(model, n, seed), strict=True))
    mean = said.mean(0)
    rest, kept = said - mean, torch.arange(len(x)) % HELD != 0
    at, unseen = x[kept], x[~kept]
    gram, every = at @ at.T, torch.eye(len(at), dtype=at.dtype)
    unit = float(at.square().mean())
    best: tuple[float, Tensor] | None = None
    for penalty in PENALTIES:
        slope = at.T @ torch.linalg.solve(gram + penalty * unit * every, rest[kept])
        error = _rms(rest[~kept] - unseen @ slope)
        if best is None or error < best[0]:
            best = error, slope
    assert best is not None
    right = torch.linalg.svd(at @ best[1], full_matrices=False).Vh[:rank]
    left = best[1] @ right.T
    error = _rms(rest[~kept] - (unseen @ left) @ right)
    weights = str(model.details.get("weights", {}).get("sha256") or "")
    mean = mean.reshape(model.shape).float()
    return NullStart(mean, left.float(), right.float(), error, _rms(rest[~kept]), weights)


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


@torch.no_grad()
def _said(model: Denoiser, n: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return noises, and what the model says of them, (batch, d) each in float64 on the CPU."""
    path, device = model.path, model.device or "cpu"
    assert model.shape is not None
    assert model.null is not None
    t = torch.tensor(path.t_max, dtype=torch.float64, device=device)
    p, q = change(path, model.view, "x0", t)
    found = list[tuple[Tensor, Tensor]]()
    for first in track(range(0, n, BATCH), "what the model says of pure noise"):
        seeds = range(seed + first, seed + min(first + BATCH, n))
        drawn = noise.normal(seeds, model.shape, stream=STREAM, dtype=torch.float32, device=device)
        x = drawn * path.sigma(t).to(drawn)
        null = {k: repeated(v, len(x)) for k, v in model.null.items()}
        f = model.evaluate(x, t, null)
        clean = bshape(p, x) * x.double() + bshape(q, x) * f.double()
        found.append((x.double().flatten(1).cpu(), clean.flatten(1).cpu()))
    return found

"""Averages of the weights, chosen after training: power-function profiles, mixed from snapshots.

    θ̂_γ(t) = ∫_0^t p_γ(τ) θ(τ) dτ,   p_γ(τ) = (γ + 1) τ^γ / t^{γ+1}

A profile's width is σ_rel = √(γ + 1)/((γ + 2) √(γ + 3)), as a share of the training so far. Two of
them, kept on the way and written down now and then, span the others well: the weights w of

    min_w ‖p − Σ_i w_i p_i‖²
    ⟨p_a, p_b⟩ = (a + 1)(b + 1)/(a + b + 1) · t^{a+b+1}/(t_a^{a+1} t_b^{b+1}),   t = min(t_a, t_b)

give the average of any other width, or at any earlier time.

Paper: Karras et al. 2024 (arXiv:2312.02696), Sec. 3 and App. C.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.core.tensors import read_tensors, write_tensors

__all__ = ["Profile", "Snapshot", "exponent", "mixed", "mixing", "snapshots", "width"]

MOST = 3**-0.5 / 2
"""The width of γ = 0, the plain mean; wider profiles would weigh the beginning more."""


def width(gamma: float) -> float:
    """Return σ_rel of an exponent γ ≥ 0."""
    return (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5)


def exponent(width: float) -> float:
    """Return γ of a width σ_rel.

    Raises:
        UsageError: a width that is not above 0 and at most that of the plain mean, 0.289.
    """
    if not 0 < width <= MOST + 1e-12:
        raise UsageError(f"the width of an average lies above 0 and below 0.289, and is {width}.")
    s = width**-2
    roots = np.roots([1, 7, 16 - s, 12 - s])
    return max(0.0, float(roots[np.abs(roots.imag) < 1e-9].real.max()))


@dataclass(frozen=True)
class Profile:
    """A power-function average at a time.

    Args:
        t: steps it has seen.
        gamma: its exponent.
    """

    t: float
    gamma: float

    def dot(self, other: Profile) -> float:
        """Return ∫ p p' dτ."""
        a, b, t = self.gamma, other.gamma, min(self.t, other.t)
        powers = (t / self.t) ** (a + 1) * (t / other.t) ** (b + 1)  # never overflow
        return (a + 1) * (b + 1) / (a + b + 1) * powers / t

    def keeps(self) -> float:
        """Return what step t keeps of the average before it, (1 − 1/t)^{γ+1}."""
        return (1 - 1 / self.t) ** (self.gamma + 1)


def mixing(known: Sequence[Profile], wanted: Profile) -> np.ndarray:
    """Return how much of each known profile mixes to the wanted one, in least squares; sum 1.

    Raises:
        UsageError: nothing is known, or nothing up to the wanted time.
    """
    if not any(each.t <= wanted.t for each in known):
        raise UsageError(f"there is no snapshot up to step {wanted.t:g}.")
    used = [each for each in known if each.t <= wanted.t]
    gram = np.array([[a.dot(b) for b in used] for a in used])
    goal = np.array([a.dot(wanted) for a in used])
    scale = np.sqrt(np.diag(gram))  # the later ones are steeper by far
    found = np.linalg.lstsq(gram / np.outer(scale, scale), goal / scale, rcond=1e-12)[0] / scale
    weights = found / found.sum()
    return np.array([weights[used.index(each)] if each in used else 0.0 for each in known])


@dataclass(frozen=True)
class Snapshot:
    """An average that was written down.

    Args:
        profile: which.
        file: where its tensors are, by name.
    """

    profile: Profile
    file: Path

    @classmethod
    def write(cls, folder: Path, profile: Profile, tensors: dict[str, Tensor]) -> Snapshot:
        """Write an average of the weights, in half precision, and return where it is."""
        file = folder / f"{int(profile.t):08d}-{width(profile.gamma):.4f}.safetensors"
        halves = {name: tensor.half() for name, tensor in tensors.items()}
        told = {"t": repr(profile.t), "gamma": repr(profile.gamma)}
        write_tensors(file, halves, told)
        return cls(profile, file)


def snapshots(folder: str | Path) -> list[Snapshot]:
    """Return the snapshots in a folder, the earliest first.

    Raises:
        UsageError: there are none.
    """
    names = sorted(Path(folder).glob("*.safetensors"))
    files = [file for file in names if re.fullmatch(r"\d{8}-\d\.\d{4}", file.stem)]
    if not files:
        raise UsageError(
            f"{folder} has no snapshots: train with averages = [0.05, 0.1] and snapshot = 1000."
        )
    headers = [(read_tensors(file)[0], file) for file in files]
    return [Snapshot(Profile(float(h["t"]), float(h["gamma"])), f) for h, f in headers]


def mixed(known: Sequence[Snapshot], width: float, t: float | None = None) -> dict[str, Tensor]:
    """Return the average of any width, at the end of training or any earlier time.

    Args:
        known: the snapshots.
        width: σ_rel, above 0 and at most 0.289.
        t: the step it is to be at; None is the last.

    Raises:
        UsageError: a width or time that cannot be.

    Cost: each snapshot is read once.
    """
    last = max(each.profile.t for each in known) if t is None else t
    weights = mixing([each.profile for each in known], Profile(last, exponent(width)))
    total: dict[str, Tensor] = {}
    for weight, each in zip(weights.tolist(), known, strict=True):
        if weight == 0.0:
            continue
        for name, tensor in read_tensors(each.file)[1].items():
            before = total.get(name)
            added = tensor.double() * weight
            total[name] = added if before is None else before + added
    return {name: tensor.to(torch.float32) for name, tensor in total.items()}

"""What an edit returns, and what all edits ask of pictures, seeds and conditions.

One picture may have several answers: they stand side by side, (batch, samples, *state), and answer
k of picture b has the seed seeds[b · samples + k].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.core.noise import check_seeds
from pathline.core.receipt import Receipt
from pathline.core.solution import finite_status
from pathline.fields import Field
from pathline.fields.denoiser import denoiser_in, source_of

__all__ = ["Edited", "as_condition", "check_picture", "repeated", "repeated_condition", "seeds_of"]


@dataclass(frozen=True)
class Edited:
    """What an edit made, and how it went.

    Args:
        x: (batch, samples, *state), in the path's units; nothing is clamped.
        nfe: evaluations of the field for each answer, everything together.
        receipt: what it was made with.
        log: what the method says of its steps; None if nothing.
        code: the states at the noise end that it came from, (batch, *state) each; () if they are
            no function of the picture (SDEdit).
        latents: the states on the way up, data first; () unless they were asked for.
        error: of the round trip without the edit, the largest of each picture, (batch,); None if
            it was not measured.
        rms: the same as a root mean square.
    """

    x: Tensor
    nfe: int
    receipt: Receipt
    log: Any = field(default=None, repr=False)
    code: tuple[Tensor, ...] = field(default=(), repr=False)
    latents: tuple[Tensor, ...] = field(default=(), repr=False)
    error: Tensor | None = None
    rms: Tensor | None = None

    @property
    def flat(self) -> Tensor:
        """All answers, (batch · samples, *state)."""
        return self.x.flatten(0, 1)

    @property
    def status(self) -> Tensor:
        """Each answer's status, (batch, samples) int8; see `core.Status`."""
        return finite_status(self.flat.detach()).reshape(self.x.shape[:2])


def seeds_of(batch: int, samples: int, seed: int, seeds: Sequence[int] | None) -> tuple[int, ...]:
    """Return one seed an answer, a picture's answers side by side.

    Raises:
        UsageError: fewer than one answer, or another number of seeds.
    """
    if samples < 1:
        raise UsageError(f"samples={samples}: every picture has one answer at least.")
    n = batch * samples
    if seeds is None:
        check_seeds([seed])
        return tuple(range(seed, seed + n))
    check_seeds(seeds)
    if len(seeds) != n:
        raise UsageError(
            f"{len(seeds)} seeds were given for {batch} pictures with {samples} answers each; "
            f"give {n}, a picture's answers side by side."
        )
    return tuple(seeds)


def repeated(x: Tensor, samples: int) -> Tensor:
    """Return each picture's tensor once for each answer."""
    return x if samples == 1 else x.repeat_interleave(samples, 0)


def repeated_condition(cond: Mapping[str, Any], batch: int, samples: int) -> dict[str, Any]:
    """Return a condition for all answers: what is said of each picture is repeated."""

    def each(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim and len(value) == batch:
            return repeated(value, samples)
        if isinstance(value, list | tuple) and len(value) == batch:
            return [v for v in value for _ in range(samples)]
        return value

    return dict(cond) if samples == 1 else {name: each(value) for name, value in cond.items()}


def as_condition(model: Field, said: str | Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Return a condition: words are the model's text, or whatever it calls its condition."""
    if isinstance(said, Mapping):
        return dict(said)
    details = getattr(denoiser_in(model), "details", {})
    told = details.get("condition")
    return {told if isinstance(told, str) else "text": said if isinstance(said, str) else [*said]}


def check_picture(model: Field, x: Tensor) -> None:
    """Refuse what cannot be edited by this model.

    Raises:
        UsageError: no tensor (batch, *state); a field without a path; a model of a flow between
            two sets of data, whose states are no noised pictures.
    """
    if not isinstance(x, Tensor) or x.ndim < 2 or not x.is_floating_point() or not len(x):
        what = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise UsageError(f"data are a floating tensor (batch, *state), and these are {what}.")
    if model.path is None:
        raise UsageError("data are edited by way of noise: under a model on a path (a Denoiser).")
    if model.shape is not None and tuple(x.shape[1:]) != tuple(model.shape):
        raise UsageError(f"the model takes data of {model.shape}, not {tuple(x.shape[1:])}.")
    if (source := source_of(model)) is not None:
        raise UsageError(
            f"this model begins at other data ({source}), not at noise: noised data are none of "
            "its states. Take encode and decode."
        )
    if not bool(torch.isfinite(x).all()):
        raise UsageError("the data have entries that are not finite.")

"""Text edits: a picture's code under what it shows, decoded under what it shall show.

The code is any inverter's. With a mask the edit stays inside: at every grid point of the way down
the rest is put back as it was on the way down of the unedited picture, which an exact inverter
carries to the picture itself.

Papers: Hertz et al. 2023 (arXiv:2208.01626), blends by the states of the source; Couairon et al.
2023 (arXiv:2210.11427).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.edit.change import check_mask
from pathline.edit.edited import Edited, as_condition, check_picture
from pathline.edit.inverter import Inverter, Watch
from pathline.edit.ways import (
    check_function,
    fingerprint,
    method_of,
    receipt_of,
    rising,
    way_of,
    working_dtype,
)
from pathline.fields import Field
from pathline.solvers import BDIA, Grid, Solver
from pathline.solvers.solve import Guide

__all__ = ["DAMPED", "Said", "text_edit"]

DAMPED = 0.96
"""γ of BDIA in edits. With 1 its parasitic root is not damped, and under another condition than
that of the inversion noise is left in the picture."""

Said = str | Sequence[str] | Mapping[str, Any]
"""Words for all pictures, for each, or a condition in the user's words: {"text": ...}."""


def text_edit(  # noqa: PLR0913 - keyword-only: each is one idea of the house
    model: Field,
    x: Tensor,
    source: Said,
    target: Said,
    *,
    solver: Inverter | Solver | str | None = None,
    grid: Grid | str | Sequence[float] | None = None,
    steps: int | None = None,
    strength: float = 1.0,
    guide: Guide | None = None,
    mask: Tensor | None = None,
    check: bool = True,
) -> Edited:
    """Return pictures that show something else, and as little else as possible.

    Args:
        model: a denoiser with a condition.
        x: data, (batch, *state).
        source: what they show.
        target: what they shall show.
        solver: BDIA with γ = 0.96 if None (exact), or any solver or inverter, as for `encode`.
        grid, steps: of generation; 50 steps even in log-SNR.
        strength: the share of the steps that is gone towards noise; less keeps more.
        guide: of the way back: `CFG(3.0)`, or `Anchored(3.0, text=source)`. The way up has none:
            codes found under guidance are no typical noise.
        mask: what is edited: 1 is, 0 stays, values between blend; of a shape that broadcasts to
            (batch, *state).
        check: whether the round trip under the source is made, and its error measured; a mask asks
            for it anyway.

    Raises:
        UsageError: no source or target; what `encode` and `decode` refuse.

    Returns:
        One answer a picture; `log` is what the inverter says of its steps.

    Cost: one way up and one down; the round trip is another way down.
    """
    check_picture(model, x)
    said, wanted = as_condition(model, source), as_condition(model, target)
    if not said or not wanted:
        raise UsageError("a text edit needs what the picture shows, and what it shall show.")
    method = method_of(BDIA(DAMPED) if solver is None else solver)
    edited = None if mask is None else check_mask(mask, x)
    up = way_of(model, None, rising(model, grid, steps, strength), said)
    down = way_of(model, guide, up.times, wanted)
    check_function(up.field)
    method.check(up)
    state = x.to(working_dtype(x, up.field, max(method.growth(up), method.growth(down))))
    found = method.invert(up, state)
    nfe = found.nfe
    off, seen = None, dict[int, tuple[Tensor, ...]]()
    if check or edited is not None:
        back = method.regenerate(up, found.states, None if edited is None else _recording(seen))
        nfe, off = nfe + back.nfe, (back.x - state).flatten(1)
    made = method.regenerate(
        down, found.states, None if edited is None else _blending(seen, edited.to(state))
    )
    y = made.x.to(x.dtype)
    if edited is not None:
        y = torch.where(edited == 0, x, y)  # what stays is the picture, not its round trip
    recipe = {**fingerprint(down, method, state.dtype), "source": _plain(said)}
    receipt = receipt_of(down, recipe, wanted, made.x, nfe + made.nfe)
    error = None if off is None else off.detach().abs().amax(1)
    rms = None if off is None else off.detach().square().mean(1).sqrt()
    return Edited(
        y[:, None], nfe + made.nfe, receipt, found.report, found.states, error=error, rms=rms
    )


def _recording(seen: dict[int, tuple[Tensor, ...]]) -> Watch:
    """Return what notes the states of the unedited picture."""

    def watch(index: int, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen[index] = states
        return states

    return watch


def _blending(seen: Mapping[int, tuple[Tensor, ...]], mask: Tensor) -> Watch:
    """Return what puts back the states of the unedited picture where the mask is 0."""

    def watch(index: int, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        pairs = zip(seen[index], states, strict=True)
        return tuple(torch.lerp(before, now, mask) for before, now in pairs)

    return watch


def _plain(cond: Mapping[str, Any]) -> dict[str, Any]:
    return {
        k: v if isinstance(v, str | int | float | list) else type(v).__name__
        for k, v in cond.items()
    }

"""What every edit begins with: a method, the times from data to noise, and what is refused there.

`encode`, `text_edit`, `latent_edit` and `code` take the same models, grids and methods; what they
say of them, and what they refuse, stands here once.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pathline.core.errors import UsageError
from pathline.core.receipt import Receipt
from pathline.core.solution import finite_status, status_names
from pathline.edit.by_solver import BySolver
from pathline.edit.inverter import Inverter, Way
from pathline.fields import Field
from pathline.fields.denoiser import denoiser_in, dtype_of
from pathline.paths import paths
from pathline.solvers import BDIA, Grid, Solver
from pathline.solvers.solve import Guide, as_grid

__all__ = [
    "check_function",
    "dtype_name",
    "fingerprint",
    "method_of",
    "receipt_of",
    "rising",
    "way_of",
    "working_dtype",
]

STEPS = 50
MOST_GROWTH = 1e-4
"""How much of a number rounding errors may become before more digits are taken."""


def method_of(solver: Inverter | Solver | str | None) -> Inverter:
    """Return the inverter that is meant: a solver's, by its plan; BDIA's if None."""
    if isinstance(solver, Inverter):
        return solver
    return BySolver(BDIA() if solver is None else solver)


def rising(
    model: Field, grid: Grid | str | Sequence[float] | None, steps: int | None, strength: float
) -> tuple[float, ...]:
    """Return the times from data to where the strength ends.

    Raises:
        UsageError: a strength or grid that leaves no step, or has no way back.
    """
    if not 0 < strength <= 1:
        raise UsageError(
            f"strength is the share of the steps to invert, in (0, 1], not {strength}."
        )
    if steps is not None and steps < 1:
        raise UsageError(f"N = {steps}: at least one step leads from data to noise.")
    made = as_grid(grid, steps, STEPS)
    if made.last == "denoise":
        raise UsageError(
            "a last step to data itself has no way back: take last='stop', and start at t_min."
        )
    falling = made.times(model.path)
    if falling[0] < falling[-1]:
        raise UsageError("give the grid of generation, from noise to data: its times must fall.")
    kept = int(made.n * strength + 1e-9)  # 0.29 × 100 is below 29
    if kept < 1:
        raise UsageError(f"strength {strength} of {made.n} steps is less than one step.")
    return falling[::-1][: kept + 1]


def way_of(
    model: Field, guide: Guide | None, times: tuple[float, ...], cond: Mapping[str, Any]
) -> Way:
    """Return the way of a model under its guide.

    Raises:
        UsageError: the model is on no path.
    """
    way = Way(model if guide is None else guide(model), times, cond)
    _ = way.path  # refuses a field without one
    return way


def check_function(field: Field) -> None:
    """Refuse a network that draws random numbers, or learns, while it is evaluated."""
    network = getattr(denoiser_in(field), "network", None)
    for name, part in network.named_modules() if isinstance(network, nn.Module) else ():
        is_random = isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0  # pyright: ignore[reportPrivateUsage]
        if part.training and (is_random or isinstance(part, nn.modules.batchnorm._BatchNorm)):  # pyright: ignore[reportPrivateUsage]
            raise UsageError(
                f"the field is not a function of z: {name} ({type(part).__name__}) is in training "
                "mode; call model.network.eval()."
            )


def working_dtype(x: Tensor, field: Field, growth: float) -> torch.dtype:
    """Return the dtype to work in, and warn if rounding will show in any.

    A network of 16 bits sees its input rounded: a state that comes back with errors of float32 is
    rounded to its neighbour once in 2^13 entries, and the network then says something else. In
    float64 that is once in 2^42.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    network: Any = getattr(denoiser_in(field), "network", None)
    if network is not None and torch.finfo(dtype_of(network, dtype)).bits == 16:
        dtype = torch.float64
    if growth * torch.finfo(dtype).eps > MOST_GROWTH:
        dtype = torch.float64
    if (error := growth * torch.finfo(dtype).eps) > MOST_GROWTH:
        warnings.warn(
            f"rounding errors grow by {growth:.3g} on the way to noise, to about {error:.1g}: "
            "take a gamma nearer to 1, or fewer steps.",
            stacklevel=3,
        )
    return dtype


def fingerprint(way: Way, method: Inverter, dtype: torch.dtype) -> dict[str, Any]:
    """Return what a code must be decoded with, as plain values."""
    path = way.path
    told = paths.describe(path) if paths.has(path) else {"type": type(path).__name__}
    return json.loads(
        json.dumps(
            {
                "path": told,
                "method": method.describe(),
                "grid": list(way.times),
                "dtype": dtype_name(dtype),
            }
        )
    )


def receipt_of(
    way: Way, told_by: Mapping[str, Any], cond: Mapping[str, Any], z: Tensor, nfe: int
) -> Receipt:
    """Return the receipt of what was made on a way.

    Args:
        way: it.
        told_by: how: the fingerprint of the method, or more.
        cond: the condition, in the user's words.
        z: what was made, for its statuses.
        nfe: evaluations for each sample.
    """
    denoiser = denoiser_in(way.field)
    model = {}
    if denoiser is not None:
        model = {"name": denoiser.name, "weights": denoiser.details.get("weights")}
    told = {
        k: v if isinstance(v, str | int | float | list) else type(v).__name__
        for k, v in cond.items()
    }
    recipe = {"model": model, "code": dict(told_by), "cond": told}
    status = status_names(finite_status(z.detach()))
    return Receipt(recipe, (), way.times, nfe, status, z.device.type, dtype_name(z.dtype))


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype: "float32"."""
    return str(dtype).removeprefix("torch.")

"""`encode` and `decode`: from data to their code and back, with the error of the round trip."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import NonFiniteError, UsageError
from pathline.core.files import write_atomically
from pathline.core.receipt import Receipt
from pathline.core.solution import Solution, Stats, finite_status
from pathline.edit.by_solver import BySolver
from pathline.edit.inverter import Inverted, Inverter, Way
from pathline.edit.ways import (
    STEPS,
    check_function,
    dtype_name,
    fingerprint,
    method_of,
    receipt_of,
    rising,
    way_of,
    working_dtype,
)
from pathline.fields import Field
from pathline.solvers import Grid, Solver, solvers
from pathline.solvers.solve import Guide, as_grid

__all__ = ["Code", "decode", "encode"]

FORMAT = "pathline-code-1"


@dataclass(frozen=True)
class Code:
    """What data were encoded as.

    Args:
        states: at the noise end first, then towards data; (batch, *state) each.
        times: the grid from data to noise.
        method: what found it.
        fingerprint: what regenerating must agree with: path, method, grid and dtype.
        dtype: of the data.
        error: of the round trip under the same condition, the largest of each sample, (batch,);
            None if it was not measured.
        rms: the same as a root mean square, (batch,).
        nfe: evaluations of the field for each sample, the round trip not counted.
        report: what the method says of its steps.
        receipt: what it was made with.
    """

    states: tuple[Tensor, ...]
    times: tuple[float, ...]
    method: Inverter
    fingerprint: Mapping[str, Any]
    dtype: torch.dtype
    error: Tensor | None = None
    rms: Tensor | None = None
    nfe: int = 0
    report: Any = field(default=None, repr=False)
    receipt: Receipt | None = field(default=None, repr=False)

    @property
    def z(self) -> Tensor:
        """The state at the noise end."""
        return self.states[0]

    def save(self, path: str | Path) -> Path:
        """Write the code as safetensors; what it was made with is in the file's metadata."""
        from safetensors.torch import save

        told: dict[str, Any] = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "dtype": dtype_name(self.dtype),
            "nfe": self.nfe,
            "receipt": None if self.receipt is None else self.receipt.to_json(),
        }
        tensors = {f"z{i}": z.detach().cpu().contiguous() for i, z in enumerate(self.states)}
        for name, value in (("error", self.error), ("rms", self.rms)):
            if value is not None:
                tensors[name] = value.cpu().contiguous()
        return write_atomically(path, save(tensors, {"code": json.dumps(told)}))

    @classmethod
    def load(cls, path: str | Path) -> Code:
        """Read a code that `save` wrote; only one of a registered solver can be read.

        Raises:
            UsageError: the file cannot be read, or holds no code.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), "pt") as file:
                told = json.loads((file.metadata() or {}).get("code", "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError) as error:
            raise UsageError(f"cannot read a code from {path}: {error}.") from error
        if not isinstance(told, dict) or told.get("format") != FORMAT:
            raise UsageError(f"{path} holds no code that `pathline invert` or encode wrote.")
        return _rebuilt(told, tensors)


def _rebuilt(told: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Code:
    try:
        fingerprint = told["fingerprint"]
        solver = solvers.rebuild(fingerprint["method"]["solver"])
        n = sum(name.startswith("z") for name in tensors)
        receipt = None if told["receipt"] is None else Receipt.from_json(told["receipt"])
        return Code(
            tuple(tensors[f"z{i}"] for i in range(n)),
            tuple(fingerprint["grid"]),
            BySolver(solver),
            fingerprint,
            getattr(torch, told["dtype"]),
            tensors.get("error"),
            tensors.get("rms"),
            told["nfe"],
            receipt=receipt,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"the code is damaged, or of a method without a file: {error}.") from error


def encode(  # noqa: PLR0913 - keyword-only: each is one idea of the house
    model: Field,
    x: Tensor,
    *,
    solver: Inverter | Solver | str | None = None,
    grid: Grid | str | Sequence[float] | None = None,
    steps: int | None = None,
    strength: float = 1.0,
    guide: Guide | None = None,
    check: bool = True,
    **cond: Any,
) -> Code:
    """Return the code of data: what a solver generates them from.

    Args:
        model: a denoiser.
        x: data, (batch, *state).
        solver: `BDIA()` if None, or any solver: exact if it can be run back (BDIA, Reversible),
            else an approximation. Or an inverter of `pathline.edit`: `ddim_inversion()`,
            `FixedPoint()`, `dci()`, `EDICT()`.
        grid, steps: of generation, as for `solve`; 50 steps even in log-SNR.
        strength: which part of the steps is gone towards noise, in (0, 1].
        guide: of the field that is inverted; where edits matter, none is best.
        check: whether the round trip is made, and its error measured.
        cond: the condition of the data, in the user's words.

    Raises:
        UsageError: the method, grid or field do not allow it; the message says what does.
        NonFiniteError: the way up met a NaN or an infinity.

    Cost: one evaluation a step for BDIA, and as many again for the round trip.

    Example:
        >>> from pathline.fields import Gaussian
        >>> from pathline.paths import VPLinear
        >>> law = Gaussian(VPLinear(), torch.tensor([3.0]), torch.tensor([0.25]))
        >>> x = torch.tensor([[2.5], [3.5]], dtype=torch.float64)
        >>> code = encode(law, x, steps=20)
        >>> len(code.states), bool(code.error.max() < 1e-12)
        (2, True)
        >>> torch.allclose(decode(law, code).x, x, rtol=0, atol=1e-12)
        True
    """
    method = method_of(solver)
    way = way_of(model, guide, rising(model, grid, steps, strength), cond)
    check_function(way.field)
    method.check(way)
    at = x.to(working_dtype(x, way.field, method.growth(way)))
    inverted = _inverted(method, way, at)
    made_with = fingerprint(way, method, at.dtype)
    receipt = receipt_of(way, made_with, cond, inverted.states[0], inverted.nfe)
    code = Code(
        inverted.states, way.times, method, made_with, x.dtype, nfe=inverted.nfe,
        report=inverted.report, receipt=receipt,
    )  # fmt: skip
    return _measured(code, way, at) if check else code


def decode(
    model: Field,
    code: Code,
    *,
    guide: Guide | None = None,
    solver: Inverter | Solver | str | None = None,
    grid: Grid | str | Sequence[float] | None = None,
    **cond: Any,
) -> Solution:
    """Return the data of a code; under another condition, what is edited.

    Args:
        model: the denoiser that the code was made with.
        code: as `encode` returned it: all its states.
        guide: of the field.
        solver, grid: only to make sure: they must be those of the code.
        cond: the condition, in the user's words.

    Raises:
        UsageError: this is no code, or one of another path, solver, grid or dtype.
    """
    if not isinstance(code, Code):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(
            "a code is all that encode returned (BDIA's is two states), and this is a "
            f"{type(code).__name__}: from one state alone the data do not come back."
        )
    if len(code.states) != code.method.n_states:
        raise UsageError(
            f"a code of this method is {code.method.n_states} states, and {len(code.states)} were "
            "given: pass on all that encode returned."
        )
    way = way_of(model, guide, code.times, cond)
    _check_fingerprint(code, way, solver, grid)
    made = code.method.regenerate(way, code.states)
    x = made.x.to(code.dtype)
    status = finite_status(x.detach())
    receipt = receipt_of(way, code.fingerprint, cond, x, made.nfe)
    if code.error is not None:
        recipe = {**receipt.recipe, "round_trip_error": float(code.error.max())}
        receipt = replace(receipt, recipe=recipe)
    calls = made.nfe * way.field.calls
    return Solution(x, code.times[0], status, Stats(made.nfe, calls, way.n), receipt)


def _inverted(method: Inverter, way: Way, x: Tensor) -> Inverted:
    try:
        return method.invert(way, x)
    except NonFiniteError as error:
        grown = f"; rounding errors were predicted to grow by {method.growth(way):.3g}."
        raise NonFiniteError(f"{str(error).rstrip('.')}{grown}", error.solution) from error


def _measured(code: Code, way: Way, x: Tensor) -> Code:
    """Return the code with the error of its round trip."""
    back = code.method.regenerate(way, code.states).x
    off = (back - x).detach().flatten(1)
    error, rms = off.abs().amax(1), off.square().mean(1).sqrt()
    scale = max(float(x.detach().abs().max()), 1.0)
    if code.method.is_exact and not bool((error < 1e-2 * scale).all()):
        _check_repeats(way, x)
    return replace(code, error=error, rms=rms)


def _check_repeats(way: Way, x: Tensor) -> None:
    """Refuse a field that says something else when it is asked again."""
    first, again = (way.noise(x)(1, x) for _ in range(2))
    if not torch.equal(first, again):
        raise UsageError(
            "the field is not a function of z: evaluated twice at one state it differs by up to "
            f"{float((first - again).abs().max()):.2g}; codes need a deterministic field."
        )


def _check_fingerprint(
    code: Code,
    way: Way,
    solver: Inverter | Solver | str | None,
    grid: Grid | str | Sequence[float] | None,
) -> None:
    """Refuse to regenerate by what the code was not made with.

    Raises:
        UsageError: names the first entry that differs.
    """
    method = code.method if solver is None else method_of(solver)
    found = fingerprint(way, method, code.z.dtype)
    if grid is not None:
        found["grid"] = list(as_grid(grid, None, STEPS).times(way.path)[::-1])
    for name, value in code.fingerprint.items():
        same = found[name] == value
        if name == "grid":
            pairs = zip(found[name], value, strict=False)
            same = len(found[name]) == len(value) and all(math.isclose(a, b) for a, b in pairs)
        if not same:
            raise UsageError(
                f"the code was made with another {name}: {value}, and now it is {found[name]}."
            )

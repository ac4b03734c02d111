"""Other paths for a trained model: a network is asked in the coordinates that it was trained in.

All Gaussian paths are one family up to time and scale: where two have the same log-SNR, the states
are multiples of each other, and what is to be predicted, x_0 and ε, is the same.

    x̂_0(x, t) = x̂_0'(c_t x, t'),   λ'(t') = λ(t),   c_t = α'_{t'}/α_t = σ'_{t'}/σ_t

So the path of a model is a choice of whoever samples, and no matter of training.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields.denoiser import Denoiser, null_of
from pathline.fields.field import Condition, Evaluate, Field
from pathline.fields.views import View, change
from pathline.paths import GaussianPath, Trimmed, bshape

Beyond = Literal["refuse", "trim"]

_INVARIANT: dict[View, View] = {
    "eps": "eps",
    "x0": "x0",
    "score": "eps",
    "v": "x0",
    "velocity": "x0",
}
"""The nearest view that is the same number on every path, had from each without dividing by α."""

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Carried(Field):
    """A field on a path, asked at other times and multiples of the state; see its subclasses.

    Args:
        inner: any field on a path, a guided one too.

    Raises:
        UsageError: the field has no path.
    """

    inner: Field

    def __post_init__(self) -> None:
        if self.inner.path is None:
            raise UsageError("other coordinates of a field need a path; this field has none.")

    @abstractmethod
    def there(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inner field's times, and what the state is multiplied with for it."""

    @property
    def known(self) -> GaussianPath:
        """The inner field's path."""
        assert self.inner.path is not None
        return self.inner.path

    @property
    def calls(self) -> int:
        return self.inner.calls

    def calls_at(self, times: Tensor) -> int:
        return self.inner.calls_at(self.there(times)[0])

    def piece(self, times: Tensor) -> Tensor:
        return self.inner.piece(self.there(times)[0])

    @property
    def vjps(self) -> int:
        return self.inner.vjps

    @property
    def shape(self) -> tuple[int, ...] | None:
        return self.inner.shape

    @property
    def device(self) -> torch.device | None:
        return self.inner.device

    @property
    def null(self) -> Mapping[str, Any] | None:
        """The model's null condition, for guidance; None if it has none, or is guided already."""
        return null_of(self.inner) if isinstance(self.inner, Denoiser | Carried) else None

    def condition(self, cond: Condition, batch: int) -> Condition:
        return self.inner.condition(cond, batch)

    def part(self, cond: Condition, rows: Tensor) -> Condition | None:
        return self.inner.part(cond, rows)

    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.bind(t.reshape(1, *t.shape), x, cond)(0, x)

    def bind(self, times: Tensor, x: Tensor, cond: Condition) -> Evaluate:
        asked, factor = self.there(times)
        evaluate = self.inner.bind(asked, x, cond)
        p, q = change(self.known, self.inner.view, self.view, asked)
        factor, p, q = ([bshape(c, x) for c in cs.unbind()] for cs in (factor, p, q))

        def carried(k: int, state: Tensor) -> Tensor:
            state = factor[k] * state
            return p[k] * state + q[k] * evaluate(k, state)

        return carried


@dataclass(frozen=True)
class Retimed(Carried):
    """A model on another path; see `retimed`, which makes it.

    Args:
        inner: the model, or any field on a path.
        path: the path to sample on.
    """

    path: GaussianPath  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.path, GaussianPath):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError("the new path must be a path, for example pathline.CondOT().")
        if self.path.kernel != self.known.kernel:
            raise UsageError(
                f"the path's noise has D={self.path.kernel.dof:g}, and the model was trained on "
                f"D={self.known.kernel.dof:g}: time and scale can be changed, the law of the noise "
                "cannot."
            )
        (high, low), (most, least) = _levels(self.path), _levels(self.known)
        if low < least - _ROUNDING or high > most + _ROUNDING:
            raise UsageError(
                f"the path asks for log-SNRs λ from {low:.4g} to {high:.4g}, and the model was "
                f"trained on {least:.4g} to {most:.4g}: beyond='trim' stays within what it knows."
            )

    @property
    def view(self) -> View:  # type: ignore[override]
        """x̂_0 or ε̂, whichever the model's own view says at every noise level."""
        return _INVARIANT[self.inner.view]

    def there(self, times: Tensor) -> tuple[Tensor, Tensor]:
        asked = self.known.time_of_log_snr(self.path.log_snr(times))
        self._check(times, asked)
        here = torch.hypot(self.path.alpha(times), self.path.sigma(times))
        return asked, torch.hypot(self.known.alpha(asked), self.known.sigma(asked)) / here

    def _check(self, times: Tensor, asked: Tensor) -> None:
        """Refuse times beyond the model's; on a GPU that would wait for the device."""
        if times.device.type != "cpu":
            return
        off = ~((asked >= -_ROUNDING) & (asked <= 1 + _ROUNDING))
        if bool(off.any()):
            t = float(times[off].flatten()[0])
            raise UsageError(
                f"at t = {t:.6g} the path asks for more noise or data than the model's path has; "
                f"stay between t = {self.path.t_min:.6g} and {self.path.t_max:.6g}."
            )


def retimed(field: Field, path: GaussianPath, *, beyond: Beyond = "refuse") -> Retimed:
    """Return a trained model, or any field on a path, on another path.

    Every solver, guide, grid and condition works with it as with the model itself, and where a
    solver is exact the samples are the same: what changes is where few steps go.

    Args:
        field: a denoiser, an oracle, a guided field.
        path: the path to sample on.
        beyond: what to do where the path has noise levels that the model was not trained on:
            "refuse" it, or "trim" it to the times between them. Generation then starts from pure
            noise at the first of them, as it does on the model's own path.

    Raises:
        UsageError: the field has no path, or does not cover the new one.

    Cost: nothing a step.

    Example:
        >>> import torch
        >>> from pathline.fields import Gaussian
        >>> from pathline.paths import CondOT, VPLinear
        >>> law = Gaussian(VPLinear(), torch.tensor([2.0]), torch.tensor([0.25]))
        >>> on_flow = retimed(law, CondOT(), beyond="trim")
        >>> round(on_flow.path.t_max, 4)
        0.9935
    """
    if beyond not in ("refuse", "trim"):
        raise UsageError(f"beyond={beyond!r}: choose 'refuse' or 'trim'.")
    if beyond == "trim" and field.path is not None:
        path = _trimmed(path, field.path)
    return Retimed(field, path)


def _levels(path: GaussianPath) -> tuple[float, float]:
    """Return λ at the data's end and at the noise end of generation."""
    return float(path.log_snr(path.t_min)), float(path.log_snr(path.t_max))


def _trimmed(path: GaussianPath, known: GaussianPath) -> GaussianPath:
    """Return the part of a path whose log-SNRs another one has; the path itself if it has all."""
    (high, low), (most, least) = _levels(path), _levels(known)
    if low >= most or high <= least:
        raise UsageError(
            f"the path has log-SNRs λ from {low:.4g} to {high:.4g}, and the model was trained on "
            f"{least:.4g} to {most:.4g}: nothing of the path is left."
        )
    start = path.t_max if low >= least else float(path.time_of_log_snr(least))
    end = path.t_min if high <= most else float(path.time_of_log_snr(most))
    if (end, start) == (path.t_min, path.t_max):
        return path
    return Trimmed(path, end, start)
